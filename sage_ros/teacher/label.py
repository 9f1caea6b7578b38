"""``label``: write a teacher's action chunks for a data set to disk, so that no robot ever needs the teacher.

Examples:
  label --dataset ~/pick --teacher server --host gpu-box --name my-n1.7-checkpoint --out ~/labels
  label --dataset ~/pick --teacher gr00t --model nvidia/GR00T-N1.6-3B --embodiment gr1
  label --dataset ~/pick --teacher demonstrations

Run it again after a crash: what is labelled stays. A teacher that does not beat the trivial baselines on whole episodes
is refused, for a student would only learn its errors; --force labels all the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from sage_ros.core.joints import JointError
from sage_ros.episodes.dataset import EpisodeDataset
from sage_ros.episodes.errors import DatasetError
from sage_ros.paths import dataset_path
from sage_ros.teacher.gate import judge, spread
from sage_ros.teacher.labels import LabelCache, LabelError, default_folder, label_key
from sage_ros.teacher.modality import TeacherError
from sage_ros.teacher.teachers import Demonstrations, Gr00tTeacher, Teacher
from sage_ros.teacher.wire import TOKEN
from sage_ros.training.openloop import STEPS


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        with ExitStack() as stack:
            return run(args, stack)
    except (DatasetError, JointError, LabelError, TeacherError, ValueError) as error:
        print(f"label: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("label: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def run(args: argparse.Namespace, stack: ExitStack) -> int:
    if min(args.every, args.horizon) < 1 or args.gate_steps < 0:
        raise ValueError("--every and --horizon must be at least 1, --gate-steps at least 0")
    if not 0 < args.port < 65536 or args.timeout <= 0:
        raise ValueError("--port must be from 1 to 65535, and --timeout positive")
    dataset = EpisodeDataset(dataset_path(args.dataset))
    episodes = args.episodes or list(dataset.indices)
    if unknown := sorted(set(episodes) - set(dataset.indices)):
        raise ValueError(f"{dataset.path} has no episode {unknown}; it has {list(dataset.indices)}")
    teacher = open_teacher(args, dataset, stack)
    key = label_key(dataset, teacher, args.every)
    cache = stack.enter_context(LabelCache(args.out or default_folder(key), key).open())
    print(f"{teacher.identity}: chunks of {teacher.horizon} rows for {', '.join(teacher.joints.groups)}")
    gate, judged = cache.index["gate"] or {}, args.gate_episodes or spread(dataset.indices, 5)
    how = {"episodes": judged, "steps": args.gate_steps}
    if isinstance(teacher, Demonstrations):
        print("no gate: the demonstrations are what teachers are measured by")
    elif any(gate.get(name) != how[name] for name in how) or not (gate["passed"] or args.force):
        verdict = judge(teacher, dataset, judged, args.gate_steps or None)
        print(f"\nError on the episodes {', '.join(map(str, judged))}, held out from the baselines (GR00T's metric, "
              f"{args.gate_steps or 'all'} rows)\n{verdict.table}\n")  # fmt: skip
        for sentence in verdict.lost:
            print(sentence)
        cache.write_gate(how | verdict.to_dict())
        if not verdict.passed and not args.force:
            raise TeacherError(
                "the teacher does not beat the trivial baselines on the joints above: a student would only learn its "
                "errors. Take only the joint groups in which it is good (--groups), another teacher, or the "
                "demonstrations; --force labels all the same"
            )
    done = cache.label(teacher, dataset, episodes)
    print(f"labelled {len(done)} episodes now, {len(cache.index['episodes'])} in all\nlabels: {cache.folder}")
    return 0


def open_teacher(args: argparse.Namespace, dataset: EpisodeDataset, stack: ExitStack) -> Teacher:
    """The teacher that the options name. Raises TeacherError."""
    if args.teacher == "demonstrations":
        return Demonstrations(dataset, args.horizon)
    if args.teacher == "gr00t":
        from sage_ros.teacher.inprocess import load_gr00t

        if not args.model or not args.embodiment:
            raise TeacherError("--teacher gr00t needs --model, a checkpoint folder or hub name, and --embodiment")
        gr00t = load_gr00t(args.model, args.embodiment, args.data_config, args.device, args.denoising_steps)
    else:
        try:
            from sage_ros.teacher.client import InferenceClient, connect
        except ModuleNotFoundError as error:
            raise TeacherError(f"{error}: pip install 'sage_ros[teacher]'") from error
        token = args.api_token or os.environ.get(TOKEN, "")
        client = stack.enter_context(InferenceClient(args.host, args.port, args.timeout, token))
        gr00t = connect(client, args.name)
    rename = {}
    for pair in args.rename:
        theirs, equals, ours = pair.partition("=")
        if not (theirs and equals and ours):
            raise ValueError(f"--rename {pair}: write THEIRS=OURS, such as ego_view=front")
        rename[theirs] = ours
    return Gr00tTeacher(gr00t, dataset, args.groups, rename, tuple(args.image_size) if args.image_size else None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("label", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="", help="LeRobot data set folder (default: the one in the package)")
    add("--teacher", required=True, choices=["demonstrations", "gr00t", "server"],
        help="the recorded actions, GR00T in this process, or a GR00T inference server")  # fmt: skip
    add("--out", default="", help="folder of the labels (default: in ~/.cache/sage_ros/labels; printed at the end)")
    add("--episodes", type=int, nargs="+", default=[], help="by number (default: all)")
    add("--every", type=int, default=1, help="label each n-th row only (%(default)s)")
    add("--horizon", type=int, default=16, help="rows of a chunk of the demonstrations (%(default)s)")
    add("--groups", nargs="+", default=[], help="joint groups to take (default: all that the teacher commands)")
    add("--rename", nargs="+", default=[], metavar="THEIRS=OURS", help="the teacher's cameras and groups by our names")
    add("--image-size", type=int, nargs=2, metavar=("H", "W"), help="resize frames to what the teacher was trained on")
    gate = parser.add_argument_group("the gate")
    gate.add_argument("--gate-episodes", type=int, nargs="+", default=[],
                      help="episodes by number that it was not trained on (default: five, evenly spread)")  # fmt: skip
    gate.add_argument("--gate-steps", type=int, default=STEPS, help="rows of each; 0: all (%(default)s)")
    gate.add_argument("--force", action="store_true", help="label although the teacher loses to a trivial baseline")
    server = parser.add_argument_group("--teacher server")
    server.add_argument("--host", default="127.0.0.1", help="where it runs (%(default)s)")
    server.add_argument("--port", type=int, default=5555, help="(%(default)s)")
    server.add_argument("--api-token", default="", help=f"where the server asks for one (or set {TOKEN})")
    server.add_argument("--timeout", type=float, default=15.0, help="s to wait for a chunk (%(default)s)")
    server.add_argument("--name", default="", help="which model it serves, to keep labels apart (default: the address)")
    local = parser.add_argument_group("--teacher gr00t")
    local.add_argument("--model", default="", help="checkpoint folder or hub name")
    local.add_argument("--embodiment", default="", help="embodiment tag, such as gr1")
    local.add_argument("--data-config", default="", help="N1.5 only: such as fourier_gr1_arms_only")
    local.add_argument("--device", default="cuda", help="torch device (%(default)s)")
    local.add_argument("--denoising-steps", type=int, help="N1.5 only (default: the model's)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
