"""Which settings to train with, and what a student's network is like: by how much there is to learn from."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from sage_ros.policy.config import StudentConfig
from sage_ros.policy.normalization import two_valued
from sage_ros.training.openloop import Demonstration
from sage_ros.training.settings import APART, CloningConfig

FEW, MANY = "few", "many"
ENOUGH = 20  # training episodes from which on pictures and poses are learned from, rather than by heart
SIZES = {"width": "width of the network", "layers": "layers", "queries": "learned queries that look at the picture, "
         "0: a blind student", "trunk": "the trunk's width", "history": "rows of past commands it sees"}  # fmt: skip

# A handful of episodes tell nothing of pictures (probes of pretrained features do not generalise from them either),
# and poses and words only which episode it is. What does hold in the next episode is how a motion goes on.
_FEW = CloningConfig(
    steps=1000, batch_size=256, pose_noise=1.0, command_blur=1.0, motion_noise=0.3, dropout=0.5, word_dropout=0.5
)
_RECIPES: dict[str, tuple[CloningConfig, dict[str, Any]]] = {
    FEW: (_FEW, {"queries": 0, "history": 8, "persistence": 0.9, "clock": True}),
    MANY: (CloningConfig(), {}),
}


def recipe(name: str, episodes: int) -> tuple[CloningConfig, dict[str, Any]]:
    """Training settings and network sizes called ``name``; "auto": by the number of training ``episodes``."""
    config, sizes = _RECIPES[(FEW if episodes < ENOUGH else MANY) if name == "auto" else name]
    return config, {size: getattr(StudentConfig, size) for size in (*SIZES, "persistence", "clock")} | sizes


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """One option per setting of training and network; what is not given is as the recipe has it."""
    few, many = (vars(config) | sizes for config, sizes in (recipe(FEW, 0), recipe(MANY, 0)))

    def text(name: str, meaning: str) -> str:
        same = few[name] == many[name]
        return f"{meaning} ({few[name]:g})" if same else f"{meaning} (few: {few[name]:g}, many: {many[name]:g})"

    parser.add_argument("--recipe", default="auto", choices=["auto", FEW, MANY],
                        help=f"settings for few or many episodes (auto: many from {ENOUGH} training episodes on)")
    for name, meaning in SIZES.items():
        parser.add_argument(f"--{name}", type=int, help=text(name, meaning))
    meaning = "share of the last command's velocity that lasts from row to row where it has nothing to add"
    parser.add_argument("--persistence", type=float, help=text("persistence", meaning))
    parser.add_argument("--clock", action=argparse.BooleanOptionalAction,
                        help="tell it how long the task has gone on (few: yes, many: no)")
    for item in fields(CloningConfig):
        if item.name not in APART:
            flag = "--" + item.name.replace("_", "-")
            parser.add_argument(flag, type=type(item.default), help=text(item.name, item.metadata["description"]))


def chosen(args: argparse.Namespace, episodes: int) -> tuple[CloningConfig, dict[str, Any]]:
    """What :func:`add_training_options` were set to, for ``episodes`` training episodes. ValueError out of range."""
    config, sizes = recipe(args.recipe, episodes)
    given = {f.name: getattr(args, f.name, None) for f in fields(CloningConfig)}
    config = replace(config, **{name: value for name, value in given.items() if value is not None})
    return config, sizes | {name: getattr(args, name) for name in sizes if getattr(args, name) is not None}


def student_for(
    training: Sequence[Demonstration], grid: tuple[int, int], features: int, sizes: Mapping[str, Any]
) -> StudentConfig:
    """The network for these demonstrations: its joints, which of them are bits, and which are measured too."""
    first = training[0]
    columns = {name: column for column, name in enumerate(first.state_joints.names)}
    return StudentConfig(
        grid, features, first.state.shape[1], first.action.shape[1], **sizes,
        bits=two_valued([demonstration.action for demonstration in training]),
        measured=tuple(columns.get(name, -1) for name in first.action_joints.names),
    )  # fmt: skip
