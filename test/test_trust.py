import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_ros.core.trust import Calibration, TrustAttention, TrustConfig, narrowed

N, F, RATE = 12, 4, 20.0


def stream(rows: int, seed: int = 0) -> np.ndarray:
    """Tokens of a moving scene: smooth waves, larger on some tokens, with a little noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(rows)[:, None, None] / RATE
    phase = np.arange(N * F).reshape(N, F)
    size = np.linspace(0.1, 1.0, N)[:, None]
    return (size * np.sin(2 * t + phase) + 0.02 * rng.standard_normal((rows, N, F))).astype(np.float32)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration.fit([stream(400, seed) for seed in range(3)], RATE)


def run(filter_: TrustAttention, tokens: np.ndarray) -> list:
    return [filter_.update(row, 1 / RATE) for row in tokens]


def test_ordinary_motion_passes_unchanged_and_keeps_its_trust(calibration):
    tokens = stream(300, seed=9)
    results = run(TrustAttention(calibration), tokens)
    error = np.mean([np.abs(r.tokens - row).max() > 1e-5 for r, row in zip(results, tokens, strict=True)])
    assert error < 0.05
    assert min(r.confidence for r in results) > 0.9


def test_trust_falls_within_three_frames_and_recovers_within_a_second(calibration):
    tokens = stream(120, seed=9)
    tokens[40:60, :6] += 3.0  # half of the tokens covered
    results = run(TrustAttention(calibration), tokens)
    assert results[42].trust[:6].max() < 0.5
    assert results[42].trust[6:].min() > 0.7
    assert (results[59 + 20].trust > 0.5).mean() > 0.9


def test_a_distrusted_token_shows_what_was_expected_there(calibration):
    clean, tokens = stream(60, seed=9), stream(60, seed=9)
    tokens[40:46, :6] += 3.0
    attended = run(TrustAttention(calibration), tokens)[44].tokens
    blind = np.abs(tokens[44, :6] - clean[44, :6]).mean()
    assert np.abs(attended[:6] - clean[44, :6]).mean() < 0.35 * blind


def test_a_change_that_stays_is_adopted_in_the_end(calibration):
    tokens = stream(200, seed=9)
    tokens[40:, :6] += 3.0
    result = run(TrustAttention(calibration), tokens)[-1]
    assert np.abs(result.tokens - tokens[-1]).max() < 0.2
    assert result.confidence > 0.9


def test_half_means_the_same_on_every_scale(calibration):
    large = Calibration.fit([100.0 * stream(400, seed) for seed in range(3)], RATE)
    small = run(TrustAttention(calibration), stream(50, 9))
    scaled = run(TrustAttention(large), 100.0 * stream(50, 9))
    assert np.allclose([r.surprise for r in small], [r.surprise for r in scaled], atol=1e-3)


def test_the_threshold_is_the_calibrated_quantile(calibration):
    surprise = np.concatenate([r.surprise for s in range(3) for r in run(TrustAttention(calibration), stream(400, s))])
    assert 0.0002 < (surprise > 0.5).mean() < 0.003


def test_a_dropped_frame_is_allowed_more_movement(calibration):
    tokens = stream(60, seed=9)
    slow, fast = TrustAttention(calibration), TrustAttention(calibration)
    for row in tokens[:40]:
        slow.update(row, 1 / RATE)
        fast.update(row, 1 / RATE)
    assert slow.update(tokens[44], 5 / RATE).surprise.mean() < fast.update(tokens[44], 1 / RATE).surprise.mean()


def test_after_a_gap_or_a_reset_the_frame_is_taken_as_it_is(calibration):
    filter_ = TrustAttention(calibration)
    run(filter_, stream(20))
    strange = stream(1)[0] + 5.0
    assert np.array_equal(filter_.update(strange, 2.0).tokens, strange)
    filter_.reset()
    assert np.array_equal(filter_.update(-strange, 0.05).tokens, -strange)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_trust_weights_and_surprise_stay_bounded_on_any_input(seed):
    calibration = Calibration.fit([stream(100)], RATE)
    filter_ = TrustAttention(calibration)
    rng = np.random.default_rng(seed)
    for _ in range(30):
        result = filter_.update((rng.standard_normal((N, F)) * 10 ** rng.uniform(-3, 3)).astype(np.float32), 0.05)
        assert np.isfinite(result.tokens).all()
        assert (result.trust >= 0).all() and (result.trust <= 1).all()
        assert (result.surprise >= 0).all() and (result.surprise <= 1).all()
        assert result.weights.sum() == pytest.approx(result.confidence, abs=1e-5)
        assert 0 <= result.confidence <= 1 + 1e-6


def test_tokens_that_do_not_fit_are_refused(calibration):
    with pytest.raises(ValueError, match="calibration is for"):
        TrustAttention(calibration).update(np.zeros((3, 3), np.float32), 0.05)
    with pytest.raises(ValueError, match="not finite"):
        TrustAttention(calibration).update(np.full((N, F), np.nan, np.float32), 0.05)
    with pytest.raises(ValueError, match="forgetting"):
        TrustConfig(forgetting=1.5)


def test_a_calibration_survives_storage(calibration):
    again = Calibration.from_arrays(calibration.arrays())
    a, b = (run(TrustAttention(c), stream(30, 9))[-1] for c in (calibration, again))
    assert np.allclose(a.tokens, b.tokens, atol=1e-4)
    assert np.allclose(a.surprise, b.surprise, atol=1e-4)
    with pytest.raises(ValueError, match="lacks relevance"):
        Calibration.from_arrays({k: v for k, v in calibration.arrays().items() if k != "relevance"})


def test_a_picture_that_never_moved_is_no_surprise_while_it_stays():
    still = np.ones((10, 4, 3), np.float32)
    attention = TrustAttention(Calibration.fit([still], 20.0))
    for _ in range(3):
        found = attention.update(still[0], 0.05)
    assert (found.surprise == 0.0).all()
    assert (attention.update(still[0] + 1.0, 0.05).surprise > 0.5).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=64), st.floats(0.01, 1.0))
def test_narrow_attention_keeps_the_confidence_and_the_greatest_weights(weights, breadth):
    weights = np.array(weights, np.float32)
    narrow = narrowed(weights, breadth)
    assert narrow.sum() == pytest.approx(weights.sum(), rel=1e-4, abs=1e-6)
    kept, left = narrow > 0, (narrow == 0) & (weights > 0)
    if kept.any() and left.any():
        assert weights[kept].min() >= weights[left].max()
    if kept.sum() > 1:  # one fewer would not do
        assert weights[kept].sum() - weights[kept].min() <= breadth * weights.sum() * (1 + 1e-4)
