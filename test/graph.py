"""Real nodes talking over real topics, for the tests: spin them, watch topics, wait for what should happen."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from sage_ros.nodes.bringup import Bringup
from sage_ros.nodes.lifecycle import RELIABLE, SageNode
from sage_ros.nodes.messages import nanoseconds
from sage_ros.nodes.process import Spinner


class Probe:
    """Listens, publishes and calls services; ``until`` waits for a condition on what has arrived."""

    def __init__(self) -> None:
        self.node = Node("probe", use_global_arguments=False)
        self.spinner = Spinner(self.node)
        self._arrived = threading.Condition()

    def listen(self, kind: type, topic: str, qos: Any = RELIABLE) -> list[Any]:
        """The list into which messages arrive."""
        messages: list[Any] = []

        def keep(message: Any) -> None:
            with self._arrived:
                messages.append(message)
                self._arrived.notify_all()

        self.node.create_subscription(kind, topic, keep, qos)
        return messages

    def until(self, condition: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
        """Wait until ``condition()`` is true, looked at whenever a message arrives (and now and then)."""
        deadline = time.monotonic() + timeout
        with self._arrived:
            while not (result := condition()):
                left = deadline - time.monotonic()
                assert left > 0, f"waited {timeout:.0f} s in vain for {what}"
                self._arrived.wait(min(left, 0.05))
        return result

    def publisher(self, kind: type, topic: str, qos: Any = RELIABLE) -> Any:
        """A publisher that has found its subscriber."""
        publisher = self.node.create_publisher(kind, topic, qos)
        self.until(lambda: publisher.get_subscription_count() > 0, f"a subscriber to {topic}")
        return publisher

    def call(self, kind: type, name: str, request: Any = None) -> Any:
        client = self.node.create_client(kind, name)
        assert client.wait_for_service(10.0), f"no service {name}"
        future = client.call_async(request or kind.Request())
        self.until(future.done, f"an answer from {name}")
        return future.result()

    def close(self) -> None:
        self.spinner.stop()
        self.node.destroy_node()


class Graph:
    """Nodes of this process, brought up in order; a context manager that takes everything down again."""

    def __init__(
        self,
        nodes: Sequence[Callable[[], SageNode]],
        parameters: dict[str, Any] | None = None,
        remappings: Sequence[str] = (),
    ) -> None:
        """``parameters`` by "node:name"; ``remappings`` such as "last_command:=demo/action"."""
        args = ["--ros-args"]
        for remapping in remappings:
            args += ["-r", remapping]
        for key, value in (parameters or {}).items():
            text = str(value).lower() if isinstance(value, bool) else f"'{value}'" if isinstance(value, str) else value
            args += ["-p", f"{key}:={text}"]
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        self.nodes = [make() for make in nodes]
        self.spinners = [Spinner(node) for node in self.nodes]
        self.probe = Probe()

    def __enter__(self) -> Graph:
        return self

    def up(self) -> Graph:
        with self.bringup() as bringup:
            bringup.up()
        return self

    def bringup(self) -> Bringup:
        return Bringup([node.get_name() for node in self.nodes], timeout=30.0)

    def __exit__(self, *_: object) -> None:
        self.probe.close()
        for spinner in reversed(self.spinners):
            spinner.close()
        rclpy.try_shutdown()
        errors = [spinner.error for spinner in self.spinners if spinner.error is not None]
        # rclpy's lifecycle state machine keeps its node in the graph until it is collected, where it would answer for
        # the nodes of the next test.
        self.nodes.clear()
        self.spinners.clear()
        gc.collect()
        assert not errors, f"a node died: {errors}"


def stamps(messages: Sequence[Any]) -> list[int]:
    return [nanoseconds(message.header.stamp) for message in messages]
