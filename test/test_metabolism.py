"""The metabolic state machine: what it does, what it never does, and the defects of its ancestors."""

import copy
import math
from itertools import pairwise

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_ros.core.allowance import Allowance, State, Table, Thresholds
from sage_ros.core.metabolism import STILL, WORKING, Energy, Metabolism, Senses
from sage_ros.core.pace import Pace
from sage_ros.paths import share

CONTENT = yaml.safe_load(share("config", "metabolism.yaml").read_text())
TABLE = Table.of(CONTENT)


def settle(machine: Metabolism, start: float, seconds: float, **senses) -> float:
    """Feed the same senses ten times a second; returns the time afterwards."""
    steps = round(seconds * 10)
    for step in range(steps):
        machine.update(Senses(now=start + step / 10, **{"energy": 1.0, "task": False, **senses}))
    return start + steps / 10


def awake(thresholds: Thresholds | None = None) -> tuple[Metabolism, float]:
    machine = Metabolism(thresholds)
    now = settle(machine, 0.0, 2.0, task=True)
    assert machine.state is State.WAKE
    return machine, now


def test_a_task_wakes_at_once_and_its_end_lets_rest():
    machine = Metabolism()
    machine.update(Senses(now=0.0, energy=1.0, task=True))
    assert machine.state is State.WAKE
    settle(machine, 0.1, 2.0, task=False)
    assert machine.state is State.REST
    assert machine.reason == "no task"
    machine.update(Senses(now=2.15, energy=1.0, task=True))
    assert machine.state is State.WAKE


@pytest.mark.parametrize("sense", ["confidence", "certainty"])
def test_doubt_brings_focus_and_confidence_ends_it(sense):
    machine, now = awake()
    now = settle(machine, now, 2.0, task=True, **{sense: 0.5})
    assert machine.state is State.FOCUS and "confidence 0.50 below" in machine.reason
    now = settle(machine, now, 2.0, task=True, **{sense: 0.85})  # between the thresholds: stay
    assert machine.state is State.FOCUS
    settle(machine, now, 2.0, task=True, **{sense: 0.99})
    assert machine.state is State.WAKE


def test_focus_is_not_afforded_when_tired():
    machine, now = awake()
    settle(machine, now, 3.0, task=True, confidence=0.6, energy=0.4)
    assert machine.state is State.WAKE


@pytest.mark.parametrize("sense, weak, between, well, why", [
    ("energy", 0.1, 0.5, 0.7, "energy 10% below 20%"), ("battery", 0.1, 0.4, 0.6, "battery 10% below 20%"),
    ("temperature", 90.0, 75.0, 60.0, "temperature 90 C above 80 C"),
])  # fmt: skip
def test_what_is_spent_or_hot_forces_rest_until_it_is_well_again(sense, weak, between, well, why):
    machine, now = awake()
    now = settle(machine, now, 2.0, task=True, **{sense: between})
    assert machine.state is State.WAKE, "it is not yet so bad"
    now = settle(machine, now, 2.0, task=True, **{sense: weak})
    assert machine.state is State.REST and machine.reason == why
    now = settle(machine, now, 5.0, task=True, **{sense: between})
    assert machine.state is State.REST, "it is not yet well"
    settle(machine, now, 0.1, task=True, **{sense: well})
    assert machine.state is State.WAKE


def test_a_sensor_that_falls_silent_does_not_keep_the_robot_at_rest_for_ever():
    machine, now = awake()
    now = settle(machine, now, 2.0, task=True, battery=0.1)
    settle(machine, now, 0.1, task=True, battery=math.nan)
    assert machine.state is State.WAKE


def test_a_long_rest_becomes_a_dream_which_ends_by_itself_or_by_a_task():
    machine = Metabolism(Thresholds(dream_after=5.0, dream_longest=10.0))
    now = settle(machine, 0.0, 8.0)
    assert machine.state is State.DREAM
    now = settle(machine, now, 10.0)
    assert machine.state is State.REST
    now = settle(machine, now, 8.0)
    assert machine.state is State.DREAM
    machine.update(Senses(now=now, energy=1.0, task=True))
    assert machine.state is State.WAKE


def test_on_the_charger_it_dreams_sooner_and_with_an_empty_battery():
    machine = Metabolism()
    now = settle(machine, 0.0, 70.0, battery=0.1)
    assert machine.state is State.REST, "a flat battery is not for dreams"
    settle(machine, now, 0.2, battery=0.1, docked=True)
    assert machine.state is State.DREAM


@pytest.mark.parametrize("trouble", [{"energy": 0.1}, {"temperature": 90.0}, {"battery": 0.1}])
def test_a_dream_ends_at_once_with_a_task_even_if_the_robot_is_too_weak_for_it(trouble):
    machine = Metabolism(Thresholds(dream_after=2.0))
    now = settle(machine, 0.0, 2.1)
    assert machine.state is State.DREAM
    machine.update(Senses(**{"now": now, "energy": 1.0, "task": True, **trouble}))
    assert machine.state is State.REST


def test_the_robot_holds_first_and_rests_then():
    machine, now = awake()
    now = settle(machine, now, 3.0, held=False)
    assert machine.state is State.WAKE and machine.pause == "holds before REST: no task"
    machine.update(Senses(now=now, energy=1.0, task=False, held=True))
    assert machine.state is State.REST and not machine.pause


def test_a_task_that_comes_while_the_robot_is_braking_goes_on_at_once():
    machine, now = awake()
    now = settle(machine, now, 3.0, held=False)
    machine.update(Senses(now=now, energy=1.0, task=True, held=False))
    assert machine.state is State.WAKE and not machine.pause


def test_a_robot_that_does_not_come_to_a_hold_is_a_crisis():
    machine, now = awake()
    settle(machine, now, 6.0, held=False)
    assert machine.state is State.CRISIS and "no hold within 5 s" in machine.reason


def test_doubt_holds_at_once_and_is_a_crisis_only_if_it_lasts():
    machine, now = awake()
    machine.update(Senses(now=now, energy=1.0, task=True, confidence=0.1))
    assert machine.state in WORKING and machine.pause == "the picture cannot be believed"
    now = settle(machine, now, 1.5, task=True, confidence=0.1)
    assert machine.state in WORKING
    now = settle(machine, now, 1.5, task=True, confidence=0.9)
    assert machine.state in WORKING and not machine.pause, "a camera that was covered for a moment"
    settle(machine, now, 2.2, task=True, confidence=0.1)
    assert machine.state is State.CRISIS


def test_a_fault_is_a_crisis_that_only_a_reset_ends():
    machine, now = awake()
    now = settle(machine, now, 0.1, task=True, fault="camera: dead")
    assert machine.state is State.CRISIS
    now = settle(machine, now, 100.0, task=True)
    assert machine.state is State.CRISIS
    machine.reset_crisis()
    now = settle(machine, now, 0.1, task=True, fault="camera: dead")
    assert machine.state is State.CRISIS, "its cause is still there"
    machine.reset_crisis()
    now = settle(machine, now, 0.1, task=True, held=False)
    assert machine.state is State.CRISIS, "the robot still moves"
    machine.reset_crisis()
    machine.update(Senses(now=now, energy=1.0, task=True))
    assert machine.state is State.REST
    settle(machine, now + 0.1, 0.2, task=True)
    assert machine.state is State.WAKE


def test_an_operator_can_call_a_crisis():
    machine, now = awake()
    machine.alarm("asked for")
    now = settle(machine, now, 5.0, task=True)
    assert (machine.state, machine.reason) == (State.CRISIS, "asked for")
    machine.reset_crisis()
    settle(machine, now, 0.3, task=True)
    assert machine.state is State.WAKE


def test_an_override_holds_a_state_but_never_hides_a_crisis():
    machine, now = awake()
    machine.override = State.REST
    now = settle(machine, now, 5.0, task=True)
    assert machine.state is State.REST
    now = settle(machine, now, 0.2, task=True, fault="arm: hot")
    assert machine.state is State.CRISIS
    machine.reset_crisis()
    machine.override = None
    settle(machine, now, 1.0, task=True)
    assert machine.state is State.WAKE


def test_an_override_never_dreams_with_a_task_nor_rests_before_a_hold():
    machine, now = awake()
    machine.override = State.DREAM
    now = settle(machine, now, 1.0, task=False, held=False)
    assert machine.state is State.WAKE
    now = settle(machine, now, 0.1, task=False)
    assert machine.state is State.DREAM
    settle(machine, now, 0.1, task=True)
    assert machine.state is State.WAKE and machine.override is None


def test_a_state_is_not_left_before_its_dwell_time():
    machine, now = awake()
    now = settle(machine, now, 2.0, task=True, confidence=0.6)
    entered = [machine.state]
    for step in range(100):  # confidence flickers every tick
        machine.update(Senses(now=now + step / 100, energy=1.0, task=True, confidence=0.99 if step % 2 else 0.6))
        if machine.state is not entered[-1]:
            entered.append(machine.state)
    assert len(entered) <= 2


def test_a_clock_that_goes_back_does_not_freeze_the_machine():
    machine, _ = awake()
    settle(machine, 0.0, 3.0, task=False)
    assert machine.state is State.REST


# The defects of the earlier versions (A to D): each would fail here


def at_work(machine: Metabolism, energy: Energy, hours: float) -> dict[State, float]:
    """Share of each state while there is always a task and each costs what the table says, decided twice a second."""
    steps = round(hours * 7200)
    spent = dict.fromkeys(State, 0.0)
    for step in range(steps):
        energy.advance(0.5, 0.5 * TABLE.states[machine.state].cost)
        machine.update(Senses(step / 2, energy.share, task=True))
        spent[machine.state] += 1 / steps
    return spent


def test_steady_work_is_sustainable_at_default_rates_and_energy():
    """B rested two thirds of the time, C drained to CRISIS in five cycles."""
    energy = Energy(TABLE.store.capacity, TABLE.store.recharge)
    spent = at_work(Metabolism(TABLE.thresholds), energy, hours=1.0)
    assert spent[State.WAKE] == pytest.approx(1.0) and energy.share == 1.0
    assert TABLE.warnings() == []


def test_with_too_little_energy_it_works_as_much_as_it_can_pay_for():
    """The rests of B had nothing to do with what was spent."""
    budget = 0.5 * TABLE.states[State.WAKE].cost
    spent = at_work(Metabolism(TABLE.thresholds), Energy(10.0, budget), hours=2.0)
    rest = TABLE.states[State.REST].cost
    payable = (budget - rest) / (TABLE.states[State.WAKE].cost - rest)
    assert spent[State.WAKE] == pytest.approx(payable, abs=0.05)
    assert {state for state, share in spent.items() if share} == {State.WAKE, State.REST}


def test_a_dream_is_reached_from_rest_and_long_enough_to_learn():
    """DREAM was unreachable in B: what it waited for stood still in REST."""
    machine = Metabolism(TABLE.thresholds)
    now = settle(machine, 0.0, TABLE.thresholds.dream_after + 1.0)
    assert machine.state is State.DREAM
    settle(machine, now, TABLE.thresholds.dream_longest - 2.0)
    assert machine.state is State.DREAM


def test_a_crisis_loosens_nothing():
    """A and B switched safety_checks off and spent everything."""
    crisis = TABLE.states[State.CRISIS]
    assert not crisis.actuation and not crisis.learning and crisis.policy_rate == 0.0
    assert crisis.vision_rate <= TABLE.states[State.WAKE].vision_rate


def test_focus_costs_more_than_wake_and_rest_less_than_a_fifth():
    """In A focusing was cheaper than being awake."""
    cost = {state: allowance.cost for state, allowance in TABLE.states.items()}
    assert cost[State.FOCUS] > cost[State.WAKE] and cost[State.REST] <= 0.2 * cost[State.WAKE]


def test_no_clock_on_the_wall_decides():
    """A slept from 22 to 6 o'clock whatever there was to do."""
    for start in range(0, 86400, 3600):
        machine = Metabolism()
        machine.update(Senses(now=float(start), energy=1.0, task=True))
        assert machine.state is State.WAKE


# The table


def test_the_table_in_the_package_has_the_defaults_of_the_code():
    assert TABLE.thresholds == Thresholds() and TABLE.states[State.WAKE] == Allowance()


@pytest.mark.parametrize("place, value, message", [
    (("states", "REST", "actuation"), True, "must hold in REST"), (("states", "CRISIS", "actuation"), True, "CRISIS"),
    (("states", "WAKE", "learning"), True, "nothing learns while it moves"),
    (("states", "WAKE", "vision_rate"), "fast", "WAKE: vision_rate must be a float"),
    (("states", "WAKE", "speed"), 3, "there is no speed"), (("states", "FOCUS"), None, "FOCUS must be a mapping"),
    (("states", "NAP"), {}, "there is no NAP"), (("energy", "recharge"), 0.01, "never be rested"),
    (("thresholds", "dwell"), -1, "dwell is -1"), (("thresholds", "tired"), 0.7, "would flap"),
    (("thresholds", "focus_below"), 0.96, "would flap"), (("thresholds", "cool"), 90.0, "would flap"),
    (("thresholds", "sure_above"), 0.1, "would flap"), (("thresholds", "battery_low"), 0.9, "would flap"),
])  # fmt: skip
def test_a_table_that_is_wrong_or_unsafe_is_refused_with_what_is_wrong(place, value, message):
    content = copy.deepcopy(CONTENT)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(ValueError, match=message):
        Table.of(content)


@pytest.mark.parametrize("place", [("states", "DREAM"), ("energy", "capacity"), ("thresholds", "hot"), ("states",)])
def test_a_table_without_a_value_is_refused(place):
    content = copy.deepcopy(CONTENT)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    with pytest.raises(ValueError, match=f"{place[-1]} is missing"):
        Table.of(content)


def test_a_wake_that_cannot_last_is_warned_about():
    content = copy.deepcopy(CONTENT)
    content["states"]["WAKE"]["cost"] = 0.9
    assert "must rest" in Table.of(content).warnings()[0]


# What a node hears


def test_a_pace_is_what_the_message_says_and_no_more():
    pace = Pace.of("REST", {"vision_rate": "0.0", "policy_rate": "0.0", "actuation": "False", "energy": "0.5"})
    assert (pace.looks, pace.plans, pace.actuation, pace.learning, pace.energy) == (False, False, False, False, 0.5)
    assert Pace().looks and Pace().plans and not Pace().learning, "before anything is heard"
    assert not Pace.of("WAKE", {}).actuation, "who does not say that it may move does not let it move"
    for state, values in (("NAP", {}), ("WAKE", {"vision_rate": "-1"}), ("WAKE", {"policy_rate": "nan"})):
        with pytest.raises(ValueError):
            Pace.of(state, values)


# Laws


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=50))
def test_energy_stays_between_empty_and_full(flows):
    energy = Energy(capacity=10.0, recharge=0.5)
    for elapsed, spent in flows:
        assert 0.0 <= energy.advance(elapsed, spent) <= 1.0


UNKNOWN = st.just(math.nan)
SENSES = st.fixed_dictionaries({
    "energy": st.floats(0, 1), "task": st.booleans(), "confidence": st.floats(0, 1), "certainty": st.floats(0, 1),
    "fault": st.sampled_from([""] * 8 + ["fault"]), "held": st.booleans(), "docked": st.booleans(),
    "battery": UNKNOWN | st.floats(0, 1), "temperature": UNKNOWN | st.floats(20, 120),
})  # fmt: skip
EVENTS = st.sampled_from([None] * 8 + ["reset", "alarm", State.WAKE, State.REST, State.DREAM, "release"])
HISTORIES = st.lists(st.tuples(st.floats(0.01, 20.0), EVENTS, SENSES), max_size=60)


def live_through(history) -> list[tuple[Metabolism, State, Senses]]:
    """The machine after each step (the same one), its state then, and what it sensed."""
    machine, now, seen = Metabolism(), 0.0, []
    for elapsed, event, values in history:
        now += elapsed
        if event == "reset":
            machine.reset_crisis()
        elif event == "alarm":
            machine.alarm("asked for")
        elif event is not None:
            machine.override = event if isinstance(event, State) else None
        senses = Senses(now, **values)
        machine.update(senses)
        seen.append((machine, machine.state, senses))
    return seen


@settings(max_examples=100)
@given(HISTORIES)
def test_from_anywhere_every_state_can_be_reached(history):
    """No state is a dead end and none is out of reach: no livelock."""
    for target, senses in (
        (State.WAKE, {"task": True}), (State.FOCUS, {"task": True, "confidence": 0.6}), (State.REST, {}),
        (State.DREAM, {"docked": True}), (State.CRISIS, {"fault": "fault"}),
    ):  # fmt: skip
        seen = live_through(history)
        machine, now = (seen[-1][0], seen[-1][2].now) if seen else (Metabolism(), 0.0)
        machine.override = None
        now = settle(machine, now, 0.2, task=True)
        machine.reset_crisis()
        now = settle(machine, now, 1.5, task=True)
        longest = 7.0 if target is State.DREAM else 3.0
        for _ in range(round(longest * 10)):
            if machine.state is target:
                break
            now = settle(machine, now, 0.1, **senses)
        assert machine.state is target


@settings(max_examples=200)
@given(HISTORIES)
def test_what_never_happens(history):
    before = State.REST
    for _, state, senses in live_through(history):
        assert not (state is State.DREAM and senses.task), "it dreams with a task"
        assert not (before in WORKING and state in STILL and not senses.held), "it rests before the robot holds"
        assert not (before is State.CRISIS and state in (*WORKING, State.DREAM)), "a crisis ends in REST"
        assert not (senses.fault and state is not State.CRISIS), "a fault is a crisis"
        before = state


@given(HISTORIES)
def test_the_same_senses_give_the_same_states(history):
    assert [state for _, state, _ in live_through(history)] == [state for _, state, _ in live_through(history)]


@settings(max_examples=100)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=100))
def test_it_changes_no_more_than_once_in_a_dwell_time_but_to_wake_and_to_hold(flicker):
    machine, changes = Metabolism(), [(0.0, State.REST)]
    for step, (task, confidence, energy) in enumerate(flicker):
        machine.update(Senses(step / 10, energy, task, max(confidence, 0.3)))
        if machine.state is not changes[-1][1]:
            changes.append((step / 10, machine.state))
    for (since, _), (until, state) in pairwise(changes):
        assert until - since >= Thresholds().dwell - 1e-9 or state is State.WAKE
