"""Scores of many policies on many episodes: by joint group and length, with folds, seeds and claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sage_ros.training.measures import (
    CAP,
    LEVELS,
    Gripper,
    Switching,
    boundary_jumps,
    compare_bits,
    coverage,
    f1,
    interval,
    roughness,
    timing_error,
)
from sage_ros.training.openloop import WHOLE, Demonstration, Prediction, length_name

JOINED = "+"  # between the names of groups that are scored as one


@dataclass(frozen=True)
class Calibration:
    """How far a policy's standard deviations can be believed."""

    covered: dict[float, float]  # level: share of the errors inside of the interval of that level
    width: float  # mean width of the interval of the highest level, in the joints' unit


@dataclass(frozen=True)
class Score:
    """A policy on one episode, over chosen joints and rows. Positions are in the joints' unit, rad for most."""

    squared: np.ndarray  # (J,) mean squared error of each joint
    absolute: float  # mean absolute error
    jump_l2: float | None  # mean length of the step between two chunks, over the joints but grippers
    jump_max: float | None  # greatest step of a joint but a gripper between two chunks
    acceleration: float | None  # see roughness; the joints but grippers
    jerk: float | None
    switching: tuple[Switching, ...]  # per gripper among the joints
    calibration: Calibration | None  # over the joints that move in the episode

    @property
    def mse(self) -> float:
        """GR00T's metric."""
        return float(self.squared.mean())


def score(
    prediction: Prediction, demonstration: Demonstration, columns: np.ndarray, grippers: Sequence[Gripper] = (),
    cap: int = CAP,
) -> Score:
    """Score a prediction on the action columns (J,). Only grippers whose joints are all among them count."""
    columns = np.asarray(columns, dtype=np.int64)
    predicted, demonstrated = prediction.positions, demonstration.action[: prediction.rows]
    error = (predicted - demonstrated)[:, columns]
    inside = [gripper for gripper in grippers if np.isin(gripper.columns, columns).all()]
    bits = {int(column) for gripper in grippers for column in gripper.columns}
    arm = np.array([column for column in columns if column not in bits], dtype=np.int64)
    jumps = boundary_jumps(prediction.chunks[..., arm])
    rough = roughness(prediction.chunks[..., arm], demonstration.rate) if len(arm) else (None, None)
    calibration = None
    if prediction.deviations is not None:
        moving = columns[np.ptp(demonstrated[:, columns], axis=0) > 0]
        if len(moving):
            deviation, miss = prediction.deviations[:, moving], (predicted - demonstrated)[:, moving]
            covered = {level: coverage(miss, deviation, level) for level in LEVELS}
            calibration = Calibration(covered, float(2 * interval(deviation, LEVELS[-1]).mean()))
    return Score(
        squared=(error**2).mean(axis=0),
        absolute=float(np.abs(error).mean()),
        jump_l2=float(np.linalg.norm(jumps, axis=1).mean()) if jumps.size else None,
        jump_max=float(np.abs(jumps).max()) if jumps.size else None,
        acceleration=rough[0],
        jerk=rough[1],
        switching=tuple(compare_bits(g.bits(predicted), g.bits(demonstrated), cap) for g in inside),
        calibration=calibration,
    )


def as_predicted(demonstration: Demonstration, every: int) -> Prediction:
    """What a policy would have predicted that knows the demonstration; its last row fills the last chunk."""
    rows = np.arange(-(-len(demonstration) // every) * every).reshape(-1, every)
    return Prediction(demonstration.action[np.minimum(rows, len(demonstration) - 1)], None, len(demonstration))


def summary(scores: Sequence[Score], joints: Sequence[str], grippers: Sequence[str], cap: int = CAP) -> dict[str, Any]:
    """Figures over episodes and seeds, ready for JSON: the mean of the episodes' figures; RMSE by joint, in the
    joint's unit; F1, timing and counts of each gripper over all rows and switches."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    found: dict[str, Any] = {
        "mse": mean([s.mse for s in scores]),
        "mae": mean([s.absolute for s in scores]),
        "rmse": dict(zip(joints, np.sqrt(np.mean([s.squared for s in scores], axis=0)).tolist(), strict=True)),
        "jump_l2": mean([s.jump_l2 for s in scores]),
        "jump_max": max((s.jump_max for s in scores if s.jump_max is not None), default=None),
        "acceleration": mean([s.acceleration for s in scores]),
        "jerk": mean([s.jerk for s in scores]),
        "grippers": {},
        "calibration": None,
    }
    for place, name in enumerate(grippers):
        row = [s.switching[place] for s in scores]
        found["grippers"][name] = {
            "f1": f1(row),
            "timing_error_ticks": timing_error(row, cap),
            "switches": sum(len(s.late) + s.missed for s in row),
            "missed": sum(s.missed for s in row),
            "extra": sum(s.extra for s in row),
        }
    if calibrations := [s.calibration for s in scores if s.calibration is not None]:
        found["calibration"] = {
            **{f"covered_{level:.0%}": mean([c.covered[level] for c in calibrations]) for level in LEVELS},
            f"width_{LEVELS[-1]:.0%}": mean([c.width for c in calibrations]),
        }
    return found


@dataclass(frozen=True)
class Evaluation:
    """Policies on the same episodes: whole-episode predictions by policy, then seed, in the order of the episodes.

    The first policy is the one that is judged, the others are what it has to beat. A policy without seeds has one row.
    """

    title: str
    note: str  # what the reader must know: what was trained on what
    demonstrations: tuple[Demonstration, ...]
    predictions: Mapping[str, Mapping[int, Sequence[Prediction]]]
    grippers: tuple[Gripper, ...]
    subsets: Mapping[str, np.ndarray]  # name: action columns
    lengths: tuple[int | None, ...]  # rows; None: whole episodes
    cap: int = CAP

    @property
    def judged(self) -> str:
        return next(iter(self.predictions))

    def length(self, steps: int | None) -> str:
        return length_name(steps)

    def inside(self, subset: str) -> list[Gripper]:
        """The grippers all of whose joints are in a subset."""
        return [g for g in self.grippers if np.isin(g.columns, self.subsets[subset]).all()]

    def joints(self, subset: str) -> list[str]:
        return [self.demonstrations[0].action_joints.names[column] for column in self.subsets[subset]]

    def scores(self, policy: str, subset: str, steps: int | None) -> list[list[Score]]:
        """Per seed, per episode."""
        return [
            [
                score(prediction.first(steps), demonstration, self.subsets[subset], self.grippers, self.cap)
                for prediction, demonstration in zip(row, self.demonstrations, strict=True)
            ]
            for row in self.predictions[policy].values()
        ]

    def errors(self, policy: str, subset: str, steps: int | None) -> np.ndarray:
        """GR00T's metric, (seeds, episodes)."""
        columns = self.subsets[subset]
        return np.array([
            [
                float(np.mean((p.positions - d.action[: p.rows])[:, columns] ** 2))
                for p, d in zip((whole.first(steps) for whole in row), self.demonstrations, strict=True)
            ]
            for row in self.predictions[policy].values()
        ])


def choose_subsets(demonstrations: Sequence[Demonstration], groups: Sequence[str]) -> dict[str, np.ndarray]:
    """What is scored: ``groups`` as one and each alone, or without any all joints and every group that moves.

    Raises JointError on unknown groups.
    """
    layout = demonstrations[0].action_joints
    if groups:
        chosen = {JOINED.join(groups): layout.columns(groups)}
    else:
        chosen = {"all": np.arange(len(layout))}
        moving = np.any([np.ptp(d.action, axis=0) > 0 for d in demonstrations], axis=0)
        groups = [group for group in layout.groups if moving[layout.columns([group])].any()]
    return chosen | {group: layout.columns([group]) for group in groups}


@dataclass(frozen=True)
class Claim:
    """Whether the judged policy errs less than another, in the mean of episodes and seeds."""

    policy: str
    baseline: str
    subset: str
    length: str
    ratio: float  # of the mean errors
    folds: tuple[float, float]  # of an episode, seeds averaged, where the other errs: least and greatest
    seeds: tuple[float, float] | None  # least and greatest ratio of a seed, episodes averaged; None: one seed

    @property
    def holds(self) -> bool:
        return self.ratio < 1

    def __str__(self) -> str:
        length = "whole episodes" if self.length == WHOLE else f"first {self.length}"
        spread = f"{self.folds[0]:.2f}-{self.folds[1]:.2f} over episodes"
        if self.seeds is not None:
            spread += f", {self.seeds[0]:.2f}-{self.seeds[1]:.2f} over seeds"
        answer = "yes" if self.holds else "no"
        return f"{self.policy} beats {self.baseline} on {self.subset}, {length}: {answer}, {self.ratio:.2f}x ({spread})"


def claims(evaluation: Evaluation, against: Sequence[str] = ("last action",)) -> list[Claim]:
    """Per subset and length: the judged policy against each of ``against`` and against whatever else errs least.

    Variants of the judged policy ("student, tokens blanked") are no rivals.
    """
    judged, found = evaluation.judged, []
    for subset in evaluation.subsets:
        for steps in evaluation.lengths:
            errors = {name: evaluation.errors(name, subset, steps) for name in evaluation.predictions}
            rivals = {name: float(e.mean()) for name, e in errors.items() if not name.startswith(judged)}
            best = sorted(rivals, key=lambda name: rivals[name])[:1]
            for name in dict.fromkeys([*(a for a in against if a in rivals), *best]):
                mine, theirs = errors[judged], errors[name].mean(axis=0)
                errs = theirs > 0
                if not errs.any():  # nothing to win, as on joints that stand still
                    continue
                folds, seeds = mine.mean(axis=0)[errs] / theirs[errs], mine.mean(axis=1) / theirs.mean()
                found.append(Claim(
                    judged, name, subset, evaluation.length(steps), float(mine.mean() / theirs.mean()),
                    (float(folds.min()), float(folds.max())),
                    (float(seeds.min()), float(seeds.max())) if len(seeds) > 1 else None,
                ))  # fmt: skip
    return found


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Every figure: by subset, length and policy the :func:`summary` and the errors one by one; the claims; and how
    smooth the demonstrations themselves are."""
    table: dict[str, Any] = {}
    shown: dict[str, Any] = {}
    every = next(iter(evaluation.predictions[evaluation.judged].values()))[0].every
    for subset in evaluation.subsets:
        for steps in evaluation.lengths:
            copies = [
                score(as_predicted(d, every).first(steps), d, evaluation.subsets[subset], evaluation.grippers)
                for d in evaluation.demonstrations
            ]
            shown.setdefault(subset, {})[evaluation.length(steps)] = summary(copies, evaluation.joints(subset), [])
            for name in evaluation.predictions:
                scores = evaluation.scores(name, subset, steps)
                flat, names = [s for row in scores for s in row], [g.name for g in evaluation.inside(subset)]
                seeds = [float(np.mean([s.mse for s in row])) for row in scores]
                entry = summary(flat, evaluation.joints(subset), names, evaluation.cap)
                entry["mse_by_seed_and_episode"] = [[s.mse for s in row] for row in scores]
                entry["deviation_over_seeds"] = float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None
                table.setdefault(subset, {}).setdefault(evaluation.length(steps), {})[name] = entry
    return {
        "title": evaluation.title,
        "note": evaluation.note,
        "metric": "mean squared error over rows and joints in raw units; mean of episodes and seeds",
        "episodes": [d.index for d in evaluation.demonstrations],
        "seeds": list(evaluation.predictions[evaluation.judged]),
        "grippers": {g.name: [evaluation.demonstrations[0].action_joints.names[c] for c in g.columns]
                     for g in evaluation.grippers},
        "timing_cap_ticks": evaluation.cap,
        "scores": table,
        "demonstrated": shown,
        "claims": [{"claim": str(c), "holds": c.holds, "ratio": c.ratio, "folds": c.folds, "seeds": c.seeds}
                   for c in claims(evaluation)],
    }  # fmt: skip
