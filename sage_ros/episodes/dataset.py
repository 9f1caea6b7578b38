"""Read GR00T / LeRobot v2.0 and v2.1 data sets as typed episodes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args, overload

import numpy as np
import pyarrow as pa

from ..core.joints import JointLayout
from .errors import DatasetError
from .files import inside, read_json, require
from .rows import STAT_NAMES, describe, matrix, read_table
from .schema import STATS, Vector, read_schema
from .video import Align, Video

FOLDERS = ("data", "meta", "videos")  # the parts of a data set


@dataclass(frozen=True, eq=False)
class Episode:
    """One demonstration. Row t: frame t as seen, state t as measured, action t as commanded, at timestamp t.

    ``state`` (T, S) and ``action`` (T, A) are float64 in the data set's units (radians for joints), the columns named
    by ``state_joints`` and ``action_joints``; ``timestamp`` (T,) float64 is in seconds and ascends. ``videos`` maps
    a camera's modality name to its film; it is empty if the data set was opened with ``video=False``.
    """

    index: int
    task: str
    fps: float
    state: np.ndarray
    action: np.ndarray
    timestamp: np.ndarray
    state_joints: JointLayout
    action_joints: JointLayout
    videos: Mapping[str, Video]

    def __len__(self) -> int:
        return len(self.timestamp)

    def frames(self, camera: str | None = None) -> np.ndarray:
        """Frames (T, H, W, 3) uint8 RGB of a camera (None: the first), decoded once and then kept with the episode.

        Raises DatasetError if there is no such camera, or if the film is broken or too short.
        """
        if camera is None:
            camera = next(iter(self.videos), "")
        if camera not in self.videos:
            raise DatasetError(
                f"episode {self.index} has no camera '{camera}'; there are: {', '.join(self.videos) or 'none'}",
                remedy="name one of them; if there are none, open the data set with video=True, or record films",
            )
        return self.videos[camera].frames()


class EpisodeDataset(Sequence[Episode]):
    """A LeRobot v2.0 or v2.1 data set with GR00T's ``meta/modality.json``, read-only.

    ``align`` pairs rows with frames, see :class:`~sage_ros.episodes.video.Video`; ``video=False`` needs no films.
    Metadata is checked here, an episode's rows and the presence of its films when it is asked for, a film when its
    frames are. Episodes are in the order of ``meta/episodes.jsonl``; each access reads anew, so keep the episode
    while you use it. Everything wrong with the data set is a DatasetError.
    """

    def __init__(self, path: Path | str, align: Align = "index", video: bool = True) -> None:
        if align not in get_args(Align):
            raise ValueError(f"align is {align!r}, but must be one of {', '.join(get_args(Align))}")
        self.path = Path(path).expanduser().resolve()
        self.align: Align = align
        self.video = video
        self._schema = read_schema(self.path)
        self.fps = self._schema.fps
        self.robot_type = self._schema.robot_type
        self.version = self._schema.version
        self.state_joints = self._schema.state.joints
        self.action_joints = self._schema.action.joints
        self.cameras = tuple(self._schema.cameras)
        self.tasks = tuple(text for _, text in sorted(self._schema.tasks.items()))
        self.indices = tuple(self._schema.lengths)
        self.rows = sum(self._schema.lengths.values())

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, position: int) -> Episode: ...
    @overload
    def __getitem__(self, position: slice) -> list[Episode]: ...
    def __getitem__(self, position: int | slice) -> Episode | list[Episode]:
        if isinstance(position, slice):
            return [self._read(index) for index in self.indices[position]]
        return self._read(self.indices[position])

    def _read(self, index: int) -> Episode:
        schema, path = self._schema, self._schema.data_file(index)
        columns = (*schema.state.columns, *schema.action.columns, "timestamp", schema.task_column)
        table = read_table(path, columns, schema.lengths[index])
        timestamp = matrix(table, "timestamp", ["seconds"], path)[:, 0]
        late = np.flatnonzero(np.diff(timestamp) <= 0)
        if len(late):
            row = int(late[0]) + 1
            what = f"timestamp {timestamp[row]} s does not follow {timestamp[row - 1]} s"
            raise DatasetError(what, path, row, "order the rows by time, or record the episode again")
        videos = {}
        for camera in self.cameras if self.video else ():
            film = require(
                schema.video_file(index, camera),
                f"restore the film, remove camera '{camera}' from meta/modality.json, or open with video=False",
            )
            videos[camera] = Video(film, timestamp, self.fps, self.align)
        return Episode(
            index=index,
            task=self._task(table, path),
            fps=self.fps,
            state=_join(table, schema.state, path),
            action=_join(table, schema.action, path),
            timestamp=timestamp,
            state_joints=self.state_joints,
            action_joints=self.action_joints,
            videos=videos,
        )

    def _task(self, table: pa.Table, path: Path) -> str:
        """The one task of an episode, in words."""
        column = self._schema.task_column
        numbers = matrix(table, column, ["task"], path)[:, 0]
        unknown = np.flatnonzero(~np.isin(numbers, list(self._schema.tasks)))
        if len(unknown):
            row = int(unknown[0])
            what = f"'{column}' is {numbers[row]:g}, which meta/tasks.jsonl does not list"
            raise DatasetError(what, path, row, "add the task to meta/tasks.jsonl")
        other = np.flatnonzero(numbers != numbers[0])
        if len(other):
            raise DatasetError(
                f"'{column}' changes from {numbers[0]:g} to {numbers[other[0]]:g}",
                path,
                int(other[0]),
                "split the episode: each has one task",
            )
        return self._schema.tasks[int(numbers[0])]

    @cached_property
    def stats(self) -> dict[str, dict[str, np.ndarray]]:
        """Per column: mean, std, min, max, q01, q99, each (D,) float64.

        From ``meta/stats.json`` where it holds all of them for the state and action columns, else those columns are
        computed over all rows. Nothing is written. Raises DatasetError on statistics that do not fit the columns.
        """
        stats = self._stored_stats()
        vectors = (self._schema.state, self._schema.action)
        widths = {column: width for vector in vectors for column, width in vector.columns.items()}
        missing = {c: w for c, w in widths.items() if not set(STAT_NAMES) <= set(stats.get(c, ()))}
        for column, width in widths.items():
            for name in STAT_NAMES if column not in missing else ():
                value = stats[column][name]
                if value.shape != (width,) or not np.isfinite(value).all():
                    raise DatasetError(
                        f"{column}: {name} is not {width} finite numbers (shape {value.shape})",
                        self.path / STATS,
                        remedy="delete the file: the statistics are then computed from the rows",
                    )
        if missing:
            parts: dict[str, list[np.ndarray]] = {column: [] for column in missing}
            for index in self.indices:
                path = self._schema.data_file(index)
                table = read_table(path, missing, self._schema.lengths[index])
                for column, width in missing.items():
                    parts[column].append(matrix(table, column, [f"value {k}" for k in range(width)], path))
            stats |= {column: describe(np.concatenate(part)) for column, part in parts.items()}
        return stats

    def _stored_stats(self) -> dict[str, dict[str, np.ndarray]]:
        remedy = "delete the file: the statistics are then computed from the rows"
        if not (self.path / STATS).exists():
            return {}
        stored = read_json(self.path, STATS, remedy)
        try:
            return {c: {k: np.array(v, np.float64) for k, v in numbers.items()} for c, numbers in stored.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise DatasetError(f"is no table of numbers ({error})", self.path / STATS, remedy=remedy) from error

    def fingerprint(self) -> str:
        """sha256 (hex) over the relative path and content of every file in data/, meta/ and videos/, in path order."""
        digest = hashlib.sha256()
        files = (path for folder in FOLDERS for path in (self.path / folder).rglob("*") if path.is_file())
        for name in sorted(path.relative_to(self.path).as_posix() for path in files):
            with inside(self.path, name, "data set").open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{content}  {name}\n".encode())
        return digest.hexdigest()


def _join(table: pa.Table, vector: Vector, path: Path) -> np.ndarray:
    """The vector's columns side by side: (T, D) float64."""
    names, start, parts = vector.joints.names, 0, []
    for column, width in vector.columns.items():
        parts.append(matrix(table, column, names[start : start + width], path))
        start += width
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
