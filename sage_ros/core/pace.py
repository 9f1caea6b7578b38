"""What the metabolic state asks of a node."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sage_ros.core.allowance import State


@dataclass(frozen=True)
class Pace:
    """How much a node may do, as ``metabolic_state`` last said. Before anything is heard nothing is limited."""

    state: str = ""  # a State's name; empty: nothing heard yet
    reason: str = ""
    energy: float = 1.0
    vision_rate: float = math.inf  # frames per second; 0: none
    policy_rate: float = math.inf  # chunks per second; 0: none
    refine_steps: int = 0
    breadth: float = 1.0  # share of all attention that is kept
    learning: bool = False
    actuation: bool = True

    @classmethod
    def of(cls, state: str, values: Mapping[str, str]) -> Pace:
        """From the values of the message. What is missing is as before anything is heard, but nobody acts or learns
        unless it is said. Raises ValueError on what cannot be read: an unknown state, or no number.
        """
        if state not in State.__members__:
            raise ValueError(f"metabolic_state says '{state}', which is none of {', '.join(State.__members__)}")
        numbers = {name: float(values[name]) for name in ("energy", "vision_rate", "policy_rate", "breadth")
                   if name in values}  # fmt: skip
        if wrong := [name for name, number in numbers.items() if not number >= 0.0]:
            raise ValueError(f"metabolic_state: {', '.join(wrong)} must be at least 0")
        return cls(
            state, values.get("reason", ""), refine_steps=int(values.get("refine_steps", "0")),
            learning=values.get("learning") == "True", actuation=values.get("actuation") == "True", **numbers,
        )  # fmt: skip

    @property
    def looks(self) -> bool:
        return self.vision_rate > 0.0

    @property
    def plans(self) -> bool:
        return self.policy_rate > 0.0
