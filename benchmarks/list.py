"""List the benchmarks with their last recorded figures."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from harness import RESULTS

HELPERS = {"harness", "list", "folds", "act_policy"}


def main() -> None:
    print("make bench NAME=<name> [ARGS='...']   (--help in ARGS explains one, --record keeps its result)\n")
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem in HELPERS:
            continue
        purpose = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
        print(f"{path.stem}: {purpose}")
        recorded = [file for name in ("", "_*") for file in sorted(RESULTS.glob(f"{path.stem}{name}.json"))]
        if not recorded:
            print("    no recorded result")
        for file in recorded:
            result = json.loads(file.read_text())
            print(f"    {file.stem}: {result['date']}, commit {result['commit']}, {result['machine']}")
            for figure, value in result["figures"].items():
                bar = result["bars"].get(figure)
                print(f"    {figure:<40} {value:>10.4g}" + (f"   (bar: {bar[0]} {bar[1]:g})" if bar else ""))


if __name__ == "__main__":
    main()
