"""What an encoder is, and how one is found by name."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from sage_ros.core.irp import Budget, Refinement
from sage_ros.vision.runtime import EXACT, EncoderError, Runtime


@dataclass(frozen=True)
class Cost:
    """What a coarse pass over one frame takes, whatever the machine."""

    parameters: int
    multiplications: int


class Encoder(Protocol):
    """Frames to token maps: ``grid`` (rows, columns) tokens, row-major, of ``features`` float32 numbers each.

    ``sha256`` is that of the weights: a student is tied to the encoder that it was trained on. ``runtime`` says in
    words what runs it.
    """

    @property
    def name(self) -> str: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def features(self) -> int: ...
    @property
    def feature_names(self) -> tuple[str, ...]: ...
    @property
    def cost(self) -> Cost: ...
    @property
    def runtime(self) -> str: ...
    @property
    def attends(self) -> bool:
        """Whether refinement looks at places one by one, and so can follow attention."""

    @property
    def sha256(self) -> str: ...

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Frames (B, H, W, 3) uint8 RGB of any size -> tokens (B, N, F) float32: the coarse pass.

        Raises ValueError on frames of another shape or type.
        """

    def refine(self, frame: np.ndarray, budget: Budget, attention: np.ndarray | None = None) -> Refinement[np.ndarray]:
        """One frame (H, W, 3) uint8 RGB -> tokens (N, F) float32, refined within ``budget``.

        ``attention``: weights >= 0 in the grid's shape, of the places where a closer look would pay; for those that
        look at places one by one.
        """


Loader = Callable[[str | Path, str, Runtime], Encoder]


def _late(module: str, kind: str) -> Loader:
    """The ``load`` of a class that is imported only when asked for: transformers takes seconds."""

    def load(source: str | Path, device: str, runtime: Runtime) -> Encoder:
        loader: Loader = getattr(importlib.import_module(f"sage_ros.vision.{module}"), kind).load
        return loader(source, device, runtime)

    return load


ENCODERS: dict[str, Loader] = {
    "tiny_vae": _late("tiny_vae", "TinyVae"),
    "lite0": _late("lite0", "Lite0"),
    "clip": _late("clip", "Clip"),
    "siglip": _late("siglip", "Siglip"),
}


def load_encoder(name: str, source: str | Path, device: str = "cpu", runtime: Runtime = EXACT) -> Encoder:
    """The encoder ``name`` with the weights at ``source`` (a folder, or for some a hub name), on a torch device.

    Raises EncoderError on an unknown name, on missing, damaged or ill-fitting weights, on a missing device and on what
    the device cannot do.
    """
    if name not in ENCODERS:
        raise EncoderError(f"there is no encoder '{name}'; there are: {', '.join(sorted(ENCODERS))}")
    return ENCODERS[name](source, device, runtime)


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
