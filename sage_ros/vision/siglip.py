"""SigLIP's image tower (Zhai et al. 2023; SigLIP 2 too), the eyes of Eagle and so of GR00T, as an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sage_ros.vision.encoder import hash_weights, pick_device
from sage_ros.vision.hub import Family, Statistics, load_tower
from sage_ros.vision.runtime import EXACT, Runtime
from sage_ros.vision.tower import Tower

SIGLIP = Family("SigLIP", "SiglipVisionModel", ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


class SiglipPatches(nn.Module):
    """Pixels to patch tokens: the last layer's, normalised. There is no class token."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).last_hidden_state


class Siglip(Tower):
    """14 x 14 tokens of 768 features for the base model with patches of 16 pixels."""

    def __init__(
        self, model: Any, statistics: Statistics = SIGLIP.statistics, device: str = "cpu", runtime: Runtime = EXACT
    ) -> None:
        """``model``: a ``transformers.SiglipVisionModel``."""
        vision = model.config
        side = vision.image_size // vision.patch_size
        sha256 = hash_weights(model.state_dict(), statistics)
        super().__init__("siglip", SiglipPatches(model), vision.image_size, (side, side), vision.hidden_size,
                         *statistics, sha256, pick_device(device), runtime)  # fmt: skip

    @classmethod
    def load(cls, source: str | Path, device: str = "cpu", runtime: Runtime = EXACT) -> Siglip:
        """As :func:`~sage_ros.vision.hub.load_tower`."""
        pick_device(device)  # before the work of loading
        return cls(*load_tower(SIGLIP, source), device, runtime)
