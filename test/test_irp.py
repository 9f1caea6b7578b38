"""Iterative refinement: best state kept, every halt reason reachable, deadline and step budgets kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.core.irp import Budget, Halt, halt, refine

ENERGIES = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf]), min_size=1, max_size=12)


@dataclass
class Scripted:
    """A plugin whose state is the number of steps taken and whose energies are given; ``projected`` logs the calls."""

    energies: list[float]
    projected: list[int] = field(default_factory=list)

    def init_state(self, observation: object) -> int:
        return 0

    def energy(self, state: int) -> float:
        return self.energies[min(state, len(self.energies) - 1)]

    def step(self, state: int) -> int:
        return state + 1

    def project(self, state: int) -> int:
        self.projected.append(state)
        return state


class Clock:
    """A clock that moves by ``tick`` seconds at each reading."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = -tick, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


@given(energies=ENERGIES, steps=st.integers(0, 15), tolerance=st.floats(0, 0.5))
def test_the_answer_is_never_worse_than_the_first_guess_and_is_the_best_one_seen(
    energies: list[float], steps: int, tolerance: float
) -> None:
    plugin = Scripted(energies)
    result = refine(plugin, None, Budget(steps, tolerance=tolerance))
    assert result.steps <= steps
    if steps == 0:
        assert result.state == 0 and result.energies == () and result.halt is Halt.STEPS
        return
    finite = [e for e in result.energies if math.isfinite(e)]
    if not math.isfinite(result.energies[0]):
        assert result.state == 0 and result.halt is Halt.DIVERGED
    else:
        assert plugin.energy(result.state) == min(finite) <= result.energies[0]


@given(energies=ENERGIES, tick=st.floats(0.001, 1.0), seconds=st.floats(0.001, 5.0))
def test_no_step_is_begun_that_would_pass_the_deadline_if_it_took_as_long_as_the_longest_so_far(
    energies: list[float], tick: float, seconds: float
) -> None:
    result = refine(Scripted(energies), None, Budget(1000, seconds, tolerance=0.0), Clock(tick))
    # The clock moves only when read (at the start, after the first pass and after each step), so every step costs
    # one tick: only the first pass and the first step, whose cost nobody knows beforehand, may break the deadline.
    assert result.steps <= 1 or result.seconds <= seconds * (1 + 1e-9)


def test_falling_energies_run_to_the_step_budget() -> None:
    result = refine(Scripted([8.0, 4.0, 2.0, 1.0, 0.5]), None, Budget(3))
    assert (result.energies, result.halt, result.state) == ((8.0, 4.0, 2.0, 1.0), Halt.STEPS, 3)


def test_a_step_that_gains_less_than_the_tolerance_is_the_last_but_is_kept() -> None:
    result = refine(Scripted([10.0, 5.0, 4.99, 1.0]), None, Budget(9, tolerance=0.01))
    assert (result.halt, result.state, result.steps) == (Halt.CONVERGED, 2, 2)


def test_a_rise_below_the_start_ends_it_with_the_state_before_the_rise() -> None:
    result = refine(Scripted([10.0, 3.0, 7.0, 1.0]), None, Budget(9))
    assert (result.halt, result.state) == (Halt.CONVERGED, 1)


@pytest.mark.parametrize("bad", [11.0, math.nan, math.inf, -math.inf])
def test_divergence_is_named_and_answers_with_the_last_good_state(bad: float) -> None:
    result = refine(Scripted([10.0, 3.0, bad]), None, Budget(9))
    assert (result.halt, result.state, result.steps) == (Halt.DIVERGED, 1, 2)


def test_the_deadline_stops_it_with_the_best_so_far() -> None:
    result = refine(Scripted([2.0**-k for k in range(99)]), None, Budget(50, seconds=1.0), Clock(0.3))
    assert result.halt is Halt.DEADLINE
    assert (result.steps, result.state) == (2, 2)  # first pass 0.3 s, two steps 0.6 s; a third would end at 1.2 s


def test_every_new_state_is_projected() -> None:
    plugin = Scripted([4.0, 3.0, 2.0, 1.0])
    refine(plugin, None, Budget(3))
    assert plugin.projected == [1, 2, 3]


@given(energies=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=10), steps=st.integers(1, 10))
def test_the_halting_rule_goes_on_only_while_energy_falls_and_steps_are_left(energies: list[float], steps: int) -> None:
    if halt(energies, Budget(steps, tolerance=0.0), 0.0) is None:
        assert energies[-1] < energies[-2] and energies[-1] <= energies[0] and len(energies) <= steps


@pytest.mark.parametrize(
    "bad", [{"steps": -1}, {"seconds": 0.0}, {"seconds": math.nan}, {"tolerance": -0.1}, {"tolerance": 1.0}]
)
def test_an_impossible_budget_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="steps must be"):
        Budget(**bad)  # type: ignore[arg-type]
