"""One interface to teachers: an episode in, action chunks by joint names out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from sage_ros.core.joints import JointLayout
from sage_ros.episodes.dataset import Episode, EpisodeDataset
from sage_ros.policy.normalization import chunks
from sage_ros.teacher.modality import Interface, TeacherError


class Teacher(Protocol):
    """Anything whose action chunks a student can learn from.

    ``identity`` says which teacher it is, so that labels of another are never taken for its own. A chunk is
    (horizon, len(joints)) in the data set's units at its rate; row 0 is the command for the observation's own row.
    """

    @property
    def identity(self) -> str: ...
    @property
    def horizon(self) -> int: ...
    @property
    def joints(self) -> JointLayout:
        """The joints that it commands, in its chunks' order, and their groups."""

    def label(self, episode: Episode, rows: Sequence[int]) -> Iterator[np.ndarray]:
        """The chunks at these rows of an episode, one by one, (H, A) float64. Raises TeacherError."""


class Demonstrations:
    """The recorded actions; the last one repeats beyond an episode's end."""

    identity = "demonstrations"

    def __init__(self, dataset: EpisodeDataset, horizon: int = 16) -> None:
        self.horizon, self.joints = horizon, dataset.action_joints

    def label(self, episode: Episode, rows: Sequence[int]) -> Iterator[np.ndarray]:
        return iter(chunks(episode.action, self.horizon)[list(rows)])


@dataclass(frozen=True)
class Gr00t:
    """A GR00T policy, wherever it runs. ``ask`` maps an observation to arrays by action key; ``restart`` begins an
    episode. ``flat``: it takes and gives maps with prefixed keys, as N1.5 does."""

    identity: str
    interface: Interface
    flat: bool
    ask: Callable[[dict[str, Any]], Mapping[str, Any]]
    restart: Callable[[], object]


class Gr00tTeacher:
    """GR00T's chunks for a data set's episodes.

    ``groups`` are the joint groups to take (none: all that it commands); ``rename`` maps its names of cameras and
    joint groups to the data set's; ``image_size`` (height, width) is what frames are resized to before they are sent.
    Raises TeacherError where it needs or commands what the data set has not.
    """

    def __init__(
        self,
        gr00t: Gr00t,
        dataset: EpisodeDataset,
        groups: Sequence[str] = (),
        rename: Mapping[str, str] | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        self._gr00t, self._size = gr00t, image_size
        interface, names = gr00t.interface, dict(rename or {})
        unknown = set(names) - {*interface.video.keys, *interface.state.keys, *interface.action.keys}
        if unknown:
            raise TeacherError(f"the teacher has no {', '.join(sorted(unknown))} to rename; it has: {_told(interface)}")
        self._ours = {key: names.get(key, key) for m in (interface.video, interface.state, interface.action)
                      for key in m.keys}  # fmt: skip
        commanded = [self._ours[key] for key in interface.action.keys]
        wanted = list(groups) or commanded
        _require("cameras", [self._ours[key] for key in interface.video.keys], dataset.cameras)
        _require("state groups", [self._ours[key] for key in interface.state.keys], dataset.state_joints.groups)
        _require("action groups", wanted, dataset.action_joints.groups)
        if missing := [group for group in wanted if group not in commanded]:
            raise TeacherError(f"the teacher does not command {', '.join(missing)}; it commands {', '.join(commanded)}")
        self._widths = {g: end - start for g, (start, end) in dataset.action_joints.groups.items() if g in wanted}
        self._keys = [key for key in interface.action.keys if self._ours[key] in wanted]
        order = [self._ours[key] for key in self._keys]
        columns = dataset.action_joints.columns(order)
        ends = np.cumsum([self._widths[group] for group in order]).tolist()
        spans = {group: (end - self._widths[group], end) for group, end in zip(order, ends, strict=True)}
        self.joints = JointLayout(tuple(dataset.action_joints.names[column] for column in columns), spans)
        self.horizon = interface.horizon
        taken = "".join(f" {key}={self._ours[key]}" for key in sorted(self._ours) if self._ours[key] != key)
        resized = f" at {image_size}" if image_size else ""
        self.identity = f"{gr00t.identity} groups {','.join(order)}{taken}{resized}"

    def label(self, episode: Episode, rows: Sequence[int]) -> Iterator[np.ndarray]:
        frames = {key: episode.frames(self._ours[key]) for key in self._gr00t.interface.video.keys}
        self._gr00t.restart()
        for row in rows:
            yield self.chunk(self._gr00t.ask(self.observation(episode, frames, row)))

    def observation(self, episode: Episode, frames: Mapping[str, np.ndarray], row: int) -> dict[str, Any]:
        """What GR00T is told at a row; rows before the first are the first, as in GR00T's own loader."""
        interface, flat = self._gr00t.interface, self._gr00t.flat
        seen = {key: self._resized(film[_past(row, interface.video.delta_indices)]) for key, film in frames.items()}
        state = {
            key: episode.state[np.ix_(_past(row, interface.state.delta_indices),
                                      episode.state_joints.columns([self._ours[key]]))]
            for key in interface.state.keys
        }  # fmt: skip
        if flat:
            told: dict[str, Any] = {f"video.{key}": film for key, film in seen.items()}
            told |= {f"state.{key}": values for key, values in state.items()}
            return told | {key: [episode.task] for key in interface.language.keys}
        return {
            "video": {key: film[None] for key, film in seen.items()},
            "state": {key: values[None].astype(np.float32) for key, values in state.items()},
            "language": {key: [[episode.task]] for key in interface.language.keys},
        }

    def chunk(self, reply: Mapping[str, Any]) -> np.ndarray:
        """The chunk (H, A) float64 of a reply. Raises TeacherError unless it is finite numbers of the right shape."""
        prefix = "action." if self._gr00t.flat else ""
        parts = []
        for key in self._keys:
            if prefix + key not in reply:
                raise TeacherError(f"the teacher's reply has no '{prefix}{key}'; it has: {', '.join(map(str, reply))}")
            parts.append(self._checked(prefix + key, reply[prefix + key], self._widths[self._ours[key]]))
        return np.concatenate(parts, axis=1)

    def _checked(self, key: str, values: Any, width: int) -> np.ndarray:
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
            what = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
            raise TeacherError(f"the teacher's '{key}' is {what}, not an array of floating-point numbers")
        shapes: list[tuple[int, ...]] = [(1, self.horizon, width)]
        if self._gr00t.flat:  # earlier N1.5 squeezes every axis of length 1
            shapes += [(self.horizon, width), tuple(side for side in (self.horizon, width) if side > 1)]
        if values.shape not in shapes:
            raise TeacherError(f"the teacher's '{key}' is {values.shape}, but must be {shapes[0]} (1, rows, joints)")
        if not np.isfinite(values).all():
            raise TeacherError(f"the teacher's '{key}' is not finite")
        return values.reshape(self.horizon, width).astype(np.float64)

    def _resized(self, film: np.ndarray) -> np.ndarray:
        if self._size is None or film.shape[1:3] == self._size:
            return film
        return np.stack([cv2.resize(frame, self._size[::-1], interpolation=cv2.INTER_AREA) for frame in film])


def _past(row: int, offsets: Sequence[int]) -> np.ndarray:
    return np.maximum(row + np.array(offsets), 0)


def _require(what: str, needed: Sequence[str], there: Sequence[str] | Mapping[str, Any]) -> None:
    if missing := [name for name in needed if name not in there]:
        raise TeacherError(
            f"the teacher has the {what} {', '.join(missing)}, which the data set has not; it has: "
            f"{', '.join(there) or 'none'}. Name what stands for them (--rename THEIRS=OURS), or take fewer (--groups)"
        )


def _told(interface: Interface) -> str:
    return "; ".join(f"{name}: {', '.join(entry['modality_keys'])}" for name, entry in interface.to_dict().items())
