"""CLIP's image tower (Radford et al. 2021) as an encoder: its patch tokens, projected into the joint space."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sage_ros.vision.hub import Family, HubTower

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


class Clip(HubTower):
    """7 x 7 tokens of 512 features for ViT-B/32."""

    family, patches, width = CLIP, ClipPatches, "projection_dim"
