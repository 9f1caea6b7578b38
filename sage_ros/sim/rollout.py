"""Closed loop in one process: a pilot acts on the simulated world, and physics judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sage_ros.core.execution import SECOND
from sage_ros.policy.pipeline import Pipeline
from sage_ros.sim.expert import Expert
from sage_ros.sim.world import TASK, PickPlaceWorld

LONGEST = 15.0  # s; the expert takes about 6
SETTLED = 0.5  # s that success must last
LIFTED = 0.04  # m, height of the cube's centre
BEGIN = 10 * SECOND  # ns of simulated time at which an episode starts


@dataclass(frozen=True)
class Outcome:
    """What became of one episode. Angles in rad, times in s."""

    seed: int
    success: bool
    seconds: float  # until the cube lay on the plate, or the time was up
    failure: str  # how it failed; empty: it did not
    jump: float  # mean over joins of chunks: greatest joint's step of the target away from where it was heading
    jerk: float  # root mean square of the set points' third difference, rad/s^3
    holds: int  # ticks on which the safety filter held
    path: np.ndarray  # (T, A) joint positions at every frame


class Pilot(Protocol):
    """Acts: asked for a command at every control tick, and shown a frame at every camera tick, after the command."""

    def reset(self, world: PickPlaceWorld, seed: int, now: int) -> None: ...
    def tick(self, now: int) -> np.ndarray: ...
    def see(self, now: int) -> None: ...


class StudentPilot:
    """The student, with everything that stands around it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def reset(self, world: PickPlaceWorld, seed: int, now: int) -> None:
        self._world = world
        self.pipeline.reset(TASK, world.state, now)

    def tick(self, now: int) -> np.ndarray:
        return self.pipeline.tick(now)

    def see(self, now: int) -> None:
        self.pipeline.see(now, self._world.render(), self._world.state)


class ExpertPilot:
    """The scripted expert, which reads the places of things from the simulator."""

    def reset(self, world: PickPlaceWorld, seed: int, now: int) -> None:
        self._world, self._expert = world, Expert(world, seed)
        self._command = world.command

    def tick(self, now: int) -> np.ndarray:
        return self._command

    def see(self, now: int) -> None:
        self._command = self._expert.act()


class HoldPilot:
    """The trivial baseline: stays where it is."""

    def reset(self, world: PickPlaceWorld, seed: int, now: int) -> None:
        self._command = world.command

    def tick(self, now: int) -> np.ndarray:
        return self._command

    def see(self, now: int) -> None: ...


def roll_out(world: PickPlaceWorld, pilot: Pilot, seed: int, rate: float = 100.0, longest: float = LONGEST) -> Outcome:
    """One episode from ``seed`` with commands at ``rate`` Hz, until success has lasted or ``longest`` s are over."""
    world.reset(seed)
    pilot.reset(world, seed, BEGIN)
    per_frame, period = round(rate / world.rate), round(SECOND / rate)
    commands: list[np.ndarray] = []
    path: list[np.ndarray] = []
    jumps: list[float] = []
    holds, rested, highest = 0, 0, 0.0
    before: tuple[int, np.ndarray, np.ndarray] | None = None
    filter = pilot.pipeline.filter if isinstance(pilot, StudentPilot) else None
    for tick in range(round(longest * rate)):
        now = BEGIN + tick * period
        commands.append(pilot.tick(now))
        if filter is not None:
            holds += filter.aim is None
            after = None if filter.aim is None else (filter.queue.in_force(now), *filter.aim)
            if before and after and before[0] != after[0]:
                jumps.append(float(np.abs(after[1] - before[1] - before[2] / rate).max()))
            before = after
        if tick % per_frame == 0:
            pilot.see(now)
            path.append(world.state)
        world.advance(commands[-1], round(1.0 / (rate * world.timestep)))
        highest = max(highest, world.object_position[2])
        rested = rested + 1 if world.success else 0
        if rested >= SETTLED * rate:
            break
    success = rested >= SETTLED * rate
    jerk = np.diff(np.array(commands), 3, axis=0) * rate**3
    return Outcome(
        seed=seed,
        success=success,
        seconds=len(commands) / rate - (SETTLED if success else 0.0),
        failure="" if success else _failure(world, highest),
        jump=float(np.mean(jumps)) if jumps else 0.0,
        jerk=float(np.sqrt(np.mean(jerk**2))),
        holds=holds,
        path=np.array(path),
    )


def _failure(world: PickPlaceWorld, highest: float) -> str:
    if highest < LIFTED:
        return "never lifted the cube"
    if world.object_position[2] > LIFTED:
        return "still holds the cube"
    far = float(np.hypot(*(world.object_position - world.plate_position)[:2]))
    return f"put the cube {100 * far:.0f} cm from the plate's centre" if far > 0.03 else "did not let the cube rest"
