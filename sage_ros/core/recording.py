"""What an observer keeps of one episode, and how far the policy's chunks were from what was demonstrated."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sage_ros.core.figures import Score
from sage_ros.core.joints import JointLayout

MAX_ROWS = 12_000  # rows kept of one recording: 10 minutes at 20 Hz
EARLY = 16  # chunks kept while their row has not come


class Recording:
    """One episode of a replay, or a stretch of live work (``episode`` None, no demonstration).

    Row t is the t-th demonstrated action; a chunk belongs to the row whose stamp it carries. Kept are all rows up to
    ``MAX_ROWS`` and the chunks at every horizon-th row; of live work, one chunk per horizon of time. ``began`` is in
    ns. ``first_stamp`` is that of row 0 as the source tells it, where it does. Values in the topics' units (rad).
    """

    def __init__(
        self, began: int, episode: int | None = None, task: str = "", rows: int = 0, fps: float = 0.0, dataset: str = ""
    ) -> None:
        self.began, self.episode, self.task = began, episode, task
        self.rows, self.fps, self.dataset = rows, fps, dataset
        self.first_stamp: int | None = None
        self.ended = False
        self.state_names: tuple[str, ...] = ()
        self.action_names: tuple[str, ...] = ()
        self.chunk_names: tuple[str, ...] = ()
        self.state_stamps: list[int] = []
        self.states: list[np.ndarray] = []
        self.action_stamps: list[int] = []
        self.actions: list[np.ndarray] = []
        self.chunks: dict[int, np.ndarray] = {}  # stamp -> (H, A), at the inference points of the metric
        self.rows_seen = 0
        self.horizon, self.rate = 0, 0.0  # rows and Hz of the chunks
        self._row_of: dict[int, int] = {}
        self._early: dict[int, np.ndarray] = {}

    @property
    def empty(self) -> bool:
        return not (self.rows_seen or self.states or self.chunks or self._early)

    @property
    def full(self) -> bool:
        return max(len(self.states), len(self.actions)) >= MAX_ROWS

    def knows(self, stamp: int) -> bool:
        """Whether a demonstrated row has this stamp."""
        return stamp in self._row_of

    def add_state(self, stamp: int, names: Sequence[str], positions: np.ndarray) -> None:
        """Measured joints (S,). Raises JointError if a joint of the first message is missing."""
        self.state_names = self.state_names or tuple(names)
        positions = _ordered(self.state_names, names, positions)
        if not self.full and (not self.state_stamps or stamp > self.state_stamps[-1]):
            self.state_stamps.append(stamp)
            self.states.append(positions)

    def add_action(self, stamp: int, names: Sequence[str], positions: np.ndarray) -> None:
        """The next demonstrated row (A,). Raises JointError if a joint of the first row is missing."""
        if stamp in self._row_of:
            return
        self.action_names = self.action_names or tuple(names)
        positions = _ordered(self.action_names, names, positions)
        self.rows_seen += 1
        if len(self.actions) >= MAX_ROWS:
            return
        self._row_of[stamp] = len(self.actions)
        self.action_stamps.append(stamp)
        self.actions.append(positions)
        if stamp in self._early:
            self._place(stamp, self._early.pop(stamp))

    def add_chunk(self, stamp: int, names: Sequence[str], positions: np.ndarray, rate: float) -> None:
        """A chunk (H, A) at ``rate`` Hz for the frame of ``stamp``. Raises JointError as :meth:`add_action`."""
        self.chunk_names = self.chunk_names or tuple(names)
        positions = _ordered(self.chunk_names, names, positions)
        if not self.horizon:
            self.horizon, self.rate = len(positions), rate
        if self.episode is not None or self.actions:
            self._place(stamp, positions)
        elif not self.full and self._is_due(stamp):
            self.chunks[stamp] = positions

    def _place(self, stamp: int, positions: np.ndarray) -> None:
        row = self._row_of.get(stamp)
        if row is None:
            self._early[stamp] = positions
            if len(self._early) > EARLY:
                del self._early[next(iter(self._early))]
        elif row % self.horizon == 0 and len(positions) == self.horizon:
            self.chunks[stamp] = positions

    def _is_due(self, stamp: int) -> bool:
        """Without rows: whether a horizon, give or take half a row, has passed since the last chunk kept."""
        last = next(reversed(self.chunks), None)
        return last is None or stamp - last > (self.horizon - 0.5) / self.rate * 1e9

    def pieces(self) -> list[tuple[int, np.ndarray]]:
        """The kept chunks with the rows that they were inferred at, in order of rows."""
        return sorted(((self._row_of[s], c) for s, c in self.chunks.items() if s in self._row_of), key=lambda p: p[0])

    def score(self, steps: int = 0) -> Score:
        """The metric over the first ``steps`` rows (0: all), a chunk every horizon from row 0.

        Row j of a chunk is compared with the action demonstrated j rows later; rows for which no chunk came are
        left out of every policy's figure. Hold state repeats the state at the chunk's row and needs every commanded
        joint to be measured; last action repeats the action before that row, and at row 0, where there is none, holds.
        """
        limit = min(steps or len(self.actions), len(self.actions))
        pieces = [(row, chunk) for row, chunk in self.pieces() if row < limit]
        due = -(-limit // self.horizon) if self.horizon else 0
        known = Score(self.episode, self.task, self.rows, self.rows_seen, len(pieces), due, note=self._obstacle())
        names = [name for name in self.chunk_names if name in self.action_names]
        if known.note or not pieces or not names:
            reason = "the chunks command none of the demonstrated joints" if pieces else "no chunk for its rows came"
            return replace(known, note=known.note or reason)
        columns = [self.chunk_names.index(name) for name in names]
        actions = np.array(self.actions)[:, [self.action_names.index(name) for name in names]]
        rows = [row for row, _ in pieces]
        held = self._held(names, rows)
        targets = [actions[row : min(row + self.horizon, limit)] for row in rows]
        policy = _squared_error([chunk[:, columns] for _, chunk in pieces], targets)
        hold = _squared_error([held.get(row) for row in rows], targets)
        last = _squared_error([actions[row - 1] if row > 0 else held.get(row) for row in rows], targets)
        left_out = [name for name in self.chunk_names if name not in names]
        return replace(
            known,
            policy=None if policy is None else float(policy.mean()),
            hold_state=None if hold is None else float(hold.mean()),
            last_action=None if last is None else float(last.mean()),
            joints={} if policy is None else dict(zip(names, policy.tolist(), strict=True)),
            note=f"not demonstrated, so not compared: {', '.join(left_out)}" if left_out else "",
        )

    def _obstacle(self) -> str:
        """Why chunks and rows cannot be compared; empty: they can."""
        if not self.actions:
            return "no demonstrated action was seen"
        if self.first_stamp is not None and self.first_stamp != self.action_stamps[0]:
            return "not watched from its first row on: rows cannot be matched"
        if self.ended and self.rows and self.rows_seen != self.rows:
            return f"{self.rows_seen} of {self.rows} rows were seen: rows cannot be matched"
        if self.fps and self.rate and abs(self.rate - self.fps) > 1e-3 * self.fps:
            return f"chunks are at {self.rate:g} Hz, the episode at {self.fps:g} Hz: rows do not match"
        return ""

    def _held(self, names: Sequence[str], rows: Sequence[int]) -> dict[int, np.ndarray]:
        """The state at each of ``rows``, as the commanded joints ``names``; nothing where a joint is not measured."""
        if not set(names) <= set(self.state_names):
            return {}
        columns = [self.state_names.index(name) for name in names]
        found = {row: bisect_right(self.state_stamps, self.action_stamps[row]) - 1 for row in rows}
        return {row: self.states[at][columns] for row, at in found.items() if at >= 0}


def _squared_error(guesses: Sequence[np.ndarray | None], targets: Sequence[np.ndarray]) -> np.ndarray | None:
    """Mean squared error by joint, (A,), of chunks (H, A) or of poses (A,) held; None if one is missing."""
    known = [guess for guess in guesses if guess is not None]
    if len(known) < len(targets):
        return None
    errors = [np.atleast_2d(guess)[: len(target)] - target for guess, target in zip(known, targets, strict=True)]
    return (np.concatenate(errors) ** 2).mean(axis=0)


def _ordered(known: tuple[str, ...], names: Sequence[str], positions: np.ndarray) -> np.ndarray:
    """``positions`` (..., J) of the joints ``names`` in the order ``known``. Raises JointError."""
    return positions if tuple(names) == known else positions[..., JointLayout(known).order_from(names)]
