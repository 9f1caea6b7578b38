"""The student: its inputs, its chunks, its normalization."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.core.chunks import Observation
from sage_ros.policy.config import StudentConfig
from sage_ros.policy.normalization import Normalization, normalise
from sage_ros.policy.student import Student, StudentPolicy, task_features

CONFIG = StudentConfig(grid=(2, 3), features=5, state_dim=4, action_dim=3, width=32, queries=3)


def normalization(seed: int = 0, rows: int = 60) -> Normalization:
    rng = np.random.default_rng(seed)
    action = np.cumsum(rng.normal(size=(rows, 3)), axis=0)
    tokens = rng.normal(2.0, 3.0, size=(rows, 6, 5)).astype(np.float32)
    return Normalization.fit([rng.normal(size=(rows, 4))], [action], [tokens], CONFIG.horizon)


def policy(trained: bool = True) -> StudentPolicy:
    torch.manual_seed(0)
    student = Student(CONFIG)
    if trained:
        torch.nn.init.normal_(student.head.weight, std=0.1)
    return StudentPolicy(student, normalization(), 20.0)


def observation(seed: int = 1) -> Observation:
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(6, 5)).astype(np.float32)
    return Observation(tokens, rng.normal(size=4), rng.normal(size=3), "pick the cube")


def test_a_chunk_is_relative_to_the_last_command() -> None:
    seen = observation()
    chunk = policy(trained=False).infer(seen)
    assert chunk.rate == 20.0
    assert chunk.positions.shape == (16, 3)
    assert np.allclose(chunk.positions, seen.last_command)


def test_without_a_command_it_starts_from_the_mean_first_action_and_knows_it() -> None:
    student = policy()
    seen = replace(observation(), last_command=None)
    start = student.normalization.first_command
    assert np.allclose(policy(trained=False).infer(seen).positions, start)
    told = student.infer(replace(seen, last_command=start)).positions
    assert not np.allclose(student.infer(seen).positions, told)


def test_every_input_counts() -> None:
    student, seen = policy(), observation()
    chunk = student.infer(seen).positions
    moved = [
        replace(seen, tokens=seen.tokens + np.eye(6, 5, dtype=np.float32)),
        replace(seen, state=seen.state + 0.1),
        replace(seen, last_command=seen.last_command + 0.1 if seen.last_command is not None else None),
        replace(seen, task="put the plate away"),
    ]
    assert all(not np.allclose(student.infer(other).positions, chunk) for other in moved)


def test_the_place_of_a_token_counts() -> None:
    student, seen = policy(), observation()
    turned = replace(seen, tokens=np.ascontiguousarray(seen.tokens[::-1]))
    assert not np.allclose(student.infer(turned).positions, student.infer(seen).positions)


def test_answers_depend_on_nothing_but_the_observation() -> None:
    student = policy()
    first = student.infer(observation(1)).positions
    student.infer(replace(observation(2), task="another"))
    assert np.array_equal(student.infer(observation(1)).positions, first)


def test_a_batch_gives_what_single_rows_give() -> None:
    student = policy()
    seen = [observation(k) for k in range(4)]
    arrays = [np.stack([getattr(s, name) for s in seen]) for name in ("tokens", "state", "last_command")]
    tasks = np.stack([task_features(s.task) for s in seen])
    inputs = normalise(student.normalization, *arrays, np.zeros((4, 1)), tasks)
    with torch.inference_mode():
        offsets = student.student(*map(torch.from_numpy, inputs))[:, :16].numpy()
    for row, one in enumerate(seen):
        expected = one.last_command + student.normalization.offset_std * offsets[row]
        assert np.allclose(student.infer(one).positions, expected, atol=1e-5)


@pytest.mark.parametrize("name, value", [
    ("tokens", np.zeros((5, 6), np.float32)),
    ("state", np.zeros(3)),
    ("last_command", np.zeros((1, 3))),
    ("tokens", np.full((6, 5), np.nan, np.float32)),
    ("state", np.array([0.0, np.inf, 0.0, 0.0])),
    ("last_command", np.array([np.nan, 0.0, 0.0])),
])
def test_bad_input_is_refused_by_name(name: str, value: np.ndarray) -> None:
    with pytest.raises(ValueError, match=name.replace("_", " ")):
        policy().infer(replace(observation(), **{name: value}))


def test_inputs_far_from_the_training_data_stay_bounded() -> None:
    student, seen = policy(), observation()
    far, farther = (student.infer(replace(seen, state=seen.state + big)).positions for big in (1e6, 1e9))
    assert np.array_equal(far, farther)


@given(st.text(max_size=60))
def test_task_features_are_finite_and_short(text: str) -> None:
    features = task_features(text)
    assert features.shape == (64,)
    assert np.linalg.norm(features) == pytest.approx(1.0) or not features.any()
    assert np.array_equal(features, task_features(f"  {text}! "))


def test_task_features_are_the_same_everywhere() -> None:
    assert np.array_equal(task_features("Pick, the CUBE"), task_features("pick the cube"))
    assert not np.array_equal(task_features("pick the cube"), task_features("pick the plate"))
    assert np.flatnonzero(task_features("cube")).tolist() == [56]  # crc32(b"cube") % 64, on any machine


@given(st.integers(0, 100))
def test_normalization_survives_being_written_down(seed: int) -> None:
    norm = normalization(seed, rows=20)
    copy = Normalization.from_dict(norm.to_dict())
    assert all(np.array_equal(getattr(copy, name), getattr(norm, name)) for name in norm.to_dict())


def test_normalization_standardises_and_leaves_constants_alone() -> None:
    rng = np.random.default_rng(0)
    state = rng.normal(5.0, 2.0, size=(50, 2)) * [1.0, 0.0]
    action = rng.normal(size=(50, 3)) * [1.0, 1.0, 0.0] + [0, 0, 7.0]
    norm = Normalization.fit([state[:20], state[20:]], [action[:20], action[20:]],
                             [np.ones((20, 2, 1), np.float32), np.ones((30, 2, 1), np.float32)], 4)
    scaled = (state - norm.state_mean) / norm.state_std
    assert scaled.mean(axis=0) == pytest.approx([0, 0], abs=1e-9)
    assert scaled.std(axis=0) == pytest.approx([1, 0])
    assert norm.tokens_std.tolist() == [1.0]
    assert norm.offset_std[2] == 1.0
    assert norm.first_command == pytest.approx((action[0] + action[20]) / 2)
    assert (norm.action_low[2], norm.action_high[2]) == (7.0, 7.0)


@pytest.mark.parametrize("change", [
    {"state_std": [0.0] * 4}, {"state_mean": [float("nan")] * 4}, {"offset_std": None}, {"new": [1.0]},
])
def test_a_spoilt_normalization_is_refused(change: dict) -> None:
    values = normalization().to_dict() | change
    with pytest.raises((ValueError, TypeError)):
        Normalization.from_dict({k: v for k, v in values.items() if v is not None})


@pytest.mark.parametrize("change", [{"width": 30}, {"horizon": 0}, {"grid": (0, 3)}, {"ahead": (8,)}])
def test_impossible_sizes_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        StudentConfig(**({"grid": (2, 3), "features": 5, "state_dim": 4, "action_dim": 3} | change))
