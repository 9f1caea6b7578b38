"""The whole pipeline, a process per node (or composed in one), brought up in order.

ros2 launch sage_ros pick_place.launch.py --show-args     what there is to set
ros2 launch sage_ros pick_place.launch.py                 replays the demonstrations in the package
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
)
from launch.conditions import IfCondition, UnlessCondition
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import EqualsSubstitution, LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node, PushRosNamespace, SetRemap
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

# In the order they come up: who decides first, who feeds the others last.
PIPELINE = ["metabolic_manager", "sage_policy", "trust_attention", "vision_irp"]
ARGUMENTS = {
    "source": ("replay", "what feeds the pipeline: recorded episodes, or a camera driver and a robot of yours that "
               "publish image_raw, joint_states and task", ["replay", "camera"]),
    "dataset": ("", "GR00T/LeRobot v2.x data set folder to replay; empty: the one in the package", None),
    "episode": ("all", "what to replay, in order: 'all', or episode indices such as 0 or 3,1,2", None),
    "rate": ("1.0", "playback speed", None),
    "loop": ("false", "replay for ever", ["true", "false"]),
    "checkpoint": ("", "student checkpoint folder; empty: the one in the package", None),
    "composed": ("false", "all nodes in one process: the lowest latency, but faults are shared", ["true", "false"]),
    "namespace": ("", "namespace of all nodes and topics", None),
    "use_sim_time": ("false", "run on /clock, which the replayer then publishes", ["true", "false"]),
}


def text(name: str) -> ParameterValue:
    return ParameterValue(LaunchConfiguration(name), value_type=str)


def flag(name: str) -> ParameterValue:
    return ParameterValue(LaunchConfiguration(name), value_type=bool)


def check_params_file(context: LaunchContext) -> None:
    """launch_ros only warns about a missing file, and the nodes would run with other parameters than asked for."""
    path = Path(context.launch_configurations["params_file"])
    if not path.is_file():
        raise FileNotFoundError(f"params_file: there is no {path}")


def end(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """A node that dies, or that does not come up, ends the launch; a failure is the launch's failure."""
    if context.is_shutdown:
        return []
    if event.returncode:
        raise RuntimeError(f"{event.process_name} ended with exit code {event.returncode}: see its error above")
    return [EmitEvent(event=Shutdown(reason=f"{event.process_name} has ended"))]


def failed_only(event: ProcessExited, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    return end(event, context) if event.returncode else []


def separate(replay: EqualsSubstitution) -> list[LaunchDescriptionEntity]:
    """A process per node; bringup configures all of them, then activates them in order, and is done."""
    params_file, sim_time = LaunchConfiguration("params_file"), {"use_sim_time": flag("use_sim_time")}
    own: dict[str, list[object]] = {name: [params_file, sim_time] for name in PIPELINE}
    for name in PIPELINE[1:]:
        own[name].append({"checkpoint": text("checkpoint")})
    # The source's clock is the wall, never its own /clock.
    own["replayer"] = [params_file, {
        "dataset": text("dataset"), "episodes": text("episode"), "publish_clock": flag("use_sim_time"),
        "rate": ParameterValue(LaunchConfiguration("rate"), value_type=float), "loop": flag("loop"),
    }]  # fmt: skip
    nodes = {
        name: LifecycleNode(
            package="sage_ros", executable=name, name=name, namespace="", output="screen", parameters=parameters,
            condition=IfCondition(replay) if name == "replayer" else None,
        )
        for name, parameters in own.items()
    }  # fmt: skip

    def bringup(names: list[str], condition: IfCondition | UnlessCondition) -> list[LaunchDescriptionEntity]:
        node = Node(package="sage_ros", executable="bringup", arguments=names, output="screen", condition=condition)
        return [RegisterEventHandler(OnProcessExit(target_action=node, on_exit=failed_only)), node]

    ends = [RegisterEventHandler(OnProcessExit(target_action=node, on_exit=end)) for node in nodes.values()]
    return [
        # What the robot was last told is, in a replay, what the demonstrator told it.
        SetRemap("last_command", "demo/action", condition=IfCondition(replay)),
        *ends,
        *nodes.values(),
        *bringup([*PIPELINE, "replayer"], IfCondition(replay)),
        *bringup(PIPELINE, UnlessCondition(replay)),
    ]


def composed() -> list[LaunchDescriptionEntity]:
    """The same nodes in one process."""
    value = LaunchConfiguration
    options = ["--source", value("source"), "--dataset", value("dataset"), "--episodes", value("episode")]
    options += ["--rate", value("rate"), "--checkpoint", value("checkpoint"), "--params-file", value("params_file")]
    options += ["--loop", value("loop"), "--use-sim-time", value("use_sim_time"), "--namespace", value("namespace")]
    node = Node(package="sage_ros", executable="pick_place", arguments=options, output="screen")
    return [RegisterEventHandler(OnProcessExit(target_action=node, on_exit=end)), node]


def generate_launch_description() -> LaunchDescription:
    config = Path(get_package_share_directory("sage_ros")) / "config" / "pick_place.yaml"
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
    replay = EqualsSubstitution(LaunchConfiguration("source"), "replay")
    in_one = LaunchConfiguration("composed")
    return LaunchDescription([
        *declared,
        OpaqueFunction(function=check_params_file),
        GroupAction(
            [PushRosNamespace(LaunchConfiguration("namespace")), *separate(replay)], condition=UnlessCondition(in_one)
        ),
        GroupAction(composed(), condition=IfCondition(in_one)),
    ])  # fmt: skip
