"""How long distilling takes, from a bare data set to a checkpoint, and what a second GPU adds.

on this CPU     the command `distil` on --dataset, every episode trained on, nothing encoded before; two cores
on a GPU        the same with --device cuda, where there is one
on two GPUs     rows per second of the command under torchrun with one process and with two, in turns, at as many rows
                per GPU, on --many, or on the package's episodes and --simulate more; where there are two
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import Bar, arguments, conclude
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CORES = 2
STEPS, LOOK = 600, 200  # of a throughput's training; the first look warms up


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--dataset", default="", help="LeRobot data set folder (default: the one in the package)")
    parser.add_argument("--many", default="", metavar="FOLDER", help="data set for two GPUs, of more than --rows rows")
    parser.add_argument("--simulate", type=int, default=1000, help="or so many demonstrations for them (%(default)s)")
    parser.add_argument("--rows", type=int, default=16384, help="rows of a step per GPU there (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="trainings of either kind (%(default)s)")
    options = parser.parse_args()
    many = ["--dataset", options.many] if options.many else ["--simulate", str(options.simulate)]
    given = ["--dataset", options.dataset] if options.dataset else []
    gpus = torch.cuda.device_count()
    figures: dict[str, float] = {"gpus": gpus}
    bars: dict[str, Bar] = {"cpu_minutes": ("<=", 15.0)}
    figures["cpu_minutes"] = minutes([*given, "--device", "cpu", "--threads", str(CORES)], CORES)
    if gpus:
        figures["gpu_minutes"] = minutes([*given, "--device", "cuda"])
        bars["gpu_minutes"] = ("<=", 2.0)
    if gpus > 1:
        alone, both = [], []
        for _ in range(options.turns):
            alone.append(throughput(1, many, options.rows))
            both.append(throughput(2, many, options.rows))
        figures |= {"rows_per_s_one_gpu": float(np.median(alone)), "rows_per_s_two_gpus": float(np.median(both))}
        figures["two_gpus_over_one"] = figures["rows_per_s_two_gpus"] / figures["rows_per_s_one_gpu"]
        bars["two_gpus_over_one"] = (">=", 1.8)
    else:
        print("two GPUs were not measured: this machine has " + ("one" if gpus else "none"))
    conclude("training", figures, bars, options.record)
    return 0


def minutes(more: list[str], cores: int | None = None) -> float:
    """Of a whole run of `distil`, in a process that may use ``cores`` cores and finds no tokens of an earlier one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sage_ros.training.distil", "--out", f"{folder}/student", "--holdout", "0"]
        allowed = sorted(os.sched_getaffinity(0))[:cores]
        start = time.perf_counter()
        subprocess.run(["taskset", "-c", ",".join(map(str, allowed)), *command, *more], check=True,
                       env={**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"})  # fmt: skip
        return (time.perf_counter() - start) / 60


def throughput(processes: int, many: list[str], rows: int) -> float:
    """Rows per second of a training with so many processes, a GPU each, as its curves say; the median of the looks."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += ["-m", "sage_ros.training.distil", "--out", f"{folder}/student", "--curves", f"{folder}/curves"]
        command += [*many, "--batch-size", str(rows * processes), "--device", "cuda"]
        command += ["--holdout", "1", "--validation", "1", "--recipe", "many"]
        command += ["--steps", str(STEPS), "--evaluate-every", str(LOOK)]
        subprocess.run(command, check=True)
        events = EventAccumulator(str(next(Path(folder, "curves").glob("seed_*"))))
        events.Reload()
        return float(np.median([point.value for point in events.Scalars("rows per s")][1:]))


if __name__ == "__main__":
    sys.exit(main())
