"""A teacher's chunks on disk: labelled once, where the teacher runs, and read wherever a student is trained.

A folder holds ``index.json`` and one safetensors file per episode. Both are written beside and then moved into place,
the file first, so that a kill at any moment costs the episode at work and nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError
from tqdm import tqdm

from sage_ros.core.joints import JointLayout
from sage_ros.episodes.dataset import Episode, EpisodeDataset
from sage_ros.paths import cache_folder
from sage_ros.policy.normalization import chunks
from sage_ros.teacher.teachers import Teacher

FORMAT = "sage_ros.labels/1"
INDEX = "index.json"
log = logging.getLogger(__name__)


class LabelError(RuntimeError):
    """Labels that cannot be used or written: says which, what is wrong and what to do."""


def label_key(dataset: EpisodeDataset, teacher: Teacher, every: int) -> dict[str, Any]:
    """What labels belong to: anything of it that changes makes them other labels."""
    return {
        "dataset": dataset.fingerprint(),
        "align": dataset.align,
        "teacher": teacher.identity,
        "joints": list(teacher.joints.names),
        "horizon": teacher.horizon,
        "every": every,
        "rate": dataset.fps,
    }


def default_folder(key: dict[str, Any]) -> Path:
    """``labels/<key>`` in :func:`~sage_ros.paths.cache_folder`."""
    return cache_folder() / "labels" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


class LabelCache:
    """The labels of one data set by one teacher in ``folder``, open for writing; nobody else may write meanwhile.

    Raises LabelError where the folder holds other labels, or something else.
    """

    def __init__(self, folder: Path | str, key: dict[str, Any]) -> None:
        self.folder, self.key = Path(folder).expanduser().absolute(), key
        self.index: dict[str, Any] = {"format": FORMAT, "key": key, "gate": None, "episodes": {}}

    @contextmanager
    def open(self) -> Iterator[LabelCache]:
        """Hold the folder while labelling."""
        there = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        if there and not there & {INDEX, ".lock"}:
            raise LabelError(f"{self.folder} holds something else than labels: name another folder with --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the kernel, even after a kill
            except OSError as error:
                raise LabelError(f"{self.folder} is being labelled by another process: wait for it") from error
            for leftover in self.folder.glob("*.part"):
                leftover.unlink()
            self._resume()
            yield self

    def _resume(self) -> None:
        path = self.folder / INDEX
        if not path.exists():
            return
        try:
            found = _read_index(path)
        except LabelError as error:
            log.warning("%s: labelling from the start", error)
            return
        if found["key"] != self.key:
            raise LabelError(f"{self.folder} holds the labels of {_differences(found['key'], self.key)}: name another "
                             "folder with --out, or delete this one")  # fmt: skip
        self.index = found

    def write_gate(self, gate: dict[str, Any]) -> None:
        self.index["gate"] = gate
        self._write(INDEX, (json.dumps(self.index, indent=1) + "\n").encode())

    def label(
        self, teacher: Teacher, dataset: EpisodeDataset, episodes: Sequence[int], progress: bool = True
    ) -> list[int]:
        """Label the episodes that are not yet, or whose file is damaged; the numbers of those that were labelled."""
        every = self.key["every"]
        todo = [index for index in episodes if not self._has(index)]
        by_index = {index: position for position, index in enumerate(dataset.indices)}
        total = sum(-(-len(dataset[by_index[index]]) // every) for index in todo)
        with tqdm(total=total, desc="label", unit="row", disable=not progress) as bar:
            for index in todo:
                episode = dataset[by_index[index]]
                bar.set_postfix(episode=index)
                self._label(teacher, episode, range(0, len(episode), every), bar.update)
        return todo

    def _label(self, teacher: Teacher, episode: Episode, rows: Sequence[int], tick: Callable[[], Any]) -> None:
        found = np.empty((len(rows), teacher.horizon, len(teacher.joints)), np.float32)
        for position, chunk in enumerate(teacher.label(episode, rows)):
            found[position] = chunk
            tick()
        name = f"episode_{episode.index:06d}.safetensors"
        content = safetensors.numpy.save({"chunks": found})
        self._write(name, content)
        digest = hashlib.sha256(content).hexdigest()
        self.index["episodes"][str(episode.index)] = {"file": name, "sha256": digest, "rows": len(episode)}
        self._write(INDEX, (json.dumps(self.index, indent=1) + "\n").encode())

    def _has(self, index: int) -> bool:
        entry = self.index["episodes"].get(str(index))
        if entry is None:
            return False
        try:
            _read_chunks(self.folder, entry, self.key)
        except LabelError as error:
            log.warning("%s: labelling the episode again", error)
            return False
        return True

    def _write(self, name: str, content: bytes) -> None:
        part = self.folder / f"{name}.part"
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.folder / name)


def load_labels(folder: Path | str, dataset: EpisodeDataset) -> dict[int, np.ndarray]:
    """The labels of each labelled episode by its number: (T, H, A) float32, in the order of ``action_joints``.

    ``[t, j]`` is what the teacher would command at row t + j, seeing row t; H is the teacher's horizon. Rows that were
    not labelled (``label --every``) are NaN throughout; joints that the teacher does not command have the recorded
    actions, the last one repeated beyond the end. Raises LabelError on labels of another data set, and on missing or
    damaged files.
    """
    folder = Path(folder).expanduser().absolute()
    index = _read_index(folder / INDEX)
    key = index["key"]
    if key["dataset"] != dataset.fingerprint() or key["align"] != dataset.align:
        raise LabelError(f"{folder} holds labels of another data set than {dataset.path}, or of one that has "
                         "changed since: label it again")  # fmt: skip
    try:
        columns = JointLayout(tuple(key["joints"])).order_from(dataset.action_joints.names)
    except ValueError as error:
        raise LabelError(f"{folder / INDEX}: {error}: label again") from error
    labels = {}
    for position, number in enumerate(dataset.indices):
        if (entry := index["episodes"].get(str(number))) is None:
            continue
        found, episode = _read_chunks(folder, entry, key), dataset[position]
        recorded = chunks(episode.action, key["horizon"])
        whole = np.full(recorded.shape, np.nan, np.float32)
        whole[:: key["every"]] = recorded[:: key["every"]]
        whole[np.ix_(np.arange(0, len(episode), key["every"]), np.arange(key["horizon"]), columns)] = found
        labels[number] = whole
    if not labels:
        raise LabelError(f"{folder} has no labelled episode yet: run `label` to the end")
    return labels


def label_origin(folder: Path | str) -> dict[str, Any]:
    """Where labels come from, for whoever learns from them: the teacher, its gate's verdict, the index's sha256.

    Raises LabelError.
    """
    path = Path(folder).expanduser().absolute() / INDEX
    index = _read_index(path)
    gate = index["gate"]
    return {
        **{name: index["key"][name] for name in ("teacher", "joints", "horizon", "every")},
        "gate": None if gate is None else {name: gate[name] for name in ("passed", "episodes", "steps")},
        "episodes": sorted(map(int, index["episodes"])),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def _read_index(path: Path) -> dict[str, Any]:
    """An index of this format. Raises LabelError."""
    try:
        index = json.loads(path.read_text("utf-8"))
        if index["format"] != FORMAT:
            raise LabelError(f"{path}: format is {index['format']!r}, but {FORMAT!r} is read: label again")
        if not (isinstance(index["key"]["joints"], list) and index["key"]["every"] >= 1
                and isinstance(index["episodes"], dict) and "gate" in index):  # fmt: skip
            raise TypeError("entries of other types than expected")
    except FileNotFoundError as error:
        raise LabelError(f"{path}: missing: name a folder that `label` has made") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LabelError(f"{path}: damaged ({type(error).__name__}: {error})") from error
    return index


def _read_chunks(folder: Path, entry: Any, key: dict[str, Any]) -> np.ndarray:
    """The chunks (R, H, A') of an episode. Raises LabelError unless the file is the one that was written."""
    try:
        path = folder / Path(entry["file"]).name
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise LabelError(f"{path}: damaged or changed (its sha256 is another)")
        found = safetensors.numpy.load(content)["chunks"]
        shape = (-(-entry["rows"] // key["every"]), key["horizon"], len(key["joints"]))
    except (OSError, KeyError, TypeError, SafetensorError) as error:
        raise LabelError(f"{folder}: labels of an episode cannot be read ({type(error).__name__}: {error})") from error
    if found.shape != shape or found.dtype != np.float32:
        raise LabelError(f"{path}: holds {found.dtype} {found.shape}, but must hold float32 {shape}")
    return found


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    names = [name for name in wanted if found.get(name) != wanted[name]]
    return ", ".join(f"{name} {str(found.get(name))[:60]} (not {str(wanted[name])[:60]})" for name in names)
