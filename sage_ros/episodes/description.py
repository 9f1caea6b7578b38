"""What a LeRobot v2.1 data set with GR00T's modality.json says of itself: the contents of ``meta/``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.joints import JointLayout
from .errors import DatasetError
from .modality import TASK_KEY
from .rows import describe

CHUNKS_SIZE = 1000
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
INTEGERS = ("frame_index", "episode_index", "index", "task_index", f"annotation.{TASK_KEY}")  # columns of every set
_IMAGE_SAMPLES = 100  # frames of an episode that its image statistics are taken over, as in LeRobot


@dataclass(frozen=True)
class Description:
    """A data set to be written: ``joints`` are its columns of numbers, ``cameras`` sizes (H, W)."""

    fps: float
    robot_type: str
    joints: Mapping[str, JointLayout]
    cameras: Mapping[str, tuple[int, int]]
    lossless: bool
    intrinsics: Mapping[str, Mapping[str, Any]]
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.fps) and 0 < self.fps <= 1000):
            raise DatasetError(f"fps is {self.fps}", remedy="give 0 < fps <= 1000")
        for name, (height, width) in self.cameras.items():
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise DatasetError(f"camera name {name!r}", remedy="use letters, digits, '_', '-' and '.' only")
            if height < 16 or width < 16 or height % 2 or width % 2:
                raise DatasetError(f"camera '{name}' is {width}x{height}", remedy="use even sizes of 16 or more")
        for column, layout in self.joints.items():
            if not len(layout):
                raise DatasetError(f"'{column}' has no joints", remedy="name at least one joint")

    def info(self, lengths: Sequence[int], tasks: int) -> dict[str, Any]:
        """info.json, of episodes of these lengths."""
        episodes, fps = len(lengths), int(self.fps) if float(self.fps).is_integer() else self.fps
        features: dict[str, Any] = {
            name: {"dtype": "float32", "shape": [len(layout)], "names": list(layout.names)}
            for name, layout in self.joints.items()
        }
        for camera, (height, width) in self.cameras.items():
            pixels = "gbrp" if self.lossless else "yuv420p"
            film = {"height": height, "width": width, "codec": "h264", "pix_fmt": pixels, "is_depth_map": False}
            film |= {"fps": fps, "channels": 3}
            features[video_key(camera)] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": {f"video.{key}": value for key, value in film.items()} | {"has_audio": False},
            }
            if camera in self.intrinsics:
                features[video_key(camera)]["info"]["camera_info"] = self.intrinsics[camera]
        scalars = {"timestamp": "float32", **dict.fromkeys(INTEGERS, "int64"), "next.done": "bool"}
        features |= {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in scalars.items()}
        return ({"source": self.source} if self.source else {}) | {
            "codebase_version": "v2.1",
            "robot_type": self.robot_type,
            "total_episodes": episodes,
            "total_frames": sum(lengths),
            "total_tasks": tasks,
            "total_videos": episodes * len(self.cameras),
            "total_chunks": math.ceil(episodes / CHUNKS_SIZE),
            "chunks_size": CHUNKS_SIZE,
            "fps": fps,
            "splits": {"train": f"0:{episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": features,
        }

    def modality(self) -> dict[str, Any]:
        """modality.json, GR00T's view: groups of joints ("joints" where the layout has none), cameras, tasks."""
        modality: dict[str, Any] = {}
        for kind, column in (("state", "observation.state"), ("action", "action")):
            groups = self.joints[column].groups or {"joints": (0, len(self.joints[column]))}
            slices = {name: {"start": start, "end": end} for name, (start, end) in groups.items()}
            modality[kind] = {name: edges | {"original_key": column} for name, edges in slices.items()}
        modality["video"] = {camera: {"original_key": video_key(camera)} for camera in self.cameras}
        return modality | {"annotation": {TASK_KEY: {}}}


def video_key(camera: str) -> str:
    return f"observation.images.{camera}"


def numbers(column: np.ndarray) -> dict[str, list[float]]:
    """Statistics of a column as lists, one number per value of a row."""
    return {key: value.tolist() for key, value in describe(column.reshape(len(column), -1).astype(np.float64)).items()}


def sampling(length: int) -> int:
    """Every how manyth frame of an episode its image statistics are taken over."""
    return math.ceil(length / _IMAGE_SAMPLES)


def image_numbers(sample: np.ndarray) -> dict[str, Any]:
    """LeRobot's image statistics: per channel over sampled frames, in 0..1, shaped (3, 1, 1); count of frames."""
    counts = np.stack([np.bincount(sample[..., channel].ravel(), minlength=256) for channel in range(3)])
    levels, total = np.arange(256) / 255.0, counts[0].sum()
    mean = counts @ levels / total
    std = np.sqrt(np.maximum(counts @ levels**2 / total - mean**2, 0.0))
    seen = [levels[np.flatnonzero(channel)] for channel in counts]
    numbers = {"mean": mean, "std": std, "min": np.array([s[0] for s in seen]), "max": np.array([s[-1] for s in seen])}
    return {key: value.reshape(3, 1, 1).tolist() for key, value in numbers.items()} | {"count": [len(sample)]}
