"""What an interrupted training left behind: enough to go on as if nothing had happened. No pickle, as everywhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "sage_ros.training/1"
INDEX = "training.json"


class State(NamedTuple):
    """A training between two steps."""

    tensors: dict[str, Tensor]
    figures: dict[str, Any]  # JSON


class Unfinished:
    """The trainings of one `distil`, each in a file of ``folder``, written whole or not at all.

    ``key`` says what decides the result. Raises ValueError where the folder holds trainings of another key, naming
    what differs, or something else.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder = folder
        wanted = json.loads(json.dumps(dict(key)))
        path = folder / INDEX
        if not path.exists():
            if folder.is_dir() and any(folder.iterdir()):
                raise ValueError(f"{folder} holds something else than an interrupted training: move it away")
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, json.dumps({"format": FORMAT, "key": wanted}, indent=1).encode())
            return
        try:
            content = json.loads(path.read_text("utf-8"))
            found = content["key"] if content["format"] == FORMAT else {}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): pass --restart to begin anew") from error
        if found != wanted:
            names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            raise ValueError(f"{folder} holds an interrupted training with another {', '.join(names)}: repeat its "
                             "command to go on with it, or pass --restart to begin anew")  # fmt: skip

    def load(self, name: str) -> State | None:
        """Where the training called ``name`` was; None where it has not begun. Raises ValueError on a damaged file."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
                return State(tensors, json.loads(file.metadata()["figures"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it to train that one again") from error

    def save(self, name: str, state: State) -> None:
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.tensors.items()}
        _write(self._path(name), save(tensors, {"figures": json.dumps(state.figures)}))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def unfinished_folder(out: Path) -> Path:
    """Where a training keeps what it needs to go on, until its checkpoint ``out`` is written."""
    return out.with_name(f"{out.name}.training")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What AdamW remembers of each parameter, by parameter number and name."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{number}.{key}": value for number, kept in state.items() for key, value in kept.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of :func:`optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _write(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
