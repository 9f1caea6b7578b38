"""SigLIP's image tower (Zhai et al. 2023; SigLIP 2 too), the eyes of Eagle and so of GR00T, as an encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sage_ros.vision.hub import Family, HubTower

SIGLIP = Family("SigLIP", "SiglipVisionModel", ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


class SiglipPatches(nn.Module):
    """Pixels to patch tokens: the last layer's, normalised. There is no class token."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).last_hidden_state


class Siglip(HubTower):
    """14 x 14 tokens of 768 features for the base model with patches of 16 pixels."""

    family, patches, width = SIGLIP, SiglipPatches, "hidden_size"
