"""What a robot did lately, as a policy that remembers is told: the same from recorded rows and from live topics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sage_ros.core.chunks import Past
from sage_ros.core.timing import SECOND, StampBuffer

COMMANDS, STATES = 16, 4  # rows back


def nothing_known(actions: int, states: int) -> Past:
    """The past of a robot of which nobody knows anything, of this many commanded and measured joints."""
    return Past(np.full((COMMANDS + 1, actions), np.nan), np.full((STATES + 1, states), np.nan), 0.0)


def history(
    state: np.ndarray, action: np.ndarray, rows: np.ndarray, start: np.ndarray | int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Of an episode's ``state`` (T, S) and ``action`` (T, A): what was known at each of ``rows`` (R,).

    Of several episodes end to end, where ``start`` (R,) says at which row each one's begins.

    The commands before the row (R, COMMANDS + 1, A) and the states up to it (R, STATES + 1, S), newest first.
    """
    found, first = [], np.reshape(start, (-1, 1))
    for values, newest in ((action, rows[:, None] - 1 - np.arange(COMMANDS + 1)),
                           (state, rows[:, None] - np.arange(STATES + 1))):  # fmt: skip
        known = np.asarray(values, dtype=np.float64)[np.maximum(newest, first)]
        found.append(np.where((newest >= first)[..., None], known, np.nan))
    return found[0], found[1]


def recall(
    commands: StampBuffer[np.ndarray], states: StampBuffer[np.ndarray], stamp: int, began: int, rate: float,
    widths: tuple[int, int], tolerances: tuple[int, int],
) -> Past:
    """The same at ``stamp`` (ns) of a task that ``began`` (ns), from live buffers of A and S wide (``widths``) values.

    A row is the newest command strictly before its moment, or the newest state not after it, no more than its
    tolerance (ns) older; what was before the task began does not count.
    """
    past = nothing_known(*widths)
    for find, values, tolerance in ((commands.before, past.commands, tolerances[0]),
                                    (states.at, past.states, tolerances[1])):  # fmt: skip
        for row in range(len(values)):
            moment = stamp - round(row * SECOND / rate)
            found = find(moment, tolerance) if moment >= began else None
            if found is None:
                break
            values[row] = found
    return replace(past, elapsed=(stamp - began) / SECOND)
