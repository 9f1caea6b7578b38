"""Reading data sets: names, groups, tasks, statistics, frames; and the published GR00T demonstrations."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from episode_sets import DEMO, JOINTS, edit, film, make, needs_demo, rewrite

from sage_ros.episodes import EpisodeDataset
from sage_ros.episodes.video import encode, nearest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "set")


def test_joint_names_come_from_info_json_without_pos_suffix_in_either_shape(folder):
    for names in (["a.pos", "b.pos", "c"], {"motors": ["a.pos", "b.pos", "c"]}):
        edit(folder / "meta/info.json", lambda info, n=names: info["features"]["observation.state"].update(names=n))
        dataset = EpisodeDataset(folder)
        assert dataset.state_joints.names == ("a", "b", "c")
        assert dataset.action_joints == JOINTS


@pytest.mark.parametrize(
    "names", [None, ["a", "b"], ["a", "a", "b"], ["motor_0", "motor_1", "motor_2"], [1, 2, 3], {"x": ["a"], "y": ["b"]}]
)
def test_joint_names_that_tell_nothing_become_group_and_number(folder, names):
    edit(folder / "meta/info.json", lambda info: info["features"]["action"].update(names=names))
    assert EpisodeDataset(folder).action_joints.names == ("arm_0", "arm_1", "gripper_0")


def test_joints_without_names_and_groups_are_numbered(folder):
    edit(folder / "meta/info.json", lambda info: info["features"]["action"].update(names=None))
    edit(folder / "meta/modality.json", lambda modality: modality.pop("action"))
    joints = EpisodeDataset(folder).action_joints
    assert joints.names == ("joint_0", "joint_1", "joint_2")
    assert joints.groups == {}


def test_groups_from_different_columns_are_joined_in_modality_order(folder):
    rewrite(folder, lambda columns: columns.update(effort=pa.array([float(k) for k in range(6)])))
    edit(folder / "meta/info.json", lambda info: info["features"].update(effort={"dtype": "float64", "shape": [1]}))
    effort = {"effort": {"start": 0, "end": 1, "original_key": "effort"}}
    edit(folder / "meta/modality.json", lambda modality: modality.update(state=effort | modality["state"]))
    dataset = EpisodeDataset(folder)
    assert dataset.state_joints.groups == {"effort": (0, 1), "arm": (1, 3), "gripper": (3, 4)}
    assert dataset.state_joints.names == ("effort_0", "arm_0", "arm_1", "gripper_0")
    episode = dataset[0]
    assert np.array_equal(episode.state[:, 0], np.arange(6))
    assert np.allclose(episode.state[:, 1:], episode.action - 1, atol=1e-6)


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 3)])
def test_every_arrow_list_and_both_float_widths_are_read(folder, kind):
    before = EpisodeDataset(folder)[0].state
    rewrite(folder, lambda columns: columns.update({"observation.state": pa.array(before.tolist(), kind)}))
    state = EpisodeDataset(folder)[0].state
    assert state.dtype == np.float64
    assert np.array_equal(state, before)


def test_frame_index_and_other_bookkeeping_columns_are_not_needed(folder):
    keep = ("observation.state", "action", "timestamp", "task_index")
    edit(folder / "meta/modality.json", lambda modality: modality.pop("annotation"))
    for episode in (0, 1):
        rewrite(folder, lambda columns: [columns.pop(name) for name in set(columns) - set(keep)], episode)
    assert [episode.task for episode in EpisodeDataset(folder)] == ["pick", "place"]


def test_task_comes_from_the_annotation_column_that_modality_json_names(folder):
    rewrite(folder, lambda columns: columns.update(words=pa.array([1] * 6)))
    entries = {"human.validity": {}, "human.task_description": {"original_key": "words"}}
    edit(folder / "meta/modality.json", lambda modality: modality.update(annotation=entries))
    assert EpisodeDataset(folder)[0].task == "place"  # task_index still says "pick"


def test_cameras_are_those_of_modality_json_not_the_phantoms_of_info_json(folder):
    phantom = {"observation.images.ghost": {"dtype": "video", "shape": [800, 1280, 3]}}
    edit(folder / "meta/info.json", lambda info: info["features"].update(phantom))
    dataset = EpisodeDataset(folder)
    assert dataset.cameras == ("front",)
    assert list(dataset[0].videos) == ["front"]


def test_row_t_shows_frame_t_whatever_the_time_stamps_say(folder):
    times = pa.array(np.arange(1, 7) / 20)
    rewrite(folder, lambda columns: columns.update(timestamp=times))
    by_index = EpisodeDataset(folder)[0]
    brightness = by_index.frames().mean(axis=(1, 2, 3))
    assert np.abs(brightness - film(6).mean(axis=(1, 2, 3))).max() < 2
    by_time = EpisodeDataset(folder, align="timestamp")[0].frames()
    assert np.array_equal(by_time, by_index.frames()[[1, 2, 3, 4, 5, 5]])


def test_a_longer_film_is_read_by_timestamp_only(folder):
    encode(folder / "videos/chunk-000/observation.images.front/episode_000000.mp4", film(9), 20)
    assert len(EpisodeDataset(folder, align="timestamp")[0].frames()) == 6
    with pytest.raises(ValueError, match=r"9 frames for 6 rows.*first 6 frames.*align='timestamp'"):
        EpisodeDataset(folder)[0].frames()


def test_nearest_takes_the_earlier_of_two_equally_near_times():
    times = np.array([0.0, 1.0, 2.0])
    assert nearest(times, np.array([-5, 0.4, 0.5, 0.6, 1.0, 1.5, 9])).tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert nearest(np.array([3.0]), np.array([0.0, 9.0])).tolist() == [0, 0]


def test_frames_are_decoded_once_per_episode(folder):
    episode = EpisodeDataset(folder)[1]
    frames = episode.frames()
    assert frames is episode.frames("front")
    assert frames.shape == (8, 48, 64, 3) and frames.dtype == np.uint8


def test_without_video_the_films_are_not_needed(folder):
    shutil.rmtree(folder / "videos")
    episode = EpisodeDataset(folder, video=False)[0]
    assert len(episode) == 6 and not episode.videos
    with pytest.raises(ValueError, match=r"no camera.*video=True"):
        episode.frames()


def test_dataset_is_a_sequence(folder):
    dataset = EpisodeDataset(folder)
    assert [episode.index for episode in dataset] == [0, 1]
    assert dataset[-1].index == 1
    assert [episode.index for episode in dataset[:1]] == [0]
    with pytest.raises(IndexError):
        dataset[2]
    with pytest.raises(ValueError, match="align"):
        EpisodeDataset(folder, align="nearest")


def test_missing_statistics_are_computed_and_not_written(folder):
    stored = EpisodeDataset(folder).stats
    (folder / "meta/stats.json").unlink()
    computed = EpisodeDataset(folder).stats
    assert not (folder / "meta/stats.json").exists()
    for column in ("observation.state", "action"):
        assert set(computed[column]) == {"mean", "std", "min", "max", "q01", "q99"}
        for name, value in computed[column].items():
            assert np.allclose(value, stored[column][name])
    rows = np.concatenate([episode.action for episode in EpisodeDataset(folder)])
    assert np.allclose(computed["action"]["std"], rows.std(axis=0))


def test_fingerprint_follows_content_and_place_but_not_the_folder(folder, tmp_path):
    first = EpisodeDataset(folder).fingerprint()
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("notes do not count")
    assert EpisodeDataset(copy).fingerprint() == first
    with (copy / "meta/tasks.jsonl").open("a") as file:
        file.write("\n")
    assert EpisodeDataset(copy).fingerprint() != first


@needs_demo
def test_demo_names_groups_tasks_and_lengths():
    dataset = EpisodeDataset(DEMO)
    assert (dataset.version, dataset.robot_type, dataset.fps) == ("v2.0", "GR1ArmsOnly", 20.0)
    assert dataset.cameras == ("ego_view",)
    groups = {"left_arm": (0, 7), "left_hand": (7, 13), "left_leg": (13, 19), "neck": (19, 22)}
    groups |= {"right_arm": (22, 29), "right_hand": (29, 35), "right_leg": (35, 41), "waist": (41, 44)}
    assert dataset.state_joints.groups == dataset.action_joints.groups == groups
    assert dataset.state_joints.names[22] == "right_arm_0"
    assert [len(episode) for episode in dataset] == [416, 470, 470, 412]
    things = ["squash", "ketchup", "candle", "bar"]
    tasks = [f"pick the {thing} from the counter and place it in the plate" for thing in things]
    assert [episode.task for episode in dataset] == tasks
    assert dataset[0].timestamp[0] == pytest.approx(0.05, abs=1e-6)
    assert dataset[0].state.shape == (416, 44) and np.abs(dataset[0].state).max() < 4


@needs_demo
def test_demo_statistics_are_the_published_ones():
    stats = EpisodeDataset(DEMO).stats
    rows = np.concatenate([episode.state for episode in EpisodeDataset(DEMO, video=False)])
    assert stats["observation.state"]["min"].shape == (44,)
    assert (rows >= stats["observation.state"]["min"] - 1e-5).all()
    assert (rows <= stats["observation.state"]["max"] + 1e-5).all()


@needs_demo
def test_demo_timestamps_are_one_frame_ahead_of_the_film():
    by_index = EpisodeDataset(DEMO)[3].frames()
    by_time = EpisodeDataset(DEMO, align="timestamp")[3].frames()
    assert by_index.shape == by_time.shape == (412, 256, 256, 3)
    assert np.array_equal(by_time[:-1], by_index[1:])
    assert np.array_equal(by_time[-1], by_index[-1])
    assert not np.array_equal(by_time[200], by_index[200])
