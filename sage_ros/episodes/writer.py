"""Write LeRobot v2.1 data sets with GR00T's modality.json."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..core.joints import JointLayout
from .errors import DatasetError
from .rows import describe
from .video import encode

CHUNKS_SIZE = 1000
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
TASK_KEY = "human.action.task_description"
_IMAGE_SAMPLES = 100  # frames of an episode that its image statistics are taken over, as in LeRobot
_PARTS = ("meta", "meta.partial", "data", "videos")  # of a data set, in the order of removal
_INTEGERS = ("frame_index", "episode_index", "index", "task_index", f"annotation.{TASK_KEY}")


class EpisodeWriter:
    """Writes a new data set; use it in a ``with`` block, or call :meth:`close`.

    ``fps`` is the rate of rows and frames; ``cameras`` maps a camera's name to its size (H, W), both even; joints
    are ``joints`` for state and action alike unless ``action_joints`` is given. ``crf`` is x264's quality (lower is
    better, 18 looks lossless), ``gop`` the frames between key frames. The same episodes give the same bytes.

    Episodes are written as they are added, ``meta/`` by :meth:`close` in one rename: a folder without it is an
    incomplete set that no reader takes. A ``with`` block that an exception leaves still closes over the episodes
    added before it. An existing folder is refused, unless ``overwrite`` allows to replace the data set in it
    (only ``data/``, ``meta/`` and ``videos/`` are removed). Raises DatasetError on bad arguments.
    """

    def __init__(
        self,
        path: Path | str,
        fps: float,
        robot_type: str,
        joints: JointLayout,
        cameras: Mapping[str, tuple[int, int]],
        action_joints: JointLayout | None = None,
        overwrite: bool = False,
        crf: int = 23,
        gop: int = 40,
    ) -> None:
        self.path = Path(path).expanduser().resolve()
        if not (math.isfinite(fps) and 0 < fps <= 1000):
            raise DatasetError(f"fps is {fps}", remedy="give 0 < fps <= 1000")
        for name, (height, width) in cameras.items():
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise DatasetError(f"camera name {name!r}", remedy="use letters, digits, '_', '-' and '.' only")
            if height < 16 or width < 16 or height % 2 or width % 2:
                raise DatasetError(f"camera '{name}' is {width}x{height}", remedy="use even sizes of 16 or more")
        self.fps, self.robot_type, self.crf, self.gop = fps, robot_type, crf, gop
        self.cameras = dict(cameras)
        self.joints = {"observation.state": joints, "action": action_joints or joints}
        for column, layout in self.joints.items():
            if not len(layout):
                raise DatasetError(f"'{column}' has no joints", remedy="name at least one joint")
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._stats: list[dict[str, Any]] = []
        self._columns: list[dict[str, np.ndarray]] = []  # of every episode, for the statistics of the whole
        self._closed = False
        _clear(self.path, overwrite)

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or self._episodes:
            self.close()

    def add(
        self, state: np.ndarray, action: np.ndarray, task: str, frames: Mapping[str, np.ndarray] | None = None
    ) -> int:
        """Write one episode and return its index.

        ``state`` (T, S) and ``action`` (T, A) are finite numbers, stored as float32; ``frames`` maps every camera to
        its (T, H, W, 3) uint8 RGB; ``task`` says in words what is done. Raises DatasetError, and writes nothing,
        if they do not fit.
        """
        if self._closed:
            raise DatasetError("the writer is closed", self.path, remedy="add episodes before close()")
        films = {camera: np.asarray(film) for camera, film in (frames or {}).items()}
        vectors = {"observation.state": np.asarray(state), "action": np.asarray(action)}
        self._check(vectors, films, task)
        index, length = len(self._episodes), len(vectors["action"])
        first = sum(episode["length"] for episode in self._episodes)
        number = self._tasks.get(task, len(self._tasks))
        steps = np.arange(length)
        columns: dict[str, np.ndarray] = {name: vector.astype(np.float32) for name, vector in vectors.items()}
        columns["timestamp"] = (steps / self.fps).astype(np.float32)
        for name, values in zip(_INTEGERS, (steps, index, first + steps, number, number), strict=True):
            columns[name] = np.broadcast_to(values, length).astype(np.int64)
        columns["next.done"] = steps == length - 1

        values = {"episode_chunk": index // CHUNKS_SIZE, "episode_index": index}
        rows = self.path / DATA_PATH.format(**values)
        targets = {c: self.path / VIDEO_PATH.format(**values, video_key=_video_key(c)) for c in films}
        try:
            for camera, film in films.items():
                targets[camera].parent.mkdir(parents=True, exist_ok=True)
                encode(targets[camera], film, self.fps, self.crf, self.gop)
            rows.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({name: _arrow(column) for name, column in columns.items()}), rows)
        except BaseException:
            for path in (rows, *targets.values()):
                path.unlink(missing_ok=True)
            raise

        self._tasks[task] = number
        self._episodes.append({"episode_index": index, "tasks": [task], "length": length})
        stats = {name: _numbers(column) | {"count": [length]} for name, column in columns.items()}
        stats |= {_video_key(camera): _image_numbers(film) for camera, film in films.items()}
        self._stats.append({"episode_index": index, "stats": stats})
        self._columns.append(columns)
        return index

    def close(self) -> None:
        """Write ``meta/``; after it the data set is complete. Raises DatasetError if no episode was added."""
        if self._closed:
            return
        if not self._episodes:
            raise DatasetError("no episode was added", self.path, remedy="add an episode before close()")
        partial = self.path / "meta.partial"
        partial.mkdir(exist_ok=True)
        tasks = [{"task_index": number, "task": task} for task, number in self._tasks.items()]
        whole = {name: np.concatenate([part[name] for part in self._columns]) for name in self._columns[0]}
        _write_json(partial / "info.json", self._info())
        _write_json(partial / "modality.json", self._modality())
        # No "count" here: GR00T's loaders slice every entry by joint.
        _write_json(partial / "stats.json", {name: _numbers(column) for name, column in whole.items()})
        _write_jsonl(partial / "episodes.jsonl", self._episodes)
        _write_jsonl(partial / "tasks.jsonl", tasks)
        _write_jsonl(partial / "episodes_stats.jsonl", self._stats)
        os.replace(partial, self.path / "meta")
        self._closed = True

    def _check(self, vectors: Mapping[str, np.ndarray], films: Mapping[str, np.ndarray], task: str) -> None:
        remedy = "correct the arrays given to add()"
        if not isinstance(task, str) or not task.strip():
            raise DatasetError(f"the task is {task!r}", remedy="say in words what the robot does")
        length = len(vectors["action"]) if vectors["action"].ndim else 0
        for name, vector in vectors.items():
            layout = self.joints[name]
            if vector.dtype.kind not in "fiu" or vector.shape != (length, len(layout)) or not length:
                what = f"{name} has shape {vector.shape} and type {vector.dtype}"
                raise DatasetError(f"{what}; expected numbers of shape ({length or 'T'}, {len(layout)})", remedy=remedy)
            with np.errstate(over="ignore"):
                bad = np.argwhere(~np.isfinite(vector.astype(np.float32)))
            if len(bad):
                row, k = bad[0]
                what = f"{name} of joint '{layout.names[k]}' is {vector[row, k]}, no finite float32"
                raise DatasetError(what, row=int(row), remedy=remedy)
        if set(films) != set(self.cameras):
            what = f"frames are of {', '.join(films) or 'no camera'}; expected {', '.join(self.cameras) or 'none'}"
            raise DatasetError(what, remedy="give the frames of every camera of the writer")
        for camera, film in films.items():
            shape = (length, *self.cameras[camera], 3)
            if film.dtype != np.uint8 or film.shape != shape:
                what = f"frames of '{camera}' have shape {film.shape} and type {film.dtype}; expected {shape} and uint8"
                raise DatasetError(what, remedy=remedy)

    def _info(self) -> dict[str, Any]:
        episodes, fps = len(self._episodes), int(self.fps) if float(self.fps).is_integer() else self.fps
        features: dict[str, Any] = {
            name: {"dtype": "float32", "shape": [len(layout)], "names": list(layout.names)}
            for name, layout in self.joints.items()
        }
        for camera, (height, width) in self.cameras.items():
            film = {"height": height, "width": width, "codec": "h264", "pix_fmt": "yuv420p", "is_depth_map": False}
            film |= {"fps": fps, "channels": 3}
            features[_video_key(camera)] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": {f"video.{key}": value for key, value in film.items()} | {"has_audio": False},
            }
        scalars = {"timestamp": "float32", **dict.fromkeys(_INTEGERS, "int64"), "next.done": "bool"}
        features |= {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in scalars.items()}
        return {
            "codebase_version": "v2.1",
            "robot_type": self.robot_type,
            "total_episodes": episodes,
            "total_frames": sum(episode["length"] for episode in self._episodes),
            "total_tasks": len(self._tasks),
            "total_videos": episodes * len(self.cameras),
            "total_chunks": math.ceil(episodes / CHUNKS_SIZE),
            "chunks_size": CHUNKS_SIZE,
            "fps": fps,
            "splits": {"train": f"0:{episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": features,
        }

    def _modality(self) -> dict[str, Any]:
        """GR00T's view: groups of joints (all in one group "joints" where the layout has none), cameras, tasks."""
        modality: dict[str, Any] = {}
        for kind, column in (("state", "observation.state"), ("action", "action")):
            groups = self.joints[column].groups or {"joints": (0, len(self.joints[column]))}
            slices = {name: {"start": start, "end": end} for name, (start, end) in groups.items()}
            modality[kind] = {name: edges | {"original_key": column} for name, edges in slices.items()}
        modality["video"] = {camera: {"original_key": _video_key(camera)} for camera in self.cameras}
        return modality | {"annotation": {TASK_KEY: {}}}


def _clear(path: Path, overwrite: bool) -> None:
    """Make ``path`` a folder without a data set; a folder that holds anything else is never touched."""
    if path.exists() and not path.is_dir():
        raise DatasetError("is a file, not a folder", path, remedy="name another folder")
    if path.is_dir() and any(path.iterdir()):
        ours = (path / "meta/info.json").is_file() or all(entry.name in _PARTS for entry in path.iterdir())
        if not overwrite or not ours:
            remedy = "name another folder" + (", or pass overwrite=True to replace the data set" if ours else "")
            raise DatasetError("folder exists and is not empty", path, remedy=remedy)
        for part in _PARTS:  # meta first: a set half removed must not look whole
            if (path / part).exists():
                shutil.rmtree(path / part)
    path.mkdir(parents=True, exist_ok=True)


def _video_key(camera: str) -> str:
    return f"observation.images.{camera}"


def _arrow(column: np.ndarray) -> pa.Array:
    if column.ndim == 1:
        return pa.array(column)
    return pa.FixedSizeListArray.from_arrays(pa.array(column.ravel()), column.shape[1])


def _numbers(column: np.ndarray) -> dict[str, list[float]]:
    """Statistics of a column as lists, one number per value of a row."""
    return {key: value.tolist() for key, value in describe(column.reshape(len(column), -1).astype(np.float64)).items()}


def _image_numbers(film: np.ndarray) -> dict[str, Any]:
    """LeRobot's image statistics: per channel over sampled frames, in 0..1, shaped (3, 1, 1); count of frames."""
    sample = film[:: math.ceil(len(film) / _IMAGE_SAMPLES)]
    counts = np.stack([np.bincount(sample[..., channel].ravel(), minlength=256) for channel in range(3)])
    levels, total = np.arange(256) / 255.0, counts[0].sum()
    mean = counts @ levels / total
    std = np.sqrt(np.maximum(counts @ levels**2 / total - mean**2, 0.0))
    seen = [levels[np.flatnonzero(channel)] for channel in counts]
    numbers = {"mean": mean, "std": std, "min": np.array([s[0] for s in seen]), "max": np.array([s[-1] for s in seen])}
    return {key: value.reshape(3, 1, 1).tolist() for key, value in numbers.items()} | {"count": [len(sample)]}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", "utf-8")


def _write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    lines = (json.dumps(record, allow_nan=False) for record in records)
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
