"""sage_policy: attended tokens, joint states and the task in; action chunks out, and set points once enabled."""

from __future__ import annotations

import array
import sys
from dataclasses import dataclass

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, Header, String
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory

from sage_ros.core.chunks import ActionChunk, Observation
from sage_ros.core.joints import JointError, JointLayout
from sage_ros.core.options import check, option
from sage_ros.core.safety import CommandGuard
from sage_ros.core.timing import RateLimit, StampBuffer, Stopwatch
from sage_ros.nodes.lifecycle import LATCHED, RELIABLE, STREAM, SageNode, Status, run
from sage_ros.nodes.messages import MessageError, map_from, nanoseconds, positions_from, trajectory_message
from sage_ros.paths import checkpoint_path
from sage_ros.policy.checkpoint import load_checkpoint

SECOND = 1_000_000_000


@dataclass(frozen=True)
class PolicyConfig:
    checkpoint: str = option("", "student checkpoint folder; empty: the one in the package")
    device: str = option("cpu", "torch device: cpu, cuda or cuda:N")
    threads: int = option(1, "CPU threads of the student", low=1, high=64)
    joint_tolerance: float = option(0.1, "oldest joint state that may go with a frame (s)", low=0.001, high=10.0)
    command_memory: float = option(2.0, "how long a last command counts as such (s)", low=0.05, high=60.0)
    control_enabled: bool = option(False, "publish joint_command; off is a dry run")
    control_rate: float = option(50.0, "set points per second (Hz)", low=1.0, high=500.0)
    max_speed: float = option(2.0, "fastest change of a set point (rad/s)", low=0.001, high=100.0)

    def __post_init__(self) -> None:
        check(self)


class SagePolicy(SageNode):
    """attention/tokens, joint_states, task, last_command -> action (chunks), joint_command (set points).

    A frame is answered with joints and command paired by stamp (see ``StampBuffer``). Input that is stale, not
    finite or lacks a joint gives no action, a warning and a count.
    """

    Config = PolicyConfig
    config: PolicyConfig
    live = frozenset({"joint_tolerance", "command_memory", "control_enabled", "max_speed"})

    def __init__(self, **kwargs: object) -> None:
        super().__init__("sage_policy", **kwargs)
        self._joints: StampBuffer[np.ndarray] = StampBuffer()
        self._commands: StampBuffer[np.ndarray] = StampBuffer(256)
        self._task = ""
        self._chunk: tuple[int, ActionChunk] | None = None  # with the stamp of its frame
        self._limit = RateLimit(float("inf"))
        self._latency = Stopwatch()  # from a frame's stamp to the publication of its action, by the node's clock

    def setup(self) -> None:
        torch.set_num_threads(self.config.threads)
        checkpoint = load_checkpoint(checkpoint_path(self.config.checkpoint), self.config.device)
        self._policy, self._rate = checkpoint.policy, checkpoint.rate
        self._state_joints, self._action_joints = checkpoint.state_joints, checkpoint.action_joints
        self._shape = (checkpoint.grid[0] * checkpoint.grid[1], checkpoint.features)
        self._guard = CommandGuard(checkpoint.action_limits, self.config.max_speed)
        self._actuation = True
        self._warm_up()
        names = ", ".join(self._action_joints.names)
        self.get_logger().info(f"commands {len(self._action_joints)} joints, in this order: {names}")
        self._actions = self.publish_on(JointTrajectory, "action", RELIABLE)
        self._set_points = self.publish_on(Float64MultiArray, "joint_command", RELIABLE)
        self.listen(Image, "attention/tokens", self._on_tokens, STREAM)
        self.listen(JointState, "joint_states", self._on_joints)
        self.listen(JointState, "last_command", self._on_command)
        self.listen(String, "task", self._on_task, LATCHED, always=True)
        self.listen_to_metabolism(self._on_metabolism)
        self.every(1.0 / self.config.control_rate, self._control, clock=self.steady)
        service = self.create_service(SetBool, "~/enable", self._on_enable)
        self._entities.append((self.destroy_service, service))

    def _warm_up(self) -> None:
        tokens = np.zeros(self._shape, dtype=np.float32)
        for _ in range(5):
            chunk = self._policy.infer(Observation(tokens, np.zeros(len(self._state_joints)), None, "warm up"))
        self._answer = trajectory_message(self._action_joints.names, chunk, Header())
        self._policy.reset()

    def changed(self) -> None:
        self._guard.max_speed = self.config.max_speed
        if not self.config.control_enabled:
            self._guard.stop()

    def stop(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._joints.clear()
        self._commands.clear()
        self._chunk = None
        self._limit.reset()
        self._guard.stop()
        self._policy.reset()

    # Input

    def _on_metabolism(self, values: dict[str, str]) -> None:
        self._limit.rate = float(values["policy_rate"])
        self._actuation = values["actuation"] == "True"

    def _on_task(self, message: String) -> None:
        if message.data != self._task:
            self._task, self._chunk = message.data, None
            self._commands.clear()
            self._policy.reset()

    def _on_joints(self, message: JointState) -> None:
        self._keep(self._joints, self._state_joints, message)

    def _on_command(self, message: JointState) -> None:
        self._keep(self._commands, self._action_joints, message)

    def _keep(self, buffer: StampBuffer[np.ndarray], layout: JointLayout, message: JointState) -> None:
        try:
            positions = positions_from(message)[layout.order_from(message.name)]
        except (MessageError, JointError) as problem:
            self.counts["refused"] += 1
            return self.complain(problem)
        buffer.add(nanoseconds(message.header.stamp), positions)

    # Inference

    def _on_tokens(self, message: Image) -> None:
        self.counts["frames_in"] += 1
        stamp = nanoseconds(message.header.stamp)
        if not self._task or self._limit.rate == 0:
            self.counts["idle"] += 1
            return
        if not self._limit.allows(stamp):
            self.counts["skipped_by_rate"] += 1
            return
        state = self._joints.at(stamp, int(self.config.joint_tolerance * SECOND))
        if state is None:
            self.counts["no_joints"] += 1
            return self.complain(f"no joint_states within {self.config.joint_tolerance} s before the frame: no action")
        command = self._commands.before(stamp, int(self.config.command_memory * SECOND))
        try:
            with self.watch.span():
                chunk = self._policy.infer(Observation(map_from(message), state, command, self._task))
        except (MessageError, ValueError) as problem:
            self.counts["refused"] += 1
            return self.complain(problem)
        self._chunk = (stamp, chunk)
        answer = trajectory_message(self._action_joints.names, chunk, message.header, self._answer)
        self._actions.publish(answer)
        self._latency.add((self.get_clock().now().nanoseconds - stamp) / SECOND)
        self.counts["actions_out"] += 1

    # Control

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        from rclpy.parameter import Parameter

        result = self.set_parameters([Parameter("control_enabled", value=request.data)])[0]
        response.success, response.message = result.successful, result.reason or f"control_enabled: {request.data}"
        return response

    def _control(self) -> None:
        """One set point, easing in from the measured pose; nothing at all when there is no fresh chunk."""
        if not (self.config.control_enabled and self._actuation and self._chunk):
            return self._guard.stop()
        now = self.get_clock().now().nanoseconds
        stamp, chunk = self._chunk
        target = chunk.sample((now - stamp) / SECOND - 1.0 / self._rate)
        if target is None:
            self.counts["starved"] += 1
            return self._guard.stop()
        if not self._guard.started:
            pose = self._measured_pose(now)
            if pose is None:
                return self.complain("no fresh joint_states with every commanded joint: no set point")
            self._guard.start(pose)
        set_point = self._guard.next(target, 1.0 / self.config.control_rate)
        self._commands.add(now, set_point)
        self._set_points.publish(Float64MultiArray(data=array.array("d", set_point)))
        self.counts["set_points_out"] += 1

    def _measured_pose(self, now: int) -> np.ndarray | None:
        state = self._joints.at(now, int(self.config.joint_tolerance * SECOND))
        if state is None:
            return None
        try:
            return state[self._action_joints.order_from(self._state_joints.names)]
        except JointError:
            return None

    def status(self) -> Status:
        mode = "control enabled" if self.config and self.config.control_enabled else "dry run"
        work = f"task '{self._task}'" if self._task else "no task"
        line, figures = f"{work}, {mode}, {self.counts['actions_out']} chunks", dict[str, object]()
        if self._latency.spans:
            p50, p99 = (self._latency.milliseconds(quantile) for quantile in (0.5, 0.99))
            line += f", {p50:.1f} ms from image to action"
            figures = {"latency_ms_p50": f"{p50:.3f}", "latency_ms_p99": f"{p99:.3f}"}
        return DiagnosticStatus.OK, line, figures


def main(args: list[str] | None = None) -> int:
    return run(SagePolicy, args)


if __name__ == "__main__":
    sys.exit(main())
