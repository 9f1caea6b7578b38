"""The students of one robot: a folder of checkpoints, of which a link names the one in use, and their lineage.

=================== ============================================================================================
``000000/`` ...     checkpoints, the first one copied from where the robot's student came from
``current``         a symbolic link to the one in use, replaced in one step: whoever reads it finds one or the other
``dream.log``       what the last dream of the node `dreamer` said
``lineage.jsonl``   a JSON line per dream and rollback: what was learned from what, on which data, with which figures
=================== ============================================================================================
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sage_ros.policy.checkpoint import load_checkpoint
from sage_ros.policy.manifest import CheckpointError, Manifest

CURRENT, LINEAGE, LOCK = "current", "lineage.jsonl", ".lock"
WORK = ".dream"  # the dream in progress
PROMOTED, DROPPED, ROLLED_BACK = "promoted", "dropped", "rolled back"


class Champions:
    """The folder, opened. Raises CheckpointError where it holds something else, or no champion."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self.current = self.folder / CURRENT
        if not self.current.is_symlink() or not self.current.is_dir():
            raise CheckpointError(f"{self.folder} holds no champion: begin with `dream --champions {folder} "
                                  "--checkpoint STUDENT`")  # fmt: skip

    @classmethod
    def found(cls, folder: Path | str, checkpoint: Path | str) -> Champions:
        """Open the folder; a new one begins with a copy of ``checkpoint``. Raises CheckpointError."""
        path = Path(folder).expanduser().absolute()
        if not (path / CURRENT).is_symlink():
            if path.is_dir() and any(entry.name not in (_name(0), LOCK) for entry in path.iterdir()):
                raise CheckpointError(f"{path} holds something else than champions: name another folder")
            source = load_checkpoint(checkpoint).folder  # nothing is begun with what cannot be used
            shutil.rmtree(path / _name(0), ignore_errors=True)
            path.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, path / _name(0))
            _point(path / CURRENT, _name(0))
        return cls(path)

    @property
    def champion(self) -> str:
        """The name of the one in use, such as "000003"."""
        return os.readlink(self.current)

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """What happened, the oldest first; half a line that a kill has left is passed over."""
        path = self.folder / LINEAGE
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        found = []
        for line in lines:
            try:
                found.append(dict(json.loads(line)))
            except ValueError:
                continue
        return found

    def next(self) -> Path:
        """The folder that a challenger is written to."""
        taken = [int(path.name) for path in self.folder.iterdir() if path.name.isdigit()]
        return self.folder / _name(max(taken) + 1)

    def promote(self, challenger: Path, about: Mapping[str, Any]) -> None:
        """Make a checkpoint of this folder the champion. It is in the lineage before it is in use."""
        Manifest.read(challenger / "config.json")
        self.note(PROMOTED, {**about, "champion": challenger.name, "parent": self.champion})
        _point(self.current, challenger.name)

    def drop(self, about: Mapping[str, Any]) -> None:
        """Keep the reason why a challenger was dropped."""
        self.note(DROPPED, {**about, "parent": self.champion})

    def rollback(self) -> str:
        """Go back to the present champion's parent, whose name is returned. Raises CheckpointError for the first."""
        parents = {entry["champion"]: entry["parent"] for entry in self.lineage if entry["event"] == PROMOTED}
        here = self.champion
        parent = parents.get(here)
        if parent is None or not (self.folder / parent).is_dir():
            raise CheckpointError(f"{here} is the first champion of {self.folder}: there is none to go back to")
        self.note(ROLLED_BACK, {"champion": parent, "from": here})
        _point(self.current, parent)
        return str(parent)

    def note(self, event: str, about: Mapping[str, Any]) -> None:
        entry = {"event": event, "date": datetime.now(UTC).isoformat(timespec="seconds"), **about}
        path = self.folder / LINEAGE
        whole = not path.exists() or not path.stat().st_size or path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write(("" if whole else "\n") + json.dumps(entry, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @property
    def dreamt(self) -> int:
        """Steps that the dream in progress has saved; 0 where there is none."""
        try:
            with safe_open(self.folder / WORK / "challenger.safetensors", framework="np") as file:
                return int(json.loads(file.metadata()["figures"])["step"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return 0

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one who dreams here. Raises CheckpointError where somebody does already."""
        with (self.folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the kernel, even after a kill
            except OSError as error:
                raise CheckpointError(f"{self.folder}: another process is dreaming here: wait for it") from error
            yield


def _name(number: int) -> str:
    return f"{number:06d}"


def _point(link: Path, target: str) -> None:
    part = link.with_name(f".{link.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    part.symlink_to(target)
    part.replace(link)
