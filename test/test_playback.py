import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.episodes.playback import Playback


def test_rows_are_due_on_an_absolute_schedule_however_late_they_are_taken():
    play = Playback(100, fps=20.0)
    play.resume(10.0)
    for row in range(100):
        assert play.due() == pytest.approx(10.0 + row / 20.0)
        assert play.advance() == row
    assert play.finished
    assert play.due() == float("inf")
    with pytest.raises(IndexError):
        play.advance()


def test_pausing_stops_the_clock_and_resuming_goes_on_with_the_next_row_at_once():
    play = Playback(10, fps=10.0)
    play.resume(0.0)
    play.advance()
    play.pause()
    assert play.paused
    assert play.due() == float("inf")
    play.resume(50.0)
    assert play.due() == pytest.approx(50.0)
    play.advance()
    assert play.due() == pytest.approx(50.1)


def test_pause_and_resume_are_idempotent():
    play = Playback(10, fps=10.0)
    play.resume(1.0)
    play.resume(5.0)
    assert play.due() == pytest.approx(1.0)
    play.pause()
    play.pause()
    assert play.paused


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.floats(0, 1))
def test_a_new_rate_keeps_the_share_of_the_wait_that_is_over(before, after, share):
    play = Playback(10, fps=10.0, rate=before)
    play.resume(0.0)
    play.advance()
    play.set_rate(after, now=share * play.due())
    now = share * 0.1 / before
    assert play.due() - now == pytest.approx((1 - share) * 0.1 / after, abs=1e-9)
    due = play.due()
    play.advance()
    assert play.due() - due == pytest.approx(0.1 / after)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_not_positive_is_refused(rate):
    with pytest.raises(ValueError, match="rate"):
        Playback(10, fps=10.0, rate=rate)
    with pytest.raises(ValueError, match="rate"):
        Playback(10, fps=10.0).set_rate(rate, 0.0)


def test_seeking_makes_a_row_due_at_once_forwards_and_backwards():
    play = Playback(10, fps=10.0)
    play.resume(0.0)
    play.seek(7, now=3.0)
    assert play.due() == pytest.approx(3.0)
    assert play.advance() == 7
    play.seek(0, now=4.0)
    assert play.advance() == 0
    with pytest.raises(ValueError, match="outside the episode's rows 0 to 9"):
        play.seek(10, now=5.0)
