"""metabolic_manager: decides how much the robot looks, acts and learns, and tells every node."""

from __future__ import annotations

import math
import sys
from collections import deque
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import BatteryState, Temperature
from std_msgs.msg import Float32, String
from std_srvs.srv import Trigger

from sage_ros.core.allowance import Allowance, State, Store, Table, Thresholds
from sage_ros.core.health import health_line
from sage_ros.core.metabolism import Energy, Metabolism, Senses
from sage_ros.core.options import option
from sage_ros.core.timing import Recent
from sage_ros.nodes.lifecycle import LATCHED, SageNode, Status, values_of
from sage_ros.nodes.liveliness import Liveliness
from sage_ros.nodes.parameters import declare, read
from sage_ros.nodes.process import run
from sage_ros.paths import share

FILTER = "safety_filter"
SENSOR = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)  # hears reliable sensors, too
CHARGING = (BatteryState.POWER_SUPPLY_STATUS_CHARGING, BatteryState.POWER_SUPPLY_STATUS_FULL)
STREAMING, REPORTING, SENSING = 1.0, 5.0, 60.0  # s for which a confidence, a node's status, a sensor's value holds


@dataclass(frozen=True)
class ManagerConfig(Thresholds, Store):
    rate: float = option(2.0, "decisions per second (Hz), beside those at once when news come", low=1.0, high=100.0)
    override: str = option("", "hold this state; empty: decide", choices=("", "WAKE", "FOCUS", "REST", "DREAM"))

    def __post_init__(self) -> None:
        Thresholds.__post_init__(self)


class MetabolicManager(SageNode):
    """task, attention/confidence, certainty, safety_filter/state, battery_state, temperature, /diagnostics ->
    metabolic_state, health.

    metabolic_state is a latched DiagnosticArray with one status: its message is the state's name, its values are
    the state's allowance (each ``<state>.<name>`` parameter), the energy left and the reason for the last change.
    health says in one line how everything is. ~/wake, ~/focus, ~/rest and ~/dream (Trigger) hold a state until
    ~/release; ~/crisis stops the robot, and ~/reset alone ends that.
    """

    Config = ManagerConfig
    config: ManagerConfig
    live = frozenset(Thresholds.__dataclass_fields__) | {"override"}

    def __init__(self, **kwargs: object) -> None:
        self._machine, self._task = Metabolism(), ""
        self._filter: Liveliness | None = None
        super().__init__("metabolic_manager", **kwargs)

    def _declare(self) -> None:
        about = ParameterDescriptor(description="file with the table of states; empty: config/metabolism.yaml")
        path = Path(self.declare_parameter("table", "", about).value or share("config", "metabolism.yaml"))
        try:
            table = Table.of(yaml.safe_load(path.read_text()))
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"table {path}: {error}") from error
        declare(self, ManagerConfig, defaults=ManagerConfig(**vars(table.thresholds), **vars(table.store)))
        for state, allowance in table.states.items():
            declare(self, Allowance, f"{state.value.lower()}.", allowance)

    def setup(self) -> None:
        c = self.config
        allowances = {state: read(self, Allowance, f"{state.value.lower()}.") for state in State}
        table = Table(allowances, Store(c.capacity, c.recharge), c)
        for warning in table.warnings():
            self.get_logger().warning(warning)
        self._allowances = table.states
        self._energy = Energy(c.capacity, c.recharge)
        self._machine = Metabolism(c)
        self.changed()
        self._confidence, self._certainty = Recent[float](STREAMING), Recent[float](STREAMING)
        self._battery, self._heat = Recent[BatteryState](SENSING), dict[str, Recent[float]]()
        self._moving, self._filter_says = False, "no safety_filter"
        self._busy: dict[str, float] = {}
        self._nodes: dict[str, Recent[tuple[bytes, str]]] = {}  # level and message by full name
        self._spent = 0.0
        self._updated = self._seconds()
        self.timeline: deque[tuple[float, str, str]] = deque(maxlen=1000)
        self._state = self.publish_on(DiagnosticArray, "metabolic_state", LATCHED)
        self._health = self.publish_on(String, "health")
        self.listen(String, "task", self._on_task, LATCHED, always=True)
        self.listen(Float32, "attention/confidence", partial(self._on_news, self._confidence))
        self.listen(Float32, "certainty", partial(self._on_news, self._certainty))
        self.listen(DiagnosticArray, f"{FILTER}/state", self._on_filter, LATCHED, always=True)
        self.listen(BatteryState, "battery_state", self._on_battery, SENSOR)
        self.listen(Temperature, "temperature", self._on_temperature, SENSOR)
        self.listen(DiagnosticArray, "/diagnostics", self._on_diagnostics)
        self.every(1.0 / c.rate, self._decide, clock=self.steady)
        self.every(1.0, self._tell, clock=self.steady)
        for state in (State.WAKE, State.FOCUS, State.REST, State.DREAM):
            self.serve(Trigger, f"~/{state.value.lower()}", partial(self._on_ask, state))
        for name, answer in (("release", self._on_release), ("crisis", self._on_crisis), ("reset", self._on_reset)):
            self.serve(Trigger, f"~/{name}", answer)
        self._filter = Liveliness(self, [FILTER], lambda name, alive: None)

    def teardown(self) -> None:
        if self._filter is not None:
            self._filter.close()
            self._filter = None

    def start(self) -> None:
        self._updated = self._seconds()
        self._tell()

    def changed(self) -> None:
        self._machine.thresholds = self.config
        self._machine.override = State(self.config.override) if self.config.override else None

    def _seconds(self) -> float:
        return self.steady.now().nanoseconds / 1e9

    # Senses

    def _on_task(self, message: String) -> None:
        self._task = message.data
        self._confidence.forget()
        self._certainty.forget()
        if self.active:
            self._decide()  # at once: a robot with a task must not wait for the next tick

    def _on_news(self, of: Recent[float], message: Float32) -> None:
        """Told only when it has changed, or now and then."""
        of.put(message.data, self._seconds())
        self._decide()

    def _on_filter(self, message: DiagnosticArray) -> None:
        status = message.status[0]
        values = values_of(status)
        self._moving = values.get("at_rest") == "False"
        self._filter_says = status.message + (f" ({values['reason']})" if values.get("reason") else "")
        if self.active and self._machine.pause:
            self._decide()

    def _on_battery(self, message: BatteryState) -> None:
        if message.present:
            self._battery.put(message, self._seconds())

    def _on_temperature(self, message: Temperature) -> None:
        self._heat.setdefault(message.header.frame_id, Recent(SENSING)).put(message.temperature, self._seconds())

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
            node = self._nodes.setdefault(status.hardware_id, Recent(REPORTING))
            node.put((status.level, status.message), self._seconds())

    def _is_near(self, full_name: str) -> bool:
        return full_name.rsplit("/", 1)[0] == self.get_namespace().rstrip("/")

    def _senses(self, now: float) -> Senses:
        reports = {name: report for name, node in self._nodes.items() if (report := node.at(now))}
        # A node that has fallen silent is for the safety filter to notice: its last error must not last for ever.
        faults = [f"{name}: {text}" for name, (level, text) in reports.items()
                  if level == DiagnosticStatus.ERROR and name != self.get_fully_qualified_name()]  # fmt: skip
        battery = self._battery.at(now)
        hottest = [value for sensor in self._heat.values() if (value := sensor.at(now, math.nan)) == value]
        return Senses(
            now, self._energy.share, bool(self._task), self._confidence.at(now, 1.0), self._certainty.at(now, 1.0),
            "; ".join(faults), held=not (self._moving and self._filter is not None and FILTER in self._filter.alive),
            battery=math.nan if battery is None else battery.percentage,
            docked=battery is not None and battery.power_supply_status in CHARGING,
            temperature=max(hottest, default=math.nan),
        )  # fmt: skip

    # Decision

    def _decide(self) -> None:
        now = self._seconds()
        with self.watch.span():
            self._energy.advance(now - self._updated, self._spent)
            before = self._machine.state
            changed = self._machine.update(self._senses(now))
        self._updated, self._spent = now, 0.0
        if not changed:
            return
        machine = self._machine
        if machine.state is not before:
            self.timeline.append((now, machine.state.value, machine.reason))
        if machine.state is State.CRISIS:
            self.get_logger().error(f"CRISIS: {machine.reason}: the robot holds until ~/reset")
        else:
            self.get_logger().info(f"{machine.state.value}: {machine.pause or machine.reason}")
        self._tell()
        if machine.override is None and self.config.override:
            self.set_parameters([Parameter("override", value="")])

    def _tell(self) -> None:
        machine = self._machine
        values: dict[str, object] = asdict(self._allowances[machine.state])
        values |= {"energy": f"{self._energy.share:.3f}", "reason": machine.pause or machine.reason}
        values |= {"override": self.config.override} | ({"actuation": False} if machine.pause else {})
        level = DiagnosticStatus.ERROR if machine.state is State.CRISIS else DiagnosticStatus.OK
        self._state.publish(self.report("state", level, machine.state.value, values))
        if self._health.get_subscription_count():
            self._health.publish(String(data=self._health_line()))

    def _health_line(self) -> str:
        now = self._seconds()
        reports = {name.rsplit("/", 1)[1]: report for name, node in self._nodes.items() if (report := node.at(now))}
        ill = [f"{name}: {text}" for name, (level, text) in reports.items() if level != DiagnosticStatus.OK
               and name not in (FILTER, self.get_name())]  # fmt: skip
        return health_line(self._machine, self._senses(now), self._filter_says, len(reports), ill)

    # Services

    def _on_ask(self, state: State, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._machine.state is State.CRISIS:
            response.message = f"CRISIS: {self._machine.reason}: ~/reset first"
        elif state is State.DREAM and self._task:
            response.message = f"no dream while there is a task: '{self._task}'"
        else:
            return self._override(state.value, response)
        return response

    def _on_release(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._override("", response)

    def _override(self, name: str, response: Trigger.Response) -> Trigger.Response:
        self.set_parameters([Parameter("override", value=name)])
        return self._answer(response, True)

    def _on_crisis(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._machine.alarm("asked for, by ~/crisis")
        return self._answer(response, True)

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._machine.reset_crisis()
        return self._answer(response, None)

    def _answer(self, response: Trigger.Response, success: bool | None) -> Trigger.Response:
        self._decide()
        machine = self._machine
        response.success = machine.state is not State.CRISIS if success is None else success
        response.message = f"{machine.state.value}: {machine.pause or machine.reason}"
        return response

    def status(self) -> Status:
        if not self.active:
            return DiagnosticStatus.OK, "inactive", {}
        crisis = self._machine.state is State.CRISIS
        return DiagnosticStatus.ERROR if crisis else DiagnosticStatus.OK, self._health_line(), {}


def main(args: list[str] | None = None) -> int:
    return run(MetabolicManager, args)


if __name__ == "__main__":
    sys.exit(main())
