"""What a data set says of itself: ``meta/info.json``, ``modality.json``, ``episodes.jsonl``, ``tasks.jsonl``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.joints import JointError, JointLayout
from .errors import DatasetError
from .files import fill, inside, read_json, read_jsonl

INFO, MODALITY = "meta/info.json", "meta/modality.json"
EPISODES, TASKS, STATS = "meta/episodes.jsonl", "meta/tasks.jsonl", "meta/stats.json"
MAX_WIDTH = 4096  # values in one state or action row
_GENERIC = re.compile(r"motor_\d+")
_CONVERT = {
    "3": "convert it to v2.1, for one with Isaac-GR00T's scripts/lerobot_conversion/convert_v3_to_v2.py",
    "1": "convert it with LeRobot's convert_dataset_v1_to_v2.py",
}


@dataclass(frozen=True)
class Vector:
    """A state or action vector: the parquet columns that it is joined from (name -> width), and its joints."""

    columns: Mapping[str, int]
    joints: JointLayout


@dataclass(frozen=True)
class Schema:
    """A data set's metadata, checked. ``cameras`` maps a modality name to its video key (folder)."""

    root: Path
    version: str
    robot_type: str
    fps: float
    state: Vector
    action: Vector
    cameras: Mapping[str, str]
    task_column: str
    tasks: Mapping[int, str]
    lengths: Mapping[int, int]  # episode_index -> rows
    chunks_size: int
    data_path: str
    video_path: str

    def data_file(self, episode: int) -> Path:
        """Where the episode's rows are. Raises DatasetError if that is outside the data set."""
        return self._file(self.data_path, "data_path", episode, {})

    def video_file(self, episode: int, camera: str) -> Path:
        """Where the film of ``camera`` (modality name) is. Raises DatasetError if that is outside the data set."""
        return self._file(self.video_path, "video_path", episode, {"video_key": self.cameras[camera]})

    def _file(self, template: str, name: str, episode: int, more: dict[str, str]) -> Path:
        values: dict[str, int | str] = {"episode_chunk": episode // self.chunks_size, "episode_index": episode, **more}
        named_by = f"{self.root / INFO}: {name}"
        return inside(self.root, fill(template, values, named_by), named_by)


def read_schema(root: Path) -> Schema:
    """The metadata of the LeRobot v2.0 or v2.1 data set with GR00T's modality.json in the folder ``root``.

    Totals, splits and video features in info.json are not believed: published sets have them wrong.
    Raises DatasetError on anything missing, contradictory or of another version.
    """
    if not root.is_dir():
        raise DatasetError("is no folder", root, remedy="name the folder that holds meta/, data/ and videos/")
    info = read_json(root, INFO, "name a LeRobot data set; one without meta/info.json is incomplete: record it again")
    version = _version(info, root / INFO)
    remedy = "add GR00T's modality.json: the slices of state and action, the cameras, the annotation columns"
    modality = read_json(root, MODALITY, remedy)
    features = _typed(info, "features", dict, root / INFO)
    fps = _typed(info, "fps", (int, float), root / INFO)
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise DatasetError(f"fps is {fps}", root / INFO, remedy="give the rate of rows and frames, 0 < fps <= 1000")
    chunks_size = _typed(info, "chunks_size", int, root / INFO) if "chunks_size" in info else 1000
    if chunks_size < 1:
        raise DatasetError(f"chunks_size is {chunks_size}", root / INFO, remedy="use 1000, LeRobot's value")
    cameras = {name: entry.get("original_key") or name for name, entry in _section(modality, "video", root)}
    return Schema(
        root=root,
        version=version,
        robot_type=str(info.get("robot_type") or "unknown"),
        fps=float(fps),
        state=_vector("state", "observation.state", modality, features, root),
        action=_vector("action", "action", modality, features, root),
        cameras=cameras,
        task_column=_task_column(modality, root),
        tasks=_tasks(root),
        lengths=_lengths(root),
        chunks_size=chunks_size,
        data_path=_typed(info, "data_path", str, root / INFO),
        video_path=_typed(info, "video_path", str, root / INFO) if cameras else "",
    )


def _typed(
    record: Mapping[str, Any], key: str, kind: type | tuple[type, ...], file: Path, row: int | None = None
) -> Any:
    """``record[key]``, which must be of the given JSON type (true is no number). Raises DatasetError."""
    value = record.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = f"is {value!r:.80}" if key in record else "is missing"
        names = " or ".join(t.__name__ for t in (kind if isinstance(kind, tuple) else (kind,)))
        raise DatasetError(f"'{key}' {found}", file, row, remedy=f"it must be of type {names}")
    return value


def _version(info: Mapping[str, Any], file: Path) -> str:
    version = _typed(info, "codebase_version", str, file)
    if not re.fullmatch(r"v?2\.[01]", version):
        major = version.removeprefix("v").split(".")[0]
        raise DatasetError(
            f"data set version is {version}; LeRobot v2.0 and v2.1 are read",
            file,
            remedy=_CONVERT.get(major, "convert it to v2.1"),
        )
    return version if version.startswith("v") else f"v{version}"


def _section(modality: Mapping[str, Any], name: str, root: Path) -> list[tuple[str, dict[str, Any]]]:
    """The entries of one section of modality.json. A missing section has none."""
    section = modality.get(name) or {}
    if not isinstance(section, dict) or not all(isinstance(entry, dict) for entry in section.values()):
        raise DatasetError(f"'{name}' is no map of names to objects", root / MODALITY, remedy="write it as GR00T does")
    for entry_name, entry in section.items():
        if not isinstance(entry.get("original_key") or "", str):
            what = f"{name} '{entry_name}': original_key is no text"
            raise DatasetError(what, root / MODALITY, remedy="name a column")
    return list(section.items())


def _vector(kind: str, default: str, modality: Mapping[str, Any], features: Mapping[str, Any], root: Path) -> Vector:
    """The vector of ``kind``: every column that its groups name, whole, in the order of first mention."""
    entries = _section(modality, kind, root)
    columns: dict[str, int] = {}
    groups: dict[str, tuple[int, int]] = {}
    for _, entry in entries or [(kind, {})]:
        column = entry.get("original_key") or default
        columns.setdefault(column, _width(features, column, root / INFO))
    offsets = dict(zip(columns, [sum(list(columns.values())[:k]) for k in range(len(columns))], strict=True))
    for name, entry in entries:
        column = entry.get("original_key") or default
        start, end = (_typed(entry, edge, int, root / MODALITY) for edge in ("start", "end"))
        if not 0 <= start < end <= columns[column]:
            raise DatasetError(
                f"{kind} group '{name}' is [{start}:{end}], but column '{column}' has {columns[column]} values",
                root / MODALITY,
                remedy="correct start and end (half-open), or the shape in meta/info.json",
            )
        groups[name] = (offsets[column] + start, offsets[column] + end)
    names = _joint_names(columns, groups, features)
    try:
        return Vector(columns, JointLayout(names, groups))
    except JointError as error:
        raise DatasetError(
            f"{kind}: {error}", root / MODALITY, remedy="correct its groups, or name the joints in meta/info.json"
        ) from error


def _width(features: Mapping[str, Any], column: str, file: Path) -> int:
    shape = features[column].get("shape") if isinstance(features.get(column), dict) else None
    if not (isinstance(shape, list) and len(shape) == 1 and type(shape[0]) is int and 1 <= shape[0] <= MAX_WIDTH):
        raise DatasetError(
            f"features['{column}'] has shape {shape!r:.80}" if column in features else f"features has no '{column}'",
            file,
            remedy=f"give its shape as [width], 1 <= width <= {MAX_WIDTH}, or correct original_key in {MODALITY}",
        )
    return int(shape[0])


def _joint_names(
    columns: Mapping[str, int], groups: Mapping[str, tuple[int, int]], features: Mapping[str, Any]
) -> tuple[str, ...]:
    """Names from info.json if they tell the joints apart, else ``<group>_<k>``, else ``joint_<k>``."""
    names: list[str] = []
    for column in columns:
        given = features[column].get("names")
        while isinstance(given, dict) and len(given) == 1:  # LeRobot's {"motors": [...]}
            given = next(iter(given.values()))
        if isinstance(given, list):
            names += [name.removesuffix(".pos") if isinstance(name, str) else "" for name in given]
    width = sum(columns.values())
    generic = all(_GENERIC.fullmatch(name) for name in names)
    if len(names) == width == len(set(names)) and all(names) and not generic:
        return tuple(names)
    names = [f"joint_{k}" for k in range(width)]
    for group, (start, end) in groups.items():
        names[start:end] = [f"{group}_{k}" for k in range(end - start)]
    return tuple(names)


def _task_column(modality: Mapping[str, Any], root: Path) -> str:
    """The column that says which task a row belongs to: the first annotation that is a task description."""
    for name, entry in _section(modality, "annotation", root):
        column = entry.get("original_key") or f"annotation.{name}"
        if "task_description" in name or "task_description" in column:
            return str(column)
    return "task_index"


def _tasks(root: Path) -> dict[int, str]:
    tasks: dict[int, str] = {}
    for row, record in enumerate(read_jsonl(root, TASKS, "restore it: one {task_index, task} per line")):
        index = _typed(record, "task_index", int, root / TASKS, row)
        if index in tasks:
            raise DatasetError(f"task_index {index} occurs twice", root / TASKS, row, "number the tasks differently")
        tasks[index] = _typed(record, "task", str, root / TASKS, row)
    return tasks


def _lengths(root: Path) -> dict[int, int]:
    lengths: dict[int, int] = {}
    for row, record in enumerate(read_jsonl(root, EPISODES, "restore it: one {episode_index, tasks, length} per line")):
        index, length = (_typed(record, key, int, root / EPISODES, row) for key in ("episode_index", "length"))
        if index < 0 or index in lengths:
            what = "is negative" if index < 0 else "occurs twice"
            raise DatasetError(f"episode_index {index} {what}", root / EPISODES, row, "number the episodes from 0")
        if length < 1:
            raise DatasetError(f"episode {index} has length {length}", root / EPISODES, row, "remove the empty episode")
        lengths[index] = length
    if not lengths:
        raise DatasetError("lists no episode", root / EPISODES, remedy="record an episode")
    return lengths
