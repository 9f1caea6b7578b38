"""The last look at a set point before it may reach a robot."""

from __future__ import annotations

import numpy as np


class CommandGuard:
    """Bounds set points in position and speed, starting from the measured pose.

    ``limits`` (A, 2) are the lowest and highest command per joint, ``max_speed`` the fastest change per second in
    the same unit. Not certified functional safety: the robot controller's own limits are the last line.
    """

    def __init__(self, limits: np.ndarray, max_speed: float) -> None:
        if limits.ndim != 2 or limits.shape[1] != 2 or not (limits[:, 0] <= limits[:, 1]).all():
            raise ValueError(f"limits must be (A, 2) with low <= high, got shape {limits.shape}")
        if not max_speed > 0:
            raise ValueError(f"max_speed must be > 0, got {max_speed}")
        self.limits, self.max_speed = limits, max_speed
        self._last: np.ndarray | None = None

    def start(self, measured: np.ndarray) -> None:
        """Ease in from here: the first set point is at most one step of ``max_speed`` away. (A,), finite."""
        self._last = self._checked(measured)

    def stop(self) -> None:
        """Forget the pose: :meth:`next` refuses until :meth:`start`."""
        self._last = None

    @property
    def started(self) -> bool:
        return self._last is not None

    def next(self, target: np.ndarray, elapsed: float) -> np.ndarray:
        """The set point (A,) on the way to ``target``, ``elapsed`` s after the one before.

        Raises ValueError if the target is not finite or of the wrong width; then nothing may be sent.
        """
        if self._last is None:
            raise ValueError("no measured pose to start from")
        step = self.max_speed * max(elapsed, 0.0)
        bounded = np.clip(self._checked(target), self.limits[:, 0], self.limits[:, 1])
        self._last = self._last + np.clip(bounded - self._last, -step, step)
        return self._last.copy()

    def _checked(self, values: np.ndarray) -> np.ndarray:
        if values.shape != (len(self.limits),) or not np.isfinite(values).all():
            raise ValueError(f"need {len(self.limits)} finite joint values, got {values}")
        return values.astype(np.float64)
