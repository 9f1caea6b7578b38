"""What a DREAM cycle is worth where the world has changed: moved camera, new object colour, new table texture.

Each seed records sessions of its own in the shifted world (the expert guides the arm, physics says that it succeeded;
every fourth is held out), then the shipped student dreams of them, beside original demonstrations: the package's, and
simulated ones as it was trained on; it is judged by such as it never saw. Figures are changes of the mean error on
held-out sessions (shift) and on held-out originals, before and after; "plain" is the same student fine-tuned on the
same sessions with the same steps, rate and batches, but without what a dream does besides. "Both worlds" is the mean of
the two errors. Closed loop: through the whole pipeline in one thread, physics judges, on world seeds that nothing was
trained on, in the shifted world and in the original one.
--work keeps what is done: the same command goes on.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Bar, arguments, conclude
from matplotlib.figure import Figure
from safetensors import safe_open
from safetensors.numpy import save_file

from sage_ros.core.limits import MOST
from sage_ros.episodes.dataset import EpisodeDataset
from sage_ros.paths import CHECKPOINT, EPISODES
from sage_ros.policy.checkpoint import load_checkpoint
from sage_ros.policy.student import StudentPolicy
from sage_ros.sim.trials import Stages, Trial
from sage_ros.sim.world import RATE, TASK, PickPlaceWorld
from sage_ros.training.calibration import calibrated
from sage_ros.training.dream import Originals, save, split_originals
from sage_ros.training.dreams import DreamConfig, judge, learn
from sage_ros.training.expecting import recalibrated
from sage_ros.training.openloop import Demonstration
from sage_ros.training.sessions import Session
from sage_ros.training.simulated import FIRST_SEED, simulate

WAYS = ("dream", "plain")
SESSIONS, UNSEEN = 500_000, 900_000  # first world seeds: of the sessions (1000 more for each seed), of the closed loop
LOOKS = {"shift": "shifted", "original": "plain"}  # what figures call a world, and what the simulation does
ARRAYS = ("state", "action", "tokens")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="(0 to 4)")
    parser.add_argument("--sessions", type=int, default=60, help="recorded in the shifted world (%(default)s)")
    parser.add_argument("--originals", type=int, default=1000, help="simulated originals to rehearse (%(default)s)")
    parser.add_argument("--steps", type=int, default=DreamConfig().steps, help="gradient steps (%(default)s)")
    parser.add_argument("--episodes", type=int, default=20, help="closed loop, per seed, way and world (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--work", type=Path, help="keep what is done here")
    parser.add_argument("--picture", type=Path, help="draw what was found into this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        options.work = options.work or Path(temporary)
        settings = {"sessions": options.sessions, "steps": options.steps, "originals": options.originals}
        kept = Kept(options.work / "done.json", settings)
        run(options, kept)
        figures = summary(options.seeds, kept.done)
    bars: dict[str, Bar] = {
        "shift_percent_worst": ("<=", -20.0), "original_percent_worst": ("<=", 2.0),
        "both_worlds_over_plain_worst": ("<=", 1.0), "promoted_percent": (">=", 100.0),
        "closed_loop_gain_worst": (">=", 1.0),
    }  # fmt: skip
    conclude("dream", figures, bars, options.record)
    if options.picture:
        draw(figures, options.seeds).savefig(options.picture, dpi=110)
    return 0


class Kept:
    """Figures by name, in a file that an interrupted run goes on from."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.done = path, dict[str, Any](settings=settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self.done = json.loads(path.read_text())
            if self.done["settings"] != settings:
                raise SystemExit(f"{path} is of {self.done['settings']}, not {settings}: give another --work")

    def keep(self, name: str, figures: Any) -> None:
        self.done[name] = figures
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.done, indent=1))
        os.replace(part, self.path)
        print(f"{name}: {figures}", flush=True)


def made(options: Namespace, look: str, seeds: Sequence[int]) -> list[Demonstration]:
    """Simulated demonstrations, as the shipped student sees them; made once, their tokens mapped from the file."""
    path = options.work / f"{look}_{seeds[0]}_to_{seeds[-1]}_{len(seeds)}"
    if not path.exists():
        champion = load_checkpoint(CHECKPOINT)
        shown = simulate(seeds, champion.encoder_name, champion.encoder_source, options.jobs, False, look)
        arrays = {f"{d.index}.{name}": np.ascontiguousarray(getattr(d, name)) for d in shown for name in ARRAYS}
        save_file(arrays, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
    joints = PickPlaceWorld.joint_layout
    found = []
    with safe_open(path, framework="pt") as file:
        for number in sorted({int(key.split(".")[0]) for key in file.keys()}):  # noqa: SIM118 (not a mapping)
            state, action, tokens = (file.get_tensor(f"{number}.{name}").numpy() for name in ARRAYS)
            found.append(Demonstration(number, TASK, RATE, state, action, tokens, joints, joints))
    return found


def find_originals(options: Namespace) -> Originals:
    """Recorded and simulated demonstrations that the shipped student was trained on; and such as it never saw."""
    rehearse, known = split_originals([EpisodeDataset(EPISODES)], load_checkpoint(CHECKPOINT), progress=False)
    seen = range(FIRST_SEED, FIRST_SEED + options.originals)
    unseen = range(SESSIONS - 1000, SESSIONS - 1000 + max(8, options.originals // 2))
    shown = made(options, LOOKS["original"], [*seen, *unseen])
    return ([*rehearse, *(d for d in shown if d.index in seen)], [*known, *(d for d in shown if d.index in unseen)])


def find_sessions(options: Namespace) -> dict[int, list[Session]]:
    """Those of each seed."""
    seeds = {seed: range(SESSIONS + 1000 * seed, SESSIONS + 1000 * seed + options.sessions) for seed in options.seeds}
    shown = made(options, LOOKS["shift"], [number for numbers in seeds.values() for number in numbers])
    return {
        seed: [Session(replace(d, index=d.index - numbers[0]), success=True) for d in shown if d.index in numbers]
        for seed, numbers in seeds.items()
    }


@dataclass(frozen=True)
class Lesson:
    """A student that is to learn from the sessions of a seed in one way."""

    way: str
    seed: int
    options: Namespace

    @property
    def key(self) -> str:
        return f"{self.way} {self.seed}"


@dataclass(frozen=True)
class Play:
    """An episode in closed loop, on a world seed of the seed's own."""

    way: str
    seed: int
    world: str
    number: int
    checkpoint: str

    @property
    def key(self) -> str:
        return f"closed loop, {self.world}: {self.way} {self.seed}"


def plays(options: Namespace, ways: Sequence[str], done: dict[str, Any]) -> list[Play]:
    """The episodes of these students that were not played, what matters most first."""
    found = []
    for world in LOOKS:
        for way in ways:
            for seed in options.seeds:
                checkpoint = CHECKPOINT if way == "shipped" else options.work / f"{way}_{seed}"
                several = [Play(way, seed, world, k, str(checkpoint)) for k in range(options.episodes)]
                if done.get(several[0].key, {}).get("episodes", 0) < options.episodes:
                    found += several
    return found


def run(options: Namespace, kept: Kept) -> None:
    """All that is not done: the students learn side by side, and are played as soon as all have learned."""
    lessons = [Lesson(way, seed, options) for seed in options.seeds for way in WAYS]
    lessons = [lesson for lesson in lessons if lesson.key not in kept.done]
    if lessons:  # what they share is made before, with all processes
        find_originals(options)
        find_sessions(options)
    with multiprocessing.get_context("spawn").Pool(options.jobs, torch.set_num_threads, (1,)) as pool:
        first: list[Lesson | Play] = [*lessons, *plays(options, ["shipped"], kept.done)]
        then: list[Lesson | Play] = [*plays(options, WAYS, kept.done)]
        for tasks in (first, then):
            won: dict[str, list[bool]] = {}
            for key, found in pool.imap_unordered(do, tasks):
                if isinstance(found, dict):
                    kept.keep(key, found)
                    continue
                won.setdefault(key, []).append(found)
                if len(won[key]) == options.episodes:
                    kept.keep(key, {"episodes": options.episodes, "successes": sum(won[key])})


stages = Stages()  # of a process


def do(task: Lesson | Play) -> tuple[str, dict[str, Any] | bool]:
    if isinstance(task, Lesson):
        return task.key, learn_one(task)
    trial = Trial(bounds=MOST, checkpoint=task.checkpoint, look=LOOKS[task.world])
    return task.key, stages.run((trial, UNSEEN + 1000 * task.seed + task.number, None)).success


def learn_one(lesson: Lesson) -> dict[str, Any]:
    """Let it learn, save the student, and return its figures."""
    way, seed, options = lesson.way, lesson.seed, lesson.options
    champion, sessions = load_checkpoint(CHECKPOINT), find_sessions(options)[seed]
    learned, judged = ([s for s in sessions if s.held_out == aside] for aside in (False, True))
    rehearse, known = find_originals(options)
    config = DreamConfig(seed=seed, steps=options.steps)
    shown = rehearse  # trust-attention is to know both worlds, whatever the student learns from
    if way == "plain":
        rehearse, config = [], replace(config, priority=0.0, reach=1.0)
    start = time.process_time()
    cloned = learn(champion, learned, rehearse, config, progress=False)
    spent = time.process_time() - start
    challenger = StudentPolicy(cloned.student, cloned.normalization, champion.rate)
    verdict = judge(champion.policy, challenger, judged, known, config)
    cloned = replace(cloned, normalization=calibrated(cloned, [*(s.demonstration for s in judged), *known]))
    calibration = recalibrated(champion, sessions, shown)
    save(options.work / f"{way}_{seed}", champion, cloned, calibration, verdict, {"settings": asdict(config)})
    return verdict.figures | {"promoted": verdict.better, "reason": verdict.reason, "cpu_seconds": spent}


def summary(seeds: list[int], done: dict[str, Any]) -> dict[str, float]:
    """The figures of each seed, and over seeds: mean, worst and best."""
    figures: dict[str, float] = {}

    def spread(name: str, values: list[float], worst: Any) -> None:
        best = min if worst is max else max
        figures.update({f"{name}_mean": float(np.mean(values)), f"{name}_worst": float(worst(values)),
                        f"{name}_best": float(best(values))})  # fmt: skip
        figures.update({f"{name}_seed_{seed}": float(value) for seed, value in zip(seeds, values, strict=True)})

    by = {way: [done[f"{way} {seed}"] for seed in seeds] for way in WAYS}
    for way, rows in by.items():
        prefix = "" if way == "dream" else f"{way}_"
        spread(f"{prefix}shift_percent", [100 * r["change"] for r in rows], max)
        spread(f"{prefix}original_percent", [100 * r["original_change"] for r in rows], max)
    both = {way: np.array([(r["error"] + r["original_error"]) / 2 for r in rows]) for way, rows in by.items()}
    spread("both_worlds_over_plain", list(both["dream"] / both["plain"]), max)
    spread("shift_over_plain", [d["error"] / p["error"] for d, p in zip(*by.values(), strict=True)], max)
    figures["promoted_percent"] = 100 * float(np.mean([r["promoted"] for r in by["dream"]]))
    figures["cpu_seconds_median"] = float(np.median([r["cpu_seconds"] for r in by["dream"]]))
    figures["sessions_judged_by"] = by["dream"][0]["sessions"]
    figures["originals_judged_by"] = by["dream"][0]["originals"]
    rates = {}
    for world in LOOKS:
        for way in ("shipped", *WAYS):
            found = [done[f"closed loop, {world}: {way} {seed}"] for seed in seeds]
            rates[world, way] = [100 * r["successes"] / r["episodes"] for r in found]
            spread(f"closed_loop_{world}_{way}_percent", rates[world, way], min)
    spread("closed_loop_gain", list(np.subtract(rates["shift", "dream"], rates["shift", "shipped"])), min)
    episodes = [done[f"closed loop, shift: dream {seed}"]["episodes"] for seed in seeds]
    figures["closed_loop_episodes"] = float(sum(episodes))
    return figures


def draw(figures: dict[str, float], seeds: list[int]) -> Figure:
    """Bars for each seed: errors before and after, and how often the task succeeds."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    place = np.arange(len(seeds))
    colours = {"shipped": "#9a9a9a", "dream": "#a48fc9", "plain": "#f2c14e"}

    def bars(axes: Any, name: str, ways: dict[str, str], title: str, unit: str) -> None:
        for number, (way, key) in enumerate(ways.items()):
            values = [figures[f"{key}_seed_{seed}"] for seed in seeds]
            drawn = axes.bar(place + 0.27 * (number - (len(ways) - 1) / 2), values, 0.25, color=colours[way], label=way)
            axes.bar_label(drawn, fmt=name, fontsize=7, padding=1)
        axes.axhline(0.0, color="#333333", lw=0.8)
        axes.set_title(title, fontsize=10)
        axes.set_ylabel(unit, fontsize=9)
        axes.set_xticks(place, [f"seed {seed}" for seed in seeds])

    learned = ("dream", "plain")
    bars(left, "%.0f", dict(zip(learned, ("shift_percent", "plain_shift_percent"), strict=True)),
         "Error in the shifted world, after learning", "change (%)")  # fmt: skip
    bars(middle, "%+.1f", dict(zip(learned, ("original_percent", "plain_original_percent"), strict=True)),
         "Error on the originals, after learning", "change (%)")  # fmt: skip
    middle.set_yscale("symlog", linthresh=5.0)
    middle.margins(y=0.15)
    middle.axhline(2.0, color="#d1495b", lw=0.8, ls="--")
    middle.text(place[0] - 0.45, 2.0, "2 %", color="#d1495b", fontsize=8, va="bottom")
    bars(right, "%.0f", {way: f"closed_loop_shift_{way}_percent" for way in colours},
         "Success in the shifted world", "of episodes (%)")  # fmt: skip
    right.set_ylim(0, 105)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


if __name__ == "__main__":
    sys.exit(main())
