"""CLIP's image tower (Radford et al. 2021) as an encoder: its patch tokens, projected into the joint space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sage_ros.vision.encoder import hash_weights, pick_device
from sage_ros.vision.hub import Family, Statistics, load_tower
from sage_ros.vision.runtime import EXACT, Runtime
from sage_ros.vision.tower import Tower

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's CLIP
CLIP = Family("CLIP", "CLIPVisionModelWithProjection", (MEAN, STD))


class ClipPatches(nn.Module):
    """Pixels to projected patch tokens.

    A patch token goes the way that CLIP trained for the class token (last layer norm, then projection), as in
    MaskCLIP (Zhou et al. 2022).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        seen = self.model.vision_model(pixel_values=pixels)
        patches = self.model.vision_model.post_layernorm(seen.last_hidden_state[:, 1:])
        return self.model.visual_projection(patches)


class Clip(Tower):
    """7 x 7 tokens of 512 features for ViT-B/32."""

    def __init__(
        self, model: Any, statistics: Statistics = CLIP.statistics, device: str = "cpu", runtime: Runtime = EXACT
    ) -> None:
        """``model``: a ``transformers.CLIPVisionModelWithProjection``."""
        self.model, vision = model, model.config
        side = vision.image_size // vision.patch_size
        sha256 = hash_weights(model.state_dict(), statistics)
        super().__init__("clip", ClipPatches(model), vision.image_size, (side, side), vision.projection_dim,
                         *statistics, sha256, pick_device(device), runtime)  # fmt: skip

    @classmethod
    def load(cls, source: str | Path, device: str = "cpu", runtime: Runtime = EXACT) -> Clip:
        """As :func:`~sage_ros.vision.hub.load_tower`."""
        pick_device(device)  # before the work of loading
        return cls(*load_tower(CLIP, source), device, runtime)
