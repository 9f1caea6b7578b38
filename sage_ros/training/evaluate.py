"""Open-loop error on whole episodes, beside every trivial baseline: of a checkpoint, or left one out at a time."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from sage_ros.core.chunks import ChunkPolicy
from sage_ros.core.joints import JointError
from sage_ros.episodes.dataset import EpisodeDataset
from sage_ros.episodes.errors import DatasetError
from sage_ros.paths import ENCODER, checkpoint_path, dataset_path
from sage_ros.policy.checkpoint import Checkpoint, load_checkpoint
from sage_ros.policy.manifest import CheckpointError
from sage_ros.training.baselines import Blanked, fit_all_baselines
from sage_ros.training.corrupted import Cost, corruption_costs, costs_to_json, format_costs, parse_corruptions
from sage_ros.training.crossval import leave_one_out, read_predictions
from sage_ros.training.evaluation_report import write_report
from sage_ros.training.measures import find_grippers
from sage_ros.training.openloop import (
    EVERY,
    STEPS,
    Demonstration,
    Prediction,
    fit_layout,
    format_table,
    predict_chunks,
)
from sage_ros.training.recipes import ENOUGH
from sage_ros.training.scores import Evaluation, choose_subsets, claims, to_json
from sage_ros.training.tokens import load_demonstrations
from sage_ros.training.trainers import CloneStudent, student_options
from sage_ros.vision.encoder import EncoderError, load_encoder

EPILOG = """\
The metric is GR00T's: a chunk every 16 rows, compared row by row with what was demonstrated, mean squared error in raw
units over the first 150 rows and over whole episodes. Beside it: the error of each joint in rad, how well the gripper's
switches are met, the steps between chunks, acceleration and jerk inside of them, and the coverage of the policy's own
intervals where it gives standard deviations. Baselines are fitted on the training episodes, never on what is shown.

examples:
  evaluate                                                         the package's student on its held-out episodes
  evaluate --checkpoint ~/students/mine --dataset ~/episodes/mine --report ~/report
  evaluate --dataset ~/episodes/gr1 --leave-one-out --groups right_arm right_hand --seeds 0 1 2 --out ~/folds
  evaluate --corrupt occlusion:4 blur                              what a bad camera costs (docs/corruption.md)
  evaluate --dataset ~/episodes/gr1 --leave-one-out --out ~/folds -- --steps 500 --lr 3e-4

--leave-one-out trains one student per episode and seed on the other episodes; it needs --out, a folder that it fills
and goes on with after an interruption. What stands after -- sets the training as in distil (evaluate -- --help).
"""
STUDENT = "student"


def require_joints(checkpoint: Checkpoint, dataset: EpisodeDataset) -> None:
    """Raises CheckpointError naming the joints of the student that the data set does not have."""
    for what, ours, theirs in (
        ("state", checkpoint.state_joints, dataset.state_joints),
        ("action", checkpoint.action_joints, dataset.action_joints),
    ):
        if missing := [name for name in ours.names if name not in theirs.names]:
            raise CheckpointError(
                f"the {what} joints of {dataset.path} are {', '.join(theirs.names)}, but {checkpoint.folder} was "
                f"trained on {', '.join(ours.names)}: {', '.join(missing)} missing. Evaluate it on episodes of its "
                "robot, or distil a student for these"
            )


def require_rate(checkpoint: Checkpoint, dataset: EpisodeDataset) -> None:
    """Raises CheckpointError unless the data set's rate is the student's."""
    if abs(checkpoint.rate - dataset.fps) > 1e-3 * checkpoint.rate:
        raise CheckpointError(
            f"{dataset.path} is at {dataset.fps:g} Hz, but {checkpoint.folder} answers at {checkpoint.rate:g} Hz: "
            "record at that rate, or distil a student at this one"
        )


def choose_episodes(
    checkpoint: Checkpoint, dataset: EpisodeDataset, wanted: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Episodes to evaluate on, and episodes to fit the baselines on.

    On the data set that the student was trained on: its held-out episodes unless others are asked for, and its own
    training episodes. On another: what is asked for, and the rest. Raises ValueError if nothing is left to fit on.
    """
    if checkpoint.metrics.get("dataset", {}).get("fingerprint") == dataset.fingerprint():
        split = checkpoint.metrics["split"]
        return list(wanted) or split["held_out"] or list(dataset.indices), split["train"]
    evaluated = list(wanted) or list(dataset.indices)[len(dataset) // 2 :]
    rest = [index for index in dataset.indices if index not in evaluated]
    if not rest:
        raise ValueError(f"no episode of {dataset.path} is left to fit the baselines on: name fewer with --episodes")
    return evaluated, rest


def predict_all(
    policies: Mapping[str, ChunkPolicy], demonstrations: Sequence[Demonstration], every: int
) -> dict[str, dict[int, list[Prediction]]]:
    """Whole-episode predictions of policies without seeds, as an :class:`Evaluation` takes them."""
    bar = tqdm(policies.items(), desc="evaluate", unit="policy", leave=False)
    return {name: {0: [predict_chunks(policy, d, every=every) for d in demonstrations]} for name, policy in bar}


def left_out_baselines(
    demonstrations: Sequence[Demonstration], held: Sequence[int], every: int, grippers: Sequence[str]
) -> dict[str, dict[int, list[Prediction]]]:
    """Every baseline on each episode of ``held``, fitted on all the others."""
    found: dict[str, dict[int, list[Prediction]]] = {}
    for index in tqdm(held, desc="fit the baselines", unit="fold", leave=False):
        (shown,) = (d for d in demonstrations if d.index == index)
        rest = [d for d in demonstrations if d.index != index]
        for name, policy in fit_all_baselines(rest, every, every, grippers).items():
            found.setdefault(name, {0: []})[0].append(predict_chunks(policy, shown))
    return found


def evaluate_checkpoint(args: argparse.Namespace) -> Evaluation:
    checkpoint = load_checkpoint(checkpoint_path(args.checkpoint), args.device)
    dataset = EpisodeDataset(dataset_path(args.dataset))
    require_joints(checkpoint, dataset)
    require_rate(checkpoint, dataset)
    evaluated, fitted = choose_episodes(checkpoint, dataset, args.episodes)
    encoder = checkpoint.load_encoder(args.device)
    camera = checkpoint.cameras[0] if checkpoint.cameras[0] in dataset.cameras else None
    shown, training = (
        [
            fit_layout(d, checkpoint.state_joints, checkpoint.action_joints)
            for d in load_demonstrations(dataset, encoder, camera, numbers)
        ]
        for numbers in (evaluated, fitted)
    )
    subsets, every = choose_subsets(shown, args.groups), min(args.every, checkpoint.horizon)
    blank = np.tile(checkpoint.normalization.tokens_mean, (checkpoint.config.tokens, 1)).astype(np.float32)
    policies: dict[str, ChunkPolicy] = {
        STUDENT: checkpoint.policy,
        **fit_all_baselines(training, checkpoint.horizon, every, args.gripper),
        f"{STUDENT}, tokens blanked": Blanked(checkpoint.policy, blank),
    }
    note = f"episodes {', '.join(map(str, evaluated))}; baselines fitted on {len(fitted)} episodes"
    if seen := sorted(set(evaluated) & set(fitted)):
        note += f". Episodes {', '.join(map(str, seen))} were trained on: their figures say nothing about new ones"
    predictions: dict[str, Mapping[int, Sequence[Prediction]]] = dict(predict_all(policies, shown, every))
    predictions |= beside(args.beside, shown)
    return Evaluation(
        f"{Path(checkpoint.folder).name} on {dataset.path.name}", note, tuple(shown), predictions,
        tuple(find_grippers(training + shown, args.gripper)), subsets, tuple(steps or None for steps in args.steps),
    )


def evaluate_corrupted(args: argparse.Namespace) -> dict[str, Cost]:
    """The checkpoint under the corruptions that are asked for, on the episodes that it is evaluated on."""
    corruptions = parse_corruptions(args.corrupt, args.fault_at)
    checkpoint = load_checkpoint(checkpoint_path(args.checkpoint), args.device)
    dataset = EpisodeDataset(dataset_path(args.dataset))
    evaluated, _ = choose_episodes(checkpoint, dataset, args.episodes)
    camera = checkpoint.cameras[0] if checkpoint.cameras[0] in dataset.cameras else None
    episodes = [dataset[dataset.indices.index(index)] for index in evaluated]
    encoder, every = checkpoint.load_encoder(args.device), min(args.every, checkpoint.horizon)
    return corruption_costs(checkpoint, encoder, episodes, camera, corruptions, every)


def evaluate_folds(args: argparse.Namespace, more: Sequence[str]) -> Evaluation:
    if not args.out:
        raise ValueError("--leave-one-out needs --out FOLDER, where the trainings' results are kept and found again")
    dataset = EpisodeDataset(dataset_path(args.dataset))
    aside = (1 if len(dataset) > ENOUGH else 0) if args.validation is None else args.validation
    config, sizes, device = student_options(more, len(dataset) - 1 - aside)
    encoder = load_encoder(args.encoder, args.encoder_source or str(ENCODER), device)
    everything = load_demonstrations(dataset, encoder, args.camera or None)
    held = args.episodes or [d.index for d in everything]
    subsets = choose_subsets(everything, args.groups)
    grippers = tuple(find_grippers(everything, args.gripper))
    train = CloneStudent(encoder.grid, encoder.features, config, sizes, device)
    found = leave_one_out(
        everything, train, args.seeds, Path(args.out).expanduser(), str(train), held, aside, args.every,
        args.jobs, max(1, (os.cpu_count() or 1) // args.jobs),
    )  # fmt: skip
    shown = [next(d for d in everything if d.index == index) for index in held]
    predictions: dict[str, Mapping[int, Sequence[Prediction]]] = {
        STUDENT: {seed: [row[index] for index in held] for seed, row in found.items()},
        **left_out_baselines(everything, held, args.every, args.gripper),
        **beside(args.beside, shown),
    }
    stopping = f", {aside} of them to stop by" if aside else ""
    note = (f"one episode left out at a time ({', '.join(map(str, held))}): each student learns from the "
            f"{len(everything) - 1} others{stopping}; {len(args.seeds)} seeds; baselines fitted on the same others")
    lengths = tuple(steps or None for steps in args.steps)
    return Evaluation(f"{dataset.path.name}, one episode left out", note, tuple(shown), predictions, grippers, subsets,
                      lengths)  # fmt: skip


def beside(given: Sequence[str], shown: Sequence[Demonstration]) -> dict[str, dict[int, list[Prediction]]]:
    """Predictions made elsewhere, ``NAME=FOLDER`` each. Raises ValueError where one does not fit the episodes."""
    found = {}
    for text in given:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise ValueError(f"--beside {text}: write NAME=FOLDER")
        read = read_predictions(Path(folder).expanduser(), shown)
        found[name] = {seed: [row[d.index] for d in shown] for seed, row in read.items()}
    return found


def describe(evaluation: Evaluation, per_episode: bool = False) -> str:
    """Tables for a terminal: the errors of each subset, what else there is to know of the first, and the claims."""
    lengths = {evaluation.length(steps): steps for steps in evaluation.lengths}
    parts = [f"{evaluation.title}: {evaluation.note}"]
    for subset in evaluation.subsets:
        columns = {
            key: {name: evaluation.errors(name, subset, steps).mean(axis=0) for name in evaluation.predictions}
            for key, steps in lengths.items()
        }
        parts.append(f"\n{subset}, mean squared error\n" + format_table({k: _listed(v) for k, v in columns.items()}))
        if len(seeds := evaluation.predictions[evaluation.judged]) > 1:
            for key, steps in lengths.items():
                means = evaluation.errors(evaluation.judged, subset, steps).mean(axis=1)
                each = ", ".join(f"{seed}: {mean:.6f}" for seed, mean in zip(seeds, means, strict=True))
                parts.append(f"{evaluation.judged} by seed, {key}: {each} (deviation {means.std(ddof=1):.6f})")
        if per_episode:
            for place, demonstration in enumerate(evaluation.demonstrations):
                rows = {k: {n: [float(e[place])] for n, e in v.items()} for k, v in columns.items()}
                parts.append(f"\n{subset}, episode {demonstration.index}\n{format_table(rows)}")
    parts.append("")
    parts += map(str, claims(evaluation))
    return "\n".join(parts)


def _listed(errors: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    return {name: row.tolist() for name, row in errors.items()}


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    args, more = _parser().parse_args(given[:cut]), given[cut + 1 :]
    try:
        return run(args, more)
    except (CheckpointError, DatasetError, EncoderError, JointError, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace, more: Sequence[str]) -> int:
    if min(args.steps) < 0 or len(set(args.steps)) < len(args.steps):
        raise ValueError(f"--steps must be positive, or 0 for whole episodes, each once, got {args.steps}")
    if args.every < 1 or args.jobs < 1 or (args.validation or 0) < 0:
        raise ValueError("--every and --jobs must be at least 1, --validation at least 0")
    if "--help" in more or "-h" in more:
        student_options(more, 0)
    if more and not args.leave_one_out:
        raise ValueError(f"{' '.join(more)} sets a training, but only --leave-one-out trains")
    if args.corrupt and args.leave_one_out:
        raise ValueError("--corrupt is for a checkpoint, not for --leave-one-out")
    parse_corruptions(args.corrupt, args.fault_at)  # what is wrong is said before the work
    evaluation = evaluate_folds(args, more) if args.leave_one_out else evaluate_checkpoint(args)
    print(describe(evaluation, args.per_episode))
    costs = evaluate_corrupted(args) if args.corrupt else {}
    if costs:
        print(f"\nunder corruptions from {args.fault_at:g} s on, mean squared error of what is planned from then on")
        print(format_costs(costs))
    if args.json:
        path = Path(args.json).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        corrupted = {"corruptions": costs_to_json(costs)} if costs else {}
        path.write_text(json.dumps(to_json(evaluation) | corrupted, indent=1, allow_nan=False) + "\n", "utf-8")
    if args.report:
        print(f"\nreport: {write_report(Path(args.report).expanduser(), evaluation)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "evaluate", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="", help="student checkpoint folder (default: the one in the package)")
    parser.add_argument("--dataset", default="", help="LeRobot data set folder (default: the one in the package)")
    parser.add_argument("--episodes", type=int, nargs="+", default=[],
                        help="which to evaluate on, by number (default: the held-out ones; with --leave-one-out all)")
    parser.add_argument("--groups", nargs="+", default=[],
                        help="joint groups, scored as one and each alone (default: all joints and each that moves)")
    parser.add_argument("--gripper", nargs="+", default=[], metavar="JOINT",
                        help="action joints that open and close (default: those whose commands are nearly two-valued)")
    parser.add_argument("--steps", type=int, nargs="+", default=[STEPS, 0], help="rows of an episode; 0: all (150 0)")
    parser.add_argument("--every", type=int, default=EVERY, help="rows between two chunks (%(default)s)")
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument("--per-episode", action="store_true", help="print every episode's figures too")
    parser.add_argument("--report", default="", metavar="DIR", help="write evaluation.html, pictures and figures there")
    parser.add_argument("--json", default="", metavar="FILE", help="write every figure there")
    parser.add_argument("--beside", nargs="+", default=[], metavar="NAME=DIR",
                        help="predictions of another policy, as --leave-one-out keeps them in its --out")
    parser.add_argument("--corrupt", nargs="+", default=[], metavar="KIND[:SEVERITY]",
                        help="also the error under these corruptions, with trust-attention and without; all: every one")
    parser.add_argument("--fault-at", type=float, default=1.0, metavar="S",
                        help="when they begin, in s of the episode (%(default)s)")
    folds = parser.add_argument_group("leave one episode out")
    folds.add_argument("--leave-one-out", action="store_true", help="train a student per episode and seed, see below")
    folds.add_argument("--out", default="", metavar="DIR", help="where the trainings' results are kept")
    folds.add_argument("--seeds", type=int, nargs="+", default=[0], help="a student each (%(default)s)")
    folds.add_argument("--validation", type=int, metavar="N",
                       help="episodes of the others that stop a training, drawn by the seed (1; none of a few)")
    folds.add_argument("--jobs", type=int, default=1, help="trainings at a time (%(default)s)")
    folds.add_argument("--encoder", default="tiny_vae", help="encoder by name (%(default)s)")
    folds.add_argument("--encoder-source", default="", help="its folder or hub name (default: the one in the package)")
    folds.add_argument("--camera", default="", help="camera by name (default: the data set's first)")
    return parser


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
