"""An episode while it is being recorded: streams become rows as live nodes pair them, frames become films."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core.timing import SECOND, RateLimit, StampBuffer
from .video import encode
from .writing import writing

GAP = 1.5  # periods between two ticks from which on something is missing


class Stream(StampBuffer[Any]):
    """The last samples of a topic by their stamps (ns), ``most`` of them at most, in whatever order they come."""

    def __init__(self, tolerance: float, default: np.ndarray | None = None, most: int = 20_000) -> None:
        """``tolerance`` (s): how old a sample may be. A row that lacks one has the ``default``, or is left out."""
        super().__init__(most)
        self._tolerance, self._default = tolerance * SECOND, default

    def pick(self, tick: int) -> Any:
        """The item that belongs to a tick (ns), or the default, or None."""
        item = self.at(tick, self._tolerance)
        return self._default if item is None else item

    def reached(self, tick: int) -> bool:
        """Whether nothing more can come for the tick, as far as samples come in order; always if it has a default."""
        return self._default is not None or (bool(self._stamps) and self._stamps[-1] >= tick)


@dataclass(frozen=True)
class FilmSettings:
    """How films are encoded, and how many bytes of frames may wait for it."""

    fps: float
    crf: int = 23
    gop: int = 40
    lossless: bool = False
    preset: str = "veryfast"
    room: int = 256 << 20


class Film:
    """A film that is encoded while it is recorded, in a thread of its own."""

    def __init__(self, path: Path, settings: FilmSettings, shape: tuple[int, ...]) -> None:
        self.path, self.shape, self.size = path, shape, (shape[0], shape[1])
        self.error: BaseException | None = None
        frames = max(2, settings.room // int(np.prod(shape)))
        self._waiting: queue.Queue[np.ndarray | None] = queue.Queue(frames + 1)
        self._frames = frames
        self._thread = threading.Thread(target=self._encode, args=(settings,), name=path.stem, daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether encoding cannot keep up."""
        return self._waiting.qsize() >= self._frames

    def add(self, frame: np.ndarray) -> None:
        """Hand over a frame (H, W, 3) uint8 RGB, which must not be changed any more."""
        self._waiting.put(frame)

    def finish(self) -> None:
        """Wait for the last frame. Raises what encoding has raised."""
        self._waiting.put(None)
        self._thread.join()
        if self.error is not None:
            raise self.error

    def discard(self) -> None:
        """End it and remove the file."""
        self._waiting.put(None)
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def _encode(self, s: FilmSettings) -> None:
        try:
            with writing(self.path.parent):
                encode(self.path, self._frames_in_order(), s.fps, s.crf, s.gop, s.lossless, s.preset)
        except BaseException as error:  # a full disk, most likely: raised by finish()
            self.error = error
            for _ in self._frames_in_order():  # whoever adds must not wait for ever
                pass

    def _frames_in_order(self) -> Iterator[np.ndarray]:
        while (frame := self._waiting.get()) is not None:
            yield frame


@dataclass
class Take:
    """One episode in progress. Ticks come from the first camera's frames, rows follow ``settle`` s later.

    A row waits up to ``patience`` s for streams that it may still need something of: a sample that the middleware lost
    comes up to a second late, and with it all that were published after it.

    ``streams`` are shared by the takes of a session: those named "camera/…" hold frames, the others vectors.
    """

    task: str
    folder: Path  # where the films lie until they are part of a data set
    settings: FilmSettings
    streams: Mapping[str, Stream]
    settle: float = 0.1
    patience: float = 2.0
    success: bool | None = None
    ended: float | None = None  # steady (s), from when on no tick is taken
    left_out: int = 0  # rows that lacked something, after the first whole one
    gaps: int = 0  # times when the ticks themselves paused
    overrun: int = 0  # rows left out because encoding did not keep up
    films: dict[str, Film] = field(default_factory=dict)
    columns: dict[str, list[np.ndarray]] = field(default_factory=dict)
    lacking: set[str] = field(default_factory=set)  # streams that the last tick had nothing of
    _ticks: deque[tuple[int, float]] = field(default_factory=deque)  # with the steady time when it came
    _last: int = -1
    _limit: RateLimit = field(init=False)

    def __post_init__(self) -> None:
        self._limit = RateLimit(self.settings.fps)

    def __len__(self) -> int:
        """Rows so far."""
        return len(self.columns.get("observation.state", ()))

    @property
    def about(self) -> dict[str, int]:
        """What the data set says of the episode: whether it was a success, if that is known, and what went wrong."""
        faults = {"left_out": self.left_out, "gaps": self.gaps, "overrun": self.overrun}
        about = {} if self.success is None else {"success": self.success}
        return about | {fault: times for fault, times in faults.items() if times}

    @property
    def bytes(self) -> int:
        """Size of its films so far."""
        return sum(film.path.stat().st_size for film in self.films.values() if film.path.exists())

    def tick(self, stamp: int, now: float) -> bool:
        """A row is due at ``stamp`` (ns), as of ``now`` (steady, s); False if it is too early for one, or goes back."""
        if self.ended is not None or stamp <= self._last or not self._limit.allows(stamp):
            return False
        if self._last >= 0:
            self.gaps += stamp - self._last > GAP * SECOND / self.settings.fps
        self._last = stamp
        self._ticks.append((stamp, now))
        return True

    @property
    def oldest(self) -> int:
        """The stamp (ns) from which on samples are still needed; the last tick's if none waits."""
        return self._ticks[0][0] if self._ticks else self._last

    def advance(self, now: float) -> int:
        """Make rows of the ticks that are ripe; returns how many were made.

        Raises what encoding has raised, such as DatasetError where the disk is full.
        """
        for film in self.films.values():
            if film.error is not None:
                raise film.error
        ready = []
        while self._ticks and self._ripe(*self._ticks[0], now):
            ready.append(self._ticks.popleft()[0])
        return sum(self._add({name: stream.pick(tick) for name, stream in self.streams.items()}) for tick in ready)

    def _ripe(self, tick: int, came: float, now: float) -> bool:
        whole = all(stream.reached(tick) for stream in self.streams.values())
        return came + self.settle <= now and (whole or came + self.patience <= now)

    def over(self, now: float) -> bool:
        """Whether it has ended, and every row is made."""
        return self.ended is not None and not self._ticks and now >= self.ended + self.settle

    def finish(self) -> tuple[dict[str, np.ndarray], dict[str, Path]]:
        """The columns (T, D) float64 and the films. Raises what encoding has raised."""
        for film in self.films.values():
            film.finish()
        columns = {name: np.stack(rows) for name, rows in self.columns.items()}
        return columns, {name: film.path for name, film in self.films.items()}

    def discard(self) -> None:
        self._ticks.clear()
        for film in self.films.values():
            film.discard()

    def _add(self, row: Mapping[str, Any]) -> bool:
        self.lacking = {name for name, item in row.items() if item is None}
        frames = dict(_cameras(row))
        self.lacking |= {c for c, frame in frames.items() if c in self.films and self.films[c].shape != frame.shape}
        if self.lacking:
            self.left_out += len(self) > 0
            return False
        for camera, frame in frames.items():
            if camera not in self.films:
                path = self.folder / f"{camera}.mp4"
                self.films[camera] = Film(path, self.settings, frame.shape)
        if any(film.full for film in self.films.values()):
            self.overrun += 1
            return False
        for camera, frame in frames.items():
            self.films[camera].add(frame)
        for name, item in row.items():
            if not name.startswith("camera/"):
                self.columns.setdefault(name, []).append(item)
        return True


def _cameras(row: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for name, item in row.items():
        if name.startswith("camera/") and item is not None:
            yield name.removeprefix("camera/"), item
