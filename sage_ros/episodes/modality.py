"""GR00T's ``modality.json`` where a data set has none: guessed from what ``info.json`` says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import DatasetError

MODALITY = "meta/modality.json"
TASK_KEY = "human.action.task_description"
_SIDE = re.compile(r"^(left|right)(?=[_.\-])", re.IGNORECASE)
_PARTS = (("gripper", re.compile(r"gripper|finger|jaw|claw", re.I)), ("leg", re.compile(r"hip|knee|ankle|leg", re.I)))


def flat_names(given: Any) -> tuple[list[str], dict[str, int]]:
    """Names out of info.json, however they nest, in their order; and the widths of the lists that a map names.

    LeRobot sets have ["a", "b"], {"motors": ["a", "b"]}, [["a"], ["b"]], {"a": 0, "b": 1}, {"left": […], "right": […]}.
    What is no text counts as the name "".
    """
    if isinstance(given, dict) and given and all(type(value) is int for value in given.values()):
        return flat_names(sorted(given, key=lambda name: given[name]))  # {"x": 0, "y": 1}
    if isinstance(given, dict):
        parts = {str(key): flat_names(value)[0] for key, value in given.items()}
        return [name for part in parts.values() for name in part], {key: len(part) for key, part in parts.items()}
    if isinstance(given, list):
        return [name for entry in given for name in flat_names(entry)[0]], {}
    return [given.removesuffix(".pos") if isinstance(given, str) else ""], {}


def guess_modality(features: Mapping[str, Any], has_film: Callable[[str], bool]) -> dict[str, Any]:
    """A modality.json for the features of an info.json.

    Groups are the lists that a map of names has; else neighbours of one side (``left_…``, ``right_…``) and kind
    (arm, gripper, leg) by their names, "single_arm" where there is one arm, as GR00T's SO-100 configuration calls it;
    else all in one, "joints". Cameras are the features of video or images for which ``has_film``, by the last part of
    their names. The task is the first annotation, or ``task_index``.
    """
    modality: dict[str, Any] = {}
    for kind, column in (("state", "observation.state"), ("action", "action")):
        feature = features.get(column)
        width = (feature.get("shape") or [0])[0] if isinstance(feature, dict) else 0
        if isinstance(width, int) and 0 < width < 1 << 16:
            edges = _groups(feature.get("names") if isinstance(feature, dict) else None, width)
            modality[kind] = {
                name: {"start": start, "end": end, "original_key": column} for name, (start, end) in edges.items()
            }
    cameras: dict[str, str] = {}
    declared = [k for k, f in features.items() if isinstance(f, dict) and f.get("dtype") in ("video", "image")]
    filmed = [key for key in declared if has_film(key)]
    for key in filmed or declared:  # where none has a film, they are missing: reading them says so
        short = key.removeprefix("observation.").removeprefix("images.").removeprefix("image.")
        cameras[short if short not in cameras else key] = key
    modality["video"] = {name: {"original_key": key} for name, key in cameras.items()}
    words = [key.removeprefix("annotation.") for key in features if key.startswith("annotation.")]
    task = next((name for name in words if "task_description" in name), None)
    modality["annotation"] = {task: {}} if task else {TASK_KEY: {"original_key": "task_index"}}
    return modality


def _groups(given: Any, width: int) -> dict[str, tuple[int, int]]:
    names, widths = flat_names(given)
    if len(names) != width:
        return {"joints": (0, width)}
    ends = dict(widths) if len(widths) > 1 else {}
    kinds = [key for key, count in ends.items() for _ in range(count)] or [_kind(name) for name in names]
    groups: dict[str, tuple[int, int]] = {}
    start = 0
    for k in range(1, width + 1):
        if k == width or kinds[k] != kinds[start]:
            if kinds[start] in groups:  # a kind that comes twice: the names tell no groups
                return {"joints": (0, width)}
            groups[kinds[start]] = (start, k)
            start = k
    if set(groups) == {"arm"}:
        return {"joints": (0, width)}
    return {"single_arm" if name == "arm" else name: edges for name, edges in groups.items()}


def _kind(name: str) -> str:
    side = _SIDE.match(name)
    part = next((part for part, words in _PARTS if words.search(name)), "arm")
    return f"{side[1].lower()}_{part}" if side else part


def save_modality(root: Path, modality: Mapping[str, Any]) -> Path:
    """Write a guess to ``meta/modality.json``, to be edited by hand; an existing file is never replaced.

    Raises DatasetError if there is one, or if the folder cannot be written.
    """
    path = root / MODALITY
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(modality, indent=2) + "\n")
    except FileExistsError as error:
        raise DatasetError("is there already", path, remedy="edit it, or move it away to guess again") from error
    except OSError as error:
        raise DatasetError(
            f"cannot be written ({error.strerror})", path, remedy="copy the data set to where you may write"
        ) from error
    return path
