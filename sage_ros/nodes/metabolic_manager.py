"""metabolic_manager: decides how much the robot looks, acts and learns, and tells every node."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import asdict, dataclass

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

from sage_ros.core.metabolism import ALLOWANCES, Allowance, Energy, Metabolism, Senses, State, Thresholds
from sage_ros.core.options import option
from sage_ros.nodes.lifecycle import LATCHED, STREAM, SageNode, Status, run, values_of
from sage_ros.nodes.messages import MessageError, map_from
from sage_ros.nodes.parameters import declare, read


@dataclass(frozen=True)
class ManagerConfig(Thresholds):
    rate: float = option(10.0, "decisions per second (Hz)", low=1.0, high=100.0)
    capacity: float = option(30.0, "energy of a full store (s of one core's compute)", low=0.1, high=1e6)
    recharge: float = option(0.5, "energy gained per second (share of one core)", low=0.001, high=1024.0)
    override: str = option("", "hold this state; empty: decide", choices=("", "WAKE", "FOCUS", "REST", "DREAM"))


class MetabolicManager(SageNode):
    """task, attention/weights, /diagnostics -> metabolic_state.

    metabolic_state is a latched DiagnosticArray with one status: its message is the state's name, its values are
    the state's allowance (each ``<state>.<name>`` parameter), the energy left and the reason for the last change.
    """

    Config = ManagerConfig
    config: ManagerConfig
    live = frozenset(
        {"override", "dwell", "focus_below", "focus_above", "focus_energy", "tired", "rested"}
        | {"dream_after", "dream_energy", "dream_longest", "crisis_confidence", "crisis_after"}
    )

    def __init__(self, **kwargs: object) -> None:
        self._machine, self._task = Metabolism(), ""
        super().__init__("metabolic_manager", **kwargs)

    def _declare(self) -> None:
        super()._declare()
        for state, allowance in ALLOWANCES.items():
            declare(self, Allowance, f"{state.value.lower()}.", allowance)

    def setup(self) -> None:
        c = self.config
        self._allowances = {s: read(self, Allowance, f"{s.value.lower()}.") for s in State}
        for held in (State.REST, State.DREAM, State.CRISIS):
            if self._allowances[held].actuation:
                raise ValueError(f"{held.value.lower()}.actuation is true, but a robot must hold in {held.value}")
        self._energy = Energy(c.capacity, c.recharge)
        self._machine = Metabolism(c)
        self.changed()
        self._confidence = 1.0
        self._busy: dict[str, float] = {}
        self._faults: dict[str, str] = {}
        self._spent = 0.0
        self._updated = self.steady.now().nanoseconds
        self.timeline: deque[tuple[float, str, str]] = deque(maxlen=1000)
        self._state = self.publish_on(DiagnosticArray, "metabolic_state", LATCHED)
        self.listen(String, "task", self._on_task, LATCHED, always=True)
        self.listen(Image, "attention/weights", self._on_weights, STREAM)
        self.listen(DiagnosticArray, "/diagnostics", self._on_diagnostics)
        self.every(1.0 / c.rate, self._decide, clock=self.steady)
        self.every(1.0, self._tell, clock=self.steady)
        self.serve(Trigger, "~/reset", self._on_reset)

    def start(self) -> None:
        self._updated = self.steady.now().nanoseconds
        self._tell()

    def changed(self) -> None:
        self._machine.thresholds = self.config
        self._machine.override = State(self.config.override) if self.config.override else None

    # Senses

    def _on_task(self, message: String) -> None:
        self._task = message.data
        self._confidence = 1.0
        if self.active:
            self._decide()  # at once: a robot with a task must not wait for the next tick

    def _on_weights(self, message: Image) -> None:
        try:
            self._confidence = float(map_from(message).sum())  # weights are relevance times trust
        except MessageError as problem:
            self.counts["refused"] += 1
            self.complain(problem)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        """Every node of this namespace reports its compute so far, and its errors."""
        for status in message.status:
            if not status.name.endswith(": pipeline") or not self._is_near(status.hardware_id):
                continue
            values = values_of(status)
            try:
                busy, who = float(values["busy_s"]), status.hardware_id + values["pid"]
            except (KeyError, ValueError):
                self.complain(f"{status.name} of {status.hardware_id} tells no busy_s and pid: not counted")
                continue
            # What a node spent before it was first heard of is not this store's to pay
            self._spent += max(busy - self._busy.get(who, busy), 0.0)
            self._busy[who] = busy
            self._faults.pop(status.hardware_id, None)
            if status.level == DiagnosticStatus.ERROR:
                self._faults[status.hardware_id] = f"{status.hardware_id}: {status.message}"

    def _is_near(self, full_name: str) -> bool:
        return full_name.rsplit("/", 1)[0] == self.get_namespace().rstrip("/")

    # Decision

    def _decide(self) -> None:
        now = self.steady.now().nanoseconds
        with self.watch.span():
            level = self._energy.advance((now - self._updated) / 1e9, self._spent)
            fault = "; ".join(self._faults.values())
            senses = Senses(now / 1e9, level, bool(self._task), self._confidence, fault)
            changed = self._machine.update(senses)
        self._updated, self._spent = now, 0.0
        if changed:
            self.timeline.append((now / 1e9, self._machine.state.value, self._machine.reason))
            self.get_logger().info(f"{self._machine.state.value}: {self._machine.reason}")
            self._tell()

    def _tell(self) -> None:
        state = self._machine.state
        values: dict[str, object] = asdict(self._allowances[state])
        values |= {"energy": f"{self._energy.level / self._energy.capacity:.3f}", "reason": self._machine.reason}
        level = DiagnosticStatus.ERROR if state is State.CRISIS else DiagnosticStatus.OK
        self._state.publish(self.report("state", level, state.value, values))

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._machine.reset_crisis()
        self._decide()
        response.success = self._machine.state is not State.CRISIS
        response.message = f"{self._machine.state.value}: {self._machine.reason}"
        return response

    def status(self) -> Status:
        if not self.active:
            return DiagnosticStatus.OK, "inactive", {}
        crisis = self._machine.state is State.CRISIS
        line = f"{self._machine.state.value}: {self._machine.reason}"
        # WARN and not ERROR: the manager listens to errors and must not keep its own crisis alive.
        return DiagnosticStatus.WARN if crisis else DiagnosticStatus.OK, line, {}


def main(args: list[str] | None = None) -> int:
    return run(MetabolicManager, args)


if __name__ == "__main__":
    sys.exit(main())
