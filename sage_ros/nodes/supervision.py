"""Bring lifecycle nodes up in order, keep them up, and take them down in reverse, as any lifecycle manager would."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from lifecycle_msgs.msg import State, Transition, TransitionEvent
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import SetBool

from sage_ros.core.restarts import RestartLimit
from sage_ros.nodes.lifecycle import RELIABLE
from sage_ros.nodes.liveliness import Liveliness
from sage_ros.nodes.process import make_executor

ANNOUNCEMENT = 5.0  # s until every node should have been heard of
REPEAT = 0.5  # s until a request that may be repeated is
RETRY = 1.0  # s between two attempts to bring a node up again, doubled after each: what a dead process held takes time
ENABLING = 10.0  # s for the robot's joint states to come in


class BringupError(RuntimeError):
    """What ends a bring-up: says which node, at what, and where to look."""


class NodeError(BringupError):
    """A node that did not do as asked, or that vanished meanwhile: another attempt may help."""


class Stopped(BringupError):
    """Somebody asked to stop."""


class Bringup:
    """Drives the named lifecycle nodes of ``namespace``, whether they run in this process or in others.

    ``check`` is called while waiting and may raise, so that the death of a node's process ends the wait.
    ``follow_arguments`` takes namespace and remappings from the process's ROS arguments.
    """

    def __init__(
        self,
        names: Sequence[str],
        namespace: str = "",
        timeout: float = 60.0,
        check: Callable[[], None] = lambda: None,
        follow_arguments: bool = False,
    ) -> None:
        self.names, self.timeout, self.check = tuple(names), timeout, check
        self.missing: dict[str, float] = {}  # nodes that were here and are gone, with the monotonic time since when
        self._met: set[str] = set()  # nodes that have answered
        self._node = Node("bringup", namespace=namespace or None, use_global_arguments=follow_arguments)
        self._executor = make_executor()
        self._executor.add_node(self._node)
        self._liveliness = Liveliness(self._node, names, self._on_alive)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._executor.remove_node(self._node)
        self._executor.shutdown()
        self._node.destroy_node()

    def up(self) -> None:
        """Configure all, then activate all in order. Raises BringupError."""
        for name in self.names:
            self.change(name, Transition.TRANSITION_CONFIGURE)
        for name in self.names:
            self.change(name, Transition.TRANSITION_ACTIVATE)

    def enable(self, name: str = "safety_filter") -> None:
        """Let commands out to the robot, once its joints are known. Raises BringupError, saying why not."""
        deadline = time.monotonic() + ENABLING
        while not (answer := self._ask(name, SetBool, "enable", SetBool.Request(data=True), repeat=True)).success:
            if time.monotonic() > deadline:
                raise BringupError(f"{name} refused to be enabled: {answer.message}")
            self.check()
            self.spin(REPEAT)

    def meet(self, name: str) -> None:
        """Wait until another node, which is no lifecycle node, is there too. Raises BringupError."""
        self._wait(name, lambda: name in self._node.get_node_names(), "did not come")

    def down(self) -> None:
        """Deactivate all in reverse order, then clean them up, so that they can be brought up again.

        Raises BringupError.
        """
        for name in reversed(self.names):
            self._take(name, State.PRIMARY_STATE_ACTIVE, Transition.TRANSITION_DEACTIVATE)
        for name in reversed(self.names):
            self._take(name, State.PRIMARY_STATE_INACTIVE, Transition.TRANSITION_CLEANUP)

    def _take(self, name: str, state: int, transition: int) -> None:
        if self.state(name) == state:
            self.change(name, transition)

    def state(self, name: str) -> int:
        """The node's lifecycle state, a constant of lifecycle_msgs/State. Raises BringupError."""
        return self._ask(name, GetState, "get_state", GetState.Request(), repeat=True).current_state.id

    def change(self, name: str, transition: int) -> None:
        """Ask for a transition, a constant of lifecycle_msgs/Transition. Raises BringupError if it fails."""
        # The dead process of a restarted node stays in the graph for 20 s, and a request may reach it alone. One that
        # must not be repeated goes out once another, discovered later than its own service, was answered.
        self.state(name)
        request = ChangeState.Request(transition=Transition(id=transition))
        if not self._ask(name, ChangeState, "change_state", request).success:
            verb = {Transition.TRANSITION_CONFIGURE: "configured", Transition.TRANSITION_ACTIVATE: "activated"}
            raise NodeError(f"{name} could not be {verb.get(transition, 'changed')}: see its error above")

    def _ask(self, name: str, kind: type, service: str, request: object, repeat: bool = False) -> Any:
        """The answer; ``repeat`` sends the request anew where none comes."""
        client = self._node.create_client(kind, f"{name}/{service}")
        try:
            self._wait(name, client.service_is_ready, "does not answer: is it running?")
            futures = [client.call_async(request)]
            sent = time.monotonic()

            def answered() -> bool:
                nonlocal sent
                if repeat and time.monotonic() - sent > REPEAT:
                    sent = time.monotonic()
                    futures.append(client.call_async(request))
                return any(future.done() for future in futures)

            self._wait(name, answered, f"did not finish {service} within {self.timeout:.0f} s", futures[0])
            self._met.add(name)
            return next(future.result() for future in futures if future.done())
        finally:
            self._node.destroy_client(client)

    def _wait(self, name: str, ready: Callable[[], bool], complaint: str, future: Future | None = None) -> None:
        deadline = time.monotonic() + self.timeout
        while not ready():
            self.check()
            if name in self.missing:
                raise NodeError(f"{name} has ended or stands still: it was asked for something and did not answer")
            if time.monotonic() > deadline:
                raise NodeError(f"{name} {complaint}")
            self.spin(0.02, future)

    def spin(self, seconds: float, future: Future | None = None) -> None:
        """Let callbacks run for a while, or until ``future`` is done."""
        self._executor.spin_until_future_complete(Future() if future is None else future, seconds)

    def _on_alive(self, name: str, alive: bool) -> None:
        if alive:
            self.missing.pop(name, None)
        else:
            self.missing[name] = time.monotonic()


class Supervisor(Bringup):
    """A bring-up that stays: whoever falls is brought up again, alone, while the others go on.

    A node's process is started anew by what started it (a launch file's ``respawn``), or by ``respawn``, which is told
    who is missing since when (monotonic, s; not who is starting already) and returns the names that it has started. A
    node that went through an error is brought up too; one that somebody deactivated is left alone. Nothing is ever
    enabled here: a safety filter that comes back is in dry run, and stays so until a person says otherwise.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        restart: Collection[str] | None = None,
        respawn: Callable[[Mapping[str, float]], list[str]] = lambda missing: [],
        limit: RestartLimit | None = None,
        patience: float = 30.0,
        **options: Any,
    ) -> None:
        """``restart`` names who may be restarted (all), ``patience`` is the longest that one may be gone (s)."""
        self._fallen: set[str] = set()  # to be brought up as soon as they are there
        self._started: set[str] = set()  # processes started anew that have not been brought up yet
        self._heard: set[str] = set()
        self._watching = lambda: False  # what happens while going down is no accident
        super().__init__(names, **options)
        self._restart = frozenset(names if restart is None else restart)
        self._respawn, self._limit, self._patience = respawn, limit or RestartLimit(), patience
        self._next_try, self._failures = 0.0, 0
        for name in names:
            topic, act = f"{name}/transition_event", lambda event, name=name: self._on_transition(name, event)
            self._node.create_subscription(TransitionEvent, topic, act, RELIABLE)

    def run(self, stopped: Callable[[], bool]) -> None:
        """Once all are up, keep them up until ``stopped()``. Raises BringupError, saying why it gave up."""
        log, check = self._node.get_logger(), self.check
        self._watching = lambda: not stopped()

        def check_both() -> None:
            check()
            if stopped():
                raise Stopped("stopped")

        self.check = check_both
        try:
            self._await_announcements()
            self._fallen.update(name for name in self.names if self._fell(name))
            while True:
                self.check()
                self.spin(0.1)
                self._tend()
        except Stopped:
            log.info("stopping")
        finally:
            self.check, self._watching = check, lambda: False

    def down(self) -> None:
        """As :meth:`Bringup.down`, but whoever is gone, never came or does not answer is passed over."""
        self.timeout = min(self.timeout, 5.0)
        super().down()

    def _take(self, name: str, state: int, transition: int) -> None:
        try:
            if name in self._met and name not in self.missing:
                super()._take(name, state, transition)
        except NodeError as error:
            if name not in self.missing:  # a launch file stops all nodes at once
                self._node.get_logger().warning(str(error))

    @property
    def unheard(self) -> list[str]:
        """Who has not announced itself yet: its death would not be noticed."""
        return [name for name in self.names if name not in self._heard]

    # While it watches

    def _on_alive(self, name: str, alive: bool) -> None:
        super()._on_alive(name, alive)
        heard_first, self._heard = name not in self._heard, self._heard | {name}
        if heard_first or not self._watching():
            return
        self._fallen.add(name)
        if not alive:
            self._node.get_logger().error(f"{name} IS GONE: its process has ended or stands still")

    def _on_transition(self, name: str, event: TransitionEvent) -> None:
        if self._watching() and event.goal_state.id == State.TRANSITION_STATE_ERRORPROCESSING:
            self._node.get_logger().error(f"{name} FAILED during '{event.start_state.label}': see its error")
            self._fallen.add(name)

    def _await_announcements(self) -> None:
        deadline = time.monotonic() + ANNOUNCEMENT
        while self.unheard and time.monotonic() < deadline:
            self.check()
            self.spin(0.1)
        for name in self.unheard:
            self._node.get_logger().warning(f"nobody says {name}/alive: should {name} die, it will not be noticed")

    def _fell(self, name: str) -> bool:
        """Whether it was replaced or died after it was brought up, before anybody watched."""
        try:
            return self.state(name) == State.PRIMARY_STATE_UNCONFIGURED
        except NodeError:
            return True

    def _tend(self) -> None:
        now = time.monotonic()
        for name, since in self.missing.items():
            if name not in self._restart:
                raise BringupError(f"{name} is gone, and may not be restarted")
            if now - since > self._patience:
                raise BringupError(f"{name} has been gone for {self._patience:g} s: does anything start it again?")
        for name in self._respawn({name: since for name, since in self.missing.items() if name not in self._started}):
            if name in self._started:  # and has ended again, before it could be brought up
                self._spend(name)
            self._started.add(name)
            self._node.get_logger().warning(f"{name} is started again")
        if now >= self._next_try:
            try:
                self._mend([name for name in self.names if name in self._fallen and name not in self.missing])
                self._failures = 0
            except NodeError as error:
                self._node.get_logger().error(str(error))
                self._next_try = time.monotonic() + RETRY * 2**self._failures
                self._failures += 1

    def _spend(self, name: str) -> None:
        """Take note of a restart. Raises BringupError if it is one too many."""
        if not self._limit.allows(name, time.monotonic()):
            limit = f"{self._limit.count} restarts within {self._limit.window:.0f} s"
            raise BringupError(f"{name} fell again after {limit}: giving up, see its errors above")

    def _mend(self, names: Sequence[str]) -> None:
        """Bring these up again, in order. Raises NodeError for the first that does not come up."""
        for name in names:
            if (state := self.state(name)) == State.PRIMARY_STATE_ACTIVE:
                self._rise(name)
                continue
            if name not in self._restart:
                raise BringupError(f"{name} is not active any more, and may not be restarted")
            self._spend(name)
            if state == State.PRIMARY_STATE_UNCONFIGURED:
                self.change(name, Transition.TRANSITION_CONFIGURE)
        for name in names:
            if name in self._fallen:
                self.change(name, Transition.TRANSITION_ACTIVATE)
                self._rise(name)
                self._node.get_logger().warning(f"{name} is active again")

    def _rise(self, name: str) -> None:
        self._fallen.discard(name)
        self._started.discard(name)
