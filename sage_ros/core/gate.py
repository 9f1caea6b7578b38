"""What may become a plan: chunks and joint states are taken whole, fresh and in order, or refused with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from sage_ros.core.chunks import ActionChunk
from sage_ros.core.joints import JointError, JointLayout
from sage_ros.core.options import check, option
from sage_ros.core.timing import SECOND

UNEVEN = 0.01  # share of a row by which its time may be off


class Reason(StrEnum):
    """Why something was refused, for counting."""

    EMPTY = "empty"  # no row at all
    INCOMPLETE = "incomplete"  # a row with more or fewer values than there are names, rows without a time
    NOT_FINITE = "not_finite"
    REPEATED_JOINT = "repeated_joint"
    MISSING_JOINT = "missing_joint"
    UNKNOWN_JOINT = "unknown_joint"
    UNEVEN_TIMES = "uneven_times"
    STALE = "stale"
    FUTURE = "future"
    OUT_OF_ORDER = "out_of_order"  # not newer than the last one taken


class Refusal(ValueError):
    """Input that may not move a robot: ``reason`` for counting, the message for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class GateConfig:
    max_age: float = option(0.5, "greatest age of a chunk's frame, or of a joint state (s)", low=0.01, high=60.0)
    max_future: float = option(0.02, "how far ahead of the clock a stamp may be (s)", low=0.0, high=1.0)

    def __post_init__(self) -> None:
        check(self)


class ChunkGate:
    """Lets through what fits the joints ``names``, brought into their order. Stamps and ``now`` are ns of one clock."""

    def __init__(self, names: Sequence[str], config: GateConfig | None = None) -> None:
        """Raises JointError on repeated names."""
        self.layout, self.config = JointLayout(tuple(names)), config or GateConfig()
        self._orders: dict[tuple[str, ...], np.ndarray] = {}
        self.reset()

    def reset(self) -> None:
        """The clock went back: forget which stamps were seen."""
        self._last_chunk: int | None = None
        self._last_joints: int | None = None

    def check(
        self,
        stamp: int,
        names: Sequence[str],
        positions: Sequence[Sequence[float]] | np.ndarray,
        times: Sequence[float],
        now: int,
    ) -> ActionChunk:
        """The chunk that a trajectory is: ``positions`` (H, A) by ``names``, row i due ``times[i]`` s after ``stamp``.

        Row i must be due (i + 1) / rate, for some rate. Raises :class:`Refusal`, and then forgets the chunk: unlike
        joint states, a chunk may not name joints that are not commanded here.
        """
        order = self.order(names)
        if len(names) > len(self.layout):
            unknown = [name for name in names if name not in self.layout.names]
            raise Refusal(Reason.UNKNOWN_JOINT, f"the chunk moves unknown joints: {', '.join(unknown)}")
        if len(positions) == 0:
            raise Refusal(Reason.EMPTY, "the chunk has no rows")
        if len(times) != len(positions):
            raise Refusal(Reason.INCOMPLETE, f"the chunk has {len(positions)} rows, but {len(times)} times")
        for index, row in enumerate(positions):
            if len(row) != len(names):
                problem = f"row {index} of the chunk has {len(row)} positions for {len(names)} joints"
                raise Refusal(Reason.INCOMPLETE, problem)
        values = self._finite(np.asarray(positions, dtype=np.float64)[:, order], "the chunk")
        rate = _rate(np.asarray(times, dtype=np.float64))
        self._fresh(stamp, now, self._last_chunk, "the chunk")
        if (now - stamp) / SECOND > len(values) / rate:
            raise Refusal(Reason.STALE, f"all {len(values)} rows of the chunk were due before now")
        self._last_chunk = stamp
        return ActionChunk(values, rate)

    def check_joints(
        self, stamp: int, names: Sequence[str], positions: Sequence[float] | np.ndarray, now: int
    ) -> np.ndarray:
        """Measured positions (A,) float64 of the joints. Others may be among ``names``. Raises :class:`Refusal`."""
        order = self.order(names)
        if len(positions) != len(names):
            problem = f"the joint state has {len(positions)} positions for {len(names)} joints"
            raise Refusal(Reason.INCOMPLETE, problem)
        values = self._finite(np.asarray(positions, dtype=np.float64)[order], "the joint state")
        self._fresh(stamp, now, self._last_joints, "the joint state")
        self._last_joints = stamp
        return values

    def order(self, names: Sequence[str]) -> np.ndarray:
        """Where the joints are among ``names``; looked up once for each way to name them."""
        names = tuple(names)
        known = self._orders.get(names)
        if known is not None:
            return known
        try:
            order = self.layout.order_from(names)
        except JointError as error:
            repeated = len(set(names)) != len(names)
            raise Refusal(Reason.REPEATED_JOINT if repeated else Reason.MISSING_JOINT, str(error)) from None
        self._orders = {names: order}
        return order

    def _finite(self, values: np.ndarray, what: str) -> np.ndarray:
        """``values`` (..., A). Raises Refusal, naming the joints."""
        finite = np.isfinite(values)
        if not finite.all():
            bad = ~finite.reshape(-1, len(self.layout)).all(axis=0)
            names = [name for name, is_bad in zip(self.layout.names, bad, strict=True) if is_bad]
            raise Refusal(Reason.NOT_FINITE, f"positions of {what} are not finite: {', '.join(names)}")
        return values

    def _fresh(self, stamp: int, now: int, last: int | None, what: str) -> None:
        age = (now - stamp) / SECOND
        if age > self.config.max_age:
            raise Refusal(Reason.STALE, f"{what} is {age:.3f} s old, more than {self.config.max_age} s")
        if -age > self.config.max_future:
            raise Refusal(Reason.FUTURE, f"{what} is stamped {-age:.3f} s ahead of the clock: are clocks in step?")
        if last is not None and stamp <= last:
            behind = (last - stamp) / SECOND
            raise Refusal(Reason.OUT_OF_ORDER, f"{what} is not newer than the last one, but {behind:.3f} s older")


def _rate(times: np.ndarray) -> float:
    """Rows per second of ``times`` (H,), which must be 1, 2, 3, ... rows after the stamp."""
    if not (np.isfinite(times).all() and times[-1] > 0):
        raise Refusal(Reason.UNEVEN_TIMES, "the chunk's rows are not due after its stamp")
    rate = len(times) / float(times[-1])
    off = np.abs(times * rate - np.arange(1, len(times) + 1))
    if off.max() > UNEVEN:
        row = int(off.argmax())
        problem = f"row {row} of the chunk is due {times[row]:.4f} s after its stamp, but (i + 1) / rate is "
        raise Refusal(Reason.UNEVEN_TIMES, problem + f"{(row + 1) / rate:.4f} s")
    return rate
