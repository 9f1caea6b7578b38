"""run_task: one task at a time, from its announcement to its result; as a node with services, or once from a shell."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from rclpy.utilities import remove_ros_args
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger

from sage_ros.core.attempt import Attempt, Outcome
from sage_ros.core.options import check, option
from sage_ros.core.pace import Pace
from sage_ros.nodes.lifecycle import LATCHED, RELIABLE, SageNode, Status, values_of
from sage_ros.nodes.liveliness import OPERATOR, Liveliness, announce
from sage_ros.nodes.monitor import LiveLine
from sage_ros.nodes.process import StopRequest, leave_ros, make_executor, run

FILTER = "safety_filter"
UNDER_WAY = "under way"
LOOK, FEEDBACK = 0.05, 0.5  # s between looks at the clock, and between messages
ANSWER = 5.0  # s that the safety filter has for an answer
DISCOVERY = 5.0  # s in which a pipeline is found
EXIT = {Outcome.SUCCEEDED: 0, Outcome.STOPPED: 1, Outcome.TIMED_OUT: 3, Outcome.CANCELLED: 130}


@dataclass(frozen=True)
class TaskConfig:
    task: str = option("", "what the robot shall do, in words that the policy was trained with")
    max_duration: float = option(30.0, "longest time for it (s of the node's clock)", low=0.1, high=86400.0)
    success_topic: str = option("sim_robot/episode", "DiagnosticArray whose value 'success' is True once it is done")

    def __post_init__(self) -> None:
        check(self)


class RunTask(SageNode):
    """~/start and ~/cancel (Trigger) -> task, safety_filter/enable; ~/feedback and ~/result (DiagnosticStatus).

    An attempt publishes its task and enables the safety filter, which disables itself should this process die. It ends
    when ``success_topic`` says so, after ``max_duration``, by ~/cancel or deactivation, or when the safety filter
    stops, is disabled or vanishes. Then the task becomes empty and the safety filter is disabled, so that the robot
    holds. The result's message is succeeded, timed_out, cancelled or stopped, with the reason. Where nobody judges, no
    attempt succeeds.
    """

    Config = TaskConfig
    config: TaskConfig
    live = frozenset({"task", "max_duration"})

    def __init__(self, **kwargs: object) -> None:
        super().__init__("run_task", **kwargs)
        self.attempt: Attempt | None = None  # the one under way, or the last one
        self.filter_mode, self._filter_reason = "", ""
        self._metabolism = ""
        self._liveliness: Liveliness | None = None
        # The unanswered request to the safety filter (None: not sent yet), and since when
        self._asked: tuple[Future | None, float] | None = None
        self._lease: Any = None  # at its loss the safety filter disables itself: should this process be killed
        self._reported = True  # how the attempt ended
        self._other = ""  # the task that another run_task has under way
        self._who = f"{self.get_fully_qualified_name()} of process {os.getpid()}"

    def setup(self) -> None:
        self._tasks = self.publish_on(String, "task", LATCHED)
        self._feedback = self.publish_on(DiagnosticStatus, "~/feedback", LATCHED)
        self._results = self.publish_on(DiagnosticStatus, "~/result", LATCHED)
        self.listen(DiagnosticArray, f"{FILTER}/state", self._on_filter, LATCHED, always=True)
        self.listen(Float64MultiArray, "joint_command", self._on_set_point)
        self.listen(DiagnosticStatus, "~/feedback", self._on_feedback, LATCHED)
        if self.config.success_topic:
            # Not latched: that something succeeded before says nothing.
            self.listen(DiagnosticArray, self.config.success_topic, self._on_judgement, RELIABLE)
        self.listen_to_metabolism(self._on_metabolism)
        self._client = self.create_client(SetBool, f"{FILTER}/enable")
        self._entities.append((self.destroy_client, self._client))
        for name, act in (("start", self.begin), ("cancel", self.cancel)):
            self.serve(Trigger, f"~/{name}", _answer(act))
        self._liveliness = Liveliness(self, [FILTER], self._on_liveliness)
        self.every(LOOK, self._look, clock=self.steady)
        self.every(FEEDBACK, self._tell, clock=self.steady)

    def teardown(self) -> None:
        self._end_lease()
        if self._liveliness is not None:
            self._liveliness.close()
            self._liveliness = None

    def stop(self) -> None:
        self._end(Outcome.CANCELLED, "run_task was deactivated")

    def clear(self) -> None:
        self._end(Outcome.STOPPED, "time went back")

    # An attempt

    @property
    def running(self) -> bool:
        return self.attempt is not None and self.attempt.outcome is None

    @property
    def settled(self) -> bool:
        """Nothing is under way, and the safety filter has acknowledged that."""
        return not self.running and self._asked is None

    @property
    def found(self) -> bool:
        """There is a safety filter, and its end would be noticed."""
        here = self._liveliness is not None and FILTER in self._liveliness.alive
        return here and bool(self.filter_mode) and self._client.service_is_ready()

    def begin(self) -> tuple[bool, str]:
        """Start the task of the parameters. Returns whether that was possible, and a line about it."""
        if refusal := self._refusal():
            return False, refusal
        self.attempt = Attempt(self.config.task, self.config.max_duration, self._now())
        self._reported = False
        self._tasks.publish(String(data=self.config.task))
        self._lease = self._lease or announce(self, OPERATOR)
        self._asked = (None, self._steady())
        self._look()
        self._tell()
        return True, f"started: {self.config.task}"

    def _refusal(self) -> str:
        if not self.active:
            return "run_task is not active: bring it up first"
        if self.attempt is not None and not self.settled:
            return f"'{self.attempt.task}' is under way: cancel it first"
        if self._other:
            return f"'{self._other}' is under way in another run_task: cancel it first"
        if not self.config.task:
            return "no task: set the parameter task"
        if not self.found:
            return f"no {FILTER} in the namespace {self.get_namespace()}: is the pipeline up?"
        if self.filter_mode == "STOPPED":
            return f"the safety filter is stopped: {self._filter_reason}; {FILTER}/reset ends that"
        if self._now() == 0.0:
            return "use_sim_time is on, but there is no /clock"
        return ""

    def cancel(self) -> tuple[bool, str]:
        """End the task. Returns whether there was one, and a line about it."""
        if not self.running:
            return False, "no task is under way"
        self._end(Outcome.CANCELLED, "asked to")
        return True, "cancelled: the robot holds"

    def _end(self, outcome: Outcome, reason: str = "") -> None:
        if self.attempt is not None:
            self.attempt.end(outcome, reason)
            self._look()

    def _look(self) -> None:
        """Let time pass; once the attempt has ended, see that the robot holds, and say how it ended."""
        waits = self.running and self._asked is not None and self._asked[0] is None
        if waits and self._lease.get_subscription_count():  # not before its loss would be noticed
            self._ask(True)
        if self._asked is not None and self._steady() - self._asked[1] > ANSWER:
            self._asked = None
            self._end_lease()
            self._end(Outcome.STOPPED, f"{FILTER}/enable did not answer")
        if self.attempt is None or self._reported:
            return
        self.attempt.pass_time(self._now())
        if self.attempt.outcome is not None:
            self._reported = True
            self._tasks.publish(String(data=""))
            self._ask(False)
            self._tell_end(self.attempt, self.attempt.outcome)

    def _ask(self, enable: bool) -> None:
        future = self._client.call_async(SetBool.Request(data=enable))
        self._asked = (future, self._steady())
        future.add_done_callback(self._on_answer)

    def _on_answer(self, future: Future) -> None:
        awaited = self._asked[0] if self._asked is not None else None
        if awaited is None or awaited is not future:
            return
        self._asked = None
        answer = future.result()
        if not self.running:
            self._end_lease()
        if not answer.success:
            self._end(Outcome.STOPPED, f"{FILTER} refused: {answer.message}")
        elif self.attempt is not None:
            self.attempt.heed(self.filter_mode, self._filter_reason)

    def _end_lease(self) -> None:
        if self._lease is not None:
            self.destroy_publisher(self._lease)
            self._lease = None

    # Input

    def _on_filter(self, message: DiagnosticArray) -> None:
        status = message.status[0]
        self.filter_mode, self._filter_reason = status.message, values_of(status).get("reason", "")
        if self.attempt is not None:
            self.attempt.heed(self.filter_mode, self._filter_reason)
            self._look()

    def _on_liveliness(self, name: str, alive: bool) -> None:
        if not alive:
            self.filter_mode = ""
            self._end(Outcome.STOPPED, f"{name} is gone")

    def _on_judgement(self, message: DiagnosticArray) -> None:
        if any(values_of(status).get("success") == "True" for status in message.status):
            self._end(Outcome.SUCCEEDED)

    def _on_set_point(self, message: Float64MultiArray) -> None:
        if self.attempt is not None and self.running:
            self.attempt.set_points += 1

    def _on_metabolism(self, pace: Pace) -> None:
        self._metabolism = pace.state

    def _on_feedback(self, message: DiagnosticStatus) -> None:
        if message.hardware_id != self._who:
            self._other = values_of(message).get("task", "?") if message.message == UNDER_WAY else ""

    # Output

    def _tell(self) -> None:
        if self.attempt is not None and self.running:
            self._feedback.publish(self._about(self.attempt, UNDER_WAY, DiagnosticStatus.OK))

    def _tell_end(self, attempt: Attempt, outcome: Outcome) -> None:
        level = DiagnosticStatus.OK if outcome is Outcome.SUCCEEDED else DiagnosticStatus.WARN
        report = self._about(attempt, f"{outcome.value}{': ' if attempt.reason else ''}{attempt.reason}", level)
        self._feedback.publish(report)
        self._results.publish(report)
        self.get_logger().info(f"'{attempt.task}' {report.message}")

    def _about(self, attempt: Attempt, message: str, level: bytes) -> DiagnosticStatus:
        values: dict[str, object] = {
            "task": attempt.task, "elapsed": f"{attempt.elapsed:.3f}", "max_duration": attempt.longest,
            "set_points": attempt.set_points, "safety_filter": self.filter_mode, "reason": self._filter_reason,
            "metabolic_state": self._metabolism,
        }  # fmt: skip
        status = DiagnosticStatus(level=level, name=f"{self.get_name()}: task", message=message)
        status.hardware_id = self._who
        status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        return status

    @property
    def line(self) -> str:
        """The moment, for people."""
        if self.attempt is None:
            return f"looking for {FILTER}"
        mode = f"{self.filter_mode}{': ' if self._filter_reason else ''}{self._filter_reason}"
        time = f"{self.attempt.elapsed:.1f} of {self.attempt.longest:g} s"
        return f"{time}, {self.attempt.set_points} set points, {mode}, {self._metabolism}"

    def status(self) -> Status:
        if self.attempt is None:
            return DiagnosticStatus.OK, "no task yet", {}
        end = self.attempt.outcome
        return DiagnosticStatus.OK, f"'{self.attempt.task}': {end.value if end else self.line}", {}

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds / 1e9

    def _steady(self) -> float:
        return self.steady.now().nanoseconds / 1e9


def _answer(act: Callable[[], tuple[bool, str]]) -> Callable[[Any, Any], Any]:
    def answer(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = act()
        return response

    return answer


def main(args: list[str] | None = None) -> int:
    argv = sys.argv if args is None else ["run_task", *args]
    options = _parse(remove_ros_args(argv)[1:])
    if not options.task:
        return run(RunTask, argv)
    rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
    stop = StopRequest()
    node = RunTask()
    try:
        return _run_once(node, options, stop)
    finally:
        node.shut_down()
        leave_ros()


def _parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run_task",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Have the robot do one task, in a pipeline that is up:\n\n"
        '  ros2 run sage_ros run_task "pick up the red cube and place it on the plate" --max-duration 30\n\n'
        "enables the safety filter, shows what happens, and lets the robot hold at the end. Ctrl-C cancels.\n"
        "Without TASK it is a lifecycle node: ros2 service call /run_task/start std_srvs/srv/Trigger, and ~/cancel;\n"
        "what to do is in its parameters task and max_duration, how it goes on ~/feedback, the end on ~/result.",
        epilog="Exit code 0: succeeded, as success_topic (parameter; sim_robot/episode) says; 3: its time is over.\n"
        "Where nobody judges, as on most real robots, that is the best there is. 1: it could not start, or the\n"
        "safety filter stopped it; 130: cancelled. ROS arguments: --ros-args -r __ns:=/left -p use_sim_time:=true",
    )
    parser.add_argument("task", nargs="?", default="", metavar="TASK", help="what to do; none: be a node with services")
    parser.add_argument("--max-duration", type=float, metavar="S", help="longest time for it, in s (default: 30)")
    options = parser.parse_args(args)
    if options.max_duration is not None and not options.task:
        parser.error("--max-duration goes with a TASK; without one it is a parameter: --ros-args -p max_duration:=30.0")
    return options


def _run_once(node: RunTask, options: argparse.Namespace, stop: StopRequest) -> int:
    """In one thread: the node spins while its line is shown."""
    changes = [Parameter("task", value=options.task)]
    if options.max_duration is not None:
        changes.append(Parameter("max_duration", value=options.max_duration))
    for result in node.set_parameters(changes):
        if not result.successful:
            print(f"run_task: {result.reason}", file=sys.stderr)
            return 2
    if node.trigger_configure() != TransitionCallbackReturn.SUCCESS:
        return 1
    node.trigger_activate()
    executor, live = make_executor(), LiveLine()
    executor.add_node(node)

    def spin(until: Callable[[], bool], seconds: float = float("inf")) -> None:
        end = time.monotonic() + seconds
        while not until() and time.monotonic() < end:
            executor.spin_until_future_complete(Future(), 0.1)
            live.show(node.line)

    try:
        spin(lambda: stop.is_set() or node.found, DISCOVERY)
        spin(stop.is_set, FEEDBACK)  # another run_task is heard by then
        begun, line = (False, "cancelled before it began") if stop.is_set() else node.begin()
        spin(lambda: stop.is_set() or not node.running)
        node.cancel()
        spin(lambda: node.settled, ANSWER)
    finally:
        live.close()
        executor.remove_node(node)
        executor.shutdown()
    attempt = node.attempt
    if not begun or attempt is None or attempt.outcome is None:
        print(f"run_task: {line}", file=sys.stderr)
        return EXIT[Outcome.CANCELLED] if stop.is_set() else 1
    because = f": {attempt.reason}" if attempt.reason else ""
    print(f"{attempt.outcome.value} after {attempt.elapsed:.1f} s and {attempt.set_points} set points{because}")
    return EXIT[attempt.outcome]


if __name__ == "__main__":
    sys.exit(main())
