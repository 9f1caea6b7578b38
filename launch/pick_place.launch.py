"""The whole pipeline, a process per node (or composed in one), brought up in order.

ros2 launch sage_ros pick_place.launch.py --show-args     what there is to set
ros2 launch sage_ros pick_place.launch.py                 replays the demonstrations in the package
ros2 launch sage_ros pick_place.launch.py source:=sim     a simulated robot, which the policy moves
"""

from __future__ import annotations

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    GroupAction,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.conditions import IfCondition, UnlessCondition
from launch.event_handlers import OnProcessExit, OnProcessIO
from launch.events import Shutdown
from launch.events.process import ProcessExited, ProcessIO
from launch.substitutions import EqualsSubstitution, IfElseSubstitution, LaunchConfiguration, NotEqualsSubstitution
from launch_ros.actions import LifecycleNode, Node, PushRosNamespace
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from sage_ros.paths import checkpoint_path, profiles_variable
from sage_ros.policy.champions import Champions

# In the order they come up: who decides first, who feeds the others last.
PIPELINE = ["metabolic_manager", "safety_filter", "sage_policy", "trust_attention", "vision_irp"]
PATIENCE = "15"  # s between SIGINT and SIGTERM: to load and unload torch takes a busy machine longer than the default
SOURCES = {"replay": "replayer", "sim": "sim_robot", "camera": ""}
ARGUMENTS = {
    "source": ("replay", "what feeds the pipeline: recorded episodes, a simulated robot, or a camera driver and a "
               "robot of yours that publish image_raw, joint_states and task", list(SOURCES)),
    "enable": ("auto", "let the safety_filter's commands out once all are active; false is a dry run, auto enables "
               "for source:=sim alone", ["auto", "true", "false"]),
    "dataset": ("", "GR00T/LeRobot data set to replay, folder or hub name; empty: the one in the package", None),
    "episode": ("all", "what to replay, in order: 'all', or episode indices such as 0 or 3,1,2", None),
    "rate": ("1.0", "playback speed", None),
    "loop": ("false", "replay for ever", ["true", "false"]),
    "checkpoint": ("", "student checkpoint folder; empty: the one in the package", None),
    "champions": ("", "this robot's students, which begin with checkpoint, to learn while it dreams; empty: do not",
                  None),
    "sessions": ("", "with champions: the recorder's data set, to learn from", None),
    "large_images": ("false", "room in shared memory for images above 500 kB (config/fastdds.xml); the camera's driver "
                     "needs it too", ["true", "false"]),
    "composed": ("false", "all nodes in one process: the lowest latency, but faults are shared", ["true", "false"]),
    "namespace": ("", "namespace of all nodes and topics", None),
    "use_sim_time": ("false", "run on /clock, which the replayer or the simulated robot then publishes",
                     ["true", "false"]),
    "seed": ("0", "source:=sim: where things lie", None),
    "region_scale": ("1.0", "source:=sim: widens where things may lie", None),
    "real_time_factor": ("1.0", "source:=sim: simulated s per s; other than 1 it needs use_sim_time", None),
    "controller": ("forward", "source:=sim: what the robot takes, joint_command or joint_trajectory",
                   ["forward", "trajectory"]),
}


def value(name: str, kind: type = str) -> ParameterValue:
    return ParameterValue(LaunchConfiguration(name), value_type=kind)


def check_params_file(context: LaunchContext) -> None:
    """launch_ros only warns about a missing file, and the nodes would run with other parameters than asked for."""
    path = Path(context.launch_configurations["params_file"])
    if not path.is_file():
        raise FileNotFoundError(f"params_file: there is no {path}")


def end(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The end of this process is the end of the launch; its failure is the launch's failure."""
    if context.is_shutdown:
        return []
    if event.returncode:
        raise RuntimeError(f"{event.process_name} ended with exit code {event.returncode}: see its error above")
    return [EmitEvent(event=Shutdown(reason=f"{event.process_name} has ended"))]


class Supervision:
    """A process per node: bringup brings all of them up in order, then stays and brings up again who fell.

    Until then, a node that ends takes the launch with it: what cannot start now will not start the next time either.
    """

    def __init__(self) -> None:
        self.up = False

    def on_output(self, event: ProcessIO) -> None:
        self.up = self.up or b"are active" in event.text

    def on_exit(self, event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        return [] if self.up else end(event, context)

    def bringup(self, context: LaunchContext) -> list[LaunchDescriptionEntity]:
        source, enable = (LaunchConfiguration(name).perform(context) for name in ("source", "enable"))
        dreamer = LaunchConfiguration("champions").perform(context) and "dreamer"
        options = [*PIPELINE, *filter(None, [dreamer, SOURCES[source]]), "--supervise"]
        if enable == "true" or (enable == "auto" and source == "sim"):
            options.append("--enable")
        node = Node(
            package="sage_ros", executable="bringup", arguments=options, output="screen", sigterm_timeout=PATIENCE
        )
        return [
            RegisterEventHandler(OnProcessIO(target_action=node, on_stdout=self.on_output)),
            RegisterEventHandler(OnProcessExit(target_action=node, on_exit=end)),
            node,
        ]

    def actions(self) -> list[LaunchDescriptionEntity]:
        params_file = LaunchConfiguration("params_file")
        own: dict[str, dict[str, ParameterValue | bool | str]] = {
            name: {"use_sim_time": value("use_sim_time", bool)} for name in PIPELINE
        }
        for name in PIPELINE[1:]:
            own[name]["checkpoint"] = value("used_checkpoint")
        own["dreamer"] = {"use_sim_time": value("use_sim_time", bool), "champions": value("champions"),
                          "checkpoint": value("checkpoint"), "sessions": value("sessions")}  # fmt: skip
        # A source's clock is the wall, never its own /clock.
        clock = {"use_sim_time": False, "publish_clock": value("use_sim_time", bool)}
        own["replayer"] = clock | {
            "dataset": value("dataset"), "episodes": value("episode"), "rate": value("rate", float),
            "loop": value("loop", bool), "mode": "demonstration",
        }  # fmt: skip
        own["sim_robot"] = clock | {
            "seed": value("seed", int), "region_scale": value("region_scale", float),
            "real_time_factor": value("real_time_factor", float), "controller": value("controller"),
        }  # fmt: skip
        # What the robot was last told is, in a replay, what the demonstrator told it: to those who plan and judge.
        told = IfElseSubstitution(source_is("replay"), "demo/action", "last_command")
        nodes = [
            LifecycleNode(
                package="sage_ros", executable=name, name=name, namespace="", output="screen",
                parameters=[params_file, parameters], respawn=True, respawn_delay=0.5, sigterm_timeout=PATIENCE,
                remappings=[("last_command", told)] if name in ("sage_policy", "trust_attention") else None,
                condition=condition_of(name),
            )
            for name, parameters in own.items()
        ]  # fmt: skip
        ends = [RegisterEventHandler(OnProcessExit(target_action=node, on_exit=self.on_exit)) for node in nodes]
        return [OpaqueFunction(function=choose_checkpoint), *ends, *nodes, OpaqueFunction(function=self.bringup)]


def choose_checkpoint(context: LaunchContext) -> None:
    """What the nodes use: the checkpoint, or the champion of a folder that begins with it."""
    given, folder = (context.launch_configurations[name] for name in ("checkpoint", "champions"))
    if folder:
        given = str(Champions.found(folder, checkpoint_path(given)).current)
    context.launch_configurations["used_checkpoint"] = given


def condition_of(name: str) -> IfCondition | None:
    """When a node is started, if not always."""
    if name == "dreamer":
        return IfCondition(NotEqualsSubstitution(LaunchConfiguration("champions"), ""))
    return next((IfCondition(source_is(source)) for source, node in SOURCES.items() if node == name), None)


def source_is(source: str) -> EqualsSubstitution:
    return EqualsSubstitution(LaunchConfiguration("source"), source)


def composed() -> list[LaunchDescriptionEntity]:
    """The same nodes in one process."""
    options = {"--episodes" if name == "episode" else f"--{name.replace('_', '-')}": LaunchConfiguration(name)
               for name in (*ARGUMENTS, "params_file") if name != "composed"}
    arguments = [part for option in options.items() for part in option]
    node = Node(
        package="sage_ros", executable="pick_place", arguments=arguments, output="screen", sigterm_timeout=PATIENCE
    )
    return [RegisterEventHandler(OnProcessExit(target_action=node, on_exit=end)), node]


def generate_launch_description() -> LaunchDescription:
    folder = Path(get_package_share_directory("sage_ros")) / "config"
    config = folder / "pick_place.yaml"
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description, choices=choices)
        for name, (default, description, choices) in ARGUMENTS.items()
    ]
    declared.append(
        DeclareLaunchArgument(
            "params_file", default_value=str(config),
            description="ROS parameters of all nodes; the arguments above go over it",
        )
    )
    in_one, large = LaunchConfiguration("composed"), IfCondition(LaunchConfiguration("large_images"))
    return LaunchDescription([
        *declared,
        OpaqueFunction(function=check_params_file),
        SetEnvironmentVariable(profiles_variable(), str(folder / "fastdds.xml"), condition=large),
        GroupAction(
            [PushRosNamespace(LaunchConfiguration("namespace")), *Supervision().actions()],
            condition=UnlessCondition(in_one),
        ),
        GroupAction(composed(), condition=IfCondition(in_one)),
    ])  # fmt: skip
