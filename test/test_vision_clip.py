"""CLIP on a tiny model built on disk: projected patch tokens of the whole frame, and no weights ever made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from sage_ros.core.irp import Budget, Halt
from sage_ros.vision.clip import Clip
from sage_ros.vision.encoder import EncoderError, load_encoder

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 64, "patch_size": 16, "projection_dim": 24,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with both towers, as the hub's folders hold it."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": 32, "bos_token_id": 30, "eos_token_id": 31}
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=SIZES, projection_dim=24)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tower(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image tower of the same model alone."""
    from transformers import CLIPVisionModelWithProjection

    folder = tmp_path_factory.mktemp("tower")
    CLIPVisionModelWithProjection.from_pretrained(whole).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tower: Path) -> Clip:
    encoder = load_encoder("clip", tower)
    assert isinstance(encoder, Clip)
    return encoder


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_tokens_are_the_patches_row_major(clip: Clip) -> None:
    assert (clip.name, clip.grid, clip.features) == ("clip", (4, 4), 24)
    tokens = clip.encode(noise(2, 48, 80))
    assert tokens.shape == (2, 16, 24) and tokens.dtype == np.float32


def test_a_patch_goes_the_way_of_the_class_token(clip: Clip) -> None:
    frames = noise(2, 64, 64)
    with torch.no_grad():
        seen = clip.model.vision_model(pixel_values=clip.prepare(frames)).last_hidden_state
        both = clip.model.visual_projection(clip.model.vision_model.post_layernorm(seen))
        embedded = clip.model(pixel_values=clip.prepare(frames)).image_embeds
    np.testing.assert_allclose(both[:, 0].numpy(), embedded.numpy(), atol=1e-5)
    np.testing.assert_allclose(clip.encode(frames), both[:, 1:].numpy(), atol=1e-5)


def test_the_whole_frame_is_seen_however_wide_it_is(clip: Clip) -> None:
    frame = noise(64, 256)
    changed = frame.copy()
    changed[:, :8] ^= 255
    assert np.abs(clip.encode(changed[None]) - clip.encode(frame[None])).max() > 1e-3


def test_pixels_are_prepared_as_in_training(clip: Clip) -> None:
    image = pytest.importorskip("PIL.Image")
    frame = noise(96, 128)
    small = np.asarray(image.fromarray(frame).resize((64, 64), image.Resampling.BICUBIC))
    ours = clip.prepare(frame[None])[0].permute(1, 2, 0).numpy()
    theirs = (small / 255.0 - (0.48145466, 0.4578275, 0.40821073)) / (0.26862954, 0.26130258, 0.27577711)
    assert np.abs(ours - theirs).max() < 2.5 / 255 / 0.26  # PIL rounds after each axis


def test_the_models_own_pixel_statistics_are_used(tower: Path, clip: Clip, tmp_path: Path) -> None:
    for file in tower.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    statistics = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    other = Clip.load(tmp_path)
    white = np.full((1, 64, 64, 3), 255, np.uint8)
    np.testing.assert_allclose(other.prepare(white).numpy(), 1.0, atol=1e-6)
    assert other.sha256 != clip.sha256  # other statistics give other tokens
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    with pytest.raises(EncoderError, match="image_mean and image_std"):
        Clip.load(tmp_path)


def test_the_image_tower_is_found_in_a_whole_clip(whole: Path, clip: Clip) -> None:
    found = Clip.load(str(whole))
    assert found.sha256 == clip.sha256
    np.testing.assert_allclose(found.encode(noise(1, 64, 64)), clip.encode(noise(1, 64, 64)), atol=1e-6)


def test_without_steps_refinement_is_the_coarse_pass(clip: Clip) -> None:
    frame = noise(64, 64)
    found = clip.refine(frame, Budget(0))
    np.testing.assert_allclose(found.state, clip.encode(frame[None])[0], atol=1e-6)
    assert (found.energies, found.halt) == ((), Halt.STEPS)


def test_loading_is_quiet(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    Clip.load(whole)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.float32)])
def test_frames_of_another_shape_or_type_are_refused(clip: Clip, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(B, H, W, 3\) uint8"):
        clip.encode(bad)


def test_a_folder_that_is_missing_or_lacks_files_is_named_with_the_remedy(tower: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"no folder .*nowhere.*hf download"):
        Clip.load(tmp_path / "nowhere")
    with pytest.raises(EncoderError, match=r"no config.json.*hf download"):
        Clip.load(tmp_path)
    (tmp_path / "config.json").write_bytes((tower / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(EncoderError, match=r"no \*.safetensors \(pickled weights are not read\)"):
        Clip.load(tmp_path)


def test_weights_that_lack_a_layer_or_have_another_shape_are_never_filled_with_random_ones(
    tower: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((tower / "config.json").read_bytes())
    weights = safetensors.torch.load_file(tower / "model.safetensors")
    projection = next(name for name in weights if name.endswith("visual_projection.weight"))
    for odd in (
        {name: tensor for name, tensor in weights.items() if name != projection},
        weights | {projection: torch.zeros(8, 32)},
    ):
        safetensors.torch.save_file(odd, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(EncoderError, match=r"no whole CLIP image tower: 1 weights .*visual_projection"):
            Clip.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(EncoderError, match="CLIP"):
        Clip.load(tmp_path)


def test_a_hub_that_cannot_be_reached_asks_for_a_local_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants
    import transformers  # noqa: F401 (its own offline switch is read on import)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=r"CLIP cannot be had from nobody/no-clip .*hf download"):
        load_encoder("clip", "nobody/no-clip@main")
