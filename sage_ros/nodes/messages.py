"""ROS messages to numpy and back, by the fast paths of rclpy.

Image data is assigned as an ``array.array('B')``, which is kept as it is: a numpy array or a memoryview would be
copied element by element, a thousand times slower.
"""

from __future__ import annotations

import array
from collections.abc import Sequence

import cv2
import numpy as np
from builtin_interfaces.msg import Duration, Time
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from sage_ros.core.chunks import ActionChunk

# encoding -> channels and the OpenCV conversion to RGB
ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}


class MessageError(ValueError):
    """A message that cannot be used: says what is wrong with it."""


def nanoseconds(stamp: Time) -> int:
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def to_stamp(ns: int) -> Time:
    return Time(sec=ns // 1_000_000_000, nanosec=ns % 1_000_000_000)


def image_message(frame: np.ndarray, header: Header) -> Image:
    """An rgb8 image from (H, W, 3) uint8."""
    height, width, _ = frame.shape
    message = Image(header=header, height=height, width=width, encoding="rgb8", step=3 * width)
    message.data = _bytes(frame)
    return message


def rgb_from(message: Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises MessageError on an unknown encoding or a size that does not fit the data."""
    if message.encoding not in ENCODINGS:
        raise MessageError(f"image encoding '{message.encoding}' is not one of {', '.join(ENCODINGS)}")
    channels, conversion = ENCODINGS[message.encoding]
    rows = _rows(message, channels)
    picture = rows.reshape(message.height, message.width, channels)
    return picture if conversion is None else cv2.cvtColor(np.ascontiguousarray(picture), conversion)


def map_message(values: np.ndarray, header: Header) -> Image:
    """A 32FC1 image from a float map (rows, columns): a token map (N, F), or weights in the grid's shape."""
    rows, columns = values.shape
    message = Image(header=header, height=rows, width=columns, encoding="32FC1", step=4 * columns)
    message.data = _bytes(values.astype("<f4", copy=False))
    return message


def map_from(message: Image) -> np.ndarray:
    """The float32 map (rows, columns) of a 32FC1 image. Raises MessageError."""
    if message.encoding != "32FC1":
        raise MessageError(f"expected a 32FC1 map, got encoding '{message.encoding}'")
    values = np.ascontiguousarray(_rows(message, 4)).view(">f4" if message.is_bigendian else "<f4")
    return values.astype(np.float32, copy=False)


def _bytes(values: np.ndarray) -> array.array[int]:
    """The array's bytes in one copy."""
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(values).data.cast("B"))
    return data


def _rows(message: Image, pixel_bytes: int) -> np.ndarray:
    """The image's bytes (height, width * pixel_bytes) without row padding."""
    used = message.width * pixel_bytes
    if message.height == 0 or used == 0:
        raise MessageError("the image is empty")
    if message.step < used or len(message.data) < message.step * message.height:
        raise MessageError(
            f"image of {message.width}x{message.height} {message.encoding} with step {message.step} needs "
            f"{max(message.step, used) * message.height} bytes, but has {len(message.data)}"
        )
    data = np.frombuffer(message.data, dtype=np.uint8, count=message.step * message.height)
    return data.reshape(message.height, message.step)[:, :used]


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


def trajectory_message(names: Sequence[str], chunk: ActionChunk, header: Header) -> JointTrajectory:
    """A positions-only trajectory as joint_trajectory_controller takes it: row i is due (i + 1) / rate s after t0."""
    message = JointTrajectory(header=header, joint_names=list(names))
    for row, positions in enumerate(chunk.positions, start=1):
        due = round(row / chunk.rate * 1e9)
        point = JointTrajectoryPoint(positions=array.array("d", positions))
        point.time_from_start = Duration(sec=due // 1_000_000_000, nanosec=due % 1_000_000_000)
        message.points.append(point)
    return message


def chunk_from(message: JointTrajectory) -> np.ndarray:
    """The positions (H, A) float64 of a trajectory."""
    return np.array([point.positions for point in message.points], dtype=np.float64)
