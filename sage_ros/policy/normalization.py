"""Means and deviations of the training rows, on disk by joint name; without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sage_ros.policy.manifest import RETRAIN, CheckpointError, Manifest, check_file, read_json

NORMALIZATION = "normalization.json"
STAYS = 4.0  # log-odds that a bit is what it was
STILL = 0.1  # share of the most mobile joint's deviation below which a joint counts as still
AT_ONCE = 2**16  # rows whose chunks are in memory at a time
CLIP = 10.0  # in standard deviations: how far from the training data an input may be before it is cut off


@dataclass(frozen=True)
class Normalization:
    """Means and standard deviations of the training rows, float64; a constant dimension has deviation 1.

    ``first_command`` (A,) stands for the last command while there is none: the mean of the episodes' first actions.
    ``action_low`` and ``action_high`` (A,) are the least and greatest training actions. The student's own estimate of
    its error is calibrated with ``uncertainty`` (A,), the factor that makes a standard deviation of it, and ``doubt``,
    the mean estimate that one chunk in a hundred exceeded.
    """

    tokens_mean: np.ndarray  # (F,)
    tokens_std: np.ndarray  # (F,)
    state_mean: np.ndarray  # (S,)
    state_std: np.ndarray  # (S,)
    command_mean: np.ndarray  # (A,)
    command_std: np.ndarray  # (A,)
    offset_std: np.ndarray  # (A,) of the chunk's rows relative to the last command
    motion_std: np.ndarray  # (M,) of the motion features, about 0
    first_command: np.ndarray  # (A,)
    action_low: np.ndarray  # (A,)
    action_high: np.ndarray  # (A,)
    uncertainty: np.ndarray  # (A,)
    doubt: np.ndarray  # (1,)

    @property
    def action_range(self) -> np.ndarray:
        """Least and greatest training action of every joint, (A, 2)."""
        return np.stack((self.action_low, self.action_high), axis=1)

    def span(self, columns: Sequence[int]) -> np.ndarray:
        """How far these columns of the training actions reach, to divide by: 1 for what never changed.

        A gripper that two values are known of has not switched in each part of the episodes.
        """
        low, high = self.action_low[list(columns)], self.action_high[list(columns)]
        return np.where(high > low, high - low, 1.0)

    @classmethod
    def fit(
        cls, states: Sequence[np.ndarray], actions: Sequence[np.ndarray], tokens: Sequence[np.ndarray], horizon: int,
        motion_std: np.ndarray, bits: Sequence[int] = (),
    ) -> Normalization:
        """Fit on whole episodes: states (T, S), actions (T, A), tokens (T, N, F). ``motion_std`` (M,) is as it is;
        ``bits`` are the columns of the action that take two values only."""
        state, action = np.concatenate(list(states)), np.concatenate(list(actions))
        count = sum(t.shape[0] * t.shape[1] for t in tokens)
        mean = sum(t.sum(axis=(0, 1), dtype=np.float64) for t in tokens) / count
        square = sum(((t - mean) ** 2).sum(axis=(0, 1), dtype=np.float64) for t in tokens) / count
        offset = _offset_size(actions, horizon)
        analogue = ~np.isin(np.arange(action.shape[1]), bits)
        return cls(
            tokens_mean=np.asarray(mean),
            tokens_std=spread(np.sqrt(square)),
            state_mean=state.mean(axis=0),
            state_std=spread(state.std(axis=0)),
            command_mean=action.mean(axis=0),
            command_std=spread(action.std(axis=0)),
            offset_std=spread(offset, analogue),
            motion_std=motion_std,
            first_command=np.mean([a[0] for a in actions], axis=0),
            action_low=action.min(axis=0),
            action_high=action.max(axis=0),
            uncertainty=np.ones(action.shape[1]),
            doubt=np.ones(1),
        )

    def to_dict(self) -> dict[str, list[float]]:
        return {key: [float(x) for x in value] for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> Normalization:
        """Inverse of :meth:`to_dict`. Raises ValueError on missing, unknown, non-finite or non-positive entries."""
        names = [f.name for f in fields(cls)]
        if set(values) != set(names):
            odd = sorted(set(values) ^ set(names))
            raise ValueError(f"entries must be exactly {', '.join(names)}; missing or unknown: {', '.join(odd)}")
        arrays = {name: np.asarray(values[name], dtype=np.float64) for name in names}
        for name, array in arrays.items():
            if array.ndim != 1 or not np.isfinite(array).all():
                raise ValueError(f"'{name}' must be a list of finite numbers")
            if name.endswith(("_std", "uncertainty", "doubt")) and not (array > 0).all():
                raise ValueError(f"'{name}' must be positive")
        return cls(**arrays)


def _offset_size(actions: Sequence[np.ndarray], horizon: int) -> np.ndarray:
    """Size about 0 (A,) of all chunks relative to the command before them; 0 where no episode has two rows."""
    squares, count, waiting = np.zeros(actions[0].shape[1]), 0, list[np.ndarray]()
    for place, action in enumerate(actions):
        if len(action) > 1:
            waiting.append(chunks(action, horizon)[1:] - action[:-1, None])
        if waiting and (place == len(actions) - 1 or sum(map(len, waiting)) > AT_ONCE):
            offsets = np.concatenate(waiting)
            squares, count = squares + np.sum(offsets**2, axis=(0, 1)), count + len(offsets) * horizon
            waiting.clear()
    return np.asarray(np.sqrt(squares / max(count, 1)))


def spread(deviation: np.ndarray, alike: np.ndarray | None = None) -> np.ndarray:
    """Deviations to divide by: 1 for what is constant.

    None is less than a tenth of the greatest among those that are ``alike`` (a mask): a joint that hardly moves has
    hardly moved, and is not blown up to the size of those that work.
    """
    least = STILL * float(deviation[alike].max()) if alike is not None and alike.any() else 0.0
    return np.where(deviation > 1e-6, np.maximum(deviation, least), 1.0)


def chunks(action: np.ndarray, horizon: int) -> np.ndarray:
    """The next ``horizon`` actions of every row, (T, A) -> (T, horizon, A); the last action repeats at the end."""
    return action[np.minimum(np.arange(len(action))[:, None] + np.arange(horizon), len(action) - 1)]


def two_valued(actions: Sequence[np.ndarray]) -> tuple[int, ...]:
    """The columns of ``actions`` (T, A) that take exactly two values: grippers that are told to open or close."""
    action = np.concatenate(list(actions))
    return tuple(column for column in range(action.shape[1]) if len(np.unique(action[:, column])) == 2)


def log_odds(norm: Normalization, bits: Sequence[int], command: np.ndarray) -> np.ndarray:
    """(..., 1, len(bits)): log-odds that a bit is high soon, for all that the last ``command`` (..., A) tells."""
    share = np.clip((command[..., list(bits)] - norm.action_low[list(bits)]) / norm.span(bits), 0.0, 1.0)
    return np.asarray(STAYS * (2.0 * share - 1.0))[..., None, :]


def normalise(
    norm: Normalization, tokens: np.ndarray, state: np.ndarray, command: np.ndarray, fresh: np.ndarray,
    task: np.ndarray, motion: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """The student's six inputs, float32, from raw ones (leading dimensions as they are)."""

    def scale(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        y = (x.astype(np.float32) - mean.astype(np.float32)) / std.astype(np.float32)
        return np.clip(y, -CLIP, CLIP, out=y)

    return (
        scale(tokens, norm.tokens_mean, norm.tokens_std),
        scale(state, norm.state_mean, norm.state_std),
        scale(command, norm.command_mean, norm.command_std),
        fresh.astype(np.float32),
        task.astype(np.float32),
        scale(motion, np.zeros(1), norm.motion_std),
    )


def _joints_of(key: str, manifest: Manifest) -> tuple[str, ...] | None:
    """Names of the joints that a normalization entry is for; None: for other features."""
    kind = key.split("_")[0]
    if kind in ("tokens", "motion", "doubt"):
        return None
    return (manifest.state_joints if kind == "state" else manifest.action_joints).names


def by_joint(norm: Normalization, manifest: Manifest) -> dict[str, Any]:
    values: dict[str, Any] = norm.to_dict()
    for key, row in values.items():
        if (names := _joints_of(key, manifest)) is not None:
            values[key] = dict(zip(names, row, strict=True))
    return values


def read_normalization(path: Path, manifest: Manifest) -> Normalization:
    values = read_json(path)
    for key, entry in values.items():
        names = _joints_of(key, manifest)
        if names is None:
            continue
        if not isinstance(entry, dict) or tuple(entry) != names:
            found = ", ".join(entry) if isinstance(entry, dict) else repr(entry)[:80]
            raise CheckpointError(
                f"{path}: '{key}' is for the joints {found}, but config.json names {', '.join(names)}: {RETRAIN}"
            )
        values[key] = list(entry.values())
    try:
        norm = Normalization.from_dict(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}: {RETRAIN}") from error
    if not len(norm.tokens_mean) == len(norm.tokens_std) == manifest.student.features:
        raise CheckpointError(
            f"{path}: is for {len(norm.tokens_mean)} token features, config.json says {manifest.student.features}: "
            f"{RETRAIN}"
        )
    if (len(norm.motion_std), len(norm.doubt)) != (manifest.student.motion, 1):
        raise CheckpointError(
            f"{path}: is for {len(norm.motion_std)} motion features, config.json says {manifest.student.motion}, or "
            f"'doubt' is not one number: {RETRAIN}"
        )
    return norm


def action_range(folder: Path, manifest: Manifest) -> np.ndarray:
    """Least and greatest training action of every joint, (A, 2). Raises CheckpointError."""
    check_file(folder / NORMALIZATION, manifest.files[NORMALIZATION])
    return read_normalization(folder / NORMALIZATION, manifest).action_range
