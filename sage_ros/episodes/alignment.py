"""Whole streams become rows by the rule of :class:`~sage_ros.core.timing.StampBuffer`, which live nodes pair by."""

from __future__ import annotations

import numpy as np

from ..core.timing import SECOND, StampBuffer


def align(stamps: np.ndarray, ticks: np.ndarray, tolerance: int | float) -> np.ndarray:
    """Which sample belongs to each tick: the newest at or before it.

    ``stamps`` (N,) int64 ns of the samples in the order that they came, ``ticks`` (T,) int64 ns of the rows in any
    order, ``tolerance`` in ns how old a sample may be (infinity: any age). Returns (T,) int64 indices into ``stamps``,
    -1 where no sample is at or before the tick within the tolerance; of equal stamps the one that came last.
    Raises ValueError on stamps or ticks that are no vectors of integers: a float64 cannot hold today's nanoseconds.
    """
    stamps, ticks = _vector(stamps, "stamps"), _vector(ticks, "ticks")
    if not tolerance >= 0:
        raise ValueError(f"the tolerance is {tolerance} ns, but must not be negative")
    buffer: StampBuffer[int] = StampBuffer(len(stamps))
    for index, stamp in enumerate(stamps.tolist()):
        buffer.add(stamp, index)
    found = [buffer.at(tick, tolerance) for tick in ticks.tolist()]
    return np.array([-1 if index is None else index for index in found], np.int64)


def tick_stamps(start: int, end: int, fps: float) -> np.ndarray:
    """Stamps (T,) int64 ns of rows at ``fps`` from ``start`` to ``end`` (ns, both included), each rounded on its own.

    So errors do not add up at rates like 30 Hz. Raises ValueError unless 0 < fps and start <= end.
    """
    if not fps > 0 or end < start:
        raise ValueError(f"no ticks from {start} to {end} ns at {fps} fps")
    period = SECOND / fps
    steps = np.arange(int((end - start) / period + 1e-6) + 1)
    return start + np.round(steps * period).astype(np.int64)


def _vector(values: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be a vector of integers (ns), got shape {array.shape} of {array.dtype}")
    return array.astype(np.int64)
