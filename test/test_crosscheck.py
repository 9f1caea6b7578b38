"""Camera, joints and commands against each other: a small arm whose picture is a function of its pose and scene."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_ros.core.crosscheck import STATISTICS, Checks, CrossCheck
from sage_ros.core.expectation import DELAYS, Expectation, Watched
from sage_ros.core.sources import AdaptiveLimit, Reputation, Sustained, bound
from sage_ros.core.trust import Calibration, TrustAttention, TrustConfig

N, F, JOINTS, RATE = 12, 6, 3, 20.0
_random = np.random.default_rng(7)
SHOW = _random.standard_normal((JOINTS, 2, N * F))
PLACE = _random.standard_normal((2, N * F))


def arm(seed: int, rows: int = 120, reach: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, joints and commands of an episode: the arm swings, things lie elsewhere each time."""
    random = np.random.default_rng(seed)
    t = np.arange(rows + 1)[:, None] / RATE
    speed, phase, size = (random.uniform(*bounds, JOINTS) for bounds in ((0.8, 2.0), (0, 6), (0.4, 0.9)))
    command = reach * size * np.sin(speed * t + phase)
    state = np.concatenate((command[:1], 0.3 * command[:-1] + 0.7 * command[1:]))[:-1]
    state = state + 0.002 * random.standard_normal(state.shape)
    seen = np.sin(state) @ SHOW[:, 0] + np.cos(state) @ SHOW[:, 1] + 0.5 * random.standard_normal(2) @ PLACE
    tokens = seen + 0.05 * random.standard_normal(seen.shape)
    return tokens.reshape(rows, N, F).astype(np.float32), state, command[:rows]


def watched(seed: int) -> Watched:
    return Watched.of(*arm(seed))


@pytest.fixture(scope="module")
def checks() -> Checks:
    return Checks.fit([watched(s) for s in range(30)], [watched(s) for s in range(30, 45)], range(JOINTS), RATE)


@pytest.fixture(scope="module")
def calibration(checks: Checks) -> Calibration:
    return replace(Calibration.fit([arm(s)[0] for s in range(30)], RATE), checks=checks)


def attend(calibration: Calibration, episode: Watched, config: TrustConfig | None = None) -> list:
    attention = TrustAttention(calibration, config)
    rows = zip(episode.tokens, episode.state, episode.commands, strict=True)
    return [attention.update(t, 1 / RATE, s, c) for t, s, c in rows]


def trusts(results: list, source: str) -> np.ndarray:
    return np.array([r.sources[source] for r in results])


BEGIN, END = 60, 90


def spoiled(fault: str, seed: int = 100) -> Watched:
    clean = watched(seed)
    tokens, state = clean.tokens.copy(), clean.state.copy()
    hit = slice(BEGIN, END)
    if fault == "frozen":
        tokens[hit] = tokens[BEGIN - 1]
    elif fault == "biased picture":
        tokens[hit] += 1.5 * np.random.default_rng(1).standard_normal((N, F)).astype(np.float32)
    elif fault == "noise":
        tokens[hit] += np.random.default_rng(1).standard_normal((END - BEGIN, N, F)).astype(np.float32)
    elif fault == "faint noise":  # that no frame shows by itself
        tokens[hit] += 0.6 * np.random.default_rng(1).standard_normal((END - BEGIN, N, F)).astype(np.float32)
    elif fault == "biased joint":
        state[hit, 1] += 0.2
    elif fault == "stuck joints":
        state[hit] = state[BEGIN - 1]
    return Watched(tokens, state, clean.commands)


@pytest.mark.parametrize(
    "fault, source, others",
    [
        ("frozen", "camera", ("joints", "rhythm")),
        ("biased picture", "camera", ("joints", "rhythm")),
        ("noise", "camera", ("joints", "rhythm")),
        ("faint noise", "camera", ("joints", "rhythm")),
        ("biased joint", "joints", ("camera", "rhythm")),
        ("stuck joints", "joints", ("rhythm",)),
    ],
)
def test_the_faulty_source_loses_trust_within_three_frames_and_has_it_back_within_a_second(
    calibration: Calibration, fault: str, source: str, others: tuple[str, ...]
) -> None:
    results = attend(calibration, spoiled(fault))
    trust = trusts(results, source)
    assert trust[:BEGIN].min() > 0.7
    if fault != "stuck joints":  # which have to be led away first
        assert trust[BEGIN + 2] < 0.5 and results[BEGIN + 2].confidence < 0.5
    assert trust[BEGIN + 6 : END].max() < 0.5, "it must not be believed as long as it lasts"
    assert trust[END + int(RATE) :].min() > 0.5
    for other in others:
        assert trusts(results, other).min() > 0.5, f"{other} is not to blame"


def test_ordinary_episodes_raise_no_alarm(calibration: Calibration) -> None:
    for seed in range(200, 220):
        results = attend(calibration, watched(seed))
        assert min(min(r.sources.values()) for r in results) >= 0.5, f"seed {seed}"


def test_where_the_arm_has_never_been_nobody_is_blamed(calibration: Calibration) -> None:
    for seed in range(300, 306):
        results = attend(calibration, Watched.of(*arm(seed, reach=2.5)))
        assert min(min(r.sources.values()) for r in results) >= 0.5, f"seed {seed}"


def test_a_picture_that_stands_still_says_the_same_thing_once(checks: Checks) -> None:
    """Evidence that does no harm alone: of an arm at rest it counts once, of a moving arm it adds up."""
    episode, appearance = watched(100), STATISTICS.index("appearance")

    def trust(rows: list[int]) -> float:
        check = CrossCheck(checks, RATE)
        for row in rows:
            check.look(episode.tokens[row], episode.state[row], None, 0.05)
            check.values[appearance] = 0.95 * checks.limits[appearance, 0]
            check.judge(0.5, 0.75)
        return check.trust["camera"]

    assert trust([50] * 100) > 0.9
    assert trust(list(range(10, 110))) < 0.5


def blocked(seed: int, off: float) -> Watched:
    """The arm comes to rest, one joint ``off`` from where the command is, and nothing moves any more."""
    clean = watched(seed)
    tokens, state, commands = clean.tokens.copy(), clean.state.copy(), clean.commands.copy()
    tokens[BEGIN:], state[BEGIN:], commands[BEGIN:] = tokens[BEGIN], state[BEGIN], commands[BEGIN]
    commands[BEGIN:, :, 1] += off
    return Watched(tokens, state, commands)


def test_a_joint_that_is_blocked_at_rest_is_no_fault_until_it_is_led_elsewhere(calibration: Calibration) -> None:
    episode = blocked(100, 0.3)
    trust = trusts(attend(calibration, episode), "joints")
    assert trust[BEGIN : BEGIN + int(RATE)].min() > 0.5 and trust[-1] > 0.9, "what is said again is no evidence"
    commands = episode.commands.copy()
    commands[END:, :, 1] += 0.03 * np.arange(len(commands) - END)[:, None]
    trust = trusts(attend(calibration, replace(episode, commands=commands)), "joints")
    assert trust[END + 4 :].max() < 0.5, "now it is seen not to follow"


def test_who_holds_because_of_the_joints_trusts_them_again_within_a_second(calibration: Calibration) -> None:
    episode = spoiled("stuck joints")
    rest = slice(BEGIN + 15, None)
    for rows in (episode.tokens, episode.state, episode.commands):
        rows[rest] = rows[BEGIN + 15]
    trust = trusts(attend(calibration, episode), "joints")
    assert trust[BEGIN + 14] < 0.5 < trust[BEGIN + 15 + int(RATE)]


def test_a_gripper_may_close_on_something_or_on_nothing() -> None:
    """On what it closes in all episodes; closed to the end it is where it was led."""

    def gripping(seed: int, size: float) -> Watched:
        tokens, state, command = arm(seed)
        t = np.arange(len(state)) % 60
        command[:, 2] = np.where(t < 20, 1.0, np.clip(1.0 - 0.1 * (t - 20), 0.0, 1.0))
        state[:, 2] = np.maximum(np.concatenate((command[:1, 2], command[:-1, 2])), size)
        return Watched.of(tokens, state, command)

    episodes = [gripping(seed, 0.3) for seed in range(30)]
    checks = Checks.fit(episodes[:20], episodes[20:], range(JOINTS), RATE)
    check = CrossCheck(checks, RATE)
    for size, fine in ((0.3, True), (0.0, True), (0.8, False)):
        check.reset()
        episode = gripping(50, size)
        for row in zip(episode.tokens, episode.state, episode.commands, strict=True):
            check.look(*row, 1.0 / RATE)
            check.judge(0.5, 0.75)
            if check.trust["joints"] < 0.5:
                break
        assert (check.trust["joints"] >= 0.5) == fine, size


def test_one_bad_frame_is_a_spike_that_is_forgotten(calibration: Calibration) -> None:
    episode = spoiled("none")
    episode.tokens[BEGIN] += 3.0
    trust = trusts(attend(calibration, episode), "camera")
    assert 0.5 < trust[BEGIN] < 0.8
    assert trust[BEGIN + 10] > 0.9


def test_a_distrusted_camera_shows_what_the_joints_let_expect(calibration: Calibration) -> None:
    clean, frozen = watched(100), spoiled("frozen")
    shown = np.array([r.tokens for r in attend(calibration, frozen)])
    late = slice(BEGIN + 10, END)
    blind = np.abs(frozen.tokens[late] - clean.tokens[late]).mean()
    assert np.abs(shown[late] - clean.tokens[late]).mean() < 0.5 * blind


def test_distrusted_joints_are_told_from_the_commands(calibration: Calibration) -> None:
    clean, biased = watched(100), spoiled("biased joint")
    told = np.array([r.state for r in attend(calibration, biased)])
    assert np.abs(told[BEGIN + 4 : END] - clean.state[BEGIN + 4 : END]).max() < 0.05
    assert np.array_equal(told[:BEGIN], clean.state[:BEGIN]), "trusted joints pass as they are"


def test_without_joints_or_without_the_check_nothing_is_checked(calibration: Calibration) -> None:
    biased = spoiled("biased joint")
    off = attend(calibration, biased, TrustConfig(cross_check=False))
    assert all(min(r.sources.values()) == 1.0 for r in off)
    attention = TrustAttention(calibration)
    blind = [attention.update(t, 1 / RATE) for t in biased.tokens]
    assert all(min(r.sources.values()) == 1.0 and r.state is None for r in blind)


def test_dropped_frames_cost_the_rhythm_its_trust_and_a_slow_camera_does_not(checks: Checks) -> None:
    episode = watched(100)

    def rhythm(gaps: list[float], period: float = 0.0) -> np.ndarray:
        check, found = CrossCheck(checks, RATE), []
        for tokens, state, gap in zip(episode.tokens, episode.state, gaps, strict=False):
            check.look(tokens, state, None, gap, period)
            check.judge(0.5, 0.75)
            found.append(check.trust["rhythm"])
        return np.array(found)

    assert rhythm([0.05] * 30 + [0.1] + [0.05] * 20).min() > 0.7, "one lost frame is ordinary"
    assert rhythm([0.05] * 30 + [0.2] * 20)[-1] < 0.5
    assert rhythm([0.2] * 50).min() == 1.0, "a camera of 5 Hz is none that drops frames"
    assert rhythm([0.05] * 30 + [0.2] * 20, period=0.2).min() == 1.0, "who asks for fewer frames misses none"


def test_frames_that_come_late_are_believed(calibration: Calibration) -> None:
    attention, episode = TrustAttention(calibration), watched(100)
    for row in range(45):
        result = attention.update(episode.tokens[row], 0.05 if row < 30 else 0.2, episode.state[row])
    assert result.sources["rhythm"] < 0.5 and result.confidence > 0.9


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_trust_stays_bounded_whatever_comes(checks: Checks, seed: int) -> None:
    random, check = np.random.default_rng(seed), CrossCheck(checks, RATE)
    for _ in range(30):
        size = 10 ** random.uniform(-3, 3)
        state = size * random.standard_normal(JOINTS) if random.random() < 0.8 else None
        commands = size * random.standard_normal((DELAYS, JOINTS)) if random.random() < 0.8 else None
        check.look((size * random.standard_normal((N, F))).astype(np.float32), state, commands, random.uniform(0.01, 1))
        check.judge(0.5, 0.75, adaptive=bool(random.integers(2)))
        assert all(0.0 <= trust <= 1.0 for trust in check.trust.values())
        assert all(0.0 <= surprise < 1.0 for surprise in check.surprise.values())


def test_checks_survive_storage(checks: Checks) -> None:
    again = Checks.from_arrays(checks.arrays())
    for name, array in checks.arrays().items():
        assert np.array_equal(array, again.arrays()[name]), name
    with pytest.raises(ValueError, match="lacks basis"):
        Checks.from_arrays({n: a for n, a in checks.arrays().items() if n != "basis"})
    with pytest.raises(ValueError, match="seen is"):
        Checks.from_arrays(checks.arrays() | {"seen": np.zeros((2, 2))})
    with pytest.raises(ValueError, match=f"one row of 3 for each of {', '.join(STATISTICS)}"):
        Checks.from_arrays(checks.arrays() | {"limits": np.zeros((7, 3))})


def test_too_little_to_learn_from_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 100"):
        Expectation.fit([Watched.of(*arm(0, 50))], range(JOINTS))
    with pytest.raises(ValueError, match="at least 2 episodes"):
        Checks.fit([watched(0)], [watched(1)], range(JOINTS), RATE)


def test_a_sum_tells_what_lasts_from_a_spike() -> None:
    total = Sustained(0.3, 3.0)
    assert total.add(50.0) < 1.0, "one frame is never enough"
    for _ in range(10):
        total.add(0.1)
    assert total.sum < 0.1
    assert max(total.add(0.8) for _ in range(10)) > 1.0, "small evidence adds up"
    sums = [total.add(0.8, new=False) for _ in range(30)]
    assert sums == sorted(sums, reverse=True) and sums[-1] < 0.1, "what is only said again fades"


def test_the_bound_of_a_sample_does_not_hang_on_one_odd_episode() -> None:
    ordinary = np.random.default_rng(0).lognormal(0.0, 0.3, 60)
    assert bound([*ordinary, 1000.0]) < 1.5 * bound(ordinary)
    assert np.mean(ordinary > bound(ordinary)) <= 0.05
    assert bound(ordinary[:3]) > bound(np.tile(ordinary[:3], 20)), "few episodes know little"


def test_a_limit_adapts_to_a_stream_that_is_always_a_little_odd_and_is_never_stricter() -> None:
    limit = AdaptiveLimit()
    for _ in range(500):
        limit.add(beyond=limit.factor < 2.0)
    assert limit.factor == pytest.approx(2.0, rel=0.1)
    for _ in range(10_000):
        limit.add(beyond=False)
    assert limit.factor >= 1.0


def test_three_bad_frames_halve_a_reputation() -> None:
    reputation = Reputation()
    assert [reputation.add(True, 0.75) < 0.5 for _ in range(3)] == [False, False, True]
    assert [reputation.add(False, 0.75) for _ in range(8)][-1] > 0.9
