"""The safety filter: what must hold before a policy's plan becomes a set point, and what happens when it does not.

Everything that decides over motion is here, without ROS, so that the node, the in-process rollout and the tests run
the same code. Not certified functional safety: the robot controller's own limits are the last line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from sage_ros.core.chunks import ActionChunk
from sage_ros.core.execution import ChunkQueue, ExecutionConfig
from sage_ros.core.gate import ChunkGate, GateConfig
from sage_ros.core.limits import JointLimits
from sage_ros.core.motion import MotionFilter
from sage_ros.core.options import check, option


class Mode(Enum):
    """What the filter does; the value is what is published."""

    DRY_RUN = "DRY_RUN"  # nothing is sent
    RUNNING = "RUNNING"  # set points follow the plan
    HOLDING = "HOLDING"  # something is missing: set points brake, then stay; goes on by itself when it is back
    STOPPED = "STOPPED"  # braked, then silent, until somebody resets it


@dataclass(frozen=True)
class SafetyConfig:
    watchdog: float = option(0.08, "longest time without a new chunk before the robot holds (s)", low=0.01, high=60.0)
    joint_timeout: float = option(0.2, "longest time without joint_states before it holds (s)", low=0.01, high=60.0)
    ease_in: float = option(1.0, "time over which the speed limit rises after enabling (s)", low=0.0, high=60.0)
    hold_below: float = option(0.2, "confidence at and below which the robot holds", low=0.0, high=0.99)
    full_above: float = option(0.6, "confidence from which it moves at full speed", low=0.01, high=1.0)
    follow_tolerance: float = option(0.8, "distance from set point to joint (rad) that ...", low=0.001, high=100.0)
    follow_time: float = option(1.0, "... for so long (s) causes an emergency hold", low=0.0, high=60.0)
    overspeed: float = option(1.5, "measured speed, in speed limits, that is an emergency", low=1.0, high=100.0)

    def __post_init__(self) -> None:
        check(self)
        if self.hold_below >= self.full_above:
            raise ValueError(f"hold_below ({self.hold_below}) must be less than full_above ({self.full_above})")


class SafetyFilter:
    """Chunks and measured joints in, a set point or nothing out, once per ``1 / rate`` s.

    ``now`` is the node's clock in ns, against which header stamps count; ``steady`` is a steady clock in s, for the
    watchdogs: simulated time that stands still must not keep a robot moving. A fresh filter is a dry run.
    """

    def __init__(
        self,
        limits: JointLimits,
        rate: float,
        config: SafetyConfig | None = None,
        execution: ExecutionConfig | None = None,
        gate: GateConfig | None = None,
    ) -> None:
        self.limits, self.rate = limits, rate
        self.config = config or SafetyConfig()
        self.queue = ChunkQueue(execution)
        self.motion = MotionFilter(limits, 1.0 / rate)
        self.gate = ChunkGate(limits.names, gate)
        self.aim: tuple[np.ndarray, np.ndarray] | None = None  # target and its velocity, at the last tick
        self._enabled, self._disabled = False, "not enabled"  # and why not
        self._latched = ""  # why it is stopped
        self._forbidden: dict[str, str] = {}  # who wants it to hold -> why
        self._lacking = "no chunk yet"  # why it holds, as the last tick found
        self._confidence = 1.0
        self._chunk_at = self._joints_at = -np.inf  # steady
        self._eased = 0.0  # s since it was enabled
        self._measured: np.ndarray | None = None
        self._astray = 0.0  # s that the robot has not followed

    # What is known

    @property
    def mode(self) -> Mode:
        if self._latched:
            return Mode.STOPPED
        if not self._enabled:
            return Mode.DRY_RUN
        return Mode.HOLDING if self._lacking else Mode.RUNNING

    @property
    def reason(self) -> str:
        """Why it does what it does; empty while it runs."""
        if self._latched or not self._enabled:
            return self._latched or self._disabled
        return self._lacking

    @property
    def moving(self) -> bool:
        """Whether set points still change: it is not safe to fall silent yet."""
        return self.motion.started and not self.motion.at_rest

    # Input

    def chunk(
        self,
        stamp: int,
        names: Sequence[str],
        positions: Sequence[Sequence[float]] | np.ndarray,
        times: Sequence[float],
        now: int,
        steady: float,
    ) -> ActionChunk:
        """A plan, as :meth:`ChunkGate.check` takes it. Raises Refusal; then nothing changes."""
        chunk = self.gate.check(stamp, names, positions, times, now)
        self.queue.add(stamp, chunk, now)
        self._chunk_at = steady
        return chunk

    def joints(
        self,
        stamp: int,
        names: Sequence[str],
        positions: Sequence[float] | np.ndarray,
        now: int,
        steady: float,
        speeds: Sequence[float] = (),
    ) -> None:
        """Measured joints (rad; rad/s where known). Raises Refusal; then nothing changes."""
        measured = self.gate.check_joints(stamp, names, positions, now)
        elapsed = steady - self._joints_at
        if elapsed > self.config.joint_timeout:
            elapsed = np.inf  # out of sight: another robot, for all we know, unless it is where it was told to be
        self._measured, self._joints_at = measured, steady
        if self._enabled:
            self._watch(measured, elapsed)
            if len(speeds) == len(names):
                self._watch_speed(np.asarray(speeds)[self.gate.order(names)])

    def confide(self, confidence: float) -> None:
        """How sure the policy is, in [0, 1]; anything else counts as 0."""
        self._confidence = confidence if 0.0 <= confidence <= 1.0 else 0.0

    def forbid(self, who: str, why: str) -> None:
        """Hold for as long as ``who`` gives a reason; an empty ``why`` takes it back."""
        if why:
            self._forbidden[who] = why
        else:
            self._forbidden.pop(who, None)

    def enable(self, steady: float) -> str:
        """Let set points out, beginning at the measured pose. Returns why not, or an empty text."""
        if self._latched:
            return f"stopped: {self._latched}: reset it first"
        if self._enabled:
            return ""
        if self._measured is None or steady - self._joints_at > self.config.joint_timeout:
            return f"no joint_states with all of {', '.join(self.limits.names)} within {self.config.joint_timeout} s"
        if not self.moving:
            self.motion.start(self._measured)
        self._enabled, self._eased, self._astray = True, 0.0, 0.0
        return ""

    def disable(self, why: str = "not enabled") -> None:
        """Brake, then send nothing more."""
        self._enabled, self._disabled = False, why

    def stop(self, why: str) -> None:
        """Emergency hold: brake, then send nothing until :meth:`reset`. The first reason stays."""
        self._latched = self._latched or why
        self.disable()

    def reset(self) -> None:
        """End an emergency hold; the robot still has to be enabled."""
        self._latched = ""

    def relimit(self, limits: JointLimits) -> None:
        """Other limits of the same joints. Raises RuntimeError while enabled or moving: the robot would jump or jam."""
        if self._enabled or self.moving:
            raise RuntimeError("limits change only while the robot rests and is not enabled")
        self.limits, self.motion = limits, MotionFilter(limits, 1.0 / self.rate)

    def clear(self) -> None:
        """Time went back: forget every stamp and plan. What moves brakes."""
        self.queue.clear()
        self.gate.reset()
        self._chunk_at = self._joints_at = -np.inf
        self._measured = None

    # Output

    def tick(self, now: int, steady: float) -> np.ndarray | None:
        """The set point (A,) for this moment, or None if nothing may be sent. To be called every 1 / rate s."""
        aim = self.queue.sample(now)
        self._lacking = self._missing(aim is not None, steady)
        if not self._enabled:
            if self.moving:
                return self.motion.hold()
            self.motion.stop()
            return None
        self._eased += 1.0 / self.rate
        self.aim = None if self._lacking else aim
        if self.aim is None:
            return self.motion.hold()
        return self.motion.step(*self.aim, self._pace())

    def ahead(self, now: int, rate: float) -> np.ndarray:
        """The set points (R, A) that the plan will lead to, at ``rate`` rows a second, the first 1 / rate s from now.

        One row, on the way to rest or at it, where there is no plan to follow.
        """
        plan = self.queue.ahead(now, rate) if self.mode is Mode.RUNNING else np.empty((0, len(self.limits)))
        if len(plan):
            return self.motion.preview(plan, rate, self._pace())
        return self.motion.preview(self.motion.position[None], rate, pace=0.0)

    def _missing(self, planned: bool, steady: float) -> str:
        """Why the robot must hold, even if it is ``planned`` what to do now; empty if it need not."""
        c = self.config
        if self._forbidden:
            return "; ".join(self._forbidden.values())
        if steady - self._joints_at > c.joint_timeout:
            return f"no joint_states for {c.joint_timeout} s"
        if steady - self._chunk_at > c.watchdog:
            return f"no chunk for {c.watchdog} s"
        if self._confidence <= c.hold_below:
            return f"confidence {self._confidence:.2f} is not above {c.hold_below}"
        return "" if planned else "the plan is used up"

    def _pace(self) -> float:
        """Share of the speed limits that may be used."""
        c = self.config
        sure = min(1.0, (self._confidence - c.hold_below) / (c.full_above - c.hold_below))
        return max(0.0, sure * min(1.0, 0.1 + self._eased / c.ease_in if c.ease_in else 1.0))

    def _watch(self, measured: np.ndarray, elapsed: float) -> None:
        """A robot that does not follow is blocked, or somebody else's."""
        distance = np.abs(measured - self.motion.position)
        worst = int(distance.argmax())
        self._astray = self._astray + elapsed if distance[worst] > self.config.follow_tolerance else 0.0
        if self._astray > self.config.follow_time:
            name = self.limits.names[worst]
            self.stop(f"{name} has been {distance[worst]:.2f} from its set point for {self.config.follow_time} s")

    def _watch_speed(self, speeds: np.ndarray) -> None:
        """A joint faster than any set point asked for is out of control (latched, as Isaac ROS does it)."""
        share = np.abs(speeds) / self.limits.velocity
        worst = int(share.argmax())
        if not share[worst] <= self.config.overspeed:  # not a number, too
            self.stop(f"{self.limits.names[worst]} moves at {speeds[worst]:.2f}/s, {share[worst]:.1f} times its limit")
