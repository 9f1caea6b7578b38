"""The arm's pose as five numbers, and back to joints: what a scripted hand thinks in."""

from __future__ import annotations

from typing import Any

import numpy as np

from sage_ros.sim.gl import import_mujoco
from sage_ros.sim.scene import CUBE_HALF

GRASP_OFFSET = np.array([-0.0009, 0.0, 0.00645 + CUBE_HALF + 0.004])  # m, in the frame of the site ``gripperframe``
HEADING_OFFSET = -0.04868  # rad: the jaws' built-in turn about the roll axis

# Pitch = lift + elbow + wrist, heading = roll - pan + offset: both linear in the joints.
ANGLES = np.array([[0.0, 1.0, 1.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0, 1.0]])


class Kinematics:
    """Forward and inverse kinematics of the five arm joints on a private copy of MuJoCo's data.

    A pose is (x, y, z, pitch, heading): the point between the jaws where a cube is held (m), how far the gripper
    points below the horizon, and the world direction from the fixed to the moving jaw when it points down (rad).
    """

    def __init__(self, model: Any, limits: np.ndarray) -> None:
        self._mujoco = import_mujoco()
        self._model = model
        self._data = self._mujoco.MjData(model)
        self._site = model.site("gripperframe").id
        self._body = int(model.site_bodyid[self._site])
        self._limits = limits[:5]

    def pose(self, joints: np.ndarray) -> np.ndarray:
        """Pose (5,) of the arm joints (5,) rad."""
        self._data.qpos[:5] = joints
        self._mujoco.mj_kinematics(self._model, self._data)
        rotation = self._data.site_xmat[self._site].reshape(3, 3)
        angles = ANGLES @ joints + (0.0, HEADING_OFFSET)
        return np.concatenate([self._data.site_xpos[self._site] + rotation @ GRASP_OFFSET, angles])

    def joints(self, pose: np.ndarray, start: np.ndarray, iterations: int = 12) -> np.ndarray:
        """Arm joints (5,) rad nearest to ``pose`` (5,) from ``start``: damped least squares (Wampler 1986).

        Joint limits are kept. A pose out of reach gives the closest that the iterations found.
        """
        joints = np.array(start, dtype=np.float64)
        weight = np.array([1.0, 1.0, 1.0, 0.1, 0.1])  # a radian counts as 0.1 m
        jacobian = np.zeros((3, self._model.nv))
        for _ in range(iterations):
            here = self.pose(joints)
            error = weight * (pose - here)
            if np.abs(error).max() < 1e-5:
                break
            self._mujoco.mj_comPos(self._model, self._data)
            self._mujoco.mj_jac(self._model, self._data, jacobian, None, here[:3], self._body)
            rows = weight[:, None] * np.vstack([jacobian[:, :5], ANGLES])
            step = rows.T @ np.linalg.solve(rows @ rows.T + 1e-6 * np.eye(5), error)
            joints = np.clip(joints + np.clip(step, -0.3, 0.3), self._limits[:, 0], self._limits[:, 1])
        return joints
