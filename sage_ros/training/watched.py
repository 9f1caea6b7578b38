"""Episodes as trust-attention watches them: recorded, or simulated, of the expert and of the student itself."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from sage_ros.core.chunks import ActionChunk, ChunkPolicy, Observation
from sage_ros.core.expectation import DELAYS, Watched
from sage_ros.core.limits import MOST
from sage_ros.policy.checkpoint import Checkpoint
from sage_ros.sim.expert import NOISE, demonstrate
from sage_ros.sim.rollout import StudentPilot, roll_out
from sage_ros.sim.trials import Trial, make_pilot
from sage_ros.sim.world import PickPlaceWorld
from sage_ros.training.openloop import Demonstration
from sage_ros.training.tokens import encode_frames

FIRST_SEED = 40_000  # of the world; far from those that students are trained and judged on
OWN = 3  # every so many attempts are the student's, the others the expert's
SMALL = 4  # every so many seen by a camera of few pixels
SIZES = (256, 64)  # pixels


def recorded(demonstrations: Sequence[Demonstration]) -> list[Watched]:
    """Demonstrations as they would have been watched."""
    return [Watched.of(d.tokens, d.state, d.action) for d in demonstrations]


def simulated(
    checkpoint: Checkpoint, count: int, region_scale: float, seed: int = FIRST_SEED, jobs: int = 1,
    progress: bool = True,
) -> list[Watched]:
    """``count`` simulated episodes from world seed ``seed`` on: of each three, two of the expert and one in which the
    student acts. Things lie in a region ``region_scale`` times as wide as usual; every fourth camera has few pixels.

    ``jobs`` processes share the work; what comes out does not depend on them. Raises as the world does.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share this process's OpenGL and threads
    with context.Pool(jobs, _Worker.start, (str(checkpoint.folder), region_scale)) as pool:
        made = pool.imap(_Worker.work, range(seed, seed + count), chunksize=2)
        return list(tqdm(made, desc="simulate", total=count, unit="episode", disable=not progress))


class Watching:
    """A policy that keeps what it was shown."""

    def __init__(self, policy: ChunkPolicy) -> None:
        self.policy, self.horizon = policy, policy.horizon
        self.seen: list[Observation] = []

    def reset(self) -> None:
        self.seen.clear()
        self.policy.reset()

    def infer(self, observation: Observation) -> ActionChunk:
        self.seen.append(observation)
        return self.policy.infer(observation)

    def watched(self) -> Watched:
        commands = [o.past.commands[:DELAYS] for o in self.seen if o.past is not None]
        tokens, state = np.array([o.tokens for o in self.seen]), np.array([o.state for o in self.seen])
        return Watched(tokens, state, np.array(commands))


class _Worker:
    """What a worker process keeps between episodes."""

    worlds: dict[int, PickPlaceWorld]
    pilot: StudentPilot
    watching: Watching

    @classmethod
    def start(cls, checkpoint: str, region_scale: float) -> None:
        torch.set_num_threads(1)
        cls.worlds = {size: PickPlaceWorld(size, region_scale) for size in SIZES}
        pilot = make_pilot(Trial(checkpoint=checkpoint, bounds=MOST, trust=False), cls.worlds[SIZES[0]])
        assert isinstance(pilot, StudentPilot)
        cls.pilot, cls.watching = pilot, Watching(pilot.pipeline.policy)
        pilot.pipeline.policy = cls.watching

    @classmethod
    def work(cls, seed: int) -> Watched:
        world = cls.worlds[SIZES[seed % SMALL == 0]]
        if seed % OWN == 0:
            roll_out(world, cls.pilot, seed)
            return cls.watching.watched()
        done = demonstrate(world, seed, NOISE)
        assert done.frames is not None
        return Watched.of(encode_frames(cls.pilot.pipeline.encoder, done.frames), done.state, done.action)
