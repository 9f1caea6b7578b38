"""Files that are there whole or not at all, and what is said when the disk is full."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av

from .errors import DatasetError

PARTS = ("meta", "meta.partial", "data", "videos")  # of a data set, in the order of removal


def make_room(path: Path, overwrite: bool) -> None:
    """Make ``path`` a folder without a data set; a folder that holds anything else is never touched."""
    if path.exists() and not path.is_dir():
        raise DatasetError("is a file, not a folder", path, remedy="name another folder")
    if path.is_dir() and any(path.iterdir()):
        ours = (path / "meta/info.json").is_file() or all(entry.name in PARTS for entry in path.iterdir())
        if not overwrite or not ours:
            remedy = "name another folder" + (", or pass overwrite=True to replace the data set" if ours else "")
            raise DatasetError("folder exists and is not empty", path, remedy=remedy)
        for part in PARTS:  # meta first: a set half removed must not look whole
            if (path / part).exists():
                shutil.rmtree(path / part)
    path.mkdir(parents=True, exist_ok=True)


def write_json(path: Path, content: Any) -> None:
    replace(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    replace(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, "utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the system or FFmpeg says of a full or locked disk becomes a DatasetError that names ``folder``."""
    try:
        yield
    except DatasetError:
        raise
    except (OSError, av.FFmpegError) as error:
        raise DatasetError(
            f"cannot be written ({error.strerror or error})",
            getattr(error, "filename", None) or folder,
            remedy="make room, or name a folder where you may write; the episodes added before are kept",
        ) from error
