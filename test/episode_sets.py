"""Small data sets for the episode tests, and ways to spoil them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sage_ros.core.joints import JointLayout
from sage_ros.episodes import EpisodeWriter

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
