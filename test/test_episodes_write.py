"""Writing data sets: what comes back, what GR00T and LeRobot expect, what is refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from episode_sets import DEMO, JOINTS, film, needs_demo
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sage_ros.core.joints import JointLayout
from sage_ros.episodes import DatasetError, EpisodeDataset, EpisodeWriter


def write(path: Path, rows: int = 5, **options) -> Path:
    with EpisodeWriter(path, 20, "so101", JOINTS, {"front": (48, 64)}, **options) as writer:
        for task in ("pick", "place", "pick"):
            state = np.linspace(-1, 1, rows * 3).reshape(rows, 3)
            writer.add(state=state, action=state**2, frames={"front": film(rows)}, task=task)
    return path


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def test_what_is_written_is_read_back(tmp_path):
    dataset = EpisodeDataset(write(tmp_path / "set", rows=40))
    assert (dataset.fps, dataset.robot_type, dataset.version) == (20.0, "so101", "v2.1")
    assert dataset.state_joints == dataset.action_joints == JOINTS
    assert dataset.cameras == ("front",) and dataset.tasks == ("pick", "place")
    assert [episode.task for episode in dataset] == ["pick", "place", "pick"]
    episode = dataset[1]
    state = np.linspace(-1, 1, 120).reshape(40, 3)
    assert np.array_equal(episode.state, state.astype(np.float32))
    assert np.array_equal(episode.action, (state**2).astype(np.float32))
    assert np.allclose(episode.timestamp, np.arange(40) / 20, atol=1e-6)
    assert psnr(episode.frames(), film(40)) > 30


@given(
    rows=arrays.arrays(
        np.float64,
        st.tuples(st.integers(1, 40), st.just(3)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    fps=st.sampled_from([5, 12.5, 20, 30, 29.97]),
    task=st.text(min_size=1).filter(str.strip).filter(lambda text: text.isprintable()),
)
@settings(max_examples=15, deadline=None)
def test_any_finite_rows_come_back_as_float32(rows, fps, task):
    with tempfile.TemporaryDirectory() as folder:
        with EpisodeWriter(folder, fps, "arm", JOINTS, {}) as writer:
            writer.add(state=rows, action=-rows, task=task)
        episode = EpisodeDataset(folder)[0]
        assert np.array_equal(episode.state, rows.astype(np.float32))
        assert np.array_equal(episode.action, -rows.astype(np.float32))
        assert np.allclose(episode.timestamp, np.arange(len(rows)) / fps, rtol=1e-6)
        assert episode.task == task and episode.fps == fps


def test_the_same_episodes_give_the_same_bytes(tmp_path):
    one, two = (EpisodeDataset(write(tmp_path / name)).fingerprint() for name in ("one", "two"))
    assert one == two
    assert EpisodeDataset(write(tmp_path / "three", crf=40)).fingerprint() != one


def test_metadata_is_what_gr00t_and_lerobot_read(tmp_path):
    meta = write(tmp_path / "set") / "meta"
    info = json.loads((meta / "info.json").read_text())
    totals = {key.removeprefix("total_"): value for key, value in info.items() if key.startswith("total_")}
    assert totals == {"episodes": 3, "frames": 15, "tasks": 2, "videos": 3, "chunks": 1}
    assert info["splits"] == {"train": "0:3"} and info["codebase_version"] == "v2.1"
    picture = info["features"]["observation.images.front"]
    assert picture["shape"] == [48, 64, 3] and picture["names"] == ["height", "width", "channels"]
    assert picture["info"]["video.fps"] == 20
    assert info["features"]["action"] == {"dtype": "float32", "shape": [3], "names": ["pan", "lift", "grip"]}

    modality = json.loads((meta / "modality.json").read_text())
    assert modality["state"]["gripper"] == {"start": 2, "end": 3, "original_key": "observation.state"}
    assert modality["video"] == {"front": {"original_key": "observation.images.front"}}
    assert modality["annotation"] == {"human.action.task_description": {}}

    # GR00T's loaders slice every statistic of a column by joint, so each must be as wide as the column.
    for column, numbers in json.loads((meta / "stats.json").read_text()).items():
        width = info["features"][column]["shape"][0]
        assert {len(value) for value in numbers.values()} == {width}
    lines = [json.loads(line) for line in (meta / "episodes_stats.jsonl").read_text().splitlines()]
    assert [line["episode_index"] for line in lines] == [0, 1, 2]
    for column, numbers in lines[1]["stats"].items():
        assert {"mean", "std", "min", "max", "count"} <= set(numbers)
        assert np.shape(numbers["count"]) == (1,)
        shape = (3, 1, 1) if "image" in column else tuple(info["features"][column]["shape"])
        assert np.shape(numbers["mean"]) == shape
    brightness = np.array(lines[0]["stats"]["observation.images.front"]["mean"])
    assert np.allclose(brightness, film(5).mean() / 255)
    assert set(lines[0]["stats"]) == set(info["features"])


def test_parquet_columns_count_rows_episodes_and_tasks(tmp_path):
    folder = write(tmp_path / "set")
    table = pq.read_table(folder / "data/chunk-000/episode_000002.parquet", partitioning=None)
    assert set(table.column_names) == set(json.loads((folder / "meta/info.json").read_text())["features"]) - {
        "observation.images.front"
    }
    columns = table.to_pydict()
    assert columns["frame_index"] == [0, 1, 2, 3, 4]
    assert columns["index"] == [10, 11, 12, 13, 14]
    assert set(columns["episode_index"]) == {2}
    assert columns["task_index"] == columns["annotation.human.action.task_description"] == [0] * 5
    assert columns["next.done"] == [False] * 4 + [True]
    assert str(table.schema.field("timestamp").type) == "float"


def test_two_cameras_and_own_action_joints(tmp_path):
    actions = JointLayout(("x", "y"))
    with EpisodeWriter(
        tmp_path, 10, "arm", JOINTS, {"front": (48, 64), "wrist": (32, 32)}, action_joints=actions
    ) as writer:
        frames = {"front": film(4), "wrist": film(4, 32, 32)[::-1]}
        writer.add(state=np.zeros((4, 3)), action=np.zeros((4, 2)), frames=frames, task="pick")
    episode = EpisodeDataset(tmp_path)[0]
    assert episode.frames("wrist").shape == (4, 32, 32, 3)
    assert psnr(episode.frames("wrist"), frames["wrist"]) > 30
    assert episode.action_joints.names == ("x", "y")
    assert episode.action_joints.groups == {"joints": (0, 2)}  # GR00T needs at least one group


def test_existing_folders_are_refused_and_only_data_sets_are_overwritten(tmp_path):
    write(tmp_path / "set")
    (tmp_path / "set/README.md").write_text("mine")
    with pytest.raises(DatasetError, match="overwrite=True"):
        write(tmp_path / "set")
    write(tmp_path / "set", rows=3, overwrite=True)
    assert len(EpisodeDataset(tmp_path / "set")[0]) == 3
    assert (tmp_path / "set/README.md").read_text() == "mine"

    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.tex").write_text("years of work")
    with pytest.raises(DatasetError, match="not empty"):
        write(other, overwrite=True)
    assert (other / "chapter.tex").exists()
    with pytest.raises(DatasetError, match="is a file"):
        write(other / "chapter.tex")


def test_episodes_before_a_crash_are_kept_and_the_broken_one_leaves_no_file(tmp_path, monkeypatch):
    episode = {"state": np.zeros((4, 3)), "action": np.zeros((4, 3)), "frames": {"front": film(4)}, "task": "pick"}

    def full(*_):
        raise OSError(28, "No space left on device")

    writer = EpisodeWriter(tmp_path / "set", 20, "arm", JOINTS, {"front": (48, 64)})
    with pytest.raises(DatasetError, match=r"No space left.*Remedy: make room"), writer:
        writer.add(**episode)
        monkeypatch.setattr("sage_ros.episodes.writer.pq.write_table", full)
        writer.add(**episode)
    assert len(EpisodeDataset(tmp_path / "set")) == 1
    assert not list((tmp_path / "set").rglob("*000001*"))


def test_a_set_that_was_never_closed_is_not_taken_for_whole(tmp_path):
    writer = EpisodeWriter(tmp_path / "set", 20, "arm", JOINTS, {})
    writer.add(state=np.zeros((4, 3)), action=np.zeros((4, 3)), task="pick")
    with pytest.raises(DatasetError, match="incomplete"):
        EpisodeDataset(tmp_path / "set")
    EpisodeWriter(tmp_path / "set", 20, "arm", JOINTS, {}, overwrite=True)  # and may be replaced


def test_bad_episodes_are_refused_before_anything_is_written(tmp_path):
    good = {"state": np.zeros((4, 3)), "action": np.zeros((4, 3)), "frames": {"front": film(4)}, "task": "pick"}
    nan = np.zeros((4, 3))
    nan[2, 1] = np.nan
    writer = EpisodeWriter(tmp_path / "set", 20, "so101", JOINTS, {"front": (48, 64)})
    for change, says in (
        ({"state": np.zeros((4, 2))}, r"shape \(4, 2\).*expected.*\(4, 3\)"),
        ({"state": np.zeros((5, 3))}, r"\(5, 3\)"),
        ({"state": np.zeros((0, 3)), "action": np.zeros((0, 3))}, r"\(0, 3\)"),
        ({"action": np.array(3.0)}, "shape"),
        ({"action": np.full((4, 3), "x")}, "type"),
        ({"action": nan}, "row 2: action of joint 'lift' is nan"),
        ({"action": np.full((4, 3), 1e39)}, "row 0.*no finite float32"),
        ({"frames": {}}, "no camera; expected front"),
        ({"frames": {"front": film(4), "wrist": film(4)}}, "front, wrist"),
        ({"frames": {"front": film(3)}}, r"\(3, 48, 64, 3\)"),
        ({"frames": {"front": film(4).astype(float)}}, "float64"),
        ({"task": "  "}, "task"),
    ):
        with pytest.raises(DatasetError, match=f"{says}.*Remedy"):
            writer.add(**(good | change))
    with pytest.raises(DatasetError, match="no episode"):
        writer.close()
    assert list((tmp_path / "set").iterdir()) == []
    assert writer.add(**good) == 0
    writer.close()
    writer.close()
    with pytest.raises(DatasetError, match="closed"):
        writer.add(**good)


@pytest.mark.parametrize(
    "bad",
    [
        {"fps": 0},
        {"fps": float("inf")},
        {"cameras": {"front": (47, 64)}},
        {"cameras": {"front": (8, 64)}},
        {"cameras": {"../front": (48, 64)}},
        {"joints": JointLayout(())},
    ],
)
def test_bad_settings_are_refused_before_the_folder_is_made(tmp_path, bad):
    settings = {"fps": 20, "robot_type": "arm", "joints": JOINTS, "cameras": {}} | bad
    with pytest.raises(DatasetError, match="Remedy"):
        EpisodeWriter(tmp_path / "set", **settings)
    assert not (tmp_path / "set").exists()


@needs_demo
def test_demo_written_again_is_the_same_demo(tmp_path):
    demo = EpisodeDataset(DEMO)
    episode, frames = demo[3], demo[3].frames()
    part = slice(0, 60)
    with EpisodeWriter(tmp_path, demo.fps, demo.robot_type, demo.state_joints, {"ego_view": (256, 256)}) as writer:
        writer.add(episode.state[part], episode.action[part], episode.task, {"ego_view": frames[part]})
    again = EpisodeDataset(tmp_path)
    assert again.state_joints == demo.state_joints
    assert np.array_equal(again[0].state, episode.state[part].astype(np.float32))
    assert psnr(again[0].frames(), frames[part]) > 30
