"""``train_vae``: train TinyVAE on the frames of recorded episodes; measure it on episodes it never saw, beside PCA."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from sage_ros import __version__
from sage_ros.core.options import check, option
from sage_ros.episodes import DatasetError, EpisodeDataset
from sage_ros.paths import dataset_path
from sage_ros.training.distil import split_episodes
from sage_ros.training.probes import (
    View,
    colour_centre,
    format_metrics,
    measure,
    moving_mask,
    psnr,
    reconstruction_error,
)
from sage_ros.vision.encoder import EncoderError, pick_device
from sage_ros.vision.tiny_vae import CONFIG, TinyVae, TinyVaeConfig, shrink

METRICS = "metrics.json"


@dataclass(frozen=True)
class VaeTraining:
    """How a TinyVAE is trained."""

    steps: int = option(2500, "gradient steps at most", low=1, high=10**7)
    batch_size: int = option(16, "frames per step", low=1, high=65536)
    lr: float = option(2e-3, "highest learning rate", low=1e-8, high=1.0)
    weight_decay: float = option(1e-3, "AdamW's weight decay", low=0.0, high=10.0)
    warmup: int = option(100, "steps until the highest learning rate", low=1, high=10**6)
    kl: float = option(2.5e-5, "weight of the divergence from the prior, beside the squared error", low=0.0, high=10.0)
    moving: float = option(3.0, "extra weight of pixels that differ from the mean frame", low=0.0, high=1000.0)
    shift: int = option(1, "frames are moved by up to so many pixels", low=0, high=64)
    evaluate_every: int = option(250, "steps between two looks at the validation episodes", low=1, high=10**6)
    patience: int = option(6, "looks without improvement after which training stops", low=1, high=10**6)
    seed: int = option(0, "seed of weights, batches and noise", low=0, high=2**31)

    def __post_init__(self) -> None:
        check(self)


def load_views(
    dataset: EpisodeDataset, indices: Sequence[int], size: int, camera: str | None, colour: Sequence[float] | None
) -> list[View]:
    """Frames of these episodes, shrunk, and where the thing of that ``colour`` (3,) RGB is in them."""
    views = []
    for index in tqdm(indices, desc="read frames", unit="episode"):
        frames = dataset[dataset.indices.index(index)].frames(camera)
        views.append(View(index, shrink(frames, size), None if colour is None else colour_centre(frames, colour)))
    return views


def train(
    model: TinyVae,
    frames: np.ndarray,
    validation: np.ndarray,
    config: VaeTraining,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[TinyVae, int, list[list[float | None]]]:
    """Fit ``model`` to frames (T, size, size, 3) uint8; keep the weights with the least error on ``validation``.

    The error is the mean squared one of pixels in [0, 1], from tokens without noise. Without validation frames the
    last weights are kept. Returns the model, its step, and [step, loss, validation error] at every look. The same
    seed and number of threads give the same weights on the same CPU. Raises ValueError if the loss stops being finite.
    """
    on = torch.device(device)
    random = torch.Generator().manual_seed(config.seed)
    torch.manual_seed(config.seed)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    model.mean_frame.copy_(_mean_frame(pixels))
    model.to(on).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / config.warmup) * 0.5 * (1.0 + math.cos(math.pi * step / config.steps)),
    )
    best, best_step, best_error = copy.deepcopy(model), 0, math.inf
    curve: list[list[float | None]] = []
    total = torch.zeros((), device=on)
    since = 0
    bar = tqdm(range(1, config.steps + 1), desc="train_vae", unit="step", disable=not progress)
    for step in bar:
        pick = torch.randint(len(pixels), (config.batch_size,), generator=random)
        seen = _shifted(pixels[pick].float().div_(255.0), config.shift, random).to(on)
        loss = _loss(model, seen.contiguous(memory_format=torch.channels_last), config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total = total + loss.detach()
        since += 1
        if step % config.evaluate_every and step != config.steps:
            continue
        mean_loss, total, since = float(total) / since, torch.zeros((), device=on), 0
        if not math.isfinite(mean_loss):
            raise ValueError(f"the loss is not finite at step {step}: lower the learning rate (--lr, now {config.lr})")
        error = reconstruction_error(model, validation)[0] if len(validation) else None
        curve.append([step, mean_loss, error])
        bar.set_postfix(loss=f"{mean_loss:.5f}", psnr="none" if error is None else f"{psnr(error):.2f}", best=best_step)
        if error is None or error < best_error:
            best, best_step, best_error = copy.deepcopy(model), step, math.inf if error is None else error
        elif step - best_step >= config.patience * config.evaluate_every:
            break
    bar.close()
    return best.cpu().eval().requires_grad_(False), best_step, curve


def _loss(model: TinyVae, seen: Tensor, config: VaeTraining) -> Tensor:
    """Squared error, heavier where something moves, and divergence from the prior (per latent number)."""
    mean, log_variance = model.posterior(seen)
    latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
    weight = 1.0 + config.moving * moving_mask(seen, model.mean_frame)
    error = (weight * (model.decode(latent) - seen).square()).sum() / (3.0 * weight.sum())
    divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1.0).mean()
    return error + config.kl * divergence


def _shifted(frames: Tensor, most: int, random: torch.Generator) -> Tensor:
    """Each frame moved by its own whole number of pixels, up to ``most``; what comes in repeats the edge."""
    if most == 0:
        return frames
    height, width = frames.shape[2:]
    padded = F.pad(frames, (most,) * 4, mode="replicate")
    corners = torch.randint(2 * most + 1, (len(frames), 2), generator=random).tolist()
    return torch.stack([f[:, y : y + height, x : x + width] for f, (y, x) in zip(padded, corners, strict=True)])


def _mean_frame(pixels: Tensor) -> Tensor:
    return torch.stack([part.float().sum(dim=0) for part in pixels.split(256)]).sum(dim=0) / (255.0 * len(pixels))


def train_vae(
    dataset: EpisodeDataset,
    out: Path,
    sizes: TinyVaeConfig,
    config: VaeTraining,
    camera: str | None = None,
    held_out: str = "8",
    validation: str = "4",
    split_seed: int = 0,
    colour: Sequence[float] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train, measure and write a TinyVAE to the folder ``out``; returns what metrics.json holds.

    The split is the one that ``distil`` makes of the same numbers, so a student's held-out episodes are unseen here.
    """
    start = time.perf_counter()
    split = split_episodes(dataset.indices, held_out, validation, split_seed)
    parts = [load_views(dataset, part, sizes.size, camera, colour) for part in asdict(split).values()]
    stacked = [np.concatenate([v.frames for v in part]) if part else np.empty((0,), np.uint8) for part in parts[:2]]
    torch.manual_seed(config.seed)
    model, step, curve = train(TinyVae(sizes), stacked[0], stacked[1], config, device)
    measured_on = "held_out" if parts[2] else "validation" if parts[1] else "train"
    metrics: dict[str, Any] = {
        "measured_on": measured_on,
        **measure(model, parts[0], parts[2] or parts[1] or parts[0]),
        "parameters": {
            "encoder": sum(p.numel() for p in model.encoder.parameters()),
            "decoder": sum(p.numel() for p in model.decoder.parameters()),
        },
        "best_step": step,
        "curve": curve,
        "config": asdict(config),
        "split": asdict(split),
        "dataset": {"name": dataset.path.name, "fingerprint": dataset.fingerprint(), "camera": camera or "first"},
        "seconds": round(time.perf_counter() - start, 1),
        "threads": torch.get_num_threads(),
        "device": device,
        "versions": {"sage_ros": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    model.save(out, {"trained_on": dataset.path.name, "fingerprint": metrics["dataset"]["fingerprint"]})
    (out / METRICS).write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return run(args)
    except (DatasetError, EncoderError, ValueError) as error:
        print(f"train_vae: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    out = Path(args.out).expanduser()
    if out.exists() and any(out.iterdir()) and not (args.overwrite and (out / CONFIG).is_file()):
        raise ValueError(f"{out} is not empty: give another folder, or --overwrite if it holds a TinyVAE")
    pick_device(args.device)
    torch.set_num_threads(args.threads)
    sizes = TinyVaeConfig(args.size, args.features, tuple(args.widths))
    config = VaeTraining(**{f.name: getattr(args, f.name) for f in fields(VaeTraining)})
    colour = [float(part) for part in args.colour.split(",")] if args.colour else None
    if colour is not None and (len(colour) != 3 or not any(colour)):
        raise ValueError(f"--colour is '{args.colour}', but must be R,G,B with 0 to 255 each, not black")
    dataset = EpisodeDataset(dataset_path(args.dataset))
    metrics = train_vae(dataset, out, sizes, config, args.camera or None, args.holdout, args.validation,
                        args.split_seed, colour, args.device)
    print(f"\nOn the {metrics['measured_on'].replace('_', '-')} episodes (best step {metrics['best_step']}; "
          f"{metrics['milliseconds']:.2f} ms a frame on one thread)\n{format_metrics(metrics)}\n\nencoder: {out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("train_vae", description=__doc__)
    parser.add_argument("--dataset", default="", help="LeRobot data set folder (default: the one in the package)")
    parser.add_argument("--out", required=True, help="folder of the new encoder")
    parser.add_argument("--overwrite", action="store_true", help="replace the TinyVAE that is there")
    parser.add_argument("--camera", default="", help="camera by name (default: the data set's first)")
    parser.add_argument("--size", type=int, default=64, help="side that frames are shrunk to, pixels (%(default)s)")
    parser.add_argument("--features", type=int, default=32, help="numbers per token (%(default)s)")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 96], help="channels of the layers")
    parser.add_argument("--holdout", default="8", metavar="N|LIST", help="as for distil (%(default)s)")
    parser.add_argument("--validation", default="4", metavar="N|LIST", help="as for distil (%(default)s)")
    parser.add_argument("--split-seed", type=int, default=0, help="as for distil (%(default)s)")
    parser.add_argument("--colour", default="217,20,15",
                        help="R,G,B of the thing whose place is probed; empty: no probe (%(default)s, the red cube)")
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument("--threads", type=int, default=max(1, min(8, os.cpu_count() or 1)), help="CPU threads")
    for item in fields(VaeTraining):
        flag, text = "--" + item.name.replace("_", "-"), item.metadata["description"]
        parser.add_argument(flag, type=type(item.default), default=item.default, help=f"{text} (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
