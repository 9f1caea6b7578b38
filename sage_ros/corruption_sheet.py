"""One picture of all corruptions of pictures: a row per kind, a column per severity, at one moment of an episode."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sage_ros.core.timing import SECOND
from sage_ros.corruption import FRAMES, HELD_OUT, KINDS, Corruption, CorruptionConfig
from sage_ros.episodes.dataset import EpisodeDataset
from sage_ros.episodes.errors import DatasetError
from sage_ros.paths import dataset_path

UNITS = {
    "occlusion": "{:.0%} covered", "blur": "radius {:g}/224", "noise": "deviation {:g}", "exposure": "{:g} stops",
    "colour_shift": "factor {:g}", "freeze": "{:g} s", "frame_drop": "{:.0%} lost", "latency": "{:g} s",
    "camera_moved": "{:g}°",
}  # fmt: skip
TILE = 1.25  # inches


def last_seen(frames: np.ndarray, rate: float, config: CorruptionConfig) -> np.ndarray | None:
    """What comes of the last of ``frames`` (T, H, W, 3) under the corruption; None: nothing."""
    corruption = Corruption(config)
    return [corruption.frame(round(row * SECOND / rate), frame) for row, frame in enumerate(frames)][-1]


def draw_sheet(frames: np.ndarray, rate: float, seed: int = 0, begin: float = 1.0) -> Figure:
    """The last of ``frames`` (T, H, W, 3) uint8 as each kind at each severity shows it, if it began at ``begin`` s."""
    kinds = [kind for kind, about in KINDS.items() if about.stream == FRAMES]
    figure = Figure(figsize=(6 * TILE, len(kinds) * (TILE + 0.16)))
    axes = figure.subplots(len(kinds), 6)
    figure.subplots_adjust(0.045, 0.002, 0.998, 0.985, 0.03, 0.14)
    for row, kind in enumerate(kinds):
        axes[row, 0].set_ylabel(kind + (" (held out)" if kind in HELD_OUT else ""), fontsize=6.5)
        for severity in range(6):
            config = CorruptionConfig(kind if severity else "none", max(severity, 1), seed, begin)
            ax, seen = axes[row, severity], last_seen(frames, rate, config)
            ax.imshow(np.full_like(frames[-1], 225) if seen is None else seen)
            if seen is None:
                ax.text(0.5, 0.5, "no frame", transform=ax.transAxes, ha="center", va="center", fontsize=7)
            level = "for good" if math.isinf(config.level) else UNITS[kind].format(config.level)
            ax.set_title(f"{severity}: {level}" if severity else "clean", fontsize=6.5, pad=1.5)
            ax.set(xticks=[], yticks=[])
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("corruption_sheet", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the picture, .jpg or .png")
    parser.add_argument("--dataset", default="", help="data set folder (default: the one in the package)")
    parser.add_argument("--episode", type=int, default=0, help="of it, by number (%(default)s)")
    parser.add_argument("--at", type=float, default=3.5, metavar="S", help="moment of the episode (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the corruptions (%(default)s)")
    args = parser.parse_args(argv)
    try:
        dataset = EpisodeDataset(dataset_path(args.dataset))
        if args.episode not in dataset.indices:
            raise ValueError(f"{dataset.path} has no episode {args.episode}")
        frames = dataset[dataset.indices.index(args.episode)].frames()
        rows = round(args.at * dataset.fps) + 1
        if not 1 <= rows <= len(frames):
            raise ValueError(f"--at {args.at:g} is outside of the episode, which lasts {len(frames) / dataset.fps:g} s")
        args.out.parent.mkdir(parents=True, exist_ok=True)
        more = {"pil_kwargs": {"quality": 80}} if args.out.suffix in (".jpg", ".jpeg") else {}
        draw_sheet(frames[:rows], dataset.fps, args.seed).savefig(args.out, dpi=110, **more)  # type: ignore[arg-type]
    except (DatasetError, ValueError, OSError) as error:
        print(f"corruption_sheet: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
