"""The schedule of a playlist: absolute, without drift, and what a bag player's commands do to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.episodes.playback import STANDSTILL, Playback, Playlist, choose, shuffled


def test_rows_are_due_on_an_absolute_schedule_however_late_they_are_taken():
    play = Playback(100, fps=20.0)
    play.resume(10.0)
    for row in range(100):
        assert play.target() == pytest.approx(10.0 + row / 20.0)
        assert play.advance(play.due() + 0.02) == row
    assert play.finished and play.due() == math.inf
    with pytest.raises(IndexError):
        play.advance(20.0)


@given(st.lists(st.floats(0, 0.9), min_size=1, max_size=60), st.floats(1, 50), st.floats(0.1, 20))
def test_late_rows_are_counted_never_bunched_and_never_shift_the_schedule(delays, fps, rate):
    play = Playback(200, fps, rate)
    play.resume(0.0)
    period, out = 1 / (fps * rate), []
    late = 0
    for row, delay in enumerate(delays):
        now = play.due() + delay
        late += now - row * period > 0.1 * period + 1e-9
        play.advance(now)
        out.append(now)
    assert all(gap >= period / 2 - 1e-9 for gap in np.diff(out))
    if not play.standstills:
        assert play.target() == pytest.approx(len(delays) * period, abs=1e-6), "the schedule has moved"
    assert abs(play.late - late) <= 1 or play.standstills


def test_after_a_standstill_it_goes_on_where_it_was():
    play = Playback(100, fps=10.0)
    play.resume(0.0)
    play.advance(0.0)
    play.advance(0.1 + STANDSTILL + 1.0)
    assert play.standstills == 1 and play.late == 1
    assert play.target() == pytest.approx(0.2 + STANDSTILL + 1.0)


def test_pausing_freezes_time_and_resuming_goes_on_with_what_was_left_of_the_wait():
    play = Playback(10, fps=10.0)
    play.resume(0.0)
    play.advance(0.0)
    play.pause(0.06)
    play.pause(0.08)
    assert play.paused and play.due() == math.inf
    assert play.time(40.0) == pytest.approx(0.06)
    play.resume(50.0)
    play.resume(50.03)
    assert play.due() == pytest.approx(50.04)


def test_a_row_taken_while_paused_takes_time_with_it():
    play = Playback(10, fps=10.0)
    assert [play.advance(5.0) for _ in range(3)] == [0, 1, 2]
    assert play.time(9.0) == pytest.approx(0.2)
    play.resume(9.0)
    assert play.due() == pytest.approx(9.1)
    assert play.late == 0


def test_time_waits_for_the_row_that_is_late_and_never_goes_back():
    play = Playback(10, fps=10.0)
    play.resume(0.0)
    play.advance(0.0)
    assert play.time(0.05) == pytest.approx(0.05)
    assert play.time(0.7) == pytest.approx(0.1)
    play.advance(0.7)
    assert play.time(0.7) == pytest.approx(0.2)


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0, 1))
def test_a_new_rate_keeps_the_share_of_the_wait_that_is_over(before, after, share):
    play = Playback(10, fps=10.0, rate=before)
    play.resume(0.0)
    play.advance(0.0)
    now = share * 0.1 / before
    play.set_rate(after, now)
    assert play.target() - now == pytest.approx((1 - share) * 0.1 / after, abs=1e-9)
    target = play.target()
    play.advance(target)
    assert play.target() - target == pytest.approx(0.1 / after)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_not_positive_is_refused(rate):
    with pytest.raises(ValueError, match="rate"):
        Playback(10, fps=10.0, rate=rate)
    with pytest.raises(ValueError, match="rate"):
        Playback(10, fps=10.0).set_rate(rate, 0.0)


@pytest.mark.parametrize("rows, fps", [(0, 10.0), (5, 0.0), (5, -1.0), (5, float("nan"))])
def test_no_rows_or_no_frame_rate_are_refused(rows, fps):
    with pytest.raises(ValueError, match="rows and a frame rate"):
        Playback(rows, fps)


def test_seeking_goes_to_the_next_row_at_or_after_forwards_and_backwards():
    play = Playback(10, fps=10.0)
    play.resume(0.0)
    play.seek(0.7, now=3.0)
    assert play.due() == pytest.approx(3.0)
    assert play.advance(3.0) == 7
    play.seek(0.15, now=4.0)
    assert play.due() == pytest.approx(4.05)
    assert play.advance(4.05) == 2
    play.seek(-5.0, now=6.0)
    assert play.advance(6.0) == 0


@pytest.mark.parametrize("time", [0.91, 1.0, 1e9, float("inf"), float("nan")])
def test_seeking_past_the_last_row_is_refused_and_changes_nothing(time):
    play = Playback(10, fps=10.0)
    play.resume(0.0)
    play.seek(0.5, 0.0)
    with pytest.raises(ValueError, match=r"after the last row, which is at 0\.9 s"):
        play.seek(time, 1.0)
    assert play.row == 5 and play.due() == pytest.approx(0.0)


@pytest.mark.parametrize(
    "begin, duration, until, played",
    [(0, -1, -1, 10), (0, 0.35, -1, 4),
     (0.2, 0.3, -1, 4), (0, 0, -1, 0), (0, -1, 0.5, 6), (0.2, 0.1, 0.6, 5), (0, 9, -1, 10)],
)  # fmt: skip
def test_a_part_of_the_playlist_ends_with_the_last_row_within_it(begin, duration, until, played):
    play = Playback(10, fps=10.0)
    play.seek(begin, 0.0)
    play.stop_after(duration, until)
    assert play.end - play.row == played


def test_skipping_goes_on_at_once_and_may_reach_the_end():
    play = Playback(10, fps=10.0)
    play.resume(0.0)
    play.advance(0.0)
    play.skip(6, now=0.05)
    assert play.due() == pytest.approx(0.05) and play.advance(0.05) == 6
    play.skip(10, now=0.2)
    assert play.finished and play.due() == math.inf


def test_a_lead_lets_the_schedule_stand_still_but_never_hurries_it():
    play = Playback(10, fps=10.0)
    play.resume(0.0)
    play.not_before(2.0)
    assert play.due() == pytest.approx(2.0)
    play.not_before(1.0)
    assert play.due() == pytest.approx(2.0)


def test_a_playlist_knows_the_episode_of_every_row():
    playlist = Playlist([7, 3, 7], [2, 1, 2])
    assert playlist.rows == 5
    assert [playlist.locate(row) for row in range(5)] == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    assert [playlist.start(place) for place in range(4)] == [0, 2, 3, 5]
    with pytest.raises(ValueError, match="nothing to play"):
        Playlist([], [])
    with pytest.raises(ValueError, match="nothing to play"):
        Playlist([1], [0])


@pytest.mark.parametrize(
    "wanted, chosen",
    [("all", [0, 1, 2, 5]), ("2,0,1", [2, 0, 1]),
     ("5", [5]), ("0-2", [0, 1, 2]), ("1-9, 0", [1, 2, 5, 0]), ("2,2", [2, 2])],
)  # fmt: skip
def test_episodes_are_chosen_by_a_list_and_in_its_order(wanted, chosen):
    assert choose(wanted, [0, 1, 2, 5]) == chosen


@pytest.mark.parametrize("wanted", ["", "7", "0,7", "one", "6-9", "2-0", "-1", "1,,2"])
def test_episodes_that_are_not_there_are_refused_with_what_there_is(wanted):
    with pytest.raises(ValueError, match="0, 1, 2, 5"):
        choose(wanted, [0, 1, 2, 5])


def test_chance_is_decided_by_seed_and_lap():
    orders = {tuple(shuffled(range(20), seed, lap)) for seed in range(3) for lap in range(3)}
    assert len(orders) == 9
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert shuffled(range(20), 1, 2) == shuffled(range(20), 1, 2)
