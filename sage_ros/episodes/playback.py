"""When each row of an episode is due: a player's clock that can be paused, sped up and sought, without drift."""

from __future__ import annotations


class Playback:
    """An absolute schedule over ``rows`` rows at ``fps``: row r is due at ``origin + r / (fps * rate)``.

    All times are seconds of one clock that only goes forward, handed in by the caller. Pausing, changing the rate
    and seeking move the origin; waiting late never does, so errors do not add up.
    """

    def __init__(self, rows: int, fps: float, rate: float = 1.0) -> None:
        if rows < 1 or not fps > 0:
            raise ValueError(f"an episode needs rows and a frame rate, got {rows} rows at {fps} fps")
        self.rows, self.fps = rows, fps
        self.row = 0  # the next row to be played
        self._rate = _checked(rate)
        self._origin: float | None = None  # None while paused

    @property
    def rate(self) -> float:
        return self._rate

    @property
    def paused(self) -> bool:
        return self._origin is None

    @property
    def finished(self) -> bool:
        return self.row >= self.rows

    def resume(self, now: float) -> None:
        """Go on: the next row is due at once. Idempotent."""
        if self.paused:
            self._origin = now - self.row / (self.fps * self._rate)

    def pause(self) -> None:
        """Stop the clock. Idempotent."""
        self._origin = None

    def set_rate(self, rate: float, now: float) -> None:
        """Change speed, keeping the time already waited for the next row. Raises ValueError unless rate > 0."""
        rate = _checked(rate)
        if not self.paused:
            waiting = (self.due() - now) * self._rate / rate
            self._origin = now + waiting - self.row / (self.fps * rate)
        self._rate = rate

    def seek(self, row: int, now: float) -> None:
        """Make ``row`` the next one. Raises ValueError outside the episode."""
        if not 0 <= row < self.rows:
            raise ValueError(f"row {row} is outside the episode's rows 0 to {self.rows - 1}")
        was_paused, self.row = self.paused, row
        self.pause()
        if not was_paused:
            self.resume(now)

    def due(self) -> float:
        """When the next row is due; infinity while paused or after the last row."""
        if self._origin is None or self.finished:
            return float("inf")
        return self._origin + self.row / (self.fps * self._rate)

    def advance(self) -> int:
        """Take the next row. Raises IndexError after the last."""
        if self.finished:
            raise IndexError("the episode is over")
        self.row += 1
        return self.row - 1


def _checked(rate: float) -> float:
    if not 0 < rate < float("inf"):
        raise ValueError(f"rate must be a positive number, got {rate}")
    return rate
