"""What a token map is worth: how well frames come back from it, and whether it says where a thing is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from sage_ros.core.irp import Budget
from sage_ros.vision.encoder import Encoder
from sage_ros.vision.tiny_vae import TinyVae

PCA_FRAMES = 4000  # at most so many frames, evenly spaced: its cost grows with their cube
STRENGTHS = (1.0, 10.0, 100.0, 1e3, 1e4)  # of ridge regression, on standardised features
MOVING = 0.1  # a pixel that is this far from the mean frame, of 1, belongs to something that moves
REFINED, REFINED_FRAMES = (0, 1, 2, 4, 8), 200  # budgets of steps that are measured, on so many frames
LEAST_PIXELS = 20  # of a thing's colour: with fewer it counts as hidden


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of pixels in [0, 1]."""
    return float(-10.0 * np.log10(max(error, 1e-12)))


@dataclass(frozen=True)
class Pca:
    """Principal components of training rows: mean (D,), components (K, D), float32."""

    mean: Tensor
    components: Tensor

    @classmethod
    def fit(cls, rows: Tensor, numbers: int) -> Pca:
        """The exact ``numbers`` first components of rows (n, D), fewer where n is smaller, from the rows' products."""
        mean = rows.mean(dim=0)
        centred = rows - mean
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        count = min(numbers, len(rows) - 1)
        values, vectors = values[-count:].flip(0).clamp_min(1e-9), vectors[:, -count:].flip(1)
        return cls(mean, (vectors / values.sqrt()).T @ centred)

    def encode(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) @ self.components.T

    def decode(self, codes: Tensor) -> Tensor:
        return codes @ self.components + self.mean


def spaced(count: int, most: int) -> np.ndarray:
    """Indices of at most ``most`` of ``count`` things, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def colour_centre(frames: np.ndarray, colour: Sequence[float]) -> np.ndarray:
    """Centre of the pixels of a colour's hue, (T, 2) as (x, y) shares of width and height; NaN where it is hidden.

    frames (T, H, W, 3) uint8 RGB; colour (3,) RGB. A pixel counts if it points where the colour points in RGB space
    (cosine above 0.95), at a fifth of its brightness or more.
    """
    wanted = np.asarray(colour, dtype=np.float32)
    length = float(np.linalg.norm(wanted))
    centres = np.full((len(frames), 2), np.nan)
    for row, frame in enumerate(frames):
        pixels = frame.astype(np.float32)
        along = pixels @ (wanted / length)
        mask = (along > 0.95 * np.sqrt((pixels**2).sum(axis=-1))) & (along > 0.2 * length)
        moments = cv2.moments(mask.astype(np.uint8), binaryImage=True)
        if moments["m00"] >= LEAST_PIXELS:
            centre = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
            centres[row] = (centre + 0.5) / (frame.shape[1], frame.shape[0])
    return centres


class Ridge:
    """Linear regression from features to places, its strength chosen on every fifth training group (an episode)."""

    def __init__(self, features: np.ndarray, places: np.ndarray, groups: np.ndarray) -> None:
        """features (n, D), places (n, P), groups (n,). Raises ValueError with fewer than two groups."""
        names = np.unique(groups)
        if len(names) < 2:
            raise ValueError("a probe needs two training episodes or more")
        self._mean, self._std = features.mean(axis=0), features.std(axis=0) + 1e-6
        self._middle = places.mean(axis=0)
        scaled, aside = self._scale(features), np.isin(groups, names[::5])
        kept = [self._solve(scaled[~aside], places[~aside], s) for s in STRENGTHS]
        errors = [np.square(scaled[aside] @ w + self._middle - places[aside]).sum() for w in kept]
        self.strength = STRENGTHS[int(np.argmin(errors))]
        self._weights = self._solve(scaled, places, self.strength)

    def _scale(self, features: np.ndarray) -> np.ndarray:
        return (features.astype(np.float64) - self._mean) / self._std

    def _solve(self, x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
        return np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ (y - self._middle))

    def error(self, features: np.ndarray, places: np.ndarray) -> dict[str, float]:
        """Median and 90th percentile of the distance between said and true place, in percent."""
        distance = 100.0 * np.linalg.norm(self._scale(features) @ self._weights + self._middle - places, axis=1)
        return {"median": float(np.median(distance)), "p90": float(np.quantile(distance, 0.9))}


def milliseconds(encoder: Encoder, frame: np.ndarray, times: int = 60) -> float:
    """Median time of one frame's coarse pass on one torch thread, resizing included."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        encoder.encode(frame[None])
        taken.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return 1e3 * float(np.median(taken[times // 4 :]))


def refinement_table(
    encoder: Encoder,
    frames: np.ndarray,
    steps: Sequence[int],
    places: np.ndarray | None = None,
    probe: Ridge | None = None,
) -> list[dict[str, float]]:
    """For every budget of steps: mean energy, median time per frame (ms), and the probe's error on the tokens.

    frames (T, H, W, 3) uint8, places (T, P). The probe is one that was fitted on coarse tokens.
    """
    table = []
    for count in steps:
        found = [encoder.refine(frame, Budget(max(count, 1), tolerance=0.0)) for frame in frames[:3]]  # warm up
        found = [encoder.refine(frame, Budget(max(count, 1), tolerance=0.0)) for frame in frames]
        if count == 0:
            tokens = encoder.encode(frames)
            energy = float(np.mean([f.energies[0] for f in found]))
            taken = milliseconds(encoder, frames[0])
        else:
            tokens = np.stack([f.state for f in found])
            energy = float(np.mean([min(f.energies) for f in found]))
            taken = 1e3 * float(np.median([f.seconds for f in found]))
        row = {"steps": float(count), "energy": energy, "psnr": psnr(energy), "milliseconds": taken}
        if probe is not None and places is not None:
            row |= probe.error(tokens.reshape(len(tokens), -1), places)
        table.append(row)
    return table


@dataclass(frozen=True)
class View:
    """One episode as the network sees it."""

    index: int
    frames: np.ndarray  # (T, size, size, 3) uint8
    places: np.ndarray | None  # (T, 2) where the probe's thing is, shares of width and height; NaN: hidden


def moving_mask(frames: Tensor, mean_frame: Tensor) -> Tensor:
    """1 where a pixel differs from the mean frame, else 0: (B, 1, H, W) float32."""
    return ((frames - mean_frame).abs().amax(dim=1, keepdim=True) > MOVING).float()


@torch.inference_mode()
def reconstruction_error(model: TinyVae, frames: np.ndarray) -> tuple[float, float]:
    """Mean squared error of frames (T, size, size, 3) uint8 through the tokens: of all pixels, of the moving ones."""
    total = moving = count = 0.0
    for start in range(0, len(frames), 64):
        seen = model.prepare(frames[start : start + 64])
        square = (model.decode(model.posterior(seen)[0]) - seen).square()
        mask = moving_mask(seen, model.mean_frame)
        total += float(square.sum())
        moving += float((square * mask).sum())
        count += float(mask.sum()) * 3
    return total / frames.size, moving / max(count, 1.0)


def measure(model: TinyVae, training: Sequence[View], held_out: Sequence[View]) -> dict[str, Any]:
    """Reconstruction, localisation, time, refinement on ``held_out``, beside PCA of as many numbers and the mean."""
    seen, new = (np.concatenate([view.frames for view in part]) for part in (training, held_out))
    rows = [torch.from_numpy(part.reshape(len(part), -1)) for part in (seen, new)]
    numbers = model.grid[0] * model.grid[1] * model.features
    pca = Pca.fit(rows[0][spaced(len(seen), PCA_FRAMES)].float() / 255.0, numbers)
    codes = [np.concatenate([pca.encode(p.float() / 255.0).numpy() for p in part.split(512)]) for part in rows]
    truth = rows[1].float() / 255.0
    mask = moving_mask(torch.from_numpy(new).permute(0, 3, 1, 2) / 255.0, model.mean_frame).flatten(2).transpose(1, 2)
    guesses = {"pca": pca.decode(torch.from_numpy(codes[1])), "mean frame": pca.mean.expand_as(truth)}
    errors = {"tiny_vae": reconstruction_error(model, new)}
    for name, guess in guesses.items():
        square = (guess - truth).square()
        moving = (square.view(*mask.shape[:2], 3) * mask).sum() / (3.0 * mask.sum().clamp_min(1.0))
        errors[name] = (float(square.mean()), float(moving))
    found: dict[str, Any] = {
        "numbers": {"tiny_vae": numbers, "pca": len(pca.components)},
        "reconstruction": {
            name: {"mse": everywhere, "psnr": psnr(everywhere), "moving_psnr": psnr(moving)}
            for name, (everywhere, moving) in errors.items()
        },
        "milliseconds": milliseconds(model, np.repeat(np.repeat(new[0], 4, axis=0), 4, axis=1)),
    }
    tokens = [np.concatenate([model.encode(part[i : i + 64]) for i in range(0, len(part), 64)]) for part in (seen, new)]
    places, probe, chosen = None, None, spaced(len(new), REFINED_FRAMES)
    if all(view.places is not None for view in (*training, *held_out)):
        there = [np.concatenate([v.places for v in part if v.places is not None]) for part in (training, held_out)]
        shown = [~np.isnan(part).any(axis=1) for part in there]
        if len(training) > 1 and min(part.sum() for part in shown) >= 50:
            groups = np.concatenate([np.full(len(view.frames), view.index) for view in training])[shown[0]]
            flat = [part.reshape(len(part), -1) for part in tokens]
            probe = Ridge(flat[0][shown[0]], there[0][shown[0]], groups)
            other = Ridge(codes[0][shown[0]], there[0][shown[0]], groups)
            found["localisation"] = {
                "unit": "percent of the picture's width",
                "rows": int(shown[1].sum()),
                "tiny_vae": probe.error(flat[1][shown[1]], there[1][shown[1]]),
                "pca": other.error(codes[1][shown[1]], there[1][shown[1]]),
            }
            chosen = np.flatnonzero(shown[1])[spaced(int(shown[1].sum()), REFINED_FRAMES)]
            places = there[1][chosen]
    found["refinement"] = refinement_table(model, new[chosen], REFINED, places, probe)
    return found


def format_metrics(metrics: dict[str, Any]) -> str:
    """The metrics as tables for people."""
    count, where = metrics["numbers"], metrics.get("localisation")
    lines = [f"{'':12}{'numbers':>8}{'MSE':>10}{'PSNR dB':>9}{'moving dB':>11}{'place, median %':>17}{'p90 %':>7}"]
    for name, row in metrics["reconstruction"].items():
        line = f"{name:12}{count.get(name, 0):8d}{row['mse']:10.6f}{row['psnr']:9.2f}{row['moving_psnr']:11.2f}"
        if where and name in where:
            line += f"{where[name]['median']:17.2f}{where[name]['p90']:7.2f}"
        lines.append(line)
    lines += ["", f"{'steps':>5}{'energy':>12}{'PSNR dB':>9}{'ms':>8}{'place, median %':>17}"]
    for row in metrics["refinement"]:
        line = f"{row['steps']:5.0f}{row['energy']:12.6f}{row['psnr']:9.2f}{row['milliseconds']:8.2f}"
        lines.append(line + (f"{row['median']:17.2f}" if "median" in row else ""))
    if not where:
        lines.append("no localisation: fewer than 50 rows show the colour (--colour), or one training episode")
    return "\n".join(lines)
