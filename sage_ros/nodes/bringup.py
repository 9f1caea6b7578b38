"""bringup: brings the named lifecycle nodes up in order and, if asked to, stays and keeps them up."""

from __future__ import annotations

import argparse
import sys

import rclpy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from sage_ros.core.restarts import RestartLimit
from sage_ros.nodes.process import StopRequest, leave_ros
from sage_ros.nodes.supervision import Bringup, BringupError, NodeError, Stopped, Supervisor

__all__ = ["Bringup", "BringupError", "NodeError", "Supervisor"]


def main(args: list[str] | None = None) -> int:
    """``bringup NAME ...``: configure the named nodes of this namespace, then activate them in that order."""
    argv = sys.argv if args is None else ["bringup", *args]
    options = _parse(remove_ros_args(argv)[1:])
    rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
    stop = StopRequest()

    def check() -> None:
        if stop.is_set():
            raise Stopped("stopped while bringing up")

    limit = RestartLimit(options.restarts, options.window)
    supervisor = Supervisor(
        options.names, restart=options.restart, limit=limit, patience=options.patience,
        timeout=options.timeout, check=check, follow_arguments=True,
    )  # fmt: skip
    try:
        with supervisor:
            try:
                supervisor.up()
                if options.enable:
                    supervisor.enable()
                print(f"bringup: {', '.join(options.names)} are active", flush=True)
                if options.supervise:
                    supervisor.run(stop.is_set)
            finally:
                if options.supervise:
                    supervisor.check = lambda: None
                    supervisor.down()
        return 0
    except BringupError as error:
        print(f"bringup: {error}", file=sys.stderr)
        return 1
    finally:
        leave_ros()


def _parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "bringup",
        description=main.__doc__,
        epilog="Start the nodes first, each in its process (ros2 run sage_ros vision_irp ...). With --supervise, what "
        "started them starts a dead one again (respawn in a launch file); bringup then brings it up, and gives up with "
        "exit code 1 if that does not help. A safety_filter that comes back is in dry run and stays so.",
    )
    add = parser.add_argument
    add("names", nargs="+", metavar="NAME", help="lifecycle nodes, who feeds the others last")
    add("--timeout", type=float, default=60.0, help="longest wait for each step, in s (default: 60)")
    add("--enable", action="store_true", help="once all are active, enable the safety_filter: the robot may move")
    add("--supervise", action="store_true",
        help="stay; bring up again who dies, stands still or fails; on Ctrl-C take all down in reverse order")
    add("--restart", nargs="*", metavar="NAME", help="who may be restarted (default: all); else it is the end of all")
    add("--restarts", type=int, default=5, help="restarts that each node has within --window (default: 5)")
    add("--window", type=float, default=60.0, help="s (default: 60)")
    add("--patience", type=float, default=30.0, help="how long a node may be gone, in s (default: 30)")
    options = parser.parse_args(args)
    unknown = sorted(set(options.restart or ()) - set(options.names))
    if unknown:
        parser.error(f"--restart names {', '.join(unknown)}, which is not among the nodes to bring up")
    return options


if __name__ == "__main__":
    sys.exit(main())
