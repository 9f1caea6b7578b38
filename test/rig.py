"""A safety filter alone, between a scripted policy and a robot that does as it is told."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from graph import Probe
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, Header
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from sage_ros.core.chunks import ActionChunk
from sage_ros.core.limits import Bounds, JointLimits, resolve_limits
from sage_ros.nodes.fault_injector import InjectorConfig, Spoiler
from sage_ros.nodes.lifecycle import LATCHED, RELIABLE
from sage_ros.nodes.messages import joint_message, to_stamp, trajectory_message
from sage_ros.nodes.safety_filter import FilterConfig
from sage_ros.paths import checkpoint_path
from sage_ros.policy.manifest import Manifest
from sage_ros.policy.normalization import action_range

SECOND = 1_000_000_000
PERIOD = 0.01  # s, of set points and joint states
CHUNK_EVERY, ROWS, ROW_RATE = 5, 16, 20.0  # of the 100 Hz; rows, Hz
LOSSLESS = QoSProfile(depth=10_000, reliability=ReliabilityPolicy.RELIABLE)


def usual_limits() -> JointLimits:
    """What a safety filter goes by that is started without arguments."""
    folder = checkpoint_path("")
    manifest, config = Manifest.read(folder / "config.json"), FilterConfig()
    usual = Bounds(velocity=config.max_velocity, acceleration=config.max_acceleration, jerk=config.max_jerk)
    return resolve_limits(manifest.action_joints.names, None, {}, usual, action_range(folder, manifest))


class Rig:
    """Publishes joint_states at 100 Hz and action at 20 Hz in a thread, and records what the filter says and does.

    The plan is a slow wave about ``middle``, by the time of the clock; ``spoilers`` of "joints" and "chunk" spoil it.
    """

    def __init__(self, probe: Probe, limits: JointLimits, simulated: bool = False, robot: bool = True) -> None:
        self.probe, self.limits = probe, limits
        self.names = list(limits.names)
        low, high = limits.position.T
        self.middle, self.size, self.speed = (low + high) / 2, 0.15 * (high - low), 2.0
        self.robot, self.policy = robot, True  # whether they publish
        self.follows = True  # whether the robot does as told
        self.spoilers = {kind: Spoiler(InjectorConfig(kind=kind)) for kind in ("joints", "chunk")}
        self.commands: list[np.ndarray] = []
        self.measured = self.middle.copy()
        self.velocity: list[float] = []
        self.states: list[DiagnosticArray] = probe.listen(DiagnosticArray, "safety_filter/state", LATCHED)
        self.last: list[JointState] = probe.listen(JointState, "last_command", LOSSLESS)
        probe.node.create_subscription(Float64MultiArray, "joint_command", self._on_command, LOSSLESS)
        self._joints = probe.publisher(JointState, "joint_states")
        self._actions = probe.publisher(JointTrajectory, "action")
        self._clock = probe.node.create_publisher(Clock, "/clock", RELIABLE) if simulated else None
        self.simulated = 1000 * SECOND
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    # What goes on by itself

    def _on_command(self, message: Float64MultiArray) -> None:
        self.commands.append(np.array(message.data))
        if self.follows:
            self.measured = self.commands[-1]

    def now(self) -> int:
        return time.time_ns() if self._clock is None else self.simulated

    def planned(self, at: float | np.ndarray) -> np.ndarray:
        """The plan at time ``at`` (s): (A,), or (H, A)."""
        phase = np.linspace(0, 2, len(self.names))
        return self.middle + self.size * np.sin(self.speed * np.asarray(at)[..., None] + phase)

    def _work(self) -> None:
        begin, ticks = time.monotonic(), 0
        while not self._end.wait(max(0.0, begin + ticks * PERIOD - time.monotonic())):
            ticks += 1
            if self._clock is not None:
                self.simulated += round(PERIOD * SECOND)
                self._clock.publish(Clock(clock=to_stamp(self.simulated)))
            now = self.now()
            if self.robot:
                state = joint_message(self.names, self.measured, Header(stamp=to_stamp(now)))
                state.velocity = self.velocity
                self._publish("joints", self._joints, state)
            if self.policy and ticks % CHUNK_EVERY == 0:
                self._publish("chunk", self._actions, self.chunk(now))

    def chunk(self, now: int) -> JointTrajectory:
        rows = self.planned(now / SECOND + (np.arange(ROWS) + 1) / ROW_RATE)
        return trajectory_message(self.names, ActionChunk(rows, ROW_RATE), Header(stamp=to_stamp(now)))

    def _publish(self, kind: str, publisher: Any, message: Any) -> None:
        for spoiled in self.spoilers[kind](copy.deepcopy(message))[0]:
            publisher.publish(spoiled)

    # What a test does

    def spoil(self, kind: str, fault: str, **settings: Any) -> None:
        self.spoilers[kind].config = InjectorConfig(kind=kind, fault=fault, **settings)

    @property
    def mode(self) -> str:
        return self.states[-1].status[0].message if self.states else ""

    @property
    def reason(self) -> str:
        return self.states[-1].status[0].values[0].value if self.states else ""

    def until(self, mode: str, timeout: float = 20.0, since: int = 0) -> str:
        """Wait for the mode to be told, among the states from ``since`` on; why it was entered."""

        def told() -> DiagnosticArray | None:
            found = [state for state in self.states[since:] if state.status[0].message == mode]
            return found[-1] if found and (since or self.mode == mode) else None

        return self.probe.until(told, f"{mode}, not {self.mode}: {self.reason}", timeout).status[0].values[0].value

    def enable(self, on: bool = True) -> tuple[bool, str]:
        answer = self.probe.call(SetBool, "safety_filter/enable", SetBool.Request(data=on))
        return answer.success, answer.message

    def trigger(self, name: str) -> tuple[bool, str]:
        answer = self.probe.call(Trigger, f"safety_filter/{name}")
        return answer.success, answer.message

    def run(self) -> None:
        """Enable, and wait until it moves as planned."""
        self.probe.until(lambda: self.enable()[0], "joint states to have come in")
        self.until("RUNNING")
        self.more(50)

    def more(self, count: int, timeout: float = 20.0) -> np.ndarray:
        """Wait for so many more set points; these (count, A)."""
        before = len(self.commands)
        self.probe.until(lambda: len(self.commands) >= before + count, f"{count} set points", timeout)
        return np.array(self.commands[before : before + count])

    def rest(self) -> np.ndarray:
        """Wait until set points stand still, or come no more; the last one."""
        before, since = len(self.commands), time.monotonic()

        def still() -> bool:
            nonlocal before, since
            if len(self.commands) > before and np.ptp(self.commands[before:], axis=0).max() > 1e-9:
                before, since = len(self.commands) - 1, time.monotonic()
            return time.monotonic() - since > 0.3

        self.probe.until(still, "rest")
        return self.commands[-1]


def assert_keeps(limits: JointLimits, points: Sequence[np.ndarray], before: np.ndarray | None = None) -> None:
    """The law of MotionFilter: ``points`` (K, A), after rest at ``before`` (None: unknown motion), keep all limits."""
    rows = np.array([*([] if before is None else [before] * 3), *points])
    low, high = limits.position.T
    inside = (rows >= low - 1e-9) & (rows <= high + 1e-9)
    assert inside[0 if before is None else 3 :].all(), "positions leave the limits"
    for order, bound in enumerate((limits.velocity, limits.acceleration, limits.jerk), start=1):
        share = np.abs(np.diff(rows, order, axis=0)) / (bound * PERIOD**order)
        slack = 8 * np.finfo(np.float64).eps * np.abs(rows).max() / (bound * PERIOD**order)
        worst = np.unravel_index((share - slack).argmax(), share.shape)
        kind = ("velocity", "acceleration", "jerk")[order - 1]
        said = f"{kind} of {limits.names[worst[1]]} at set point {worst[0]}: {share[worst]:.3f} limits"
        assert (share <= 1 + 1e-6 + slack).all(), said
