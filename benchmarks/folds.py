"""What `evaluate --leave-one-out` finds, for the benchmarks that train anew."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sage_ros.training import evaluate


def left_out(arguments: Sequence[str], out: Path) -> dict[str, dict[str, Any]]:
    """By subset and length ("right_arm_whole"), by policy what `evaluate` writes. Trainings are kept in ``out``."""
    report = out / "errors.json"
    if evaluate.main(["--leave-one-out", "--out", str(out), "--json", str(report), *arguments]):
        sys.exit("the folds could not be evaluated")
    scores = json.loads(report.read_text())["scores"]
    return {f"{subset} {length}".replace(" ", "_"): row for subset, lengths in scores.items()
            for length, row in lengths.items()}  # fmt: skip
