"""A scripted demonstrator: reads the places of cube and plate from the simulator, acts through joint targets only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from sage_ros.sim.kinematics import Kinematics
from sage_ros.sim.scene import CUBE_HALF, PLATE_FLOOR
from sage_ros.sim.world import HOME, PickPlaceWorld

NOISE = 0.003  # rad, standard deviation of the disturbance per tick and arm joint
LONGEST = 300  # ticks after which a demonstration has failed
PITCH = 1.2  # rad below the horizon; straight down, the wrist would run out of travel when lifting
SHUT = 0.0  # rad, jaw command that squeezes the cube
ANGLE_REACH = 0.10  # m of path that a radian of turning counts as
REST = 10  # ticks at rest that end a demonstration


class Phase(IntEnum):
    """What the hand is doing."""

    APPROACH, DESCEND, CLOSE, LIFT, CARRY, LOWER, OPEN, LEAVE, RETURN, REST = range(10)


@dataclass(frozen=True)
class Manner:
    """How one demonstrator moves; differs a little from demonstration to demonstration."""

    speed: float  # m/s
    acceleration: float  # m/s^2
    above: float  # m, height over the cube before descending
    lift: float  # m, height that the cube is carried at
    open: float  # rad, jaws before grasping and after releasing
    jaw_speed: float  # rad/s
    grasp: np.ndarray  # (2,) m, where the cube is held, off its centre
    place: np.ndarray  # (2,) m, where it is put, off the plate's centre
    turn: float  # rad, misalignment of the jaws with the cube

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Manner:
        """A manner within what looks like the same person on another day."""
        uniform = generator.uniform
        return cls(
            speed=uniform(0.18, 0.22),
            acceleration=uniform(0.6, 0.75),
            above=uniform(0.055, 0.070),
            lift=uniform(0.075, 0.090),
            open=uniform(0.70, 0.80),
            jaw_speed=uniform(1.8, 2.2),
            grasp=uniform(-0.002, 0.002, 2),
            place=uniform(-0.008, 0.008, 2),
            turn=uniform(-0.05, 0.05),
        )


class Expert:
    """Picks, carries, places. Ask :meth:`act` once per tick, before the world's step.

    Each answer is one smooth step from the command that was last executed towards the waypoint of the present
    phase, so a disturbed arm is led back rather than along a plan that it has left.
    """

    def __init__(self, world: PickPlaceWorld, seed: int) -> None:
        self.world = world
        self.manner = Manner.draw(np.random.default_rng((seed, 1)))
        self.phase = Phase.APPROACH
        self._kinematics = Kinematics(world.model, world.limits)
        self._home = self._kinematics.pose(HOME[:5])
        self._velocity = np.zeros(5)
        self._grasp = np.zeros(5)
        self._jaw = world.state[5]
        self._rested = 0

    @property
    def done(self) -> bool:
        """Whether the arm has come to rest after releasing the cube."""
        return self._rested >= REST

    def act(self) -> np.ndarray:
        """The command (6,) rad meant for this tick."""
        command, state = self.world.command, self.world.state
        here = self._kinematics.pose(command[:5])
        self._advance(here, state)
        pose, jaw = self._target()
        joints = self._kinematics.joints(self._step(here, pose), command[:5])
        self._jaw = state[5]
        reach = self.manner.jaw_speed / self.world.rate
        return np.append(joints, command[5] + np.clip(jaw - command[5], -reach, reach))

    def _advance(self, commanded: np.ndarray, state: np.ndarray) -> None:
        """Go to the next phase once this one's goal is met, as measured on the arm."""
        pose, jaw = self._target()
        ordered = _distance(pose - commanded)
        measured = _distance(pose - self._kinematics.pose(state[:5]))
        if self.phase in (Phase.LIFT, Phase.CARRY, Phase.LOWER) and state[5] < 0.12:
            self.phase = Phase.APPROACH  # the cube slipped out: take it again
        elif self.phase == Phase.DESCEND and measured < 0.009:
            self._grasp = pose
            self.phase = Phase.CLOSE
        elif (
            (self.phase == Phase.APPROACH and ordered < 0.015 and abs(state[5] - jaw) < 0.15)
            or (self.phase == Phase.CLOSE and state[5] < 0.45 and abs(state[5] - self._jaw) < 0.005)
            or (self.phase == Phase.LIFT and ordered < 0.025)
            or (self.phase == Phase.CARRY and ordered < 0.015)
            or (self.phase == Phase.LOWER and measured < 0.009)
            or (self.phase == Phase.OPEN and state[5] > 0.45)
            or (self.phase == Phase.LEAVE and ordered < 0.02)
            or (self.phase == Phase.RETURN and measured < 0.01)
        ):
            self.phase = Phase(self.phase + 1)
        elif self.phase == Phase.REST:
            self._rested += 1

    def _target(self) -> tuple[np.ndarray, float]:
        """Pose (5,) and jaw opening that the present phase leads to."""
        world, manner = self.world, self.manner
        cube, plate = world.object_position, world.plate_position
        over_plate = np.array([*(plate[:2] + manner.place), plate[2] + PLATE_FLOOR + CUBE_HALF, PITCH, np.pi / 2])
        if self.phase <= Phase.DESCEND:
            pose = np.array([*(cube[:2] + manner.grasp), CUBE_HALF, PITCH, np.pi / 2 + world.object_yaw + manner.turn])
            return _raised(pose, manner.above if self.phase == Phase.APPROACH else 0.0), manner.open
        if self.phase <= Phase.LIFT:
            return _raised(self._grasp, manner.lift if self.phase == Phase.LIFT else 0.0), SHUT
        if self.phase == Phase.CARRY:
            return _raised(over_plate, manner.lift), SHUT
        if self.phase <= Phase.OPEN:
            return _raised(over_plate, 0.004), SHUT if self.phase == Phase.LOWER else manner.open
        if self.phase == Phase.LEAVE:
            return _raised(over_plate, manner.above), manner.open
        return self._home, HOME[5]

    def _step(self, here: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The next pose on a path of bounded speed and acceleration that stops at ``target``."""
        tick = 1.0 / self.world.rate
        error = target - here
        distance = _distance(error)
        limit = self.manner.speed * (0.6 if self.phase in (Phase.DESCEND, Phase.LOWER) else 1.0)
        speed = min(limit, 0.8 * np.sqrt(2 * self.manner.acceleration * distance), 0.5 * distance / tick)
        wanted = error * (speed / max(distance, 1e-9))
        change = wanted - self._velocity
        possible = self.manner.acceleration * tick
        self._velocity = self._velocity + change * min(1.0, possible / max(_distance(change), 1e-9))
        return here + tick * self._velocity


def _distance(difference: np.ndarray) -> float:
    """Length (m) of a pose difference (5,), turning included."""
    return float(np.linalg.norm(difference * (1.0, 1.0, 1.0, ANGLE_REACH, ANGLE_REACH)))


def _raised(pose: np.ndarray, height: float) -> np.ndarray:
    return pose + np.array([0.0, 0.0, height, 0.0, 0.0])


@dataclass(frozen=True)
class Demonstration:
    """One run of the expert: row t is what was seen and meant at tick t, before the command was executed."""

    state: np.ndarray  # (T, 6) rad, measured
    action: np.ndarray  # (T, 6) rad, the expert's command
    frames: np.ndarray | None  # (T, H, W, 3) uint8 RGB
    failure: str | None  # why it failed; None: the cube lies on the plate


def demonstrate(world: PickPlaceWorld, seed: int, noise: float = NOISE, render: bool = True) -> Demonstration:
    """Reset the world to ``seed`` and let the expert act.

    ``noise`` is the standard deviation (rad) of a Gaussian disturbance of the arm's executed commands; the recorded
    action stays what the expert meant, so that a student sees how to come back (DART, Laskey et al. 2017).
    """
    if not 0.0 <= noise <= 0.1:
        raise ValueError(f"noise is {noise} rad; it must be between 0 and 0.1")
    world.reset(seed)
    expert = Expert(world, seed)
    disturb = np.random.default_rng((seed, 2))
    states: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    frames: list[np.ndarray] = []
    while not expert.done and len(states) < LONGEST:
        if render:
            frames.append(world.render())
        states.append(world.state)
        actions.append(expert.act())
        world.step(actions[-1] + noise * np.append(disturb.standard_normal(5), 0.0))
    failure = None
    if not expert.done:
        failure = f"still in phase {expert.phase.name} after {LONGEST} ticks"
    elif not world.success:
        failure = "the cube does not rest on the plate"
    return Demonstration(np.array(states), np.array(actions), np.array(frames) if render else None, failure)
