import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_ros.core.metabolism import Energy, Metabolism, Senses, State, Thresholds


def settle(machine: Metabolism, start: float, seconds: float, **senses) -> float:
    """Feed the same senses ten times a second; returns the time afterwards."""
    steps = int(seconds * 10)
    for step in range(steps):
        machine.update(Senses(now=start + step / 10, **{"energy": 1.0, "task": False, **senses}))
    return start + steps / 10


def awake() -> tuple[Metabolism, float]:
    machine = Metabolism()
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


def test_doubt_brings_focus_and_confidence_ends_it():
    machine, now = awake()
    now = settle(machine, now, 2.0, task=True, confidence=0.6)
    assert machine.state is State.FOCUS
    now = settle(machine, now, 2.0, task=True, confidence=0.9)  # between the thresholds: stay
    assert machine.state is State.FOCUS
    settle(machine, now, 2.0, task=True, confidence=0.99)
    assert machine.state is State.WAKE


def test_focus_is_not_afforded_when_tired():
    machine, now = awake()
    settle(machine, now, 3.0, task=True, confidence=0.6, energy=0.4)
    assert machine.state is State.WAKE


def test_an_empty_store_forces_rest_until_it_is_filled_again():
    machine, now = awake()
    now = settle(machine, now, 2.0, task=True, energy=0.1)
    assert machine.state is State.REST
    now = settle(machine, now, 5.0, task=True, energy=0.5)
    assert machine.state is State.REST
    settle(machine, now, 2.0, task=True, energy=0.7)
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


def test_lasting_doubt_or_a_fault_is_a_crisis_that_only_a_reset_ends():
    machine, now = awake()
    machine.update(Senses(now=now, energy=1.0, task=True, confidence=0.1))
    assert machine.state is not State.CRISIS  # one bad frame is none
    now = settle(machine, now, 2.0, task=True, confidence=0.1)
    assert machine.state is State.CRISIS
    now = settle(machine, now, 100.0, task=True)
    assert machine.state is State.CRISIS
    machine.reset_crisis()
    now = settle(machine, now, 0.1, task=True, fault="camera: dead")
    assert machine.state is State.CRISIS  # its cause is still there
    machine.reset_crisis()
    machine.update(Senses(now=now, energy=1.0, task=True))
    assert machine.state is State.REST
    settle(machine, now + 0.1, 0.2, task=True)
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


def test_a_state_is_not_left_before_its_dwell_time():
    machine, now = awake()
    now = settle(machine, now, 2.0, task=True, confidence=0.6)
    entered = [machine.state]
    for step in range(100):  # confidence flickers every tick
        machine.update(Senses(now=now + step / 100, energy=1.0, task=True, confidence=0.99 if step % 2 else 0.6))
        if machine.state is not entered[-1]:
            entered.append(machine.state)
    assert len(entered) <= 2


def test_steady_wake_at_default_rates_is_sustainable():
    energy = Energy()
    for _ in range(36_000):  # an hour of 20 Hz frames at 12 ms of compute each, in tenths of a second
        left = energy.advance(0.1, 2 * 0.012)
    assert left == 1.0


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=50))
def test_energy_stays_between_empty_and_full(flows):
    energy = Energy(capacity=10.0, recharge=0.5)
    for elapsed, spent in flows:
        assert 0.0 <= energy.advance(elapsed, spent) <= 1.0


SENSES = st.tuples(st.floats(0, 1), st.booleans(), st.floats(0, 1), st.sampled_from(["", "", "", "fault"]))


@settings(max_examples=50)
@given(st.lists(SENSES, max_size=100))
def test_from_anywhere_a_task_with_energy_and_a_reset_lead_back_to_wake(history):
    machine = Metabolism()
    for step, (energy, task, confidence, fault) in enumerate(history):
        machine.update(Senses(step / 10, energy, task, confidence, fault))
    machine.reset_crisis()
    settle(machine, len(history) / 10, 5.0, task=True)
    assert machine.state is State.WAKE


def test_a_clock_that_goes_back_does_not_freeze_the_machine():
    machine, _ = awake()
    settle(machine, 0.0, 3.0, task=False)
    assert machine.state is State.REST


@pytest.mark.parametrize("wrong", [{"focus_below": 0.96}, {"tired": 0.7}, {"dwell": -1.0}])
def test_thresholds_that_would_flap_are_refused(wrong):
    with pytest.raises(ValueError):
        Thresholds(**wrong)
