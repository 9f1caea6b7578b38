"""The MuJoCo model of the table: SO-101 arm, red cube, plate, camera, light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sage_ros.sim.gl import import_mujoco
from sage_ros.sim.meshes import find_assets, load_meshes

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CUBE_HALF = 0.0125  # m
PLATE_RADIUS, PLATE_FLOOR, PLATE_RIM = 0.055, 0.004, 0.010  # m: outer radius, height of the floor and of the rim
CAMERA: dict[str, Any] = {"pos": (0.53, -0.24, 0.42), "look_at": (0.150, -0.010, 0.082), "fovy": 41.0}
MESH_CELL = 0.004  # m


@dataclass(frozen=True)
class Look:
    """How the world looks, which physics do not feel: what a student trained on one look has not seen of another."""

    camera: tuple[float, float, float] = CAMERA["pos"]  # m
    look_at: tuple[float, float, float] = CAMERA["look_at"]  # m
    cube: tuple[float, float, float] = (0.85, 0.08, 0.06)  # RGB, 0 to 1
    checks: float = 0.0  # m, side of the table's checks; 0: plain


LOOKS = {
    "plain": Look(),
    # Moved camera, new object colour, new table texture
    "shifted": Look((0.50, -0.15, 0.45), (0.160, -0.020, 0.060), (0.95, 0.55, 0.05), 0.06),
}

# Position servos, critically slow as hobby servos are: with the load's inertia small against the damping, a joint
# follows its command with a time constant of (kv + joint damping) / kp.
KP, KV = 30.0, 4.6  # Nm/rad, Nms/rad
GRIPPER_KP, GRIPPER_KV, GRIPPER_FORCE = 8.0, 1.4, 0.4
PAD_TURN = 0.2  # rad
STIFF = [0.006, 1.0]  # contact time constant, s: jaws must not sink into a light cube
ARM_BIT, WORLD_BIT = 2, 1  # the arm collides with the world's things, not with itself


def build_model(image_size: int, cell: float = MESH_CELL, look: Look = LOOKS["plain"]) -> Any:
    """Compile the scene to an ``mjModel`` whose offscreen buffer is ``image_size`` pixels square."""
    mujoco = import_mujoco()
    spec = mujoco.MjSpec.from_file(str(find_assets() / "so101_new_calib.xml"))
    spec.modelname = "sage_ros_pick_place"
    spec.option.timestep = 0.0025
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10
    spec.visual.quality.offsamples = 0
    spec.visual.global_.offwidth = spec.visual.global_.offheight = image_size
    spec.visual.map.znear = 0.05
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.35] * 3, [0.3] * 3
    _prepare_arm(spec, mujoco, cell)
    _add_table(spec, mujoco, look)
    _add_cube(spec, mujoco, look)
    _add_plate(spec, mujoco)
    model = spec.compile()
    jaw = model.joint("gripper").dofadr[0]
    model.dof_damping[jaw], model.dof_frictionloss[jaw] = 0.1, 0.02
    return model


def _prepare_arm(spec: Any, mujoco: Any, cell: float) -> None:
    meshes = load_meshes(cell)
    for mesh in spec.meshes:
        vertices, faces = meshes[mesh.file.removesuffix(".stl")]
        mesh.name = mesh.name or mesh.file.removesuffix(".stl")
        mesh.file = ""
        mesh.uservert, mesh.userface = vertices.ravel(), faces.ravel()
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL  # bodies bring their own; thinned meshes may be open
    for geom in spec.geoms:
        if geom.type == mujoco.mjtGeom.mjGEOM_MESH and geom.group == 3:
            spec.delete(geom)  # convex hulls of whole parts: slow, and too coarse to hold anything with
        elif geom.name.endswith("_pad"):
            geom.contype, geom.conaffinity = ARM_BIT, 0
            geom.condim, geom.friction, geom.solref = 4, [1.5, 0.02, 0.0001], STIFF
            if geom.name.startswith("moving"):  # make the pads parallel when they hold the cube, not at 40 mm
                turn = np.array([np.cos(PAD_TURN / 2), 0.0, 0.0, np.sin(PAD_TURN / 2)])
                mujoco.mju_mulQuat(geom.quat, turn, np.array(geom.quat))
    solid = {"group": 3, "contype": ARM_BIT, "conaffinity": 0, "type": mujoco.mjtGeom.mjGEOM_BOX}
    gripper, jaw = spec.body("gripper"), spec.body("moving_jaw_so101_v1")
    gripper.add_geom(name="palm", pos=[0.005, 0, -0.025], size=[0.022, 0.022, 0.02], **solid)
    gripper.add_geom(name="fixed_jaw", pos=[-0.012, 0, -0.066], size=[0.007, 0.011, 0.022], **solid)
    jaw.add_geom(name="moving_jaw", pos=[-0.006, -0.030, 0.0189], size=[0.006, 0.024, 0.009], **solid)
    for body in spec.bodies:
        body.gravcomp = 1.0 if body.name != "world" else 0.0
    for actuator in spec.actuators:
        kp, kv = (GRIPPER_KP, GRIPPER_KV) if actuator.name == "gripper" else (KP, KV)
        actuator.gainprm[0], actuator.biasprm[1], actuator.biasprm[2] = kp, -kp, -kv
        if actuator.name == "gripper":
            actuator.forcerange = [-GRIPPER_FORCE, GRIPPER_FORCE]
    for material in spec.materials:
        motor = material.name.startswith("sts3215")
        material.rgba = [0.12, 0.12, 0.13, 1.0] if motor else [0.93, 0.72, 0.16, 1.0]
        material.specular, material.shininess = 0.2, 0.3


def _add_table(spec: Any, mujoco: Any, look: Look) -> None:
    world = spec.worldbody
    table = world.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[3, 3, 0.01],
        rgba=[0.62, 0.60, 0.56, 1],
        contype=WORLD_BIT,
        conaffinity=WORLD_BIT | ARM_BIT,
        friction=[0.8, 0.01, 0.0001],
    )
    if look.checks:
        spec.add_texture(
            name="checks", type=mujoco.mjtTexture.mjTEXTURE_2D, builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
            rgb1=[0.50, 0.38, 0.28], rgb2=[0.66, 0.54, 0.42], width=128, height=128,
        )  # fmt: skip
        checks = spec.add_material(name="checks", texrepeat=[0.5 / look.checks] * 2, texuniform=True)
        checks.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "checks"
        table.material, table.rgba = "checks", [1, 1, 1, 1]
    world.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[0.3, 0.3, 1],
        dir=[-0.4, -0.35, -1],
        diffuse=[0.65] * 3,
        specular=[0.15] * 3,
        castshadow=False,
    )
    position, target = np.array(look.camera), np.array(look.look_at)
    backwards = (position - target) / np.linalg.norm(position - target)
    right = np.cross([0.0, 0.0, 1.0], backwards)
    right /= np.linalg.norm(right)
    frame = np.stack([right, np.cross(backwards, right), backwards], axis=1)
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, frame.ravel())
    world.add_camera(name="front", pos=position, quat=quaternion, fovy=CAMERA["fovy"])


def _add_cube(spec: Any, mujoco: Any, look: Look) -> None:
    body = spec.worldbody.add_body(name="cube", pos=[0.2, 0, CUBE_HALF])
    body.add_freejoint(name="cube")
    body.add_geom(
        name="cube",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[CUBE_HALF] * 3,
        mass=0.02,
        solref=STIFF,
        rgba=[*look.cube, 1],
        condim=4,
        friction=[1.0, 0.01, 0.0001],
        contype=WORLD_BIT,
        conaffinity=WORLD_BIT | ARM_BIT,
    )


def _add_plate(spec: Any, mujoco: Any) -> None:
    """A plate that the world puts where it wants it (a mocap body): a lathed mesh to see, a disc and a rim to touch."""
    plate = spec.worldbody.add_body(name="plate", mocap=True, pos=[0.2, -0.1, 0])
    outer, floor, rim = PLATE_RADIUS, PLATE_FLOOR, PLATE_RIM
    profile = [(0.7 * outer, 0.0), (outer, rim), (0.93 * outer, rim), (0.66 * outer, 0.5 * floor)]
    vertices, faces = _lathe(profile, sides=36)
    mesh = spec.add_mesh(name="rim", uservert=vertices.ravel(), userface=faces.ravel())
    mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
    plate.add_geom(
        type=mujoco.mjtGeom.mjGEOM_MESH, meshname="rim", rgba=[0.10, 0.27, 0.62, 1], contype=0, conaffinity=0
    )
    plate.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[0.78 * outer, floor / 2, 0],
        pos=[0, 0, floor / 2],
        rgba=[0.45, 0.62, 0.85, 1],
        contype=0,
        conaffinity=0,
    )
    touch = {"contype": WORLD_BIT, "conaffinity": WORLD_BIT | ARM_BIT, "group": 3, "friction": [0.8, 0.01, 0.0001]}
    plate.add_geom(
        name="plate",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=[0.95 * outer, floor / 2, 0],
        pos=[0, 0, floor / 2],
        **touch,
    )
    sides = 12
    middle = 0.9 * outer
    for side in range(sides):
        angle = 2 * np.pi * side / sides
        plate.add_geom(
            name=f"rim{side}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=[middle * np.cos(angle), middle * np.sin(angle), rim / 2],
            size=[0.003, middle * np.tan(np.pi / sides), rim / 2],
            quat=[np.cos(angle / 2), 0, 0, np.sin(angle / 2)],
            **touch,
        )


def _lathe(profile: list[tuple[float, float]], sides: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn a profile of (radius, height) points, outside first, about z: vertices (V, 3), faces (F, 3)."""
    angles = 2 * np.pi * np.arange(sides) / sides
    vertices = np.array([(r * np.cos(a), r * np.sin(a), z) for r, z in profile for a in angles])
    faces = []
    for ring in range(len(profile) - 1):
        for side in range(sides):
            here, there = ring * sides, (ring + 1) * sides
            step = (side + 1) % sides
            faces += [(here + side, there + side, here + step), (here + step, there + side, there + step)]
    return vertices.astype(np.float32), np.array(faces, dtype=np.int32)
