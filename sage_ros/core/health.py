"""How everything is, in one line for people."""

from __future__ import annotations

from collections.abc import Iterable

from sage_ros.core.metabolism import WORKING, Metabolism, Senses


def health_line(machine: Metabolism, senses: Senses, robot: str, nodes: int, ill: Iterable[str]) -> str:
    """``robot``: what the safety filter does; ``nodes``: how many report; ``ill``: what those say that are not well."""
    s = senses
    parts = [f"{machine.state.value}: {machine.pause or machine.reason}", f"energy {s.energy:.0%}"]
    if s.battery == s.battery:  # known
        parts.append(f"battery {s.battery:.0%}{', charging' if s.docked else ''}")
    if s.temperature == s.temperature:
        parts.append(f"{s.temperature:.0f} C")
    if machine.state in WORKING:
        parts.append(f"trust {s.confidence:.2f}, student {s.certainty:.2f}")
    return " | ".join([*parts, f"safety_filter {robot}", *(list(ill) or [f"{nodes} nodes well"])])
