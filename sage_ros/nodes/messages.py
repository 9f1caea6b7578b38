"""ROS messages to numpy and back, by the fast paths of rclpy.

Image data is assigned as an ``array.array('B')``, which is kept as it is: a numpy array or a memoryview would be
copied element by element, hundreds of times slower. Publishing serialises at once, so a message may be filled anew and
published again.
"""

from __future__ import annotations

import array
from collections.abc import Sequence

import numpy as np
from builtin_interfaces.msg import Duration, Time
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from sage_ros.core.chunks import ActionChunk
from sage_ros.nodes.bridge import to_rgb
from sage_ros.pixels import values_of_raw


class MessageError(ValueError):
    """A message that cannot be used: says what is wrong with it."""


def nanoseconds(stamp: Time) -> int:
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def to_stamp(ns: int) -> Time:
    return Time(sec=ns // 1_000_000_000, nanosec=ns % 1_000_000_000)


def image_message(frame: np.ndarray, header: Header, into: Image | None = None) -> Image:
    """An rgb8 image from (H, W, 3) uint8; ``into`` as for :func:`map_message`."""
    return _fill(into, frame.reshape(len(frame), -1), "rgb8", frame.shape[1], header)


def rgb_from(message: Image | CompressedImage) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises MessageError on an unknown encoding or a size that does not fit the data."""
    try:
        return to_rgb(message)
    except ValueError as problem:
        raise MessageError(str(problem)) from problem


def map_message(values: np.ndarray, header: Header, into: Image | None = None) -> Image:
    """A 32FC1 image from a float map (rows, columns): a token map (N, F), or weights in the grid's shape.

    ``into`` is a message that has been published before: one of the same size is filled anew, which spares the
    allocation of its memory, the larger part of the cost.
    """
    return _fill(into, values.astype("<f4", copy=False), "32FC1", values.shape[1], header)


def map_from(message: Image) -> np.ndarray:
    """The float32 map (rows, columns) of a 32FC1 image. Raises MessageError."""
    if message.encoding != "32FC1":
        raise MessageError(f"expected a 32FC1 map, got encoding '{message.encoding}'")
    try:
        return values_of_raw(message)
    except ValueError as problem:
        raise MessageError(str(problem)) from problem


def _fill(into: Image | None, rows: np.ndarray, encoding: str, width: int, header: Header) -> Image:
    """An image of ``rows`` (height, values), in the memory of ``into`` where that fits."""
    step = rows.shape[1] * rows.itemsize
    if into is None or (into.height, into.width, into.step, into.encoding) != (len(rows), width, step, encoding):
        into = Image(height=len(rows), width=width, encoding=encoding, step=step)
        into.data = array.array("B", rows.tobytes())
    else:
        np.frombuffer(into.data, rows.dtype).reshape(rows.shape)[...] = rows
    into.header = header
    return into


def joint_message(names: Sequence[str], positions: np.ndarray, header: Header) -> JointState:
    """Named joint positions (rad)."""
    return JointState(header=header, name=list(names), position=array.array("d", np.asarray(positions, np.float64)))


def positions_from(message: JointState) -> np.ndarray:
    """Joint positions (J,) float64. Raises MessageError unless there is one finite position per name."""
    positions = np.array(message.position, dtype=np.float64)
    if len(positions) != len(message.name):
        raise MessageError(f"{len(message.name)} joint names, but {len(positions)} positions")
    if not np.isfinite(positions).all():
        bad = [n for n, p in zip(message.name, positions, strict=True) if not np.isfinite(p)]
        raise MessageError(f"joint positions are not finite: {', '.join(bad)}")
    return positions


def trajectory_message(
    names: Sequence[str], chunk: ActionChunk, header: Header, into: JointTrajectory | None = None
) -> JointTrajectory:
    """A positions-only trajectory as joint_trajectory_controller takes it: row i is due (i + 1) / rate s after t0.

    ``into`` is a message for chunks of the same joints, horizon and rate: to fill it anew costs a third.
    """
    if into is None:
        into = JointTrajectory(joint_names=list(names))
        for row in range(1, len(chunk.positions) + 1):
            due = round(row / chunk.rate * 1e9)
            time = Duration(sec=due // 1_000_000_000, nanosec=due % 1_000_000_000)
            into.points.append(JointTrajectoryPoint(time_from_start=time))
    into.header = header
    for point, positions in zip(into.points, chunk.positions, strict=True):
        point.positions = array.array("d", positions.tobytes())
    return into


def chunk_from(message: JointTrajectory) -> np.ndarray:
    """The positions (H, A) float64 of a trajectory."""
    return np.array([point.positions for point in message.points], dtype=np.float64)
