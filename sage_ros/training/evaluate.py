"""``evaluate``: a student's open-loop error on episodes, beside the trivial baselines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sage_ros.core.chunks import ChunkPolicy
from sage_ros.core.joints import JointError
from sage_ros.episodes.dataset import EpisodeDataset
from sage_ros.episodes.errors import DatasetError
from sage_ros.paths import checkpoint_path, dataset_path
from sage_ros.policy.checkpoint import Checkpoint, load_checkpoint
from sage_ros.policy.manifest import CheckpointError
from sage_ros.training.baselines import Blanked, fit_baselines
from sage_ros.training.openloop import STEPS, compare, format_table
from sage_ros.training.tokens import load_demonstrations
from sage_ros.vision.encoder import EncoderError


def require_joints(checkpoint: Checkpoint, dataset: EpisodeDataset) -> None:
    """Raises CheckpointError unless the data set's joints and rate are the student's."""
    for what, ours, theirs in (
        ("state", checkpoint.state_joints, dataset.state_joints),
        ("action", checkpoint.action_joints, dataset.action_joints),
    ):
        if ours.names != theirs.names:
            raise CheckpointError(
                f"the {what} joints of {dataset.path} are {', '.join(theirs.names)}, but {checkpoint.folder} was "
                f"trained on {', '.join(ours.names)}: evaluate it on such episodes, or distil a student for these"
            )
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("evaluate", description=__doc__)
    parser.add_argument("--checkpoint", default="", help="student checkpoint folder (default: the one in the package)")
    parser.add_argument("--dataset", default="", help="LeRobot data set folder (default: the one in the package)")
    parser.add_argument("--episodes", type=int, nargs="+", default=[], help="by number (default: the held-out ones)")
    parser.add_argument("--groups", nargs="+", default=[], help="joint groups (default: all joints)")
    parser.add_argument("--steps", type=int, nargs="+", default=[STEPS, 0], help="rows of an episode; 0: all (150 0)")
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument("--per-episode", action="store_true", help="print every episode's figures too")
    args = parser.parse_args(argv)
    try:
        return run(args)
    except (CheckpointError, DatasetError, EncoderError, JointError, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    if min(args.steps) < 0:
        raise ValueError(f"--steps must be positive, or 0 for whole episodes, got {args.steps}")
    checkpoint = load_checkpoint(checkpoint_path(args.checkpoint), args.device)
    dataset = EpisodeDataset(dataset_path(args.dataset))
    require_joints(checkpoint, dataset)
    evaluated, fitted = choose_episodes(checkpoint, dataset, args.episodes)
    encoder = checkpoint.load_encoder(args.device)
    camera = checkpoint.cameras[0] if checkpoint.cameras[0] in dataset.cameras else None
    shown = load_demonstrations(dataset, encoder, camera, evaluated)
    training = load_demonstrations(dataset, encoder, camera, fitted)
    blank = np.tile(checkpoint.normalization.tokens_mean, (checkpoint.config.tokens, 1)).astype(np.float32)
    policies: dict[str, ChunkPolicy] = {
        "student": checkpoint.policy,
        **fit_baselines(training, checkpoint.horizon),
        "student, tokens blanked": Blanked(checkpoint.policy, blank),
    }
    columns = {
        f"{steps} steps" if steps else "whole": compare(policies, shown, args.groups, steps or None)
        for steps in args.steps
    }
    print(f"{Path(checkpoint.folder).name} on {dataset.path.name}, episodes {', '.join(map(str, evaluated))}; "
          f"joints: {', '.join(args.groups) or 'all'}; baselines fitted on {len(fitted)} episodes")
    if seen := sorted(set(evaluated) & set(fitted)):
        print(f"note: episodes {', '.join(map(str, seen))} were trained on: their figures say nothing about new ones")
    print(format_table(columns))
    if args.per_episode:
        for position, index in enumerate(evaluated):
            print(f"\nepisode {index}")
            print(format_table({k: {n: [e[position]] for n, e in rows.items()} for k, rows in columns.items()}))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
