"""run_task: a task's beginning, its ends, and what the robot is told at each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from graph import Graph, Probe
from hypothesis import given
from hypothesis import strategies as st
from rclpy.parameter import Parameter
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger

from sage_ros.core.attempt import Attempt, Outcome
from sage_ros.core.options import option
from sage_ros.nodes.bringup import Bringup
from sage_ros.nodes.lifecycle import LATCHED, SageNode
from sage_ros.nodes.liveliness import OPERATOR, Liveliness
from sage_ros.nodes.process import run
from sage_ros.nodes.run_task import RunTask

TASK = "pick up the red cube and place it on the plate"
COMMAND = [sys.executable, "-m", "sage_ros.nodes.run_task"]


@dataclass(frozen=True)
class StandInConfig:
    refusal: str = option("", "why it will not be enabled")
    moves: bool = option(True, "publish three set points when enabled")


class StandIn(SageNode):
    """Answers as the safety filter does, without a robot."""

    Config = StandInConfig

    def __init__(self) -> None:
        super().__init__("safety_filter")
        self.asked: list[bool] = []
        self.operators: list[bool] = []  # who says that it wants the robot to move: came, or went

    def setup(self) -> None:
        self._states = self.publish_on(DiagnosticArray, "~/state", LATCHED)
        self._commands = self.publish_on(Float64MultiArray, "joint_command")
        service = self.create_service(SetBool, "~/enable", self._on_enable)
        self._entities.append((self.destroy_service, service))
        self._liveliness = Liveliness(self, [OPERATOR], self._on_operator)

    def teardown(self) -> None:
        self._liveliness.close()

    def _on_operator(self, name: str, alive: bool) -> None:
        self.operators.append(alive)

    def start(self) -> None:
        self.tell("DRY_RUN", "not enabled")

    def tell(self, mode: str, reason: str = "") -> None:
        status = DiagnosticStatus(message=mode, values=[KeyValue(key="reason", value=reason)])
        self._states.publish(DiagnosticArray(status=[status]))

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self.asked.append(request.data)
        response.message = self.config.refusal if request.data else ""
        response.success = not response.message
        if response.success:
            self.tell("RUNNING" if request.data else "DRY_RUN")
            for _ in range(3 * request.data * self.config.moves):
                self._commands.publish(Float64MultiArray())
        return response


def main() -> int:
    """As a process of its own."""
    return run(StandIn)


class Bench:
    """run_task, a stand-in for the safety filter, and all that they say."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.probe = graph, graph.probe
        self.filter, self.node = graph.nodes
        self.tasks = self.probe.listen(String, "task", LATCHED)
        self.results = self.probe.listen(DiagnosticStatus, "run_task/result", LATCHED)
        self.feedback = self.probe.listen(DiagnosticStatus, "run_task/feedback", LATCHED)
        self.judge = self.probe.publisher(DiagnosticArray, "sim_robot/episode", LATCHED)
        self.probe.until(lambda: self.node.found, "the safety filter")

    def call(self, name: str) -> tuple[bool, str]:
        answer = self.probe.call(Trigger, f"run_task/{name}")
        return answer.success, answer.message

    def start(self) -> None:
        assert self.call("start") == (True, f"started: {TASK}")
        self.probe.until(lambda: self.node.filter_mode == "RUNNING", "the safety filter to be enabled")

    def say(self, success: bool) -> None:
        values = [KeyValue(key="success", value=str(success))]
        self.judge.publish(DiagnosticArray(status=[DiagnosticStatus(values=values)]))

    def result(self) -> str:
        """How it ended, once the robot holds."""
        self.probe.until(lambda: self.results and self.tasks and not self.tasks[-1].data, "a result")
        self.probe.until(lambda: not self.filter.asked[-1], "the safety filter to be disabled")
        return str(self.results[-1].message)


@pytest.fixture
def parameters() -> dict[str, Any]:
    return {"run_task:task": TASK}


@pytest.fixture
def bench(parameters: dict[str, Any]) -> Iterator[Bench]:
    with Graph([StandIn, RunTask], parameters) as graph:
        yield Bench(graph.up())


def values(status: DiagnosticStatus) -> dict[str, str]:
    return {pair.key: pair.value for pair in status.values}


def test_a_task_is_announced_enabled_and_ends_when_the_judge_says_so(bench: Bench) -> None:
    bench.say(False)
    bench.start()
    assert [task.data for task in bench.tasks] == [TASK]
    assert bench.filter.asked == [True]
    bench.say(False)
    bench.say(True)
    assert bench.result() == "succeeded"
    assert [task.data for task in bench.tasks] == [TASK, ""]
    assert bench.filter.asked == [True, False]


def test_what_succeeded_before_the_start_does_not_count(bench: Bench) -> None:
    bench.say(True)
    bench.start()
    bench.say(False)
    assert bench.node.running
    bench.call("cancel")
    assert bench.result() == "cancelled: asked to"


def test_a_task_can_be_cancelled_and_started_anew(bench: Bench) -> None:
    assert bench.call("cancel") == (False, "no task is under way")
    for _ in range(2):
        bench.start()
        assert bench.call("cancel") == (True, "cancelled: the robot holds")
        assert bench.result() == "cancelled: asked to"
        bench.probe.until(lambda: bench.node.settled, "the safety filter's answer")
    assert bench.filter.asked == [True, False, True, False]
    bench.probe.until(lambda: bench.filter.operators == [True, False] * 2, "the operator to come and go twice")


def test_a_task_ends_with_its_time(bench: Bench) -> None:
    bench.node.set_parameters([Parameter("max_duration", value=0.6)])
    began = time.monotonic()
    bench.start()
    assert bench.result() == "timed_out: not done within 0.6 s"
    assert time.monotonic() - began > 0.6
    assert float(values(bench.results[-1])["elapsed"]) == pytest.approx(0.6, abs=0.3)


def test_a_second_start_is_refused_and_disturbs_nothing(bench: Bench) -> None:
    bench.start()
    assert bench.call("start") == (False, f"'{TASK}' is under way: cancel it first")
    assert bench.filter.asked == [True]
    bench.say(True)
    assert bench.result() == "succeeded"


def test_a_second_run_task_is_refused_while_the_first_is_at_work(bench: Bench) -> None:
    bench.start()
    second = subprocess.run([*COMMAND, "dance"], capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert f"'{TASK}' is under way in another run_task" in second.stderr
    assert [task.data for task in bench.tasks] == [TASK]


@pytest.mark.parametrize(
    ("mode", "reason", "result"),
    [
        ("STOPPED", "asked to, by ~/stop", "stopped: asked to, by ~/stop"),
        ("DRY_RUN", "not enabled", "stopped: the safety filter was disabled"),
    ],
)
def test_a_task_ends_when_the_safety_filter_ends_it(bench: Bench, mode: str, reason: str, result: str) -> None:
    bench.start()
    bench.filter.tell("HOLDING", "no chunk for 0.1 s")
    bench.probe.until(lambda: bench.node.filter_mode == "HOLDING", "the hold")
    assert bench.node.running
    bench.filter.tell(mode, reason)
    assert bench.result() == result


def test_a_task_ends_when_the_safety_filter_vanishes(bench: Bench) -> None:
    bench.start()
    bench.graph.spinners.pop(0).close()
    bench.probe.until(lambda: bench.results, "a result", timeout=2.0)
    assert bench.results[-1].message == "stopped: safety_filter is gone"


def test_deactivating_cancels_the_task_and_the_robot_holds(bench: Bench) -> None:
    bench.start()
    with bench.graph.bringup() as bringup:
        bringup.down()
    assert bench.results[-1].message == "cancelled: run_task was deactivated"
    assert bench.tasks[-1].data == ""
    assert bench.filter.asked == [True, False]


def test_nothing_is_started_while_the_safety_filter_is_stopped(bench: Bench) -> None:
    bench.filter.tell("STOPPED", "overspeed")
    bench.probe.until(lambda: bench.node.filter_mode == "STOPPED", "the stop")
    assert bench.call("start") == (False, "the safety filter is stopped: overspeed; safety_filter/reset ends that")
    assert not bench.filter.asked and not bench.tasks


def test_a_task_needs_words(bench: Bench) -> None:
    bench.node.set_parameters([Parameter("task", value="")])
    assert bench.call("start") == (False, "no task: set the parameter task")


@pytest.mark.parametrize("parameters", [{"run_task:task": TASK, "safety_filter:refusal": "no joint_states"}])
def test_a_safety_filter_that_refuses_ends_the_task(bench: Bench) -> None:
    assert bench.call("start")[0]
    assert bench.result() == "stopped: safety_filter refused: no joint_states"


def test_feedback_tells_how_it_goes_twice_a_second(bench: Bench) -> None:
    bench.start()
    arrived = bench.probe.until(lambda: len(bench.feedback) >= 4 and list(bench.feedback), "feedback", timeout=4.0)
    assert {status.message for status in arrived} == {"under way"}
    about = values(arrived[-1])
    assert (about["task"], about["safety_filter"], about["set_points"]) == (TASK, "RUNNING", "3")
    assert 0.9 < float(about["elapsed"]) < 4.0
    bench.say(True)
    bench.result()
    bench.probe.until(lambda: bench.feedback[-1].message == "succeeded", "the last feedback")


# From a shell


@pytest.fixture
def stand_in(probe: Probe) -> Iterator[list[DiagnosticArray]]:
    """A stand-in for the safety filter in a process of its own: what it has said."""
    code = "import sys; sys.argv[0] = 'safety_filter'; import test_run_task; sys.exit(test_run_task.main())"
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    said = probe.listen(DiagnosticArray, "safety_filter/state", LATCHED)
    child = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    with Bringup(["safety_filter"]) as bringup:
        bringup.up()
    probe.until(lambda: said, "its state")
    yield said
    child.send_signal(signal.SIGINT)
    assert child.wait(15) == 0


@pytest.mark.parametrize(
    ("end", "code", "says"),
    [("success", 0, "succeeded after"), ("time", 3, "timed_out after 1.0"), ("ctrl-c", 130, "cancelled after")],
)
def test_the_command_runs_a_task_once(
    probe: Probe, stand_in: list[DiagnosticArray], end: str, code: int, says: str
) -> None:
    feedback = probe.listen(DiagnosticStatus, "run_task/feedback", LATCHED)
    command = [*COMMAND, TASK, "--max-duration", "1.0" if end == "time" else "60"]
    process = subprocess.Popen(command, text=True, stdout=-1, stderr=-1, start_new_session=True)
    try:
        if end != "time":
            probe.until(lambda: feedback and feedback[-1].message == "under way", "the task to begin")
        if end == "success":
            status = DiagnosticStatus(values=[KeyValue(key="success", value="True")])
            probe.publisher(DiagnosticArray, "sim_robot/episode").publish(DiagnosticArray(status=[status]))
        elif end == "ctrl-c":
            process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert said.startswith(says) and said.count("\n") == 1
    probe.until(lambda: stand_in[-1].status[0].message == "DRY_RUN", "the robot to hold")
    assert "Traceback" not in errors


def test_the_command_says_what_is_missing() -> None:
    done = subprocess.run([*COMMAND, TASK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "no safety_filter in the namespace /: is the pipeline up?" in done.stderr
    wrong = subprocess.run([*COMMAND, TASK, "--max-duration", "-1"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2
    assert "max_duration out of range" in wrong.stderr


# Without ROS

MODES = st.sampled_from(["DRY_RUN", "RUNNING", "HOLDING", "STOPPED"])
STEPS = st.one_of(
    st.tuples(st.just("heed"), MODES),
    st.tuples(st.just("end"), st.sampled_from(Outcome)),
    st.tuples(st.just("pass"), st.floats(0.0, 20.0)),
)


@given(steps=st.lists(STEPS, max_size=30), longest=st.floats(0.1, 10.0))
def test_the_first_end_of_an_attempt_counts(steps: list[tuple[str, Any]], longest: float) -> None:
    attempt, enabled, expected = Attempt(TASK, longest, 0.0), False, None
    for kind, what in steps:
        if kind == "heed":
            attempt.heed(what, "because")
            ends = what == "STOPPED" or (what == "DRY_RUN" and enabled)
            expected = expected or (Outcome.STOPPED if ends else None)
            enabled = enabled or what in ("RUNNING", "HOLDING")
        elif kind == "end":
            attempt.end(what)
            expected = expected or what
        else:
            attempt.pass_time(what)
            expected = expected or (Outcome.TIMED_OUT if what >= longest else None)
        assert attempt.outcome is expected
