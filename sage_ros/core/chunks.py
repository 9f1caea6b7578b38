"""What a chunk policy sees and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Observation:
    """One instant as a robot knows it. Joint values in rad (or the data set's unit), by the policy's layouts."""

    tokens: np.ndarray  # (N, F) float32: the token map, row-major over the encoder's grid
    state: np.ndarray  # (S,) measured joint positions
    last_command: np.ndarray | None  # (A,) joint positions last commanded before this instant; None: none yet
    task: str  # what to do, in words


@dataclass(frozen=True)
class ActionChunk:
    """Future joint position targets: row ``i`` is meant for the observation's time + i / rate."""

    positions: np.ndarray  # (H, A) float64
    rate: float  # Hz

    def sample(self, elapsed: float) -> np.ndarray | None:
        """Target (A,) at ``elapsed`` seconds after the observation, linear between rows.

        None once the chunk is exhausted: an old plan is never stretched into the future.
        """
        at = max(elapsed, 0.0) * self.rate
        row = int(at)
        last = len(self.positions) - 1
        if at > last:
            return None
        if row == last:
            return self.positions[last].copy()
        fraction = at - row
        return (1.0 - fraction) * self.positions[row] + fraction * self.positions[row + 1]


class ChunkPolicy(Protocol):
    """Anything that answers an observation with a chunk: the student, a baseline, a teacher."""

    horizon: int

    def reset(self) -> None:
        """Forget the episode so far."""

    def infer(self, observation: Observation) -> ActionChunk:
        """The next ``horizon`` joint targets; row 0 is the command for the observation's own tick."""
