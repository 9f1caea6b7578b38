"""What a dream does: replay sessions, the surprising first, beside original demonstrations; judge what comes out.

A row of a session is drawn by the champion's error on it, to the power ``priority``, and counts for the less the more
often it is drawn (prioritised replay with importance sampling, Schaul et al. 2016, its priorities fixed for a dream).
A share of every batch are original demonstrations, so that what was known is not forgotten (rehearsal as in CLEAR,
Rolnick et al. 2019). What failed is learned from only where a teacher says how it should have gone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from sage_ros.core.chunks import ChunkPolicy
from sage_ros.core.options import check, option
from sage_ros.policy.checkpoint import Checkpoint
from sage_ros.policy.student import Student
from sage_ros.training.cloning import Cloned, clone
from sage_ros.training.engine import Engine
from sage_ros.training.openloop import Demonstration, open_loop_error
from sage_ros.training.resume import Unfinished
from sage_ros.training.rows import Replay
from sage_ros.training.sessions import Session, row_miss, session_errors
from sage_ros.training.settings import CloningConfig

FLOOR = 0.05  # of the mean error: what the champion knows by heart is replayed now and then, too
RESAMPLES = 4000


@dataclass(frozen=True)
class DreamConfig:
    """How a dream learns, and what its challenger has to reach."""

    steps: int = option(3000, "gradient steps", low=1, high=10**6)
    batch_size: int = option(256, "rows per step", low=1, high=65536)
    lr: float = option(1e-3, "highest learning rate", low=1e-8, high=1.0)
    rehearsal: float = option(0.95, "share of the rows that are original demonstrations", low=0.0, high=0.99)
    reach: float = option(0.9, "how far it goes from the champion's weights to those it learned", low=0.05, high=1.0)
    priority: float = option(0.6, "how much more often surprising rows are drawn; 0: all alike", low=0.0, high=2.0)
    correction: float = option(0.5, "how far a row counts less for being drawn more often; 1: fully", low=0.0, high=1.0)
    unjudged: float = option(0.25, "what a session counts whose outcome nobody has told", low=0.0, high=1.0)
    cost: float = option(0.02, "how much more it may err on the originals", low=0.0, high=1.0)
    gain: float = option(0.01, "how much less it must err on held-out sessions", low=0.0, high=1.0)
    sure: float = option(0.95, "how sure that must be", low=0.5, high=0.9999)
    least: int = option(5, "held-out sessions without which nothing is judged", low=2, high=10**6)
    seed: int = option(0, "seed of batches and noise", low=0, high=2**31)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Verdict:
    """Whether a challenger replaces the champion, why, and the figures behind it."""

    better: bool
    reason: str
    figures: dict[str, float]


def worth(session: Session, config: DreamConfig) -> float:
    """What a session's own actions count: all of a success, none of a failure."""
    return config.unjudged if session.success is None else float(session.success)


def priorities(policy: ChunkPolicy, session: Session) -> np.ndarray:
    """How surprising each row is, (T,): the policy's mean error there, more where the picture surprised as well."""
    found = np.zeros(len(session.demonstration))
    for row in range(len(found)):
        miss = row_miss(policy, session, row)
        found[row] = 0.0 if miss is None else np.nanmean(np.abs(miss))
    return found * (1.0 + session.surprise) if session.surprise is not None else found


def plan(
    champion: Checkpoint, sessions: Sequence[Session], originals: Sequence[Demonstration], config: DreamConfig
) -> Replay:
    """How often each row of the sessions, then of the originals, is drawn, and what it counts.

    Raises ValueError where no session teaches anything.
    """
    surprise, counts, own = [], [], []
    for session in sessions:
        labels, rows = session.demonstration.labels, len(session.demonstration)
        taught = np.isfinite(labels[:, 0]).any(axis=1) if labels is not None else np.zeros(rows, bool)
        value = worth(session, config)
        surprise.append(priorities(champion.policy, session))
        counts.append(np.where(taught, 1.0, value))
        own.append(np.full(rows, value > 0.0))
    count = np.concatenate(counts) if counts else np.zeros(0)
    if not (count > 0).any():
        raise ValueError("no session teaches anything: none succeeded, and no teacher has labelled one")
    felt = np.concatenate(surprise)
    chances = (felt + FLOOR * felt[count > 0].mean() + 1e-12) ** config.priority * (count > 0)
    chances /= chances.sum()
    drawn = chances > 0
    weights = np.zeros(len(chances))
    weights[drawn] = (drawn.sum() * chances[drawn]) ** -config.correction
    weights *= count / weights.max()
    rehearsed = np.full(sum(map(len, originals)), 1.0)
    share = config.rehearsal if len(rehearsed) else 0.0
    mean = float((chances * weights).sum())  # what a drawn row of a session counts: one of the originals counts as much
    return Replay(
        dict(champion.policy.student.state_dict()), champion.normalization,
        np.concatenate([(1.0 - share) * chances, rehearsed * share / max(len(rehearsed), 1)]),
        np.concatenate([weights / mean, rehearsed]), np.concatenate([*own, rehearsed > 0]),
    )  # fmt: skip


def cloning_settings(champion: Checkpoint, config: DreamConfig) -> CloningConfig:
    """The champion's own, but for how long and how fast: what it was kept from learning by heart, it still is.

    Settings that this version does not know any more are as the package has them.
    """
    known = {item.name for item in fields(CloningConfig)}
    own = {name: value for name, value in champion.metrics.get("config", {}).items() if name in known}
    return CloningConfig(**own | {
        "steps": config.steps, "batch_size": config.batch_size, "lr": config.lr, "warmup": min(50, config.steps),
        "evaluate_every": min(100, config.steps), "seed": config.seed, "labelled_only": False,
    })  # fmt: skip


def learn(
    champion: Checkpoint, sessions: Sequence[Session], originals: Sequence[Demonstration], config: DreamConfig,
    unfinished: Unfinished | None = None, save_every: int = 50, progress: bool = True,
) -> Cloned:  # fmt: skip
    """A challenger: from the champion's weights ``reach`` of the way to what a dream of the sessions makes of them.

    It keeps the champion's normalization, and with it the range of actions that the safety filter allows. Same inputs,
    same challenger.
    """
    settings = cloning_settings(champion, config)
    replay = plan(champion, sessions, originals, config)
    training = [*(session.demonstration for session in sessions), *originals]
    engine = Engine("cpu", save_every=save_every)
    cloned = clone(training, [], champion.config, settings, engine, progress, unfinished, "challenger", replay)
    return replace(cloned, student=between(champion.policy.student, cloned.student, config.reach))


def between(known: Student, learned: Student, reach: float) -> Student:
    """The student whose weights lie so far on the way (WiSE-FT, Wortsman et al. 2022).

    What was forgotten is regained faster than what was learned is lost, and chance in the last steps counts less.
    """
    found, start = copy.deepcopy(learned), known.state_dict()
    found.load_state_dict({name: torch.lerp(start[name], end, reach) for name, end in learned.state_dict().items()})
    return found


def judge(
    champion: ChunkPolicy, challenger: ChunkPolicy, sessions: Sequence[Session], originals: Sequence[Demonstration],
    config: DreamConfig,
) -> Verdict:  # fmt: skip
    """Compare both on sessions and originals that neither was trained on, episode by episode."""
    before, after = (np.array(session_errors(policy, sessions)) for policy in (champion, challenger))
    known, now = (np.array([open_loop_error(policy, d, steps=None) for d in originals])
                  for policy in (champion, challenger))  # fmt: skip
    figures = {
        "sessions": float(len(sessions)), "champion_error": float(before.mean()), "error": float(after.mean()),
        "change": float(after.mean() / before.mean() - 1.0), "change_at_most": upper(before, after, config.sure),
        "originals": float(len(originals)), "champion_original_error": float(known.mean()),
        "original_error": float(now.mean()), "original_change": float(now.mean() / known.mean() - 1.0),
    }  # fmt: skip
    change, most = figures["change"], figures["change_at_most"]
    if not most < -config.gain:
        reason = (f"its error on {len(sessions)} held-out sessions changed by {change:+.1%}, and by chance may have by "
                  f"{most:+.1%}: no better by more than noise")  # fmt: skip
    elif figures["original_change"] > config.cost:
        reason = f"it errs {figures['original_change']:.1%} more on the originals, {config.cost:.1%} are allowed"
    else:
        reason = f"error on held-out sessions {change:+.1%}, on the originals {figures['original_change']:+.1%}"
        return Verdict(True, reason, figures)
    return Verdict(False, reason, figures)


def upper(before: np.ndarray, after: np.ndarray, sure: float) -> float:
    """The relative change of the mean error that it stays below with this confidence: a paired bootstrap over
    episodes (Efron & Tibshirani 1993)."""
    pick = np.random.default_rng(0).integers(len(before), size=(RESAMPLES, len(before)))
    return float(np.quantile(after[pick].mean(axis=1) / before[pick].mean(axis=1) - 1.0, sure))


def describe(config: DreamConfig, sessions: Sequence[Session]) -> Mapping[str, Any]:
    """What a dream learned from, for the lineage."""
    told = [session.success for session in sessions]
    return {
        "settings": asdict(config), "sessions": sorted(session.demonstration.index for session in sessions),
        "successes": told.count(True), "failures": told.count(False), "unjudged": told.count(None),
        "labelled": sum(session.demonstration.labels is not None for session in sessions),
    }  # fmt: skip
