"""trust_attention: token maps in, attended tokens out, with what is trusted, looked at and surprising."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Float32, Header

from sage_ros.core.history import recall
from sage_ros.core.options import option
from sage_ros.core.pace import Pace
from sage_ros.core.timing import SECOND, News, StampBuffer
from sage_ros.core.trust import Attention, Calibration, TrustAttention, TrustConfig, narrowed
from sage_ros.nodes.hot_swap import HotSwap
from sage_ros.nodes.lifecycle import RELIABLE, STREAM, SageNode, Status
from sage_ros.nodes.messages import (
    MessageError,
    image_message,
    joint_message,
    map_from,
    map_message,
    nanoseconds,
    rgb_from,
)
from sage_ros.nodes.pairing import keep
from sage_ros.nodes.process import run
from sage_ros.pixels import overlay
from sage_ros.policy.checkpoint import Checkpoint

LOOKED = 0.5  # s between looks whether somebody watches the overlay


@dataclass(frozen=True)
class TrustNodeConfig(TrustConfig):
    joint_tolerance: float = option(0.1, "oldest joint state that may go with a frame (s)", low=0.001, high=10.0)
    checkpoint: str = option("", "student checkpoint that holds the calibration; empty: the one in the package")


class TrustAttentionNode(SageNode):
    """vision/tokens, joint_states, last_command -> attention/tokens (N, F); attention/joint_states, the joints as far
    as they are trusted; attention/confidence; and maps in the grid's shape: attention/weights (as broad as the
    metabolic state allows), trust, surprise; attention/overlay shows both on the picture, while somebody looks.

    Joints and commands go with a frame by stamp (see ``StampBuffer``); where they are missing or unusable, the frame
    is judged without them. What the sources are trusted, and why not, is in ``/diagnostics``.
    """

    Config = TrustNodeConfig
    config: TrustNodeConfig
    live = frozenset({"threshold", "forgetting", "adopt_after", "gap", "cross_check", "adaptive", "joint_tolerance"})

    def __init__(self, **kwargs: object) -> None:
        super().__init__("trust_attention", **kwargs)
        self._latest: Attention | None = None
        self._next: Calibration | None = None  # what the next frame is attended to with
        self._last_stamp: int | None = None
        self._refused = ""  # why the last token map was not taken; empty: it was
        self._joints: StampBuffer[np.ndarray] = StampBuffer(512)
        self._commands: StampBuffer[np.ndarray] = StampBuffer(512)
        self._pictures: StampBuffer[Image] = StampBuffer(8)  # for the overlay
        self._messages: dict[str, Image] = {}  # by topic, to be filled anew

    def setup(self) -> None:
        swap = HotSwap(self, self.config.checkpoint, self._take)
        checkpoint = swap.checkpoint
        self._grid, self._rate = checkpoint.grid, checkpoint.rate
        self._state_joints, self._action_joints = checkpoint.state_joints, checkpoint.action_joints
        self._filter, self._next = TrustAttention(checkpoint.calibration, self.config), None
        self.clear()
        topics = ("attention/tokens", "attention/weights", "trust", "surprise")
        self._outputs = {topic: self.publish_on(Image, topic, STREAM) for topic in topics}
        self._confidence, self._news = self.publish_on(Float32, "attention/confidence"), News()
        self._attended = self.publish_on(JointState, "attention/joint_states", RELIABLE)
        self._overlay = self.publish_on(Image, "attention/overlay", STREAM)
        self.listen_while(lambda pace: pace.looks and self._watched, Image, "image_raw", self._on_image, STREAM)
        self.every(LOOKED, self.follow_pace, clock=self.steady)
        self._hear = self.hears("vision/tokens", lambda pace: pace.looks)
        self.listen(Image, "vision/tokens", self._on_tokens, STREAM)
        if checkpoint.calibration.checks is None:
            lacks = f"{checkpoint.folder} has no checks of camera, joints and commands against each other"
            self.get_logger().warning(f"{lacks}: a frozen camera and biased joints go unseen; `calibrate` makes them")
        for topic, callback in (("joint_states", self._on_joints), ("last_command", self._on_command)):
            self.listen_while(lambda pace: pace.looks, JointState, topic, callback, RELIABLE)
        self.listen_to_metabolism(self._on_pace)

    def _take(self, checkpoint: Checkpoint) -> None:
        """Attend to frames with this one's calibration from the next on; see HotSwap."""
        self._next = checkpoint.calibration

    def changed(self) -> None:
        self._filter.config = self.config

    def stop(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._last_stamp, self._latest, self._refused = None, None, ""
        self._joints.clear()
        self._commands.clear()
        self._pictures.clear()
        self._filter.reset()

    def _on_pace(self, pace: Pace) -> None:
        self._filter.period = 1.0 / pace.vision_rate if pace.looks else 0.0

    def _on_joints(self, message: JointState) -> None:
        self.counts["joints_in"] += 1
        keep(self, self._joints, self._state_joints, message, "joints_refused")

    def _on_command(self, message: JointState) -> None:
        keep(self, self._commands, self._action_joints, message, "joints_refused")

    def _on_tokens(self, message: Image) -> None:
        self.counts["frames_in"] += 1
        self._hear(message.header.stamp)
        stamp = nanoseconds(message.header.stamp)
        elapsed = 0.0 if self._last_stamp is None else (stamp - self._last_stamp) / 1e9
        if elapsed < -self.config.gap:  # no frame is as late: the stream has begun anew
            self.get_logger().info(f"frames went back by {-elapsed:.1f} s: forgetting the stream so far")
            self.counts["began_anew"] += 1
            self.clear()
            elapsed = 0.0
        if self._last_stamp is not None and elapsed <= 0:
            self.counts["out_of_order"] += 1
            return
        if self._next is not None:
            self._filter.recalibrate(self._next)
            self._next = None
        try:
            with self.watch.span():
                self._latest = attention = self._filter.update(map_from(message), elapsed, *self._known(stamp))
        except (MessageError, ValueError) as problem:
            self.counts["refused"] += 1
            self._refused = str(problem)
            return self.complain(problem)
        self._last_stamp, self._refused = stamp, ""
        # Before the tokens, which the policy answers with what it has by then
        weights = narrowed(attention.weights, self.pace.breadth)
        self._publish("attention/weights", weights.reshape(self._grid), message.header)
        if attention.state is not None:
            self._attended.publish(joint_message(self._state_joints.names, attention.state, message.header))
        self._publish("attention/tokens", attention.tokens, message.header)
        self._publish("surprise", attention.surprise.reshape(self._grid), message.header)
        self._publish("trust", attention.trust.reshape(self._grid), message.header)
        if self._news.due(attention.confidence, stamp):
            self._confidence.publish(Float32(data=attention.confidence))
        self._show(stamp, attention, weights)
        self.counts["frames_out"] += 1

    @property
    def _watched(self) -> bool:
        """Whether somebody looks at the overlay: only then is the camera listened to."""
        return self._overlay.get_subscription_count() > 0

    def _on_image(self, message: Image) -> None:
        self._pictures.add(nanoseconds(message.header.stamp), message)

    def _show(self, stamp: int, attention: Attention, weights: np.ndarray) -> None:
        picture = self._pictures.at(stamp, 0) if self._watched else None
        if picture is None:
            return
        try:
            drawn = overlay(rgb_from(picture), weights.reshape(self._grid), attention.trust.reshape(self._grid))
        except MessageError as problem:
            return self.complain(problem)
        self._overlay.publish(image_message(drawn, picture.header))

    def _known(self, stamp: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Joints (S,) and commands (DELAYS, A) that go with a frame, as far as anybody knows."""
        tolerance = int(self.config.joint_tolerance * SECOND)
        state = self._joints.at(stamp, tolerance)
        if state is None:
            return None, None
        began, widths = stamp - SECOND, (len(self._action_joints), len(state))
        past = recall(self._commands, self._joints, stamp, began, self._rate, widths, (SECOND // 5, tolerance))
        return state, past.commands

    def _publish(self, topic: str, values: np.ndarray, header: Header) -> None:
        publisher = self._outputs[topic]
        if publisher.get_subscription_count():  # else the time is better spent by the policy
            self._messages[topic] = map_message(values, header, self._messages.get(topic))
            publisher.publish(self._messages[topic])

    def status(self) -> Status:
        if self._refused:
            return DiagnosticStatus.WARN, f"tokens refused: {self._refused}", {}
        if self._latest is None:
            return DiagnosticStatus.OK, "no tokens yet", {}
        a = self._latest
        figures: dict[str, object] = {"confidence": f"{a.confidence:.3f}", "surprise_max": f"{a.surprise.max():.3f}"}
        figures |= {f"trust_{name}": f"{trust:.3f}" for name, trust in a.sources.items()}
        figures |= {f"surprise_{name}": f"{surprise:.3f}" for name, surprise in a.surprises.items()}
        level = DiagnosticStatus.WARN if a.confidence < 0.5 else DiagnosticStatus.OK
        line = f"confidence {a.confidence:.2f}, {(a.trust < 0.5).sum()} of {a.trust.size} tokens distrusted"
        if doubted := [name for name, trust in a.sources.items() if trust < 0.5]:
            line += f"; not trusted: {', '.join(doubted)} ({self._filter.why})"
        return level, line, figures


def main(args: list[str] | None = None) -> int:
    return run(TrustAttentionNode, args)


if __name__ == "__main__":
    sys.exit(main())
