"""The Fast DDS profile for large images is one that Fast DDS takes, and images come whole."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sage_ros.nodes.pick_place import PROFILES
from sage_ros.paths import share

FAST_DDS = "rmw_fastrtps_cpp"
TALK = """
import sys, time
import numpy as np, rclpy
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from sage_ros.nodes.lifecycle import STREAM
from sage_ros.nodes.messages import image_message, rgb_from
rclpy.init()
node, frame = Node("peer"), np.arange(720 * 1280 * 3, dtype=np.uint32).astype(np.uint8).reshape(720, 1280, 3)
publisher, got = node.create_publisher(Image, "out" if sys.argv[1] == "a" else "back", STREAM), []
node.create_subscription(Image, "back" if sys.argv[1] == "a" else "out", got.append, STREAM)
end = time.monotonic() + 20
while not got and time.monotonic() < end:
    publisher.publish(image_message(frame, Header()))
    rclpy.spin_once(node, timeout_sec=0.1)
publisher.publish(image_message(frame, Header()))
publisher.wait_for_all_acked(rclpy.duration.Duration(seconds=2))
print("whole" if got and np.array_equal(rgb_from(got[0]), frame) else "nothing")
"""


@pytest.mark.skipif(os.environ.get("RMW_IMPLEMENTATION", FAST_DDS) != FAST_DDS, reason="the middleware is no Fast DDS")
def test_images_of_3_mb_come_through_the_profile() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "FASTDDS_BUILTIN_TRANSPORTS"}
    environment |= dict.fromkeys(PROFILES, str(share("config", "fastdds.xml")))
    peers = [subprocess.Popen([sys.executable, "-c", TALK, name], env=environment, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) for name in "ab"]  # fmt: skip
    for peer in peers:
        output, errors = peer.communicate(timeout=60)
        assert output.strip() == "whole", errors
        assert "XMLPARSER" not in errors and "XML" not in errors, errors
