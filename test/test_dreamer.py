"""The dreamer and the hot swap: it learns only while the robot dreams, and a new champion costs no tick."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from graph import Graph, stamps
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from sage_ros.core.trust import Calibration
from sage_ros.nodes.dreamer import Dreamer
from sage_ros.nodes.lifecycle import LATCHED, STREAM
from sage_ros.nodes.messages import joint_message, map_message, to_stamp
from sage_ros.nodes.sage_policy import SagePolicy
from sage_ros.nodes.trust_attention import TrustAttentionNode
from sage_ros.paths import CHECKPOINT, EPISODES
from sage_ros.policy.champions import Champions
from sage_ros.policy.checkpoint import load_checkpoint, save_checkpoint
from sage_ros.policy.manifest import INSIDE

STEPS = "--steps 100000 --batch-size 16 --save-every 5 --least 2"


def challenger(champions: Champions, shift: float = 0.05) -> Path:
    """A student like the champion whose chunks lie ``shift`` of an offset elsewhere."""
    old = load_checkpoint(champions.current)
    student = old.policy.student
    with torch.no_grad():
        student.head.bias += shift
    c = old.calibration
    wider = Calibration(c.momentum, c.variance, 2 * c.limit, c.relevance, c.rate)
    folder = champions.next()
    save_checkpoint(folder, student, old.manifest, old.normalization, wider, {}, "", old.folder / INSIDE)
    return folder


@pytest.fixture
def champions(tmp_path: Path) -> Champions:
    return Champions.found(tmp_path / "champions", CHECKPOINT)


def state(name: str) -> DiagnosticArray:
    """What the metabolic manager would say."""
    dream = name == "DREAM"
    values = {"learning": dream, "actuation": name == "WAKE", "vision_rate": 40.0, "policy_rate": 40.0}
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticArray(status=[DiagnosticStatus(message=name, values=pairs)])


class Dreaming:
    """The dreamer, somebody who says which state it is, and what the dreamer says of itself."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.probe = graph, graph.probe
        self.states = graph.probe.node.create_publisher(DiagnosticArray, "metabolic_state", LATCHED)
        self._diagnostics = graph.probe.listen(DiagnosticArray, "/diagnostics")
        graph.up()

    def say(self, name: str) -> float:
        self.states.publish(state(name))
        return time.monotonic()

    def values(self) -> dict[str, str]:
        said = [m.status[0] for m in self._diagnostics if m.status[0].name == "dreamer: pipeline"]
        return {pair.key: pair.value for pair in said[-1].values} if said else {}

    def until(self, condition: Callable[[dict[str, str]], object], what: str, again: str = "") -> dict[str, str]:
        """Wait for the dreamer to say so, repeating the state ``again`` as the manager does."""
        told = 0.0

        def holds() -> bool:
            nonlocal told
            if again and time.monotonic() - told > 1.0:
                told = self.say(again)
            return bool(condition(self.values()))

        self.probe.until(holds, what, 60.0)
        return self.values()


@pytest.fixture
def dreaming(champions: Champions) -> Iterator[Dreaming]:
    sessions = str(labelled(champions.folder.parent))
    parameters = {"champions": str(champions.folder), "sessions": sessions, "originals": sessions, "options": STEPS}
    parameters = {f"dreamer:{name}": value for name, value in parameters.items()}
    with Graph([Dreamer], parameters) as graph:
        yield Dreaming(graph)


def labelled(folder: Path) -> Path:
    """Eight of the package's episodes, as a recorder would leave them that was told that they succeeded."""
    shutil.copytree(EPISODES, folder / "sessions")
    lines = folder / "sessions" / "meta" / "episodes.jsonl"
    entries = [json.loads(line) | {"success": True} for line in lines.read_text().splitlines()]
    lines.write_text("".join(json.dumps(entry) + "\n" for entry in entries[:8]))
    return folder / "sessions"


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_it_learns_only_while_the_robot_dreams_and_wakes_soon(
    dreaming: Dreaming, champions: Champions
) -> None:
    dreaming.say("REST")
    dreaming.until(lambda v: v.get("last"), "diagnostics")
    assert "dream_pid" not in dreaming.values()
    said = dreaming.until(lambda v: int(v.get("steps", 0)) >= 5, "steps", again="DREAM")
    pid = int(said["dream_pid"])
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.nice(0) + 19)
    since = dreaming.say("WAKE")
    dreaming.probe.until(lambda: not alive(pid), "the dream's end", 5.0)
    assert time.monotonic() - since < 3.0  # far less where two cores have not more to do than they can
    before = champions.dreamt
    assert before >= 5 and champions.champion == "000000"

    # The next dream goes on where this one was killed
    said = dreaming.until(lambda v: int(v.get("steps", 0)) > before, "more steps", again="DREAM")
    pid = int(said["dream_pid"])
    assert said["dreams_broken_off"] == "1"
    dreaming.until(lambda v: "dream_pid" not in v, "its end where the manager says nothing any more")
    assert not alive(pid)


def test_a_dream_that_cannot_be_is_told_and_not_begun_again(champions: Champions, tmp_path: Path) -> None:
    parameters = {"dreamer:champions": str(champions.folder), "dreamer:sessions": str(tmp_path / "none")}
    with Graph([Dreamer], parameters) as graph:
        dreaming = Dreaming(graph)
        said = dreaming.until(lambda v: v.get("dreams_failed"), "a failure", again="DREAM")
        assert "none" in said["last"] and said["dreams_begun"] == "1"


class Stream:
    """Frames at 50 Hz for sage_policy and trust_attention, answered or not."""

    def __init__(self, graph: Graph) -> None:
        self.probe = graph.probe
        student = load_checkpoint(CHECKPOINT)
        self._names = student.state_joints.names
        self._tokens = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
        self.actions = self.probe.listen(JointTrajectory, "action")
        self._frames = self.probe.publisher(Image, "vision/tokens", STREAM)
        self._joints = self.probe.publisher(JointState, "joint_states")
        self.probe.publisher(String, "task", LATCHED).publish(String(data="pick up the red cube"))
        self._metabolism = self.probe.publisher(DiagnosticArray, "metabolic_state", LATCHED)
        self._metabolism.publish(state("WAKE"))
        self.sent: list[int] = []

    def send(self, count: int) -> None:
        for _ in range(count):
            due = time.monotonic() + 0.02
            now = self.probe.node.get_clock().now().nanoseconds
            header = Header(stamp=to_stamp(now))
            self._joints.publish(joint_message(self._names, np.zeros(6), header))
            self._frames.publish(map_message(self._tokens, header))
            self.sent.append(now)
            self.probe.until(lambda due=due: time.monotonic() >= due, "the next frame")

    def answered(self) -> np.ndarray:
        """The first joint of every chunk, once all frames are answered."""
        self.probe.until(lambda: stamps(self.actions) == self.sent, "an action for every frame, in order")
        return np.array([action.points[0].positions[0] for action in self.actions])


@pytest.fixture
def stream(champions: Champions, tmp_path: Path) -> Iterator[Stream]:
    parameters = {
        f"{node}:{name}": value for node, name, value in (
            ("sage_policy", "checkpoint", str(champions.current)),
            ("trust_attention", "checkpoint", str(champions.current)),
            ("dreamer", "champions", str(champions.folder)), ("dreamer", "sessions", str(tmp_path)),
        )
    }  # fmt: skip
    with Graph([Dreamer, SagePolicy, TrustAttentionNode], parameters) as graph:
        graph.up()
        yield Stream(graph)


def test_a_new_champion_and_a_rollback_are_in_use_without_a_missed_tick(
    stream: Stream, champions: Champions
) -> None:
    diagnostics = stream.probe.listen(DiagnosticArray, "/diagnostics")

    def in_use(name: str) -> bool:
        said = [m.status[0] for m in diagnostics if m.status[0].name == "dreamer: pipeline"]
        return any(pair.key == "in_use" and pair.value == name for pair in said[-1].values) if said else False

    stream.send(30)
    old = stream.answered()
    champions.promote(challenger(champions), {"reason": "made for this test"})
    while not in_use("000001"):
        stream.send(10)
    stream.send(10)
    now = stream.answered()
    assert not np.allclose(now[-1], old[-1])
    answer = stream.probe.call(Trigger, "dreamer/rollback")
    assert answer.success and "000000 is the champion again" in answer.message
    while not in_use("000000"):
        stream.send(10)
    stream.send(10)
    assert np.allclose(stream.answered()[-1], old[-1])
    answer = stream.probe.call(Trigger, "dreamer/rollback")
    assert not answer.success and "is the first champion" in answer.message


def test_a_checkpoint_that_does_not_fit_is_refused_in_words(stream: Stream, champions: Champions) -> None:
    folder = challenger(champions)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rate": 20.0', '"rate": 10.0'))
    champions.promote(folder, {"reason": "made for this test"})
    answer = stream.probe.call(Trigger, "sage_policy/load")
    assert not answer.success
    assert "000000 stays" in answer.message and "rows per second would be 10.0, not 20.0" in answer.message
    stream.send(5)
    stream.answered()
