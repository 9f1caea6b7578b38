"""The pipeline as a user starts it: executables, real processes, signals, and a node that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from graph import stamps
from lifecycle_msgs.msg import State
from sensor_msgs.msg import Image
from std_msgs.msg import Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from sage_ros.nodes.bringup import Bringup
from sage_ros.nodes.lifecycle import EVENTS, LATCHED, STREAM
from sage_ros.nodes.liveliness import ALLOWED, alive_qos
from sage_ros.nodes.pick_place import NODES, STANDSTILL, Separate


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


def test_the_robot_holds_while_vision_is_dead_and_goes_on_when_it_is_back(probe, start, simulator):
    commands = probe.listen(Float64MultiArray, "joint_command")
    arrived = []
    probe.node.create_subscription(Float64MultiArray, "joint_command", lambda _: arrived.append(time.monotonic()), 10)
    states = probe.listen(DiagnosticArray, "safety_filter/state", LATCHED)
    alive = probe.listen(String, "vision_irp/alive", alive_qos(ALLOWED))
    options = ["--source", "sim", "--processes", "--ros-args", "-p", "sim_robot:image_size:=64"]
    pipeline = start("pick_place", *options, stderr=subprocess.PIPE, text=True)

    def mode():
        return states[-1].status[0].message if states else ""

    probe.until(lambda: mode() == "RUNNING" and len(commands) > 100, "a robot that moves", timeout=90.0)
    told = len(states)
    os.kill(process_of(alive[-1]), signal.SIGKILL)
    killed = len(commands)
    probe.until(lambda: any(s.status[0].message == "HOLDING" for s in states[told:]), "the hold", timeout=2.0)
    probe.until(lambda: len(commands) > killed + 200, "set points while it holds", timeout=5.0)
    still = np.array([command.data for command in commands[killed + 150 : killed + 200]])
    assert np.ptp(still, axis=0).max() < 1e-6
    told = len(states)
    probe.until(lambda: any(s.status[0].message == "RUNNING" for s in states[told:]), "it to go on", timeout=60.0)
    probe.until(lambda: len(alive) == 2, "the new process to announce itself")
    assert process_of(alive[0]) != process_of(alive[1])
    probe.until(lambda: np.abs(np.subtract(commands[-1].data, still[-1])).max() > 0.01, "motion", timeout=10.0)
    assert max(np.diff(arrived)) < 1.0
    pipeline.send_signal(signal.SIGINT)
    _, errors = pipeline.communicate(timeout=40)
    assert pipeline.returncode == 0, errors
    assert "vision_irp IS GONE" in errors and "vision_irp is active again" in errors


def process_of(alive):
    return int(alive.data.split("process ")[1].split()[0])


def test_a_process_that_stands_still_is_killed_and_started_again():
    family = Separate(["metabolic_manager"], [])
    try:
        first = family.children["metabolic_manager"]
        first.send_signal(signal.SIGSTOP)
        now = time.monotonic()
        assert family.respawn({"metabolic_manager": now}) == []
        assert family.respawn({"metabolic_manager": now - STANDSTILL}) == ["metabolic_manager"]
        assert first.returncode == -signal.SIGKILL
        family.check()
    finally:
        family.close()


def test_a_replay_gives_the_demonstrators_commands_to_the_policy_alone(probe, start):
    start("pick_place", "--episodes", "0", "--loop")

    def names(infos):
        return [info.node_name for info in infos]

    speakers, hearers = probe.node.get_publishers_info_by_topic, probe.node.get_subscriptions_info_by_topic
    probe.until(lambda: "sage_policy" in names(hearers("demo/action")), "the policy to listen", timeout=60.0)
    probe.until(lambda: names(speakers("demo/action")) == ["replayer"], "the demonstrator")
    probe.until(lambda: names(speakers("last_command")) == ["safety_filter"], "the safety filter")
    assert "sage_policy" not in names(hearers("last_command"))


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
    assert all(source in errors for source in ("replay", "sim", "camera"))


def test_an_executable_started_with_autostart_says_why_it_cannot(start):
    node = start("replayer", "--ros-args", "-p", "autostart:=true", "-p", "dataset:=/no/such/folder",
                 stderr=subprocess.PIPE, text=True)
    _, errors = node.communicate(timeout=60)
    assert node.returncode == 1
    assert "/no/such/folder" in errors
