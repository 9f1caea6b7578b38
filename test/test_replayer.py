"""The replayer over real topics: a bag player's controls, its modes, cameras and clock."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from episode_sets import JOINTS
from graph import Graph, stamps
from player_client import PlayerClient
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from sage_ros.episodes import EpisodeDataset, EpisodeWriter
from sage_ros.nodes.bringup import BringupError
from sage_ros.nodes.episode_stage import CLOCK
from sage_ros.nodes.lifecycle import EVENTS, LATCHED, STREAM, values_of
from sage_ros.nodes.messages import chunk_from, nanoseconds, positions_from, rgb_from
from sage_ros.nodes.process import Spinner
from sage_ros.nodes.replayer import Replayer

ROWS = (12, 8, 5)
FPS = 20
QUICK = {"replayer:settle": 0.0, "replayer:lead": 0.0, "replayer:listeners": 0}
SIZES = {"front": (48, 64), "wrist": (32, 96)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three episodes, two cameras of different sizes with the very pixels that went in."""
    path = tmp_path_factory.mktemp("replayer") / "set"
    intrinsics = {"front": {"k": [50.0, 0, 32, 0, 50, 24, 0, 0, 1], "d": [0.1] * 5, "distortion_model": "plumb_bob"}}
    chance = np.random.default_rng(0)
    with EpisodeWriter(path, FPS, "so101", JOINTS, SIZES, lossless=True, intrinsics=intrinsics) as writer:
        for episode, rows in enumerate(ROWS):
            state = chance.normal(size=(rows, 3))
            frames = {c: chance.integers(0, 255, (rows, *size, 3), dtype=np.uint8) for c, size in SIZES.items()}
            writer.add(state, state + 1, f"task {episode}", frames)
    return path


@pytest.fixture
def play(folder):
    """A graph with a replayer; arguments are its parameters."""
    graphs = []

    def make(*others, remappings=(), **parameters):
        given = QUICK | {"replayer:dataset": str(folder)} | {f"replayer:{k}": v for k, v in parameters.items()}
        graphs.append(Graph([*others, Replayer], given, remappings).__enter__())
        return graphs[-1]

    yield make
    for graph in graphs:
        graph.__exit__()


def names(messages):
    return [json.loads(message.data)["event"] for message in messages]


def rows_of(dataset, *episodes):
    return np.concatenate([dataset[episode].state for episode in episodes])


def test_every_row_goes_out_in_order_with_its_frame_and_nothing_moves_a_robot(play, folder):
    graph = play(episodes="2,0", rate=2.0)
    joints = graph.probe.listen(JointState, "joint_states")
    images = graph.probe.listen(Image, "image_raw", QoSProfile(depth=100))
    events = graph.probe.listen(String, "replayer/events", EVENTS)
    tasks = graph.probe.listen(String, "task", LATCHED)
    graph.up()
    graph.probe.until(lambda: "finished" in names(events), "the end")
    dataset = EpisodeDataset(folder)
    graph.probe.until(lambda: len(joints) == len(images) == 17, "every row")
    assert np.allclose([positions_from(m) for m in joints], rows_of(dataset, 2, 0))
    frames = np.concatenate([dataset[episode].frames("front") for episode in (2, 0)])
    assert all(np.array_equal(rgb_from(m), frame) for m, frame in zip(images, frames, strict=True))
    assert stamps(images) == stamps(joints) and (np.diff(stamps(joints)) > 0).all()
    assert names(events) == ["begin", "end", "begin", "end", "finished"]
    assert [t.data for t in tasks if t.data] == ["task 2", "task 0"] and tasks[-1].data == ""
    topics = dict(graph.probe.node.get_topic_names_and_types())
    assert "/demo/action" not in topics and "/action" not in topics


def test_the_episode_that_is_played_is_told_to_whoever_comes_later(play):
    graph = play(episodes="1", start_paused=True)
    graph.up()
    player = PlayerClient(graph)
    assert player.play_next()
    told = graph.probe.listen(DiagnosticArray, "replayer/episode", LATCHED)
    status = graph.probe.until(lambda: told and told[-1].status[0], "the episode")
    assert (status.message, values_of(status)["episode"], values_of(status)["rows"]) == ("begin", "1", "8")
    player.resume()
    graph.probe.until(lambda: told[-1].status[0].message == "finished", "the end")


def test_paused_it_steps_and_bursts_and_playing_it_refuses_both(play):
    graph = play(start_paused=True)
    joints = graph.probe.listen(JointState, "joint_states", QoSProfile(depth=100))
    graph.up()
    player = PlayerClient(graph)
    assert player.is_paused()
    assert player.play_next() and player.play_next()
    graph.probe.until(lambda: len(joints) == 2, "two rows")
    assert player.burst(12) == 12, "a burst goes on over the end of an episode"
    graph.probe.until(lambda: len(joints) == 14, "twelve more")
    assert player.burst(0) == sum(ROWS) - 14
    graph.probe.until(lambda: len(joints) == sum(ROWS), "all")
    assert not player.play_next() and player.burst(3) == 0, "there is nothing left"
    assert player.seek(0.0), "paused at the end it can still go back"
    assert player.play_next()
    player.resume()
    assert not player.play_next() and player.burst(1) == 0, "only while paused"
    assert not player.is_paused()


def test_pause_and_resume_are_idempotent_and_toggle(play):
    graph = play(loop=True)
    joints = graph.probe.listen(JointState, "joint_states")
    graph.up()
    player = PlayerClient(graph)
    graph.probe.until(lambda: len(joints) > 3, "playing")
    for _ in range(2):
        player.pause()
    assert player.is_paused()
    paused_at = graph.nodes[0]._player.row
    player.toggle_paused()
    assert not player.is_paused()
    graph.probe.until(lambda: len(joints) > paused_at + 3, "going on")
    player.toggle_paused()
    for _ in range(2):
        player.resume()
    assert not player.is_paused()


def test_seeking_goes_anywhere_in_the_playlist_and_nowhere_else(play, folder):
    graph = play(start_paused=True)
    joints = graph.probe.listen(JointState, "joint_states")
    events = graph.probe.listen(String, "replayer/events", EVENTS)
    graph.up()
    player, dataset = PlayerClient(graph), EpisodeDataset(folder)
    graph.probe.until(lambda: names(events) == ["begin"], "the start")

    def expect(episode, row):
        count = len(joints)
        assert player.play_next()
        graph.probe.until(lambda: len(joints) > count, "the row")
        assert np.allclose(positions_from(joints[-1]), dataset[episode].state[row])

    assert player.seek(14 / FPS)
    expect(1, 2)
    assert player.seek(0.31)  # between two rows: the next
    expect(0, 7)
    assert player.seek(-3.0)
    expect(0, 0)
    for beyond in (sum(ROWS) / FPS, 1e5):
        assert not player.seek(beyond)
    expect(0, 1)
    begun = [json.loads(m.data) for m in events if json.loads(m.data)["event"] == "begin"]
    assert [(event["episode"], event["row"]) for event in begun] == [(0, 0), (1, 2), (0, 7), (0, 0)]
    assert names(events).count("end") == 3


def test_rates_that_are_not_positive_are_refused_and_others_take_effect(play):
    graph = play(loop=True)
    joints = graph.probe.listen(JointState, "joint_states")
    graph.up()
    player = PlayerClient(graph)
    assert player.rate() == 1.0
    for bad in (0.0, -1.0, float("nan")):
        assert not player.set_rate(bad)
    assert player.rate() == 1.0
    assert player.set_rate(8.0)
    assert player.rate() == graph.nodes[0].get_parameter("rate").value == 8.0
    graph.probe.until(lambda: len(joints) > 60, "fast rows")
    gaps = np.diff(stamps(joints)[-30:]) / 1e9
    assert np.median(gaps) == pytest.approx(1 / (8 * FPS), rel=0.2)


def test_stop_ends_play_begins_anew_and_only_one_plays_at_a_time(play, folder):
    graph = play(start_paused=True)
    joints = graph.probe.listen(JointState, "joint_states")
    events = graph.probe.listen(String, "replayer/events", EVENTS)
    graph.up()
    player = PlayerClient(graph)
    assert not player.play(), "it plays already"
    player.stop()
    player.stop()
    graph.probe.until(lambda: names(events)[-1:] == ["stopped"], "the stop")
    assert not player.seek(0.1) and not player.play_next(), "nothing is played"
    assert player.play(start_offset=0.5, playback_duration=0.25)
    player.resume()
    graph.probe.until(lambda: names(events)[-1:] == ["finished"], "the end")
    graph.probe.until(lambda: len(joints) == 6, "the rows from 0.5 s to 0.75 s")
    assert np.allclose([positions_from(m) for m in joints], rows_of(EpisodeDataset(folder), 0, 1)[10:16])


def test_a_start_past_the_end_is_said_and_plays_nothing(play):
    graph = play(start_offset=99.0)
    events = graph.probe.listen(String, "replayer/events", EVENTS)
    graph.up()
    graph.probe.until(lambda: names(events) == ["failed"], "the failure")
    assert "after the last row" in json.loads(events[0].data)["error"]
    assert "after the last row" in graph.nodes[0].status()[1]


def test_delay_comes_before_the_first_row(play):
    graph = play(delay=0.6, episodes="2")
    told = graph.probe.listen(DiagnosticArray, "replayer/episode", LATCHED)
    before = graph.nodes[0].get_clock().now().nanoseconds
    graph.up()
    graph.probe.until(lambda: told, "the episode")
    assert stamps(told)[0] - before > 0.6e9


def test_the_clock_ticks_at_its_own_rate_and_jumps_back_on_loop_and_seek(play):
    graph = play(episodes="2", loop=True, publish_clock=True, clock_rate=200.0)
    ticks = graph.probe.listen(Clock, "/clock", CLOCK)
    joints = graph.probe.listen(JointState, "joint_states")
    graph.up()
    graph.probe.until(lambda: len(joints) > 12, "two laps")
    player = PlayerClient(graph)
    player.pause()
    assert player.seek(0.0)
    assert player.play_next()
    times = np.array([nanoseconds(tick.clock) for tick in ticks]) / 1e9
    jumps = np.flatnonzero(np.diff(times) < 0)
    assert len(jumps) >= 2 and all(times[jumps + 1] < 1.06), "only loops and seeks may go back, and to the start"
    assert len(times) > 2 * len(joints), "ticks between the rows"
    assert times.min() >= 1.0 and times.max() <= 1.0 + 5 / FPS + 1e-9
    rows = np.array(stamps(joints)) / 1e9
    assert np.allclose((rows - 1.0) * FPS, np.round((rows - 1.0) * FPS)), "rows are stamped by the playlist"
    frozen = len(ticks)
    graph.probe.until(lambda: len(ticks) > frozen + 20, "ticks while paused")
    assert len({nanoseconds(tick.clock) for tick in ticks[frozen + 5 :]}) == 1


def test_a_second_clock_is_refused(play):
    graph = play(publish_clock=True)
    graph.probe.node.create_publisher(Clock, "/clock", CLOCK)
    graph.probe.until(lambda: graph.nodes[0].publishers("/clock"), "the other clock")
    with pytest.raises(BringupError):
        graph.up()


def test_demonstrated_actions_have_a_topic_of_their_own(play, folder):
    graph = play(episodes="1", mode="demonstration")
    demo = graph.probe.listen(JointState, "demo/action")
    joints = graph.probe.listen(JointState, "joint_states")
    graph.up()
    graph.probe.until(lambda: len(demo) == 8, "the actions")
    assert np.allclose([positions_from(m) for m in demo], EpisodeDataset(folder)[1].action)
    graph.probe.until(lambda: stamps(demo) == stamps(joints), "the states")
    assert graph.probe.node.count_publishers("action") == 0


def test_as_a_command_actions_are_a_plan_for_the_filter_and_observations_stay_the_robots(play, folder):
    graph = play(episodes="1", mode="command", approach=0.0, horizon=4, rate=2.0)
    plans = graph.probe.listen(JointTrajectory, "action")
    graph.up()
    graph.probe.until(lambda: len(plans) == 8, "the plans")
    action = EpisodeDataset(folder)[1].action
    for row, plan in enumerate(plans):
        assert np.allclose(chunk_from(plan), action[np.minimum(range(row, row + 4), 7)])
    assert plans[0].points[0].time_from_start.nanosec == round(1e9 / (2 * FPS))
    assert all(
        graph.probe.node.count_publishers(topic) == 0 for topic in ("joint_states", "image_raw", "joint_command")
    )


def test_as_a_command_it_waits_for_the_robot_to_be_where_the_episode_begins(play, folder):
    graph = play(episodes="1", mode="command", approach=20.0)
    plans = graph.probe.listen(JointTrajectory, "action")
    states = graph.probe.publisher
    graph.up()
    action = EpisodeDataset(folder)[1].action
    graph.probe.until(lambda: len(plans) > 5, "plans for the first pose")
    assert all(np.allclose(chunk_from(plan), action[0]) for plan in plans)
    robot = states(JointState, "joint_states")
    robot.publish(JointState(name=list(reversed(JOINTS.names)), position=list(reversed(action[0] + 0.01))))
    graph.probe.until(lambda: plans and np.allclose(chunk_from(plans[-1])[0], action[-1]), "the episode")


def test_as_a_command_it_says_which_joint_does_not_arrive(play):
    graph = play(episodes="1", mode="command", approach=0.2)
    events = graph.probe.listen(String, "replayer/events", EVENTS)
    graph.up()
    graph.probe.until(lambda: names(events)[-1:] == ["failed"], "the failure")
    assert "no joint_states came; is the safety filter enabled" in json.loads(events[-1].data)["error"]


def test_two_who_plan_for_one_robot_are_refused(play):
    graph = play(mode="command")
    graph.probe.node.create_publisher(JointTrajectory, "action", 10)
    graph.probe.until(lambda: graph.nodes[0].publishers("action"), "the other")
    with pytest.raises(BringupError):
        graph.up()


def test_cameras_of_different_sizes_have_topics_of_their_own_raw_and_compressed(play, folder):
    graph = play(episodes="0", camera="all", compression="png")
    frames = {c: EpisodeDataset(folder)[0].frames(c) for c in SIZES}
    deep = QoSProfile(depth=100)
    raw = {c: graph.probe.listen(Image, f"{c}/image_raw", deep) for c in SIZES}
    packed = graph.probe.listen(CompressedImage, "wrist/image_raw/compressed", deep)
    infos = graph.probe.listen(CameraInfo, "front/camera_info", deep)
    graph.up()
    graph.probe.until(lambda: len(packed) == len(infos) == 12 and all(len(m) == 12 for m in raw.values()), "all rows")
    for camera, messages in raw.items():
        assert all(np.array_equal(rgb_from(m), f) for m, f in zip(messages, frames[camera], strict=True))
        assert {m.header.frame_id for m in messages} == {f"{camera}_optical_frame"}
    assert packed[0].format == "rgb8; png compressed bgr8"
    pictures = [cv2.imdecode(np.frombuffer(m.data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for m in packed]
    assert all(np.array_equal(p, f) for p, f in zip(pictures, frames["wrist"], strict=True))
    assert stamps(infos) == stamps(raw["front"]) == stamps(packed)
    assert (infos[0].width, infos[0].height, infos[0].k[0], infos[0].p[2]) == (64, 48, 50.0, 32.0)
    assert graph.probe.node.count_publishers("wrist/camera_info") == 0, "nothing is known of it"


def calibration(width=64, height=48):
    return {
        "image_width": width, "image_height": height, "camera_name": "front", "distortion_model": "plumb_bob",
        "camera_matrix": {"rows": 3, "cols": 3, "data": [70.0, 0, 31, 0, 71, 23, 0, 0, 1]},
        "distortion_coefficients": {"rows": 1, "cols": 5, "data": [0.1, 0.2, 0, 0, 0]},
    }  # fmt: skip


def test_intrinsics_come_from_a_calibration_file(play, tmp_path):
    (tmp_path / "front.yaml").write_text(yaml.safe_dump(calibration()))
    graph = play(episodes="2", intrinsics=str(tmp_path))
    infos = graph.probe.listen(CameraInfo, "camera_info", STREAM)
    graph.up()
    graph.probe.until(lambda: infos, "camera_info")
    assert list(infos[0].k[:3]) == [70.0, 0.0, 31.0] and list(infos[0].d) == [0.1, 0.2, 0, 0, 0]
    assert list(infos[0].r) == [1, 0, 0, 0, 1, 0, 0, 0, 1]


SINGULAR = calibration() | {"camera_matrix": {"data": [1]}}


def test_intrinsics_that_do_not_fit_are_refused(play, tmp_path):
    node = play(episodes="2", intrinsics=str(tmp_path)).nodes[0]
    for bad in (calibration(128, 96), {"image_width": 3}, ["no map"], SINGULAR):
        (tmp_path / "front.yaml").write_text(yaml.safe_dump(bad))
        assert node.trigger_configure().name == "FAILURE", bad
    (tmp_path / "front.yaml").write_text(yaml.safe_dump(calibration()))
    assert node.trigger_configure().name == "SUCCESS"


def test_a_broken_episode_stops_the_replay_or_is_left_out_when_asked(play, folder, tmp_path):
    spoilt = shutil.copytree(folder, tmp_path / "set")
    film = next(spoilt.rglob("observation.images.front/episode_000001.mp4"))
    film.write_bytes(film.read_bytes()[:200])
    for skip, expected in ((False, ["begin", "end", "failed"]), (True, ["begin", "end", "begin", "end", "finished"])):
        graph = play(dataset=str(spoilt), skip_broken=skip)
        joints = graph.probe.listen(JointState, "joint_states", QoSProfile(depth=100))
        events = graph.probe.listen(String, "replayer/events", EVENTS)
        graph.up()
        graph.probe.until(lambda e=events: names(e)[-1:] in (["failed"], ["finished"]), "the end")
        assert names(events) == expected
        if not skip:
            assert "episode_000001.mp4" in json.loads(events[-1].data)["error"]
        else:
            graph.probe.until(lambda m=joints: len(m) == 17, "the others' rows")
            gaps = np.diff(stamps(joints)) / 1e9
            assert gaps.max() < 0.6 * ROWS[1] / FPS, "nobody waits for what is left out"
        graph.__exit__()


def test_what_is_not_there_is_refused(play, folder):
    node = play().nodes[0]
    good = {"dataset": str(folder), "episodes": "all", "camera": ""}
    for bad in ({"episodes": "9"}, {"camera": "front,rear"}, {"camera": "front,front"}, {"dataset": "/nowhere"}):
        assert node.set_parameters([Parameter(k, value=v) for k, v in (good | bad).items()])[0].successful
        assert node.trigger_configure().name == "FAILURE", bad
    node.set_parameters([Parameter(k, value=v) for k, v in good.items()])
    assert node.trigger_configure().name == "SUCCESS"


def test_the_quality_of_service_can_be_overridden(play):
    graph = play(**{"qos_overrides./joint_states.publisher.reliability": "best_effort", "episodes": "0", "loop": True})
    graph.up()
    infos = graph.probe.until(lambda: graph.probe.node.get_publishers_info_by_topic("joint_states"), "the topic")
    assert infos[0].qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    infos = graph.probe.node.get_publishers_info_by_topic("image_raw")
    assert infos[0].qos_profile.reliability == ReliabilityPolicy.RELIABLE, "the others stay as they are"


def test_several_replayers_play_beside_each_other(play, folder):
    graph = play(episodes="0", loop=True)
    second = Replayer(namespace="left")
    second.set_parameters([Parameter("dataset", value=str(folder)), Parameter("episodes", value="1")])
    second.set_parameters([Parameter("listeners", value=0), Parameter("settle", value=0.0)])
    spinner = Spinner(second)
    try:
        right = graph.probe.listen(JointState, "joint_states")
        left = graph.probe.listen(JointState, "left/joint_states")
        graph.up()
        assert second.trigger_configure() == second.trigger_activate()
        graph.probe.until(lambda: len(left) > 5 and len(right) > 5, "both")
    finally:
        spinner.close()
    first, other = (EpisodeDataset(folder)[episode].state for episode in (0, 1))
    assert np.allclose(positions_from(right[2]), first[2]) and np.allclose(positions_from(left[2]), other[2])


def test_the_order_of_chance_changes_with_the_lap(play):
    graph = play(shuffle=True, seed=3, loop=True, rate=40.0)
    events = graph.probe.listen(String, "replayer/events", EVENTS)
    graph.up()
    graph.probe.until(lambda: names(events).count("begin") >= 12, "four laps")
    order = [json.loads(m.data)["episode"] for m in events if json.loads(m.data)["event"] == "begin"][:12]
    laps = [tuple(order[k : k + 3]) for k in range(0, 12, 3)]
    assert all(sorted(lap) == [0, 1, 2] for lap in laps) and len(set(laps)) > 1
