"""``episodes``: look into data sets, check them, convert them, without ROS.

  episodes info    PATH             what is in it: lengths, tasks, cameras, the joints' ranges; a contact sheet
  episodes check   PATH             everything that is wrong with it; exit status 1 if something is
  episodes convert SRC DST --to …   LeRobot v2.0, v2.1, v3.0 to v2.1 with modality.json, or to bags; bags to v2.1
  episodes view    PATH [EPISODE]   one episode: frames and joint curves, as a page to scrub through

PATH is a folder, or a data set on the Hugging Face hub: org/name or org/name@revision.
`episodes COMMAND --help` explains a command; also `ros2 run sage_ros episodes` and `python -m sage_ros.episodes`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..paths import dataset_path
from .errors import DatasetError
from .mapping import EXAMPLE
from .writing import writing


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return int(args.act(args))
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; a conversion goes on from here when it is started again", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("episodes", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = _command(commands, "info", _info, "what is in a data set")
    info.add_argument("path", nargs="?", default="", help="folder or hub name (default: the package's demonstrations)")
    info.add_argument("--contact-sheet", type=Path, metavar="PNG", help="draw frames of the episodes over time")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.add_argument("--save-modality", action="store_true",
                      help="write the guessed meta/modality.json, for you to edit")  # fmt: skip
    info.add_argument("--skip-missing", action="store_true", help="leave out episodes whose files are missing")

    check = _command(commands, "check", _check, "all that is wrong with a data set; exit status 1 if something is")
    check.add_argument("path", nargs="?", default="", help="folder or hub name (default: the package's demonstrations)")
    check.add_argument("--no-films", dest="films", action="store_false", help="do not decode the films: much faster")
    check.add_argument("--strict", action="store_true", help="exit status 1 on warnings too")

    convert = _command(commands, "convert", _convert, "convert a data set or bags", epilog=f"""\
A conversion that was interrupted goes on where it was when started again. H.264 films of one episode are copied as
they are; all others are encoded anew. Bags: a bag of rosbag2 (MCAP or sqlite3), or a folder of bags; what is
what is said by --mapping, or by the mapping.yaml that an exported bag has beside it:

{EXAMPLE}""")  # fmt: skip
    convert.add_argument("src", help="folder or hub name of a data set; or a bag, or a folder of bags")
    convert.add_argument("dst", type=Path, help="new folder")
    convert.add_argument("--to", required=True, choices=("v2.1", "mcap"), help="LeRobot v2.1, or a bag an episode")
    convert.add_argument("--mapping", type=Path, metavar="YAML", help="topics and what they are, see below")
    convert.add_argument("--images", choices=("raw", "jpeg", "png"), default="raw", help="in bags (%(default)s)")
    convert.add_argument("--crf", type=int, default=18, help="H.264 quality where encoded anew (%(default)s)")
    convert.add_argument("--lossless", action="store_true", help="keep the very pixels, in larger files")
    convert.add_argument("--skip-missing", action="store_true", help="leave out episodes whose files are missing")

    view = _command(commands, "view", _view, "one episode: frames and joint curves")
    view.add_argument("path", nargs="?", default="", help="folder or hub name (default: the package's demonstrations)")
    view.add_argument("episode", nargs="?", type=int, default=0, help="its index (%(default)s)")
    view.add_argument("--out", type=Path, help="write a .html or .png there instead of opening a browser")
    return parser


def _command(commands: Any, name: str, act: object, words: str, epilog: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=words,
        description=words[0].upper() + words[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(act=act)
    return parser


def _info(args: argparse.Namespace) -> int:
    from .dataset import EpisodeDataset
    from .modality import save_modality
    from .sheets import contact_sheet
    from .summary import report, summarise

    dataset = EpisodeDataset(dataset_path(args.path), skip_missing=args.skip_missing)
    summary = summarise(dataset)
    print(json.dumps(summary.as_json(), indent=1) if args.json else report(summary))
    if args.save_modality:
        print(f"wrote {save_modality(dataset.path, dataset.modality)}: look at its groups", file=sys.stderr)
    if args.contact_sheet:
        with writing(args.contact_sheet):
            contact_sheet(dataset).savefig(args.contact_sheet, dpi=110)
        print(f"drew {args.contact_sheet}", file=sys.stderr)
    return 0


def _check(args: argparse.Namespace) -> int:
    from .checks import check

    errors = warnings = 0
    for problem in check(dataset_path(args.path), args.films):
        print(problem, flush=True)
        errors, warnings = errors + problem.fatal, warnings + (not problem.fatal)
    print(f"{errors} errors, {warnings} warnings" if errors or warnings else "nothing is wrong")
    return int(errors > 0 or (args.strict and warnings > 0))


def _convert(args: argparse.Namespace) -> int:
    from .conversion import bags_in, from_bags, to_bags, to_v21
    from .dataset import EpisodeDataset
    from .mapping import read_mapping

    mapping = read_mapping(args.mapping) if args.mapping else None
    source, target = Path(args.src).expanduser(), args.dst.expanduser()
    if bags_in(source):
        if args.to != "v2.1":
            raise DatasetError("is a bag already", source, remedy="convert bags --to v2.1")
        count = from_bags(source, target, mapping, args.crf, args.lossless)
    else:
        dataset = EpisodeDataset(args.src, skip_missing=args.skip_missing)
        if args.to == "mcap":
            count = to_bags(dataset, target, mapping, args.images)
        else:
            count = to_v21(dataset, target, args.crf, args.lossless)
    print(f"{target}: {count} episodes written now")
    return 0


def _view(args: argparse.Namespace) -> int:
    from .dataset import EpisodeDataset
    from .sheets import episode_figure, episode_page

    dataset = EpisodeDataset(dataset_path(args.path))
    if args.episode not in dataset.indices:
        listed = f"{dataset.indices[0]} to {dataset.indices[-1]}"
        raise DatasetError(f"has no episode {args.episode}", dataset.path, remedy=f"name one of {listed}")
    episode = dataset[dataset.indices.index(args.episode)]
    out = args.out or Path(tempfile.mkdtemp(prefix="episodes-")) / f"episode_{episode.index:06d}.html"
    if out.suffix not in (".html", ".png"):
        raise DatasetError(f"'{out}' is no .html and no .png", remedy="name such a file")
    with writing(out):
        if out.suffix == ".png":
            episode_figure(episode).savefig(out, dpi=110)
        else:
            out.write_text(episode_page(episode), "utf-8")
    print(f"wrote {out}")
    if not args.out and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform == "darwin"):
        webbrowser.open(out.as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(main())
