"""The metabolic state: how much the robot looks, acts and learns, by what it senses and what it has spent.

A hierarchical state machine in the sense of supervisory control (Ramadge & Wonham 1987), with dwell times and two
thresholds per decision so that it does not flap. Energy is a token bucket over measured compute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sage_ros.core.allowance import State, Thresholds

WORKING = (State.WAKE, State.FOCUS)
STILL = (State.REST, State.DREAM)


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

    @property
    def share(self) -> float:
        return self.level / self.capacity

    def advance(self, elapsed: float, spent: float) -> float:
        """Recharge over ``elapsed`` s, pay ``spent`` s of compute; returns the share left, in [0, 1]."""
        self.level += self.recharge * max(elapsed, 0.0) - max(spent, 0.0)
        self.level = min(max(self.level, 0.0), self.capacity)
        return self.share


@dataclass(frozen=True)
class Senses:
    """What the decision rests on, at ``now`` seconds of any clock that only goes forward."""

    now: float
    energy: float  # share of a full bucket
    task: bool  # there is something to do
    confidence: float = 1.0  # relevance-weighted trust in the picture
    certainty: float = 1.0  # how sure the student is of its chunks
    fault: str = ""  # a node's error, in words
    held: bool = True  # the robot stands still, or nobody commands it
    battery: float = math.nan  # share of a full battery; nan: unknown
    docked: bool = False  # it is being charged
    temperature: float = math.nan  # of the hottest part, degrees Celsius; nan: unknown


class Metabolism:
    """The state machine: feed it :class:`Senses`, read ``state``, ``reason`` and ``pause``.

    ``pause`` is why the robot must hold although its state would let it move: it is about to rest, or for the moment
    the picture cannot be believed. REST and DREAM are entered only once the robot is ``held``.
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self.state = State.REST
        self.reason = "started"
        self.pause = ""
        self.override: State | None = None
        self._since: float | None = None  # when this state began; None before the first update
        self._doubtful_since: float | None = None
        self._holding_since: float | None = None  # when the robot was asked to hold, for a state that needs it
        self._weak: dict[str, str] = {}  # of energy, battery, heat: what forces a rest, in words
        self._alarm = ""  # somebody asked for a CRISIS
        self._reset_asked = False

    @property
    def weakness(self) -> str:
        """What forces a rest, in words; empty: nothing does."""
        return "; ".join(self._weak.values())

    def alarm(self, why: str) -> None:
        """Ask for CRISIS at the next update."""
        self._alarm = why

    def reset_crisis(self) -> None:
        """Ask to leave CRISIS; granted at the next update if its cause is gone and the robot stands still."""
        self._reset_asked = True

    def update(self, senses: Senses) -> bool:
        """Decide; returns whether ``state`` or ``pause`` changed."""
        if self._since is None or self._since > senses.now:  # the first time, or the clock went back
            self._since, self._doubtful_since, self._holding_since = senses.now, None, None
        before = self.state, self.pause
        self._feel(senses)
        target, reason = self._decide(senses)
        self.pause = ""
        if self.state in WORKING and target in STILL and not senses.held:
            target, reason = self._hold(target, reason, senses.now)
        else:
            self._holding_since = None
        if target in WORKING and self._doubtful_since is not None:
            self.pause = self.pause or "the picture cannot be believed"
        if target is not self.state:
            self.state, self.reason, self._since = target, reason, senses.now
        return (self.state, self.pause) != before

    def _hold(self, target: State, reason: str, now: float) -> tuple[State, str]:
        """The robot must stand still first: until then it stays in its state, but is not allowed to move."""
        self._holding_since = now if self._holding_since is None else self._holding_since
        if now - self._holding_since > self.thresholds.hold_within:
            self._holding_since = None
            return State.CRISIS, f"no hold within {self.thresholds.hold_within:g} s, before {target.value}: {reason}"
        self.pause = f"holds before {target.value}: {reason}"
        return self.state, self.reason

    def _feel(self, s: Senses) -> None:
        """What forces a rest: begins beyond one threshold and ends beyond another. What is unknown forces nothing."""
        t = self.thresholds
        for name, value, weak, well, why in (
            ("energy", s.energy, s.energy < t.tired, s.energy > t.rested, f"{s.energy:.0%} below {t.tired:.0%}"),
            ("battery", s.battery, s.battery < t.battery_low, s.battery > t.battery_enough,
             f"{s.battery:.0%} below {t.battery_low:.0%}"),
            ("temperature", s.temperature, s.temperature > t.hot, s.temperature < t.cool,
             f"{s.temperature:.0f} C above {t.hot:.0f} C"),
        ):  # fmt: skip
            if weak:
                self._weak.setdefault(name, f"{name} {why}")
            elif well or math.isnan(value):
                self._weak.pop(name, None)

    def _danger(self, s: Senses) -> str:
        alarm, self._alarm = self._alarm, ""
        if alarm or s.fault:
            return alarm or s.fault
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
            return State.CRISIS, self.reason if here is State.CRISIS else danger
        if here is State.CRISIS:
            return (State.REST, "reset by the operator") if asked and s.held else stay
        if self.override is State.DREAM and s.task:
            self.override = None  # a robot with a task does not dream, whoever asked for it
        if self.override is not None:
            return self.override, "override"
        weak = self.weakness
        if here in STILL and s.task and not weak:
            return State.WAKE, "task"
        if here is State.DREAM and s.task:
            return State.REST, weak
        if lasted < t.dwell:  # waking never waits
            return stay
        if here in WORKING:
            return self._at_work(s, weak)
        if here is State.DREAM:
            return (State.REST, self._enough(s, lasted)) if self._enough(s, lasted) else stay
        after = t.dream_docked if s.docked else t.dream_after
        if lasted >= after and s.held and s.energy > t.dream_energy and not self._enough(s, 0.0):
            return State.DREAM, f"no task for {after:g} s"
        return stay

    def _at_work(self, s: Senses, weak: str) -> tuple[State, str]:
        t = self.thresholds
        if weak or not s.task:
            return State.REST, weak or "no task"
        if self.state is State.WAKE:
            doubt = f"confidence {s.confidence:.2f} below {t.focus_below}" if s.confidence < t.focus_below else ""
            if not doubt and s.certainty < t.unsure_below:
                doubt = f"the student's confidence {s.certainty:.2f} below {t.unsure_below}"
            return (State.FOCUS, doubt) if doubt and s.energy > t.focus_energy else (State.WAKE, self.reason)
        if s.confidence > t.focus_above and s.certainty > t.sure_above:
            return State.WAKE, f"confidence {s.confidence:.2f} and {s.certainty:.2f} again"
        if s.energy < (t.tired + t.focus_energy) / 2:
            return State.WAKE, f"energy {s.energy:.0%} is too low for FOCUS"
        return State.FOCUS, self.reason

    def _enough(self, s: Senses, dreamt: float) -> str:
        """Why a dream of ``dreamt`` s must end, or none may begin."""
        kept = {name: why for name, why in self._weak.items() if name != "battery" or not s.docked}
        if s.task or kept:
            return "; ".join(kept.values()) or "a task waits"
        return "dreamt enough" if dreamt >= self.thresholds.dream_longest else ""
