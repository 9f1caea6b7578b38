"""Bring lifecycle nodes up in order and down in reverse, through the services that any manager would use."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.utilities import remove_ros_args


class BringupError(RuntimeError):
    """A node that did not come up: says which, at what, and where to look."""


class Bringup:
    """Drives the named lifecycle nodes of ``namespace``, whether they run in this process or in others.

    ``check`` is called while waiting and may raise, so that the death of a node's process ends the wait.
    ``follow_arguments`` takes namespace and remappings from the process's ROS arguments.
    """

    def __init__(
        self,
        names: Sequence[str],
        namespace: str = "",
        timeout: float = 60.0,
        check: Callable[[], None] = lambda: None,
        follow_arguments: bool = False,
    ) -> None:
        self.names, self.timeout, self.check = tuple(names), timeout, check
        self._node = Node("bringup", namespace=namespace or None, use_global_arguments=follow_arguments)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)

    def __enter__(self) -> Bringup:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._executor.remove_node(self._node)
        self._executor.shutdown()
        self._node.destroy_node()

    def up(self) -> None:
        """Configure all, then activate all in order. Raises BringupError."""
        for name in self.names:
            self.change(name, Transition.TRANSITION_CONFIGURE)
        for name in self.names:
            self.change(name, Transition.TRANSITION_ACTIVATE)

    def down(self) -> None:
        """Deactivate all in reverse order. Raises BringupError."""
        for name in reversed(self.names):
            if self.state(name) == State.PRIMARY_STATE_ACTIVE:
                self.change(name, Transition.TRANSITION_DEACTIVATE)

    def state(self, name: str) -> int:
        """The node's lifecycle state, a constant of lifecycle_msgs/State. Raises BringupError."""
        return self._call(name, GetState, "get_state", GetState.Request()).current_state.id

    def change(self, name: str, transition: int) -> None:
        """Ask for a transition, a constant of lifecycle_msgs/Transition. Raises BringupError if it fails."""
        request = ChangeState.Request(transition=Transition(id=transition))
        if not self._call(name, ChangeState, "change_state", request).success:
            verb = {Transition.TRANSITION_CONFIGURE: "configured", Transition.TRANSITION_ACTIVATE: "activated"}
            raise BringupError(f"{name} could not be {verb.get(transition, 'changed')}: see its error above")

    def _call(self, name: str, kind: type, service: str, request: object) -> Any:
        client = self._node.create_client(kind, f"{name}/{service}")
        try:
            self._wait(client.service_is_ready, f"{name} does not answer: is it running?")
            future = client.call_async(request)
            self._wait(future.done, f"{name} did not finish {service} within {self.timeout:.0f} s")
            return future.result()
        finally:
            self._node.destroy_client(client)

    def _wait(self, ready: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + self.timeout
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise BringupError(complaint)
            self._executor.spin_once(timeout_sec=0.02)


def main(args: list[str] | None = None) -> int:
    """``bringup NAME ...``: configure the named nodes of this namespace, then activate them in that order."""
    argv = sys.argv if args is None else ["bringup", *args]
    parser = argparse.ArgumentParser("bringup", description=main.__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="lifecycle nodes, who feeds the others last")
    parser.add_argument("--timeout", type=float, default=60.0, help="longest wait for each step, in s (default: 60)")
    options = parser.parse_args(remove_ros_args(argv)[1:])
    rclpy.init(args=argv)
    try:
        with Bringup(options.names, timeout=options.timeout, follow_arguments=True) as bringup:
            bringup.up()
        print(f"bringup: {', '.join(options.names)} are active", flush=True)
        return 0
    except BringupError as error:
        print(f"bringup: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        return 1
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
