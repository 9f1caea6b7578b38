"""Files of a data set: confined to its folder, present, and not a Git LFS pointer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Any

from .errors import DatasetError

_LFS_HEAD = b"version https://git-lfs"
_WIDTH = re.compile(r"\d{0,2}d?")  # what may follow the colon in a path template: "", "d", "03d", "06d"


def inside(root: Path, relative: str, named_by: str) -> Path:
    """The resolved path of ``relative``, which must lie in the folder ``root`` also after links are followed.

    ``named_by`` says where the path came from. Raises DatasetError if it is absolute or leaves the folder.
    """
    try:
        path = (root / relative).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # NUL bytes, loops of links
        what = f"{named_by} names an impossible path {relative!r} ({error})"
        raise DatasetError(what, root, remedy="correct the path") from error
    if Path(relative).is_absolute() or not path.is_relative_to(root.resolve()):
        raise DatasetError(
            f"{named_by} names a path outside the data set: {path}",
            root / relative,
            remedy="correct the path; if the data set is made of links (a hub cache), copy it with `cp -rL`",
        )
    return path


def require(path: Path, remedy: str) -> Path:
    """``path`` itself if it is a file with content. Raises DatasetError if missing, empty or a Git LFS pointer."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS_HEAD))
    except FileNotFoundError as error:
        raise DatasetError("file is missing", path, remedy=remedy) from error
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror})", path, remedy=remedy) from error
    if not head:
        raise DatasetError("file is empty", path, remedy=remedy)
    if head == _LFS_HEAD:
        raise DatasetError("is a Git LFS pointer, not the data", path, remedy="run `git lfs pull` where it was cloned")
    return path


def fill(template: str, values: Mapping[str, int | str], named_by: str) -> str:
    """A path template filled in. Only plain fields out of ``values`` are allowed: a data set is not trusted.

    Raises DatasetError on any other field, attribute access, conversion or width.
    """
    try:
        for _, name, spec, conversion in Formatter().parse(template):
            if name is not None and (name not in values or conversion or not _WIDTH.fullmatch(spec or "")):
                raise ValueError(f"field {name!r} with format {spec!r}")
        return template.format(**values)
    except ValueError as error:
        raise DatasetError(
            f"{named_by} is no valid path template: {template!r} ({error})",
            remedy=f"use only the fields {', '.join(f'{{{name}}}' for name in values)}, such as {{episode_index:06d}}",
        ) from error


def typed(
    record: Mapping[str, Any], key: str, kind: type | tuple[type, ...], file: Path, row: int | None = None
) -> Any:
    """``record[key]``, which must be of the given JSON type (true is no number). Raises DatasetError."""
    value = record.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = f"is {value!r:.80}" if key in record else "is missing"
        names = " or ".join(t.__name__ for t in (kind if isinstance(kind, tuple) else (kind,)))
        raise DatasetError(f"'{key}' {found}", file, row, remedy=f"it must be of type {names}")
    return value


def read_json(root: Path, relative: str, remedy: str) -> dict[str, Any]:
    """The JSON object in a file of the data set. Raises DatasetError."""
    path = require(inside(root, relative, "data set"), remedy)
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"is not valid JSON ({error})", path, remedy=remedy) from error
    if not isinstance(content, dict):
        raise DatasetError(f"holds a JSON {type(content).__name__}, not an object", path, remedy=remedy)
    return content


def read_jsonl(root: Path, relative: str, remedy: str) -> list[dict[str, Any]]:
    """The JSON objects of a file with one per line; blank lines are skipped. Raises DatasetError with the line."""
    path = require(inside(root, relative, "data set"), remedy)
    records = []
    try:
        lines = path.read_text("utf-8").split("\n")
    except ValueError as error:
        raise DatasetError(f"is not UTF-8 text ({error})", path, remedy=remedy) from error
    for row, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"is not valid JSON ({error})", path, row, remedy) from error
        if not isinstance(record, dict):
            raise DatasetError(f"holds a JSON {type(record).__name__}, not an object", path, row, remedy)
        records.append(record)
    return records
