"""TinyVAE: local row-major tokens, refinement that only ever helps, weights that come back or are refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_ros.core.irp import Budget, Halt
from sage_ros.vision.encoder import EncoderError, load_encoder
from sage_ros.vision.tiny_vae import TinyVae, TinyVaeConfig

SIZES = TinyVaeConfig(size=32, features=5, widths=(8, 12))


def make(seed: int = 0) -> TinyVae:
    torch.manual_seed(seed)
    model = TinyVae(SIZES).eval().requires_grad_(False)
    model.mean_frame.fill_(0.5)
    return model


@pytest.fixture(scope="module")
def model() -> TinyVae:
    return make()


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_a_frame_of_any_size_gives_a_token_map(model: TinyVae) -> None:
    for height, width in ((32, 32), (256, 256), (480, 640), (7, 5)):
        tokens = model.encode(noise(0, 2, height, width))
        assert tokens.shape == (2, 64, 5) and tokens.dtype == np.float32 and tokens.flags.c_contiguous
    assert (model.grid, model.features) == ((8, 8), 5)


def test_tokens_are_row_major_and_each_sees_its_own_place_only(model: TinyVae) -> None:
    frame = noise(1, 32, 32)
    for row, column in ((0, 7), (3, 2), (7, 0)):
        changed = frame.copy()
        changed[4 * row + 1 : 4 * row + 3, 4 * column + 1 : 4 * column + 3] ^= 255
        moved = np.abs(model.encode(changed[None]) - model.encode(frame[None]))[0].sum(axis=1).reshape(8, 8)
        near = np.maximum(np.abs(np.arange(8)[:, None] - row), np.abs(np.arange(8) - column)) <= 1
        assert moved[row, column] > 0.0 and moved[~near].max() == 0.0


def test_a_batch_gives_what_its_frames_give_alone(model: TinyVae) -> None:
    frames = noise(2, 3, 40, 40)
    alone = np.concatenate([model.encode(frame[None]) for frame in frames])
    np.testing.assert_allclose(model.encode(frames), alone, atol=1e-5)


def test_shrinking_averages_areas(model: TinyVae) -> None:
    frame = noise(3, 1, 32, 32)
    larger = frame.repeat(8, axis=1).repeat(8, axis=2)
    np.testing.assert_allclose(model.encode(larger), model.encode(frame), atol=1e-6)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 4), np.uint8), np.zeros((1, 4, 4, 3), np.float32),
            np.zeros((1, 0, 4, 3), np.uint8)]
)
def test_frames_of_another_shape_or_type_are_refused(model: TinyVae, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(B, H, W, 3\) uint8"):
        model.encode(bad)


def test_without_steps_refinement_is_the_coarse_pass(model: TinyVae) -> None:
    frame = noise(4, 64, 64)
    found = model.refine(frame, Budget(0))
    np.testing.assert_allclose(found.state, model.encode(frame[None])[0], atol=1e-6)
    assert (found.energies, found.halt, found.steps) == ((), Halt.STEPS, 0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 8))
def test_every_step_lowers_the_energy_or_is_the_last(seed: int, steps: int) -> None:
    model = make(seed)
    found = model.refine(noise(seed, 32, 32), Budget(steps, tolerance=0.0))
    falls = np.diff(found.energies)
    assert (falls[:-1] < 0).all() and falls[-1] <= 0 and found.steps <= steps
    assert all(math.isfinite(energy) for energy in found.energies)


def test_the_energy_is_the_mean_squared_error_of_what_the_tokens_decode_to(model: TinyVae) -> None:
    frame = noise(5, 32, 32)
    found = model.refine(frame, Budget(5, tolerance=0.0))
    latent = torch.from_numpy(found.state.T.reshape(1, 5, 8, 8).copy())
    with torch.no_grad():
        error = (model.decode(latent)[0].permute(1, 2, 0).numpy() - frame / 255.0) ** 2
    assert error.mean() == pytest.approx(found.energies[-1], rel=1e-4)
    assert found.energies[-1] < found.energies[0]


def test_a_frame_that_is_explained_fully_needs_no_step(model: TinyVae) -> None:
    dull = make()
    for parameter in dull.parameters():
        parameter.zero_()
    dull.mean_frame.fill_(100 / 255)
    found = dull.refine(np.full((32, 32, 3), 100, np.uint8), Budget(5))
    assert found.halt is Halt.CONVERGED and found.energies[-1] == pytest.approx(0.0, abs=1e-12)


def test_saved_weights_come_back_as_they_were(model: TinyVae, tmp_path: Path) -> None:
    model.save(tmp_path, {"trained_on": "a test"})
    again = load_encoder("tiny_vae", tmp_path)
    frames = noise(6, 2, 48, 64)
    np.testing.assert_array_equal(again.encode(frames), model.encode(frames))
    assert again.sha256 == model.sha256 and again.name == "tiny_vae"
    assert json.loads((tmp_path / "config.json").read_text())["about"] == {"trained_on": "a test"}


def test_other_weights_have_another_hash(model: TinyVae) -> None:
    assert make(0).sha256 == model.sha256 != make(1).sha256


@pytest.fixture
def saved(model: TinyVae, tmp_path: Path) -> Path:
    model.save(tmp_path / "vae")
    return tmp_path / "vae"


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_missing_files_are_named_with_the_remedy(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"nowhere has no config.json and no model.safetensors.*train_vae"):
        load_encoder("tiny_vae", tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"no model.safetensors: .*train_vae"):
        load_encoder("tiny_vae", saved)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"])
def test_damaged_weights_are_refused(saved: Path, content: bytes) -> None:
    (saved / "model.safetensors").write_bytes(content)
    with pytest.raises(EncoderError, match=r"model.safetensors is damaged"):
        load_encoder("tiny_vae", saved)


def test_weights_of_another_shape_type_or_name_are_refused(saved: Path) -> None:
    weights = safetensors.torch.load_file(saved / "model.safetensors")
    for odd, text in (
        (weights | {"mean_frame": torch.zeros(3, 16, 16)}, r"mean_frame \(3, 16, 16\)"),
        (weights | {"mean_frame": weights["mean_frame"].half()}, r"mean_frame .*torch.float16"),
        (weights | {"extra": torch.zeros(1)}, r"extra"),
        ({k: v for k, v in weights.items() if k != "mean_frame"}, r"mean_frame"),
    ):
        safetensors.torch.save_file(odd, saved / "model.safetensors")
        with pytest.raises(EncoderError, match=rf"does not fit config.json: {text}"):
            load_encoder("tiny_vae", saved)


def test_swapped_weights_are_noticed(saved: Path, tmp_path: Path) -> None:
    make(7).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", saved)
    with pytest.raises(EncoderError, match="sha256"):
        load_encoder("tiny_vae", saved)


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"format": "other"}, "format"), ({"size": 33}, "multiple of 4"), ({"features": "5"}, "whole numbers"),
     ({"widths": []}, "whole numbers"), ({"size": True}, "whole numbers"), ({"widths": 3}, "not the sizes")],
)
def test_a_config_that_makes_no_sense_is_refused(saved: Path, changes: dict[str, object], text: str) -> None:
    edit(saved, **changes)
    with pytest.raises(EncoderError, match=text):
        load_encoder("tiny_vae", saved)


def test_a_config_that_is_no_json_is_refused(saved: Path) -> None:
    (saved / "config.json").write_text("{")
    with pytest.raises(EncoderError, match="not readable JSON"):
        load_encoder("tiny_vae", saved)
