"""Rows of an episode: parquet columns as checked matrices, and their statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import DatasetError
from .files import require

STAT_NAMES = ("mean", "std", "min", "max", "q01", "q99")
EPISODE = "episode_index"


def read_table(
    path: Path, columns: Iterable[str], length: int, listing: str, span: tuple[int, int] | None = None
) -> pa.Table:
    """The named columns of an episode with ``length`` rows: of a whole parquet file, or of the rows ``span`` of it.

    ``listing`` is the file that says the length. Raises DatasetError if the file is missing, broken or of another
    length, or if it lacks a column.
    """
    restore = f"restore the file, or remove the episode from {listing}"
    require(path, restore)
    wanted = list(dict.fromkeys(columns))
    try:
        with pq.ParquetFile(path) as file:
            start, stop = span or (0, file.metadata.num_rows)
            present = file.schema_arrow.names
            missing = [column for column in wanted if column not in present]
            if not missing and stop - start == length:
                return _read_span(file, wanted, start, stop)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"is broken or no parquet file ({error})", path, remedy=restore) from error
    if missing:
        raise DatasetError(
            f"has no column {', '.join(missing)}; there are: {', '.join(present)}",
            path,
            remedy="add it, or correct original_key in meta/modality.json",
        )
    raise DatasetError(
        f"has {stop - start} rows, but {listing} says {length}",
        path,
        start if span else None,
        remedy=f"correct the length in {listing}, or restore the file",
    )


def _read_span(file: pq.ParquetFile, columns: list[str], start: int, stop: int) -> pa.Table:
    """Rows of a file, reading only the row groups that hold them."""
    if (start, stop) == (0, file.metadata.num_rows):
        return file.read(columns=columns)
    ends = np.cumsum([file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)])
    first, last = np.searchsorted(ends, [start, stop - 1], side="right")
    before = int(ends[first - 1]) if first else 0
    return file.read_row_groups(list(range(first, last + 1)), columns=columns).slice(start - before, stop - start)


def episode_spans(path: Path, listing: str) -> dict[int, tuple[int, int]]:
    """Which rows (from, to) of a file that holds many episodes are whose, by its column ``episode_index``.

    Raises DatasetError if the file is missing or broken, or if an episode's rows are not in one piece.
    """
    restore = f"restore the file, or remove its episodes from {listing}"
    require(path, restore)
    try:
        with pq.ParquetFile(path) as file:
            if EPISODE not in file.schema_arrow.names:
                raise DatasetError(f"has no column {EPISODE}", path, remedy=restore)
            table = file.read(columns=[EPISODE])
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"is broken or no parquet file ({error})", path, remedy=restore) from error
    numbers = matrix(table, EPISODE, [EPISODE], path)[:, 0]
    starts = np.flatnonzero(np.diff(numbers, prepend=np.nan) != 0)
    spans: dict[int, tuple[int, int]] = {}
    for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True):
        if int(numbers[start]) in spans:
            what = f"the rows of episode {numbers[start]:g} are not in one piece"
            raise DatasetError(what, path, int(start), "order the rows by episode_index and frame_index")
        spans[int(numbers[start])] = (int(start), int(stop))
    return spans


def matrix(table: pa.Table, column: str, names: Sequence[str], path: Path) -> np.ndarray:
    """A numeric column as (T, len(names)) float64: lists of that length, or plain numbers where it is 1.

    ``names`` name the values in messages. Raises DatasetError with the row on a null, a wrong width, NaN or infinity.
    """
    array = table.column(column).combine_chunks()
    width = len(names)
    _no_nulls(array, column, path)
    if _is_list(array.type):
        widths = np.full(len(array), array.type.list_size) if pa.types.is_fixed_size_list(array.type) else None
        widths = _numpy(array.value_lengths()) if widths is None else widths
        array = array.flatten()
        wrong = np.flatnonzero(widths != width)
        row = int(wrong[0]) if len(wrong) else 0
        found = int(widths[row]) if len(widths) else width
    else:
        row, found = 0, 1
    if found != width:
        raise DatasetError(
            f"'{column}' has {found} values, but meta/info.json says {width}",
            path,
            row,
            "correct the shape in meta/info.json, or record the episode again",
        )
    if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type)):
        raise DatasetError(f"'{column}' holds {array.type}, not numbers", path, remedy="store it as float32 or float64")
    _no_nulls(array, column, path, width)
    values: np.ndarray = _numpy(array).astype(np.float64).reshape(-1, width)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, k = (int(index) for index in bad[0])
        what = f"'{column}' value {k} ({names[k]}) is {values[row, k]}"
        raise DatasetError(what, path, row, "record the episode again, or remove it from meta/episodes.jsonl")
    return values


def _numpy(array: pa.Array) -> np.ndarray:
    """Numbers without nulls, not copied. By DLPack, because Arrow's own ``to_numpy`` imports pandas: a second lost."""
    return np.from_dlpack(array)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _no_nulls(array: pa.Array, column: str, path: Path, width: int = 1) -> None:
    if array.null_count:
        row = array.is_null().index(True).as_py() // width
        raise DatasetError(f"'{column}' is null", path, row, "fill the value in, or record the episode again")


def describe(values: np.ndarray) -> dict[str, np.ndarray]:
    """GR00T's statistics of a (T, D) matrix over its rows: mean, std (of the population), min, max, q01, q99; (D,)."""
    low, high = np.quantile(values, (0.01, 0.99), axis=0)
    numbers = (values.mean(0), values.std(0), values.min(0), values.max(0), low, high)
    return dict(zip(STAT_NAMES, numbers, strict=True))
