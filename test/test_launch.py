"""The launch file as a user runs it, where the ``ros2`` command and ``launch_ros`` are installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from graph import Probe, stamps
from lifecycle_msgs.msg import State
from std_msgs.msg import Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from sage_ros.nodes.bringup import Bringup
from sage_ros.nodes.lifecycle import LATCHED
from sage_ros.nodes.liveliness import ALLOWED, alive_qos
from sage_ros.nodes.pick_place import NODES, PIPELINE

pytest.importorskip("launch_ros", reason="launch_ros is not installed: the composed bring-up is tested instead")
if shutil.which("ros2") is None:
    pytest.skip("the ros2 command is not installed", allow_module_level=True)

Launch = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def launch(sourced: list[str]) -> Iterator[Launch]:
    """Start ``ros2 launch sage_ros pick_place.launch.py``; whatever is left of it ends with the test."""
    launched: list[subprocess.Popen[str]] = []
    command = [*sourced, "ros2", "launch", "sage_ros", "pick_place.launch.py"]

    def start(*arguments: str) -> subprocess.Popen[str]:
        launched.append(subprocess.Popen(
            [*command, *arguments], start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ))  # fmt: skip
        return launched[-1]

    yield start
    for process in launched:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_the_arguments_are_explained(launch: Launch) -> None:
    text, _ = launch("--show-args").communicate(timeout=60)
    arguments = "source enable dataset checkpoint episode rate composed params_file use_sim_time"
    for name in (*arguments.split(), "seed", "region_scale", "real_time_factor", "controller"):
        assert f"'{name}':" in text
    assert "namespace of all nodes and topics" in text


@pytest.mark.parametrize("composed", ["false", "true"])
@pytest.mark.parametrize("sim_time", ["false", "true"])
def test_it_runs_the_pipeline_in_a_namespace_until_ctrl_c(
    launch: Launch, probe: Probe, composed: str, sim_time: str
) -> None:
    actions = probe.listen(JointTrajectory, "left/action")
    ways = (f"composed:={composed}", f"use_sim_time:={sim_time}")
    process = launch("namespace:=left", "episode:=0", "loop:=true", *ways)
    probe.until(lambda: len(actions) > 20 or process.poll() is not None, "actions in the namespace", timeout=90.0)
    assert stamps(actions) == sorted(stamps(actions))
    assert (stamps(actions)[-1] < 1e12) == (sim_time == "true")
    with Bringup(NODES, "left") as bringup:
        assert all(bringup.state(name) == State.PRIMARY_STATE_ACTIVE for name in NODES)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert "Traceback" not in text, text[text.index("Traceback") :]
    probe.until(lambda: probe.node.count_publishers("left/action") == 0, "the nodes' end")


@pytest.mark.parametrize("composed", ["false", "true"])
def test_a_simulated_robot_closes_the_loop(launch: Launch, probe: Probe, simulator: None, composed: str) -> None:
    episodes = probe.listen(DiagnosticArray, "sim_robot/episode", LATCHED)
    states = probe.listen(DiagnosticArray, "safety_filter/state", LATCHED)
    commands = probe.listen(Float64MultiArray, "joint_command")
    process = launch("source:=sim", f"composed:={composed}", "use_sim_time:=true", "real_time_factor:=0.5", "seed:=7")
    probe.until(lambda: len(commands) > 100 or process.poll() is not None, "commands", timeout=90.0)
    assert process.poll() is None, process.communicate()
    assert "RUNNING" in {state.status[0].message for state in states}
    assert {pair.value for pair in episodes[-1].status[0].values if pair.key == "seed"} == {"7"}
    assert episodes[-1].header.stamp.sec < 1000
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert "Traceback" not in text, text[text.index("Traceback") :]


def test_a_dry_run_moves_nothing(launch: Launch, probe: Probe, simulator: None) -> None:
    actions = probe.listen(JointTrajectory, "action")
    states = probe.listen(DiagnosticArray, "safety_filter/state", LATCHED)
    commands = probe.listen(Float64MultiArray, "joint_command")
    process = launch("source:=sim", "enable:=false")
    probe.until(lambda: len(actions) > 20 or process.poll() is not None, "actions", timeout=90.0)
    assert [state.status[0].message for state in states] == ["DRY_RUN"]
    assert not commands


def test_a_node_that_is_killed_is_started_and_brought_up_again(launch: Launch, probe: Probe) -> None:
    alive = probe.listen(String, "vision_irp/alive", alive_qos(ALLOWED))
    actions = probe.listen(JointTrajectory, "action")
    process = launch("episode:=0", "loop:=true")
    probe.until(lambda: len(actions) > 20 or process.poll() is not None, "actions", timeout=90.0)
    os.kill(int(alive[0].data.split("process ")[1].split()[0]), signal.SIGKILL)
    probe.until(lambda: len(alive) == 2, "a new process", timeout=60.0)
    before = len(actions)
    probe.until(lambda: len(actions) > before + 20, "actions from the new one", timeout=60.0)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert "vision_irp IS GONE" in text and "vision_irp is active again" in text
    others = [name for name in PIPELINE if name != "vision_irp"]
    assert not any(f"{name} IS GONE" in text for name in others)


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("checkpoint:=/no/such/student", "/no/such/student"),
        ("params_file:=/no/such/file.yaml", "params_file: there is no /no/such/file.yaml"),
        ("dataset:=/no/such/episodes", "/no/such/episodes"),
        ("source:=telepathy", "telepathy"),
        ("enable:=maybe", "maybe"),
        ("rate:=0.0", "rate"),
    ],
)
def test_what_cannot_work_ends_the_launch_with_a_reason(launch: Launch, argument: str, reason: str) -> None:
    process = launch(argument)
    text, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert reason in text
