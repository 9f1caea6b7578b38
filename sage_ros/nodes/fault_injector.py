"""fault_injector: a relay between two topics that spoils what passes, as broken drivers, cables and clocks do."""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from sage_ros.core.options import check, option
from sage_ros.core.timing import SECOND
from sage_ros.nodes.lifecycle import RELIABLE, STREAM, SageNode, Status
from sage_ros.nodes.messages import nanoseconds, to_stamp
from sage_ros.nodes.process import run

KINDS = {"image": (Image, STREAM), "joints": (JointState, RELIABLE), "chunk": (JointTrajectory, RELIABLE)}
VECTORS = {
    JointState: ("position", "velocity", "effort"),
    JointTrajectory: ("positions", "velocities", "accelerations", "effort"),
}  # values by joint, in a joint state and in a point of a trajectory

# What happens to single messages, by what they need to have
TO_ALL = (
    "none", "drop", "freeze", "freeze_content", "delay", "stale", "future", "out_of_order", "duplicate", "truncate",
)  # fmt: skip
TO_IMAGES = ("black", "encoding")
TO_VALUES = ("nan", "inf", "jump", "permute", "mislabel", "missing_joint", "unknown_joint", "repeated_joint")
FAULTS = {"image": TO_ALL + TO_IMAGES, "joints": TO_ALL + TO_VALUES, "chunk": TO_ALL + TO_VALUES}


@dataclass(frozen=True)
class InjectorConfig:
    kind: str = option("joints", "what passes: Image, JointState or JointTrajectory", choices=tuple(KINDS))
    topic_in: str = option("in", "where messages come from")
    topic_out: str = option("out", "where they go")
    fault: str = option(
        "none",
        "drop; freeze: the last good message again; freeze_content: with a fresh stamp; delay; stale, future: stamp "
        "off by `shift`; out_of_order: pairs change places; duplicate; truncate: the data's end is missing; images: "
        "black, encoding; joints and chunks: nan, inf, jump: one value off by `jump`; permute: with their names; "
        "mislabel: names alone; missing_joint, unknown_joint, repeated_joint",
        choices=tuple(dict.fromkeys(TO_ALL + TO_IMAGES + TO_VALUES)),
    )
    probability: float = option(1.0, "share of the messages that are hit", low=0.0, high=1.0)
    delay: float = option(0.2, "how late messages come, by the node's clock (s)", low=0.0, high=60.0)
    shift: float = option(1.0, "how far a stamp is off (s)", low=0.0, high=3600.0)
    jump: float = option(1.0, "how far a value is off (rad)", low=0.0, high=1e6)
    seed: int = option(0, "which messages, rows and joints are hit", low=0, high=2**31 - 1)

    def __post_init__(self) -> None:
        check(self)
        if self.fault not in FAULTS[self.kind]:
            possible = ", ".join(FAULTS[self.kind])
            raise ValueError(f"fault '{self.fault}' cannot happen to kind '{self.kind}', but these can: {possible}")
        if self.topic_in == self.topic_out:
            raise ValueError(f"topic_in and topic_out are both '{self.topic_in}': a relay needs two topics")


class Spoiler:
    """Messages in, spoiled messages out; what it does is a function of seed, settings and messages."""

    def __init__(self, config: InjectorConfig) -> None:
        self.config = config
        self.rng = np.random.default_rng(config.seed)
        self.clear()

    def clear(self) -> None:
        """Forget the messages so far."""
        self._good: Any = None  # the last that passed
        self._kept: Any = None  # out_of_order: goes after its successor

    def __call__(self, message: Any) -> tuple[list[Any], bool]:
        """What goes on in place of ``message``, which may be changed, and whether it was hit."""
        fault = self.config.fault
        if fault == "none" or self.rng.random() >= self.config.probability:
            self._good = message
            return [message], False
        if fault in ("freeze", "freeze_content"):
            return [self._frozen(message)], True
        if fault == "out_of_order":
            kept, self._kept = self._kept, message if self._kept is None else None
            return [] if kept is None else [message, kept], True
        if fault in ("drop", "duplicate"):
            return [message] * (2 if fault == "duplicate" else 0), True
        if fault in ("stale", "future"):
            shift = round(self.config.shift * SECOND) * (-1 if fault == "stale" else 1)
            message.header.stamp = to_stamp(max(0, nanoseconds(message.header.stamp) + shift))
        elif fault != "delay":
            (_spoil_image if isinstance(message, Image) else self._spoil_values)(fault, message)
        return [message], True

    def _frozen(self, message: Any) -> Any:
        if self._good is None:
            self._good = message
        frozen = copy.copy(self._good)
        if self.config.fault == "freeze_content":
            frozen.header = message.header
        return frozen

    def _spoil_values(self, fault: str, message: JointState | JointTrajectory) -> None:
        names = _names(message)
        carriers = _carriers(message)
        if not names or not carriers:
            return
        joints, chosen = list(range(len(names))), int(self.rng.integers(len(names)))
        carrier = carriers[int(self.rng.integers(len(carriers)))]
        first = VECTORS[type(message)][0]
        if fault in ("nan", "inf", "jump"):
            value = getattr(carrier, first)[chosen]
            getattr(carrier, first)[chosen] = {"nan": np.nan, "inf": np.inf}.get(fault, value + self.config.jump)
        elif fault == "truncate":
            setattr(carrier, first, getattr(carrier, first)[:-1])
        elif fault == "permute":
            _rearrange(message, joints[1:] + joints[:1])
        elif fault == "missing_joint":
            _rearrange(message, joints[:chosen] + joints[chosen + 1 :])
        elif fault in ("unknown_joint", "repeated_joint"):
            _rearrange(message, [*joints, chosen])
            if fault == "unknown_joint":
                _rename(message, [*names, f"not_{names[chosen]}"])
        else:
            _rename(message, names[1:] + names[:1])


def _spoil_image(fault: str, message: Image) -> None:
    if fault == "truncate":
        message.data = message.data[: len(message.data) // 2]
    elif fault == "encoding":
        message.encoding = "nonsense8"
    else:
        np.frombuffer(message.data, np.uint8)[:] = 0


def _carriers(message: JointState | JointTrajectory) -> list[Any]:
    return list(message.points) if isinstance(message, JointTrajectory) else [message]


def _names(message: JointState | JointTrajectory) -> list[str]:
    return list(message.joint_names if isinstance(message, JointTrajectory) else message.name)


def _rename(message: JointState | JointTrajectory, names: list[str]) -> None:
    setattr(message, "joint_names" if isinstance(message, JointTrajectory) else "name", names)


def _rearrange(message: JointState | JointTrajectory, order: Sequence[int]) -> None:
    """Names and values become those at ``order``."""
    names = _names(message)
    for carrier in _carriers(message):
        for vector in VECTORS[type(message)]:
            values = getattr(carrier, vector)
            if len(values) == len(names):
                setattr(carrier, vector, [values[i] for i in order])
    _rename(message, [names[i] for i in order])


class FaultInjector(SageNode):
    """``topic_in`` -> ``topic_out``, both of ``kind``, with ``fault``: to try a robot's software on a bad day.

    ``ros2 param set /fault_injector fault nan`` breaks what passes from then on, ``... none`` mends it. What is delayed
    still comes when its time has come, though others may have overtaken it.
    """

    Config = InjectorConfig
    config: InjectorConfig
    live = frozenset({"fault", "probability", "delay", "shift", "jump"})

    def __init__(self, **kwargs: object) -> None:
        super().__init__("fault_injector", **kwargs)

    def setup(self) -> None:
        kind, qos = KINDS[self.config.kind]
        self._spoiler = Spoiler(self.config)
        self._late: deque[tuple[int, Any]] = deque()  # due (ns), message
        self._out = self.publish_on(kind, self.config.topic_out, qos)
        self.listen(kind, self.config.topic_in, self._on_message, qos)
        self.every(0.002, self._send_late, clock=self.get_clock())

    def changed(self) -> None:
        self._spoiler.config = self.config

    def clear(self) -> None:
        if self._entities:
            self._spoiler.clear()
            self._late.clear()

    def stop(self) -> None:
        self.clear()

    def _on_message(self, message: Any) -> None:
        self.counts["messages_in"] += 1
        with self.watch.span():
            spoiled, hit = self._spoiler(message)
        if hit:
            self.counts[f"hit_by_{self.config.fault}"] += 1
        if hit and self.config.fault == "delay":
            due = self.get_clock().now().nanoseconds + round(self.config.delay * SECOND)
            self._late += [(due, late) for late in spoiled]
        else:
            self._send(spoiled)

    def _send(self, messages: Sequence[Any]) -> None:
        for message in messages:
            self._out.publish(message)
        self.counts["messages_out"] += len(messages)

    def _send_late(self) -> None:
        now = self.get_clock().now().nanoseconds
        while self._late and self._late[0][0] <= now:
            self._send([self._late.popleft()[1]])

    def status(self) -> Status:
        if not self.active:
            return DiagnosticStatus.OK, "inactive", {}
        c = self.config
        level = DiagnosticStatus.OK if c.fault == "none" else DiagnosticStatus.WARN
        return level, f"{c.topic_in} -> {c.topic_out}, fault: {c.fault}", {"late": len(self._late)}


def main(args: list[str] | None = None) -> int:
    return run(FaultInjector, args)


if __name__ == "__main__":
    sys.exit(main())
