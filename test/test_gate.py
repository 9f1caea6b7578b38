import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.core.gate import ChunkGate, GateConfig, Reason, Refusal
from sage_ros.core.joints import JointError

MS = 1_000_000
NOW = 100_000 * MS
NAMES = ["a", "b", "c"]
ROWS = [[1.0, 2.0, 3.0], [1.1, 2.1, 3.1], [1.2, 2.2, 3.2], [1.3, 2.3, 3.3]]
TIMES = [0.05, 0.1, 0.15, 0.2]


def gate() -> ChunkGate:
    return ChunkGate(NAMES, GateConfig(max_age=0.5, max_future=0.02))


def refused(call) -> Reason:
    with pytest.raises(Refusal) as caught:
        call()
    assert len(str(caught.value)) > 20  # says something to people
    return caught.value.reason


@given(st.permutations(range(3)))
def test_a_chunk_comes_out_in_the_filters_order_whatever_its_own(order):
    names, rows = [NAMES[i] for i in order], [[row[i] for i in order] for row in ROWS]
    chunk = gate().check(NOW, names, rows, TIMES, NOW)
    assert chunk.positions.tolist() == ROWS
    assert chunk.rate == pytest.approx(20.0)


def test_a_chunk_of_one_row_has_a_rate_too():
    assert gate().check(NOW, NAMES, ROWS[:1], [0.04], NOW).rate == pytest.approx(25.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"positions": [], "times": []}, "empty"),
        ({"positions": [*ROWS[:3], [1.0, 2.0]]}, "incomplete"),
        ({"positions": [*ROWS[:3], []]}, "incomplete"),
        ({"positions": [*ROWS[:3], [1.0, 2.0, 3.0, 4.0]]}, "incomplete"),
        ({"times": TIMES[:3]}, "incomplete"),
        ({"positions": [*ROWS[:3], [1.0, np.nan, 3.0]]}, "not_finite"),
        ({"positions": [[np.inf, 2.0, 3.0], *ROWS[1:]]}, "not_finite"),
        ({"names": ["a", "b", "a"]}, "repeated_joint"),
        ({"names": ["a", "b", "d"]}, "missing_joint"),
        ({"names": []}, "missing_joint"),
        ({"names": [*NAMES, "d"], "positions": [[*row, 0.0] for row in ROWS]}, "unknown_joint"),
        ({"times": [0.05, 0.1, 0.16, 0.2]}, "uneven_times"),
        ({"times": [0.0, 0.05, 0.1, 0.15]}, "uneven_times"),
        ({"times": [0.0] * 4}, "uneven_times"),
        ({"times": [0.2, 0.15, 0.1, 0.05]}, "uneven_times"),
        ({"times": [0.05, 0.1, 0.15, np.nan]}, "uneven_times"),
        ({"stamp": NOW - 501 * MS}, "stale"),
        ({"stamp": NOW - 201 * MS}, "stale"),  # the whole plan is in the past
        ({"stamp": 0}, "stale"),
        ({"stamp": NOW + 21 * MS}, "future"),
    ],
)
def test_a_chunk_that_may_not_become_a_plan_is_refused_with_its_reason(changes, reason):
    checked = gate()
    call = {"stamp": NOW, "names": NAMES, "positions": ROWS, "times": TIMES, "now": NOW} | changes
    assert refused(lambda: checked.check(**call)) == reason
    checked.check(NOW, NAMES, ROWS, TIMES, NOW)  # and leaves no trace


def test_a_refusal_names_the_joints():
    with pytest.raises(Refusal, match="not finite: b"):
        gate().check(NOW, ["c", "b", "a"], [[1.0, np.nan, 3.0]], [0.1], NOW)
    with pytest.raises(Refusal, match="unknown joints: d"):
        gate().check(NOW, [*NAMES, "d"], [[1.0, 2.0, 3.0, 4.0]], [0.1], NOW)


def test_stamps_go_forward_until_the_clock_is_set_back():
    checked = gate()
    checked.check(NOW, NAMES, ROWS, TIMES, NOW)
    for stamp in (NOW, NOW - MS):
        assert refused(lambda stamp=stamp: checked.check(stamp, NAMES, ROWS, TIMES, NOW)) == "out_of_order"
    checked.check(NOW + MS, NAMES, ROWS, TIMES, NOW + MS)
    checked.reset()
    checked.check(NOW - 900 * MS, NAMES, ROWS, TIMES, NOW - 900 * MS)


def test_times_rounded_to_nanoseconds_are_even():
    times = [round((i + 1) / 30 * 1e9) * 1e-9 for i in range(50)]
    assert gate().check(NOW, NAMES, np.zeros((50, 3)), times, NOW).rate == pytest.approx(30.0)


@given(st.permutations(["a", "b", "c", "wheel"]))
def test_joints_are_found_among_others(names):
    values = {"a": 1.0, "b": 2.0, "c": 3.0, "wheel": np.nan}  # what is not commanded does not matter
    assert gate().check_joints(NOW, names, [values[n] for n in names], NOW).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"positions": [1.0, np.nan, 3.0]}, "not_finite"),
        ({"positions": [1.0, 2.0]}, "incomplete"),
        ({"positions": []}, "incomplete"),
        ({"names": ["a", "c", "x"]}, "missing_joint"),
        ({"names": ["a", "a", "b"]}, "repeated_joint"),
        ({"stamp": NOW - 501 * MS}, "stale"),
        ({"stamp": NOW + 21 * MS}, "future"),
    ],
)
def test_joint_states_that_cannot_be_trusted_are_refused(changes, reason):
    checked = gate()
    call = {"stamp": NOW, "names": NAMES, "positions": [1.0, 2.0, 3.0], "now": NOW} | changes
    assert refused(lambda: checked.check_joints(**call)) == reason
    checked.check_joints(NOW, NAMES, [1.0, 2.0, 3.0], NOW)
    assert refused(lambda: checked.check_joints(NOW, NAMES, [1.0, 2.0, 3.0], NOW)) == "out_of_order"


def test_chunks_and_joint_states_have_clocks_of_their_own():
    checked = gate()
    checked.check_joints(NOW, NAMES, [1.0, 2.0, 3.0], NOW)
    checked.check(NOW - 10 * MS, NAMES, ROWS, TIMES, NOW)


def test_a_publisher_may_change_its_order_from_message_to_message():
    checked = gate()
    for step, names in enumerate((NAMES, NAMES[::-1], NAMES)):
        values = [float(NAMES.index(name)) for name in names]
        stamp = NOW + step * MS
        assert checked.check_joints(stamp, names, values, stamp).tolist() == [0.0, 1.0, 2.0]


def test_reasons_read_as_plain_words():
    assert f"refused_{Reason.NOT_FINITE}" == "refused_not_finite"


def test_settings_outside_their_range_are_refused():
    with pytest.raises(ValueError, match="max_age is 0"):
        GateConfig(max_age=0.0)
    with pytest.raises(JointError, match="more than once: a"):
        ChunkGate(["a", "a"])
