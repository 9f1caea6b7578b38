"""Whether set points ever leave a limit, whatever plans come, and what one set point costs.

Cost: one core computes set points for 44 joints (a GR1's) that follow a smooth plan; some of it runs out of the limits.
Faults: episodes with random robots and random plans, a large part of them broken: jumps, values that are not
finite, joints permuted, unknown, missing or repeated, stale, future and late chunks, gaps, holds, a clock set back. A
broken chunk that is taken for a plan counts as let through.
Processes: see safety_processes.py, which does the same to the node in its own process, and measures how soon it brakes.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from harness import Bar, arguments, conclude
from safety_processes import bars as process_bars
from safety_processes import process_episodes
from tqdm import tqdm

from sage_ros.core.chunks import ActionChunk
from sage_ros.core.gate import ChunkGate, GateConfig, Refusal
from sage_ros.core.limits import JointLimits
from sage_ros.core.motion import MotionFilter

PERIOD, ROWS, ROW = 0.01, 16, 0.05  # of set points (s); of a chunk and between its rows (s)
SECOND = 1_000_000_000
TICKS = 80  # set points of an episode
TOLERANCE = 1e-6  # share of a limit


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--episodes", type=int, default=10_000, help="fault episodes (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="first episode's seed (%(default)s)")
    parser.add_argument("--process-episodes", type=int, default=200, help="fault episodes with processes (%(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="policies to kill (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tenth of all")
    options = parser.parse_args()
    episodes = 200 if options.quick else options.episodes
    live, kills = (20, 2) if options.quick else (options.process_episodes, options.kills)
    figures = set_point_cost(2_000 if options.quick else 20_000) | fault_episodes(episodes, options.seed)
    bars: dict[str, Bar] = {
        "filter_ms_p99_44_joints": ("<=", 0.2),
        f"violations_{episodes}_episodes": ("<=", 0.0),
        "broken_chunks_let_through": ("<=", 0.0),
    }
    figures |= process_episodes(live, kills, options.seed, violations)
    conclude("safety", figures, bars | process_bars(live), options.record)
    return 0


# What a set point costs


def set_point_cost(count: int, joints: int = 44) -> dict[str, float]:
    """Median and p99 of one set point, of one while braking, and the median of a chunk's preview, in ms."""
    rng, full = np.random.default_rng(0), np.ones(joints)
    names = tuple(f"joint_{i}" for i in range(joints))
    motion = MotionFilter(JointLimits(names, np.stack([-full, full], 1), 2 * full, 12 * full, 200 * full), PERIOD)
    motion.start(np.zeros(joints))
    phase, speed, size = rng.uniform(0, 6, joints), rng.uniform(0.5, 2, joints), rng.uniform(0.5, 1.1, joints)

    def plan(at: float) -> tuple[np.ndarray, np.ndarray]:
        return size * np.sin(speed * at + phase), size * speed * np.cos(speed * at + phase)

    targets = [plan(PERIOD * k) for k in range(count)]
    for target in targets[:500]:
        motion.step(*target)  # warms up
    steps = [_milliseconds(partial(motion.step, *target)) for target in targets]
    rows = np.array([plan(PERIOD * count + ROW * (row + 1))[0] for row in range(ROWS)])
    previews = [_milliseconds(partial(motion.preview, rows, 1 / ROW)) for _ in range(100)]
    holds = []
    for target in targets[: count // 10]:
        motion.step(*target)
        holds.append(_milliseconds(motion.hold))
    return {
        f"filter_ms_p50_{joints}_joints": float(np.median(steps)),
        f"filter_ms_p99_{joints}_joints": float(np.quantile(steps, 0.99)),
        f"hold_ms_p99_{joints}_joints": float(np.quantile(holds, 0.99)),
        f"preview_ms_p50_{joints}_joints": float(np.median(previews)),
    }


def _milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


# Faults at the filter


@dataclass
class Plan:
    """A trajectory message's contents, and whether it is broken."""

    stamp: int
    names: list[str]
    rows: list[list[float]]
    times: list[float]
    broken: bool = False


@dataclass
class Tally:
    set_points: int = 0
    chunks: int = 0
    violations: int = 0
    let_through: int = 0
    turned_away: int = 0  # good chunks that were refused
    braked: int = 0
    refused: Counter[str] = field(default_factory=Counter)


def fault_episodes(count: int, first_seed: int) -> dict[str, float]:
    tally = Tally()
    for seed in tqdm(range(first_seed, first_seed + count), "fault episodes", disable=None):
        Episode(np.random.default_rng(seed), tally).run()
    print("refused: " + ", ".join(f"{reason} {times}" for reason, times in sorted(tally.refused.items())))
    return {
        f"violations_{count}_episodes": float(tally.violations),
        "broken_chunks_let_through": float(tally.let_through),
        "good_chunks_refused": float(tally.turned_away),
        "chunks": float(tally.chunks),
        "set_points": float(tally.set_points),
        "joints_braked_per_set_point": tally.braked / max(tally.set_points, 1),
    }


class Episode:
    """One random robot whose plans come through the gate, and are as broken as can be, for ``TICKS`` set points."""

    def __init__(self, rng: np.random.Generator, tally: Tally) -> None:
        self.rng, self.tally = rng, tally
        joints = int(rng.choice([1, 2, 3, 6, 7, 14, 44], p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.08, 0.02]))
        span = 10 ** rng.uniform(-1.5, 0.8, joints)
        self.low = rng.uniform(-1, 1, joints) - span / 2
        self.high = self.low + span
        velocity = span * 10 ** rng.uniform(-0.7, 1, joints)
        acceleration = velocity * 10 ** rng.uniform(-0.3, 1.5, joints)
        jerk = acceleration * 10 ** rng.uniform(-0.3, 1.5, joints)
        self.names = [f"joint_{i}" for i in range(joints)]
        position = np.stack([self.low, self.high], axis=1)
        self.motion = MotionFilter(JointLimits(tuple(self.names), position, velocity, acceleration, jerk), PERIOD)
        self.gate = ChunkGate(self.names, GateConfig())
        self.now = int(rng.integers(10**9, 10**18))
        self.last = 0  # the newest stamp taken
        self.aim = rng.uniform(self.low, self.high)  # where the next plan begins
        self.chunk: tuple[int, ActionChunk] | None = None

    def run(self) -> None:
        rng, motion = self.rng, self.motion
        motion.start(rng.uniform(self.low, self.high))
        points = [motion.position] * 3
        pace, quiet, held = 1.0, 0, 0
        for tick in range(TICKS):
            self.now += int(PERIOD * SECOND)
            if rng.random() < 0.03:
                pace = float(rng.choice([0.0, 0.1, 0.5, 1.0, 1.0, rng.random()]))
            quiet = int(rng.integers(10, 90)) if rng.random() < 0.01 else quiet - 1  # a gap in the stream
            held = int(rng.integers(1, 40)) if rng.random() < 0.01 else held - 1
            if rng.random() < 0.005:  # the clock is set back
                self.now -= int(rng.integers(SECOND, 5 * SECOND))
                self.gate.reset()
                self.chunk, self.last = None, 0
            if tick % 5 == 0 and quiet <= 0:
                self.receive(self.sabotaged(self.planned()))
            target = self.chunk[1].at((self.now - self.chunk[0]) / SECOND) if self.chunk and held <= 0 else None
            points.append(motion.hold() if target is None else motion.step(*target, pace))
        self.tally.set_points += TICKS
        self.tally.braked += motion.interventions
        self.tally.violations += violations(motion.limits, np.array(points))

    def receive(self, plan: Plan) -> None:
        self.tally.chunks += 1
        try:
            chunk = self.gate.check(plan.stamp, plan.names, plan.rows, plan.times, self.now)
        except Refusal as refusal:
            self.tally.refused[refusal.reason] += 1
            self.tally.turned_away += not plan.broken
            return
        self.tally.let_through += plan.broken
        self.chunk, self.last = (plan.stamp, chunk), plan.stamp

    def planned(self) -> Plan:
        """A good plan: smooth, rough, a jump or a step, and not always inside the limits."""
        rng, joints = self.rng, len(self.names)
        span, kind = self.high - self.low, rng.integers(0, 4)
        if kind == 0:
            self.aim = rng.uniform(self.low - 0.5 * span, self.high + 0.5 * span)
        walk = rng.normal(0, 0.2, (ROWS, joints)) if kind == 1 else np.tile(rng.normal(0, 0.1, joints), (ROWS, 1))
        rows = self.aim + span * (np.cumsum(walk, axis=0) if kind < 3 else 1e3 * np.sign(walk))
        self.aim = np.clip(rows[4], self.low - span, self.high + span)
        stamp = self.now - int(rng.integers(0, 40_000_000))
        times = [round((row + 1) * ROW * SECOND) / SECOND for row in range(ROWS)]
        order = rng.permutation(joints)  # any order of the joints will do
        plan = Plan(stamp, [self.names[i] for i in order], rows[:, order].tolist(), times)
        plan.broken = stamp <= self.last
        return plan

    def sabotaged(self, plan: Plan) -> Plan:
        """The plan, broken in one of many ways every other time."""
        rng = self.rng
        row, joint = int(rng.integers(ROWS)), int(rng.integers(len(self.names)))
        kind = rng.integers(0, 22)
        if kind > 10:
            return plan
        plan.broken = True
        if kind < 2:
            plan.rows[row][joint] = float(rng.choice([np.nan, np.inf, -np.inf]))
        elif kind == 2:
            del plan.rows[row][joint]
        elif kind == 3:
            plan.rows, plan.times = [], []
        elif kind == 4:
            plan.names[joint] = "stranger"
        elif kind == 5:
            plan.names, plan.rows = [*plan.names, "stranger"], [[*values, 0.0] for values in plan.rows]
        elif kind == 6:
            plan.names, plan.rows = [*plan.names, plan.names[joint]], [[*values, 0.0] for values in plan.rows]
        elif kind == 7:
            plan.stamp = self.now - int(rng.integers(SECOND // 2 + 1, 3 * SECOND))
        elif kind == 8:
            plan.stamp = self.now + int(rng.integers(SECOND // 40, 3 * SECOND))
        elif kind == 9:
            plan.times[row] += ROW * float(rng.choice([-3.0, -0.5, 0.5, np.nan]))
        elif self.last:
            plan.stamp = self.last - int(rng.integers(0, SECOND // 10))
        else:
            plan.times.pop()
        return plan


def violations(limits: JointLimits, points: np.ndarray) -> int:
    """Set points (K, A), the first three the pose at rest, of which any joint is out of any limit."""
    out = ((points < limits.position[:, 0]) | (points > limits.position[:, 1]))[3:]
    rounding = 8 * np.finfo(np.float64).eps * np.abs(points).max()  # positions are no finer than that
    for order, bound in enumerate((limits.velocity, limits.acceleration, limits.jerk), start=1):
        difference = np.abs(np.diff(points, order, axis=0))[3 - order :]
        out |= difference > bound * PERIOD**order * (1 + TOLERANCE) + rounding
    return int(out.any(axis=1).sum())


if __name__ == "__main__":
    sys.exit(main())
