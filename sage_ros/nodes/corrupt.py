"""corrupt: between camera, joints and the pipeline, it hands on what comes, or what a bad day makes of it."""

from __future__ import annotations

import array
import copy
import sys
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image, JointState

from sage_ros.corruption import Corruption, CorruptionConfig
from sage_ros.nodes.lifecycle import RELIABLE, STREAM, SageNode, Status
from sage_ros.nodes.messages import MessageError, image_message, nanoseconds, positions_from, rgb_from
from sage_ros.nodes.process import run


class Corrupt(SageNode):
    """clean/image_raw -> image_raw, clean/joint_states -> joint_states, with the stamps that they came with.

    ``ros2 param set /corrupt kind freeze`` breaks what passes from then on, ``... none`` mends it. ``begin`` counts
    from the first frame after a parameter was set or the node was activated; of a robot without a camera from its
    first joint state. What is not hit passes as it is; a picture that is hit becomes rgb8.
    """

    Config = CorruptionConfig
    config: CorruptionConfig
    live = frozenset({"kind", "severity", "seed", "begin", "duration"})

    def __init__(self, **kwargs: object) -> None:
        super().__init__("corrupt", **kwargs)

    def setup(self) -> None:
        cv2.setNumThreads(1)
        self.changed()
        self._image: Image | None = None  # to be filled anew
        self._images = self.publish_on(Image, "image_raw", STREAM)
        self._states = self.publish_on(JointState, "joint_states", RELIABLE)
        self._camera = self.listen(Image, "clean/image_raw", self._on_image, STREAM)
        self.listen(JointState, "clean/joint_states", self._on_joints)

    def changed(self) -> None:
        self._corruption, self._begun, self._hit = Corruption(self.config), False, False

    def clear(self) -> None:
        if self._entities:
            self.changed()

    def stop(self) -> None:
        self.clear()

    def _on_image(self, message: Image) -> None:
        self._begun = True
        self._pass(message, self._spoiled_image, self._images, "frames")

    def _on_joints(self, message: JointState) -> None:
        if not self._begun and self._camera.get_publisher_count():
            self._states.publish(message)  # the stream begins with a frame
            self.counts["joints_in"] += 1
        else:
            self._pass(message, self._spoiled_joints, self._states, "joints")

    def _pass(self, message: Any, spoil: Callable[[Any], Any], publisher: Any, what: str) -> None:
        """What cannot be read is not ours to judge: it goes on as it is, and the counts say so."""
        self.counts[f"{what}_in"] += 1
        try:
            with self.watch.span():
                spoiled = spoil(message)
        except (MessageError, ValueError) as problem:
            self.counts[f"{what}_unread"] += 1
            self.complain(problem)
            spoiled = message
        self.counts[f"{what}_hit"] += spoiled is not message
        self._hit = self._corruption.hits(nanoseconds(message.header.stamp))
        if spoiled is not None:
            publisher.publish(spoiled)

    def _spoiled_image(self, message: Image) -> Image | None:
        if self.config.kind == "none":
            return message
        frame = rgb_from(message)
        spoiled = self._corruption.frame(nanoseconds(message.header.stamp), frame)
        if spoiled is None or spoiled is frame:
            return None if spoiled is None else message
        self._image = image_message(spoiled, message.header, self._image)
        return self._image

    def _spoiled_joints(self, message: JointState) -> JointState:
        if self.config.kind == "none":
            return message
        positions = positions_from(message)
        spoiled = self._corruption.joints(nanoseconds(message.header.stamp), positions)
        if spoiled is positions:
            return message
        changed = copy.copy(message)
        changed.position = array.array("d", spoiled.tobytes())
        if len(message.velocity) == len(spoiled) and self.config.kind == "stuck_joints":
            # An encoder that stands still sees no movement
            changed.velocity = array.array("d", np.where(spoiled == positions, message.velocity, 0.0).tobytes())
        return changed

    def status(self) -> Status:
        if not self.active:
            return DiagnosticStatus.OK, "inactive", {}
        level = DiagnosticStatus.WARN if self._hit else DiagnosticStatus.OK
        return level, f"{self.config}{' now' if self._hit else ''}", {"kind": self.config.kind}


def main(args: list[str] | None = None) -> int:
    return run(Corrupt, args)


if __name__ == "__main__":
    sys.exit(main())
