"""One step of a joint in matrices: over its state and its target, what is planned, proposed and checked."""

from __future__ import annotations

import math

import numpy as np

BANDWIDTH = 35.0  # 1/s: slower ones lag so far behind a policy in the loop that it waits for itself


def tracking(period: float, bandwidth: float = BANDWIDTH) -> np.ndarray:
    """A law that stays with a moving target without haste: next position, velocity and acceleration, jerk on the way
    there, and the part of it that answers the deviation in velocity, (5, 6), over the same rows as :func:`frame`.

    A time-optimal way takes the whole jerk limit for every small deviation; here the jerk is in proportion to it. The
    deviation from a target of constant velocity decays with three poles at exp(-bandwidth period), by Ackermann's
    formula (1972) for the triple integrator under a jerk that is constant within a step of ``period`` s.
    """
    t = period
    free = np.array([[1.0, t, t**2 / 2], [0.0, 1.0, t], [0.0, 0.0, 1.0]])
    push = np.array([t**3 / 6, t**2 / 2, t])
    reached = np.stack([push, free @ push, free @ free @ push], axis=1)
    wanted = np.linalg.matrix_power(free - math.exp(-bandwidth * t) * np.eye(3), 3)
    gains = np.linalg.solve(reached.T, [0.0, 0.0, 1.0]) @ wanted
    deviation = np.array([[1, 0, 0, t, 0, -1], [0, 1, 0, -1, 0, 0], [0, 0, 1, 0, 0, 0]])
    parts = -gains[:, None] * deviation
    jerk = parts.sum(axis=0)
    return np.vstack([free @ np.eye(3, 6) + np.outer(push, jerk), jerk, parts[1]])


def frame(t: float) -> np.ndarray:
    """What Ruckig plans with, (6, 6), over the rows of ``MotionFilter._states`` from the present position on.

    Position, velocity and acceleration, target, greatest and least velocity in the frame that moves with the target,
    and is where the joint's own is when a step of ``t`` s ends.
    """
    p, v, a, target_velocity, fastest, target = np.eye(6)
    rows = [p + t * target_velocity, v - target_velocity, a, target]
    return np.array([*rows, fastest - target_velocity, -fastest - target_velocity])


def checks(t: float) -> np.ndarray:
    """What is bounded of a step of ``t`` s, (8, 6), over the next and the present state in ``MotionFilter._states``.

    A difference of set points is a weighted mean of velocity, of acceleration over two steps, or of jerk over three
    (with B-splines as weights). The law holds if each step keeps to the limit in each of its shares in such a mean,
    which these are, whatever way led from one state to the next.
    """
    p1, v1, a1, p0, v0, a0 = np.eye(6)
    way = p1 - p0
    # Integrals of the jerk over the step, times the time to its end to the power of 0, 1, and 2 by 2
    whole, first, second = a1 - a0, v1 - v0 - t * a0, way - t * v0 - t**2 / 2 * a0
    middle, oldest = t**2 / 2 * whole + t * first - 2 * second, t**2 / 2 * whole - t * first + second
    accelerations = [2 / t**2 * (way - t * v0), 2 / t**2 * (t * v1 - way)]
    jerks = [6 / t**3 * second, 1.5 / t**3 * middle, 6 / t**3 * oldest]
    return np.array([v1, a1, way / t, *accelerations, *jerks])
