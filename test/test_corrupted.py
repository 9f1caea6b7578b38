"""The open-loop error under corruptions: the same frames, tokens and rows as elsewhere, but for what is spoiled."""

from __future__ import annotations

import numpy as np
import pytest

from sage_ros.core.timing import SECOND
from sage_ros.core.trust import TrustAttention
from sage_ros.corruption import KINDS, Corruption, CorruptionConfig
from sage_ros.episodes.dataset import Episode, EpisodeDataset
from sage_ros.paths import checkpoint_path, dataset_path
from sage_ros.policy.checkpoint import Checkpoint, load_checkpoint
from sage_ros.training.corrupted import (
    attend,
    corruption_costs,
    format_costs,
    parse_corruptions,
    spoil,
)
from sage_ros.training.openloop import demonstration
from sage_ros.training.tokens import encode_frames
from sage_ros.vision.encoder import Encoder

HELD_OUT = 2  # an episode that the package's student has not seen
Stage = tuple[Checkpoint, Encoder, Episode, np.ndarray]


@pytest.fixture(scope="module")
def stage() -> Stage:
    checkpoint, dataset = load_checkpoint(checkpoint_path("")), EpisodeDataset(dataset_path(""))
    episode = dataset[dataset.indices.index(HELD_OUT)]
    return checkpoint, checkpoint.load_encoder(), episode, episode.frames()


def test_all_stands_for_every_kind() -> None:
    assert [str(c) for c in parse_corruptions(["blur", "noise:5"], 1.0)] == ["blur:3", "noise:5"]
    assert [str(c) for c in parse_corruptions(["all:2"], 1.0)] == [f"{kind}:2" for kind in KINDS]
    assert len(parse_corruptions(["all"], 1.0)) == 5 * len(KINDS)
    with pytest.raises(ValueError, match="must be from 1 to 5"):
        parse_corruptions(["all:7"], 1.0)


def test_lost_frames_leave_the_last_tokens_and_trust_knows_of_the_gap(stage: Stage) -> None:
    checkpoint, encoder, episode, frames = stage
    config = CorruptionConfig("frame_drop", 4, 1, 0.5)
    under = spoil(checkpoint, encoder, episode, frames, config)
    raw, (attended, _) = under.shown, attend(checkpoint, under)
    corruption, stamps = Corruption(config), [round(row * SECOND / 20) for row in range(len(frames))]
    came = [row for row, s in enumerate(stamps) if corruption.frame(s, frames[row]) is not None]
    assert 10 < len(came) < 60
    clean, trust, last = encode_frames(encoder, frames[came]), TrustAttention(checkpoint.calibration), 0
    for place, row in enumerate(came):
        expected = trust.update(clean[place], (row - last) / 20).tokens
        following = came[place + 1] if place + 1 < len(came) else len(frames)
        for held in range(row, following):
            np.testing.assert_allclose(raw.tokens[held], clean[place], atol=1e-5)
            np.testing.assert_allclose(attended.tokens[held], expected, atol=1e-5)
        last = row
    assert np.array_equal(raw.state, episode.state) and np.array_equal(raw.action, episode.action)


def test_joints_are_spoiled_and_targets_are_not(stage: Stage) -> None:
    checkpoint, encoder, episode, frames = stage
    config = CorruptionConfig("biased_joints", 5, 1, 0.5)
    raw = spoil(checkpoint, encoder, episode, frames[:20], config).shown
    off = raw.state[:20] - episode.state[:20]
    assert not off[:10].any() and np.abs(off[10:]).max() == pytest.approx(0.4)
    assert np.array_equal(raw.action, episode.action)


def test_the_cost_counts_what_is_planned_after_the_begin_and_clean_is_the_usual_error(stage: Stage) -> None:
    checkpoint, encoder, episode, frames = stage
    costs = corruption_costs(
        checkpoint, encoder, [episode], None, parse_corruptions(["noise:5", "blur:1"], 1.0), every=16, seeds=1,
        progress=False,
    )  # fmt: skip
    assert list(costs) == ["clean", "noise:5", "blur:1", "blind"]
    usual = demonstration(episode, encode_frames(encoder, frames))
    chunks = [checkpoint.policy.infer(usual.observation(row)).positions for row in range(20, len(usual), 4)]
    goals = [episode.action[row : row + 16] for row in range(20, len(usual), 4)]
    errors = np.concatenate([(c[: len(g)] - g) ** 2 for c, g in zip(chunks, goals, strict=True)])
    assert costs["clean"].without == pytest.approx([errors.mean()], rel=1e-3)
    assert costs["clean"].without[0] < costs["noise:5"].without[0]
    assert costs["clean"].without[0] < costs["blind"].without[0] == costs["blind"].trusting[0]
    lines = format_costs(costs).splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(costs) and "1.00x" in lines[1]


def test_a_fault_that_is_too_late_or_too_early_is_refused(stage: Stage) -> None:
    checkpoint, encoder, episode, _ = stage
    for text, begin, problem in (("blur", 60.0, "after the end of episode 2"), ("frame_drop:5", 0.0, "begin later")):
        with pytest.raises(ValueError, match=problem):
            corruption_costs(checkpoint, encoder, [episode], None, parse_corruptions([text], begin), 16, progress=False)
