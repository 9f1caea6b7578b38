"""TinyVAE: a small convolutional variational autoencoder whose latent is a token map.

After Kingma and Welling 2014 (VAE). Fully convolutional, so a token sees its own place and the neighbours' only; no
normalisation layers, so a frame's tokens depend on nothing but the frame and the weights. It works on the difference
from the training frames' mean, as PCA does. Tokens are the posterior's mean.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sage_ros.core.irp import Budget, Refinement, refine
from sage_ros.vision.encoder import Cost, EncoderError, check_frames, hash_weights, pick_device
from sage_ros.vision.runtime import EXACT, Runtime

FORMAT = "sage_ros.tiny_vae/1"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
REMEDY = "give a folder that `train_vae` wrote, or train one"
STEP = 2.5  # first step along the gradient of the squared error's sum; later ones start from the last accepted
GROWTH = 1.2  # of the step after one that was accepted
BACKTRACKS = 6  # halvings of a step before the state counts as a minimum


@dataclass(frozen=True)
class TinyVaeConfig:
    """Sizes. Frames are resized to ``size`` x ``size`` pixels whatever their shape; each width halves the map."""

    size: int = 64
    features: int = 32
    widths: tuple[int, ...] = (32, 64, 96)

    def __post_init__(self) -> None:
        values = (self.size, self.features, *self.widths)
        if not self.widths or any(not isinstance(v, int) or isinstance(v, bool) or v < 1 for v in values):
            raise ValueError(f"size, features and every width must be whole numbers >= 1: {self}")
        if self.size % 2 ** len(self.widths) or self.size > 1024:
            raise ValueError(f"size must be at most 1024 and a multiple of {2 ** len(self.widths)}: {self}")

    @property
    def grid(self) -> tuple[int, int]:
        side = self.size // 2 ** len(self.widths)
        return side, side


class TinyVae(nn.Module):
    """The network, and the :class:`~sage_ros.vision.encoder.Encoder` made of it.

    Refinement lowers the frame's mean squared reconstruction error (pixels in [0, 1]) from the encoder's guess on: the
    gap that an amortised encoder leaves (Marino et al. 2018). A step is one of nonlinear conjugate gradients (Polak and
    Ribière 1969) on the tokens, with backtracking.
    """

    name = "tiny_vae"
    attends = False

    def __init__(self, config: TinyVaeConfig = TinyVaeConfig()) -> None:
        super().__init__()
        self.config = config
        widths, f = config.widths, config.features
        down: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            down += [nn.Conv2d(before, after, 4, 2, 1), nn.SiLU()]
        top = widths[-1]
        self.encoder = nn.Sequential(*down, nn.Conv2d(top, 2 * f, 1))
        up: list[nn.Module] = [nn.Conv2d(f, top, 3, 1, 1)]
        for before, after in zip(widths[::-1], (*widths[-2::-1], 3), strict=True):
            up += [nn.SiLU(), nn.ConvTranspose2d(before, after, 4, 2, 1)]
        self.decoder = nn.Sequential(*up)
        self.mean_frame: Tensor
        self.register_buffer("mean_frame", torch.zeros(3, config.size, config.size))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU

    @property
    def grid(self) -> tuple[int, int]:
        return self.config.grid

    @property
    def features(self) -> int:
        return self.config.features

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(f"latent_{index}" for index in range(self.features))

    @functools.cached_property
    def cost(self) -> Cost:
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            self.encoder(self.mean_frame[None])
        return Cost(sum(p.numel() for p in self.encoder.parameters()), counter.get_total_flops() // 2)

    @property
    def runtime(self) -> str:
        return f"torch fp32 on {self.mean_frame.device}"

    @property
    def sha256(self) -> str:
        return hash_weights(self.state_dict())

    def posterior(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, each (B, F, rows, columns), of frames (B, 3, size, size) in [0, 1]."""
        mean, log_variance = self.encoder(frames - self.mean_frame).chunk(2, dim=1)
        return mean, log_variance.clamp(-12.0, 4.0)

    def decode(self, latent: Tensor) -> Tensor:
        """Latent (B, F, rows, columns) -> frames (B, 3, size, size), about [0, 1], not clipped."""
        return self.decoder(latent) + self.mean_frame

    def prepare(self, frames: np.ndarray) -> Tensor:
        """Frames (B, H, W, 3) uint8 RGB -> (B, 3, size, size) float32 in [0, 1], each pixel the mean of its area."""
        small = torch.from_numpy(shrink(frames, self.config.size)).to(self.mean_frame.device)
        return small.permute(0, 3, 1, 2).to(torch.float32).div_(255.0)

    @torch.inference_mode()
    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Frames (B, H, W, 3) uint8 RGB -> tokens (B, N, F) float32."""
        return _tokens(self.posterior(self.prepare(frames))[0])

    def refine(self, frame: np.ndarray, budget: Budget, attention: np.ndarray | None = None) -> Refinement[np.ndarray]:
        """One frame (H, W, 3) uint8 RGB -> tokens (N, F) float32; energy: mean squared error of its reconstruction.

        All places are refined at once, whatever the ``attention``.
        """
        found = refine(_Reconstruction(self), frame, budget)
        return Refinement(_tokens(found.state.latent)[0], found.energies, found.halt, found.seconds)

    def save(self, folder: Path | str, about: Mapping[str, Any] | None = None) -> None:
        """Write model.safetensors and config.json; ``about`` is kept in the latter, for the reader."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        (folder / WEIGHTS).write_bytes(safetensors.torch.save(weights))  # save_file leaves a file only its owner reads
        config = {"format": FORMAT, **asdict(self.config), "sha256": self.sha256, "about": dict(about or {})}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu", runtime: Runtime = EXACT) -> TinyVae:
        """Read what :meth:`save` wrote. Raises EncoderError on anything missing, damaged or ill-fitting.

        It runs in torch and fp32 alone: a frame takes a millisecond, and refinement needs gradients.
        """
        folder, target = Path(folder).expanduser(), pick_device(device)
        if runtime.engine == "onnxruntime" or runtime.precision not in ("auto", "fp32"):
            wanted = f"{runtime.engine} {runtime.precision}"
            raise EncoderError(f"tiny_vae runs in torch and fp32, not {wanted}: choose auto for both")
        missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
        if missing:
            raise EncoderError(f"{folder} has no {' and no '.join(missing)}: {REMEDY}")
        stored = _read_config(folder / CONFIG)
        try:
            model = cls(TinyVaeConfig(**{f.name: stored[f.name] for f in fields(TinyVaeConfig)}))
        except (KeyError, TypeError, ValueError) as error:
            raise EncoderError(f"{folder / CONFIG}: not the sizes of a TinyVAE ({error}): {REMEDY}") from error
        try:
            weights = safetensors.torch.load_file(folder / WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise EncoderError(f"{folder / WEIGHTS} is damaged ({error}): {REMEDY}") from error
        expected = model.state_dict()
        odd = sorted(set(weights) ^ set(expected)) or [
            f"{name} {tuple(weights[name].shape)} {weights[name].dtype} for {tuple(expected[name].shape)} float32"
            for name in expected
            if weights[name].shape != expected[name].shape or weights[name].dtype != torch.float32
        ]
        if odd:
            raise EncoderError(f"{folder / WEIGHTS} does not fit {CONFIG}: {'; '.join(odd[:4])}: {REMEDY}")
        model.load_state_dict(weights)
        if model.sha256 != stored.get("sha256"):
            raise EncoderError(f"{folder / WEIGHTS}: sha256 {model.sha256[:12]}… is not the one in {CONFIG}: {REMEDY}")
        return model.to(target).eval().requires_grad_(False)


@dataclass
class _Guess:
    """A latent (1, F, rows, columns), its energy once that is known, and the way that led to it."""

    latent: Tensor
    energy: Tensor | None = None
    slope: Tensor | None = None  # where the last step began
    direction: Tensor | None = None  # of the last step


class _Reconstruction:
    """Explain one frame better: the refinement of its latent."""

    def __init__(self, model: TinyVae) -> None:
        self.model = model

    def init_state(self, observation: object) -> _Guess:
        assert isinstance(observation, np.ndarray)
        with torch.no_grad():
            self.target = self.model.prepare(observation[None])
            self.reach = STEP * self.target.numel()
            return _Guess(self.model.posterior(self.target)[0])

    def energy(self, state: _Guess) -> float:
        """Mean squared error; its graph is kept, so that a following step only has to walk it backwards."""
        if state.energy is None:
            with torch.enable_grad():
                state.latent.requires_grad_()
                state.energy = (self.model.decode(state.latent) - self.target).square().mean()
        return float(state.energy.detach())

    def step(self, state: _Guess) -> _Guess:
        """Along a conjugate direction as far as the energy falls; the same state where no tried step lowers it."""
        energy = self.energy(state)
        assert state.energy is not None
        (slope,) = torch.autograd.grad(state.energy, state.latent)
        direction = -slope
        if state.slope is not None and state.direction is not None:
            turn = (slope * (slope - state.slope)).sum() / state.slope.square().sum().clamp_min(1e-30)
            bent = direction + turn.clamp_min(0.0) * state.direction
            direction = bent if (bent * slope).sum() < 0 else direction
        for _ in range(BACKTRACKS):
            tried = _Guess(state.latent.detach() + self.reach * direction, None, slope, direction)
            if self.energy(tried) < energy:
                self.reach *= GROWTH
                return tried
            self.reach *= 0.5
        return _Guess(state.latent.detach(), state.energy.detach())

    def project(self, state: _Guess) -> _Guess:
        """Any latent is allowed."""
        return state


def shrink(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames (B, H, W, 3) uint8 -> (B, size, size, 3) uint8, each pixel the mean of its area."""
    small = np.empty((len(check_frames(frames)), size, size, 3), dtype=np.uint8)
    for frame, out in zip(frames, small, strict=True):
        cv2.resize(frame, (size, size), dst=out, interpolation=cv2.INTER_AREA)
    return small


def _tokens(latent: Tensor) -> np.ndarray:
    """(B, F, rows, columns) -> (B, N, F) float32, row-major over the grid."""
    tokens = latent.detach().flatten(2).transpose(1, 2).cpu().numpy()
    return np.ascontiguousarray(tokens, dtype=np.float32)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise EncoderError(f"{path} is not readable JSON ({error}): {REMEDY}") from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise EncoderError(f"{path}: format is not '{FORMAT}': {REMEDY}")
    if isinstance(stored.get("widths"), list):
        stored["widths"] = tuple(stored["widths"])
    return stored
