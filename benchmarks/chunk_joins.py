"""How one action chunk gives way to the next: the strategies side by side, in process, on the same unseen seeds.

jump     mean step of the target handed to the safety filter away from where it was heading, at a join of chunks (rad)
jerk     root mean square third difference of these targets within 50 ms of a join (rad/s^3); after_filter: of the set
         points that the robot gets
success  in percent
Each with the chunks as they come, and 150 ms late.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from harness import Bar, arguments, conclude

from sage_ros.core.execution import STRATEGIES, ExecutionConfig
from sage_ros.core.limits import MOST
from sage_ros.nodes.rollout import UNSEEN, Way, evaluate
from sage_ros.sim.results import summary, summary_text
from sage_ros.sim.trials import Trial

LATENCIES = (0.0, 0.15)  # s
DEFAULT = ExecutionConfig().strategy


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--episodes", type=int, default=20, help="of each strategy and latency (%(default)s)")
    parser.add_argument("--seed", type=int, default=UNSEEN, help="first world seed (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.episodes)
    trial = Trial(bounds=MOST)
    ways = [
        Way(f"{strategy}_{1e3 * latency:.0f}ms", replace(trial, latency=latency, execution=ExecutionConfig(strategy)))
        for latency in LATENCIES
        for strategy in STRATEGIES
    ]
    found = {name: summary(records) for name, records in evaluate(ways, seeds, options.jobs).items()}
    figures: dict[str, float] = {}
    for name, values in found.items():
        print(summary_text(name, values))
        figures |= {f"{name}_jump": values["jump"], f"{name}_jerk": values["target_jerk"]}
        figures |= {f"{name}_jerk_after_filter": values["jerk"], f"{name}_success": 100 * values["rate"]}
    bars: dict[str, Bar] = {}
    for late in (f"{1e3 * latency:.0f}ms" for latency in LATENCIES):
        mine, other = f"{DEFAULT}_{late}", f"open_loop_{late}"
        for kind in ("jump", "jerk"):
            figures[f"{kind}_over_open_loop_{late}"] = figures[f"{mine}_{kind}"] / figures[f"{other}_{kind}"]
            bars[f"{kind}_over_open_loop_{late}"] = ("<=", 0.5)
        figures[f"success_beyond_open_loop_{late}"] = figures[f"{mine}_success"] - figures[f"{other}_success"]
        bars[f"success_beyond_open_loop_{late}"] = (">=", 0.0)
    conclude("chunk_joins", figures, bars, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
