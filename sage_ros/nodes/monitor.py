"""monitor: watches a running pipeline from outside, sums up what it saw, writes a report."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from sage_ros.core.figures import Figures, format_table, milliseconds
from sage_ros.core.session import Session
from sage_ros.core.timing import SECOND
from sage_ros.core.trials import Moment
from sage_ros.nodes.lifecycle import EVENTS, LATCHED, values_of
from sage_ros.nodes.messages import chunk_from, map_from, nanoseconds, positions_from, rgb_from
from sage_ros.nodes.process import Spinner, StopRequest

# As the publishers have them, but with deeper queues: an observer must not lose what the pipeline did not.
DEEP = QoSProfile(depth=500, reliability=ReliabilityPolicy.RELIABLE)
IMAGES = QoSProfile(depth=30, reliability=ReliabilityPolicy.RELIABLE)
THUMBNAIL = 256  # pixels of the longer side at most
QUIET, LONGEST = 0.4, 2.0  # s to wait for the last messages once the replay has ended
POLICY = 2.0  # s to wait for somebody who publishes actions


class Monitor(Node):
    """Listens to a pipeline of its namespace; publishes nothing but its own parameters' events.

    ``line`` is the summary of the moment, ``session`` holds everything; it belongs to the thread that spins the node.
    """

    def __init__(self, steps: int = 0, refresh: float = 0.5, **kwargs: Any) -> None:
        super().__init__("monitor", **kwargs)
        self.session = Session(time.time_ns(), steps)
        self.line = ""
        self._measured: dict[str, float] = {}
        self._commanded: dict[str, float] = {}
        hear = self.create_subscription
        hear(JointState, "joint_states", self._guard(self._on_joints), DEEP)
        hear(JointState, "demo/action", self._guard(self._on_demonstration), DEEP)
        hear(JointTrajectory, "action", self._guard(self._on_action), DEEP)
        hear(Image, "trust", self._guard(self._on_trust), DEEP)
        hear(Image, "attention/weights", self._guard(self._on_weights), DEEP)
        hear(String, "task", self._on_task, LATCHED)
        hear(DiagnosticArray, "metabolic_state", self._guard(self._on_metabolism), LATCHED)
        hear(DiagnosticArray, "/diagnostics", self._guard(self._on_diagnostics), DEEP)
        hear(JointState, "last_command", self._guard(self._on_command), DEEP)
        hear(DiagnosticArray, "sim_robot/episode", self._guard(self._on_episode), LATCHED)
        hear(String, "replayer/events", self._guard(self._on_event), EVENTS)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(refresh, self._summarise, clock=steady)
        self._opening = self.create_timer(0.02, self._open_eyes, clock=steady)

    def _open_eyes(self) -> None:
        """Listen to the images too, by which a replayer knows that it may begin: not before the actions are heard."""
        waited = (time.time_ns() - self.session.started) / SECOND
        if self.count_publishers("action") or waited > POLICY:
            self._opening.cancel()
            self.create_subscription(Image, "image_raw", self._guard(self._on_image), IMAGES)

    def _guard(self, callback: Callable[[Any], None]) -> Callable[[Any], None]:
        """A message that cannot be read is counted, and does not end the watch."""

        def guarded(message: Any) -> None:
            try:
                callback(message)
            except (ValueError, LookupError, TypeError) as problem:
                self.session.refused += 1
                self.get_logger().warning(f"left out: {problem}", throttle_duration_sec=5.0)

        return guarded

    def _on_image(self, message: Image) -> None:
        now, stamp = time.time_ns(), nanoseconds(message.header.stamp)
        wanted, trial = self.session.frame(stamp, now), self.session.trials.current
        if not wanted and (trial is None or not trial.album.wants(trial.frames)):
            return self.session.trials.skip()
        frame = rgb_from(message)
        stride = -(-max(frame.shape) // THUMBNAIL)
        small = frame[::stride, ::stride].copy()
        if wanted:
            self.session.album.add(now, stamp, small)
        self.session.trials.picture(now, stamp, small)

    def _on_joints(self, message: JointState) -> None:
        positions = positions_from(message)
        self._measured = dict(zip(message.name, positions.tolist(), strict=True))
        self.session.joints(nanoseconds(message.header.stamp), time.time_ns(), message.name, positions)

    def _on_command(self, message: JointState) -> None:
        self._commanded = dict(zip(message.name, positions_from(message).tolist(), strict=True))

    def _on_episode(self, message: DiagnosticArray) -> None:
        v = values_of(message.status[0])
        away = [float(v[f"object_{axis}"]) - float(v[f"plate_{axis}"]) for axis in "xy"]
        height, distance = float(v["object_z"]), math.hypot(*away)
        moment = Moment(float(v["time"]), v["success"] == "True", height, distance, self._measured, self._commanded)
        self.session.trials.add(int(v["seed"]), moment)

    def _on_demonstration(self, message: JointState) -> None:
        now, positions = time.time_ns(), positions_from(message)
        self.session.demonstrated(nanoseconds(message.header.stamp), now, message.name, positions)

    def _on_action(self, message: JointTrajectory) -> None:
        now, positions = time.time_ns(), chunk_from(message)
        if positions.ndim != 2 or positions.shape[1] != len(message.joint_names):
            raise ValueError(f"a trajectory of {len(message.joint_names)} joints has positions {positions.shape}")
        step = message.points[0].time_from_start
        period = step.sec + step.nanosec / 1e9
        rate = 1.0 / period if period > 0 else 0.0
        self.session.chunk(nanoseconds(message.header.stamp), now, message.joint_names, positions, rate)

    def _on_trust(self, message: Image) -> None:
        self.session.album.add_trust(nanoseconds(message.header.stamp), map_from(message))

    def _on_weights(self, message: Image) -> None:
        self.session.confidence.add(time.time_ns(), float(map_from(message).sum()))

    def _on_task(self, message: String) -> None:
        self.session.task = message.data

    def _on_metabolism(self, message: DiagnosticArray) -> None:
        status = message.status[0]
        values = values_of(status)
        self.session.metabolism(time.time_ns(), status.message, float(values["energy"]), values["reason"])

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            near = status.hardware_id.rsplit("/", 1)[0] == self.get_namespace().rstrip("/")
            if near and status.name.endswith(": pipeline"):
                values = values_of(status)
                self.session.node(time.time_ns(), status.hardware_id, status.message, values)

    def _on_event(self, message: String) -> None:
        now, about = time.time_ns(), json.loads(message.data)
        match about["event"]:
            case "begin":
                task, rows, fps = about["task"], int(about["rows"]), float(about["fps"])
                self.session.begin(now, int(about["episode"]), task, rows, fps, about.get("dataset", ""))
            case "first_row":
                self.session.first_row(int(about["stamp"]))
            case "end":
                self.session.end()
            case "finished":
                self.session.finished = now
            case "failed":
                self.session.finished, self.session.failure = now, about["error"]

    def _summarise(self) -> None:
        self.line = live_line(self.session, time.time_ns())


def live_line(session: Session, now: int) -> str:
    """The moment in one line."""
    s = session
    if not (s.frames or s.actions or s.state):
        return f"nothing heard for {(now - s.started) / SECOND:.0f} s: waiting for image_raw, action, metabolic_state"
    parts = [s.state or "no metabolic state"]
    if s.energy.last is not None:
        parts.append(f"energy {s.energy.last:.0%}")
    parts.append(f"{_per_second(s.recent_frames, now):4.1f} frames/s")
    parts.append(f"{_per_second(s.recent_actions, now):4.1f} actions/s")
    latest = s.latencies()[1][-200:]
    parts.append(f"latency p50 {milliseconds(float(np.median(latest)) if len(latest) else None)}")
    if s.confidence.last is not None:
        parts.append(f"confidence {s.confidence.last:.2f}")
    recording = s.recordings[-1] if s.recordings else None
    if recording is not None and recording.episode is not None and recording.rows:
        done = round(10 * min(recording.rows_seen / recording.rows, 1.0))
        bar = "#" * done + "-" * (10 - done)
        parts.append(f"episode {recording.episode} [{bar}] {recording.rows_seen}/{recording.rows}")
    if (trial := s.trials.current) is not None:
        where = "on the plate" if trial.placed is not None else f"cube at {100 * trial.moments[-1].height:.0f} cm"
        parts.append(f"world seed {trial.seed}, {trial.seconds:.1f} s, {where}")
    if s.failure:
        parts.append(f"replay failed: {s.failure}")
    return " | ".join(parts)


def _per_second(times: Any, now: int, window: float = 2.0) -> float:
    """Arrivals per second over the last ``window`` s."""
    recent = [t for t in times if now - t < window * SECOND]
    return (len(recent) - 1) * SECOND / (recent[-1] - recent[0]) if len(recent) > 1 and recent[-1] > recent[0] else 0.0


class LiveLine:
    """Refreshes one line of a terminal, or prints a line every 2 s where there is none."""

    def __init__(self) -> None:
        self._terminal, self._next = sys.stderr.isatty(), 0.0

    def show(self, line: str) -> None:
        if self._terminal:
            width = shutil.get_terminal_size().columns
            print(f"\r\x1b[K{line[: width - 1]}", end="", file=sys.stderr, flush=True)
        elif line and time.monotonic() >= self._next:
            self._next = time.monotonic() + 2.0
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="monitor",
        description="Watch a running sage_ros pipeline without taking part in it; Ctrl-C ends the watch with a table.",
        epilog="Anything after --ros-args goes to ROS, such as -r __ns:=/robot. Exit code 1: no action was seen.",
    )
    add = parser.add_argument
    add("--report", default="", metavar="DIR", help="write report.html, its pictures and session.json into this folder")
    add("--until-finished", action="store_true", help="end by itself when the replayer has played everything")
    add("--until-placed", type=float, default=0.0, metavar="S",
        help="end once the simulated robot has placed the cube, or after S seconds; not placed: exit code 1")
    add("--quiet", action="store_true", help="no live line, only the table at the end")
    add("--steps", type=int, default=0, metavar="N",
        help="rows of each episode that the action error is over, 150 in GR00T's own evaluation; 0: all (default: 0)")
    add("--checkpoint", default="", metavar="DIR",
        help="student checkpoint folder: says beside each episode whether the student was trained on it")
    options = parser.parse_args(args)
    if options.steps < 0:
        parser.error(f"--steps must be positive, or 0 for all rows, got {options.steps}")
    return options


def main(args: list[str] | None = None) -> int:
    argv = sys.argv if args is None else ["monitor", *args]
    options = parse(remove_ros_args(argv)[1:])
    try:
        metrics = _metrics(Path(options.checkpoint).expanduser()) if options.checkpoint else {}
        folder = _writable(Path(options.report).expanduser()) if options.report else None
    except (OSError, ValueError) as error:
        print(f"monitor: {error}", file=sys.stderr)
        return 1
    stop = StopRequest()
    rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
    monitor = Monitor(options.steps)
    where = f" in {monitor.get_namespace()}, ROS domain {os.environ.get('ROS_DOMAIN_ID', '0')}"
    spinner = Spinner(monitor)
    try:
        _watch(monitor, spinner, stop, options)
    finally:
        spinner.stop()
        monitor.destroy_node()
        rclpy.try_shutdown()
    if spinner.error is not None:
        raise spinner.error
    session = monitor.session
    session.finish(time.time_ns())
    if metrics:
        label_episodes(session, metrics)
    figures = session.figures()
    print(format_table(figures, where), flush=True)
    if folder is not None:
        from sage_ros.report import write_report  # matplotlib takes a second to load: not before the watch

        print(f"\nreport: {write_report(folder, session, figures)}", flush=True)
    return _verdict(figures, session, options.until_placed)


def _watch(monitor: Monitor, spinner: Spinner, stop: StopRequest, options: argparse.Namespace) -> None:
    """Until asked to stop, or the replay has ended and its last actions are in."""
    live = LiveLine()
    while spinner.alive and not stop.wait(0.1):
        if not options.quiet:
            live.show(monitor.line)
        trial = monitor.session.trials.current
        if options.until_placed and trial and (trial.placed is not None or trial.seconds > options.until_placed):
            break
        ended = monitor.session.finished
        if options.until_finished and ended is not None:
            waited = (time.time_ns() - ended) / SECOND
            if waited > LONGEST or (waited > QUIET and not monitor.session.waiting):
                break
    live.close()


def _verdict(figures: Figures, session: Session, placing: float) -> int:
    """The exit code, with the reason where it is not 0."""
    if session.failure:
        print(f"monitor: the replay failed: {session.failure}", file=sys.stderr)
        return 1
    if placing and figures.trials and figures.trials[-1].placed is None:
        print(f"monitor: the cube was not placed within {figures.trials[-1].seconds:.1f} s", file=sys.stderr)
        return 1
    if figures.actions_out:
        return 0
    if not figures.frames_in:
        hint = "no frame came on image_raw either: is a replayer or camera active, in this namespace and ROS domain?"
    elif not figures.frames_working:
        hint = "frames came, but no task: publish one on the topic task"
    elif session.state in ("REST", "DREAM", "CRISIS"):
        hint = f"the metabolic state is {session.state}, in which the policy holds still"
    else:
        hint = "is sage_policy active, and does it get joint_states?"
    print(f"monitor: no action was seen: {hint}", file=sys.stderr)
    return 1


def _writable(folder: Path) -> Path:
    """The folder, made. Raises OSError before the watch rather than after it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: may not be written: choose another folder for --report")
    return folder


def _metrics(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's metrics. Raises ValueError or OSError naming the file."""
    path = checkpoint / "metrics.json"
    try:
        metrics = json.loads(path.read_text("utf-8"))
        if isinstance(metrics["split"], dict) and isinstance(metrics["dataset"]["fingerprint"], str):
            return dict(metrics)
    except FileNotFoundError:
        raise ValueError(f"{path}: missing: give the folder of a student checkpoint as --checkpoint") from None
    except (ValueError, LookupError, TypeError):
        pass
    raise ValueError(f"{path}: does not say which data set and episodes were used: train again with `distil`")


def label_episodes(session: Session, metrics: dict[str, Any]) -> None:
    """Say of each episode whether the student of ``metrics`` was trained on it, or why that cannot be said."""
    if not any(recording.episode is not None for recording in session.recordings):
        return
    folders = {Path(recording.dataset) for recording in session.recordings if recording.dataset}
    if len(folders) != 1 or not (folder := folders.pop()).is_dir():
        session.remarks.append("trained on or held out: unknown, the data set that was replayed is not on this machine")
        return
    from sage_ros.episodes.dataset import EpisodeDataset

    if EpisodeDataset(folder, video=False).fingerprint() != metrics["dataset"]["fingerprint"]:
        session.remarks.append("the student was trained on another data set: all of these episodes are new to it")
        return
    titles = {"train": "trained on", "validation": "validation", "held_out": "held out"}
    session.split = {int(i): title for part, title in titles.items() for i in metrics["split"].get(part, [])}


if __name__ == "__main__":
    sys.exit(main())
