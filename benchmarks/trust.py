"""Whether trust-attention earns its place: what it sees, what that is worth, what it costs; beside two others' ways.

detection   each frame of the package's held-out episodes, clean and with a fault for good from second 1 on, gets the
            greatest surprise of the sources; areas under the ROC curve by kind of corruption, and frames until a source
            is distrusted. Kinds that are held out from all tuning have a line of their own: ``sage_ros/corruption.py``.
alarms      simulated episodes that nothing was fitted to, clean: how often a source is distrusted.
error       GR00T's open-loop metric from the fault on, with trust-attention over without (``evaluate --corrupt``).
closed loop occlusion and freeze in the simulated world: successes with and without, and ticks that the robot held.
cost        50 tokens of 512 features, one core.
beside      on the same frames: Mahalanobis distance (Lee et al. 2018) and 10th nearest neighbour (Sun et al. 2022) of
            the token map in its principal subspace against training frames.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from harness import Bar, arguments, conclude

from sage_ros.core.crosscheck import Checks
from sage_ros.core.expectation import DELAYS, Watched
from sage_ros.core.limits import MOST
from sage_ros.core.trust import Attention, Calibration, TrustAttention
from sage_ros.corruption import DEVELOPMENT, HELD_OUT, CorruptionConfig
from sage_ros.episodes.dataset import EpisodeDataset
from sage_ros.paths import CHECKPOINT, EPISODES
from sage_ros.policy.checkpoint import Checkpoint, load_checkpoint
from sage_ros.sim.trials import Trial, run_trials
from sage_ros.training.corrupted import attend, corruption_costs, spoil
from sage_ros.training.tokens import load_demonstrations
from sage_ros.training.watched import simulated

BEGIN, SEVERITY = 1.0, 3  # s; of 5
UNSEEN = 800_000  # first world seed of the clean episodes, 900,000 of the closed loop
NEIGHBOUR = 10


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--clean", type=int, default=100, help="simulated clean episodes (%(default)s)")
    parser.add_argument("--episodes", type=int, default=10, help="closed loop, of each kind and way (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that simulate (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(CHECKPOINT)
    figures, bars = cost()
    detected, more = detection(checkpoint)
    figures, bars = figures | detected, bars | more
    figures |= alarms(checkpoint, options.clean, options.jobs)
    figures |= errors(checkpoint)
    figures |= closed_loop(options.episodes, options.jobs)
    bars |= {
        "false_alarms_per_10_minutes": ("<=", 1.0), "held_out_error_ratio": ("<=", 0.6),
        "clean_error_ratio": ("<=", 1.02), "unsafe_or_silent": ("<=", 0.0),
    }  # fmt: skip
    conclude("trust", figures, bars, options.record)
    return 0


def detection(checkpoint: Checkpoint) -> tuple[dict[str, float], dict[str, Bar]]:
    dataset, encoder = EpisodeDataset(EPISODES), checkpoint.load_encoder()
    split = checkpoint.metrics["split"]
    held_out = [dataset[dataset.indices.index(index)] for index in split["held_out"]]
    training = load_demonstrations(dataset, encoder, checkpoint.cameras[0], split["train"], progress=False)
    rivals = Rivals(np.concatenate([d.tokens for d in training]))
    scores: dict[str, list[np.ndarray]] = {way: [] for way in ("ours", *rivals.names)}
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    delays: dict[str, list[float]] = {}
    for kind in ("none", *DEVELOPMENT, *HELD_OUT):
        found[kind], delays[kind] = {way: [] for way in scores}, []
        for episode in held_out:
            config = CorruptionConfig(kind, SEVERITY, seed=1000 * episode.index, begin=BEGIN)
            under = spoil(checkpoint, encoder, episode, episode.frames(checkpoint.cameras[0]), config)
            _, seen = attend(checkpoint, under)
            here = under.hit[under.came] if kind != "none" else np.ones(len(under.came), bool)
            tokens = under.shown.tokens[under.came]
            found[kind]["ours"].append(surprises(seen)[here])
            for way, score in rivals.names.items():
                found[kind][way].append(score(tokens)[here])
            doubted = [min(a.sources.values()) < 0.5 or a.confidence < 0.5 for a in seen]
            after = [row for row in range(len(doubted)) if here[row] and doubted[row]]
            first = int(np.argmax(here))
            delays[kind].append(after[0] - first + 1 if after else np.inf)
    figures: dict[str, float] = {}
    for way in scores:
        ordinary = np.concatenate(found["none"][way])
        areas = {kind: auroc(ordinary, np.concatenate(found[kind][way])) for kind in (*DEVELOPMENT, *HELD_OUT)}
        if way == "ours":
            figures |= {f"auroc_{kind}": area for kind, area in areas.items()}
        figures[f"auroc_held_out_{way}"] = float(np.mean([areas[kind] for kind in HELD_OUT]))
        figures[f"auroc_development_{way}"] = float(np.mean([areas[kind] for kind in DEVELOPMENT]))
    for name, kinds in (("held_out", HELD_OUT), ("development", DEVELOPMENT)):
        those = np.concatenate([delays[kind] for kind in kinds])
        figures[f"delay_frames_median_{name}"] = float(np.median(those)) if np.isfinite(np.median(those)) else 1e9
        figures[f"never_noticed_percent_{name}"] = 100 * float(np.mean(~np.isfinite(those)))
    figures |= {f"{way}_ms": rivals.milliseconds(way) for way in rivals.names}
    figures |= {"mahalanobis_mb": rivals.basis.nbytes / 1e6, "neighbours_mb": rivals.bank.nbytes / 1e6}
    figures["ours_mb"] = sum(np.asarray(array).nbytes for array in checkpoint.calibration.arrays().values()) / 1e6
    return figures, {"auroc_held_out_ours": (">=", 0.95), "delay_frames_median_held_out": ("<=", 3.0)}


def surprises(seen: Sequence[Attention]) -> np.ndarray:
    """The greatest surprise of any source, or how far one or the tokens are distrusted: one number a frame."""
    return np.array([max(*a.surprises.values(), 1.0 - min(a.sources.values()), 1.0 - a.confidence) for a in seen])


class Rivals:
    """Novelty of a token map against training frames: what is done where nobody asks the joints."""

    def __init__(self, training: np.ndarray, components: int = 64) -> None:
        flat = training.reshape(len(training), -1).astype(np.float32)
        self.mean = flat.mean(axis=0)
        _, spread, basis = np.linalg.svd(flat[:: max(1, len(flat) // 3000)] - self.mean, full_matrices=False)
        self.basis = (basis[:components].T / (spread[:components] / len(flat) ** 0.5 + 1e-6)).astype(np.float32)
        self.bank = (flat - self.mean) @ self.basis
        self.names: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "mahalanobis": self.mahalanobis, "neighbours": self.neighbours,
        }  # fmt: skip
        self.probe = training[:1]

    def mahalanobis(self, tokens: np.ndarray) -> np.ndarray:
        return np.square((tokens.reshape(len(tokens), -1) - self.mean) @ self.basis).sum(axis=1)

    def neighbours(self, tokens: np.ndarray) -> np.ndarray:
        found = (tokens.reshape(len(tokens), -1) - self.mean) @ self.basis
        return np.array([np.partition(np.square(self.bank - one).sum(axis=1), NEIGHBOUR)[NEIGHBOUR] for one in found])

    def milliseconds(self, way: str) -> float:
        taken = []
        for _ in range(100):
            start = time.perf_counter()
            self.names[way](self.probe)
            taken.append(1e3 * (time.perf_counter() - start))
        return float(np.median(taken))


def auroc(ordinary: np.ndarray, faulty: np.ndarray) -> float:
    """The chance that a faulty frame scores above an ordinary one; a tie counts half (Mann & Whitney 1947)."""
    below = np.searchsorted(np.sort(ordinary), faulty, side="left")
    upto = np.searchsorted(np.sort(ordinary), faulty, side="right")
    return float(((below + upto) / 2).mean() / len(ordinary))


def alarms(checkpoint: Checkpoint, count: int, jobs: int) -> dict[str, float]:
    """Clean episodes of the expert and of the student that nothing was fitted to."""
    raised, frames = 0, 0
    for episode in simulated(checkpoint, count, 1.0, UNSEEN, jobs, progress=False):
        trust, doubted = TrustAttention(checkpoint.calibration), False
        for tokens, state, commands in zip(episode.tokens, episode.state, episode.commands, strict=True):
            seen = trust.update(tokens, 1.0 / checkpoint.rate, state, commands)
            now = min(seen.sources.values()) < 0.5 or seen.confidence < 0.5
            raised += now and not doubted
            doubted = now
        frames += len(episode.state)
    minutes = frames / checkpoint.rate / 60
    return {"clean_minutes": minutes, "false_alarms_per_10_minutes": 10 * raised / minutes}


def errors(checkpoint: Checkpoint) -> dict[str, float]:
    dataset = EpisodeDataset(EPISODES)
    held_out = [dataset[dataset.indices.index(index)] for index in checkpoint.metrics["split"]["held_out"]]
    faults = [CorruptionConfig(kind, SEVERITY, begin=BEGIN) for kind in (*DEVELOPMENT, *HELD_OUT)]
    costs = corruption_costs(checkpoint, checkpoint.load_encoder(), held_out, checkpoint.cameras[0], faults,
                             checkpoint.horizon, seeds=1, progress=False)  # fmt: skip
    figures = {"clean_error_ratio": float(costs["clean"].trusting.mean() / costs["clean"].without.mean())}
    for name, kinds in (("held_out", HELD_OUT), ("development", DEVELOPMENT)):
        with_, without = (np.mean([getattr(costs[f"{kind}:{SEVERITY}"], way).mean() for kind in kinds])
                          for way in ("trusting", "without"))  # fmt: skip
        figures[f"{name}_error_ratio"] = float(with_ / without)
    for kind in (*DEVELOPMENT, *HELD_OUT):
        one = costs[f"{kind}:{SEVERITY}"]
        figures[f"error_ratio_{kind}"] = float(one.trusting.mean() / one.without.mean())
    return figures


def closed_loop(episodes: int, jobs: int) -> dict[str, float]:
    """Faults from 0.3 s on, before the arm has seen where to go. An episode counts as silent if it failed and the robot
    never held."""
    seeds, figures, silent = list(range(900_000, 900_000 + episodes)), dict[str, float](), 0
    for kind in ("none", "occlusion", "freeze"):
        fault = CorruptionConfig() if kind == "none" else CorruptionConfig(kind, SEVERITY, begin=0.3)
        for trust in (True, False):
            trial = Trial("student", MOST, corruption=fault, trust=trust)
            outcomes = list(run_trials([(trial, seed, None) for seed in seeds], jobs))
            name = f"closed_loop_{kind}_{'with' if trust else 'without'}"
            figures[f"{name}_percent"] = 100 * float(np.mean([o.success for o in outcomes]))
            figures[f"{name}_held_ticks"] = float(np.mean([o.holds for o in outcomes]))
            silent += trust and sum(not o.success and not o.holds for o in outcomes)
    return figures | {"unsafe_or_silent": float(silent)}


def cost(tokens: int = 50, features: int = 512, joints: int = 6) -> tuple[dict[str, float], dict[str, Bar]]:
    """Milliseconds of one frame of a moving picture, with all checks."""
    rows = 600
    random = np.random.default_rng(0)
    swing = np.sin(np.arange(rows)[:, None] / 20 * random.uniform(0.5, 2, joints))
    show = random.standard_normal((joints, tokens * features))
    parts = []
    for _ in range(4):
        seen = swing @ show + 0.05 * random.standard_normal((rows, tokens * features))
        parts.append(Watched.of(seen.reshape(rows, tokens, features).astype(np.float32), swing, swing))
    checks = Checks.fit(parts[:2], parts[2:], range(joints), 20.0)
    attention = TrustAttention(replace(Calibration.fit([parts[0].tokens], 20.0), checks=checks))
    taken = []
    for row in range(rows):
        start = time.perf_counter()
        attention.update(parts[3].tokens[row], 0.05, swing[row], parts[3].commands[row, :DELAYS])
        taken.append(1e3 * (time.perf_counter() - start))
    figures = {"ms_p50": float(np.median(taken[50:])), "ms_p99": float(np.quantile(taken[50:], 0.99))}
    return figures, {"ms_p50": ("<=", 2.0), "ms_p99": ("<=", 5.0)}


if __name__ == "__main__":
    sys.exit(main())
