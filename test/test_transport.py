"""The Fast DDS profiles are such as Fast DDS takes, and do what they are for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sage_ros.paths import profiles_variable, share

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
    environment[profiles_variable()] = str(share("config", "fastdds.xml"))
    peers = [subprocess.Popen([sys.executable, "-c", TALK, name], env=environment, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) for name in "ab"]  # fmt: skip
    for peer in peers:
        output, errors = peer.communicate(timeout=60)
        assert output.strip() == "whole", errors
        assert "XML" not in errors and "deprecated" not in errors, errors


MEET_LATE = """
import time
import rclpy
from rclpy.node import Node
from std_msgs.msg import String
from sage_ros.nodes.lifecycle import RELIABLE
from sage_ros.nodes.pick_place import share_process
share_process()
rclpy.init()
writer, reader = Node("writer"), Node("reader")
publisher = writer.create_publisher(String, "talk", RELIABLE)

def meet():
    got = []
    subscription = reader.create_subscription(String, "talk", got.append, RELIABLE)
    while not (publisher.get_subscription_count() and subscription.get_publisher_count()):
        time.sleep(0.01)
    time.sleep(0.2)  # for what the two have to agree on, of which nothing tells
    return subscription, got

def says(got, count):
    for _ in range(count):
        publisher.publish(String())
        rclpy.spin_once(reader, timeout_sec=5.0)
    return len(got)

subscription, got = meet()
assert says(got, 5100) > 5000
reader.destroy_subscription(subscription)
print(says(meet()[1], 1))
"""


def test_nodes_of_one_process_hear_each_other_however_much_was_said_before() -> None:
    environment = {name: value for name, value in os.environ.items() if name != profiles_variable()}
    command = [sys.executable, "-c", MEET_LATE]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=60)
    assert done.stdout.strip() == "1", done.stderr
    assert "XML" not in done.stderr and "deprecated" not in done.stderr, done.stderr
