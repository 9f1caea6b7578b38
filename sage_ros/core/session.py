"""What an observer of a running pipeline sees, in bounded memory, and the figures that it amounts to.

All times are ns of the system clock unless a name says otherwise. Memory is bounded whatever the session's length: the
caps stand next to what they bound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sage_ros.core.figures import POLICIES, Figures, Latency, Score, Stay
from sage_ros.core.recording import Recording
from sage_ros.core.samples import Album, Trace
from sage_ros.core.timing import SECOND
from sage_ros.core.trials import Trials

OPEN_FRAMES = 512  # frames that may still be answered
LATENCIES = 100_000  # most recent ones: 80 minutes at 20 Hz
KEPT_RECORDINGS = 3  # the last ones in full; of the others their scores
SCORES = 1000
CHANGES = 1000  # of the metabolic state
NODES = 64
IN_FLIGHT = SECOND // 4  # a frame this fresh at the end was not dropped, only not yet answered
# Whose own computing lies between a frame and its action.
PATH = ("vision_irp", "trust_attention", "sage_policy")


@dataclass
class _Open:
    """A frame between its arrival and the end of the wait for its action; either may come first."""

    seen: int | None = None
    answered: int | None = None
    working: bool = False  # a task was active when it came


class Session:
    """Fed by an observer with what it receives; :meth:`figures` may be asked for at any time."""

    def __init__(self, started: int, steps: int = 0) -> None:
        self.started, self.steps = started, steps
        self.split: Mapping[int, str] = {}  # what the student was trained on, by episode
        self.album, self.trials = Album(), Trials()
        self.confidence, self.energy = Trace(), Trace()
        self.state, self.task = "", ""
        self.frames = self.frames_working = self.actions = self.dropped = self.frames_missed = self.refused = 0
        self.waiting, self.in_flight = 0, 0  # working frames without an action yet; those left at the end
        self.remarks: list[str] = []  # what else a reader should know
        self.recent_frames: deque[int] = deque(maxlen=256)
        self.recent_actions: deque[int] = deque(maxlen=256)
        self.by_stamp: deque[float] = deque(maxlen=LATENCIES)  # ms from the header stamp, and
        self.by_receipt: deque[float] = deque(maxlen=LATENCIES)  # from the observer's receipt of the frame
        self.recordings: deque[Recording] = deque()
        self.nodes: dict[str, dict[str, float | str]] = {}
        self.marks: deque[tuple[int, str]] = deque(maxlen=100)  # when an episode began
        self.failure = ""  # what the replayer says went wrong
        self.finished: int | None = None  # when the replay ended
        self._now = started
        self._scores: deque[Score] = deque(maxlen=SCORES)
        self._open: dict[int, _Open] = {}
        self._last_stamp = 0
        self._stays: deque[Stay] = deque(maxlen=CHANGES)
        self._seconds: dict[str, float] = {}
        self._since, self._reason = started, ""
        self._busy: dict[str, tuple[int, float]] = {}

    # The stream

    def frame(self, stamp: int, received: int) -> bool:
        """A frame came; returns whether the album wants its picture."""
        self._now = received
        if stamp < self._last_stamp - SECOND:
            self._jumped_back()
        self._last_stamp = max(self._last_stamp, stamp)
        entry = self._entry(stamp)
        if entry.seen is not None:
            return False
        entry.seen, entry.working = received, bool(self.task)
        self.frames += 1
        self.frames_working += entry.working
        self.recent_frames.append(received)
        if entry.answered is not None:
            self.by_receipt.append((entry.answered - received) / 1e6)
        elif entry.working:
            self.waiting += 1
        return self.album.wants(self.frames - 1)

    def chunk(self, stamp: int, received: int, names: Sequence[str], positions: np.ndarray, rate: float) -> None:
        """An action chunk (H, A) at ``rate`` Hz came for the frame of ``stamp``. Raises JointError."""
        self._now = received
        entry = self._entry(stamp)
        if entry.answered is None:
            entry.answered = received
            self.by_stamp.append((received - stamp) / 1e6)
            if entry.seen is not None:
                self.by_receipt.append((received - entry.seen) / 1e6)
                self.waiting -= entry.working
        self.actions += 1
        self.recent_actions.append(received)
        known = [r for r in self.recordings if r.knows(stamp)]
        (known[-1] if known else self._recording(received)).add_chunk(stamp, names, positions, rate)

    def joints(self, stamp: int, received: int, names: Sequence[str], positions: np.ndarray) -> None:
        """Measured joints (S,). Raises JointError."""
        self._recording(received).add_state(stamp, names, positions)

    def demonstrated(self, stamp: int, received: int, names: Sequence[str], positions: np.ndarray) -> None:
        """The action (A,) that was demonstrated at ``stamp``. Raises JointError."""
        self._recording(received).add_action(stamp, names, positions)

    def metabolism(self, received: int, state: str, energy: float, reason: str) -> None:
        """The metabolic state, whether it changed or not."""
        self._now = received
        self.energy.add(received, energy)
        if state != self.state:
            self._close_stay(received)
            self.state, self._since, self._reason = state, received, reason

    def node(self, received: int, name: str, message: str, values: Mapping[str, str]) -> None:
        """A node's diagnostics: its numbers are kept, the newest ones."""
        if name not in self.nodes and len(self.nodes) >= NODES:
            return
        numbers = {key: number for key, value in values.items() if (number := _number(value)) is not None}
        entry: dict[str, float | str] = {**numbers, "message": message}
        busy, pid = numbers.get("busy_s"), values.get("pid", "")
        if busy is not None:
            first, spent = self._busy.setdefault(name + pid, (received, busy))
            if received > first:
                entry["busy_share"] = (busy - spent) / ((received - first) / SECOND)
        self.nodes[name] = entry

    def begin(
        self, received: int, episode: int | None, task: str = "", rows: int = 0, fps: float = 0.0, dataset: str = ""
    ) -> None:
        """A new recording: an episode was announced, or a stretch of live work begins."""
        self._now, self.finished = max(self._now, received), None
        if self.recordings and self.recordings[-1].empty:
            self.recordings.pop()
        self.recordings.append(Recording(received, episode, task, rows, fps, dataset))
        if episode is not None:
            self.marks.append((received, f"episode {episode}"))
        # One more than is drawn: the last chunks of an episode may come after the next one was announced.
        while len(self.recordings) > KEPT_RECORDINGS + 1:
            self._scores.append(self.recordings.popleft().score(self.steps))

    def first_row(self, stamp: int) -> None:
        """The stamp of the episode's row 0, by which an observer that came too late knows that it did."""
        if self.recordings:
            self.recordings[-1].first_stamp = stamp

    def end(self) -> None:
        """The episode is over; its last rows may still be on their way."""
        if self.recordings:
            self.recordings[-1].ended = True

    def finish(self, now: int) -> None:
        """Nothing more will come: settle what is open."""
        self._now = now
        open_ones = [e for e in self._open.values() if e.working and e.answered is None]
        self.in_flight = sum(e.seen is not None and now - e.seen < IN_FLIGHT for e in open_ones)
        self._settle_all()
        self.dropped -= self.in_flight
        self._close_stay(now)

    def _entry(self, stamp: int) -> _Open:
        entry = self._open.setdefault(stamp, _Open())
        if len(self._open) > OPEN_FRAMES:
            self._settle(self._open.pop(next(iter(self._open))))
        return entry

    def _settle(self, entry: _Open) -> None:
        if entry.seen is None:
            self.frames_missed += 1
        elif entry.working and entry.answered is None:
            self.dropped += 1
            self.waiting -= 1

    def _settle_all(self) -> None:
        for entry in self._open.values():
            self._settle(entry)
        self._open.clear()

    def _jumped_back(self) -> None:
        """The source's clock went back, as a looped replay's does: stamps mean other frames from now on."""
        self._settle_all()
        self._last_stamp = 0
        if self.recordings and self.recordings[-1].episode is None:
            self.begin(self._now, None)

    def _recording(self, received: int) -> Recording:
        if not self.recordings or (self.recordings[-1].episode is None and self.recordings[-1].full):
            self.begin(received, None)
        return self.recordings[-1]

    def _close_stay(self, now: int) -> None:
        if self.state:
            seconds = (now - self._since) / SECOND
            self._stays.append(Stay((self._since - self.started) / SECOND, self.state, self._reason, seconds))
            self._seconds[self.state] = self._seconds.get(self.state, 0.0) + seconds
        self._since = now

    # The figures

    def drawable(self) -> list[Recording]:
        """The last recordings in which something can be drawn."""
        return [r for r in self.recordings if r.chunks][-KEPT_RECORDINGS:]

    def latencies(self) -> tuple[str, np.ndarray]:
        """What latency is measured from, and the most recent ones in ms.

        From the frame's header stamp, where that can be a time of the observer's clock; else (simulated time, another
        machine's clock) from the observer's receipt of the frame, which leaves its way to the observer out.
        """
        by_stamp = np.array(self.by_stamp)
        if not len(by_stamp) or 0 <= np.median(by_stamp) <= 10_000:
            return "header stamp of the frame", by_stamp
        return "receipt of the frame here (its stamps are of another clock)", np.array(self.by_receipt)

    def figures(self) -> Figures:
        since, values = self.latencies()
        latency = Latency(since, len(values))
        if len(values):
            p50, p99 = np.quantile(values, (0.5, 0.99))
            latency = Latency(since, len(values), float(p50), float(p99), float(values.max()))
        own = {n: ms for n in PATH if isinstance(ms := self._of_node(n).get("own_ms_p50"), float)}
        complete = latency.p50 is not None and len(own) == len(PATH)
        scores = self.scores()
        return Figures(
            started=self.started,
            seconds=(self._now - self.started) / SECOND,
            frames_in=self.frames,
            frames_working=self.frames_working,
            frames_missed=self.frames_missed,
            actions_out=self.actions,
            dropped=self.dropped,
            in_flight=self.in_flight,
            latency_ms=latency,
            own_ms=own,
            ros_adds_ms=latency.p50 - sum(own.values()) if complete and latency.p50 is not None else None,
            steps=self.steps,
            episodes=scores,
            mean_error=_means([s for s in scores if s.policy is not None]),
            mean_by_split={split: _means([s for s in scores if s.policy is not None and s.split == split])
                           for split in sorted({s.split for s in scores if s.policy is not None and s.split})},
            metabolism=list(self._stays),
            state_seconds=dict(self._seconds),
            nodes=self.nodes,
            trials=self.trials.all(),
            notes=self._notes(scores),
        )

    def scores(self) -> list[Score]:
        """Of every episode so far, the last one included."""
        scores = [*self._scores, *(r.score(self.steps) for r in self.recordings if not r.empty)]
        return [s if s.episode is None else replace(s, split=self.split.get(s.episode, "")) for s in scores]

    def _of_node(self, name: str) -> dict[str, float | str]:
        return next((values for full, values in self.nodes.items() if full.rsplit("/", 1)[-1] == name), {})

    def _notes(self, scores: Sequence[Score]) -> list[str]:
        notes = [f"the replay failed: {self.failure}"] if self.failure else []
        notes += self.remarks
        if self.frames_missed:
            notes.append(f"{self.frames_missed} frames were answered that this observer did not receive")
        if self.refused:
            notes.append(f"{self.refused} messages could not be read and were left out")
        for s in scores:
            if s.note and (s.episode is not None or s.rows_seen):
                notes.append(f"{s.title}: {s.note}")
            elif s.policy is not None and s.chunks < s.chunks_due:
                notes.append(f"{s.title}: {s.chunks} of {s.chunks_due} chunks came; the other rows are in no figure")
            if s.policy is not None and s.rows and s.rows_seen < s.rows:
                notes.append(f"{s.title}: ended after {s.rows_seen} of {s.rows} rows")
        return notes


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _means(scores: Sequence[Score]) -> dict[str, float | None]:
    """By policy; None where one episode has no figure: a mean over fewer would not be comparable."""
    errors = {name: [getattr(score, name) for score in scores] for name in POLICIES}
    return {name: float(np.mean(e)) if e and None not in e else None for name, e in errors.items()}
