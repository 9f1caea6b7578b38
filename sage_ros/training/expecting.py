"""What trust-attention is to expect where sessions were recorded, if that is not what it was calibrated on.

A moved camera or another table is no fault of the camera's: a student that has learned to act there has to be let act.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sage_ros.core.allowance import Thresholds
from sage_ros.core.crosscheck import COMMANDS, Checks
from sage_ros.core.trust import Calibration, TrustAttention
from sage_ros.policy.checkpoint import Checkpoint
from sage_ros.training.calibrate import LEAST, with_checks
from sage_ros.training.distil import CALIBRATED
from sage_ros.training.openloop import Demonstration
from sage_ros.training.sessions import Session
from sage_ros.training.watched import recorded

STRANGE = 0.05  # of the frames of sessions that succeeded: where more are doubted, the checks do not know the place
ROBOT = ("measured", "grips")  # of an expectation, besides what is followed


def recalibrated(
    champion: Checkpoint, sessions: Sequence[Session], originals: Sequence[Demonstration]
) -> Calibration:
    """The calibration of a challenger: how much its tokens change, and the checks of the sources against each other.

    Checks stay the champion's unless they doubt the camera in sessions that succeeded. Then those of the camera are
    fitted anew to these sessions and as many originals, so that both places are known; what joints and commands tell
    of each other is the robot's, and stays.
    """
    learned, checks = [s.demonstration for s in sessions], champion.calibration.checks
    found = Calibration.fit([d.tokens for d in (*learned, *originals)][:CALIBRATED], champion.rate)
    went_well = [session.demonstration for session in sessions if session.success]
    if checks is None or len(went_well) < LEAST or doubted(champion.calibration, went_well) < STRANGE:
        return replace(found, checks=checks)
    few = originals[:: -(-len(originals) // len(went_well))] if originals else []
    new = with_checks(found, [recorded(went_well), recorded(few)], champion.config).checks
    assert new is not None
    return replace(found, checks=with_robot_of(new, checks))


def doubted(calibration: Calibration, shown: Sequence[Demonstration]) -> float:
    """In which share of all frames the camera is believed so little that the robot would hold."""
    low, held = [], Thresholds().crisis_confidence
    for episode in recorded(shown):
        attention = TrustAttention(calibration)
        for tokens, state, commands in zip(episode.tokens, episode.state, episode.commands, strict=True):
            seen = attention.update(tokens, 1.0 / calibration.rate, state, commands)
            low.append(seen.sources["camera"] < held)
    return float(np.mean(low))


def with_robot_of(checks: Checks, other: Checks) -> Checks:
    """``checks``, but for what joints and commands tell of each other, which is as in ``other``."""
    told, limits = other.expectation, checks.limits.copy()
    limits[COMMANDS] = other.limits[COMMANDS]
    kept = {name: value for name, value in told.arrays().items() if name in ROBOT or name.startswith("followed")}
    return Checks(replace(checks.expectation, **kept), limits)
