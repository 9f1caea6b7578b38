"""Closed loop in one process: a pilot acts on the simulated world, and physics judges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from sage_ros.core.timing import SECOND
from sage_ros.corruption import Corruption, CorruptionConfig
from sage_ros.policy.pipeline import Pipeline
from sage_ros.sim.expert import Expert
from sage_ros.sim.world import TASK, PickPlaceWorld

LONGEST = 15.0  # s; the expert takes about 6
SETTLED = 0.5  # s that success must last
LIFTED = 0.04  # m, height of the cube's centre
BEGIN = 10 * SECOND  # ns of simulated time at which an episode starts
AROUND_JOIN = 0.05  # s to either side of a join of chunks that count as its neighbourhood


@dataclass(frozen=True)
class Outcome:
    """What became of one episode. Angles in rad, times in s; nan where there are no chunks, or none to be seen."""

    seed: int
    success: bool
    seconds: float  # until the cube lay on the plate, or the time was up
    failure: str  # how it failed; empty: it did not
    jump: float  # mean over joins of chunks: greatest joint's step of the target away from where it was heading
    target_jerk: float  # root mean square of the targets' third difference around joins, rad/s^3
    jerk: float  # root mean square of the set points' third difference, rad/s^3
    holds: int  # ticks on which the safety filter held
    path: np.ndarray  # (T, A) joint positions at every frame

    def record(self) -> dict[str, Any]:
        """All but the path, as JSON takes it: what is not a number is None."""
        values = {name: value for name, value in vars(self).items() if name != "path"}
        return {n: None if isinstance(v, float) and not np.isfinite(v) else v for n, v in values.items()}


class Pilot(Protocol):
    """Acts: asked for a command at every control tick, and shown a frame at every camera tick, after the command."""

    def reset(self, world: PickPlaceWorld, seed: int, now: int) -> None: ...
    def tick(self, now: int) -> np.ndarray:
        """Raises RuntimeError if the robot must stop for good."""
        ...

    def see(self, now: int) -> None: ...


class StudentPilot:
    """The student, with everything that stands around it.

    As an operator does it, the filter is enabled once the first frame's joints are known: set points begin with the
    tick after it, and the arm stands until then. What it sees and feels goes through ``corruption``, whose chance is
    the episode's: the world's seed counts.
    """

    def __init__(self, pipeline: Pipeline, corruption: CorruptionConfig | None = None) -> None:
        self.pipeline, self.corruption = pipeline, corruption or CorruptionConfig()

    def reset(self, world: PickPlaceWorld, seed: int, now: int) -> None:
        self._world, self.enabled = world, False
        self._spoil = Corruption(replace(self.corruption, seed=seed))
        self.pipeline.reset(TASK, world.state, now)
        self.pipeline.filter.disable()

    def tick(self, now: int) -> np.ndarray:
        return self.pipeline.tick(now) if self.enabled else self._world.command

    def see(self, now: int) -> None:
        frame, state = self._spoil.frame(now, self._world.render()), self._spoil.joints(now, self._world.state)
        if frame is None:
            self.pipeline.feel(now, state)
        else:
            self.pipeline.see(now, frame, state)
        if not self.enabled:
            self.pipeline.filter.enable(now / SECOND)
            self.enabled = True


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


class Judge:
    """Watches an episode for its end: success that has lasted, or too much time. Times are s since its beginning."""

    def __init__(self, longest: float = LONGEST) -> None:
        self.longest, self.time, self.highest = longest, 0.0, 0.0
        self._since: float | None = None  # when the success that still lasts began

    def look(self, time: float, success: bool, cube: np.ndarray, plate: np.ndarray) -> bool:
        """Whether the episode is over; ``cube`` and ``plate`` are the places (3,) of their centres, m."""
        self.time, self._cube, self._plate = time, cube, plate
        self.highest = max(self.highest, float(cube[2]))
        self._since = (time if self._since is None else self._since) if success else None
        return self.success or time > self.longest - 1e-6

    @property
    def success(self) -> bool:
        return self._since is not None and self.time - self._since > SETTLED - 1e-6

    @property
    def seconds(self) -> float:
        return self._since if self.success and self._since is not None else self.time

    @property
    def failure(self) -> str:
        """How it failed; empty: it did not."""
        if self.success:
            return ""
        if self.highest < LIFTED:
            return "never lifted the cube"
        if self._cube[2] > LIFTED:
            return "still holds the cube"
        far = float(np.hypot(*(self._cube - self._plate)[:2]))
        return "put the cube beside the plate" if far > 0.03 else "did not let the cube rest"


class Joins:
    """The targets handed to the safety filter, and where one plan gave way to the next."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._aims: list[np.ndarray | None] = []
        self._before: tuple[int, np.ndarray, np.ndarray] | None = None
        self._jumps: list[float] = []
        self._ticks: list[int] = []  # of the joins

    def add(self, plan: int, aim: tuple[np.ndarray, np.ndarray] | None) -> None:
        """The tick's target (A,) and its velocity (A,), if there is one, and what tells its ``plan`` from others."""
        after = None if aim is None else (plan, *aim)
        if self._before and after and self._before[0] != after[0]:
            self._jumps.append(float(np.abs(after[1] - self._before[1] - self._before[2] / self.rate).max()))
            self._ticks.append(len(self._aims))
        self._aims.append(None if aim is None else aim[0])
        self._before = after

    @property
    def jump(self) -> float:
        return float(np.mean(self._jumps)) if self._jumps else float("nan")

    @property
    def jerk(self) -> float:
        """Of the aims whose four points lie wholly within ``AROUND_JOIN`` of a join."""
        shape = next((aim.shape for aim in self._aims if aim is not None), (0,))
        aims = np.array([np.full(shape, np.nan) if aim is None else aim for aim in self._aims])
        reach = round(AROUND_JOIN * self.rate)
        near = np.zeros(max(len(aims) - 3, 0), bool)
        for tick in self._ticks:
            near[max(tick - reach, 0) : max(tick + reach - 2, 0)] = True
        return rms_jerk(aims, self.rate, near)


def rms_jerk(points: np.ndarray, rate: float, where: np.ndarray | None = None) -> float:
    """Root mean square of the third difference of ``points`` (T, A) at ``rate`` Hz, per s^3; nan without any.

    ``where`` (T - 3,) bool picks differences by their first point.
    """
    jerk = np.diff(points, 3, axis=0) * rate**3 if len(points) > 3 else np.empty((0, 1))
    jerk = jerk if where is None else jerk[where[: len(jerk)]]
    finite = jerk[np.isfinite(jerk)]
    return float(np.sqrt(np.mean(finite**2))) if finite.size else float("nan")


def roll_out(
    world: PickPlaceWorld,
    pilot: Pilot,
    seed: int,
    rate: float = 100.0,
    longest: float = LONGEST,
    film: list[np.ndarray] | None = None,
) -> Outcome:
    """One episode from ``seed`` with commands at ``rate`` Hz, until success has lasted or ``longest`` s are over.

    Every frame is appended to ``film``, if given.
    """
    world.reset(seed)
    pilot.reset(world, seed, BEGIN)
    per_frame, period = round(rate / world.rate), round(SECOND / rate)
    commands: list[np.ndarray] = []
    path: list[np.ndarray] = []
    judge, joins, holds, stopped = Judge(longest), Joins(rate), 0, ""
    for tick in range(round(longest * rate)):
        now = BEGIN + tick * period
        try:
            commands.append(pilot.tick(now))
        except RuntimeError as error:
            stopped = str(error)
            break
        if isinstance(pilot, StudentPilot) and pilot.enabled:
            filter = pilot.pipeline.filter
            holds += filter.aim is None
            joins.add(filter.queue.in_force(now), filter.aim)
        if tick % per_frame == 0:
            pilot.see(now)
            path.append(world.state)
            if film is not None:
                film.append(world.render())
        world.advance(commands[-1], round(1.0 / (rate * world.timestep)))
        if judge.look((tick + 1) / rate, world.success, world.object_position, world.plate_position):
            break
    return Outcome(
        seed=seed,
        success=judge.success and not stopped,
        seconds=judge.seconds,
        failure=stopped or judge.failure,
        jump=joins.jump,
        target_jerk=joins.jerk,
        jerk=rms_jerk(np.array(commands), rate),
        holds=holds,
        path=np.array(path),
    )
