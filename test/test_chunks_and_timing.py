import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.core.chunks import ActionChunk
from sage_ros.core.timing import SECOND, News, RateLimit, Recent, StampBuffer, Stopwatch

CHUNK = ActionChunk(np.array([[0.0], [1.0], [3.0]]), rate=10.0)


def test_a_row_is_reached_at_its_time_and_between_rows_the_way_is_smooth():
    for time, position in ((0.1, 0.0), (0.2, 1.0), (0.3, 3.0)):
        assert CHUNK.at(time)[0] == pytest.approx([position])
    assert CHUNK.at(0.2)[1] == pytest.approx([15.0])
    assert 0.0 < CHUNK.at(0.15)[0][0] < 0.5


def test_before_its_first_row_a_chunk_gives_that_row_and_after_its_end_nothing():
    assert CHUNK.at(-1.0)[0] == pytest.approx([0.0])
    assert CHUNK.at(0.31) is None


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(0, 1000), st.integers(0, 200))
def test_pairing_picks_the_newest_in_time_whatever_the_order_of_arrival(stamps, when, tolerance):
    buffer = StampBuffer[int](size=100)
    for stamp in stamps:
        buffer.add(stamp, stamp)
    not_after = max((s for s in stamps if s <= when), default=None)
    strictly_before = max((s for s in stamps if s < when), default=None)
    fresh = not_after is not None and when - not_after <= tolerance
    assert buffer.at(when, tolerance) == (not_after if fresh else None)
    fresh = strictly_before is not None and when - strictly_before <= tolerance
    assert buffer.before(when, tolerance) == (strictly_before if fresh else None)


def test_the_buffer_forgets_the_oldest():
    buffer = StampBuffer[int](size=2)
    for stamp in (3, 1, 2):
        buffer.add(stamp, stamp)
    assert buffer.at(1, 100) is None
    assert buffer.at(2, 0) == 2


@given(st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=200))
def test_a_stream_at_the_allowed_rate_passes_whole_whatever_its_jitter(jitter):
    limit = RateLimit(20.0)
    assert all(limit.allows(int((row + shift) * 50e6) + 10**9) for row, shift in enumerate(jitter))


@given(st.lists(st.integers(0, 10**7), min_size=2, max_size=400), st.floats(1.0, 50.0))
def test_the_allowed_rate_is_kept_in_the_long_run(gaps, rate):
    limit, stamps = RateLimit(rate), np.cumsum(gaps)
    passed = sum(limit.allows(int(stamp)) for stamp in stamps)
    assert passed <= (stamps[-1] - stamps[0]) / 1e9 * rate + 2


def test_a_rate_of_nought_lets_nothing_through_and_a_jump_back_starts_anew():
    assert not RateLimit(0.0).allows(5)
    limit = RateLimit(1.0)
    assert limit.allows(10**12)
    assert not limit.allows(10**12 + 10**8)
    assert limit.allows(10**9)


def test_the_stopwatch_counts_even_when_the_work_fails():
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.span():
        raise KeyError
    assert len(watch.spans) == 1
    assert watch.total > 0


def test_a_figure_is_told_when_it_has_moved_or_long_ago():
    news, told = News(step=0.1, longest=0.5), []
    for tick in range(40):  # at 20 Hz: still for a second, then a step down, then a slow rise
        value = 1.0 if tick < 20 else 0.5 + 0.02 * (tick - 20)
        if news.due(value, tick * SECOND // 20):
            told.append(tick)
    assert told[:3] == [0, 10, 20] and max(np.diff(told)) <= 10
    assert len(told) < 10
    assert news.due(0.9, 0), "time went back"


def test_a_value_that_is_too_old_is_no_longer_known():
    recent = Recent[float](longest=2.0)
    assert recent.at(0.0) is None and recent.at(0.0, 1.0) == 1.0
    recent.put(0.5, 10.0)
    assert (recent.at(12.0), recent.at(12.1), recent.at(12.1, 1.0)) == (0.5, None, 1.0)
    recent.forget()
    assert recent.at(10.0) is None
