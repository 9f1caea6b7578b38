"""GR00T's open-loop metric: how far a policy's chunks are from what the demonstration did.

A chunk is asked for every ``horizon`` rows from row 0 on, row j of the chunk is compared with the action of row
t + j, and the error is the mean over rows and joints of the squared difference, in raw units (Isaac-GR00T,
``scripts/eval_policy.py``). Unlike there, rows beyond an episode's end are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sage_ros.core.chunks import ChunkPolicy, Observation
from sage_ros.core.joints import JointLayout

STEPS = 150  # rows of an episode that GR00T's evaluation looks at by default


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

    def __len__(self) -> int:
        return len(self.action)

    def observation(self, row: int) -> Observation:
        """What was known at ``row``; the last command is the action of the row before, None at row 0."""
        last = self.action[row - 1] if row > 0 else None
        return Observation(self.tokens[row], self.state[row], last, self.task)


def predict(policy: ChunkPolicy, demonstration: Demonstration, steps: int | None = None) -> np.ndarray:
    """The policy's open-loop actions (R, A) for the first ``steps`` rows (None: all), a fresh chunk per horizon.

    Raises ValueError if the policy's rate is not the demonstration's.
    """
    rows = len(demonstration) if steps is None else min(steps, len(demonstration))
    policy.reset()
    found = []
    for row in range(0, rows, policy.horizon):
        chunk = policy.infer(demonstration.observation(row))
        if abs(chunk.rate - demonstration.rate) > 1e-3 * demonstration.rate:
            raise ValueError(
                f"the policy's chunks are at {chunk.rate:g} Hz, but episode {demonstration.index} is at "
                f"{demonstration.rate:g} Hz: rows would not match"
            )
        found.append(chunk.positions)
    return np.concatenate(found)[:rows]


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
