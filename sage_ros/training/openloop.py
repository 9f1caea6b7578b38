"""GR00T's open-loop metric: how far a policy's chunks are from what the demonstration did.

A chunk is asked for every 16 rows from row 0 on, row j of the chunk is compared with the action of row t + j, and the
error is the mean over rows and joints of the squared difference, in raw units (Isaac-GR00T,
``scripts/eval_policy.py``). Unlike there, rows beyond an episode's end only count where :func:`padded` adds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sage_ros.core.chunks import ChunkPolicy, Observation, Past
from sage_ros.core.history import history
from sage_ros.core.joints import JointLayout

if TYPE_CHECKING:
    from sage_ros.episodes.dataset import Episode

STEPS = 150  # rows of an episode that GR00T's evaluation looks at by default
EVERY = 16  # rows between two chunks there
WHOLE = "whole"


def length_name(steps: int | None) -> str:
    """What the first ``steps`` rows (None: all) are called in tables."""
    return WHOLE if steps is None else f"{steps} steps"


@dataclass(frozen=True)
class Demonstration:
    """An episode as a policy sees it: with the encoder's token maps instead of frames."""

    index: int  # the episode's number in its data set
    task: str
    rate: float  # rows per second
    state: np.ndarray  # (T, S) measured joint positions
    action: np.ndarray  # (T, A) commanded joint positions
    tokens: np.ndarray  # (T, N, F) float32
    state_joints: JointLayout
    action_joints: JointLayout
    labels: np.ndarray | None = None  # (T, H, A) float32: what a teacher would command, NaN where it was not asked

    def __len__(self) -> int:
        return len(self.action)

    def observation(self, row: int) -> Observation:
        """What was known at ``row``; the last command is the action of the row before, None at row 0."""
        last = self.action[row - 1] if row > 0 else None
        commands, states = history(self.state, self.action, np.array([row]))
        past = Past(commands[0], states[0], row / self.rate)
        return Observation(self.tokens[row], self.state[row], last, self.task, past)


def demonstration(episode: Episode, tokens: np.ndarray) -> Demonstration:
    """An episode with its token maps (T, N, F)."""
    return Demonstration(
        index=episode.index,
        task=episode.task,
        rate=episode.fps,
        state=episode.state,
        action=episode.action,
        tokens=tokens,
        state_joints=episode.state_joints,
        action_joints=episode.action_joints,
    )


def fit_layout(demonstration: Demonstration, state: JointLayout, action: JointLayout) -> Demonstration:
    """The episode with the columns that a policy of these joints takes and gives, found by name; others are left out,
    a teacher's labels too.

    Raises JointError where one is missing.
    """
    return replace(
        demonstration,
        state=demonstration.state[:, state.order_from(demonstration.state_joints.names)],
        action=demonstration.action[:, action.order_from(demonstration.action_joints.names)],
        state_joints=state,
        action_joints=action,
        labels=None,
    )


def blinded(demonstrations: Sequence[Demonstration]) -> list[Demonstration]:
    """The same, as one sees them who sees nothing."""
    return [replace(d, tokens=np.zeros_like(d.tokens)) for d in demonstrations]


@dataclass(frozen=True)
class Prediction:
    """A policy's chunks on one episode, asked for every ``every`` rows from row 0 on."""

    chunks: np.ndarray  # (C, every, A) float64: the rows of each chunk that count
    deviation: np.ndarray | None  # (C, every, A) standard deviations, where the policy gives them
    rows: int  # of the episode that are predicted; the last chunk may reach beyond

    @property
    def every(self) -> int:
        return self.chunks.shape[1]

    @property
    def positions(self) -> np.ndarray:
        """The open-loop actions, (rows, A)."""
        return self.chunks.reshape(-1, self.chunks.shape[-1])[: self.rows]

    @property
    def deviations(self) -> np.ndarray | None:
        """Standard deviations of :attr:`positions`, (rows, A)."""
        return None if self.deviation is None else self.deviation.reshape(-1, self.chunks.shape[-1])[: self.rows]

    def first(self, rows: int | None) -> Prediction:
        """What it is for the first ``rows`` rows (None: all)."""
        rows = self.rows if rows is None else min(rows, self.rows)
        count = -(-rows // self.every)
        return Prediction(self.chunks[:count], None if self.deviation is None else self.deviation[:count], rows)


def padded(demonstration: Demonstration, rows: int) -> Demonstration:
    """The episode with its last row repeated up to ``rows``, which GR00T N1's script counts as if demonstrated."""
    keep = np.minimum(np.arange(max(rows, len(demonstration))), len(demonstration) - 1)
    state, action, tokens = (x[keep] for x in (demonstration.state, demonstration.action, demonstration.tokens))
    return replace(demonstration, state=state, action=action, tokens=tokens, labels=None)


def predict_chunks(
    policy: ChunkPolicy, demonstration: Demonstration, steps: int | None = None, every: int | None = None
) -> Prediction:
    """What the policy would do in the first ``steps`` rows (None: all), a fresh chunk every ``every`` (its horizon).

    Raises ValueError if the policy's rate is not the demonstration's, if its chunks have another shape, or if they end
    before the next is asked for.
    """
    rows = len(demonstration) if steps is None else min(steps, len(demonstration))
    every = policy.horizon if every is None else every
    if not 1 <= every <= policy.horizon:
        raise ValueError(f"a chunk every {every} rows was asked for, but the policy's chunks have {policy.horizon}")
    shape = (policy.horizon, demonstration.action.shape[1])
    policy.reset()
    found, spread = [], []
    for row in range(0, rows, every):
        chunk = policy.infer(demonstration.observation(row))
        if abs(chunk.rate - demonstration.rate) > 1e-3 * demonstration.rate:
            raise ValueError(
                f"the policy's chunks are at {chunk.rate:g} Hz, but episode {demonstration.index} is at "
                f"{demonstration.rate:g} Hz: rows would not match"
            )
        if chunk.positions.shape != shape:
            raise ValueError(f"the policy's chunk is {chunk.positions.shape}, but {shape} (rows, joints) was expected")
        found.append(chunk.positions[:every])
        spread.append(None if chunk.deviation is None else chunk.deviation[:every])
    known = [deviation for deviation in spread if deviation is not None]
    return Prediction(np.stack(found), np.stack(known) if len(known) == len(found) else None, rows)


def predict(policy: ChunkPolicy, demonstration: Demonstration, steps: int | None = None) -> np.ndarray:
    """The policy's open-loop actions (R, A) for the first ``steps`` rows (None: all), a fresh chunk per horizon.

    Raises ValueError as :func:`predict_chunks`.
    """
    return predict_chunks(policy, demonstration, steps).positions


def open_loop_error(
    policy: ChunkPolicy, demonstration: Demonstration, columns: np.ndarray | None = None, steps: int | None = STEPS
) -> float:
    """GR00T's metric on one episode: mean squared error over the first ``steps`` rows and the joints ``columns``."""
    error = predict(policy, demonstration, steps)
    error = error - demonstration.action[: len(error)]
    return float(np.mean((error if columns is None else error[:, columns]) ** 2))


def compare(
    policies: Mapping[str, ChunkPolicy],
    demonstrations: Sequence[Demonstration],
    groups: Sequence[str] = (),
    steps: int | None = STEPS,
) -> dict[str, list[float]]:
    """The metric of every policy on every episode, over the joints of ``groups`` (none: all joints)."""
    table = {}
    for name, policy in policies.items():
        columns = [d.action_joints.columns(groups) if groups else None for d in demonstrations]
        table[name] = [
            open_loop_error(policy, d, c, steps) for d, c in zip(demonstrations, columns, strict=True)
        ]
    return table


def no_worse(errors: Mapping[str, Sequence[float]], judged: str) -> dict[str, float]:
    """The mean error of every policy that errs no more than ``judged``, variants of which are no rivals."""
    mean = {name: float(np.mean(values)) for name, values in errors.items()}
    return {name: error for name, error in mean.items() if not name.startswith(judged) and error <= mean[judged]}


def format_table(columns: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Policies down, one column per measurement (a name and its :func:`compare`): the mean over episodes.

    Every figure is followed by its ratio to the first policy's.
    """
    names = list(next(iter(columns.values())))
    width = max(map(len, names))
    lines = [" " * width + "".join(f"  {head:>20}" for head in columns)]
    for name in names:
        cells = []
        for errors in columns.values():
            mean, first = float(np.mean(errors[name])), float(np.mean(errors[names[0]]))
            cells.append(f"{mean:12.6f} {mean / first:6.2f}x" if first > 0 else f"{mean:12.6f}        ")
        lines.append(f"{name:<{width}}" + "".join(f"  {cell:>20}" for cell in cells))
    return "\n".join(lines)
