"""What a GR00T policy takes and gives: its modality configuration, as a wire or a Python object states it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sage_ros.teacher.wire import Wire

NAMES = ("video", "state", "action", "language")
OLD_MARK, NEW_MARK = "__ModalityConfig_class__", "__ModalityConfig__"


class TeacherError(RuntimeError):
    """A teacher that cannot be had or used: says what is missing or wrong, and what to do."""


@dataclass(frozen=True)
class Modality:
    """Rows relative to the present, and names without prefix: cameras, joint groups, or language columns."""

    delta_indices: tuple[int, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Interface:
    """The four modalities. ``action`` has at least one joint group, and rows 0 to H - 1."""

    video: Modality
    state: Modality
    action: Modality
    language: Modality

    @property
    def horizon(self) -> int:
        return len(self.action.delta_indices)

    def __post_init__(self) -> None:
        if not self.action.keys:
            raise TeacherError("the teacher's modality configuration names no action: nothing can be learned from it")
        if self.action.delta_indices != tuple(range(self.horizon)):
            raise TeacherError(f"the teacher's chunks have the rows {self.action.delta_indices}, not 0, 1, 2, …")
        for name in ("video", "state", "language"):
            if any(row > 0 for row in getattr(self, name).delta_indices):
                raise TeacherError(f"the teacher's {name} rows {getattr(self, name).delta_indices} are in the future")

    def to_dict(self) -> dict[str, dict[str, list[Any]]]:
        """Without prefixes, as N1.6 and N1.7 name things."""
        modalities = {name: getattr(self, name) for name in NAMES}
        return {n: {"delta_indices": list(m.delta_indices), "modality_keys": list(m.keys)}
                for n, m in modalities.items()}  # fmt: skip

    def to_wire(self, wire: Wire) -> dict[str, Any]:
        """The reply of ``get_modality_config`` of N1.6 or N1.7."""
        more = ("sin_cos_embedding_keys", "mean_std_embedding_keys", "action_configs")
        mark = NEW_MARK if wire is Wire.N17 else OLD_MARK
        return {
            name: {mark: True, "as_json": modality | dict.fromkeys(more)} for name, modality in self.to_dict().items()
        }


def from_wire(reply: Any) -> tuple[Wire, Interface]:
    """The generation and interface that a reply of ``get_modality_config`` tells. Raises TeacherError."""
    entries = reply if isinstance(reply, dict) else {}
    configs: dict[str, Mapping[str, Any]] = {}
    wires = set()
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not {OLD_MARK, NEW_MARK} & set(entry):
            continue
        content = entry.get("as_json")
        wires.add(Wire.N17 if NEW_MARK in entry else Wire.N15 if isinstance(content, str) else Wire.N16)
        try:
            configs[str(name)] = json.loads(content) if isinstance(content, str) else content or {}
        except ValueError as error:
            raise TeacherError(f"the server's modality configuration of '{name}' is no JSON ({error})") from error
    if len(wires) != 1:
        raise TeacherError(
            "the server's reply to get_modality_config holds no modality configuration of N1.5, N1.6 or N1.7 "
            f"({str(reply)[:80]}): is it a GR00T inference server?"
        )
    return wires.pop(), _interface(configs)


def from_objects(configs: Mapping[str, Any]) -> Interface:
    """The interface that a policy's ``get_modality_config()`` tells in process. Raises TeacherError."""
    return _interface({
        str(name): {"delta_indices": list(config.delta_indices), "modality_keys": list(config.modality_keys)}
        for name, config in configs.items() if name in NAMES
    })  # fmt: skip


def _interface(configs: Mapping[str, Mapping[str, Any]]) -> Interface:
    parts = {name: Modality((0,), ()) for name in NAMES}
    for name in NAMES:
        if name not in configs:
            continue
        try:
            rows, keys = configs[name]["delta_indices"], configs[name]["modality_keys"]
        except (TypeError, KeyError) as error:
            raise TeacherError(f"the teacher's modality '{name}' has no {error}") from error
        if not isinstance(rows, list) or not all(type(row) is int and abs(row) < 1000 for row in rows) or not rows:
            raise TeacherError(f"the teacher's modality '{name}' has the rows {str(rows)[:80]}")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise TeacherError(f"the teacher's modality '{name}' has the keys {str(keys)[:80]}")
        parts[name] = Modality(tuple(rows), tuple(key.removeprefix(f"{name}.") for key in keys))
    return Interface(**parts)
