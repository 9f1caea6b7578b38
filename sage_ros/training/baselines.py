"""Trivial policies that a learned one has to beat: hold the state, repeat the last action, the mean, neighbours, trees.

None but the last action's sees more than the joints' state; scikit-learn, which takes a second to import, is only
imported by those that need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sage_ros.core.chunks import ActionChunk, ChunkPolicy, Observation
from sage_ros.core.joints import JointLayout
from sage_ros.policy.normalization import chunks
from sage_ros.training.measures import find_grippers
from sage_ros.training.openloop import Demonstration

TREES = 100
KEPT = 0.9999  # of the chunks' variance, in the directions that the trees predict
RIDGE = 100.0  # penalty, for standardised states; with a penalty of 1 it errs several times as much on new episodes
ALIKE = 0.1  # rad: a state that is so near to the command may stand for it even where the command hardly moves


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


class HoldArmLastHand:
    """Holds the joints whose state can stand for their command, and repeats the last command of the others.

    The others are grippers (``grippers`` or, where empty, those that :func:`find_grippers` finds), joints that are not
    measured, and those whose state is in the training rows further from the command than the command's deviation: a
    hand that is commanded to +-1.5 and measured in radians. While there is no last command: the mean of the first ones.
    """

    def __init__(self, training: Sequence[Demonstration], horizon: int = 16, grippers: Sequence[str] = ()) -> None:
        self.horizon, self.rate = horizon, training[0].rate
        states, actions = training[0].state_joints.names, training[0].action_joints.names
        action = np.concatenate([d.action for d in training])
        state = np.concatenate([d.state for d in training])
        hands = {int(column) for gripper in find_grippers(training, grippers) for column in gripper.columns}
        self._first = action[np.cumsum([0] + [len(d) for d in training[:-1]])].mean(axis=0)
        self._held: dict[int, int] = {}  # action column: state column
        for column, name in enumerate(actions):
            if name in states and column not in hands:
                away = state[:, states.index(name)] - action[:, column]
                if np.sqrt(np.mean(away**2)) <= max(float(action[:, column].std()), ALIKE):
                    self._held[column] = states.index(name)

    def reset(self) -> None: ...

    def infer(self, observation: Observation) -> ActionChunk:
        command = (self._first if observation.last_command is None else observation.last_command).copy()
        command[list(self._held)] = observation.state[list(self._held.values())]
        return ActionChunk(np.tile(command, (self.horizon, 1)), self.rate)


class MeanAction:
    """Always the mean action of the training rows."""

    def __init__(self, training: Sequence[Demonstration], horizon: int = 16) -> None:
        self.horizon, self.rate = horizon, training[0].rate
        self._mean = np.concatenate([d.action for d in training]).mean(axis=0)

    def reset(self) -> None: ...

    def infer(self, observation: Observation) -> ActionChunk:
        return ActionChunk(np.tile(self._mean, (self.horizon, 1)), self.rate)


class SameTime:
    """The mean of the training actions at the same row; an episode that has ended counts with its last action.

    It counts the rows itself: ``every`` of them pass from one chunk to the next.
    """

    def __init__(self, training: Sequence[Demonstration], horizon: int = 16, every: int | None = None) -> None:
        self.horizon, self.rate, self._every = horizon, training[0].rate, horizon if every is None else every
        rows = np.arange(max(len(d) for d in training))
        self._mean = np.mean([d.action[np.minimum(rows, len(d) - 1)] for d in training], axis=0)
        self._row = 0

    def reset(self) -> None:
        self._row = 0

    def infer(self, observation: Observation) -> ActionChunk:
        rows = np.minimum(self._row + np.arange(self.horizon), len(self._mean) - 1)
        self._row += self._every
        return ActionChunk(self._mean[rows], self.rate)


class _StateScale:
    """Standardises states; a constant joint becomes 0, for it tells nothing."""

    def __init__(self, training: Sequence[Demonstration]) -> None:
        states = np.concatenate([d.state for d in training])
        self._mean, spread = states.mean(axis=0), states.std(axis=0)
        self._scale = np.where(spread > 1e-6, 1.0 / np.maximum(spread, 1e-6), 0.0)
        self.states = self(states)

    def __call__(self, state: np.ndarray) -> np.ndarray:
        return (state - self._mean) * self._scale


class NearestNeighbours:
    """The mean of what followed the ``k`` training rows whose standardised state is nearest."""

    def __init__(self, training: Sequence[Demonstration], k: int = 20, horizon: int = 16) -> None:
        self.horizon, self.rate = horizon, training[0].rate
        self._scale = _StateScale(training)
        self._k = min(k, len(self._scale.states))
        self._chunks = np.concatenate([chunks(d.action, horizon) for d in training])

    def reset(self) -> None: ...

    def infer(self, observation: Observation) -> ActionChunk:
        distance = ((self._scale.states - self._scale(observation.state)) ** 2).sum(axis=1)
        nearest = np.argpartition(distance, self._k - 1)[: self._k]
        return ActionChunk(self._chunks[nearest].mean(axis=0), self.rate)


class Ridge:
    """Linear in the standardised state, with an L2 penalty (scikit-learn)."""

    def __init__(self, training: Sequence[Demonstration], horizon: int = 16, penalty: float = RIDGE) -> None:
        from sklearn.linear_model import Ridge as Regression

        self.horizon, self.rate = horizon, training[0].rate
        self._scale = _StateScale(training)
        self._shape = (horizon, training[0].action.shape[1])
        targets = np.concatenate([chunks(d.action, horizon) for d in training])
        self._model = Regression(penalty).fit(self._scale.states, targets.reshape(len(targets), -1))

    def reset(self) -> None: ...

    def infer(self, observation: Observation) -> ActionChunk:
        chunk = self._model.predict(self._scale(observation.state)[None])
        return ActionChunk(chunk.reshape(self._shape), self.rate)


class ExtraTrees:
    """Extremely randomised trees on the state (Geurts et al. 2006; scikit-learn).

    They predict the chunk's coordinates in the directions that hold ``KEPT`` of its variance: a tree's criterion is a
    sum of squares, which rotation leaves alone, so that these trees are much the same, but an order faster to grow.
    """

    def __init__(self, training: Sequence[Demonstration], horizon: int = 16, seed: int = 0) -> None:
        from sklearn.ensemble import ExtraTreesRegressor

        self.horizon, self.rate = horizon, training[0].rate
        self._shape = (horizon, training[0].action.shape[1])
        targets = np.concatenate([chunks(d.action, horizon) for d in training]).reshape(-1, int(np.prod(self._shape)))
        self._mean = targets.mean(axis=0)
        values, vectors = np.linalg.eigh((targets - self._mean).T @ (targets - self._mean))
        share = np.cumsum(values[::-1]) / max(float(values.sum()), 1e-300)
        self._directions = vectors[:, ::-1][:, : 1 + int(np.searchsorted(share, KEPT))]
        self._model = ExtraTreesRegressor(TREES, random_state=seed)
        self._model.fit(np.concatenate([d.state for d in training]), (targets - self._mean) @ self._directions)

    def reset(self) -> None: ...

    def infer(self, observation: Observation) -> ActionChunk:
        found = self._model.predict(observation.state[None]).reshape(1, -1)
        return ActionChunk((self._mean + found @ self._directions.T).reshape(self._shape), self.rate)


class Blanked:
    """A policy that always sees the same ``tokens`` (N, F): what is left of it without sight."""

    def __init__(self, policy: ChunkPolicy, tokens: np.ndarray) -> None:
        self.policy, self.tokens, self.horizon = policy, tokens, policy.horizon

    def reset(self) -> None:
        self.policy.reset()

    def infer(self, observation: Observation) -> ActionChunk:
        return self.policy.infer(replace(observation, tokens=self.tokens))


def fit_baselines(training: Sequence[Demonstration], horizon: int = 16) -> dict[str, ChunkPolicy]:
    """The quick ones by name, fitted on ``training``; hold state only where each commanded joint is measured too."""
    first = training[0]
    policies: dict[str, ChunkPolicy] = {}
    if set(first.action_joints.names) <= set(first.state_joints.names):
        policies["hold state"] = HoldState(first.state_joints, first.action_joints, first.rate, horizon)
    policies["last action"] = LastAction(training, horizon)
    policies["mean action"] = MeanAction(training, horizon)
    policies["20-NN on state"] = NearestNeighbours(training, 20, horizon)
    return policies


def fit_all_baselines(
    training: Sequence[Demonstration], horizon: int = 16, every: int | None = None, grippers: Sequence[str] = ()
) -> dict[str, ChunkPolicy]:
    """Every baseline by name, in the order of tables: :func:`fit_baselines`' and those that take seconds to fit.

    ``every`` is the number of rows between two chunks (None: ``horizon``), ``grippers`` names action joints whose last
    command is repeated.
    """
    quick = fit_baselines(training, horizon)
    policies = {name: policy for name, policy in quick.items() if name in ("hold state", "last action")}
    policies["hold arm + last hand"] = HoldArmLastHand(training, horizon, grippers)
    policies["mean action"] = quick["mean action"]
    policies["same time index"] = SameTime(training, horizon, every)
    policies["1-NN on state"] = NearestNeighbours(training, 1, horizon)
    policies["5-NN on state"] = NearestNeighbours(training, 5, horizon)
    policies["20-NN on state"] = quick["20-NN on state"]
    policies["ridge on state"] = Ridge(training, horizon)
    policies["extra trees on state"] = ExtraTrees(training, horizon)
    return policies
