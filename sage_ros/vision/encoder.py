"""What an encoder is, and how one is found by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from sage_ros.core.irp import Budget, Refinement


class EncoderError(RuntimeError):
    """An encoder that cannot be had: names what is missing or wrong, where, and what to do."""


class Encoder(Protocol):
    """Frames to token maps: ``grid`` (rows, columns) tokens, row-major, of ``features`` float32 numbers each.

    ``sha256`` is that of the weights: a student is tied to the encoder that it was trained on.
    """

    @property
    def name(self) -> str: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def features(self) -> int: ...
    @property
    def sha256(self) -> str: ...

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Frames (B, H, W, 3) uint8 RGB of any size -> tokens (B, N, F) float32: the coarse pass.

        Raises ValueError on frames of another shape or type.
        """

    def refine(self, frame: np.ndarray, budget: Budget) -> Refinement[np.ndarray]:
        """One frame (H, W, 3) uint8 RGB -> tokens (N, F) float32, refined within ``budget``."""


def _load_tiny_vae(source: str | Path, device: str) -> Encoder:
    from sage_ros.vision.tiny_vae import TinyVae

    return TinyVae.load(source, device)


def _load_clip(source: str | Path, device: str) -> Encoder:
    from sage_ros.vision.clip import Clip  # transformers takes seconds to import

    return Clip.load(source, device)


Loader = Callable[[str | Path, str], Encoder]
ENCODERS: dict[str, Loader] = {"tiny_vae": _load_tiny_vae, "clip": _load_clip}


def load_encoder(name: str, source: str | Path, device: str = "cpu") -> Encoder:
    """The encoder ``name`` with the weights at ``source`` (a folder, or for some a hub name), on a torch device.

    Raises EncoderError on an unknown name, on missing, damaged or ill-fitting weights, and on a missing device.
    """
    if name not in ENCODERS:
        raise EncoderError(f"there is no encoder '{name}'; there are: {', '.join(sorted(ENCODERS))}")
    return ENCODERS[name](source, device)


def pick_device(device: str) -> torch.device:
    """The torch device of that name; "auto": a GPU if there is one. Raises EncoderError if this machine lacks it."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise EncoderError(f"device '{device}' cannot be used ({reason}): choose another, such as cpu") from error
    if found.type == "meta":
        raise EncoderError("device 'meta' holds no numbers: choose cpu or cuda")
    return found


def check_frames(frames: np.ndarray) -> np.ndarray:
    """The frames themselves. Raises ValueError unless they are (B, H, W, 3) uint8 with at least one pixel."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be (B, H, W, 3) uint8 RGB, but are {frames.shape} {frames.dtype}")
    return frames


def hash_weights(tensors: Mapping[str, torch.Tensor], more: Iterable[object] = ()) -> str:
    """sha256 (hex) over names, shapes and values, in name order; the same for the same weights in any file layout."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    for thing in more:
        digest.update(f"{thing}\n".encode())
    return digest.hexdigest()
