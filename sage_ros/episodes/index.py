"""Which episodes a data set has, how long they are, and where their rows and films lie; v2.0 to v3.0."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import DatasetError
from .files import fill, inside, read_jsonl, require, typed

INFO = "meta/info.json"
EPISODES, TASKS = "meta/episodes.jsonl", "meta/tasks.jsonl"
EPISODES_V3, TASKS_V3 = "meta/episodes", "meta/tasks.parquet"
_RESTORE_EPISODES = "restore it: one {episode_index, tasks, length} per line"
_RESTORE_V3 = "restore the file: LeRobot v3.0 lists its episodes in meta/episodes/chunk-000/file-000.parquet"


@dataclass(frozen=True)
class Span:
    """A part of a film: from ``start`` to ``end`` seconds of it; None: to its end."""

    path: Path
    start: float = 0.0
    end: float | None = None


class Index(ABC):
    """The episodes of a data set. ``lengths`` maps an episode's index to its rows, in the data set's order."""

    listing: str  # the file that lists the episodes, for messages
    lengths: Mapping[int, int]
    tasks: Mapping[int, str]

    @abstractmethod
    def data_file(self, episode: int) -> Path:
        """Where the episode's rows are. Raises DatasetError if that is outside the data set."""

    @abstractmethod
    def film(self, episode: int, key: str) -> Span:
        """Where the film of the video key is. Raises DatasetError if that is outside the data set."""


class FilePerEpisode(Index):
    """LeRobot v2.0 and v2.1: jsonl lists, a parquet file and a film per episode."""

    listing = EPISODES

    def __init__(self, root: Path, info: Mapping[str, Any], films: bool) -> None:
        self._root = root
        self._chunk = typed(info, "chunks_size", int, root / INFO) if "chunks_size" in info else 1000
        if self._chunk < 1:
            raise DatasetError(f"chunks_size is {self._chunk}", root / INFO, remedy="use 1000, LeRobot's value")
        self._data = typed(info, "data_path", str, root / INFO)
        self._video = typed(info, "video_path", str, root / INFO) if films else ""
        self.lengths, self.tasks = _lengths(root), _tasks(root)

    def data_file(self, episode: int) -> Path:
        return self._file(self._data, "data_path", episode, {})

    def film(self, episode: int, key: str) -> Span:
        return Span(self._file(self._video, "video_path", episode, {"video_key": key}))

    def _file(self, template: str, name: str, episode: int, more: dict[str, str]) -> Path:
        values: dict[str, int | str] = {"episode_chunk": episode // self._chunk, "episode_index": episode, **more}
        named_by = f"{self._root / INFO}: {name}"
        return inside(self._root, fill(template, values, named_by), named_by)


class ManyPerFile(Index):
    """LeRobot v3.0: many episodes in a parquet file and in a film; parquet tables say where."""

    listing = EPISODES_V3

    def __init__(self, root: Path, info: Mapping[str, Any], keys: list[str]) -> None:
        self._root = root
        self._data = typed(info, "data_path", str, root / INFO)
        self._video = typed(info, "video_path", str, root / INFO) if keys else ""
        wanted = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        for key in keys:
            at = f"videos/{key}/"
            wanted += [f"{at}chunk_index", f"{at}file_index", f"{at}from_timestamp", f"{at}to_timestamp"]
        self._columns = _episode_table(root, wanted)
        episodes, lengths = self._columns["episode_index"], self._columns["length"]
        self._position = {int(episode): position for position, episode in enumerate(episodes)}
        if len(self._position) < len(episodes):
            raise DatasetError("an episode_index occurs twice", root / EPISODES_V3, remedy="number the episodes from 0")
        bad = np.flatnonzero((lengths < 1) | (episodes < 0))
        if len(bad):
            what = f"episode {episodes[bad[0]]} has length {lengths[bad[0]]}"
            raise DatasetError(what, root / EPISODES_V3, int(bad[0]), "remove the empty episode")
        self.lengths = {int(episode): int(length) for episode, length in zip(episodes, lengths, strict=True)}
        self.tasks = _tasks_v3(root)

    def data_file(self, episode: int) -> Path:
        return self._file(self._data, "data_path", episode, "data/", {})

    def film(self, episode: int, key: str) -> Span:
        path = self._file(self._video, "video_path", episode, f"videos/{key}/", {"video_key": key})
        start, end = (float(self._at(episode, f"videos/{key}/{edge}_timestamp")) for edge in ("from", "to"))
        if not 0 <= start < end < 1e9:
            what = f"episode {episode} of '{key}' is from {start} to {end} s of its film"
            raise DatasetError(what, self._root / EPISODES_V3, self._position[episode], _RESTORE_V3)
        return Span(path, start, end)

    def _at(self, episode: int, column: str) -> Any:
        return self._columns[column][self._position[episode]]

    def _file(self, template: str, name: str, episode: int, at: str, more: dict[str, str]) -> Path:
        numbers = {part: int(self._at(episode, f"{at}{part}")) for part in ("chunk_index", "file_index")}
        named_by = f"{self._root / INFO}: {name}"
        return inside(self._root, fill(template, {**numbers, **more}, named_by), named_by)


def _lengths(root: Path) -> dict[int, int]:
    lengths: dict[int, int] = {}
    for row, record in enumerate(read_jsonl(root, EPISODES, _RESTORE_EPISODES)):
        index, length = (typed(record, key, int, root / EPISODES, row) for key in ("episode_index", "length"))
        if index < 0 or index in lengths:
            what = "is negative" if index < 0 else "occurs twice"
            raise DatasetError(f"episode_index {index} {what}", root / EPISODES, row, "number the episodes from 0")
        if length < 1:
            raise DatasetError(f"episode {index} has length {length}", root / EPISODES, row, "remove the empty episode")
        lengths[index] = length
    if not lengths:
        raise DatasetError("lists no episode", root / EPISODES, remedy="record an episode")
    return lengths


def _tasks(root: Path) -> dict[int, str]:
    tasks: dict[int, str] = {}
    for row, record in enumerate(read_jsonl(root, TASKS, "restore it: one {task_index, task} per line")):
        index = typed(record, "task_index", int, root / TASKS, row)
        if index in tasks:
            raise DatasetError(f"task_index {index} occurs twice", root / TASKS, row, "number the tasks differently")
        tasks[index] = typed(record, "task", str, root / TASKS, row)
    return tasks


def _tasks_v3(root: Path) -> dict[int, str]:
    """pandas keeps the words as the table's index, whose column has one name or another: the one that holds text."""
    path = inside(root, TASKS_V3, "data set")
    table = _read(path, None, "restore it: a table of task_index and task")
    words = [f.name for f in table.schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    if "task_index" not in table.column_names or not words:
        raise DatasetError(
            f"has columns {', '.join(table.column_names)}, but needs task_index and task", path, remedy="restore it"
        )
    column = "task" if "task" in words else words[0]
    numbers, texts = table.column("task_index").to_pylist(), table.column(column).to_pylist()
    for row, (number, text) in enumerate(zip(numbers, texts, strict=True)):
        if not isinstance(number, int) or not isinstance(text, str) or number in numbers[:row]:
            raise DatasetError(f"task_index {number!r}, task {text!r}", path, row, "number tasks, say them in words")
    return dict(zip(numbers, texts, strict=True))


def _episode_table(root: Path, wanted: list[str]) -> dict[str, np.ndarray]:
    """Columns of all files of meta/episodes, as numbers. Their statistics, which make these files large, are not read.

    One corrupt number must not become a hidden error elsewhere: nulls and NaN are refused.
    """
    folder = root / EPISODES_V3
    paths = sorted(path for path in folder.rglob("*.parquet"))
    if not paths:
        raise DatasetError("holds no parquet file", folder, remedy=_RESTORE_V3)
    parts: dict[str, list[np.ndarray]] = {column: [] for column in wanted}
    for path in paths:
        table = _read(inside(root, path.relative_to(root).as_posix(), "data set"), wanted, _RESTORE_V3)
        for column in wanted:
            array = table.column(column).combine_chunks()
            exact = pa.types.is_integer(array.type)
            if array.null_count or not (exact or pa.types.is_floating(array.type)):
                raise DatasetError(f"'{column}' holds {array.type} or nulls, not numbers", path, remedy=_RESTORE_V3)
            values = np.from_dlpack(array)
            if not exact and not (column.endswith("timestamp") and np.isfinite(values).all()):
                raise DatasetError(f"'{column}' is not whole and finite", path, remedy=_RESTORE_V3)
            parts[column].append(values)
    columns = {column: np.concatenate(part) for column, part in parts.items()}
    if not len(columns["episode_index"]):
        raise DatasetError("lists no episode", folder, remedy="record an episode")
    return columns


def _read(path: Path, columns: list[str] | None, remedy: str) -> pa.Table:
    require(path, remedy)
    try:
        with pq.ParquetFile(path) as file:
            missing = [column for column in columns or () if column not in file.schema_arrow.names]
            if not missing:
                return file.read(columns=columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"is broken or no parquet file ({error})", path, remedy=remedy) from error
    raise DatasetError(f"has no column {', '.join(missing)}", path, remedy=remedy)
