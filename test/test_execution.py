"""Chunks one after another: what is aimed at now, whatever the strategy, latency and order of arrival."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.core.chunks import ActionChunk
from sage_ros.core.execution import SECOND, ChunkQueue, ExecutionConfig, disagreement

RATE, HORIZON = 20.0, 16
TICK = SECOND // 20
STRATEGIES = ("ensemble", "rtc", "latest", "open_loop")


def line(start: float, slope: float, horizon: int = HORIZON) -> ActionChunk:
    """A chunk that moves two joints at ``slope`` per s, from ``start`` at its frame."""
    at = start + slope * np.arange(1, horizon + 1) / RATE
    return ActionChunk(np.stack((at, -at), axis=1), RATE)


def queue(strategy: str, **more: float) -> ChunkQueue:
    return ChunkQueue(ExecutionConfig(strategy=strategy, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_a_plan_or_beyond_its_end_there_is_no_target(strategy):
    q = queue(strategy)
    assert q.sample(0) is None
    q.add(0, line(0.0, 1.0), 0)
    assert q.sample(HORIZON * TICK) is not None
    assert q.sample(HORIZON * TICK + TICK // 2) is None
    q.clear()
    assert q.sample(TICK) is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_elapsed_until_a_chunk_arrived_is_skipped(strategy):
    q = queue(strategy)
    q.add(0, line(0.0, 1.0), 3 * TICK)
    position, velocity = q.sample(3 * TICK + TICK // 2)
    assert position == pytest.approx([0.175, -0.175])
    assert velocity == pytest.approx([1.0, -1.0])


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(slope=st.floats(-3, 3), latency=st.integers(0, 6 * TICK), phase=st.integers(0, TICK))
def test_chunks_that_agree_are_followed_without_a_jump(strategy, slope, latency, phase):
    q = queue(strategy)
    for frame in range(30):
        q.add(frame * TICK, line(slope * frame / RATE, slope), frame * TICK + latency)
        now = frame * TICK + max(latency, TICK) + phase
        position, velocity = q.sample(now)
        assert position[0] == pytest.approx(slope * now / SECOND, abs=1e-9)
        assert velocity[0] == pytest.approx(slope, abs=1e-9)


def joins(strategy: str, offset: float) -> float:
    """Greatest step of the target, above its own motion, over two seconds of chunks that differ by +-offset."""
    q, greatest, last = queue(strategy), 0.0, None
    for ms in range(0, 2000, 10):
        now = ms * SECOND // 1000
        if now % TICK == 0:
            frame = now // TICK
            q.add(now, line(frame / RATE + (offset if frame % 2 else -offset), 1.0), now)
        aim = q.sample(now + SECOND // 100)
        if last is not None and now >= 3 * TICK:
            greatest = max(greatest, abs(aim[0][0] - last - 0.01))
        last = aim[0][0]
    return greatest


def test_ensemble_and_rtc_join_chunks_that_disagree_far_smoother_than_their_disagreement():
    assert joins("latest", 0.1) > 0.15
    assert joins("open_loop", 0.1) > 0.02
    for strategy in ("ensemble", "rtc"):
        assert joins(strategy, 0.1) < 0.25 * joins("latest", 0.1)


def test_rtc_keeps_what_is_under_way_and_then_fades_to_the_new_chunk():
    q = queue("rtc", fade=4)
    q.add(0, line(0.0, 0.0), 0)
    q.add(4 * TICK, line(1.0, 0.0), 6 * TICK)
    values = [q.sample(row * TICK)[0][0] for row in range(6, 16)]
    assert values[0] == values[1] == 0.0
    assert (np.diff(values[1:5]) > 0).all()
    assert values[5:] == pytest.approx([1.0] * 5)


def test_open_loop_takes_each_chunk_to_its_end():
    q = queue("open_loop")
    for frame in range(HORIZON + 3):
        q.add(frame * TICK, line(float(frame), 0.0), frame * TICK)
        assert q.sample(frame * TICK + TICK)[0][0] == (0.0 if frame < HORIZON else HORIZON)


def test_the_first_latency_is_not_part_of_the_estimate():
    q = queue("latest")
    q.add(0, line(0.0, 0.0), 40 * TICK)
    assert q.latency == 0.0
    for frame in range(1, 4):
        q.add(frame * TICK, line(0.0, 0.0), frame * TICK + SECOND // 100)
    assert q.latency == pytest.approx(0.01)


def test_disagreement_is_measured_where_chunks_overlap():
    assert disagreement(TICK, line(0.05, 1.0), 0, line(0.0, 1.0)) == pytest.approx(0.0, abs=1e-12)
    assert disagreement(TICK, line(0.25, 1.0), 0, line(0.0, 1.0)) == pytest.approx(0.2)
    assert disagreement(60 * TICK, line(9.0, 1.0), 0, line(0.0, 1.0)) == 0.0


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=20), st.floats(0.0, 1.0))
def test_between_rows_a_chunk_is_smooth_and_passes_through_them(rows, part):
    chunk = ActionChunk(np.array(rows)[:, None], RATE)
    for i, row in enumerate(rows):
        assert chunk.at((i + 1) / RATE)[0][0] == pytest.approx(row, abs=1e-9)
    time = (1 + part * (len(rows) - 1)) / RATE
    step = 1e-6
    before, after = chunk.at(time - step), chunk.at(time + step)
    if before is not None and after is not None and time - step >= 1 / RATE:
        slope = (after[0][0] - before[0][0]) / (2 * step)
        assert slope == pytest.approx(chunk.at(time)[1][0], abs=2e-2)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="strategy is 'best'"):
        ExecutionConfig(strategy="best")
