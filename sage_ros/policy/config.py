"""The sizes of a student; without torch, for the nodes that only need to know what it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sage_ros.core.history import COMMANDS

CLOCK = 4  # figures that tell how long the task has gone on


@dataclass(frozen=True)
class StudentConfig:
    """Sizes of the network, and what it is told and asked.

    ``queries`` look at the token map; with none it is blind. ``history``: how many rows back it sees what was commanded
    (0: none). ``persistence``: the share of its last command's velocity that lasts from row to row where it has
    nothing to add; 0 repeats the last command. ``clock``: whether it is told how long the task has gone on. ``ahead``
    are rows beyond the chunk that it learns to foresee, in training only. ``bits`` are the columns of the action that
    take two values only (a gripper that opens or closes); ``measured`` is for each column of the action the column of
    the state that measures the same joint, or -1.
    """

    grid: tuple[int, int]
    features: int
    state_dim: int
    action_dim: int
    horizon: int = 16
    width: int = 64
    heads: int = 4
    layers: int = 2
    queries: int = 8
    trunk: int = 256
    words: int = 64
    ahead: tuple[int, ...] = (24, 32, 48, 64)
    history: int = 0
    persistence: float = 0.0
    clock: bool = False
    bits: tuple[int, ...] = ()
    measured: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = (*self.grid, self.features, self.state_dim, self.action_dim, self.horizon, self.width, self.heads)
        if min(*sizes, self.layers, self.trunk, self.words) < 1 or len(self.grid) != 2:
            raise ValueError(f"every size of a student must be at least 1, and the grid (rows, columns): {self}")
        if self.queries < 0 or not 0 <= self.history <= COMMANDS or not 0.0 <= self.persistence < 1.0:
            raise ValueError(f"queries >= 0, history 0 to {COMMANDS} and persistence in [0, 1) are needed: {self}")
        if not set(self.bits) <= set(range(self.action_dim)) or len(set(self.bits)) != len(self.bits):
            raise ValueError(f"bits must be different columns of {self.action_dim}, but are {self.bits}")
        if self.measured and (
            len(self.measured) != self.action_dim or not set(self.measured) <= set(range(-1, self.state_dim))
        ):
            raise ValueError(f"measured must name a column of the state, or -1, per joint, but is {self.measured}")
        if self.width % (4 * self.heads):
            raise ValueError(f"width must be a multiple of 4 x heads, but is {self.width} with {self.heads} heads")
        if any(row < self.horizon for row in self.ahead):
            raise ValueError(f"ahead must lie beyond the horizon {self.horizon}, but is {self.ahead}")

    @property
    def motion(self) -> int:
        """How many figures say how the robot has moved (see :func:`~sage_ros.policy.motion.motion_features`)."""
        velocities = self.history * self.action_dim
        return (velocities + self.action_dim + 2 * self.state_dim if self.history else 0) + CLOCK * self.clock

    @property
    def analogue(self) -> np.ndarray:
        """Which columns of the action (A,) are no bits."""
        return ~np.isin(np.arange(self.action_dim), self.bits)

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]
