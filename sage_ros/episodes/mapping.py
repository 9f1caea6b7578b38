"""Which topics of a bag are which columns of a data set, as a small YAML file says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..core.joints import JointLayout
from .errors import DatasetError

FILE = "mapping.yaml"  # of an exported bag, so that it can be imported as it is
JOINT_STATE, TRAJECTORY = "sensor_msgs/msg/JointState", "trajectory_msgs/msg/JointTrajectory"
ARRAY = "std_msgs/msg/Float64MultiArray"
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
EXAMPLE = """\
fps: 20                       # of the rows
robot_type: so101
state: /joint_states          # JointState; or {topic: /joint_states, joints: [pan, lift]}; or a list of such
action: {topic: /action, type: JointTrajectory}     # its first point; or JointState, or Float64MultiArray with joints
cameras: {front: /image_raw}  # Image or CompressedImage
task: /task                   # String; or {text: pick the cube}
groups: {arm: [0, 5], gripper: [5, 6]}              # GR00T's groups of joints; left out: one
tolerance: 0.5                # s that a sample may be old
clock: header                 # stamps of the messages' headers; or log: when the bag was written
rows: rate                    # rows at fps; or a camera: one row for each of its frames
"""
_KEYS = {line.split(":")[0] for line in EXAMPLE.splitlines()}


@dataclass(frozen=True)
class Stream:
    """Joint values on a topic: of the named joints in their order (empty: those of the first message)."""

    topic: str
    joints: tuple[str, ...] = ()
    type: str = JOINT_STATE


@dataclass(frozen=True)
class BagMapping:
    """Topics and what they are. ``task`` is a topic, or ``text`` says the task; ``tolerance`` is in seconds."""

    fps: float
    state: tuple[Stream, ...]
    action: tuple[Stream, ...]
    cameras: Mapping[str, str] = field(default_factory=dict)
    task: str = "/task"
    text: str = ""
    robot_type: str = "unknown"
    groups: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tolerance: float = 0.5
    clock: str = "header"
    rows: str = "rate"

    @property
    def topics(self) -> tuple[str, ...]:
        streams = [stream.topic for stream in (*self.state, *self.action)]
        return (*streams, *self.cameras.values(), *(() if self.text else (self.task,)))


def default_mapping(
    fps: float, robot_type: str, cameras: Mapping[str, Any] | tuple[str, ...], state: JointLayout, action: JointLayout
) -> BagMapping:
    """The topics that the replayer publishes: one camera on /image_raw, several below their names."""
    names = tuple(cameras)
    topics = {name: "/image_raw" if len(names) == 1 else f"/{_topic(name)}/image_raw" for name in names}
    streams = ((Stream("/joint_states", state.names),), (Stream("/demo/action", action.names),))
    return BagMapping(fps, *streams, cameras=topics, robot_type=robot_type, groups=dict(state.groups))


def _topic(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def read_mapping(path: Path) -> BagMapping:
    """The mapping in a YAML file. Raises DatasetError that names the key and shows how it is written."""
    remedy = f"write it like this:\n{EXAMPLE}"
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise DatasetError("file is missing", path, remedy=remedy) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DatasetError(f"is no YAML that can be read ({error})", path, remedy=remedy) from error
    if not isinstance(content, dict):
        raise DatasetError("is no map of keys to values", path, remedy=remedy)
    unknown = sorted(set(map(str, content)) - _KEYS)
    if unknown:
        raise DatasetError(f"does not know {', '.join(unknown)}", path, remedy=remedy)
    try:
        return _mapping(content)
    except (TypeError, ValueError, KeyError) as error:
        raise DatasetError(str(error), path, remedy=remedy) from error


def _mapping(content: Mapping[str, Any]) -> BagMapping:
    fps, tolerance = content.get("fps"), content.get("tolerance", 0.5)
    if not isinstance(fps, (int, float)) or isinstance(fps, bool) or not (math.isfinite(fps) and 0 < fps <= 1000):
        raise ValueError(f"fps is {fps!r}: give 0 < fps <= 1000")
    if not isinstance(tolerance, (int, float)) or not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance!r}: give seconds >= 0")
    cameras = content.get("cameras") or {}
    if not isinstance(cameras, dict) or not all(isinstance(topic, str) for topic in cameras.values()):
        raise ValueError("cameras is no map of names to topics")
    task = content.get("task", "/task")
    if isinstance(task, dict) and set(task) == {"text"} and str(task["text"]).strip():
        words = {"text": str(task["text"])}
    elif isinstance(task, str):
        words = {"task": task}
    else:
        raise ValueError(f"task is {task!r}: name a topic, or give {{text: what is done}}")
    clock, rows = content.get("clock", "header"), content.get("rows", "rate")
    if clock not in ("header", "log"):
        raise ValueError(f"clock is {clock!r}: header or log")
    if rows != "rate" and rows not in cameras:
        raise ValueError(f"rows is {rows!r}: rate, or a camera")
    groups = content.get("groups") or {}
    if not isinstance(groups, dict):
        raise ValueError("groups is no map of names to [start, end]")
    state, action = (_streams(name, content.get(name)) for name in ("state", "action"))
    used = [stream.topic for stream in (*state, *action)] + list(cameras.values())
    if len(set(used)) < len(used):
        raise ValueError(f"a topic is used twice: {', '.join(sorted({t for t in used if used.count(t) > 1}))}")
    return BagMapping(
        fps=float(fps),
        state=state,
        action=action,
        cameras={str(name): topic for name, topic in cameras.items()},
        robot_type=str(content.get("robot_type", "unknown")),
        groups={str(name): (int(start), int(end)) for name, (start, end) in groups.items()},
        tolerance=float(tolerance),
        clock=clock,
        rows=rows,
        **words,
    )


def _streams(name: str, given: Any) -> tuple[Stream, ...]:
    streams = []
    for entry in given if isinstance(given, list) else [given]:
        entry = {"topic": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("topic"), str):
            raise ValueError(f"{name} is {given!r}: name a topic, or give {{topic: /name, joints: [a, b]}}")
        kinds = {kind.rsplit("/", 1)[1]: kind for kind in (JOINT_STATE, TRAJECTORY, ARRAY)}
        kind = str(entry.get("type", "JointState")).rsplit("/", 1)[-1]
        joints = tuple(map(str, entry.get("joints") or ()))
        if kind not in kinds:
            raise ValueError(f"{name}: type {kind!r} is none of {', '.join(kinds)}")
        if kinds[kind] == ARRAY and not joints:
            raise ValueError(f"{name}: a Float64MultiArray has no names: give joints: [a, b]")
        streams.append(Stream(entry["topic"], joints, kinds[kind]))
    return tuple(streams)


def dump_mapping(mapping: BagMapping) -> str:
    """The YAML of a mapping, which :func:`read_mapping` reads back."""

    def streams(given: tuple[Stream, ...]) -> list[dict[str, Any]]:
        return [{"topic": s.topic, "type": s.type.rsplit("/", 1)[1], "joints": list(s.joints)} for s in given]

    content = {
        "fps": mapping.fps,
        "robot_type": mapping.robot_type,
        "state": streams(mapping.state),
        "action": streams(mapping.action),
        "cameras": dict(mapping.cameras),
        "task": {"text": mapping.text} if mapping.text else mapping.task,
        "groups": {name: list(edges) for name, edges in mapping.groups.items()},
        "tolerance": mapping.tolerance,
        "clock": mapping.clock,
        "rows": mapping.rows,
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
