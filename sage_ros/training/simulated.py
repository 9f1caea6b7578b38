"""Demonstrations of the simulated expert, made and encoded in memory: no film, no disk, as many as training wants."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence

import torch
from tqdm import tqdm

from sage_ros.sim.expert import NOISE, demonstrate
from sage_ros.sim.world import RATE, TASK, PickPlaceWorld
from sage_ros.training.openloop import Demonstration
from sage_ros.training.tokens import encode_frames
from sage_ros.vision.encoder import Encoder, load_encoder

FIRST_SEED = 1000  # of the world; the package's data set begins at 0, a rollout at 100000


def simulate(
    seeds: Sequence[int], encoder: str, source: str, jobs: int = 1, progress: bool = True, look: str = "plain"
) -> list[Demonstration]:
    """An attempt of the expert in the world of each of ``seeds``, less those that failed; ``index`` is the seed.

    Token maps are of the encoder named ``encoder`` with the weights at ``source``. ``jobs`` processes share the work;
    what comes out does not depend on them. Raises as :func:`~sage_ros.vision.encoder.load_encoder` and the world do.
    """
    load_encoder(encoder, source)  # what is missing shows here rather than in a worker
    context = multiprocessing.get_context("spawn")  # a fork would share this process's OpenGL and threads
    with context.Pool(jobs, _Worker.start, (encoder, source, look)) as pool:
        made = pool.imap(_Worker.work, seeds, chunksize=4)
        bar = tqdm(made, desc="simulate", total=len(seeds), unit="episode", disable=not progress)
        return [demonstration for demonstration in bar if demonstration is not None]


class _Worker:
    """What a worker process keeps between episodes."""

    world: PickPlaceWorld
    encoder: Encoder

    @classmethod
    def start(cls, encoder: str, source: str, look: str) -> None:
        torch.set_num_threads(1)
        cls.world, cls.encoder = PickPlaceWorld(look=look), load_encoder(encoder, source)

    @classmethod
    def work(cls, seed: int) -> Demonstration | None:
        done = demonstrate(cls.world, seed, NOISE)
        if done.failure is not None:
            return None
        assert done.frames is not None
        tokens = encode_frames(cls.encoder, done.frames)
        joints = PickPlaceWorld.joint_layout
        return Demonstration(seed, TASK, RATE, done.state, done.action, tokens, joints, joints)
