"""What ros2_control's two position controllers make of commands, as far as a simulated arm needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sage_ros.core.joints import JointError, JointLayout


@dataclass(frozen=True)
class Goal:
    """Positions (P, J) rad, due ``seconds`` (P,) after ``begin`` (ns; 0: when it is taken)."""

    positions: np.ndarray
    seconds: np.ndarray
    begin: int = 0

    @property
    def end(self) -> int:
        """When the last position is due, ns."""
        return self.begin + round(self.seconds[-1] * 1e9)


class Controller(Protocol):
    """Holds ``command`` (J,) rad, what the servos are told now."""

    command: np.ndarray

    def start(self, pose: np.ndarray) -> None:
        """Hold ``pose`` (J,) rad; what was asked before is over."""

    def take(self, goal: Goal, now: int) -> None:
        """Follow ``goal`` from ``now`` (ns) on, and none before it."""

    def update(self, now: int) -> None:
        """One control tick."""


class ForwardController:
    """forward_command_controller: the last set point acts as it comes, and is held."""

    command: np.ndarray

    def start(self, pose: np.ndarray) -> None:
        self.command = pose

    def take(self, goal: Goal, now: int) -> None:
        self.command = goal.positions[-1]

    def update(self, now: int) -> None: ...


class TrajectoryController:
    """joint_trajectory_controller for positions: straight lines, sampled at every control tick; the end is held.

    A trajectory begins at the present command, however far off its first point is; what of it is past already is
    left out.
    """

    command: np.ndarray

    def start(self, pose: np.ndarray) -> None:
        self.command = pose
        self._origin, self._seconds, self._positions = 0, np.zeros(1), pose[None]

    def take(self, goal: Goal, now: int) -> None:
        seconds = goal.seconds + ((goal.begin - now) / 1e9 if goal.begin else 0.0)
        self._origin, self._seconds, self._positions = now, seconds, goal.positions
        if seconds[0] > 0.0:
            self._seconds = np.append(0.0, seconds)
            self._positions = np.vstack([self.command, goal.positions])

    def update(self, now: int) -> None:
        elapsed = (now - self._origin) / 1e9
        self.command = np.array([np.interp(elapsed, self._seconds, column) for column in self._positions.T])


def set_point(layout: JointLayout, positions: Sequence[float]) -> Goal:
    """A forward command in the layout's order. Raises ValueError on another count and on values not finite."""
    if len(positions) != len(layout):
        raise ValueError(f"{len(positions)} positions for {len(layout)} joints: {', '.join(layout.names)}")
    values = np.array(positions, dtype=np.float64)
    _require_finite(layout, values[None])
    return Goal(values[None], np.zeros(1))


def trajectory(
    layout: JointLayout,
    names: Sequence[str],
    seconds: Sequence[float],
    positions: Sequence[Sequence[float]],
    begin: int,
) -> Goal:
    """Points by joint name, in any order of the names.

    Raises ValueError on missing and unknown joints, no points, a point without one finite position per joint, and
    times that do not rise from 0 on.
    """
    order = layout.order_from(names)
    if unknown := sorted(set(names) - set(layout.names)):
        raise JointError(f"unknown joints: {', '.join(unknown)}; there are: {', '.join(layout.names)}")
    if not positions:
        raise ValueError("the trajectory has no points")
    for index, row in enumerate(positions):
        if len(row) != len(names):
            raise ValueError(f"point {index} has {len(row)} positions for {len(names)} joints")
    values = np.array(positions, dtype=np.float64)[:, order]
    _require_finite(layout, values)
    times = np.array(seconds, dtype=np.float64)
    if times[0] < 0.0 or (np.diff(times) <= 0.0).any():
        raise ValueError(f"time_from_start must rise from 0 s on: {times.tolist()}")
    return Goal(values, times, begin)


def _require_finite(layout: JointLayout, positions: np.ndarray) -> None:
    finite = np.isfinite(positions).all(axis=0)
    if not finite.all():
        bad = ", ".join(name for name, good in zip(layout.names, finite, strict=True) if not good)
        raise ValueError(f"positions are not finite for {bad}")
