"""safety_filter: the only node that commands the robot. Chunks in; smooth, bounded set points out, or none."""

from __future__ import annotations

import array
import gc
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.duration import Duration
from rclpy.task import Future
from sensor_msgs.msg import JointState
from std_msgs.msg import Float32, Float64MultiArray, Header, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from sage_ros.core.allowance import State
from sage_ros.core.chunks import ActionChunk
from sage_ros.core.execution import ExecutionConfig
from sage_ros.core.gate import GateConfig, Refusal
from sage_ros.core.limits import CONFIGURED, MOST, Bounds, JointLimits, resolve_limits
from sage_ros.core.metabolism import STILL
from sage_ros.core.options import option
from sage_ros.core.pace import Pace
from sage_ros.core.safety import Mode, SafetyConfig, SafetyFilter
from sage_ros.core.timing import SECOND
from sage_ros.nodes.lifecycle import LATCHED, SageNode, Status
from sage_ros.nodes.liveliness import OPERATOR, Liveliness
from sage_ros.nodes.messages import joint_message, nanoseconds, to_stamp, trajectory_message
from sage_ros.nodes.process import run
from sage_ros.paths import checkpoint_path
from sage_ros.policy.manifest import Manifest
from sage_ros.policy.normalization import action_range

POLICY = "sage_policy"  # the node whose end is noticed at once
LOOK, SELDOM = 0.05, 2.0  # s between looks at who else commands the robot; times a second at rest
HEARING = 1.0  # s in which a robot at rest is heard of that is to be enabled
BRAKING = 2.0  # s, the longest that deactivating may take to bring the robot to rest
DELIVERY = Duration(seconds=1)  # for the last command to be acknowledged
LEVELS = {
    Mode.DRY_RUN: DiagnosticStatus.OK, Mode.RUNNING: DiagnosticStatus.OK,
    Mode.HOLDING: DiagnosticStatus.WARN, Mode.STOPPED: DiagnosticStatus.ERROR,
}  # fmt: skip


@dataclass(frozen=True)
class FilterConfig(SafetyConfig, GateConfig, ExecutionConfig):
    checkpoint: str = option("", "student checkpoint that names the joints; empty: the one in the package")
    control_rate: float = option(100.0, "set points per second (Hz)", low=50.0, high=200.0)
    robot_description: str = option("", "URDF of the robot; empty: only what the topic robot_description says")
    require_description: bool = option(False, "refuse to enable until there is a robot_description")
    policy_range: bool = option(True, "keep to the positions that the policy was trained to command")
    max_velocity: float = option(MOST.velocity, "greatest speed of any joint (rad/s)", low=0.001, high=100.0)
    max_acceleration: float = option(MOST.acceleration, "greatest acceleration (rad/s^2)", low=0.01, high=1e4)
    max_jerk: float = option(MOST.jerk, "greatest jerk (rad/s^3)", low=0.1, high=1e6)
    rest_rate: float = option(10.0, "set points per second while the robot stands still in REST or DREAM (Hz)",
                              low=1.0, high=200.0)  # fmt: skip

    def __post_init__(self) -> None:
        SafetyConfig.__post_init__(self)
        ExecutionConfig.__post_init__(self)

    @property
    def most(self) -> Bounds:
        """What no joint may exceed."""
        return Bounds(velocity=self.max_velocity, acceleration=self.max_acceleration, jerk=self.max_jerk)


class SafetyFilterNode(SageNode):
    """action, joint_states, confidence, metabolic_state -> joint_command, joint_trajectory, last_command.

    Starts as a dry run: ``~/enable`` lets set points out, ``~/stop`` is an emergency hold that lasts until ``~/reset``.
    Who enables it may announce itself on ``~/operator/alive``: when it is gone, the filter disables itself.
    ``~/state`` (latched DiagnosticArray) says what the filter does and why. Limits are the tightest of the URDF's, of
    ``joint_limits.<joint>.*`` (named as in ros2_control's joint_limits.yaml), of the policy's range and of ``max_*``.
    """

    Config = FilterConfig
    config: FilterConfig
    live = frozenset(
        {"watchdog", "joint_timeout", "ease_in", "hold_below", "full_above", "follow_tolerance", "follow_time"}
        | {"overspeed", "strategy", "fade", "ensemble_decay", "ensemble_ramp"}
        | {"max_age", "max_future"}
    )

    def __init__(self, **kwargs: object) -> None:
        self._description = ""
        super().__init__("safety_filter", **kwargs)
        self._told: tuple[Mode, str, bool] | None = None
        self._liveliness: Liveliness | None = None
        # Latched, and perhaps published long before this node is configured
        self.create_subscription(String, "robot_description", self._on_description, LATCHED)

    def setup(self) -> None:
        c = self.config
        folder = checkpoint_path(c.checkpoint)
        manifest = Manifest.read(folder / "config.json")
        self._joints, self._row_rate = manifest.action_joints.names, manifest.rate
        self._trained = action_range(folder, manifest) if c.policy_range else None
        self._declare_limits()
        self._filter = SafetyFilter(self._limits(), c.control_rate, c, c, c)
        self.get_logger().info(f"commands {len(self._joints)} joints, in this order:\n{self._filter.limits}")
        self._commands = self.publish_on(Float64MultiArray, "joint_command")
        self._last = self.publish_on(JointState, "last_command")
        self._trajectories = self.publish_on(JointTrajectory, "joint_trajectory")
        self._states = self.publish_on(DiagnosticArray, "~/state", LATCHED)
        self._command = Float64MultiArray()
        self._last_message = joint_message(self._joints, np.zeros(len(self._joints)), Header())
        self._told = None
        self._next_ahead = 0.0  # steady: when a hold is told again
        self._curious = False  # joints are to be heard even at rest,
        self._arrival, self._hearing_since = Future(), 0.0  #   and have been
        self._arrival.set_result(False)
        self._hear_action = self.hears("action", lambda pace: pace.plans)
        self._hear_joints = self.hears("joint_states", self._wants_joints)
        self.listen(JointTrajectory, "action", self._on_action)
        self.listen_while(self._wants_joints, JointState, "joint_states", self._on_joints)
        self.listen(Float32, "confidence", self._on_confidence)
        self.listen_to_metabolism(self._on_metabolism)
        self._ticker = self.in_step(1.0 / c.control_rate, self._tick)
        self._looker = self.every(LOOK, self._look_around, clock=self.steady)
        self._dozing = False
        self.serve(SetBool, "~/enable", self._on_enable)
        self.serve(Trigger, "~/stop", self._on_stop)
        self.serve(Trigger, "~/reset", self._on_reset)
        self._liveliness = Liveliness(self, [POLICY, OPERATOR], self._on_liveliness)

    def teardown(self) -> None:
        if self._liveliness is not None:
            self._liveliness.close()
            self._liveliness = None

    def _declare_limits(self) -> None:
        for joint in self._joints:
            for flag, values in CONFIGURED.items():
                for name, kind in ((flag, False), *((value, 0.0) for value in values)):
                    if not self.has_parameter(full := f"joint_limits.{joint}.{name}"):
                        self.declare_parameter(full, kind, ParameterDescriptor(description="as in joint_limits.yaml"))

    def _limits(self) -> JointLimits:
        c = self.config
        given: dict[str, dict[str, float | bool]] = {}
        for joint in self._joints:
            given[joint] = {}
            for flag, values in CONFIGURED.items():
                if self.get_parameter(f"joint_limits.{joint}.{flag}").value:
                    given[joint] |= {n: self.get_parameter(f"joint_limits.{joint}.{n}").value for n in (flag, *values)}
        urdf = c.robot_description or self._description or None
        limits = resolve_limits(self._joints, urdf, given, c.most, self._trained)
        return limits.tightened(dict.fromkeys(self._joints, c.most))

    def changed(self) -> None:
        self._filter.config = self._filter.queue.config = self.config
        self._filter.gate.config = self.config

    def start(self) -> None:
        self.clear()
        self._tell()

    def stop(self) -> None:
        """Brake to rest, and see that the last command is delivered, before the node falls silent."""
        self._filter.disable()
        deadline = time.monotonic() + BRAKING
        while self._filter.moving and time.monotonic() < deadline:
            self._tick()
            time.sleep(1.0 / self.config.control_rate)
        if self._filter.motion.started:
            self._send(self._filter.motion.position)
            self._filter.motion.stop()
            self._commands.wait_for_all_acked(DELIVERY)
        self._tell()

    def clear(self) -> None:
        self._filter.clear()

    # Input

    def _on_action(self, message: JointTrajectory) -> None:
        self.counts["chunks_in"] += 1
        self._hear_action(message.header.stamp)
        now, steady = self._now()
        times = [point.time_from_start.sec + 1e-9 * point.time_from_start.nanosec for point in message.points]
        rows = [point.positions for point in message.points]
        try:
            with self.watch.span():
                self._filter.chunk(nanoseconds(message.header.stamp), message.joint_names, rows, times, now, steady)
        except Refusal as refusal:
            return self._refuse("action", refusal)
        if self._filter.mode is Mode.RUNNING:
            self._send_ahead(now)

    def _on_joints(self, message: JointState) -> None:
        self._hear_joints(message.header.stamp)
        now, steady = self._now()
        stamp = nanoseconds(message.header.stamp)
        try:
            self._filter.joints(stamp, message.name, message.position, now, steady, message.velocity)
        except Refusal as refusal:
            return self._refuse("joint_states", refusal)
        if not self._arrival.done():
            self._arrival.set_result(True)

    def _wants_joints(self, pace: Pace) -> bool:
        """At rest there is nothing to compare them with but a hold, which is in force; who wakes hears them again."""
        return self._curious or pace.state not in STILL

    def _on_confidence(self, message: Float32) -> None:
        self._filter.confide(message.data)

    def _on_metabolism(self, pace: Pace) -> None:
        self._curious &= pace.state in STILL
        why = "" if pace.actuation else f"{pace.state}: {pace.reason}"
        self._filter.forbid("metabolism", why)
        if pace.state == State.CRISIS and self._filter.mode in (Mode.RUNNING, Mode.HOLDING):
            self._filter.disable(why)
            self.get_logger().error(f"{why}: the robot holds; after metabolic_manager/reset it has to be enabled again")
        self._doze()

    def _on_liveliness(self, name: str, alive: bool) -> None:
        if name == OPERATOR:
            if not alive and self._filter.mode in (Mode.RUNNING, Mode.HOLDING):
                self._filter.disable("who enabled it is gone")
                self.get_logger().error("who enabled the robot is gone: it holds, and has to be enabled again")
            return
        self._filter.forbid("liveliness", "" if alive else f"{name} is gone")

    def _on_description(self, message: String) -> None:
        if message.data == self._description:
            return
        self._description = message.data
        if self._entities and not self.config.robot_description:
            self._adopt_description()

    def _adopt_description(self) -> None:
        try:
            self._filter.relimit(self._limits())
        except (ValueError, RuntimeError) as error:
            return self._filter.stop(f"a new robot_description: {error}")
        self.get_logger().info(f"limits with the robot_description:\n{self._filter.limits}")

    def _refuse(self, topic: str, refusal: Refusal) -> None:
        self.counts[f"refused_{refusal.reason}"] += 1
        self.complain(f"{topic}: {refusal}")

    # Output

    def _tick(self) -> None:
        now, steady = self._now()
        with self.watch.span():
            set_point = self._filter.tick(now, steady)
        if set_point is not None:
            self._send(set_point)
            if self._filter.mode is Mode.RUNNING:
                self._next_ahead = 0.0
            elif steady >= self._next_ahead:  # no chunk may come to do it
                self._next_ahead = steady + 1.0 / self._row_rate
                self._send_ahead(now)
        if self._condition != self._told:
            self._tell()
        self._doze()

    def _doze(self) -> None:
        """Tick slowly, and look around less often, as long as nothing moves and nothing may."""
        dozing = self.pace.state in STILL and not self._filter.moving
        if dozing == self._dozing or self._ticker is None:
            return
        self._dozing = dozing
        for timer, often, seldom in ((self._ticker, self.config.control_rate, self.config.rest_rate),
                                     (self._looker, 1.0 / LOOK, SELDOM)):  # fmt: skip
            timer.timer_period_ns = round(SECOND / (seldom if dozing else often))
            timer.reset()

    @property
    def _condition(self) -> tuple[Mode, str, bool]:
        """Mode, reason, and whether the robot is at rest and stays so."""
        mode = self._filter.mode
        return mode, self._filter.reason, mode is not Mode.RUNNING and not self._filter.moving

    def _send(self, set_point: np.ndarray) -> None:
        values = array.array("d", set_point.tobytes())
        self._last_message.header.stamp = self.get_clock().now().to_msg()
        self._last_message.position = values
        self._last.publish(self._last_message)
        self._command.data = values
        self._commands.publish(self._command)
        self.counts["set_points_out"] += 1

    def _send_ahead(self, now: int) -> None:
        """For trajectory controllers: what is to come, or a hold."""
        if not self._trajectories.get_subscription_count():
            return
        rows = self._filter.ahead(now, self._row_rate)
        header = Header(stamp=to_stamp(now))
        self._trajectories.publish(trajectory_message(self._joints, ActionChunk(rows, self._row_rate), header))

    def _look_around(self) -> None:
        """Two who command one robot, or two who plan for one filter, are an emergency."""
        if not self._arrival.done() and time.monotonic() - self._hearing_since > HEARING:
            self._arrival.set_result(False)
        alive = self._liveliness.count(POLICY) if self._liveliness is not None else 0
        for topic in ("joint_command", "joint_trajectory", "action"):
            names = Counter(self.publishers(topic))
            policy = self.resolve_topic_name(POLICY)
            if names[policy] > 1:  # of these only those that are alive
                names[policy] = max(1, min(names[policy], alive))
            if names.total() > 1:
                listed = ", ".join(sorted(names.elements()))
                self._filter.stop(f"{topic} has {names.total()} publishers: {listed}")

    def _tell(self) -> None:
        mode, reason, at_rest = self._told = self._condition
        self._states.publish(self.report("state", LEVELS[mode], mode.value, {"reason": reason, "at_rest": at_rest}))

    def _now(self) -> tuple[int, float]:
        return self.get_clock().now().nanoseconds, time.monotonic()

    # Services

    async def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        """At rest no joints are heard: then they are waited for."""
        if request.data and self.active and self.pace.state in STILL and not self._curious:
            self._curious, self._arrival, self._hearing_since = True, Future(), time.monotonic()
            self.follow_pace()
            await self._arrival
        if not request.data:
            self._filter.disable()
            response.success, response.message = True, "disabled: the robot holds"
        elif not self.active:
            response.message = "the node is not active: bring it up first"
        elif self.pace.state == State.CRISIS:
            response.message = f"CRISIS: {self.pace.reason}: call metabolic_manager/reset first"
        elif self.config.require_description and not (self._description or self.config.robot_description):
            response.message = "no robot_description yet, and require_description is set"
        else:
            why_not = self._filter.enable(time.monotonic())
            response.success, response.message = not why_not, why_not or "enabled: set points follow the policy"
        return response

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._filter.stop("asked to, by ~/stop")
        response.success, response.message = True, "the robot brakes and holds until ~/reset"
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._filter.reset()
        self._look_around()
        response.success = self._filter.mode is not Mode.STOPPED
        response.message = self._filter.reason if not response.success else "reset: enable it to go on"
        self._tell()
        return response

    def status(self) -> Status:
        if not self.active:
            return DiagnosticStatus.OK, "inactive", {}
        mode, reason = self._filter.mode, self._filter.reason
        figures: dict[str, Any] = {"latency_ms": f"{1e3 * self._filter.queue.latency:.1f}"}
        figures["interventions"] = self._filter.motion.interventions if self._filter.motion.started else 0
        # A stop is for the user to end: an ERROR would make a CRISIS of it that outlasts the reset.
        return min(LEVELS[mode], DiagnosticStatus.WARN), f"{mode.value}{': ' if reason else ''}{reason}", figures


def main(args: list[str] | None = None) -> int:
    gc.collect()
    gc.freeze()  # to look through all libraries for garbage would now and then take several set points' time
    return run(SafetyFilterNode, args)


if __name__ == "__main__":
    sys.exit(main())
