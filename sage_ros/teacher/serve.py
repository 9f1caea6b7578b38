"""``serve``: the student behind GR00T's own inference protocol, so that every GR00T N1.6 or N1.7 client can use it.

Examples:
  serve                                             the package's student on 127.0.0.1:5555, N1.7
  serve --checkpoint ~/student --wire n1.6          for clients of N1.6
  SAGE_ROS_API_TOKEN=secret serve --host 0.0.0.0    for other machines; the token is plain text: use a VPN

A client runs a chunk to its end and asks again; where it runs fewer rows, say so with --executed: the last row run is
the student's last command. `reset`, or a new connection, begins an episode.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence

import torch

from sage_ros.core.joints import JointError
from sage_ros.paths import checkpoint_path
from sage_ros.policy.checkpoint import load_checkpoint
from sage_ros.policy.manifest import CheckpointError
from sage_ros.vision.encoder import EncoderError

try:
    import zmq

    from sage_ros.teacher.server import LANGUAGE, StudentServer
    from sage_ros.teacher.wire import MAX_MESSAGE, TOKEN, Wire
except ModuleNotFoundError as error:
    if error.name not in ("zmq", "msgpack"):
        raise
    sys.exit(f"serve: {error}: pip install 'sage_ros[teacher]'")

POLL = 100  # ms between two looks at whether to stop


class ServeError(RuntimeError):
    """A place that cannot be listened at."""


def listen(socket: zmq.Socket, server: StudentServer, stop: threading.Event) -> None:
    """Answer what comes in until ``stop``.

    ``socket`` is a ROUTER: it names the client of each request, and a request of many frames, on which a REP socket's
    error path dies, is one more request to answer with an error.
    """
    while not stop.is_set():
        if not socket.poll(POLL):
            continue
        frames = socket.recv_multipart()
        # A REQ client's frames are its identity, perhaps a request number, an empty one, and the request; a DEALER's
        # may come without the empty one.
        end = frames.index(b"", 1) + 1 if b"" in frames[1:] else 1
        socket.send_multipart([*frames[:end], server.answer(frames[0], frames[end:])])


def bind(context: zmq.Context, host: str, port: int, max_message: int) -> zmq.Socket:
    """A ROUTER socket at the address (port 0: any free one). Raises ServeError."""
    socket = context.socket(zmq.ROUTER)
    socket.linger = 1000  # ms for the last replies
    socket.maxmsgsize = max_message
    socket.ipv6 = ":" in host
    address = f"[{host}]" if ":" in host else host
    try:
        socket.bind(f"tcp://{address}:{port or '*'}")
    except zmq.ZMQError as error:
        socket.close()
        raise ServeError(f"cannot listen on {host}:{port} ({error}): is another server running there? "
                         "NVIDIA DCGM's nv-hostengine takes 5555 too; choose another --port") from error  # fmt: skip
    return socket


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    logging.basicConfig(format="serve: %(levelname)s: %(message)s")
    try:
        return run(args)
    except (CheckpointError, EncoderError, JointError, ServeError, ValueError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.port < 65536 or args.max_message <= 0:
        raise ValueError("--port must be from 0 to 65535, and --max-message positive")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    torch.set_num_threads(args.threads)
    token = args.api_token or os.environ.get(TOKEN, "")
    checkpoint = load_checkpoint(checkpoint_path(args.checkpoint), args.device)
    encoder = checkpoint.load_encoder(args.device)
    server = StudentServer(checkpoint, encoder, Wire(args.wire), args.executed, args.language_key, token)
    server.warm_up()
    if not token and not _loopback(args.host):
        print(f"serve: warning: anybody who reaches {args.host} can use this server: give it --api-token",
              file=sys.stderr)  # fmt: skip
    context = zmq.Context()
    socket = bind(context, args.host, args.port, round(args.max_message * 2**20))
    try:
        print(f"serve: {checkpoint.folder.name}, {args.wire}, chunks of {checkpoint.horizon} rows at "
              f"{checkpoint.rate:g} Hz, {server.executed} of them run by clients")  # fmt: skip
        for name, entry in server.interface.to_dict().items():
            print(f"serve:   {name}: {', '.join(entry['modality_keys'])}")
        print(f"serve: listening on {socket.getsockopt_string(zmq.LAST_ENDPOINT)}", flush=True)
        listen(socket, server, stop)
    finally:
        socket.close()
        context.term()
    print("serve: stopped")
    return 0


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", default="", help="student checkpoint folder (default: the one in the package)")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all (%(default)s)")
    add("--port", type=int, default=5555, help="0: any free one (%(default)s)")
    add("--wire", choices=[Wire.N16.value, Wire.N17.value], default=Wire.N17.value,
        help="how the modality configuration is written; arrays come back as they are sent (%(default)s)")  # fmt: skip
    add("--api-token", default="", help=f"what clients must send (ps shows it: better set {TOKEN})")
    add("--executed", type=int, default=0, help="rows of a chunk that clients run before they ask again (default: all)")
    add("--language-key", default=LANGUAGE, help="the task's name in observations (%(default)s)")
    add("--max-message", type=float, default=MAX_MESSAGE / 2**20, help="MiB of a request at most (%(default)g)")
    add("--device", default="cpu", help="torch device (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
