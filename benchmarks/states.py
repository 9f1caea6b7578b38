"""What a metabolic state changes in the live pipeline: compute and latency; and a simulated day.

live       the pipeline, a process per node, as a user starts it; the states by metabolic_manager's services:
  closed loop   the simulated robot (camera at 20 Hz, joints at 100 Hz), enabled, with a task: CPU of all nodes but the
                robot in WAKE and in REST; that of metabolic_manager itself in WAKE, that is, of its process without
                the middleware's own threads, which every process has (with them it is listed, too); and how long a
                robot that rests takes from the request to wake until the first action
  fast camera   frames of an episode at 60 Hz: WAKE (30 Hz) beside FOCUS (60 Hz). The age of an action is how old the
                picture is that the newest action goes by, on average over time: what a controller waits for
days       24 simulated hours each with tasks, faults, battery, heat and an operator (sage_ros/sim/day.py): worst of all
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import rclpy
import yaml
from harness import Bar, arguments, conclude
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from sage_ros.core.allowance import State, Table
from sage_ros.core.timing import SECOND
from sage_ros.episodes import EpisodeDataset
from sage_ros.nodes.lifecycle import LATCHED, RELIABLE, STREAM
from sage_ros.nodes.messages import image_message, joint_message, nanoseconds
from sage_ros.nodes.pick_place import PIPELINE
from sage_ros.nodes.process import Spinner
from sage_ros.paths import EPISODES, share
from sage_ros.sim.day import live_a_day

TICK = os.sysconf("SC_CLK_TCK")
SETTLE = 3.0  # s in a state before it is measured
FAST = 60.0  # Hz


# The pipeline, live


class Observer:
    """Hears the actions, and asks for states."""

    def __init__(self) -> None:
        self.node = Node("observer")
        self.actions: list[tuple[int, int]] = []  # arrival and stamp, ns
        self.node.create_subscription(JointTrajectory, "action", self._on_action, RELIABLE)
        self.tasks = self.node.create_publisher(String, "task", LATCHED)
        self._spinner = Spinner(self.node)

    def _on_action(self, message: JointTrajectory) -> None:
        self.actions.append((time.time_ns(), nanoseconds(message.header.stamp)))

    def ask(self, service: str) -> str:
        client = self.node.create_client(Trigger, f"metabolic_manager/{service}")
        if not client.wait_for_service(10.0):
            raise RuntimeError(f"no service metabolic_manager/{service}")
        done = threading.Event()
        future = client.call_async(Trigger.Request())
        future.add_done_callback(lambda _: done.set())
        if not done.wait(10.0):
            raise RuntimeError(f"no answer from metabolic_manager/{service}")
        self.node.destroy_client(client)
        return str(future.result().message)

    def age(self) -> float:
        """Mean over time of how old (ms) the newest action's picture is, of what came since the last call."""
        heard, self.actions = self.actions, []
        at = np.array(heard, dtype=np.float64) / 1e6
        fresh, old = at[:-1, 0] - at[:-1, 1], at[1:, 0] - at[:-1, 1]
        return float(((old**2 - fresh**2) / 2).sum() / (at[-1, 0] - at[0, 0]))

    def close(self) -> None:
        self._spinner.stop()
        self.node.destroy_node()


@contextmanager
def pipeline(source: str) -> Iterator[tuple[Observer, dict[str, int]]]:
    """A pipeline that is up, an observer, and the nodes' process ids. Raises RuntimeError if it does not come up."""
    command = [sys.executable, "-m", "sage_ros.nodes.pick_place", "--source", source, "--processes"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    rclpy.init()
    observer = Observer()
    try:
        assert process.stdout is not None
        if not any("are active" in line for line in process.stdout):
            raise RuntimeError("the pipeline did not come up: run `pick_place --processes` to see why")
        yield observer, {name: pid for pid, name in children(process.pid)}
    finally:
        observer.close()
        rclpy.shutdown()
        process.send_signal(signal.SIGINT)
        process.wait(60)


def children(parent: int) -> Iterator[tuple[int, str]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, line = (folder / "stat").read_text(), (folder / "cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if int(stat.rpartition(")")[2].split()[1]) == parent and "sage_ros.nodes." in line:
            yield int(folder.name), line.split("sage_ros.nodes.")[1].split("\0")[0]


def cpu(processes: dict[str, int], seconds: float) -> dict[str, float]:
    """Each process's CPU over ``seconds`` from now, in percent of a core, user and system."""

    def spent(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    before, begin = {name: spent(pid) for name, pid in processes.items()}, time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - begin
    return {name: 100 * (spent(pid) - before[name]) / elapsed for name, pid in processes.items()}


def own_threads(pid: int) -> float:
    """CPU (s) of a process without the middleware's own threads, which every node's process has."""
    tasks = [task for task in Path(f"/proc/{pid}/task").iterdir() if not (task / "comm").read_text().startswith("dds.")]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def in_state(observer: Observer, state: str, processes: dict[str, int], seconds: float) -> dict[str, float]:
    observer.ask(state)
    time.sleep(SETTLE)
    observer.actions.clear()
    before = own_threads(processes["metabolic_manager"])
    found = cpu({name: pid for name, pid in processes.items() if name in PIPELINE}, seconds)
    found["all"] = sum(found.values())
    found["manager_itself"] = 100 * (own_threads(processes["metabolic_manager"]) - before) / seconds
    print(f"  {state:<6}" + "".join(f"{name} {share:.1f} %  " for name, share in found.items()), flush=True)
    return found


def closed_loop(rounds: int, seconds: float) -> dict[str, float]:
    with pipeline("sim") as (observer, processes):
        time.sleep(SETTLE)
        wake, rest, waits = [], [], []
        for _ in range(rounds):
            wake.append(in_state(observer, "wake", processes, seconds))
            rest.append(in_state(observer, "rest", processes, seconds))
            observer.actions.clear()
            begin = time.time_ns()
            observer.ask("wake")
            while not observer.actions and time.time_ns() - begin < 5 * SECOND:
                time.sleep(0.001)
            waits.append((observer.actions[0][0] - begin) / 1e6 if observer.actions else float("inf"))
    figures = {f"wake_cpu_{name}": median(w[name] for w in wake) for name in (*PIPELINE, "all", "manager_itself")}
    figures |= {"rest_cpu_all": median(r["all"] for r in rest), "wakes_after_ms": median(waits)}
    figures["rest_over_wake"] = median(r["all"] / w["all"] for r, w in zip(rest, wake, strict=True))
    return figures


def fast_camera(rounds: int, seconds: float) -> dict[str, float]:
    camera = subprocess.Popen([sys.executable, __file__, "--camera"])
    try:
        with pipeline("camera") as (observer, processes):
            observer.tasks.publish(String(data=EpisodeDataset(EPISODES)[0].task))
            time.sleep(SETTLE)
            ages: dict[str, list[float]] = {"wake": [], "focus": []}
            loads: dict[str, list[float]] = {"wake": [], "focus": []}
            for _ in range(rounds):
                for state in ages:
                    loads[state].append(in_state(observer, state, processes, seconds)["all"])
                    ages[state].append(observer.age())
    finally:
        camera.send_signal(signal.SIGINT)
        camera.wait(10)
    figures = {f"{state}_action_age_ms": median(found) for state, found in ages.items()}
    figures |= {f"{state}_cpu_fast_camera": median(found) for state, found in loads.items()}
    pairs = zip(ages["focus"], ages["wake"], strict=True)
    return figures | {"focus_over_wake_action_age": median(focus / wake for focus, wake in pairs)}


def be_camera() -> int:
    """A camera at 60 Hz and joints at 120 Hz, out of an episode, forth and back, until Ctrl-C."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node, episode = Node("fast_camera"), EpisodeDataset(EPISODES)[0]
    images = node.create_publisher(Image, "image_raw", STREAM)
    joints = node.create_publisher(JointState, "joint_states", RELIABLE)
    frames, names = episode.frames(), episode.state_joints.names
    begin, message = time.monotonic(), None
    try:
        for tick in range(10**9):
            time.sleep(max(0.0, begin + tick / (2 * FAST) - time.monotonic()))
            place = int(tick / (2 * FAST) * episode.fps) % (2 * len(episode) - 2)
            row = min(place, 2 * len(episode) - 2 - place)
            header = Header(stamp=node.get_clock().now().to_msg())
            joints.publish(joint_message(names, episode.state[row], header))
            if tick % 2 == 0:
                message = image_message(frames[row], header, message)
                images.publish(message)
    except KeyboardInterrupt:
        return 0
    return 0


def days(count: int) -> dict[str, float]:
    table = Table.of(yaml.safe_load(share("config", "metabolism.yaml").read_text()))
    scarce = replace(table, store=replace(table.store, capacity=10.0, recharge=0.6 * table.states[State.WAKE].cost))
    lived = [live_a_day(kind, seed) for seed in range(count) for kind in (table, scarce)]
    worst: Callable[[str], Any] = lambda name: max(getattr(day, name) for day in lived)  # noqa: E731
    return {
        "days": len(lived), "days_dreamt_with_task_s": worst("dreamt_with_task"),
        "days_rested_moving": worst("rested_moving"),
        "days_busiest_minute_changes": worst("busiest_minute"), "days_longest_wait_s": worst("longest_wait"),
        "days_acted_forbidden_s": worst("acted_forbidden"), "days_tasks": sum(day.tasks for day in lived),
        "days_tasks_done": sum(day.done for day in lived),
    }  # fmt: skip


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of the live sessions (%(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="measured per state and round (%(default)s)")
    parser.add_argument("--days", type=int, default=5, help="of each table (%(default)s)")
    parser.add_argument("--camera", action="store_true", help="only be the fast camera of the live sessions")
    options = parser.parse_args()
    if options.camera:
        return be_camera()
    figures = closed_loop(options.rounds, options.seconds) | fast_camera(options.rounds, options.seconds)
    bars: dict[str, Bar] = {"rest_over_wake": ("<=", 0.2), "wake_cpu_manager_itself": ("<=", 1.0)}
    bars |= {"focus_over_wake_action_age": ("<=", 0.9), "wakes_after_ms": ("<=", 100.0)}
    figures |= days(options.days)
    bars |= {"days_dreamt_with_task_s": ("<=", 0.0), "days_rested_moving": ("<=", 0.0)}
    bars |= {"days_acted_forbidden_s": ("<=", 0.0), "days_longest_wait_s": ("<=", 10.0)}
    bars |= {"days_busiest_minute_changes": ("<=", 20.0)}
    conclude("states", figures, bars, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
