"""Trust, attention and surprise: believe each part of the picture as far as it can be predicted.

A token is predicted from the attended tokens before it. Its *surprise* is the normalised innovation of that
prediction (a per-token NIS, Bar-Shalom, Li & Kirubarajan 2001), scaled on the training episodes so that 0.5 means
the same on every encoder. Its *trust* is the mean of a Beta reputation with forgetting (Josang & Ismail 2002):
surprise above the threshold is evidence against it, surprise below it evidence for it. The *attended* token is
prediction plus gain times innovation, so that a distrusted patch shows what was expected there. A patch that stays
different but is calm in itself (it can be predicted from its own past) is believed after a while.

What its own past cannot tell of a token, joints and commands can: where a calibration holds
:class:`~sage_ros.core.crosscheck.Checks`, each source has a trust of its own, by which the tokens' counts, and a camera
that is not trusted shows what the joints let expect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sage_ros.core.crosscheck import SOURCES, Checks, CrossCheck
from sage_ros.core.options import check, option

QUANTILE = 0.999  # share of ordinary token movements that stays below surprise 0.5
PREFIX = "checks."  # of the names of the checks' arrays
VARIANCE_FLOOR = 0.1  # of the mean variance: a patch that never moved in training may still move a little


@dataclass(frozen=True)
class Calibration:
    """How tokens move on the training episodes.

    ``momentum`` is the share of a token's last change that carries over to the next row; ``variance`` (N, F) float32
    is that of the prediction's error; ``limit`` the normalised squared innovation that counts as surprise 0.5;
    ``relevance`` (N,) float32 the share of all movement that each token sees (sums to 1); ``rate`` the rows per
    second it was measured at. ``checks`` are those of the sources against each other; None: there are none.
    """

    momentum: float
    variance: np.ndarray
    limit: float
    relevance: np.ndarray
    rate: float
    checks: Checks | None = None

    @classmethod
    def fit(cls, sequences: Sequence[np.ndarray], rate: float) -> Calibration:
        """Fit on token sequences (T, N, F), one per episode, at ``rate`` rows per second."""
        if not sequences or any(s.ndim != 3 or len(s) < 3 for s in sequences):
            raise ValueError("calibration needs token sequences (T, N, F) of at least 3 rows each")
        change = [np.diff(s.astype(np.float64), axis=0) for s in sequences]
        before = np.concatenate([c[:-1] for c in change])
        after = np.concatenate([c[1:] for c in change])
        momentum = float(np.clip((before * after).sum() / max((before**2).sum(), 1e-12), 0.0, 1.0))
        innovation = after - momentum * before
        variance = (innovation**2).mean(axis=0)
        variance = np.maximum(variance, VARIANCE_FLOOR * variance.mean(axis=0) + 1e-12)
        distance = (innovation**2 / variance).mean(axis=-1)
        movement = np.concatenate(change).var(axis=0).sum(axis=-1) + 1e-12
        return cls(
            momentum=momentum,
            variance=variance.astype(np.float32),
            limit=max(float(np.quantile(distance, QUANTILE)), 1e-6),  # above 0 also where nothing ever moved
            relevance=(movement / movement.sum()).astype(np.float32),
            rate=float(rate),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The calibration as named arrays, as a checkpoint stores it."""
        scalars = np.array([self.momentum, self.limit, self.rate], dtype=np.float32)
        checks = {} if self.checks is None else {PREFIX + n: array for n, array in self.checks.arrays().items()}
        return {"variance": self.variance, "relevance": self.relevance, "momentum_limit_rate": scalars} | checks

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Calibration:
        """Inverse of :meth:`arrays`. Raises ValueError on missing or ill-shaped arrays."""
        missing = {"variance", "relevance", "momentum_limit_rate"} - set(arrays)
        if missing:
            raise ValueError(f"calibration lacks {', '.join(sorted(missing))}")
        variance, relevance = arrays["variance"], arrays["relevance"]
        if variance.ndim != 2 or relevance.shape != variance.shape[:1] or not (variance > 0).all():
            raise ValueError(f"calibration shapes do not fit: variance {variance.shape}, relevance {relevance.shape}")
        momentum, limit, rate = (float(x) for x in arrays["momentum_limit_rate"])
        inner = {name.removeprefix(PREFIX): array for name, array in arrays.items() if name.startswith(PREFIX)}
        try:
            checks = Checks.from_arrays(inner) if inner else None
        except ValueError as error:
            raise ValueError(f"checks that `calibrate` has to fit anew: {error}") from error
        if checks is not None and checks.expectation.mean.shape != variance.shape:
            raise ValueError(f"checks are for tokens {checks.expectation.mean.shape}, not {variance.shape}")
        return cls(momentum, variance, limit, relevance, rate, checks)


def narrowed(weights: np.ndarray, breadth: float) -> np.ndarray:
    """Attention on the fewest tokens that hold at least the share ``breadth`` of all ``weights`` (any shape, >= 0).

    Their sum, the confidence, stays what it is: where the robot looks does not change how sure it is.
    """
    total = weights.sum()
    if breadth >= 1.0 or total <= 0.0:
        return weights
    order = np.argsort(weights, axis=None)[::-1]
    kept = order[: int(np.searchsorted(np.cumsum(weights.flat[order]), breadth * total)) + 1]
    narrow = np.zeros_like(weights)
    narrow.flat[kept] = weights.flat[kept]
    return narrow * (total / narrow.sum())


@dataclass(frozen=True)
class TrustConfig:
    threshold: float = option(0.5, "surprise above this counts against a token", low=0.01, high=0.99)
    forgetting: float = option(0.75, "evidence kept per frame; 0.75: three bad frames halve trust", low=0.0, high=0.99)
    adopt_after: float = option(0.7, "calm time (s) after which a change that stays is believed", low=0.0, high=3600.0)
    gap: float = option(1.0, "time without a frame (s) after which nothing is predicted", low=0.05, high=60.0)
    cross_check: bool = option(True, "check camera, joints and commands against each other, if the calibration can")
    adaptive: bool = option(False, "let the sources' limits rise where ordinary frames go beyond them too often")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Attention:
    """What trust-attention makes of one frame of N tokens."""

    tokens: np.ndarray  # (N, F) float32: prediction + gain * innovation
    weights: np.ndarray  # (N,) float32: relevance * trust; their sum is the confidence
    trust: np.ndarray  # (N,) float32 in [0, 1]
    surprise: np.ndarray  # (N,) float32 in [0, 1)
    confidence: float  # relevance-weighted trust, in [0, 1]
    state: np.ndarray | None = None  # (S,) joints: those that are not trusted as the commands let expect them
    sources: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SOURCES, 1.0))  # trust in each
    surprises: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0.0))  # and its surprise


class TrustAttention:
    """The filter over a stream of token maps; memory is constant."""

    def __init__(self, calibration: Calibration, config: TrustConfig | None = None) -> None:
        self.calibration = calibration
        self.config = config or TrustConfig()
        self.period = 0.0  # s between two frames where all are asked for; who asks for fewer misses none
        self._check = None if calibration.checks is None else CrossCheck(calibration.checks, calibration.rate)
        self.reset()

    def reset(self) -> None:
        """Forget the stream: the next frame is taken as it is, with full trust."""
        n = len(self.calibration.relevance)
        self._begun = False
        if self._check is not None:
            self._check.reset()
        self._attended = _Track(self.calibration)
        self._raw = _Track(self.calibration)
        self._calm = np.zeros(n)  # s that a token has been predictable from its own past
        self._for = np.full(n, 1.0 / (1.0 - self.config.forgetting))
        self._against = np.zeros(n)

    @property
    def why(self) -> str:
        """Which statistics of the sources are beyond their limits; empty: none."""
        return ", ".join(self._check.beyond) if self._check is not None else ""

    def recalibrate(self, calibration: Calibration) -> None:
        """Go on with another calibration of the same tokens, without forgetting the stream; other checks begin anew."""
        if calibration.checks is not self.calibration.checks:
            self._check = None if calibration.checks is None else CrossCheck(calibration.checks, calibration.rate)
        self.calibration = self._attended.calibration = self._raw.calibration = calibration

    def update(
        self,
        tokens: np.ndarray,
        elapsed: float,
        state: np.ndarray | None = None,
        commands: np.ndarray | None = None,
    ) -> Attention:
        """Attend to ``tokens`` (N, F), ``elapsed`` seconds after the frame before it.

        ``state`` (S,) are the joints measured with it and ``commands`` (DELAYS or more, A) those given before it,
        newest first, a row of the calibration apart; None or NaN: not known, so not checked. A longer gap than the
        calibration's row is allowed proportionally more innovation; after ``config.gap`` seconds, or at the first
        frame, there is no prediction and the frame is taken as it is.
        """
        cal, config = self.calibration, self.config
        if tokens.shape != cal.variance.shape:
            raise ValueError(f"tokens are {tokens.shape}, but the calibration is for {cal.variance.shape}")
        if not np.isfinite(tokens).all():
            raise ValueError("tokens are not finite")
        check = self._check if config.cross_check else None
        if check is not None:
            if elapsed > config.gap:
                check.resume()
            check.look(tokens, state, commands, elapsed, self.period)
            check.judge(config.threshold, config.forgetting, config.adaptive)
        if not self._begun or elapsed > config.gap:
            self._begun = True
            for track in (self._raw, self._attended):
                track.start(tokens)
            self._calm[:] = 0.0
            return self._attention(tokens.astype(np.float32), np.zeros(len(tokens), dtype=np.float32), state)

        innovation, distance = self._attended.compare(tokens, elapsed)
        surprise = distance / (distance + cal.limit)
        bad = surprise > config.threshold
        self._for = config.forgetting * self._for + ~bad
        self._against = config.forgetting * self._against + bad
        # Huber's weight: beyond the limit an innovation counts no more than one at the limit. One bad frame
        # leaves trust at ``forgetting``: only from the second on does distrust itself lower the gain.
        robust = np.minimum(1.0, cal.limit / np.maximum(distance, 1e-12))
        gain = robust * np.minimum(1.0, self._trust() / config.forgetting)

        _, own_distance = self._raw.compare(tokens, elapsed)
        self._calm = np.where(own_distance <= cal.limit, self._calm + elapsed, 0.0)
        adopted = bad & (self._calm >= config.adopt_after)
        gain[adopted] = self._for[adopted] = self._against[adopted] = 1.0

        attended = tokens - (1.0 - gain[:, None]).astype(np.float32) * innovation
        if check is not None and (doubt := 1.0 - min(1.0, check.trust["camera"] / config.forgetting)) > 0.0:
            imagined = check.expected_map()
            if imagined is not None:
                attended += np.float32(doubt) * (imagined - attended)
        self._attended.add(attended)
        self._raw.add(tokens)
        self._attended.change[adopted] = self._raw.change[adopted]
        return self._attention(attended, surprise, state)

    def _trust(self) -> np.ndarray:
        return self._for / (self._for + self._against)

    def _attention(self, tokens: np.ndarray, surprise: np.ndarray, state: np.ndarray | None) -> Attention:
        trust, sources, surprises = self._trust(), dict.fromkeys(SOURCES, 1.0), dict.fromkeys(SOURCES, 0.0)
        if self._check is not None and self.config.cross_check:
            sources, surprises = self._check.trust, dict(self._check.surprise)
            state = self._check.attended_joints()
        # A frame that comes late is no worse for it: who acts on frames that do not come has to wait for them anyway
        believed = min(sources["camera"], sources["joints"])
        weights = (self.calibration.relevance * trust * believed).astype(np.float32)
        return Attention(
            tokens=tokens,
            weights=weights,
            trust=trust.astype(np.float32),
            surprise=surprise.astype(np.float32),
            confidence=float(weights.sum()),
            state=state,
            sources=sources,
            surprises=surprises,
        )


class _Track:
    """One-step prediction of a stream of token maps: the last map plus a share of its last change."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.start(np.zeros_like(calibration.variance))

    def start(self, tokens: np.ndarray) -> None:
        self.last, self.change = tokens.astype(np.float32), np.zeros_like(tokens, dtype=np.float32)

    def compare(self, tokens: np.ndarray, elapsed: float) -> tuple[np.ndarray, np.ndarray]:
        """Innovation (N, F) and its normalised squared size (N,); after k rows k times as much is ordinary."""
        cal = self.calibration
        innovation = tokens - (self.last + cal.momentum * self.change)
        distance = (innovation**2 / cal.variance).mean(axis=-1) / max(elapsed * cal.rate, 1.0)
        return innovation, distance

    def add(self, tokens: np.ndarray) -> None:
        self.change, self.last = tokens - self.last, tokens.astype(np.float32)
