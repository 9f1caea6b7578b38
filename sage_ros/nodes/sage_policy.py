"""sage_policy: attended tokens, joint states, last command and task in; action chunks out."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float32, Header, String
from trajectory_msgs.msg import JointTrajectory

from sage_ros.core.chunks import ActionChunk, Observation
from sage_ros.core.execution import DOUBT, consistency
from sage_ros.core.history import recall
from sage_ros.core.options import check, option
from sage_ros.core.pace import Pace
from sage_ros.core.timing import SECOND, News, RateLimit, StampBuffer, Stopwatch
from sage_ros.nodes.hot_swap import HotSwap
from sage_ros.nodes.lifecycle import LATCHED, RELIABLE, STREAM, SageNode, Status
from sage_ros.nodes.messages import MessageError, map_from, nanoseconds, trajectory_message
from sage_ros.nodes.pairing import keep
from sage_ros.nodes.process import run
from sage_ros.policy.checkpoint import Checkpoint


@dataclass(frozen=True)
class PolicyConfig:
    checkpoint: str = option("", "student checkpoint folder; empty: the one in the package")
    device: str = option("cpu", "torch device: cpu, cuda or cuda:N")
    threads: int = option(1, "CPU threads of the student", low=1, high=64)
    joint_tolerance: float = option(0.1, "oldest joint state that may go with a frame (s)", low=0.001, high=10.0)
    command_memory: float = option(2.0, "how long a last command counts as such (s)", low=0.05, high=60.0)
    doubt: float = option(DOUBT, "disagreement with the last chunk that halves confidence (rad)", low=1e-6, high=1e6)

    def __post_init__(self) -> None:
        check(self)


class SagePolicy(SageNode):
    """attention/tokens, joint_states, task, last_command -> action (chunks), confidence (does it agree with itself?),
    and the same in steps: certainty.

    What trust_attention makes of the same frame counts where it comes: attention/joint_states instead of the measured
    ones, and the sum of attention/weights, how far the frame is trusted, as a factor of the confidence.

    A frame is answered with joints and command paired by stamp (see ``StampBuffer``). Input that is stale, not
    finite or lacks a joint gives no action, a warning and a count.
    """

    Config = PolicyConfig
    config: PolicyConfig
    live = frozenset({"joint_tolerance", "command_memory", "doubt"})

    def __init__(self, **kwargs: object) -> None:
        super().__init__("sage_policy", **kwargs)
        self._joints: StampBuffer[np.ndarray] = StampBuffer(512)
        self._commands: StampBuffer[np.ndarray] = StampBuffer(256)
        self._attended: StampBuffer[np.ndarray] = StampBuffer(16)  # joints, as far as they are trusted
        self._trusted: StampBuffer[float] = StampBuffer(16)
        self._task = ""
        self._began: int | None = None  # stamp of the task's first frame
        self._chunk: tuple[int, ActionChunk] | None = None  # with the stamp of its frame
        self._limit = RateLimit(float("inf"))
        self._swap: HotSwap | None = None
        self._latency = Stopwatch()  # from a frame's stamp to the publication of its action, by the node's clock

    def setup(self) -> None:
        torch.set_num_threads(self.config.threads)
        c = self.config
        self._swap = HotSwap(self, c.checkpoint, self._take, c.device, c.threads)
        checkpoint = self._swap.checkpoint
        self._rate, self._state_joints, self._action_joints = (
            checkpoint.rate, checkpoint.state_joints, checkpoint.action_joints)  # fmt: skip
        self._answer = trajectory_message(self._action_joints.names, _warm_up(checkpoint), Header())
        names = ", ".join(self._action_joints.names)
        self.get_logger().info(f"plans for {len(self._action_joints)} joints: {names}")
        self._actions = self.publish_on(JointTrajectory, "action", RELIABLE)
        self._confidence = self.publish_on(Float32, "confidence", RELIABLE)
        self._certainty, self._news = self.publish_on(Float32, "certainty", RELIABLE), News()
        self._hear = self.hears("attention/tokens", lambda pace: pace.plans)
        for kind, topic, callback, qos in (
            (Image, "attention/tokens", self._on_tokens, STREAM),
            (Image, "attention/weights", self._on_weights, STREAM),
            (JointState, "attention/joint_states", self._on_attended, RELIABLE),
            (JointState, "joint_states", self._on_joints, RELIABLE),
            (JointState, "last_command", self._on_command, RELIABLE),
        ):
            self.listen_while(lambda pace: pace.plans, kind, topic, callback, qos)
        self.listen(String, "task", self._on_task, LATCHED, always=True)
        self.listen_to_metabolism(self._on_metabolism)

    def _take(self, checkpoint: Checkpoint) -> None:
        """Answer frames with this one from the next on; see HotSwap."""
        _warm_up(checkpoint)
        self._policy = checkpoint.policy

    def stop(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._joints.clear()
        self._commands.clear()
        self._attended.clear()
        self._trusted.clear()
        self._chunk = self._began = None
        self._limit.reset()
        self._policy.reset()

    # Input

    def _on_metabolism(self, pace: Pace) -> None:
        self._limit.rate = pace.policy_rate

    def _on_task(self, message: String) -> None:
        if message.data != self._task:
            self._task, self._chunk, self._began = message.data, None, None
            self._commands.clear()
            self._policy.reset()

    def _on_joints(self, message: JointState) -> None:
        keep(self, self._joints, self._state_joints, message)

    def _on_attended(self, message: JointState) -> None:
        keep(self, self._attended, self._state_joints, message)

    def _on_weights(self, message: Image) -> None:
        try:
            self._trusted.add(nanoseconds(message.header.stamp), float(map_from(message).sum()))
        except MessageError as problem:
            self.counts["refused"] += 1
            self.complain(problem)

    def _on_command(self, message: JointState) -> None:
        keep(self, self._commands, self._action_joints, message)

    # Inference

    def _on_tokens(self, message: Image) -> None:
        self.counts["frames_in"] += 1
        self._hear(message.header.stamp)
        stamp = nanoseconds(message.header.stamp)
        if not self._task or self._limit.rate == 0:
            self.counts["idle"] += 1
            return
        if not self._limit.allows(stamp):
            self.counts["skipped_by_rate"] += 1
            return
        state = self._joints.at(stamp, int(self.config.joint_tolerance * SECOND))
        if state is None:
            self.counts["no_joints"] += 1
            return self.complain(f"no joint_states within {self.config.joint_tolerance} s before the frame: no action")
        memory = int(self.config.command_memory * SECOND)
        state = trusted if (trusted := self._attended.at(stamp, 0)) is not None else state
        command = self._commands.before(stamp, memory)
        self._began = stamp if self._began is None or stamp < self._began else self._began
        widths = len(self._action_joints), len(self._state_joints)
        tolerances = memory, int(self.config.joint_tolerance * SECOND)
        past = recall(self._commands, self._joints, stamp, self._began, self._rate, widths, tolerances)
        try:
            with self.watch.span():
                chunk = self._policy.infer(Observation(map_from(message), state, command, self._task, past))
        except (MessageError, ValueError) as problem:
            self.counts["refused"] += 1
            return self.complain(problem)
        agreement = consistency(stamp, chunk, self._chunk, self.config.doubt)
        certainty = chunk.confidence * agreement
        trust = self._trusted.at(stamp, int(self.config.joint_tolerance * SECOND))
        trust = 1.0 if trust is None else min(max(trust, 0.0), 1.0)
        self._confidence.publish(Float32(data=certainty * trust))
        if self._news.due(certainty, stamp):
            self._certainty.publish(Float32(data=certainty))
        self._chunk = (stamp, chunk)
        answer = trajectory_message(self._action_joints.names, chunk, message.header, self._answer)
        self._actions.publish(answer)
        self._latency.add((self.get_clock().now().nanoseconds - stamp) / SECOND)
        self.counts["actions_out"] += 1

    def status(self) -> Status:
        work = f"task '{self._task}'" if self._task else "no task"
        line, figures = f"{work}, {self.counts['actions_out']} chunks", dict[str, object]()
        if self._swap is not None:
            figures["checkpoint"] = self._swap.name
        if self._latency.spans:
            p50, p99 = (self._latency.milliseconds(quantile) for quantile in (0.5, 0.99))
            line += f", {p50:.1f} ms from image to action"
            figures |= {"latency_ms_p50": f"{p50:.3f}", "latency_ms_p99": f"{p99:.3f}"}
        return DiagnosticStatus.OK, line, figures


def _warm_up(checkpoint: Checkpoint) -> ActionChunk:
    """The first passes of a network cost many times the later ones: pay before frames come."""
    tokens = np.zeros((checkpoint.grid[0] * checkpoint.grid[1], checkpoint.features), dtype=np.float32)
    seen = Observation(tokens, np.zeros(len(checkpoint.state_joints)), None, "warm up")
    chunks = [checkpoint.policy.infer(seen) for _ in range(5)]
    return chunks[-1]


def main(args: list[str] | None = None) -> int:
    return run(SagePolicy, args)


if __name__ == "__main__":
    sys.exit(main())
