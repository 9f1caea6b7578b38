"""Data sets that grow: readable after each episode, whatever ends the writer; the very pixels; films copied."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from episode_sets import JOINTS, edit, film, make

from sage_ros.episodes import DatasetError, EpisodeDataset, EpisodeWriter

CAMERAS = {"front": (48, 64)}


def episode(rows: int = 6, task: str = "pick") -> dict:
    state = np.linspace(-1, 1, rows * 3).reshape(rows, 3)
    return {"state": state, "action": state**2, "frames": {"front": film(rows)}, "task": task}


def writer(folder: Path, **more) -> EpisodeWriter:
    return EpisodeWriter(folder, 20, "so101", JOINTS, CAMERAS, append=True, **more)


def test_data_set_can_be_read_after_each_episode(tmp_path):
    writing = writer(tmp_path / "set")
    for count in (1, 2, 3):
        writing.add(**episode(rows=count + 3, task=f"task {count % 2}"))
        dataset = EpisodeDataset(tmp_path / "set")
        assert len(writing) == len(dataset) == count and len(dataset[count - 1].frames()) == count + 3
        assert dataset.stats["action"]["max"].shape == (3,)
    assert not (tmp_path / "set/meta/stats.json").exists()
    writing.close()
    assert (tmp_path / "set/meta/stats.json").exists()


def test_a_set_written_in_two_sessions_has_the_bytes_of_one_written_at_once(tmp_path):
    episodes = [episode(5), episode(7, "place"), episode(4)]
    with EpisodeWriter(tmp_path / "once", 20, "so101", JOINTS, CAMERAS) as writing:
        for one in episodes:
            writing.add(**one)
    with writer(tmp_path / "twice") as writing:
        writing.add(**episodes[0])
    half = writer(tmp_path / "twice")
    half.add(**episodes[1])
    del half  # never closed
    (tmp_path / "twice/data/chunk-000/episode_000002.parquet").write_bytes(b"of an episode that was not finished")
    with (tmp_path / "twice/meta/episodes_stats.jsonl").open("a") as file:
        file.write('{"episode_index": 2, "st')
    with writer(tmp_path / "twice") as writing:
        assert len(writing) == 2
        assert writing.add(**episodes[2]) == 2
    with writer(tmp_path / "twice"):
        pass  # nothing to add
    assert EpisodeDataset(tmp_path / "twice").fingerprint() == EpisodeDataset(tmp_path / "once").fingerprint()


def test_only_the_same_data_set_is_gone_on_with(tmp_path):
    folder = make(tmp_path / "set")
    assert len(writer(folder)) == 2
    for more in ({"fps": 30}, {"robot_type": "arm"}, {"cameras": {}}, {"source": "elsewhere"}):
        settings = {"fps": 20, "robot_type": "so101", "joints": JOINTS, "cameras": CAMERAS} | more
        with pytest.raises(DatasetError, match=r"another data set: .* differs.*Remedy"):
            EpisodeWriter(folder, append=True, **settings)
    edit(folder / "meta/modality.json", lambda modality: modality.pop("annotation"))
    with pytest.raises(DatasetError, match=r"modality\.json differs"):
        writer(folder)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("years of work")
    with pytest.raises(DatasetError, match="not empty"):
        writer(tmp_path / "thesis")


KILLED = """
    import sys, numpy as np
    sys.path.insert(0, sys.argv[2])
    from test_episodes_append import episode, writer
    with writer(sys.argv[1]) as writing:
        while True:
            print(writing.add(**episode(12)), flush=True)
"""


def test_kill_9_costs_no_more_than_the_episode_in_progress(tmp_path):
    folder, rng = tmp_path / "set", np.random.default_rng(0)
    said = -1
    for _ in range(2):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(int(rng.integers(2, 6))):
                said = int(process.stdout.readline())
            process.kill()
            said = max([said, *map(int, process.stdout.read().split())])
        dataset = EpisodeDataset(folder)
        assert said + 1 <= len(dataset) <= said + 2
        assert all(len(one.frames()) == 12 for one in dataset[-3:])


FULL = """
    import resource, sys
    sys.path.insert(0, sys.argv[2])
    from test_episodes_append import episode, writer
    from sage_ros.episodes import DatasetError
    from episode_sets import film
    import numpy as np
    with writer(sys.argv[1], lossless=True) as writing:
        writing.add(**episode())
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        noise = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), np.uint8)
        try:
            writing.add(**(episode() | {"frames": {"front": noise}}))
        except DatasetError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
"""


def test_disk_that_is_full_leaves_the_episodes_before(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path / "set"), str(Path(__file__).parent)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "cannot be written (File too large)" in run.stdout, run.stderr[-2000:]
    assert "episodes added before are kept" in run.stdout
    dataset = EpisodeDataset(tmp_path / "set")
    assert len(dataset) == 1 and np.array_equal(dataset[0].frames(), film(6))
    assert not list((tmp_path / "set").rglob("*000001*"))


def test_full_disk_under_the_metadata_takes_the_episode_back(tmp_path, monkeypatch):
    writing = writer(tmp_path / "set")
    writing.add(**episode())

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sage_ros.episodes.writing.os.replace", full)
        with pytest.raises(DatasetError, match="No space left"):
            writing.add(**episode(9))
    assert len(writing) == len(EpisodeDataset(tmp_path / "set")) == 1
    writing.add(**episode(8))
    writing.close()
    assert [len(one) for one in EpisodeDataset(tmp_path / "set")] == [6, 8]
    stats = (tmp_path / "set/meta/episodes_stats.jsonl").read_text().splitlines()
    assert [json.loads(line)["episode_index"] for line in stats] == [0, 1]


def test_lossless_films_have_the_very_pixels(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (4, 48, 64, 3), np.uint8)
    with EpisodeWriter(tmp_path / "set", 20, "so101", JOINTS, CAMERAS, lossless=True) as writing:
        writing.add(**(episode(4) | {"frames": {"front": noise}}))
    assert np.array_equal(EpisodeDataset(tmp_path / "set")[0].frames(), noise)


def test_films_that_fit_are_copied_as_they_are(tmp_path):
    source = make(tmp_path / "source") / "videos/chunk-000/observation.images.front/episode_000001.mp4"
    with writer(tmp_path / "set") as writing:
        with pytest.raises(DatasetError, match=r"8 frames for 6 rows"):
            writing.add(**(episode(6) | {"frames": {"front": source}}))
        writing.add(**(episode(8) | {"frames": {"front": source}}))
    copy = tmp_path / "set/videos/chunk-000/observation.images.front/episode_000000.mp4"
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
    other = EpisodeWriter(tmp_path / "other", 20, "so101", JOINTS, {"front": (48, 48)})
    with pytest.raises(DatasetError, match=r"h264.*64x48.*give H\.264 of 48x48"):
        other.add(**(episode(8) | {"frames": {"front": source}}))


def test_intrinsics_and_source_are_kept(tmp_path):
    known = {"k": [60.0, 0, 32, 0, 60, 24, 0, 0, 1], "d": [0.1, 0, 0, 0, 0], "distortion_model": "plumb_bob"}
    with writer(tmp_path / "set", intrinsics={"front": known}, source="robot 7") as writing:
        writing.add(**episode())
    assert EpisodeDataset(tmp_path / "set").camera_info("front") == known
    assert json.loads((tmp_path / "set/meta/info.json").read_text())["source"] == "robot 7"
