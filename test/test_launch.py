"""The launch file as a user runs it, where the ``ros2`` command and ``launch_ros`` are installed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from graph import Probe, stamps
from lifecycle_msgs.msg import State
from trajectory_msgs.msg import JointTrajectory

from sage_ros.nodes.bringup import Bringup
from sage_ros.nodes.pick_place import NODES

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
    for name in ("source", "dataset", "checkpoint", "episode", "rate", "composed", "params_file", "use_sim_time"):
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


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("checkpoint:=/no/such/student", "/no/such/student: no such folder"),
        ("params_file:=/no/such/file.yaml", "params_file: there is no /no/such/file.yaml"),
        ("dataset:=/no/such/episodes", "/no/such/episodes"),
        ("source:=telepathy", "telepathy"),
        ("rate:=0.0", "rate"),
    ],
)
def test_what_cannot_work_ends_the_launch_with_a_reason(launch: Launch, argument: str, reason: str) -> None:
    process = launch(argument)
    text, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert reason in text
