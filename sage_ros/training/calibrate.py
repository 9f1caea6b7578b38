"""``calibrate``: teach a checkpoint's trust-attention what to expect of camera, joints and commands.

Examples:
  calibrate --checkpoint ~/students/pick --dataset ~/episodes/pick
  calibrate --checkpoint ~/students/pick --dataset ~/episodes/pick --simulate 240 --region-scale 1.5

Two thirds of the episodes tell camera, joints and commands from one another; the others, that nothing is fitted to, set
the limits. Episodes should show more than the robot will meet: in a pose that was never seen nobody can say what should
be seen. `distil` does the same with its training episodes. The student itself does not change.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sage_ros.core.crosscheck import STATISTICS, Checks
from sage_ros.core.expectation import Watched
from sage_ros.core.trust import Calibration
from sage_ros.episodes.dataset import EpisodeDataset
from sage_ros.episodes.errors import DatasetError
from sage_ros.paths import checkpoint_path, dataset_path
from sage_ros.policy.checkpoint import Checkpoint, load_checkpoint, save_calibration
from sage_ros.policy.config import StudentConfig
from sage_ros.policy.manifest import CheckpointError
from sage_ros.policy.motion import measured_columns
from sage_ros.training.openloop import fit_layout
from sage_ros.training.tokens import load_demonstrations
from sage_ros.training.watched import recorded, simulated
from sage_ros.vision.encoder import EncoderError

LEAST = 6  # episodes: two of them set limits
MEMORY = 2**30  # bytes of token maps that checks are fitted to: of more, only every second or third episode is taken
UNSEEN = 3  # every so many of them sets limits


def with_checks(
    calibration: Calibration, groups: Sequence[Sequence[Watched]], student: StudentConfig
) -> Calibration:
    """The calibration with checks of the sources against each other.

    Every third episode of each group sets limits. Raises ValueError with less than 6 episodes or 100 rows fitted to.
    """
    if (count := sum(map(len, groups))) < LEAST:
        raise ValueError(f"{count} episodes to calibrate on; at least {LEAST} are needed")
    every = -(-sum(e.tokens.nbytes for group in groups for e in group) // MEMORY)
    every = min(every, count // LEAST)  # few are enough only where they are not left out
    groups = [group[::every] for group in groups]
    unseen = [e for group in groups for e in group[UNSEEN - 1 :: UNSEEN]]
    fitting = [e for group in groups for place, e in enumerate(group) if place % UNSEEN != UNSEEN - 1]
    measured = measured_columns(student).tolist()
    return replace(calibration, checks=Checks.fit(fitting, unseen, measured, calibration.rate))


def calibrate(
    checkpoint: Checkpoint,
    dataset: EpisodeDataset,
    left_out: Sequence[int] = (),
    simulate: int = 0,
    region_scale: float = 1.5,
    jobs: int = 1,
) -> Calibration:
    """The checkpoint's calibration with checks learned from all episodes but those ``left_out``."""
    wanted = [index for index in dataset.indices if index not in set(left_out)]
    shown = load_demonstrations(dataset, checkpoint.load_encoder(), checkpoint.cameras[0], wanted)
    fitting = [fit_layout(d, checkpoint.state_joints, checkpoint.action_joints) for d in shown]
    groups = [recorded(fitting)]
    if simulate:
        made = simulated(checkpoint, simulate, region_scale, jobs=jobs)
        groups += [made[::3], made[1::3], made[2::3]]
    return with_checks(checkpoint.calibration, groups, checkpoint.config)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status, 2 where the arguments or the machine do not allow it."""
    parser = argparse.ArgumentParser(
        prog="calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="FOLDER", help="the student, whose calibration is replaced")
    add("--dataset", type=Path, required=True, metavar="FOLDER", help="clean episodes of its camera and joints")
    add("--leave-out", type=int, nargs="*", metavar="N", help="episodes not to look at (default: the held-out ones)")
    add("--simulate", type=int, default=0, metavar="N", help="simulated episodes besides (default %(default)s)")
    help = "widens (up to 2) where things lie in those (default %(default)s)"
    add("--region-scale", type=float, default=1.5, metavar="FACTOR", help=help)
    add("--jobs", type=int, default=1, metavar="N", help="processes that simulate (default %(default)s)")
    options = parser.parse_args(argv)
    try:
        checkpoint = load_checkpoint(checkpoint_path(str(options.checkpoint)), checks=False)  # they may be older
        held_out = checkpoint.metrics.get("split", {}).get("held_out", ())
        left_out = held_out if options.leave_out is None else options.leave_out
        dataset = EpisodeDataset(dataset_path(str(options.dataset)))
        calibration = calibrate(checkpoint, dataset, left_out, options.simulate, options.region_scale, options.jobs)
        save_calibration(checkpoint, calibration)
    except (CheckpointError, DatasetError, EncoderError, ValueError, ImportError, RuntimeError) as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2
    assert calibration.checks is not None
    print("limits: what hardly any ordinary frame goes beyond")
    for name, (frame, usual, total) in zip(STATISTICS, calibration.checks.limits, strict=True):
        print(f"  {name:<12} {frame:10.3g}   usual share of it {usual:.2f}, sum that lasts {total:.3g}")
    size = sum(np.asarray(a).nbytes for a in calibration.arrays().values())
    print(f"{checkpoint.folder}: calibration of {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
