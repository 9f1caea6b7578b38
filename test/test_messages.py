import array

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header

from sage_ros.core.chunks import ActionChunk
from sage_ros.nodes.messages import (
    MessageError,
    chunk_from,
    image_message,
    joint_message,
    map_from,
    map_message,
    nanoseconds,
    positions_from,
    rgb_from,
    to_stamp,
    trajectory_message,
)

FRAME = np.random.default_rng(0).integers(0, 255, (6, 5, 3), dtype=np.uint8)


def test_a_frame_survives_the_trip_even_when_it_is_a_view():
    assert np.array_equal(rgb_from(image_message(FRAME, Header())), FRAME)
    assert np.array_equal(rgb_from(image_message(FRAME[::2, ::-1], Header())), FRAME[::2, ::-1])


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8"])
@pytest.mark.parametrize("padding", [0, 7])
def test_every_encoding_becomes_rgb_and_row_padding_is_skipped(encoding, padding):
    source = {
        "rgb8": FRAME,
        "bgr8": FRAME[..., ::-1],
        "rgba8": np.dstack([FRAME, np.full((6, 5), 255, np.uint8)]),
        "bgra8": np.dstack([FRAME[..., ::-1], np.full((6, 5), 255, np.uint8)]),
        "mono8": FRAME[..., :1],
    }[encoding]
    rows = source.reshape(6, -1)
    padded = np.hstack([rows, np.full((6, padding), 99, np.uint8)])
    message = Image(height=6, width=5, encoding=encoding, step=padded.shape[1])
    message.data = array.array("B", padded.tobytes())
    expected = np.repeat(FRAME[..., :1], 3, axis=2) if encoding == "mono8" else FRAME
    assert np.array_equal(rgb_from(message), expected)


@pytest.mark.parametrize(
    "change", [{"encoding": "16UC1"}, {"step": 3}, {"height": 0}, {"height": 60}, {"width": 0}, {"encoding": ""}]
)
def test_an_image_that_does_not_fit_is_refused(change):
    message = image_message(FRAME, Header())
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(MessageError):
        rgb_from(message)


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_a_map_survives_the_trip_in_either_byte_order(rows, columns, big):
    values = np.random.default_rng(rows * 10 + columns).standard_normal((rows, columns)).astype(np.float32)
    message = map_message(values, Header())
    if big:
        message.is_bigendian = 1
        message.data = array.array("B", values.astype(">f4").tobytes())
    assert np.array_equal(map_from(message), values)


def test_only_a_float_map_is_taken_for_one():
    with pytest.raises(MessageError, match="32FC1"):
        map_from(image_message(FRAME, Header()))


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.booleans()), min_size=1, max_size=8))
def test_a_message_that_is_filled_anew_is_as_a_new_one(shapes):
    """Whatever it held before: another map, another size, a picture."""
    message = None
    for number, (rows, columns, picture) in enumerate(shapes):
        header = Header(frame_id=str(number))
        if picture:
            values = np.full((rows, columns, 3), number, np.uint8)
            message, new = image_message(values[:, ::-1], header, message), image_message(values, header)
        else:
            values = np.full((rows, columns), number, np.float32)
            message, new = map_message(values.T.copy().T, header, message), map_message(values, header)
        assert message == new


@given(st.integers(0, 2**31 * 1_000_000_000 - 1))
def test_stamps_survive_the_trip(ns):
    assert nanoseconds(to_stamp(ns)) == ns


def test_joint_positions_must_be_complete_and_finite():
    assert positions_from(joint_message(["a", "b"], np.array([1.0, 2.0]), Header())).tolist() == [1.0, 2.0]
    with pytest.raises(MessageError, match="2 joint names, but 1 positions"):
        positions_from(JointState(name=["a", "b"], position=[1.0]))
    with pytest.raises(MessageError, match="not finite: b"):
        positions_from(JointState(name=["a", "b"], position=[1.0, float("inf")]))


def test_a_chunk_becomes_a_trajectory_that_a_controller_takes():
    chunk = ActionChunk(np.arange(6.0).reshape(3, 2), rate=20.0)
    message = trajectory_message(["a", "b"], chunk, Header())
    assert message.joint_names == ["a", "b"]
    assert [p.time_from_start.nanosec for p in message.points] == [50_000_000, 100_000_000, 150_000_000]
    assert all(len(p.velocities) == 0 for p in message.points)
    assert np.array_equal(chunk_from(message), chunk.positions)
    other = ActionChunk(-chunk.positions, rate=20.0)
    header = Header(frame_id="later")
    assert trajectory_message(["a", "b"], other, header, message) == trajectory_message(["a", "b"], other, header)
