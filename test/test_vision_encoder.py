"""Encoders by name: unknown names and devices are loud, imports are cheap, hashes tell weights apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.vision.encoder import ENCODERS, EncoderError, hash_weights, load_encoder, pick_device


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"no encoder 'dino'; there are: clip, lite0, siglip, tiny_vae"):
        load_encoder("dino", tmp_path)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_loud(device: str) -> None:
    with pytest.raises(EncoderError, match=f"device '{device}'"):
        pick_device(device)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_no_encoder_falls_back_from_cuda_to_the_cpu(name: str, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="device 'cuda'"):
        load_encoder(name, tmp_path, "cuda")


def test_looking_for_an_encoder_does_not_import_transformers() -> None:
    code = "import sys, sage_ros.vision.encoder, sage_ros.vision.tiny_vae; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=6), at=st.integers(0, 5))
def test_the_hash_is_that_of_names_and_values_not_of_their_order(values: list[float], at: int) -> None:
    tensors = {f"w{i}": torch.tensor([value]) for i, value in enumerate(values)}
    assert hash_weights(tensors) == hash_weights(dict(reversed(tensors.items())))
    name = f"w{at % len(values)}"
    assert hash_weights(tensors) != hash_weights(tensors | {name: tensors[name] + 1.0})
    assert hash_weights(tensors) != hash_weights({f"{n}x": t for n, t in tensors.items()})
    assert hash_weights(tensors) != hash_weights(tensors, ["more"])
