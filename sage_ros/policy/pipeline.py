"""What the nodes do, in one thread and without ROS: frame and joints in, chunk and set points out."""

from __future__ import annotations

from collections import deque

import numpy as np

from sage_ros.core.chunks import ActionChunk, ChunkPolicy, Observation
from sage_ros.core.execution import ExecutionConfig, consistency
from sage_ros.core.history import recall
from sage_ros.core.irp import Budget
from sage_ros.core.limits import JointLimits
from sage_ros.core.safety import SafetyConfig, SafetyFilter
from sage_ros.core.timing import SECOND, StampBuffer
from sage_ros.core.trust import TrustAttention
from sage_ros.policy.checkpoint import Checkpoint
from sage_ros.vision.encoder import Encoder


class Pipeline:
    """vision_irp, trust_attention, sage_policy and safety_filter, computed in no time; only ``latency`` (s) passes.

    Stamps are simulated time in ns. In each control tick call :meth:`tick`, then, if there is a frame, :meth:`see`: a
    frame acts from the next tick on, as it does through ROS.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        encoder: Encoder,
        limits: JointLimits,
        rate: float = 100.0,
        execution: ExecutionConfig | None = None,
        safety: SafetyConfig | None = None,
        latency: float = 0.0,
        trust: bool = True,
    ) -> None:
        """Without ``trust`` the policy gets the tokens as they are seen."""
        self.policy: ChunkPolicy = checkpoint.policy
        self.encoder, self.latency, self._rate = encoder, round(latency * SECOND), checkpoint.rate
        self.filter = SafetyFilter(limits, rate, safety, execution)
        self._names = list(limits.names)
        self._trust = TrustAttention(checkpoint.calibration) if trust else None
        self._times = [row / checkpoint.rate for row in range(1, checkpoint.horizon + 1)]

    def reset(self, task: str, state: np.ndarray, now: int) -> None:
        """A new episode: the arm stands at ``state`` (A,), and nothing is remembered."""
        self._task, self._stamp, self._began = task, now, now
        self._states: StampBuffer[np.ndarray] = StampBuffer(256)
        self._commands: StampBuffer[np.ndarray] = StampBuffer(256)
        self._pending: deque[tuple[int, int, np.ndarray, float]] = deque()  # until they arrive
        if self._trust is not None:
            self._trust.reset()
        self.policy.reset()
        self.trusted = 1.0  # how far the last picture was
        self._previous: tuple[int, ActionChunk] | None = None
        self.filter.disable()
        self.filter.motion.stop()
        self.filter.clear()
        self.filter.joints(now - 1, self._names, state, now, now / SECOND)  # the first frame brings newer ones
        if why_not := self.filter.enable(now / SECOND):
            raise RuntimeError(why_not)

    def feel(self, stamp: int, state: np.ndarray) -> None:
        """The joints (A,) of a moment without a frame."""
        self.filter.joints(stamp, self._names, state, stamp, stamp / SECOND)
        self._states.add(stamp, state)

    def see(self, stamp: int, frame: np.ndarray, state: np.ndarray) -> None:
        """A frame (H, W, 3) uint8 RGB and the joints (A,) of the same moment."""
        self.feel(stamp, state)
        tokens = self.encoder.refine(frame, Budget(0)).state
        command = self._commands.before(stamp, 2 * SECOND)
        past = recall(self._commands, self._states, stamp, self._began, self._rate,
                      (len(self._names), len(state)), (2 * SECOND, SECOND // 10))  # fmt: skip
        if self._trust is not None:
            attention = self._trust.update(tokens, (stamp - self._stamp) / SECOND, state, past.commands)
            tokens, self.trusted = attention.tokens, attention.confidence
            state = state if attention.state is None else attention.state
        self._stamp = stamp
        chunk = self.policy.infer(Observation(tokens, state, command, self._task, past))
        agreement = consistency(stamp, chunk, self._previous)
        sure = float(np.float32(chunk.confidence * agreement * min(self.trusted, 1.0)))  # as it travels
        self._previous = (stamp, chunk)
        self._pending.append((stamp + self.latency, stamp, chunk.positions, sure))
        self._deliver(stamp)

    def tick(self, now: int) -> np.ndarray:
        """The set point (A,) of this control tick; where the filter sends none, the pose that is held."""
        set_point = self.filter.tick(now, now / SECOND)
        if set_point is None:
            raise RuntimeError(f"the safety filter stopped: {self.filter.reason}")
        self._commands.add(now, set_point)
        self._deliver(now)  # what arrives in this tick acts from the next one on
        return set_point

    def _deliver(self, now: int) -> None:
        while self._pending and self._pending[0][0] <= now:
            _, stamp, positions, confidence = self._pending.popleft()
            self.filter.confide(confidence)
            self.filter.chunk(stamp, self._names, positions, self._times, now, now / SECOND)
