"""The metabolic state: how much the robot looks, acts and learns, by what it senses and what it has spent.

A hierarchical state machine in the sense of supervisory control (Ramadge & Wonham 1987), with dwell times and two
thresholds per decision so that it does not flap. Energy is a token bucket over measured compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from sage_ros.core.options import check, option


class State(str, Enum):
    WAKE = "WAKE"  # normal work
    FOCUS = "FOCUS"  # the picture is not what was expected: look harder
    REST = "REST"  # no task, or no energy: hold still and recover
    DREAM = "DREAM"  # a long rest: time to learn from what was recorded
    CRISIS = "CRISIS"  # hold, and stay so until somebody resets it


@dataclass(frozen=True)
class Allowance:
    """What a state allows."""

    vision_rate: float = option(40.0, "most camera frames encoded per second (Hz)", low=0.1, high=1000.0)
    policy_rate: float = option(40.0, "most chunks inferred per second (Hz); 0 stops the policy", low=0.0, high=1000.0)
    refine_steps: int = option(0, "refinement steps that the vision may spend on a frame", low=0, high=100)
    learning: bool = option(False, "whether learning from recorded sessions is allowed")
    actuation: bool = option(True, "whether commands may reach a robot")

    def __post_init__(self) -> None:
        check(self)


ALLOWANCES: Mapping[State, Allowance] = {
    State.WAKE: Allowance(vision_rate=40.0, policy_rate=40.0, refine_steps=0, learning=False, actuation=True),
    State.FOCUS: Allowance(vision_rate=80.0, policy_rate=80.0, refine_steps=0, learning=False, actuation=True),
    State.REST: Allowance(vision_rate=2.0, policy_rate=0.0, refine_steps=0, learning=False, actuation=False),
    State.DREAM: Allowance(vision_rate=0.5, policy_rate=0.0, refine_steps=0, learning=True, actuation=False),
    State.CRISIS: Allowance(vision_rate=5.0, policy_rate=0.0, refine_steps=0, learning=False, actuation=False),
}


@dataclass(frozen=True)
class Thresholds:
    """When to change state. Energies are shares of a full bucket."""

    dwell: float = option(1.0, "least time in a state (s); waking and CRISIS do not wait", low=0.0, high=60.0)
    focus_below: float = option(0.8, "confidence below which the robot looks harder (FOCUS)", low=0.0, high=1.0)
    focus_above: float = option(0.95, "confidence above which FOCUS ends", low=0.0, high=1.0)
    focus_energy: float = option(0.5, "energy needed to start FOCUS", low=0.0, high=1.0)
    tired: float = option(0.2, "energy below which the robot rests even with a task", low=0.0, high=1.0)
    rested: float = option(0.6, "energy above which a rest may end", low=0.0, high=1.0)
    dream_after: float = option(60.0, "rest without a task before DREAM (s)", low=0.0, high=86400.0)
    dream_energy: float = option(0.4, "energy needed to start DREAM", low=0.0, high=1.0)
    dream_longest: float = option(300.0, "longest DREAM (s)", low=0.0, high=86400.0)
    crisis_confidence: float = option(0.3, "confidence below which a task becomes a CRISIS", low=0.0, high=1.0)
    crisis_after: float = option(0.5, "how long confidence must stay low before CRISIS (s)", low=0.0, high=60.0)

    def __post_init__(self) -> None:
        check(self)
        if not self.crisis_confidence < self.focus_below < self.focus_above:
            raise ValueError("need crisis_confidence < focus_below < focus_above, or states would flap")
        if not self.tired < min(self.dream_energy, self.focus_energy) or not self.tired < self.rested:
            raise ValueError("need tired below dream_energy, focus_energy and rested, or states would flap")


@dataclass
class Energy:
    """Token bucket (ATP) over measured seconds of compute."""

    capacity: float = 30.0  # s of compute
    recharge: float = 0.5  # s of compute per s, i.e. the share of one core that can be spent for ever
    level: float = field(default=-1.0)

    def __post_init__(self) -> None:
        if self.capacity <= 0 or self.recharge <= 0:
            raise ValueError(f"capacity and recharge must be > 0: {self}")
        if self.level < 0:
            self.level = self.capacity

    def advance(self, elapsed: float, spent: float) -> float:
        """Recharge over ``elapsed`` s, pay ``spent`` s of compute; returns the share left, in [0, 1]."""
        self.level += self.recharge * max(elapsed, 0.0) - max(spent, 0.0)
        self.level = min(max(self.level, 0.0), self.capacity)
        return self.level / self.capacity


@dataclass(frozen=True)
class Senses:
    """What the decision rests on, at ``now`` seconds of any clock that only goes forward."""

    now: float
    energy: float  # share of a full bucket
    task: bool  # there is something to do
    confidence: float = 1.0  # relevance-weighted trust
    fault: str = ""  # a node's error, in words


class Metabolism:
    """The state machine: feed it :class:`Senses`, read ``state`` and ``reason``."""

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self.state = State.REST
        self.reason = "started"
        self.override: State | None = None
        self._since: float | None = None  # when this state began; None before the first update
        self._doubtful_since: float | None = None
        self._reset_asked = False

    def reset_crisis(self) -> None:
        """Ask to leave CRISIS; granted at the next update if its cause is gone."""
        self._reset_asked = True

    def update(self, senses: Senses) -> bool:
        """Decide; returns whether the state changed."""
        if self._since is None or self._since > senses.now:  # the first time, or the clock went back
            self._since, self._doubtful_since = senses.now, None
        target, reason = self._decide(senses)
        if target is self.state:
            return False
        self.state, self.reason, self._since = target, reason, senses.now
        return True

    def _danger(self, s: Senses) -> str:
        if s.fault:
            return s.fault
        if not s.task or s.confidence >= self.thresholds.crisis_confidence:
            self._doubtful_since = None
            return ""
        if self._doubtful_since is None:
            self._doubtful_since = s.now
        if s.now - self._doubtful_since < self.thresholds.crisis_after:
            return ""
        return f"confidence {s.confidence:.2f} below {self.thresholds.crisis_confidence} for too long"

    def _decide(self, s: Senses) -> tuple[State, str]:
        """The transition table, the most urgent rule first."""
        t, here, lasted = self.thresholds, self.state, s.now - (self._since or 0.0)
        stay = here, self.reason
        danger, asked = self._danger(s), self._reset_asked
        self._reset_asked = False
        if danger:
            return State.CRISIS, danger
        if here is State.CRISIS:
            return (State.REST, "reset by the operator") if asked else stay
        if self.override is not None:
            return self.override, "override"
        if here is State.DREAM and s.task:
            return State.WAKE, "task"
        if here is State.REST and s.task and s.energy > t.rested:
            return State.WAKE, "task"
        if lasted < t.dwell:  # waking never waits
            return stay
        working = here in (State.WAKE, State.FOCUS)
        if working and s.energy < t.tired:
            return State.REST, f"energy {s.energy:.0%} below {t.tired:.0%}"
        if working and not s.task:
            return State.REST, "no task"
        if here is State.WAKE and s.confidence < t.focus_below and s.energy > t.focus_energy:
            return State.FOCUS, f"confidence {s.confidence:.2f} below {t.focus_below}"
        if here is State.FOCUS and s.confidence > t.focus_above:
            return State.WAKE, f"confidence {s.confidence:.2f} again"
        if here is State.FOCUS and s.energy < (t.tired + t.focus_energy) / 2:
            return State.WAKE, f"energy {s.energy:.0%} is too low for FOCUS"
        if here is State.REST and not s.task and lasted >= t.dream_after and s.energy > t.dream_energy:
            return State.DREAM, f"no task for {t.dream_after:.0f} s"
        if here is State.DREAM and (s.energy < t.tired or lasted >= t.dream_longest):
            return State.REST, "dreamt enough" if s.energy >= t.tired else f"energy {s.energy:.0%}"
        return stay
