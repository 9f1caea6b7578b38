"""The gate: only a teacher that beats every trivial baseline on whole episodes is worth learning from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from sage_ros.core.chunks import ActionChunk, Observation
from sage_ros.core.joints import JointLayout
from sage_ros.episodes.dataset import Episode, EpisodeDataset
from sage_ros.teacher.teachers import Teacher
from sage_ros.training.baselines import fit_baselines
from sage_ros.training.openloop import STEPS, compare, demonstration, fit_layout, format_table, no_worse

TEACHER = "teacher"
VARYING = "all varying"
FITTED = 50  # episodes that baselines are fitted on: more change them little
_STILL = 1e-6  # a joint whose commands differ by less is constant


@dataclass(frozen=True)
class Verdict:
    """What the gate found. ``errors``: {joint group: {policy: [error per episode]}}, GR00T's metric."""

    errors: dict[str, dict[str, list[float]]]
    lost: list[str]  # a sentence per joint group in which a baseline is no worse
    table: str

    @property
    def passed(self) -> bool:
        return not self.lost

    def to_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "errors": self.errors}


class Recorded:
    """Chunks (C, H, A) that were asked for beforehand, given one after the other."""

    def __init__(self, chunks: np.ndarray, rate: float) -> None:
        self.chunks, self.rate, self.horizon = chunks, rate, chunks.shape[1]

    def reset(self) -> None:
        self._next = iter(self.chunks)

    def infer(self, observation: Observation) -> ActionChunk:
        return ActionChunk(next(self._next), self.rate)


def judge(
    teacher: Teacher, dataset: EpisodeDataset, episodes: Sequence[int], steps: int | None = STEPS, progress: bool = True
) -> Verdict:
    """Compare the teacher with the trivial baselines on ``episodes`` (numbers), the first ``steps`` rows (None: all).

    Each episode is held out: the baselines are fitted on others. Judged are each joint group that the teacher commands
    and all its joints together, without those that never move, which flatter everybody. Raises ValueError where no
    other episode is left, TeacherError where the teacher fails.
    """
    read = _some(dataset, episodes)
    layout = teacher.joints
    covered = {}
    for index, episode in read.items():
        unseen = demonstration(episode, np.zeros((len(episode), 1, 1), np.float32))  # no baseline sees
        covered[index] = fit_layout(unseen, episode.state_joints, layout)
    moves = np.ptp(np.concatenate([d.action for d in covered.values()]), axis=0) > _STILL
    groups = [group for group, span in layout.groups.items() if moves[slice(*span)].any()]
    if not groups:
        raise ValueError("none of the joints that the teacher commands ever moves in these episodes: nothing to judge")
    moving = _only(layout, moves)
    errors: dict[str, dict[str, list[float]]] = {group: {} for group in [VARYING, *groups]}
    for index in tqdm(episodes, desc="gate", unit="episode", disable=not progress):
        others = [d for other, d in covered.items() if other != index][:FITTED]
        if not others:
            raise ValueError(f"the data set has only episode {index}: none is left to fit the baselines on")
        shown = covered[index]
        rows = range(0, len(shown) if steps is None else min(steps, len(shown)), teacher.horizon)
        chunks = np.stack(list(teacher.label(read[index], rows)))
        policies = {TEACHER: Recorded(chunks, shown.rate), **fit_baselines(others, teacher.horizon)}
        for group in groups:
            _add(errors[group], compare(policies, [shown], [group], steps))
        part = [replace(d, action=d.action[:, moves], action_joints=moving) for d in (shown, *others)]
        policies = {TEACHER: Recorded(chunks[..., moves], shown.rate), **fit_baselines(part[1:], teacher.horizon)}
        _add(errors[VARYING], compare(policies, part[:1], (), steps))
    lost = []
    for group, row in errors.items():
        if better := no_worse(row, TEACHER):
            named = ", ".join(f"{name} ({error:.4g})" for name, error in better.items())
            lost.append(f"{group}: {named} err no more than the teacher ({np.mean(row[TEACHER]):.4g})")
    return Verdict(errors, lost, format_table(errors))


def spread(indices: Sequence[int], count: int) -> list[int]:
    """``count`` of the episodes, evenly spread."""
    places = np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)
    return [indices[place] for place in places]


def _some(dataset: EpisodeDataset, episodes: Sequence[int]) -> dict[int, Episode]:
    """The episodes to judge on, and as many others as the baselines need."""
    unknown = sorted(set(episodes) - set(dataset.indices))
    if unknown or not episodes:
        raise ValueError(f"{dataset.path} has no episode {unknown or 'at all'}; it has {list(dataset.indices)}")
    others = spread([index for index in dataset.indices if index not in episodes] or episodes, FITTED)
    return {i: dataset[dataset.indices.index(i)] for i in sorted({*episodes, *others})}


def _only(layout: JointLayout, keep: np.ndarray) -> JointLayout:
    """The layout without the joints that are not kept."""
    ends = np.concatenate([[0], np.cumsum(keep)]).tolist()
    spans = {group: (ends[start], ends[end]) for group, (start, end) in layout.groups.items()}
    names = tuple(name for name, kept in zip(layout.names, keep, strict=True) if kept)
    return JointLayout(names, {group: span for group, span in spans.items() if span[0] < span[1]})


def _add(rows: dict[str, list[float]], more: dict[str, list[float]]) -> None:
    for name, errors in more.items():
        rows.setdefault(name, []).extend(errors)
