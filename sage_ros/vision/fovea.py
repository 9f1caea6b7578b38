"""A second, closer look where it pays: refinement of a token map by crops of higher resolution.

The energy is the detail that the encoder has not been shown: the mean squared difference (luminance in [0, 1]) between
the frame and what is left of it at the resolution that the encoder saw, place by place, weighted by attention, plus the
variance of a camera's noise, which no look lowers. Each step shows it the window that holds most of that detail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

NOISE = (2.0 / 255.0) ** 2  # variance of a pixel of an ordinary camera: detail below it is none


@dataclass(frozen=True)
class Look:
    """A token map (rows, columns, F), and the detail (rows, columns) that it does not know of, by grid cell."""

    tokens: np.ndarray
    lost: np.ndarray
    windows: tuple[tuple[int, int], ...] = field(default=())  # upper left cells of the windows looked at


class Fovea:
    """The refinement of one frame's token map, for :func:`sage_ros.core.irp.refine`.

    ``encode`` takes frames (B, H, W, 3) uint8 of any size, shows them to the network as ``size`` x ``size`` pixels and
    gives (B, N, F). ``attention``: (rows, columns) weights >= 0 of any scale; None or all zero: the same everywhere.
    """

    def __init__(
        self,
        encode: Callable[[np.ndarray], np.ndarray],
        grid: tuple[int, int],
        size: int,
        attention: np.ndarray | None = None,
    ) -> None:
        self._encode, self._grid, self._size = encode, grid, size
        self.window = (-(-grid[0] // 2), -(-grid[1] // 2))  # half the frame's width and height, in whole cells
        weights = np.ones(grid) if attention is None or not attention.any() else attention.astype(np.float64)
        if weights.shape != grid or not np.isfinite(weights).all() or weights.min() < 0:
            raise ValueError(f"attention must be {grid} finite weights >= 0, but is {weights.shape}: {weights}")
        self._weights = weights / weights.mean()

    def init_state(self, observation: object) -> Look:
        assert isinstance(observation, np.ndarray)
        self._frame = observation
        tokens = self._encode(observation[None])[0].reshape(*self._grid, -1)
        grey = cv2.cvtColor(observation, cv2.COLOR_RGB2GRAY)
        coarse = (self._size, self._size)
        closer = tuple(self._size * n // w for n, w in zip(self._grid[::-1], self.window[::-1], strict=True))
        self._left = self._lost(grey, closer)  # even after a closer look
        return Look(tokens, np.maximum(self._lost(grey, coarse), self._left))

    def energy(self, state: Look) -> float:
        return float((self._weights * state.lost).mean()) + NOISE

    def step(self, state: Look) -> Look:
        """Look at the window where most weighted detail is to be gained; what it shows replaces the coarse tokens."""
        gain = (self._weights * (state.lost - self._left)).astype(np.float64)
        sums = cv2.integral(gain)
        (h, w), (rows, columns) = self.window, self._grid
        totals = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
        top, left = (int(x) for x in np.unravel_index(totals.argmax(), totals.shape))
        height, width = self._frame.shape[:2]
        y, x = (slice(at * side // n, max((at + part) * side // n, at * side // n + 1))
                for at, part, side, n in ((top, h, height, rows), (left, w, width, columns)))  # fmt: skip
        seen = self._encode(np.ascontiguousarray(self._frame[None, y, x]))[0].reshape(rows, columns, -1)
        tokens, lost = state.tokens.copy(), state.lost.copy()
        place = slice(top, top + h), slice(left, left + w)
        tokens[place] = _shrink(seen, h, w)
        lost[place] = self._left[place]
        return Look(tokens, lost, (*state.windows, (top, left)))

    def project(self, state: Look) -> Look:
        """Any token map is allowed."""
        return state

    def _lost(self, grey: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        """Detail of a frame (H, W) that is gone at ``size`` (width, height), by grid cell."""
        height, width = grey.shape
        if size[0] >= width and size[1] >= height:
            return np.zeros(self._grid)
        small = cv2.resize(grey, (min(size[0], width), min(size[1], height)), interpolation=cv2.INTER_AREA)
        back = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
        square = np.square(cv2.absdiff(grey, back), dtype=np.uint16).astype(np.float32) / 255.0**2
        cells = cv2.resize(square, self._grid[::-1], interpolation=cv2.INTER_AREA)
        return cells.astype(np.float64)


def _shrink(tokens: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(R, C, F) -> (rows, columns, F), each cell the mean of its area."""
    half = np.einsum("ij,jcf->icf", _pool(len(tokens), rows), tokens)
    return np.einsum("ij,rjf->rif", _pool(tokens.shape[1], columns), half).astype(np.float32)


def _pool(many: int, few: int) -> np.ndarray:
    """(few, many) weights by which cells are averaged into fewer: each row is the overlap with its area, of sum 1."""
    edges = np.arange(few + 1) * many / few
    low, high = np.maximum(edges[:-1, None], np.arange(many)), np.minimum(edges[1:, None], np.arange(1, many + 1))
    return np.maximum(high - low, 0.0) * few / many
