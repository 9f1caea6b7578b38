"""What the recorder hears: topics become streams of samples, which rows are taken from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Float32

from sage_ros.core.allowance import State
from sage_ros.core.joints import JointError, JointLayout
from sage_ros.core.pace import Pace
from sage_ros.episodes.archive import ACTION, STATE, Archive
from sage_ros.episodes.take import Stream
from sage_ros.nodes.lifecycle import SageNode
from sage_ros.nodes.messages import MessageError, map_from, nanoseconds, positions_from, rgb_from

if TYPE_CHECKING:
    from sage_ros.nodes.recorder import RecorderConfig

IMAGES = QoSProfile(depth=30, reliability=ReliabilityPolicy.RELIABLE)  # a recorder may be late, but must not lose
JOINTS = QoSProfile(depth=200, reliability=ReliabilityPolicy.RELIABLE)
INFOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)  # whatever the driver offers
FRAMES = 300  # of a camera that are held at most, should its clock be wrong
SIGNALS: dict[str, tuple[str, ...]] = {
    "sage.confidence": ("confidence",),
    "sage.trust": ("trust_mean", "trust_min"),
    "sage.surprise": ("surprise_mean", "surprise_max"),
    "sage.metabolism": ("state", "energy", "vision_rate", "policy_rate"),
}  # a value that was not heard is -1; the state is its place in core.allowance.State
STATES = tuple(State)


class Inputs:
    """The streams of a recorder by their columns, or "camera/<name>". Callbacks run in the node's executor."""

    def __init__(
        self, node: SageNode, config: RecorderConfig, archive: Archive, on_tick: Callable[[int], None]
    ) -> None:
        """``archive`` learns of joints and intrinsics; ``on_tick`` gets the stamp (ns) of the first camera's frames."""
        self._node, self._config, self._archive, self._on_tick = node, config, archive, on_tick
        c = config
        self.streams = {f"camera/{camera}": Stream(c.joint_tolerance, most=FRAMES) for camera in c.topics}
        self.streams |= {STATE: Stream(c.joint_tolerance)}
        self.streams |= {ACTION: Stream(c.command_tolerance if c.action == "command" else c.joint_tolerance)}
        if c.signals:
            self.streams |= {name: Stream(np.inf, np.full(len(names), -1.0)) for name, names in SIGNALS.items()}
        self._listen(c.topics)

    def forget(self, before: int) -> None:
        """Let go of what no row from ``before`` (ns) on can need."""
        for stream in self.streams.values():
            stream.forget(before)

    def clear(self) -> None:
        for stream in self.streams.values():
            stream.clear()

    def _listen(self, topics: dict[str, str]) -> None:
        for k, (camera, topic) in enumerate(topics.items()):
            kind = CompressedImage if topic.endswith("/compressed") else Image
            self._node.listen(kind, topic, partial(self._on_image, camera, k == 0), IMAGES, overridable=True)
            folder = topic.removesuffix("/compressed").rpartition("/")[0]
            about = f"{folder}/camera_info" if folder else "camera_info"
            self._node.listen(CameraInfo, about, partial(self._on_info, camera), INFOS)
        self._node.listen(JointState, "joint_states", partial(self._on_joints, STATE), JOINTS, overridable=True)
        if self._config.action == "command":
            self._node.listen(JointState, "last_command", partial(self._on_joints, ACTION), JOINTS, overridable=True)
        if self._config.signals:
            self._node.listen(Float32, "confidence", self._on_confidence)
            for name in ("trust", "surprise"):
                self._node.listen(Image, name, partial(self._on_map, f"sage.{name}"))
            self._node.listen_to_metabolism(self._on_metabolism)

    def _on_image(self, camera: str, paces: bool, message: Image | CompressedImage) -> None:
        try:
            frame = rgb_from(message)
        except MessageError as problem:
            return self._refuse(f"camera '{camera}': {problem}")
        stamp = nanoseconds(message.header.stamp)
        self._node.counts[f"frames_{camera}"] += 1
        self.streams[f"camera/{camera}"].add(stamp, frame)
        if paces:
            self._on_tick(stamp)

    def _on_info(self, camera: str, message: CameraInfo) -> None:
        known = {"k": list(message.k), "d": list(message.d), "distortion_model": message.distortion_model}
        self._archive.intrinsics[camera] = known

    def _on_joints(self, column: str, message: JointState) -> None:
        try:
            positions = positions_from(message)
            layout = self._archive.joints.setdefault(column, JointLayout(tuple(message.name)))
            positions = positions[layout.order_from(message.name)]
        except (MessageError, JointError) as problem:
            return self._refuse(f"{'joint_states' if column == STATE else 'last_command'}: {problem}")
        stamp = nanoseconds(message.header.stamp)
        self._node.counts["joint_states" if column == STATE else "commands"] += 1
        self.streams[column].add(stamp, positions)
        if self._config.action == "joints":
            self._archive.joints.setdefault(ACTION, layout)
            self.streams[ACTION].add(stamp, positions)

    def _on_confidence(self, message: Float32) -> None:
        self._hear("sage.confidence", self._node.get_clock().now().nanoseconds, [message.data])

    def _on_map(self, column: str, message: Image) -> None:
        try:
            values = map_from(message)
        except MessageError as problem:
            return self._refuse(f"{column}: {problem}")
        extreme = values.min() if column == "sage.trust" else values.max()
        self._hear(column, nanoseconds(message.header.stamp), [values.mean(), extreme])

    def _on_metabolism(self, pace: Pace) -> None:
        state = STATES.index(State(pace.state))
        figures = [pace.energy, pace.vision_rate, pace.policy_rate]
        self._hear("sage.metabolism", self._node.get_clock().now().nanoseconds, [state, *figures])

    def _hear(self, column: str, stamp: int, values: list[float]) -> None:
        if np.isfinite(values).all():
            self.streams[column].add(stamp, np.array(values))

    def _refuse(self, problem: str) -> None:
        self._node.counts["refused"] += 1
        self._node.complain(problem)
