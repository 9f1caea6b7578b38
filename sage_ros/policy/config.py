"""The sizes of a student; without torch, for the nodes that only need to know what it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StudentConfig:
    """Sizes of the network. ``ahead`` are rows beyond the chunk that it learns to foresee, in training only."""

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

    def __post_init__(self) -> None:
        sizes = (*self.grid, self.features, self.state_dim, self.action_dim, self.horizon, self.width, self.heads)
        if min(*sizes, self.layers, self.queries, self.trunk, self.words) < 1 or len(self.grid) != 2:
            raise ValueError(f"every size of a student must be at least 1, and the grid (rows, columns): {self}")
        if self.width % (4 * self.heads):
            raise ValueError(f"width must be a multiple of 4 x heads, but is {self.width} with {self.heads} heads")
        if any(row < self.horizon for row in self.ahead):
            raise ValueError(f"ahead must lie beyond the horizon {self.horizon}, but is {self.ahead}")

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]
