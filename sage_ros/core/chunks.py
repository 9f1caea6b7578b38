"""What a chunk policy sees and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Past:
    """What a robot did up to an instant, one row per period of the policy, newest first; NaN where nobody knows."""

    commands: np.ndarray  # (K + 1, A) commanded before the instant: row 0 is the last command
    states: np.ndarray  # (L + 1, S) measured: row 0 is the present state
    elapsed: float  # seconds since the task began


@dataclass(frozen=True)
class Observation:
    """One instant as a robot knows it. Joint values in rad (or the data set's unit), by the policy's layouts."""

    tokens: np.ndarray  # (N, F) float32: the token map, row-major over the encoder's grid
    state: np.ndarray  # (S,) measured joint positions
    last_command: np.ndarray | None  # (A,) joint positions last commanded before this instant; None: none yet
    task: str  # what to do, in words
    past: Past | None = None  # for policies that remember (see :mod:`sage_ros.core.history`)


@dataclass(frozen=True)
class ActionChunk:
    """Future joint position targets: row ``i`` is to be reached (i + 1) / rate after the observation, as the points of
    a ``trajectory_msgs/JointTrajectory`` are."""

    positions: np.ndarray  # (H, A) float64
    rate: float  # Hz
    deviation: np.ndarray | None = None  # (H, A) how far off each may be: calibrated standard deviations
    confidence: float = 1.0  # in [0, 1]: falls where the policy is less sure than it ever was on its demonstrations

    def at(self, elapsed: float) -> tuple[np.ndarray, np.ndarray] | None:
        """Target (A,) and its velocity (A,) per second, ``elapsed`` seconds after the observation.

        Between rows on a cubic through them whose slope at a row is that between its neighbours (Catmull & Rom 1974),
        so that neither position nor velocity jumps. Row 0 before its time; None once the chunk is exhausted: an old
        plan is never stretched into the future.
        """
        rows, last = self.positions, len(self.positions) - 1
        place = max(elapsed * self.rate - 1.0, 0.0)
        row = min(int(place), max(last - 1, 0))
        u = place - row
        if place > last + 1e-9:
            return None
        if last == 0:
            return rows[0].copy(), np.zeros_like(rows[0])
        here, there = rows[row], rows[row + 1]
        slope = (there - rows[max(row - 1, 0)]) / (2 if row > 0 else 1)
        next_slope = (rows[min(row + 2, last)] - here) / (2 if row + 2 <= last else 1)
        way = there - here
        b, c = 3 * way - 2 * slope - next_slope, slope + next_slope - 2 * way
        return here + u * (slope + u * (b + u * c)), self.rate * (slope + u * (2 * b + 3 * u * c))


class ChunkPolicy(Protocol):
    """Anything that answers an observation with a chunk: the student, a baseline, a teacher."""

    horizon: int

    def reset(self) -> None:
        """Forget the episode so far."""

    def infer(self, observation: Observation) -> ActionChunk:
        """The next ``horizon`` joint targets; row 0 is the command for the observation's own tick."""
