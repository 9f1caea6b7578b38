"""Small data sets for the episode tests, and ways to spoil them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sage_ros.core.joints import JointLayout
from sage_ros.episodes import DatasetError, EpisodeWriter
from sage_ros.episodes.video import encode

DEMO = Path(__file__).parents[2] / "shared/demo_data/robot_sim.PickNPlace"
JOINTS = JointLayout(("pan", "lift", "grip"), {"arm": (0, 2), "gripper": (2, 3)})
needs_demo = pytest.mark.skipif(not DEMO.is_dir(), reason="the GR00T demonstrations are not beside the checkout")


def film(rows: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth frames whose brightness tells the row: (rows, height, width, 3) uint8."""
    ramp = np.linspace(0, 60, width)[None, None, :, None] + np.linspace(0, 30, height)[None, :, None, None]
    return (ramp + np.linspace(20, 160, rows)[:, None, None, None] + np.zeros(3)).astype(np.uint8)


def make(folder: Path) -> Path:
    """Write a data set of two episodes, 6 and 8 rows, and return its folder."""
    with EpisodeWriter(folder, 20, "so101", JOINTS, {"front": (48, 64)}) as writer:
        for rows, task in ((6, "pick"), (8, "place")):
            state = np.linspace(0, 1, rows * 3).reshape(rows, 3)
            writer.add(state=state, action=state + 1, frames={"front": film(rows)}, task=task)
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite(folder: Path, change: Callable[[dict[str, pa.Array]], object], episode: int = 0) -> None:
    """Change the columns of an episode's parquet: ``change`` gets and alters a map of column name to Arrow array."""
    path = folder / f"data/chunk-000/episode_{episode:06d}.parquet"
    table = pq.read_table(path, partitioning=None)
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    change(columns)
    pq.write_table(pa.table(columns), path)


def make_v3(folder: Path, images: bool = False) -> Path:
    """Write the episodes of :func:`make` as LeRobot v3.0 does: all in one parquet file, all in one film or none."""
    lengths, words = (6, 8), ("pick", "place")
    films = [film(rows) for rows in lengths]
    state = np.concatenate([np.linspace(0, 1, rows * 3).reshape(rows, 3) for rows in lengths])
    numbers = np.repeat([0, 1], lengths)
    steps = np.concatenate([np.arange(rows) for rows in lengths])
    columns = {
        "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(state.ravel().astype(np.float32)), 3),
        "action": pa.FixedSizeListArray.from_arrays(pa.array((state + 1).ravel().astype(np.float32)), 3),
        "timestamp": pa.array((steps / 20).astype(np.float32)),
        "frame_index": pa.array(steps),
        "episode_index": pa.array(numbers),
        "index": pa.array(np.arange(14)),
        "task_index": pa.array(numbers),
    }
    key, at = "observation.images.front", "videos/observation.images.front/"
    ends = np.cumsum(lengths)
    index = {
        "episode_index": [0, 1],
        "tasks": [[word] for word in words],
        "length": list(lengths),
        "data/chunk_index": [0, 0],
        "data/file_index": [0, 0],
        "dataset_from_index": [0, 6],
        "dataset_to_index": [6, 14],
    }
    for part in ("data/chunk-000", f"{at}chunk-000", "meta/episodes/chunk-000"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    if images:
        coded = [cv2.imencode(".png", frame[..., ::-1])[1].tobytes() for frame in np.concatenate(films)]
        columns[key] = pa.array([{"bytes": c, "path": f"{k}.png"} for k, c in enumerate(coded)])
    else:
        encode(folder / f"{at}chunk-000/file-000.mp4", np.concatenate(films), 20, crf=10)
        index |= {f"{at}chunk_index": [0, 0], f"{at}file_index": [0, 0]}
        index |= {f"{at}from_timestamp": [0.0, 0.3], f"{at}to_timestamp": (ends / 20).tolist()}
    pq.write_table(pa.table(columns), folder / "data/chunk-000/file-000.parquet", row_group_size=6)
    pq.write_table(pa.table(index), folder / "meta/episodes/chunk-000/file-000.parquet")
    tasks = pa.table({"task_index": [0, 1], "__index_level_0__": list(words)})
    pq.write_table(tasks, folder / "meta/tasks.parquet")
    vector = {"dtype": "float32", "shape": [3], "names": ["left_pan.pos", "left_lift.pos", "left_gripper.pos"]}
    picture = {"dtype": "image" if images else "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    info = {
        "codebase_version": "v3.0",
        "robot_type": "so101",
        "fps": 20,
        "total_episodes": 2,
        "total_frames": 14,
        "total_tasks": 2,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None if images else "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {"observation.state": vector, "action": vector, key: picture},
    }
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def spoilt_and_refused(files: list[Path], read: Callable[[], object]) -> int:
    """Spoil a few bytes of each file in turn: how often ``read`` raises DatasetError, the only error it may raise."""
    rng = np.random.default_rng(2)
    refused = 0
    for path in files:
        good = path.read_bytes()
        spoilt = bytearray(good)
        for at in rng.integers(0, len(good), rng.integers(1, 9)):
            spoilt[at] = rng.integers(0, 256)
        path.write_bytes(spoilt)
        try:
            read()
        except DatasetError as error:
            assert error.remedy
            refused += 1
        path.write_bytes(good)
    return refused
