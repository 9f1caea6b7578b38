"""trust_attention on topics: frames, joints and commands that go together by stamp, and what is shown of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from graph import Graph
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header

from sage_ros.nodes.lifecycle import STREAM
from sage_ros.nodes.messages import image_message, joint_message, map_from, map_message, rgb_from, to_stamp
from sage_ros.nodes.trust_attention import TrustAttentionNode
from sage_ros.paths import CHECKPOINT
from sage_ros.pixels import overlay
from sage_ros.policy.checkpoint import load_checkpoint

START, ROW = 100_000_000_000, 50_000_000  # ns
CHECKS = load_checkpoint(CHECKPOINT)


class Bench:
    def __init__(self, graph: Graph) -> None:
        self.probe, (self.node,) = graph.probe, graph.nodes
        self.tokens = self.probe.publisher(Image, "vision/tokens", STREAM)
        self.joints = self.probe.publisher(JointState, "joint_states")
        self.attended = self.probe.listen(Image, "attention/tokens", STREAM)
        self.felt = self.probe.listen(JointState, "attention/joint_states")
        self.map = np.tile(CHECKS.normalization.tokens_mean, (CHECKS.config.tokens, 1)).astype(np.float32)

    def header(self, row: float) -> Header:
        return Header(stamp=to_stamp(START + round(row * ROW)))

    def show(self, row: float, answered: bool = True) -> None:
        before, heard = len(self.attended), self.node.counts["frames_in"]
        self.tokens.publish(map_message(self.map, self.header(row)))
        self.probe.until(lambda: self.node.counts["frames_in"] > heard, f"frame {row} to be heard")
        if answered:
            self.probe.until(lambda: len(self.attended) > before, f"the answer to frame {row}")

    def feel(self, row: float, names: tuple[str, ...] = CHECKS.state_joints.names) -> None:
        self.joints.publish(joint_message(names, np.zeros(len(names)), self.header(row)))


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Graph([TrustAttentionNode]) as graph:
        yield Bench(graph.up())


def test_late_repeated_and_reordered_frames_are_counted_and_left_out(bench: Bench) -> None:
    bench.show(0)
    bench.show(2)
    bench.show(2, answered=False)
    bench.show(1, answered=False)
    bench.show(3)
    assert bench.node.counts["out_of_order"] == 2 and len(bench.attended) == 3


def test_joints_go_with_a_frame_by_stamp_and_a_frame_without_them_is_judged_alone(bench: Bench) -> None:
    bench.show(0)
    assert bench.felt == []
    bench.feel(1)
    bench.probe.until(lambda: bench.node.counts["joints_in"] == 1, "the joints")
    bench.show(1)
    bench.probe.until(lambda: bench.felt, "the joints that go with the frame")
    assert bench.felt[0].header.stamp == bench.header(1).stamp
    bench.feel(2, ("stranger",))
    bench.probe.until(lambda: bench.node.counts["joints_refused"] == 1, "a refusal")
    bench.show(20)  # the joints of frame 1 are a second old
    assert len(bench.felt) == 1


def test_the_overlay_is_drawn_while_somebody_looks(bench: Bench) -> None:
    assert bench.probe.node.count_subscribers("image_raw") == 0
    shown = bench.probe.listen(Image, "attention/overlay", STREAM)
    images = bench.probe.publisher(Image, "image_raw", STREAM)  # which waits until the node looks
    frame = np.full((32, 48, 3), 200, np.uint8)
    row = 0

    def drawn() -> bool:
        nonlocal row
        row += 1
        images.publish(image_message(frame, bench.header(row)))
        bench.show(row)
        return bool(shown)

    bench.probe.until(drawn, "an overlay")
    picture = rgb_from(shown[0])
    assert picture.shape == frame.shape and (picture != frame).any()
    assert map_from(bench.attended[0]).shape == bench.map.shape


def test_an_overlay_is_bright_where_weight_lies_and_red_where_trust_is_low() -> None:
    frame = np.full((40, 40, 3), 100, np.uint8)
    weights, trust = np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [1.0, 0.0]])
    drawn = overlay(frame, weights, trust).astype(int)
    assert drawn[0, 0].tolist() == [100, 100, 100]
    assert drawn[0, -1].tolist() == [30, 30, 30]
    red, green, blue = drawn[-1, -1]
    assert red > 150 and green == blue < 20
