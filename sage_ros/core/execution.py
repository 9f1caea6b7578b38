"""From overlapping action chunks to one moving target: what to aim at now, and how one chunk gives way to the next."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sage_ros.core.chunks import ActionChunk
from sage_ros.core.options import check, option
from sage_ros.core.timing import SECOND

DOUBT = 0.3  # rad: disagreement that halves confidence
KEPT = 64  # chunks remembered for the ensemble, and latencies for the estimate


STRATEGIES = ("ensemble", "rtc", "latest", "open_loop")


@dataclass(frozen=True)
class ExecutionConfig:
    """How chunks follow one another. All strategies sample at *now*: what has elapsed since the frame is skipped."""

    strategy: str = option(
        "ensemble",
        "ensemble: weighted mean of all chunks; rtc: what is under way is frozen, then the new chunk fades in; "
        "latest: the newest at once; open_loop: each to its end",
        choices=STRATEGIES,
    )
    fade: int = option(8, "rtc: rows after the frozen ones over which the new chunk takes over", low=1, high=1000)
    ensemble_decay: float = option(0.01, "ensemble: weight exp(-decay k) of the k-th oldest chunk", low=-9.0, high=9.0)
    ensemble_ramp: float = option(0.1, "ensemble: time over which a chunk comes in and goes out (s)", low=0.0, high=9.0)

    def __post_init__(self) -> None:
        check(self)


class Plan(NamedTuple):
    """A chunk, the stamp of its frame and when it arrived, both in ns."""

    stamp: int
    chunk: ActionChunk
    arrived: int

    @property
    def end(self) -> float:
        """When its last row is due (ns)."""
        return self.stamp + len(self.chunk.positions) / self.chunk.rate * SECOND

    def at(self, now: int) -> tuple[np.ndarray, np.ndarray] | None:
        return self.chunk.at((now - self.stamp) / SECOND)


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
        self._plans: deque[Plan] = deque(maxlen=KEPT)
        self._next: Plan | None = None  # open_loop: waits for its turn

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
        plan = Plan(stamp, chunk, now)
        if strategy == "rtc" and self._plans:
            plan = self._faded(plan)
        if strategy == "open_loop" and self._plans:
            if self._plans[-1].at(now) is None:
                self._plans[-1] = self._next or plan
            self._next = plan
            return
        if strategy != "ensemble":
            self._plans.clear()
        self._plans.append(plan)

    def sample(self, now: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Target (A,) and its velocity (A,) at ``now``; None if no plan reaches so far."""
        if not self._plans:
            return None
        if self.config.strategy == "ensemble":
            return self._mean(now)
        found = self._plans[-1].at(now)
        return self._next.at(now) if found is None and self._next is not None else found

    def in_force(self, now: int) -> int:
        """Stamp of the newest chunk that :meth:`sample` goes by, which tells one plan from the next; 0: none."""
        plans = [*self._plans, *([self._next] if self._next else [])]
        if self.config.strategy == "open_loop":
            plans = plans[:1] if plans and plans[0].at(now) is not None else plans[1:]
        return plans[-1].stamp if plans else 0

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
        for plan in self._plans:
            if (found := plan.at(now)) is None:
                continue
            edge = min(1.0, (now - plan.arrived + 1.0) / ramp, (plan.end - now + 1.0) / ramp)
            weights.append(edge * math.exp(-self.config.ensemble_decay * len(opinions)))
            opinions.append(found)
        if not opinions:
            return None
        both = np.tensordot(np.array(weights) / sum(weights), np.array(opinions), axes=1)
        return both[0], both[1]

    def _faded(self, plan: Plan) -> Plan:
        """The new plan: what is under way as it arrives in its first rows, and one before them for its own time."""
        stamp, chunk, now = plan
        period = round(SECOND / chunk.rate)
        frozen = (now - stamp) // period + 1  # rows, up to the one that is being approached
        before = self._plans[-1]
        start = before.at(stamp)
        rows = [] if start is None else [start[0]]
        for i, row in enumerate(chunk.positions):
            share = 1.0 if i < frozen else max(0.0, 1.0 - (i - frozen + 1) / self.config.fade)
            was = before.at(stamp + (i + 1) * period) if share else None
            mask = share * np.expm1(share) / np.expm1(1.0) if was is not None else 0.0  # the paper's decay
            rows.append(row if was is None else mask * was[0] + (1.0 - mask) * row)
        return Plan(stamp - (period if start is not None else 0), replace(chunk, positions=np.array(rows)), now)


def disagreement(stamp: int, chunk: ActionChunk, before: int, previous: ActionChunk) -> float:
    """Root mean square difference (rad, or the joints' unit) of two chunks where they speak of the same time.

    A policy that contradicts itself from frame to frame is about to fail (temporal consistency; Agia et al. 2024,
    "Unpacking failure modes of generative policies"). 0 where they do not overlap.
    """
    pairs = []
    for i, row in enumerate(chunk.positions):
        was = previous.at((stamp - before + round((i + 1) * SECOND / chunk.rate)) / SECOND)
        if was is not None:
            pairs.append(row - was[0])
    return float(np.sqrt(np.mean(np.square(pairs)))) if pairs else 0.0


def consistency(stamp: int, chunk: ActionChunk, last: tuple[int, ActionChunk] | None, doubt: float = DOUBT) -> float:
    """Confidence in (0, 1] that a policy earns by agreeing with its ``last`` chunk; one half at ``doubt``."""
    return 1.0 / (1.0 + (disagreement(stamp, chunk, *last) / doubt) ** 2) if last else 1.0
