"""What every benchmark prints: a readable table, and one JSON object as the last line.

``{"benchmark": name, "machine": …, "figures": {figure: number}, "bars": {figure: ["<=" or ">=", number]}, "holds": …}``
A figure that falls short of its bar is printed as it is. ``--record`` keeps the result in ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("ROS_DOMAIN_ID", str(os.getpid() % 101 + 1))  # away from a robot, and from other runs
RESULTS = Path(__file__).parent / "results"
Bar = tuple[str, float]


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="keep the result in benchmarks/results/")
    return parser


def machine() -> str:
    """Processor, cores and Python of this machine."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    return f"{names[0] if names else platform.processor()}, {cores} cores, Python {platform.python_version()}"


def conclude(name: str, figures: Mapping[str, float], bars: Mapping[str, Bar], record: bool = False) -> dict[str, Any]:
    """Print the table and the JSON line; returns what was printed."""
    unknown = set(bars) - set(figures)
    if unknown:
        raise ValueError(f"bars without a figure: {', '.join(sorted(unknown))}")
    holds = {figure: _holds(figures[figure], bar) for figure, bar in bars.items()}
    width = max(map(len, figures))
    print(f"\n{name} on {machine()}")
    for figure, value in figures.items():
        bar = f"   must be {bars[figure][0]} {bars[figure][1]:g}" if figure in bars else ""
        verdict = "" if figure not in bars else "  yes" if holds[figure] else "  NO"
        print(f"  {figure:<{width}}  {value:>12.5g}{bar}{verdict}")
    result: dict[str, Any] = {"benchmark": name, "machine": machine(), "figures": dict(figures)}
    result |= {"bars": {figure: list(bar) for figure, bar in bars.items()}, "holds": all(holds.values())}
    if record:
        kept = result | {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "commit": _commit()}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(result))
    return result


def _holds(value: float, bar: Bar) -> bool:
    return value <= bar[1] if bar[0] == "<=" else value >= bar[1]


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, cwd=RESULTS.parent)
    except FileNotFoundError:  # no git here
        return "unknown"
    return answer.stdout.strip() or "unknown"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
