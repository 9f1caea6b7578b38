"""The student: a small network that answers token map, joint state, last command and task with an action chunk.

Behaviour cloning of action chunks (ACT, Zhao et al. 2023) reduced to what a laptop needs: no image backbone (the
tokens come from an encoder), no latent variable, and learned queries that look at the token map once per layer. Its
chunk is relative to its own last command: on held-out episodes that is what beats holding still.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage_ros.core.chunks import ActionChunk, Observation

CLIP = 10.0  # in standard deviations: how far from the training data an input may be before it is cut off


@dataclass(frozen=True)
class StudentConfig:
    """Sizes of the network. ``ahead`` are rows beyond the chunk that it learns to foresee, in training only."""

    grid: tuple[int, int]
    features: int
    state_dim: int
    action_dim: int
    horizon: int = 16
    width: int = 64
    heads: int = 4
    layers: int = 2
    queries: int = 8
    trunk: int = 256
    words: int = 64
    ahead: tuple[int, ...] = (24, 32, 48, 64)

    def __post_init__(self) -> None:
        sizes = (*self.grid, self.features, self.state_dim, self.action_dim, self.horizon, self.width, self.heads)
        if min(*sizes, self.layers, self.queries, self.trunk, self.words) < 1 or len(self.grid) != 2:
            raise ValueError(f"every size of a student must be at least 1, and the grid (rows, columns): {self}")
        if self.width % (4 * self.heads):
            raise ValueError(f"width must be a multiple of 4 x heads, but is {self.width} with {self.heads} heads")
        if any(row < self.horizon for row in self.ahead):
            raise ValueError(f"ahead must lie beyond the horizon {self.horizon}, but is {self.ahead}")

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Normalization:
    """Means and standard deviations of the training rows, float64; a constant dimension has deviation 1.

    ``first_command`` (A,) stands for the last command while there is none: the mean of the episodes' first actions.
    ``action_low`` and ``action_high`` (A,) are the least and greatest training actions.
    """

    tokens_mean: np.ndarray  # (F,)
    tokens_std: np.ndarray  # (F,)
    state_mean: np.ndarray  # (S,)
    state_std: np.ndarray  # (S,)
    command_mean: np.ndarray  # (A,)
    command_std: np.ndarray  # (A,)
    offset_std: np.ndarray  # (A,) of the chunk's rows relative to the last command
    first_command: np.ndarray  # (A,)
    action_low: np.ndarray  # (A,)
    action_high: np.ndarray  # (A,)

    @classmethod
    def fit(
        cls, states: Sequence[np.ndarray], actions: Sequence[np.ndarray], tokens: Sequence[np.ndarray], horizon: int
    ) -> Normalization:
        """Fit on whole episodes: states (T, S), actions (T, A), tokens (T, N, F)."""
        state, action = np.concatenate(list(states)), np.concatenate(list(actions))
        offsets = [chunks(a, horizon)[1:] - a[:-1, None] for a in actions if len(a) > 1]
        count = sum(t.shape[0] * t.shape[1] for t in tokens)
        mean = sum(t.sum(axis=(0, 1), dtype=np.float64) for t in tokens) / count
        square = sum(((t - mean) ** 2).sum(axis=(0, 1), dtype=np.float64) for t in tokens) / count
        offset = np.sqrt(np.mean(np.concatenate(offsets) ** 2, axis=(0, 1))) if offsets else np.zeros(action.shape[1])
        return cls(
            tokens_mean=np.asarray(mean),
            tokens_std=_spread(np.sqrt(square)),
            state_mean=state.mean(axis=0),
            state_std=_spread(state.std(axis=0)),
            command_mean=action.mean(axis=0),
            command_std=_spread(action.std(axis=0)),
            offset_std=_spread(offset),
            first_command=np.mean([a[0] for a in actions], axis=0),
            action_low=action.min(axis=0),
            action_high=action.max(axis=0),
        )

    def to_dict(self) -> dict[str, list[float]]:
        return {key: [float(x) for x in value] for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[float]]) -> Normalization:
        """Inverse of :meth:`to_dict`. Raises ValueError on missing, unknown, non-finite or non-positive entries."""
        names = [f.name for f in fields(cls)]
        if set(values) != set(names):
            odd = sorted(set(values) ^ set(names))
            raise ValueError(f"entries must be exactly {', '.join(names)}; missing or unknown: {', '.join(odd)}")
        arrays = {name: np.asarray(values[name], dtype=np.float64) for name in names}
        for name, array in arrays.items():
            if array.ndim != 1 or not np.isfinite(array).all():
                raise ValueError(f"'{name}' must be a list of finite numbers")
            if name.endswith("_std") and not (array > 0).all():
                raise ValueError(f"'{name}' must be positive")
        return cls(**arrays)


def _spread(deviation: np.ndarray) -> np.ndarray:
    return np.where(deviation > 1e-6, deviation, 1.0)


def chunks(action: np.ndarray, horizon: int) -> np.ndarray:
    """The next ``horizon`` actions of every row, (T, A) -> (T, horizon, A); the last action repeats at the end."""
    return action[np.minimum(np.arange(len(action))[:, None] + np.arange(horizon), len(action) - 1)]


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

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Linear(config.features, width)
        self.place = nn.Parameter(_places(config.grid, width))
        self.token_norm = nn.LayerNorm(width)
        self.keys_values = nn.Linear(width, 2 * config.layers * width, bias=False)
        body = config.state_dim + config.action_dim + 1 + config.words
        self.body = nn.Sequential(nn.Linear(body, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.queries = nn.Parameter(0.02 * torch.randn(config.queries, width))
        self.layers = nn.ModuleList(Layer(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        rows = config.horizon + len(config.ahead)
        self.trunk = nn.Sequential(nn.Linear((config.queries + 1) * width, config.trunk), nn.ReLU())
        self.head = nn.Linear(config.trunk, rows * config.action_dim)
        nn.init.zeros_(self.head.weight)  # an untrained student repeats its last command
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, state: Tensor, command: Tensor, fresh: Tensor, task: Tensor) -> Tensor:
        """Offsets (B, H + len(ahead), A) from the last command.

        tokens (B, N, F), state (B, S), command (B, A), fresh (B, 1; 1 where there is no last command),
        task (B, words), all normalised.
        """
        config, batch = self.config, len(tokens)
        body = self.body(torch.cat((state, command, fresh, task), dim=-1))
        seen = self.keys_values(self.token_norm(self.embed(tokens) + self.place))
        seen = seen.view(batch, config.tokens, 2 * config.layers, config.heads, -1).permute(2, 0, 3, 1, 4)
        queries = self.queries + body[:, None]
        for index, layer in enumerate(self.layers):
            queries = layer(queries, seen[2 * index], seen[2 * index + 1])
        found = torch.cat((self.norm(queries).flatten(1), body), dim=-1)
        return self.head(self.trunk(found)).view(batch, -1, config.action_dim)


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
        self._device = next(student.parameters()).device
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
        inputs = normalise(
            norm,
            observation.tokens[None],
            observation.state[None],
            command[None],
            np.array([[fresh]], dtype=np.float32),
            self._task[1][None],
        )
        with torch.inference_mode():
            offsets = self.student(*(torch.from_numpy(x).to(self._device) for x in inputs))[0, : self.horizon]
        return ActionChunk(command + norm.offset_std * offsets.cpu().numpy().astype(np.float64), self.rate)


def normalise(
    norm: Normalization, tokens: np.ndarray, state: np.ndarray, command: np.ndarray, fresh: np.ndarray, task: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The student's five inputs, float32, from raw ones (leading dimensions as they are)."""

    def scale(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        y = (x.astype(np.float32) - mean.astype(np.float32)) / std.astype(np.float32)
        return np.clip(y, -CLIP, CLIP, out=y)

    return (
        scale(tokens, norm.tokens_mean, norm.tokens_std),
        scale(state, norm.state_mean, norm.state_std),
        scale(command, norm.command_mean, norm.command_std),
        fresh.astype(np.float32),
        task.astype(np.float32),
    )
