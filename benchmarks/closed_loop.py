"""Does the robot do its task? The shipped student in the simulated world, on seeds that nothing was trained on.

through ROS     all nodes and the simulated robot in lock-step, also with 150 ms added to each action; in real time,
                whether the camera keeps its 20 frames a second meanwhile
in one thread   the same student beside the expert, holding still, and chunks carried out to their end; where cube and
                plate lie in a region half as wide again
both            on every seed, as it is and late: whether the arm moves alike
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from harness import Bar, arguments, conclude

from sage_ros.core.limits import MOST
from sage_ros.nodes.rollout import UNSEEN, Way, compared, evaluate, settings
from sage_ros.nodes.rollout_stage import RosStage
from sage_ros.sim.results import Ledger, Record, summary, summary_text
from sage_ros.sim.trials import Trial

LATE = 0.15  # s
WIDE = 1.5
ROUNDING = 1e-6  # rad


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--episodes", type=int, default=100, help="of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=UNSEEN, help="first world seed (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes for what needs no ROS (%(default)s)")
    parser.add_argument("--live", type=int, default=2, help="episodes in real time (%(default)s)")
    parser.add_argument("--out", type=Path, help="keep episodes here; the same command again goes on")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.episodes)
    trial = Trial(bounds=MOST)
    late, wide = replace(trial, latency=LATE), replace(trial, region_scale=WIDE)

    def play(part: str, ways: list[Way]) -> dict[str, list[Record]]:
        ledger = Ledger(options.out / part, settings(ways)) if options.out else None
        return evaluate(ways, seeds, options.jobs, ledger)

    found = play("plain", [*compared(trial), Way("ros", trial, ros=True)])
    found |= play("late", [Way("late-core", late), Way("late", late, ros=True)]) | play("wide", [Way("wide", wide)])
    late_ros = found["late"]
    for name, records in found.items():
        print(summary_text(name, summary(records)), flush=True)

    figures = {
        "ros_success_percent": percent(found["ros"]),
        "late_150ms_success_percent": percent(late_ros),
        "region_1.5_success_percent": percent(found["wide"]),
        "core_success_percent": percent(found["student"]),
        "open_loop_success_percent": percent(found["open-loop"]),
        "expert_success_percent": percent(found["expert"]),
        "hold_success_percent": percent(found["hold"]),
        "seconds_to_success": summary(found["ros"])["seconds"] or float("nan"),
        "verdicts_that_differ": differing(found["student"], found["ros"]) + differing(found["late-core"], late_ros),
        **distances("apart", found["ros"]),
        **distances("late_apart", late_ros),
        **live(trial, options.seed, options.live),
    }
    bars: dict[str, Bar] = {
        "ros_success_percent": (">=", 95.0),
        "late_150ms_success_percent": (">=", 85.0),
        "verdicts_that_differ": ("<=", 0.0),
        "frames_per_s": (">=", 19.9),
    }
    conclude("closed_loop", figures, bars, options.record)
    return 0


def percent(records: list[Record]) -> float:
    return 100.0 * summary(records)["rate"]


def differing(some: list[Record], others: list[Record]) -> float:
    return float(sum(a["success"] != b["success"] for a, b in zip(some, others, strict=True)))


def distances(name: str, records: list[Record]) -> dict[str, float]:
    """How far the arm went apart in both pipelines: the most, and the share of episodes without any difference."""
    apart = np.array([record["apart"] for record in records if record["apart"] is not None])
    return {f"{name}_rad_max": float(apart.max()), f"{name}_alike_percent": 100.0 * float(np.mean(apart < ROUNDING))}


def live(trial: Trial, seed: int, count: int) -> dict[str, float]:
    """Frames per second of wall time, in the slowest of ``count`` episodes against the clock."""
    with RosStage(trial, real_time=True) as stage:
        rates, done = [], 0
        for number in range(seed, seed + count):
            done += stage.run(number).success
            rates.append(stage.frames_per_s())
    return {"frames_per_s": min(rates), "real_time_success_percent": 100.0 * done / count}


if __name__ == "__main__":
    sys.exit(main())
