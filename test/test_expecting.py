"""What trust-attention expects after a dream: a moved camera is believed, a broken one is not."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest
from test_crosscheck import JOINTS, RATE, F, N, arm, attend, calibration, checks, trusts  # noqa: F401 (fixtures)

from sage_ros.core.crosscheck import STATISTICS
from sage_ros.core.expectation import Watched
from sage_ros.core.joints import JointLayout
from sage_ros.core.trust import Calibration
from sage_ros.policy.checkpoint import Checkpoint
from sage_ros.policy.config import StudentConfig
from sage_ros.training.expecting import doubted, recalibrated
from sage_ros.training.openloop import Demonstration
from sage_ros.training.sessions import Session

NAMES = JointLayout(tuple("abc"))
STUDENT = StudentConfig(grid=(3, N // 3), features=F, state_dim=JOINTS, action_dim=JOINTS, measured=(0, 1, 2))
ELSEWHERE = np.random.default_rng(3).standard_normal((2, JOINTS, N * F))


def demonstration(seed: int, moved: bool = False) -> Demonstration:
    """The small arm's episode; seen by a ``moved`` camera, the same poses give another picture."""
    tokens, state, commands = arm(seed)
    if moved:
        noise = 0.05 * np.random.default_rng(seed).standard_normal((len(state), N * F))
        seen = np.sin(state) @ ELSEWHERE[0] + np.cos(state) @ ELSEWHERE[1] + noise
        tokens = seen.reshape(tokens.shape).astype(np.float32)
    return Demonstration(seed, "", RATE, state, commands, tokens, NAMES, NAMES)


def sessions(first: int, count: int, moved: bool, success: bool | None = True) -> list[Session]:
    return [Session(demonstration(seed, moved), success) for seed in range(first, first + count)]


@pytest.fixture
def champion(calibration: Calibration) -> Checkpoint:  # noqa: F811
    return Namespace(calibration=calibration, rate=RATE, config=STUDENT)  # type: ignore[return-value]


def test_a_moved_camera_is_believed_after_a_dream_and_the_old_place_still_is(champion: Checkpoint) -> None:
    originals = [demonstration(seed) for seed in range(500, 590)]
    unseen = [demonstration(seed, moved=True) for seed in range(700, 706)]
    assert doubted(champion.calibration, unseen) > 0.9
    now = recalibrated(champion, sessions(600, 30, moved=True), originals)
    assert doubted(now, unseen) < 0.05
    assert doubted(now, [demonstration(seed) for seed in range(800, 806)]) < 0.05

    clean = unseen[0]
    frozen = clean.tokens.copy()
    frozen[40:80] = frozen[39]
    results = attend(now, Watched.of(frozen, clean.state, clean.action))
    assert trusts(results, "camera")[45:80].min() < 0.3, "a frozen camera is none that was moved"


def test_what_joints_and_commands_tell_of_each_other_stays(champion: Checkpoint) -> None:
    before = champion.calibration.checks
    originals = [demonstration(seed) for seed in range(500, 530)]
    now = recalibrated(champion, sessions(600, 30, moved=True), originals).checks
    assert before is not None and now is not None and now is not before
    assert np.array_equal(now.expectation.followed, before.expectation.followed)
    row = STATISTICS.index("commands")
    assert np.array_equal(now.limits[row], before.limits[row]) and not np.array_equal(now.limits[0], before.limits[0])


@pytest.mark.parametrize(("moved", "success", "count"), [(False, True, 30), (True, False, 30), (True, True, 5)])
def test_checks_stay_where_the_place_is_known_or_nothing_is_known_of_another(
    champion: Checkpoint, moved: bool, success: bool, count: int
) -> None:
    originals = [demonstration(seed) for seed in range(500, 510)]
    now = recalibrated(champion, sessions(600, count, moved, success), originals)
    assert now.checks is champion.calibration.checks
