"""replayer: demonstration episodes as live topics, like a bag player."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header, String
from std_srvs.srv import Trigger

from sage_ros.core.options import check, option
from sage_ros.episodes import Episode, EpisodeDataset
from sage_ros.episodes.playback import Playback
from sage_ros.episodes.video import Align
from sage_ros.nodes.lifecycle import EVENTS, EXPECTED_ERRORS, LATCHED, RELIABLE, STREAM, SageNode, Status, run
from sage_ros.nodes.messages import image_message, joint_message, to_stamp
from sage_ros.paths import dataset_path

PREPARATION = 0.003  # s before a row is due at which its messages are built
CLOCK = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass(frozen=True)
class ReplayerConfig:
    dataset: str = option("", "GR00T/LeRobot v2.x data set folder; empty: the one in the package")
    episodes: str = option("all", "what to play, in order: 'all', or episode indices such as '0' or '3,1,2'")
    camera: str = option("", "camera by its name in modality.json; empty: the first")
    align: str = option("index", "a row's frame: by number, or as GR00T N1 by time", choices=("index", "timestamp"))
    rate: float = option(1.0, "playback speed; 2 is twice as fast", low=0.001, high=1000.0)
    loop: bool = option(False, "start again after the last episode")
    start_paused: bool = option(False, "wait for ~/resume")
    publish_clock: bool = option(False, "publish /clock and stamp by it (the other nodes then need use_sim_time)")
    lead: float = option(0.3, "time between announcing an episode's task and its first row (s)", low=0.0, high=60.0)
    listeners: int = option(1, "subscribers of image_raw to wait for before the first row", low=0, high=100)
    wait: float = option(10.0, "longest wait for them (s)", low=0.0, high=3600.0)
    settle: float = option(1.0, "rest before the first row, until they have found us too (s)", low=0.0, high=60.0)

    def __post_init__(self) -> None:
        check(self)


class Row(NamedTuple):
    """A row's number and its messages, without a stamp yet."""

    row: int
    stamp: Time
    joints: JointState
    image: Image
    action: JointState


class Replayer(SageNode):
    """Episodes -> image_raw, joint_states, task, demo/action (JointState), ~/events (JSON), optionally /clock.

    The demonstrated action goes on a topic of its own: a replay never moves a robot. The messages of a row carry
    the same stamp. ~/pause, ~/resume, ~/toggle_paused and ~/play_next are std_srvs/Trigger.
    """

    Config = ReplayerConfig
    config: ReplayerConfig
    live = frozenset({"rate", "loop"})

    def __init__(self, **kwargs: object) -> None:
        super().__init__("replayer", **kwargs)
        self._player: threading.Thread | None = None
        self._wake = threading.Condition()  # guards the playback and everything below
        self._playback: Playback | None = None
        self._image: Image | None = None  # to be filled anew
        self._failure = ""
        self._paused, self._step, self._quit = False, False, True

    def setup(self) -> None:
        c = self.config
        self._dataset = EpisodeDataset(dataset_path(c.dataset), align=cast(Align, c.align))
        self._positions = _positions(c.episodes, self._dataset.indices)
        if c.camera and c.camera not in self._dataset.cameras:
            raise ValueError(f"no camera '{c.camera}' in {self._dataset.path}: {', '.join(self._dataset.cameras)}")
        self._camera = c.camera or self._dataset.cameras[0]
        self._paused = c.start_paused
        self._sim_time = 1.0  # s; zero would mean "no time yet" to every ROS clock
        self._images = self.publish_on(Image, "image_raw", STREAM)
        self._states = self.publish_on(JointState, "joint_states", RELIABLE)
        self._demo = self.publish_on(JointState, "demo/action", RELIABLE)
        self._tasks = self.publish_on(String, "task", LATCHED)
        self._events = self.publish_on(String, "~/events", EVENTS)
        self._clock_topic = self.publish_on(Clock, "/clock", CLOCK) if c.publish_clock else None
        self._serve("pause", self._pause)
        self._serve("resume", self._resume)
        self._serve("toggle_paused", lambda: self._resume() if self._paused else self._pause())
        self._serve("play_next", self._play_next)

    def _serve(self, name: str, act: Callable[[], tuple[bool, str]]) -> None:
        def answer(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            with self._wake:
                response.success, response.message = act()
                self._wake.notify_all()
            return response

        self.serve(Trigger, f"~/{name}", answer)

    def start(self) -> None:
        self._quit, self._failure = False, ""
        self._player = threading.Thread(target=self._play_all, name="player", daemon=True)
        self._player.start()

    def stop(self) -> None:
        with self._wake:
            self._quit = True
            self._wake.notify_all()
        if self._player is not None:
            self._player.join(timeout=5.0)
            self._player = None

    def teardown(self) -> None:
        self.stop()

    def changed(self) -> None:
        with self._wake:
            if self._playback is not None:
                self._playback.set_rate(self.config.rate, time.monotonic())
            self._wake.notify_all()

    # Services

    def _pause(self) -> tuple[bool, str]:
        self._paused = True
        if self._playback is not None:
            self._playback.pause()
        return True, "paused"

    def _resume(self) -> tuple[bool, str]:
        self._paused = False
        if self._playback is not None:
            self._playback.resume(time.monotonic())
        return True, "playing"

    def _play_next(self) -> tuple[bool, str]:
        if not self._paused:
            return False, "only while paused"
        self._step = True
        return True, "one row"

    # Playing, in a thread of its own: it sleeps until a row is due

    def _play_all(self) -> None:
        try:
            if not self._wait_for_listeners():
                return
            while not self._quit:
                for position in self._positions:
                    self._play(self._dataset[position])
                    if self._quit:
                        return
                if not self.config.loop:
                    break
                self._sim_time = 1.0
            self._emit("finished")
        except EXPECTED_ERRORS as error:  # a bad episode: say which and why, play nothing in its place
            self._failure = str(error)
            self.get_logger().error(self._failure)
            self._emit("failed", error=self._failure)
        finally:
            self._tasks.publish(String(data=""))

    def _wait_for_listeners(self) -> bool:
        """Returns False if the node stopped meanwhile."""
        deadline = time.monotonic() + self.config.wait
        with self._wake:
            while not self._quit and self._images.get_subscription_count() < self.config.listeners:
                if time.monotonic() >= deadline:
                    found = self._images.get_subscription_count()
                    self.get_logger().warning(f"only {found} listen to image_raw: playing all the same")
                    break
                self._wake.wait(0.05)
        # Discovery has two sides: a listener that we have found may take up to a second or two to find us.
        self._wait(self.config.settle)
        return not self._quit

    def _play(self, episode: Episode) -> None:
        frames = episode.frames(self._camera)
        about = {"episode": episode.index, "rows": len(episode), "fps": episode.fps, "task": episode.task}
        about["dataset"] = str(self._dataset.path)
        self._emit("begin", **about)
        self._tasks.publish(String(data=episode.task))
        with self._wake:
            self._playback = playback = Playback(len(episode), episode.fps, self.config.rate)
            self._step = False
            if not self._paused:
                playback.resume(time.monotonic() + self.config.lead)
        # A row is prepared just before it is due: right after the row before, the nodes want the processor.
        while self._wait_for_row(playback, PREPARATION):
            prepared = self._prepare(episode, playback.row, frames)
            if self._wait_for_row(playback):
                with self._wake:
                    self._step = False
                    playback.advance()
                self._publish(prepared, prepared.row / episode.fps)
        self._wait(1.0 / (episode.fps * playback.rate))  # the last row has its time to be acted on, as every other
        if not self._quit:
            self._emit("end", **about)
            self._tasks.publish(String(data=""))
        self._sim_time += len(episode) / episode.fps + self.config.lead

    def _wait_for_row(self, playback: Playback, early: float = 0.0) -> bool:
        """Wait until ``early`` s before the next row is due, or it is asked for; False at the end or on a stop."""
        with self._wake:
            while not self._quit and not playback.finished:
                left = playback.due() - early - time.monotonic()
                if left <= 0 or self._step:
                    return True
                self._wake.wait(min(left, 3600.0))
        return False

    def _wait(self, seconds: float) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._quit, seconds)

    def _prepare(self, episode: Episode, row: int, frames: np.ndarray) -> Row:
        """Build a row's messages before it is due, so that its stamp is the moment it goes out."""
        with self.watch.span():
            stamp = Time()  # shared: filled in once, when the row goes out
            header = Header(stamp=stamp)
            joints = joint_message(episode.state_joints.names, episode.state[row], header)
            action = joint_message(episode.action_joints.names, episode.action[row], header)
            header = Header(stamp=stamp, frame_id=f"{self._camera}_optical_frame")
            self._image = image_message(frames[row], header, self._image)
        return Row(row, stamp, joints, self._image, action)

    def _publish(self, row: Row, seconds: float) -> None:
        """Stamp and publish; ``seconds`` since the episode's first row.

        The joints go before the image, which is answered with them; the action is for the rows to come.
        """
        if self._clock_topic is None:
            ns = self.get_clock().now().nanoseconds
        else:
            ns = round((self._sim_time + seconds) * 1e9)
            self._clock_topic.publish(Clock(clock=to_stamp(ns)))
        row.stamp.sec, row.stamp.nanosec = divmod(ns, 1_000_000_000)
        self._states.publish(row.joints)
        self._images.publish(row.image)
        self._demo.publish(row.action)
        self.counts["rows_out"] += 1

    def _emit(self, event: str, **about: object) -> None:
        self._events.publish(String(data=json.dumps({"event": event, **about})))

    def status(self) -> Status:
        playback = self._playback
        if self._failure:
            return DiagnosticStatus.ERROR, self._failure, {}
        if playback is None:
            return DiagnosticStatus.OK, "nothing played yet", {}
        state = "paused" if self._paused else f"playing at rate {playback.rate:g}"
        return DiagnosticStatus.OK, f"{state}, row {playback.row} of {playback.rows}", {}


def _positions(episodes: str, indices: tuple[int, ...] | list[int]) -> list[int]:
    """Positions in the data set of the episodes asked for. Raises ValueError naming what there is."""
    if episodes.strip() == "all":
        return list(range(len(indices)))
    try:
        wanted = [int(text) for text in episodes.split(",")]
        return [list(indices).index(index) for index in wanted]
    except ValueError:
        raise ValueError(f"episodes '{episodes}': give 'all' or indices among {_ranges(indices)}") from None


def _ranges(indices: tuple[int, ...] | list[int]) -> str:
    return f"{min(indices)} to {max(indices)}" if len(indices) > 8 else ", ".join(map(str, indices))


def main(args: list[str] | None = None) -> int:
    return run(Replayer, args)


if __name__ == "__main__":
    sys.exit(main())
