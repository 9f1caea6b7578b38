"""The monitor beside a made pipeline, over real topics: what it counts, what it says and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from episode_sets import make
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header, String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from sage_ros.core.chunks import ActionChunk
from sage_ros.episodes import EpisodeDataset
from sage_ros.nodes import monitor as monitor_module
from sage_ros.nodes.lifecycle import EVENTS, LATCHED, RELIABLE, STREAM
from sage_ros.nodes.messages import image_message, joint_message, map_message, to_stamp, trajectory_message
from sage_ros.nodes.monitor import Monitor, label_episodes, live_line, main
from sage_ros.nodes.process import Spinner

NAMES = ("pan", "lift", "grip")
ROWS, H, FPS = 40, 16, 20.0
ACTION = np.linspace(0.0, 1.0, ROWS)[:, None] * np.array([1.0, -2.0, 0.5])
STATE = ACTION - 0.1
OFF = 0.02  # by which every predicted joint is wrong
ERROR = OFF**2
HOLD = float(np.mean([(STATE[t - t % H] - ACTION[t]) ** 2 for t in range(ROWS)]))
LAST = float(np.mean([((ACTION[t - t % H - 1] if t >= H else STATE[0]) - ACTION[t]) ** 2 for t in range(ROWS)]))


def until(condition: Callable[[], Any], what: str, timeout: float = 30.0) -> None:
    """Wait for what another thread or process does."""
    deadline, pause = time.monotonic() + timeout, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s in vain for {what}"
        pause.wait(0.002)


class Source(Node):
    """Everything that a pipeline with a replayer publishes, by hand."""

    def __init__(self) -> None:
        super().__init__("source", use_global_arguments=False)
        make_one = self.create_publisher
        self.images = make_one(Image, "image_raw", STREAM)
        self.joints = make_one(JointState, "joint_states", RELIABLE)
        self.demo = make_one(JointState, "demo/action", RELIABLE)
        self.actions = make_one(JointTrajectory, "action", RELIABLE)
        self.trust = make_one(Image, "trust", STREAM)
        self.weights = make_one(Image, "attention/weights", STREAM)
        self.tasks = make_one(String, "task", LATCHED)
        self.states = make_one(DiagnosticArray, "metabolic_state", LATCHED)
        self.diagnostics = make_one(DiagnosticArray, "/diagnostics", RELIABLE)
        self.events = make_one(String, "replayer/events", EVENTS)
        self.all = (
            self.images, self.joints, self.demo, self.actions, self.trust, self.weights, self.tasks, self.states,
            self.diagnostics, self.events,
        )

    def found(self) -> bool:
        return all(p.get_subscription_count() > 0 for p in self.all)

    def emit(self, event: str, **about: object) -> None:
        self.events.publish(String(data=json.dumps({"event": event, **about})))

    def begin(self, task: str = "pick") -> None:
        self.emit("begin", episode=7, rows=ROWS, fps=FPS, task=task)
        self.tasks.publish(String(data=task))

    def metabolism(self, state: str, reason: str, energy: float = 0.9) -> None:
        status = DiagnosticStatus(name="metabolic_manager: state", message=state)
        status.values = [KeyValue(key="energy", value=str(energy)), KeyValue(key="reason", value=reason)]
        self.states.publish(DiagnosticArray(status=[status]))

    def report(self, name: str, **values: str) -> None:
        status = DiagnosticStatus(name=f"{name}: pipeline", message="active", hardware_id=f"/{name}")
        status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
        self.diagnostics.publish(DiagnosticArray(status=[status]))

    def row(self, row: int, answer: bool = True) -> None:
        """One row, and its action at once."""
        stamp = self.get_clock().now().to_msg()
        header = Header(stamp=stamp)
        self.joints.publish(joint_message(NAMES, STATE[row], header))
        self.demo.publish(joint_message(NAMES, ACTION[row], header))
        self.images.publish(image_message(np.full((32, 48, 3), 3 * row, np.uint8), header))
        future = ACTION[np.minimum(row + np.arange(H), ROWS - 1)] + OFF
        if answer:
            self.actions.publish(trajectory_message(NAMES, ActionChunk(future, FPS), header))
        self.trust.publish(map_message(np.full((4, 4), 0.75, np.float32), header))
        self.weights.publish(map_message(np.full((4, 4), 0.75 / 16, np.float32), header))


    def play_at(self, rate: float) -> None:
        """The made episode at ``rate`` rows per second of a timer, as a replayer does."""
        rows, over = iter(range(ROWS)), threading.Event()

        def tick() -> None:
            row = next(rows, None)
            if row is not None:
                return self.row(row)
            over.set()

        self.metabolism("WAKE", "task")
        self.begin()
        timer = self.create_timer(1.0 / rate, tick)
        spinner = Spinner(self)
        assert over.wait(60.0)
        spinner.stop()
        self.destroy_timer(timer)
        self.emit("end")
        self.emit("finished")


@pytest.fixture
def source() -> Iterator[Source]:
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = Source()
    yield node
    node.destroy_node()
    rclpy.try_shutdown()


@pytest.fixture
def monitor(source: Source) -> Iterator[Monitor]:
    node = Monitor(refresh=0.05)
    spinner = Spinner(node)
    until(source.found, "the monitor's subscriptions")
    yield node
    spinner.stop()
    node.destroy_node()
    assert spinner.error is None


def play(source: Source, monitor: Monitor, unanswered: tuple[int, ...] = ()) -> None:
    """The made episode, each row once the monitor has the one before."""
    session = monitor.session
    source.metabolism("WAKE", "task")
    source.begin()
    until(lambda: session.recordings and session.task and session.state, "the episode's announcement")
    for row in range(ROWS):
        source.row(row, answer=row not in unanswered)
        until(lambda n=row + 1: session.frames == n and session.recordings[-1].rows_seen == n, f"row {row}")
    source.emit("end")
    source.emit("finished")
    until(lambda: session.finished is not None and session.actions == ROWS - len(unanswered), "the last action")


def start(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sage_ros.nodes.monitor", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_made_session_gives_its_known_figures(source: Source, monitor: Monitor) -> None:
    for name, own in (("vision_irp", "2.0"), ("trust_attention", "0.5"), ("sage_policy", "1.5")):
        source.report(name, own_ms_p50=own, busy_s="0.1", pid="1", frames_in="40")
    play(source, monitor, unanswered=(5, 21))
    until(lambda: len(monitor.session.nodes) == 3, "the diagnostics")
    until(lambda: all(p.trust is not None for p in monitor.session.album.pictures), "the trust maps")
    monitor.session.finish(time.time_ns() + 10**9)
    figures = monitor.session.figures()
    assert (figures.frames_in, figures.actions_out, figures.dropped, figures.frames_missed) == (ROWS, ROWS - 2, 2, 0)
    (score,) = figures.episodes
    assert (score.episode, score.rows_seen, score.chunks, score.note) == (7, ROWS, 3, "")
    np.testing.assert_allclose([score.policy, score.hold_state, score.last_action], [ERROR, HOLD, LAST])
    assert figures.own_ms == {"vision_irp": 2.0, "trust_attention": 0.5, "sage_policy": 1.5}
    p50, p99 = figures.latency_ms.p50, figures.latency_ms.p99
    assert p50 is not None and p99 is not None and 0 < p50 <= p99 < 5000
    assert "header stamp" in figures.latency_ms.since
    assert [(s.state, s.reason) for s in figures.metabolism] == [("WAKE", "task")]
    assert monitor.session.confidence.last == pytest.approx(0.75)
    pictures = monitor.session.album.pictures
    assert 6 <= len(pictures) <= 12 and pictures[0].image.shape == (32, 48, 3)
    assert pictures[1].image[0, 0, 0] % 3 == 0 and pictures[0].trust is not None


def test_the_live_line_says_how_far_it_is(source: Source, monitor: Monitor) -> None:
    assert "waiting for image_raw" in live_line(monitor.session, time.time_ns())
    play(source, monitor)
    until(lambda: "40/40" in monitor.line and "confidence" in monitor.line, "the summary")
    for part in ("WAKE", "energy 90%", "frames/s", "actions/s", "latency p50", "confidence 0.75", "episode 7 [####"):
        assert part in monitor.line


def test_messages_that_cannot_be_read_are_counted_and_the_watch_goes_on(source: Source, monitor: Monitor) -> None:
    narrow = JointTrajectory(joint_names=list(NAMES), points=[JointTrajectoryPoint(positions=[1.0, 2.0])])
    source.actions.publish(narrow)
    source.actions.publish(JointTrajectory(joint_names=list(NAMES)))
    source.events.publish(String(data="no JSON"))
    source.events.publish(String(data="[1]"))
    source.joints.publish(JointState(name=["pan"], position=[float("nan")]))
    source.states.publish(DiagnosticArray())
    until(lambda: monitor.session.refused == 6, "six refusals")
    play(source, monitor)
    assert any("6 messages" in note for note in monitor.session.figures().notes)


def test_other_robots_diagnostics_are_not_ours(source: Source, monitor: Monitor) -> None:
    source.report("other/vision_irp", own_ms_p50="9.0")
    source.report("vision_irp", own_ms_p50="2.0")
    until(lambda: monitor.session.nodes, "the diagnostics")
    assert list(monitor.session.nodes) == ["/vision_irp"]


def test_stamps_of_simulated_time_are_not_taken_for_wall_time(source: Source, monitor: Monitor) -> None:
    for k in range(5):
        header = Header(stamp=to_stamp(10**9 + k * 50_000_000))
        source.images.publish(image_message(np.zeros((4, 4, 3), np.uint8), header))
        until(lambda n=k + 1: monitor.session.frames == n, "the frame")
        source.actions.publish(trajectory_message(NAMES, ActionChunk(ACTION[:H], FPS), header))
        until(lambda n=k + 1: monitor.session.actions == n, "the action")
    latency = monitor.session.figures().latency_ms
    assert "receipt" in latency.since and latency.p99 is not None and 0 < latency.p99 < 5000


def test_it_hears_whatever_the_publishers_publish() -> None:
    """Deeper queues are fine, other reliability or durability would be deaf."""
    m = monitor_module
    for theirs, ours in ((RELIABLE, m.DEEP), (STREAM, m.IMAGES), (STREAM, m.DEEP)):
        assert (theirs.reliability, theirs.durability) == (ours.reliability, ours.durability)
        assert ours.depth >= theirs.depth


def test_the_process_ends_with_the_replay_and_leaves_a_report(source: Source, tmp_path: Path) -> None:
    process = start("--until-finished", "--report", str(tmp_path / "out"))
    until(source.found, "the monitor's subscriptions")
    source.play_at(50.0)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "report: " in output and "image to action p50" in output
    stored = json.loads((tmp_path / "out/session.json").read_text())
    assert stored["frames_in"] + stored["frames_missed"] == stored["actions_out"] == ROWS and stored["dropped"] == 0
    np.testing.assert_allclose(stored["mean_error"]["policy"], ERROR)
    written = {"report.html", "session.json", "joints.png", "latency.png", "trust.png", "timeline.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == written


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_watch_without_an_action_fails_and_says_what_is_missing(source: Source, ending: signal.Signals) -> None:
    process = start("--quiet")
    until(source.found, "the monitor's subscriptions")
    process.send_signal(ending)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "no action was seen: no frame came on image_raw either" in errors
    assert "frames in              0" in output


def test_a_replay_that_failed_fails_the_watch_with_its_reason(source: Source) -> None:
    process = start("--until-finished", "--quiet")
    until(source.found, "the monitor's subscriptions")
    source.emit("failed", error="episode_000003.parquet: row 7 is not finite")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "the replay failed: episode_000003.parquet: row 7 is not finite" in errors


def test_what_cannot_work_is_said_before_the_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint", str(tmp_path)]) == 1
    assert "metrics.json: missing" in capsys.readouterr().err
    (tmp_path / "metrics.json").write_text('{"split": {}}')
    assert main(["--checkpoint", str(tmp_path)]) == 1
    assert "does not say which data set" in capsys.readouterr().err
    assert main(["--report", str(tmp_path / "metrics.json" / "out")]) == 1
    assert "metrics.json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--steps", "-1"])


def test_episodes_are_labelled_only_if_the_student_knows_the_data_set(tmp_path: Path) -> None:
    data = make(tmp_path / "data")
    metrics = {"split": {"train": [0], "validation": [], "held_out": [1]}, "dataset": {"fingerprint": "other"}}
    session = monitor_module.Session(time.time_ns())
    label_episodes(session, metrics)
    assert not session.split and not session.remarks, "nothing was replayed"
    session.begin(time.time_ns(), 1, "pick", 8, FPS, "/not/here")
    label_episodes(session, metrics)
    assert not session.split and "unknown" in session.remarks[-1]
    session.begin(time.time_ns(), 1, "pick", 8, FPS, str(data))
    session.joints(1, 1, NAMES, np.zeros(3))
    label_episodes(session, metrics)
    assert not session.split and "another data set" in session.remarks[-1]
    metrics["dataset"] = {"fingerprint": EpisodeDataset(data).fingerprint()}
    label_episodes(session, metrics)
    assert session.split == {0: "trained on", 1: "held out"}
    assert [s.split for s in session.scores()] == ["held out"]
