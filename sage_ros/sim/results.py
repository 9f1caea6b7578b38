"""What many episodes come to: rates with intervals, tables, and a file that an interrupted run goes on from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

EPISODES, SETTINGS = "episodes.jsonl", "settings.json"
MANY = 20  # episodes of which the table shows only the failures
COLUMNS = "seed  success  seconds    jump  target jerk    jerk  holds"

Record = dict[str, Any]


class LedgerError(ValueError):
    """A folder that cannot be added to: says why, and what to do."""


def wilson(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a rate by ``successes`` of ``count`` (Wilson 1927); by default it holds with 95 %."""
    if not 0 <= successes <= count or count == 0:
        raise ValueError(f"{successes} successes of {count}: there must be one episode, and no more successes")
    rate, spread = successes / count, z * z / count
    centre = (rate + spread / 2) / (1 + spread)
    half = z * np.sqrt(rate * (1 - rate) / count + spread / (4 * count)) / (1 + spread)
    return float(max(0.0, min(rate, centre - half))), float(min(1.0, max(rate, centre + half)))  # despite rounding


class Ledger:
    """The finished episodes of one folder, a JSON line each, all made with the same ``settings``.

    A record is known by its ``trial`` and ``seed``. Raises LedgerError if the folder holds episodes of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path = folder / EPISODES
        self.hash = settings_hash(settings)
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / SETTINGS
        text = self.path.read_text("utf-8") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a killed run may leave half a line
        records = [self._parse(number, line) for number, line in enumerate(whole.splitlines(), 1)]
        if any(record["settings"] != self.hash for record in records):
            raise LedgerError(f"{folder} holds episodes of other settings{_difference(beside, settings)}: "
                              "give another --out, or the same settings to go on")  # fmt: skip
        if whole != text:
            self.path.write_text(whole, "utf-8")
        beside.write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
        self.records = {(record["trial"], record["seed"]): record for record in records}

    def add(self, record: Record) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"settings": self.hash} | record) + "\n")
        self.records[record["trial"], record["seed"]] = record

    def _parse(self, number: int, line: str) -> Record:
        try:
            record: Record = json.loads(line)
            record["trial"], record["seed"], record["settings"], record["success"]
            return record
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise LedgerError(f"{self.path}, line {number}: not an episode ({error!r}): delete the line") from None


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that tell settings apart."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _difference(path: Path, settings: Mapping[str, Any]) -> str:
    """Which settings are others than those in the file, where it can be read."""
    try:
        there = json.loads(path.read_text("utf-8"))
        names = [n for n in sorted({*there, *settings}) if there.get(n) != settings.get(n)]
    except (OSError, ValueError, TypeError, AttributeError):
        return ""
    told = [f"{name} {there.get(name)!r} there, {settings.get(name)!r} here" for name in names]
    return f" ({'; '.join(told)})" if told else ""


def table(records: Sequence[Record]) -> str:
    """A line per episode, or per failure where there are many."""
    shown = records if len(records) <= MANY else [record for record in records if not record["success"]]
    if not shown:
        return "no failures"
    lines = [COLUMNS] if shown is records else [f"the failures of {len(records)} episodes", COLUMNS]
    for r in shown:
        figures = f"{_text(r['jump'], 4):>6}  {_text(r['target_jerk'], 0):>11}  {_text(r['jerk'], 0):>6}"
        mark = "yes" if r["success"] else "NO"
        line = f"{r['seed']:<6}  {mark:>5}  {r['seconds']:>7.2f}  {figures}  {r['holds']:>5}  {r['failure']}"
        apart = r.get("apart")
        lines.append(line.rstrip() + (f"  apart {apart:.1e} rad" if apart is not None else ""))
    return "\n".join(lines)


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Counts and means of at least one episode; what none of them has is None."""
    good = [record for record in records if record["success"]]
    low, high = wilson(len(good), len(records))
    values: dict[str, Any] = {"episodes": len(records), "successes": len(good), "rate": len(good) / len(records)}
    values |= {"rate_low": low, "rate_high": high}
    values["failures"] = dict(Counter(r["failure"] for r in records if not r["success"]).most_common())
    seconds = [record["seconds"] for record in good]
    values["seconds"] = float(np.median(seconds)) if seconds else None
    for name in ("jump", "target_jerk", "jerk", "holds"):
        known = [record[name] for record in records if record[name] is not None]
        values[name] = float(np.mean(known)) if known else None
    apart = [record["apart"] for record in records if record.get("apart") is not None]
    return values | {"apart": max(apart, default=None)}


def summary_text(name: str, values: Mapping[str, Any]) -> str:
    """One line for :func:`summary`, and one for each way to fail."""
    interval = f"{100 * values['rate_low']:.1f} to {100 * values['rate_high']:.1f} %"
    line = f"{name}: {values['successes']} of {values['episodes']} succeeded, {100 * values['rate']:.1f} % ({interval})"
    figures = [("seconds", 2, "s to success"), ("jump", 4, "rad jump"), ("target_jerk", 0, "rad/s^3 at joins")]
    figures += [("jerk", 0, "rad/s^3 jerk"), ("holds", 1, "ticks held")]
    told = [f"{values[key]:.{digits}f} {unit}" for key, digits, unit in figures if values[key] is not None]
    told += [f"at most {values['apart']:.1e} rad from the core's path"] if values["apart"] is not None else []
    failures = [f"  {count} x {failure}" for failure, count in values["failures"].items()]
    return "\n".join([line, "  " + ", ".join(told), *failures])


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
