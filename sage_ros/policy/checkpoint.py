"""A student on disk: a folder of data files, each checked by hash, shape, dtype and joint name before use.

=========================== ===================================================================================
``model.safetensors``       the weights, float32
``config.json``             :class:`~sage_ros.policy.manifest.Manifest`, with the sha256 of every other data file
``normalization.json``      :class:`~sage_ros.policy.normalization.Normalization`, joint values by joint name
``calibration.safetensors`` :class:`~sage_ros.core.trust.Calibration` of the encoder's tokens
``metrics.json``            what was measured, on which episodes
``encoder/``                the encoder's own files; absent for one that is named by hub name or folder
``README.md``               the model card
=========================== ===================================================================================

Nothing is unpickled: a folder that holds pickle files (``.pt``, ``.bin``, ...) is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open

from sage_ros.core.joints import JointLayout
from sage_ros.core.trust import PREFIX, Calibration
from sage_ros.policy.config import StudentConfig
from sage_ros.policy.manifest import (
    INSIDE,
    READABLE,
    RETRAIN,
    CheckpointError,
    Manifest,
    check_file,
    file_sha256,
    read_json,
    write_json,
)
from sage_ros.policy.normalization import NORMALIZATION, Normalization, by_joint, read_normalization
from sage_ros.policy.student import Student, StudentPolicy

if TYPE_CHECKING:
    from sage_ros.vision.encoder import Encoder
    from sage_ros.vision.runtime import Runtime

PICKLED = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
PORTABLE = frozenset({".json", ".safetensors", ".txt"})  # an encoder's files that travel
CARD = "README.md"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded student and what must be known to run it."""

    folder: Path
    manifest: Manifest
    policy: StudentPolicy
    normalization: Normalization
    calibration: Calibration
    metrics: dict[str, Any]

    @property
    def config(self) -> StudentConfig:
        return self.manifest.student

    @property
    def state_joints(self) -> JointLayout:
        return self.manifest.state_joints

    @property
    def action_joints(self) -> JointLayout:
        return self.manifest.action_joints

    @property
    def cameras(self) -> tuple[str, ...]:
        return self.manifest.cameras

    @property
    def rate(self) -> float:
        """Rows of a chunk per second."""
        return self.manifest.rate

    @property
    def horizon(self) -> int:
        return self.config.horizon

    @property
    def grid(self) -> tuple[int, int]:
        return self.config.grid

    @property
    def features(self) -> int:
        return self.config.features

    @property
    def encoder_name(self) -> str:
        return self.manifest.encoder.name

    @property
    def encoder_source(self) -> str:
        """Hub name or folder to load the encoder from."""
        return str(self.encoder_files or self.manifest.encoder.source)

    @property
    def encoder_files(self) -> Path | None:
        """The folder of an encoder that is kept inside of the checkpoint, as :func:`save_checkpoint` takes it."""
        return self.folder / INSIDE if self.manifest.encoder.source == INSIDE else None

    @property
    def encoder_sha256(self) -> str:
        return self.manifest.encoder.sha256

    def check_replaces(self, other: Checkpoint) -> None:
        """Raises CheckpointError unless it can take the place of ``other`` in a pipeline that runs."""
        for what, mine, theirs in (
            ("joints commanded", self.action_joints.names, other.action_joints.names),
            ("joints measured", self.state_joints.names, other.state_joints.names),
            ("encoder", self.encoder_sha256, other.encoder_sha256), ("token grid", self.grid, other.grid),
            ("features per token", self.features, other.features), ("rows per chunk", self.horizon, other.horizon),
            ("rows per second", self.rate, other.rate),
        ):  # fmt: skip
            if mine != theirs:
                raise CheckpointError(
                    f"{self.folder} cannot replace {other.folder} while the pipeline runs: {what} would be {mine}, not "
                    f"{theirs}: clean the nodes up and configure them anew, or load one that fits"
                )

    def load_encoder(self, device: str = "cpu", runtime: Runtime | None = None) -> Encoder:
        """The encoder that the student was trained on (None: run as in training).

        Raises CheckpointError if it is another one by now.
        """
        from sage_ros.vision.encoder import load_encoder
        from sage_ros.vision.runtime import EXACT

        encoder = load_encoder(self.encoder_name, self.encoder_source, device, runtime or EXACT)
        self.check_encoder(encoder)
        return encoder

    def check_encoder(self, encoder: Encoder) -> None:
        """Raises CheckpointError unless ``encoder`` has the weights, grid and width that the student was trained on."""
        if encoder.sha256 != self.encoder_sha256:
            raise CheckpointError(
                f"{self.folder}: the student was trained on encoder {self.encoder_name} {self.encoder_sha256[:12]}…, "
                f"but this is {encoder.name} {encoder.sha256[:12]}…: use that encoder, or distil a student on this one"
            )
        if (tuple(encoder.grid), encoder.features) != (self.grid, self.features):
            raise CheckpointError(
                f"{self.folder}: the student takes {self.grid} tokens of {self.features} features, but {encoder.name} "
                f"gives {tuple(encoder.grid)} of {encoder.features}: use that encoder, or distil a student on this one"
            )


def save_checkpoint(
    folder: Path | str,
    student: Student,
    manifest: Manifest,
    normalization: Normalization,
    calibration: Calibration,
    metrics: Mapping[str, Any],
    card: str,
    encoder_files: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint, whole or not at all; ``encoder_files`` is a folder whose files go in as the encoder.

    The manifest's ``files`` are filled in here. Raises CheckpointError where :func:`check_free` does.
    """
    folder = Path(folder).expanduser().absolute()
    check_free(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part, old = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "old"))
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir()
    weights = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in student.state_dict().items()}
    safetensors.numpy.save_file(weights, part / "model.safetensors")
    arrays = {name: np.ascontiguousarray(array) for name, array in calibration.arrays().items()}
    safetensors.numpy.save_file(arrays, part / "calibration.safetensors")
    write_json(part / NORMALIZATION, by_joint(normalization, manifest))
    write_json(part / "metrics.json", metrics)
    if encoder_files is not None:
        (part / INSIDE).mkdir()
        for path in sorted(encoder_files.iterdir()):
            if path.is_file() and path.suffix in PORTABLE:
                shutil.copyfile(path, part / INSIDE / path.name)
    files = sorted(path for path in part.rglob("*") if path.is_file())
    hashes = {path.relative_to(part).as_posix(): file_sha256(path) for path in files}
    replace(manifest, files=hashes).write(part / "config.json")
    (part / CARD).write_text(card, "utf-8")
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def save_calibration(checkpoint: Checkpoint, calibration: Calibration) -> None:
    """Replace a checkpoint's calibration, on disk; the student and all else stay as they are."""
    path = checkpoint.folder / "calibration.safetensors"
    part = path.with_name(f".{path.name}.partial")
    arrays = {name: np.ascontiguousarray(array) for name, array in calibration.arrays().items()}
    safetensors.numpy.save_file(arrays, part)
    manifest = replace(checkpoint.manifest, files=dict(checkpoint.manifest.files) | {path.name: file_sha256(part)})
    config = checkpoint.folder / ".config.json.partial"
    manifest.write(config)
    part.replace(path)
    config.replace(checkpoint.folder / "config.json")


def check_free(folder: Path, overwrite: bool) -> None:
    """Raises CheckpointError unless a checkpoint may be written to ``folder``; only checkpoints are overwritten."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(f"{folder} exists and is not empty: choose another folder, or pass --overwrite")
    try:
        known = json.loads((folder / "config.json").read_text("utf-8"))["format"] in READABLE
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise CheckpointError(f"{folder} holds no student checkpoint and is not overwritten: choose another folder")


def load_checkpoint(folder: Path | str, device: str = "cpu", checks: bool = True) -> Checkpoint:
    """Load and check a checkpoint; without ``checks``, those of the sources against each other are not read.

    Raises CheckpointError on anything missing, altered or that does not fit.
    """
    folder = Path(folder).expanduser().resolve()  # a link may point elsewhere before the last file is read
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICKLED:
            raise CheckpointError(
                f"{path}: {path.suffix} files may hold pickle, which runs code when read, and are refused: "
                "delete it; a student's weights are model.safetensors, as `distil` writes them"
            )
    manifest = Manifest.read(folder / "config.json")
    for name, digest in manifest.files.items():
        check_file(folder / name, digest)
    student = Student(manifest.student)
    student.load_state_dict(_weights(folder / "model.safetensors", student.state_dict()))
    normalization = read_normalization(folder / NORMALIZATION, manifest)
    return Checkpoint(
        folder=folder,
        manifest=manifest,
        policy=StudentPolicy(student.to(device), normalization, manifest.rate),
        normalization=normalization,
        calibration=_calibration(folder / "calibration.safetensors", manifest.student, checks),
        metrics=read_json(folder / "metrics.json"),
    )


def _weights(path: Path, expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, which must be exactly ``expected`` by name, shape and dtype, and finite."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is no safetensors file ({error}): {RETRAIN}") from error
    if set(tensors) != set(expected):
        missing, unknown = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
        raise CheckpointError(
            f"{path}: tensors do not fit config.json's student; missing: {', '.join(missing) or 'none'}; "
            f"unknown: {', '.join(unknown) or 'none'}. {RETRAIN}"
        )
    for name, tensor in tensors.items():
        want = expected[name]
        if (tensor.shape, tensor.dtype) != (want.shape, want.dtype):
            raise CheckpointError(
                f"{path}: '{name}' is {tensor.dtype} {tuple(tensor.shape)}, but config.json's student needs "
                f"{want.dtype} {tuple(want.shape)}: {RETRAIN}"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: '{name}' holds values that are not finite: {RETRAIN}")
    return tensors


def _calibration(path: Path, student: StudentConfig, checks: bool) -> Calibration:
    try:
        arrays = safetensors.numpy.load_file(path)
        kept = {name: array for name, array in arrays.items() if checks or not name.startswith(PREFIX)}
        calibration = Calibration.from_arrays(kept)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}: {RETRAIN}") from error
    found = calibration.checks
    if found is not None and (found.expectation.joints.shape[1], len(found.expectation.measured)) != (
        student.state_dim, student.action_dim
    ):
        raise CheckpointError(f"{path}: its checks are for other joints than the student's: `calibrate` fits them anew")
    if calibration.variance.shape != (student.tokens, student.features):
        raise CheckpointError(
            f"{path}: is for tokens {calibration.variance.shape}, but the student's are "
            f"{(student.tokens, student.features)}: {RETRAIN}"
        )
    return calibration
