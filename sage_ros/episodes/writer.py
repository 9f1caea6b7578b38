"""Write LeRobot v2.1 data sets with GR00T's modality.json."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..core.joints import JointLayout
from .description import (
    CHUNKS_SIZE,
    DATA_PATH,
    INTEGERS,
    VIDEO_PATH,
    Description,
    image_numbers,
    numbers,
    sampling,
    video_key,
)
from .errors import DatasetError
from .files import read_json, read_jsonl
from .rows import matrix, read_table
from .video import codec_of, decode, encode
from .writing import make_room, write_json, write_jsonl, writing


class EpisodeWriter:
    """Writes a new data set; use it in a ``with`` block, or call :meth:`close`.

    ``fps`` is the rate of rows and frames; ``cameras`` maps a camera's name to its size (H, W), both even; joints
    are ``joints`` for state and action alike unless ``action_joints`` is given. ``crf`` is x264's quality (lower is
    better, 18 looks lossless), ``gop`` the frames between key frames; ``lossless`` keeps the very pixels, in RGB.
    ``intrinsics`` maps cameras to what is known of them, as in sensor_msgs/CameraInfo: ``k`` (9 numbers, row by row),
    ``d``, ``distortion_model``. ``extras`` are more columns of numbers, by the names of their values. ``source`` says
    where the episodes come from. The same episodes give the same bytes.

    Episodes are written as they are added, ``meta/`` by :meth:`close` in one rename: a folder without it is an
    incomplete set that no reader takes. A ``with`` block that an exception leaves still closes over the episodes
    added before it. An existing folder is refused, unless ``overwrite`` allows to replace the data set in it
    (only ``data/``, ``meta/`` and ``videos/`` are removed).

    With ``append`` the data set can be read after each episode, and whatever ends the process costs at most the
    episode in progress; a data set that is there is gone on with, if it was written with the same settings by this
    class. Only ``meta/stats.json`` waits for :meth:`close`; readers compute it meanwhile. Raises DatasetError on bad
    arguments, and where the disk is full or may not be written.
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
        append: bool = False,
        lossless: bool = False,
        intrinsics: Mapping[str, Mapping[str, Any]] | None = None,
        source: str = "",
        extras: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.path = Path(path).expanduser().resolve()
        self.fps, self.crf, self.gop, self.append, self.lossless = fps, crf, gop, append, lossless
        self.cameras = dict(cameras)
        self.joints = {"observation.state": joints, "action": action_joints or joints}
        self.joints |= {column: JointLayout(tuple(names)) for column, names in (extras or {}).items()}
        known = {camera: dict(lens) for camera, lens in (intrinsics or {}).items() if camera in cameras}
        self._description = Description(fps, robot_type, self.joints, self.cameras, lossless, known, source)
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._stats: list[dict[str, Any]] = []
        self._columns: list[dict[str, np.ndarray]] = []  # of the episodes added, for the statistics of the whole
        self._closed = False
        if append and (self.path / "meta/info.json").is_file():
            self._go_on()
            return
        with writing(self.path):
            make_room(self.path, overwrite or append)

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or self._episodes:
            self.close()

    def __len__(self) -> int:
        """Episodes that are in the data set."""
        return len(self._episodes)

    def add(
        self, state: np.ndarray, action: np.ndarray, task: str, frames: Mapping[str, np.ndarray | Path] | None = None,
        extras: Mapping[str, np.ndarray] | None = None, about: Mapping[str, Any] | None = None,
    ) -> int:  # fmt: skip
        """Write one episode and return its index.

        ``state`` (T, S) and ``action`` (T, A) are finite numbers, stored as float32; ``frames`` maps every camera to
        its (T, H, W, 3) uint8 RGB, or to an H.264 mp4 of T frames, which is copied as it is; ``task`` says in words
        what is done; ``extras`` are the (T, D) of the writer's extra columns; ``about`` goes into the episode's line of
        episodes.jsonl. Raises DatasetError, and leaves nothing of the episode, if they do not fit or the disk is full.
        """
        if self._closed:
            raise DatasetError("the writer is closed", self.path, remedy="add episodes before close()")
        films = {c: film if isinstance(film, Path) else np.asarray(film) for c, film in (frames or {}).items()}
        vectors = {"observation.state": np.asarray(state), "action": np.asarray(action)}
        vectors |= {column: np.asarray(values) for column, values in (extras or {}).items()}
        self._check(vectors, films, task)
        index, length = len(self._episodes), len(vectors["action"])
        first = sum(episode["length"] for episode in self._episodes)
        number = self._tasks.get(task, len(self._tasks))
        steps = np.arange(length)
        columns: dict[str, np.ndarray] = {name: vector.astype(np.float32) for name, vector in vectors.items()}
        columns["timestamp"] = (steps / self.fps).astype(np.float32)
        for name, values in zip(INTEGERS, (steps, index, first + steps, number, number), strict=True):
            columns[name] = np.broadcast_to(values, length).astype(np.int64)
        columns["next.done"] = steps == length - 1

        values = {"episode_chunk": index // CHUNKS_SIZE, "episode_index": index}
        rows = self.path / DATA_PATH.format(**values)
        targets = {c: self.path / VIDEO_PATH.format(**values, video_key=video_key(c)) for c in films}
        stats = {name: numbers(column) | {"count": [length]} for name, column in columns.items()}
        for camera, film in films.items():
            sample = self._sample(camera, film, length) if isinstance(film, Path) else film[:: sampling(length)]
            stats[video_key(camera)] = image_numbers(sample)
        state_before = (dict(self._tasks), list(self._episodes), list(self._stats), list(self._columns))
        try:
            with writing(self.path):
                for camera, film in films.items():
                    targets[camera].parent.mkdir(parents=True, exist_ok=True)
                    if isinstance(film, Path):
                        shutil.copyfile(film, targets[camera])
                    else:
                        encode(targets[camera], film, self.fps, self.crf, self.gop, self.lossless)
                rows.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.table({name: _arrow(column) for name, column in columns.items()}), rows)
                self._tasks[task] = number
                self._episodes.append({"episode_index": index, "tasks": [task], "length": length, **(about or {})})
                self._stats.append({"episode_index": index, "stats": stats})
                self._columns.append(columns)
                if self.append:
                    self._save()
        except BaseException:
            self._tasks, self._episodes, self._stats, self._columns = state_before
            for path in (rows, *targets.values()):
                path.unlink(missing_ok=True)
            raise
        return index

    def label(self, index: int, **about: Any) -> None:
        """Add to what an episode's line of episodes.jsonl says, such as ``success=True``. Raises DatasetError."""
        if not 0 <= index < len(self._episodes):
            raise DatasetError(f"there is no episode {index}", self.path, remedy=f"there are {len(self._episodes)}")
        self._episodes[index] = {**self._episodes[index], **about}
        if self.append:
            with writing(self.path):
                write_jsonl(self.path / "meta/episodes.jsonl", self._episodes)

    def _sample(self, camera: str, film: Path, length: int) -> np.ndarray:
        """Some frames of a film that is to be copied. Raises DatasetError if it does not fit the episode."""
        codec, pixels, height, width = codec_of(film)
        if codec != "h264" or (height, width) != self.cameras[camera]:
            what = f"is {codec} ({pixels}) of {width}x{height}"
            size = "x".join(map(str, reversed(self.cameras[camera])))
            raise DatasetError(what, film, remedy=f"give H.264 of {size}, or the decoded frames")
        frames, count = [], 0
        for _, image in decode(film):
            if count % sampling(length) == 0:
                frames.append(image)
            count += 1
        if count != length:
            raise DatasetError(f"has {count} frames for {length} rows", film, remedy="give the decoded frames instead")
        return np.stack(frames)

    def close(self) -> None:
        """Write ``meta/``; after it the data set is complete. Raises DatasetError if no episode was added."""
        if self._closed:
            return
        if not self._episodes:
            raise DatasetError("no episode was added", self.path, remedy="add an episode before close()")
        with writing(self.path):
            self._save(final=True)
        self._closed = True

    def _save(self, final: bool = False) -> None:
        """Write ``meta/``. What readers go by, episodes.jsonl, comes last: whenever this ends, the set is whole."""
        meta = self.path / "meta"
        new = not meta.exists()
        folder = self.path / "meta.partial" if new else meta
        folder.mkdir(exist_ok=True)
        if new:
            write_json(folder / "modality.json", self._description.modality())
        if final:
            # No "count" here: GR00T's loaders slice every entry by joint.
            whole = {name: numbers(column) for name, column in self._whole()}
            write_json(folder / "stats.json", whole)
        else:
            (folder / "stats.json").unlink(missing_ok=True)
        if new or final:
            write_jsonl(folder / "episodes_stats.jsonl", self._stats)
        else:  # rewriting these long lines for each episode would cost more and more
            with (folder / "episodes_stats.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(self._stats[-1], allow_nan=False) + "\n")
        tasks = [{"task_index": number, "task": task} for task, number in self._tasks.items()]
        write_jsonl(folder / "tasks.jsonl", tasks)
        write_json(folder / "info.json", self._info())
        write_jsonl(folder / "episodes.jsonl", self._episodes)
        if new:
            os.replace(folder, meta)

    def _whole(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every column over all episodes, those of earlier sessions read back."""
        earlier = range(len(self._episodes) - len(self._columns))
        paths = [self.path / DATA_PATH.format(episode_chunk=k // CHUNKS_SIZE, episode_index=k) for k in earlier]
        for name in (*self.joints, "timestamp", *INTEGERS, "next.done"):
            if name == "next.done":
                parts = [np.arange(self._episodes[k]["length"]) == self._episodes[k]["length"] - 1 for k in earlier]
            else:
                width = len(self.joints[name]) if name in self.joints else 1
                tables = (read_table(p, [name], self._episodes[k]["length"], "meta/episodes.jsonl")
                          for k, p in enumerate(paths))  # fmt: skip
                parts = [matrix(t, name, [name] * width, p) for t, p in zip(tables, paths, strict=True)]
                parts = parts if name in self.joints else [part[:, 0] for part in parts]
            yield name, np.concatenate([*parts, *(columns[name] for columns in self._columns)])

    def _go_on(self) -> None:
        """Take up the data set that is there. Raises DatasetError if it is another one, or closed differently."""
        remedy = "name another folder, or pass overwrite=True to replace the data set"
        info = read_json(self.path, "meta/info.json", remedy)
        ours = self._info()
        keys = ("codebase_version", "robot_type", "fps", "chunks_size", "data_path", "features", "source")
        different = [key for key in keys if info.get(key) != json.loads(json.dumps(ours)).get(key)]
        if different or read_json(self.path, "meta/modality.json", remedy) != self._description.modality():
            what = f"holds another data set: {', '.join(different) or 'modality.json'} differs"
            raise DatasetError(what, self.path, remedy=remedy)
        episodes = read_jsonl(self.path, "meta/episodes.jsonl", remedy)
        stats = {}  # a line of an episode that was not finished may be cut off
        for line in (self.path / "meta/episodes_stats.jsonl").read_text("utf-8").split("\n")[:-1]:
            record = json.loads(line)
            stats[record["episode_index"]] = record
        lost = [k for k in range(len(episodes)) if k not in stats or episodes[k].get("episode_index") != k]
        if lost:
            what = f"episode {lost[0]} is not in episodes.jsonl or episodes_stats.jsonl as written here"
            raise DatasetError(what, self.path, remedy=remedy)
        self._episodes = episodes
        self._stats = [stats[k] for k in range(len(episodes))]
        tasks = read_jsonl(self.path, "meta/tasks.jsonl", remedy)
        self._tasks = {record["task"]: record["task_index"] for record in tasks}
        with writing(self.path):
            write_jsonl(self.path / "meta/episodes_stats.jsonl", self._stats)

    def _info(self) -> dict[str, Any]:
        return self._description.info([episode["length"] for episode in self._episodes], len(self._tasks))

    def _check(self, vectors: Mapping[str, np.ndarray], films: Mapping[str, Any], task: str) -> None:
        remedy = "correct the arrays given to add()"
        if not isinstance(task, str) or not task.strip():
            raise DatasetError(f"the task is {task!r}", remedy="say in words what the robot does")
        if set(vectors) != set(self.joints):
            what = f"columns are {', '.join(vectors)}; expected {', '.join(self.joints)}"
            raise DatasetError(what, remedy="give the extras that the writer was made for")
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
            if isinstance(film, Path):
                continue
            shape = (length, *self.cameras[camera], 3)
            if film.dtype != np.uint8 or film.shape != shape:
                what = f"frames of '{camera}' have shape {film.shape} and type {film.dtype}; expected {shape} and uint8"
                raise DatasetError(what, remedy=remedy)


def _arrow(column: np.ndarray) -> pa.Array:
    if column.ndim == 1:
        return pa.array(column)
    return pa.FixedSizeListArray.from_arrays(pa.array(column.ravel()), column.shape[1])
