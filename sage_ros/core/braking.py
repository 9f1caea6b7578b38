"""The fastest stop of a joint, in closed form: how far it leads, and where one is on the way."""

from __future__ import annotations

import math

import numpy as np

# numpy takes a number that is an array already in half the time
ZERO, HALF, ONE, THIRD, SIXTH, TURN = (np.array(x) for x in (0.0, 0.5, 1.0, 1 / 3, 1 / 6, 2 * math.sqrt(2.0) / 3))


class Stop:
    """The fastest stop of A joints, each on its own, in closed form (Biagiotti & Melchiorri 2008, ch. 3.4).

    Units: such that the acceleration and the jerk limit are 1. Mirrored by ``sign`` so that ``levelled``, the velocity
    that is left if the acceleration is brought to 0, is positive: then jerk -1 until the acceleration is -``peak``, 0
    while it stays there, and +1 until all is still. With v = ``top`` - a^2 / 2 while the jerk is -1, the way is the
    integral of v over a.
    """

    def __init__(self, velocity: np.ndarray, acceleration: np.ndarray) -> None:
        """From ``velocity`` and ``acceleration``, both (A,)."""
        square = HALF * acceleration * np.abs(acceleration)
        self.levelled = velocity + square
        self.sign = np.copysign(ONE, self.levelled)
        self.velocity, self.acceleration = self.sign * velocity, self.sign * acceleration
        self.half = np.abs(square)
        self.top = np.maximum(self.velocity + self.half, ZERO)
        self.root = np.sqrt(self.top)
        self.peak = np.minimum(self.root, ONE)
        self.braking = np.maximum(self.root, self.top)  # time at the peak and from there to the end

    def extent(self) -> tuple[np.ndarray, np.ndarray]:
        """How far above the start the way reaches at most, and how far (<= 0) at least; (A,), mirrored."""
        level = self.acceleration * (self.top - THIRD * self.half)
        end = level + HALF * self.top * (self.peak + self.braking)
        turn = (level - TURN * self.top * self.root) * np.signbit(self.velocity)
        return np.maximum(end, ZERO), turn

    def after(self, time: np.ndarray) -> np.ndarray:
        """(3, A): the way gone, the velocity and the acceleration after ``time`` (A,)."""
        v, a, peak = self.velocity, self.acceleration, self.peak
        rise = np.maximum(a + peak, ZERO)
        flat = self.braking - peak
        moving = self.sign * (rise + flat + peak > time)
        rise = np.minimum(rise, time)
        flat = np.minimum(flat, time - rise)
        fall = np.minimum(peak, time - rise - flat)
        x = rise * (v + rise * (HALF * a - SIXTH * rise))
        v, a = v + rise * (a - HALF * rise), a - rise
        x += flat * (v + HALF * flat * a)
        v += flat * a
        x += fall * (v + fall * (HALF * a + SIXTH * fall))
        v += fall * (a + HALF * fall)
        return np.array((self.sign * x, moving * v, moving * (a + fall)))
