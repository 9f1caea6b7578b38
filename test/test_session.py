"""The record of a session: counts, latencies, the action error and the bounds on its memory."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_ros.core import recording
from sage_ros.core import session as session_module
from sage_ros.core.figures import format_table
from sage_ros.core.joints import JointError
from sage_ros.core.recording import Recording
from sage_ros.core.samples import PICTURES, Album, Trace
from sage_ros.core.session import SECOND, Session

NAMES = ("a", "b", "c")
START = 1_700_000_000 * SECOND
TICK = SECOND // 20
H = 16


def replay(action: np.ndarray, state: np.ndarray, chunks: dict[int, np.ndarray], **about: object) -> Recording:
    """A recording of an episode whose rows are ``TICK`` apart; ``chunks`` by row."""
    episode = Recording(START, episode=3, rows=len(action), fps=20.0)
    for row in range(len(action)):
        episode.add_state(START + row * TICK, NAMES, state[row])
        episode.add_action(START + row * TICK, NAMES, action[row])
        if row in chunks:
            episode.add_chunk(START + row * TICK, NAMES, chunks[row], 20.0)
    return episode


def arrays(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 3)), rng.normal(size=(rows, 3))


# The action error


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 70), steps=st.integers(0, 80), seed=st.integers(0, 10**6))
def test_the_error_is_groots_metric_row_by_row(rows: int, steps: int, seed: int) -> None:
    """Against the definition written out as loops over rows."""
    action, state = arrays(rows, seed)
    chunks = {row: np.random.default_rng(row).normal(size=(H, 3)) for row in range(rows)}
    score = replay(action, state, chunks).score(steps)
    limit = min(steps or rows, rows)
    policy, hold, last = [], [], []
    for t in range(limit):
        start = t - t % H
        policy.append((chunks[start][t - start] - action[t]) ** 2)
        hold.append((state[start] - action[t]) ** 2)
        last.append(((action[start - 1] if start else state[0]) - action[t]) ** 2)
    np.testing.assert_allclose([score.policy, score.hold_state, score.last_action],
                               [np.mean(policy), np.mean(hold), np.mean(last)])
    np.testing.assert_allclose([score.joints[name] for name in NAMES], np.mean(policy, axis=0))
    assert (score.chunks, score.chunks_due, score.note) == (-(-limit // H), -(-limit // H), "")


def test_a_policy_that_repeats_the_demonstration_has_no_error() -> None:
    action, state = arrays(40)
    chunks = {row: action[np.minimum(row + np.arange(H), 39)] for row in range(40)}
    score = replay(action, state, chunks).score()
    assert score.policy == 0.0 and score.hold_state and score.last_action


def test_joints_are_compared_by_name_whatever_their_order() -> None:
    action, state = arrays(16)
    episode = Recording(START, episode=0, rows=16, fps=20.0)
    for row in range(16):
        episode.add_state(START + row, ("c", "a", "extra", "b"), np.append(state[row], 9.0)[[2, 0, 3, 1]])
        names, order = (NAMES, [0, 1, 2]) if row % 2 else (("b", "c", "a"), [1, 2, 0])
        episode.add_action(START + row, names, action[row, order])
    episode.add_chunk(START, ("b", "a", "c"), action[:, [1, 0, 2]] + 0.5, 20.0)
    score = episode.score()
    np.testing.assert_allclose(score.policy, 0.25)
    np.testing.assert_allclose(score.hold_state, np.mean((state[0] - action) ** 2))


def test_hold_state_needs_every_commanded_joint_to_be_measured() -> None:
    action, _ = arrays(32)
    episode = Recording(START, episode=0, rows=32, fps=20.0)
    for row in range(32):
        episode.add_state(START + row, ("a", "b"), action[row, :2])
        episode.add_action(START + row, NAMES, action[row])
        episode.add_chunk(START + row, NAMES, action[np.minimum(row + np.arange(H), 31)], 20.0)
    score = episode.score()
    assert score.policy == 0.0 and score.hold_state is None
    assert score.last_action is None  # nothing to repeat at row 0, and nothing to hold


def test_rows_without_a_chunk_are_in_no_figure() -> None:
    action, state = arrays(48)
    score = replay(action, state, {16: np.zeros((H, 3))}).score()
    np.testing.assert_allclose(score.policy, np.mean(action[16:32] ** 2))
    np.testing.assert_allclose(score.hold_state, np.mean((state[16] - action[16:32]) ** 2))
    np.testing.assert_allclose(score.last_action, np.mean((action[15] - action[16:32]) ** 2))
    assert (score.chunks, score.chunks_due) == (1, 3)


def test_a_chunk_may_come_before_its_row() -> None:
    action, state = arrays(16)
    episode = Recording(START, episode=0, rows=16, fps=20.0)
    episode.add_chunk(START, NAMES, action, 20.0)
    for row in range(16):
        episode.add_state(START + row, NAMES, state[row])
        episode.add_action(START + row, NAMES, action[row])
    assert episode.score().policy == 0.0


def test_lost_rows_give_no_figure_rather_than_a_shifted_one() -> None:
    action, state = arrays(40)
    episode = replay(action, state, {0: np.zeros((H, 3))})
    episode.rows, episode.ended = 41, True
    assert episode.score().policy is None and "40 of 41 rows" in episode.score().note


def test_an_episode_watched_from_its_middle_gives_no_figure() -> None:
    action, state = arrays(40)
    episode = replay(action, state, {0: np.zeros((H, 3))})
    episode.first_stamp = START
    assert episode.score().policy is not None
    episode.first_stamp = START - TICK
    assert episode.score().policy is None and "first row" in episode.score().note


def test_an_episode_stopped_early_is_scored_as_far_as_it_went() -> None:
    action, state = arrays(40)
    episode = replay(action, state, {row: np.zeros((H, 3)) for row in range(40)})
    episode.rows = 200
    np.testing.assert_allclose(episode.score().policy, np.mean(action**2))


def test_chunks_at_another_rate_than_the_episode_are_not_compared() -> None:
    action, state = arrays(16)
    episode = replay(action, state, {})
    episode.add_chunk(START, NAMES, action, 30.0)
    assert episode.score().policy is None and "30 Hz" in episode.score().note


def test_a_message_without_a_joint_of_the_first_one_is_refused() -> None:
    episode = Recording(START, episode=0)
    episode.add_state(START, NAMES, np.zeros(3))
    with pytest.raises(JointError, match="missing joints: c"):
        episode.add_state(START + TICK, ("a", "b"), np.zeros(2))


# Counts and latencies


def stream(session: Session, frames: int, answered: set[int], delay: int = 5_000_000, start: int = START) -> int:
    """Frames 50 ms apart, of which some get a chunk ``delay`` ns later; returns the time after the last."""
    for k in range(frames):
        stamp = start + k * TICK
        session.frame(stamp, stamp + 1_000_000)
        if k in answered:
            session.chunk(stamp, stamp + delay, NAMES, np.zeros((H, 3)), 20.0)
    return start + frames * TICK


def test_a_frame_without_an_action_counts_as_dropped_only_while_a_task_is_active() -> None:
    session = Session(START)
    now = stream(session, 10, set())
    session.task = "pick"
    now = stream(session, 20, set(range(20)) - {4, 11, 12}, start=now)
    assert session.waiting == 3
    session.finish(now + SECOND)
    figures = session.figures()
    assert (figures.frames_in, figures.frames_working, figures.actions_out, figures.dropped) == (30, 20, 17, 3)
    assert session.waiting == 0 and figures.in_flight == 0


def test_a_frame_still_on_its_way_at_the_end_is_not_dropped() -> None:
    session = Session(START)
    session.task = "pick"
    now = stream(session, 10, set(range(9)))
    session.finish(now)
    assert (session.figures().dropped, session.figures().in_flight) == (0, 1)


def test_an_action_may_overtake_its_frame() -> None:
    session = Session(START)
    session.task = "pick"
    session.chunk(START, START + 5_000_000, NAMES, np.zeros((H, 3)), 20.0)
    session.frame(START, START + 6_000_000)
    session.chunk(START + TICK, START + TICK, NAMES, np.zeros((H, 3)), 20.0)  # its frame never comes
    session.finish(START + SECOND)
    figures = session.figures()
    assert (figures.frames_in, figures.dropped, figures.frames_missed) == (1, 0, 1)


def test_latency_is_measured_from_the_header_stamp() -> None:
    session = Session(START)
    for k in range(101):
        session.frame(START + k * TICK, START + k * TICK + 3_000_000)
        session.chunk(START + k * TICK, START + k * TICK + k * 1_000_000, NAMES, np.zeros((H, 3)), 20.0)
    latency = session.figures().latency_ms
    assert (latency.p50, latency.p99, latency.longest, latency.count) == (50.0, 99.0, 100.0, 101)
    assert "header stamp" in latency.since


def test_with_stamps_of_another_clock_latency_is_measured_from_the_receipt_and_says_so() -> None:
    session = Session(START)
    for k in range(11):
        received = START + k * TICK
        session.frame(SECOND + k * TICK, received)
        session.chunk(SECOND + k * TICK, received + 7_000_000, NAMES, np.zeros((H, 3)), 20.0)
    latency = session.figures().latency_ms
    assert latency.p50 == 7.0 and "receipt" in latency.since


def test_what_ros_adds_is_latency_without_the_nodes_own_computing() -> None:
    session = Session(START)
    stream(session, 10, set(range(10)), delay=6_000_000)
    for name, own in (("vision_irp", "2.5"), ("trust_attention", "0.5"), ("replayer", "9")):
        session.node(START, f"/robot/{name}", "active", {"own_ms_p50": own})
    assert session.figures().ros_adds_ms is None  # sage_policy has not spoken
    session.node(START, "/robot/sage_policy", "active", {"own_ms_p50": "1.0", "halt": "step budget"})
    np.testing.assert_allclose(session.figures().ros_adds_ms, 2.0)


def test_a_node_that_restarts_is_not_busy_backwards() -> None:
    session = Session(START)
    session.node(START, "/vision_irp", "active", {"busy_s": "5.0", "pid": "1"})
    session.node(START + 10 * SECOND, "/vision_irp", "active", {"busy_s": "9.0", "pid": "1"})
    assert session.figures().nodes["/vision_irp"]["busy_share"] == pytest.approx(0.4)
    session.node(START + 11 * SECOND, "/vision_irp", "active", {"busy_s": "0.1", "pid": "2"})
    session.node(START + 12 * SECOND, "/vision_irp", "active", {"busy_s": "0.2", "pid": "2"})
    assert session.figures().nodes["/vision_irp"]["busy_share"] == pytest.approx(0.1)


def test_a_stream_that_starts_again_is_a_new_stream() -> None:
    """A looped replay in simulated time uses the same stamps again."""
    session = Session(START)
    session.task = "pick"
    for _ in range(3):
        session.begin(START, 0, "pick", 40, 20.0)
        stream(session, 40, set(range(40)) - {7}, start=SECOND)
        session.end()
    session.finish(START + SECOND)
    figures = session.figures()
    assert (figures.frames_in, figures.actions_out, figures.dropped) == (120, 117, 3)


# Metabolic state


def test_the_timeline_adds_up_to_the_session() -> None:
    session = Session(START)
    told = ((0, "REST", "started"), (1, "REST", "started"), (3, "WAKE", "task"), (4, "WAKE", "task"))
    for second, state, reason in told:
        session.metabolism(START + second * SECOND, state, 0.9, reason)
    session.finish(START + 10 * SECOND)
    stays = [(s.at, s.state, s.reason, s.seconds) for s in session.figures().metabolism]
    assert stays == [(0.0, "REST", "started", 3.0), (3.0, "WAKE", "task", 7.0)]
    assert session.figures().state_seconds == {"REST": 3.0, "WAKE": 7.0}


# Bounds


def test_memory_stays_bounded_however_long_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_ROWS", 50)
    session = Session(START)
    session.task = "pick"
    for episode in range(20):
        session.begin(START, episode, "pick", 100, 20.0)
        for row in range(100):
            stamp = START + (episode * 100 + row) * TICK
            session.joints(stamp, stamp, NAMES, np.zeros(3))
            session.demonstrated(stamp, stamp, NAMES, np.zeros(3))
            if session.frame(stamp, stamp):
                session.album.add(stamp, stamp, np.zeros((4, 4, 3), np.uint8))
            session.chunk(stamp, stamp, NAMES, np.ones((H, 3)), 20.0)
        session.end()
    assert len(session.recordings) <= session_module.KEPT_RECORDINGS + 1
    assert all(len(r.actions) == len(r.states) == 50 and len(r.chunks) == 4 for r in session.recordings)
    assert len(session._open) <= session_module.OPEN_FRAMES
    assert len(session.album.pictures) <= PICTURES
    figures = session.figures()
    assert [s.episode for s in figures.episodes] == list(range(20))
    assert {s.policy for s in figures.episodes} == {1.0}
    assert figures.frames_in == figures.actions_out == 2000 and figures.dropped == 0


def test_live_work_is_kept_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_ROWS", 64)
    session = Session(START)
    for k in range(640):
        session.joints(START + k * TICK, START + k * TICK, NAMES, np.zeros(3))
        session.chunk(START + k * TICK, START + k * TICK, NAMES, np.zeros((H, 3)), 20.0)
    assert len(session.recordings) <= session_module.KEPT_RECORDINGS + 1
    assert [len(r.states) for r in session.drawable()[:-1]] == [64, 64]  # the last one has just begun
    assert [len(r.chunks) for r in session.drawable()[:-1]] == [4, 4]
    assert session.figures().mean_error["policy"] is None


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=300), size=st.integers(2, 20))
def test_a_trace_never_loses_the_lowest_value(values: list[float], size: int) -> None:
    trace = Trace(size)
    for at, value in enumerate(values):
        trace.add(at, value)
    assert len(trace.values) == len(trace.times) <= size
    assert min(trace.values) == min(values)
    assert trace.times == sorted(trace.times) and trace.times[0] == 0


@pytest.mark.parametrize("frames", [1, 5, 13, 100, 1777])
def test_the_album_spreads_over_the_whole_session(frames: int) -> None:
    album = Album()
    for k in range(frames):
        if album.wants(k):
            album.add(k, k, np.zeros((2, 2, 3), np.uint8))
        album.add_trust(k - 3, np.ones((1, 1)))  # trust comes three frames later
    kept = [p.at for p in album.pictures]
    assert min(frames, PICTURES // 2) <= len(kept) <= PICTURES
    assert kept[0] == 0 and np.ptp(np.diff(kept)) == 0 if len(kept) > 1 else True
    assert frames - kept[-1] <= 2 * max(1, frames // len(kept))
    assert all(p.trust is not None for p in album.pictures if p.at < frames - 3)


# As text and as JSON


def test_the_table_says_what_matters() -> None:
    session = Session(START)
    session.task = "pick"
    session.split = {3: "held out"}
    session.begin(START, 3, "pick", 40, 20.0)
    for row in range(40):
        stamp = START + row * TICK
        session.joints(stamp, stamp, NAMES, np.zeros(3))
        session.demonstrated(stamp, stamp, NAMES, np.ones(3))
        session.frame(stamp, stamp)
        if row != 39:
            session.chunk(stamp, stamp + 5_000_000, NAMES, np.full((H, 3), 0.5), 20.0)
    session.end()
    session.metabolism(START, "WAKE", 1.0, "task")
    session.finish(START + 4 * SECOND)
    table = format_table(session.figures())
    assert "frames in             40" in table and "dropped                1" in table
    assert "p50 5.0 ms, p99 5.0 ms" in table
    (line,) = [line for line in table.splitlines() if line.startswith("episode 3")]
    assert " ".join(line.split()) == "episode 3 (held out) 40 0.250000 1.000000 (4.0x) 0.400000 (1.6x)"
    assert "mean, held out" in table and "WAKE 4.0 s (100%)" in table


def test_episodes_trained_on_and_held_out_are_never_averaged_together_in_the_table() -> None:
    session = Session(START)
    session.split = {0: "trained on", 1: "held out", 2: "held out"}
    for episode, off in ((0, 0.0), (1, 1.0), (2, 2.0)):
        session.begin(START, episode, "pick", H, 20.0)
        for row in range(H):
            stamp = START + (episode * H + row) * TICK
            session.joints(stamp, stamp, NAMES, np.zeros(3))
            session.demonstrated(stamp, stamp, NAMES, np.zeros(3))
            session.chunk(stamp, stamp, NAMES, np.full((H, 3), off), 20.0)
    figures = session.figures()
    assert [(name, errors[0]) for name, errors in figures.means] == [("mean, held out", 2.5), ("mean, trained on", 0.0)]
    session.split = {}
    assert [name for name, _ in session.figures().means] == ["mean"]


def test_figures_are_json_even_of_an_empty_session() -> None:
    session = Session(START)
    session.finish(START + SECOND)
    figures = session.figures()
    assert json.loads(json.dumps(asdict(figures), allow_nan=False))["frames_in"] == 0
    assert "frames in" in format_table(figures)
