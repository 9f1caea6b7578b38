"""What a camera should see and where the joints should be, each told from the other and from the commands.

A stream that is predicted from its own past alone hides three faults: a picture that stands still, one that is wrong
all the time, and joints that are stuck or biased. So there are three witnesses of one pose: the token map, the
measured joints, the commands. Linear maps fitted on clean episodes tell one from another: from lifted joints (random
Fourier features, Rahimi & Recht 2007) the token map in its principal subspace, and how rich in detail it is; from the
commands the joints. What is left over is measured in its own covariance (Mahalanobis distance, Lee et al. 2018), and
counts the less, the less the input is like what was fitted to: by the variance that a linear prediction has there (its
leverage, Hoaglin & Welsch 1978). In a pose that was never seen nobody can say what should be seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

COMPONENTS = 64  # of the token map's principal subspace, at most
LIFTED = 128  # random features of the joints
WIDTH = 0.7  # of their frequencies, in 1 / standard deviation of a joint
ROWS = 4000  # of the training episodes that the subspace is found on, at most
RIDGE = 1.0
FLOOR = 0.1  # of the mean variance: a feature that never changed in training may still change a little
ALIKE = 150.0  # rows, about an episode's, that tell as much as one that stands alone
DELAYS = 4  # rows of commands that the joints are told from
TOLERANCE = 0.005  # rad (or the joint's unit): what joints may do unseen
GIVES = 0.06  # of a joint's deviation: how far an arm that is pushed gives way, for which nobody is blamed
RESTING = 0.03  # of a joint's deviation per row: commands that move less are at rest
SHORT, OFTEN = 0.2, 0.1  # a joint that grips is at rest off its command by more than this of its deviation, so often


@dataclass(frozen=True)
class Watched:
    """An episode as the witnesses saw it, a row per frame."""

    tokens: np.ndarray  # (T, N, F)
    state: np.ndarray  # (T, S) measured joints
    commands: np.ndarray  # (T, DELAYS, A) as `Past.commands` has them: newest first; NaN where nobody knows

    @classmethod
    def of(cls, tokens: np.ndarray, state: np.ndarray, action: np.ndarray) -> Watched:
        """Of recorded rows: the last command is the action of the row before."""
        known = np.full((len(action), DELAYS, action.shape[1]), np.nan)
        for row in range(DELAYS):
            known[row + 1 :, row] = action[: len(action) - row - 1]
        return cls(tokens, state, known)


@dataclass(frozen=True)
class Expectation:
    """Linear maps between the witnesses. D = N x F features, K components, S joints of which A are commanded."""

    mean: np.ndarray  # (N, F) of the tokens
    scale: np.ndarray  # (N, F) standard deviation
    basis: np.ndarray  # (K, D) orthonormal rows, of (tokens - mean) / scale
    spread: np.ndarray  # (K,) standard deviation of the components
    joints: np.ndarray  # (2, S) mean and standard deviation
    waves: np.ndarray  # (S + 1, LIFTED) frequencies of the lift, and last their phases
    seen: np.ndarray  # (1 + S + LIFTED, K) lifted joints -> components
    seen_precision: np.ndarray  # (K, K) of what is left
    seen_gram: np.ndarray  # (1 + S + LIFTED, 1 + S + LIFTED) inverse, of the lifted joints fitted to; see `strangeness`
    measured: np.ndarray  # (A,) the column of the state that measures each commanded joint, or -1
    followed: np.ndarray  # (1 + DELAYS x A, M) commands -> the M commanded joints that are measured
    grips: np.ndarray  # (M,) 1 for joints that at rest often are far from where they were led, as a gripper; else 0
    followed_precision: np.ndarray  # (M, M)
    followed_gram: np.ndarray  # (1 + DELAYS x A, 1 + DELAYS x A)
    texture: np.ndarray  # (1 + S + LIFTED, 2) lifted joints -> log of what lies outside, and of the contrast
    texture_deviation: np.ndarray  # (2,) of what is left
    outside: np.ndarray  # (N,) mean square of each token's part outside of the subspace

    def __post_init__(self) -> None:
        tokens, features = self.mean.shape
        count, joints, followed = len(self.basis), self.joints.shape[-1], int((self.measured >= 0).sum())
        lifted = 1 + joints + self.waves.shape[-1]
        delayed = 1 + DELAYS * len(self.measured)
        expected = {
            "scale": (tokens, features), "basis": (count, tokens * features), "spread": (count,),
            "joints": (2, joints), "waves": (joints + 1, self.waves.shape[-1]), "seen": (lifted, count),
            "seen_precision": (count, count), "seen_gram": (lifted, lifted),
            "followed": (delayed, followed), "grips": (followed,), "followed_precision": (followed, followed),
            "followed_gram": (delayed, delayed), "texture": (lifted, 2), "texture_deviation": (2,),
            "outside": (tokens,),
        }  # fmt: skip
        for name, shape in expected.items():
            array = getattr(self, name)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"expectation: {name} is {array.shape} or not finite, but must be {shape}")
        if self.measured.max(initial=-1) >= joints:
            raise ValueError(f"expectation: measured names columns beyond {joints} joints")

    @classmethod
    def fit(cls, episodes: Sequence[Watched], measured: Sequence[int], seed: int = 0) -> Expectation:
        """``measured`` is, for each commanded joint, the column of the state that measures it, or -1.

        Raises ValueError with less than 100 rows.
        """
        rows = sum(len(e.state) for e in episodes)
        if rows < 100:
            raise ValueError(f"what to expect cannot be learned from {rows} rows; at least 100 are needed")
        tokens = np.concatenate([e.tokens.reshape(len(e.tokens), -1) for e in episodes]).astype(np.float32)
        state = np.concatenate([e.state for e in episodes])
        mean, variance = tokens.mean(0), tokens.var(0)
        scale = np.sqrt(variance + FLOOR * variance.mean() + 1e-12)
        tokens -= mean
        tokens /= scale
        few = tokens[:: -(-rows // ROWS)]
        values, vectors = np.linalg.eigh((few @ few.T).astype(np.float64))
        keep = np.arange(len(values))[::-1][: min(COMPONENTS, rows // 4)]
        keep = keep[values[keep] > 1e-6 * values[-1]]
        basis = ((vectors[:, keep] / np.sqrt(values[keep])).T @ few).astype(np.float32)
        components = tokens @ basis.T
        joints = np.stack((state.mean(0), state.std(0) + TOLERANCE))
        random = np.random.default_rng(seed)
        waves = np.concatenate((WIDTH * random.standard_normal((state.shape[1], LIFTED)),
                                random.uniform(0, 2 * np.pi, (1, LIFTED))))  # fmt: skip
        lifted = lift(state, joints, waves)
        seen, seen_gram = _ridge(lifted, components)
        spread = components.std(0) + 1e-6
        tokens -= components @ basis
        around = (tokens.reshape(rows, -1, episodes[0].tokens.shape[2]) ** 2).mean(-1)
        outside = around.mean(0) + 1e-3
        contrasts = np.concatenate([contrast(e.tokens) for e in episodes])
        detail = np.stack((np.log((around / outside).mean(-1) + 1e-3), contrasts), axis=1)
        texture, _ = _ridge(lifted, detail)
        measured_ = np.asarray(measured, np.int64)
        commands = np.concatenate([e.commands[:, :DELAYS] for e in episodes])
        known = np.isfinite(commands).all((1, 2))
        who = measured_[measured_ >= 0]
        told_by = _delayed(commands[known])
        aim = (state[known][:, who] - commands[known, 0][:, measured_ >= 0]) if known.any() else np.empty((0, len(who)))
        followed, followed_gram = _ridge(told_by, aim, 1e-3)
        short, steps = np.abs(aim) / joints[1, who], np.abs(np.diff(commands[known][:, :, measured_ >= 0], axis=1))
        rests = steps.max(1) < RESTING * joints[1, who]
        grips = [bool(r.any()) and (s[r] > SHORT).mean() > OFTEN for s, r in zip(short.T, rests.T, strict=True)]
        place = np.where(np.array(grips, bool), 0.0, told_by @ followed)
        shape = episodes[0].tokens.shape[1:]
        found = {
            "mean": mean.reshape(shape), "scale": scale.reshape(shape), "basis": basis, "spread": spread,
            "joints": joints, "waves": waves,
            "seen": seen, "seen_gram": seen_gram,
            "seen_precision": _precision(components - lifted @ seen, 1e-3 * spread**2),
            "followed": followed, "followed_gram": followed_gram, "grips": grips,
            "followed_precision": _precision(
                aim - between(aim, told_by @ followed, place), (GIVES * joints[1, who]) ** 2),
            "texture": texture, "texture_deviation": (detail - lifted @ texture).std(0) + 1e-3, "outside": outside,
        }  # fmt: skip
        return cls(measured=measured_, **{name: np.asarray(array, np.float32) for name, array in found.items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, as a checkpoint stores them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Expectation:
        """Inverse of :meth:`arrays`. Raises ValueError on missing or ill-shaped arrays."""
        names = [field.name for field in fields(cls)]
        if missing := set(names) - set(arrays):
            raise ValueError(f"expectation lacks {', '.join(sorted(missing))}")
        return cls(**{name: arrays[name] for name in names})

    # What is told from what

    def normal(self, tokens: np.ndarray) -> np.ndarray:
        """A map (N, F) in standard deviations."""
        whole: np.ndarray = tokens - self.mean
        whole /= self.scale
        return whole

    def split(self, whole: np.ndarray) -> tuple[np.ndarray, float]:
        """Of a map in standard deviations (N, F): its components (K,) and the log of how much lies outside of their
        subspace."""
        found = self.basis @ whole.reshape(-1)
        # Pythagoras for all tokens together would be cheaper, but each counts by what is usual for it
        rest = whole - (found @ self.basis).reshape(whole.shape)
        around = np.einsum("nf,nf->n", rest, rest) / rest.shape[1]
        return found, float(np.log((around / self.outside).mean() + 1e-3))

    def map_of(self, components: np.ndarray) -> np.ndarray:
        """The token map (N, F) float32 of components (K,)."""
        whole = (components.astype(np.float32) @ self.basis).reshape(self.mean.shape)
        whole *= self.scale
        whole += self.mean
        return whole

    def lifted(self, state: np.ndarray) -> np.ndarray:
        """Joints (S,) in the features that :attr:`seen` and :attr:`texture` take."""
        return lift(state, self.joints, self.waves)

    def joints_followed(self, commands: np.ndarray) -> tuple[np.ndarray, float]:
        """The commanded joints that are measured (M,), told from commands (DELAYS, A), and how strange those are."""
        delayed = _delayed(commands[None])[0]
        joints: np.ndarray = commands[0][self.measured >= 0] + delayed @ self.followed
        return joints, strangeness(delayed, self.followed_gram)


def lift(state: np.ndarray, joints: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """Joints (..., S) as 1, themselves in standard deviations, and waves of them."""
    normal = (state - joints[0]) / joints[1]
    return np.concatenate((np.ones((*normal.shape[:-1], 1)), normal, np.cos(normal @ waves[:-1] + waves[-1])), axis=-1)


def contrast(tokens: np.ndarray) -> np.ndarray:
    """Log of how much the tokens of maps (..., N, F) differ from one another: what a blurred picture has little of."""
    log: np.ndarray = np.log(tokens.var(axis=-2).mean(axis=-1) + 1e-12)
    return log


def distance(rest: np.ndarray, precision: np.ndarray) -> float:
    """Mean over dimensions of the squared Mahalanobis distance of what is left over (K,)."""
    return float(rest @ precision @ rest) / max(len(rest), 1)


def between(joints: np.ndarray, *places: np.ndarray) -> np.ndarray:
    """What of all places between some is nearest to joints (..., M)."""
    nearest: np.ndarray = np.clip(joints, np.minimum.reduce(places), np.maximum.reduce(places))
    return nearest


def strangeness(inputs: np.ndarray, gram: np.ndarray) -> float:
    """How uncertain a linear prediction from ``inputs`` is beside what it always leaves over; 0 is not at all."""
    return ALIKE * max(float(inputs @ gram @ inputs), 0.0)


def _delayed(commands: np.ndarray) -> np.ndarray:
    """Commands (R, DELAYS, A) as 1, the newest, and the steps that led to it."""
    steps = (commands[:, :-1] - commands[:, 1:]).reshape(len(commands), (DELAYS - 1) * commands.shape[2])
    return np.concatenate((np.ones((len(commands), 1)), commands[:, 0], steps), axis=1)


def _ridge(inputs: np.ndarray, outputs: np.ndarray, ridge: float = RIDGE) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and the inverse Gram matrix of the inputs."""
    inputs = inputs.astype(np.float64)
    gram = np.linalg.inv(inputs.T @ inputs + ridge * np.eye(inputs.shape[1]))
    return gram @ (inputs.T @ outputs), gram


def _precision(rest: np.ndarray, floor: np.ndarray) -> np.ndarray:
    covariance = rest.T.astype(np.float64) @ rest / max(len(rest), 1) + np.diag(floor)
    return np.linalg.inv(covariance)
