"""The student beside LeRobot's ACT: the same episodes, one left out at a time, GR00T's open-loop metric.

Both learn from the other episodes whole: the student by ``distil``'s settings for so many, ACT by LeRobot's own recipe
(chunks of 100, ResNet-18, batches of 8, AdamW at 1e-5, last weights), for --steps steps. ACT lives in an environment of
its own, which is made in --out on the first run (lerobot 0.4.4 from PyPI, some GB), or is given by --act-python. Then
the two take turns at inference, camera frame to chunk, on one core each. Folds that are done are not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from folds import left_out
from harness import arguments, conclude

from sage_ros.core.irp import Budget
from sage_ros.episodes.dataset import EpisodeDataset
from sage_ros.paths import ENCODER, dataset_path
from sage_ros.policy.student import StudentPolicy
from sage_ros.training.cloning import clone
from sage_ros.training.crossval import make_folds
from sage_ros.training.openloop import EVERY
from sage_ros.training.recipes import student_for
from sage_ros.training.tokens import load_demonstrations
from sage_ros.training.trainers import student_options
from sage_ros.vision.encoder import load_encoder

SCRIPT = Path(__file__).with_name("act_policy.py")
LEROBOT = "lerobot==0.4.4"
BLOCK = 10  # inferences of one side before the other's turn


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--dataset", default="", help="LeRobot data set folder (default: the one in the package)")
    parser.add_argument("--episodes", type=int, nargs="+", default=[], help="which to leave out (all)")
    parser.add_argument("--groups", nargs="+", default=[], help="joint groups that are scored (all joints)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a training of each per fold (%(default)s)")
    parser.add_argument("--steps", type=int, default=100_000, help="ACT's gradient steps, as LeRobot's (%(default)s)")
    parser.add_argument("--backbone", default="imagenet", choices=("imagenet", "scratch"),
                        help="ACT's ResNet-18 starts from ImageNet's weights, downloaded by torchvision, or from none")
    parser.add_argument("--jobs", type=int, default=1, help="ACT trainings at a time, over all GPUs (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/act"), help="where results are kept (%(default)s)")
    parser.add_argument("--act-python", default="", help="the Python of an environment that has lerobot")
    parser.add_argument("--rounds", type=int, default=20, help=f"turns of {BLOCK} inferences each (%(default)s)")
    options = parser.parse_args()
    python = options.act_python or environment(options.out / "venv")
    plan = write_plan(options)
    train_act(options, plan, python)
    errors, seconds = measure(options)
    spent = [json.loads((options.out / f"{fold['name']}.json").read_text()) for fold in plan["folds"]]
    ours, theirs, parameters, act_parameters = turns(options, python)

    figures: dict[str, float] = {}
    for key, row in errors.items():
        figures |= {f"{key}_student": row["student"], f"{key}_act": row["ACT"]}
        figures[f"{key}_student_over_act"] = row["student"] / row["ACT"]
    figures |= {
        "act_steps": plan["steps"], "act_imagenet": float(plan["backbone"] == "imagenet"),
        "act_seconds_per_fold": float(np.mean([s["seconds"] for s in spent])),
        "act_on_gpu": float(spent[0]["device"] == "cuda"),
        **({"student_seconds_per_fold": seconds} if seconds else {}),
        "student_parameters": parameters, "act_parameters": act_parameters,
        "parameters_ratio": parameters / act_parameters,
        "student_ms": float(np.median(ours)), "act_ms": float(np.median(theirs)),
        "latency_ratio": float(np.median(ours) / np.median(theirs)),
    }  # fmt: skip
    bars = {f"{key}_student_over_act": ("<=", 1.0) for key in errors}
    conclude("act_comparison", figures, bars | {"parameters_ratio": ("<=", 0.2), "latency_ratio": ("<=", 1 / 3)},
             options.record)  # fmt: skip
    return 0


def environment(folder: Path) -> str:
    """The Python of a virtual environment with lerobot, made where there is none."""
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        print(f"making {folder} with {LEROBOT}: some minutes", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", LEROBOT], check=True)
        (folder / "made").touch()
    return str(python)


def write_plan(options: argparse.Namespace) -> dict[str, Any]:
    """What ACT is trained on, and how, for its script: plan.json, and an .npz file per episode."""
    dataset = EpisodeDataset(dataset_path(options.dataset))
    folds = make_folds(dataset.indices, options.seeds, 0, options.episodes)
    layout, frame = dataset[0].action_joints, dataset[0].frame(0)
    plan = {"folds": [{"name": f.name, "train": f.train, "held_out": f.held_out, "seed": f.seed} for f in folds],
            "joints": layout.names, "state": len(dataset[0].state_joints), "frame": frame.shape[:2], "every": EVERY,
            "steps": options.steps, "batch": 8, "backbone": options.backbone,
            "dataset": dataset.fingerprint()}  # fmt: skip
    text, path = json.dumps(plan, indent=1) + "\n", options.out / "plan.json"
    if path.exists() and path.read_text() != text:
        sys.exit(f"{path} is of other episodes or settings: choose another --out or delete it")
    episodes = options.out / "episodes"
    episodes.mkdir(parents=True, exist_ok=True)
    for episode in dataset:
        if not (target := episodes / f"{episode.index}.npz").exists():
            part = target.with_suffix(".part.npz")
            np.savez(part, frames=episode.frames(), state=episode.state, action=episode.action)
            part.replace(target)
    path.write_text(text)
    found: dict[str, Any] = json.loads(text)
    return found


def train_act(options: argparse.Namespace, plan: dict[str, Any], python: str) -> None:
    missing = [fold["name"] for fold in plan["folds"] if not (options.out / f"{fold['name']}.npz").exists()]
    gpus, threads = torch.cuda.device_count(), max(1, (os.cpu_count() or 1) // options.jobs)

    def work(place: int) -> None:
        more = {"OMP_NUM_THREADS": str(threads)} | ({"CUDA_VISIBLE_DEVICES": str(place % gpus)} if gpus else {})
        command = [python, str(SCRIPT), "train", str(options.out / "plan.json"), missing[place]]
        subprocess.run(command, check=True, env={**os.environ, **more})

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(work, range(len(missing))))


def measure(options: argparse.Namespace) -> tuple[dict[str, dict[str, float]], float]:
    """Errors by subset and length of both, and the seconds that a student's training took, 0 if there was none."""
    students, start = options.out / "student", time.perf_counter()
    before = len(list(students.glob("*.npz")))
    command = ["--beside", f"ACT={options.out}", "--validation", "0", "--seeds", *map(str, options.seeds)]
    command += ["--jobs", str(options.jobs), *(["--dataset", options.dataset] if options.dataset else []),
                *(["--episodes", *map(str, options.episodes)] if options.episodes else []),
                *(["--groups", *options.groups] if options.groups else [])]  # fmt: skip
    found = left_out(command, students)
    trained = len(list(students.glob("*.npz"))) - before
    seconds = (time.perf_counter() - start) / trained if trained else 0.0
    return {key: {name: entry["mse"] for name, entry in row.items()} for key, row in found.items()}, seconds


def turns(options: argparse.Namespace, python: str) -> tuple[list[float], list[float], int, int]:
    """Milliseconds per inference of either side, one core each, and their parameters (the encoder's too)."""
    dataset, encoder = EpisodeDataset(dataset_path(options.dataset)), load_encoder("tiny_vae", str(ENCODER))
    shown = load_demonstrations(dataset, encoder, None, dataset.indices[:2], progress=False)
    config, sizes, _ = student_options([], len(dataset) - 1)
    student = student_for(shown, encoder.grid, encoder.features, sizes)
    cloned = clone(shown, [], student, replace(config, steps=1), progress=False)  # weights do not change the time
    policy = StudentPolicy(cloned.student, cloned.normalization, shown[0].rate)
    frame, observation, budget = dataset[0].frame(0), shown[0].observation(1), Budget(steps=0)
    parameters = sum(p.numel() for p in cloned.student.parameters()) + encoder.cost.parameters

    command = [python, str(SCRIPT), "time", str(options.out / "plan.json")]
    act = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert act.stdin is not None and act.stdout is not None
    act_parameters = int(json.loads(act.stdout.readline())["parameters"])
    torch.set_num_threads(1)
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(options.rounds + 1):
        act.stdin.write(f"{BLOCK}\n")
        act.stdin.flush()
        slow = json.loads(act.stdout.readline())
        quick = []
        for _ in range(BLOCK):
            start = time.perf_counter()
            policy.infer(replace(observation, tokens=encoder.refine(frame, budget).state))
            quick.append(1e3 * (time.perf_counter() - start))
        if turn:  # the first one warms up
            ours, theirs = ours + quick, theirs + slow
    act.stdin.close()
    act.wait(timeout=60)
    return ours, theirs, parameters, act_parameters


if __name__ == "__main__":
    sys.exit(main())
