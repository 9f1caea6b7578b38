"""When each row of a playlist is due: a bag player's clock, which can be paused, sped up and sought, without drift."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

STANDSTILL = 1.0  # s; a player that was kept from its work for longer goes on where it was, as after a pause
LATE = 0.1  # share of a row's period after which the row counts as late


class Playback:
    """An absolute schedule over ``rows`` rows at ``fps``: row r is at r / fps on the playlist's time axis.

    All other times are seconds of one steady clock, handed in by the caller. Playing, row r is due at
    ``anchor + (r / fps - time at the anchor) / rate``; only pausing, seeking, a new rate and a standstill move the
    anchor, so that waking up late never adds up. Rows that are late are counted, and follow each other at no less than
    half a period until they have caught up: they are never published in a bunch. It begins paused at time 0.
    """

    def __init__(self, rows: int, fps: float, rate: float = 1.0) -> None:
        if rows < 1 or not fps > 0:
            raise ValueError(f"an episode needs rows and a frame rate, got {rows} rows at {fps} fps")
        self.rows, self.fps = rows, fps
        self.row = 0  # the next row to be played
        self.end = rows  # the row before which playing ends
        self.late = self.standstills = 0
        self.lateness = 0.0  # s, of the last row
        self._rate = _checked(rate)
        self._time = 0.0  # on the playlist, at the anchor
        self._anchor: float | None = None  # None while paused
        self._free = -math.inf  # when the next row may be out at the earliest

    @property
    def rate(self) -> float:
        return self._rate

    @property
    def paused(self) -> bool:
        return self._anchor is None

    @property
    def finished(self) -> bool:
        return self.row >= self.end

    def time(self, now: float) -> float:
        """Where on the playlist (s) the player is. It waits for the next row, however late: time never goes back."""
        running = 0.0 if self._anchor is None else (now - self._anchor) * self._rate
        return min(self._time + running, max(self._time, min(self.row, self.end) / self.fps))

    def resume(self, now: float) -> None:
        """Go on where it was paused. Idempotent."""
        if self.paused:
            self._anchor = now

    def pause(self, now: float) -> None:
        """Stop the clock. Idempotent."""
        self._time, self._anchor = self.time(now), None

    def set_rate(self, rate: float, now: float) -> None:
        """Change speed from now on. Raises ValueError unless rate > 0."""
        rate = _checked(rate)
        self._time = self.time(now)
        if not self.paused:
            self._anchor = now
        self._rate = rate

    def seek(self, time: float, now: float) -> None:
        """Go to ``time`` (s) on the playlist: the next row is the first one at or after it.

        A time before the start is the start. Raises ValueError after the last row, and then nothing changes.
        """
        row = math.ceil(max(time, 0.0) * self.fps - 1e-6) if math.isfinite(time) else self.rows
        if row >= self.rows:
            raise ValueError(f"{time:g} s is after the last row, which is at {(self.rows - 1) / self.fps:g} s")
        self._go(row, max(time, 0.0), now)

    def skip(self, row: int, now: float) -> None:
        """Go on with ``row``, which may be the end."""
        self._go(row, row / self.fps, now)

    def _go(self, row: int, time: float, now: float) -> None:
        self.row, self._time, self._free = row, time, -math.inf
        if not self.paused:
            self._anchor = now

    def stop_after(self, duration: float, until: float = -1.0) -> None:
        """End ``duration`` s from here, or at ``until`` s of the playlist, the later of the two; negative: neither.

        As rosbag2 has it: rows at the very end are still played, and a duration of 0 plays nothing.
        """
        if duration < 0 and until < 0:
            self.end = self.rows
            return
        last = max(self._time + duration if duration > 0 else 0.0, until)
        self.end = min(self.rows, math.floor(last * self.fps + 1e-6) + 1) if last > 0 else self.row

    def not_before(self, when: float) -> None:
        """Let the schedule stand still until ``when``, should the next row be due sooner."""
        if self._anchor is not None:
            self._anchor += max(0.0, when - self.target())

    def target(self) -> float:
        """When the next row is due by the schedule, or the last one's period is over; infinity while paused."""
        if self._anchor is None:
            return math.inf
        return self._anchor + (min(self.row, self.end) / self.fps - self._time) / self._rate

    def due(self) -> float:
        """When the next row goes out: as scheduled, or somewhat later where others are late."""
        return math.inf if self.finished else max(self.target(), self._free)

    def advance(self, now: float) -> int:
        """Take the next row, which goes out ``now``. While paused, time jumps to it. Raises IndexError at the end."""
        if self.finished:
            raise IndexError("there is no row left to play")
        period = 1.0 / (self.fps * self._rate)
        if self._anchor is None:
            self._time, self.lateness = self.row / self.fps, 0.0
        else:
            self.lateness = now - self.target()
            self.late += self.lateness > LATE * period
            if self.lateness > STANDSTILL:
                self.standstills += 1
                self._anchor += self.lateness
            self._free = now + period / 2
        self.row += 1
        return self.row - 1


class Playlist:
    """Episodes one after the other, without gaps: ``episodes`` are named as the caller likes, ``lengths`` in rows."""

    def __init__(self, episodes: Sequence[int], lengths: Sequence[int]) -> None:
        if not episodes or min(lengths) < 1:
            raise ValueError(f"nothing to play: episodes {list(episodes)} of {list(lengths)} rows")
        self.episodes, self.lengths = tuple(episodes), tuple(lengths)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])

    @property
    def rows(self) -> int:
        return int(self._starts[-1])

    def start(self, place: int) -> int:
        """The first row of the episode at this place; of the place after the last one the end."""
        return int(self._starts[place])

    def locate(self, row: int) -> tuple[int, int]:
        """Which place in the list a row has, and which row of that episode it is."""
        place = int(np.searchsorted(self._starts, row, side="right")) - 1
        return place, row - int(self._starts[place])


def choose(wanted: str, indices: Sequence[int]) -> list[int]:
    """The episodes that a text such as "all", "2,0,1" or "0-9,12" asks for, in its order, out of ``indices``.

    Raises ValueError naming what there is.
    """
    if wanted.strip() == "all":
        return list(indices)
    chosen: list[int] = []
    try:
        for part in wanted.strip().strip(",").split(","):
            first, _, last = part.partition("-")
            step = range(int(first), int(last or first) + 1)
            chosen += [index for index in indices if index in step] if last else [int(first)]
    except ValueError:
        chosen = []
    if not chosen or not set(chosen) <= set(indices):
        raise ValueError(f"episodes '{wanted}': give 'all', indices or ranges among {_ranges(indices)}")
    return chosen


def shuffled(episodes: Sequence[int], seed: int, lap: int) -> list[int]:
    """The episodes in an order of chance that ``seed`` and the number of the lap decide."""
    return [episodes[k] for k in np.random.default_rng([seed, lap]).permutation(len(episodes))]


def _ranges(indices: Sequence[int]) -> str:
    return f"{min(indices)} to {max(indices)}" if len(indices) > 8 else ", ".join(map(str, indices))


def _checked(rate: float) -> float:
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be a positive number, got {rate}")
    return rate
