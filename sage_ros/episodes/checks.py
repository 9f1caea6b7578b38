"""Everything that is wrong with a data set, not only the first thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from .dataset import EpisodeDataset
from .errors import DatasetError
from .hub import locate
from .index import INFO, FilePerEpisode
from .modality import flat_names
from .rows import matrix
from .schema import schema_errors
from .video import Timed

UNEVEN = 0.1  # share of a period by which a row may be off its time before it is told


@dataclass(frozen=True)
class Problem:
    """What is wrong, where, and what to do. A ``fatal`` one keeps something from being read; others mislead readers."""

    what: str
    file: Path | str | None
    row: int | None
    remedy: str
    fatal: bool

    def __str__(self) -> str:
        return f"{'error' if self.fatal else 'warning'}: {DatasetError(self.what, self.file, self.row, self.remedy)}"


def check(path: Path | str, films: bool = True) -> Iterator[Problem]:
    """All problems of a data set, as they are found: metadata, then each episode's rows and films, then leftovers.

    ``films=False`` looks only whether films are there; decoding them all takes the most time.
    """
    root = locate(path)
    errors = schema_errors(root)
    if errors:
        yield from map(_fatal, errors)
        return
    dataset = EpisodeDataset(root, cache=0)
    yield from _names(dataset)
    for index in tqdm(dataset.indices, "checking", unit=" episodes", disable=None, leave=False):
        yield from _episode(dataset, index, films)
    yield from _totals(dataset)
    yield from _leftovers(dataset)


def _fatal(error: DatasetError) -> Problem:
    return Problem(_what(error), error.file, error.row, error.remedy, True)


def _what(error: DatasetError) -> str:
    """The message without file, row and remedy, which a Problem says itself."""
    text = str(error)
    for part in (error.file, None if error.row is None else f"row {error.row}"):
        text = text if part is None else text.removeprefix(f"{part}: ")
    return text.removesuffix(f". Remedy: {error.remedy}")


def _warning(what: str, file: Path | None, row: int | None, remedy: str) -> Problem:
    return Problem(what, file, row, remedy, False)


def _names(dataset: EpisodeDataset) -> Iterator[Problem]:
    """Names that are there but tell the joints not apart: the reader then numbers the joints."""
    features = dataset.schema.info["features"]
    for column in (*dataset.schema.state.columns, *dataset.schema.action.columns):
        names, _ = flat_names(features[column].get("names") or [])
        twice = sorted({name for name in names if name and names.count(name) > 1})
        where, width = dataset.path / INFO, features[column]["shape"][0]
        if twice:
            yield _warning(f"'{column}' names {', '.join(twice)} twice", where, None, "give each joint its own name")
        elif names and len(names) != width:
            yield _warning(f"'{column}' has {len(names)} names for {width} values", where, None, "name every value")


def _episode(dataset: EpisodeDataset, index: int, films: bool) -> Iterator[Problem]:
    schema, index_file = dataset.schema, dataset.schema.index
    columns = (*schema.state.columns, *schema.action.columns, "timestamp", schema.task_column)
    tables: dict[str, pa.Table] = {}
    for column in dict.fromkeys(columns):
        try:
            path, tables[column] = dataset.rows(index, [column])
        except DatasetError as error:
            yield _fatal(error)
            if column not in str(error):
                break  # the whole file
    vectors = {**schema.state.columns, **schema.action.columns}
    for column, width in vectors.items():
        if column in tables:
            yield from _attempt(partial(matrix, tables[column], column, [f"value {k}" for k in range(width)], path))
    if len(tables) == len(set(columns)):
        yield from _attempt(lambda: dataset[dataset.indices.index(index)], known_films=False)
    if "timestamp" in tables:
        yield from _times(tables["timestamp"], path, dataset.fps)
    rows = index_file.lengths[index]
    for camera, entry in schema.cameras.items():
        times = np.arange(rows) / dataset.fps
        try:
            file, source = dataset.film(index, camera, times)
        except DatasetError as error:
            yield _fatal(error)
            continue
        if films:
            yield from _film(source, file, rows, entry.info.get("shape"))


def _attempt(part: Callable[[], Any], known_films: bool = True) -> Iterator[Problem]:
    """What a part says if it fails. Missing films are told elsewhere, as are rows that were read column by column."""
    try:
        part()
    except DatasetError as error:
        if known_films or "task" in str(error) or "timestamp" in str(error):
            yield _fatal(error)


def _times(table: pa.Table, path: Path, fps: float) -> Iterator[Problem]:
    try:
        steps = np.diff(matrix(table, "timestamp", ["seconds"], path)[:, 0])
    except DatasetError:
        return  # told with the rows
    off = np.flatnonzero((np.abs(steps - 1 / fps) > UNEVEN / fps) & (steps > 0))
    if len(off):
        what = f"{len(off)} of {len(steps)} rows are not {1 / fps:.4g} s after the last, but {steps[off[0]]:.4g} s"
        yield _warning(what, path, int(off[0]) + 1, f"correct fps ({fps:g}), or record at a steady rate")


def _film(source: Callable[[], Iterator[Timed]], file: Path, rows: int, declared: Any) -> Iterator[Problem]:
    count, shape = 0, None
    try:
        for _, image in source():
            count, shape = count + 1, image.shape
    except DatasetError as error:
        yield _fatal(error)
        return
    if count != rows:
        what = f"has {count} frames for {rows} rows"
        remedy = "cut the longer of the two, record the episode again, or remove it from the list"
        yield Problem(what, file, min(count, rows), remedy, True)
    if shape and isinstance(declared, list) and sorted(declared) != sorted(shape):
        size = f"{shape[1]}x{shape[0]}"
        yield _warning(f"shows {size}, but {INFO} says {declared}", file, None, f"correct the shape in {INFO}")


def _totals(dataset: EpisodeDataset) -> Iterator[Problem]:
    """Counts in info.json, which other readers believe."""
    info, lists = dataset.schema.info, dataset.schema.index
    true = {
        "total_episodes": len(lists.lengths),
        "total_frames": sum(lists.lengths.values()),
        "total_tasks": len(lists.tasks),
    }
    for key, value in true.items():
        if key in info and info[key] != value:
            what = f"'{key}' is {info[key]!r}, but there are {value}"
            yield _warning(what, dataset.path / INFO, None, f"write {value}")
    films = {camera.key for camera in dataset.schema.cameras.values()}
    for key, feature in info["features"].items():
        if isinstance(feature, dict) and feature.get("dtype") == "video" and key not in films:
            what = f"features['{key}'] is a video that no camera uses"
            yield _warning(what, dataset.path / INFO, None, "remove the feature, or add the camera to modality.json")


def _leftovers(dataset: EpisodeDataset) -> Iterator[Problem]:
    """Parquet files of no episode: what an interrupted recording leaves, and what GR00T's loaders read all the same."""
    lists = dataset.schema.index
    if not isinstance(lists, FilePerEpisode):
        return
    known = {lists.data_file(index) for index in lists.lengths}
    for path in sorted((dataset.path / "data").rglob("*.parquet")):
        if path.resolve() not in known:
            yield _warning(f"belongs to no episode of {lists.listing}", path, None, "remove it, or list the episode")
