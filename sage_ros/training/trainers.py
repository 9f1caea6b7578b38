"""How a fold's policy is trained: the student, by ``distil``'s settings; anything that is called so can replace it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sage_ros.core.chunks import ChunkPolicy
from sage_ros.policy.student import StudentPolicy
from sage_ros.training.calibration import clone_calibrated
from sage_ros.training.openloop import Demonstration
from sage_ros.training.recipes import add_training_options, chosen, student_for
from sage_ros.training.settings import APART, CloningConfig


@dataclass(frozen=True)
class CloneStudent:
    """Trains a student by behaviour cloning; a :data:`~sage_ros.training.crossval.Train` that can be pickled."""

    grid: tuple[int, int]  # of the encoder
    features: int
    config: CloningConfig
    sizes: Mapping[str, Any]  # of the network, see StudentConfig
    device: str = "cpu"

    def __call__(self, train: list[Demonstration], validation: list[Demonstration], seed: int) -> ChunkPolicy:
        student = student_for(train, self.grid, self.features, self.sizes)
        found = clone_calibrated(train, validation, student, replace(self.config, seed=seed), self.device, False)
        return StudentPolicy(found.student, found.normalization, train[0].rate)

    def __str__(self) -> str:
        config = {f.name: getattr(self.config, f.name) for f in fields(self.config) if f.name not in APART}
        said = {"grid": self.grid, "features": self.features, **self.sizes, **config}
        return "student: " + " ".join(f"{name}={value}" for name, value in said.items())


def student_options(arguments: Sequence[str], episodes: int) -> tuple[CloningConfig, dict[str, Any], str]:
    """The training's settings, the network's sizes and the torch device, from ``distil``'s options.

    ``episodes`` are trained on. Exits with a message on unknown options and prints them all on --help. Raises
    ValueError on values out of range.
    """
    parser = argparse.ArgumentParser("evaluate --leave-one-out --", description="How each fold's student is trained.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    add_training_options(parser)
    args = parser.parse_args(list(arguments))
    return *chosen(args, episodes), args.device
