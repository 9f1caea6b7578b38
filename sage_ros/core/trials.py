"""Closed-loop episodes as an observer sees them: where things were, what was commanded, and whether it was done."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sage_ros.core.samples import Album

KEPT = 3  # trials in full, the last ones
MOMENTS = 4000  # of a trial: more than three minutes at 20 Hz
LASTS = 0.5  # s that success must last to count


@dataclass(frozen=True)
class TrialResult:
    """What became of one trial. ``placed`` is the time from its start (s) at which success began; None: it did not."""

    seed: int
    seconds: float  # watched
    placed: float | None
    highest: float  # m, of the object's centre


@dataclass(frozen=True)
class Moment:
    """One tick of a trial."""

    time: float  # s since its start
    success: bool
    height: float  # m, of the object's centre
    distance: float  # m, between the centres of object and goal, in the plane
    measured: Mapping[str, float]  # joint positions, rad, by name
    command: Mapping[str, float]  # the set point last sent; empty: none yet


class Trial:
    """One episode of the world, from its reset on."""

    def __init__(self, seed: int) -> None:
        self.seed, self.album, self.frames = seed, Album(), 0
        self.moments: deque[Moment] = deque(maxlen=MOMENTS)
        self._highest, self._success_since = 0.0, None  # type: tuple[float, float | None]

    def add(self, moment: Moment) -> None:
        self.moments.append(moment)
        self._highest = max(self._highest, moment.height)
        if not moment.success:
            self._success_since = None
        elif self._success_since is None:
            self._success_since = moment.time

    @property
    def seconds(self) -> float:
        return self.moments[-1].time if self.moments else 0.0

    @property
    def placed(self) -> float | None:
        """When success began (s), once it has lasted."""
        since = self._success_since
        return since if since is not None and self.seconds - since >= LASTS else None

    @property
    def result(self) -> TrialResult:
        return TrialResult(self.seed, self.seconds, self.placed, self._highest)


class Trials:
    """All trials of a session; a time that goes back, or another seed, begins a new one."""

    def __init__(self) -> None:
        self.kept: deque[Trial] = deque(maxlen=KEPT)
        self.results: deque[TrialResult] = deque(maxlen=1000)  # of those that are over

    @property
    def current(self) -> Trial | None:
        return self.kept[-1] if self.kept else None

    def add(self, seed: int, moment: Moment) -> None:
        current = self.current
        if current is None or current.seed != seed or moment.time < current.seconds:
            if current is not None:
                self.results.append(current.result)
            self.kept.append(Trial(seed))
        self.kept[-1].add(moment)

    def skip(self) -> None:
        """A frame of which no picture is wanted."""
        if self.kept:
            self.kept[-1].frames += 1

    def picture(self, at: int, stamp: int, image: np.ndarray) -> None:
        """A small frame (H, W, 3) uint8 of the trial under way."""
        trial = self.current
        if trial is not None:
            if trial.album.wants(trial.frames):
                trial.album.add(at, stamp, image)
            trial.frames += 1

    def all(self) -> list[TrialResult]:
        return [*self.results, *([self.kept[-1].result] if self.kept else [])]
