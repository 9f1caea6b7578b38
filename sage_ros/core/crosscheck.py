"""Which source is at fault: camera, joints or the rhythm of frames, told by witnesses that should agree.

==========  =======================================================  ======================================
statistic   what it is                                               who is blamed
==========  =======================================================  ======================================
appearance  token map against what the joints let expect             camera; nobody if the joints are
texture     how much lies outside of the usual subspace, both ways   camera
frozen      the joints' movement that the picture does not show      camera
view        joints against where the token map sees them             camera; nobody if the joints are
commands    joints against where the commands have led them          joints
rhythm      frames that did not come, by stamp                       rhythm
==========  =======================================================  ======================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sage_ros.core.expectation import DELAYS, Expectation, Watched, distance
from sage_ros.core.sources import AdaptiveLimit, Reputation, Sustained, bound

STATISTICS = ("appearance", "texture", "frozen", "view", "commands", "rhythm")
SOURCES = ("camera", "joints", "rhythm")
STEPS = (1, 4)  # frames back with which a picture that may be frozen is compared
UNSEEN = 3e-5  # of the components' variance: movement that need not be seen
FAINT = 1e-7  # of the same: a picture that changes as little is the same picture
REMEMBERED = 0.9  # per frame, of what is special about this scene
RHYTHM = (2.5, 0.2, 1.0)  # frames missed that surprise at once; usual share of it; sum that surprises
LITTLE = 0.3  # of a sum: an episode that stays below tells no more of the others than this
MARGIN = 2.0  # on sums, whose bound is the least certain: they find what lasts, soon enough
INTERVALS = 20  # frames from which the camera's own rate is told


@dataclass(frozen=True)
class Checks:
    """Maps between the witnesses and, for each of ``STATISTICS``: what one frame stays below, what it brings on
    average in units of that, and what the sum above that average stays below: ``limits`` (6, 3)."""

    expectation: Expectation
    limits: np.ndarray

    @classmethod
    def fit(cls, fitting: Sequence[Watched], unseen: Sequence[Watched], measured: Sequence[int], rate: float) -> Checks:
        """``unseen`` are episodes to set the limits on, which nothing else is fitted to. Raises ValueError."""
        if len(unseen) < 2:
            raise ValueError(f"limits need at least 2 episodes beside those fitted to, not {len(unseen)}")
        checks = cls(Expectation.fit(fitting, measured), np.ones((len(STATISTICS), 3)))
        values = [measure(checks, episode, rate) for episode in unseen]
        limits = []
        for statistic in range(len(STATISTICS) - 1):
            per_episode = [v[:, statistic][np.isfinite(v[:, statistic])] for v in values]
            per_episode = [v for v in per_episode if len(v)]
            if not per_episode:  # no commands were known
                limits.append((1.0, 1.0, 1.0))
                continue
            spike = bound(v.max() for v in per_episode)
            drift = min(bound(v.mean() / spike for v in per_episode), 0.8)
            most = []
            for v in per_episode:
                total = Sustained(drift, 1e9)
                most.append(max(max(total.add(x / spike) for x in v) * 1e9, LITTLE))
            limits.append((spike, drift, max(MARGIN * bound(most), 1.5)))
        return cls(checks.expectation, np.array([*limits, RHYTHM]))

    def arrays(self) -> dict[str, np.ndarray]:
        return {"limits": self.limits, **self.expectation.arrays()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Checks:
        """Inverse of :meth:`arrays`. Raises ValueError."""
        limits = arrays.get("limits")
        if limits is None or limits.shape != (len(STATISTICS), 3) or not (limits > 0).all():
            raise ValueError(f"limits must be positive, one row of 3 for each of {', '.join(STATISTICS)}")
        return cls(Expectation.from_arrays(arrays), limits)


def measure(checks: Checks, episode: Watched, rate: float) -> np.ndarray:
    """The statistics of every row, (T, 6), NaN where they cannot be told."""
    check, found = CrossCheck(checks, rate), []
    for tokens, state, commands in zip(episode.tokens, episode.state, episode.commands, strict=True):
        check.look(tokens, state, commands, 1.0 / rate)
        found.append(check.values.copy())
    return np.array(found)


class CrossCheck:
    """The checks over a stream; memory is constant. For every frame call :meth:`look`, then :meth:`judge`.

    ``values`` are the statistics of the last frame, (6,), NaN where they cannot be told; ``surprise`` and ``trust``
    are those of each source.
    """

    def __init__(self, checks: Checks, rate: float) -> None:
        self.checks, self.rate = checks, rate
        self.reset()

    def reset(self) -> None:
        """Forget the stream, and trust everybody."""
        self.values = np.full(len(STATISTICS), np.nan)
        self.surprise = dict.fromkeys(SOURCES, 0.0)
        self.beyond: tuple[str, ...] = ()  # statistics above their limits in the last frame
        self._sums = [Sustained(drift, limit) for _, drift, limit in self.checks.limits]
        self._reputations = {name: Reputation() for name in SOURCES}
        self._adaptive = [AdaptiveLimit() for _ in STATISTICS]
        self._past: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=max(STEPS) + 1)
        self._intervals: deque[float] = deque(maxlen=INTERVALS)
        self._scene = np.zeros(len(self.checks.expectation.basis), np.float32)
        self._lifted: np.ndarray | None = None
        self._state: np.ndarray | None = None
        self._followed: np.ndarray | None = None
        self._components = self._scene

    def resume(self) -> None:
        """After a pause that nobody is to blame for: what was before it is not compared with."""
        self._past.clear()
        self._intervals.clear()

    @property
    def trust(self) -> dict[str, float]:
        return {name: reputation.trust for name, reputation in self._reputations.items()}

    def look(
        self, tokens: np.ndarray, state: np.ndarray | None, commands: np.ndarray | None, elapsed: float,
        period: float = 0.0,
    ) -> None:  # fmt: skip
        """A frame's map (N, F), joints (S,) and commands (DELAYS, A), None or NaN if not known, ``elapsed`` s after
        the frame before it; more than one in ``period`` s nobody asked for."""
        e = self.checks.expectation
        self.values[:] = np.nan
        # A camera's rate need not be that of rows
        usual = max(min(self._intervals, default=elapsed), 0.5 / self.rate, period)
        self.values[5] = max(elapsed / usual - 1.0, 0.0)
        if elapsed > 0:
            self._intervals.append(elapsed)
        self._state, self._followed, self._lifted = state, None, None
        if state is None:
            return
        self._components, detail = e.split(tokens)
        self._lifted = lifted = e.lifted(state)
        expected = lifted @ e.seen
        self.values[0] = distance(self._components - expected, e.seen_precision)
        self.values[1] = ((detail - lifted @ e.texture[:-1]) / e.texture[-1]) ** 2
        whole = float(e.spread @ e.spread)
        self._past.append((self._components, expected))
        self.values[2] = 0.0
        for back in STEPS:
            if back < len(self._past):
                components, then = self._past[-1 - back]
                moved, shown = expected - then, self._components - components
                excess = max(float(moved @ moved) - UNSEEN * whole, 0.0)
                self.values[2] = max(self.values[2], excess / (float(shown @ shown) + FAINT * whole))
        self.values[3] = distance((state - e.joints_seen(self._components)) / e.joints[1], e.told_precision)
        if commands is not None and np.isfinite(commands := commands[:DELAYS]).all():
            self._followed = e.joints_followed(commands)
            self.values[4] = distance(state[e.measured[e.measured >= 0]] - self._followed, e.followed_precision)

    def judge(self, threshold: float, forgetting: float, adaptive: bool = False) -> None:
        """Weigh the last frame's statistics: surprise above ``threshold`` counts against a source."""
        surprises = np.zeros(len(STATISTICS))
        for index, value in enumerate(self.values):
            limit = self.checks.limits[index, 0] * (self._adaptive[index].factor if adaptive else 1.0)
            ratio = value / limit if np.isfinite(value) else 0.0
            worst = max(ratio, self._sums[index].add(ratio))
            surprises[index] = worst / (1.0 + worst)
            self._adaptive[index].add(worst > 1.0)
        self.beyond = tuple(name for name, s in zip(STATISTICS, surprises, strict=True) if s > threshold)
        appearance, texture, frozen, view, commands, rhythm = surprises
        blamed = commands > threshold  # the camera cannot be judged by joints that are wrong
        camera = max(texture, frozen, *(() if blamed else (appearance, view)))
        self.surprise = {"camera": float(camera), "joints": float(commands), "rhythm": float(rhythm)}
        for name, surprise in self.surprise.items():
            self._reputations[name].add(surprise > threshold, forgetting)
        if not blamed and self._lifted is not None and camera <= threshold:
            rest = self._components - self._lifted @ self.checks.expectation.seen
            self._scene = (REMEMBERED * self._scene + (1.0 - REMEMBERED) * rest).astype(np.float32)

    def attended_joints(self) -> np.ndarray | None:
        """The last frame's joints (S,); those that are not trusted as the commands let expect them."""
        if self._state is None or self._followed is None or self.trust["joints"] >= 0.5:
            return self._state
        state, measured = self._state.copy(), self.checks.expectation.measured
        state[measured[measured >= 0]] = self._followed
        return state

    def expected_map(self) -> np.ndarray | None:
        """What the camera should see now (N, F), in the scene as it was remembered; None if nobody can tell."""
        state = self.attended_joints()
        if state is None:
            return None
        e = self.checks.expectation
        return e.map_of(e.lifted(state) @ e.seen + self._scene)
