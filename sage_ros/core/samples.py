"""Streams of unknown length in bounded memory: a time series, and pictures spread over a session."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PICTURES = 12


class Trace:
    """A time series of at most ``size`` points: when full, neighbours merge and the lower value stays."""

    def __init__(self, size: int = 4096) -> None:
        self._size, self._stride, self._filled = size, 1, 0
        self.times: list[int] = []
        self.values: list[float] = []

    def add(self, at: int, value: float) -> None:
        if self._filled:
            self.values[-1] = min(self.values[-1], value)
        else:
            if len(self.values) == self._size:
                self._thin()
            self.times.append(at)
            self.values.append(value)
        self._filled = (self._filled + 1) % self._stride

    def _thin(self) -> None:
        self.times = self.times[::2]
        self.values = [min(self.values[i : i + 2]) for i in range(0, len(self.values), 2)]
        self._stride *= 2

    @property
    def last(self) -> float | None:
        return self.values[-1] if self.values else None


@dataclass
class Picture:
    """A small frame (H, W, 3) uint8 and, once it came, the trust map (rows, columns) float of that very frame."""

    at: int
    stamp: int
    image: np.ndarray
    trust: np.ndarray | None = None


class Album:
    """At most ``PICTURES`` frames, evenly spread over a session whose length nobody knows beforehand."""

    def __init__(self) -> None:
        self.pictures: list[Picture] = []
        self._stride = 1
        self._trust: dict[int, np.ndarray] = {}

    def wants(self, number: int) -> bool:
        """Whether the ``number``-th frame should be handed in."""
        return number % self._stride == 0

    def add(self, at: int, stamp: int, image: np.ndarray) -> None:
        self.pictures.append(Picture(at, stamp, image, self._trust.get(stamp)))
        if len(self.pictures) > PICTURES:
            self.pictures = self.pictures[::2]
            self._stride *= 2

    def add_trust(self, stamp: int, trust: np.ndarray) -> None:
        self._trust[stamp] = trust
        if len(self._trust) > 16:
            del self._trust[next(iter(self._trust))]
        for picture in self.pictures[-4:]:
            if picture.stamp == stamp:
                picture.trust = trust
