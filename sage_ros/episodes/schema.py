"""What a data set says of itself: ``meta/info.json``, ``meta/modality.json``, and its :mod:`index <.index>`."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..core.joints import JointError, JointLayout
from .errors import DatasetError
from .files import read_json, typed
from .index import INFO, FilePerEpisode, Index, ManyPerFile
from .modality import MODALITY, flat_names, guess_modality

STATS = "meta/stats.json"
MAX_WIDTH = 4096  # values in one state or action row
_GENERIC = re.compile(r"motor_\d+")
_CONVERT = {"1": "convert it with LeRobot's convert_dataset_v1_to_v2.py"}
log = logging.getLogger("sage_ros.episodes")


@dataclass(frozen=True)
class Vector:
    """A state or action vector: the parquet columns that it is joined from (name -> width), and its joints."""

    columns: Mapping[str, int]
    joints: JointLayout


@dataclass(frozen=True)
class Camera:
    """A camera: its feature ``key``, whether its frames are an image column rather than films, and what is known of it.

    ``info`` is the feature's entry in info.json.
    """

    key: str
    in_rows: bool
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Schema:
    """A data set's metadata, checked. ``cameras`` go by modality names; ``guessed``: there is no modality.json."""

    root: Path
    version: str
    robot_type: str
    fps: float
    state: Vector
    action: Vector
    cameras: Mapping[str, Camera]
    task_column: str
    index: Index
    info: Mapping[str, Any]
    modality: Mapping[str, Any]
    guessed: bool


def read_schema(root: Path) -> Schema:
    """The metadata of the LeRobot v2.0, v2.1 or v3.0 data set in the folder ``root``.

    Groups, cameras and annotations come from GR00T's modality.json; without one they are guessed, which is logged.
    Totals, splits and video features in info.json are not believed: published sets have them wrong.
    Raises DatasetError on anything missing, contradictory or of another version.
    """
    if not root.is_dir():
        raise DatasetError("is no folder", root, remedy="name the folder that holds meta/, data/ and videos/")
    info = read_json(root, INFO, "name a LeRobot data set; one without meta/info.json is incomplete: record it again")
    version = _version(info, root / INFO)
    features = typed(info, "features", dict, root / INFO)
    fps = typed(info, "fps", (int, float), root / INFO)
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise DatasetError(f"fps is {fps}", root / INFO, remedy="give the rate of rows and frames, 0 < fps <= 1000")
    guessed = not (root / MODALITY).exists()
    if guessed:
        modality = guess_modality(features, lambda key: _has_film(root, key, features))
    else:
        remedy = "restore GR00T's modality.json, or remove it: it is then guessed from info.json"
        modality = read_json(root, MODALITY, remedy)
    cameras = {}
    for name, entry in _section(modality, "video", root):
        key = entry.get("original_key") or name
        feature = features.get(key) if isinstance(features.get(key), dict) else {}
        cameras[name] = Camera(key, feature.get("dtype") == "image", feature)
    schema = Schema(
        root=root,
        version=version,
        robot_type=str(info.get("robot_type") or "unknown"),
        fps=float(fps),
        state=_vector("state", "observation.state", modality, features, root),
        action=_vector("action", "action", modality, features, root),
        cameras=cameras,
        task_column=_task_column(modality, root),
        index=_index(root, version, info, cameras),
        info=info,
        modality=modality,
        guessed=guessed,
    )
    if guessed:
        groups = {kind: {name: [e["start"], e["end"]] for name, e in _section(modality, kind, root)}
                  for kind in ("state", "action")}  # fmt: skip
        log.warning(
            "%s: no %s; guessed from the names in info.json: groups %s, cameras %s. "
            "`episodes info --save-modality` writes the guess for you to edit.",
            root, MODALITY, groups, ", ".join(cameras) or "none",
        )  # fmt: skip
    return schema


def schema_errors(root: Path) -> list[DatasetError]:
    """All that keeps :func:`read_schema` from reading a data set, not only what it meets first; empty: nothing does."""
    errors: dict[str, DatasetError] = {}

    def attempt(part: Callable[[], object]) -> Any:
        try:
            return part()
        except DatasetError as error:
            errors.setdefault(str(error), error)
            return None

    if attempt(lambda: read_schema(root)) is not None:
        return []
    if not (root / INFO).is_file():
        return list(errors.values())
    info = attempt(lambda: read_json(root, INFO, "restore it")) or {}
    modality = attempt(lambda: read_json(root, MODALITY, "restore it")) if (root / MODALITY).exists() else {}
    features = attempt(lambda: typed(info, "features", dict, root / INFO))
    if features is not None and modality is not None:
        for kind, column in (("state", "observation.state"), ("action", "action")):
            attempt(partial(_vector, kind, column, modality, features, root))
    version = attempt(lambda: _version(info, root / INFO))
    if version is not None:
        attempt(lambda: _index(root, version, info, {}))
    return list(errors.values())


def _index(root: Path, version: str, info: Mapping[str, Any], cameras: Mapping[str, Camera]) -> Index:
    films = [camera.key for camera in cameras.values() if not camera.in_rows]
    if version.startswith("v3"):
        return ManyPerFile(root, info, films)
    return FilePerEpisode(root, info, bool(films))


def _has_film(root: Path, key: str, features: Mapping[str, Any]) -> bool:
    """Whether a video feature of info.json is one: published sets declare some that have no film at all."""
    if features[key].get("dtype") == "image":
        return True
    if not re.fullmatch(r"\w[\w.-]*", key):
        return False
    return any((root / "videos").glob(f"{key}/*/*.mp4")) or any((root / "videos").glob(f"*/{key}/*.mp4"))


def _version(info: Mapping[str, Any], file: Path) -> str:
    version = typed(info, "codebase_version", str, file)
    if not re.fullmatch(r"v?(2\.[01]|3\.0)", version):
        major = version.removeprefix("v").split(".")[0]
        raise DatasetError(
            f"data set version is {version}; LeRobot v2.0, v2.1 and v3.0 are read",
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
        start, end = (typed(entry, edge, int, root / MODALITY) for edge in ("start", "end"))
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
    names = [name for column in columns for name in flat_names(features[column].get("names") or [])[0]]
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
