"""How long a camera frame takes to become an action, and how much of that is ROS.

Replays episodes of the package at rate 1 (20 Hz, 256x256) through the pipeline as a user starts it, in turn:

composed, processes   all nodes in one process, and a process per node, while ``monitor`` listens to every topic from a
                      process of its own and measures from the frame's stamp to the arrival of the action;
unobserved            composed, without that load: from the stamp to the action's publication, as ``sage_policy`` says
                      it in /diagnostics. What ROS adds is this less the nodes' own computing in the same session;
without ROS           the same encoder, trust filter and student, called one after the other at the same 20 Hz.

Figures are medians over the rounds, but for the frames lost, which are those of all rounds.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any

import numpy as np
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray
from harness import arguments, conclude
from rclpy.node import Node
from std_msgs.msg import String

from sage_ros.core.chunks import Observation
from sage_ros.core.irp import Budget
from sage_ros.core.session import PATH
from sage_ros.core.trust import TrustAttention
from sage_ros.episodes import EpisodeDataset
from sage_ros.nodes.lifecycle import EVENTS, RELIABLE
from sage_ros.paths import CHECKPOINT, EPISODES
from sage_ros.policy.checkpoint import load_checkpoint

WAYS: dict[str, list[str]] = {"composed": [], "processes": ["--processes"]}


def session(way: list[str], episodes: str) -> dict[str, Any]:
    """The figures of one replay. Raises CalledProcessError if the pipeline fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sage_ros.nodes.pick_place", "--episodes", episodes, "--report", folder, *way]
        subprocess.run(command, check=True, capture_output=True, text=True)
        figures: dict[str, Any] = json.loads((Path(folder) / "session.json").read_text())
        return figures


def unobserved(episodes: str) -> tuple[float, float]:
    """Median latency (ms) by the policy's own diagnostics, and the part of it that is not the nodes' computing."""
    pipeline = subprocess.Popen([sys.executable, "-m", "sage_ros.nodes.pick_place", "--episodes", episodes],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    rclpy.init()
    node, finished, values = Node("observer"), Event(), dict[str, dict[str, str]]()

    def on_event(message: String) -> None:
        if json.loads(message.data)["event"] == "finished":
            values.clear()  # what comes from now on is of the whole replay
            finished.set()

    def on_diagnostics(message: DiagnosticArray) -> None:
        for status in message.status:
            name, _, what = status.name.partition(": ")
            if what == "pipeline":  # the others are of its topics
                values[name] = {pair.key: pair.value for pair in status.values}

    node.create_subscription(String, "replayer/events", on_event, EVENTS)
    node.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, RELIABLE)
    try:
        while not finished.is_set() or not set(PATH) <= set(values):
            if pipeline.poll() is not None:
                raise RuntimeError("the pipeline ended by itself: run `pick_place` to see why")
            rclpy.spin_once(node, timeout_sec=0.1)
    finally:
        node.destroy_node()
        rclpy.shutdown()
        pipeline.send_signal(signal.SIGINT)
        pipeline.wait(30)
    latency = float(values["sage_policy"]["latency_ms_p50"])
    return latency, latency - sum(float(values[name]["own_ms_p50"]) for name in PATH)


def direct(episode: int) -> list[float]:
    """Latencies (ms) of the same parts on the same frames, called without ROS at the episode's rate."""
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(CHECKPOINT)
    encoder, trust = checkpoint.load_encoder(), TrustAttention(checkpoint.calibration)
    dataset = EpisodeDataset(EPISODES)
    demo = dataset[dataset.indices.index(episode)]
    frames, taken = demo.frames(), []
    for _ in range(5):
        encoder.encode(frames[:1])
    due = time.perf_counter()
    for row, frame in enumerate(frames):
        due += 1.0 / demo.fps
        time.sleep(max(due - time.perf_counter(), 0.0))
        start = time.perf_counter()
        tokens = trust.update(encoder.refine(frame, Budget()).state, 1.0 / demo.fps).tokens
        last = demo.action[row - 1] if row else None
        checkpoint.policy.infer(Observation(tokens, demo.state[row], last, demo.task))
        taken.append((time.perf_counter() - start) * 1e3)
    return taken


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="sessions of either way (%(default)s)")
    parser.add_argument("--episodes", default="2,3", help="what a session replays (%(default)s)")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    alone, without = [], []
    for number in range(1, options.rounds + 1):
        without.append(float(np.median(direct(int(options.episodes.split(",")[0])))))
        print(f"round {number} without ROS p50 {without[-1]:6.2f} ms", flush=True)
        alone.append(unobserved(options.episodes))
        print(f"round {number} unobserved  p50 {alone[-1][0]:6.2f} ms  ROS adds {alone[-1][1]:.2f} ms", flush=True)
        for way, flags in WAYS.items():
            found[way].append(session(flags, options.episodes))
            latency = found[way][-1]["latency_ms"]
            print(f"round {number} {way:<11} p50 {latency['p50']:6.2f} ms  p99 {latency['p99']:6.2f} ms", flush=True)

    figures: dict[str, float] = {}
    for way, sessions in found.items():
        for quantile in ("p50", "p99"):
            figures[f"{way}_{quantile}_ms"] = median(s["latency_ms"][quantile] for s in sessions)
        rows = sum(episode["rows"] for s in sessions for episode in s["episodes"])
        figures[f"{way}_frames_lost"] = rows - sum(s["actions_out"] for s in sessions)
    figures["unobserved_p50_ms"] = median(latency for latency, _ in alone)
    figures["ros_adds_ms"] = median(added for _, added in alone)
    figures["without_ros_p50_ms"] = median(without)
    figures["processes_over_composed"] = figures["processes_p50_ms"] / figures["composed_p50_ms"]
    bars = {
        "composed_p50_ms": ("<=", 10.0),
        "composed_p99_ms": ("<=", 40.0),
        "processes_p50_ms": ("<=", 20.0),
        "ros_adds_ms": ("<=", 2.0),
        "composed_frames_lost": ("<=", 0.0),
        "processes_frames_lost": ("<=", 0.0),
    }
    conclude("latency", figures, bars, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
