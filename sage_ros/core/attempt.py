"""One attempt at a task: what happens to it, and how it ends."""

from __future__ import annotations

from enum import Enum


class Outcome(Enum):
    """How an attempt ended; the value is what is published."""

    SUCCEEDED = "succeeded"  # whoever judges says so
    TIMED_OUT = "timed_out"  # its time is over, and nobody said that it succeeded
    CANCELLED = "cancelled"  # somebody did not want it any more
    STOPPED = "stopped"  # the robot may not move any more


class Attempt:
    """A task under way until ``outcome`` is there; the first end counts. Times are in s, of whichever clock."""

    def __init__(self, task: str, longest: float, began: float) -> None:
        self.task, self.longest = task, longest
        self.outcome: Outcome | None = None
        self.reason = ""
        self.elapsed = 0.0
        self.set_points = 0
        self._began = began
        self._enabled = False  # the safety filter has said so

    def end(self, outcome: Outcome, reason: str = "") -> None:
        if self.outcome is None:
            self.outcome, self.reason = outcome, reason

    def heed(self, mode: str, reason: str) -> None:
        """What the safety filter says that it does (DRY_RUN, RUNNING, HOLDING or STOPPED), and why."""
        if mode == "STOPPED":
            self.end(Outcome.STOPPED, reason)
        elif mode == "DRY_RUN" and self._enabled:
            self.end(Outcome.STOPPED, "the safety filter was disabled")
        self._enabled = self._enabled or mode in ("RUNNING", "HOLDING")

    def pass_time(self, now: float) -> None:
        if self.outcome is None:
            self.elapsed = now - self._began
            if self.elapsed >= self.longest:
                self.end(Outcome.TIMED_OUT, f"not done within {self.longest:g} s")
