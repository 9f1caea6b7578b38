"""Behaviour cloning: fit a student to the action chunks of demonstrations, stop when validation episodes say so."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from sage_ros.core.history import history
from sage_ros.core.options import check, option
from sage_ros.policy.config import StudentConfig
from sage_ros.policy.motion import carried_on, lag_columns, measured_columns, motion_features, motion_scale
from sage_ros.policy.normalization import STAYS, Normalization, chunks, normalise
from sage_ros.policy.student import DOUBTS, Student, StudentPolicy, task_features
from sage_ros.training.openloop import Demonstration, open_loop_error


@dataclass(frozen=True)
class CloningConfig:
    """How a student is trained. Noise is in standard deviations of what it is added to.

    Pose noise and forgotten commands are what keeps a student that sees its own last command from only copying it;
    command noise teaches it to come back to the demonstrated path; blanked tokens, to bear a distrusted patch.
    """

    steps: int = option(2000, "gradient steps at most", low=1, high=10**7)
    batch_size: int = option(64, "rows per step", low=1, high=65536)
    lr: float = option(1e-3, "highest learning rate", low=1e-8, high=1.0)
    weight_decay: float = option(0.1, "AdamW's weight decay", low=0.0, high=10.0)
    warmup: int = option(100, "steps until the highest learning rate", low=1, high=10**6)
    ema: float = option(0.995, "share of the averaged weights kept per step", low=0.0, high=0.999999)
    evaluate_every: int = option(100, "steps between two looks at the validation episodes", low=1, high=10**6)
    patience: int = option(10, "looks without improvement after which training stops", low=1, high=10**6)
    pose_noise: float = option(0.1, "noise on the joint state", low=0.0, high=10.0)
    command_blur: float = option(0.0, "noise on what the student hears of the last command", low=0.0, high=10.0)
    motion_noise: float = option(0.1, "noise on the motion features", low=0.0, high=10.0)
    command_noise: float = option(0.1, "how far the last command is off the path, of the offsets' deviation",
                                  low=0.0, high=10.0)  # fmt: skip
    command_dropout: float = option(0.05, "share of rows on which the last command is not known", low=0.0, high=0.99)
    word_dropout: float = option(0.0, "share of the task's words that are blank", low=0.0, high=0.99)
    dropout: float = option(0.0, "share of the network's thoughts that are blank", low=0.0, high=0.9)
    token_noise: float = option(0.1, "noise on the tokens", low=0.0, high=10.0)
    token_dropout: float = option(0.1, "share of tokens that are blank", low=0.0, high=0.99)
    ahead_weight: float = option(0.3, "weight of the rows beyond the chunk in the loss", low=0.0, high=10.0)
    bit_weight: float = option(4.0, "weight of a gripper's bit in the loss", low=0.0, high=1e3)
    huber: float = option(0.3, "offset error above which the loss is linear", low=1e-3, high=1e3)
    seed: int = option(0, "seed of weights, batches and noise", low=0, high=2**31)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Cloned:
    """The best student found, and how it was found."""

    student: Student
    normalization: Normalization
    step: int  # at which it was best
    curve: list[tuple[int, float, float]]  # (step, training loss, validation error) at every evaluation


class Targets(NamedTuple):
    """What a batch of B rows should have been answered."""

    offsets: Tensor  # (B, rows, A), normalised, from the carried-on command
    high: Tensor  # (B, rows, bits) 1.0 where the bit is high
    odds: Tensor  # (B, 1, bits) log-odds before anything is learned


class _Rows:
    """All training rows as tensors on one device, and batches of them with noise."""

    def __init__(
        self, training: Sequence[Demonstration], student: StudentConfig, config: CloningConfig, device: torch.device
    ) -> None:
        pasts = [history(d.state, d.action, np.arange(len(d))) for d in training]
        commands, states = (np.concatenate([past[kind] for past in pasts]) for kind in (0, 1))
        elapsed = np.concatenate([np.arange(len(d)) / d.rate for d in training])
        motion = motion_features(student, commands, states, elapsed)
        self.norm = norm = Normalization.fit(
            [d.state for d in training], [d.action for d in training], [d.tokens for d in training], student.horizon,
            motion_scale(student, motion), student.bits,
        )
        fresh = np.isnan(commands[:, 0]).any(axis=1, keepdims=True)
        command = np.where(fresh, norm.first_command, commands[:, 0])
        tasks = np.concatenate(
            [np.tile(task_features(d.task, student.words), (len(d), 1)) for d in training]
        )
        inputs = normalise(
            norm, np.concatenate([d.tokens for d in training]), np.concatenate([d.state for d in training]), command,
            fresh, tasks, motion,
        )

        def on(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)

        self.tokens, self.state, self.command, self.fresh, self.task, self.motion = (on(part) for part in inputs)
        far = [np.concatenate([chunks(d.action, student.horizon) for d in training])]
        for ahead in student.ahead:
            far.append(np.concatenate([_shifted(d.action, ahead) for d in training])[:, None])
        goal = np.concatenate(far, axis=1)
        self.target, self.carried = (on(x / norm.offset_std) for x in (goal - command[:, None],
                                                                       carried_on(student, commands)))  # fmt: skip
        self.bits = list(student.bits)
        middle = (norm.action_low + norm.action_high)[self.bits] / 2
        self.high = on(goal[..., self.bits] > middle)
        span = norm.span(self.bits)
        self.to_share = [on(x) for x in (norm.command_std[self.bits] / span,
                                         (norm.command_mean - norm.action_low)[self.bits] / span)]  # fmt: skip
        self.per_offset = on(norm.offset_std / norm.command_std)
        self.first = on((norm.first_command - norm.command_mean) / norm.command_std)
        self.analogue = on(student.analogue)
        self.weight = torch.ones(student.horizon + len(student.ahead), 1, device=device)
        self.weight[student.horizon :] = config.ahead_weight
        self.moving = on(np.ptp(motion, axis=0) > 0)
        # Where the last command is off the path, so is the lag behind it; what is forgotten has no motion.
        self.lag = lag_columns(student)
        if student.history:
            self.lag_per_command = on((measured_columns(student) >= 0) * norm.command_std / norm.motion_std[self.lag])
        self.config, self.student, self.device = config, student, device
        self.random = torch.Generator(device).manual_seed(config.seed)

    def batch(self) -> tuple[tuple[Tensor, ...], Targets]:
        config, n = self.config, min(self.config.batch_size, len(self.state))
        pick = torch.randint(len(self.state), (n,), generator=self.random, device=self.device)
        tokens = self.tokens[pick]
        if self.student.queries:
            tokens = tokens + config.token_noise * self._normal(tokens.shape)
            tokens = tokens * (self._uniform((*tokens.shape[:2], 1)) >= config.token_dropout)
        state = self.state[pick] + config.pose_noise * self._normal(self.state[pick].shape)
        command, target, fresh = self.command[pick], self.target[pick], self.fresh[pick]
        # A command that is off the demonstrated path, or forgotten: the chunk still has to reach the demonstrated one.
        moved = config.command_noise * self.per_offset * self._normal(command.shape) * self.analogue * (1.0 - fresh)
        forget = (self._uniform(fresh.shape) < config.command_dropout) & (fresh == 0)
        moved = torch.where(forget, self.first - command, moved)
        fresh = torch.where(forget, torch.ones_like(fresh), fresh)
        command = command + moved
        target = target - (moved / self.per_offset)[:, None] - self.carried[pick] * ~forget[:, None]
        share = command[:, self.bits] * self.to_share[0] + self.to_share[1]
        odds = STAYS * (2.0 * share.clamp(0.0, 1.0) - 1.0)
        motion = self.motion[pick]
        if self.student.history:
            motion[:, self.lag] += moved * self.lag_per_command
            motion[:, : self.lag.stop] *= ~forget
        motion = motion + config.motion_noise * self.moving * self._normal(motion.shape)
        command = command + config.command_blur * self.analogue * self._normal(command.shape)
        task = self.task[pick]
        task = task * (self._uniform(task.shape) >= config.word_dropout)
        return (tokens, state, command, fresh, task, motion), Targets(target, self.high[pick], odds[:, None])

    def loss(self, answer: tuple[Tensor, Tensor], targets: Targets) -> Tensor:
        """Huber's for joints, Brier's for bits, and of the error it expects Laplace's likelihood."""
        config = self.config
        offsets, doubts = answer
        error = F.huber_loss(offsets, targets.offsets, reduction="none", delta=config.huber) * self.analogue
        if self.bits:
            chance = torch.sigmoid(offsets[..., self.bits] + targets.odds)
            error[..., self.bits] = config.bit_weight * (chance - targets.high) ** 2
        miss = (offsets.detach() - targets.offsets).abs() * self.analogue
        doubts = doubts.clamp(*DOUBTS)
        return (error * self.weight).mean() + 0.1 * (miss * torch.exp(-doubts) + doubts).mean()

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.random, device=self.device)

    def _uniform(self, shape: Sequence[int]) -> Tensor:
        return torch.rand(tuple(shape), generator=self.random, device=self.device)


def clone(
    training: Sequence[Demonstration],
    validation: Sequence[Demonstration],
    student: StudentConfig,
    config: CloningConfig,
    device: str = "cpu",
    progress: bool = True,
) -> Cloned:
    """Train a student; keep the weights (an exponential average) with the least error on ``validation``.

    The error is GR00T's metric over whole episodes. Step 0, where a student carries on as it moves, competes too:
    where nothing is learned that holds elsewhere, that is what is kept. Without validation episodes the last weights
    are kept. The same seed gives the same student on the same CPU. Raises ValueError where the loss stops being finite.
    """
    torch.manual_seed(config.seed)
    on = torch.device(device)
    net = Student(student, config.dropout).to(on)
    average = copy.deepcopy(net).eval()
    rows = _Rows(training, student, config, on)
    norm = rows.norm
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.lr,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / config.warmup) * 0.5 * (1.0 + math.cos(math.pi * step / config.steps)),
    )
    best, best_step = copy.deepcopy(average), 0
    best_error = _error(average, norm, validation) if validation else math.inf
    curve: list[tuple[int, float, float]] = []
    total = torch.zeros((), device=on)
    bar = tqdm(range(1, config.steps + 1), desc=f"distil seed {config.seed}", unit="step", disable=not progress)
    for step in bar:
        inputs, target = rows.batch()
        loss = rows.loss(net(*inputs), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        keep = min(config.ema, step / (step + 10.0))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1.0 - keep)
        total = total + loss.detach()
        if step % config.evaluate_every and step != config.steps:
            continue
        count = step - (curve[-1][0] if curve else 0)
        mean_loss = float(total) / count
        if not math.isfinite(mean_loss):
            raise ValueError(f"the loss is not finite at step {step}: lower the learning rate (--lr, now {config.lr})")
        error = _error(average, norm, validation) if validation else math.nan
        curve.append((step, mean_loss, error))
        total.zero_()
        bar.set_postfix(loss=f"{curve[-1][1]:.4f}", validation=f"{error:.6f}", best=best_step)
        if not validation or error < best_error:
            best, best_step, best_error = copy.deepcopy(average), step, error
        elif step - best_step >= config.patience * config.evaluate_every:
            break
    bar.close()
    return Cloned(best.cpu().eval(), norm, best_step, curve)


def _error(net: Student, norm: Normalization, demonstrations: Sequence[Demonstration]) -> float:
    policy = StudentPolicy(net, norm, demonstrations[0].rate)
    return float(np.mean([open_loop_error(policy, d, steps=None) for d in demonstrations]))


def _shifted(action: np.ndarray, ahead: int) -> np.ndarray:
    return action[np.minimum(np.arange(len(action)) + ahead, len(action) - 1)]
