"""The recorder over real topics: what was replayed is recorded again, row for row and pixel for pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from episode_sets import JOINTS
from graph import Graph
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float32, Header, String
from std_srvs.srv import SetBool, Trigger

from sage_ros.core.timing import SECOND
from sage_ros.episodes import DatasetError, EpisodeDataset, EpisodeWriter
from sage_ros.episodes.alignment import align
from sage_ros.episodes.archive import Archive
from sage_ros.episodes.take import FilmSettings, Stream, Take
from sage_ros.nodes.lifecycle import LATCHED, STREAM, values_of
from sage_ros.nodes.messages import image_message, joint_message, to_stamp
from sage_ros.nodes.recorder import Recorder
from sage_ros.nodes.recorder_inputs import SIGNALS
from sage_ros.nodes.replayer import Replayer

FPS = 20
SIZES = {"front": (48, 64), "wrist": (32, 96)}
ROWS = (9, 7)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorder") / "original"
    chance = np.random.default_rng(1)
    known = {"front": {"k": [50.0, 0, 32, 0, 50, 24, 0, 0, 1], "d": [0.1] * 5, "distortion_model": "plumb_bob"}}
    with EpisodeWriter(path, FPS, "so101", JOINTS, SIZES, lossless=True, intrinsics=known) as writer:
        for episode, rows in enumerate(ROWS):
            state = chance.normal(size=(rows, 3))
            films = {c: chance.integers(0, 255, (rows, *size, 3), dtype=np.uint8) for c, size in SIZES.items()}
            writer.add(state, chance.normal(size=(rows, 3)), f"task {episode}", films)
    return path


class Session:
    """A recorder, and a made robot with a camera at 20 Hz whose stamps the test decides."""

    def __init__(self, folder, **parameters):
        self.packed = "compressed" in parameters.get("cameras", "")
        given = {"dataset": str(folder), "settle": 0.05, "patience": 0.05} | parameters
        self.graph = Graph([Recorder], {f"recorder:{key}": value for key, value in given.items()})

    def __enter__(self):
        graph = self.graph.__enter__()
        self.node, self.probe = graph.nodes[0], graph.probe
        self.told = self.probe.listen(DiagnosticArray, "recorder/episode", LATCHED)
        graph.up()
        make = self.probe.node.create_publisher
        self.images, self.confidence = make(Image, "image_raw", 50), make(Float32, "confidence", 10)
        self.joints, self.commands = make(JointState, "joint_states", 100), make(JointState, "last_command", 100)
        self.tasks = make(String, "task", LATCHED)
        ours = [self.joints, self.tasks] if self.packed else [self.images, self.confidence, self.joints, self.commands]
        self.probe.until(lambda: all(one.get_subscription_count() for one in ours), "the recorder to listen")
        self.now = self.node.get_clock().now().nanoseconds
        return self

    def __exit__(self, *error):
        self.graph.__exit__(*error)

    def shot(self, value, commands=True, joints=True, size=(48, 64), step=SECOND // FPS):
        """A camera frame of this brightness, joints and command of this value."""
        header = Header(stamp=to_stamp(self.now))
        if joints:
            self.joints.publish(joint_message(JOINTS.names, np.full(3, value), header))
        if commands:
            self.commands.publish(joint_message(JOINTS.names, np.full(3, -value), header))
        self.images.publish(image_message(np.full((*size, 3), value, np.uint8), header))
        self.now += step

    def shots(self, values, **options):
        seen = self.node.counts["frames_front"] + len(values)
        for value in values:
            self.shot(value, **options)
        self.probe.until(lambda: self.node.counts["frames_front"] == seen, "the frames")

    def task(self, text):
        self.tasks.publish(String(data=text))
        self.probe.until(lambda: self.node._task == text, "the task")

    def ask(self, name):
        return self.probe.call(Trigger, f"recorder/{name}")

    def events(self):
        return [message.status[0].message for message in self.told]


def test_what_is_replayed_is_recorded_again_row_for_row_and_pixel_for_pixel(original, tmp_path):
    parameters = {
        "replayer:dataset": str(original), "replayer:camera": "all", "replayer:mode": "demonstration",
        "replayer:settle": 0.5, "replayer:lead": 1.0, "replayer:listeners": 2,
        "recorder:dataset": str(tmp_path / "copy"),
        "recorder:cameras": "front=front/image_raw,wrist=wrist/image_raw", "recorder:split": "task",
        "recorder:lossless": True, "recorder:like": str(original), "recorder:signals": False,
    }  # fmt: skip
    with Graph([Recorder, Replayer], parameters, ["recorder:last_command:=demo/action"]) as graph:
        told = graph.probe.listen(DiagnosticArray, "recorder/episode", LATCHED)
        graph.up()
        graph.probe.until(lambda: [m.status[0].message for m in told].count("saved") == 2, "both episodes")
    first, second = EpisodeDataset(original), EpisodeDataset(tmp_path / "copy")
    assert second.lengths == first.lengths == ROWS
    assert (second.fps, second.robot_type, second.state_joints) == (first.fps, first.robot_type, first.state_joints)
    for one, other in zip(first, second, strict=True):
        assert one.task == other.task
        for column in ("state", "action", "timestamp"):
            assert np.array_equal(getattr(one, column), getattr(other, column)), column
        assert all(np.array_equal(one.frames(camera), other.frames(camera)) for camera in SIZES)
    assert second.camera_info("front") == first.camera_info("front")
    assert second.camera_info("wrist") is None


def test_a_row_takes_the_newest_sample_at_or_before_its_frame_whatever_order_they_arrive_in(tmp_path):
    chance = np.random.default_rng(2)
    with Session(tmp_path / "set") as s:
        s.task("look")
        assert s.ask("start").success
        start, ticks = s.now, s.now + (np.arange(1, 15) * SECOND / FPS).astype(np.int64)
        stamps = start + chance.integers(0, int(0.8 * SECOND), 80)
        for k, stamp in enumerate(stamps):  # in an order of chance
            for publisher, sign in ((s.joints, 1), (s.commands, -1)):
                publisher.publish(joint_message(JOINTS.names, np.full(3, sign * k), Header(stamp=to_stamp(int(stamp)))))
        s.probe.until(lambda: s.node.counts["commands"] == s.node.counts["joint_states"] == 80, "the samples")
        for tick in ticks:
            frame = np.full((48, 64, 3), 7, np.uint8)
            s.images.publish(image_message(frame, Header(stamp=to_stamp(int(tick)))))
        s.probe.until(lambda: s.node.counts["frames_front"] == len(ticks), "the frames")
        assert s.ask("stop").success
    episode = EpisodeDataset(tmp_path / "set")[0]
    expected = align(stamps, ticks, 0.1 * SECOND)
    whole = expected[expected >= 0]
    assert len(whole) >= 10 and np.array_equal(episode.state[:, 0], whole)
    newest = align(stamps, ticks, 2 * SECOND)[expected >= 0]
    assert np.array_equal(episode.action[:, 0], -newest.astype(float))


def test_a_row_waits_for_joints_that_the_middleware_delivers_late_but_not_for_ever(tmp_path):
    streams = {"camera/front": Stream(0.1), "observation.state": Stream(0.1), "sage.trust": Stream(0.1, np.zeros(1))}
    take = Take("pick", tmp_path, FilmSettings(FPS), streams, settle=0.1, patience=2.0)
    first, second = SECOND, SECOND + SECOND // FPS
    for tick, now in ((first, 0.0), (second, 0.05)):
        streams["camera/front"].add(tick, np.zeros((48, 64, 3), np.uint8))
        assert take.tick(tick, now)
    streams["observation.state"].add(first - 20_000_000, np.full(1, 1.0))
    assert take.advance(1.0) == 0, "there may be a newer one for the first row"
    streams["observation.state"].add(first - 10_000_000, np.full(1, 2.0))
    streams["observation.state"].add(first + 1, np.full(1, 3.0))
    assert take.advance(1.0) == 1 and take.columns["observation.state"][0] == 2.0
    assert take.advance(2.0) == 0 and take.advance(2.1) == 1, "two seconds are long enough"
    assert take.columns["observation.state"][1] == 3.0
    take.discard()


def test_services_begin_save_discard_and_label(tmp_path):
    with Session(tmp_path / "set") as s:
        assert "there is no task" in s.ask("start").message
        s.task("pick")
        assert "nothing is being recorded" in s.ask("stop").message
        assert not s.ask("discard").success
        assert s.ask("start").success and "stop or discard it first" in s.ask("start").message
        s.shots(range(10, 60, 10))
        answer = s.ask("stop")
        assert (answer.success, answer.message) == (True, "episode 0: 5 rows of 'pick'")
        assert s.ask("start").success
        s.shots(range(10, 60, 10))
        assert s.ask("discard").success
        assert s.ask("start").success
        s.shots(range(60, 100, 10))
        assert s.probe.call(SetBool, "recorder/success", SetBool.Request(data=True)).success
        assert s.ask("stop").message == "episode 1: 4 rows of 'pick'"
        assert s.ask("start").success
        s.shots(range(10, 40, 10))
        assert s.ask("stop").success
        answer = s.probe.call(SetBool, "recorder/success", SetBool.Request(data=False))
        assert answer.message == "episode 2 is labelled"
        s.probe.until(lambda: len(s.told) == 8, "what was told")
        assert s.events() == ["begun", "saved", "begun", "discarded", "begun", "saved", "begun", "saved"]
    lines = (tmp_path / "set/meta/episodes.jsonl").read_text().splitlines()
    assert [json.loads(line).get("success") for line in lines] == [None, True, False]
    dataset = EpisodeDataset(tmp_path / "set")
    assert dataset.lengths == (5, 4, 3)
    assert np.array_equal(dataset[1].state[:, 0], [60, 70, 80, 90]) and dataset[1].action[0, 0] == -60
    assert abs(int(dataset[1].frames()[2].mean()) - 80) <= 2
    assert not (tmp_path / ".set.recording").exists()


def test_the_task_topic_splits_episodes(tmp_path):
    with Session(tmp_path / "set", split="task") as s:
        s.shots([1, 2])  # no task: nothing
        for text, values in (("pick", (10, 20, 30)), ("place", (40, 50)), ("", (60,)), ("pick", (70, 80))):
            s.task(text)
            s.shots(values)
        s.task("")
        assert s.probe.call(SetBool, "recorder/success", SetBool.Request(data=True)).success, "of the one just ended"
        s.probe.until(lambda: s.events().count("saved") == 3, "three episodes")
    dataset = EpisodeDataset(tmp_path / "set")
    assert [episode.task for episode in dataset] == ["pick", "place", "pick"]
    assert [list(episode.state[:, 0]) for episode in dataset] == [[10, 20, 30], [40, 50], [70, 80]]
    lines = (tmp_path / "set/meta/episodes.jsonl").read_text().splitlines()
    assert [json.loads(line).get("success") for line in lines] == [None, None, True]


def test_rows_that_lack_something_are_left_out_and_counted(tmp_path):
    with Session(tmp_path / "set", command_tolerance=0.01, joint_tolerance=0.01) as s:
        s.task("pick")
        s.ask("start")
        s.shots([1, 2], commands=False)  # before the first whole row: not begun yet
        s.shots([3, 4])
        s.shots([5], joints=False)
        s.shots([6], size=(64, 64))
        s.shots([7])
        assert s.ask("stop").message == "episode 0: 3 rows of 'pick'"
        s.probe.until(lambda: len(s.told) == 2, "the news")
        assert values_of(s.told[-1].status[0])["left_out"] == "2"
    assert list(EpisodeDataset(tmp_path / "set")[0].state[:, 0]) == [3, 4, 7]


def test_an_episode_of_nothing_is_no_episode_and_says_what_was_missing(tmp_path):
    with Session(tmp_path / "set") as s:
        s.task("pick")
        s.ask("start")
        s.shots([1, 2, 3], commands=False)
        answer = s.ask("stop")
        assert not answer.success and "there were no action" in answer.message
        s.ask("start")
        assert "no camera frames" in s.ask("stop").message
    assert not (tmp_path / "set/meta").exists()


def test_a_faster_camera_is_thinned_out_and_a_pause_of_it_is_told(tmp_path):
    with Session(tmp_path / "set") as s:
        s.task("pick")
        s.ask("start")
        s.shots(range(20), step=SECOND // 60)
        s.now += SECOND
        s.shots(range(100, 106), step=SECOND // 60)
        s.ask("stop")
        s.probe.until(lambda: len(s.told) == 2, "the news")
        assert values_of(s.told[-1].status[0])["gaps"] == "1"
    shown = EpisodeDataset(tmp_path / "set")[0].state[:, 0]
    assert len(shown[shown < 100]) == 7 and set(np.diff(shown[shown < 100])) <= {2, 3}
    assert 2 <= len(shown[shown >= 100]) <= 3


def test_what_the_pipeline_says_of_itself_is_recorded_too(tmp_path):
    with Session(tmp_path / "set") as s:
        s.task("pick")
        s.ask("start")
        s.now = s.node.get_clock().now().nanoseconds
        s.shots([1], step=0)
        s.confidence.publish(Float32(data=0.25))
        s.probe.until(lambda: s.node._inputs.streams["sage.confidence"].at(2**62, np.inf), "the confidence")
        s.now = s.node.get_clock().now().nanoseconds
        s.shots([2])
        s.ask("stop")
    dataset = EpisodeDataset(tmp_path / "set")
    _, table = dataset.rows(0, list(SIGNALS))
    assert [row[0] for row in table["sage.confidence"].to_pylist()] == [-1.0, 0.25]
    assert table["sage.metabolism"].to_pylist() == [[-1.0] * 4] * 2
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert info["features"]["sage.trust"]["names"] == ["trust_mean", "trust_min"]


def test_a_set_that_is_there_is_gone_on_with_and_another_one_is_refused(tmp_path):
    for first in (10, 20):
        with Session(tmp_path / "set") as s:
            s.task("pick")
            s.ask("start")
            s.shots([first, first + 1])
            assert s.ask("stop").success
    dataset = EpisodeDataset(tmp_path / "set")
    assert [list(e.state[:, 0]) for e in dataset] == [[10, 11], [20, 21]]
    assert dataset.stats["observation.state"]["max"].max() == 21
    with Session(tmp_path / "set", lossless=True) as s:
        s.task("pick")
        s.ask("start")
        s.shots([1, 2, 3])
        s.probe.until(lambda: s.events()[-1:] == ["failed"], "the failure at the first row, not at the end")
        assert "RECORDING HAS STOPPED" in s.node.status()[1]
        answer = s.ask("stop")
        assert not answer.success and "another data set: features differ" in answer.message
    assert len(EpisodeDataset(tmp_path / "set")) == 2
    with Graph([Recorder], {"recorder:dataset": str(tmp_path / "set"), "recorder:fps": 10.0}) as graph:
        assert graph.nodes[0].trigger_configure().name == "FAILURE", "of another rate"


def test_two_recorders_do_not_write_into_one_set(tmp_path):
    with Session(tmp_path / "set") as s:
        s.task("pick")
        s.ask("start")
        s.shots([1, 2])
        second = Archive(tmp_path / "set", FilmSettings(FPS), "so101")
        with pytest.raises(DatasetError, match="another recorder"):
            second.begin("pick", {}, 0.1, 0.1)
        second.end()
        assert s.ask("stop").success, "the first one goes on"
    assert len(EpisodeDataset(tmp_path / "set")) == 1


def test_a_disk_that_is_nearly_full_ends_recording_loudly_and_keeps_what_stands(tmp_path):
    with Session(tmp_path / "set", split="task") as s:
        s.task("pick")
        s.shots([1, 2, 3])
        s.node.archive.min_free = 10**7  # 10 TB: the disk is "full" from now on
        s.probe.until(lambda: "saved" in s.events(), "what was in progress to be saved")
        assert s.events()[:2] == ["begun", "failed"]
        s.task("place")
        s.shots([4, 5])
        assert "begun" not in s.events()[2:], "no more is recorded"
        assert "nearly full" in s.node.status()[1]
        answer = s.ask("start")
        assert not answer.success and "nearly full" in answer.message
        s.node.archive.min_free = 1
        assert s.ask("start").success, "with room again it goes on"
        s.shots([6, 7])
        assert s.ask("stop").success
    assert EpisodeDataset(tmp_path / "set").lengths == (3, 2)


def test_time_that_goes_back_begins_another_episode(tmp_path):
    with Session(tmp_path / "set", split="task") as s:
        s.task("pick")
        s.shots([1, 2, 3])
        s.node.clear()
        s.now -= 5 * SECOND
        s.shots([4, 5])
        s.task("")
        s.probe.until(lambda: s.events().count("saved") == 2, "two episodes")
    assert [list(e.state[:, 0]) for e in EpisodeDataset(tmp_path / "set")] == [[1, 2, 3], [4, 5]]


def test_compressed_cameras_and_hand_guided_robots(tmp_path):
    import cv2

    with Session(tmp_path / "set", cameras="front=image_raw/compressed", action="joints") as s:
        packed = s.probe.publisher(CompressedImage, "image_raw/compressed", STREAM)
        s.task("pick")
        s.ask("start")
        for value in (40, 80):
            header = Header(stamp=to_stamp(s.now))
            s.joints.publish(joint_message(JOINTS.names, np.full(3, value), header))
            picture = cv2.imencode(".png", np.full((48, 64, 3), (value, 0, 0), np.uint8))[1]  # blue
            packed.publish(CompressedImage(header=header, format="bgr8; png compressed bgr8", data=picture.tobytes()))
            s.now += SECOND // FPS
        packed.publish(CompressedImage(header=header, format="jpeg", data=b"no picture"))
        s.probe.until(lambda: s.node.counts["refused"] == 1, "the refusal")
        assert s.ask("stop").success
    episode = EpisodeDataset(tmp_path / "set")[0]
    assert np.array_equal(episode.state, episode.action) and len(episode) == 2
    assert episode.frames()[1][..., 2].mean() > 60 > 20 > episode.frames()[1][..., 0].mean()


def test_settings_that_make_no_sense_are_refused_and_can_be_corrected(tmp_path):
    good = {"dataset": str(tmp_path / "set"), "cameras": "front=image_raw", "like": ""}
    with Graph([Recorder]) as graph:
        node = graph.nodes[0]
        for bad in ({"cameras": "front"}, {"cameras": ""}, {"dataset": ""}, {"cameras": "a=x,a=y"}, {"like": "/no"}):
            assert node.set_parameters([Parameter(k, value=v) for k, v in (good | bad).items()])[0].successful
            assert node.trigger_configure().name == "FAILURE", bad
        node.set_parameters([Parameter(k, value=v) for k, v in good.items()])
        assert node.trigger_configure().name == "SUCCESS"
