"""A frozen network of the wide world as an encoder: what CLIP, SigLIP and their like have in common."""

from __future__ import annotations

import functools
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sage_ros.core.irp import Budget, Halt, Refinement, refine
from sage_ros.cuda import Graphed
from sage_ros.vision.encoder import Cost, check_frames
from sage_ros.vision.fovea import Fovea
from sage_ros.vision.runtime import Runtime, make_runner

SAMPLES = 8  # recorded frames on which a precision is checked


class Tower:
    """Tokens of a network that takes pixels (B, 3, size, size) and gives (B, rows * columns, features).

    The whole frame is resized to the network's square, its shape not kept: a crop could lose the object. Refinement
    looks again at windows of the frame in higher resolution (:class:`~sage_ros.vision.fovea.Fovea`).
    """

    attends = True

    def __init__(
        self,
        name: str,
        network: nn.Module,
        size: int,
        grid: tuple[int, int],
        features: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        sha256: str,
        device: torch.device,
        runtime: Runtime,
    ) -> None:
        """``mean`` and ``std`` (3,) of pixels in [0, 1]; ``sha256`` of everything that decides the tokens."""
        self.name, self.size, self.grid, self.features, self.sha256 = name, size, grid, features, sha256
        self.network = network.eval().requires_grad_(False)
        self._mean, self._std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (mean, std))
        self._shrink = Graphed(self._resized, device)
        self._run = make_runner(self.network, size, sha256, device, runtime, self._samples)

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}_{index}" for index in range(self.features))

    @property
    def runtime(self) -> str:
        return self._run.about

    @functools.cached_property
    def cost(self) -> Cost:
        weight = next(self.network.parameters())
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            self.network(torch.zeros(1, 3, self.size, self.size, device=weight.device, dtype=weight.dtype))
        return Cost(sum(p.numel() for p in self.network.parameters()), counter.get_total_flops() // 2)

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Frames (B, H, W, 3) uint8 RGB -> tokens (B, N, F) float32."""
        return self._run(self._shrink(_bytes(frames)))

    def prepare(self, frames: np.ndarray) -> Tensor:
        """Frames (B, H, W, 3) uint8 RGB -> pixel values (B, 3, size, size): antialiased bicubic, as in training."""
        return self._resized(_bytes(frames).to(self._mean.device))

    @torch.inference_mode()
    def _resized(self, pixels: Tensor) -> Tensor:
        pixels = pixels.permute(0, 3, 1, 2)
        if pixels.device.type != "cpu":  # which alone has it for bytes, and there four times as fast
            pixels = pixels.float()
        small = F.interpolate(pixels, (self.size, self.size), mode="bicubic", antialias=True)
        return (small.float().round_().clamp_(0, 255).div_(255.0).sub_(self._mean).div_(self._std)).contiguous()

    def refine(self, frame: np.ndarray, budget: Budget, attention: np.ndarray | None = None) -> Refinement[np.ndarray]:
        """One frame (H, W, 3) uint8 RGB -> tokens (N, F) float32; energy: the detail not shown to the network."""
        if budget.steps == 0:
            start = time.perf_counter()
            return Refinement(self.encode(frame[None])[0], (), Halt.STEPS, time.perf_counter() - start)
        found = refine(Fovea(self.encode, self.grid, self.size, attention), frame, budget)
        tokens = found.state.tokens.reshape(-1, self.features)
        return Refinement(tokens, found.energies, found.halt, found.seconds)

    def _samples(self) -> Tensor:
        """Pixels of recorded frames, from the episodes in the package."""
        from sage_ros.episodes import EpisodeDataset
        from sage_ros.paths import EPISODES

        frames = EpisodeDataset(EPISODES)[0].frames()
        return self.prepare(frames[np.linspace(0, len(frames) - 1, SAMPLES).astype(int)])


def _bytes(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(check_frames(frames)))
