"""Recorded sessions as a dream sees them: with their outcome, what surprised, and a teacher's labels if any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sage_ros.core.chunks import ChunkPolicy
from sage_ros.episodes.dataset import EpisodeDataset
from sage_ros.episodes.errors import DatasetError
from sage_ros.episodes.files import read_jsonl
from sage_ros.policy.checkpoint import Checkpoint
from sage_ros.training.openloop import EVERY, Demonstration, fit_layout
from sage_ros.training.tokens import load_demonstrations

SURPRISE = "sage.surprise"  # the recorder's column: mean and greatest over the picture, -1 where not heard
ASIDE = 4  # each so many-th session by its number is held out: the same ones in every dream


@dataclass(frozen=True)
class Session:
    """One recorded episode."""

    demonstration: Demonstration
    success: bool | None = None  # as physics or an operator said; None: nobody did
    surprise: np.ndarray | None = None  # (T,) 0 to 1, as trust_attention felt it; None: not recorded

    @property
    def held_out(self) -> bool:
        return self.demonstration.index % ASIDE == ASIDE - 1

    @property
    def judgeable(self) -> bool:
        """Whether an error can be measured on it: it went well, or a teacher says how it should have gone."""
        return bool(self.success) or self.demonstration.labels is not None


def load_sessions(
    dataset: EpisodeDataset, champion: Checkpoint, labels: Mapping[int, np.ndarray] | None = None, progress: bool = True
) -> list[Session]:
    """The sessions of a data set, as ``champion`` sees them; ``labels`` as ``teacher.labels.load_labels`` gives them.

    Raises DatasetError, and JointError where a joint of the champion's is missing.
    """
    camera = champion.cameras[0]
    if camera not in dataset.cameras:
        raise DatasetError(f"has no camera '{camera}'", dataset.path, remedy="record that camera by this name")
    if abs(dataset.fps - champion.rate) > 1e-3 * champion.rate:
        what = f"has {dataset.fps:g} rows per second, but the champion's chunks {champion.rate:g}"
        raise DatasetError(what, dataset.path, remedy=f"record with fps: {champion.rate:g}")
    columns = champion.action_joints.order_from(dataset.action_joints.names)
    said = outcomes(dataset)
    found = []
    for demonstration in load_demonstrations(dataset, champion.load_encoder(), camera, progress=progress):
        index = demonstration.index
        fitted = fit_layout(demonstration, champion.state_joints, champion.action_joints)
        if labels and index in labels:
            fitted = replace(fitted, labels=labels[index][..., columns])
        found.append(Session(fitted, said.get(index), recorded_surprise(dataset, index)))
    return found


def outcomes(dataset: EpisodeDataset) -> dict[int, bool]:
    """Which episodes succeeded or failed, as meta/episodes.jsonl says (LeRobot v2.x); others nobody has judged."""
    if dataset.version.startswith("v3"):
        return {}
    lines = read_jsonl(dataset.path, "meta/episodes.jsonl", "restore it")
    return {int(line["episode_index"]): bool(line["success"]) for line in lines if line.get("success") is not None}


def recorded_surprise(dataset: EpisodeDataset, index: int) -> np.ndarray | None:
    """Each row's greatest surprise (T,), 0 where none was heard; None where the data set has no such column."""
    try:
        _, table = dataset.rows(index, [SURPRISE])
        felt = np.array(table.column(SURPRISE).to_pylist(), np.float64)
    except (DatasetError, KeyError):
        return None
    return np.clip(felt.reshape(len(felt), -1)[:, -1], 0.0, 1.0)


def session_errors(policy: ChunkPolicy, sessions: Sequence[Session]) -> list[float]:
    """GR00T's metric on each session: against a teacher's labels where there are, else against what was recorded."""
    found = []
    for session in sessions:
        shown = session.demonstration
        policy.reset()
        squares = [miss[np.isfinite(miss)] ** 2 for row in range(0, len(shown), min(EVERY, policy.horizon))
                   if (miss := row_miss(policy, session, row)) is not None]  # fmt: skip
        found.append(float(np.mean(np.concatenate(squares))))
    return found


def row_miss(policy: ChunkPolicy, session: Session, row: int) -> np.ndarray | None:
    """How far (rows, A) the policy's chunk at ``row`` is off what should be done; NaN where nobody knows that."""
    shown = session.demonstration
    chunk = policy.infer(shown.observation(row)).positions
    recorded = shown.action[row : row + len(chunk)]
    goal = recorded if session.success is not False else np.full_like(recorded, np.nan)
    if shown.labels is not None:
        label = shown.labels[row, : len(goal)].astype(np.float64)
        goal = goal.copy()
        goal[: len(label)] = np.where(np.isnan(label), goal[: len(label)], label)
    return chunk[: len(goal)] - goal if np.isfinite(goal).any() else None
