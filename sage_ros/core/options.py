"""Settings that explain and check themselves: dataclass fields with a description, a range and choices.

A node declares its ROS parameters from the same dataclass that the code reads, so there is one place for each.
"""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any


def option(
    default: Any,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field with a description for people, an inclusive range and, for text, the allowed values."""
    metadata = {"description": description, "low": low, "high": high, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check(config: Any) -> None:
    """Raise ValueError naming every field outside its range or choices; for a dataclass's ``__post_init__``."""
    wrong = []
    for item in fields(config):
        value, meta = getattr(config, item.name), item.metadata
        low, high, choices = meta.get("low"), meta.get("high"), meta.get("choices")
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            wrong.append(f"{item.name} is {value}, but must be in [{low}, {high}]")
        if choices and value not in choices:
            wrong.append(f"{item.name} is '{value}', but must be one of {', '.join(map(repr, choices))}")
    if wrong:
        raise ValueError("; ".join(wrong))
