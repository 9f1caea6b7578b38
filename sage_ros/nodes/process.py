"""The process that a node runs in: its executor's thread, what ends it, and the ``main`` of the executables."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable

import rclpy
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from sage_ros.core.parents import follow_parent
from sage_ros.nodes.lifecycle import EXPECTED_ERRORS, SageNode


def make_executor() -> Executor:
    """The events executor where rclpy has one (a tenth of the latency and CPU), else the single-threaded one."""
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:
        return SingleThreadedExecutor()
    return EventsExecutor()


class Spinner:
    """One node, its executor and the thread they run in."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.error: BaseException | None = None
        self._executor = make_executor()
        self._executor.add_node(node)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._spin, name=node.get_name(), daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        try:
            while not self._done.is_set() and rclpy.ok():
                # Never without a timeout: the events executor would busy-wait.
                self._executor.spin_until_future_complete(Future(), 0.1)
        except BaseException as error:  # handed to the main thread, which ends the process
            self.error = error

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self._done.set()
        self._thread.join(timeout=5.0)
        self._executor.remove_node(self.node)
        self._executor.shutdown()

    def close(self) -> None:
        """Stop, then shut the :class:`SageNode` down: to destroy it while it is spun would raise in its thread."""
        self.stop()
        self.node.shut_down()


class StopRequest(threading.Event):
    """Set by SIGINT and SIGTERM. Our own handlers, so that the context is still valid for a last message.

    Where a parent process is named by ``PARENT`` in the environment, its death is a SIGTERM too, on Linux: nobody would
    supervise us any more.
    """

    def __init__(self) -> None:
        super().__init__()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.set())
        if follow_parent(signal.SIGTERM):
            self.set()


def leave_ros() -> None:
    """The end of a ``main``. A launch passes Ctrl-C on twice: it must not reach into the interpreter's end."""
    rclpy.try_shutdown()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run(node_class: Callable[[], SageNode], args: list[str] | None = None) -> int:
    """The ``main`` of a node executable: one node, one process; returns the exit code."""
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop = StopRequest()
    try:
        node = node_class()
    except EXPECTED_ERRORS as error:
        print(f"cannot start: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 1
    spinner = Spinner(node)
    while spinner.alive and not stop.wait(0.2):
        pass
    spinner.close()
    leave_ros()
    if isinstance(spinner.error, SystemExit):
        print(spinner.error, file=sys.stderr)
        return 1
    if spinner.error is not None:
        raise spinner.error
    return 0
