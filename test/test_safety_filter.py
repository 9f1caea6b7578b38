"""The safety filter as a node over real topics: what moves the robot, what stops it, and what it says meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from graph import Graph, Probe, stamps
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.node import Node
from rclpy.parameter import Parameter
from rig import PERIOD, ROW_RATE, SECOND, Rig, assert_keeps, usual_limits
from std_msgs.msg import Float32, Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from sage_ros.core.limits import JointLimits
from sage_ros.nodes.lifecycle import LATCHED, RELIABLE, values_of
from sage_ros.nodes.messages import nanoseconds
from sage_ros.nodes.safety_filter import SafetyFilterNode

PATIENT = {"watchdog": 0.4, "joint_timeout": 0.6}  # a busy machine's jitter is not what is tested


class Set:
    """A filter that is active, and the rig around it."""

    def __init__(self, simulated: bool = False, robot: bool = True, **parameters: Any) -> None:
        given = PATIENT | {"use_sim_time": simulated} | parameters
        self.graph = Graph([SafetyFilterNode], {f"safety_filter:{name}": value for name, value in given.items()})
        self.graph.up()
        self.node: Any = self.graph.nodes[0]
        self.probe = self.graph.probe
        self.rig = Rig(self.probe, self.node._filter.limits, simulated, robot)
        self.limits: JointLimits = self.node._filter.limits

    def refused(self, reason: str) -> int:
        return self.node.counts[f"refused_{reason}"]

    def change(self, transition: int) -> None:
        request = ChangeState.Request(transition=Transition(id=transition))
        assert self.probe.call(ChangeState, "safety_filter/change_state", request).success

    def close(self) -> None:
        self.rig.close()
        self.graph.__exit__()


@pytest.fixture
def make() -> Iterator[Callable[..., Set]]:
    sets: list[Set] = []

    def start(**options: Any) -> Set:
        sets.append(Set(**options))
        return sets[-1]

    yield start
    for one in sets:
        one.close()


@pytest.fixture
def filtered(make: Callable[..., Set]) -> Set:
    return make()


def test_nothing_is_sent_until_somebody_enables_it(filtered: Set) -> None:
    rig = filtered.rig
    filtered.probe.until(lambda: filtered.node.counts["chunks_in"] > 10, "chunks")
    assert rig.commands == [] and rig.last == []
    assert (rig.mode, rig.reason) == ("DRY_RUN", "not enabled")


def test_enabling_eases_in_from_where_the_robot_is(make: Callable[..., Set]) -> None:
    filtered = make(robot=False)
    rig, limits = filtered.rig, filtered.limits
    rig.measured = start = rig.middle + 0.3 * (limits.position[:, 1] - rig.middle)  # far from the plan
    rig.robot = True
    filtered.probe.until(lambda: rig.enable()[0], "joint states to have come in")
    rig.more(20)
    first = np.array(rig.commands[:20])
    np.testing.assert_allclose(first[0], start, atol=1e-3)
    speeds = np.abs(np.diff(first, axis=0)) / PERIOD
    assert (speeds <= limits.velocity * 0.32).all()  # a tenth, and a share of the second that it takes
    rig.more(200)
    assert rig.until("RUNNING") == ""
    assert_keeps(limits, rig.commands, start)


def test_enabling_needs_joint_states_and_says_so(make: Callable[..., Set]) -> None:
    filtered = make(robot=False)
    rig = filtered.rig
    success, why = rig.enable()
    assert not success and "no joint_states" in why and rig.names[0] in why
    rig.robot = True
    filtered.probe.until(lambda: rig.enable()[0], "joint states to have come in")


def test_set_points_follow_the_plan_at_100_hz(filtered: Set) -> None:
    rig = filtered.rig
    rig.run()
    rig.more(250)
    last = rig.last[-100:]
    at = np.array(stamps(last)) / SECOND
    followed = np.array([message.position for message in last])
    assert list(last[0].name) == rig.names
    assert 0.005 < np.median(np.diff(at)) < 0.02
    np.testing.assert_allclose(followed, rig.planned(at), atol=0.02)
    count = len(rig.last)
    filtered.probe.until(lambda: len(rig.commands) >= count, "as many commands")
    np.testing.assert_array_equal(rig.last[count - 1].position, rig.commands[count - 1])
    assert_keeps(filtered.limits, rig.commands, rig.middle)


@pytest.fixture(scope="class")
def running() -> Iterator[Set]:
    one = Set()
    one.rig.run()
    yield one
    one.close()


REFUSED = {
    "nan": "not_finite", "inf": "not_finite", "truncate": "incomplete", "missing_joint": "missing_joint",
    "unknown_joint": "unknown_joint", "repeated_joint": "repeated_joint", "stale": "stale", "future": "future",
    "out_of_order": "out_of_order", "duplicate": "out_of_order", "freeze": "out_of_order",
}  # fmt: skip


class TestFaultsThatItRecoversFromByItself:
    """One filter for all of them."""

    @pytest.mark.parametrize("fault", REFUSED)
    def test_a_broken_chunk_is_refused_and_counted_and_nothing_jumps(self, running: Set, fault: str) -> None:
        rig, reason = running.rig, REFUSED[fault]
        rig.until("RUNNING")
        before, since = running.refused(reason), len(rig.commands)
        rig.spoil("chunk", fault)
        running.probe.until(lambda: running.refused(reason) > before + 3, f"a {fault} to be refused")
        rig.spoil("chunk", "none")
        rig.more(60)
        rig.until("RUNNING")
        assert len(rig.commands) > since + 60
        assert_keeps(running.limits, rig.commands, rig.middle)

    @pytest.mark.parametrize("fault", ["permute", "mislabel", "jump", "freeze_content"])
    def test_a_chunk_that_looks_good_moves_the_robot_within_its_limits(self, running: Set, fault: str) -> None:
        rig = running.rig
        rig.until("RUNNING")
        refused = sum(count for name, count in running.node.counts.items() if name.startswith("refused"))
        rig.spoil("chunk", fault)
        rig.more(100)
        if fault == "permute":
            rig.more(100)
            last = rig.last[-1]
            np.testing.assert_allclose(last.position, rig.planned(stamps([last])[0] / SECOND), atol=0.02)
        rig.spoil("chunk", "none")
        rig.more(50)
        assert refused == sum(count for name, count in running.node.counts.items() if name.startswith("refused"))
        assert_keeps(running.limits, rig.commands, rig.middle)

    @pytest.mark.parametrize("fault, reason", [("nan", "not_finite"), ("missing_joint",) * 2, ("stale",) * 2])
    def test_without_usable_joint_states_it_holds_and_goes_on_when_they_are_back(
        self, running: Set, fault: str, reason: str
    ) -> None:
        rig = running.rig
        rig.until("RUNNING")
        before, told = running.refused(reason), len(rig.states)
        rig.spoil("joints", fault)
        assert "no joint_states for" in rig.until("HOLDING", since=told)
        assert running.refused(reason) > before
        still = rig.rest()
        rig.spoil("joints", "none")
        rig.until("RUNNING")
        running.probe.until(lambda: np.abs(rig.commands[-1] - still).max() > 0.01, "motion")
        assert_keeps(running.limits, rig.commands, rig.middle)

    def test_without_chunks_it_brakes_to_rest_and_goes_on_when_they_are_back(self, running: Set) -> None:
        rig = running.rig
        rig.until("RUNNING")
        told = len(rig.states)
        rig.policy = False
        assert rig.until("HOLDING", since=told) == f"no chunk for {PATIENT['watchdog']} s"
        rig.rest()
        held = rig.more(50)
        assert np.ptp(held, axis=0).max() < 1e-9
        told = len(rig.states)
        rig.policy = True
        rig.until("RUNNING", since=told)
        running.probe.until(lambda: np.abs(rig.commands[-1] - held[0]).max() > 0.01, "motion")
        assert_keeps(running.limits, rig.commands, rig.middle)

    def test_the_metabolic_state_can_forbid_motion(self, running: Set) -> None:
        rig = running.rig
        publisher = running.probe.publisher(DiagnosticArray, "metabolic_state", LATCHED)
        rig.until("RUNNING")

        def enter(state: str, actuation: bool, reason: str) -> None:
            values = [KeyValue(key="actuation", value=str(actuation)), KeyValue(key="reason", value=reason)]
            publisher.publish(DiagnosticArray(status=[DiagnosticStatus(message=state, values=values)]))

        told = len(rig.states)
        enter("WAKE", False, "holds before REST")
        assert rig.until("HOLDING", since=told) == "WAKE: holds before REST"
        running.probe.until(lambda: values_of(rig.states[-1].status[0])["at_rest"] == "True", "rest")
        enter("REST", False, "no task")
        begin, sent = time.monotonic(), len(rig.commands)
        running.probe.until(lambda: time.monotonic() - begin > 0.5, "half a second of REST")
        assert 2 <= len(rig.commands) - sent <= 10, "where nothing moves ten set points a second will do"
        enter("WAKE", True, "task")
        rig.until("RUNNING")
        assert_keeps(running.limits, rig.commands, rig.middle)

        enter("CRISIS", False, "confidence is low")
        assert rig.until("DRY_RUN") == "CRISIS: confidence is low"
        rig.rest()
        assert rig.enable() == (False, "CRISIS: confidence is low: call metabolic_manager/reset first")
        enter("WAKE", True, "reset")
        running.probe.until(lambda: rig.enable()[0], "the end of the crisis to be heard")
        rig.until("RUNNING")
        assert_keeps(running.limits, rig.commands, rig.middle)


def test_a_plan_that_is_used_up_is_not_stretched(make: Callable[..., Set]) -> None:
    filtered = make(watchdog=30.0)
    rig = filtered.rig
    rig.run()
    rig.policy = False
    assert rig.until("HOLDING") == "the plan is used up"
    rig.rest()
    assert_keeps(filtered.limits, rig.commands, rig.middle)


def test_low_confidence_slows_it_and_none_holds_it(filtered: Set) -> None:
    rig, limits = filtered.rig, filtered.limits
    confidence = filtered.probe.publisher(Float32, "confidence")
    rig.speed = 8.0  # faster than it may go when in doubt
    rig.run()
    fast = np.abs(np.diff(rig.more(200)[100:], axis=0)).max(axis=0) / PERIOD
    confidence.publish(Float32(data=0.24))  # a tenth of the speed, between hold_below 0.2 and full_above 0.6
    rig.more(100)
    slow = np.abs(np.diff(rig.more(100), axis=0)).max(axis=0) / PERIOD
    assert (slow <= 0.11 * limits.velocity).all() and (slow > 0).all() and (fast > 2 * slow).all()
    for doubtful in (0.1, float("nan")):
        told = len(rig.states)
        confidence.publish(Float32(data=doubtful))
        assert "confidence" in rig.until("HOLDING", since=told)
        rig.rest()
        confidence.publish(Float32(data=0.9))
        rig.until("RUNNING")
    assert_keeps(limits, rig.commands, rig.middle)


def test_parameters_that_are_said_to_be_live_change_while_it_runs(filtered: Set) -> None:
    rig = filtered.rig
    rig.run()
    for name, value in (("ensemble_ramp", 0.2), ("strategy", "rtc"), ("watchdog", 0.5), ("max_age", 0.4)):
        result = filtered.node.set_parameters([Parameter(name, value=value)])[0]
        assert result.successful, result.reason
    assert filtered.node._filter.queue.config.ensemble_ramp == 0.2
    assert not filtered.node.set_parameters([Parameter("max_velocity", value=9.0)])[0].successful
    rig.more(50)
    assert_keeps(filtered.limits, rig.commands, rig.middle)


def test_a_stop_brakes_and_lasts_until_it_is_reset_and_enabled_again(filtered: Set) -> None:
    rig = filtered.rig
    rig.run()
    assert rig.trigger("stop")[0]
    assert rig.until("STOPPED") == "asked to, by ~/stop"
    rig.rest()
    sent = len(rig.commands)
    success, why = rig.enable()
    assert not success and "reset it first" in why
    chunks = filtered.node.counts["chunks_in"]
    filtered.probe.until(lambda: filtered.node.counts["chunks_in"] > chunks + 10, "chunks while stopped")
    assert len(rig.commands) == sent
    assert_keeps(filtered.limits, rig.commands, rig.middle)
    assert rig.trigger("reset")[0]
    assert rig.until("DRY_RUN") == "not enabled"
    assert rig.enable()[0]
    rig.more(50)
    assert_keeps(filtered.limits, rig.commands[sent:], rig.commands[sent - 1])


@pytest.mark.parametrize("topic, kind", [("joint_command", Float64MultiArray), ("action", JointTrajectory)])
def test_a_second_publisher_is_an_emergency_that_lasts_as_long_as_it_is_there(
    filtered: Set, topic: str, kind: type
) -> None:
    rig = filtered.rig
    rig.run()
    stranger = Node("stranger", use_global_arguments=False)
    publisher = stranger.create_publisher(kind, topic, RELIABLE)
    reason = rig.until("STOPPED")
    assert f"{topic} has 2 publishers" in reason and "/stranger" in reason
    rig.rest()
    assert_keeps(filtered.limits, rig.commands, rig.middle)
    assert not rig.trigger("reset")[0]
    stranger.destroy_publisher(publisher)
    stranger.destroy_node()
    filtered.probe.until(lambda: rig.trigger("reset")[0], "the stranger to be gone")
    assert rig.enable()[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_when_the_process_that_enabled_it_is_gone_it_disables_itself_within_a_second(
    filtered: Set, number: int
) -> None:
    rig, probe = filtered.rig, filtered.probe
    command = [sys.executable, "-m", "sage_ros.nodes.run_task", "do something", "--max-duration", "60"]
    operator = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        rig.until("RUNNING", timeout=40.0)
        rig.more(20)
        told, began = len(rig.states), time.monotonic()
        operator.send_signal(number)
        assert rig.until("DRY_RUN", timeout=5.0, since=told) == "who enabled it is gone"
        assert time.monotonic() - began < 1.0
        rig.rest()
        assert_keeps(filtered.limits, rig.commands, rig.middle)
    finally:
        operator.kill()
        operator.wait()
    sent = len(rig.commands)
    assert rig.enable()[0]  # by somebody who need not stay
    probe.until(lambda: len(rig.commands) > sent + 50, "set points")
    rig.until("RUNNING")


def test_a_robot_that_does_not_follow_is_stopped(make: Callable[..., Set]) -> None:
    rig = make(follow_tolerance=0.05, follow_time=0.2).rig
    rig.run()
    rig.follows = False
    assert "from its set point" in rig.until("STOPPED")


def test_a_robot_out_of_control_is_stopped(filtered: Set) -> None:
    rig = filtered.rig
    rig.run()
    rig.velocity = [0.0, 99.0, *[0.0] * (len(rig.names) - 2)]
    reason = rig.until("STOPPED")
    assert rig.names[1] in reason and "99.00/s" in reason


def test_deactivating_brakes_first_and_it_can_be_configured_again(filtered: Set) -> None:
    rig = filtered.rig
    rig.run()
    before = len(rig.commands)
    filtered.change(Transition.TRANSITION_DEACTIVATE)
    sent = filtered.node.counts["set_points_out"]
    filtered.probe.until(lambda: len(rig.commands) >= sent, "the last set point")
    end = np.array(rig.commands[-3:])
    assert len(rig.commands) > before + 2 and np.ptp(end, axis=0).max() < 1e-4  # it was under way, and came to rest
    assert_keeps(filtered.limits, rig.commands, rig.middle)
    assert not rig.enable()[0]
    filtered.change(Transition.TRANSITION_CLEANUP)
    rig.rest()
    assert len(rig.commands) == sent
    filtered.change(Transition.TRANSITION_CONFIGURE)
    filtered.change(Transition.TRANSITION_ACTIVATE)
    rig.until("DRY_RUN")
    rig.run()
    assert_keeps(filtered.limits, rig.commands[sent:], rig.commands[sent - 1])


def test_when_time_goes_back_old_plans_are_forgotten_and_new_ones_followed(make: Callable[..., Set]) -> None:
    filtered = make(simulated=True)
    rig = filtered.rig
    rig.run()
    turned, told = rig.simulated, len(rig.states)
    rig.simulated -= 5 * SECOND
    filtered.probe.until(lambda: stamps(rig.last[-1:])[0] < turned - SECOND, "set points of the new time")
    rig.until("RUNNING", since=told)
    rig.more(100)
    assert "HOLDING" in {state.status[0].message for state in rig.states[told:]}
    last = rig.last[-1]
    np.testing.assert_allclose(last.position, rig.planned(stamps([last])[0] / SECOND), atol=0.03)
    assert_keeps(filtered.limits, rig.commands, rig.middle)


def test_simulated_time_that_stands_still_stops_no_watchdog(make: Callable[..., Set]) -> None:
    filtered = make(simulated=True)
    rig = filtered.rig
    rig.run()
    rig.policy = rig.robot = False
    rig.until("HOLDING")
    rig.rest()
    assert_keeps(filtered.limits, rig.commands, rig.middle)


def described(names: list[str], velocity: float) -> String:
    limit = f'<limit lower="-3" upper="3" effort="1" velocity="{velocity}"/>'
    joints = "".join(
        f'<link name="l_{n}"/><joint name="{n}" type="revolute"><parent link="w"/><child link="l_{n}"/>{limit}</joint>'
        for n in names
    )
    return String(data=f'<robot name="r"><link name="w"/>{joints}</robot>')


def test_the_robot_description_tightens_limits_and_may_not_change_under_way(make: Callable[..., Set]) -> None:
    filtered = make(require_description=True)
    rig = filtered.rig
    filtered.probe.until(lambda: filtered.node._filter._measured is not None, "joint states")
    success, why = rig.enable()
    assert not success and "require_description" in why
    descriptions = filtered.probe.publisher(String, "robot_description", LATCHED)
    descriptions.publish(described(rig.names, 0.2))
    filtered.probe.until(lambda: filtered.node._filter.limits.velocity.max() == 0.2, "tighter limits")
    rig.run()
    rig.more(100)
    assert_keeps(filtered.node._filter.limits, rig.commands, rig.middle)
    descriptions.publish(described(rig.names, 0.1))
    assert "robot_description" in rig.until("STOPPED")
    rig.rest()
    assert_keeps(filtered.node._filter.limits, rig.commands, rig.middle)


def test_trajectories_tell_what_is_to_come_and_a_hold_is_one_point(filtered: Set) -> None:
    rig = filtered.rig
    trajectories = filtered.probe.listen(JointTrajectory, "joint_trajectory")
    filtered.probe.until(lambda: filtered.node._trajectories.get_subscription_count() > 0, "a match")
    rig.run()
    filtered.probe.until(lambda: len(trajectories) > 20, "trajectories")
    plan = trajectories[-1]
    assert plan.joint_names == rig.names and len(plan.points) > 5
    assert not any(len(point.velocities) + len(point.accelerations) + len(point.effort) for point in plan.points)
    due = np.array([nanoseconds(point.time_from_start) for point in plan.points]) / SECOND
    np.testing.assert_allclose(due, (np.arange(len(due)) + 1) / ROW_RATE, atol=1e-8)
    told = [np.array(point.positions) for point in plan.points]
    np.testing.assert_allclose(told, rig.planned(stamps([plan])[0] / SECOND + due), atol=0.05)
    rig.policy = False
    rig.until("HOLDING")
    rest = rig.rest()
    since = len(trajectories)
    filtered.probe.until(lambda: len(trajectories) > since + 3, "holds")
    assert [len(hold.points) for hold in trajectories[since:]] == [1] * len(trajectories[since:])
    np.testing.assert_allclose(trajectories[-1].points[0].positions, rest, atol=1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_once_the_robot_is_at_rest(probe: Probe, number: int) -> None:
    arguments = ["autostart:=true", *(f"{name}:={value}" for name, value in PATIENT.items())]
    command = [sys.executable, "-m", "sage_ros.nodes.safety_filter", "--ros-args"]
    child = subprocess.Popen([*command, *(word for text in arguments for word in ("-p", text))], start_new_session=True)
    rig = None
    try:
        rig = Rig(probe, usual_limits())
        rig.run()
        before = len(rig.commands)
        child.send_signal(number)
        assert child.wait(20) == 0
        rig.rest()
        assert len(rig.commands) > before + 2
        assert np.ptp(rig.commands[-3:], axis=0).max() < 1e-4  # the last one was delivered, and nothing moves
        assert_keeps(rig.limits, rig.commands, rig.middle)
    finally:
        child.kill()
        child.wait()
        if rig is not None:
            rig.close()
