"""``dream``: let the student learn from what was recorded, and replace it only where that made it better.

Examples:
  dream --champions ~/champions --checkpoint ~/students/pick --sessions ~/recorded --originals ~/episodes/pick
  dream --champions ~/champions --sessions ~/recorded --teacher "--teacher server --host gpu-box"   # relabel first
  dream --champions ~/champions --list          # what was learned from what, and why challengers were dropped
  dream --champions ~/champions --rollback      # back to the champion before

Sessions are episodes of a `recorder`. The same command goes on with a dream that was killed. Nodes use the champion as
checkpoint ~/champions/current; `dreamer` runs this command while the robot is in DREAM.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from sage_ros import __version__
from sage_ros.core.joints import JointError
from sage_ros.core.parents import follow_parent
from sage_ros.core.trust import Calibration
from sage_ros.episodes.dataset import EpisodeDataset
from sage_ros.episodes.errors import DatasetError
from sage_ros.paths import checkpoint_path, dataset_path
from sage_ros.policy.champions import PROMOTED, ROLLED_BACK, WORK, Champions
from sage_ros.policy.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sage_ros.policy.manifest import CheckpointError
from sage_ros.policy.student import StudentPolicy
from sage_ros.teacher import label
from sage_ros.teacher.labels import LabelError, label_origin, load_labels
from sage_ros.training.calibration import calibrated
from sage_ros.training.cloning import Cloned
from sage_ros.training.dreams import DreamConfig, Verdict, describe, judge, learn
from sage_ros.training.expecting import recalibrated
from sage_ros.training.openloop import Demonstration, fit_layout
from sage_ros.training.resume import Unfinished
from sage_ros.training.sessions import load_sessions
from sage_ros.training.tokens import load_demonstrations
from sage_ros.vision.encoder import EncoderError

KEPT = ("dataset", "split", "simulated", "config", "parameters")  # of a champion's metrics, true of its challenger too
Originals = tuple[list[Demonstration], list[Demonstration]]  # to rehearse, and held out


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if follow_parent(signal.SIGKILL):
        return 1
    try:
        return run(args)
    except (CheckpointError, DatasetError, EncoderError, JointError, LabelError, ValueError) as error:
        print(f"dream: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dream: stopped; the same command goes on from where it last saved", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    if args.list or args.rollback:
        champions = Champions(args.champions)
        if args.rollback:
            print(f"the champion is {champions.rollback()} again")
        for entry in champions.lineage if args.list else ():
            print(f"{entry['date']}  {entry['event']}: {_about(entry)}")
        return 0
    config = DreamConfig(**{item.name: getattr(args, item.name) for item in fields(DreamConfig)})
    champions = Champions.found(args.champions, checkpoint_path(args.checkpoint))
    if not args.sessions:
        raise ValueError("--sessions is missing: name the data set that the recorder has recorded")
    with champions.alone():
        return dream(champions, args, config)


def dream(champions: Champions, args: argparse.Namespace, config: DreamConfig) -> int:
    champion = load_checkpoint(champions.current)
    dataset = EpisodeDataset(args.sessions)
    originals = [EpisodeDataset(dataset_path(name)) for name in args.originals or [""]]
    labels = _relabel(args, dataset, champions)
    key: dict[str, Any] = {
        "data": dataset.fingerprint(), "labels": label_origin(labels) if labels else None,
        "originals": [original.fingerprint() for original in originals], "settings": asdict(config),
        "versions": [__version__, torch.__version__],
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    if any(entry.get("key") == digest for entry in champions.lineage):
        print("dream: nothing new to learn from: these sessions have been dreamt of before")
        return 0
    found = load_labels(labels, dataset) if labels else None
    sessions = load_sessions(dataset, champion, found, progress=args.progress)
    judged = [session for session in sessions if session.held_out and session.judgeable]
    about = {"key": digest, "data": key["data"], "labels": key["labels"], "originals": key["originals"]}
    about |= describe(config, sessions)
    if len(judged) < config.least:
        print(f"dream: {len(judged)} sessions to judge by, {config.least} are needed: every fourth is held out, and "
              "counts if it succeeded or a teacher has labelled it")  # fmt: skip
        return 0
    rehearse, known = split_originals(originals, champion, args.progress)
    learned = [session for session in sessions if not session.held_out]
    print(f"dream: {len(learned)} sessions and {len(rehearse)} originals to learn from, {len(judged)} and {len(known)} "
          "to judge by", flush=True)  # fmt: skip
    unfinished = _work(champions.folder / WORK, key | {"parent": champions.champion})
    cloned = learn(champion, learned, rehearse, config, unfinished, args.save_every, args.progress)
    challenger = StudentPolicy(cloned.student, cloned.normalization, champion.rate)
    verdict = judge(champion.policy, challenger, judged, known, config)
    about |= {"reason": verdict.reason, "figures": verdict.figures}
    if verdict.better:
        shown = [*(s.demonstration for s in judged if s.success), *known]
        folder = champions.next()
        cloned = replace(cloned, normalization=calibrated(cloned, shown))
        save(folder, champion, cloned, recalibrated(champion, sessions, rehearse), verdict, about)
        champions.promote(folder, about)
    else:
        champions.drop(about)
    unfinished.remove()
    print(f"dream: {'promoted ' + champions.champion if verdict.better else 'dropped'}: {verdict.reason}")
    return 0


def save(
    folder: Path, champion: Checkpoint, cloned: Cloned, calibration: Calibration, verdict: Verdict,
    about: dict[str, Any],
) -> None:  # fmt: skip
    """Write a challenger as a checkpoint like the champion's."""
    metrics = {name: champion.metrics[name] for name in KEPT if name in champion.metrics} | {"dream": about}
    card = (f"# Student {folder.name}\n\nDreamt by {champion.folder.resolve().name} from recorded sessions: "
            f"{verdict.reason}. For the same robot, camera and task; figures and data are in `metrics.json`, those of "
            "its ancestors in `../lineage.jsonl`.\n")  # fmt: skip
    save_checkpoint(
        folder, cloned.student, champion.manifest, cloned.normalization, calibration,
        metrics, card, champion.encoder_files, overwrite=True,
    )  # fmt: skip


def split_originals(datasets: Sequence[EpisodeDataset], champion: Checkpoint, progress: bool = True) -> Originals:
    """Original demonstrations to rehearse, and such as are held out: those that the first student never saw, where
    its metrics tell of the data set, else every fifth."""
    rehearse: list[Demonstration] = []
    known: list[Demonstration] = []
    encoder, told = champion.load_encoder(), champion.metrics
    for dataset in datasets:
        aside = [index for place, index in enumerate(dataset.indices) if place % 5 == 4]
        if told.get("dataset", {}).get("fingerprint") == dataset.fingerprint() and told["split"]["held_out"]:
            aside = told["split"]["held_out"]
        for demonstration in load_demonstrations(dataset, encoder, champion.cameras[0], progress=progress):
            fitted = fit_layout(demonstration, champion.state_joints, champion.action_joints)
            (known if demonstration.index in aside else rehearse).append(fitted)
    if not known:
        raise ValueError("fewer than 5 original demonstrations: none can be held out, to see what was forgotten")
    return rehearse, known


def _relabel(args: argparse.Namespace, dataset: EpisodeDataset, champions: Champions) -> str:
    """The folder of a teacher's labels; a teacher labels what it has not yet. Raises ValueError where it cannot."""
    if not args.teacher:
        return str(args.labels)
    folder = args.labels or str(champions.folder / "labels" / dataset.fingerprint()[:16])
    if label.main(["--dataset", str(dataset.path), "--out", folder, *shlex.split(args.teacher)]):
        raise ValueError("the teacher has not labelled the sessions: see above, or dream without --teacher")
    return folder


def _work(folder: Path, key: dict[str, Any]) -> Unfinished:
    """What a killed dream of the same things left behind; another one's is of no use any more."""
    try:
        return Unfinished(folder, key)
    except ValueError:
        shutil.rmtree(folder)
        return Unfinished(folder, key)


def _about(entry: dict[str, Any]) -> str:
    if entry["event"] == ROLLED_BACK:
        return f"from {entry['from']} to {entry['champion']}"
    who = f"{entry['champion']}, from {entry['parent']}" if entry["event"] == PROMOTED else f"of {entry['parent']}"
    return f"{who}: {entry['reason']} ({entry['successes']} successes, {entry['failures']} failures)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("dream", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--champions", required=True, metavar="FOLDER", help="this robot's students; made if it is not there")
    add("--checkpoint", default="", help="the student that a new folder begins with (default: the one in the package)")
    add("--sessions", default="", metavar="FOLDER", help="what the recorder has recorded")
    add("--originals", nargs="+", default=[], metavar="FOLDER",
        help="demonstrations that must not be forgotten (default: the package's)")  # fmt: skip
    add("--labels", default="", metavar="FOLDER", help="a teacher's labels of the sessions, see `label`")
    add("--teacher", default="", metavar="OPTIONS", help="options of `label`: relabel the sessions first")
    add("--save-every", type=int, default=50, metavar="STEPS", help="steps between two savings (%(default)s)")
    add("--progress", action=argparse.BooleanOptionalAction, default=True, help="progress bars")
    add("--list", action="store_true", help="print the lineage")
    add("--rollback", action="store_true", help="make the champion's parent the champion again")
    for item in fields(DreamConfig):
        flag, value = "--" + item.name.replace("_", "-"), item.default
        add(flag, type=type(value), default=value, help=f"{item.metadata['description']} (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
