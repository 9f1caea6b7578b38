"""pick_place: the whole pipeline with one command, composed in this process or with a process per node."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import rclpy
import yaml
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from sage_ros.nodes.bringup import Bringup, BringupError
from sage_ros.nodes.lifecycle import SageNode, Spinner, StopRequest
from sage_ros.nodes.metabolic_manager import MetabolicManager
from sage_ros.nodes.replayer import Replayer
from sage_ros.nodes.sage_policy import SagePolicy
from sage_ros.nodes.trust_attention import TrustAttentionNode
from sage_ros.nodes.vision_irp import VisionIrp
from sage_ros.paths import checkpoint_path, share

# In the order they come up: who decides first, who feeds the others last.
NODES: dict[str, Callable[[], SageNode]] = {
    "metabolic_manager": MetabolicManager,
    "sage_policy": SagePolicy,
    "trust_attention": TrustAttentionNode,
    "vision_irp": VisionIrp,
    "replayer": Replayer,
}


def parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pick_place",
        description="Run the whole pipeline: vision_irp, trust_attention, sage_policy, metabolic_manager, a source.",
        epilog="What follows --ros-args goes to the nodes: -p sage_policy:control_enabled:=true, say. Ctrl-C stops.",
    )
    add = parser.add_argument
    add("--source", choices=("replay", "camera"), default="replay",
        help="replay: demonstration episodes; camera: your driver publishes image_raw, joint_states and task")
    add("--dataset", default="", help="GR00T/LeRobot v2.x data set to replay (default: the one in the package)")
    add("--episodes", default="all", help="episodes to replay: 'all' or indices such as 0,3 (default: all)")
    add("--rate", type=float, default=1.0, help="playback speed (default: 1.0)")
    add("--loop", type=_flag, nargs="?", const=True, default=False, metavar="BOOL", help="replay for ever")
    add("--checkpoint", default="", help="student checkpoint folder (default: the one in the package)")
    add("--params-file", default="", help="ROS parameter file for all nodes (default: config/pick_place.yaml)")
    add("--use-sim-time", type=_flag, nargs="?", const=True, default=False, metavar="BOOL",
        help="run on /clock, which the replayer then publishes")
    add("--processes", action="store_true", help="a process per node instead of all in this one")
    add("--namespace", default="", help="namespace of all nodes and topics")
    add("--report", default="", metavar="DIR",
        help="watch the session; when the replay or you end it, print a table and write a report into this folder")
    return parser.parse_args(args)


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return text.lower() == "true"


def parameters(options: argparse.Namespace) -> dict[str, object]:
    """The command line as the content of a ROS parameter file, which goes over the one given."""
    replay = {"dataset": str(Path(options.dataset).resolve()) if options.dataset else "", "episodes": options.episodes,
              "rate": options.rate, "loop": options.loop, "publish_clock": options.use_sim_time,
              "listeners": 2 if options.report else 1}
    content: dict[str, object] = {"/**": {"ros__parameters": {"use_sim_time": options.use_sim_time}}}
    for name in ("sage_policy", "trust_attention", "vision_irp"):
        if options.checkpoint:
            content[f"/**/{name}"] = {"ros__parameters": {"checkpoint": str(Path(options.checkpoint).resolve())}}
    # The source's clock is the wall, never its own /clock.
    content["/**/replayer"] = {"ros__parameters": {**replay, "use_sim_time": False}}
    return content


class Composed:
    """All nodes in this process, an executor and a thread each."""

    def __init__(self, names: list[str]) -> None:
        self._spinners = [Spinner(NODES[name]()) for name in names]

    def check(self) -> None:
        """Raise BringupError if a node has died."""
        for spinner in self._spinners:
            if not spinner.alive:
                raise BringupError(f"{spinner.node.get_name()} died: {spinner.error!r}") from spinner.error

    def close(self) -> None:
        for spinner in reversed(self._spinners):
            spinner.close()


class Separate:
    """A process per node, as a launch file would start them."""

    def __init__(self, names: list[str], ros_args: list[str]) -> None:
        self._children = {name: spawn(name, ros_args) for name in names}

    def check(self) -> None:
        """Raise BringupError if a node has died."""
        for name, child in self._children.items():
            if child.poll() is not None:
                raise BringupError(f"{name} died with exit code {child.returncode}")

    def close(self) -> None:
        for child in reversed(self._children.values()):
            stop(child)


def spawn(name: str, args: list[str]) -> subprocess.Popen[bytes]:
    """Start a node's executable in a session of its own, so that Ctrl-C reaches it once and through us."""
    return subprocess.Popen([sys.executable, "-m", f"sage_ros.nodes.{name}", *args], start_new_session=True)


def stop(child: subprocess.Popen[bytes], patience: float = 10.0) -> int:
    """SIGINT, then SIGKILL after ``patience`` seconds; returns the exit code."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


def main(args: list[str] | None = None) -> int:
    argv = sys.argv if args is None else ["pick_place", *args]
    options = parse(remove_ros_args(argv)[1:])
    try:
        params_file = options.params_file or str(share("config", "pick_place.yaml"))
        with ExitStack() as stack:
            overrides = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="sage_ros_", suffix=".yaml"))
            yaml.safe_dump(parameters(options), overrides)
            overrides.flush()
            user_args = argv[argv.index("--ros-args") :] if "--ros-args" in argv else []
            return _run(options, _ros_args(options, [params_file, overrides.name]) + user_args, stack)
    except (BringupError, FileNotFoundError) as error:
        print(f"pick_place: {error}", file=sys.stderr)
        return 1


def _ros_args(options: argparse.Namespace, params_files: list[str]) -> list[str]:
    """What every node is started with; a later parameter file goes over an earlier one."""
    ros_args = ["--ros-args"]
    for path in params_files:
        ros_args += ["--params-file", path]
    ros_args += ["-r", f"__ns:=/{options.namespace.strip('/')}"] if options.namespace else []
    # What the robot was last told is, in a replay, what the demonstrator told it.
    ros_args += ["-r", "last_command:=demo/action"] if options.source == "replay" else []
    return ros_args


def _run(options: argparse.Namespace, ros_args: list[str], stack: ExitStack) -> int:
    rclpy.init(args=ros_args, signal_handler_options=SignalHandlerOptions.NO)
    stack.callback(rclpy.try_shutdown)
    stopped = StopRequest()
    names = [name for name in NODES if name != "replayer" or options.source == "replay"]
    pipeline = Separate(names, ros_args) if options.processes else Composed(names)
    stack.callback(pipeline.close)
    watcher = _watch(options, ros_args) if options.report else None
    if watcher is not None:
        stack.callback(stop, watcher)

    def check() -> None:
        pipeline.check()
        if stopped.is_set():
            raise BringupError("stopped while coming up")

    with Bringup(names, options.namespace, check=check) as bringup:
        bringup.up()
        bringup.check = pipeline.check
        print(f"pick_place: {', '.join(names)} are active", flush=True)
        while not stopped.wait(0.2) and (watcher is None or watcher.poll() is None):
            pipeline.check()
        if watcher is not None:
            stop(watcher, patience=60.0)
        bringup.down()
    return watcher.returncode if watcher is not None else 0


def _watch(options: argparse.Namespace, ros_args: list[str]) -> subprocess.Popen[bytes]:
    until = ["--until-finished"] if options.source == "replay" and not options.loop else []
    checkpoint = str(checkpoint_path(options.checkpoint))
    return spawn("monitor", ["--report", options.report, "--checkpoint", checkpoint, *until, *ros_args])


if __name__ == "__main__":
    sys.exit(main())
