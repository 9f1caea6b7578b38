"""Who is there: every node announces itself, and the middleware notices within a second when its process is gone."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import String

PROCESS = uuid.uuid4().hex
OPERATOR = "safety_filter/operator"  # the name under which one is watched who enables it for no longer than one lives
ANNOUNCED, ALLOWED = 0.2, 0.6  # s: the lease that nodes offer, and the one that watchers ask for


def alive_qos(lease: float) -> QoSProfile:
    """Latched, with a lease (s) that the middleware's own thread renews: it outlasts a busy node, not a dead process.

    It is renewed after two thirds of the lease offered. Were watchers to ask for the same lease, one late renewal in
    ten idle seconds would already be a false alarm; at three times the lease, four renewals must be missed.
    """
    return QoSProfile(
        depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL,
        liveliness=LivelinessPolicy.AUTOMATIC, liveliness_lease_duration=Duration(nanoseconds=round(lease * 1e9)),
    )  # fmt: skip


def announce(node: Node, name: str = "~") -> Any:
    """The publisher that keeps saying, on ``name``/alive, which process runs the node; destroyed with the node."""
    publisher = node.create_publisher(String, f"{name}/alive", alive_qos(ANNOUNCED))
    who = f"{node.get_fully_qualified_name()} since {time.time():.3f}, process {os.getpid()} {PROCESS}"
    publisher.publish(String(data=who))
    return publisher


class Liveliness:
    """Watches nodes on behalf of ``node``, in whose executor ``changed`` is called with (name, alive).

    ``names`` are relative to the node's namespace. A node counts as gone until it is first heard of, which is no
    change; from then on its end, its death and its standstill (SIGKILL, SIGSTOP) are noticed within a second. The call
    (name, True) comes once more for a node that was replaced before it was missed.
    """

    def __init__(self, node: Node, names: Iterable[str], changed: Callable[[str, bool], None]) -> None:
        self.alive: set[str] = set()
        self._node, self._changed = node, changed
        self._renewing: dict[str, int] = {}  # processes that renew their lease
        self._matched: dict[str, int] = {}  # publishers, those of dead processes included for a while
        self._announced: dict[str, str] = {}
        self._subscriptions = [self._watch(name) for name in names]

    def count(self, name: str) -> int:
        """How many live processes run a node of this name: more than one is somebody's mistake."""
        # Within one process the middleware renews no lease; but who asks is alive, and so is its process.
        own = self._announced.get(name, "").endswith(PROCESS)
        return (self._matched if own else self._renewing).get(name, 0)

    def _watch(self, name: str) -> Any:
        def on_lease(event: Any) -> None:
            self._renewing[name] = event.alive_count
            self._judge(name)

        def on_match(event: Any) -> None:
            self._matched[name] = event.current_count
            self._judge(name)

        def on_announcement(message: String) -> None:
            known, self._announced[name] = self._announced.get(name), message.data
            if known not in (None, message.data) and name in self.alive:
                self._changed(name, True)
            self._judge(name)

        return self._node.create_subscription(
            String, f"{name}/alive", on_announcement, alive_qos(ALLOWED),
            event_callbacks=SubscriptionEventCallbacks(liveliness=on_lease, matched=on_match),
        )  # fmt: skip

    def _judge(self, name: str) -> None:
        alive = self.count(name) > 0
        if alive == (name in self.alive):
            return
        if alive:
            self.alive.add(name)
        else:
            self.alive.discard(name)
            self._announced.pop(name, None)
        self._changed(name, alive)

    def close(self) -> None:
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())
