"""sim_robot: the simulated pick-and-place table as a robot with a camera."""

from __future__ import annotations

import array
import sys
from dataclasses import dataclass
from typing import Any

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float64MultiArray, Header, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from sage_ros.core.options import check, option
from sage_ros.core.timing import SECOND, Stopwatch
from sage_ros.nodes.lifecycle import LATCHED, RELIABLE, STREAM, SageNode, Status
from sage_ros.nodes.messages import image_message, joint_message, nanoseconds, to_stamp
from sage_ros.nodes.process import run
from sage_ros.sim.controllers import ForwardController, Goal, TrajectoryController, set_point, trajectory
from sage_ros.sim.description import CAMERA_FRAME, urdf
from sage_ros.sim.live import LiveWorld, Pace
from sage_ros.sim.scene import LOOKS
from sage_ros.sim.world import TASK

CLOCK = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
COMMANDS = {"forward": "joint_command", "trajectory": "joint_trajectory"}


@dataclass(frozen=True)
class SimRobotConfig:
    seed: int = option(0, "where things lie; ~/reset counts on from it", low=0, high=2**31 - 1)
    region_scale: float = option(1.0, "widens or narrows where cube and plate may lie", low=0.01, high=2.0)
    look: str = option("plain", "how the world looks; shifted: another camera, colour and table", choices=tuple(LOOKS))
    image_size: int = option(256, "side of the square picture (pixels)", low=16, high=2048)
    task: str = option(TASK, "what to ask for on the topic task; empty: that is for another node to do")
    controller: str = option("forward", "takes joint_command, or joint_trajectory", choices=("forward", "trajectory"))
    control_rate: float = option(100.0, "joint states per second: 20, 40, 80, 100, 200, 400 (Hz)", low=20.0, high=400.0)
    publish_clock: bool = option(False, "publish /clock and stamp by it (the other nodes then need use_sim_time)")
    real_time_factor: float = option(1.0, "simulated s per s; 0: as fast as answers come", low=0.0, high=1000.0)
    command_rate: float = option(0.0, "for factor 0: commands to wait for; 0: control_rate (Hz)", low=0.0, high=400.0)
    patience: float = option(1.0, "for factor 0: longest wait for an answer (s)", low=0.001, high=3600.0)

    def __post_init__(self) -> None:
        check(self)
        if self.real_time_factor != 1.0 and not self.publish_clock:
            raise ValueError(f"real_time_factor is {self.real_time_factor}; other than 1 it needs publish_clock")


class SimRobot(SageNode):
    """image_raw (20 Hz), joint_states, task, robot_description, ~/episode, optionally /clock; commands in; ~/reset.

    The joint states of a frame's stamp go out before the frame. ``controller`` takes commands as the ros2_control
    controller of that name does, and one that is malformed moves nothing. With ``real_time_factor`` 0 simulated time
    stands still until the frame's ``action`` and the tick's command are there, so that the same seed and pipeline give
    the same states.
    """

    Config = SimRobotConfig
    config: SimRobotConfig
    live = frozenset({"seed"})

    def __init__(self, **kwargs: object) -> None:
        super().__init__("sim_robot", **kwargs)
        self._live: Any = None  # the LiveWorld, once configured
        self._image: Image | None = None  # to be filled anew

    def setup(self) -> None:
        c = self.config
        if self.get_parameter("use_sim_time").value:
            raise ValueError("use_sim_time is on, but this node's time is the wall's or its own: set it to false")
        self._open()
        self._layout = self._world.joint_layout
        self._late, self._drawing = Stopwatch(), Stopwatch()
        self._clock_topic = None
        if c.publish_clock:
            if others := sorted(set(self.publishers("/clock"))):
                raise ValueError(f"/clock is published already, by {', '.join(others)}: set publish_clock to false")
            self._clock_topic = self.publish_on(Clock, "/clock", CLOCK)
        self._images = self.publish_on(Image, "image_raw", STREAM)
        self._states = self.publish_on(JointState, "joint_states", RELIABLE)
        self._episodes = self.publish_on(DiagnosticArray, "~/episode", LATCHED)
        self._descriptions = self.publish_on(String, "robot_description", LATCHED)
        self._tasks = self.publish_on(String, "task", LATCHED) if c.task else None
        self._state = joint_message(self._layout.names, self._world.state, Header())
        if c.controller == "forward":
            self.listen(Float64MultiArray, COMMANDS[c.controller], self._on_set_point)
        else:
            self.listen(JointTrajectory, COMMANDS[c.controller], self._on_trajectory)
        if c.real_time_factor == 0.0:
            self.listen(JointTrajectory, "action", self._on_action)
        self.serve(Trigger, "~/reset", self._on_reset)
        self.get_logger().info(f"{COMMANDS[c.controller]} takes {', '.join(self._layout.names)}")

    def _open(self) -> None:
        c = self.config
        controller = ForwardController() if c.controller == "forward" else TrajectoryController()
        pace = Pace(c.control_rate, c.real_time_factor, c.command_rate or c.control_rate, c.patience)
        start = self._live.now if self._live is not None else SECOND  # zero would mean "no time yet" to every ROS clock
        self._live = LiveWorld(pace, controller, start, self._show, self._on_missed)
        self.watch = self._live.watch
        try:
            self._world = self._live.open(c.image_size, c.region_scale, c.seed, c.look)
        except ImportError as error:
            raise RuntimeError(str(error)) from error

    def start(self) -> None:
        self._descriptions.publish(String(data=urdf(self._world.model)))
        if self._tasks is not None:
            self._tasks.publish(String(data=self.config.task))
        self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def teardown(self) -> None:
        if self._live is not None:
            self._live.close()

    def changed(self) -> None:
        if self._live is not None:
            self._live.next_seed = self.config.seed

    # What comes in, in the executor's thread

    def _on_set_point(self, message: Float64MultiArray) -> None:
        try:
            goal = set_point(self._layout, message.data)
        except ValueError as problem:
            return self._refuse(f"joint_command: {problem}")
        self._accept(goal)

    def _on_trajectory(self, message: JointTrajectory) -> None:
        try:
            if any(point.velocities or point.accelerations or point.effort for point in message.points):
                raise ValueError("only positions can be followed, no velocities, accelerations or efforts")
            seconds = [nanoseconds(point.time_from_start) / SECOND for point in message.points]
            positions = [point.positions for point in message.points]
            begin = nanoseconds(message.header.stamp)
            goal = trajectory(self._layout, message.joint_names, seconds, positions, begin)
            now = self._live.now if self.config.publish_clock else self.get_clock().now().nanoseconds
            if begin and goal.end <= now:
                raise ValueError(f"the trajectory ended {(now - goal.end) / SECOND:.3f} s ago")
        except ValueError as problem:
            return self._refuse(f"joint_trajectory: {problem}")
        self._accept(goal)

    def _accept(self, goal: Goal) -> None:
        self.counts["commands_in"] += 1
        self._live.accept(goal)

    def _refuse(self, problem: str) -> None:
        self.counts["refused"] += 1
        self.complain(problem)

    def _on_action(self, message: JointTrajectory) -> None:
        self._live.acted(nanoseconds(message.header.stamp))

    async def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answers once the world is reset; commands are heard meanwhile."""
        done: Future = Future()
        self._live.reset(done.set_result)
        seed = await done
        response.success = seed is not None
        response.message = "the world stands still: activate the node first" if seed is None else f"seed {seed}"
        return response

    # What goes out, in the world's thread

    def _show(self) -> int:
        """Publish what there is at this control tick, stamped with the moment that it was due; returns the stamp (ns).

        The joints go before the image, which is answered with them.
        """
        live, c = self._live, self.config
        ns = live.now if c.publish_clock else self.get_clock().now().nanoseconds - round(live.late * SECOND)
        stamp = to_stamp(ns)
        if self._clock_topic is not None:
            self._clock_topic.publish(Clock(clock=stamp))
        self._state.header.stamp = stamp
        self._state.position = array.array("d", self._world.state)
        self._state.velocity = array.array("d", self._world.velocity)
        self._states.publish(self._state)
        if live.frame is not None:
            self._late.add(live.late)
            self.counts["frames_late"] += live.late * c.real_time_factor > 1.0 / c.control_rate  # by a control tick
            self._episodes.publish(self._episode(stamp, live.frame))
            with self._drawing.span(), self.watch.span():
                picture = self._world.render()
            self._image = image_message(picture, Header(stamp=stamp, frame_id=CAMERA_FRAME), self._image)
            self._images.publish(self._image)
            self.counts["frames_out"] += 1
        return ns

    def _episode(self, stamp: Time, tick: int) -> DiagnosticArray:
        world, success = self._world, self._world.success
        values: dict[str, object] = {"seed": self._live.seed, "time": f"{world.time:.4f}"}
        values |= {"tick": tick, "success": success}
        values |= {f"object_{axis}": f"{at:.5f}" for axis, at in zip("xyz", world.object_position, strict=True)}
        values |= {f"plate_{axis}": f"{at:.5f}" for axis, at in zip("xy", world.plate_position[:2], strict=True)}
        message = "the cube lies on the plate" if success else "under way"
        status = DiagnosticStatus(name=f"{self.get_name()}: episode", message=message)
        status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        return DiagnosticArray(header=Header(stamp=stamp), status=[status])

    def _on_missed(self, answer: str) -> None:
        self.counts[f"{answer}s_missed"] += 1
        self.complain(f"no {answer} within {self.config.patience} s: going on without, until they come again")

    def status(self) -> Status:
        if not self._entities:
            return DiagnosticStatus.OK, "not configured", {}
        live = self._live
        figures: dict[str, object] = {"pauses": live.pauses}
        if self._late.spans:
            for name, watch in (("late", self._late), ("drawing", self._drawing)):
                figures |= {f"{name}_ms_p{q}": f"{watch.milliseconds(q / 100):.3f}" for q in (50, 99)}
        if live.failure:
            self.complain(live.failure)
            return DiagnosticStatus.ERROR, f"the world stopped: {live.failure.splitlines()[-1]}", figures
        for topic in ("/clock", COMMANDS[self.config.controller]):
            names = sorted(set(self.publishers(topic)))
            if len(names) > 1 and (topic != "/clock" or self.config.publish_clock):
                return DiagnosticStatus.ERROR, f"{topic} has {len(names)} publishers: {', '.join(names)}", figures
        state = "running" if self.active else "inactive"
        line = f"{state}, seed {live.seed}, {self.counts['frames_out']} frames, {self.counts['commands_in']} commands"
        return DiagnosticStatus.OK, line, figures


def main(args: list[str] | None = None) -> int:
    return run(SimRobot, args)


if __name__ == "__main__":
    sys.exit(main())
