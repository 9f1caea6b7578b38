"""Behaviour cloning: fit a student to the action chunks of demonstrations, stop when validation episodes say so."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from sage_ros.policy.config import StudentConfig
from sage_ros.policy.normalization import Normalization
from sage_ros.policy.student import DOUBTS, Student, StudentPolicy
from sage_ros.training.engine import Engine
from sage_ros.training.openloop import Demonstration, open_loop_error
from sage_ros.training.resume import State, Unfinished, load_optimizer, optimizer_tensors
from sage_ros.training.rows import Replay, Rows, Targets
from sage_ros.training.settings import CloningConfig


@dataclass(frozen=True)
class Cloned:
    """The best student found, and how it was found."""

    student: Student
    normalization: Normalization
    step: int  # at which it was best
    curve: list[tuple[int, float, float]]  # (step, training loss, validation error) at every evaluation


class Loss:
    """What a student is trained to make small: Huber's for joints, Brier's for bits, Laplace's for its doubts."""

    def __init__(self, student: StudentConfig, config: CloningConfig, device: torch.device) -> None:
        self._config, self._bits = config, list(student.bits)
        self._analogue = torch.from_numpy(student.analogue.astype(np.float32)).to(device)
        self._weight = torch.ones(student.horizon + len(student.ahead), 1, device=device)
        self._weight[student.horizon :] = config.ahead_weight

    def __call__(self, answer: tuple[Tensor, Tensor], targets: Targets) -> Tensor:
        config = self._config
        offsets, doubts = (part.float() for part in answer)
        error = F.huber_loss(offsets, targets.offsets, reduction="none", delta=config.huber) * self._analogue
        if self._bits:
            chance = torch.sigmoid(offsets[..., self._bits] + targets.odds)
            error[..., self._bits] = config.bit_weight * (chance - targets.high) ** 2
        miss = (offsets.detach() - targets.offsets).abs() * self._analogue
        doubts = doubts.clamp(*DOUBTS)
        doubt = (miss * torch.exp(-doubts) + doubts) * targets.weight
        return (error * self._weight * targets.weight).mean() + 0.1 * doubt.mean()


def clone(
    training: Sequence[Demonstration],
    validation: Sequence[Demonstration],
    student: StudentConfig,
    config: CloningConfig,
    engine: Engine | str = "cpu",
    progress: bool = True,
    unfinished: Unfinished | None = None,
    name: str = "student",
    replay: Replay | None = None,
) -> Cloned:
    """Train a student; keep the weights (an exponential average) with the least error on ``validation``.

    The error is GR00T's metric over whole episodes. Step 0, where a student carries on as it moves, competes too:
    where nothing is learned that holds elsewhere, that is what is kept. Without validation episodes the last weights
    are kept. The same seed gives the same student on the same CPU, also where it goes on with what ``unfinished`` keeps
    of a training ``name`` that was killed. ``engine`` may be the name of a device; with ``replay`` the training goes on
    from another student. Raises ValueError where the loss stops being finite, and as :class:`Engine` and :class:`Rows`.
    """
    engine = Engine(engine) if isinstance(engine, str) else engine
    kept = unfinished.load(name) if unfinished else None
    if kept and kept.figures["finished"]:
        best = Student(student)
        best.load_state_dict(_under("best", kept))
        norm = Normalization.from_dict(kept.figures["normalization"])
        return Cloned(best.eval(), norm, kept.figures["best_step"], [tuple(point) for point in kept.figures["curve"]])
    run = _Training(training, validation, student, config, engine, replay)
    if kept:
        run.restore(kept)
    bar = tqdm(range(run.step + 1, config.steps + 1), desc=f"distil {name}", unit="step", initial=run.step,
               total=config.steps, disable=not progress or not engine.main)  # fmt: skip
    started, since = time.perf_counter(), run.step
    with bar, engine.curves(name, run.step) as curves:
        for step in bar:
            run.advance(step)
            if step % config.evaluate_every == 0 or step == config.steps:
                going = run.evaluate()
                _, loss, error = run.curve[-1]
                bar.set_postfix(loss=f"{loss:.4f}", validation=f"{error:.6f}", best=run.best_step)
                if curves:
                    rate = (step - since) * run.step_rows / (time.perf_counter() - started)
                    figures = {"loss": loss, "validation error": error, "learning rate": run.rate, "rows per s": rate}
                    for tag, figure in figures.items():
                        curves.add_scalar(tag, figure, step)
                    started, since = time.perf_counter(), step
                if not going:
                    break
            if unfinished and step % engine.save_every == 0:
                run.save(unfinished, name)
    if unfinished:
        run.save(unfinished, name, finished=True)
    run.rows.close()
    return Cloned(run.best.cpu().eval(), run.rows.norm, run.best_step, run.curve)


class _Training:
    """A training between two steps."""

    def __init__(
        self, training: Sequence[Demonstration], validation: Sequence[Demonstration], student: StudentConfig,
        config: CloningConfig, engine: Engine, replay: Replay | None = None,
    ) -> None:
        self.config, self.engine, self.validation = config, engine, validation
        self.share = engine.share(config.batch_size)
        torch.manual_seed(config.seed)
        self.net = Student(student, config.dropout).to(engine.device)
        if replay:
            self.net.load_state_dict(replay.start)
        self.average = copy.deepcopy(self.net).eval()
        mine = config.seed + 7919 * engine.rank  # each process draws rows and noise of its own
        if engine.rank:
            torch.manual_seed(mine)
        self.rows = Rows(training, student, config, engine.device, engine.memory, mine, replay)
        if engine.processes * engine.accumulate == 1:
            self.share = min(self.share, self.rows.count)
        self.loss = Loss(student, config, engine.device)
        matrices = [p for p in self.net.parameters() if p.ndim > 1]
        vectors = [p for p in self.net.parameters() if p.ndim <= 1]
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=config.lr,
        )
        self.model: nn.Module
        self.model, self.stepper = engine.prepare(self.net, self.optimizer)
        self.step = 0
        self._set_rate()
        self.best, self.best_step = copy.deepcopy(self.average), 0
        self.best_error = self._error() if validation else math.inf
        self.curve: list[tuple[int, float, float]] = []
        self.total = torch.zeros((), device=engine.device)

    @property
    def step_rows(self) -> int:
        """Rows of a step over all processes: no more than there are, in one process."""
        return self.share * self.engine.processes * self.engine.accumulate

    @property
    def rate(self) -> float:
        """The learning rate of the next step: it rises, then falls as a cosine."""
        config = self.config
        rise = min(1.0, (self.step + 1) / config.warmup)
        return config.lr * (rise * 0.5 * (1.0 + math.cos(math.pi * self.step / config.steps)))

    def _set_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate

    def advance(self, step: int) -> None:
        """Take step number ``step``."""
        engine = self.engine
        self.stepper.zero_grad(set_to_none=True)
        for part in range(engine.accumulate):
            inputs, target = self.rows.batch(self.share)
            loss = self.loss(self.model(*inputs), target)
            engine.backward(self.model, loss, last=part == engine.accumulate - 1)
            self.total = self.total + (loss.detach() if engine.accumulate == 1 else loss.detach() / engine.accumulate)
        engine.clip(self.model, 1.0)
        self.stepper.step()
        self.step = step
        self._set_rate()
        keep = min(self.config.ema, step / (step + 10.0))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1.0 - keep)

    def evaluate(self) -> bool:
        """Add a point to the curve, keep the weights if they are the best; whether it is worth going on."""
        config, step = self.config, self.step
        count = step - (self.curve[-1][0] if self.curve else 0)
        mean_loss = float(np.mean(self.engine.gather([float(self.total) / count])))
        if not math.isfinite(mean_loss):
            raise ValueError(f"the loss is not finite at step {step}: lower the learning rate (--lr, now {config.lr})")
        error = self._error() if self.validation else math.nan
        self.curve.append((step, mean_loss, error))
        self.total.zero_()
        if not self.validation or error < self.best_error:
            self.best, self.best_step, self.best_error = copy.deepcopy(self.average), step, error
            return True
        return step - self.best_step < config.patience * config.evaluate_every

    def _error(self) -> float:
        """The mean over the validation episodes, which the processes share."""
        engine = self.engine
        policy = StudentPolicy(self.average, self.rows.norm, self.validation[0].rate)
        mine = range(engine.rank, len(self.validation), engine.processes)
        found = engine.gather([(place, open_loop_error(policy, self.validation[place], steps=None)) for place in mine])
        return float(np.mean([error for _, error in sorted(found)]))

    def save(self, unfinished: Unfinished, name: str, finished: bool = False) -> None:
        """Keep all that the next step depends on; of a ``finished`` training, the result."""
        engine = self.engine
        figures = {
            "finished": finished, "step": self.step, "curve": self.curve, "best_step": self.best_step,
            "best_error": self.best_error, "normalization": self.rows.norm.to_dict(), "scaler": engine.scaler_state(),
        }
        tensors = {f"best.{key}": value for key, value in self.best.state_dict().items()}
        if not finished:
            for kind, net in (("net", self.net), ("average", self.average)):
                tensors |= {f"{kind}.{key}": value for key, value in net.state_dict().items()}
            tensors |= optimizer_tensors(self.optimizer) | {"total": self.total}
            for rank, states in enumerate(engine.gather([self._random_states()])):
                tensors |= {f"random.{rank}.{kind}": state for kind, state in states.items()}
        if engine.main:
            unfinished.save(name, State(tensors, figures))

    def restore(self, kept: State) -> None:
        """Be what was saved."""
        for kind, net in (("net", self.net), ("average", self.average), ("best", self.best)):
            net.load_state_dict(_under(kind, kept))
        load_optimizer(self.optimizer, kept.tensors)
        self.engine.load_scaler_state(kept.figures["scaler"])
        self.total = kept.tensors["total"].to(self.engine.device)
        states = _under(f"random.{self.engine.rank}", kept)
        self.rows.set_random_state(states["rows"])
        torch.set_rng_state(states["cpu"])
        if "gpu" in states:
            torch.cuda.set_rng_state(states["gpu"], self.engine.device)
        figures = kept.figures
        self.step, self.best_step, self.best_error = (figures[x] for x in ("step", "best_step", "best_error"))
        self.curve = [tuple(point) for point in figures["curve"]]
        self._set_rate()

    def _random_states(self) -> dict[str, Tensor]:
        states = {"rows": self.rows.random_state(), "cpu": torch.get_rng_state()}
        if self.engine.device.type == "cuda":
            states["gpu"] = torch.cuda.get_rng_state(self.engine.device)
        return states


def _under(prefix: str, kept: State) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}."): value for key, value in kept.tensors.items()
            if key.startswith(f"{prefix}.")}  # fmt: skip
