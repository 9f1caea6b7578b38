"""rollout: closed-loop evaluation in the simulated world, in one thread or through the whole ROS pipeline."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.utilities import remove_ros_args
from tqdm import tqdm

from sage_ros.core.execution import STRATEGIES, ExecutionConfig
from sage_ros.core.limits import MOST
from sage_ros.corruption import KINDS, CorruptionConfig, parse_corruption
from sage_ros.episodes.video import encode
from sage_ros.nodes.rollout_stage import RosStage
from sage_ros.paths import checkpoint_path
from sage_ros.sim.results import Ledger, Record, summary, summary_text, table
from sage_ros.sim.rollout import LONGEST, Outcome
from sage_ros.sim.trials import PILOTS, Trial, run_trials
from sage_ros.sim.world import RATE

FAULT_AT = 1.0  # s: by then the pipeline knows what is ordinary
UNSEEN = 100_000  # world seeds from here on are neither demonstrated nor trained on
EPILOG = """\
Each episode resets the world to the next seed, from --seed on: cube, plate and arm start elsewhere. It succeeds once
the cube has rested on the plate for 0.5 s. Seeds from 100000 on are unseen: no demonstration and no training used them.

core computes vision, trust, policy and safety filter in one thread, in no simulated time. ros runs the nodes and the
simulated robot over topics in lock-step: simulated time stands still until each node has answered, so that both give
the same (--pipeline both shows it), however slow the computer is. --real-time lets the clock run as on a robot.

The table: seconds until success; jump: mean step of the filter's target where one chunk gives way to the next (rad);
target jerk: of these targets within 50 ms of it (root mean square, rad/s^3); jerk: of the set points sent; holds:
ticks of 10 ms on which the filter held. Success comes with its 95 % interval (Wilson).

examples:
  rollout --episodes 20                                  the package's student on 20 unseen seeds
  rollout --compare --jobs 2                             beside the expert, holding still, and open-loop chunks
  rollout --pipeline ros --latency 0.15 --out /tmp/late  through ROS, each action 150 ms late; run again to go on
  rollout --pipeline both --episodes 2                   do both pipelines agree?
  rollout --corrupt occlusion:4 --without-trust          a covered camera from second 1 on (docs/corruption.md)
  rollout --region-scale 1.5 --videos 5 --out /tmp/wide  places that training has not seen, with films
"""


@dataclass(frozen=True)
class Way:
    """One row of a comparison: how the robot is moved, and through what."""

    name: str
    trial: Trial
    ros: bool = False
    real_time: bool = False


def compared(trial: Trial) -> list[Way]:
    """The student as in ``trial``, beside chunks carried out to their end, the expert and holding still."""
    open_loop = replace(trial, execution=replace(trial.execution, strategy="open_loop"))
    others = [Way(pilot, replace(trial, pilot=pilot, latency=0.0)) for pilot in ("expert", "hold")]
    return [Way("student", trial), Way("open-loop", open_loop), *others]


def evaluate(
    ways: Sequence[Way],
    seeds: Sequence[int],
    jobs: int = 1,
    ledger: Ledger | None = None,
    films: Path | None = None,
    filmed: int = 0,
    progress: bool = True,
) -> dict[str, list[Record]]:
    """Every way's records, in the order of ``seeds``; those that ``ledger`` has are not played again.

    The first ``filmed`` episodes of each way are filmed into the folder ``films``. An episode through ROS is compared
    with one in process of the same trial, if that is among ``ways``: ``apart`` is their paths' greatest distance, rad.
    """
    known = {} if ledger is None else ledger.records
    found = {(way.name, seed): known[way.name, seed] for way in ways for seed in seeds if (way.name, seed) in known}
    wanted = {(way, seed) for way in ways for seed in seeds if (way.name, seed) not in found}
    paths: dict[tuple[Trial, int], np.ndarray] = {}
    core = [way for way in ways if not way.ros]
    # What was played before has left no path to compare with
    again = {(way, s) for way in core for other in ways for s in seeds if other.ros and other.trial == way.trial
             and (other, s) in wanted}  # fmt: skip
    played = [(way, seed) for way in core for seed in seeds if (way, seed) in wanted | again]
    with tqdm(total=len(wanted | again), unit="episode", disable=not progress) as bar:
        for way, outcome in _play(ways, played, wanted, seeds, jobs, films, filmed):
            key = (way.name, outcome.seed)
            record = {"trial": way.name, **outcome.record()}
            if way.ros:
                record["apart"] = _apart(outcome.path, paths.get((way.trial, outcome.seed)))
            else:
                paths[way.trial, outcome.seed] = outcome.path
            if key not in found:
                found[key] = record
                if ledger is not None:
                    ledger.add(record)
            bar.set_description(way.name)
            bar.update()
    return {way.name: [found[way.name, seed] for seed in seeds] for way in ways}


def _play(
    ways: Sequence[Way],
    played: Sequence[tuple[Way, int]],
    wanted: set[tuple[Way, int]],
    seeds: Sequence[int],
    jobs: int,
    films: Path | None,
    filmed: int,
) -> Iterator[tuple[Way, Outcome]]:
    def film(way: Way, seed: int) -> Path | None:
        return films / f"{way.name}_{seed}.mp4" if films is not None and seed in seeds[:filmed] else None

    if played:
        outcomes = run_trials([(way.trial, seed, film(way, seed)) for way, seed in played], jobs)
        yield from ((way, outcome) for (way, _), outcome in zip(played, outcomes, strict=True))
    for way in ways:
        left = [seed for seed in seeds if (way, seed) in wanted]
        if not way.ros or not left:
            continue
        with RosStage(way.trial, way.real_time) as stage:
            for seed in left:
                path = film(way, seed)
                frames: list[np.ndarray] | None = None if path is None else []
                yield way, stage.run(seed, frames)
                if path is not None and frames:
                    encode(path, frames, RATE)


def _apart(path: np.ndarray, other: np.ndarray | None) -> float | None:
    """Greatest distance of a joint (rad) on the common part of two paths."""
    if other is None or not (rows := min(len(path), len(other))):
        return None
    return float(np.abs(path[:rows] - other[:rows]).max())


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "rollout",
        description="Let a pilot act in the simulated pick-and-place world, and count how often it succeeds.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--episodes", type=int, default=100, metavar="N", help="episodes (default %(default)s)")
    add("--seed", type=int, default=UNSEEN, help="first world seed, counted up by one (default %(default)s)")
    add("--pilot", choices=PILOTS, default="student",
        help="student; expert: the script that knows where things lie; hold: stays where it is (default %(default)s)")
    add("--compare", action="store_true", help="student, open-loop chunks, expert and hold on the same seeds, in core")
    add("--checkpoint", default="", metavar="DIR", help="student checkpoint (default: the one in the package)")
    add("--strategy", choices=STRATEGIES, default=ExecutionConfig().strategy,
        help="how a chunk gives way to the next (default %(default)s)")
    add("--latency", type=float, default=0.0, metavar="S", help="added to each action, in s (default %(default)s)")
    add("--region-scale", type=float, default=1.0, metavar="FACTOR",
        help="widens (up to 2) or narrows where cube and plate may lie (default %(default)s)")
    add("--corrupt", default="", metavar="KIND[:SEVERITY]",
        help="what goes wrong with camera or joints, severity 1 to 5 (default 3), by the world's seed; the kinds: "
             + ", ".join(KINDS))
    add("--fault-at", type=float, default=FAULT_AT, metavar="S", help="from when on, in s (default %(default)s)")
    add("--without-trust", action="store_true", help="the student gets its tokens past trust-attention")
    add("--longest", type=float, default=LONGEST, metavar="S",
        help="simulated time after which an episode has failed, in s (default %(default)s)")
    add("--pipeline", choices=("core", "ros", "both"), default="core",
        help="core: in process; ros: all nodes; both: one after the other, and how far apart (default %(default)s)")
    add("--real-time", action="store_true", help="ros: against the clock instead of in lock-step")
    add("--jobs", type=int, default=1, metavar="N", help="core: processes; outcomes are the same (default %(default)s)")
    add("--out", type=Path, metavar="DIR",
        help="keep a JSON line per episode here; the same command again goes on where it was interrupted")
    add("--videos", type=int, default=0, metavar="K", help="film the first K episodes into --out (default %(default)s)")
    options = parser.parse_args(argv)
    if options.episodes < 1 or options.seed < 0 or options.jobs < 1 or options.videos < 0:
        parser.error("--episodes and --jobs must be at least 1, --seed and --videos not negative")
    ros = options.pipeline != "core"
    if ros and (options.compare or options.pilot != "student"):
        parser.error(f"--pipeline {options.pipeline} is for the student alone: leave --compare and --pilot out")
    if ros and options.jobs > 1:
        parser.error("--jobs is for --pipeline core: the nodes of one pipeline are threads already")
    if options.real_time and options.pipeline != "ros":
        parser.error("--real-time needs --pipeline ros: in real time no two runs are the same")
    if options.pilot != "student" and (options.corrupt or options.without_trust):
        parser.error(f"--corrupt and --without-trust are for the student: {options.pilot} sees nothing")
    if options.compare and options.pilot != "student":
        parser.error("--compare includes every pilot: leave --pilot out")
    if options.videos and options.out is None:
        parser.error("--videos needs --out, where the films go")
    return options


def chosen_ways(options: argparse.Namespace) -> list[Way]:
    """Raises ValueError on numbers out of range."""
    trial = Trial(
        options.pilot, MOST, ExecutionConfig(strategy=options.strategy),
        str(Path(options.checkpoint).expanduser().resolve()) if options.checkpoint else "",
        options.latency, options.region_scale, options.longest,
        parse_corruption(options.corrupt, begin=options.fault_at) if options.corrupt else CorruptionConfig(),
        not options.without_trust,
    )  # fmt: skip
    if options.compare:
        return compared(trial)
    ways = [Way(trial.pilot, trial)] if options.pipeline != "ros" else []
    name = "ros-real-time" if options.real_time else "ros"
    return ways + ([Way(name, trial, True, options.real_time)] if options.pipeline != "core" else [])


def settings(ways: Sequence[Way]) -> dict[str, Any]:
    """What must be the same for episodes to be counted together: with the student itself, by its hash."""
    values = {way.name: asdict(way) for way in ways}
    for value in values.values():
        config = checkpoint_path(value["trial"]["checkpoint"]) / "config.json"
        value["trial"]["checkpoint"] = hashlib.sha256(config.read_bytes()).hexdigest()
    flat = {f"{n}.{key}": v for n, value in values.items() for key, v in value.items() if key != "trial"}
    return flat | {f"{n}.{key}": v for n, value in values.items() for key, v in value["trial"].items()}


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns its exit status, 2 where the arguments or the machine do not allow to evaluate."""
    options = parse(remove_ros_args(sys.argv if args is None else ["rollout", *args])[1:])
    try:
        ways = chosen_ways(options)
        ledger = Ledger(options.out, settings(ways)) if options.out else None
        seeds = range(options.seed, options.seed + options.episodes)
        found = evaluate(ways, seeds, options.jobs, ledger, options.out, options.videos)
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        print(f"rollout: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rollout: stopped" + (": the same command goes on" if options.out else ""), file=sys.stderr)
        return 130
    for name, records in found.items():
        print(f"\n{name}\n{table(records)}")
    print()
    for name, records in found.items():
        print(summary_text(name, summary(records)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
