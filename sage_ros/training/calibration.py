"""How far a student's own estimate of its error can be believed: measured on episodes that it was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sage_ros.policy.config import StudentConfig
from sage_ros.policy.normalization import Normalization
from sage_ros.policy.student import StudentPolicy
from sage_ros.training.cloning import Cloned, clone
from sage_ros.training.engine import Engine
from sage_ros.training.openloop import Demonstration
from sage_ros.training.resume import Unfinished
from sage_ros.training.settings import CloningConfig

SPREAD = 1.645  # standard deviations to either side that hold 90 % of a normal distribution
EVERY = 4  # rows between two chunks that are looked at
LEAST = 1e-6
PARTS = 5  # at most so many students are fitted to calibrate one


def clone_calibrated(
    training: Sequence[Demonstration],
    validation: Sequence[Demonstration],
    student: StudentConfig,
    config: CloningConfig,
    engine: Engine | str = "cpu",
    progress: bool = True,
    unfinished: Unfinished | None = None,
    name: str = "student",
) -> Cloned:
    """As :func:`~sage_ros.training.cloning.clone`, with ``normalization.uncertainty`` calibrated.

    On the validation episodes, or, where there are none, by cross-fitting: each part of the training episodes is
    judged by a student of the others (cross-conformal prediction, Vovk 2015). A single training episode has to judge
    itself, which is too kind.
    """
    engine = Engine(engine) if isinstance(engine, str) else engine
    cloned = clone(training, validation, student, config, engine, progress, unfinished, name)
    if validation or len(training) < 2:
        scores = [_scores(cloned, validation or training)]
    else:
        scores = []
        parts = min(PARTS, len(training))
        for part in range(parts):
            rest = [d for place, d in enumerate(training) if place % parts != part]
            other = clone(rest, [], student, config, engine, progress, unfinished, f"{name}_without_part_{part}")
            scores.append(_scores(other, training[part::parts]))
    return replace(cloned, normalization=_calibrate(cloned, scores))


def calibrated(cloned: Cloned, shown: Sequence[Demonstration]) -> Normalization:
    """The student's normalization with its ``uncertainty`` measured on episodes that it was not trained on."""
    return _calibrate(cloned, [_scores(cloned, shown)])


def _calibrate(cloned: Cloned, scores: Sequence[tuple[np.ndarray, np.ndarray]]) -> Normalization:
    """Each joint by its own errors: one that hardly moves would make those that work look surer than they are."""
    misses, doubts = (np.concatenate([score[kind] for score in scores]) for kind in (0, 1))
    factors = np.maximum(np.quantile(misses, 0.9, axis=0) / SPREAD, LEAST)
    return replace(
        cloned.normalization,
        uncertainty=np.where(cloned.student.config.analogue, factors, 1.0),
        doubt=np.maximum(np.quantile(doubts, [0.99]), LEAST),
    )


def _scores(cloned: Cloned, shown: Sequence[Demonstration]) -> tuple[np.ndarray, np.ndarray]:
    """Errors in units of the student's estimate (R, A), and its mean estimate for each chunk."""
    policy = StudentPolicy(cloned.student, cloned.normalization, shown[0].rate)
    misses, doubts = [], []
    for demonstration in shown:
        for row in range(0, len(demonstration), EVERY):
            chunk = policy.infer(demonstration.observation(row))
            assert chunk.deviation is not None
            goal = demonstration.action[row : row + policy.horizon]
            misses.append(np.abs(chunk.positions[: len(goal)] - goal) / np.maximum(chunk.deviation[: len(goal)], LEAST))
            doubts.append(policy.expected_error(chunk))
    return np.concatenate(misses), np.array(doubts)
