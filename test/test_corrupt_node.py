"""The node between camera, joints and pipeline: what it hands on, with which stamps, and from when on it spoils."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from graph import Graph, stamps
from rclpy.parameter import Parameter
from rig import LOSSLESS
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header

from sage_ros.core.timing import SECOND
from sage_ros.corruption import Corruption, CorruptionConfig
from sage_ros.nodes.corrupt import Corrupt
from sage_ros.nodes.messages import image_message, joint_message, rgb_from, to_stamp

STEP = SECOND // 20
NAMES = ["a", "b", "c"]


class Relay:
    """Messages through the node, one at a time, and what came of each."""

    def __init__(self, graph: Graph) -> None:
        self.probe, self.node = graph.probe, graph.nodes[0]
        self.images: list[Image] = self.probe.listen(Image, "image_raw", LOSSLESS)
        self.states: list[JointState] = self.probe.listen(JointState, "joint_states", LOSSLESS)
        self._camera = self.probe.publisher(Image, "clean/image_raw", LOSSLESS)
        self._robot = self.probe.publisher(JointState, "clean/joint_states", LOSSLESS)
        outputs = (self.node._images, self.node._states)
        self.probe.until(lambda: all(out.get_subscription_count() for out in outputs), "who listens")
        self.probe.until(lambda: self.node._camera.get_publisher_count(), "the camera")

    def show(self, row: int, message: Image | None = None) -> Image:
        before, sent = self.node.counts["frames_in"], message or picture(row)
        self._camera.publish(sent)
        self.probe.until(lambda: self.node.counts["frames_in"] > before, "the frame")
        return sent

    def report(self, row: int, message: JointState | None = None) -> JointState:
        before, sent = len(self.states), message or state(row)
        self._robot.publish(sent)
        self.probe.until(lambda: len(self.states) > before, "the joints")
        return sent

    def set(self, **values: Any) -> None:
        result = self.node.set_parameters_atomically([Parameter(name, value=value) for name, value in values.items()])
        assert result.successful, result.reason


def picture(row: int) -> Image:
    frame = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3) + row
    return image_message(frame.astype(np.uint8), Header(stamp=to_stamp(SECOND + row * STEP), frame_id="front"))


def state(row: int) -> JointState:
    message = joint_message(NAMES, np.arange(3) + row / 10, Header(stamp=to_stamp(SECOND + row * STEP)))
    message.velocity = [1.0, 2.0, 3.0]
    return message


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Graph([Corrupt], {"corrupt:seed": 5}) as graph:
        yield Relay(graph.up())


def test_it_is_transparent_until_told_then_spoils_as_the_pure_part_does_and_keeps_stamps(relay: Relay) -> None:
    sent = [relay.show(row) for row in range(3)] + [relay.report(row) for row in range(3)]
    relay.probe.until(lambda: len(relay.images) == 3, "the frames")
    assert relay.images + relay.states == sent

    relay.set(kind="noise", severity=5, begin=0.1)
    twin = Corruption(CorruptionConfig("noise", 5, 5, 0.1))
    for row in range(3, 8):
        relay.show(row)
        expected = twin.frame(SECOND + row * STEP, rgb_from(picture(row)))
        relay.probe.until(lambda row=row: len(relay.images) > row, "the frame")
        np.testing.assert_array_equal(rgb_from(relay.images[row]), expected)
        assert relay.images[row].header == picture(row).header
        assert (relay.images[row] == picture(row)) == (row < 5), "it begins 0.1 s after the first frame"
    assert relay.report(8) == relay.states[-1], "nobody touches the joints"

    relay.set(kind="none")
    sent = [relay.show(8)]
    relay.probe.until(lambda: len(relay.images) == 9, "the frame")
    assert relay.images[8] == sent[0]


def test_frames_that_are_dropped_never_come_and_are_counted(relay: Relay) -> None:
    relay.set(kind="frame_drop", severity=3)
    twin = Corruption(CorruptionConfig("frame_drop", 3, 5))
    kept = [row for row in range(30) if twin.frame(SECOND + row * STEP, rgb_from(picture(row))) is not None]
    for row in range(30):
        relay.show(row)
    relay.probe.until(lambda: len(relay.images) >= len(kept), "the frames")
    assert stamps(relay.images) == [SECOND + row * STEP for row in kept]
    diagnostics = relay.probe.listen(DiagnosticArray, "/diagnostics")
    relay.probe.until(lambda: diagnostics, "diagnostics")
    status = diagnostics[0].status[0]
    values = {pair.key: pair.value for pair in status.values}
    assert (values["frames_in"], values["frames_hit"]) == ("30", str(30 - len(kept)))
    assert status.message == "frame_drop:3 now" and status.level == b"\x01"


def test_stuck_joints_report_no_speed_and_begin_with_a_frame(relay: Relay) -> None:
    relay.set(kind="stuck_joints", severity=5)
    for row in range(3):
        assert relay.report(row) == relay.states[-1], "no frame yet"
    relay.show(3)
    relay.report(3)
    relay.report(4)
    assert relay.states[-1].position == state(3).position and relay.states[-1].name == NAMES
    assert list(relay.states[-1].velocity) == [0.0] * 3 and relay.states[-1].header == state(4).header


def test_what_cannot_be_read_goes_on_as_it_is(relay: Relay) -> None:
    relay.set(kind="blur")
    relay.show(0)
    broken = picture(1)
    broken.encoding = "nonsense8"
    relay.show(1, broken)
    relay.probe.until(lambda: len(relay.images) == 2, "the frames")
    assert relay.images[1] == broken and relay.node.counts["frames_unread"] == 1
    relay.set(kind="biased_joints")
    relay.show(2)
    unnamed = state(2)
    unnamed.name = NAMES[:2]
    assert relay.report(2, unnamed) == relay.states[-1]
    assert relay.node.counts["joints_unread"] == 1


def test_a_setting_that_cannot_be_is_refused(relay: Relay) -> None:
    for name, value in (("kind", "fog"), ("severity", 6), ("begin", -1.0)):
        assert not relay.node.set_parameters([Parameter(name, value=value)])[0].successful
    assert relay.node.config == CorruptionConfig(seed=5)
