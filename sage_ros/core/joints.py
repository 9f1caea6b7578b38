"""Joints by name: the order, the names and the groups of a joint vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


class JointError(ValueError):
    """Joint names that do not fit: says which are missing, unknown or repeated."""


@dataclass(frozen=True)
class JointLayout:
    """Named joints in the order of a vector, and GR00T's named groups of them.

    ``groups`` maps a group's name to its half-open slice ``(start, end)`` of the vector, as in GR00T's
    ``meta/modality.json``. Every joint belongs to at most one group. Raises :class:`JointError` on repeated
    names and on groups that overlap or leave the vector.
    """

    names: tuple[str, ...]
    groups: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise JointError(f"joint names occur more than once: {', '.join(repeated)}")
        taken: dict[int, str] = {}
        for group, (start, end) in self.groups.items():
            if not 0 <= start < end <= len(self.names):
                raise JointError(f"group '{group}' is [{start}:{end}], but there are {len(self.names)} joints")
            for index in range(start, end):
                if index in taken:
                    raise JointError(f"joint '{self.names[index]}' is in two groups: '{taken[index]}' and '{group}'")
                taken[index] = group

    def __len__(self) -> int:
        return len(self.names)

    def columns(self, groups: Sequence[str]) -> np.ndarray:
        """Indices (int64) of the joints of the named groups, in the order asked for. Raises JointError."""
        unknown = [group for group in groups if group not in self.groups]
        if unknown:
            raise JointError(f"no joint group {', '.join(unknown)}; there are: {', '.join(self.groups) or 'none'}")
        return np.concatenate([np.arange(*self.groups[group]) for group in groups])

    def order_from(self, names: Sequence[str]) -> np.ndarray:
        """Indices that pick this layout's joints out of a vector in the order ``names``.

        Extra names are ignored (a robot may publish joints that the policy does not know).
        Raises JointError if a joint of the layout is missing or a name is repeated.
        """
        where = {name: index for index, name in enumerate(names)}
        if len(where) != len(names):
            repeated = sorted({name for name in names if list(names).count(name) > 1})
            raise JointError(f"joint names occur more than once: {', '.join(repeated)}")
        missing = [name for name in self.names if name not in where]
        if missing:
            raise JointError(f"missing joints: {', '.join(missing)}; got: {', '.join(names)}")
        return np.array([where[name] for name in self.names], dtype=np.int64)
