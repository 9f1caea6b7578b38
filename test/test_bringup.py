"""Bring-up and supervision: order, nodes that die, stand still or fail, and how often they are helped up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from graph import Graph, Probe
from hypothesis import given
from hypothesis import strategies as st
from lifecycle_msgs.msg import State, Transition, TransitionEvent
from lifecycle_msgs.srv import ChangeState

from sage_ros.core.restarts import RestartLimit
from sage_ros.nodes.lifecycle import SageNode
from sage_ros.nodes.liveliness import ALLOWED, Liveliness
from sage_ros.nodes.supervision import Bringup, BringupError, NodeError, Supervisor

MANAGER = [sys.executable, "-m", "sage_ros.nodes.metabolic_manager", "--ros-args", "-r"]
HISTORY: list[tuple[str, str]] = []


@dataclass(frozen=True)
class NoConfig:
    """No parameters."""


class Recorded(SageNode):
    """A node that writes down what it is asked to do."""

    Config = NoConfig

    def setup(self) -> None:
        HISTORY.append((self.get_name(), "configure"))

    def start(self) -> None:
        HISTORY.append((self.get_name(), "activate"))

    def stop(self) -> None:
        HISTORY.append((self.get_name(), "deactivate"))
        if self.get_name() == "clumsy" and HISTORY.count(("clumsy", "deactivate")) == 1:
            raise KeyError("fell while stopping")

    def teardown(self) -> None:
        HISTORY.append((self.get_name(), "clean up"))


class Family:
    """Node processes by name, which can be started, signalled and started again."""

    def __init__(self) -> None:
        self.children: dict[str, subprocess.Popen[Any]] = {}
        self.remedy: list[str] = []  # what is started in a node's place

    def start(self, *names: str) -> None:
        for name in names:
            command = self.remedy or [*MANAGER, f"__node:={name}"]
            self.children[name] = subprocess.Popen(command, start_new_session=True)

    def respawn(self, missing: Mapping[str, float]) -> list[str]:
        ended = [name for name, child in self.children.items() if child.poll() is not None]
        self.start(*ended)
        return ended

    def signal(self, name: str, number: int) -> float:
        self.children[name].send_signal(number)
        return time.monotonic()

    def close(self) -> None:
        for child in self.children.values():
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@pytest.fixture
def family() -> Iterator[Family]:
    family = Family()
    yield family
    family.close()


class Supervised:
    """A supervisor at work in a thread of its own: ``error`` says why it gave up."""

    def __init__(self, *names: str, **options: Any) -> None:
        self.supervisor = Supervisor(names, timeout=30.0, **options)
        self.error: BringupError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Supervised:
        self.supervisor.__enter__()
        self.supervisor.up()
        self._thread.start()
        return self

    def _run(self) -> None:
        try:
            self.supervisor.run(self._stop.is_set)
        except BringupError as error:
            self.error = error

    @property
    def watches(self) -> bool:
        return self._thread.is_alive()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.supervisor.__exit__()


def state(name: str) -> int:
    with Bringup([name], timeout=10.0) as bringup:
        return bringup.state(name)


def active(name: str) -> bool:
    try:
        return state(name) == State.PRIMARY_STATE_ACTIVE
    except NodeError:  # it died while it was asked
        return False


class Ear:
    """What a watcher of ``victim`` was told, and when."""

    def __init__(self, probe: Probe) -> None:
        self.changes: list[tuple[bool, float]] = []
        self._probe = probe
        self._liveliness = Liveliness(probe.node, ["victim"], self._hear)

    def _hear(self, name: str, alive: bool) -> None:
        assert name == "victim"
        self.changes.append((alive, time.monotonic()))

    def hear(self, alive: bool) -> float:
        """Wait until the last that was heard is ``alive``; returns when (monotonic, s)."""
        self._probe.until(lambda: self.changes and self.changes[-1][0] == alive, f"alive: {alive}")
        return self.changes[-1][1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGINT], ids=lambda number: number.name)
def test_the_end_of_a_process_is_noticed_within_a_second(probe: Probe, family: Family, number: int) -> None:
    ear = Ear(probe)
    family.start("victim")
    ear.hear(True)
    sent = family.signal("victim", number)
    assert 0.0 < ear.hear(False) - sent < 1.0
    if number == signal.SIGSTOP:
        sent = family.signal("victim", signal.SIGCONT)
        assert ear.hear(True) - sent < 1.0


def test_a_node_that_is_replaced_before_it_was_missed_is_reported_again(probe: Probe, family: Family) -> None:
    ear = Ear(probe)
    family.start("victim")
    ear.hear(True)
    before = len(ear.changes)
    old = family.children["victim"]
    family.start("victim")
    probe.until(lambda: len(ear.changes) > before, "the second node of that name")
    assert all(alive for alive, _ in ear.changes)
    old.kill()
    old.wait()
    family.signal("victim", signal.SIGKILL)
    ear.hear(False)


def test_a_node_of_the_same_process_is_alive_until_it_is_destroyed() -> None:
    with Graph([lambda: Recorded("victim")]) as graph:
        ear = Ear(graph.probe)
        ear.hear(True)
        with pytest.raises(AssertionError, match="in vain"):
            graph.probe.until(lambda: len(ear.changes) > 1, "it to be missed", timeout=3 * ALLOWED)
        graph.spinners.pop().close()
        ear.hear(False)


def test_nodes_come_up_in_order_and_go_down_in_reverse() -> None:
    HISTORY.clear()
    names = ["first", "second", "third"]
    with Graph([lambda name=name: Recorded(name) for name in names]) as graph, graph.bringup() as bringup:
        bringup.up()
        assert [(n, "configure") for n in names] + [(n, "activate") for n in names] == HISTORY
        HISTORY.clear()
        bringup.down()
        downwards = names[::-1]
        assert [(n, "deactivate") for n in downwards] + [(n, "clean up") for n in downwards] == HISTORY
        bringup.up()
        assert all(bringup.state(name) == State.PRIMARY_STATE_ACTIVE for name in names)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_node_that_dies_is_brought_up_again_while_the_others_go_on(probe: Probe, family: Family, number: int) -> None:
    family.start("first", "second")
    with Supervised("first", "second", respawn=family.respawn) as supervised:
        bystander = family.children["first"].pid
        family.signal("second", number)
        family.children["second"].wait()
        probe.until(lambda: family.children["second"].poll() is None, "a new process")
        probe.until(lambda: active("second"), "second to be active again")
        assert supervised.watches
        assert family.children["first"].pid == bystander
        assert active("first")


def test_a_node_that_stood_still_goes_on_where_it_was(probe: Probe, family: Family) -> None:
    family.start("first", "second")
    ear = probe.listen(TransitionEvent, "second/transition_event")
    probe.until(lambda: probe.node.count_publishers("second/transition_event"), "its transitions to be told")
    with Supervised("first", "second") as supervised:
        probe.until(lambda: not supervised.supervisor.unheard, "both to be watched")
        probe.until(lambda: ear and ear[-1].goal_state.label == "active", "the last transition of the bring-up")
        before = len(ear)
        family.signal("second", signal.SIGSTOP)
        probe.until(lambda: "second" in supervised.supervisor.missing, "its absence to be noticed", timeout=1.0)
        family.signal("second", signal.SIGCONT)
        probe.until(lambda: not supervised.supervisor.missing, "its return to be noticed", timeout=1.0)
        assert active("second")
        assert len(ear) == before
    assert supervised.error is None


def test_a_node_that_falls_too_often_ends_the_supervision_with_a_reason(probe: Probe, family: Family) -> None:
    family.start("first", "second")
    with Supervised("first", "second", respawn=family.respawn, limit=RestartLimit(1, 60.0)) as supervised:
        for _ in range(2):
            probe.until(lambda: active("second"), "second to be active")
            family.signal("second", signal.SIGKILL)
            family.children["second"].wait()
        probe.until(lambda: not supervised.watches, "the supervisor to give up")
    assert "second fell again after 1 restarts within 60 s" in str(supervised.error)


def test_a_node_whose_process_ends_at_every_start_ends_the_supervision(probe: Probe, family: Family) -> None:
    family.start("first", "second")
    with Supervised("first", "second", respawn=family.respawn, limit=RestartLimit(2, 60.0)) as supervised:
        family.remedy = [sys.executable, "-c", "raise SystemExit(1)"]
        family.signal("second", signal.SIGKILL)
        probe.until(lambda: not supervised.watches, "the supervisor to give up")
    assert "second fell again after 2 restarts" in str(supervised.error)


def test_the_death_of_a_node_that_may_not_be_restarted_ends_the_supervision(probe: Probe, family: Family) -> None:
    family.start("first", "second")
    with Supervised("first", "second", restart=["first"]) as supervised:
        family.signal("second", signal.SIGKILL)
        probe.until(lambda: not supervised.watches, "the supervisor to give up")
    assert str(supervised.error) == "second is gone, and may not be restarted"


def test_a_node_that_nothing_starts_again_ends_the_supervision(probe: Probe, family: Family) -> None:
    family.start("first", "second")
    with Supervised("first", "second", patience=0.5) as supervised:
        family.signal("second", signal.SIGKILL)
        probe.until(lambda: not supervised.watches, "the supervisor to give up")
    assert "second has been gone for 0.5 s" in str(supervised.error)


def test_a_node_that_failed_is_brought_up_again_but_not_one_that_was_deactivated() -> None:
    HISTORY.clear()
    with Graph([lambda: Recorded("clumsy"), lambda: Recorded("calm")]) as graph, Supervised("clumsy", "calm"):
        deactivate = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_DEACTIVATE))
        assert graph.probe.call(ChangeState, "calm/change_state", deactivate).success
        assert not graph.probe.call(ChangeState, "clumsy/change_state", deactivate).success
        graph.probe.until(lambda: active("clumsy"), "clumsy to be active again")
        assert HISTORY[-2:] == [("clumsy", "configure"), ("clumsy", "activate")]
        assert state("calm") == State.PRIMARY_STATE_INACTIVE


def test_the_command_supervises_until_ctrl_c_and_then_takes_all_down(probe: Probe, family: Family) -> None:
    family.start("first", "second")
    command = [sys.executable, "-m", "sage_ros.nodes.bringup", "first", "second", "--supervise"]
    bringup = subprocess.Popen(command, start_new_session=True, text=True, stdout=-1, stderr=-1)
    family.children["bringup"] = bringup
    probe.until(lambda: active("second"), "second to be active")
    family.signal("second", signal.SIGKILL)
    family.children["second"].wait()
    family.start("second")  # as a launch file's respawn would
    probe.until(lambda: active("second"), "second to be active again")
    bringup.send_signal(signal.SIGINT)
    said, errors = bringup.communicate(timeout=30)
    assert bringup.returncode == 0, errors
    assert said.splitlines() == ["bringup: first, second are active"]
    assert "second is active again" in errors  # it may have been replaced before it was missed
    assert [state(name) for name in ("first", "second")] == 2 * [State.PRIMARY_STATE_UNCONFIGURED]


def test_the_command_says_whom_it_cannot_restart() -> None:
    command = [sys.executable, "-m", "sage_ros.nodes.bringup", "first", "--supervise", "--restart", "frist"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "frist, which is not among the nodes" in done.stderr


@given(count=st.integers(1, 5), window=st.floats(0.1, 100.0), gaps=st.lists(st.floats(0.0, 50.0), max_size=40))
def test_no_window_holds_more_restarts_than_allowed(count: int, window: float, gaps: list[float]) -> None:
    limit, now = RestartLimit(count, window), 0.0
    granted: list[float] = []
    for gap in gaps:
        now += gap
        due = sum(now - time < window for time in granted) < count
        assert limit.allows("node", now) == due
        granted += [now] if due else []
    assert limit.allows("another", now)
