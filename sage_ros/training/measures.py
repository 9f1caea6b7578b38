"""What can be said of predicted chunks beside the mean squared error: grippers, smoothness, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from sage_ros.core.joints import JointError
from sage_ros.training.openloop import Demonstration

NEAR, SHARE = 0.1, 0.9  # two-valued: this share of the rows lies within this share of the range from either end
CAP = 40  # ticks: a switch that is further off was missed
LEVELS = (0.5, 0.9)  # of the intervals whose coverage is reported


@dataclass(frozen=True)
class Gripper:
    """Action joints that open and close together: one bit.

    The bit is true on the side that is commanded more rarely in the training rows, which for most tasks is the closed
    one: a hand is open on the way to the object and after it let go.
    """

    name: str
    columns: np.ndarray  # (K,) int64, of the action
    off: np.ndarray  # (K,) the positions on the more frequent side
    on: np.ndarray  # (K,) the positions on the rarer side

    def bits(self, action: np.ndarray) -> np.ndarray:
        """Bool (T,) of actions (T, A): on which side of the middle the joints are, in the mean."""
        return ((action[:, self.columns] - self.off) / (self.on - self.off)).mean(axis=1) > 0.5


def find_grippers(training: Sequence[Demonstration], names: Sequence[str] = ()) -> list[Gripper]:
    """The grippers among the action joints: the joints ``names``, or else all that are nearly two-valued.

    Joints whose bits never differ are one gripper. Raises JointError on unknown names and on joints that never move.
    """
    layout, action = training[0].action_joints, np.concatenate([d.action for d in training])
    low, high = action.min(axis=0), action.max(axis=0)
    wide = high - low > 1e-6 * np.maximum(1.0, np.abs(high))
    if unknown := [name for name in names if name not in layout.names]:
        raise JointError(f"no action joint {', '.join(unknown)}; there are: {', '.join(layout.names)}")
    if still := [name for name in names if not wide[layout.names.index(name)]]:
        raise JointError(f"{', '.join(still)} never moves in these episodes: a gripper must open and close")
    place = (action - low) / np.where(wide, high - low, 1.0)
    two_valued = wide & ((np.minimum(place, 1 - place) < NEAR).mean(axis=0) >= SHARE)
    found = [layout.names.index(name) for name in names] if names else list(np.flatnonzero(two_valued))
    together: list[tuple[np.ndarray, list[int]]] = []  # (bit of every row, columns)
    for column in found:
        bit = place[:, column] > 0.5
        bit = bit if bit.mean() <= 0.5 else ~bit
        for known, same in together:
            if np.array_equal(known, bit):
                same.append(int(column))
                break
        else:
            together.append((bit, [int(column)]))
    grippers = []
    for rare, members in together:
        columns = np.array(members)
        rare_high = np.array([(place[rare, column] > 0.5).all() for column in columns])
        on, off = np.where(rare_high, high[columns], low[columns]), np.where(rare_high, low[columns], high[columns])
        first, rest = layout.names[columns[0]], len(columns) - 1
        grippers.append(Gripper(f"{first} and {rest} more" if rest else first, columns, off, on))
    return grippers


@dataclass(frozen=True)
class Switching:
    """How well a gripper's bit was foretold in one episode. Rows where both are true, only one or the other is."""

    true: int  # rows on in both
    false: int  # rows on in the prediction only
    missing: int  # rows on in the demonstration only
    late: list[int]  # per demonstrated switch that was met: ticks from it to the predicted one, < 0: too early
    missed: int  # demonstrated switches without a predicted one of their direction within the cap
    extra: int  # predicted switches without a demonstrated one


def switches(bits: np.ndarray, rising: bool) -> np.ndarray:
    """Rows (int64) at which the bit is another than in the row before, in one direction."""
    before, after = bits[:-1], bits[1:]
    return 1 + np.flatnonzero(after & ~before if rising else before & ~after)


def compare_bits(predicted: np.ndarray, demonstrated: np.ndarray, cap: int = CAP) -> Switching:
    """Compare bits (T,). Each demonstrated switch is met by the nearest predicted one of its direction, within ``cap``
    ticks; a predicted switch can meet only one, the nearest pairs first."""
    late: list[int] = []
    missed = extra = 0
    for rising in (True, False):
        there, said = switches(demonstrated, rising), switches(predicted, rising)
        apart = said[None, :] - there[:, None]
        pairs = sorted((abs(int(apart[i, j])), i, j) for i, j in np.ndindex(*apart.shape) if abs(apart[i, j]) <= cap)
        met: set[int] = set()
        used: set[int] = set()
        for _, i, j in pairs:
            if i not in met and j not in used:
                met.add(i)
                used.add(j)
                late.append(int(apart[i, j]))
        missed += len(there) - len(met)
        extra += len(said) - len(used)
    return Switching(
        int((predicted & demonstrated).sum()), int((predicted & ~demonstrated).sum()),
        int((~predicted & demonstrated).sum()), late, missed, extra,
    )  # fmt: skip


def f1(found: Sequence[Switching]) -> float | None:
    """2 TP / (2 TP + FP + FN) over all rows of all episodes; None where the bit is never on."""
    true, wrong = sum(s.true for s in found), sum(s.false + s.missing for s in found)
    return 2 * true / (2 * true + wrong) if true + wrong else None


def timing_error(found: Sequence[Switching], cap: int = CAP) -> float | None:
    """Mean ticks from demonstrated to predicted switch, a missed one counting as ``cap``; None without switches."""
    off = [abs(ticks) for s in found for ticks in s.late] + [cap] * sum(s.missed for s in found)
    return sum(off) / len(off) if off else None


def boundary_jumps(chunks: np.ndarray) -> np.ndarray:
    """Differences (C - 1, A) between the last row of a chunk and the first of the next, of chunks (C, H, A)."""
    return chunks[1:, 0] - chunks[:-1, -1]


def roughness(chunks: np.ndarray, rate: float) -> tuple[float | None, float | None]:
    """Mean absolute acceleration (rad/s²) and jerk (rad/s³) inside chunks (C, H, A), by differences of their rows.

    No boundary is counted. None where the chunks are too short (3 rows for the acceleration, 4 for the jerk).
    """
    second, third = (
        float(np.abs(np.diff(chunks, order, axis=1)).mean()) * rate**order if chunks.shape[1] > order else None
        for order in (2, 3)
    )
    return second, third


def interval(deviation: np.ndarray, level: float) -> np.ndarray:
    """Half the width of the central interval that a normal variable hits with probability ``level``."""
    return NormalDist().inv_cdf(0.5 + level / 2) * deviation


def coverage(error: np.ndarray, deviation: np.ndarray, level: float) -> float:
    """Share of errors inside of their central ``level`` interval."""
    return float((np.abs(error) <= interval(deviation, level)).mean())
