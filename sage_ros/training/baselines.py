"""Trivial policies that a learned one has to beat: hold the state, repeat the last action, the mean, neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sage_ros.core.chunks import ActionChunk, ChunkPolicy, Observation
from sage_ros.core.joints import JointLayout
from sage_ros.policy.normalization import chunks
from sage_ros.training.openloop import Demonstration


class HoldState:
    """Stays where the joints were measured. Raises JointError where a commanded joint is not measured."""

    def __init__(self, state_joints: JointLayout, action_joints: JointLayout, rate: float, horizon: int = 16) -> None:
        self.horizon, self.rate = horizon, rate
        self._order = action_joints.order_from(state_joints.names)

    def reset(self) -> None: ...

    def infer(self, observation: Observation) -> ActionChunk:
        return ActionChunk(np.tile(observation.state[self._order], (self.horizon, 1)), self.rate)


class LastAction:
    """Repeats the last command; while there is none, the mean of the training episodes' first actions."""

    def __init__(self, training: Sequence[Demonstration], horizon: int = 16) -> None:
        self.horizon, self.rate = horizon, training[0].rate
        self._first = np.mean([d.action[0] for d in training], axis=0)

    def reset(self) -> None: ...

    def infer(self, observation: Observation) -> ActionChunk:
        command = self._first if observation.last_command is None else observation.last_command
        return ActionChunk(np.tile(command, (self.horizon, 1)), self.rate)


class MeanAction:
    """Always the mean action of the training rows."""

    def __init__(self, training: Sequence[Demonstration], horizon: int = 16) -> None:
        self.horizon, self.rate = horizon, training[0].rate
        self._mean = np.concatenate([d.action for d in training]).mean(axis=0)

    def reset(self) -> None: ...

    def infer(self, observation: Observation) -> ActionChunk:
        return ActionChunk(np.tile(self._mean, (self.horizon, 1)), self.rate)


class NearestNeighbours:
    """The mean of what followed the ``k`` training rows whose standardised state is nearest."""

    def __init__(self, training: Sequence[Demonstration], k: int = 20, horizon: int = 16) -> None:
        self.horizon, self.rate = horizon, training[0].rate
        states = np.concatenate([d.state for d in training])
        self._k = min(k, len(states))
        self._mean, spread = states.mean(axis=0), states.std(axis=0)
        self._scale = np.where(spread > 1e-6, 1.0 / np.maximum(spread, 1e-6), 0.0)  # a constant joint tells nothing
        self._states = (states - self._mean) * self._scale
        self._chunks = np.concatenate([chunks(d.action, horizon) for d in training])

    def reset(self) -> None: ...

    def infer(self, observation: Observation) -> ActionChunk:
        distance = ((self._states - (observation.state - self._mean) * self._scale) ** 2).sum(axis=1)
        nearest = np.argpartition(distance, self._k - 1)[: self._k]
        return ActionChunk(self._chunks[nearest].mean(axis=0), self.rate)


class Blanked:
    """A policy that always sees the same ``tokens`` (N, F): what is left of it without sight."""

    def __init__(self, policy: ChunkPolicy, tokens: np.ndarray) -> None:
        self.policy, self.tokens, self.horizon = policy, tokens, policy.horizon

    def reset(self) -> None:
        self.policy.reset()

    def infer(self, observation: Observation) -> ActionChunk:
        return self.policy.infer(replace(observation, tokens=self.tokens))


def fit_baselines(training: Sequence[Demonstration], horizon: int = 16) -> dict[str, ChunkPolicy]:
    """Every baseline by name, fitted on ``training``; hold state only where each commanded joint is measured too."""
    first = training[0]
    policies: dict[str, ChunkPolicy] = {}
    if set(first.action_joints.names) <= set(first.state_joints.names):
        policies["hold state"] = HoldState(first.state_joints, first.action_joints, first.rate, horizon)
    policies["last action"] = LastAction(training, horizon)
    policies["mean action"] = MeanAction(training, horizon)
    policies["20-NN on state"] = NearestNeighbours(training, 20, horizon)
    return policies
