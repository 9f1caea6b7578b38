"""A checkpoint's ``config.json``: what the student is, for which joints, through which encoder, every file's hash."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from sage_ros.core.joints import JointError, JointLayout
from sage_ros.policy.config import StudentConfig

FORMAT = "sage_ros.student/3"
READABLE = (FORMAT, "sage_ros.student/2")  # whose calibration knows nothing of joints
INSIDE = "encoder"  # source and folder of an encoder that travels with the checkpoint
FILES = ("model.safetensors", "normalization.json", "calibration.safetensors", "metrics.json")
RETRAIN = "restore the file from where the checkpoint came from, or train again with `distil`"
MAX_SIZE = 65536  # of any dimension of a student


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used or written: names the file, what is wrong with it and what to do."""


@dataclass(frozen=True)
class EncoderReference:
    """The encoder that a student sees through. ``source`` is a folder or hub name, or "encoder" where it is inside."""

    name: str
    source: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """``config.json``. ``rate`` (Hz) is that of the chunks' rows; ``files`` maps a file to its sha256 (hex)."""

    student: StudentConfig
    rate: float
    cameras: tuple[str, ...]
    state_joints: JointLayout
    action_joints: JointLayout
    encoder: EncoderReference
    files: Mapping[str, str]

    def write(self, path: Path) -> None:
        content = {
            "format": FORMAT,
            "student": asdict(self.student),
            "rate": self.rate,
            "cameras": list(self.cameras),
            "state_joints": _layout_to_dict(self.state_joints),
            "action_joints": _layout_to_dict(self.action_joints),
            "encoder": asdict(self.encoder),
            "files": dict(self.files),
        }
        write_json(path, content)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read and check a config.json. Raises CheckpointError on anything missing, unknown or of the wrong type."""
        if not path.parent.is_dir():
            raise CheckpointError(
                f"{path.parent}: no such folder: give a student checkpoint's, or train one with `distil`"
            )
        content = read_json(path)
        if content.get("format") not in READABLE:
            raise CheckpointError(
                f"{path}: format is {content.get('format')!r}, but {FORMAT!r} is read: "
                "use the matching version of sage_ros, or train again with `distil`"
            )
        try:
            manifest = cls(
                student=_student(content["student"]),
                rate=float(content["rate"]),
                cameras=tuple(_texts(content["cameras"])),
                state_joints=_layout(content["state_joints"]),
                action_joints=_layout(content["action_joints"]),
                encoder=EncoderReference(**_exactly(content["encoder"], EncoderReference)),
                files=dict(zip(content["files"], _texts(content["files"].values()), strict=True)),
            )
            manifest._check()
        except KeyError as error:
            raise CheckpointError(f"{path}: has no {error}: {RETRAIN}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path}: {error}: {RETRAIN}") from error
        return manifest

    def _check(self) -> None:
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"rate is {self.rate}, but must be positive, in Hz")
        if not self.cameras:
            raise ValueError("cameras is empty")
        for what, joints, width in (
            ("state", self.state_joints, self.student.state_dim),
            ("action", self.action_joints, self.student.action_dim),
        ):
            if len(joints) != width:
                raise ValueError(f"{what}_joints names {len(joints)} joints, but the student has {width}")
        needed = (*FILES, f"{INSIDE}/config.json") if self.encoder.source == INSIDE else FILES
        if missing := [name for name in needed if name not in self.files]:
            raise ValueError(f"'files' does not list {', '.join(missing)}")
        for name in self.files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"'files' names {name!r}, which is outside the checkpoint")


def _student(values: Any) -> StudentConfig:
    values = dict(_exactly(values, StudentConfig))
    for field in fields(StudentConfig):
        value, kind = values[field.name], str(field.type)
        if kind.startswith("tuple"):
            values[field.name] = value = tuple(value)
        numbers = value if isinstance(value, tuple) else (value,)
        if (kind == "float" and isinstance(value, float)) or (kind == "bool" and isinstance(value, bool)):
            continue
        if not all(type(number) is int and -1 <= number <= MAX_SIZE for number in numbers):
            raise ValueError(f"student: {field.name} is {value}, but must be whole numbers up to {MAX_SIZE}")
    return StudentConfig(**values)


def _layout_to_dict(layout: JointLayout) -> dict[str, Any]:
    return {"names": list(layout.names), "groups": {name: list(span) for name, span in layout.groups.items()}}


def _layout(entry: Any) -> JointLayout:
    try:
        groups = {name: (int(start), int(end)) for name, (start, end) in entry["groups"].items()}
        return JointLayout(tuple(_texts(entry["names"])), groups)
    except JointError as error:
        raise ValueError(str(error)) from error


def _texts(values: Any) -> list[str]:
    texts = list(values)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"expected texts, found {texts!r:.80}")
    return texts


def _exactly(values: Any, kind: Any) -> dict[str, Any]:
    """``values`` if it has exactly the fields of the dataclass ``kind``."""
    names = {field.name for field in fields(kind)}
    if not isinstance(values, dict) or set(values) != names:
        found = ", ".join(values) if isinstance(values, dict) else repr(values)[:80]
        raise ValueError(f"expected exactly the entries {', '.join(sorted(names))}; found {found}")
    return values


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing: {RETRAIN}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}): {RETRAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(content).__name__}, not an object: {RETRAIN}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, digest: str) -> None:
    """Raises CheckpointError unless the file is there and has the sha256."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing: {RETRAIN}")
    with path.open("rb") as file:
        if file.read(23) == b"version https://git-lfs":
            raise CheckpointError(f"{path}: is a Git LFS pointer, not the data: run `git lfs pull` where it was cloned")
    found = file_sha256(path)
    if found != digest:
        raise CheckpointError(
            f"{path}: sha256 is {found[:12]}…, but config.json says {digest[:12]}…: damaged or changed; {RETRAIN}"
        )
