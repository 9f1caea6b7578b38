"""Training rows as the network takes them, and noisy batches of them: held in memory, or read as they are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sage_ros.core.history import history
from sage_ros.policy.config import StudentConfig
from sage_ros.policy.motion import carried_on, lag_columns, measured_columns, motion_features, motion_scale
from sage_ros.policy.normalization import STAYS, Normalization, normalise
from sage_ros.policy.student import task_features
from sage_ros.training.openloop import Demonstration
from sage_ros.training.settings import CloningConfig
from sage_ros.training.tokens import COPIES

PART = 2**16  # rows that statistics are taken of at a time


@dataclass(frozen=True)
class Replay:
    """What a training that goes on from another student does differently; R are the rows of all its demonstrations."""

    start: Mapping[str, Tensor]  # that student's weights
    norm: Normalization  # and what its inputs and answers are normalised with
    chances: np.ndarray  # (R,) of being drawn, adding up to 1
    weights: np.ndarray  # (R,) of a row's loss
    own: np.ndarray  # (R,) bool: whether what was recorded may be learned from, or a teacher's labels alone


class Columns(NamedTuple):
    """What is known of B rows, normalised float32."""

    tokens: Tensor  # (B, N, F); (B, 0, 0) for a blind student
    state: Tensor  # (B, S)
    command: Tensor  # (B, A)
    fresh: Tensor  # (B, 1) 1.0 where there is no last command
    task: Tensor  # (B, words)
    motion: Tensor  # (B, M)
    target: Tensor  # (B, rows, A) from the last command
    carried: Tensor  # (B, rows, A) where its velocity would lead
    high: Tensor  # (B, rows, bits) 1.0 where a bit is high
    weight: Tensor  # (B, 1 or rows, 1 or A) of what is to be answered in the loss


class Targets(NamedTuple):
    """What a batch of B rows should have been answered."""

    offsets: Tensor  # (B, rows, A), normalised, from the carried-on command
    high: Tensor  # (B, rows, bits) 1.0 where the bit is high
    odds: Tensor  # (B, 1, bits) log-odds before anything is learned
    weight: Tensor  # (B, 1 or rows, 1 or A) in the loss


class Episodes:
    """Demonstrations end to end: what belongs to any of their rows, without holding all of it at once."""

    def __init__(
        self, training: Sequence[Demonstration], student: StudentConfig, replay: Replay | None = None
    ) -> None:
        self.student, self._tokens, self._replay = student, [d.tokens for d in training], replay
        lengths = [len(d) for d in training]
        ends = np.cumsum(lengths)
        self.start, self.last = (np.repeat(x, lengths) for x in (ends - lengths, ends - 1))
        self.episode = np.repeat(np.arange(len(lengths)), lengths)
        self.rate = np.array([d.rate for d in training])
        self.state, self.action = (np.concatenate(x) for x in ([d.state for d in training],
                                                               [d.action for d in training]))  # fmt: skip
        self.task = np.stack([task_features(d.task, student.words) for d in training])
        self._ahead = np.array([*range(student.horizon), *student.ahead])
        self._labels = self._read_labels(training)
        self.norm = replay.norm if replay else Normalization.fit(
            [d.state for d in training], [d.action for d in training], self._tokens, student.horizon,
            motion_scale(student, (motion for _, _, motion in self._motions())), student.bits,
        )  # fmt: skip
        self.moving = self._moving()

    def __len__(self) -> int:
        return len(self.state)

    def _read_labels(self, training: Sequence[Demonstration]) -> np.ndarray | None:
        """(R, rows, A) float32: what a teacher would command, NaN where it was not asked; None without any labels."""
        if all(d.labels is None for d in training):
            return None
        found = np.full((len(self), len(self._ahead), self.action.shape[1]), np.nan, np.float32)
        for place, d in enumerate(training):
            if d.labels is not None:
                reached = self._ahead < d.labels.shape[1]
                found[np.ix_(self.episode == place, reached)] = d.labels[:, self._ahead[reached]]
        return found

    @property
    def labelled(self) -> np.ndarray:
        """The rows (L,) that a teacher has labelled."""
        return np.flatnonzero(np.isfinite(self._labels[:, 0, 0])) if self._labels is not None else np.arange(0)

    def _motions(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for first in range(0, len(self), PART):
            yield self._motion(np.arange(first, min(first + PART, len(self))))

    def _motion(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Commands, states and motion features that were known at ``rows``."""
        commands, states = history(self.state, self.action, rows, self.start[rows])
        elapsed = (rows - self.start[rows]) / self.rate[self.episode[rows]]
        return commands, states, motion_features(self.student, commands, states, elapsed)

    def _moving(self) -> np.ndarray:
        """Which motion features (M,) ever change."""
        ends = [(motion.min(axis=0), motion.max(axis=0)) for _, _, motion in self._motions()]
        return np.max([high for _, high in ends], axis=0) > np.min([low for low, _ in ends], axis=0)

    def columns(self, rows: np.ndarray) -> Columns:
        """What belongs to ``rows``, on the CPU."""
        norm, student = self.norm, self.student
        commands, _, motion = self._motion(rows)
        fresh = np.isnan(commands[:, 0]).any(axis=1, keepdims=True)
        command = np.where(fresh, norm.first_command, commands[:, 0])
        goal = self.action[np.minimum(rows[:, None] + self._ahead, self.last[rows, None])]
        if self._labels is not None:
            labels = self._labels[rows]
            goal = np.where(np.isnan(labels), goal, labels)
        bits = list(student.bits)
        middle = (norm.action_low + norm.action_high)[bits] / 2
        inputs = normalise(norm, self._seen(rows), self.state[rows], command, fresh, self.task[self.episode[rows]],
                           motion)  # fmt: skip
        targets = ((goal - command[:, None]) / norm.offset_std, carried_on(student, commands) / norm.offset_std,
                   goal[..., bits] > middle, self._weight(rows))  # fmt: skip
        return Columns(*(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)) for x in (*inputs, *targets)))

    def _weight(self, rows: np.ndarray) -> np.ndarray:
        """What each answer counts in the loss: nothing where a failure has no label."""
        if self._replay is None:
            return np.ones((len(rows), 1, 1))
        weight, own = (x[rows][:, None, None] for x in (self._replay.weights, self._replay.own))
        taught = np.isfinite(self._labels[rows]) if self._labels is not None else False
        return weight * (own | taught)

    def _seen(self, rows: np.ndarray) -> np.ndarray:
        """Token maps (R, N, F), from memory or from the disk that they are mapped from; none for a blind student."""
        if not self.student.queries:
            return np.zeros((len(rows), 0, self.student.features), np.float32)
        found = np.empty((len(rows), *self._tokens[0].shape[1:]), np.float32)
        for place in np.unique(self.episode[rows]):
            here = self.episode[rows] == place
            local = torch.from_numpy(rows[here] - self.start[rows[here]])
            # torch, unlike numpy, lets other threads work while a page is read
            found[here] = torch.from_numpy(self._tokens[place]).index_select(0, local).numpy()
        return found

    def row_bytes(self) -> int:
        """Memory that a row takes once it is ready for the network."""
        student = self.student
        seen = student.tokens * student.features if student.queries else 0
        answer = len(self._ahead) * (2 * student.action_dim + len(student.bits))
        return 4 * (seen + student.state_dim + student.action_dim + 1 + student.words + student.motion + answer)


class Rows:
    """Batches of training rows on one device, with noise.

    All rows are held ready on the device where they fit into ``memory`` (bytes; None: always); else those of the next
    batch are put together, their tokens read from disk, while the network works on this one. Batches are the same.
    ``labelled_only`` draws no row that no teacher has labelled; ``replay`` says which are drawn how often, and what
    they count. Raises ValueError where there is none.
    """

    def __init__(
        self, training: Sequence[Demonstration], student: StudentConfig, config: CloningConfig, device: torch.device,
        memory: int | None = None, seed: int | None = None, replay: Replay | None = None,
    ) -> None:
        self._episodes = episodes = Episodes(training, student, replay)
        self.norm = norm = episodes.norm
        self._choice = episodes.labelled if config.labelled_only else np.arange(len(episodes))
        self._reach: Tensor | None = None
        if replay:
            self._choice = np.flatnonzero(replay.chances > 0)
            self._reach = torch.from_numpy(np.cumsum(replay.chances[self._choice])).to(device)
        if not len(self._choice):
            raise ValueError("no training row is labelled: leave --labelled-only out, or label training episodes")
        self.config, self.student, self.device = config, student, device
        self.bits = list(student.bits)

        def on(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)

        span = norm.span(self.bits)
        self.to_share = [on(x) for x in (norm.command_std[self.bits] / span,
                                         (norm.command_mean - norm.action_low)[self.bits] / span)]  # fmt: skip
        self.per_offset = on(norm.offset_std / norm.command_std)
        self.first = on((norm.first_command - norm.command_mean) / norm.command_std)
        self.analogue = on(student.analogue)
        self.moving = on(episodes.moving)
        # Where the last command is off the path, so is the lag behind it; what is forgotten has no motion.
        self.lag = lag_columns(student)
        if student.history:
            self.lag_per_command = on((measured_columns(student) >= 0) * norm.command_std / norm.motion_std[self.lag])
        self.bytes = len(self._choice) * episodes.row_bytes()
        self.streamed = memory is not None and COPIES * self.bytes > memory
        self._reader = ThreadPoolExecutor(1, "rows") if self.streamed else None
        self._ready: tuple[int, Tensor, Future[Columns]] | None = None
        if not self.streamed:
            self._held = Columns(*(column.to(device) for column in episodes.columns(self._choice)))
        self.random = torch.Generator(device).manual_seed(config.seed if seed is None else seed)

    @property
    def count(self) -> int:
        """How many rows there are to draw from."""
        return len(self._choice)

    def batch(self, n: int) -> tuple[tuple[Tensor, ...], Targets]:
        """``n`` rows that are drawn anew, with noise: the inputs and the answers."""
        config, student = self.config, self.student
        tokens, state, command, fresh, task, motion, target, carried, high, weight = self._draw(n)
        if student.queries:
            tokens = tokens + config.token_noise * self._normal(tokens.shape)
            tokens = tokens * (self._uniform((*tokens.shape[:2], 1)) >= config.token_dropout)
        state = state + config.pose_noise * self._normal(state.shape)
        # A command that is off the demonstrated path, or forgotten: the chunk still has to reach the demonstrated one.
        moved = config.command_noise * self.per_offset * self._normal(command.shape) * self.analogue * (1.0 - fresh)
        forget = (self._uniform(fresh.shape) < config.command_dropout) & (fresh == 0)
        moved = torch.where(forget, self.first - command, moved)
        fresh = torch.where(forget, torch.ones_like(fresh), fresh)
        command = command + moved
        target = target - (moved / self.per_offset)[:, None] - carried * ~forget[:, None]
        share = command[:, self.bits] * self.to_share[0] + self.to_share[1]
        odds = STAYS * (2.0 * share.clamp(0.0, 1.0) - 1.0)
        if student.history:
            motion[:, self.lag] += moved * self.lag_per_command
            motion[:, : self.lag.stop] *= ~forget
        motion = motion + config.motion_noise * self.moving * self._normal(motion.shape)
        command = command + config.command_blur * self.analogue * self._normal(command.shape)
        task = task * (self._uniform(task.shape) >= config.word_dropout)
        if self._reader:
            self._ready = self._ask(n)
        return (tokens, state, command, fresh, task, motion), Targets(target, high, odds[:, None], weight)

    def random_state(self) -> Tensor:
        """Where the generator stands between two batches, uint8."""
        return self._ready[1] if self._ready else self.random.get_state()

    def set_random_state(self, state: Tensor) -> None:
        self._ready = None
        self.random.set_state(state)

    def close(self) -> None:
        if self._reader:
            self._reader.shutdown()

    def _draw(self, n: int) -> Columns:
        if not self._reader:
            pick = self._pick(n)
            return Columns(*(column[pick] for column in self._held))
        asked = self._ready if self._ready and self._ready[0] == n else None
        if self._ready and not asked:
            self.random.set_state(self._ready[1])
        return Columns(*(column.to(self.device) for column in (asked or self._ask(n))[2].result()))

    def _ask(self, n: int) -> tuple[int, Tensor, Future[Columns]]:
        """Have the next rows put together: drawn in the same order as without reading ahead."""
        assert self._reader
        before = self.random.get_state()
        pick = self._choice[self._pick(n).cpu().numpy()]
        return n, before, self._reader.submit(self._episodes.columns, pick)

    def _pick(self, n: int) -> Tensor:
        if self._reach is not None:  # by their chances
            drawn = torch.rand(n, generator=self.random, device=self.device, dtype=torch.float64)
            return torch.searchsorted(self._reach, drawn * self._reach[-1]).clamp(max=len(self._choice) - 1)
        return torch.randint(len(self._choice), (n,), generator=self.random, device=self.device)

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.random, device=self.device)

    def _uniform(self, shape: Sequence[int]) -> Tensor:
        return torch.rand(tuple(shape), generator=self.random, device=self.device)
