"""Read GR00T / LeRobot data sets, v2.0 to v3.0, as typed episodes."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args, overload

import numpy as np
import pyarrow as pa

from ..core.joints import JointLayout
from .cache import ByteCache
from .errors import DatasetError
from .files import inside, read_json, require
from .hub import locate
from .rows import STAT_NAMES, describe, episode_spans, matrix, read_table
from .schema import STATS, Schema, Vector, log, read_schema
from .video import Align, Timed, Video, decode, decode_images

FOLDERS = ("data", "meta", "videos")  # the parts of a data set
CACHE_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class Episode:
    """One demonstration. Row t: frame t as seen, state t as measured, action t as commanded, at timestamp t.

    ``state`` (T, S) and ``action`` (T, A) are float64 in the data set's units (radians for joints), the columns named
    by ``state_joints`` and ``action_joints``; ``timestamp`` (T,) float64 is in seconds and ascends. ``videos`` maps
    a camera's modality name to its film; it is empty if the data set was opened with ``video=False``. The arrays are
    shared with the data set's cache: copy before changing them.
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

    def frame(self, row: int, camera: str | None = None) -> np.ndarray:
        """The frame (H, W, 3) uint8 RGB of one row, a view into :meth:`frames`. Raises IndexError outside the rows."""
        frame: np.ndarray = self.frames(camera)[row]
        return frame


class EpisodeDataset(Sequence[Episode]):
    """A LeRobot v2.0, v2.1 or v3.0 data set, with GR00T's ``meta/modality.json`` or without; read-only.

    ``path`` is a folder, or a name on the Hugging Face hub, ``org/name`` or ``org/name@revision``, which is fetched.
    Without a modality.json the groups and cameras are guessed (``guessed``; the guess is logged, and is ``modality``).
    ``align`` pairs rows with frames, see :class:`~sage_ros.episodes.video.Video`; ``video=False`` needs no films.
    ``skip_missing`` leaves out the episodes whose files are missing, and logs once which (``skipped``, with the
    reasons); otherwise asking for such an episode is an error.

    Only metadata is read here, an episode's rows when it is asked for, a film when its frames are. Episodes are in
    the order of the data set's list. The most recently used are kept, within ``cache`` bytes of rows and decoded
    frames (but always the last one); an episode that you keep, you keep. Everything wrong is a DatasetError.
    """

    def __init__(
        self,
        path: Path | str,
        align: Align = "index",
        video: bool = True,
        skip_missing: bool = False,
        cache: int = CACHE_BYTES,
    ) -> None:
        if align not in get_args(Align):
            raise ValueError(f"align is {align!r}, but must be one of {', '.join(get_args(Align))}")
        self.path = locate(path)
        self.align: Align = align
        self.video = video
        self._schema = read_schema(self.path)
        self.fps = self._schema.fps
        self.robot_type = self._schema.robot_type
        self.version = self._schema.version
        self.state_joints = self._schema.state.joints
        self.action_joints = self._schema.action.joints
        self.cameras = tuple(self._schema.cameras)
        self.tasks = tuple(text for _, text in sorted(self._schema.index.tasks.items()))
        self.guessed, self.modality = self._schema.guessed, self._schema.modality
        self._cache: ByteCache[Episode] = ByteCache(cache)
        self._spans: dict[Path, dict[int, tuple[int, int]]] = {}  # v3.0: file -> episode -> rows
        self.indices = tuple(self._schema.index.lengths)
        self.skipped: dict[int, str] = {}
        if skip_missing:
            self._skip_missing()

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, position: int) -> Episode: ...
    @overload
    def __getitem__(self, position: slice) -> list[Episode]: ...
    def __getitem__(self, position: int | slice) -> Episode | list[Episode]:
        if isinstance(position, slice):
            return [self._episode(index) for index in self.indices[position]]
        return self._episode(self.indices[position])

    @property
    def schema(self) -> Schema:
        """The metadata, checked."""
        return self._schema

    @property
    def lengths(self) -> tuple[int, ...]:
        """Rows of every episode, as the data set's list says."""
        return tuple(self._schema.index.lengths[index] for index in self.indices)

    def camera_info(self, camera: str) -> dict[str, Any] | None:
        """The intrinsics of a camera, where the data set knows them: see :meth:`EpisodeWriter`'s ``intrinsics``."""
        entry = self._schema.cameras[camera].info.get("info")
        known = entry.get("camera_info") if isinstance(entry, dict) else None
        return dict(known) if isinstance(known, dict) else None

    def rows(self, index: int, columns: Sequence[str]) -> tuple[Path, pa.Table]:
        """The file of the episode ``index``, and the named parquet columns of its rows. Raises DatasetError."""
        lists, path = self._schema.index, self._schema.index.data_file(index)
        span = None
        if self.version.startswith("v3"):
            if path not in self._spans:
                self._spans[path] = episode_spans(path, lists.listing)
            span = self._spans[path].get(index, (0, 0))
        return path, read_table(path, columns, lists.lengths[index], lists.listing, span)

    def _episode(self, index: int) -> Episode:
        episode = self._cache.get(index)
        if episode is None:
            episode = self._read(index)
            size = episode.state.nbytes + episode.action.nbytes + episode.timestamp.nbytes
            self._cache.put(index, episode, size)
        return episode

    def _read(self, index: int) -> Episode:
        schema = self._schema
        columns = (*schema.state.columns, *schema.action.columns, "timestamp", schema.task_column)
        path, table = self.rows(index, columns)
        timestamp = matrix(table, "timestamp", ["seconds"], path)[:, 0]
        late = np.flatnonzero(np.diff(timestamp) <= 0)
        if len(late):
            row = int(late[0]) + 1
            what = f"timestamp {timestamp[row]} s does not follow {timestamp[row - 1]} s"
            raise DatasetError(what, path, row, "order the rows by time, or record the episode again")
        videos: dict[str, Video] = {}
        episode = Episode(
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
        decoded = partial(_grow, weakref.ref(self._cache), index, weakref.ref(episode))
        for camera in self.cameras if self.video else ():
            film, source = self.film(index, camera, timestamp)
            videos[camera] = Video(film, timestamp, self.fps, self.align, source, decoded)
        return episode

    def film(self, index: int, camera: str, times: np.ndarray) -> tuple[Path, partial[Iterator[Timed]]]:
        """The file that holds a camera's frames of the episode ``index``, and what starts decoding them.

        ``times`` (T,) are the rows' time stamps, which images in rows have. Raises DatasetError if it is missing.
        """
        key = self._schema.cameras[camera].key
        if self._schema.cameras[camera].in_rows:
            read, rows = partial(_second, partial(self.rows, index, [key])), self._schema.index.data_file(index)
            return rows, partial(decode_images, read, key, rows, self.path, times)
        span = self._schema.index.film(index, key)
        film = require(
            span.path,
            f"restore the film, remove camera '{camera}' from meta/modality.json, or open with video=False "
            "(skip_missing=True leaves such episodes out)",
        )
        return film, partial(decode, film, self.fps, span.start, span.end)

    def _skip_missing(self) -> None:
        lists, seen = self._schema.index, dict[Path, str]()
        films = [c.key for c in self._schema.cameras.values() if not c.in_rows] if self.video else []
        for index in self.indices:
            for path in (lists.data_file(index), *(lists.film(index, key).path for key in films)):
                if path not in seen:
                    seen[path] = "" if path.is_file() and path.stat().st_size else f"{path} is missing"
                if seen[path]:
                    self.skipped.setdefault(index, seen[path])
        if not self.skipped:
            return
        total, left = len(self.indices), tuple(index for index in self.indices if index not in self.skipped)
        if not left:
            first = next(iter(self.skipped.values()))
            raise DatasetError(f"all {total} episodes lack files: {first}", self.path, remedy="restore them")
        few = "; ".join(f"{index}: {why}" for index, why in list(self.skipped.items())[:5])
        more = f" and {len(self.skipped) - 5} more" if len(self.skipped) > 5 else ""
        log.warning("%s: %d of %d episodes are left out: %s%s", self.path, len(self.skipped), total, few, more)
        self.indices = left

    def _task(self, table: pa.Table, path: Path) -> str:
        """The one task of an episode, in words."""
        column = self._schema.task_column
        numbers = matrix(table, column, ["task"], path)[:, 0]
        tasks = self._schema.index.tasks
        file = "meta/tasks.parquet" if self.version.startswith("v3") else "meta/tasks.jsonl"
        unknown = np.flatnonzero(~np.isin(numbers, list(tasks)))
        if len(unknown):
            row = int(unknown[0])
            what = f"'{column}' is {numbers[row]:g}, which {file} does not list"
            raise DatasetError(what, path, row, f"add the task to {file}")
        other = np.flatnonzero(numbers != numbers[0])
        if len(other):
            raise DatasetError(
                f"'{column}' changes from {numbers[0]:g} to {numbers[other[0]]:g}",
                path,
                int(other[0]),
                "split the episode: each has one task",
            )
        return tasks[int(numbers[0])]

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
                path, table = self.rows(index, list(missing))
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


def _second(pair: partial[tuple[Path, pa.Table]]) -> pa.Table:
    return pair()[1]


def _grow(
    cache: weakref.ref[ByteCache[Episode]], index: int, episode: weakref.ref[Episode], size: int
) -> None:
    """A film was decoded. By weak references, so that an episode let go is freed at once, not by the collector."""
    kept, grown = cache(), episode()
    if kept is not None and grown is not None:
        kept.grow(index, grown, size)
