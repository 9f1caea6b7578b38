"""What the metabolic states are worth to the task, and to a GPU; without ROS.

action error  the student on held-out episodes, asked for a chunk at every row as in FOCUS, or at every other one as in
              WAKE, whose rates are half of FOCUS's: mean squared error of the commands that are carried out (rad^2)
GPU           where there is one: its time for a frame, at each state's rate
budget        the simulated world, where the cube is pushed 4 cm aside once, on a computer that encodes so many frames a
              second when it does nothing else (--rates). After each task comes a pause as long. Steady FOCUS: full rate
              all the time; everything at half rate; and the manager with the package's table (it gains half a core),
              which works at full rate as long as its store lasts and spends almost nothing in the pauses. A CRISIS
              (it doubts for 2 s what steady FOCUS goes on with) costs the task; an operator resets it in the pause.
              "Saved" is its success less that at half rate, on the same seeds, in percent, with its 95 % interval
"""

from __future__ import annotations

import multiprocessing
import sys
from dataclasses import dataclass

import numpy as np
import torch
import yaml
from harness import Bar, arguments, conclude

from sage_ros.core.allowance import State, Table
from sage_ros.core.limits import MOST
from sage_ros.core.metabolism import Energy, Metabolism, Senses
from sage_ros.core.safety import SafetyConfig
from sage_ros.core.timing import SECOND
from sage_ros.episodes import EpisodeDataset
from sage_ros.paths import CHECKPOINT, EPISODES, share
from sage_ros.policy.checkpoint import load_checkpoint
from sage_ros.sim.rollout import StudentPilot, roll_out
from sage_ros.sim.trials import Trial, make_pilot
from sage_ros.sim.world import PickPlaceWorld
from sage_ros.training.openloop import predict_chunks
from sage_ros.training.tokens import load_demonstrations

LONGEST = 20.0  # s of simulated time for a task
NUDGE, NUDGED = 0.04, (1.0, 2.2)  # m, and when (s of the episode)
NEW = 200_000  # seeds that nothing was trained or tested on
CHAIN = 20  # tasks that one store of energy lives through
SCHEDULES = ("focus", "half", "manager")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--episodes", type=int, default=60, help="per rate and schedule (%(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=[20.0, 4.0, 2.0, 1.0], help="(20, 4, 2 and 1)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = packaged()
    figures = action_error(table) | gpu(table)
    figures |= budget(options.rates, options.episodes, options.jobs)
    bars: dict[str, Bar] = {"focus_over_wake_action_error": ("<=", 0.9)}
    for rate in options.rates:
        bars |= {f"budget{rate:g}_saved_by_manager": (">=", 1.0 if rate <= 1.0 else 0.0)}
        bars |= {f"budget{rate:g}_manager_over_half_cores": ("<=", 1.05)}
    conclude("schedules", figures, bars, options.record)
    return 0


def packaged() -> Table:
    return Table.of(yaml.safe_load(share("config", "metabolism.yaml").read_text()))


def action_error(table: Table) -> dict[str, float]:
    checkpoint = load_checkpoint(CHECKPOINT)
    shown = load_demonstrations(EpisodeDataset(EPISODES), checkpoint.load_encoder(), checkpoint.cameras[0],
                                checkpoint.metrics["split"]["held_out"], progress=False)  # fmt: skip
    apart = {state: round(table.states[State.FOCUS].policy_rate / table.states[state].policy_rate)
             for state in (State.FOCUS, State.WAKE)}  # fmt: skip
    found = {}
    for state, every in apart.items():
        errors = [np.mean((predict_chunks(checkpoint.policy, d, every=every).positions - d.action) ** 2) for d in shown]
        found[f"{state.value.lower()}_action_error"] = float(np.mean(errors))
    return found | {"focus_over_wake_action_error": found["focus_action_error"] / found["wake_action_error"]}


def gpu(table: Table) -> dict[str, float]:
    """Milliseconds of a GPU for a frame, and its share (percent) at each state's rate."""
    if not torch.cuda.is_available():
        print("no GPU here: its time is not measured")
        return {}
    encoder, frame = load_checkpoint(CHECKPOINT).load_encoder("cuda"), EpisodeDataset(EPISODES)[0].frames()[:1]
    taken = []
    for _ in range(220):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        encoder.encode(frame)
        end.record()
        torch.cuda.synchronize()
        taken.append(begin.elapsed_time(end))
    cost = float(np.median(taken[20:]))
    return {"gpu_ms_per_frame": cost} | {f"gpu_percent_{state.value.lower()}": 0.1 * cost * allowance.vision_rate
                                         for state, allowance in table.states.items()}  # fmt: skip


# Success under a budget


@dataclass(frozen=True)
class Chain:
    """Tasks and pauses, one after the other, on one store of energy."""

    rate: float  # frames a second
    schedule: str
    seeds: range


@dataclass(frozen=True)
class Lived:
    """What became of it."""

    successes: list[bool]
    seconds: list[float]  # of each task
    spent: float  # s of compute
    time: float  # s
    focus: float  # s in FOCUS
    crises: int


def live(chain: Chain) -> Lived:
    with PickPlaceWorld() as world:
        pilot = make_pilot(Trial(bounds=MOST), world)
        assert isinstance(pilot, StudentPilot)
        way, outcomes = Scheduled(pilot, chain.rate, chain.schedule, packaged()), []
        for seed in chain.seeds:
            outcomes.append(roll_out(world, way, seed, longest=LONGEST))
            way.pause(outcomes[-1].seconds)
    successes, seconds = [o.success for o in outcomes], [o.seconds for o in outcomes]
    return Lived(successes, seconds, way.spent, way.time, way.focus, way.crises)


def budget(rates: list[float], episodes: int, jobs: int) -> dict[str, float]:
    chains = [Chain(rate, schedule, range(NEW + first, NEW + min(first + CHAIN, episodes)))
              for rate in rates for schedule in SCHEDULES for first in range(0, episodes, CHAIN)]  # fmt: skip
    by: dict[tuple[float, str], list[Lived]] = {}
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(chains)), torch.set_num_threads, (1,)) as pool:
        for chain, lived in zip(chains, pool.imap(live, chains, chunksize=1), strict=True):
            by.setdefault((chain.rate, chain.schedule), []).append(lived)
            print(f"  {chain.rate:g} frames/s, {chain.schedule}, from seed {chain.seeds[0]}: {sum(lived.successes)} of "
                  f"{len(lived.successes)}, {lived.spent / lived.time:.2f} cores", flush=True)  # fmt: skip
    figures: dict[str, float] = {"budget_episodes": float(episodes)}
    for rate in rates:
        won, name = {}, f"budget{rate:g}"
        for schedule in SCHEDULES:
            here = by[rate, schedule]
            won[schedule] = np.array([success for lived in here for success in lived.successes], float)
            time, spent, focus = (sum(getattr(lived, what) for lived in here) for what in ("time", "spent", "focus"))
            figures |= {
                f"{name}_{schedule}_success": 100 * float(won[schedule].mean()),
                f"{name}_{schedule}_seconds": float(np.mean([s for lived in here for s in lived.seconds])),
                f"{name}_{schedule}_cores": spent / time, f"{name}_{schedule}_focus_share": focus / time,
            }  # fmt: skip
        for schedule in ("manager", "half"):
            figures[f"{name}_{schedule}_loses"] = 100 * float((won["focus"] - won[schedule]).mean())
        figures[f"{name}_manager_crises"] = float(sum(lived.crises for lived in by[rate, "manager"]))
        figures[f"{name}_manager_over_half_cores"] = figures[f"{name}_manager_cores"] / figures[f"{name}_half_cores"]
        saved = won["manager"] - won["half"]
        low, high = paired_interval(saved)
        figures |= {f"{name}_saved_by_manager": 100 * float(saved.mean()), f"{name}_saved_at_least": 100 * low,
                    f"{name}_saved_at_most": 100 * high}  # fmt: skip
    return figures


def paired_interval(differences: np.ndarray) -> tuple[float, float]:
    """The mean's 95 % interval, by a bootstrap over the pairs (Efron & Tibshirani 1993)."""
    pick = np.random.default_rng(0).integers(len(differences), size=(10_000, len(differences)))
    low, high = np.quantile(differences[pick].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


class Scheduled(StudentPilot):
    """The student, which sees only the frames that its schedule pays for. The cube is pushed aside once."""

    def __init__(self, pilot: StudentPilot, rate: float, schedule: str, table: Table) -> None:
        super().__init__(pilot.pipeline)
        self.rate, self.schedule, self.table = rate, schedule, table
        self.time = self.spent = self.focus = self._certainty = 0.0
        self.crises = 0
        self._energy = Energy(table.store.capacity, table.store.recharge)
        self._metabolism = Metabolism(table.thresholds)
        self.pipeline.filter.config = SafetyConfig(watchdog=3.0 / rate)
        self._confide = self.pipeline.filter.confide
        self.pipeline.filter.confide = self._hear  # type: ignore[method-assign]

    def _hear(self, confidence: float) -> None:
        self._certainty = confidence
        self._confide(confidence)

    def reset(self, world: PickPlaceWorld, seed: int, now: int) -> None:
        super().reset(world, seed, now)
        random = np.random.default_rng(seed)
        self._push_at, angle = now + round(SECOND * random.uniform(*NUDGED)), random.uniform(0, 2 * np.pi)
        self._push = NUDGE * np.array([np.cos(angle), np.sin(angle)])
        self._certainty, self._last = 1.0, now
        self._allowed, self._due = self.rate / 2 if self.schedule == "half" else self.rate, float(now)

    def pause(self, seconds: float) -> None:
        """Nothing to do for so long: who has no metabolism looks on all the same."""
        self.time += seconds
        if self.schedule != "manager":
            self.spent += seconds * self._allowed / self.rate
            return
        if self._metabolism.state is State.CRISIS:
            self.crises += 1
            self._metabolism.reset_crisis()
        cost = seconds * self.table.states[State.REST].cost
        self.spent += cost
        self._metabolism.update(Senses(self.time, self._energy.advance(seconds, cost), task=False))

    def see(self, now: int) -> None:
        if self._push_at and now >= self._push_at and self._world.object_position[2] < 0.03:
            self._push_at = 0
            self._world.data.qpos[6:8] += self._push
        elapsed, self._last = (now - self._last) / SECOND, now
        self.time += elapsed
        if self.schedule == "manager":
            machine = self._metabolism
            machine.update(Senses(self.time, self._energy.advance(elapsed, 0.0), True, self.pipeline.trusted,
                                  self._certainty))  # fmt: skip
            self._allowed = min(self.rate, self.table.states[machine.state].vision_rate)
            self.focus += elapsed * (machine.state is State.FOCUS)
            held = machine.pause or ("" if self.table.states[machine.state].actuation else machine.state.value)
            self.pipeline.filter.forbid("metabolism", held)
        if self.enabled and (not self._allowed or now < self._due):
            return self.pipeline.feel(now, self._world.state)
        period = SECOND / (self._allowed or self.rate)
        self._due = max(self._due, now - period) + period
        self.spent += 1.0 / self.rate
        self._energy.advance(0.0, 1.0 / self.rate)
        super().see(now)


if __name__ == "__main__":
    sys.exit(main())
