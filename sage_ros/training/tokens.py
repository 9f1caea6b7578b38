"""Episodes as a policy sees them: each frame encoded once, and kept on disk for the next run."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from sage_ros.episodes.dataset import Episode, EpisodeDataset
from sage_ros.paths import cache_folder
from sage_ros.training.openloop import Demonstration, demonstration
from sage_ros.vision.encoder import Encoder

BATCH = 32  # frames encoded at a time
COPIES = 3  # while rows are put together: tokens as they were, normalised, and one between
log = logging.getLogger(__name__)


def load_demonstrations(
    dataset: EpisodeDataset,
    encoder: Encoder,
    camera: str | None = None,
    episodes: Sequence[int] | None = None,
    cache: Path | None = None,
    progress: bool = True,
    memory: int | None = None,
) -> list[Demonstration]:
    """The episodes numbered ``episodes`` (None: all), with token maps of ``camera`` (None: the first).

    Token maps are kept in ``cache`` (None: ``tokens`` in :func:`~sage_ros.paths.cache_folder`) under a hash of the
    data set's content, the encoder's weights and the camera, each file with the sha256 of its tokens. Where all of them
    would take more than ``memory`` (bytes; None: any amount) with what is made of them, they stay on disk: the arrays
    are mapped, and read as they are used. Raises ValueError on an unknown episode, DatasetError on bad data.
    """
    wanted = list(dataset.indices if episodes is None else episodes)
    unknown = sorted(set(wanted) - set(dataset.indices))
    if unknown:
        raise ValueError(f"{dataset.path} has no episode {unknown}; it has {list(dataset.indices)}")
    view = f"{dataset.fingerprint()} {dataset.align} {camera or ''} {encoder.name} {encoder.sha256}"
    folder = (cache or cache_folder() / "tokens") / hashlib.sha256(view.encode()).hexdigest()[:32]
    size = 4 * sum(dataset.lengths) * encoder.grid[0] * encoder.grid[1] * encoder.features
    mapped = memory is not None and COPIES * size > memory
    found = []
    for index in tqdm(wanted, desc=f"encode with {encoder.name}", unit="episode", disable=not progress):
        episode = dataset[dataset.indices.index(index)]
        file = folder / f"episode_{index:06d}.safetensors"
        found.append(demonstration(episode, _tokens(episode, encoder, camera, file, mapped)))
    return found


def encode_frames(encoder: Encoder, frames: np.ndarray) -> np.ndarray:
    """Token maps (T, N, F) float32 of frames (T, H, W, 3) uint8, the encoder's coarse pass."""
    return np.concatenate([encoder.encode(frames[start : start + BATCH]) for start in range(0, len(frames), BATCH)])


def _tokens(episode: Episode, encoder: Encoder, camera: str | None, file: Path, mapped: bool) -> np.ndarray:
    shape = (len(episode), encoder.grid[0] * encoder.grid[1], encoder.features)
    if file.exists():
        try:
            return _read(file, shape, mapped)
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            log.warning("%s is damaged (%s): encoding the episode again", file, error)
    tokens = np.ascontiguousarray(encode_frames(encoder, episode.frames(camera)), dtype=np.float32)
    if tokens.shape != shape:
        raise ValueError(f"encoder {encoder.name} gave {tokens.shape} for episode {episode.index}, expected {shape}")
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file({"tokens": tokens}, part, {"sha256": _digest(tokens)})
        part.replace(file)
        return _read(file, shape, mapped) if mapped else tokens
    except OSError as error:
        log.warning("cannot keep tokens in %s (%s): the next run will encode again", file.parent, error)
    return tokens


def _read(file: Path, shape: tuple[int, ...], mapped: bool) -> np.ndarray:
    """The tokens in a file, mapped or in memory. Raises ValueError unless they are the ones that were written."""
    with safe_open(file, framework="pt" if mapped else "numpy") as opened:  # torch's are views of the mapped file
        tokens = opened.get_tensor("tokens")
        expected = (opened.metadata() or {}).get("sha256")
    tokens = tokens.numpy() if mapped else tokens
    if tokens.shape != shape or tokens.dtype != np.float32 or _digest(tokens) != expected:
        raise ValueError(f"{tokens.dtype} {tokens.shape} with another sha256 than it had")
    return np.asarray(tokens)


def _digest(tokens: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens).data).hexdigest()
