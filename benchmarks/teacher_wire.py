"""What GR00T's protocol costs: round trips between a client and a served student, beyond the student's own time.

A `serve` process and a client process over loopback, one 256x256 frame and the joint state per request, a chunk back.
The student's own time (encoder and policy, as the server measures it and tells with each reply) is taken off each round
trip; what is left is coding, checks, sockets and scheduling on both sides. Requests of each wire generation that the
server speaks, and a `ping` for the sockets alone; blocks of them alternate.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
from harness import arguments, conclude

from sage_ros.paths import checkpoint_path
from sage_ros.policy.manifest import Manifest
from sage_ros.teacher.client import InferenceClient, connect
from sage_ros.teacher.modality import Interface
from sage_ros.teacher.server import LANGUAGE
from sage_ros.teacher.wire import Wire

BAR = 3.0  # ms
BLOCK = 25


def serve(wire: Wire, checkpoint: str) -> tuple[subprocess.Popen[str], int]:
    """A server process, and the port at which it listens. Raises RuntimeError if it does not start."""
    command = [sys.executable, "-m", "sage_ros.teacher.serve", "--port", "0", "--wire", wire.value]
    process = subprocess.Popen([*command, "--checkpoint", checkpoint], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "listening" in line:
            return process, int(line.rsplit(":", 1)[1])
    raise RuntimeError("the server did not start: run `serve` to see why")


def observation(interface: Interface, widths: dict[str, int], side: int) -> dict[str, Any]:
    frame = np.random.default_rng(0).integers(0, 256, (1, 1, side, side, 3), dtype=np.uint8)
    state = {group: np.zeros((1, 1, widths[group]), np.float32) for group in interface.state.keys}
    return {"video": {interface.video.keys[0]: frame}, "state": state, "language": {LANGUAGE: [["pick"]]}}


def measure(client: InferenceClient, wire: Wire, told: dict[str, Any], count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of ``count`` round trips, and of the student's own part of each."""
    whole, own = [], []
    for _ in range(count):
        start = time.perf_counter()
        reply = client.call("get_action", {"observation": told, "options": None}, wire.coding)
        whole.append(1e3 * (time.perf_counter() - start))
        own.append(1e3 * reply[1]["inference_seconds"])
    return whole, own


def pings(client: InferenceClient, count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        client.call("ping")
        times.append(1e3 * (time.perf_counter() - start))
    return times


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, default=1000, help="per generation (%(default)s)")
    parser.add_argument("--side", type=int, default=256, help="height and width of the frame (%(default)s)")
    parser.add_argument("--checkpoint", default="", help="student checkpoint (default: the one in the package)")
    options = parser.parse_args()
    joints = Manifest.read(checkpoint_path(options.checkpoint) / "config.json").state_joints
    widths = {group: end - start for group, (start, end) in joints.groups.items()}
    figures: dict[str, float] = {}
    wires = (Wire.N16, Wire.N17)
    servers = {wire: serve(wire, options.checkpoint) for wire in wires}
    clients = {wire: InferenceClient(port=port) for wire, (_, port) in servers.items()}
    whole: dict[Wire, list[float]] = {wire: [] for wire in wires}
    own: dict[Wire, list[float]] = {wire: [] for wire in wires}
    alone: list[float] = []
    try:
        told = {wire: observation(connect(clients[wire]).interface, widths, options.side) for wire in wires}
        for wire in wires:
            measure(clients[wire], wire, told[wire], BLOCK)  # warm up
        for _ in range(-(-options.requests // BLOCK)):
            for wire in wires:
                times = measure(clients[wire], wire, told[wire], BLOCK)
                whole[wire] += times[0]
                own[wire] += times[1]
            alone += pings(clients[Wire.N17], BLOCK)
    finally:
        for wire in wires:
            clients[wire].close()
            servers[wire][0].terminate()
            servers[wire][0].wait()
    for wire in wires:
        beyond = np.array(whole[wire]) - np.array(own[wire])
        name = wire.name.lower()
        figures |= {f"{name}_beyond_p50_ms": float(np.median(beyond)), f"{name}_beyond_p99_ms":
                    float(np.percentile(beyond, 99)), f"{name}_round_trip_p50_ms": float(np.median(whole[wire])),
                    f"{name}_student_p50_ms": float(np.median(own[wire]))}  # fmt: skip
    figures["ping_p50_ms"] = float(np.median(alone))
    bars = {f"{wire.name.lower()}_beyond_p50_ms": ("<=", BAR) for wire in wires}
    conclude("teacher_wire", figures, bars, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
