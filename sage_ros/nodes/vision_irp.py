"""vision_irp: camera frames in, token maps out, refined as far as the metabolic state allows and as it pays."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from sage_ros.core.irp import Budget, Refinement
from sage_ros.core.options import check, option
from sage_ros.core.pace import Pace
from sage_ros.core.timing import RateLimit, Stopwatch
from sage_ros.nodes.lifecycle import RELIABLE, STREAM, SageNode, Status
from sage_ros.nodes.messages import MessageError, map_from, map_message, nanoseconds, rgb_from
from sage_ros.nodes.process import run
from sage_ros.paths import checkpoint_path
from sage_ros.policy.checkpoint import load_checkpoint
from sage_ros.vision.encoder import load_encoder, pick_device
from sage_ros.vision.runtime import ENGINES, PRECISIONS, Runtime
from sage_ros.vision.stillness import Stillness

TOPICS = {"raw": (Image, "image_raw"), "compressed": (CompressedImage, "image_raw/compressed")}
# Deeper than STREAM, so that what is skipped for a newer frame can be counted.
FRAMES = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)


@dataclass(frozen=True)
class VisionConfig:
    checkpoint: str = option("", "student checkpoint whose encoder is used; empty: the one in the package")
    encoder: str = option("", "encoder by name instead of the checkpoint's, such as tiny_vae or clip")
    encoder_source: str = option("", "folder, hub name or package of that encoder's weights")
    transport: str = option("raw", "what is listened to: image_raw, or image_raw/compressed", choices=tuple(TOPICS))
    device: str = option("cpu", "torch device: cpu, cuda or cuda:N")
    runtime: str = option("auto", "what runs the encoder: torch, onnxruntime (CPU), or the faster one there is",
                          choices=ENGINES)  # fmt: skip
    precision: str = option("auto", "fp32; fp16 or bf16 (GPU); int8 (onnxruntime); or the fastest that stays close to "
                            "fp32", choices=PRECISIONS)  # fmt: skip
    gpu_memory: float = option(0.0, "most GPU memory that this process may allocate (GB); 0: all", low=0.0, high=1024.0)
    threads: int = option(1, "CPU threads of the encoder", low=1, high=64)
    refine_steps: int = option(-1, "refinement steps per frame; -1: as the metabolic state says", low=-1, high=100)
    refine_seconds: float = option(0.02, "wall-clock budget of one frame's refinement (s)", low=0.0001, high=10.0)
    refine_tolerance: float = option(0.01, "relative gain below which refinement stops", low=0.0, high=0.99)
    still: float = option(0.0, "change of colour (levels of 255) of any place up to which a frame counts as the last "
                          "encoded one, whose tokens then serve; 0: none does", low=0.0, high=255.0)  # fmt: skip
    still_longest: float = option(0.5, "longest time for which such tokens serve (s)", low=0.0, high=60.0)
    lag: float = option(0.01, "delay of the newest frame (s) up to which older ones that wait are encoded first; the "
                        "others are skipped", low=0.0, high=60.0)  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
        if bool(self.encoder) != bool(self.encoder_source):
            raise ValueError("encoder and encoder_source go together: give both or neither")

    @property
    def how(self) -> Runtime:
        return Runtime(self.runtime, self.precision, self.threads, self.gpu_memory)


class VisionIrp(SageNode):
    """image_raw (sensor_msgs/Image) or image_raw/compressed -> vision/tokens (32FC1, one row per token, the frame's
    own stamp) and, where somebody listens, vision/telemetry: what the refinement of each frame did.

    When encoding takes longer than frames take to come, the newest frame goes first and older ones are skipped.
    """

    Config = VisionConfig
    config: VisionConfig
    live = frozenset({"refine_steps", "refine_seconds", "refine_tolerance", "still", "still_longest", "lag"})

    def __init__(self, **kwargs: object) -> None:
        super().__init__("vision_irp", **kwargs)
        self._message: Image | None = None
        self._last: Refinement[np.ndarray] | None = None
        self._about: dict[str, object] = {}

    def setup(self) -> None:
        c = self.config
        # Where torch does no more than resize frames, a second thread of it only makes others wait.
        here = c.threads if c.how.on(pick_device(c.device)).engine == "torch" else 1
        torch.set_num_threads(here)
        cv2.setNumThreads(here)
        if c.encoder:
            self.encoder = load_encoder(c.encoder, c.encoder_source, c.device, c.how)
        else:
            self.encoder = load_checkpoint(checkpoint_path(c.checkpoint)).load_encoder(c.device, c.how)
        self._last = None
        self._spent_steps = 0  # for the last encoded frame
        self._attention: np.ndarray | None = None
        self._limit = RateLimit(float("inf"))
        self._still = Stillness(c.still, c.still_longest)
        self._encoding = Stopwatch(window=32)
        self._warm_up()
        rows, columns = self.encoder.grid
        size = f"{rows}x{columns} tokens of {self.encoder.features} features"
        self.get_logger().info(f"{self.encoder.name}: {size}, {self.encoder.runtime}")
        self._about = {"encoder": self.encoder.name, "runtime": self.encoder.runtime}
        self._tokens = self.publish_on(Image, "vision/tokens", STREAM)
        self._telemetry = self.publish_on(DiagnosticArray, "vision/telemetry", RELIABLE)
        kind, topic = TOPICS[c.transport]
        self._hear = self.hears(topic, lambda pace: pace.looks)
        self._frames = self.listen_while(lambda pace: pace.looks, kind, topic, self._on_frame, FRAMES)
        if self.encoder.attends:
            self.listen(Image, "attention/weights", self._on_attention, STREAM)
        self.listen_to_metabolism(self._on_metabolism)

    def _warm_up(self) -> None:
        """The first passes of a network cost many times the later ones: pay before frames come."""
        for _ in range(5):
            self.encoder.refine(np.zeros((256, 256, 3), dtype=np.uint8), Budget(steps=1))

    def clear(self) -> None:
        self._limit.reset()
        self._still.reset()
        self._attention = None

    def changed(self) -> None:
        self._still.threshold, self._still.longest = self.config.still, self.config.still_longest

    def _on_metabolism(self, pace: Pace) -> None:
        self._limit.rate = pace.vision_rate

    def _on_attention(self, message: Image) -> None:
        try:
            weights = map_from(message)
        except MessageError as problem:
            return self.complain(problem)
        if weights.shape != self.encoder.grid or not np.isfinite(weights).all() or weights.min() < 0:
            return self.complain(f"attention/weights must be {self.encoder.grid} weights >= 0: not followed")
        self._attention = weights

    # Frames

    def _on_frame(self, message: Image | CompressedImage) -> None:
        """What has come meanwhile is taken at once: older frames are encoded only where the newest hardly waits."""
        frames = [message, *self._waiting()]
        self.counts["frames_in"] += len(frames)
        longest = self._encoding.milliseconds(0.5) / 1e3 * (len(frames) - 1) if self._encoding.spans else 0.0
        if longest > self.config.lag:
            self.counts["skipped_for_newer"] += len(frames) - 1
            frames = frames[-1:]
        for frame in frames:
            self._see(frame)

    def _waiting(self) -> list[Image | CompressedImage]:
        found: list[Image | CompressedImage] = []
        for stream in self._frames:
            with stream.handle:
                while (taken := stream.handle.take_message(stream.msg_type, False)) is not None:
                    found.append(taken[0])
        return found

    def _see(self, message: Image | CompressedImage) -> None:
        self._hear(message.header.stamp)
        stamp = nanoseconds(message.header.stamp)
        if not self._limit.allows(stamp):
            self.counts["skipped_by_rate"] += 1
            return
        try:
            frame = rgb_from(message)
        except MessageError as problem:
            self.counts["refused"] += 1
            return self.complain(problem)
        c = self.config
        steps = self.pace.refine_steps if c.refine_steps < 0 else c.refine_steps
        with self.watch.span():
            # Tokens of fewer steps than are allowed by now do not serve any longer.
            still = self._still.holds(stamp, frame) and self._last is not None and steps <= self._spent_steps
            if still:
                self.counts["still"] += 1
            else:
                with self._encoding.span():
                    budget = Budget(steps, c.refine_seconds, c.refine_tolerance)
                    self._last = self.encoder.refine(frame, budget, self._attention)
                self._spent_steps = steps
        assert self._last is not None
        self._message = map_message(self._last.state, message.header, self._message)
        self._tokens.publish(self._message)
        self.counts["frames_out"] += 1
        if self._telemetry.get_subscription_count():
            self._tell(message, self._last, still)

    def _tell(self, message: Image | CompressedImage, done: Refinement[np.ndarray], still: bool) -> None:
        status = DiagnosticStatus(name=f"{self.get_name()}: refinement", message="still" if still else done.halt.value)
        status.hardware_id = self.encoder.name
        status.values = [KeyValue(key=key, value=str(value)) for key, value in figures(done, still).items()]
        self._telemetry.publish(DiagnosticArray(header=message.header, status=[status]))

    def status(self) -> Status:
        if self._last is None:
            return DiagnosticStatus.OK, "no frame yet", self._about
        values = self._about | figures(self._last, False)
        if self._encoding.spans:
            values["encode_ms_p50"] = f"{self._encoding.milliseconds(0.5):.3f}"
        return DiagnosticStatus.OK, f"{self.counts['frames_out']} frames encoded", values


def figures(done: Refinement[np.ndarray], still: bool) -> dict[str, object]:
    """What a refinement did, for diagnostics: energy is not measured where no step was allowed."""
    first, last = (done.energies[0], done.energies[-1]) if done.energies else ("not measured",) * 2
    best = min(done.energies) if done.energies else last
    spent = {"refine_steps": 0, "refine_ms": "0"} if still else {
        "refine_steps": done.steps, "refine_ms": f"{done.seconds * 1e3:.3f}"}  # fmt: skip
    return {**spent, "halt": done.halt.value, "first_energy": first, "energy": best}


def main(args: list[str] | None = None) -> int:
    return run(VisionIrp, args)


if __name__ == "__main__":
    sys.exit(main())
