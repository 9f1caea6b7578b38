"""Which source is at fault: camera, joints or the rhythm of frames, told by witnesses that should agree.

==========  =======================================================  ======================================
statistic   what it is                                               who is blamed
==========  =======================================================  ======================================
appearance  token map against what the joints let expect             camera; nobody if the joints are
texture     how much lies outside of the usual subspace, both ways   camera
contrast    how much the tokens differ from one another, likewise    camera
frozen      the joints' movement that the picture does not show      camera; nobody if the joints are
commands    joints against where the commands have led them          joints
rhythm      frames that did not come, by stamp                       rhythm
==========  =======================================================  ======================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sage_ros.core.expectation import DELAYS, Expectation, Watched, distance, strangeness
from sage_ros.core.sources import AdaptiveLimit, Reputation, Sustained, bound

STATISTICS = ("appearance", "texture", "contrast", "frozen", "commands", "rhythm")
SOURCES = ("camera", "joints", "rhythm")
STEPS = (1, 4)  # frames back with which a picture that may be frozen is compared
UNSEEN = 3e-5  # of the components' variance: movement that need not be seen
FAINT = 1e-7  # of the same: a picture that changes as little is the same picture
REMEMBERED = 0.9  # per frame, of what is special about this scene
NEWS = 1e-3  # of the same: what moves less since the last frame that told something tells nothing new
RHYTHM = (2.5, 0.2, 1.0)  # frames missed that surprise at once; usual share of it; sum that surprises
LITTLE = 0.3  # of a sum: an episode that stays below tells no more of the others than this
MARGIN = 3.0  # on sums, whose bound is the least certain: they find what lasts, soon enough
LEAST = 4.0  # limit of a sum, in frames at the limit of one
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
        told = [measure(checks, episode, rate) for episode in unseen]
        limits = []
        for statistic in range(len(STATISTICS) - 1):
            known = [np.isfinite(values[:, statistic]) for values, _ in told]
            values = [(v[k, statistic], new[k]) for (v, new), k in zip(told, known, strict=True) if k.any()]
            if not values:  # no commands were known
                limits.append((1.0, 1.0, 1.0))
                continue
            spike = bound(v.max() for v, _ in values)
            drift = min(bound(v.mean() / spike for v, _ in values), 0.8)
            most = bound(max(_highest_sum(v / spike, new, drift), LITTLE) for v, new in values)
            limits.append((spike, drift, max(MARGIN * most, LEAST)))
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


def measure(checks: Checks, episode: Watched, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Of every row: the statistics (T, 6), NaN where they cannot be told, and whether it told anything new (T,)."""
    check, found, new = CrossCheck(checks, rate), [], []
    for tokens, state, commands in zip(episode.tokens, episode.state, episode.commands, strict=True):
        check.look(tokens, state, commands, 1.0 / rate)
        found.append(check.values.copy())
        new.append(check.new)
    return np.array(found), np.array(new)


def _highest_sum(ratios: np.ndarray, new: np.ndarray, drift: float) -> float:
    total, highest = Sustained(drift, np.inf), 0.0
    for ratio, tells in zip(ratios, new, strict=True):
        total.add(float(ratio), bool(tells))
        highest = max(highest, total.sum)
    return highest


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
        self._past: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=max(STEPS) + 1)
        self._intervals: deque[float] = deque(maxlen=INTERVALS)
        self.new = True  # whether the last frame told anything that the one before did not
        self._counted: tuple[np.ndarray, np.ndarray] | None = None  # the last new one: components seen and expected
        self._scene = np.zeros(len(self.checks.expectation.basis), np.float32)
        self._lifted: np.ndarray | None = None
        self._state: np.ndarray | None = None
        self._followed: np.ndarray | None = None
        self._components = self._scene

    def resume(self) -> None:
        """After a pause that nobody is to blame for: what was before it is not compared with."""
        self._past.clear()
        self._intervals.clear()
        self._counted = None

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
        self._state, self._followed, self._lifted, self.new = state, None, None, True
        if state is None:
            return
        self._components, detail = e.split(tokens)
        self._lifted = lifted = e.lifted(state)
        expected, strange = lifted @ e.seen, strangeness(lifted, e.seen_gram)
        self.values[0] = distance(self._components - expected, e.seen_precision) / (1.0 + strange)
        self.values[1:3] = ((detail - lifted @ e.texture) / e.texture_deviation) ** 2 / (1.0 + strange)
        whole = float(e.spread @ e.spread)
        if self._counted is not None:
            change = np.concatenate((self._components - self._counted[0], expected - self._counted[1]))
            self.new = float(change @ change) > NEWS * whole
        if self.new:
            self._counted = self._components, expected
        self._past.append((self._components, expected, strange))
        self.values[3] = 0.0
        for back in STEPS:
            if back < len(self._past):
                components, then, stranger = self._past[-1 - back]
                moved, shown = expected - then, self._components - components
                excess = max(float(moved @ moved) / (1.0 + max(strange, stranger)) - UNSEEN * whole, 0.0)
                self.values[3] = max(self.values[3], excess / (float(shown @ shown) + FAINT * whole))
        if commands is not None and np.isfinite(commands := commands[:DELAYS]).all():
            self._followed, unlike = e.joints_followed(commands)
            # how strange the pose is where they are believed to be, not where joints at fault claim to be
            unlike += strangeness(e.lifted(self._where(state, self._followed)), e.seen_gram)
            rest = state[e.measured[e.measured >= 0]] - self._followed
            self.values[4] = distance(rest, e.followed_precision) / (1.0 + unlike)

    def judge(self, threshold: float, forgetting: float, adaptive: bool = False) -> None:
        """Weigh the last frame's statistics: surprise above ``threshold`` counts against a source."""
        commands, rhythm = (self._weigh(index, adaptive) for index in (4, 5))
        blamed = commands > threshold  # the camera cannot be judged by joints that are wrong
        appearance, frozen = (0.0 if blamed else self._weigh(index, adaptive) for index in (0, 3))
        texture, contrast = (self._weigh(index, adaptive) for index in (1, 2))
        surprises = (appearance, texture, contrast, frozen, commands, rhythm)
        self.beyond = tuple(name for name, s in zip(STATISTICS, surprises, strict=True) if s > threshold)
        camera = max(appearance, texture, contrast, frozen)
        self.surprise = {"camera": camera, "joints": commands, "rhythm": rhythm}
        for name, surprise in self.surprise.items():
            self._reputations[name].add(surprise > threshold, forgetting)
        if not blamed and self._lifted is not None and camera <= threshold:
            rest = self._components - self._lifted @ self.checks.expectation.seen
            self._scene = (REMEMBERED * self._scene + (1.0 - REMEMBERED) * rest).astype(np.float32)

    def _weigh(self, statistic: int, adaptive: bool) -> float:
        """Surprise in [0, 1) of a statistic of the last frame; above 0.5: beyond its limit, alone or in sum."""
        value, adapted = self.values[statistic], self._adaptive[statistic]
        limit = self.checks.limits[statistic, 0] * (adapted.factor if adaptive else 1.0)
        ratio = float(value / limit) if np.isfinite(value) else 0.0
        worst = max(ratio, self._sums[statistic].add(ratio, self.new))
        adapted.add(worst > 1.0)
        return worst / (1.0 + worst)

    def attended_joints(self) -> np.ndarray | None:
        """The last frame's joints (S,); those that are not trusted as the commands let expect them."""
        if self._state is None or self._followed is None or self.trust["joints"] >= 0.5:
            return self._state
        return self._where(self._state, self._followed)

    def _where(self, state: np.ndarray, followed: np.ndarray) -> np.ndarray:
        """Joints (S,): those that are commanded where the commands have led them."""
        state, measured = state.copy(), self.checks.expectation.measured
        state[measured[measured >= 0]] = followed
        return state

    def expected_map(self) -> np.ndarray | None:
        """What the camera should see now (N, F), in the scene as it was remembered; None if nobody can tell."""
        state = self.attended_joints()
        if state is None:
            return None
        e = self.checks.expectation
        return e.map_of(e.lifted(state) @ e.seen + self._scene)
