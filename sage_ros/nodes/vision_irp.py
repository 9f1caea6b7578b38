"""vision_irp: camera frames in, token maps out, refined as far as the metabolic state allows."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image

from sage_ros.core.irp import Budget, Refinement
from sage_ros.core.options import check, option
from sage_ros.core.timing import RateLimit
from sage_ros.nodes.lifecycle import STREAM, SageNode, Status, run
from sage_ros.nodes.messages import MessageError, map_message, nanoseconds, rgb_from
from sage_ros.paths import checkpoint_path
from sage_ros.policy.checkpoint import load_checkpoint
from sage_ros.vision.encoder import load_encoder


@dataclass(frozen=True)
class VisionConfig:
    checkpoint: str = option("", "student checkpoint whose encoder is used; empty: the one in the package")
    encoder: str = option("", "encoder by name instead of the checkpoint's, such as tiny_vae or clip")
    encoder_source: str = option("", "folder or hub name of that encoder's weights")
    device: str = option("cpu", "torch device: cpu, cuda or cuda:N")
    threads: int = option(1, "CPU threads of the encoder", low=1, high=64)
    refine_steps: int = option(-1, "refinement steps per frame; -1: as the metabolic state says", low=-1, high=100)
    refine_seconds: float = option(0.02, "wall-clock budget of one frame's refinement (s)", low=0.0001, high=10.0)
    refine_tolerance: float = option(0.01, "relative gain below which refinement stops", low=0.0, high=0.99)

    def __post_init__(self) -> None:
        check(self)
        if bool(self.encoder) != bool(self.encoder_source):
            raise ValueError("encoder and encoder_source go together: give both or neither")


class VisionIrp(SageNode):
    """image_raw (sensor_msgs/Image) -> vision/tokens (32FC1, one row per token, the frame's own stamp)."""

    Config = VisionConfig
    config: VisionConfig
    live = frozenset({"refine_steps", "refine_seconds", "refine_tolerance"})

    def __init__(self, **kwargs: object) -> None:
        super().__init__("vision_irp", **kwargs)
        self._last: Refinement[np.ndarray] | None = None  # for diagnostics
        self._message: Image | None = None

    def setup(self) -> None:
        torch.set_num_threads(self.config.threads)
        if self.config.encoder:
            self.encoder = load_encoder(self.config.encoder, self.config.encoder_source, self.config.device)
        else:
            self.encoder = load_checkpoint(checkpoint_path(self.config.checkpoint)).load_encoder(self.config.device)
        self._allowed_steps = 0
        self._limit = RateLimit(float("inf"))
        self._warm_up()
        rows, columns = self.encoder.grid
        self.get_logger().info(f"{self.encoder.name}: {rows}x{columns} tokens of {self.encoder.features} features")
        self._tokens = self.publish_on(Image, "vision/tokens", STREAM)
        self.listen(Image, "image_raw", self._on_image, STREAM)
        self.listen_to_metabolism(self._on_metabolism)

    def _warm_up(self) -> None:
        """The first passes of a network cost many times the later ones: pay before frames come."""
        for _ in range(5):
            self.encoder.refine(np.zeros((256, 256, 3), dtype=np.uint8), Budget(steps=1))

    def clear(self) -> None:
        self._limit.reset()

    def _on_metabolism(self, values: dict[str, str]) -> None:
        self._allowed_steps = int(values["refine_steps"])
        self._limit.rate = float(values["vision_rate"])

    def _on_image(self, message: Image) -> None:
        self.counts["frames_in"] += 1
        if not self._limit.allows(nanoseconds(message.header.stamp)):
            self.counts["skipped_by_rate"] += 1
            return
        try:
            frame = rgb_from(message)
        except MessageError as problem:
            self.counts["refused"] += 1
            return self.complain(problem)
        c = self.config
        steps = self._allowed_steps if c.refine_steps < 0 else c.refine_steps
        with self.watch.span():
            self._last = self.encoder.refine(frame, Budget(steps, c.refine_seconds, c.refine_tolerance))
        self._message = map_message(self._last.state, message.header, self._message)
        self._tokens.publish(self._message)
        self.counts["frames_out"] += 1

    def status(self) -> Status:
        if self._last is None:
            return DiagnosticStatus.OK, "no frame yet", {}
        energy = self._last.energies[-1] if self._last.energies else "not measured"
        figures: dict[str, object] = {"refine_steps": self._last.steps, "halt": self._last.halt.value, "energy": energy}
        return DiagnosticStatus.OK, f"{self.counts['frames_out']} frames encoded", figures


def main(args: list[str] | None = None) -> int:
    return run(VisionIrp, args)


if __name__ == "__main__":
    sys.exit(main())
