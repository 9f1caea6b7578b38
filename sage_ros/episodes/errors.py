"""The one error of a bad data set."""

from __future__ import annotations

from pathlib import Path


class DatasetError(ValueError):
    """A data set that cannot be read or written: the message names the file, the row (counted from 0) and the remedy.

    ``file``, ``row`` and ``remedy`` hold the same as attributes (None, None and "" where there is none).
    """

    def __init__(self, what: str, file: Path | str | None = None, row: int | None = None, remedy: str = "") -> None:
        self.file, self.row, self.remedy = file, row, remedy
        parts = [str(part) for part in (file, None if row is None else f"row {row}", what) if part is not None]
        super().__init__(": ".join(parts) + (f". Remedy: {remedy}" if remedy else ""))
