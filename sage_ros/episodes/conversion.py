"""Data sets to LeRobot v2.1 or to bags, bags to data sets; gone on with where it was interrupted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from .bag_reader import BagEpisode, is_bag, read_bag
from .bag_writer import write_bag
from .dataset import Episode, EpisodeDataset
from .errors import DatasetError
from .mapping import FILE, BagMapping, default_mapping, dump_mapping, read_mapping
from .video import codec_of
from .writer import EpisodeWriter
from .writing import writing


def to_v21(dataset: EpisodeDataset, target: Path, crf: int = 18, lossless: bool = False) -> int:
    """Write the data set as LeRobot v2.1 with GR00T's modality.json; returns how many episodes were written now.

    H.264 films that belong to one episode are copied as they are; others (AV1, image columns, films of many episodes,
    frames paired by time) are encoded anew. A conversion that was interrupted goes on after its last whole episode.
    """
    first = dataset[0]
    sizes = {camera: _even(first, camera) for camera in dataset.cameras}
    infos = {camera: info for camera in dataset.cameras if (info := dataset.camera_info(camera))}
    writer = EpisodeWriter(
        target, dataset.fps, dataset.robot_type, dataset.state_joints, sizes, action_joints=dataset.action_joints,
        crf=crf, append=True, lossless=lossless, intrinsics=infos, source=str(dataset.path),
    )  # fmt: skip
    with writer:
        done = len(writer)
        positions = range(done, len(dataset))
        for position in tqdm(positions, "episodes", initial=done, total=len(dataset), unit="", disable=None):
            episode = dataset[position]
            frames = {camera: _film(dataset, episode, camera, lossless) for camera in dataset.cameras}
            writer.add(episode.state, episode.action, episode.task, frames)
    return len(dataset) - done


def _even(episode: Episode, camera: str) -> tuple[int, int]:
    """Size (H, W) of a camera as written: H.264 in yuv420p needs even sizes, an odd last line is cut off."""
    height, width = episode.frames(camera).shape[1:3]
    return height - height % 2, width - width % 2


def _film(dataset: EpisodeDataset, episode: Episode, camera: str, lossless: bool) -> np.ndarray | Path:
    video = episode.videos[camera]
    own = not dataset.version.startswith("v3") and not dataset.schema.cameras[camera].in_rows
    if own and dataset.align == "index" and codec_of(video.path)[0] == "h264" and not lossless:
        return video.path
    height, width = _even(episode, camera)
    return episode.frames(camera)[:, :height, :width]


def to_bags(dataset: EpisodeDataset, target: Path, mapping: BagMapping | None = None, packing: str = "raw") -> int:
    """Write each episode as a bag, ``target/episode_000000`` and so on, and the mapping; returns how many now."""
    mapping = mapping or default_mapping(
        dataset.fps, dataset.robot_type, dataset.cameras, dataset.state_joints, dataset.action_joints
    )
    unknown = [camera for camera in mapping.cameras if camera not in dataset.cameras]
    if unknown:
        what = f"the mapping has camera {', '.join(unknown)}; there are: {', '.join(dataset.cameras) or 'none'}"
        raise DatasetError(what, dataset.path, remedy="correct the mapping")
    infos = {camera: info for camera in mapping.cameras if (info := dataset.camera_info(camera))}
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        text, kept = dump_mapping(mapping), target / FILE
        if kept.exists() and kept.read_text("utf-8") != text:
            raise DatasetError("is of another conversion", kept, remedy="name another folder")
        if not kept.exists() and any(target.iterdir()):
            raise DatasetError("folder exists and is not empty", target, remedy="name another folder")
        kept.write_text(text, "utf-8")
    written = 0
    for position, index in enumerate(tqdm(dataset.indices, "episodes", unit="", disable=None)):
        path = target / f"episode_{index:06d}"
        if not path.exists():
            write_bag(path, dataset[position], mapping, packing, infos)
            written += 1
    return written


def from_bags(
    source: Path, target: Path, mapping: BagMapping | None = None, crf: int = 18, lossless: bool = False
) -> int:
    """Write a bag, or a folder of bags in the order of their names, as a LeRobot v2.1 data set; returns how many now.

    Without a mapping the ``mapping.yaml`` beside the bags says what is what. Goes on after the last whole episode.
    """
    bags = [source] if is_bag(source) else sorted(path for path in source.iterdir() if is_bag(path))
    mapping = mapping or read_mapping((source if source.is_dir() else source.parent) / FILE)
    writer: EpisodeWriter | None = None
    position = written = 0
    for bag in tqdm(bags, "bags", unit="", disable=None):
        for episode in read_bag(bag, mapping):
            if writer is None:
                writer = _writer(target, episode, mapping, crf, lossless, str(source.resolve()))
            if position >= len(writer):
                writer.add(episode.state, episode.action, episode.task, _cut(episode))
                written += 1
            position += 1
    if writer is None:
        raise DatasetError("holds no episode", source, remedy="record the mapped topics together")
    writer.close()
    return written


def _writer(
    target: Path, episode: BagEpisode, mapping: BagMapping, crf: int, lossless: bool, source: str
) -> EpisodeWriter:
    sizes = {camera: film.shape[1:3] for camera, film in _cut(episode).items()}
    return EpisodeWriter(
        target, mapping.fps, mapping.robot_type, episode.state_joints, sizes, action_joints=episode.action_joints,
        crf=crf, append=True, lossless=lossless, source=source,
    )  # fmt: skip


def _cut(episode: BagEpisode) -> dict[str, np.ndarray]:
    return {
        camera: film[:, : film.shape[1] // 2 * 2, : film.shape[2] // 2 * 2] for camera, film in episode.frames.items()
    }


def bags_in(source: Path) -> bool:
    """Whether ``source`` is a bag or a folder of bags."""
    return is_bag(source) or (source.is_dir() and any(is_bag(path) for path in source.iterdir()))
