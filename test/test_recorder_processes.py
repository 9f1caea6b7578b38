"""The recorder as a process that is killed, and on a disk that is full: what stands stays, and can be gone on with."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from episode_sets import JOINTS
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header, String
from std_srvs.srv import Trigger

from sage_ros.episodes import EpisodeDataset
from sage_ros.nodes.lifecycle import LATCHED, STREAM, values_of
from sage_ros.nodes.messages import image_message, joint_message

CHANCE = np.random.default_rng(0).integers(0, 255, (16, 96, 128, 3), dtype=np.uint8)  # hard to compress


class Robot:
    """Publishes camera, joints and commands at 50 Hz until it is closed."""

    def __init__(self, probe):
        self.probe, self.shots = probe, 0
        make = probe.node.create_publisher
        self.images, self.tasks = make(Image, "image_raw", STREAM), make(String, "task", LATCHED)
        self.joints, self.commands = make(JointState, "joint_states", 10), make(JointState, "last_command", 10)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._end.wait(0.02):
            header = Header(stamp=self.probe.node.get_clock().now().to_msg())
            for publisher in (self.joints, self.commands):
                publisher.publish(joint_message(JOINTS.names, np.full(3, self.shots), header))
            self.images.publish(image_message(CHANCE[self.shots % 16], header))
            self.shots += 1

    def close(self):
        self._end.set()
        self._thread.join()


@pytest.fixture
def robot(probe):
    robot = Robot(probe)
    yield robot
    robot.close()


@pytest.fixture
def record(probe):
    """Start a recorder process on a folder; returns it and what it tells."""
    started = []

    def start(folder, *parameters, **options):
        told = probe.listen(DiagnosticArray, f"recorder_{len(started)}/episode", LATCHED)
        given = [f"dataset:='{folder}'", "autostart:=true", "fps:=50.0", "settle:=0.05", "patience:=0.5", "split:=task"]
        given += parameters
        command = [sys.executable, "-m", "sage_ros.nodes.recorder", "--ros-args"]
        command += ["-r", f"recorder:__node:=recorder_{len(started)}", *(w for p in given for w in ("-p", p))]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options))
        return started[-1], told

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def events(told):
    return [message.status[0].message for message in told]


def shoot(probe, robot, folder, frames):
    """So many frames of the robot from the moment on that the recorder has made a row of one."""
    films = folder.with_name(f".{folder.name}.recording")
    probe.until(lambda: list(films.rglob("front.mp4")), "a first row", 60.0)
    shots = robot.shots
    probe.until(lambda: robot.shots > shots + frames, "some frames")


def test_a_recorder_killed_at_any_moment_loses_no_more_than_the_episode_in_progress(probe, robot, record, tmp_path):
    folder, saved = tmp_path / "set", 0
    for saving in (False, True):  # killed while the second episode is recorded, and while it is saved
        recorder, told = record(folder)
        robot.tasks.publish(String(data="the first"))
        probe.until(lambda t=told: "begun" in events(t), "the start", 60.0)
        shoot(probe, robot, folder, 12)
        robot.tasks.publish(String(data="the second"))
        probe.until(lambda t=told: "saved" in events(t) and events(t).count("begun") == 2, "the second episode")
        shoot(probe, robot, folder, 15)
        if saving:
            robot.tasks.publish(String(data=""))
            probe.until(lambda n=saved: len(list(folder.rglob("episode_*.mp4"))) > n + 1, "the second film")
        os.kill(recorder.pid, signal.SIGKILL)
        recorder.wait()
        robot.tasks.publish(String(data=""))
        dataset = EpisodeDataset(folder)
        assert len(dataset) in (saved + 1, saved + 1 + saving), "what was saved must stay, and be gone on with"
        saved = len(dataset)
        for episode in dataset:
            assert len(episode.frames()) == len(episode) >= 8
            assert np.array_equal(episode.state, episode.action)


def test_a_disk_that_takes_no_more_ends_recording_loudly_and_keeps_what_stands(probe, robot, record, tmp_path):
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    folder = tmp_path / "set"
    recorder, told = record(folder, "lossless:=true", "crf:=0", preexec_fn=small_disk)
    robot.tasks.publish(String(data="a short one"))
    probe.until(lambda: "begun" in events(told), "the start", 60.0)
    shoot(probe, robot, folder, 4)
    robot.tasks.publish(String(data=""))
    probe.until(lambda: "saved" in events(told), "the short episode")
    robot.tasks.publish(String(data="too long a one"))
    probe.until(lambda: "failed" in events(told), "the failure")
    reason = values_of(next(m for m in told if m.status[0].message == "failed").status[0])["reason"]
    assert "too large" in reason.lower() and ".set.recording" in reason
    assert not probe.call(Trigger, "recorder_0/stop").success
    assert recorder.poll() is None, "the node goes on"
    dataset = EpisodeDataset(folder)
    assert [episode.task for episode in dataset] == ["a short one"] and len(dataset[0].frames()) == len(dataset[0])
    recorder.send_signal(signal.SIGINT)
    _, errors = recorder.communicate(timeout=30)
    assert recorder.returncode == 0
    assert "RECORDING HAS STOPPED" in errors
    assert (folder / "meta/stats.json").is_file() and not (tmp_path / ".set.recording").exists(), "an orderly end"


def test_a_disk_that_may_not_be_written_is_said_at_the_start(probe, robot, record, tmp_path):
    (tmp_path / "file").write_text("no folder")
    _, told = record(tmp_path / "file" / "set")
    robot.tasks.publish(String(data="pick"))
    probe.until(lambda: events(told) == ["failed"], "the failure", 60.0)
    assert "set.recording" in values_of(told[0].status[0])["reason"]
