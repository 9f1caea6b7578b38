"""The replayer as a user starts it: in a terminal, by its keys; and as the demonstrator of a robot under the filter."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading

import numpy as np
import pytest
from graph import Graph
from rcl_interfaces.srv import GetParameters
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, Header, String
from std_srvs.srv import SetBool

from sage_ros.episodes import EpisodeDataset
from sage_ros.nodes.lifecycle import EVENTS
from sage_ros.nodes.messages import joint_message
from sage_ros.nodes.replayer import Replayer
from sage_ros.nodes.safety_filter import SafetyFilterNode
from sage_ros.paths import EPISODES


class Terminal:
    """A process with a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self._master, slave = pty.openpty()
        self.slave = slave
        termios.tcsetwinsize(slave, (24, 120))

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                                        preexec_fn=take_terminal)  # fmt: skip
        self.shown = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while select.select([self._master], [], [], 20.0)[0]:
            try:
                self.shown += os.read(self._master, 4096).decode("utf-8", "replace")
            except OSError:
                return

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.slave)
        os.close(self._master)


@pytest.fixture
def terminal():
    opened = []

    def start(*args: str) -> Terminal:
        command = [sys.executable, "-m", "sage_ros.nodes.replayer", "--ros-args", "-p", "autostart:=true"]
        opened.append(Terminal(*command, *(word for arg in args for word in ("-p", arg))))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_keys_control_it_in_a_terminal_which_it_gives_back_as_it_was(probe, terminal):
    images = probe.listen(Image, "image_raw")  # for which it waits, and then until we have found it too
    shell = terminal("episodes:='0'", "start_paused:=true", "lead:=0.0", "loop:=true")
    before = termios.tcgetattr(shell.slave)
    probe.until(lambda: "space: pause or resume" in shell.shown, "the keys' explanation", 60.0)
    probe.until(lambda: "paused" in shell.shown, "a progress bar that says so")
    for count in (1, 2):
        shell.press("\x1b[C")
        probe.until(lambda n=count: len(images) == n, f"row {count}")
    shell.press("\x1b[A\x1b[A\x1b[B")
    request = GetParameters.Request(names=["rate"])
    shell.press(" ")
    probe.until(lambda: "rate 1.1" in shell.shown, "the new rate on the bar")
    assert probe.call(GetParameters, "replayer/get_parameters", request).values[0].double_value == pytest.approx(1.1)
    probe.until(lambda: len(images) > 10, "playing")
    assert "episode 0" in shell.shown
    os.kill(shell.process.pid, signal.SIGINT)
    assert shell.process.wait(20) == 0, shell.shown
    assert termios.tcgetattr(shell.slave) == before


def test_without_a_terminal_it_takes_no_keys_and_draws_nothing(probe):
    joints = probe.listen(JointState, "joint_states")
    command = [sys.executable, "-m", "sage_ros.nodes.replayer", "--ros-args", "-p", "autostart:=true"]
    command += ["-p", "listeners:=0", "-p", "settle:=0.0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        probe.until(lambda: len(joints) > 3, "rows", 60.0)
        _, errors = process.communicate(" ", timeout=20) if process.send_signal(signal.SIGTERM) is None else ("", "")
    assert process.returncode == 0
    assert "row/s" not in errors and "space:" not in errors


def test_under_the_safety_filter_a_demonstration_moves_the_robot_from_where_it_is_within_its_limits():
    episode = EpisodeDataset(EPISODES)[0]
    start = episode.action[60]  # somewhere else than the demonstration begins
    parameters = {"replayer:episodes": "0", "replayer:mode": "command", "replayer:settle": 0.0, "replayer:lead": 0.0}
    with Graph([SafetyFilterNode, Replayer], parameters) as graph:
        probe = graph.probe
        robot = probe.node.create_publisher(JointState, "joint_states", 10)
        where, sent = [start], []

        def measure() -> None:
            header = Header(stamp=probe.node.get_clock().now().to_msg())
            robot.publish(joint_message(episode.action_joints.names, where[0], header))

        def obey(command: Float64MultiArray) -> None:
            where[0] = np.array(command.data)
            sent.append(where[0])

        probe.node.create_subscription(Float64MultiArray, "joint_command", obey, 10)
        probe.node.create_timer(0.02, measure)
        events = probe.listen(String, "replayer/events", EVENTS)
        graph.up()
        probe.until(lambda: events, "the episode's announcement")
        assert sent == [], "the filter begins as a dry run"

        def enabled() -> bool:
            return probe.call(SetBool, "safety_filter/enable", SetBool.Request(data=True)).success

        assert probe.until(enabled, "the filter to be ready")
        probe.until(lambda: {"finished", "failed"} & {json.loads(m.data)["event"] for m in events}, "the end", 90.0)
        assert json.loads(events[-1].data)["event"] == "finished", events[-1].data
    path = np.array(sent)
    assert np.abs(path[0] - start).max() < 0.01, "it must start from the measured pose"
    speeds = np.abs(np.diff(path, axis=0)) * 100.0
    assert speeds.max() <= 2.0 + 1e-6
    near = np.abs(path[:, None] - episode.action[None, ::10]).max(axis=2).min(axis=0)
    assert np.median(near) < 0.05, "the robot must pass where the demonstration did"
