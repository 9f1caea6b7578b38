"""Iterative refinement: take a first guess, lower its energy step by step, keep the best, say why it stopped.

The contract of an Iterative Refinement Primitive (IRP): ``init_state, energy, step, project`` and a halting rule.
Energy is lower-is-better and is the thing really minimised. An anytime algorithm (Zilberstein 1996): it can be
stopped by a wall-clock budget and still answers with the best state seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

State = TypeVar("State")


class Halt(StrEnum):
    """Why a refinement stopped."""

    CONVERGED = "converged"  # the last step lowered the energy by less than the tolerance
    STEPS = "step budget"
    DEADLINE = "deadline"  # another step would have passed it
    DIVERGED = "diverged"  # the energy rose past the starting energy, or is not finite


@dataclass(frozen=True)
class Budget:
    """How much refinement is allowed: ``steps`` after the first pass, ``seconds`` of wall clock in all.

    A step is not begun if it would pass the deadline by taking as long as the longest step so far; the first pass
    always happens, and the first step's cost is not known beforehand. ``tolerance`` is the relative decrease of one
    step below which further steps do not pay.
    """

    steps: int = 0
    seconds: float = math.inf
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if self.steps < 0 or not self.seconds > 0 or not 0 <= self.tolerance < 1:
            raise ValueError(f"steps must be >= 0, seconds > 0 and tolerance in [0, 1): {self}")


@dataclass(frozen=True)
class Refinement(Generic[State]):
    """The best state seen, and how it was found. ``energies[k]`` is the energy after k steps.

    With no steps allowed the energy is not computed and ``energies`` is empty.
    """

    state: State
    energies: tuple[float, ...]
    halt: Halt
    seconds: float

    @property
    def steps(self) -> int:
        return max(len(self.energies) - 1, 0)


class Refinable(Protocol[State]):
    """What :func:`refine` needs. ``project`` maps a state back onto what is allowed (identity where all is)."""

    def init_state(self, observation: object) -> State: ...
    def energy(self, state: State) -> float: ...
    def step(self, state: State) -> State: ...
    def project(self, state: State) -> State: ...


def halt(energies: Sequence[float], budget: Budget, seconds: float) -> Halt | None:
    """The halting rule: None means go on. ``energies`` holds at least the starting energy.

    ``seconds``: the time at which one more step is expected to end (equal to the time now, where that is unknown).
    """
    if not math.isfinite(energies[-1]) or energies[-1] > energies[0]:
        return Halt.DIVERGED
    if len(energies) > 1 and energies[-2] - energies[-1] <= budget.tolerance * abs(energies[-2]):
        return Halt.CONVERGED
    if len(energies) > budget.steps:
        return Halt.STEPS
    if seconds > budget.seconds:
        return Halt.DEADLINE
    return None


def refine(
    plugin: Refinable[State],
    observation: object,
    budget: Budget,
    clock: Callable[[], float] = time.perf_counter,
) -> Refinement[State]:
    """First pass, then refinement steps until the halting rule says stop; returns the best state seen."""
    start = clock()
    state = best = plugin.init_state(observation)
    if budget.steps == 0:
        return Refinement(state, (), Halt.STEPS, clock() - start)
    energies = [lowest := plugin.energy(state)]
    elapsed, longest = clock() - start, 0.0
    while (reason := halt(energies, budget, elapsed + longest)) is None:
        state = plugin.project(plugin.step(state))
        energies.append(plugin.energy(state))
        if math.isfinite(energies[-1]) and energies[-1] < lowest:
            best, lowest = state, energies[-1]
        before, elapsed = elapsed, clock() - start
        longest = max(longest, elapsed - before)
    return Refinement(best, tuple(energies), reason, elapsed)
