"""Pairing by time, and where the time goes."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar, overload

import numpy as np

SECOND = 1_000_000_000  # ns
Item = TypeVar("Item")


class StampBuffer(Generic[Item]):
    """The last few values of a stream by header stamp (ns), whatever order they arrive in.

    This is the one rule by which live, replayed and training data are paired: a frame goes with the newest
    measurement not after it, and with the newest command strictly before it.
    """

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._stamps: list[int] = []
        self._items: list[Item] = []

    def add(self, stamp: int, item: Item) -> None:
        """Insert in order; the same stamp again replaces the value."""
        at = bisect_left(self._stamps, stamp)
        if at < len(self._stamps) and self._stamps[at] == stamp:
            self._items[at] = item
            return
        self._stamps.insert(at, stamp)
        self._items.insert(at, item)
        if len(self._stamps) > self._size:
            del self._stamps[0], self._items[0]

    def at(self, stamp: int, tolerance: float) -> Item | None:
        """The newest value with a stamp <= ``stamp``, if it is no more than ``tolerance`` ns older."""
        return self._pick(bisect_right(self._stamps, stamp) - 1, stamp, tolerance)

    def before(self, stamp: int, tolerance: float) -> Item | None:
        """The newest value with a stamp < ``stamp``, if it is no more than ``tolerance`` ns older."""
        return self._pick(bisect_left(self._stamps, stamp) - 1, stamp, tolerance)

    def forget(self, before: int) -> None:
        """Let go of what no stamp from ``before`` on can need."""
        newest = bisect_right(self._stamps, before) - 1
        if newest > 0:
            del self._stamps[:newest], self._items[:newest]

    def _pick(self, index: int, stamp: int, tolerance: float) -> Item | None:
        if index < 0 or stamp - self._stamps[index] > tolerance:
            return None
        return self._items[index]

    def clear(self) -> None:
        self._stamps.clear()
        self._items.clear()


class Recent(Generic[Item]):
    """The newest value of a stream, as long as it is not older than ``longest`` s of a steady clock."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._item: Item | None = None
        self._since = 0.0

    def put(self, item: Item, now: float) -> None:
        self._item, self._since = item, now

    @overload
    def at(self, now: float) -> Item | None: ...
    @overload
    def at(self, now: float, otherwise: Item) -> Item: ...
    def at(self, now: float, otherwise: Item | None = None) -> Item | None:
        """The value, or ``otherwise`` where there is none or it is too old."""
        return self._item if self._item is not None and now - self._since <= self._longest else otherwise

    def forget(self) -> None:
        self._item = None


class News:
    """Whether a figure is worth telling to somebody who acts on its level: it has moved by ``step`` since it was last
    told, or that was ``longest`` s ago. To hear 20 messages a second costs a process 1 % of a core.
    """

    def __init__(self, step: float = 0.05, longest: float = 0.5) -> None:
        self._step, self._longest = step, round(longest * SECOND)
        self._told: tuple[float, int] | None = None

    def due(self, value: float, stamp: int) -> bool:
        """Whether to tell ``value`` at ``stamp`` (ns); if so it counts as told. A stamp that goes back is news."""
        if self._told is not None:
            told, at = self._told
            if abs(value - told) < self._step and 0 <= stamp - at < self._longest:
                return False
        self._told = value, stamp
        return True


class RateLimit:
    """Lets through at most ``rate`` frames per second by their stamps, and all of a stream that keeps to that rate.

    A frame may come up to half a period early, as jitter makes it; in the long run the rate is kept all the same.
    A rate of 0 lets nothing through; a stamp that goes back starts anew.
    """

    def __init__(self, rate: float) -> None:
        self._due: float | None = None
        self.rate = rate

    def allows(self, stamp: int) -> bool:
        """Whether the frame of ``stamp`` (ns) may pass; if so it is counted."""
        if self.rate <= 0:
            return False
        period = 1e9 / self.rate
        if self._due is None or stamp < self._due - 2 * period:
            self._due = stamp
        if stamp < self._due - period / 2:
            return False
        self._due = max(self._due, stamp - period / 2) + period
        return True

    def reset(self) -> None:
        self._due = None


class Stopwatch:
    """Time spent computing: the last ``window`` spans and the total, in seconds of the steady clock."""

    def __init__(self, window: int = 512) -> None:
        self.total = 0.0
        self.spans: deque[float] = deque(maxlen=window)

    @contextmanager
    def span(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - start)

    def add(self, seconds: float) -> None:
        """Count a span that was measured elsewhere."""
        self.spans.append(seconds)
        self.total += seconds

    def milliseconds(self, quantile: float) -> float:
        """A quantile of the recent spans in ms; nan before the first."""
        return float(np.quantile(self.spans, quantile) * 1e3) if self.spans else float("nan")
