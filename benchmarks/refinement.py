"""What refinement and the gate buy in action error, and what they cost.

curve  held-out episodes of the package: the action error (GR00T's metric) of the shipped student on tokens of 0 to 4
       refinement steps, their energy, and the time of a frame; with --lite0, also of a student of EfficientNet-Lite0
       that is trained here, whose steps are closer looks.
gate   --real FOLDER, GR00T's demonstration episodes, leave one out: a student with eyes on tokens of every frame, and
       on those of the frames that the gate lets through, both without refinement steps. The gate's threshold is chosen
       on the training episodes alone, as the least that spares the encoder three of five of their frames.
       Without --real, the same on the package's held-out episodes with the shipped student.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from harness import Bar, arguments, conclude

from sage_ros.core.chunks import ChunkPolicy
from sage_ros.core.irp import Budget
from sage_ros.episodes.dataset import Episode, EpisodeDataset
from sage_ros.paths import CHECKPOINT, ENCODER, EPISODES
from sage_ros.policy.checkpoint import load_checkpoint
from sage_ros.policy.student import StudentPolicy
from sage_ros.training.cloning import CloningConfig, clone
from sage_ros.training.openloop import Demonstration, demonstration, open_loop_error
from sage_ros.training.recipes import FEW, recipe, student_for
from sage_ros.training.tokens import load_demonstrations
from sage_ros.vision.encoder import Encoder, load_encoder
from sage_ros.vision.lite0 import PACKAGE
from sage_ros.vision.runtime import Runtime
from sage_ros.vision.stillness import Stillness

STEPS = (0, 1, 2, 4)
THRESHOLDS = (4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 40.0, 48.0, 64.0, 96.0)
SPARED = 0.6  # of the training frames: looking whether one is still takes time too, and other episodes move more
LONGEST = 0.5  # s, the node's default


def see(encoder: Encoder, episode: Episode, budget: Budget, gate: Stillness) -> tuple[Demonstration, float, int]:
    """The episode as the node would show it, the seconds that took, and how many frames were encoded."""
    tokens, encoded = list[np.ndarray](), 0
    frames = episode.frames()
    begin = time.perf_counter()
    for row, frame in enumerate(frames):
        if gate.holds(round(row / episode.fps * 1e9), frame) and tokens:
            tokens.append(tokens[-1])
            continue
        tokens.append(encoder.refine(frame, budget).state)
        encoded += 1
    return demonstration(episode, np.stack(tokens)), time.perf_counter() - begin, encoded


def curve(name: str, encoder: Encoder, policy: ChunkPolicy, episodes: Sequence[Episode]) -> dict[str, float]:
    """Action error, energy and time by steps; no tolerance, so that every step is taken."""
    figures = dict[str, float]()
    print(f"\n{name}: steps, energy, ms a frame, action error, of that without steps")
    for steps in STEPS:
        energies = [encoder.refine(episode.frames()[row], Budget(max(steps, 1), tolerance=0.0)).energies
                    for episode in episodes[:3] for row in range(0, len(episode), 40)]  # fmt: skip
        energy = float(np.mean([found[min(steps, len(found) - 1)] for found in energies]))
        found = [see(encoder, episode, Budget(steps, tolerance=0.0), Stillness(0.0, 0.0)) for episode in episodes]
        error = float(np.mean([open_loop_error(policy, shown, steps=None) for shown, _, _ in found]))
        milliseconds = 1e3 * sum(spent for _, spent, _ in found) / sum(map(len, episodes))
        measured = {"energy": energy, "ms": milliseconds, "error": error}
        figures |= {f"{name}_{steps}_{kind}": value for kind, value in measured.items()}
        print(f"{steps:5d} {energy:12.6f} {milliseconds:9.2f} {error:12.6f} {error / figures[f'{name}_0_error']:7.3f}",
              flush=True)  # fmt: skip
    return figures


def choose(episodes: Sequence[Episode]) -> float:
    """The least threshold that spares the encoder so many of these episodes' frames, or the greatest that is tried."""
    films = [(episode.fps, episode.frames()) for episode in episodes]
    for threshold in THRESHOLDS:
        held = []
        for fps, frames in films:
            gate = Stillness(threshold, LONGEST)
            held += [gate.holds(round(row / fps * 1e9), frame) for row, frame in enumerate(frames)]
        if np.mean(held) >= SPARED:
            break
    return threshold


def gated(
    encoder: Encoder, policy: ChunkPolicy, episodes: Sequence[Episode], threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of encoding and action errors (2,): of every frame, and of those that the gate lets through."""
    spent, errors = np.zeros(2), np.zeros(2)
    for episode in episodes:
        for way, gate in enumerate((Stillness(0.0, 0.0), Stillness(threshold, LONGEST))):
            shown, seconds, _ = see(encoder, episode, Budget(0), gate)
            spent[way] += seconds
            errors[way] += open_loop_error(policy, shown, steps=None) / len(episodes)
    return spent, errors


def verdict(spent: np.ndarray, errors: np.ndarray) -> dict[str, float]:
    return {
        "encoder_s_every_frame": spent[0], "encoder_s_gated": spent[1], "encoder_time_spared": 1 - spent[1] / spent[0],
        "error_every_frame": errors[0], "error_gated": errors[1], "error_added": errors[1] / errors[0] - 1,
    }  # fmt: skip


def real(folder: Path, steps: int) -> dict[str, float]:
    """Leave one episode out with a student that has eyes."""
    dataset, encoder = EpisodeDataset(folder), load_encoder("tiny_vae", ENCODER)
    shown = load_demonstrations(dataset, encoder)
    config, sizes = recipe(FEW, len(dataset) - 1)
    config, sizes = replace(config, steps=steps), sizes | {"queries": 8}
    spent, errors = np.zeros(2), np.zeros(2)
    for place in range(len(dataset)):
        train = [d for index, d in enumerate(shown) if index != place]
        cloned = clone(train, [], student_for(train, encoder.grid, encoder.features, sizes), config)
        policy = StudentPolicy(cloned.student, cloned.normalization, train[0].rate)
        threshold = choose([dataset[index] for index in range(len(dataset)) if index != place])
        torch.set_num_threads(1)
        found = gated(encoder, policy, [dataset[place]], threshold)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        print(f"episode {place} held out: threshold {threshold:g}, time {found[0]}, error {found[1]}", flush=True)
        spent, errors = spent + found[0], errors + found[1] / len(dataset)
    return verdict(spent, errors)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--real", default="", metavar="FOLDER", help="GR00T's demonstration episodes")
    parser.add_argument("--lite0", action="store_true", help="a curve of EfficientNet-Lite0 too, which takes minutes")
    parser.add_argument("--episodes", type=int, default=8, help="held-out episodes of the package (%(default)s)")
    parser.add_argument("--steps", type=int, default=500, help="gradient steps of a student (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shipped, dataset = load_checkpoint(CHECKPOINT), EpisodeDataset(EPISODES)
    parts = [[dataset[dataset.indices.index(i)] for i in shipped.metrics["split"][part]]
             for part in ("train", "held_out")]  # fmt: skip
    held_out = parts[1][: options.episodes]
    encoder = shipped.load_encoder()
    figures = curve("tiny_vae", encoder, shipped.policy, held_out)
    if options.lite0:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        lite0 = load_encoder("lite0", PACKAGE, runtime=Runtime("onnxruntime", "fp32", 2))
        train = load_demonstrations(dataset, lite0, episodes=shipped.metrics["split"]["train"])
        sizes = replace(shipped.config, grid=lite0.grid, features=lite0.features)
        cloned = clone(train, [], sizes, CloningConfig(steps=options.steps))
        figures |= curve("lite0", lite0, StudentPolicy(cloned.student, cloned.normalization, shipped.rate), held_out)
    if options.real:
        figures |= real(Path(options.real), options.steps)
    else:
        threshold = choose(parts[0][:8])
        print(f"\ngate on the package's episodes: threshold {threshold:g}")
        figures |= verdict(*gated(encoder, shipped.policy, held_out, threshold))
    bars: dict[str, Bar] = {"encoder_time_spared": (">=", 0.4), "error_added": ("<=", 0.02)}
    conclude("refinement", figures, bars, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
