"""A day of the metabolism in simulated time: tasks, doubt, faults, battery, heat and an operator, all by chance.

No physics and no network: the same state machine and energy as in metabolic_manager, fed with what a robot would sense
in 24 hours, in a few seconds. The same seed gives the same day.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from sage_ros.core.allowance import State, Table
from sage_ros.core.metabolism import STILL, WORKING, Energy, Metabolism, Senses

HOUR = 3600.0
# Means of times between events and of what they last (s): exponentially distributed.
TASK_EVERY, TASK_TAKES, PATIENCE = 1500.0, 400.0, 2 * HOUR  # the last: until a task is given up
DOUBT_EVERY, DOUBT_LASTS = 300.0, 10.0
COVERED_EVERY, COVERED_LASTS = 1200.0, 0.8  # something before the camera
FAULT_EVERY, FAULT_LASTS = 4 * HOUR, 20.0
ASKED_EVERY, ASKED_LASTS = 3 * HOUR, 60.0  # an operator holds a state
RESET_AFTER, DOCK_AFTER = 120.0, 90.0  # until somebody comes
HOT_EVERY, HOT_LASTS = 8 * HOUR, 0.5 * HOUR
BRAKES = 0.6  # s from the end of permission to standstill
RUNTIME, CHARGES, IDLE = 4 * HOUR, 1.5 * HOUR, 0.15  # battery: work on it, time to fill it, share of work when still


class Chance:
    """Something that comes now and then, and lasts."""

    def __init__(self, random: np.random.Generator, every: float, lasts: float) -> None:
        self._random, self._every, self._lasts = random, every, lasts
        self._begin, self._end = random.exponential(every), -1.0

    def on(self, now: float) -> bool:
        if now >= self._begin:
            self._end = now + self._random.exponential(self._lasts)
            self._begin = self._end + self._random.exponential(self._every)
        return now < self._end


@dataclass
class Day:
    """What became of a day. Times in s."""

    seed: int
    seconds: dict[State, float] = field(default_factory=lambda: dict.fromkeys(State, 0.0))
    tasks: int = 0
    done: int = 0
    given_up: int = 0
    changes: int = 0
    busiest_minute: int = 0  # most changes of state within 60 s: a livelock would show
    longest_wait: float = 0.0  # with a task and strength, without a crisis or an operator's wish, until it acted
    dreamt_with_task: float = 0.0
    rested_moving: int = 0  # times that REST or DREAM began while the robot still moved
    acted_forbidden: float = 0.0  # moved in a state that does not allow it
    longest_weak: float = 0.0  # rest that lack of energy, battery or heat forced
    lowest_energy: float = 1.0
    timeline: list[tuple[float, str, str]] = field(default_factory=list)


class Robot:
    """What the robot senses, by chance and by what it does."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self.battery, self.temperature, self.docked = 1.0, 35.0, False
        self.enabled, self.moving = True, False
        self._still_for = self._idle_for = 0.0
        self._doubt, self._covered = (Chance(random, *times) for times in (
            (DOUBT_EVERY, DOUBT_LASTS), (COVERED_EVERY, COVERED_LASTS)))  # fmt: skip
        self._unsure, self._fault = (Chance(random, *times) for times in (
            (DOUBT_EVERY, DOUBT_LASTS), (FAULT_EVERY, FAULT_LASTS)))  # fmt: skip
        self._hot = Chance(random, HOT_EVERY, HOT_LASTS)

    def live(self, now: float, elapsed: float, acts: bool) -> None:
        """``acts``: it is allowed to move, and has something to do."""
        self._still_for = 0.0 if acts else self._still_for + elapsed
        self.moving = acts or self._still_for < BRAKES
        self._idle_for = 0.0 if acts else self._idle_for + elapsed
        if acts or self.battery >= 1.0:
            self.docked = False
        elif self._idle_for > DOCK_AFTER and self.battery < 0.9:
            self.docked = True
        self.battery += elapsed / CHARGES if self.docked else -(1.0 if acts else IDLE) * elapsed / RUNTIME
        self.battery = min(max(self.battery, 0.0), 1.0)
        target = 30.0 + 25.0 * acts + (60.0 if self._hot.on(now) else 0.0)
        self.temperature += (target - self.temperature) * (1 - math.exp(-elapsed / 300.0))

    def senses(self, now: float, energy: float, task: bool) -> Senses:
        confidence = 0.1 if self._covered.on(now) else 0.6 if self._doubt.on(now) else 0.98
        certainty = 0.5 if self._unsure.on(now) else 0.97
        fault = "camera: gone" if self._fault.on(now) else ""
        return Senses(now, energy, task, confidence, certainty, fault, not self.moving, self.battery, self.docked,
                      self.temperature)  # fmt: skip


def live_a_day(table: Table, seed: int, hours: float = 24.0, step: float = 0.5) -> Day:
    """Live ``hours`` of simulated time, deciding every ``step`` s."""
    random = np.random.default_rng(seed)
    machine, robot, day = Metabolism(table.thresholds), Robot(random), Day(seed)
    energy = Energy(table.store.capacity, table.store.recharge)
    arrival, operator = random.exponential(TASK_EVERY), Chance(random, ASKED_EVERY, ASKED_LASTS)
    todo: deque[tuple[float, float]] = deque()  # work left and when it was asked for
    waited = weak = 0.0
    reset_at = math.inf
    recent: deque[float] = deque()
    for tick in range(round(hours * HOUR / step)):
        now = tick * step
        if now >= arrival:
            todo.append((random.exponential(TASK_TAKES), now))
            day.tasks, arrival = day.tasks + 1, now + random.exponential(TASK_EVERY)
        if todo and now - todo[0][1] > PATIENCE:
            todo.popleft()
            day.given_up += 1
        if not operator.on(now):
            machine.override = None
        elif machine.override is None and tick % 16 == 0:
            machine.override = (State.WAKE, State.FOCUS, State.REST, State.DREAM)[int(random.integers(4))]
        if machine.state is State.CRISIS and now >= reset_at:
            machine.reset_crisis()
        before, was_moving = machine.state, robot.moving
        senses = robot.senses(now, energy.share, bool(todo))
        machine.update(senses)
        state = machine.state
        if state is not before:
            _note(day, machine, now, recent)
            day.rested_moving += state in STILL and before in WORKING and was_moving
            if state is State.CRISIS:
                robot.enabled, reset_at = False, now + random.exponential(RESET_AFTER)
            elif before is State.CRISIS:
                robot.enabled, reset_at = True, math.inf  # whoever resets it enables it again
        allowed = table.states[state].actuation and not machine.pause
        acts = allowed and bool(todo) and robot.enabled
        day.acted_forbidden += step * (acts and not table.states[state].actuation)
        if acts:
            todo[0] = todo[0][0] - step, todo[0][1]
            if todo[0][0] <= 0:
                todo.popleft()
                day.done += 1
        # Waiting counts where nothing stands in the way: no crisis, no wish of an operator, no lack of strength
        free = bool(todo) and state is not State.CRISIS and machine.override is None and not machine.weakness
        waited = waited + step if free and not acts else 0.0
        weak = weak + step if machine.weakness and todo else 0.0
        day.longest_wait, day.longest_weak = max(day.longest_wait, waited), max(day.longest_weak, weak)
        day.seconds[state] += step
        day.dreamt_with_task += step * (state is State.DREAM and senses.task)
        cost = table.states[state].cost * random.uniform(0.8, 1.2)
        day.lowest_energy = min(day.lowest_energy, energy.advance(step, step * cost))
        robot.live(now, step, acts)
    return day


def _note(day: Day, machine: Metabolism, now: float, recent: deque[float]) -> None:
    day.changes += 1
    day.timeline.append((now, machine.state.value, machine.reason))
    recent.append(now)
    while now - recent[0] > 60.0:
        recent.popleft()
    day.busiest_minute = max(day.busiest_minute, len(recent))
