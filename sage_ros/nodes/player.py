"""The thread that plays a playlist row by row, and the commands that a bag player takes meanwhile."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from sage_ros.core.options import option
from sage_ros.core.timing import Stopwatch
from sage_ros.episodes.playback import Playback, Playlist
from sage_ros.nodes.lifecycle import EXPECTED_ERRORS

PREPARATION = 0.003  # s before a row is due at which its messages are built, at least


@dataclass(frozen=True)
class Span:
    """Which part of the playlist is played, as rosbag2's player takes it."""

    start_offset: float = option(0.0, "where on the playlist to begin (s)", low=0.0, high=1e6)
    playback_duration: float = option(-1.0, "how much of it to play (s); negative: all", low=-1.0, high=1e6)
    playback_until: float = option(-1.0, "where on it to end (s); negative: nowhere", low=-1.0, high=1e6)


class Stage(Protocol):
    """What is played, and where it goes. Everything here is called in the player's thread."""

    fps: float

    def playlist(self, lap: int) -> Playlist:
        """What is played in this lap, the first being 0."""

    def ready(self) -> None:
        """Before anything is played: wait for those who should hear it."""

    def enter(self, playlist: Playlist, place: int, row: int) -> bool:
        """The episode at this place goes on with this row: load and announce it. False: it is to be left out."""

    def prepare(self, place: int, row: int) -> Any:
        """Build the messages of a row that is due soon."""

    def publish(self, prepared: Any, time: float) -> None:
        """Publish them; ``time`` (s) is the row's on the playlist."""

    def leave(self) -> None:
        """The episode that was entered is over, or left for another row."""

    def close(self, how: str, error: str = "") -> None:
        """Nothing more is played: "finished", "stopped", or "failed" because of ``error``."""


@dataclass
class _Burst:
    left: float  # rows
    done: Callable[[int], None]
    played: int = 0


class Player:
    """Plays what ``stage`` has. Commands may come from any thread, and mean what they mean to rosbag2's player."""

    def __init__(self, stage: Stage, rate: float = 1.0, paused: bool = False) -> None:
        self._stage, self._rate, self._paused = stage, rate, paused
        self.loop = False
        self.lead = 0.0  # s between an episode's announcement and its first row
        self.delay = 0.0  # s before each lap
        self.lateness, self.preparing = Stopwatch(), Stopwatch()
        self._late = self._standstills = 0  # in the laps before this one
        self._wake = threading.Condition()  # guards the playback and everything below
        self._playback: Playback | None = None
        self._thread: threading.Thread | None = None
        self._playing, self._quit, self._sought = False, False, False
        self._burst: _Burst | None = None

    # What it does

    @property
    def rate(self) -> float:
        return self._rate

    @property
    def paused(self) -> bool:
        return self._paused

    @property
    def playing(self) -> bool:
        """Whether a playlist is being played, paused or not."""
        return self._playing

    @property
    def row(self) -> int:
        """The next row of the playlist."""
        return self._playback.row if self._playback is not None else 0

    @property
    def rows(self) -> int:
        return self._playback.rows if self._playback is not None else 0

    @property
    def rows_late(self) -> int:
        return self._late + (self._playback.late if self._playback is not None else 0)

    @property
    def standstills(self) -> int:
        return self._standstills + (self._playback.standstills if self._playback is not None else 0)

    @property
    def time(self) -> float:
        """Where on the playlist (s)."""
        with self._wake:
            return self._playback.time(time.monotonic()) if self._playback is not None else 0.0

    # Commands

    def play(self, span: Span) -> bool:
        """Begin; False if it is at it already."""
        with self._wake:
            if self._playing:
                return False
            self._playing, self._quit, self._sought = True, False, False
            last = self._thread  # which may still be telling of its end
            self._thread = threading.Thread(target=self._run, args=(span, last), name="player", daemon=True)
            self._thread.start()
            return True

    def stop(self) -> None:
        """End, and wait for the end. Idempotent."""
        with self._wake:
            self._quit = True
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

    def pause(self) -> None:
        with self._wake:
            self._paused = True
            if self._playback is not None:
                self._playback.pause(time.monotonic())

    def resume(self) -> None:
        with self._wake:
            self._paused = False
            self._end_burst()
            if self._playback is not None:
                self._playback.resume(time.monotonic())
            self._wake.notify_all()

    def toggle_paused(self) -> None:
        if self._paused:
            self.resume()
        else:
            self.pause()

    def set_rate(self, rate: float) -> None:
        """Raises ValueError unless rate > 0."""
        with self._wake:
            if self._playback is not None:
                self._playback.set_rate(rate, time.monotonic())
            self._rate = rate
            self._wake.notify_all()

    def seek(self, to: float) -> None:
        """Go to ``to`` s on the playlist. Raises ValueError after its last row, or if nothing is played."""
        with self._wake:
            if not self._playing or self._playback is None:
                raise ValueError("nothing is being played: call play first")
            self._playback.seek(to, time.monotonic())
            self._sought = True
            self._wake.notify_all()

    def burst(self, rows: int, done: Callable[[int], None]) -> None:
        """While paused, play this many rows at once, 0: all; then call ``done`` with how many they were."""
        with self._wake:
            if self._playing and self._paused and self._burst is None:
                self._burst = _Burst(rows or math.inf, done)
                self._wake.notify_all()
                return
        done(0)

    def wait(self, seconds: float) -> bool:
        """For a stage that waits: False if it should not wait any longer, as it is told to stop or go elsewhere."""
        with self._wake:
            return not self._wake.wait_for(lambda: self._quit or self._sought, seconds)

    # Playing, in a thread of its own: it sleeps until a row is due

    def _run(self, span: Span, last: threading.Thread | None) -> None:
        how, error = "stopped", ""
        if last is not None:
            last.join()
        try:
            self._stage.ready()
            lap = 0
            while not self._quit:
                self._pass(self.delay)
                self._play_lap(lap, span)
                lap += 1
                if not self._quit and not self.loop:
                    how = "finished"
                    break
        except EXPECTED_ERRORS as problem:  # a bad episode: say which and why, play nothing in its place
            how, error = "failed", str(problem)
        finally:
            with self._wake:
                self._playing = False
                self._end_burst()
            self._stage.close(how, error)

    def _play_lap(self, lap: int, span: Span) -> None:
        if self._quit:
            return
        playlist, stage = self._stage.playlist(lap), self._stage
        with self._wake:
            if self._playback is not None:
                self._late += self._playback.late
                self._standstills += self._playback.standstills
            playback = Playback(playlist.rows, stage.fps, self._rate)
            playback.seek(span.start_offset, time.monotonic())
            playback.stop_after(span.playback_duration, span.playback_until)
            self._playback, self._sought = playback, False
            if not self._paused:
                playback.resume(time.monotonic())
        inside = -1
        while not self._quit:
            with self._wake:
                sought, self._sought = self._sought, False
                place, row = playlist.locate(playback.row) if not playback.finished else (-1, 0)
            if place != inside or sought:
                if inside >= 0 and not sought and not self._wait_until(playback.target):  # the last row has its time
                    continue
                if inside >= 0:
                    stage.leave()
                    inside = -1
                if place < 0:
                    if self._stay_at_end():
                        continue
                    return
                if not stage.enter(playlist, place, row):
                    with self._wake:
                        if not self._sought:
                            playback.skip(playlist.start(place + 1), time.monotonic())
                    continue
                inside = place
                with self._wake:
                    playback.not_before(time.monotonic() + (0.0 if sought else self.lead))
            self._play_row(playback, place, row)
        if inside >= 0:
            stage.leave()

    def _play_row(self, playback: Playback, place: int, row: int) -> None:
        # A row is prepared just before it is due: right after the row before, the nodes want the processor.
        early = max(PREPARATION, 2.0 * max(list(self.preparing.spans)[-8:], default=0.0))
        if not self._wait_until(lambda: playback.due() - early):
            return
        with self.preparing.span():
            prepared = self._stage.prepare(place, row)
        with self._wake:
            if not self._wait_until(playback.due):
                return
            at = playback.advance(time.monotonic())
        self._stage.publish(prepared, at / playback.fps)
        self.lateness.add(max(playback.lateness, 0.0))
        with self._wake:
            if self._burst is not None:
                self._burst.played += 1
                self._burst.left -= 1
                if self._burst.left <= 0:
                    self._end_burst()

    def _wait_until(self, due: Callable[[], float]) -> bool:
        """Wait until it is due, or a burst asks for more; False if the player is told to stop or to go elsewhere."""
        with self._wake:
            while not (self._quit or self._sought):
                left = due() - time.monotonic()
                if left <= 0 or self._burst is not None:
                    return True
                self._wake.wait(min(left, 3600.0))
        return False

    def _stay_at_end(self) -> bool:
        """Paused at the end, it stays there: True if it is to go on elsewhere, False once nothing is left to do."""
        with self._wake:
            self._end_burst()
            while self._paused and not (self._quit or self._sought):
                self._wake.wait()
                self._end_burst()  # of no rows
            return self._sought and not self._quit

    def _pass(self, seconds: float) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._quit, seconds)

    def _end_burst(self) -> None:
        """With the lock held."""
        if self._burst is not None:
            burst, self._burst = self._burst, None
            burst.done(burst.played)
