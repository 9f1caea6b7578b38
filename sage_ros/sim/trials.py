"""Many episodes with one way to act, in as many processes as wanted."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from sage_ros.core.execution import ExecutionConfig
from sage_ros.core.limits import Bounds, JointLimits, resolve_limits
from sage_ros.corruption import CorruptionConfig
from sage_ros.episodes.video import encode
from sage_ros.paths import checkpoint_path
from sage_ros.policy.checkpoint import load_checkpoint
from sage_ros.policy.manifest import Manifest
from sage_ros.policy.normalization import action_range
from sage_ros.policy.pipeline import Pipeline
from sage_ros.sim.description import urdf
from sage_ros.sim.rollout import LONGEST, ExpertPilot, HoldPilot, Outcome, Pilot, StudentPilot, roll_out
from sage_ros.sim.world import RATE, PickPlaceWorld

PILOTS = ("student", "expert", "hold")


@dataclass(frozen=True)
class Trial:
    """A way to act, and the world to act in. ``bounds`` are the safety filter's for every joint."""

    pilot: str = "student"
    bounds: Bounds = field(default_factory=Bounds)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    checkpoint: str = ""
    latency: float = 0.0  # s added between a frame and its chunk
    region_scale: float = 1.0
    longest: float = LONGEST  # s
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)  # its seed is the world's
    trust: bool = True  # whether the student sees through trust-attention
    look: str = "plain"  # of the world, one of sim.scene.LOOKS

    def __post_init__(self) -> None:
        if self.pilot not in PILOTS:
            raise ValueError(f"pilot '{self.pilot}' is not one of {', '.join(PILOTS)}")
        if not 0.0 <= self.latency <= 5.0:
            raise ValueError(f"latency is {self.latency} s; it must be from 0 to 5")
        if not 0.1 <= self.longest <= 3600.0:
            raise ValueError(f"longest is {self.longest} s; it must be from 0.1 to 3600")
        if self.corruption.kind == "frame_drop" and self.corruption.begin < 1.0 / RATE:
            raise ValueError("the first frame may not be lost, as it starts the robot: let the fault begin later")


Task = tuple[Trial, int, Path | None]  # the seed, and where its film goes


def run_trials(tasks: Iterable[Task], jobs: int = 1) -> Iterator[Outcome]:
    """The outcomes, in the order of ``tasks`` and as they come. ``jobs`` processes share the work; the outcomes do not
    depend on them. Raises as :func:`~sage_ros.policy.checkpoint.load_checkpoint` and the world do.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; there must be at least 1 process")
    if jobs == 1:
        with Stages() as stages:
            yield from map(stages.run, tasks)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would share this process's OpenGL and threads
    with spawn.Pool(jobs, _start_worker) as pool:
        yield from pool.imap(_work, tasks)


class Stages:
    """What is kept from one episode to the next: a world, and a pilot for each trial seen so far."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._worlds: dict[tuple[float, str], PickPlaceWorld] = {}
        self._pilots: dict[Trial, Pilot] = {}

    def run(self, task: Task) -> Outcome:
        trial, seed, film = task
        kind = trial.region_scale, trial.look
        world = self._worlds.get(kind)
        if world is None:
            world = self._worlds[kind] = PickPlaceWorld(region_scale=trial.region_scale, look=trial.look)
        if trial not in self._pilots:
            self._pilots[trial] = make_pilot(trial, world)
        frames: list[np.ndarray] | None = None if film is None else []
        outcome = roll_out(world, self._pilots[trial], seed, longest=trial.longest, film=frames)
        if film is not None and frames:
            encode(film, frames, RATE)
        return outcome

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        for world in self._worlds.values():
            world.close()


def make_pilot(trial: Trial, world: PickPlaceWorld) -> Pilot:
    """Raises CheckpointError, EncoderError and LimitError."""
    if trial.pilot == "expert":
        return ExpertPilot()
    if trial.pilot == "hold":
        return HoldPilot()
    checkpoint = load_checkpoint(checkpoint_path(trial.checkpoint), checks=trial.trust)
    limits = simulated_limits(checkpoint.folder, checkpoint.manifest, world, trial.bounds)
    encoder = checkpoint.load_encoder()
    pipeline = Pipeline(
        checkpoint, encoder, limits, execution=trial.execution, latency=trial.latency, trust=trial.trust
    )
    return StudentPilot(pipeline, trial.corruption)


def simulated_limits(folder: Path, manifest: Manifest, world: PickPlaceWorld, bounds: Bounds) -> JointLimits:
    """The limits that safety_filter finds for the simulated robot, of which sim_robot publishes the description."""
    names = manifest.action_joints.names
    limits = resolve_limits(names, urdf(world.model), defaults=bounds, policy_range=action_range(folder, manifest))
    return limits.tightened(dict.fromkeys(names, bounds))


_stages: Stages | None = None  # one per worker process


def _start_worker() -> None:
    global _stages
    _stages = Stages()


def _work(task: Task) -> Outcome:
    assert _stages is not None
    return _stages.run(task)
