"""The student: its inputs, its chunks, its normalization."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.core.chunks import Observation, Past
from sage_ros.core.history import history, recall
from sage_ros.core.timing import StampBuffer
from sage_ros.policy.config import StudentConfig
from sage_ros.policy.motion import motion_features
from sage_ros.policy.normalization import STAYS, STILL, Normalization, normalise, spread
from sage_ros.policy.student import DOUBTS, Student, StudentPolicy, task_features

CONFIG = StudentConfig(
    grid=(2, 3), features=5, state_dim=4, action_dim=3, width=32, queries=3, history=8, persistence=0.9, clock=True
)


def normalization(seed: int = 0, rows: int = 60) -> Normalization:
    rng = np.random.default_rng(seed)
    action = np.cumsum(rng.normal(size=(rows, 3)), axis=0)
    tokens = rng.normal(2.0, 3.0, size=(rows, 6, 5)).astype(np.float32)
    return Normalization.fit([rng.normal(size=(rows, 4))], [action], [tokens], CONFIG.horizon, np.ones(CONFIG.motion))


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
    nothing = np.full((4, 17, 3), np.nan), np.full((4, 5, 4), np.nan), np.zeros(4)
    motion = motion_features(CONFIG, *nothing)
    inputs = normalise(student.normalization, *arrays, np.zeros((4, 1)), tasks, motion)
    with torch.inference_mode():
        offsets = student.student(*map(torch.from_numpy, inputs))[0][:, :16].numpy()
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
                             [np.ones((20, 2, 1), np.float32), np.ones((30, 2, 1), np.float32)], 4, np.ones(1))
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


def test_a_joint_that_hardly_moves_is_not_blown_up() -> None:
    assert spread(np.array([1.0, 1e-3, 0.5]), np.array([True, True, True])) == pytest.approx([1.0, STILL, 0.5])
    assert spread(np.array([1.0, 1e-3, 0.0])) == pytest.approx([1.0, 1e-3, 1.0])


def test_what_is_known_of_a_row_is_the_same_recorded_and_live() -> None:
    rng = np.random.default_rng(0)
    state, action = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
    commands, states = history(state, action, np.arange(30))
    sent: StampBuffer[np.ndarray] = StampBuffer(64)
    measured: StampBuffer[np.ndarray] = StampBuffer(64)
    for row in range(30):
        stamp = 5_000_000_000 + row * 50_000_000
        measured.add(stamp, state[row])
        past = recall(sent, measured, stamp, 5_000_000_000, 20.0, (3, 4), (2_000_000_000, 10_000_000))
        assert np.array_equal(past.commands, commands[row], equal_nan=True)
        assert np.array_equal(past.states, states[row], equal_nan=True)
        assert past.elapsed == pytest.approx(row / 20.0)
        sent.add(stamp + 1, action[row])


def test_motion_does_not_depend_on_where_the_robot_is() -> None:
    rng = np.random.default_rng(0)
    config = replace(CONFIG, measured=(1, -1, 0))
    commands, states = history(rng.normal(size=(30, 4)), rng.normal(size=(30, 3)), np.arange(30))
    moved = rng.normal(size=3)
    along = np.array([moved[2], moved[0], 5.0, 7.0])  # the measured joints go along; joint 1 is not measured
    here = motion_features(config, commands, states, np.zeros(30))
    there = motion_features(config, commands + moved, states + along, np.zeros(30))
    assert here.shape == (30, config.motion)
    assert np.allclose(here, there, atol=1e-5)


def test_an_untrained_student_carries_on_as_it_moves_and_leaves_a_bit_alone() -> None:
    config = replace(CONFIG, bits=(2,), persistence=0.5)
    norm = normalization()
    norm = replace(norm, action_low=np.array([-9.0, -9.0, 0.0]), action_high=np.array([9.0, 9.0, 1.0]))
    untrained = StudentPolicy(Student(config), norm, 20.0)
    action = np.stack([np.arange(20.0), np.zeros(20), np.repeat([0.0, 1.0], 10)], axis=1)
    commands, states = history(np.zeros((21, 4)), np.vstack((action, action[-1:])), np.array([20]))
    past = Past(commands[0], states[0], 1.0)
    seen = replace(observation(), last_command=action[-1], past=past)
    chunk = untrained.infer(seen)
    assert chunk.positions[:3, 0] == pytest.approx([19.5, 19.75, 19.875])
    assert chunk.positions[:, 1] == pytest.approx(np.zeros(16))
    assert chunk.positions[:, 2] == pytest.approx(np.full(16, 1 / (1 + np.exp(-STAYS))))
    assert chunk.deviation is not None and (chunk.deviation > 0).all()


def test_confidence_falls_where_the_expected_error_is_beyond_all_calibration() -> None:
    student = policy()
    usual = student.expected_error(student.infer(observation()))
    for share, confidence in ((1.0, 1.0), (1.5, 0.5), (3.0, 0.0)):
        norm = replace(student.normalization, doubt=np.array([usual / share]))
        assert StudentPolicy(student.student, norm, 20.0).infer(observation()).confidence == pytest.approx(confidence)


@pytest.mark.parametrize("end", [0, 1])
def test_doubts_are_cut_where_training_cuts_them(end: int) -> None:
    student = policy()
    torch.nn.init.constant_(student.student.doubt.bias, 100.0 * (2 * end - 1))
    chunk = student.infer(observation())
    assert chunk.deviation is not None
    assert np.allclose(chunk.deviation, student.normalization.offset_std * np.exp(DOUBTS[end]))


def test_a_bit_that_never_switched_in_training_stays_where_it_was() -> None:
    config, norm = replace(CONFIG, bits=(2,)), normalization()
    low = norm.action_low[2]
    norm = replace(norm, action_high=np.array([*norm.action_high[:2], low]))
    student = StudentPolicy(Student(config), norm, 20.0)
    for value in (low, low + 1.0):  # the other value too, which other episodes have
        chunk = student.infer(replace(observation(), last_command=np.array([0.0, 0.0, value])))
        assert chunk.deviation is not None
        assert np.isfinite(chunk.positions).all() and (chunk.positions[:, 2] == low).all()
        assert (chunk.deviation[:, 2] == 0.0).all()
