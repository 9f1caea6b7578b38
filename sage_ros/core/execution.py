"""From overlapping action chunks to one moving target: what to aim at now, and how one chunk gives way to the next."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from sage_ros.core.chunks import ActionChunk
from sage_ros.core.options import check, option

SECOND = 1_000_000_000
KEPT = 64  # chunks remembered for the ensemble, and latencies for the estimate


@dataclass(frozen=True)
class ExecutionConfig:
    """How chunks follow one another. All strategies sample at *now*: what has elapsed since the frame is skipped."""

    strategy: str = option(
        "ensemble",
        "ensemble: weighted mean of all chunks; rtc: what is under way is frozen, then the new chunk fades in; "
        "latest: the newest at once; open_loop: each to its end",
        choices=("ensemble", "rtc", "latest", "open_loop"),
    )
    fade: int = option(8, "rtc: rows after the frozen ones over which the new chunk takes over", low=1, high=1000)
    ensemble_decay: float = option(0.01, "ensemble: weight exp(-decay k) of the k-th oldest chunk", low=-9.0, high=9.0)
    ensemble_ramp: float = option(0.1, "ensemble: time over which a chunk comes in and goes out (s)", low=0.0, high=9.0)

    def __post_init__(self) -> None:
        check(self)


class ChunkQueue:
    """The plan that chunks make together. Times are header stamps in ns.

    - ``open_loop`` and ``latest`` are what their names say.
    - ``ensemble`` is ACT's temporal ensembling (Zhao et al. 2023): the mean of every chunk's opinion of this moment. A
      chunk's weight rises after its arrival and falls before its end, so that the mean does not jump when one joins.
    - ``rtc`` is the soft mask of real-time chunking (Black, Galliker & Levine 2025), with which a diffusion policy
      inpaints a chunk around what is already under way. The student gives a chunk in one pass, so here the mask blends:
      rows that will have been carried out when the chunk arrives keep the old plan, later ones fade to the new.
    """

    def __init__(self, config: ExecutionConfig | None = None) -> None:
        self.config = config or ExecutionConfig()
        self.latencies: deque[float] = deque(maxlen=KEPT)
        self._measured = False
        self.clear()

    def clear(self) -> None:
        """Forget all plans; what was learned about latency stays."""
        self._plans: deque[tuple[int, ActionChunk]] = deque(maxlen=KEPT)
        self._arrivals: deque[int] = deque(maxlen=KEPT)
        self._next: tuple[int, ActionChunk] | None = None  # open_loop: waits for its turn

    @property
    def latency(self) -> float:
        """Median time from a frame to its chunk (s); the first chunk, for which a policy warms up, is left out."""
        return float(np.median(self.latencies)) if self.latencies else 0.0

    def add(self, stamp: int, chunk: ActionChunk, now: int) -> None:
        """A chunk of the frame of ``stamp`` has arrived at ``now``."""
        if self._measured:
            self.latencies.append((now - stamp) / SECOND)
        self._measured = True
        strategy = self.config.strategy
        if strategy == "rtc" and self._plans:
            stamp, chunk = self._faded(stamp, chunk, now)
        if strategy == "open_loop" and self._plans:
            if _at(self._plans[-1], now) is None:
                self._plans[-1] = self._next or (stamp, chunk)
            self._next = (stamp, chunk)
            return
        if strategy != "ensemble":
            self._plans.clear()
            self._arrivals.clear()
        self._plans.append((stamp, chunk))
        self._arrivals.append(now)

    def sample(self, now: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Target (A,) and its velocity (A,) at ``now``; None if no plan reaches so far."""
        if not self._plans:
            return None
        if self.config.strategy == "ensemble":
            return self._mean(now)
        found = _at(self._plans[-1], now)
        return _at(self._next, now) if found is None and self._next is not None else found

    def in_force(self, now: int) -> int:
        """Stamp of the newest chunk that :meth:`sample` goes by, which tells one plan from the next; 0: none."""
        plans = [*self._plans, *([self._next] if self._next else [])]
        if self.config.strategy == "open_loop":
            plans = plans[:1] if plans and _at(plans[0], now) is not None else plans[1:]
        return plans[-1][0] if plans else 0

    def ahead(self, now: int, rate: float) -> np.ndarray:
        """The plan from ``now`` on at ``rate`` rows a second, the first 1 / rate s from now: (R, A), R may be 0."""
        rows: list[np.ndarray] = []
        while (found := self.sample(now + round((len(rows) + 1) * SECOND / rate))) is not None:
            rows.append(found[0])
        return np.array(rows)

    def _mean(self, now: int) -> tuple[np.ndarray, np.ndarray] | None:
        opinions: list[tuple[np.ndarray, np.ndarray]] = []
        weights: list[float] = []
        ramp = self.config.ensemble_ramp * SECOND + 1.0
        for plan, arrived in zip(self._plans, self._arrivals, strict=True):
            if (found := _at(plan, now)) is None:
                continue
            end = plan[0] + len(plan[1].positions) / plan[1].rate * SECOND
            edge = min(1.0, (now - arrived + 1.0) / ramp, (end - now + 1.0) / ramp)
            weights.append(edge * math.exp(-self.config.ensemble_decay * len(opinions)))
            opinions.append(found)
        if not opinions:
            return None
        both = np.tensordot(np.array(weights) / sum(weights), np.array(opinions), axes=1)
        return both[0], both[1]

    def _faded(self, stamp: int, chunk: ActionChunk, now: int) -> tuple[int, ActionChunk]:
        """The new chunk, with what is under way at ``now`` in its first rows, and one before them for its own time."""
        period = round(SECOND / chunk.rate)
        frozen = (now - stamp) // period + 1  # rows, up to the one that is being approached
        start = _at(self._plans[-1], stamp)
        rows = [] if start is None else [start[0]]
        for i, row in enumerate(chunk.positions):
            share = 1.0 if i < frozen else max(0.0, 1.0 - (i - frozen + 1) / self.config.fade)
            was = _at(self._plans[-1], stamp + (i + 1) * period) if share else None
            mask = share * np.expm1(share) / np.expm1(1.0) if was is not None else 0.0  # the paper's decay
            rows.append(row if was is None else mask * was[0] + (1.0 - mask) * row)
        return stamp - (period if start is not None else 0), replace(chunk, positions=np.array(rows))


def _at(plan: tuple[int, ActionChunk], now: int) -> tuple[np.ndarray, np.ndarray] | None:
    return plan[1].at((now - plan[0]) / SECOND)


def disagreement(stamp: int, chunk: ActionChunk, before: int, previous: ActionChunk) -> float:
    """Root mean square difference (rad, or the joints' unit) of two chunks where they speak of the same time.

    A policy that contradicts itself from frame to frame is about to fail (temporal consistency; Agia et al. 2024,
    "Unpacking failure modes of generative policies"). 0 where they do not overlap.
    """
    pairs = []
    for i, row in enumerate(chunk.positions):
        was = _at((before, previous), stamp + round((i + 1) * SECOND / chunk.rate))
        if was is not None:
            pairs.append(row - was[0])
    return float(np.sqrt(np.mean(np.square(pairs)))) if pairs else 0.0
