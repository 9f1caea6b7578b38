"""How much memory the pipeline needs at most: all nodes in one process, and the sum over a process per node.

Replays an episode of the package and reads each process's peak resident set (VmHWM of Linux) until it ends. The sum
counts pages that processes share once per process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import arguments, conclude

PATIENCE = 300.0  # s


def peaks(way: list[str], episodes: str) -> dict[int, int]:
    """Peak bytes by process of one replay, without the observer. Raises RuntimeError if the pipeline fails."""
    found: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sage_ros.nodes.pick_place", "--episodes", episodes, "--report", folder, *way]
        pipeline = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while pipeline.poll() is None and time.monotonic() < deadline:
            for process in (pipeline.pid, *_children(pipeline.pid)):
                if peak := _peak(process):
                    found[process] = peak
            time.sleep(0.1)
        if pipeline.poll() != 0:
            pipeline.terminate()
            raise RuntimeError(f"the pipeline failed: run `pick_place {' '.join(way)}` to see why")
    return found


def _children(parent: int) -> list[int]:
    """The nodes that ``parent`` started; the monitor is no part of the pipeline."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    pids = [int(pid) for pid in _text(children).split()]
    return [pid for pid in pids if "sage_ros.nodes.monitor" not in _text(Path(f"/proc/{pid}/cmdline"))]


def _peak(process: int) -> int:
    lines = _text(Path(f"/proc/{process}/status")).splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--episodes", default="2", help="what is replayed (%(default)s)")
    options = parser.parse_args()
    composed = max(peaks([], options.episodes).values())
    separate = peaks(["--processes"], options.episodes)
    figures = {
        "composed_peak_mb": composed / 1e6,
        "processes_peak_mb": sum(separate.values()) / 1e6,
        "processes_over_composed": sum(separate.values()) / composed,
    }
    conclude("memory", figures, {"composed_peak_mb": ("<=", 1500.0)}, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
