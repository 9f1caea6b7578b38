"""CLIP's image tower (Radford et al. 2021) as an encoder: its patch tokens, projected into the joint space."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sage_ros.core.irp import Budget, Halt, Refinement
from sage_ros.vision.encoder import EncoderError, check_frames, hash_weights, pick_device

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's CLIP
PREPROCESSING = "preprocessor_config.json"
DOWNLOAD = "download it where there is a network (`hf download NAME --local-dir FOLDER`) and give the folder"


class Clip:
    """Patch tokens of a CLIP vision transformer: 7 x 7 of 512 features for ViT-B/32.

    A patch token goes the way that CLIP trained for the class token (last layer norm, then projection), as in
    MaskCLIP (Zhou et al. 2022). The whole frame is resized to the model's square, its shape not kept: a crop could
    lose the object. There is no energy to lower, so :meth:`refine` only ever gives the coarse pass.
    """

    name = "clip"

    def __init__(self, model: Any, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> None:
        """``model``: a ``transformers.CLIPVisionModelWithProjection``."""
        self.model = model.eval().requires_grad_(False)
        vision = model.config
        side = vision.image_size // vision.patch_size
        self.size: int = vision.image_size
        self.grid: tuple[int, int] = (side, side)
        self.features: int = vision.projection_dim
        self._mean, self._std = (torch.tensor(x, device=model.device).view(1, 3, 1, 1) for x in (mean, std))
        self.sha256 = hash_weights(model.state_dict(), (mean, std))

    @torch.inference_mode()
    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Frames (B, H, W, 3) uint8 RGB -> tokens (B, N, F) float32."""
        seen = self.model.vision_model(pixel_values=self.prepare(frames))
        patches = self.model.vision_model.post_layernorm(seen.last_hidden_state[:, 1:])
        tokens: Tensor = self.model.visual_projection(patches)
        return tokens.cpu().numpy()

    def prepare(self, frames: np.ndarray) -> Tensor:
        """Frames (B, H, W, 3) uint8 RGB -> pixel values (B, 3, size, size): antialiased bicubic, as in training."""
        pixels = torch.from_numpy(np.ascontiguousarray(check_frames(frames))).to(self._mean.device)
        size = (self.size, self.size)
        small = F.interpolate(pixels.permute(0, 3, 1, 2).float(), size, mode="bicubic", antialias=True)
        return (small.round().clamp(0, 255) / 255.0 - self._mean) / self._std

    def refine(self, frame: np.ndarray, budget: Budget) -> Refinement[np.ndarray]:
        """One frame (H, W, 3) uint8 RGB -> tokens (N, F) float32, without refinement steps whatever the budget."""
        start = time.perf_counter()
        tokens = self.encode(frame[None])[0]
        return Refinement(tokens, (), Halt.STEPS, time.perf_counter() - start)

    @classmethod
    def load(cls, source: str | Path, device: str = "cpu") -> Clip:
        """A local folder with config.json and safetensors weights, or a hub name, ``name@revision`` for one revision.

        Raises EncoderError if it cannot be had, is no CLIP image tower, or lacks weights: nothing is ever made up.
        """
        target = pick_device(device)
        name, revision = str(source), None
        folder = Path(source).expanduser()
        if not folder.is_dir():
            if isinstance(source, Path) or name.startswith(("/", ".", "~")) or name.count("/") != 1:
                raise EncoderError(f"there is no folder {folder}, and a hub name looks like owner/name: {DOWNLOAD}")
            name, _, tag = name.partition("@")
            revision = tag or None
        elif not (folder / "config.json").is_file():
            raise EncoderError(f"{folder} has no config.json: {DOWNLOAD}")
        elif not list(folder.glob("*.safetensors")):
            raise EncoderError(f"{folder} has no *.safetensors (pickled weights are not read): {DOWNLOAD}")
        where = str(folder) if folder.is_dir() else name
        for local in (True,) if folder.is_dir() else (True, False):  # the hub only where need be
            try:
                model = _load_model(where, revision, local)
                return cls(model.to(target), *_read_preprocessing(where, revision, local))
            except OSError as error:
                missing = error
        raise EncoderError(f"CLIP cannot be had from {where} ({_first_line(missing)}): {DOWNLOAD}") from missing


def _load_model(where: str, revision: str | None, local: bool) -> Any:
    """The image tower in float32. OSError where a file is missing or out of reach, EncoderError where it is wrong."""
    import transformers  # takes seconds

    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()  # a full CLIP's text tower is unused, and would be listed
    transformers.logging.disable_progress_bar()
    try:
        model, report = transformers.CLIPVisionModelWithProjection.from_pretrained(
            where,
            revision=revision,
            local_files_only=local,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported below, instead of raised
            output_loading_info=True,
        )
    except OSError:
        raise
    except Exception as error:  # safetensors and transformers raise types of their own on spoilt files
        raise EncoderError(f"CLIP cannot be read from {where} ({_first_line(error)}): {DOWNLOAD}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
    lacking = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    if lacking:
        raise EncoderError(
            f"{where} is no whole CLIP image tower: {len(lacking)} weights are missing or of another shape, "
            f"such as {lacking[0]}: {DOWNLOAD}"
        )
    return model


def _read_preprocessing(where: str, revision: str | None, local: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Pixel mean and standard deviation from the model's own preprocessor_config.json, else OpenAI's."""
    from transformers.utils import cached_file

    path = cached_file(
        where, PREPROCESSING, revision=revision, local_files_only=local, _raise_exceptions_for_missing_entries=False
    )
    if path is None:
        return MEAN, STD
    try:
        stored = json.loads(Path(path).read_text())
        mean, std = (tuple(float(x) for x in stored[key]) for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderError(f"{path}: no image_mean and image_std ({error}): {DOWNLOAD}") from error
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise EncoderError(f"{path}: image_mean and image_std must be three numbers each, image_std positive")
    return mean, std


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
