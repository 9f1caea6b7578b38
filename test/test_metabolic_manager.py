"""metabolic_manager among the others: what it hears, how it is asked, and that the robot holds before it rests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from graph import Graph
from rig import Rig, assert_keeps, usual_limits
from sensor_msgs.msg import BatteryState, Temperature
from std_msgs.msg import Float32, String
from std_srvs.srv import Trigger

from sage_ros.nodes.lifecycle import LATCHED, values_of
from sage_ros.nodes.metabolic_manager import MetabolicManager
from sage_ros.nodes.safety_filter import SafetyFilterNode


class Manager:
    """What a probe sees of the manager, and says to it."""

    def __init__(self, graph: Graph) -> None:
        self.probe = graph.probe
        self.told: list[DiagnosticArray] = self.probe.listen(DiagnosticArray, "metabolic_state", LATCHED)
        self.health: list[String] = self.probe.listen(String, "health")
        self.tasks = self.probe.publisher(String, "task", LATCHED)

    @property
    def state(self) -> str:
        return self.told[-1].status[0].message if self.told else ""

    @property
    def values(self) -> dict[str, str]:
        return values_of(self.told[-1].status[0])

    def until(self, state: str) -> str:
        """Wait for a state; why it was entered."""
        self.probe.until(lambda: self.state == state, f"{state}, not {self.state}")
        return self.values["reason"]

    def ask(self, service: str) -> tuple[bool, str]:
        answer = self.probe.call(Trigger, f"metabolic_manager/{service}")
        return answer.success, answer.message

    def task(self, text: str) -> None:
        self.tasks.publish(String(data=text))


@pytest.fixture(scope="class")
def manager() -> Iterator[Manager]:
    with Graph([MetabolicManager], {"metabolic_manager:dwell": 0.0}) as graph:
        graph.up()
        yield Manager(graph)


class TestAlone:
    """One manager for all, as each test leaves it at rest."""

    def test_states_are_asked_for_and_released_by_service(self, manager: Manager) -> None:
        manager.until("REST")
        assert manager.ask("focus") == (True, "FOCUS: override")
        assert manager.until("FOCUS") == "override" and manager.values["override"] == "FOCUS"
        assert manager.ask("release") == (True, "REST: no task")
        manager.task("something")
        manager.until("WAKE")
        assert manager.ask("dream") == (False, "no dream while there is a task: 'something'")
        manager.task("")
        manager.until("REST")
        assert manager.ask("dream")[0] and manager.until("DREAM") == "override" and manager.values["learning"] == "True"
        manager.task("something else")
        assert manager.until("WAKE") == "task"
        manager.probe.until(lambda: manager.values["override"] == "", "the end of the override")
        manager.task("")

    def test_a_crisis_is_called_and_reset_by_service_and_nothing_else_ends_it(self, manager: Manager) -> None:
        assert manager.ask("crisis") == (True, "CRISIS: asked for, by ~/crisis")
        assert manager.ask("wake") == (False, "CRISIS: asked for, by ~/crisis: ~/reset first")
        manager.task("something")
        assert manager.ask("release")[1].startswith("CRISIS")
        assert manager.ask("reset") == (True, "REST: reset by the operator")
        manager.task("")
        manager.until("REST")

    def test_a_low_battery_and_a_hot_motor_force_rest_and_are_told(self, manager: Manager) -> None:
        batteries = manager.probe.publisher(BatteryState, "battery_state")
        heat = manager.probe.publisher(Temperature, "temperature")
        manager.task("something")
        manager.until("WAKE")
        batteries.publish(BatteryState(present=True, percentage=0.1))
        assert manager.until("REST") == "battery 10% below 20%"
        batteries.publish(BatteryState(present=False, percentage=0.9))  # an empty slot
        batteries.publish(BatteryState(present=True, percentage=0.4, power_supply_status=1))
        manager.probe.until(lambda: "battery 40%, charging" in manager.health[-1].data, "the battery's charge")
        assert manager.state == "REST"
        batteries.publish(BatteryState(present=True, percentage=0.6))
        manager.until("WAKE")
        heat.publish(Temperature(temperature=40.0))
        motor = Temperature(temperature=85.0)
        motor.header.frame_id = "elbow"
        heat.publish(motor)
        assert manager.until("REST") == "temperature 85 C above 80 C"
        motor.temperature = 60.0
        heat.publish(motor)
        manager.until("WAKE")
        manager.probe.until(lambda: "60 C" in manager.health[-1].data, "the temperature")
        manager.task("")
        manager.until("REST")

    def test_the_student_s_doubt_is_heard_and_does_not_outlast_it(self, manager: Manager) -> None:
        confidence = manager.probe.publisher(Float32, "certainty")
        manager.task("something")
        manager.until("WAKE")
        confidence.publish(Float32(data=0.4))
        assert manager.until("FOCUS") == "the student's confidence 0.40 below 0.6"
        assert manager.until("WAKE") == "confidence 1.00 and 1.00 again", "what is not repeated is forgotten"
        trust = manager.probe.publisher(Float32, "attention/confidence")
        trust.publish(Float32(data=0.1))
        manager.probe.until(lambda: manager.values["actuation"] == "False", "a hold")
        assert manager.values["reason"] == "the picture cannot be believed" and manager.state in ("WAKE", "FOCUS")
        manager.probe.until(lambda: manager.values["actuation"] == "True", "the end of the hold")
        manager.task("")
        manager.until("REST")


def test_the_robot_stands_still_before_the_state_is_rest_and_a_crisis_disables_it() -> None:
    with Graph([MetabolicManager, SafetyFilterNode], {"safety_filter:watchdog": 0.4}) as graph:
        graph.up()
        manager = Manager(graph)
        manager.task("something")
        manager.until("WAKE")
        rig = Rig(graph.probe, usual_limits())
        try:
            rig.run()
            for end in ("task", "rest"):
                since = len(manager.told)
                manager.task("") if end == "task" else manager.ask("rest")
                manager.until("REST")
                at_rest = len(rig.commands)
                told = [(m.status[0].message, values_of(m.status[0])["actuation"]) for m in manager.told[since:]]
                assert ("WAKE", "False") in told, "it holds while it is still awake"
                rig.more(3)
                assert np.ptp(rig.commands[at_rest - 1 :], axis=0).max() < 1e-4
                manager.task("something")
                manager.ask("release")
                rig.until("RUNNING")
                rig.more(20)
            assert manager.ask("crisis")[0]
            assert rig.until("DRY_RUN") == "CRISIS: asked for, by ~/crisis"
            graph.probe.until(lambda: manager.ask("reset")[0], "the robot to stand still")
            manager.until("WAKE")
            assert rig.mode == "DRY_RUN", "nobody has enabled it again"
            graph.probe.until(lambda: rig.enable()[0], "the filter to have heard of it")
            rig.until("RUNNING")
            assert_keeps(usual_limits(), rig.commands, rig.middle)
        finally:
            rig.close()
