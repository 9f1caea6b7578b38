"""``distil``: train a student on demonstrations, measure it on episodes it never saw, write a checkpoint."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sage_ros import __version__
from sage_ros.core.chunks import ChunkPolicy
from sage_ros.core.trust import Calibration
from sage_ros.episodes.dataset import EpisodeDataset
from sage_ros.episodes.errors import DatasetError
from sage_ros.paths import ENCODER, dataset_path
from sage_ros.policy.checkpoint import check_free, save_checkpoint
from sage_ros.policy.config import StudentConfig
from sage_ros.policy.manifest import INSIDE, CheckpointError, EncoderReference, Manifest
from sage_ros.policy.student import StudentPolicy
from sage_ros.sim.world import RATE, PickPlaceWorld
from sage_ros.training.baselines import Blanked, fit_baselines
from sage_ros.training.calibration import clone_calibrated
from sage_ros.training.cloning import Cloned, CloningConfig, clone
from sage_ros.training.openloop import STEPS, WHOLE, Demonstration, compare, format_table, length_name, no_worse
from sage_ros.training.recipes import ENOUGH, add_training_options, chosen, student_for
from sage_ros.training.simulated import FIRST_SEED, simulate
from sage_ros.training.tokens import load_demonstrations
from sage_ros.vision.encoder import EncoderError, load_encoder

MAX_ENCODER = 32 * 2**20  # bytes: a larger encoder is named, not copied
CALIBRATED = 200  # episodes: more would not change the quantiles, but fill the memory
STUDENT = "student"


@dataclass(frozen=True)
class Split:
    """Episode numbers: fitted on, used to stop training, and looked at only once at the end."""

    train: list[int]
    validation: list[int]
    held_out: list[int]


def split_episodes(indices: Sequence[int], held_out: str, validation: str, seed: int = 0) -> Split:
    """Split by a number of episodes ("8": drawn with ``seed``), a list of them ("0,3,7"), or "auto".

    That holds out a fifth of them, at least one where two episodes are left, and validates on a tenth where so many
    are left that they can be spared.

    Raises ValueError on unknown or doubly used episodes, or if none is left to train on.
    """
    left = list(indices)
    drawn = [left[i] for i in np.random.default_rng(seed).permutation(len(left))]
    chosen: list[list[int]] = []
    for text, share in ((held_out, 5), (validation, 10)):
        if text == "auto":
            spared = share == 5 or len(left) > ENOUGH
            text = str(max(1, len(indices) // share) if len(left) > 1 and spared else 0)
        numbers = [int(part) for part in text.split(",") if part.strip()]
        if "," not in text and len(numbers) == 1:
            numbers = [index for index in drawn if index in left][: numbers[0]] if numbers[0] else []
            if len(numbers) < int(text):
                raise ValueError(f"{text} episodes asked for, but only {len(numbers)} are left of {len(indices)}")
        wrong = sorted(set(numbers) - set(left)) or [n for n in numbers if numbers.count(n) > 1]
        if wrong:
            raise ValueError(f"episodes {wrong} are not in the data set, or are used twice; it has {list(indices)}")
        left = [index for index in left if index not in numbers]
        chosen.append(sorted(numbers))
    if not left:
        raise ValueError(f"no episode is left to train on: {len(indices)} in all, {sum(map(len, chosen))} kept aside")
    return Split(left, chosen[1], chosen[0])


def measure(policies: dict[str, ChunkPolicy], demonstrations: Sequence[Demonstration]) -> dict[str, dict[str, Any]]:
    """GR00T's metric per joint group ("all" too) and length: {"all, whole": {policy: [error per episode]}, ...}."""
    groups = list(demonstrations[0].action_joints.groups)
    table = {}
    for name, only in [("all", list[str]())] + [(group, [group]) for group in groups]:
        for steps in (STEPS, None):
            table[f"{name}, {length_name(steps)}"] = compare(policies, demonstrations, only, steps)
    return table


def distil(
    train: Sequence[Demonstration],
    validation: Sequence[Demonstration],
    held_out: Sequence[Demonstration],
    student: StudentConfig,
    config: CloningConfig,
    seeds: Sequence[int] = (0,),
    blind: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[Cloned, dict[str, Any]]:
    """Train one student per seed and keep the one with the least validation error (the first without validation).

    Returns it and the metrics: its errors on ``held_out`` (``validation``, ``train`` where empty) beside every
    baseline's, and every seed's. ``blind`` also trains a student whose tokens are constant.
    """
    shown = held_out or validation or train
    runs: list[tuple[Cloned, dict[str, Any]]] = []
    for seed in seeds:
        start = time.perf_counter()
        cloned = clone_calibrated(train, validation, student, replace(config, seed=seed), device, progress)
        error = min((point[2] for point in cloned.curve), default=float("nan"))
        alone: dict[str, ChunkPolicy] = {STUDENT: StudentPolicy(cloned.student, cloned.normalization, train[0].rate)}
        runs.append((cloned, {
            "seed": seed,
            "best_step": cloned.step,
            "validation_error": error if validation else None,
            "seconds": round(time.perf_counter() - start, 1),
            "errors": {key: float(np.mean(row[STUDENT])) for key, row in measure(alone, shown).items()},
        }))
    best, chosen = min(runs, key=lambda run: run[1]["validation_error"]) if validation else runs[0]
    policy = StudentPolicy(best.student, best.normalization, train[0].rate)
    blank = np.tile(best.normalization.tokens_mean, (student.tokens, 1)).astype(np.float32)
    policies: dict[str, ChunkPolicy] = {STUDENT: policy, **fit_baselines(train, student.horizon)}
    policies["student, tokens blanked"] = Blanked(policy, blank)
    if blind:
        dark = [[replace(d, tokens=np.zeros_like(d.tokens)) for d in part] for part in (train, validation)]
        other = clone(dark[0], dark[1], student, replace(config, seed=chosen["seed"]), device, progress)
        policies["student, trained blind"] = Blanked(
            StudentPolicy(other.student, other.normalization, train[0].rate), np.zeros_like(blank)
        )
    metrics = {
        "metric": f"mean squared error in raw units, a chunk of {student.horizon} every {student.horizon} rows",
        "measured_on": "held_out" if held_out else "validation" if validation else "train",
        "errors": measure(policies, shown),
        "seed": chosen["seed"],
        "seeds": [run for _, run in runs],
        "curve": [[step, loss, error if validation else None] for step, loss, error in best.curve],
        "config": asdict(config) | {"seed": chosen["seed"]},
        "parameters": sum(p.numel() for p in best.student.parameters()),
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {"sage_ros": __version__, "torch": torch.__version__, "numpy": np.__version__,
                     "python": platform.python_version()},
    }
    return best, metrics


def model_card(metrics: dict[str, Any], manifest: Manifest, tasks: Sequence[str]) -> str:
    """README.md of a checkpoint: what it is for, what it learned from, how it measures up, where it ends."""
    split, data, extra = metrics["split"], metrics["dataset"], metrics["simulated"]
    errors = {key: row for key, row in metrics["errors"].items() if key.startswith("all")}
    spread = [run["errors"][f"all, {WHOLE}"] for run in metrics["seeds"]]
    kept = metrics["measured_on"].replace("_", "-")
    return f"""# Student: {data["name"]}

A chunk policy of {metrics["parameters"]:,} parameters: token map of one camera, joint state, last command and task in
words in; the next {manifest.student.horizon} joint position targets at {manifest.rate:g} Hz out.

- Tasks: {"; ".join(tasks)}
- Joints: {", ".join(manifest.action_joints.names)}
- Camera: {", ".join(manifest.cameras)}
- Encoder: {manifest.encoder.name}, sha256 {manifest.encoder.sha256[:16]}…
- Data: {data["name"]}, {data["episodes"]} episodes, {data["rows"]} rows, sha256 {data["fingerprint"][:16]}…
- Training episodes: {len(split["train"])}; validation (stops the training): {split["validation"]};
  held out: {split["held_out"]}
- Simulated besides: {extra["episodes"]} of the expert, world seeds {extra["seeds"][0]} to {extra["seeds"][1] - 1}, of
  which {extra["validation"]} stop the training

## Error on the {kept} episodes

Open loop, GR00T's metric: {metrics["metric"]}; mean of the episodes. The weights in this folder are the ones measured.

```
{format_table(errors)}
```

{len(spread)} seeds, all joints, whole episodes: {min(spread):.6f} to {max(spread):.6f}; the seed with the least
validation error ({metrics["seed"]}) is in this folder. Every figure, per episode and joint group: `metrics.json`.

## Use and limits

For the robot, camera view and task of the data set, within the range of its actions. Open-loop error says how
near single chunks are to the demonstrations; it does not say that the task succeeds when the student acts on its own
results. Other objects, lights, views or robots are outside of what it has seen.
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return run(args)
    except (CheckpointError, DatasetError, EncoderError, ValueError) as error:
        print(f"distil: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    out = Path(args.out).expanduser()
    check_free(out, args.overwrite)
    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    dataset = EpisodeDataset(dataset_path(args.dataset))
    split = split_episodes(dataset.indices, args.holdout, args.validation, args.split_seed)
    config, sizes = chosen(args, len(split.train) + args.simulate)
    source = args.encoder_source or str(ENCODER)
    encoder = load_encoder(args.encoder, source, device)
    camera = args.camera or dataset.cameras[0]
    by_index = {d.index: d for d in load_demonstrations(dataset, encoder, camera)}
    train, validation, held_out = ([by_index[i] for i in part] for part in asdict(split).values())
    first = train[0]
    simulated = co_train(args.simulate, args.jobs, args.encoder, source, first) if args.simulate else []
    student = student_for(train + simulated, encoder.grid, encoder.features, sizes)
    print(f"{len(train)} training, {len(validation)} validation, {len(held_out)} held-out episodes, "
          f"{len(simulated)} simulated; {device}")
    aside = len(simulated) // 50  # stop the training too: recorded and simulated pictures differ a little
    train, validation = train + simulated[aside:], validation + simulated[:aside]
    best, metrics = distil(train, validation, held_out, student, config, args.seeds, args.blind, device)
    metrics |= {
        "dataset": {"name": dataset.path.name, "fingerprint": dataset.fingerprint(), "episodes": len(dataset),
                    "rows": sum(map(len, by_index.values()))},
        "split": asdict(split),
        "simulated": {"episodes": len(simulated), "validation": aside,
                      "seeds": [FIRST_SEED, FIRST_SEED + args.simulate]},
    }
    files = portable_encoder(source)
    manifest = Manifest(
        student, first.rate, (camera,), first.state_joints, first.action_joints,
        EncoderReference(encoder.name, INSIDE if files else source, encoder.sha256), files={},
    )
    calibration = Calibration.fit([d.tokens for d in train[:CALIBRATED]], first.rate)
    card = model_card(metrics, manifest, dataset.tasks)
    save_checkpoint(out, best.student, manifest, best.normalization, calibration, metrics, card, files, args.overwrite)
    print(f"\nError on the {metrics['measured_on'].replace('_', '-')} episodes (GR00T's metric, mean of episodes)")
    print(format_table({key: row for key, row in metrics["errors"].items() if key.startswith("all")}))
    for warning in not_beaten(metrics["errors"]):
        print(warning)
    print(f"\ncheckpoint: {out}")
    return 0


def co_train(count: int, jobs: int, encoder: str, source: str, like: Demonstration) -> list[Demonstration]:
    """Simulated demonstrations to train on beside ``like``. Raises ValueError where they are of another robot."""
    joints = PickPlaceWorld.joint_layout.names
    if (like.state_joints.names, like.action_joints.names, like.rate) != (joints, joints, RATE):
        raise ValueError(f"--simulate makes episodes of {', '.join(joints)} at {RATE:g} Hz, but the data set has "
                         f"{', '.join(like.action_joints.names)} at {like.rate:g} Hz: leave it out")  # fmt: skip
    return simulate(count, encoder, source, jobs=jobs)


def not_beaten(errors: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """A sentence per measurement of all joints in which a trivial baseline errs no more than the student."""
    found = []
    for key, row in errors.items():
        if key.startswith("all") and (better := no_worse(row, STUDENT)):
            found.append(f"warning: on '{key}' {', '.join(better)} err no more than the student, which is not worth "
                         "running yet: more episodes help most")  # fmt: skip
    return found


def pick_device(name: str) -> str:
    """The torch device for ``auto``, ``cpu`` or ``cuda``. Raises ValueError where there is no such device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch sees no CUDA device here; use --device cpu")
    return name


def portable_encoder(source: str) -> Path | None:
    """The encoder's folder if it is small enough to travel inside a checkpoint, else None."""
    folder = Path(source).expanduser()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else MAX_ENCODER
    return folder if size < MAX_ENCODER else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("distil", description=__doc__)
    parser.add_argument("--dataset", default="", help="LeRobot data set folder (default: the one in the package)")
    parser.add_argument("--out", required=True, help="folder of the new checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint that is there")
    parser.add_argument("--encoder", default="tiny_vae", help="encoder by name (%(default)s)")
    parser.add_argument("--encoder-source", default="", help="its folder or hub name (default: the one in the package)")
    parser.add_argument("--camera", default="", help="camera by name (default: the data set's first)")
    parser.add_argument("--holdout", default="auto", metavar="N|LIST",
                        help="episodes kept for the final table: how many, or which, as 0,3,7 (auto: a fifth)")
    parser.add_argument("--validation", default="auto", metavar="N|LIST",
                        help="episodes that stop the training: how many, or which (auto: a tenth, none of a few)")
    parser.add_argument("--split-seed", type=int, default=0, help="seed that draws these episodes (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a student per seed; the best is kept")
    parser.add_argument("--blind", action="store_true", help="also train a student that sees nothing, to compare")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    parser.add_argument("--threads", type=int, default=max(1, min(8, os.cpu_count() or 1)), help="CPU threads")
    parser.add_argument("--simulate", type=int, default=0, metavar="N",
                        help="train also on N demonstrations of the simulated expert, made in memory (%(default)s)")
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1), help="processes that simulate")
    add_training_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
