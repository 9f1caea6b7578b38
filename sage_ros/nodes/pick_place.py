"""pick_place: the whole pipeline with one command, composed in this process or with a process per node."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container, Mapping
from contextlib import ExitStack
from pathlib import Path

import rclpy
import yaml
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from sage_ros.core.parents import PARENT
from sage_ros.nodes.corrupt import Corrupt
from sage_ros.nodes.dreamer import Dreamer
from sage_ros.nodes.lifecycle import SageNode
from sage_ros.nodes.metabolic_manager import MetabolicManager
from sage_ros.nodes.process import Spinner, StopRequest
from sage_ros.nodes.replayer import Replayer
from sage_ros.nodes.safety_filter import SafetyFilterNode
from sage_ros.nodes.sage_policy import SagePolicy
from sage_ros.nodes.supervision import BringupError, Supervisor
from sage_ros.nodes.trust_attention import TrustAttentionNode
from sage_ros.nodes.vision_irp import VisionIrp
from sage_ros.paths import checkpoint_path, profiles_variable, share
from sage_ros.policy.champions import CURRENT, Champions
from sage_ros.policy.manifest import CheckpointError

SOURCES = {"replay": "replayer", "sim": "sim_robot", "camera": ""}
STANDSTILL = 5.0  # s that a process may stand still before it is killed, to be started again


def sim_robot() -> SageNode:
    from sage_ros.nodes.sim_robot import SimRobot  # loads MuJoCo, which nothing else needs

    return SimRobot()


# In the order they come up: who decides first, who feeds the others last.
PIPELINE: dict[str, Callable[[], SageNode]] = {
    "metabolic_manager": MetabolicManager,
    "safety_filter": SafetyFilterNode,
    "sage_policy": SagePolicy,
    "trust_attention": TrustAttentionNode,
    "vision_irp": VisionIrp,
}
NODES = PIPELINE | {"replayer": Replayer}
ALL = NODES | {"corrupt": Corrupt, "sim_robot": sim_robot, "dreamer": Dreamer}


def parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pick_place",
        description="Run the whole pipeline: a source, vision_irp, trust_attention, sage_policy, safety_filter, "
        "metabolic_manager. With --processes a node that dies or stands still is started again.",
        epilog="What follows --ros-args goes to the nodes: -p safety_filter:rate:=50.0, say. Ctrl-C takes all down.",
    )
    add = parser.add_argument
    add("--source", choices=tuple(SOURCES), default="replay",
        help="replay: demonstration episodes; sim: a simulated robot, which closes the loop; "
        "camera: your drivers publish image_raw, joint_states and task")
    add("--enable", choices=("auto", "true", "false"), default="auto",
        help="let commands out once all are active: auto does so for sim alone, false is a dry run (default: auto)")
    add("--seed", type=int, default=0, help="sim: where things lie (default: 0)")
    add("--region-scale", type=float, default=1.0, help="sim: widens where things may lie (default: 1.0)")
    add("--real-time-factor", type=float, default=1.0, help="sim: simulated s per s (default: 1.0)")
    add("--longest", type=float, default=30.0, metavar="S", help="sim, with --report: end after S s (default: 30)")
    add("--controller", choices=("forward", "trajectory"), default="forward",
        help="sim: what the robot takes, joint_command or joint_trajectory (default: forward)")
    add("--dataset", default="",
        help="GR00T/LeRobot data set to replay, folder or hub name (default: the one in the package)")
    add("--episodes", default="all", help="episodes to replay: 'all' or indices such as 0,3 (default: all)")
    add("--rate", type=float, default=1.0, help="playback speed (default: 1.0)")
    add("--loop", type=_flag, nargs="?", const=True, default=False, metavar="BOOL", help="replay for ever")
    add("--checkpoint", default="", help="student checkpoint folder (default: the one in the package)")
    add("--champions", default="", metavar="DIR",
        help="learn while the robot dreams: this robot's students, which begin with --checkpoint (docs/dreaming.md)")
    add("--sessions", default="", metavar="DIR", help="with --champions: the recorder's data set, to learn from")
    add("--params-file", default="", help="ROS parameter file for all nodes (default: config/pick_place.yaml)")
    add("--use-sim-time", type=_flag, nargs="?", const=True, default=False, metavar="BOOL",
        help="run on /clock, which the replayer or the simulated robot then publishes")
    add("--large-images", type=_flag, nargs="?", const=True, default=False, metavar="BOOL",
        help="room in shared memory for images above 500 kB (config/fastdds.xml); give it to the camera's driver too")
    add("--processes", action="store_true", help="a process per node instead of all in this one")
    add("--namespace", default="", help="namespace of all nodes and topics")
    add("--report", default="", metavar="DIR",
        help="watch the session; when the replay, the placed cube or you end it, print a table and write a report here")
    return parser.parse_args(args)


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return text.lower() == "true"


def parameters(options: argparse.Namespace) -> dict[str, object]:
    """The command line as the content of a ROS parameter file, which goes over the one given."""
    # Each node by its name: in the file given there may be names, and those would go under a wildcard's values here.
    named = (*PIPELINE, "monitor")
    own: dict[str, dict[str, object]] = {name: {"use_sim_time": options.use_sim_time} for name in named}
    checkpoint = str(Path(options.checkpoint).resolve()) if options.checkpoint else ""
    if options.champions:
        champions, sessions = Path(options.champions).resolve(), Path(options.sessions).resolve()
        own["dreamer"] = {"use_sim_time": options.use_sim_time, "champions": str(champions), "checkpoint": checkpoint,
                          "sessions": str(sessions) if options.sessions else ""}  # fmt: skip
        checkpoint = str(champions / CURRENT)
    if checkpoint:
        for name in ("safety_filter", "sage_policy", "trust_attention", "vision_irp"):
            own[name]["checkpoint"] = checkpoint
    # A source's clock is the wall, never its own /clock.
    clock = {"use_sim_time": False, "publish_clock": options.use_sim_time}
    there = options.dataset and Path(options.dataset).exists()  # if not, it may be a name on the hub
    own["replayer"] = clock | {
        "dataset": str(Path(options.dataset).resolve()) if there else options.dataset, "episodes": options.episodes,
        "rate": options.rate, "loop": options.loop, "listeners": 2 if options.report else 1, "mode": "demonstration",
    }  # fmt: skip
    own["sim_robot"] = clock | {
        "seed": options.seed, "region_scale": options.region_scale, "controller": options.controller,
        "real_time_factor": options.real_time_factor,
    }  # fmt: skip
    return {f"/**/{name}": {"ros__parameters": values} for name, values in own.items()}


def share_process() -> None:
    """Have Fast DDS deliver between nodes of this process as between processes (config/fastdds_composed.xml says why),
    unless somebody has chosen a profile. Before ``rclpy.init``."""
    os.environ.setdefault(profiles_variable(), str(share("config", "fastdds_composed.xml")))


class Composed:
    """All nodes in this process, an executor and a thread each. They share their faults: who dies ends all.

    Only the simulated robot is a process of its own, as a real one is: its drawing would take the pipeline's time.
    """

    def __init__(self, names: list[str], ros_args: list[str]) -> None:
        self._robot = Separate([name for name in names if name == "sim_robot"], ros_args)
        self._spinners = [Spinner(ALL[name]()) for name in names if name != "sim_robot"]

    def check(self) -> None:
        """Raise BringupError if a node has died."""
        for spinner in self._spinners:
            if not spinner.alive:
                raise BringupError(f"{spinner.node.get_name()} died: {spinner.error!r}") from spinner.error
        self._robot.check()

    check_once_up = check

    def met(self, topics: Container[str]) -> bool:
        """Whether the nodes of this process have found who is at the other end of these topics (full names)."""
        return all(spinner.node.met(topics) for spinner in self._spinners)

    def respawn(self, missing: Mapping[str, float]) -> list[str]:
        return []

    def close(self) -> None:
        self._robot.close()
        for spinner in reversed(self._spinners):
            spinner.close()


class Separate:
    """A process per node, as a launch file would start them."""

    def __init__(self, names: list[str], ros_args: list[str]) -> None:
        self._ros_args = ros_args
        self.children = {name: spawn(name, ros_args) for name in names}

    def check(self) -> None:
        """Raise BringupError if a node has died."""
        for name, child in self.children.items():
            if child.poll() is not None:
                raise BringupError(f"{name} died with exit code {child.returncode}")

    def check_once_up(self) -> None:
        """Who dies from then on is started again."""

    def respawn(self, missing: Mapping[str, float]) -> list[str]:
        """Start ended processes again, and such as stand still (``missing`` since when, monotonic): their names."""
        for name, since in missing.items():
            if time.monotonic() - since > STANDSTILL:
                os.killpg(self.children[name].pid, signal.SIGKILL)
                self.children[name].wait()
        ended = [name for name, child in self.children.items() if child.poll() is not None]
        self.children |= {name: spawn(name, self._ros_args) for name in ended}
        return ended

    def close(self) -> None:
        for child in reversed(self.children.values()):
            stop(child)


def spawn(name: str, args: list[str]) -> subprocess.Popen[bytes]:
    """Start a node's executable in a session of its own, so that Ctrl-C reaches it once and through us."""
    command = [sys.executable, "-m", f"sage_ros.nodes.{name}", *args]
    return subprocess.Popen(command, start_new_session=True, env=os.environ | {PARENT: str(os.getpid())})


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
        if options.large_images:
            os.environ[profiles_variable()] = str(share("config", "fastdds.xml"))
        share_process()
        params_file = options.params_file or str(share("config", "pick_place.yaml"))
        with ExitStack() as stack:
            overrides = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="sage_ros_", suffix=".yaml"))
            yaml.safe_dump(parameters(options), overrides)
            overrides.flush()
            user_args = argv[argv.index("--ros-args") :] if "--ros-args" in argv else []
            return _run(options, _ros_args(options, [params_file, overrides.name]) + user_args, stack)
    except (BringupError, CheckpointError, FileNotFoundError) as error:
        print(f"pick_place: {error}", file=sys.stderr)
        return 1


def _ros_args(options: argparse.Namespace, params_files: list[str]) -> list[str]:
    """What every node is started with; a later parameter file goes over an earlier one."""
    ros_args = ["--ros-args"]
    for path in params_files:
        ros_args += ["--params-file", path]
    ros_args += ["-r", f"__ns:=/{options.namespace.strip('/')}"] if options.namespace else []
    # In a replay the robot was last told what the demonstrator told it: for those who plan and judge, nobody else.
    if options.source == "replay":
        for name in ("sage_policy", "trust_attention"):
            ros_args += ["-r", f"{name}:last_command:=demo/action"]
    return ros_args


def _run(options: argparse.Namespace, ros_args: list[str], stack: ExitStack) -> int:
    rclpy.init(args=ros_args, signal_handler_options=SignalHandlerOptions.NO)
    stack.callback(rclpy.try_shutdown)
    stopped = StopRequest()
    names = [*PIPELINE, *filter(None, [options.champions and "dreamer", SOURCES[options.source]])]
    if options.champions:
        Champions.found(options.champions, checkpoint_path(options.checkpoint))  # what the nodes come up with
    pipeline = Separate(names, ros_args) if options.processes else Composed(names, ros_args)
    stack.callback(pipeline.close)
    watcher = _watch(options, ros_args) if options.report else None
    if watcher is not None:
        stack.callback(stop, watcher)

    def check() -> None:
        pipeline.check()
        if stopped.is_set():
            raise BringupError("stopped while coming up")

    def ended() -> bool:
        return stopped.is_set() or (watcher is not None and watcher.poll() is not None)

    with Supervisor(names, namespace=options.namespace, check=check, respawn=pipeline.respawn) as supervisor:
        if watcher is not None:
            supervisor.meet("monitor")
        supervisor.up()
        if options.enable == "true" or (options.enable == "auto" and options.source == "sim"):
            supervisor.enable()
        print(f"pick_place: {', '.join(names)} are active", flush=True)
        supervisor.check = pipeline.check_once_up
        try:
            supervisor.run(ended)
            if watcher is not None:
                stop(watcher, patience=60.0)
        finally:
            supervisor.down()
    return watcher.returncode if watcher is not None else 0


def _watch(options: argparse.Namespace, ros_args: list[str]) -> subprocess.Popen[bytes]:
    until = ["--until-finished"] if options.source == "replay" and not options.loop else []
    until += ["--until-placed", str(options.longest)] if options.source == "sim" else []
    checkpoint = str(checkpoint_path(options.checkpoint))
    return spawn("monitor", ["--report", options.report, "--checkpoint", checkpoint, *until, *ros_args])


if __name__ == "__main__":
    sys.exit(main())
