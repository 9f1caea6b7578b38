"""Image towers through ``transformers``: from a local folder or the hub, whole or not at all, never pickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from sage_ros.vision.encoder import EncoderError, hash_weights, pick_device
from sage_ros.vision.runtime import EXACT, Runtime
from sage_ros.vision.tower import Tower

PREPROCESSING = "preprocessor_config.json"
DOWNLOAD = "download it where there is a network (`hf download NAME --local-dir FOLDER`) and give the folder"
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Family:
    """Models of one kind: what people call them, transformers' class, and the pixel statistics of their training."""

    title: str
    model: str
    statistics: Statistics  # mean and standard deviation of pixels in [0, 1], where the model's folder names none


class HubTower(Tower):
    """An encoder of such a model, by its ``family``: square patches of a square picture."""

    family: ClassVar[Family]
    patches: ClassVar[type[nn.Module]]  # of the model: pixels (B, 3, S, S) -> its patch tokens (B, N, F)
    width: ClassVar[str]  # what the model's configuration calls F

    def __init__(
        self, model: Any, statistics: Statistics | None = None, device: str = "cpu", runtime: Runtime = EXACT
    ) -> None:
        """``model``: transformers' class of the family; ``statistics`` of its pixels (None: the family's)."""
        self.model, vision, statistics = model, model.config, statistics or self.family.statistics
        side = vision.image_size // vision.patch_size
        sha256, features = hash_weights(model.state_dict(), statistics), getattr(vision, self.width)
        super().__init__(self.family.title.lower(), self.patches(model), vision.image_size, (side, side), features,
                         *statistics, sha256, pick_device(device), runtime)  # fmt: skip

    @classmethod
    def load(cls, source: str | Path, device: str = "cpu", runtime: Runtime = EXACT) -> Self:
        """As :func:`load_tower`."""
        pick_device(device)  # before the work of loading
        return cls(*load_tower(cls.family, source), device, runtime)


def load_tower(family: Family, source: str | Path) -> tuple[Any, Statistics]:
    """The model on the CPU, and its pixel statistics, out of a local folder with config.json and safetensors weights
    or by hub name, ``name@revision`` for one revision.

    Raises EncoderError if it cannot be had, is no such tower, or lacks weights: nothing is ever made up.
    """
    name, revision = str(source), None
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if isinstance(source, Path) or name.startswith(("/", ".", "~")) or name.count("/") != 1:
            raise EncoderError(f"there is no folder {folder}, and a hub name looks like owner/name: {DOWNLOAD}")
        name, _, tag = name.partition("@")
        revision = tag or None
    elif not (folder / "config.json").is_file():
        raise EncoderError(f"{folder} has no config.json: {DOWNLOAD}")
    elif not list(folder.glob("*.safetensors")):
        raise EncoderError(f"{folder} has no *.safetensors (pickled weights are not read): {DOWNLOAD}")
    where = str(folder) if folder.is_dir() else name
    for local in (True,) if folder.is_dir() else (True, False):  # the hub only where need be
        try:
            model = _load_model(family, where, revision, local)
            return model, _read_preprocessing(family, where, revision, local)
        except OSError as error:
            missing = error
    raise EncoderError(f"{family.title} cannot be had from {where} ({_first_line(missing)}): {DOWNLOAD}") from missing


def _load_model(family: Family, where: str, revision: str | None, local: bool) -> Any:
    """The image tower in float32. OSError where a file is missing or out of reach, EncoderError where it is wrong."""
    import transformers  # takes seconds

    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()  # a whole model's text tower is unused, and would be listed
    transformers.logging.disable_progress_bar()
    try:
        model, report = getattr(transformers, family.model).from_pretrained(
            where,
            revision=revision,
            local_files_only=local,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported below, instead of raised
            output_loading_info=True,
        )
    except OSError:
        raise
    except Exception as error:  # safetensors and transformers raise types of their own on spoilt files
        raise EncoderError(f"{family.title} cannot be read from {where} ({_first_line(error)}): {DOWNLOAD}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
    lacking = sorted(report["missing_keys"]) + sorted(str(key[0]) for key in report["mismatched_keys"])
    if lacking:
        raise EncoderError(
            f"{where} is no whole {family.title} image tower: {len(lacking)} weights are missing or of another shape, "
            f"such as {lacking[0]}: {DOWNLOAD}"
        )
    return model


def _read_preprocessing(family: Family, where: str, revision: str | None, local: bool) -> Statistics:
    """Pixel mean and standard deviation from the model's own preprocessor_config.json, else the family's."""
    from transformers.utils import cached_file

    path = cached_file(
        where, PREPROCESSING, revision=revision, local_files_only=local, _raise_exceptions_for_missing_entries=False
    )
    if path is None:
        return family.statistics
    try:
        stored = json.loads(Path(path).read_text())
        mean, std = (tuple(float(x) for x in stored[key]) for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderError(f"{path}: no image_mean and image_std ({error}): {DOWNLOAD}") from error
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise EncoderError(f"{path}: image_mean and image_std must be three numbers each, image_std positive")
    return mean, std


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
