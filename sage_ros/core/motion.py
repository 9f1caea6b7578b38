"""Set points that never ask too much of a joint: bounded position, velocity, acceleration and jerk.

The way to a target is Ruckig's (Berscheid & Kroeger 2021, community edition): time-optimal, planned anew for each set
point. A target that moves is chased in the frame that moves with it, where it rests, so that the filter does not lag;
close to it, a law that needs less jerk takes over (:func:`sage_ros.core.steps.tracking`).
What makes it safe is one rule, which every set point keeps for every joint: *the fastest stop from here stays inside
all limits*. A next state that would break it, or that Ruckig cannot plan, is replaced by the next moment of the
fastest stop from the present state. So neither need be trusted: they propose, and what they propose is checked.
"""

from __future__ import annotations

import math

import numpy as np
from ruckig import InputParameter, Ruckig, RuckigError, Synchronization, Trajectory

from sage_ros.core.braking import ONE, ZERO, Stop
from sage_ros.core.limits import JointLimits
from sage_ros.core.steps import checks, frame, tracking

TIGHTER = 1.0 - 1e-6  # plans keep to this share of each limit, so that rounding stays inside
CHASE = 0.95  # share of the velocity limit that a target may move at, so that it can be caught up with
LEEWAY = 2.0  # jerk limits that the law of tracking may ask for to correct the velocity, if the place takes it back
STANDSTILL = 0.02  # a pace below this is a hold: Ruckig plans no ways that take hours


class MotionFilter:
    """Set points of A joints, one each ``period`` s, that keep ``limits`` whatever targets come.

    The law: counting the pose at :meth:`start` as held for ever before, the first, second and third differences of
    the set points over ``period`` stay within the velocity, acceleration and jerk limits, and the set points within
    the position limits. A joint that starts outside its position limits stays or moves inwards, never further out.
    Not certified functional safety: the robot controller's own limits are the last line.
    """

    def __init__(self, limits: JointLimits, period: float) -> None:
        """Raises ValueError unless ``period`` is finite and > 0."""
        if not (np.isfinite(period) and period > 0):
            raise ValueError(f"the period must be finite and > 0 s, but is {period}")
        self.limits, self.period, self.started = limits, period, False
        self.interventions = 0  # how often, since the start, a joint braked instead of going as planned
        low, high = limits.position.T
        margin = (1.0 - TIGHTER) * (high - low)
        self._low, self._high = low + margin, high - margin
        self._centre, self._reach = (low + high) / 2, (high - low) / 2
        self._velocity, self._acceleration = TIGHTER * limits.velocity, TIGHTER * limits.acceleration
        self._jerk = TIGHTER * limits.jerk

        count = len(limits)
        self._otg, self._way, self._plan = Ruckig(count, period), Trajectory(count), InputParameter(count)
        self._plan.synchronization = Synchronization.No
        self._plan.max_acceleration, self._plan.max_jerk = self._acceleration.tolist(), self._jerk.tolist()

        # Next position, velocity and acceleration; the present ones; the target's velocity, the greatest, the target
        self._states = np.zeros((9, count))
        self._checks, self._frame = checks(period), frame(period)
        # What the law of tracking leads to; all but the position is bounded
        self._tracking = tracking(period)
        self._tracked, self._quiet = np.empty((5, count)), np.empty((4, count))
        self._quiet[1:] = self._acceleration, self._jerk, LEEWAY * self._jerk
        self._nobody = np.zeros(count, bool)
        # A stop's units: of length, velocity and acceleration
        second = self._acceleration / self._jerk
        self._units = np.array([self._acceleration * second**2, self._acceleration * second, self._acceleration])
        self._length, self._per_velocity, self._per_acceleration = self._units[0], *(1.0 / self._units[1:])
        self._tick = period / second
        # In these units a stop from u takes u^2 / 2 + u / 2, or less where it needs no full deceleration
        self._half_speed, self._per_room = self._units[1] / 2, 2 * self._units[1] ** 2 / self._length
        self._room = self._half_speed**2 + self._per_room * (self._reach - margin / 2)
        self._measures, self._bounds = np.empty((11, count)), np.empty((11, count))
        self._pace = math.nan
        self._chase = self._velocity  # the fastest that a target may move at this pace
        self._stop: Stop | None = None  # from the present state
        self._outside = False

    # State

    @property
    def position(self) -> np.ndarray:
        """(A,): the last set point, or the pose at the start. RuntimeError before :meth:`start`, as all of these."""
        return self._present()[0].copy()

    @property
    def velocity(self) -> np.ndarray:
        return self._present()[1].copy()

    @property
    def acceleration(self) -> np.ndarray:
        return self._present()[2].copy()

    @property
    def at_rest(self) -> bool:
        """Whether no joint moves, give or take a millionth of its limits."""
        _, v, a = np.abs(self._present())
        return bool((v <= 1e-6 * self.limits.velocity).all() and (a <= 1e-6 * self.limits.acceleration).all())

    @property
    def outside(self) -> tuple[str, ...]:
        """The joints that have not come into their position limits yet."""
        out = np.abs(self._present()[0] - self._centre) > self._reach
        return tuple(name for name, is_out in zip(self.limits.names, out, strict=True) if is_out)

    def start(self, measured: np.ndarray) -> None:
        """At rest at ``measured`` (A,), wherever that is. Raises ValueError unless finite and of that shape."""
        if np.shape(measured) != (len(self.limits),) or not np.isfinite(measured).all():
            raise ValueError(f"need {len(self.limits)} finite measured positions, got {measured}")
        rest = np.zeros(len(self.limits))
        self._begin(np.asarray(measured, dtype=np.float64), rest, rest)

    def _begin(self, position: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray) -> None:
        """Go on from a safe state."""
        self._states[3:6] = position, velocity, acceleration
        v, a, j = self.limits.velocity, self.limits.acceleration, self.limits.jerk
        reach = self._reach / self._length
        self._bounds[:] = v, a, v, a, a, j, j, j, reach, reach, v * self._per_velocity
        # What rounding alone may amount to
        size = np.maximum(np.abs(self._centre) + self._reach, np.abs(position))
        sizes = np.array([size, v, a, size, v, a])
        self._bounds[:8] += 4 * np.finfo(np.float64).eps * (np.abs(self._checks) @ sizes)
        self.started, self.interventions = True, 0
        self._outside, self._stop = bool(self.outside), None

    def stop(self) -> None:
        """Forget the pose: nothing is answered until :meth:`start`."""
        self.started = False

    # Set points

    def step(self, target: np.ndarray, velocity: np.ndarray | None = None, pace: float = 1.0) -> np.ndarray:
        """The next set point (A,), one period after the last, on the way to ``target`` (A,).

        ``target`` is where the joints should be at that very moment and ``velocity`` (A,; None: 0) how fast it moves;
        it is lowered where a joint that passes the target could not stop before its position limit. ``pace`` in
        [0, 1] scales the velocity limit; below 0.02 it holds. Raises ValueError, and changes nothing, if target or
        velocity are not finite or of another shape, and on any other pace; RuntimeError before :meth:`start`.
        """
        self._present()
        self._aim_at(target, velocity, pace)
        if pace < STANDSTILL:
            return self.hold()
        near = self._near(moving=velocity is not None)
        if not self._proposed(near):
            self.interventions += len(self.limits)
            return self.hold()
        safe, stop = self._safe()
        if safe is not None and (near & ~safe).any() and self._proposed(near & safe):
            safe, stop = self._safe()
        if safe is None:
            return self._advance(stop)
        self.interventions += int((~safe).sum())
        self._states[:3] = np.where(safe, self._states[:3], self._braked())
        return self._advance()

    def hold(self) -> np.ndarray:
        """The next set point (A,) of the fastest stop; at rest, the same again. RuntimeError before :meth:`start`."""
        self._present()
        self._states[:3] = self._braked()
        return self._advance()

    def preview(self, targets: np.ndarray, rate: float, pace: float = 1.0) -> np.ndarray:
        """Where :meth:`step` would lead (H, A), with ``targets`` (H, A) at ``rate`` rows a second, the first one
        1 / rate s from now. Changes nothing; raises as :meth:`step`.

        A forecast, in steps of a row: shorter ones differ as far as the target's velocity changes within a row. It
        keeps the law of a filter of that period.
        """
        now = self._present()
        targets = np.asarray(targets, dtype=np.float64)
        if targets.ndim != 2 or len(targets) == 0:
            raise ValueError(f"targets must be (H, {len(self.limits)}) with H > 0, but are {targets.shape}")
        twin = MotionFilter(self.limits, 1.0 / rate)
        twin._begin(*now)
        slopes = np.gradient(targets, 1.0 / rate, axis=0) if len(targets) > 1 else [None]
        return np.stack([twin.step(target, slope, pace) for target, slope in zip(targets, slopes, strict=True)])

    # How

    def _aim_at(self, target: np.ndarray, velocity: np.ndarray | None, pace: float) -> None:
        """Check what is asked for, and write it down."""
        aims, shape = self._states[6:], (len(self.limits),)
        fits = np.shape(target) == shape and (velocity is None or np.shape(velocity) == shape)
        if fits:
            aims[0], aims[2] = 0.0 if velocity is None else velocity, target
        if not (fits and np.isfinite(aims).all()):
            raise ValueError(f"need {shape[0]} finite target positions and velocities, got {target} and {velocity}")
        if not 0.0 <= pace <= 1.0:
            raise ValueError(f"pace must be in [0, 1], but is {pace}")
        if pace != self._pace:
            self._pace, aims[1] = pace, pace * self._velocity
            self._chase, self._quiet[0] = CHASE * aims[1], aims[1]

    def _near(self, moving: bool) -> np.ndarray:
        """Which joints (A,) are so near their target that the law of tracking asks for no more than they have.

        What it asks for because of velocity alone is bounded, too: far off, place and velocity cancel out for a moment,
        and the joint would be handed to and fro. And the target must move, and neither be cut off at the limits, to
        rest there, nor run into them: that is no time to lag.
        """
        states, (velocity, _, target) = self._states, self._states[6:].copy()
        states[8] = np.minimum(np.maximum(target, self._low), self._high)
        if not moving:
            return self._nobody
        states[6] = self._stoppable(states[8], velocity * (states[8] == target))
        np.matmul(self._tracking, states[3:], out=self._tracked)
        return (states[6] == velocity) & (np.abs(self._tracked[1:]) <= self._quiet).all(axis=0)

    def _proposed(self, near: np.ndarray) -> bool:
        """Write the next state into ``_states``, as Ruckig has it but for those ``near``; False if it has none."""
        if not near.all() and not self._planned(~near):
            return False
        np.copyto(self._states[:3], self._tracked[:3], where=near)
        return True

    def _planned(self, far: np.ndarray) -> bool:
        """Let Ruckig write the next state of those ``far`` (A,) into ``_states``; False if it cannot."""
        plan, states = self._plan, self._states
        rows = (self._frame @ states[3:]).tolist()
        plan.current_position, plan.current_velocity, plan.current_acceleration, plan.target_position = rows[:4]
        plan.max_velocity, plan.min_velocity = rows[4:]
        plan.enabled = far.tolist()
        try:
            result = self._otg.calculate(plan, self._way)
        except (RuckigError, ValueError):  # it has results, such as -101, that its own enumeration lacks
            return False
        if result < 0:
            return False
        states[:3] = self._way.at_time(self.period)
        states[1] += states[6]
        return True

    def _stoppable(self, target: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """``velocity`` lowered so that a joint that passes ``target`` can stop within its limits."""
        sign = np.copysign(ONE, velocity)
        most = np.sqrt(self._room - sign * self._per_room * (target - self._centre)) - self._half_speed
        return sign * np.minimum(np.minimum(sign * velocity, most), self._chase)

    def _safe(self) -> tuple[np.ndarray | None, Stop]:
        """Which joints (A,; None: all) may go to the next state in ``_states``, and the fastest stop from there."""
        states, measures = self._states, self._measures
        np.matmul(self._checks, states[:6], out=measures[:8])
        stop = Stop(states[1] * self._per_velocity, states[2] * self._per_acceleration)
        offset = stop.sign * (states[0] - self._centre) / self._length
        end, turn = stop.extent()
        np.add(offset, end, out=measures[8])
        np.add(offset, turn, out=measures[9])
        measures[10] = stop.levelled
        if self._outside:
            self._mind_those_outside(offset, stop)
        held = np.abs(measures) <= self._bounds
        return (None if held.all() else np.logical_and.reduce(held)), stop

    def _mind_those_outside(self, offset: np.ndarray, stop: Stop) -> None:
        """Who is still outside may neither be further out than now, nor get further out by stopping.

        ``offset`` (A,) is the next position, mirrored as the stop is.
        """
        reach, now = self._reach / self._length, stop.sign * (self._states[3] - self._centre) / self._length
        end, turn, levelled = self._measures[8:]
        for side, bound in ((1, self._bounds[8]), (-1, self._bounds[9])):
            bound[:] = np.where(side * offset > reach, np.minimum(side * now, side * offset + 1e-12), reach)
        np.maximum(end, ZERO, out=end)  # each is bounded on its own side
        np.minimum(turn, ZERO, out=turn)
        levelled[(offset > reach) & (np.abs(levelled) > 1e-9)] = np.inf

    def _braked(self) -> np.ndarray:
        """(3, A): the state one period along the fastest stop."""
        stop = self._stop or Stop(self._states[4] * self._per_velocity, self._states[5] * self._per_acceleration)
        state = stop.after(self._tick) * self._units
        state[0] += self._states[3]
        return state

    def _advance(self, stop: Stop | None = None) -> np.ndarray:
        """The next state becomes the present one; ``stop`` is its stop, if that is known already."""
        states, self._stop = self._states, stop
        states[3:6] = states[:3]
        if self._outside:
            self._outside = bool(self.outside)
            self._bounds[8:10] = self._reach / self._length
        return states[3].copy()

    def _present(self) -> np.ndarray:
        """(3, A): position, velocity and acceleration, not to be changed."""
        if not self.started:
            raise RuntimeError("no measured pose to start from: call start() first")
        return self._states[3:6]
