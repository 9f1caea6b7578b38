"""SigLIP on a tiny model built on disk, by the path that CLIP takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sage_ros.vision.encoder import EncoderError, load_encoder
from sage_ros.vision.siglip import Siglip

SIZES: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                         "image_size": 64, "patch_size": 16}  # fmt: skip


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("siglip")
    SiglipVisionModel(SiglipVisionConfig(**SIZES)).save_pretrained(folder)
    return folder


def test_tokens_are_the_last_layers_patches(tower: Path) -> None:
    encoder = load_encoder("siglip", tower)
    assert isinstance(encoder, Siglip) and (encoder.grid, encoder.features) == ((4, 4), 24)
    frames = np.random.default_rng(0).integers(0, 256, (2, 48, 80, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = encoder.network.model(pixel_values=encoder.prepare(frames)).last_hidden_state
    np.testing.assert_allclose(encoder.encode(frames), expected.numpy(), atol=1e-5)
    white = np.full((1, 64, 64, 3), 255, np.uint8)
    np.testing.assert_allclose(encoder.prepare(white).numpy(), 1.0, atol=1e-6)


def test_a_folder_of_another_kind_is_refused(tower: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"no folder .*nowhere.*hf download"):
        Siglip.load(tmp_path / "nowhere")
    (tmp_path / "config.json").write_bytes((tower / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"spoilt")
    with pytest.raises(EncoderError, match="SigLIP"):
        Siglip.load(tmp_path)
