"""The pipeline as a user starts it: executables, real processes, signals, and a node that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from graph import stamps
from lifecycle_msgs.msg import State
from sensor_msgs.msg import Image
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from sage_ros.nodes.bringup import Bringup
from sage_ros.nodes.lifecycle import EVENTS, STREAM
from sage_ros.nodes.pick_place import NODES


@pytest.fixture
def start():
    """Start processes that do not outlive the test."""
    children: list[subprocess.Popen] = []

    def popen(module: str, *args: str, **kwargs) -> subprocess.Popen:
        command = [sys.executable, "-m", f"sage_ros.nodes.{module}", *args]
        children.append(subprocess.Popen(command, start_new_session=True, **kwargs))
        return children[-1]

    yield popen
    for child in children:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def test_a_killed_node_can_be_started_again_and_the_pipeline_goes_on(probe, start):
    actions = probe.listen(JointTrajectory, "action")
    images = probe.listen(Image, "image_raw", STREAM)
    arguments = {name: ["--ros-args", "-p", "autostart:=true"] for name in NODES}
    arguments["replayer"] += ["-p", "loop:=true", "-p", "episodes:='0'"]
    children = {name: start(name, *arguments[name]) for name in NODES}
    probe.until(lambda: len(actions) > 10, "actions", timeout=60.0)

    for victim in ("vision_irp", "metabolic_manager", "sage_policy"):
        children[victim].send_signal(signal.SIGKILL)
        children[victim].wait()
        silent_from = len(images)
        probe.until(lambda n=silent_from: len(images) > n + 5, "frames while a node is dead")
        before = len(actions)
        children[victim] = start(victim, *arguments[victim])
        probe.until(lambda n=before: len(actions) > n + 10, f"actions after {victim} is back", timeout=60.0)

    for name, child in children.items():
        child.send_signal(signal.SIGTERM if name == "replayer" else signal.SIGINT)
    for name, child in children.items():
        assert child.wait(15) == 0, f"{name} did not end cleanly"


@pytest.mark.parametrize("mode", [[], ["--processes"]], ids=["composed", "processes"])
def test_one_command_runs_the_pipeline_and_ctrl_c_ends_it(probe, start, mode):
    actions = probe.listen(JointTrajectory, "left/action")
    seen = probe.listen(String, "left/replayer/events", EVENTS)
    pipeline = start("pick_place", "--episodes", "0", "--namespace", "left", *mode, stdout=subprocess.PIPE)
    probe.until(lambda: len(actions) > 20, "actions in the namespace", timeout=60.0)
    assert json.loads(seen[0].data)["event"] == "begin"
    assert stamps(actions) == sorted(stamps(actions))
    with Bringup(NODES, "left") as bringup:
        assert all(bringup.state(name) == State.PRIMARY_STATE_ACTIVE for name in NODES)
    pipeline.send_signal(signal.SIGINT)
    assert pipeline.wait(30) == 0
    probe.until(lambda: probe.node.count_publishers("left/action") == 0, "the nodes' end")


def test_a_bad_checkpoint_ends_the_pipeline_with_a_reason(start, tmp_path):
    pipeline = start("pick_place", "--checkpoint", str(tmp_path), stderr=subprocess.PIPE, text=True)
    _, errors = pipeline.communicate(timeout=60)
    assert pipeline.returncode == 1
    assert "could not be configured" in errors
    assert str(tmp_path) in errors


def test_a_bad_option_is_explained(start):
    pipeline = start("pick_place", "--source", "telepathy", stderr=subprocess.PIPE, text=True)
    _, errors = pipeline.communicate(timeout=60)
    assert pipeline.returncode == 2
    assert "replay" in errors and "camera" in errors


def test_an_executable_started_with_autostart_says_why_it_cannot(start):
    node = start("replayer", "--ros-args", "-p", "autostart:=true", "-p", "dataset:=/no/such/folder",
                 stderr=subprocess.PIPE, text=True)
    _, errors = node.communicate(timeout=60)
    assert node.returncode == 1
    assert "/no/such/folder" in errors
