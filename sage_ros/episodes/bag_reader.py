"""A recorded bag (rosbag2, MCAP or sqlite3) as episodes. Needs no ROS."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag2 import ReaderError
from rosbags.typesys import Stores, get_typestore

from ..core.joints import JointError, JointLayout
from ..core.timing import SECOND
from ..pixels import rgb_of_compressed, rgb_of_raw
from .alignment import align, tick_stamps
from .errors import DatasetError
from .mapping import ARRAY, COMPRESSED, IMAGE, TRAJECTORY, BagMapping, Stream

_BROKEN = "record the bag again, or mend its index with `ros2 bag reindex`"


@dataclass(frozen=True)
class BagEpisode:
    """An episode out of a bag: as for :meth:`EpisodeWriter.add`, and the stamps (T,) int64 ns of its rows."""

    task: str
    state: np.ndarray
    action: np.ndarray
    frames: Mapping[str, np.ndarray]
    state_joints: JointLayout
    action_joints: JointLayout
    stamps: np.ndarray


def is_bag(path: Path) -> bool:
    """Whether ``path`` is a bag's folder or a single MCAP file."""
    return (path / "metadata.yaml").is_file() or (path.suffix == ".mcap" and path.is_file())


def read_bag(path: Path, mapping: BagMapping) -> Iterator[BagEpisode]:
    """The episodes of a bag: one for each stretch of time in which the task topic says the same words.

    Rows are at the mapping's rate (or at the frames of a camera), from the moment on that every stream has a sample
    until the first stream ends; each takes the newest sample at or before it (:func:`~.alignment.align`). The bag is
    gone through once for its stamps, then once for each episode, so that memory holds one episode. Raises
    DatasetError on a broken bag, a missing topic, a gap longer than the tolerance, and messages that do not fit.
    """
    try:
        with AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as bag:
            yield from _episodes(bag, path, mapping)
    except DatasetError:
        raise
    except (AnyReaderError, ReaderError, OSError, ValueError, KeyError, IndexError, AssertionError, struct.error) as e:
        # rosbags raises any of these on spoilt bytes
        raise DatasetError(f"is broken or no bag ({type(e).__name__}: {e})", path, remedy=_BROKEN) from e


def _episodes(bag: AnyReader, path: Path, mapping: BagMapping) -> Iterator[BagEpisode]:
    there = {c.topic: str(c.msgtype) for c in bag.connections}
    topics = {topic: topic for topic in mapping.topics}
    for topic in mapping.cameras.values():
        if topic not in there and f"{topic}/compressed" in there:
            topics[topic] = f"{topic}/compressed"
    missing = [topic for topic, found in topics.items() if found not in there]
    if missing:
        listed = ", ".join(f"{topic} ({kind})" for topic, kind in sorted(there.items()))
        what = f"has no topic {', '.join(missing)}; there are: {listed or 'none'}"
        raise DatasetError(what, path, remedy="correct the mapping, or record these topics")
    stamps, words = _stamps(bag, set(topics.values()), topics.get(mapping.task, ""), mapping.clock == "header")
    streams = {topic: np.array(stamps[topics[topic]], np.int64) for topic in mapping.topics if topic != mapping.task}
    silent = [topic for topic, times in streams.items() if not len(times)]
    if silent:
        raise DatasetError(f"has no message on {', '.join(silent)}", path, remedy="record these topics")
    ticks = _ticks(streams, mapping, path)
    for task, part in _by_task(ticks, stamps.get(topics.get(mapping.task, ""), []), words, mapping.text, path):
        chosen = {}
        for topic, times in streams.items():
            indices = align(times, part, mapping.tolerance * SECOND)
            if (indices < 0).any():
                row = int(np.flatnonzero(indices < 0)[0])
                at = (part[row] - ticks[0]) / SECOND
                what = f"topic {topic} has no message in the {mapping.tolerance:g} s before {at:.3f} s"
                raise DatasetError(what, path, row, "raise tolerance in the mapping, or record without such a gap")
            chosen[topic] = indices
        yield _episode(bag, path, mapping, topics, chosen, task, part)


def _stamps(bag: AnyReader, topics: set[str], task: str, by_header: bool) -> tuple[dict[str, list[int]], list[str]]:
    """When each message of each topic is from, in the order of the bag; and what the task topic says."""
    stamps: dict[str, list[int]] = {topic: [] for topic in topics}
    words: list[str] = []
    for connection, logged, data in bag.messages([c for c in bag.connections if c.topic in topics]):
        headed = by_header and str(connection.msgtype) not in (ARRAY, "std_msgs/msg/String")
        stamps[connection.topic].append(_header_stamp(data) or logged if headed else logged)
        if connection.topic == task:
            message: Any = bag.deserialize(data, connection.msgtype)
            words.append(str(message.data))
    return stamps, words


def _header_stamp(data: bytes | memoryview) -> int:
    """The stamp (ns) that a serialised message with a header begins with; 0 where it was never set."""
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(seconds * SECOND + nanoseconds)


def _ticks(streams: Mapping[str, np.ndarray], mapping: BagMapping, path: Path) -> np.ndarray:
    start = max(int(times.min()) for times in streams.values())
    end = min(int(times.max()) for times in streams.values())
    if end < start:
        first = max(streams, key=lambda topic: streams[topic].min())
        last = min(streams, key=lambda topic: streams[topic].max())
        what = f"topic {last} ends {(start - end) / SECOND:.3f} s before {first} begins"
        raise DatasetError(what, path, remedy="record all topics together; clock: log, if their clocks differ")
    if mapping.rows == "rate":
        return tick_stamps(start, end, mapping.fps)
    frames = np.unique(streams[mapping.cameras[mapping.rows]])
    return frames[(frames >= start) & (frames <= end)]


def _by_task(
    ticks: np.ndarray, said: list[int], words: list[str], text: str, path: Path
) -> Iterator[tuple[str, np.ndarray]]:
    if text:
        yield text, ticks
        return
    at = align(np.array(said, np.int64), ticks, np.inf)
    tasks = np.array(["" if index < 0 else words[index].strip() for index in at], object)
    if not any(tasks):
        remedy = "record the topic, or say the task in the mapping: task: {text: pick the cube}"
        raise DatasetError("no task is said while the other topics last", path, remedy=remedy)
    starts = [0, *(np.flatnonzero(tasks[1:] != tasks[:-1]) + 1).tolist(), len(tasks)]
    for start, stop in pairwise(starts):
        if tasks[start]:
            yield str(tasks[start]), ticks[start:stop]


def _episode(
    bag: AnyReader,
    path: Path,
    mapping: BagMapping,
    topics: Mapping[str, str],
    chosen: Mapping[str, np.ndarray],
    task: str,
    stamps: np.ndarray,
) -> BagEpisode:
    """Go through the bag once more, and keep what the rows need."""
    wanted = {topics[topic]: set(indices.tolist()) for topic, indices in chosen.items()}
    connections = [c for c in bag.connections if c.topic in wanted]
    counts = dict.fromkeys(wanted, -1)
    kept: dict[str, dict[int, np.ndarray]] = {topic: {} for topic in wanted}
    streams = {topics[stream.topic]: stream for stream in (*mapping.state, *mapping.action)}
    joints: dict[str, tuple[str, ...]] = {topic: stream.joints for topic, stream in streams.items()}
    for connection, _, data in bag.messages(connections):
        topic = connection.topic
        counts[topic] += 1
        if counts[topic] not in wanted[topic]:
            continue
        message = bag.deserialize(data, connection.msgtype)
        where = f"{path}: {topic}: message {counts[topic]}"
        if topic in streams:
            joints[topic], value = _values(message, str(connection.msgtype), streams[topic], joints[topic], where)
        else:
            value = _rgb(message, str(connection.msgtype), where)
        kept[topic][counts[topic]] = value
    try:
        layouts = {
            kind: JointLayout(tuple(n for s in part for n in joints[topics[s.topic]]), _groups(part, joints, mapping))
            for kind, part in (("state", mapping.state), ("action", mapping.action))
        }
    except JointError as error:
        raise DatasetError(str(error), path, remedy="correct joints and groups in the mapping") from error

    def rows(topic: str) -> np.ndarray:
        values = [kept[topics[topic]][index] for index in chosen[topic].tolist()]
        if len({value.shape for value in values}) > 1:
            raise DatasetError(f"{topic}: messages are of different sizes", path, remedy="record the bag again")
        return np.stack(values)

    return BagEpisode(
        task=task,
        state=np.concatenate([rows(stream.topic) for stream in mapping.state], axis=1),
        action=np.concatenate([rows(stream.topic) for stream in mapping.action], axis=1),
        frames={camera: rows(topic) for camera, topic in mapping.cameras.items()},
        state_joints=layouts["state"],
        action_joints=layouts["action"],
        stamps=stamps,
    )


def _groups(
    part: tuple[Stream, ...], joints: Mapping[str, tuple[str, ...]], mapping: BagMapping
) -> Mapping[str, tuple[int, int]]:
    """The mapping's groups where they cover just these joints; one group a topic is GR00T's least."""
    width = sum(len(joints[stream.topic]) for stream in part)
    covered = sum(end - start for start, end in mapping.groups.values())
    return mapping.groups if covered == width else {}


def _values(
    message: Any, kind: str, stream: Stream, names: tuple[str, ...], where: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Joint names and positions; of a trajectory those of its first point."""
    if kind == ARRAY:
        given, values = names, np.asarray(message.data, np.float64)
    elif kind == TRAJECTORY:
        if not len(message.points):
            raise DatasetError("the trajectory has no point", where, remedy="record the bag again")
        given, values = tuple(message.joint_names), np.asarray(message.points[0].positions, np.float64)
    elif hasattr(message, "position") and hasattr(message, "name"):
        given, values = tuple(message.name), np.asarray(message.position, np.float64)
    else:
        raise DatasetError(f"is {kind}", where, remedy="map a JointState, a JointTrajectory or a Float64MultiArray")
    if len(values) != len(given):
        what = f"has {len(values)} positions for {len(given)} joints"
        raise DatasetError(what, where, remedy="correct joints in the mapping, or record the bag again")
    if not np.isfinite(values).all():
        raise DatasetError(f"position of '{given[int(np.argmin(np.isfinite(values)))]}' is not finite", where,
                           remedy="record the bag again")  # fmt: skip
    names = names or given
    try:
        return names, values[JointLayout(names).order_from(given)]
    except JointError as error:
        raise DatasetError(str(error), where, remedy="correct joints in the mapping") from error


def _rgb(message: Any, kind: str, where: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an Image or a CompressedImage."""
    if kind not in (IMAGE, COMPRESSED):
        raise DatasetError(f"is {kind}", where, remedy="map an Image or a CompressedImage")
    try:
        return rgb_of_raw(message) if kind == IMAGE else rgb_of_compressed(message)
    except ValueError as problem:
        raise DatasetError(str(problem), where, remedy="record the bag again, in another encoding") from problem
