"""The simulated robot as a URDF, for robot_state_publisher, RViz and motion planners."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from typing import Any

import numpy as np

from sage_ros.sim.gl import import_mujoco
from sage_ros.sim.scene import JOINTS

WORLD_FRAME = "world"
CAMERA_FRAME = "front_optical_frame"  # z forwards, x right, y down (REP 103)


def urdf(model: Any) -> str:
    """Links, masses, joints and limits of the arm in the ``mjModel``, and the camera's frame; no meshes.

    A joint's velocity limit is the speed at which damping takes all of its servo's effort.
    """
    robot = ET.Element("robot", name="so101")
    ET.SubElement(robot, "link", name=WORLD_FRAME)
    base = model.body("base").id
    _add_link(robot, model, base)
    _add_fixed(robot, "base", model.body_pos[base], _matrix(model.body_quat[base]))
    for name in JOINTS:
        joint = model.joint(name).id
        body = int(model.jnt_bodyid[joint])
        _add_link(robot, model, body)
        _add_revolute(robot, model, joint, body)
    ET.SubElement(robot, "link", name=CAMERA_FRAME)
    camera = model.camera("front").id
    _add_fixed(robot, CAMERA_FRAME, model.cam_pos[camera], _matrix(model.cam_quat[camera]) * (1.0, -1.0, -1.0))
    ET.indent(robot)
    return ET.tostring(robot, encoding="unicode")


def _add_link(robot: ET.Element, model: Any, body: int) -> None:
    link = ET.SubElement(robot, "link", name=model.body(body).name)
    inertial = ET.SubElement(link, "inertial")
    _add_origin(inertial, model.body_ipos[body], _matrix(model.body_iquat[body]))
    ET.SubElement(inertial, "mass", value=_text([model.body_mass[body]]))
    ixx, iyy, izz = (_text([value]) for value in model.body_inertia[body])
    ET.SubElement(inertial, "inertia", ixx=ixx, iyy=iyy, izz=izz, ixy="0", ixz="0", iyz="0")


def _add_revolute(robot: ET.Element, model: Any, joint: int, body: int) -> None:
    """A joint in its body's origin, which is where all of this arm's are."""
    element = ET.SubElement(robot, "joint", name=model.joint(joint).name, type="revolute")
    _add_origin(element, model.body_pos[body], _matrix(model.body_quat[body]))
    ET.SubElement(element, "parent", link=model.body(int(model.body_parentid[body])).name)
    ET.SubElement(element, "child", link=model.body(body).name)
    ET.SubElement(element, "axis", xyz=_text(model.jnt_axis[joint]))
    lower, upper = model.jnt_range[joint]
    effort = model.actuator_forcerange[np.flatnonzero(model.actuator_trnid[:, 0] == joint)[0], 1]
    damping = model.dof_damping[model.jnt_dofadr[joint]]
    limits = {"lower": lower, "upper": upper, "effort": effort, "velocity": effort / damping}
    ET.SubElement(element, "limit", {key: _text([value]) for key, value in limits.items()})
    friction = model.dof_frictionloss[model.jnt_dofadr[joint]]
    ET.SubElement(element, "dynamics", damping=_text([damping]), friction=_text([friction]))


def _add_fixed(robot: ET.Element, child: str, position: np.ndarray, rotation: np.ndarray) -> None:
    element = ET.SubElement(robot, "joint", name=f"{child}_fixed", type="fixed")
    _add_origin(element, position, rotation)
    ET.SubElement(element, "parent", link=WORLD_FRAME)
    ET.SubElement(element, "child", link=child)


def _add_origin(element: ET.Element, position: np.ndarray, rotation: np.ndarray) -> None:
    ET.SubElement(element, "origin", xyz=_text(position), rpy=_text(_roll_pitch_yaw(rotation)))


def _matrix(quaternion: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) of a quaternion (w, x, y, z)."""
    matrix = np.zeros(9)
    import_mujoco().mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def _roll_pitch_yaw(rotation: np.ndarray) -> tuple[float, float, float]:
    """Angles about the fixed axes x, y, z, in this order; yaw is 0 where it does not differ from roll."""
    level = np.hypot(rotation[0, 0], rotation[1, 0])
    pitch = np.arctan2(-rotation[2, 0], level)
    if level < 1e-6:
        return np.arctan2(-rotation[1, 2], rotation[1, 1]), pitch, 0.0
    return np.arctan2(rotation[2, 1], rotation[2, 2]), pitch, np.arctan2(rotation[1, 0], rotation[0, 0])


def _text(values: Iterable[float]) -> str:
    """Numbers so that they are read back as they are."""
    return " ".join(repr(float(value)) for value in values)
