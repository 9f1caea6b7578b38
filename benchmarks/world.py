"""How fast the simulated world runs with its 256x256 camera on one core, and how often the scripted expert succeeds.

Lets the expert act in worlds that the package's demonstrations do not show, in one process bound to one core: physics,
expert and picture of every tick.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np
from harness import arguments, conclude

from sage_ros.sim.expert import demonstrate
from sage_ros.sim.world import PickPlaceWorld


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--episodes", type=int, default=10, help="demonstrations (%(default)s)")
    parser.add_argument("--seed", type=int, default=1000, help="first world seed (%(default)s)")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rates, renders, done = [], [], 0
    with PickPlaceWorld(256) as world:
        for _ in range(20):
            world.render()  # the first pictures warm up
        for seed in range(options.seed, options.seed + options.episodes):
            start = time.perf_counter()
            demonstration = demonstrate(world, seed)
            rates.append(len(demonstration.state) / (time.perf_counter() - start))
            done += demonstration.failure is None
            start = time.perf_counter()
            for _ in range(10):
                world.render()
            renders.append((time.perf_counter() - start) * 100)
    figures = {
        "frames_per_s_one_core": float(np.median(rates)),
        "slowest_episode_frames_per_s": min(rates),
        "render_ms": float(np.median(renders)),
        "expert_succeeds": done / options.episodes,
    }
    conclude("world", figures, {"frames_per_s_one_core": (">=", 20.0)}, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
