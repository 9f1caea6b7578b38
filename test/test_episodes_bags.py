"""Episodes as bags and bags as episodes: the same rows and pixels, and what is said of bags that do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from episode_sets import JOINTS, edit, make, make_v3
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from sage_ros.core.joints import JointLayout
from sage_ros.core.timing import SECOND
from sage_ros.episodes import DatasetError, EpisodeDataset, EpisodeWriter
from sage_ros.episodes.bag_reader import read_bag
from sage_ros.episodes.bag_writer import ORIGIN, row_stamps
from sage_ros.episodes.conversion import from_bags, to_bags
from sage_ros.episodes.mapping import BagMapping, Stream, dump_mapping, read_mapping

TYPES = get_typestore(Stores.ROS2_JAZZY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("set") / "set")


def message(kind: str, *values):
    return kind, TYPES.types[kind](*values)


def header(stamp: int):
    time = TYPES.types["builtin_interfaces/msg/Time"](stamp // SECOND, stamp % SECOND)
    return TYPES.types["std_msgs/msg/Header"](time, "")


def joints(stamp: int, names: list[str], values) -> tuple:
    none = np.empty(0)
    values = np.array(values, np.float64)
    return message("sensor_msgs/msg/JointState", header(stamp), names, values, none, none)


def said(text: str) -> tuple:
    return message("std_msgs/msg/String", text)


def image(stamp: int, pixels: np.ndarray, encoding: str = "rgb8", padding: int = 0) -> tuple:
    height, width, channels = pixels.shape
    rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, padding)))
    step = width * channels + padding
    return message("sensor_msgs/msg/Image", header(stamp), height, width, encoding, 0, step, rows.reshape(-1))


def bag(path: Path, messages: list[tuple[int, str, tuple]], storage=StoragePlugin.MCAP) -> Path:
    """Write (log time, topic, (type, message)) as a bag."""
    with Writer(path, version=9, storage_plugin=storage) as writer:
        known = {}
        for logged, topic, (kind, content) in messages:
            if topic not in known:
                known[topic] = writer.add_connection(topic, kind, typestore=TYPES)
            writer.write(known[topic], logged, TYPES.serialize_cdr(content, kind))
    return path


@pytest.mark.parametrize("packing", ["raw", "png"])
@pytest.mark.parametrize("make_set", [make, make_v3])
def test_episodes_come_back_from_bags_row_for_row_and_pixel_for_pixel(tmp_path, make_set, packing):
    before = EpisodeDataset(make_set(tmp_path / "set"))
    assert to_bags(before, tmp_path / "bags", packing=packing) == 2
    assert to_bags(before, tmp_path / "bags", packing=packing) == 0, "what is there is not written again"
    assert from_bags(tmp_path / "bags", tmp_path / "back", lossless=True) == 2
    after = EpisodeDataset(tmp_path / "back")
    assert after.state_joints == before.state_joints and after.action_joints == before.action_joints
    for a, b in zip(before, after, strict=True):
        assert np.array_equal(a.state, b.state) and np.array_equal(a.action, b.action)
        assert np.array_equal(a.frames(), b.frames()) and a.task == b.task


@pytest.mark.parametrize("fps", [12.5, 29.97, 30.0])
def test_no_row_is_lost_or_doubled_at_rates_that_float32_rounds(tmp_path, fps):
    rows = np.arange(300)[:, None] * np.ones(3)
    with EpisodeWriter(tmp_path / "set", fps, "arm", JOINTS, {}) as writer:
        writer.add(rows, rows, "count")
    episode = EpisodeDataset(tmp_path / "set")[0]
    stamps = row_stamps(episode)
    assert stamps[0] == ORIGIN and np.abs(stamps - ORIGIN - np.arange(300) / fps * SECOND).max() <= 1
    to_bags(EpisodeDataset(tmp_path / "set"), tmp_path / "bags")
    from_bags(tmp_path / "bags", tmp_path / "back")
    assert np.array_equal(EpisodeDataset(tmp_path / "back")[0].state[:, 0], np.arange(300))


def test_bag_holds_what_ros_tools_expect(tmp_path, folder):
    known = {"k": [60.0, 0, 32, 0, 60, 24, 0, 0, 1], "d": [0.0] * 5, "distortion_model": "plumb_bob"}
    copy = tmp_path / "set"
    shutil.copytree(folder, copy)
    key = "observation.images.front"
    edit(copy / "meta/info.json", lambda info: info["features"][key]["info"].update(camera_info=known))
    mapping = BagMapping(
        20, (Stream("/joint_states"),), (Stream("/action", ("grip", "pan"), "trajectory_msgs/msg/JointTrajectory"),),
        {"front": "/cam/image_raw"},
    )  # fmt: skip
    to_bags(EpisodeDataset(copy), tmp_path / "bags", mapping)
    path = tmp_path / "bags/episode_000001"
    about = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert (about["version"], about["storage_identifier"], about["relative_file_paths"]) == (
        9, "mcap", ["episode_000001.mcap"])  # fmt: skip
    assert not (tmp_path / "bags/partial").exists()
    episode = EpisodeDataset(folder)[1]
    with AnyReader([path]) as reader:
        seen: dict[str, list] = {}
        for connection, logged, data in reader.messages():
            seen.setdefault(connection.topic, []).append((logged, reader.deserialize(data, connection.msgtype)))
        qos = {c.topic: c.ext.offered_qos_profiles[0] for c in reader.connections}
    assert {topic: len(messages) for topic, messages in seen.items()} == {
        "/task": 1, "/joint_states": 8, "/action": 8, "/cam/image_raw": 8, "/cam/camera_info": 8}  # fmt: skip
    assert qos["/task"].durability.name == "TRANSIENT_LOCAL" and qos["/action"].durability.name == "VOLATILE"
    logged, action = seen["/action"][3]
    assert action.joint_names == ["grip", "pan"]
    assert np.array_equal(action.points[0].positions, episode.action[3][[2, 0]])
    picture = seen["/cam/image_raw"][3][1]
    assert (picture.encoding, picture.step, picture.header.frame_id) == ("rgb8", 192, "front")
    assert np.array_equal(picture.data.reshape(48, 64, 3), episode.frame(3))
    for topic in ("/joint_states", "/cam/image_raw", "/cam/camera_info"):
        stamp = seen[topic][3][1].header.stamp
        assert stamp.sec * SECOND + stamp.nanosec == seen[topic][3][0] == logged == ORIGIN + 3 * SECOND // 20
    assert np.array_equal(seen["/cam/camera_info"][0][1].k, known["k"])


def live(rows: int = 40, task: str = "pick") -> list[tuple[int, str, tuple]]:
    """A recording: joints at 100 Hz in another order and one more, commands at 20 Hz, BGR images at 10 Hz."""
    start = 5 * SECOND
    messages = [(start - 10, "/task", said(task))]
    for k in range(rows * 5):
        stamp = start + k * SECOND // 100
        messages.append((stamp + 3_000_000, "/joints", joints(stamp, ["extra", "b", "a"], [9, k + 0.5, k])))
    for k in range(rows):
        stamp = start + k * SECOND // 20
        array = message("std_msgs/msg/Float64MultiArray", TYPES.types["std_msgs/msg/MultiArrayLayout"]([], 0),
                        np.array([k, -k], np.float64))  # fmt: skip
        messages.append((stamp, "/command", array))
    for k in range(rows // 2):
        stamp = start + k * SECOND // 10
        pixels = np.zeros((16, 20, 3), np.uint8)
        pixels[..., 0] = k  # blue
        messages.append((stamp + 1_000_000, "/camera", image(stamp, pixels, "bgr8", padding=4)))
    return sorted(messages, key=lambda entry: entry[0])


MAPPING = BagMapping(
    fps=20,
    state=(Stream("/joints", ("a", "b")),),
    action=(Stream("/command", ("a", "b"), "std_msgs/msg/Float64MultiArray"),),
    cameras={"top": "/camera"},
)


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_recorded_topics_are_paired_by_the_newest_sample_at_or_before_the_row(tmp_path, storage):
    (episode,) = read_bag(bag(tmp_path / "bag", live(), storage), MAPPING)
    rows = np.arange(len(episode.state))
    assert len(rows) == 39  # until the last image, at 1.9 s
    assert np.array_equal(episode.state, np.stack([5 * rows, 5 * rows + 0.5], axis=1))
    assert np.array_equal(episode.action, np.stack([rows, -rows], axis=1))
    assert np.array_equal(episode.frames["top"][:, 0, 0, 2], rows // 2) and not episode.frames["top"][..., :2].any()
    assert episode.state_joints == JointLayout(("a", "b")) and episode.task == "pick"
    assert np.array_equal(episode.stamps, 5 * SECOND + rows * SECOND // 20)


def test_rows_may_be_those_of_a_camera_and_the_task_may_be_given(tmp_path):
    mapping = BagMapping(**(vars(MAPPING) | {"rows": "top", "text": "stack"}))
    (episode,) = read_bag(bag(tmp_path / "bag", live()), mapping)
    assert len(episode.state) == 20 and episode.task == "stack"
    assert np.array_equal(episode.frames["top"][:, 0, 0, 2], np.arange(20))
    assert np.array_equal(episode.action[:, 0], 2 * np.arange(20))


def test_each_task_that_is_said_is_an_episode_and_silence_is_none(tmp_path):
    messages = live()
    for after, text in ((0.5, ""), (0.8, "place"), (1.2, "place")):
        messages.append((5 * SECOND + int(after * SECOND), "/task", said(text)))
    messages.sort(key=lambda entry: entry[0])
    from_mapping = tmp_path / "mapping.yaml"
    from_mapping.write_text(dump_mapping(MAPPING))
    assert read_mapping(from_mapping) == MAPPING
    assert from_bags(bag(tmp_path / "bag", messages), tmp_path / "set", read_mapping(from_mapping)) == 2
    first, second = EpisodeDataset(tmp_path / "set")
    assert (first.task, second.task) == ("pick", "place")
    assert np.array_equal(first.action[:, 0], np.arange(10)) and np.array_equal(second.action[:, 0], np.arange(16, 39))


def error_of(path: Path, mapping: BagMapping = MAPPING) -> str:
    with pytest.raises(DatasetError, match="Remedy") as caught:
        list(read_bag(path, mapping))
    return str(caught.value)


def test_bags_that_do_not_fit_say_why(tmp_path):
    messages = live()
    assert "no topic /nowhere; there are: /camera (sensor_msgs/msg/Image)" in error_of(
        bag(tmp_path / "a", messages), BagMapping(**(vars(MAPPING) | {"cameras": {"top": "/nowhere"}}))
    )
    gap = [m for m in messages if not (m[1] == "/joints" and 5.2 < m[0] / SECOND < 6)]
    assert "/joints has no message in the 0.5 s before 0.700 s" in error_of(bag(tmp_path / "b", gap))
    nan = [*messages, (5 * SECOND + 54_000_000, "/joints", joints(5 * SECOND + 50_000_000, ["a", "b"], [np.nan, 0]))]
    assert "'a' is not finite" in error_of(bag(tmp_path / "c", nan))
    less = [*messages, (5 * SECOND + 54_000_000, "/joints", joints(5 * SECOND + 50_000_000, ["a"], [0]))]
    assert "missing joints: b" in error_of(bag(tmp_path / "d", less))
    short = [*messages, (5 * SECOND + 54_000_000, "/joints", joints(5 * SECOND + 50_000_000, ["a", "b"], [0]))]
    assert "1 positions for 2 joints" in error_of(bag(tmp_path / "e", short))
    silent = [m for m in messages if m[1] != "/task"] + [(5 * SECOND, "/task", said(" "))]
    assert "no task is said" in error_of(bag(tmp_path / "f", silent))
    odd = [m for m in messages if m[1] != "/camera"]
    odd += [(5 * SECOND, "/camera", image(5 * SECOND, np.zeros((4, 4, 2), np.uint8), "nv12"))]
    odd += [(7 * SECOND, "/camera", image(7 * SECOND, np.zeros((4, 4, 2), np.uint8), "nv12"))]
    assert "encoding 'nv12'" in error_of(bag(tmp_path / "g", odd), BagMapping(**(vars(MAPPING) | {"tolerance": 9})))
    apart = [(m[0], m[1], m[2]) for m in messages if m[1] != "/camera"]
    apart += [(99 * SECOND, "/camera", image(99 * SECOND, np.zeros((16, 16, 3), np.uint8)))]
    assert "before /camera begins" in error_of(bag(tmp_path / "h", apart))


def test_truncated_or_missing_bag_files_are_named(tmp_path):
    path = bag(tmp_path / "bag", live())
    file = path / "bag.mcap"
    good = file.read_bytes()
    for content in (b"", good[: len(good) // 2], b"\0" * len(good)):
        file.write_bytes(content)
        assert str(path) in error_of(path)
    file.unlink()
    assert str(path) in error_of(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fps": 0}, "fps is 0"),
        ({"fps": "fast"}, "fps"),
        ({"state": None}, "state is None"),
        ({"action": {"topic": "/a", "type": "Twist"}}, "Twist"),
        ({"action": {"topic": "/a", "type": "Float64MultiArray"}}, "no names"),
        ({"action": "/joint_states"}, "used twice"),
        ({"cameras": ["/image_raw"]}, "cameras"),
        ({"task": {"text": " "}}, "task"),
        ({"clock": "wall"}, "clock"),
        ({"rows": "wrist"}, "rows"),
        ({"tolerance": -1}, "tolerance"),
        ({"topics": {}}, "does not know topics"),
        ({"groups": {"arm": [1]}}, ""),
    ],
)
def test_mappings_that_are_wrong_show_how_one_is_written(tmp_path, change, says):
    path = tmp_path / "mapping.yaml"
    path.write_text(yaml.safe_dump({"fps": 20, "state": "/joint_states", "action": "/action"} | change))
    with pytest.raises(DatasetError, match=r"write it like this:\nfps: 20") as caught:
        read_mapping(path)
    assert says in str(caught.value) and caught.value.file == path


def test_mapping_that_is_shown_as_the_example_is_one(tmp_path):
    from sage_ros.episodes.mapping import EXAMPLE

    path = tmp_path / "mapping.yaml"
    path.write_text(EXAMPLE)
    mapping = read_mapping(path)
    assert mapping.action == (Stream("/action", (), "trajectory_msgs/msg/JointTrajectory"),)
    assert mapping.groups == {"arm": (0, 5), "gripper": (5, 6)}
    path.write_text("fps: [")
    with pytest.raises(DatasetError, match="no YAML"):
        read_mapping(path)
