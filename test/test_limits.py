import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.core.joints import JointError
from sage_ros.core.limits import STILL, Bounds, JointLimits, LimitError, limits_from_urdf, resolve_limits

DEFAULTS = Bounds(velocity=2.0, acceleration=10.0, jerk=100.0)
URDF = """<?xml version="1.0"?>
<robot name="arm">
  <joint name="lift" type="prismatic"><limit lower="-0.1" upper="0.4" effort="9" velocity="0.5"/></joint>
  <joint name="turn" type="revolute"><limit lower="-1.5" upper="1.5" effort="9" velocity="3.0"/></joint>
  <joint name="wheel" type="continuous"><limit effort="9" velocity="8.0"/></joint>
  <joint name="spin" type="continuous"/>
  <joint name="finger" type="revolute"><limit lower="0" upper="1" velocity="1"/><mimic joint="turn"/></joint>
  <joint name="tool" type="fixed"/>
  <transmission name="t"><joint name="lift"/></transmission>
</robot>"""


def limits(**changes) -> JointLimits:
    values = {"names": ("a", "b"), "position": [[-1, 1], [0, 2]], "velocity": [1, 2], "acceleration": [3, 4]}
    return JointLimits(**{**values, "jerk": [5, 6], **changes})


def test_limits_are_float64_arrays_of_their_own_that_nobody_can_change():
    position = np.array([[-1.0, 1.0], [0.0, 2.0]])
    made = limits(position=position)
    position[:] = 9.0
    assert made.position.tolist() == [[-1, 1], [0, 2]]
    assert made.jerk.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        made.velocity[0] = 99.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": [[-1, 1], [2, 2]]}, "joint 'b'.*lowest position 2 is not below 2"),
        ({"velocity": [0, 1]}, "joint 'a'.*velocity limit must be > 0"),
        ({"acceleration": [1, -1]}, "joint 'b'.*acceleration limit must be > 0"),
        ({"jerk": [1, np.inf]}, "joint 'b'.*jerk limit is not finite"),
        ({"position": [[np.nan, 1], [0, 2]]}, "joint 'a'.*position limit is not finite"),
        ({"velocity": [1]}, r"velocity limits of 2 joints must be \(2,\)"),
        ({"names": ("a", "a")}, "names that differ"),
        ({"names": ()}, "names that differ"),
    ],
)
def test_limits_without_sense_are_refused_and_the_joint_is_named(changes, message):
    with pytest.raises(LimitError, match=message):
        limits(**changes)


def test_tightening_never_loosens():
    tight = limits().tightened({"b": Bounds(low=-5.0, high=1.0, velocity=1.5, jerk=60.0)})
    assert tight.position.tolist() == [[-1, 1], [0, 1]]
    assert tight.velocity.tolist() == [1, 1.5]
    assert tight.jerk.tolist() == [5, 6]
    with pytest.raises(LimitError, match="no joint 'c'"):
        limits().tightened({"c": Bounds(high=1.0)})


def test_a_robot_description_gives_the_limits_of_what_moves():
    found = limits_from_urdf(URDF)
    assert found == {
        "lift": Bounds(-0.1, 0.4, 0.5),
        "turn": Bounds(-1.5, 1.5, 3.0),
        "wheel": Bounds(velocity=8.0),
    }


def test_one_missing_end_of_a_range_is_nought_as_in_urdfdom():
    text = '<robot><joint name="a" type="revolute"><limit upper="1" velocity="2"/></joint></robot>'
    assert limits_from_urdf(text)["a"] == Bounds(0.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<robot", "no XML"),
        ("<sdf/>", "no URDF: its root is <sdf>"),
        ('<robot><joint type="revolute"/></robot>', "lacks a name or a type"),
        ('<robot><joint name="a" type="revolute"/></robot>', "joint 'a' is revolute, but .* no <limit>"),
        ('<robot><joint name="a" type="revolute"><limit upper="1"/></joint></robot>', "'a'.*lacks 'velocity'"),
        ('<robot><joint name="a" type="revolute"><limit velocity="1"/></joint></robot>', "'a'.*lacks 'lower' and"),
        (
            '<robot><joint name="a" type="prismatic"><limit lower="${x}" upper="1" velocity="1"/></joint></robot>',
            r"'a': lower .*expanded from xacro.* is '\$\{x\}'",
        ),
        (
            '<robot><joint name="a" type="prismatic"><limit lower="nan" upper="1" velocity="1"/></joint></robot>',
            "'a': lower .* must be a finite number",
        ),
        (
            '<robot><joint name="a" type="revolute"><limit upper="1" velocity="1"/></joint>'
            '<joint name="a" type="revolute"><limit upper="1" velocity="1"/></joint></robot>',
            "'a' occurs more than once",
        ),
    ],
)
def test_a_robot_description_that_cannot_be_used_says_where_it_is_wrong(text, message):
    with pytest.raises(LimitError, match=message):
        limits_from_urdf(text)


def test_joints_that_are_not_commanded_may_be_described_badly():
    bad = URDF.replace('velocity="3.0"', "")
    assert resolve_limits(["lift"], bad, {}, DEFAULTS).velocity.tolist() == [0.5]
    with pytest.raises(LimitError, match=r"'turn'.*lacks 'velocity'"):
        resolve_limits(["turn"], bad, {}, DEFAULTS)


def test_the_tightest_source_wins_and_defaults_only_fill_gaps():
    configured = {
        "turn": {"has_position_limits": True, "min_position": -2.0, "max_position": 1.0}
        | {"has_jerk_limits": True, "max_jerk": 500.0, "has_velocity_limits": False, "max_velocity": 0.0},
        "lift": {"has_acceleration_limits": True, "max_acceleration": 1, "angle_wraparound": False},
    }
    made = resolve_limits(["turn", "lift"], URDF, configured, DEFAULTS, np.array([[-1.0, 9.0], [0.0, 0.3]]))
    assert made.names == ("turn", "lift")
    assert made.position.tolist() == [[-1.0, 1.0], [0.0, 0.3]]
    assert made.velocity.tolist() == [3.0, 0.5]
    assert made.acceleration.tolist() == [10.0, 1.0]
    assert made.jerk.tolist() == [500.0, 100.0]


bound = st.one_of(st.none(), st.floats(0.1, 9.0))
bounds = st.builds(Bounds, st.one_of(st.none(), st.floats(-9, -0.1)), bound, bound, bound, bound)


@given(bounds, bounds, bounds)
def test_intersections_do_not_depend_on_the_order_of_sources(a, b, c):
    assert (a & b) & c == (c & a) & b
    assert a & a == a
    assert a & Bounds() == a


def test_a_joint_that_the_demonstrations_never_moved_has_room_to_stay():
    made = resolve_limits(["turn"], URDF, {}, DEFAULTS, np.array([[0.5, 0.5]]))
    assert made.position[0] == pytest.approx([0.5 - STILL / 2, 0.5 + STILL / 2])


@pytest.mark.parametrize(
    ("names", "configured", "trained", "message"),
    [
        (["wheel"], {}, None, "joint 'wheel' has no position limits .*robot description, configuration"),
        (["turn", "lft"], {}, None, r"description has no joint 'lft' \(meant: 'lift'\?\); it has: finger, lift, spin"),
        (["turn"], {}, [[2.0, 3.0]], r"joint 'turn' has no room.*robot description \[-1.5, 1.5\].*range \[2, 3\]"),
        (["turn"], {}, [[1.0, 0.5]], "joint 'turn': the policy's range"),
        (["turn"], {}, [[0.0, 1.0], [0.0, 1.0]], r"range is \(2, 2\), but must be \(1, 2\)"),
        (["turn"], {"trun": {}}, None, r"unknown joint: 'trun' \(meant: 'turn'\?\)"),
        (["turn"], {"turn": {"max_velocity": 1.0}}, None, "'turn': max_velocity is given, but has_velocity_limits"),
        (["turn"], {"turn": {"has_velocity_limits": True}}, None, "'turn': .*max_velocity is missing"),
        (["turn"], {"turn": {"has_velocity_limits": 1}}, None, "'turn': has_velocity_limits must be true or false"),
        (["turn"], {"turn": {"max_speed": 1.0}}, None, "'turn': no such limit: 'max_speed'"),
        (
            ["turn"],
            {"turn": {"has_jerk_limits": True, "max_jerk": float("nan")}},
            None,
            "'turn': configured max_jerk is nan",
        ),
        (["turn"], {"turn": {"has_jerk_limits": True, "max_jerk": -1.0}}, None, "'turn': its jerk limit must be > 0"),
    ],
)
def test_limits_that_do_not_fit_name_the_joint_and_the_source(names, configured, trained, message):
    with pytest.raises(LimitError, match=message):
        resolve_limits(names, URDF, configured, DEFAULTS, None if trained is None else np.array(trained))


def test_nothing_is_made_up_where_no_source_and_no_default_says():
    with pytest.raises(LimitError, match="joint 'turn' has no limit for: acceleration, jerk"):
        resolve_limits(["turn"], URDF)


def test_a_joint_of_the_robot_that_is_not_commanded_may_be_configured():
    assert resolve_limits(["turn"], URDF, {"finger": {}, "lift": {}}, DEFAULTS).names == ("turn",)


def test_repeated_joints_are_refused():
    with pytest.raises(JointError, match="more than once: turn"):
        resolve_limits(["turn", "turn"], URDF, {}, DEFAULTS)


def test_limits_print_a_line_per_joint():
    assert str(limits()).splitlines()[1] == "b: 0 to 2, speed 2, acceleration 4, jerk 6"
