"""What each metabolic state allows and costs, and when it is entered: one table, checked as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, TypeVar

from sage_ros.core.options import check, option

Row = TypeVar("Row")


class State(str, Enum):
    WAKE = "WAKE"  # normal work
    FOCUS = "FOCUS"  # the picture is not what was expected, or the student is unsure: look harder
    REST = "REST"  # no task, or no strength: hold still and recover
    DREAM = "DREAM"  # a long rest: time to learn from what was recorded
    CRISIS = "CRISIS"  # hold, and stay so until somebody resets it


@dataclass(frozen=True)
class Allowance:
    """What a state allows."""

    vision_rate: float = option(30.0, "most camera frames encoded per second (Hz); 0: none", low=0.0, high=1000.0)
    policy_rate: float = option(30.0, "most chunks inferred per second (Hz); 0 stops the policy", low=0.0, high=1000.0)
    refine_steps: int = option(0, "refinement steps that the vision may spend on a frame", low=0, high=100)
    breadth: float = option(1.0, "share of all attention that is kept, greatest weights first", low=0.01, high=1.0)
    learning: bool = option(False, "whether learning from recorded sessions is allowed")
    actuation: bool = option(True, "whether commands may reach a robot")
    cost: float = option(0.2, "expected compute of all nodes (cores)", low=0.0, high=1024.0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Store:
    """How much compute there is to spend."""

    capacity: float = option(30.0, "energy of a full store (s of one core's compute)", low=0.1, high=1e6)
    recharge: float = option(0.5, "energy gained per second (share of one core)", low=0.001, high=1024.0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Thresholds:
    """When to change state. Energies are shares of a full bucket, charges of a full battery."""

    dwell: float = option(1.0, "least time in a state (s); waking, holding, CRISIS do not wait", low=0.0, high=60.0)
    hold_within: float = option(5.0, "longest wait for a hold before REST, then CRISIS (s)", low=0.1, high=60.0)
    focus_below: float = option(0.8, "trust in the picture below which FOCUS begins", low=0.0, high=1.0)
    focus_above: float = option(0.95, "trust in the picture above which FOCUS ends", low=0.0, high=1.0)
    unsure_below: float = option(0.6, "the student's confidence below which FOCUS begins", low=0.0, high=1.0)
    sure_above: float = option(0.9, "the student's confidence above which FOCUS ends", low=0.0, high=1.0)
    focus_energy: float = option(0.5, "energy needed to start FOCUS", low=0.0, high=1.0)
    tired: float = option(0.2, "energy below which the robot rests even with a task", low=0.0, high=1.0)
    rested: float = option(0.6, "energy above which such a rest ends", low=0.0, high=1.0)
    battery_low: float = option(0.2, "charge below which the robot rests even with a task", low=0.0, high=1.0)
    battery_enough: float = option(0.5, "charge above which such a rest ends", low=0.0, high=1.0)
    hot: float = option(80.0, "temperature above which the robot rests even with a task (C)", low=-50.0, high=500.0)
    cool: float = option(70.0, "temperature below which such a rest ends (C)", low=-50.0, high=500.0)
    dream_after: float = option(60.0, "rest without a task before DREAM (s)", low=0.0, high=86400.0)
    dream_docked: float = option(5.0, "the same while the battery is being charged (s)", low=0.0, high=86400.0)
    dream_energy: float = option(0.4, "energy needed to start DREAM", low=0.0, high=1.0)
    dream_longest: float = option(300.0, "longest DREAM (s)", low=0.0, high=86400.0)
    crisis_confidence: float = option(0.3, "trust in the picture below which the robot holds", low=0.0, high=1.0)
    crisis_after: float = option(2.0, "how long it may stay so low before it is a CRISIS (s)", low=0.0, high=60.0)

    def __post_init__(self) -> None:
        check(self)
        if not self.crisis_confidence < self.focus_below < self.focus_above or not self.unsure_below < self.sure_above:
            raise ValueError("need crisis_confidence < focus_below < focus_above and unsure_below < sure_above, "
                             "or states would flap")  # fmt: skip
        if not self.tired < min(self.dream_energy, self.focus_energy) or not self.tired < self.rested:
            raise ValueError("need tired below dream_energy, focus_energy and rested, or states would flap")
        if not self.battery_low < self.battery_enough or not self.cool < self.hot:
            raise ValueError("need battery_low < battery_enough and cool < hot, or states would flap")


@dataclass(frozen=True)
class Table:
    """The whole metabolism. Raises ValueError where it is not safe, or would leave the robot without strength."""

    states: Mapping[State, Allowance]
    store: Store = field(default_factory=Store)
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        if missing := [state.value for state in State if state not in self.states]:
            raise ValueError(f"states: {', '.join(missing)} is missing")
        for state in (State.REST, State.DREAM, State.CRISIS):
            if self.states[state].actuation:
                raise ValueError(f"{state.value}: actuation is true, but a robot must hold in {state.value}")
        for state, allowance in self.states.items():
            if allowance.learning and allowance.actuation:
                raise ValueError(f"{state.value}: both learning and actuation are true: nothing learns while it moves")
        if self.states[State.REST].cost >= self.store.recharge:
            raise ValueError(f"REST costs {self.states[State.REST].cost}, which is not less than the recharge of "
                             f"{self.store.recharge}: the robot would never be rested")  # fmt: skip

    @classmethod
    def of(cls, content: Any) -> Table:
        """From a file's content: ``states`` by name, ``energy`` and ``thresholds``. Raises ValueError naming what is
        wrong; nothing is taken for granted, every value must be there.
        """
        given = _mapping(content, "the table", ("states", "energy", "thresholds"))
        rows = _mapping(given["states"], "states", tuple(state.value for state in State))
        states = {state: _row(Allowance, rows[state.value], state.value) for state in State}
        return cls(states, _row(Store, given["energy"], "energy"), _row(Thresholds, given["thresholds"], "thresholds"))

    def warnings(self) -> list[str]:
        """What the table asks for that cannot last."""
        wake = self.states[State.WAKE].cost
        if wake > self.store.recharge:
            return [
                f"WAKE costs {wake} cores, more than the recharge of {self.store.recharge}: now and then it must rest"
            ]
        return []


def _mapping(content: Any, what: str, keys: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{what} must be a mapping, got {type(content).__name__}")
    wrong = [f"{key} is missing" for key in keys if key not in content]
    wrong += [f"there is no {key}" for key in content if key not in keys]
    if wrong:
        raise ValueError(f"{what}: {', '.join(wrong)}")
    return content


def _row(kind: type[Row], content: Any, what: str) -> Row:
    names = {item.name: getattr(kind(), item.name) for item in fields(kind)}  # type: ignore[arg-type]
    given = dict(_mapping(content, what, tuple(names)))
    for name, default in names.items():
        if type(default) is float and type(given[name]) is int:
            given[name] = float(given[name])
        if type(given[name]) is not type(default) or (type(default) is float and not math.isfinite(given[name])):
            raise ValueError(f"{what}: {name} must be a {type(default).__name__}, got {given[name]!r}")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
