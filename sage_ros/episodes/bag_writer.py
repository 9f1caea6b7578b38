"""An episode as a rosbag2 bag (MCAP), which ``ros2 bag play`` and Foxglove take. Needs no ROS."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from ..core.timing import SECOND
from .alignment import tick_stamps
from .dataset import Episode
from .errors import DatasetError
from .mapping import ARRAY, COMPRESSED, IMAGE, JOINT_STATE, TRAJECTORY, BagMapping, Stream
from .writing import writing

ORIGIN = 946_684_800 * SECOND  # 2000-01-01, where the stamps of an exported episode begin: not 0, which means "unset"
PACKINGS = ("raw", "jpeg", "png")
_STRING, _CAMERA_INFO = "std_msgs/msg/String", "sensor_msgs/msg/CameraInfo"
_SNAP = 0.02  # share of a period by which float32 time stamps may be off their row's tick


def write_bag(
    path: Path,
    episode: Episode,
    mapping: BagMapping,
    packing: str = "raw",
    camera_info: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write one episode to the new folder ``path`` (metadata.yaml and an .mcap), or nothing.

    The messages of row t carry the stamp of row t: its tick if the episode keeps to its rate, so that importing the
    bag at that rate gives the same rows; else its own time. ``packing``: Image, or CompressedImage in JPEG or PNG.
    Raises DatasetError if the folder exists, the joints are not the mapping's, or the disk is full.
    """
    if packing not in PACKINGS:
        raise DatasetError(f"packing is {packing!r}", remedy=f"use one of {', '.join(PACKINGS)}")
    if path.exists():
        raise DatasetError("is there already", path, remedy="name another folder")
    partial = path.parent / "partial" / path.name  # the bag's file is named after its folder
    shutil.rmtree(partial, ignore_errors=True)
    with writing(path.parent):
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(partial, episode, mapping, packing, camera_info or {})
            os.replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if not any(partial.parent.iterdir()):
                partial.parent.rmdir()


def row_stamps(episode: Episode) -> np.ndarray:
    """Stamps (T,) int64 ns of an episode's rows, beginning at ``ORIGIN``."""
    period = SECOND / episode.fps
    since = (episode.timestamp - episode.timestamp[0]) * SECOND
    ticks = tick_stamps(0, round((len(episode) - 1) * period), episode.fps)
    steady = len(ticks) == len(since) and np.abs(ticks - since).max() <= _SNAP * period
    return np.asarray(ORIGIN + (ticks if steady else np.round(since).astype(np.int64)), np.int64)


def _write(
    path: Path, episode: Episode, mapping: BagMapping, packing: str, infos: Mapping[str, Mapping[str, Any]]
) -> None:
    types = get_typestore(Stores.ROS2_JAZZY)
    stamps = row_stamps(episode)
    kinds: dict[str, str] = {stream.topic: stream.type for stream in (*mapping.state, *mapping.action)}
    pictures, known = {}, {}
    for camera, topic in mapping.cameras.items():
        pictures[camera] = topic if packing == "raw" else f"{topic}/compressed"
        kinds[pictures[camera]] = IMAGE if packing == "raw" else COMPRESSED
        if camera in infos:
            known[camera] = f"{topic.rsplit('/', 1)[0]}/camera_info"
            kinds[known[camera]] = _CAMERA_INFO
    latched = not mapping.text
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        topics = {
            topic: bag.add_connection(topic, kind, typestore=types, offered_qos_profiles=[_qos(False)])
            for topic, kind in kinds.items()
        }
        if latched:
            topics[mapping.task] = bag.add_connection(
                mapping.task, _STRING, typestore=types, offered_qos_profiles=[_qos(True)]
            )
            said = types.serialize_cdr(types.types[_STRING](episode.task), _STRING)
            bag.write(topics[mapping.task], int(stamps[0]), said)
        vectors = [
            *_slices(mapping.state, episode.state_joints.names, episode.state),
            *_slices(mapping.action, episode.action_joints.names, episode.action),
        ]
        for row, stamp in enumerate(stamps.tolist()):
            header = _header(types, stamp)
            for stream, values in vectors:
                message = _joints(types, stream, values[row], header)
                bag.write(topics[stream.topic], stamp, types.serialize_cdr(message, stream.type))
            for camera, topic in pictures.items():
                header = _header(types, stamp, camera)
                frame = episode.frame(row, camera)
                message = _picture(types, frame, header, packing)
                bag.write(topics[topic], stamp, types.serialize_cdr(message, kinds[topic]))
                if camera in known:
                    message = _info(types, header, frame.shape[:2], infos[camera])
                    bag.write(topics[known[camera]], stamp, types.serialize_cdr(message, _CAMERA_INFO))


def _slices(
    streams: tuple[Stream, ...], names: tuple[str, ...], values: np.ndarray
) -> Iterator[tuple[Stream, np.ndarray]]:
    for stream in streams:
        unknown = [name for name in stream.joints if name not in names]
        if unknown:
            what = f"topic {stream.topic} shall have joints {', '.join(unknown)}; there are: {', '.join(names)}"
            raise DatasetError(what, remedy="correct joints in the mapping")
        wanted = stream.joints or names
        yield Stream(stream.topic, wanted, stream.type), values[:, [names.index(name) for name in wanted]]


def _header(types: Any, stamp: int, frame: str = "") -> Any:
    time = types.types["builtin_interfaces/msg/Time"](sec=stamp // SECOND, nanosec=stamp % SECOND)
    return types.types["std_msgs/msg/Header"](stamp=time, frame_id=frame)


def _joints(types: Any, stream: Stream, values: np.ndarray, header: Any) -> Any:
    none = np.empty(0)
    if stream.type == JOINT_STATE:
        return types.types[JOINT_STATE](header, list(stream.joints), values.astype(np.float64), none, none)
    if stream.type == ARRAY:
        layout = types.types["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
        return types.types[ARRAY](layout, values.astype(np.float64))
    after = types.types["builtin_interfaces/msg/Duration"](sec=0, nanosec=0)
    point = types.types["trajectory_msgs/msg/JointTrajectoryPoint"](
        values.astype(np.float64), none, none, none, time_from_start=after
    )
    return types.types[TRAJECTORY](header, list(stream.joints), [point])


def _picture(types: Any, frame: np.ndarray, header: Any, packing: str) -> Any:
    if packing == "raw":
        height, width = frame.shape[:2]
        return types.types[IMAGE](header, height, width, "rgb8", 0, 3 * width, np.ascontiguousarray(frame).reshape(-1))
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if packing == "jpeg" else []
    _, coded = cv2.imencode(f".{packing}", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)
    return types.types[COMPRESSED](header, f"rgb8; {packing} compressed bgr8", coded.reshape(-1))


def _info(types: Any, header: Any, size: tuple[int, ...], known: Mapping[str, Any]) -> Any:
    """Without rectification: the projection is the camera matrix."""
    k = np.array(known["k"], np.float64).reshape(3, 3)
    region = types.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    return types.types[_CAMERA_INFO](
        header, size[0], size[1], str(known.get("distortion_model", "plumb_bob")),
        np.array(known.get("d", []), np.float64), k.reshape(-1), np.eye(3).reshape(-1),
        np.hstack([k, np.zeros((3, 1))]).reshape(-1), 0, 0, region,
    )  # fmt: skip


def _qos(latched: bool) -> Qos:
    durability = QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE
    forever = QosTime(9223372036, 854775807)  # what rmw means by infinite
    return Qos(QosHistory.KEEP_LAST, 1 if latched else 10, QosReliability.RELIABLE, durability,
               forever, forever, QosLiveliness.AUTOMATIC, forever, False)  # fmt: skip
