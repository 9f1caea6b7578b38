"""What publishing a camera frame from Python costs, beside the obvious way of doing it.

Construct and publish a 640x480 rgb8 image to a subscriber in another process, as the nodes do it; and, in the same
run, construct it by assigning the numpy array itself.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time

import numpy as np
import rclpy
from harness import arguments, conclude
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from sage_ros.nodes.lifecycle import STREAM
from sage_ros.nodes.messages import image_message


def listen(ready: object, stop: object) -> None:
    """A subscriber in a process of its own."""
    rclpy.init()
    node = Node("listener")
    node.create_subscription(Image, "frame", lambda message: None, STREAM)
    ready.set()  # type: ignore[attr-defined]
    while not stop.is_set():  # type: ignore[attr-defined]
        rclpy.spin_once(node, timeout_sec=0.1)
    node.destroy_node()
    rclpy.shutdown()


def naive(frame: np.ndarray) -> Image:
    message = Image(height=frame.shape[0], width=frame.shape[1], encoding="rgb8", step=3 * frame.shape[1])
    message.data = frame.reshape(-1)
    return message


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--frames", type=int, default=200)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    child = context.Process(target=listen, args=(ready, stop))
    child.start()
    rclpy.init()
    node = Node("talker")
    publisher = node.create_publisher(Image, "frame", STREAM)
    ready.wait(30)
    while publisher.get_subscription_count() == 0:
        time.sleep(0.01)

    frame = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    whole, construct, plain = [], [], []
    message: Image | None = None
    for index in range(options.frames + 20):
        start = time.perf_counter()
        message = image_message(frame, Header(), message)
        built = time.perf_counter()
        publisher.publish(message)
        end = time.perf_counter()
        if index >= 20:  # the first ones warm up
            whole.append((end - start) * 1e3)
            construct.append((built - start) * 1e3)
        if index % 20 == 0:
            start = time.perf_counter()
            naive(frame)
            plain.append((time.perf_counter() - start) * 1e3)
        time.sleep(0.005)
    stop.set()
    child.join(10)
    node.destroy_node()
    rclpy.shutdown()
    figures = {
        "publish_640x480_ms_p50": statistics.median(whole),
        "publish_640x480_ms_p99": float(np.quantile(whole, 0.99)),
        "construct_ms_p50": statistics.median(construct),
        "assigning_numpy_ms_p50": statistics.median(plain),
        "numpy_over_ours": statistics.median(plain) / statistics.median(construct),
    }
    conclude("publish_cost", figures, {"publish_640x480_ms_p50": ("<=", 1.0)}, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
