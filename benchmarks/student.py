"""Whether a student distilled on the package's episodes beats every trivial baseline on episodes that it never saw.

Distils anew with the shipped student's split, one student per seed, and measures them and the shipped one on the
held-out episodes by GR00T's open-loop metric (whole episodes, all joints), beside the baselines on the very same rows.
Nothing was tuned on the held-out episodes; the seeds' spread is shown by the best and the worst.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import torch
from harness import arguments, conclude

from sage_ros.episodes.dataset import EpisodeDataset
from sage_ros.paths import CHECKPOINT, EPISODES
from sage_ros.policy.checkpoint import load_checkpoint
from sage_ros.policy.student import StudentPolicy
from sage_ros.training.baselines import fit_baselines
from sage_ros.training.cloning import CloningConfig, clone
from sage_ros.training.openloop import compare, format_table
from sage_ros.training.tokens import load_demonstrations


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="a new student per seed (0 1 2)")
    parser.add_argument("--steps", type=int, default=CloningConfig().steps, help="gradient steps (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
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
    bars = {"shipped_over_best_baseline": ("<=", 1.0)}
    if new:
        figures |= {"best_seed_over_best_baseline": min(new) / least, "worst_seed_over_best_baseline": max(new) / least}
        bars["worst_seed_over_best_baseline"] = ("<=", 1.0)
    conclude("student", figures, bars, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
