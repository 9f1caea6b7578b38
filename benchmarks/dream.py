"""What a DREAM cycle is worth where the world has changed: moved camera, new object colour, new table texture.

Each seed records sessions of its own in the shifted world (the expert guides the arm, physics says that it succeeded;
every fourth is held out), then the shipped student dreams of them, beside original demonstrations: the package's, and
some of the simulated ones that it was trained on; it is judged by such as it never saw. Figures are
changes of the mean error on held-out sessions and on held-out originals, before and after; "plain" is the same student
fine-tuned on the same sessions with the same steps, rate and batches, but without rehearsal and priorities. "Both
worlds" is the mean of the two errors. Closed loop: through the whole pipeline in one thread, physics judges, on world
seeds that nothing was trained on, in the shifted world before and after the dream, and in the original one.
--work keeps what is done: the same command goes on.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Bar, arguments, conclude
from safetensors.numpy import load_file, save_file

from sage_ros.core.limits import MOST
from sage_ros.episodes.dataset import EpisodeDataset
from sage_ros.paths import CHECKPOINT, EPISODES
from sage_ros.policy.checkpoint import load_checkpoint
from sage_ros.policy.student import StudentPolicy
from sage_ros.sim.trials import Trial, run_trials
from sage_ros.sim.world import RATE, TASK, PickPlaceWorld
from sage_ros.training.calibration import calibrated
from sage_ros.training.dream import Originals, save, split_originals
from sage_ros.training.dreams import DreamConfig, judge, learn
from sage_ros.training.openloop import Demonstration
from sage_ros.training.sessions import Session
from sage_ros.training.simulated import FIRST_SEED, simulate

WAYS = ("dream", "plain")
SESSIONS, UNSEEN = 500_000, 900_000  # first world seeds: of the sessions (1000 more for each seed), of the closed loop
LOOK = "shifted"
ARRAYS = ("state", "action", "tokens")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="(0 to 4)")
    parser.add_argument("--sessions", type=int, default=40, help="recorded in the shifted world (%(default)s)")
    parser.add_argument("--originals", type=int, default=120, help="simulated originals to rehearse (%(default)s)")
    parser.add_argument("--steps", type=int, default=DreamConfig().steps, help="gradient steps (%(default)s)")
    parser.add_argument("--episodes", type=int, default=10, help="closed loop, per seed and world (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--work", type=Path, help="keep what is done here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        kept = Kept(work / "done.json", {
            "sessions": options.sessions, "steps": options.steps, "originals": options.originals,
        })  # fmt: skip
        originals: Originals = ([], [])
        for seed in options.seeds:
            if any(f"{way} {seed}" not in kept.done for way in WAYS):
                originals = originals if originals[0] else find_originals(work, options)
                learn_seed(seed, originals, options, work, kept)
        for seed in options.seeds:
            play(f"shipped {seed}", str(CHECKPOINT), seed, LOOK, options, kept)
            play(f"dream {seed}", str(work / f"dream_{seed}"), seed, LOOK, options, kept)
            for way in WAYS:
                play(f"{way} {seed}", str(work / f"{way}_{seed}"), seed, "plain", options, kept)
        figures = summary(options, kept.done)
    bars: dict[str, Bar] = {
        "shift_percent_worst": ("<=", -20.0), "original_percent_worst": ("<=", 2.0),
        "both_worlds_over_plain_worst": ("<=", 1.0), "promoted_percent": (">=", 100.0),
        "closed_loop_gain_worst": (">=", 1.0),
    }  # fmt: skip
    conclude("dream", figures, bars, options.record)
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


def made(path: Path, count: int, seed: int, look: str, jobs: int) -> list[Demonstration]:
    """Simulated demonstrations, as the shipped student sees them; made once."""
    if not path.exists():
        champion = load_checkpoint(CHECKPOINT)
        found = simulate(count, champion.encoder_name, champion.encoder_source, seed, jobs, False, look)
        arrays = {f"{d.index}.{name}": np.ascontiguousarray(getattr(d, name)) for d in found for name in ARRAYS}
        save_file(arrays, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
    arrays, joints = load_file(path), PickPlaceWorld.joint_layout
    seeds = sorted({int(key.split(".")[0]) for key in arrays})
    found = []
    for number in seeds:
        state, action, tokens = (arrays[f"{number}.{name}"] for name in ARRAYS)
        found.append(Demonstration(number, TASK, RATE, state, action, tokens, joints, joints))
    return found


def find_originals(work: Path, options: Any) -> Originals:
    """Recorded and simulated demonstrations that the shipped student was trained on; and such as it never saw."""
    champion = load_checkpoint(CHECKPOINT)
    rehearse, known = split_originals([EpisodeDataset(EPISODES)], champion, progress=False)
    count = options.originals
    seen = made(work / f"originals_{count}", count, FIRST_SEED, "plain", options.jobs)
    unseen = made(work / f"unseen_{count}", max(8, count // 5), SESSIONS - 1000, "plain", options.jobs)
    return [*rehearse, *seen], [*known, *unseen]


def learn_seed(seed: int, originals: Originals, options: Any, work: Path, kept: Kept) -> None:
    """Record sessions, dream of them in every way, and keep the errors and the students."""
    champion = load_checkpoint(CHECKPOINT)
    name = f"sessions_{seed}_of_{options.sessions}"
    recorded = made(work / name, options.sessions, SESSIONS + 1000 * seed, LOOK, options.jobs)
    sessions = [Session(replace(d, index=place), success=True) for place, d in enumerate(recorded)]
    learned, judged = ([s for s in sessions if s.held_out == aside] for aside in (False, True))
    rehearse, known = originals
    config = DreamConfig(seed=seed, steps=options.steps)
    for way in WAYS:
        if f"{way} {seed}" in kept.done:
            continue
        here = {"dream": config, "uniform": replace(config, priority=0.0),
                "plain": replace(config, rehearsal=0.0, priority=0.0)}[way]  # fmt: skip
        start = time.process_time()
        cloned = learn(champion, learned, [] if way == "plain" else rehearse, here, progress=False)
        spent = time.process_time() - start
        policy = StudentPolicy(cloned.student, cloned.normalization, champion.rate)
        verdict = judge(champion.policy, policy, judged, known, here)
        cloned = replace(cloned, normalization=calibrated(cloned, [*(s.demonstration for s in judged), *known]))
        tokens = [d.tokens for d in (*(s.demonstration for s in learned), *(rehearse if way != "plain" else []))]
        save(work / f"{way}_{seed}", champion, cloned, tokens, verdict, {"settings": asdict(here)})
        kept.keep(f"{way} {seed}", verdict.figures | {"promoted": verdict.better, "reason": verdict.reason,
                                                      "cpu_seconds": spent})  # fmt: skip


def play(name: str, checkpoint: str, seed: int, look: str, options: Any, kept: Kept) -> None:
    """How often it picks and places, on world seeds of this seed's own."""
    key = f"closed loop, {look}: {name}"
    if key in kept.done and kept.done[key]["episodes"] == options.episodes:
        return
    trial = Trial(bounds=MOST, checkpoint=checkpoint, look=look)
    first = UNSEEN + 1000 * seed
    found = list(run_trials([(trial, first + k, None) for k in range(options.episodes)], options.jobs))
    kept.keep(key, {"episodes": len(found), "successes": sum(outcome.success for outcome in found)})


def summary(options: Any, done: dict[str, Any]) -> dict[str, float]:
    """The figures, over seeds: median, worst and best."""
    figures: dict[str, float] = {}

    def spread(name: str, values: list[float], worst: Any) -> None:
        best = min if worst is max else max
        figures.update({f"{name}_median": float(np.median(values)), f"{name}_worst": float(worst(values)),
                        f"{name}_best": float(best(values))})  # fmt: skip

    by = {way: [done[f"{way} {seed}"] for seed in options.seeds] for way in WAYS}
    both = {way: np.array([(r["error"] + r["original_error"]) / 2 for r in rows]) for way, rows in by.items()}
    spread("shift_percent", [100 * r["change"] for r in by["dream"]], max)
    spread("original_percent", [100 * r["original_change"] for r in by["dream"]], max)
    for way in [way for way in WAYS if way != "dream"]:
        figures[f"{way}_shift_percent_median"] = float(np.median([100 * r["change"] for r in by[way]]))
        figures[f"{way}_original_percent_median"] = float(np.median([100 * r["original_change"] for r in by[way]]))
        spread(f"both_worlds_over_{way}", list(both["dream"] / both[way]), max)
    figures["promoted_percent"] = 100 * float(np.mean([r["promoted"] for r in by["dream"]]))
    figures["cpu_seconds_median"] = float(np.median([r["cpu_seconds"] for r in by["dream"]]))
    figures["sessions_judged_by"] = by["dream"][0]["sessions"]

    def rates(name: str, look: str = LOOK) -> list[float]:
        found = [done[f"closed loop, {look}: {name} {seed}"] for seed in options.seeds]
        return [100 * r["successes"] / r["episodes"] for r in found]

    before, after = rates("shipped"), rates("dream")
    spread("closed_loop_before_percent", before, min)
    spread("closed_loop_after_percent", after, min)
    spread("closed_loop_gain", list(np.subtract(after, before)), min)
    spread("closed_loop_original_world_percent", rates("dream", "plain"), min)
    spread("closed_loop_original_world_plain_percent", rates("plain", "plain"), min)
    figures["closed_loop_episodes"] = float(options.episodes * len(options.seeds))
    return figures


if __name__ == "__main__":
    sys.exit(main())
