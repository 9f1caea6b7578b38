"""What all nodes share: lifecycle, parameters, diagnostics, and the metabolic state."""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from copy import copy
from typing import Any, ClassVar

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.lifecycle import LifecycleState as State
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from rclpy.timer import Timer

from sage_ros.core.heard import Heard
from sage_ros.core.pace import Pace
from sage_ros.core.timing import SECOND, Stopwatch
from sage_ros.nodes.liveliness import announce
from sage_ros.nodes.parameters import declare, read

# Images and token maps: best effort loses large messages, a deep queue would only add latency.
STREAM = QoSProfile(depth=2, reliability=ReliabilityPolicy.RELIABLE)
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
EVENTS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)

UNKNOWN = "_NODE_NAME_UNKNOWN_"  # of a node that is only half discovered

Status = tuple[bytes, str, dict[str, object]]
EXPECTED_ERRORS = (ValueError, RuntimeError, OSError, LookupError)


def values_of(status: DiagnosticStatus) -> dict[str, str]:
    """The values of a diagnostic status by their keys."""
    return {pair.key: pair.value for pair in status.values}


class SageNode(LifecycleNode):
    """A lifecycle node whose parameters are the dataclass ``Config``.

    Subclasses implement ``setup`` (configure: load, allocate, subscribe), ``start`` and ``stop`` (activate,
    deactivate), ``clear`` (time jumped back: forget the stream) and ``status`` (what diagnostics should say).
    ``live`` names the parameters that may change while configured; the others take effect at configure.
    """

    Config: ClassVar[type]
    live: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.active = False
        self.counts: Counter[str] = Counter()  # frames in, out, skipped and why
        self.watch = Stopwatch()  # the node's own computing, without ROS
        self.config: Any = None
        self.pace = Pace()  # as the metabolic state asks, for a node that listens to it
        self._heard: dict[str, tuple[Heard, Callable[[Pace], bool]]] = {}
        self._whiles: list[tuple[Callable[[Pace], bool], Callable[[], Any], list[Any]]] = []
        self._entities: list[tuple[Callable[[Any], object], Any]] = []
        self.steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._alive = announce(self)
        self._declare()
        help_autostart = "configure and activate without being asked to"
        autostart = self.declare_parameter("autostart", False, ParameterDescriptor(description=help_autostart))
        self.add_on_set_parameters_callback(self._on_parameters)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", RELIABLE)
        self.create_timer(1.0, self.diagnose, clock=self.steady)
        jump = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1))
        self._jump = self.get_clock().create_jump_callback(jump, post_callback=self._on_jump)
        if autostart.value:
            self._starter = self.create_timer(0.0, self._autostart, clock=self.steady)

    # What a node fills in

    def setup(self) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def teardown(self) -> None: ...
    def clear(self) -> None: ...

    def changed(self) -> None:
        """Live parameters changed: ``self.config`` is new."""

    def status(self) -> Status:
        """Diagnostic level, one human-readable line, and figures."""
        return DiagnosticStatus.OK, "active" if self.active else "inactive", {}

    # Topics

    def publish_on(self, kind: type, topic: str, qos: QoSProfile = RELIABLE, overridable: bool = False) -> Any:
        """A publisher that is silent until the node is active, and gone after cleanup.

        Of an ``overridable`` one the parameters ``qos_overrides.<topic>.publisher.*`` set the quality of service.
        """
        publisher = self.create_lifecycle_publisher(kind, topic, **_quality(qos, overridable))
        self._entities.append((self.destroy_publisher, publisher))
        return publisher

    def listen(
        self, kind: type, topic: str, callback: Callable[[Any], None], qos: QoSProfile = RELIABLE, always: bool = False,
        overridable: bool = False,
    ) -> Any:  # fmt: skip
        """A subscription that calls back only while the node is active, or ``always`` once configured.

        ``overridable`` as for :meth:`publish_on`, by ``qos_overrides.<topic>.subscription.*``.
        """

        def gated(message: Any) -> None:
            if self.active or always:
                callback(message)

        subscription = self.create_subscription(kind, topic, gated, **_quality(qos, overridable))
        self._entities.append((self.destroy_subscription, subscription))
        return subscription

    def listen_while(self, wanted: Callable[[Pace], bool], *args: Any, **kwargs: Any) -> list[Any]:
        """:meth:`listen` to a stream only while the metabolic state wants it: otherwise it is not even received.

        Returns a list with the subscription of the moment, or without any.
        """
        stream: list[Any] = []
        self._whiles.append((wanted, lambda: self.listen(*args, **kwargs), stream))
        self.follow_pace()
        return stream

    def hears(self, topic: str, wanted: Callable[[Pace], bool] = lambda pace: True) -> Callable[[Time], None]:
        """Watch a topic: to be called with each message's stamp. Its rate and delay are told in diagnostics, with a
        warning where nothing comes although the node is active and the state wants it.
        """
        heard = Heard()
        self._heard[topic] = heard, wanted
        return lambda stamp: heard.tick(stamp.sec * SECOND + stamp.nanosec, self.get_clock().now().nanoseconds)

    def follow_pace(self) -> None:
        """Take up the streams that are wanted by now, and drop the others."""
        for wanted, listen, stream in self._whiles:
            if wanted(self.pace) and not stream:
                stream.append(listen())
            elif not wanted(self.pace) and stream:
                subscription = stream.pop()
                self._entities.remove((self.destroy_subscription, subscription))
                self.destroy_subscription(subscription)

    def every(self, period: float, callback: Callable[[], None], clock: Clock | None = None) -> Timer:
        """A timer that runs while the node is active."""
        timer = self.create_timer(period, lambda: callback() if self.active else None, clock=clock)
        self._entities.append((self.destroy_timer, timer))
        return timer

    def in_step(self, period: float, callback: Callable[[], None]) -> Timer | None:
        """Call back each ``period`` (s) of the node's clock while the node is active.

        In simulated time by the clock's own messages: a timer that is late for one of them misses that moment for good,
        and a world that waits for its answer would wait for ever. Returns the timer, where it is one.
        """
        if not self.get_parameter("use_sim_time").value:
            return self.every(period, callback, clock=self.steady)
        called, slack = 0, 1_000_000  # ns

        def on_clock(jump: TimeJump) -> None:
            nonlocal called
            now = self.get_clock().now().nanoseconds
            if self.active and (now < called or now - called >= period * 1e9 - slack):
                called = now
                callback()

        step = JumpThreshold(min_forward=Duration(nanoseconds=1), min_backward=Duration(nanoseconds=-1))
        handle = self.get_clock().create_jump_callback(step, post_callback=on_clock)
        self._entities.append((lambda jumps: jumps.unregister(), handle))
        return None

    def met(self, topics: Container[str]) -> bool:
        """Whether somebody is found at the other end of whatever it says and hears on ``topics`` (full names).

        What is said before that is lost.
        """
        ends = [entity for _, entity in self._entities if getattr(entity, "topic_name", None) in topics]
        counts = (e.get_publisher_count() if isinstance(e, Subscription) else e.get_subscription_count() for e in ends)
        return all(counts)

    def serve(self, kind: type, name: str, answer: Callable[[Any, Any], Any]) -> None:
        """A service that is gone after cleanup."""
        self._entities.append((self.destroy_service, self.create_service(kind, name, answer)))

    def publishers(self, topic: str) -> list[str]:
        """Full names of the nodes that publish on ``topic``, one for each publisher, sorted.

        A process that was killed stays in the graph for 20 s, beside the one in its place. Left out are nodes that are
        only half discovered and have no name yet.
        """
        infos = self.get_publishers_info_by_topic(self.resolve_topic_name(topic))
        return sorted(f"{i.node_namespace.rstrip('/')}/{i.node_name}" for i in infos if i.node_name != UNKNOWN)

    def listen_to_metabolism(self, callback: Callable[[Pace], None]) -> None:
        """Follow the metabolic state: ``self.pace``, and the streams of :meth:`listen_while`. Calls back with each."""

        def unpack(message: DiagnosticArray) -> None:
            status = message.status[0]
            try:
                self.pace = Pace.of(status.message, values_of(status))
            except ValueError as problem:
                return self.complain(f"{problem}: not followed")
            self.follow_pace()
            callback(self.pace)

        self.listen(DiagnosticArray, "metabolic_state", unpack, LATCHED, always=True)

    # Lifecycle

    def on_configure(self, state: State) -> TransitionCallbackReturn:
        try:
            self.config = self._read()
            self.setup()
        except EXPECTED_ERRORS as error:
            self.get_logger().error(f"cannot configure: {error}")
            self._release()
            return TransitionCallbackReturn.FAILURE
        except Exception:  # rclpy would swallow it
            self.get_logger().fatal(traceback.format_exc())
            raise
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: State) -> TransitionCallbackReturn:
        result = super().on_activate(state)
        self.active = True
        self.start()
        return result

    def on_deactivate(self, state: State) -> TransitionCallbackReturn:
        self.active = False
        self.stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: State) -> TransitionCallbackReturn:
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: State) -> TransitionCallbackReturn:
        if self.active:
            self.on_deactivate(state)
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: State) -> TransitionCallbackReturn:
        self.active = False
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def shut_down(self) -> None:
        """Stop work and leave the graph, from whatever state."""
        if self.active:
            self.trigger_deactivate()
        self._release()
        self.destroy_node()

    def _release(self) -> None:
        self.teardown()
        while self._entities:
            destroy, entity = self._entities.pop()
            destroy(entity)
        self._whiles.clear()
        self._heard.clear()
        self.pace = Pace()
        self.counts.clear()

    def _autostart(self) -> None:
        self._starter.cancel()
        if self.trigger_configure() != TransitionCallbackReturn.SUCCESS:
            raise SystemExit(f"{self.get_name()}: could not be configured, see the error above")
        self.trigger_activate()

    # Parameters, time, diagnostics

    def _declare(self) -> None:
        declare(self, self.Config)

    def _read(self, changes: dict[str, Any] | None = None) -> Any:
        return read(self, self.Config, changes=changes)

    def _on_parameters(self, parameters: Iterable[Parameter]) -> SetParametersResult:
        changes = {p.name: p.value for p in parameters if self.has_parameter(p.name)}  # not those being declared
        if self.config is None or not changes:
            return SetParametersResult(successful=True)
        frozen = sorted(name for name in changes if name not in self.live and name != "use_sim_time")
        if frozen:
            reason = f"{', '.join(frozen)}: takes effect at configure; deactivate and clean up the node first"
            return SetParametersResult(successful=not self._entities, reason=reason)
        try:
            self.config = self._read(changes)
            self.changed()
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _on_jump(self, jump: TimeJump) -> None:
        if jump.delta.nanoseconds < 0:
            self.get_logger().info("time went back: forgetting the stream so far")
            self.clear()

    def diagnose(self) -> None:
        """Publish the node's status on /diagnostics (REP 107), and that of each topic it watches."""
        level, summary, figures = self.status()
        common = {"busy_s": f"{self.watch.total:.6f}", "pid": os.getpid(), **self.counts, **figures}
        if self.watch.spans:
            common |= {"own_ms_p50": f"{self.watch.milliseconds(0.5):.3f}"}
            common |= {"own_ms_p99": f"{self.watch.milliseconds(0.99):.3f}"}
        message = self.report("pipeline", level, summary, common)
        steady = self.steady.now().nanoseconds / 1e9
        for topic, (heard, wanted) in self._heard.items():
            well, words, values = heard.report(steady, self.active and wanted(self.pace))
            level = DiagnosticStatus.OK if well else DiagnosticStatus.WARN
            message.status += self.report(f"{topic} topic status", level, words, values).status
        self._diagnostics.publish(message)

    def report(self, subject: str, level: bytes, summary: str, values: Mapping[str, object]) -> DiagnosticArray:
        """What this node says of ``subject`` at this moment, as a message."""
        status = DiagnosticStatus(level=level, name=f"{self.get_name()}: {subject}", message=summary)
        status.hardware_id = self.get_fully_qualified_name()
        status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        return array

    def complain(self, problem: object) -> None:
        """Warn about input that is dropped, at most once in 2 s; the counts in diagnostics lose nothing."""
        self.get_logger().warning(str(problem), throttle_duration_sec=2.0)


def _quality(qos: QoSProfile, overridable: bool) -> dict[str, Any]:
    """Arguments of an entity; the profile is a copy, which overrides are written into."""
    options = QoSOverridingOptions.with_default_policies() if overridable else None
    return {"qos_profile": copy(qos), "qos_overriding_options": options}
