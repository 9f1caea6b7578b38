"""How exactly the replayer keeps time, and how fast it can go.

A replayer of its own process plays made episodes of 256x256 to a listener in this one, which notes when every message
arrives by the steady clock that both share:

jitter      at rate 1 (20 Hz): how far the time between two joint states, and between two images, is off 50 ms
drift       of ten minutes at rate 1: where the last hundred rows are on the schedule, less where the first hundred are
rate 10     how far the time that all rows take is off a tenth
unthrottled rate 1000, which asks for 20,000 rows/s: images published per second while this process takes them
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from harness import arguments, conclude
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from sage_ros.core.joints import JointLayout
from sage_ros.episodes import EpisodeWriter
from sage_ros.nodes.lifecycle import EVENTS
from sage_ros.nodes.process import Spinner

FPS = 20
JOINTS = JointLayout(tuple(f"joint_{k}" for k in range(7)))
DEEP = QoSProfile(depth=500)


def make(folder: Path, rows: int, size: int) -> Path:
    """A data set of one episode; every row's state says its number."""
    chance = np.random.default_rng(0)
    picture = np.kron(chance.integers(0, 255, (8, 8, 3), dtype=np.uint8), np.ones((size // 8, size // 8, 1), np.uint8))
    with EpisodeWriter(folder, FPS, "made", JOINTS, {"front": (size, size)}) as writer:
        state = np.repeat(np.arange(rows, dtype=np.float64)[:, None], len(JOINTS), 1)
        writer.add(state, state, "play", {"front": np.stack([np.roll(picture, 3 * row, 1) for row in range(rows)])})
    return folder


def play(folder: Path, rate: float, images: bool = True) -> dict[str, np.ndarray]:
    """Replay it once: steady arrival times (s) of joint states and images, and the stamps (s) of the images."""
    rclpy.init()
    node = Node("listener")
    found: dict[str, list[float]] = {"joints": [], "images": [], "stamps": []}
    events: list[str] = []

    def on_image(message: Image) -> None:
        found["images"].append(time.monotonic())
        found["stamps"].append(message.header.stamp.sec + 1e-9 * message.header.stamp.nanosec)

    def on_joints(_: JointState) -> None:
        found["joints"].append(time.monotonic())

    if images:
        node.create_subscription(Image, "image_raw", on_image, DEEP)
    node.create_subscription(JointState, "joint_states", on_joints, DEEP)
    node.create_subscription(String, "replayer/events", lambda m: events.append(json.loads(m.data)["event"]), EVENTS)
    spinner = Spinner(node)
    given = [f"dataset:='{folder}'", "autostart:=true", f"rate:={rate}", f"listeners:={int(images)}"]
    given += ["qos_overrides./image_raw.publisher.depth:=500", "qos_overrides./joint_states.publisher.depth:=500"]
    command = [sys.executable, "-m", "sage_ros.nodes.replayer", "--ros-args", *(w for g in given for w in ("-p", g))]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        while not {"finished", "failed"} & set(events):
            if process.poll() is not None:
                raise RuntimeError("the replayer ended by itself: see its error above")
            time.sleep(0.1)
        time.sleep(1.0)  # what is still on its way
    finally:
        process.terminate()
        process.wait(20)
        spinner.stop()
        node.destroy_node()
        rclpy.shutdown()
    return {name: np.array(times) for name, times in found.items()}


def off(times: np.ndarray, rate: float = 1.0) -> np.ndarray:
    """How far every interval is off the schedule's (ms)."""
    return np.abs(np.diff(times) - 1.0 / (FPS * rate)) * 1e3


def residuals(times: np.ndarray) -> np.ndarray:
    """Where every row is on the schedule (ms), by the first one's place."""
    return (times - times[0] - np.arange(len(times)) / FPS) * 1e3


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="half a minute of drift instead of ten")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        rows = 600
        folder = make(Path(scratch) / "pictures", rows, 256)
        found: dict[str, Any] = play(folder, 1.0)
        figures["rows_lost"] = 2 * rows - len(found["joints"]) - len(found["images"])
        for name in ("joints", "images"):
            figures[f"jitter_{name}_ms_p50"] = float(np.median(off(found[name])))
            figures[f"jitter_{name}_ms_p99"] = float(np.quantile(off(found[name]), 0.99))
        found = play(folder, 10.0)
        took = found["joints"][-1] - found["joints"][0]
        figures["rate_10_off_percent"] = abs(took * 10.0 * FPS / (rows - 1) - 1.0) * 100
        found = play(folder, 1000.0)
        figures["unthrottled_frames_per_s"] = (len(found["stamps"]) - 1) / np.ptp(found["stamps"])
        figures["unthrottled_frames_lost"] = rows - len(found["stamps"])
        print("drift: this takes its time", flush=True)
        folder = make(Path(scratch) / "long", 600 if options.quick else 12_000, 16)
        found = play(folder, 1.0, images=False)
        place = residuals(found["joints"])
        figures["drift_s"] = len(place) / FPS
        figures["drift_ms"] = abs(float(np.median(place[-100:]) - np.median(place[:100])))
    bars = {
        "jitter_joints_ms_p99": ("<=", 2.0),
        "rate_10_off_percent": ("<=", 1.0),
        "unthrottled_frames_per_s": (">=", 400.0),
        "drift_ms": ("<=", 1.0),
        "rows_lost": ("<=", 0.0),
    }
    conclude("replay", figures, bars, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
