"""Takes become episodes of a data set, in a thread of its own, so that recording never waits for the disk."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..core.joints import JointLayout
from .dataset import EpisodeDataset
from .errors import DatasetError
from .take import FilmSettings, Stream, Take
from .writer import EpisodeWriter
from .writing import writing

STATE, ACTION = "observation.state", "action"


class Archive:
    """The data set at ``path``, new or gone on with. What is begun, opened, saved and labelled is so in that order.

    ``joints`` and ``intrinsics`` are for whoever records to fill until the first row is there; a data set that is
    there, or the one to be ``like``, lays down joints and robot type. While a take lasts its films lie beside the data
    set, in ``films``. Futures fail with DatasetError.
    """

    def __init__(
        self, path: Path | str, settings: FilmSettings, robot_type: str, like: str = "",
        extras: Mapping[str, Sequence[str]] | None = None, min_free: int = 0,
    ) -> None:  # fmt: skip
        """``extras`` as for EpisodeWriter, ``min_free`` in MB. Raises DatasetError if what is there is no such set."""
        self.path = Path(path).expanduser().resolve()
        self.films = self.path.with_name(f".{self.path.name}.recording")
        self.min_free, self.saved = min_free, 0
        self.joints: dict[str, JointLayout] = {}
        self.intrinsics: dict[str, Mapping[str, Any]] = {}
        self._settings, self._robot_type, self._extras = settings, robot_type, extras
        self._there: EpisodeDataset | None = None
        if (self.path / "meta/info.json").is_file() or like:
            model = EpisodeDataset(self.path if (self.path / "meta/info.json").is_file() else like, video=False)
            self.joints |= {STATE: model.state_joints, ACTION: model.action_joints}
            self._robot_type = model.robot_type
            if model.path == self.path:
                self._there = model
        if self._there is not None and self._there.fps != settings.fps:
            what = f"has {self._there.fps:g} rows per second, not {settings.fps:g}"
            raise DatasetError(what, self.path, remedy="record at its rate, or into another folder")
        self._writer: EpisodeWriter | None = None
        self._saver = ThreadPoolExecutor(1, "saver")
        self._lock, self._begun = -1, 0

    def begin(self, task: str, streams: Mapping[str, Stream], settle: float, patience: float) -> Take:
        """A new take. Raises DatasetError where films cannot be written, or another recorder is at work."""
        with writing(self.films):
            if self._lock < 0:
                self._claim()
            folder = self.films / str(self._begun)
            folder.mkdir(parents=True)
        self._begun += 1
        return Take(task, folder, self._settings, streams, settle, patience)

    def open(self, take: Take) -> Future[None]:
        """Open the data set for a take that has a row: a set that is another one is found out now, not at the end."""
        cameras = {camera: film.size for camera, film in take.films.items()}
        return self._saver.submit(self._open, cameras)

    def save(self, take: Take) -> Future[int]:
        """The index of the episode that the take becomes; its films are gone then, whatever happens."""
        return self._saver.submit(self._save, take)

    def label(self, success: bool) -> Future[int]:
        """Label the last episode of this session, once it is saved; its index. Raises LookupError if there is none."""
        return self._saver.submit(self._label, success)

    def close(self) -> None:
        """Wait for what is being saved, and write the statistics of the whole. It may be gone on with."""
        try:
            self._saver.submit(self._close).result()
        finally:
            if self._lock >= 0:
                shutil.rmtree(self.films, ignore_errors=True)
                os.close(self._lock)
                self._lock = -1

    def end(self) -> None:
        """Nothing comes after this."""
        self._saver.shutdown()

    def lacks_room(self, take: Take | None = None) -> str:
        """What to say if the disk has less room than ``min_free`` and a copy of the take's films need; else ""."""
        parent = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
        free = shutil.disk_usage(parent).free >> 20
        least = self.min_free + ((take.bytes if take is not None else 0) >> 20)
        return f"the disk is nearly full: {free} MB are left of {parent}, less than {least} MB" if free < least else ""

    def _claim(self) -> None:
        """Be the only one, and remove the films of a take that a killed process had in progress."""
        self.films.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.films, os.O_RDONLY)  # the lock ends with the process, however that ends
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = -1
            remedy = "end that one, or name another folder"
            raise DatasetError("another recorder writes into this data set", self.path, remedy=remedy) from None
        for left in self.films.iterdir():
            shutil.rmtree(left)

    # In the saver's thread

    def _open(self, cameras: Mapping[str, tuple[int, int]]) -> None:
        if self._writer is not None:
            return
        known: Mapping[str, Mapping[str, Any]] = self.intrinsics
        if self._there is not None:  # what it says of its cameras stays
            there = {camera: self._there.camera_info(camera) for camera in self._there.cameras}
            known = {camera: info for camera, info in there.items() if info is not None}
        self._writer = EpisodeWriter(
            self.path, self._settings.fps, self._robot_type, self.joints[STATE], cameras, self.joints[ACTION],
            append=True, lossless=self._settings.lossless, intrinsics=known, extras=self._extras,
        )  # fmt: skip

    def _save(self, take: Take) -> int:
        try:
            self._open({camera: film.size for camera, film in take.films.items()})
            assert self._writer is not None
            columns, films = take.finish()
            state, action = columns.pop(STATE), columns.pop(ACTION)
            index = self._writer.add(state, action, take.task, films, columns, take.about)
        finally:
            take.discard()  # the films have been copied, or are of no use
        self.saved += 1
        return index

    def _label(self, success: bool) -> int:
        if self._writer is None or not self.saved:
            raise LookupError("no episode of this session to label")
        index = len(self._writer) - 1
        self._writer.label(index, success=success)
        return index

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None and len(writer):
            writer.close()
