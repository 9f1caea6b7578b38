"""A simulated day: what must hold from morning to morning, whatever happens."""

from dataclasses import replace

import pytest
import yaml

from sage_ros.core.allowance import State, Store, Table
from sage_ros.paths import share
from sage_ros.sim.day import Day, live_a_day

TABLE = Table.of(yaml.safe_load(share("config", "metabolism.yaml").read_text()))
SCARCE = replace(TABLE, store=Store(capacity=10.0, recharge=0.12))  # WAKE costs 0.2


def assert_sound(day: Day) -> None:
    assert day.dreamt_with_task == 0.0 and day.acted_forbidden == 0.0 and day.rested_moving == 0
    assert day.busiest_minute <= 20, "livelock"
    assert day.longest_wait <= 10.0, "starved although nothing stood in the way"
    assert day.lowest_energy >= 0.0
    assert all(seconds > 0 for seconds in day.seconds.values()), "every state is lived through"


@pytest.mark.parametrize("seed", [0, 3])
def test_a_day_has_no_livelock_no_starvation_and_no_dream_with_a_task(seed):
    day = live_a_day(TABLE, seed, step=1.0)
    assert_sound(day)
    assert day.done >= 0.9 * day.tasks > 30
    assert day.seconds[State.DREAM] > day.seconds[State.CRISIS]


def test_a_day_with_too_little_energy_is_as_sound_and_works_in_turns():
    day = live_a_day(SCARCE, 1, step=1.0)
    assert_sound(day)
    assert any("energy" in reason for _, state, reason in day.timeline if state == "REST")
    assert day.longest_weak < 8 * 3600.0 and day.done >= 0.5 * day.tasks


def test_the_same_seed_gives_the_same_day():
    assert live_a_day(TABLE, 7, hours=3.0, step=1.0) == live_a_day(TABLE, 7, hours=3.0, step=1.0)
    assert live_a_day(TABLE, 7, hours=3.0, step=1.0).timeline != live_a_day(TABLE, 8, hours=3.0, step=1.0).timeline
