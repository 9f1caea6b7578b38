"""Fault episodes at the safety filter's own process: a policy and a robot out here break, the filter in there must not.

Every second one of many faults is injected, or a policy's process is killed. All set points are recorded.

hold_ms          from the moment at which the next good chunk was due (50 ms after the last) to the tick whose set point
                 is the first to brake, as the filter stamps it on ``~/state``
kill_to_hold_ms  the same from SIGKILL, which may come right after a chunk and so before anything is missing
recovery_ticks   ticks from the arrival of the first good chunk to the one that follows the plan again; a chunk that is
                 less than ``TRANSPORT`` old at a tick may not have arrived
set_point_jitter interval between the stamps of successive set points, off 10 ms
"""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from harness import Bar
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, Header
from std_srvs.srv import SetBool, Trigger
from tqdm import tqdm
from trajectory_msgs.msg import JointTrajectory

from sage_ros.core.chunks import ActionChunk
from sage_ros.core.limits import Bounds, JointLimits, resolve_limits
from sage_ros.nodes.fault_injector import InjectorConfig, Spoiler
from sage_ros.nodes.lifecycle import LATCHED, RELIABLE
from sage_ros.nodes.liveliness import announce
from sage_ros.nodes.messages import joint_message, nanoseconds, to_stamp, trajectory_message
from sage_ros.nodes.process import Spinner
from sage_ros.nodes.safety_filter import FilterConfig
from sage_ros.paths import checkpoint_path
from sage_ros.policy.manifest import Manifest
from sage_ros.policy.normalization import action_range

SECOND = 1_000_000_000
PERIOD, EVERY, ROWS, RATE = 0.01, 5, 16, 20.0  # of set points (s); set points per chunk; a chunk's rows, and their Hz
TRANSPORT = 0.003  # s
PATIENCE = 20.0  # s for whatever should happen
LOSSLESS = QoSProfile(depth=10_000, reliability=ReliabilityPolicy.RELIABLE)
# What can break, and whether the robot must hold then
REFUSED = ["drop", "nan", "inf", "truncate", "missing_joint", "unknown_joint", "repeated_joint", "stale", "future"]
REFUSED += ["freeze"]
FAULTS: list[tuple[str, str, bool]] = [
    *(("chunk", fault, True) for fault in REFUSED),
    *(("chunk", fault, False) for fault in ("permute", "mislabel", "jump", "freeze_content", "duplicate")),
    *(("joints", fault, False) for fault in ("drop", "nan", "missing_joint", "stale")),
    ("stop", "", False),
]


def bars(episodes: int) -> dict[str, Bar]:
    return {
        f"violations_{episodes}_process_episodes": ("<=", 0.0),
        "hold_ms_p99": ("<=", 100.0),
        "kill_to_hold_ms_max": ("<=", 100.0),
        "recovery_ticks_max": ("<=", 1.0),
        "set_point_jitter_ms_p99": ("<=", 3.0),
    }


def limits() -> JointLimits:
    """What a safety filter goes by that is started without arguments."""
    folder, config = checkpoint_path(""), FilterConfig()
    manifest = Manifest.read(folder / "config.json")
    most = Bounds(velocity=config.max_velocity, acceleration=config.max_acceleration, jerk=config.max_jerk)
    return resolve_limits(manifest.action_joints.names, None, {}, most, action_range(folder, manifest))


class Waves:
    """Plans of slow waves in the middle of the joints' range."""

    def __init__(self) -> None:
        self.limits = limits()
        low, high = self.limits.position.T
        self.middle, self._size = (low + high) / 2, 0.15 * (high - low)

    def chunk(self, now: int) -> JointTrajectory:
        at = now / SECOND + (np.arange(ROWS) + 1) / RATE
        rows = self.middle + self._size * np.sin(2.0 * at[:, None] + np.linspace(0, 2, len(self.limits)))
        return trajectory_message(self.limits.names, ActionChunk(rows, RATE), Header(stamp=to_stamp(now)))


def repeat(work: Callable[[int], None], period: float, end: threading.Event) -> None:
    """Call ``work`` with the count of calls, one each ``period`` s."""
    begin, ticks = time.monotonic(), 0
    while not end.wait(max(0.0, begin + ticks * period - time.monotonic())):
        ticks += 1
        work(ticks)


class Stage:
    """The robot and the policy of a safety filter in another process, and what that filter does."""

    def __init__(self) -> None:
        self.waves = Waves()
        self.node = Node("stage", use_global_arguments=False)
        self._changed = threading.Condition()
        self.states: list[tuple[int, str, str]] = []  # stamp (ns), mode, reason
        self.commands: list[np.ndarray] = []
        self.stamps: list[int] = []  # of the set points
        self.chunks: list[int] = []  # of the good ones, when they were sent
        self.enabled: list[int] = []  # when it was enabled (ns)
        self.sent = 0  # set points, as the filter counts them
        self.spoilers = {kind: Spoiler(InjectorConfig(kind=kind)) for kind in ("joints", "chunk")}
        self._joints = self.node.create_publisher(JointState, "joint_states", RELIABLE)
        self._actions: Any = self.node.create_publisher(JointTrajectory, "action", RELIABLE)
        subscribe = self.node.create_subscription
        subscribe(DiagnosticArray, "safety_filter/state", self._on_state, LATCHED)
        subscribe(DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE)
        subscribe(Float64MultiArray, "joint_command", lambda m: self.commands.append(np.array(m.data)), LOSSLESS)
        subscribe(JointState, "last_command", lambda m: self.stamps.append(nanoseconds(m.header.stamp)), LOSSLESS)
        self._spinner = Spinner(self.node)
        self._end = threading.Event()
        self._thread = threading.Thread(target=repeat, args=(self._work, PERIOD, self._end), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self._spinner.stop()
        self.node.destroy_node()

    def _on_state(self, message: DiagnosticArray) -> None:
        with self._changed:
            status = message.status[0]
            self.states.append((nanoseconds(message.header.stamp), status.message, status.values[0].value))
            self._changed.notify_all()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        values = {pair.key: pair.value for pair in message.status[0].values}
        self.sent = int(values.get("set_points_out", self.sent))

    def _work(self, tick: int) -> None:
        now = time.time_ns()
        measured = self.commands[-1] if self.commands else self.waves.middle
        state = joint_message(self.waves.limits.names, measured, Header(stamp=to_stamp(now)))
        for message in self.spoilers["joints"](state)[0]:
            self._joints.publish(message)
        if self._actions is not None and tick % EVERY == 0:
            messages, hit = self.spoilers["chunk"](copy.deepcopy(self.waves.chunk(now)))
            for message in messages:
                self._actions.publish(message)
            if not hit:
                self.chunks.append(time.time_ns())

    def leave_the_plan_to_another(self) -> None:
        publisher, self._actions = self._actions, None
        time.sleep(2 * EVERY * PERIOD)
        self.node.destroy_publisher(publisher)
        self.until("HOLDING", self.chunks[-1])

    # What an episode does

    def spoil(self, kind: str, fault: str, seed: int = 0) -> None:
        self.spoilers[kind].config = InjectorConfig(kind=kind, fault=fault, seed=seed)

    def until(self, mode: str, since: int) -> int:
        """Wait for a mode that is told after ``since`` (ns), or is still on; the stamp (ns) of the first such."""

        def found() -> int | None:
            news = [stamp for stamp, told, _ in self.states if told == mode and stamp > since]
            return news[0] if news else since if self.states and self.states[-1][1] == mode else None

        with self._changed:
            if not self._changed.wait_for(lambda: found() is not None, PATIENCE):
                raise TimeoutError(f"no {mode} within {PATIENCE} s, but {self.states[-1:]}")
            return found() or since

    def call(self, kind: Any, name: str, request: Any = None) -> Any:
        client = self.node.create_client(kind, f"safety_filter/{name}")
        try:
            if not client.wait_for_service(PATIENCE):
                raise TimeoutError(f"no service safety_filter/{name}")
            done = threading.Event()
            future = client.call_async(request or kind.Request())
            future.add_done_callback(lambda _: done.set())
            if not done.wait(PATIENCE):
                raise TimeoutError(f"no answer from safety_filter/{name}")
            return future.result()
        finally:
            self.node.destroy_client(client)

    def enable(self) -> None:
        deadline = time.monotonic() + PATIENCE
        self.enabled.append(time.time_ns())
        while not (answer := self.call(SetBool, "enable", SetBool.Request(data=True))).success:
            if time.monotonic() > deadline:
                raise TimeoutError(answer.message)
            time.sleep(0.05)
            self.enabled[-1] = time.time_ns()


class Figures:
    def __init__(self) -> None:
        self.holds: list[float] = []  # ms
        self.kills: list[float] = []  # ms
        self.recoveries: list[int] = []  # ticks

    def held(self, chunks: list[int], fault: int, hold: int) -> None:
        """Note when it held (ns), having had none but good chunks until ``fault``."""
        last = max(sent for sent in chunks if sent <= fault)
        self.holds.append((hold - last) / 1e6 - 1e3 * EVERY * PERIOD)

    def recovered(self, stage: Stage, good: int, running: int) -> None:
        """Note how many ticks there were from the arrival of a chunk sent at ``good`` to the tick at ``running``."""
        arrived, done = good + TRANSPORT * SECOND, running - TRANSPORT * SECOND
        self.recoveries.append(1 + sum(arrived < stamp < done for stamp in stage.stamps[-200:]))


def episode(stage: Stage, rng: np.random.Generator, figures: Figures) -> None:
    """Move for a third of a second, break something for another, recover."""
    stage.until("RUNNING", time.time_ns())
    time.sleep(rng.uniform(0.3, 0.4))
    kind, fault, holds = FAULTS[rng.integers(len(FAULTS))]
    begin = time.time_ns()
    if kind == "stop":
        stage.call(Trigger, "stop")
        stage.until("STOPPED", begin)
        time.sleep(0.4)  # it brakes
        stage.call(Trigger, "reset")
        stage.enable()
        return
    stage.spoil(kind, fault, int(rng.integers(1000)))
    time.sleep(rng.uniform(0.25, 0.4))
    if holds:
        figures.held(stage.chunks, begin, stage.until("HOLDING", begin))
        count = len(stage.chunks)
        stage.spoil(kind, "none")
        while len(stage.chunks) == count:
            time.sleep(0.005)
        figures.recovered(stage, stage.chunks[count], stage.until("RUNNING", stage.chunks[count]))
    stage.spoil(kind, "none")


def kill(stage: Stage, rng: np.random.Generator, figures: Figures) -> None:
    """A policy's process moves the robot, and dies."""
    begin = time.time_ns()
    child = subprocess.Popen([sys.executable, __file__], start_new_session=True, stdout=subprocess.PIPE, text=True)
    try:
        stage.until("RUNNING", begin)
        time.sleep(rng.uniform(0.5, 0.6))
        stage.until("RUNNING", time.time_ns())
        killed = time.time_ns()
    finally:
        child.kill()
        sent = [int(line) for line in child.communicate()[0].splitlines()]
    hold = stage.until("HOLDING", killed)
    figures.held(sent, killed, hold)
    figures.kills.append((hold - killed) / 1e6)
    time.sleep(1.5)  # until it is known to be gone: the next one is not a second


def process_episodes(
    episodes: int, kills: int, seed: int, violations: Callable[[JointLimits, np.ndarray], int]
) -> dict[str, float]:
    """Fault episodes and killed policies; ``violations`` counts the set points that leave the limits."""
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    command = [sys.executable, "-m", "sage_ros.nodes.safety_filter", "--ros-args", "-p", "autostart:=true"]
    quiet = [*command, "--log-level", "FATAL"]  # it complains of every fault
    child, rng, figures = subprocess.Popen(quiet, start_new_session=True), np.random.default_rng(seed), Figures()
    stage = Stage()
    try:
        stage.enable()
        for _ in tqdm(range(episodes), "fault episodes with processes", disable=None):
            episode(stage, rng, figures)
        stage.leave_the_plan_to_another()
        for _ in tqdm(range(kills), "policies killed", disable=None):
            kill(stage, rng, figures)
        child.send_signal(signal.SIGINT)
        child.wait(PATIENCE)
        time.sleep(0.5)
    finally:
        child.kill()
        child.wait()
        stage.close()
        rclpy.try_shutdown()
    stamps, enabled = np.array(stage.stamps), np.array(stage.enabled)
    silences = np.searchsorted(stamps, enabled[enabled > stamps[0]])  # a filter that is not enabled sends nothing
    jitter = np.abs(np.delete(np.diff(stamps), silences - 1) / 1e6 - 1e3 * PERIOD)
    points = np.array([*[stage.waves.middle] * 3, *stage.commands])
    return {
        f"violations_{episodes}_process_episodes": float(violations(stage.waves.limits, points)),
        "process_set_points": float(len(stage.commands)),
        "process_set_points_lost": float(max(0, stage.sent - len(stage.commands))),
        "hold_ms_p50": float(np.median(figures.holds)),
        "hold_ms_p99": float(np.quantile(figures.holds, 0.99)),
        "kill_to_hold_ms_max": float(np.max(figures.kills)),
        "recovery_ticks_max": float(max(figures.recoveries)),
        "set_point_jitter_ms_p50": float(np.median(jitter)),
        "set_point_jitter_ms_p99": float(np.quantile(jitter, 0.99)),
    }


def policy() -> None:
    """The policy that is killed: plans until then, and prints when (ns)."""
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node, waves = Node("sage_policy", use_global_arguments=False), Waves()
    publisher, alive = node.create_publisher(JointTrajectory, "action", RELIABLE), announce(node)
    end, parent = threading.Event(), os.getppid()

    def plan(_: int) -> None:
        publisher.publish(waves.chunk(now := time.time_ns()))
        print(now, flush=True)
        if os.getppid() != parent:
            end.set()

    repeat(plan, EVERY * PERIOD, end)
    node.destroy_publisher(alive)


if __name__ == "__main__":
    policy()
