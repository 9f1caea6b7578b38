"""What corruptions cost a student in GR00T's open-loop metric, with trust-attention and without."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from sage_ros.core.expectation import Watched
from sage_ros.core.timing import SECOND
from sage_ros.core.trust import Attention, TrustAttention
from sage_ros.corruption import KINDS, Corruption, CorruptionConfig, parse_corruption
from sage_ros.episodes.dataset import Episode
from sage_ros.policy.checkpoint import Checkpoint
from sage_ros.training.openloop import Demonstration, demonstration, fit_layout
from sage_ros.training.tokens import encode_frames
from sage_ros.vision.encoder import Encoder

BLIND = "blind"
SEEDS = 3  # of each corruption on each episode
PHASES = 4  # chunks are asked for so many times as often as GR00T does, as a fault begins at any moment between two
EVERYTHING = "all"  # instead of a kind: every kind; without a severity at all five


@dataclass(frozen=True)
class Cost:
    """A student's mean squared error (raw units) from the fault on: of each episode, seeds averaged."""

    without: np.ndarray  # (E,) the student sees the tokens as they come
    trusting: np.ndarray  # (E,) ... through trust-attention


def parse_corruptions(texts: Sequence[str], begin: float) -> list[CorruptionConfig]:
    """KIND or KIND:SEVERITY each; "all" stands for every kind at every severity, "all:3" at one. Raises ValueError."""
    found = []
    for text in texts:
        kind, colon, severity = text.partition(":")
        severities = [severity] if colon else "12345"
        each = [f"{name}:{s}" for name in KINDS for s in severities] if kind == EVERYTHING else [text]
        found += [parse_corruption(one, begin=begin) for one in each]
    return found


def corruption_costs(
    checkpoint: Checkpoint,
    encoder: Encoder,
    episodes: Sequence[Episode],
    camera: str | None,
    corruptions: Sequence[CorruptionConfig],
    every: int,
    seeds: int = SEEDS,
    progress: bool = True,
) -> dict[str, Cost]:
    """The cost of each corruption by its name; first that of none ("clean"), last that of a student that always sees
    the training episodes' mean ("blind").

    The error is the mean over chunks of ``every`` rows, asked for from the first frame of the fault on, whose begin all
    ``corruptions`` must share. The commands that the student remembers are the demonstrator's. An episode's own number
    is part of the seed. Raises ValueError if an episode ends before the fault begins, or its first frame is lost.
    """
    (begin,) = {config.begin for config in corruptions}
    rows = math.ceil(begin * checkpoint.rate - 1e-9)  # before it
    if short := [str(episode.index) for episode in episodes if len(episode) <= rows]:
        raise ValueError(f"the fault begins at {begin:g} s, after the end of episode {', '.join(short)}")
    clean = CorruptionConfig(begin=begin)
    parts: dict[str, list[list[tuple[float, float]]]] = {}
    blind: list[float] = []
    mean = np.tile(checkpoint.normalization.tokens_mean, (checkpoint.config.tokens, 1)).astype(np.float32)
    runs = len(episodes) * (1 + seeds * len(corruptions))
    with tqdm(total=runs, unit="run", disable=not progress, leave=False) as bar:
        for episode in episodes:
            frames = episode.frames(camera)
            for name, config, count in [("clean", clean, 1), *((str(c), c, seeds) for c in corruptions)]:
                bar.set_description(name)
                results = []
                for seed in range(count):
                    spoiled = replace(config, seed=1000 * episode.index + seed)
                    under = spoil(checkpoint, encoder, episode, frames, spoiled)
                    raw, (attended, _) = under.shown, attend(checkpoint, under)
                    results.append((_error(checkpoint, raw, every, rows), _error(checkpoint, attended, every, rows)))
                    bar.update()
                parts.setdefault(name, []).append(results)
                if name == "clean":
                    unseeing = replace(raw, tokens=np.broadcast_to(mean, raw.tokens.shape))
                    blind.append(_error(checkpoint, unseeing, every, rows))
    found = {name: Cost(*np.mean(results, axis=1).T) for name, results in parts.items()}
    return found | {BLIND: Cost(np.array(blind), np.array(blind))}


@dataclass(frozen=True)
class Spoiled:
    """An episode under a corruption."""

    shown: Demonstration  # as it comes; where no frame comes, the last tokens stay. Targets are what was demonstrated
    came: np.ndarray  # the rows whose frame came
    newest: np.ndarray  # (T,) which of those was the last one at each row
    hit: np.ndarray  # (T,) bool: whether the corruption was on


def spoil(
    checkpoint: Checkpoint, encoder: Encoder, episode: Episode, frames: np.ndarray, config: CorruptionConfig
) -> Spoiled:
    """The episode as the student gets it under a corruption. Raises ValueError where its first frame is lost."""
    corruption, state, came, shown, hit = Corruption(config), episode.state.copy(), [], [], []
    for row, frame in enumerate(frames):
        stamp = round(row * SECOND / episode.fps)
        state[row] = corruption.joints(stamp, episode.state[row])
        if (seen := corruption.frame(stamp, frame)) is not None:
            came.append(row)
            shown.append(seen)
        hit.append(corruption.hits(stamp))
    if not came or came[0] > 0:
        raise ValueError(f"{config} loses the first frame of episode {episode.index}: let the fault begin later")
    newest = np.searchsorted(came, np.arange(len(frames)), side="right") - 1
    tokens = encode_frames(encoder, np.stack(shown))[newest]
    raw = fit_layout(demonstration(episode, tokens), checkpoint.state_joints, checkpoint.action_joints)
    order = checkpoint.state_joints.order_from(episode.state_joints.names)
    return Spoiled(replace(raw, state=state[:, order]), np.array(came), newest, np.array(hit))


def attend(checkpoint: Checkpoint, spoiled: Spoiled) -> tuple[Demonstration, list[Attention]]:
    """The episode as it is after trust-attention, and what that made of each frame that came.

    The last commands that it hears of are the demonstrator's.
    """
    raw, trust = spoiled.shown, TrustAttention(checkpoint.calibration)
    commands = Watched.of(raw.tokens, raw.state, raw.action).commands
    gaps = np.diff(spoiled.came, prepend=0) / checkpoint.rate
    found = [trust.update(raw.tokens[row], float(gap), raw.state[row], commands[row])
             for row, gap in zip(spoiled.came, gaps, strict=True)]  # fmt: skip
    state = raw.state.copy()
    for row, attention in zip(spoiled.came, found, strict=True):
        if attention.state is not None:
            state[row] = attention.state
    return replace(raw, tokens=np.stack([attention.tokens for attention in found])[spoiled.newest], state=state), found


def _error(checkpoint: Checkpoint, shown: Demonstration, every: int, begin: int) -> float:
    checkpoint.policy.reset()
    squared = []
    for row in range(begin, len(shown), max(1, every // PHASES)):
        goal = shown.action[row : row + every]
        chunk = checkpoint.policy.infer(shown.observation(row))
        squared.append((chunk.positions[: len(goal)] - goal) ** 2)
    return float(np.concatenate(squared).mean())


def format_costs(costs: Mapping[str, Cost]) -> str:
    """A line per corruption: error without and with trust-attention, each over the clean one, and their ratio."""
    width = max(map(len, costs))
    head = f"{'':<{width}}  {'without trust':>20}  {'with trust':>20}  {'with / without':>14}"
    clean = costs["clean"].without.mean()
    return "\n".join([head, *(f"{name:<{width}}  {line}" for name, line in _lines(costs, float(clean)))])


def _lines(costs: Mapping[str, Cost], clean: float) -> Iterator[tuple[str, str]]:
    for name, cost in costs.items():
        without, trusting = float(cost.without.mean()), float(cost.trusting.mean())
        cells = [f"{error:12.6f} {error / clean:6.2f}x" for error in (without, trusting)]
        yield name, "  ".join(f"{cell:>20}" for cell in cells) + f"  {trusting / without:>14.2f}"


def costs_to_json(costs: Mapping[str, Cost]) -> dict[str, dict[str, list[float]]]:
    return {name: {"without_trust": c.without.tolist(), "with_trust": c.trusting.tolist()} for name, c in costs.items()}
