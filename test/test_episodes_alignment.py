"""The rule that makes rows of streams, which is the one that the live nodes pair by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.core.timing import StampBuffer
from sage_ros.episodes.alignment import align, tick_stamps

STAMPS = st.lists(st.integers(0, 200), max_size=30)


@given(stamps=STAMPS, ticks=STAMPS, tolerance=st.integers(0, 60))
def test_a_row_takes_the_newest_sample_and_of_equal_ones_the_last_to_come(stamps, ticks, tolerance):
    found = align(np.array(stamps, np.int64), np.array(ticks, np.int64), tolerance)
    assert found.dtype == np.int64
    for tick, index in zip(ticks, found, strict=True):
        young = [(stamp, k) for k, stamp in enumerate(stamps) if tick - tolerance <= stamp <= tick]
        assert index == (max(young)[1] if young else -1)


@given(stamps=STAMPS, ticks=STAMPS, before=st.integers(0, 200), tolerance=st.integers(0, 60))
def test_what_is_forgotten_no_later_tick_would_have_taken(stamps, ticks, before, tolerance):
    whole, rest = StampBuffer[int](64), StampBuffer[int](64)
    for number, stamp in enumerate(stamps):
        whole.add(stamp, number)
        rest.add(stamp, number)
    rest.forget(before)
    for tick in ticks:
        if tick >= before:
            assert rest.at(tick, tolerance) == whole.at(tick, tolerance)
    newest = max((stamp for stamp in stamps if stamp <= before), default=0)
    assert all(rest.at(stamp, 0) is None for stamp in stamps if stamp < newest), "the others are let go of"


def test_the_newest_sample_at_or_before_the_tick_is_taken_and_none_from_the_future():
    stamps = np.array([10, 20, 30])
    assert align(stamps, np.array([9, 10, 19, 20, 29, 99]), np.inf).tolist() == [-1, 0, 0, 1, 1, 2]
    assert align(stamps, np.array([15, 16, 36]), 5).tolist() == [0, -1, -1]


def test_today_in_nanoseconds_is_not_rounded():
    now = 1_790_000_000_123_456_789
    assert align(np.array([now, now + 1]), np.array([now]), 0).tolist() == [0]
    with pytest.raises(ValueError, match="integers"):
        align(np.array([float(now)]), np.array([now]), 0)
    with pytest.raises(ValueError, match="negative"):
        align(np.array([now]), np.array([now]), -1)


@given(fps=st.sampled_from([7.0, 12.5, 20.0, 29.97, 30.0, 1000.0]), rows=st.integers(1, 5000))
def test_ticks_keep_to_the_rate_over_an_hour(fps, rows):
    start = 1_790_000_000_000_000_000
    ticks = tick_stamps(start, start + round((rows - 1) / fps * 1e9), fps)
    assert len(ticks) == rows and ticks[0] == start
    assert np.abs(ticks - start - np.arange(rows) * 1e9 / fps).max() <= 1
