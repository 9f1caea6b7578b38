"""How a robot has moved, in figures that do not depend on where it is, and where that alone would take it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sage_ros.policy.config import StudentConfig
from sage_ros.policy.normalization import spread

DECAYS = (0.75, 2.5, 7.5)  # s: the clock's figures tell these apart


def motion_features(
    config: StudentConfig, commands: np.ndarray, states: np.ndarray, elapsed: np.ndarray
) -> np.ndarray:
    """(R, ``config.motion``) float32 of a :class:`~sage_ros.core.chunks.Past` per row: (R, K, A), (R, L, S) and (R,).

    Steps of the command from row to row, how far the joints lag behind it, their velocity over one and over four
    rows, and the clock. What is not known is 0, as at rest. Pose is left out on purpose: motion in these terms holds
    for poses that no demonstration was in.
    """
    parts = []
    if config.history:
        measured = measured_columns(config)
        lag = np.where(measured >= 0, commands[:, 0] - states[:, 0, np.maximum(measured, 0)], np.nan)
        steps = commands[:, : config.history] - commands[:, 1 : config.history + 1]
        parts = [steps.reshape(len(steps), -1), lag, states[:, 0] - states[:, 1], (states[:, 0] - states[:, 4]) / 4]
    if config.clock:
        clock = [np.log1p(20.0 * elapsed) / 5.0] + [np.exp(-elapsed / decay) for decay in DECAYS]
        parts.append(np.stack(clock, axis=1))
    found = np.concatenate(parts, axis=1) if parts else np.zeros((len(elapsed), 0))
    return np.nan_to_num(found).astype(np.float32)


def measured_columns(config: StudentConfig) -> np.ndarray:
    """Which column of the state measures each commanded joint (A,), -1 where none does."""
    return np.array(config.measured or [-1] * config.action_dim)


def lag_columns(config: StudentConfig) -> slice:
    """Where :func:`motion_features` say how far the joints lag behind, after the steps of the command."""
    return slice(config.history * config.action_dim, (config.history + 1) * config.action_dim)


def motion_scale(config: StudentConfig, motions: Iterable[np.ndarray]) -> np.ndarray:
    """What to divide :func:`motion_features` of all training rows by: their size about 0, (M,).

    The rows come in parts (R, M), so that they need not be in memory at once.
    """
    squares, rows = np.zeros(config.motion), 0
    for motion in motions:
        squares, rows = squares + np.sum(motion.astype(np.float64) ** 2, axis=0), rows + len(motion)
    size = np.sqrt(squares / rows)
    states = np.ones(config.state_dim, dtype=bool)
    kinds = [config.analogue] * (config.history + 1) + [states] * 2 if config.history else []
    start, scales = 0, []
    for alike in kinds:
        scales.append(spread(size[start : start + len(alike)], alike))
        start += len(alike)
    return np.concatenate([*scales, spread(size[start:])])


def carried_on(config: StudentConfig, commands: np.ndarray) -> np.ndarray:
    """Offsets (R, H + len(ahead), A) from the last command where its velocity lasts as ``persistence`` says.

    ``commands`` (R, K, A) as in :class:`~sage_ros.core.chunks.Past`. A gripper's bit stays as it is.
    """
    rows = np.array([*range(config.horizon), *config.ahead])
    kept = config.persistence
    shares = kept * (1.0 - kept ** (rows + 1)) / (1.0 - kept)  # kept + kept^2 + ... of row + 1 terms
    velocity = np.nan_to_num(commands[:, 0] - commands[:, 1])
    velocity[:, list(config.bits)] = 0.0
    return shares[:, None] * velocity[:, None]
