"""A table-top world: an SO-101 arm picks up a red cube and places it on a plate, seen by one camera."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any

import numpy as np

from sage_ros.core.joints import JointLayout
from sage_ros.sim.gl import close_renderer, import_mujoco, make_renderer
from sage_ros.sim.scene import ARM_BIT, CUBE_HALF, JOINTS, LOOKS, PLATE_FLOOR, PLATE_RADIUS, build_model

TASK = "pick up the red cube and place it on the plate"
RATE = 20.0  # Hz

# The gripper points down over the middle of the table, jaws half open.
HOME = np.array([0.0, -0.95, 0.75, 1.35, 1.57, 0.5])  # rad
HOME_SPREAD = np.array([0.10, 0.06, 0.06, 0.06, 0.08, 0.08])  # rad, uniform to either side

# Where the cube and the plate are put: centre and half size of a rectangle (x, y), m; scaled by ``region_scale``.
CUBE_REGION = np.array([[0.215, 0.075], [0.045, 0.050]])
PLATE_REGION = np.array([[0.215, -0.085], [0.030, 0.035]])
CUBE_YAW = 0.35  # rad, uniform to either side
CLEARANCE = 0.085  # m between the centres of cube and plate
REACH = (0.12, 0.27)  # m from the shoulder's axis, within which the arm can pick and lift
SHOULDER_X = 0.0388  # m, where the shoulder's axis stands


class PickPlaceWorld:
    """The world and its clock: ``reset`` it, ``step`` it at 20 Hz, or ``advance`` it more finely.

    The same seed and commands give the same states. ``image_size`` is the side of the square picture in pixels;
    ``region_scale`` in (0, 2] widens or narrows the rectangles that places are drawn from. Joint values are in rad,
    positions in m, the robot's base at the origin. ``look`` is one of :data:`~sage_ros.sim.scene.LOOKS`.
    Physics needs no OpenGL; :meth:`render` does, and belongs in one thread.
    """

    joint_layout = JointLayout(JOINTS, {"single_arm": (0, 5), "gripper": (5, 6)})
    rate = RATE

    def __init__(self, image_size: int = 256, region_scale: float = 1.0, look: str = "plain") -> None:
        if image_size < 16:
            raise ValueError(f"image_size is {image_size}; it must be 16 pixels or more")
        if not 0.0 < region_scale <= 2.0:
            raise ValueError(f"region_scale is {region_scale}; it must be above 0 and at most 2")
        if look not in LOOKS:
            raise ValueError(f"look is '{look}'; it must be one of {', '.join(LOOKS)}")
        self._mujoco = import_mujoco()
        self.image_size = image_size
        self.region_scale = region_scale
        self.look = look
        # Drawn at twice the size, then averaged: smooth edges
        self.model: Any = build_model(2 * image_size, look=LOOKS[look])
        self.data: Any = self._mujoco.MjData(self.model)
        self.limits: np.ndarray = self.model.jnt_range[: len(JOINTS)].copy()  # (6, 2) rad: lowest, highest
        self.timestep = float(self.model.opt.timestep)  # s
        self._ticks_per_step = round(1.0 / (RATE * self.timestep))
        self._renderer: Any = None
        self._cube_geom = self.model.geom("cube").id
        self._plate_geom = self.model.geom("plate").id
        self._arm_geoms = set(np.flatnonzero(self.model.geom_contype == ARM_BIT).tolist())
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Put the arm near its home, cube and plate at places drawn from ``seed``; the clock starts at 0."""
        generator = np.random.default_rng(seed)
        cube, plate = self._draw_places(generator)
        yaw = generator.uniform(-CUBE_YAW, CUBE_YAW)
        arm = HOME + HOME_SPREAD * generator.uniform(-1.0, 1.0, len(HOME))
        self._mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:6] = arm
        self.data.ctrl[:] = arm
        self.data.qpos[6:13] = (*cube, CUBE_HALF, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        self.data.mocap_pos[0] = (*plate, 0.0)
        self._mujoco.mj_forward(self.model, self.data)

    def step(self, command: np.ndarray) -> None:
        """One control tick (50 ms) towards the joint position targets ``command`` (6,), rad; see :meth:`advance`."""
        self.advance(command, self._ticks_per_step)

    def advance(self, command: np.ndarray, ticks: int) -> None:
        """``ticks`` of physics (``timestep`` each) towards the joint position targets ``command`` (6,), rad.

        Targets beyond a joint's limits are clipped to them, as a servo does. Raises ValueError on another
        shape and on values that are not finite.
        """
        command = np.asarray(command, dtype=np.float64)
        if command.shape != (len(JOINTS),):
            raise ValueError(f"command has shape {command.shape}; expected ({len(JOINTS)},): {', '.join(JOINTS)}")
        if not np.isfinite(command).all():
            bad = ", ".join(name for name, value in zip(JOINTS, command, strict=True) if not np.isfinite(value))
            raise ValueError(f"the command is not finite for {bad}: {command.tolist()}")
        self.data.ctrl[:] = command
        self._mujoco.mj_step(self.model, self.data, ticks)

    @property
    def state(self) -> np.ndarray:
        """Measured joint positions (6,), rad."""
        return self.data.qpos[:6].copy()

    @property
    def velocity(self) -> np.ndarray:
        """Measured joint velocities (6,), rad/s."""
        return self.data.qvel[:6].copy()

    @property
    def command(self) -> np.ndarray:
        """Joint position targets last executed (6,), rad; after a reset, where the arm stands."""
        return self.data.ctrl.copy()

    @property
    def time(self) -> float:
        """Seconds since the last reset."""
        return float(self.data.time)

    @property
    def object_position(self) -> np.ndarray:
        """Centre of the cube (3,), m."""
        return self.data.qpos[6:9].copy()

    @property
    def object_yaw(self) -> float:
        """Turn of the cube about the vertical, rad, modulo a quarter turn, in [-pi/4, pi/4)."""
        w, x, y, z = self.data.qpos[9:13]
        yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        return float((yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4)

    @property
    def plate_position(self) -> np.ndarray:
        """Centre of the plate's foot (3,), m."""
        return self.data.mocap_pos[0].copy()

    @property
    def success(self) -> bool:
        """Whether the cube lies on the plate, nearly still, and nothing but the plate touches it."""
        touching = self._touching_cube()
        offset = self.object_position - self.plate_position
        resting = self._plate_geom in touching and offset[2] < PLATE_FLOOR + 2 * CUBE_HALF
        inside = bool(np.hypot(offset[0], offset[1]) < PLATE_RADIUS)
        still = bool(np.abs(self.data.qvel[6:9]).max() < 0.02)
        return resting and inside and still and not touching & self._arm_geoms

    def _touching_cube(self) -> set[int]:
        pairs = self.data.contact.geom[: self.data.ncon]
        return set(pairs[(pairs == self._cube_geom).any(axis=1)].ravel().tolist()) - {self._cube_geom}

    def _draw_places(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        for _ in range(1000):
            cube, plate = (
                centre + self.region_scale * half * generator.uniform(-1.0, 1.0, 2)
                for centre, half in (CUBE_REGION, PLATE_REGION)
            )
            reach = [float(np.hypot(place[0] - SHOULDER_X, place[1])) for place in (cube, plate)]
            if np.linalg.norm(cube - plate) >= CLEARANCE and REACH[0] <= min(reach) and max(reach) <= REACH[1]:
                return cube, plate
        raise RuntimeError("no free places for cube and plate within reach")  # pragma: no cover: regions overlap reach

    def render(self) -> np.ndarray:
        """The camera's picture now, (image_size, image_size, 3) uint8 RGB. Raises RenderError without OpenGL."""
        if self._renderer is None:
            self._renderer = make_renderer(self.model, 2 * self.image_size)
            self._release = weakref.finalize(self, close_renderer, self._renderer)
            self._release.atexit = False  # too late: see gl.py
            self._renderer.scene.flags[self._mujoco.mjtRndFlag.mjRND_SHADOW] = False  # most of the cost
        self._renderer.update_scene(self.data, "front")
        return _halve(self._renderer.render())

    def close(self) -> None:
        """Give the OpenGL context back. The world can still be stepped, and rendered anew."""
        if self._renderer is not None:
            self._release()
            self._renderer = None

    def __enter__(self) -> PickPlaceWorld:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _halve(picture: np.ndarray) -> np.ndarray:
    """Average 2x2 pixels: (2H, 2W, 3) -> (H, W, 3) uint8."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    rows = picture[0::2].astype(np.uint16) + picture[1::2]
    pairs = rows.reshape(height, width, 2, 3)
    return ((pairs[:, :, 0] + pairs[:, :, 1] + 2) >> 2).astype(np.uint8)
