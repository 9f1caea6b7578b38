"""How far each source is trusted as a whole: the camera, the joints, the commands' effect, the rhythm of frames.

A statistic of a source counts in units of a limit that ordinary frames stay below. One frame beyond it is a spike: it
dents trust and is forgotten. What lasts is found by a cumulative sum (CUSUM, Page 1954), also where each frame alone
would pass. Limits come from episodes that nothing was fitted to, a bound on each episode's worst frame (split
conformal prediction over episodes, Vovk et al. 2005); while running they may adapt so that the share of frames beyond
them stays as asked for (adaptive conformal inference, Gibbs & Candes 2021). Trust is the mean of a Beta reputation
with forgetting (Josang & Ismail 2002).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

SPREADS = 2.5  # robust standard deviations of an episode's worst (its logarithm) above the median
FEW = 4.0  # episodes of which the bound would be twice as many spreads above it
SPIKE = 2.0  # what one frame adds to a sum, at most
FADE = 0.6  # of a sum that is left after a frame without evidence
STALE = 0.9  # of a sum that is left after a frame that tells nothing new


def bound(values: Iterable[float]) -> float:
    """What few episodes go beyond, of one positive number per episode that nothing was fitted to.

    From the median and the spread above it, so that one odd episode of many does not set the limit alone; but at
    least what one episode in twenty goes beyond. Few episodes know little of the spread, so that theirs counts more.
    """
    logs = np.log(np.maximum(np.array(list(values), dtype=np.float64), 1e-9))
    middle, high, highest = np.quantile(logs, (0.5, 0.84, 0.95))
    spreads = SPREADS * (1.0 + FEW / len(logs))
    return float(np.exp(max(middle + spreads * max(high - middle, 0.1), highest)))


class Sustained:
    """The cumulative sum of a statistic in units of its limit. ``drift``: what ordinary frames bring on average."""

    def __init__(self, drift: float, limit: float) -> None:
        self.drift, self.limit = drift, limit
        self.sum = 0.0

    def add(self, ratio: float, new: bool = True) -> float:
        """Count a frame; the sum, in units of its own limit, from 0 to 2.

        A frame that tells nothing ``new`` says again what another did and counts no more; the sum fades with it, or
        whoever holds on account of that sum would hold for ever.
        """
        if ratio < self.drift:
            self.sum *= FADE
        elif not new:
            self.sum *= STALE
        if new:
            self.sum = max(0.0, min(self.sum + min(ratio, SPIKE) - self.drift, 2.0 * self.limit))
        return self.sum / self.limit


class Reputation:
    """Trust in one source, in [0, 1]: evidence for it over all evidence, of which each frame keeps a share."""

    def __init__(self) -> None:
        self.trust = 1.0

    def add(self, bad: bool, forgetting: float) -> float:
        """Count a frame; three bad ones bring full trust below one half at a forgetting of 0.75."""
        self.trust = forgetting * self.trust + (1.0 - forgetting) * (not bad)
        return self.trust


class AdaptiveLimit:
    """A factor on limits that follows the stream: of ordinary frames a share of ``target`` shall go beyond.

    Each frame beyond raises it, each below lowers it a little, within [1, ``most``]: it can forgive a camera that is
    always a little odd, and never becomes stricter than the calibration.
    """

    def __init__(self, target: float = 0.001, step: float = 0.02, most: float = 4.0) -> None:
        self.target, self.step, self.most = target, step, most
        self.factor = 1.0

    def add(self, beyond: bool) -> float:
        self.factor = float(np.clip(self.factor * np.exp(self.step * (beyond - self.target)), 1.0, self.most))
        return self.factor
