import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.core.joints import JointError, JointLayout

ARM = JointLayout(("a", "b", "c"), {"arm": (0, 2), "hand": (2, 3)})


@given(st.permutations(["a", "b", "c", "extra"]))
def test_joints_are_found_by_name_in_any_order(names):
    values = {"a": 1.0, "b": 2.0, "c": 3.0, "extra": 9.0}
    published = np.array([values[name] for name in names])
    assert published[ARM.order_from(names)].tolist() == [1.0, 2.0, 3.0]


def test_a_missing_joint_is_named():
    with pytest.raises(JointError, match="missing joints: b"):
        ARM.order_from(["a", "c"])


@pytest.mark.parametrize("names", [["a", "b", "c", "a"], ["a", "a", "b", "c"]])
def test_a_repeated_joint_is_refused(names):
    with pytest.raises(JointError, match="more than once: a"):
        ARM.order_from(names)
    with pytest.raises(JointError, match="more than once: a"):
        JointLayout(tuple(names))


def test_groups_give_columns_in_the_order_asked_for():
    assert ARM.columns(["hand", "arm"]).tolist() == [2, 0, 1]
    with pytest.raises(JointError, match="no joint group leg"):
        ARM.columns(["leg"])


@pytest.mark.parametrize("groups", [{"x": (0, 2), "y": (1, 3)}, {"x": (0, 4)}, {"x": (2, 2)}])
def test_groups_that_overlap_or_leave_the_vector_are_refused(groups):
    with pytest.raises(JointError):
        JointLayout(("a", "b", "c"), groups)
