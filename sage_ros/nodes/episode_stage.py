"""What the replayer plays: episodes, loaded one ahead, their rows as messages, and what is told about them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Header, String
from trajectory_msgs.msg import JointTrajectory

from sage_ros.core.chunks import ActionChunk
from sage_ros.core.timing import SECOND
from sage_ros.episodes import DatasetError, Episode, EpisodeDataset
from sage_ros.episodes.mapping import topic_name
from sage_ros.episodes.playback import Playlist, choose, shuffled
from sage_ros.episodes.video import Align
from sage_ros.nodes.camera_topics import CameraTopics, intrinsics
from sage_ros.nodes.lifecycle import EVENTS, LATCHED, RELIABLE, SageNode
from sage_ros.nodes.messages import MessageError, joint_message, positions_from, to_stamp, trajectory_message
from sage_ros.nodes.player import Player
from sage_ros.paths import dataset_path

if TYPE_CHECKING:
    from sage_ros.nodes.replayer import ReplayerConfig

CLOCK = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


class Scene(NamedTuple):
    """An episode that is ready to be played, with the frames (T, H, W, 3) of its cameras."""

    episode: Episode
    frames: dict[str, np.ndarray]


class Row(NamedTuple):
    """The messages of a row and their publishers; all share the stamp, which is not filled in yet."""

    stamp: Time
    messages: list[tuple[Any, Any]]


class EpisodeStage:
    """Puts episodes on topics of ``node``; what plays on it calls it in a thread of its own."""

    player: Player  # that plays on this stage

    def __init__(self, node: SageNode, config: ReplayerConfig) -> None:
        """Opens the data set and the topics. Raises ValueError and DatasetError if they are not as configured."""
        self._node, self.config = node, config
        self._dataset = EpisodeDataset(dataset_path(config.dataset), align=cast(Align, config.align))
        self.fps = self._dataset.fps
        self._chosen = choose(config.episodes, self._dataset.indices)
        self._cameras: dict[str, CameraTopics] = {}
        self._names = [] if config.mode == "command" else self._camera_names()
        self._look_for_rivals()
        self._open_topics()
        self._loader = ThreadPoolExecutor(1, "loader")
        self._scene: Scene | None = None
        self._ahead: tuple[int, Future[Scene]] | None = None  # the episode that is loaded while another plays
        self._broken: set[int] = set()
        self._measured: dict[str, float] = {}  # joints, in the mode command
        self._about: dict[str, Any] = {}
        self._showing, self._shown = threading.Lock(), 0.0  # the time (s) that /clock shows
        self.failure = ""

    @property
    def episode(self) -> int | None:
        """The index of the one being played."""
        return self._scene.episode.index if self._scene is not None else None

    def close_files(self) -> None:
        self._loader.shutdown(cancel_futures=True)

    def _camera_names(self) -> list[str]:
        there = self._dataset.cameras
        wanted = self.config.camera.strip()
        names = list(there) if wanted == "all" else [name.strip() for name in wanted.split(",") if name.strip()]
        names = names or list(there[:1])
        if missing := [name for name in names if name not in there]:
            what = f"no camera '{', '.join(missing)}' in {self._dataset.path}"
            raise ValueError(f"{what}: there are {', '.join(there) or 'none'}")
        if len({topic_name(name) for name in names}) < len(names):
            raise ValueError(f"cameras {', '.join(names)}: some of these names make the same topic, or repeat")
        return names

    def _open_topics(self) -> None:
        c = self.config
        self._states: Any = None
        self._demo: Any = None
        self._actions: Any = None
        self._clock_topic: Any = None
        if c.mode == "command":
            self._actions = self._node.publish_on(JointTrajectory, "action", RELIABLE)
            self._node.listen(JointState, "joint_states", self._on_joints)
        else:
            self._states = self._node.publish_on(JointState, "joint_states", RELIABLE, overridable=True)
        if c.mode != "observations":
            self._demo = self._node.publish_on(JointState, "demo/action", RELIABLE, overridable=True)
        for name in self._names:
            known, info = self._dataset.camera_info(name), None
            if c.intrinsics or known is not None:
                info = intrinsics(c.intrinsics, known, name, self._size(name))
            prefix = f"{topic_name(name)}/" if len(self._names) > 1 else ""
            self._cameras[name] = CameraTopics(self._node, name, prefix, c.compression, c.jpeg_quality, info)
        self._tasks = self._node.publish_on(String, "task", LATCHED)
        self._asked = ""  # the task of the moment
        self._events = self._node.publish_on(String, "~/events", EVENTS)
        self._episodes = self._node.publish_on(DiagnosticArray, "~/episode", LATCHED)
        if c.publish_clock:
            self._clock_topic = self._node.publish_on(Clock, "/clock", CLOCK)

    def _size(self, camera: str) -> tuple[int, int]:
        """(H, W) of the camera's first frame to be played."""
        height, width = self._dataset[self._dataset.indices.index(self._chosen[0])].frames(camera).shape[1:3]
        return height, width

    # The stage, in the player's thread

    def playlist(self, lap: int) -> Playlist:
        lengths = dict(zip(self._dataset.indices, self._dataset.lengths, strict=True))
        order = [index for index in self._chosen if index not in self._broken]
        if not order:
            raise DatasetError("no episode could be read", self._dataset.path, remedy="see the warnings above")
        if self.config.shuffle:
            order = shuffled(order, self.config.seed, lap)
        return Playlist(order, [lengths[index] for index in order])

    def ready(self) -> None:
        first = self.playlist(0).episodes[0]  # who rests does not look before there is something to do
        self._ask(self._dataset[self._dataset.indices.index(first)].task)
        deadline = time.monotonic() + self.config.wait
        while (found := self._listeners()) < self.config.listeners and self.player.wait(0.05):
            if time.monotonic() >= deadline:
                topics = "action" if self._actions is not None else "the images"
                self._node.get_logger().warning(f"only {found} listen to {topics}: playing all the same")
                break
        # Discovery has two sides: a listener that we have found may take up to a second or two to find us.
        self.player.wait(self.config.settle)
        self._look_for_rivals()  # once more: those who were not discovered yet when the node was configured

    def _ask(self, task: str) -> None:
        if task != self._asked:
            self._asked = task
            self._tasks.publish(String(data=task))

    def _look_for_rivals(self) -> None:
        """Raises ValueError if others command the robot or make the time. Of our name is who was killed before us."""
        name = self._node.get_fully_qualified_name()
        planners, clocks = ([n for n in self._node.publishers(t) if n != name] for t in ("action", "/clock"))
        if self.config.mode == "command" and planners:
            problem = f"action is published already, by {', '.join(planners)}: one plan at a time moves a robot"
            raise ValueError(f"{problem}; end that node, or replay in another mode")
        if self.config.publish_clock and clocks:
            raise ValueError(f"/clock is published already, by {', '.join(clocks)}: set publish_clock to false")

    def _listeners(self) -> int:
        if self._actions is not None:
            return int(self._actions.get_subscription_count())
        return sum(topics.listeners for topics in self._cameras.values()) if self._cameras else self.config.listeners

    def enter(self, playlist: Playlist, place: int, row: int) -> bool:
        self.show_time(jump=True)
        index = playlist.episodes[place]
        self._scene = self._fetch(index)
        self._prefetch(playlist, place)
        if self._scene is None:
            return False
        episode = self._scene.episode
        self._about = {"episode": index, "row": row, "rows": len(episode), "fps": episode.fps, "task": episode.task}
        self._about["dataset"] = str(self._dataset.path)
        self._emit("begin", **self._about)
        self._ask(episode.task)
        if self._actions is not None and self.config.approach:
            self._come_near(episode, row)
        return True

    def leave(self) -> None:
        self._emit("end", **self._about)
        self._ask("")

    def close(self, how: str, error: str = "") -> None:
        if error:
            self.failure = error
            self._node.get_logger().error(error)
            self._emit(how, error=error)
        else:
            self._emit(how)
        self._ask("")

    def prepare(self, place: int, row: int) -> Row:
        """Build a row's messages before it is due, so that its stamp is the moment it goes out.

        The joints go before the images, which are answered with them; the action is for the rows to come.
        """
        assert self._scene is not None, "rows are played of an episode that was entered"
        stamp, messages, episode = Time(), list[tuple[Any, Any]](), self._scene.episode
        with self._node.watch.span():
            header = Header(stamp=stamp)
            if self._states is not None:
                messages.append((self._states, joint_message(episode.state_joints.names, episode.state[row], header)))
            for name, topics in self._cameras.items():
                messages += topics.prepare(self._scene.frames[name][row], stamp)
            if self._actions is not None:
                messages.append((self._actions, self._chunk(episode, range(row, row + self.config.horizon), header)))
            if self._demo is not None:
                messages.append((self._demo, joint_message(episode.action_joints.names, episode.action[row], header)))
        return Row(stamp, messages)

    def publish(self, prepared: Row, time: float) -> None:
        self.show_time(time)
        prepared.stamp.sec, prepared.stamp.nanosec = divmod(self._stamp(time), SECOND)
        for publisher, message in prepared.messages:
            publisher.publish(message)
        self._node.counts["rows_out"] += 1

    # Episodes, loaded while others are played

    def _load(self, position: int) -> Scene:
        episode = self._dataset[position]
        return Scene(episode, {name: episode.frames(name) for name in self._names})

    def _fetch(self, index: int) -> Scene | None:
        """The episode, or None if it is broken and may be left out. Raises DatasetError."""
        if self._scene is not None and self._scene.episode.index == index:
            return self._scene
        ahead, self._ahead = self._ahead, None
        self._scene = None  # not more than two at a time in memory
        try:
            if ahead is not None and ahead[0] == index:
                return ahead[1].result()
            return self._load(self._dataset.indices.index(index))
        except DatasetError as error:
            if not self.config.skip_broken:
                raise
            self._node.get_logger().warning(f"episode {index} is left out: {error}")
            self._broken.add(index)
            self._node.counts["episodes_left_out"] += 1
            return None

    def _prefetch(self, playlist: Playlist, place: int) -> None:
        coming = playlist.episodes[(place + 1) % len(playlist.episodes)]
        last = place + 1 == len(playlist.episodes) and (not self.config.loop or self.config.shuffle)
        if not last and coming != playlist.episodes[place] and coming not in self._broken:
            self._ahead = (coming, self._loader.submit(self._load, self._dataset.indices.index(coming)))

    # The mode command

    def _on_joints(self, message: JointState) -> None:
        try:
            self._measured = dict(zip(message.name, positions_from(message), strict=True))
        except MessageError as problem:
            self._node.counts["refused"] += 1
            self._node.complain(f"joint_states: {problem}")

    def _chunk(self, episode: Episode, rows: Sequence[int], header: Header) -> JointTrajectory:
        """The actions of these rows, the last one standing for those after the end, at the speed of playing."""
        chunk = ActionChunk(episode.action[np.minimum(rows, len(episode) - 1)], self.fps * self.player.rate)
        return trajectory_message(episode.action_joints.names, chunk, header)

    def _come_near(self, episode: Episode, row: int) -> None:
        """Plan for the pose of ``row`` until the robot is there. Raises RuntimeError after ``approach`` s.

        The safety filter eases in from the measured pose: the demonstration begins only where it began.
        """
        names, pose = episode.action_joints.names, episode.action[row]
        period, waited = 1.0 / self.fps, 0.0
        while self.player.wait(period):
            if self.player.paused:
                continue
            off = {name: abs(self._measured.get(name, np.inf) - at) for name, at in zip(names, pose, strict=True)}
            farthest = max(off, key=lambda name: off[name])
            if off[farthest] <= self.config.arrival:
                return
            if waited >= self.config.approach:
                far = f"joint '{farthest}' is {off[farthest]:.3f} rad off" if self._measured else "no joint_states came"
                what = f"the robot did not reach the first pose of the episode within {waited:.0f} s: {far}"
                raise RuntimeError(f"{what}; is the safety filter enabled (safety_filter/enable)?")
            header = Header(stamp=self._node.get_clock().now().to_msg())
            self._actions.publish(self._chunk(episode, [row] * self.config.horizon, header))
            waited += period

    # What is told

    def show_time(self, time: float | None = None, jump: bool = False) -> None:
        """Say on /clock where on the playlist (s) we are, by default where the player is. Any thread may call.

        Time goes back in a ``jump`` alone: going back by the microseconds that lie between two threads would make every
        listener forget what it has seen.
        """
        if self._clock_topic is None:
            return
        with self._showing:
            time = self.player.time if time is None else time
            if jump or time >= self._shown:
                self._shown = time
                self._clock_topic.publish(Clock(clock=to_stamp(clock_ns(time))))

    def _stamp(self, time: float) -> int:
        """The stamp (ns) of what goes out now, at ``time`` s on the playlist."""
        return clock_ns(time) if self._clock_topic is not None else int(self._node.get_clock().now().nanoseconds)

    def _emit(self, event: str, **about: object) -> None:
        self._events.publish(String(data=json.dumps({"event": event, **about})))
        level = DiagnosticStatus.ERROR if event == "failed" else DiagnosticStatus.OK
        self._episodes.publish(self._node.report("episode", level, event, about))


def clock_ns(time: float) -> int:
    """What /clock shows (ns) at ``time`` s on the playlist; zero would mean "no time yet" to every ROS clock."""
    return round((1.0 + time) * SECOND)
