"""The whole pipeline on a bad day: what a fault injector breaks, and processes that are killed or stand still."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from graph import Graph, Probe, stamps
from rclpy.parameter import Parameter
from rig import LOSSLESS, SECOND, assert_keeps, usual_limits
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, Header, String
from std_srvs.srv import SetBool, Trigger

from sage_ros.core.chunks import ActionChunk
from sage_ros.nodes.bringup import Bringup
from sage_ros.nodes.fault_injector import FAULTS, FaultInjector, InjectorConfig, Spoiler
from sage_ros.nodes.lifecycle import LATCHED
from sage_ros.nodes.liveliness import ALLOWED, alive_qos
from sage_ros.nodes.messages import image_message, joint_message, to_stamp, trajectory_message
from sage_ros.nodes.metabolic_manager import MetabolicManager
from sage_ros.nodes.safety_filter import SafetyFilterNode
from sage_ros.nodes.sage_policy import SagePolicy
from sage_ros.nodes.trust_attention import TrustAttentionNode
from sage_ros.nodes.vision_irp import VisionIrp

NAMES = ["a", "b", "c"]


def message(kind: str, second: int) -> Any:
    header = Header(stamp=to_stamp(second * SECOND))
    if kind == "image":
        return image_message(np.full((4, 4, 3), second, np.uint8), header)
    if kind == "joints":
        return joint_message(NAMES, np.arange(3) + 10.0 * second, header)
    return trajectory_message(NAMES, ActionChunk(np.arange(6).reshape(2, 3) + 10.0 * second, 20.0), header)


def passed(kind: str, fault: str, count: int = 4, **settings: Any) -> list[Any]:
    """What comes of a good message of second 1 and then ``count`` that are hit, of seconds 2, 3, ..."""
    spoiler = Spoiler(InjectorConfig(kind=kind, **settings))
    spoiler(message(kind, 1))
    spoiler.config = InjectorConfig(kind=kind, fault=fault, **settings)
    return [out for second in range(2, 2 + count) for out in spoiler(message(kind, second))[0]]


def seconds(messages: list[Any]) -> list[float]:
    return [stamp / SECOND for stamp in stamps(messages)]


@pytest.mark.parametrize("kind", FAULTS)
def test_messages_are_lost_repeated_and_restamped_as_the_fault_says(kind: str) -> None:
    good = [message(kind, second) for second in range(1, 6)]
    assert passed(kind, "none") == passed(kind, "delay") == good[1:]
    assert passed(kind, "drop") == []
    assert passed(kind, "freeze") == [good[0]] * 4
    assert seconds(passed(kind, "freeze_content")) == [2, 3, 4, 5]
    assert [copy_at(out, 1) for out in passed(kind, "freeze_content")] == [good[0]] * 4
    assert seconds(passed(kind, "stale", shift=0.5)) == [1.5, 2.5, 3.5, 4.5]
    assert seconds(passed(kind, "future", shift=0.5)) == [2.5, 3.5, 4.5, 5.5]
    assert passed(kind, "out_of_order") == [good[2], good[1], good[4], good[3]]
    assert passed(kind, "duplicate", count=2) == [good[1], good[1], good[2], good[2]]


def copy_at(message: Any, second: int) -> Any:
    changed = copy.deepcopy(message)
    changed.header.stamp = to_stamp(second * SECOND)
    return changed


@pytest.mark.parametrize("kind", ["joints", "chunk"])
def test_values_and_names_are_spoiled_as_the_fault_says(kind: str) -> None:
    def names(fault: str) -> list[str]:
        out = passed(kind, fault)[0]
        return list(out.joint_names if kind == "chunk" else out.name)

    def rows(fault: str) -> list[np.ndarray]:
        out = passed(kind, fault)[0]
        return [np.array(p.positions) for p in out.points] if kind == "chunk" else [np.array(out.position)]

    good = rows("none")
    for fault, wrong in (("nan", np.isnan), ("inf", np.isinf)):
        assert sum(int(wrong(row).sum()) for row in rows(fault)) == 1
    assert sorted(np.abs(np.subtract(rows("jump"), good)).ravel()) == [0.0] * (3 * len(good) - 1) + [1.0]
    assert sum(len(row) for row in rows("truncate")) == 3 * len(good) - 1
    assert names("permute") == names("mislabel") == ["b", "c", "a"]
    np.testing.assert_array_equal(rows("permute"), [row[[1, 2, 0]] for row in good])
    np.testing.assert_array_equal(rows("mislabel"), good)
    assert len(names("missing_joint")) == 2 and {len(row) for row in rows("missing_joint")} == {2}
    assert len(set(names("unknown_joint")) - set(NAMES)) == 1 and {len(row) for row in rows("unknown_joint")} == {4}
    assert set(names("repeated_joint")) == set(NAMES) and len(names("repeated_joint")) == 4


def test_images_are_spoiled_as_the_fault_says() -> None:
    assert not any(passed("image", "black")[0].data) and any(passed("image", "none")[0].data)
    assert len(passed("image", "truncate")[0].data) == 24
    assert passed("image", "encoding")[0].encoding == "nonsense8"


def test_the_share_that_is_hit_is_as_asked_for_and_the_same_for_the_same_seed() -> None:
    def hits(seed: int) -> list[bool]:
        spoiler = Spoiler(InjectorConfig(fault="drop", probability=0.3, seed=seed))
        return [spoiler(message("joints", 1))[1] for _ in range(2000)]

    assert 0.25 < np.mean(hits(0)) < 0.35
    assert hits(1) == hits(1) != hits(2)


def test_a_fault_that_cannot_happen_is_refused_with_those_that_can() -> None:
    with pytest.raises(ValueError, match="cannot happen to kind 'image', but these can: none, drop"):
        InjectorConfig(kind="image", fault="nan")
    with pytest.raises(ValueError, match="two topics"):
        InjectorConfig(topic_in="joint_states", topic_out="joint_states")


def set_fault(node: FaultInjector, fault: str, **settings: float) -> None:
    values = [Parameter("fault", value=fault), *(Parameter(name, value=value) for name, value in settings.items())]
    result = node.set_parameters_atomically(values)
    assert result.successful, result.reason


def test_the_injector_relays_and_changes_its_fault_while_it_runs() -> None:
    with Graph([FaultInjector], {"fault_injector:topic_in": "raw", "fault_injector:topic_out": "spoiled"}) as graph:
        probe, node = graph.up().probe, graph.nodes[0]
        came = probe.listen(JointState, "spoiled")
        raw = probe.publisher(JointState, "raw")
        probe.until(lambda: raw.publish(message("joints", 1)) or came, "the relay")
        assert came[0] == message("joints", 1)
        set_fault(node, "nan")
        probe.until(lambda: raw.publish(message("joints", 2)) or np.isnan(came[-1].position).any(), "a NaN")
        assert not node.set_parameters([Parameter("fault", value="black")])[0].successful
        diagnostics = probe.listen(DiagnosticArray, "/diagnostics")
        probe.until(lambda: diagnostics, "diagnostics")
        values = {pair.key: int(pair.value) for pair in diagnostics[0].status[0].values if "_" in pair.key
                  and pair.key.split("_")[0] in ("messages", "hit")}  # fmt: skip
        assert diagnostics[0].status[0].message == "raw -> spoiled, fault: nan"
        assert values["messages_in"] == values["messages_out"] > values["hit_by_nan"] > 0


def test_a_delay_is_measured_by_the_nodes_clock() -> None:
    given = {"topic_in": "raw", "topic_out": "spoiled", "fault": "delay", "delay": 50.0, "use_sim_time": True}
    with Graph([FaultInjector], {f"fault_injector:{name}": value for name, value in given.items()}) as graph:
        probe, node = graph.up().probe, graph.nodes[0]
        came = probe.listen(JointState, "spoiled")
        raw, clock = probe.publisher(JointState, "raw"), probe.publisher(Clock, "/clock")

        def at(second: float) -> Callable[[], Any]:
            def pass_time() -> bool:
                clock.publish(Clock(clock=to_stamp(round(second * SECOND))))
                return node.get_clock().now().nanoseconds == second * SECOND
            return pass_time

        probe.until(at(100.0), "time")
        probe.until(lambda: node._out.get_subscription_count() > 0, "a listener")
        raw.publish(message("joints", 1))
        probe.until(lambda: node.counts["messages_in"] == 1, "the message")
        probe.until(at(149.0), "time")
        begin = time.monotonic()
        probe.until(lambda: time.monotonic() - begin > 0.2, "nothing")
        assert came == []
        probe.until(lambda: at(151.0)() and came, "the message, late")
        assert came == [message("joints", 1)]


# The pipeline in one process, with injectors at the camera, the joints and the action


class SlowPolicy(SagePolicy):
    """A policy whose inference can take long."""

    pause = 0.0

    def setup(self) -> None:
        super().setup()
        infer = self._policy.infer

        def late(observation: Any) -> ActionChunk:
            time.sleep(self.pause)
            return infer(observation)

        self._policy.infer = late


class Robot:
    """What a probe sees of the robot: the filter's modes and all set points."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.states: list[DiagnosticArray] = probe.listen(DiagnosticArray, "safety_filter/state", LATCHED)
        self.commands: list[np.ndarray] = []
        self.arrived: list[float] = []  # monotonic, s
        probe.node.create_subscription(Float64MultiArray, "joint_command", self._on_command, LOSSLESS)

    def _on_command(self, message: Float64MultiArray) -> None:
        self.arrived.append(time.monotonic())
        self.commands.append(np.array(message.data))

    @property
    def mode(self) -> str:
        return self.states[-1].status[0].message if self.states else ""

    def until(self, mode: str, since: int, timeout: float = 30.0) -> str:
        """Wait for the mode to be told after the first ``since`` states; the last reason given for it."""

        def told() -> list[str]:
            news = [state.status[0] for state in self.states[since:]]
            return [status.values[0].value for status in news if status.message == mode]

        last = self.states[-1].status[0] if self.states else None
        what = f"{mode}; it is {last.message}: {last.values[0].value}" if last else mode
        return self.probe.until(told, what, timeout)[-1]

    def begin(self) -> None:
        """Let it do its task from the start, which takes it some ten seconds."""
        call = self.probe.call
        call(SetBool, "safety_filter/enable", SetBool.Request(data=False))
        if self.commands:
            self.probe.until(lambda: self.mode == "DRY_RUN", "a dry run")
            self._silent()
        self.probe.until(lambda: call(Trigger, "sim_robot/reset").success, "a world")
        self.commands.clear()
        on = SetBool.Request(data=True)
        self.probe.until(lambda: call(SetBool, "safety_filter/enable", on).success, "joint states to have come in")
        self.moves()

    def _silent(self) -> None:
        sent, since = len(self.commands), time.monotonic()

        def silent() -> bool:
            nonlocal sent, since
            if len(self.commands) > sent:
                sent, since = len(self.commands), time.monotonic()
            return time.monotonic() - since > 0.2

        self.probe.until(silent, "the robot to have braked")

    def moves(self) -> None:
        since = len(self.commands)

        def moved() -> bool:
            new = np.array(self.commands[since:])
            return self.mode == "RUNNING" and len(new) > 20 and np.ptp(new, axis=0).max() > 0.01

        self.probe.until(moved, "motion", timeout=60.0)

    def rests(self) -> None:
        since = len(self.commands)
        self.probe.until(lambda: len(self.commands) > since + 60, "set points while it holds")
        self.probe.until(lambda: np.ptp(self.commands[-30:], axis=0).max() < 1e-6, "rest")


class Pipeline:
    def __init__(self) -> None:
        from sage_ros.nodes.sim_robot import SimRobot

        self.injectors: dict[str, FaultInjector] = {}
        relays = {
            "camera_fault": {"kind": "image", "topic_in": "camera", "topic_out": "image_raw"},
            "joint_fault": {"kind": "joints", "topic_in": "encoders", "topic_out": "joint_states"},
            "action_fault": {"kind": "chunk", "topic_in": "plan", "topic_out": "action"},
        }
        # Beside other tests computing takes longer, and a pipeline that is out of energy rests
        parameters: dict[str, Any] = {"sim_robot:image_size": 64, "safety_filter:watchdog": 0.4}
        parameters["metabolic_manager:capacity"] = 1e6
        # A camera that shows nothing for half a second is a crisis, which somebody has to end: not what is tested here
        parameters["metabolic_manager:crisis_after"] = 60.0
        for name, values in relays.items():
            parameters |= {f"{name}:{key}": value for key, value in values.items()}
        remappings = ["sim_robot:image_raw:=camera", "sim_robot:joint_states:=encoders", "sage_policy:action:=plan"]

        def injector(name: str) -> FaultInjector:
            node = FaultInjector(cli_args=["--ros-args", "-r", f"__node:={name}"])
            self.injectors[name] = node
            return node

        nodes = [MetabolicManager, SafetyFilterNode, SlowPolicy, TrustAttentionNode, VisionIrp]
        nodes += [partial(injector, name) for name in relays]
        self.graph = Graph([*nodes, SimRobot], parameters, remappings)
        self.graph.up()
        self.nodes = {node.get_name(): node for node in self.graph.nodes}
        self.robot = Robot(self.graph.probe)


@pytest.fixture(scope="class")
def pipeline(simulator: None) -> Iterator[Pipeline]:
    pipeline = Pipeline()
    yield pipeline
    pipeline.graph.__exit__()


class TestFaultsInThePipeline:
    """One pipeline for all, as each fault must pass without a trace."""

    @pytest.mark.parametrize("where, fault", [
        ("camera_fault", "drop"), ("camera_fault", "freeze"), ("camera_fault", "truncate"),
        ("joint_fault", "drop"), ("joint_fault", "nan"),
        ("action_fault", "drop"), ("action_fault", "inf"), ("action_fault", "future"),
    ])  # fmt: skip
    def test_the_robot_holds_as_long_as_the_fault_lasts(self, pipeline: Pipeline, where: str, fault: str) -> None:
        robot, injector = pipeline.robot, pipeline.injectors[where]
        robot.begin()
        told = len(robot.states)
        set_fault(injector, fault)
        robot.until("HOLDING", told)
        robot.rests()
        set_fault(injector, "none")
        robot.moves()
        assert_keeps(usual_limits(), robot.commands)

    @pytest.mark.parametrize("where, fault, settings", [
        ("camera_fault", "freeze_content", {}), ("camera_fault", "black", {}),
        ("camera_fault", "delay", {"delay": 0.15}),
        ("joint_fault", "permute", {}), ("joint_fault", "delay", {"delay": 0.05}), ("action_fault", "jump", {}),
        ("action_fault", "duplicate", {}), ("action_fault", "drop", {"probability": 0.3}),
    ])  # fmt: skip
    def test_set_points_keep_their_limits_whatever_comes(
        self, pipeline: Pipeline, where: str, fault: str, settings: dict[str, float]
    ) -> None:
        robot, injector = pipeline.robot, pipeline.injectors[where]
        robot.begin()
        hits = injector.counts[f"hit_by_{fault}"]
        sent = len(robot.commands)
        set_fault(injector, fault, **settings)
        robot.probe.until(lambda: injector.counts[f"hit_by_{fault}"] > hits + 10, "hits")
        robot.probe.until(lambda: len(robot.commands) > sent + 60, "set points")
        set_fault(injector, "none", probability=1.0)
        robot.until("RUNNING", len(robot.states) - 1)
        assert_keeps(usual_limits(), robot.commands)

    def test_a_policy_slower_than_its_tick_holds_the_robot_again_and_again(self, pipeline: Pipeline) -> None:
        robot = pipeline.robot
        robot.begin()
        told = len(robot.states)
        pipeline.nodes["sage_policy"].pause = 0.6  # longer than the watchdog waits, and than a chunk may be old
        robot.until("HOLDING", told)
        pipeline.nodes["sage_policy"].pause = 0.0
        robot.moves()
        assert_keeps(usual_limits(), robot.commands)


# Real processes, as a user starts them


def process_of(alive: String) -> int:
    return int(alive.data.split("process ")[1].split()[0])


def test_processes_that_are_killed_or_stand_still_hold_the_robot_and_come_back(probe: Probe, simulator: None) -> None:
    robot = Robot(probe)
    victims = {"sage_policy": signal.SIGKILL, "trust_attention": signal.SIGKILL, "vision_irp": signal.SIGSTOP}
    alive = {n: probe.listen(String, f"{n}/alive", alive_qos(ALLOWED)) for n in (*victims, "safety_filter")}
    command = [sys.executable, "-m", "sage_ros.nodes.pick_place", "--source", "sim", "--processes"]
    command += ["--ros-args", "-p", "sim_robot:image_size:=64"]
    pipeline = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(pipeline.stderr), daemon=True)
    reader.start()
    try:
        robot.moves()
        for name, number in victims.items():
            robot.begin()
            told = len(robot.states)
            os.kill(process_of(alive[name][-1]), number)
            robot.until("HOLDING", told, timeout=5.0)
            robot.rests()
            probe.until(lambda n=name: any(f"{n} is active again" in line for line in errors), f"{name}'s return", 60.0)
            robot.moves()
            probe.until(lambda n=name: len(alive[n]) > 1, "the new process to announce itself")
            assert process_of(alive[name][0]) != process_of(alive[name][-1])
            assert_keeps(usual_limits(), robot.commands)
        _filter_is_killed(robot, errors, process_of(alive["safety_filter"][-1]))
        assert "STOPPED" not in {state.status[0].message for state in robot.states}
        pipeline.send_signal(signal.SIGINT)
        assert pipeline.wait(40) == 0, errors
    finally:
        end(pipeline)


def _filter_is_killed(robot: Robot, errors: list[str], process: int) -> None:
    """The robot stays at the last set point, and the filter comes back in dry run; enabled, it begins where that is."""
    probe = robot.probe
    robot.begin()
    measured = probe.listen(JointState, "joint_states")
    told = len(robot.states)
    os.kill(process, signal.SIGKILL)
    robot.until("DRY_RUN", told, timeout=60.0)
    last, sent = robot.commands[-1], len(robot.commands)
    probe.until(lambda: any("safety_filter is active again" in line for line in errors), "its return", 60.0)
    seen = len(measured)
    probe.until(lambda: len(measured) > seen + 40, "joint states")
    assert len(robot.commands) == sent, "nobody has enabled it"
    assert np.ptp([m.position for m in measured[-20:]], axis=0).max() < 1e-3, "the robot holds"
    assert np.abs(np.array(measured[-1].position) - last).max() < 0.2, "it holds where it was told to be"
    with Bringup(["safety_filter"]) as bringup:  # asks anew where a request reaches the dead process alone
        bringup.enable()
    probe.until(lambda: len(robot.commands) > sent + 100, "set points")
    assert np.abs(robot.commands[sent] - measured[seen + 40].position).max() < 0.002, "it begins where the robot is"
    assert_keeps(usual_limits(), robot.commands[sent:])


def end(pipeline: subprocess.Popen[str]) -> None:
    """Ctrl-C, which takes the nodes' processes along."""
    if pipeline.poll() is None:
        pipeline.send_signal(signal.SIGINT)
        try:
            pipeline.wait(40)
        except subprocess.TimeoutExpired:
            pipeline.kill()
            pipeline.wait()
