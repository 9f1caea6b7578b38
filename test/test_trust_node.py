"""trust_attention on topics: frames, joints and commands that go together by stamp, and what is shown of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from graph import Graph
from rclpy.clock import ClockType
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
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

    def show(self, row: float, answered: bool = True, tokens: np.ndarray | None = None) -> None:
        before, heard = len(self.attended), self.node.counts["frames_in"]
        self.tokens.publish(map_message(self.map if tokens is None else tokens, self.header(row)))
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


def test_frames_that_go_back_by_seconds_begin_a_new_stream_with_its_own_joints(bench: Bench) -> None:
    for row in (1000, 1001):
        bench.feel(row)
        bench.probe.until(lambda row=row: bench.node.counts["joints_in"] == row - 999, "the joints")
        bench.show(row)
    bench.probe.until(lambda: len(bench.felt) == 2, "joints that are trusted")
    bench.show(995, answered=False)
    assert bench.node.counts["out_of_order"] == 1, "a quarter of a second late is late"
    bench.show(0)
    assert bench.node.counts["began_anew"] == 1 and bench.attended[-1].header.stamp == bench.header(0).stamp
    bench.feel(1)
    bench.probe.until(lambda: bench.node.counts["joints_in"] == 3, "the joints")
    bench.show(1)
    bench.probe.until(lambda: len(bench.felt) == 3, "joints of the new stream")
    assert bench.felt[-1].header.stamp == bench.header(1).stamp


def test_one_stamp_far_ahead_stops_nothing(bench: Bench) -> None:
    for row in (0, 1, 100_000, 2, 3):
        bench.show(row)
    assert bench.node.counts["out_of_order"] == 0 and bench.node.counts["frames_out"] == 5


def test_simulated_time_that_goes_back_begins_a_new_stream() -> None:
    with Graph([TrustAttentionNode], {"trust_attention:use_sim_time": True}) as graph:
        bench = Bench(graph.up())
        clock = bench.probe.publisher(Clock, "/clock")

        def at(row: float) -> bool:
            clock.publish(Clock(clock=bench.header(row).stamp))
            return bench.node.get_clock().now() == Time.from_msg(bench.header(row).stamp, ClockType.ROS_TIME)

        for row in (10, 4):  # less than makes a new stream by itself
            bench.probe.until(lambda row=row: at(row), "time")
            bench.show(row)
        assert bench.node.counts["out_of_order"] == bench.node.counts["began_anew"] == 0


def test_tokens_of_another_encoder_are_refused_in_words_until_its_own_come_again(bench: Bench) -> None:
    told = bench.probe.listen(DiagnosticArray, "/diagnostics")

    def says(level: bytes, words: str) -> bool:
        status = [s for message in told for s in message.status if s.name == "trust_attention: pipeline"]
        return bool(status) and status[-1].level == level and words in status[-1].message

    count, features = bench.map.shape
    bench.show(0)
    for row, shape in enumerate([(count, features + 1), (count - 1, features), (1, features)], 1):
        bench.show(row, answered=False, tokens=np.zeros(shape, np.float32))
        bench.probe.until(lambda shape=shape: says(DiagnosticStatus.WARN, f"tokens are {shape}"), "a word on it")
    bench.show(4, answered=False, tokens=np.full(bench.map.shape, np.nan, np.float32))
    assert bench.node.counts["refused"] == 4
    bench.show(5)
    bench.probe.until(lambda: says(DiagnosticStatus.OK, "confidence 1.00"), "all to be well again")
    assert np.allclose(map_from(bench.attended[-1]), bench.map)


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
