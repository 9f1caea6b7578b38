"""Closed-loop episodes as an observer sees them, in figures, table and picture."""

from __future__ import annotations

import numpy as np

from sage_ros.core.figures import format_table
from sage_ros.core.session import SECOND, Session
from sage_ros.core.trials import Moment, Trials
from sage_ros.pictures import draw_loop


def moment(time: float, success: bool = False, height: float = 0.0125) -> Moment:
    return Moment(time, success, height, 0.1, {"a": time}, {"a": time + 0.1})


def test_success_counts_once_it_has_lasted_and_from_when_it_began():
    trials = Trials()
    for tick in range(60):
        trials.add(7, moment(tick / 20, success=tick >= 40 or tick == 10, height=0.09 if tick == 20 else 0.02))
        lasted = tick >= 50
        assert trials.current is not None and (trials.current.placed is not None) == lasted
    result = trials.all()[0]
    assert (result.seed, result.placed, result.highest) == (7, 2.0, 0.09)


def test_another_seed_or_a_time_that_goes_back_begins_a_new_trial():
    trials = Trials()
    for seed, time in ((1, 0.0), (1, 0.05), (2, 0.0), (2, 1.0), (2, 0.0)):
        trials.add(seed, moment(time))
    assert [(r.seed, r.seconds) for r in trials.all()] == [(1, 0.05), (2, 1.0), (2, 0.0)]


def test_memory_is_bounded_and_results_remain():
    trials = Trials()
    for seed in range(50):
        trials.add(seed, moment(0.0))
        for n in range(30):
            trials.picture(n, n, np.zeros((4, 4, 3), np.uint8))
    assert len(trials.kept) == 3 and len(trials.all()) == 50
    assert len(trials.kept[-1].album.pictures) <= 12


def test_table_and_picture_say_what_became_of_it():
    session = Session(0)
    assert draw_loop(session) is None and "closed loop" not in format_table(session.figures())
    for tick in range(60):
        session.trials.add(3, moment(tick / 20, success=tick > 40))
        session.trials.picture(tick * SECOND // 20, tick, np.zeros((8, 8, 3), np.uint8))
    text = format_table(session.figures())
    assert "1 of 1 picked and placed" in text and "world seed 3: placed after 2.0 s" in text
    figure = draw_loop(session)
    assert figure is not None and "world seed 3: placed after 2.0 s" in figure.get_suptitle()
    session.trials.add(4, moment(0.0))
    assert "1 of 2 picked and placed" in format_table(session.figures())
    assert "seed 4: not placed in 0.0 s" in format_table(session.figures())
