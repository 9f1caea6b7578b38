"""Whether a student beats every trivial baseline on episodes that it never saw, by GR00T's open-loop metric.

the package's   distils anew with the shipped student's split, one student per seed, and measures them and the shipped
                one on the held-out episodes (whole, all joints), beside the baselines on the very same rows. Nothing
                was tuned on the held-out episodes; the seeds' spread is shown by the best and the worst.
--dataset       leaves one episode out at a time and trains a student per seed on the others, as `evaluate
                --leave-one-out` does, beside all its baselines; with the bars of GR00T's demonstrations where the
                groups are theirs. --out keeps the trainings: the same command again goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from folds import left_out
from harness import Bar, arguments, conclude

from sage_ros.episodes.dataset import EpisodeDataset
from sage_ros.paths import CHECKPOINT, EPISODES
from sage_ros.policy.checkpoint import load_checkpoint
from sage_ros.policy.student import StudentPolicy
from sage_ros.training import evaluate
from sage_ros.training.baselines import fit_baselines
from sage_ros.training.cloning import CloningConfig, clone
from sage_ros.training.openloop import compare, format_table
from sage_ros.training.tokens import load_demonstrations

GR00T = ["right_arm", "right_hand"]
BARS: dict[str, Bar] = {
    "right_arm_150_steps": ("<=", 0.0110), "right_arm_whole": ("<=", 0.0095),
    "right_arm+right_hand_150_steps": ("<=", 0.060), "right_arm+right_hand_whole": ("<=", 0.25),
}  # fmt: skip
COVERED = 0.9  # the interval whose coverage is told


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="a new student per seed (0 1 2)")
    parser.add_argument("--steps", type=int, default=CloningConfig().steps, help="gradient steps (%(default)s)")
    parser.add_argument("--dataset", default="", help="LeRobot data set folder to leave episodes of out, one by one")
    parser.add_argument("--groups", nargs="+", default=GR00T, help="its joint groups that are scored (%(default)s)")
    parser.add_argument("--out", type=Path, help="keep its trainings here")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (%(default)s)")
    options = parser.parse_args()
    figures, bars = other(options) if options.dataset else package(options)
    conclude("student_left_out" if options.dataset else "student", figures, bars, options.record)
    return 0


def package(options: argparse.Namespace) -> tuple[dict[str, float], dict[str, Bar]]:
    """The shipped student and new ones on the package's held-out episodes."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    shipped, dataset = load_checkpoint(CHECKPOINT), EpisodeDataset(EPISODES)
    shown = {d.index: d for d in load_demonstrations(dataset, shipped.load_encoder(), shipped.cameras[0])}
    train, validation, held_out = ([shown[i] for i in shipped.metrics["split"][part]]
                                   for part in ("train", "validation", "held_out"))  # fmt: skip
    baselines = fit_baselines(train, shipped.horizon)
    students = {"shipped student": shipped.policy}
    for seed in options.seeds:
        cloned = clone(train, validation, shipped.config, CloningConfig(seed=seed, steps=options.steps))
        students[f"new student, seed {seed}"] = StudentPolicy(cloned.student, cloned.normalization, shipped.rate)
    errors = compare({**students, **baselines}, held_out, steps=None)
    print(f"\nerror on {len(held_out)} held-out episodes\n{format_table({'all joints, whole': errors})}")

    mean = {name: float(np.mean(row)) for name, row in errors.items()}
    least = min(mean[name] for name in baselines)
    new = [mean[name] for name in students if name != "shipped student"]
    figures = {name.replace(" ", "_"): mean[name] for name in baselines}
    figures["shipped_student"] = mean["shipped student"]
    figures["shipped_over_best_baseline"] = mean["shipped student"] / least
    bars: dict[str, Bar] = {"shipped_over_best_baseline": ("<=", 1.0)}
    if new:
        figures |= {"best_seed_over_best_baseline": min(new) / least, "worst_seed_over_best_baseline": max(new) / least}
        bars["worst_seed_over_best_baseline"] = ("<=", 1.0)
    return figures, bars


def other(options: argparse.Namespace) -> tuple[dict[str, float], dict[str, Bar]]:
    """Students of another data set, one of whose episodes each has not seen."""
    command = ["--dataset", options.dataset, "--seeds", *map(str, options.seeds), "--groups", *options.groups]
    command += ["--jobs", str(options.jobs)]
    with tempfile.TemporaryDirectory() as scratch:
        found = left_out(command, options.out or Path(scratch))
    figures: dict[str, float] = {}
    bars: dict[str, Bar] = {}
    for name, row in found.items():
        student = row.pop(evaluate.STUDENT)
        seeds = np.mean(student["mse_by_seed_and_episode"], axis=1)
        baseline, least = min(((key, entry["mse"]) for key, entry in row.items()), key=lambda pair: pair[1])
        print(f"{name}: the best baseline is {baseline}")
        figures |= {name: student["mse"], f"{name}_best_seed": float(seeds.min()),
                    f"{name}_worst_seed": float(seeds.max()), f"{name}_best_baseline": least,
                    f"{name}_over_best_baseline": student["mse"] / least}  # fmt: skip
        if "calibration" in student:
            figures[f"{name}_covered"] = student["calibration"][f"covered_{COVERED:.0%}"]
            bars[f"{name}_covered"] = (">=", 0.85)  # and at most 0.95
        bars[f"{name}_over_best_baseline"] = ("<=", 1.0)
    return figures, bars | {name: bar for name, bar in BARS.items() if name in figures}


if __name__ == "__main__":
    sys.exit(main())
