"""What is kept in memory, what is left out, and data sets by their name on the hub."""

from __future__ import annotations

import errno
import io
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from episode_sets import edit, make
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.episodes import DatasetError, EpisodeDataset
from sage_ros.episodes import hub as hub_module
from sage_ros.episodes.cache import ByteCache
from sage_ros.episodes.modality import save_modality

FILM = 48 * 64 * 3


@given(
    budget=st.integers(0, 50),
    steps=st.lists(st.tuples(st.sampled_from(["put", "get", "grow"]), st.integers(0, 5), st.integers(0, 30))),
)
def test_cache_never_holds_more_than_its_budget_but_for_the_last_item(budget, steps):
    cache: ByteCache[list[int]] = ByteCache(budget)
    sizes: dict[int, int] = {}
    for act, key, size in steps:
        if act == "put":
            cache.put(key, [key], size)
            sizes[key] = size
        elif (item := cache.get(key)) is not None and act == "grow":
            cache.grow(key, item, size)
            sizes[key] += size
        kept = [k for k in sizes if cache.get(k) is not None]
        assert cache.bytes == sum(sizes[k] for k in kept) and len(cache) == len(kept)
        assert cache.bytes <= budget or len(cache) == 1


def test_the_latest_episodes_are_kept_within_the_budget(tmp_path):
    dataset = EpisodeDataset(make(tmp_path / "set"), cache=1 << 20)
    first = dataset[0]
    assert dataset[0] is first and dataset[0].frames() is first.frames()
    assert np.array_equal(dataset[0].frame(3), first.frames()[3])
    small = EpisodeDataset(tmp_path / "set", cache=9 * FILM)
    first, frames = small[0], small[0].frames()
    small[1].frames()  # 8 frames: both together are too large
    assert small[0] is not first and first.frames() is frames, "what is in use stays"
    with pytest.raises(ValueError, match="0 or more"):
        EpisodeDataset(tmp_path / "set", cache=-1)


def test_missing_files_are_left_out_only_when_asked_and_told_once(tmp_path, caplog):
    folder = make(tmp_path / "set")
    (folder / "videos/chunk-000/observation.images.front/episode_000000.mp4").unlink()
    with pytest.raises(DatasetError, match="skip_missing=True"):
        EpisodeDataset(folder)[0]
    caplog.clear()
    dataset = EpisodeDataset(folder, skip_missing=True)
    assert dataset.indices == (1,) and len(dataset) == 1 and dataset[0].index == 1 and dataset.lengths == (8,)
    assert list(dataset.skipped) == [0] and "episode_000000.mp4" in dataset.skipped[0]
    assert len(caplog.records) == 1 and "1 of 2 episodes are left out" in caplog.text
    assert EpisodeDataset(folder, skip_missing=True, video=False).indices == (0, 1)
    (folder / "data/chunk-000/episode_000001.parquet").unlink()
    with pytest.raises(DatasetError, match="all 2 episodes lack files"):
        EpisodeDataset(folder, skip_missing=True)


def test_read_only_disk_is_enough_to_read(tmp_path, monkeypatch):
    folder = make(tmp_path / "set")
    (folder / "meta/stats.json").unlink()
    (folder / "meta/modality.json").unlink()
    opened = io.open

    def read_only(file, mode="r", *args, **more):
        if set(mode) & set("wax+"):
            raise OSError(errno.EROFS, "Read-only file system", str(file))
        return opened(file, mode, *args, **more)

    monkeypatch.setattr(io, "open", read_only)
    dataset = EpisodeDataset(folder)
    assert dataset[0].frames().shape == (6, 48, 64, 3) and dataset.stats and dataset.fingerprint()
    with pytest.raises(DatasetError, match=r"Read-only file system.*copy the data set"):
        save_modality(folder, dataset.modality)


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """A hub whose port nobody listens on, and a cache of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_module, "PATIENCE", 1)
    return tmp_path


def test_hub_that_cannot_be_reached_is_said_at_once(no_hub):
    began = time.monotonic()
    for name in ("nobody/nothing", "nobody/nothing@v1.0"):
        with pytest.raises(DatasetError, match=r"nobody/nothing.*no folder here.*hub.*Remedy: name a folder"):
            EpisodeDataset(name)
    assert time.monotonic() - began < 15
    with pytest.raises(DatasetError, match="is no folder"):
        EpisodeDataset("./nobody")


def test_hub_that_never_answers_is_given_up(no_hub, monkeypatch):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(DatasetError, match="hub"):
            EpisodeDataset("nobody/nothing")
        assert time.monotonic() - began < 30


def test_data_set_that_was_fetched_before_is_used_without_the_hub(no_hub):
    kept = no_hub / "cache/sage_ros/datasets/org--name@v1"
    kept.parent.mkdir(parents=True)
    shutil.copytree(make(no_hub / "set"), kept)
    assert EpisodeDataset("org/name@v1").path == kept
    with pytest.raises(DatasetError, match="hub"):
        EpisodeDataset("org/name@v2")


def test_a_folder_is_taken_before_the_hub(no_hub, monkeypatch):
    make(no_hub / "org/name")
    monkeypatch.chdir(no_hub)
    assert EpisodeDataset("org/name").path == no_hub / "org/name"


def test_intrinsics_are_had_where_they_are_known(tmp_path):
    folder = make(tmp_path / "set")
    assert EpisodeDataset(folder).camera_info("front") is None
    known = {"k": [60.0, 0, 32, 0, 60, 24, 0, 0, 1], "d": [0.0] * 5, "distortion_model": "plumb_bob"}
    key = "observation.images.front"
    edit(Path(folder) / "meta/info.json", lambda info: info["features"][key]["info"].update(camera_info=known))
    assert EpisodeDataset(folder).camera_info("front") == known
