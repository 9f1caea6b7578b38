"""The student: a small network that answers tokens, joints, last command, motion and task with an action chunk.

Behaviour cloning of action chunks (ACT, Zhao et al. 2023) reduced to what a laptop needs: no image backbone (the
tokens come from an encoder), no latent variable, and learned queries that look at the token map once per layer. Its
chunk is relative to where the last command's motion would carry the robot: on held-out episodes that is what beats
holding still. A gripper that only opens or closes is a bit, of which the chunk holds the expected value. A second head
learns how large the first one's error is.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage_ros.core.chunks import ActionChunk, Observation
from sage_ros.core.history import nothing_known
from sage_ros.cuda import Graphed
from sage_ros.policy.config import StudentConfig
from sage_ros.policy.motion import carried_on, motion_features
from sage_ros.policy.normalization import Normalization, log_odds, normalise

DOUBTS = (-7.0, 5.0)  # the logarithms of expected errors that a student learns to tell apart; what lies beyond is cut


def task_features(task: str, words: int = 64) -> np.ndarray:
    """Hashed bag of words, (words,) float32 of length 1 (0 for no words); letter case and punctuation are ignored."""
    bag = np.zeros(words, dtype=np.float32)
    for word in re.findall(r"\w+", task.lower()):
        bag[zlib.crc32(word.encode()) % words] += 1.0
    return bag / max(float(np.linalg.norm(bag)), 1e-12)


class Layer(nn.Module):
    """Queries look at the tokens, then think (pre-norm, residual)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.look_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries (B, Q, D); keys and values (B, heads, N, D / heads)."""
        batch, count, width = queries.shape
        query = self.query(self.look_norm(queries)).view(batch, count, self.heads, -1).transpose(1, 2)
        found = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).reshape(batch, count, width)
        queries = queries + self.out(found)
        return queries + self.think(queries)


class Student(nn.Module):
    """The network itself, in normalised units; :class:`StudentPolicy` wraps it for a robot.

    Queries made of the joints, the command and the task look at the token map, ``layers`` times; what they find and
    the body they belong to give the chunk. No token looks at another: that is the encoder's work, and it is what
    would cost the time.
    """

    def __init__(self, config: StudentConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        width = config.width
        if config.queries:
            self.embed = nn.Linear(config.features, width)
            self.place = nn.Parameter(_places(config.grid, width))
            self.token_norm = nn.LayerNorm(width)
            self.keys_values = nn.Linear(width, 2 * config.layers * width, bias=False)
            self.queries = nn.Parameter(0.02 * torch.randn(config.queries, width))
            self.layers = nn.ModuleList(Layer(width, config.heads) for _ in range(config.layers))
            self.norm = nn.LayerNorm(width)
        body = config.state_dim + config.action_dim + 1 + config.words + config.motion
        thoughts = (nn.Linear(body, 2 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * width, width))
        self.body = nn.Sequential(*thoughts)
        rows = config.horizon + len(config.ahead)
        self.trunk = nn.Sequential(
            nn.Linear((config.queries + 1) * width, config.trunk), nn.ReLU(), nn.Dropout(dropout)
        )
        self.head = nn.Linear(config.trunk, rows * config.action_dim)
        self.doubt = nn.Linear(config.trunk, rows * config.action_dim)
        for layer in (self.head, self.doubt):  # an untrained student carries on as it moves
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, tokens: Tensor, state: Tensor, command: Tensor, fresh: Tensor, task: Tensor, motion: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both (B, H + len(ahead), A): offsets from the carried-on command, and the log of their mean absolute error.

        Of a bit, the offset is the log-odds that it is high, less those it has if nothing but the last command is
        known. tokens (B, N, F), state (B, S), command (B, A), fresh (B, 1; 1 where there is no last command),
        task (B, words), motion (B, config.motion), all normalised.
        """
        config, batch = self.config, len(tokens)
        body = self.body(torch.cat((state, command, fresh, task, motion), dim=-1))
        found = [body]
        if config.queries:
            seen = self.keys_values(self.token_norm(self.embed(tokens) + self.place))
            seen = seen.view(batch, config.tokens, 2 * config.layers, config.heads, -1).permute(2, 0, 3, 1, 4)
            queries = self.queries + body[:, None]
            for index, layer in enumerate(self.layers):
                queries = layer(queries, seen[2 * index], seen[2 * index + 1])
            found.insert(0, self.norm(queries).flatten(1))
        thought = self.trunk(torch.cat(found, dim=-1))
        shape = (batch, -1, config.action_dim)
        return self.head(thought).view(shape), self.doubt(thought.detach()).view(shape)


def _places(grid: tuple[int, int], width: int) -> Tensor:
    """Sines and cosines of row and column, (N, width): a start from which the place code is learned."""
    sides = [torch.linspace(-1.0, 1.0, n) if n > 1 else torch.zeros(1) for n in grid]
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    waves = 0.5 * torch.pi * 2.0 ** torch.linspace(-1.0, 3.0, width // 4)
    angles = [axis.reshape(-1, 1) * waves for axis in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=-1)


class StudentPolicy:
    """The student as a :class:`~sage_ros.core.chunks.ChunkPolicy`: numpy in, numpy out, stateless."""

    def __init__(self, student: Student, normalization: Normalization, rate: float) -> None:
        self.student = student.eval()
        self.normalization = normalization
        self.horizon = student.config.horizon
        self.rate = rate
        # (A,): joints whose error is estimated, which are no bits and do move
        self.moving = (normalization.action_high > normalization.action_low) & student.config.analogue
        self._run = Graphed(self.student, next(student.parameters()).device)
        self._task: tuple[str, np.ndarray] = ("", task_features("", student.config.words))

    def reset(self) -> None:
        """Nothing to forget."""

    def infer(self, observation: Observation) -> ActionChunk:
        """The next chunk, (H, A). Raises ValueError on wrong shapes and on values that are not finite."""
        config, norm = self.student.config, self.normalization
        command = observation.last_command
        fresh = command is None
        command = norm.first_command if command is None else command
        for name, array, shape in (
            ("tokens", observation.tokens, (config.tokens, config.features)),
            ("state", observation.state, (config.state_dim,)),
            ("last command", command, (config.action_dim,)),
        ):
            if array.shape != shape:
                raise ValueError(f"the student takes {name} of shape {shape}, got {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
        if observation.task != self._task[0]:
            self._task = (observation.task, task_features(observation.task, config.words))
        past = observation.past or nothing_known(config.action_dim, config.state_dim)
        commands, states = past.commands[None], past.states[None]
        inputs = normalise(
            norm,
            observation.tokens[None],
            observation.state[None],
            command[None],
            np.array([[fresh]], dtype=np.float32),
            self._task[1][None],
            motion_features(config, commands, states, np.array([past.elapsed])),
        )
        both = self._run(*map(torch.from_numpy, inputs))
        offsets, doubts = (x[0, : self.horizon].cpu().numpy().astype(np.float64) for x in both)
        carried = carried_on(config, commands)[0, : self.horizon]
        positions = command + carried + norm.offset_std * offsets
        deviation = norm.uncertainty * norm.offset_std * np.exp(np.clip(doubts, *DOUBTS))
        if bits := list(config.bits):
            span = (norm.action_high - norm.action_low)[bits]
            high = 1.0 / (1.0 + np.exp(-offsets[:, bits] - log_odds(norm, config.bits, command)))
            positions[:, bits] = norm.action_low[bits] + span * high
            deviation[:, bits] = span * np.sqrt(high * (1.0 - high))
        chunk = ActionChunk(positions, self.rate, deviation)
        return replace(chunk, confidence=self._confidence(chunk))

    def expected_error(self, chunk: ActionChunk) -> float:
        """How large an error it expects of a chunk of its own: the mean deviation, in those of the training offsets.

        Bits and joints that never move do not count; free of the calibration.
        """
        norm, assured = self.normalization, chunk.deviation
        if assured is None or not self.moving.any():
            return 0.0
        return float((assured / (norm.uncertainty * norm.offset_std))[:, self.moving].mean())

    def _confidence(self, chunk: ActionChunk) -> float:
        """1 up to the error expected of all but one in a hundred calibration chunks, 0 at twice that."""
        return float(np.clip(2.0 - self.expected_error(chunk) / self.normalization.doubt[0], 0.0, 1.0))
