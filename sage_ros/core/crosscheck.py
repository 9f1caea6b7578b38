"""Which source is at fault: camera, joints or the rhythm of frames, told by witnesses that should agree.

==========  =======================================================  ======================================
statistic   what it is                                               who is blamed
==========  =======================================================  ======================================
appearance  token map against what the joints let expect             camera; nobody if the joints are
texture     how much lies outside of the usual subspace, both ways   camera
contrast    how much the tokens differ from one another, likewise    camera
restless    change in most of the tokens that no joint explains      camera
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

from sage_ros.core.expectation import DELAYS, GIVES, Expectation, Watched, between, contrast, distance, strangeness
from sage_ros.core.sources import AdaptiveLimit, Reputation, Sustained, bound

STATISTICS = ("appearance", "texture", "contrast", "restless", "frozen", "commands", "rhythm")
APPEARANCE, TEXTURE, CONTRAST, RESTLESS, FROZEN, COMMANDS, RHYTHM = range(len(STATISTICS))
PICTURE = slice(APPEARANCE, COMMANDS)  # those that a frame tells something new of where picture or arm has moved
SOURCES = ("camera", "joints", "rhythm")
STEPS = (1, 4)  # frames back with which a picture that may be frozen is compared
UNSEEN = 3e-5  # of the components' variance: movement that need not be seen
FAINT = 1e-7  # of the same: a picture that changes as little is the same picture
NEWS = 1e-3  # of the same: what moves less since the last frame that told something tells nothing new
STILL = 0.05  # of a token's variance: change from frame to frame that is never held against a picture
MOVING = 1.5  # times what the joints let expect on average: change that a moving camera may show all over
REMEMBERED = 0.9  # per frame, of what is special about this scene
EXCITED = 0.03  # of a joint's deviation: commands and joints that move less since the last such frame tell no news
SKIPS = (2.5, 0.2, 1.0)  # frames missed that surprise at once; usual share of it; sum that surprises
USUAL = (0.1, 0.8)  # of its limit: what a statistic brings on average, at least and at most
LITTLE = 0.3  # of a sum: an episode that stays below tells no more of the others than this
MARGIN = 3.0  # on sums, whose bound is the least certain: they find what lasts, soon enough
LEAST = 4.0  # limit of a sum, in frames at the limit of one
QUIET = 0.15  # of a frame's share in trust, for one that tells nothing new against joints
INTERVALS = 20  # frames from which the camera's own rate is told


@dataclass(frozen=True)
class Checks:
    """Maps between the witnesses and, for each of ``STATISTICS``: what one frame stays below, what it brings on
    average in units of that, and what the sum above that average stays below: ``limits`` (7, 3)."""

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
            values = [(v[k, statistic], new[k, statistic]) for (v, new), k in zip(told, known, strict=True) if k.any()]
            if not values:  # no commands were known
                limits.append((1.0, 1.0, 1.0))
                continue
            least = STILL if statistic == RESTLESS else 0.0
            spike = max(bound(v.max() + least for v, _ in values) - least, least)
            drift = float(np.clip(bound(v.mean() / spike for v, _ in values), *USUAL))
            most = bound(max(_highest_sum(v / spike, new, drift), LITTLE) for v, new in values)
            limits.append((spike, drift, max(MARGIN * most, LEAST)))
        return cls(checks.expectation, np.array([*limits, SKIPS]))

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
    """Of every row: the statistics (T, 7), NaN where they cannot be told, and whether they told anything new (T, 7)."""
    check, found, new = CrossCheck(checks, rate), [], []
    for tokens, state, commands in zip(episode.tokens, episode.state, episode.commands, strict=True):
        check.look(tokens, state, commands, 1.0 / rate)
        found.append(check.values.copy())
        new.append(check.new.copy())
    return np.array(found), np.array(new)


def _highest_sum(ratios: np.ndarray, new: np.ndarray, drift: float) -> float:
    total, highest = Sustained(drift, np.inf), 0.0
    for ratio, tells in zip(ratios, new, strict=True):
        total.add(float(ratio), bool(tells))
        highest = max(highest, total.sum)
    return highest


class CrossCheck:
    """The checks over a stream; memory is constant. For every frame call :meth:`look`, then :meth:`judge`.

    ``values`` are the statistics of the last frame, (7,), NaN where they cannot be told; ``surprise`` and ``trust``
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
        self.new = np.ones(len(STATISTICS), bool)  # which of them tell what earlier frames did not
        self._counted: tuple[np.ndarray, np.ndarray] | None = None  # the last new frame's components, seen and expected
        self._off = np.zeros(self.checks.expectation.followed.shape[1])  # from where joints usually are
        self._led: np.ndarray | None = None  # commands and joints, when they last told anything new of each other
        self._last: np.ndarray | None = None  # the map before, in standard deviations
        self._scene = np.zeros(len(self.checks.expectation.basis), np.float32)
        self._lifted: np.ndarray | None = None
        self._state: np.ndarray | None = None
        self._followed: np.ndarray | None = None
        self._components = self._scene

    def resume(self) -> None:
        """After a pause that nobody is to blame for: what was before it is not compared with."""
        self._past.clear()
        self._intervals.clear()
        self._counted = self._led = self._last = None

    @property
    def trust(self) -> dict[str, float]:
        return {name: reputation.trust for name, reputation in self._reputations.items()}

    def look(
        self, tokens: np.ndarray, state: np.ndarray | None, commands: np.ndarray | None, elapsed: float,
        period: float = 0.0,
    ) -> None:  # fmt: skip
        """A frame's map (N, F), joints (S,) and commands (DELAYS, A), None or NaN if not known, ``elapsed`` s after
        the frame before it; more than one in ``period`` s nobody asked for."""
        self.values[:] = np.nan
        # A camera's rate need not be that of rows
        usual = max(min(self._intervals, default=elapsed), 0.5 / self.rate, period)
        self.values[RHYTHM] = max(elapsed / usual - 1.0, 0.0)
        if elapsed > 0:
            self._intervals.append(elapsed)
        self._state, self._followed, self._lifted = state, None, None
        self.new[:] = True
        if state is None:
            return
        self._look_at_picture(tokens, state, elapsed)
        if commands is not None and np.isfinite(commands := commands[:DELAYS]).all():
            self._look_at_joints(state, commands)

    def _look_at_picture(self, tokens: np.ndarray, state: np.ndarray, elapsed: float) -> None:
        """The statistics of ``PICTURE``: a map (N, F) against what joints (S,) let expect, and against those before."""
        e = self.checks.expectation
        whole = e.normal(tokens)
        self._components, outside = e.split(whole)
        detail = np.array((outside, contrast(tokens)))
        self._lifted = lifted = e.lifted(state)
        expected, strange = lifted @ e.seen, strangeness(lifted, e.seen_gram)
        self.values[APPEARANCE] = distance(self._components - expected, e.seen_precision) / (1.0 + strange)
        self.values[[TEXTURE, CONTRAST]] = ((detail - lifted @ e.texture) / e.texture_deviation) ** 2 / (1.0 + strange)
        self.values[RESTLESS] = 0.0
        if self._last is not None:
            moved = expected - self._past[-1][1]
            change = np.median(np.square(whole - self._last).mean(axis=-1))
            excess = max(float(change - MOVING * (moved @ moved) / whole.size), 0.0)
            self.values[RESTLESS] = excess / max(elapsed * self.rate, 1.0)
        self._last = whole
        size = float(e.spread @ e.spread)
        if self._counted is not None:
            change = np.concatenate((self._components - self._counted[0], expected - self._counted[1]))
            self.new[PICTURE] = float(change @ change) > NEWS * size
        if self.new[APPEARANCE]:
            self._counted = self._components, expected
        self._past.append((self._components, expected, strange))
        self.values[FROZEN] = 0.0
        for back in STEPS:
            if back < len(self._past):
                components, then, stranger = self._past[-1 - back]
                moved, shown = expected - then, self._components - components
                excess = max(float(moved @ moved) / (1.0 + max(strange, stranger)) - UNSEEN * size, 0.0)
                self.values[FROZEN] = max(self.values[FROZEN], excess / (float(shown @ shown) + FAINT * size))

    def _look_at_joints(self, state: np.ndarray, commands: np.ndarray) -> None:
        """``COMMANDS``: joints (S,) against where the commands (DELAYS, A) have led them."""
        e = self.checks.expectation
        self._followed, unlike = e.joints_followed(commands)
        # how strange the pose is where they are believed to be, not where joints at fault claim to be
        unlike += strangeness(e.lifted(self._where(state, self._followed)), e.seen_gram)
        who = e.measured[e.measured >= 0]
        aims = commands[0][e.measured >= 0]
        led = np.concatenate((aims, state[who])) / np.tile(e.joints[1, who], 2)
        if self._led is not None:
            self.new[COMMANDS] = bool((np.abs(led - self._led) > EXCITED).any())
        if self.new[COMMANDS]:
            self._led = led
        # A gripper closes on something, or on nothing: then it comes from there
        followed, led_to = self._followed, np.where(e.grips, aims, self._followed)
        aside = state[who] - between(state[who], followed, led_to, followed + self._off)
        place = between(state[who], followed, led_to)
        self._off = np.where(np.abs(state[who] - place) < GIVES * e.joints[1, who], place - followed, self._off)
        self.values[COMMANDS] = distance(aside, e.followed_precision) / (1.0 + unlike)

    def judge(self, threshold: float, forgetting: float, adaptive: bool = False) -> None:
        """Weigh the last frame's statistics: surprise above ``threshold`` counts against a source."""
        surprises = np.zeros(len(STATISTICS))
        surprises[COMMANDS] = commands = self._weigh(COMMANDS, adaptive)
        blamed = commands > threshold  # the camera cannot be judged by joints that are wrong
        for statistic in (TEXTURE, CONTRAST, RESTLESS, RHYTHM) if blamed else (*range(COMMANDS), RHYTHM):
            surprises[statistic] = self._weigh(statistic, adaptive)
        self.beyond = tuple(name for name, s in zip(STATISTICS, surprises, strict=True) if s > threshold)
        camera = float(surprises[PICTURE].max())
        self.surprise = {"camera": camera, "joints": commands, "rhythm": float(surprises[RHYTHM])}
        for name, surprise in self.surprise.items():
            bad, kept = surprise > threshold, forgetting
            if name == "joints" and bad and not self.new[COMMANDS]:  # what is blocked has yet to be led elsewhere
                bad, kept = False, forgetting**QUIET
            self._reputations[name].add(bad, kept)
        if not blamed and self._lifted is not None and camera <= threshold:
            rest = self._components - self._lifted @ self.checks.expectation.seen
            self._scene = (REMEMBERED * self._scene + (1.0 - REMEMBERED) * rest).astype(np.float32)

    def _weigh(self, statistic: int, adaptive: bool) -> float:
        """Surprise in [0, 1) of a statistic of the last frame; above 0.5: beyond its limit, alone or in sum."""
        value, adapted = self.values[statistic], self._adaptive[statistic]
        limit = self.checks.limits[statistic, 0] * (adapted.factor if adaptive else 1.0)
        ratio = float(value / limit) if np.isfinite(value) else 0.0
        worst = max(ratio, self._sums[statistic].add(ratio, bool(self.new[statistic])))
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
