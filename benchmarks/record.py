"""Whether the recorder keeps up: a 640x480 camera at 30 Hz with joints and commands at 100 Hz.

This process is camera and robot, the recorder is another, both on the cores that there are. A row must become of every
frame; where none became and joint_gap_sent_ms_max is above 100, this process was kept from publishing joints in time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from harness import arguments, conclude
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from sage_ros.core.timing import SECOND
from sage_ros.episodes import EpisodeDataset
from sage_ros.nodes.lifecycle import LATCHED, values_of
from sage_ros.nodes.messages import image_message, joint_message, to_stamp
from sage_ros.nodes.process import Spinner

NAMES = tuple(f"joint_{k}" for k in range(7))


def pictures(count: int) -> np.ndarray:
    """A textured scene that moves, with a camera's noise: (count, 480, 640, 3) uint8."""
    chance = np.random.default_rng(0)
    scene = np.kron(chance.integers(30, 220, (24, 32, 3)), np.ones((20, 20, 1))).astype(np.int16)
    noise = chance.normal(0, 2, (4, 480, 640, 3)).astype(np.int16)
    return np.stack([np.clip(np.roll(scene, 4 * k, 1) + noise[k % 4], 0, 255).astype(np.uint8) for k in range(count)])


class Robot:
    """Publishes on an absolute schedule: the thread of each rate sleeps until its next message is due."""

    def __init__(self, node: Node) -> None:
        # Deep enough for what the two processes' scheduling may hold up: what is lost then is the recorder's.
        self._images = node.create_publisher(Image, "image_raw", 30)
        self._joints = node.create_publisher(JointState, "joint_states", 100)
        self._commands = node.create_publisher(JointState, "last_command", 100)
        self._node, self.sent = node, {"frames": 0, "joints": 0}
        self.longest_gap, self._measured = 0.0, time.monotonic()  # s between two joint states: our own lateness
        self._pictures = pictures(30)
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(100.0, self._measure)),
                         threading.Thread(target=self._run, args=(30.0, self._shoot))]  # fmt: skip

    def listened_to(self) -> bool:
        return bool(self._images.get_subscription_count() and self._commands.get_subscription_count())

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
            time.sleep(0.1)  # the first frame has joints that are older

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self, rate: float, act: object) -> None:
        due = time.monotonic()
        while not self._end.wait(max(0.0, due - time.monotonic())):
            act(Header(stamp=to_stamp(self._node.get_clock().now().nanoseconds)))  # type: ignore[operator]
            due += 1.0 / rate

    def _shoot(self, header: Header) -> None:
        self._images.publish(image_message(self._pictures[self.sent["frames"] % 30], header))
        self.sent["frames"] += 1

    def _measure(self, header: Header) -> None:
        age = np.full(len(NAMES), (header.stamp.sec % 1000) + 1e-9 * header.stamp.nanosec)
        for publisher in (self._joints, self._commands):
            publisher.publish(joint_message(NAMES, age, header))
        self.sent["joints"] += 1
        gap, self._measured = time.monotonic() - self._measured, time.monotonic()
        self.longest_gap = max(self.longest_gap, gap * (self.sent["joints"] > 1))


def session(folder: Path, seconds: float, lossless: bool) -> dict[str, float]:
    rclpy.init()
    node = Node("robot")
    told: list[DiagnosticArray] = []
    counts: dict[str, str] = {}

    def on_diagnostics(message: DiagnosticArray) -> None:
        if message.status[0].name.startswith("recorder"):
            counts.update(values_of(message.status[0]))

    node.create_subscription(DiagnosticArray, "recorder/episode", told.append, LATCHED)
    node.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, 10)
    robot, spinner = Robot(node), Spinner(node)
    given = [f"dataset:='{folder}'", "autostart:=true", "fps:=30.0", "task:=move", f"lossless:={str(lossless).lower()}"]
    given += ["preset:=ultrafast"] if lossless else []
    command = [sys.executable, "-m", "sage_ros.nodes.recorder", "--ros-args", *(w for g in given for w in ("-p", g))]
    process = subprocess.Popen(command)
    ask = {name: node.create_client(Trigger, f"recorder/{name}") for name in ("start", "stop")}

    def call(name: str) -> Trigger.Response:
        ask[name].wait_for_service(30.0)
        future = ask[name].call_async(Trigger.Request())
        while not future.done():
            time.sleep(0.01)
        return future.result()

    try:
        while not robot.listened_to():
            time.sleep(0.05)
        time.sleep(2.0)  # until it has found us too
        answer = call("start")
        if not answer.success:
            raise RuntimeError(answer.message)
        robot.start()
        time.sleep(seconds)
        robot.stop()
        time.sleep(1.0)
        asked = time.monotonic()
        answer = call("stop")
        saving = time.monotonic() - asked
        if not answer.success:
            raise RuntimeError(answer.message)
        time.sleep(1.5)  # for the last diagnostics
    finally:
        process.terminate()
        process.wait(60)
        spinner.stop()
        node.destroy_node()
        rclpy.shutdown()
    episode = EpisodeDataset(folder)[0]
    spacing = np.diff(episode.state[:, 0])
    record = json.loads((folder / "meta/episodes.jsonl").read_text())
    return {
        "frames_sent": robot.sent["frames"], "rows_missing": robot.sent["frames"] - len(episode),
        "rows_left_out": record.get("left_out", 0) + record.get("overrun", 0),
        "joint_states_missing": robot.sent["joints"] - int(counts["joint_states"]),
        "joint_gap_sent_ms_max": robot.longest_gap * 1e3,
        "row_spacing_ms_p99": float(np.quantile(np.abs(spacing), 0.99) * SECOND / 1e6),
        "saving_s_per_minute": saving * 60.0 / seconds,
        "size_mb_per_minute": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6 * 60.0 / seconds,
    }  # fmt: skip


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a session (%(default)s)")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, lossless in (("", False), ("lossless_", True)):
            found = session(Path(scratch) / f"{name}set", options.seconds, lossless)
            figures |= {name + key: value for key, value in found.items()}
    bars = dict.fromkeys(("rows_missing", "joint_states_missing", "lossless_rows_missing"), ("<=", 0.0))
    conclude("record", figures, bars, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
