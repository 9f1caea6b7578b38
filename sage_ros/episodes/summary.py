"""What is in a data set: lengths, tasks, cameras, the joints' ranges, and which of them move."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .dataset import EpisodeDataset
from .video import codec_of

STILL = 1e-6  # a joint whose values differ by no more does not move


@dataclass(frozen=True)
class Joint:
    """One joint of the state or the action over all rows, in the data set's units."""

    name: str
    least: float
    greatest: float
    std: float

    @property
    def moves(self) -> bool:
        return self.greatest - self.least > STILL


@dataclass(frozen=True)
class Summary:
    """A data set at a glance. ``cameras`` maps a name to (height, width, codec), ``tasks`` words to episodes."""

    path: Path
    version: str
    robot_type: str
    fps: float
    lengths: tuple[int, ...]
    tasks: dict[str, int]
    cameras: dict[str, tuple[int, int, str]]
    state: tuple[Joint, ...]
    action: tuple[Joint, ...]
    groups: dict[str, dict[str, tuple[int, int]]]
    guessed: bool
    skipped: dict[int, str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path), "rows": sum(self.lengths)}


def summarise(dataset: EpisodeDataset) -> Summary:
    """Read every row (no film but the head of the first) and sum up. Raises DatasetError on what cannot be read."""
    moments = [_Moments(len(dataset.state_joints)), _Moments(len(dataset.action_joints))]
    tasks: Counter[str] = Counter()
    for episode in tqdm(dataset, "reading rows", unit=" episodes", disable=None, leave=False):
        tasks[episode.task] += 1
        moments[0].add(episode.state)
        moments[1].add(episode.action)
    cameras = {}
    for camera in dataset.cameras if dataset.video else ():
        if dataset.schema.cameras[camera].in_rows:
            height, width = dataset[0].frames(camera).shape[1:3]
            cameras[camera] = (height, width, "images")
        else:
            codec, _, height, width = codec_of(dataset[0].videos[camera].path)
            cameras[camera] = (height, width, codec)
    layouts = (dataset.state_joints, dataset.action_joints)
    return Summary(
        path=dataset.path,
        version=dataset.version,
        robot_type=dataset.robot_type,
        fps=dataset.fps,
        lengths=dataset.lengths,
        tasks=dict(tasks.most_common()),
        cameras=cameras,
        state=moments[0].joints(layouts[0].names),
        action=moments[1].joints(layouts[1].names),
        groups={kind: dict(layout.groups) for kind, layout in zip(("state", "action"), layouts, strict=True)},
        guessed=dataset.guessed,
        skipped=dataset.skipped,
    )


class _Moments:
    """Range and deviation over parts, so that not all rows are held (Chan et al. 1983, the update by parts)."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.least, self.greatest = np.full(width, np.inf), np.full(width, -np.inf)
        self.mean, self.squares = np.zeros(width), np.zeros(width)

    def add(self, rows: np.ndarray) -> None:
        mean, total = rows.mean(0), self.count + len(rows)
        apart = mean - self.mean
        self.squares += ((rows - mean) ** 2).sum(0) + apart**2 * self.count * len(rows) / total
        self.mean += apart * len(rows) / total
        self.count = total
        self.least, self.greatest = np.minimum(self.least, rows.min(0)), np.maximum(self.greatest, rows.max(0))

    def joints(self, names: tuple[str, ...]) -> tuple[Joint, ...]:
        deviation = np.sqrt(self.squares / max(self.count, 1))
        values = zip(names, self.least.tolist(), self.greatest.tolist(), deviation.tolist(), strict=True)
        return tuple(Joint(*value) for value in values)


def report(summary: Summary) -> str:
    """A summary to be read in a terminal."""
    lengths = np.array(summary.lengths)
    seconds = lengths.sum() / summary.fps
    lines = [
        f"{summary.path}",
        f"  LeRobot {summary.version}, robot {summary.robot_type}, {summary.fps:g} fps",
        f"  {len(lengths)} episodes, {lengths.sum()} rows, {seconds / 60:.1f} min; "
        f"{lengths.min()} to {lengths.max()} rows, median {np.median(lengths):g}",
        "  cameras: "
        + (", ".join(f"{n} {w}x{h} {codec}" for n, (h, w, codec) in summary.cameras.items()) or "none"),
        "  tasks:",
        *(f"    {count:>5} x  {task}" for task, count in list(summary.tasks.items())[:20]),
        *([f"    and {len(summary.tasks) - 20} more"] if len(summary.tasks) > 20 else []),
    ]
    if summary.skipped:
        lines.append(f"  left out: {len(summary.skipped)} episodes whose files are missing")
    for kind, joints in (("state", summary.state), ("action", summary.action)):
        moving = [joint for joint in joints if joint.moves]
        groups = ", ".join(f"{name} [{a}:{b}]" for name, (a, b) in summary.groups[kind].items())
        lines += [f"  {kind}: {len(joints)} joints, {len(moving)} of them move; groups {groups or 'none'}"]
        width = max(map(len, (joint.name for joint in moving)), default=0)
        for joint in moving:
            lines.append(
                f"    {joint.name:<{width}}  {joint.least:>9.4g} to {joint.greatest:>9.4g}   std {joint.std:.3g}"
            )
        still = [joint for joint in joints if not joint.moves]
        if still:
            lines.append(f"    still: {', '.join(f'{joint.name} = {joint.least:.4g}' for joint in still)}")
    if summary.guessed:
        lines.append("  there is no meta/modality.json: groups and cameras are guessed; --save-modality writes it")
    return "\n".join(lines)
