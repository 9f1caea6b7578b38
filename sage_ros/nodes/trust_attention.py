"""trust_attention: token maps in, attended tokens out, with what is trusted, looked at and surprising."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image
from std_msgs.msg import Float32, Header

from sage_ros.core.options import option
from sage_ros.core.timing import News
from sage_ros.core.trust import Attention, Calibration, TrustAttention, TrustConfig, narrowed
from sage_ros.nodes.hot_swap import HotSwap
from sage_ros.nodes.lifecycle import STREAM, SageNode, Status, run
from sage_ros.nodes.messages import MessageError, map_from, map_message, nanoseconds
from sage_ros.policy.checkpoint import Checkpoint


@dataclass(frozen=True)
class TrustNodeConfig(TrustConfig):
    checkpoint: str = option("", "student checkpoint that holds the calibration; empty: the one in the package")


class TrustAttentionNode(SageNode):
    """vision/tokens -> attention/tokens (N, F), attention/confidence, and maps in the grid's shape: attention/weights
    (as broad as the metabolic state allows), trust, surprise.
    """

    Config = TrustNodeConfig
    config: TrustNodeConfig
    live = frozenset({"threshold", "forgetting", "adopt_after", "gap"})

    def __init__(self, **kwargs: object) -> None:
        super().__init__("trust_attention", **kwargs)
        self._latest: Attention | None = None
        self._next: Calibration | None = None  # what the next frame is attended to with
        self._last_stamp: int | None = None
        self._messages: dict[str, Image] = {}  # by topic, to be filled anew

    def setup(self) -> None:
        swap = HotSwap(self, self.config.checkpoint, self._take)
        self._grid = swap.checkpoint.grid
        self._filter, self._next = TrustAttention(swap.checkpoint.calibration, self.config), None
        self.clear()
        topics = ("attention/tokens", "attention/weights", "trust", "surprise")
        self._outputs = {topic: self.publish_on(Image, topic, STREAM) for topic in topics}
        self._confidence, self._news = self.publish_on(Float32, "attention/confidence"), News()
        self._hear = self.hears("vision/tokens", lambda pace: pace.looks)
        self.listen(Image, "vision/tokens", self._on_tokens, STREAM)
        self.listen_to_metabolism(lambda pace: None)

    def _take(self, checkpoint: Checkpoint) -> None:
        """Attend to frames with this one's calibration from the next on; see HotSwap."""
        self._next = checkpoint.calibration

    def changed(self) -> None:
        self._filter.config = self.config

    def stop(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._last_stamp, self._latest = None, None
        self._filter.reset()

    def _on_tokens(self, message: Image) -> None:
        self.counts["frames_in"] += 1
        self._hear(message.header.stamp)
        stamp = nanoseconds(message.header.stamp)
        elapsed = 0.0 if self._last_stamp is None else (stamp - self._last_stamp) / 1e9
        if self._last_stamp is not None and elapsed <= 0:
            self.counts["out_of_order"] += 1
            return
        if self._next is not None:
            self._filter.recalibrate(self._next)
            self._next = None
        try:
            with self.watch.span():
                self._latest = attention = self._filter.update(map_from(message), elapsed)
        except (MessageError, ValueError) as problem:
            self.counts["refused"] += 1
            return self.complain(problem)
        self._last_stamp = stamp
        self._publish("attention/tokens", attention.tokens, message.header)
        self._publish("surprise", attention.surprise.reshape(self._grid), message.header)
        self._publish("trust", attention.trust.reshape(self._grid), message.header)
        weights = narrowed(attention.weights, self.pace.breadth)
        self._publish("attention/weights", weights.reshape(self._grid), message.header)
        if self._news.due(attention.confidence, stamp):
            self._confidence.publish(Float32(data=attention.confidence))
        self.counts["frames_out"] += 1

    def _publish(self, topic: str, values: np.ndarray, header: Header) -> None:
        publisher = self._outputs[topic]
        if publisher.get_subscription_count():  # else the time is better spent by the policy
            self._messages[topic] = map_message(values, header, self._messages.get(topic))
            publisher.publish(self._messages[topic])

    def status(self) -> Status:
        if self._latest is None:
            return DiagnosticStatus.OK, "no tokens yet", {}
        a = self._latest
        figures: dict[str, object] = {"confidence": f"{a.confidence:.3f}", "surprise_max": f"{a.surprise.max():.3f}"}
        level = DiagnosticStatus.WARN if a.confidence < 0.5 else DiagnosticStatus.OK
        line = f"confidence {a.confidence:.2f}, {(a.trust < 0.5).sum()} of {a.trust.size} tokens distrusted"
        return level, line, figures


def main(args: list[str] | None = None) -> int:
    return run(TrustAttentionNode, args)


if __name__ == "__main__":
    sys.exit(main())
