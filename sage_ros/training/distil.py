"""``distil``: train a student on demonstrations, measure it on episodes it never saw, write a checkpoint.

Examples:
  distil --dataset ~/pick --out ~/students/pick --seeds 0 1 2
  distil --dataset ~/pick --labels ~/labels/pick --out ~/students/pick     # from a teacher's chunks, see `label`
  torchrun --standalone --nproc-per-node 2 -m sage_ros.training.distil --dataset ~/many --out ~/students/many \\
      --precision bf16 --batch-size 4096 --curves ~/curves                 # two GPUs; `accelerate launch` as well

A training that was killed goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
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
from sage_ros.teacher.labels import LabelError, label_origin, load_labels
from sage_ros.training.baselines import Blanked, fit_baselines
from sage_ros.training.calibrate import with_checks
from sage_ros.training.calibration import clone_calibrated
from sage_ros.training.card import model_card
from sage_ros.training.cloning import Cloned, clone
from sage_ros.training.engine import PRECISIONS, Engine, default_memory
from sage_ros.training.openloop import STEPS, Demonstration, blinded, compare, format_table, length_name, no_worse
from sage_ros.training.recipes import ENOUGH, add_training_options, chosen, student_for
from sage_ros.training.resume import INDEX, Unfinished, unfinished_folder
from sage_ros.training.settings import CloningConfig
from sage_ros.training.simulated import FIRST_SEED, simulate
from sage_ros.training.tokens import load_demonstrations
from sage_ros.training.watched import recorded
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
    engine: Engine | str = "cpu",
    progress: bool = True,
    unfinished: Unfinished | None = None,
) -> tuple[Cloned, dict[str, Any]]:
    """Train one student per seed and keep the one with the least validation error (the first without validation).

    Returns it and the metrics: its errors on ``held_out`` (``validation``, ``train`` where empty) beside every
    baseline's, and every seed's. ``blind`` also trains a student whose tokens are constant. Every process of ``engine``
    trains, only the first one measures: the others' metrics are empty.
    """
    engine = Engine(engine) if isinstance(engine, str) else engine
    shown = held_out or validation or train
    runs: list[tuple[Cloned, dict[str, Any]]] = []
    for seed in seeds:
        start = time.perf_counter()
        cloned = clone_calibrated(
            train, validation, student, replace(config, seed=seed), engine, progress, unfinished, f"seed_{seed}"
        )
        error = min((point[2] for point in cloned.curve), default=float("nan"))
        alone: dict[str, ChunkPolicy] = {STUDENT: StudentPolicy(cloned.student, cloned.normalization, train[0].rate)}
        runs.append((cloned, {
            "seed": seed,
            "best_step": cloned.step,
            "validation_error": error if validation else None,
            "seconds": round(time.perf_counter() - start, 1),
            "errors": {key: float(np.mean(row[STUDENT])) for key, row in measure(alone, shown).items()}
            if engine.main else {},
        }))
    best, chosen = min(runs, key=lambda run: run[1]["validation_error"]) if validation else runs[0]
    other = None
    if blind:
        other = clone(
            blinded(train), blinded(validation), student, replace(config, seed=chosen["seed"]), engine, progress,
            unfinished, "blind",
        )  # fmt: skip
    if not engine.main:
        return best, {}
    policy = StudentPolicy(best.student, best.normalization, train[0].rate)
    blank = np.tile(best.normalization.tokens_mean, (student.tokens, 1)).astype(np.float32)
    policies: dict[str, ChunkPolicy] = {STUDENT: policy, **fit_baselines(train, student.horizon)}
    policies["student, tokens blanked"] = Blanked(policy, blank)
    if other:
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
        "device": engine.device.type,
        "processes": engine.processes,
        "precision": engine.precision,
        "threads": torch.get_num_threads(),
        "versions": {"sage_ros": __version__, "torch": torch.__version__, "numpy": np.__version__,
                     "python": platform.python_version()},
    }
    return best, metrics


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return run(args)
    except (CheckpointError, DatasetError, EncoderError, LabelError, ValueError) as error:
        print(f"distil: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        print(f"distil: {_first_line(error)}\ndistil: out of memory: {remedies(args)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("distil: stopped; the same command goes on from where it last saved", file=sys.stderr)
        return 130


def _out_of_memory(error: BaseException) -> bool:
    """Torch on a CPU says so in words only."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def remedies(args: argparse.Namespace) -> str:
    """What to lower where memory does not suffice, with its present value."""
    memory = f"{args.memory:g} GiB" if args.memory is not None else "half of what there is"
    now = {"batch-size": args.batch_size, "trunk": args.trunk, "width": args.width}
    sizes = ", ".join(f"--{name}" + (f" (now {value})" if value else "") for name, value in now.items())
    return (f"lower --memory (now {memory}), so that tokens stay on disk, or {sizes}; or compute a step in more parts "
            f"with --accumulate (now {args.accumulate}), which changes little else")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    out = Path(args.out).expanduser()
    check_free(out, args.overwrite)
    torch.set_num_threads(args.threads)
    if args.memory is not None and args.memory <= 0:
        raise ValueError(f"--memory is {args.memory}, but must be positive, in GiB")
    engine = Engine(
        args.device, args.precision, args.accumulate, None if args.memory is None else int(args.memory * 2**30),
        Path(args.curves).expanduser() if args.curves else None, args.save_every,
    )  # fmt: skip
    if engine.memory is None:
        engine.memory = default_memory(engine.device, engine.processes)
    say = print if engine.main else lambda *_: None
    dataset = EpisodeDataset(dataset_path(args.dataset))
    split = split_episodes(dataset.indices, args.holdout, args.validation, args.split_seed)
    config, sizes = chosen(args, len(split.train) + args.simulate)
    source = args.encoder_source or str(ENCODER)
    engine.share(config.batch_size)
    encoder = load_encoder(args.encoder, source, str(engine.device))
    camera = args.camera or dataset.cameras[0]
    mine = dataset.indices[engine.rank :: engine.processes]
    if engine.processes > 1:  # each encodes its share, then all read all
        load_demonstrations(dataset, encoder, camera, mine, memory=engine.memory, progress=engine.main)
        engine.gather([0])
    everything = load_demonstrations(dataset, encoder, camera, memory=engine.memory, progress=engine.main)
    origin = None
    if args.labels:
        everything = labelled(everything, args.labels, dataset, split.train)
        origin = label_origin(args.labels)
    elif args.labelled_only:
        raise ValueError("--labelled-only needs --labels FOLDER")
    by_index = {d.index: d for d in everything}
    train, validation, held_out = ([by_index[i] for i in part] for part in asdict(split).values())
    first = train[0]
    jobs = max(1, args.jobs // engine.processes)
    simulated = co_train(args.simulate, jobs, args.encoder, source, first) if args.simulate else []
    student = student_for(train + simulated, encoder.grid, encoder.features, sizes)
    say(f"{len(train)} training, {len(validation)} validation, {len(held_out)} held-out episodes, "
        f"{len(simulated)} simulated; {engine.describe()}")
    if origin:
        say(f"taught by {origin['teacher']}: {taught(train)} of {sum(map(len, train))} training rows are labelled")
    aside = len(simulated) // 50  # stop the training too: recorded and simulated pictures differ a little
    train, validation = train + simulated[aside:], validation + simulated[:aside]
    fingerprint = dataset.fingerprint()
    unfinished = open_unfinished(out, args.restart, engine, {
        "settings": asdict(config), "student": asdict(student), "seeds": args.seeds, "blind": args.blind,
        "split": asdict(split), "dataset": fingerprint, "camera": camera, "encoder": encoder.sha256,
        "simulated": args.simulate, "labels": origin, "device": engine.device.type, "precision": engine.precision,
        "processes": engine.processes, "accumulate": args.accumulate, "threads": args.threads,
        "versions": [__version__, torch.__version__, np.__version__],
    })  # fmt: skip
    best, metrics = distil(train, validation, held_out, student, config, args.seeds, args.blind, engine,
                           unfinished=unfinished)  # fmt: skip
    engine.close()
    if not engine.main:
        return 0
    metrics |= {
        "dataset": {"name": dataset.path.name, "fingerprint": fingerprint, "episodes": len(dataset),
                    "rows": sum(map(len, by_index.values()))},
        "split": asdict(split),
        "labels": None if origin is None else origin | {"training_rows": taught(train), "of": sum(map(len, train))},
        "simulated": {"episodes": len(simulated), "validation": aside,
                      "seeds": [FIRST_SEED, FIRST_SEED + args.simulate]},
    }
    files = portable_encoder(source)
    manifest = Manifest(
        student, first.rate, (camera,), first.state_joints, first.action_joints,
        EncoderReference(encoder.name, INSIDE if files else source, encoder.sha256), files={},
    )
    calibration = Calibration.fit([d.tokens for d in train[:CALIBRATED]], first.rate)
    try:
        calibration = with_checks(calibration, [recorded(train)], student)
    except ValueError as lacking:
        say(f"without checks of camera, joints and commands against each other: {lacking}; see `calibrate`")
    card = model_card(metrics, manifest, dataset.tasks)
    save_checkpoint(out, best.student, manifest, best.normalization, calibration, metrics, card, files, args.overwrite)
    unfinished.remove()
    print(f"\nError on the {metrics['measured_on'].replace('_', '-')} episodes (GR00T's metric, mean of episodes)")
    print(format_table({key: row for key, row in metrics["errors"].items() if key.startswith("all")}))
    for warning in not_beaten(metrics["errors"]):
        print(warning)
    print(f"\ncheckpoint: {out}")
    return 0


def open_unfinished(out: Path, restart: bool, engine: Engine, key: Mapping[str, Any]) -> Unfinished:
    """What an interrupted training of ``out`` left behind, for all processes. Raises ValueError, see `Unfinished`."""
    folder = unfinished_folder(out)
    if engine.main:
        if restart and (folder / INDEX).exists():
            shutil.rmtree(folder)
        going_on = (folder / INDEX).exists()
        Unfinished(folder, key)
        if going_on:
            print(f"goes on with the interrupted training in {folder}")
    engine.gather([0])  # the others wait
    return Unfinished(folder, key)


def labelled(
    demonstrations: Sequence[Demonstration], folder: str, dataset: EpisodeDataset, train: Sequence[int]
) -> list[Demonstration]:
    """The demonstrations with a teacher's labels of the data set, where there are any.

    Raises LabelError where they are of another data set, too short, or where no episode of ``train`` is labelled.
    """
    labels, horizon = load_labels(folder, dataset), StudentConfig.horizon
    reach = next(iter(labels.values())).shape[1]
    if reach < horizon:
        raise LabelError(f"{folder}: the labels reach {reach} rows ahead, but a student's chunk has {horizon}: label "
                         "with a teacher of a longer horizon")  # fmt: skip
    if not set(labels) & set(train):
        raise LabelError(f"{folder}: only episodes {sorted(labels)} are labelled, none of which is trained on: run "
                         "`label` to the end, or choose others with --holdout and --validation")  # fmt: skip
    return [replace(d, labels=labels.get(d.index)) for d in demonstrations]


def taught(demonstrations: Sequence[Demonstration]) -> int:
    """How many rows have a teacher's label."""
    return sum(int(np.isfinite(d.labels[:, 0, 0]).sum()) for d in demonstrations if d.labels is not None)


def co_train(count: int, jobs: int, encoder: str, source: str, like: Demonstration) -> list[Demonstration]:
    """Simulated demonstrations to train on beside ``like``. Raises ValueError where they are of another robot."""
    joints = PickPlaceWorld.joint_layout.names
    if (like.state_joints.names, like.action_joints.names, like.rate) != (joints, joints, RATE):
        raise ValueError(f"--simulate makes episodes of {', '.join(joints)} at {RATE:g} Hz, but the data set has "
                         f"{', '.join(like.action_joints.names)} at {like.rate:g} Hz: leave it out")  # fmt: skip
    return simulate(range(FIRST_SEED, FIRST_SEED + count), encoder, source, jobs)


def not_beaten(errors: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """A sentence per measurement of all joints in which a trivial baseline errs no more than the student."""
    found = []
    for key, row in errors.items():
        if key.startswith("all") and (better := no_worse(row, STUDENT)):
            found.append(f"warning: on '{key}' {', '.join(better)} err no more than the student, which is not worth "
                         "running yet: more episodes help most")  # fmt: skip
    return found


def portable_encoder(source: str) -> Path | None:
    """The encoder's folder if it is small enough to travel inside a checkpoint, else None."""
    folder = Path(source).expanduser()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else MAX_ENCODER
    return folder if size < MAX_ENCODER else None


def _precision() -> str:
    """What `accelerate launch` was told, else full precision."""
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return next((ours for ours, theirs in PRECISIONS.items() if theirs == told), "fp32")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "distil", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    parser.add_argument("--labels", default="", metavar="FOLDER",
                        help="learn a teacher's chunks that `label` has written, instead of the recorded actions; rows "
                        "and joints without a label, and what lies beyond the teacher's horizon, stay as recorded")
    parser.add_argument("--labelled-only", action="store_true", help="leave training rows without a label out")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    parser.add_argument("--precision", default=_precision(), choices=PRECISIONS,
                        help="of the network's arithmetic (%(default)s; as `accelerate launch` says); weights are fp32")
    parser.add_argument("--accumulate", type=int, default=1, metavar="N",
                        help="compute each step's rows in N parts, for a GPU with little memory (%(default)s)")
    parser.add_argument("--memory", type=float, metavar="GIB",
                        help="what training rows may take per process; where it is too little, tokens stay on disk and "
                        "are read as rows are drawn (half of the machine's or of the GPU's, the less)")
    parser.add_argument("--curves", default="", metavar="DIR", help="write TensorBoard curves there")
    parser.add_argument("--save-every", type=int, default=500, metavar="STEPS",
                        help="steps between two savings that a killed training goes on from (%(default)s)")
    parser.add_argument("--restart", action="store_true", help="begin anew, whatever an interrupted training has left")
    parser.add_argument("--threads", type=int, default=max(1, min(8, os.cpu_count() or 1)), help="CPU threads")
    parser.add_argument("--simulate", type=int, default=0, metavar="N",
                        help="train also on N demonstrations of the simulated expert, made in memory (%(default)s)")
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1), help="processes that simulate")
    add_training_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
