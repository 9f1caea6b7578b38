"""Leave one episode out: what is trained on what, resuming, refusals; and the command line over a small data set."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from episode_sets import DEMO, needs_demo
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.core.chunks import ActionChunk, ChunkPolicy, Observation
from sage_ros.core.joints import JointError, JointLayout
from sage_ros.episodes import EpisodeWriter
from sage_ros.training import baselines, evaluate
from sage_ros.training.baselines import ExtraTrees, HoldArmLastHand, Ridge, SameTime, fit_all_baselines
from sage_ros.training.crossval import leave_one_out, load_prediction, make_folds, read_predictions, save_prediction
from sage_ros.training.openloop import (
    Demonstration,
    Prediction,
    compare,
    fit_layout,
    open_loop_error,
    padded,
    predict,
    predict_chunks,
)
from sage_ros.training.trainers import CloneStudent, student_options

JOINTS = JointLayout(("a", "b"), {"arm": (0, 2)})


def demonstration(index: int, rows: int = 20) -> Demonstration:
    rng = np.random.default_rng(index)
    state, action = rng.normal(size=(2, rows, 2))
    return Demonstration(index, "move", 20.0, state, action, np.zeros((rows, 1, 1), np.float32), JOINTS, JOINTS)


@dataclass
class Fixed:
    """Always the same positions, with a standard deviation."""

    value: float
    horizon: int = 8
    rate: float = 20.0
    shape: tuple[int, ...] | None = None

    def reset(self) -> None: ...

    def infer(self, observation: Observation) -> ActionChunk:
        positions = np.full(self.shape or (self.horizon, 2), self.value)
        return ActionChunk(positions, self.rate, np.full_like(positions, 0.5))


@dataclass
class Spy:
    """A trainer that remembers its calls; it fails on the call numbered ``fails``."""

    fails: int = -1
    calls: list[tuple[list[int], list[int], int]] = field(default_factory=list)

    def __call__(self, train: list[Demonstration], validation: list[Demonstration], seed: int) -> ChunkPolicy:
        if len(self.calls) == self.fails:
            raise RuntimeError("out of memory")
        self.calls.append(([d.index for d in train], [d.index for d in validation], seed))
        return Fixed(float(np.mean([d.action.mean() for d in train])) + seed)


def test_no_policy_is_trained_or_stopped_by_the_episode_it_is_judged_on(tmp_path: Path) -> None:
    demos, spy = [demonstration(i) for i in (3, 5, 8, 9)], Spy()
    found = leave_one_out(demos, spy, [0, 1], tmp_path / "out", progress=False)
    assert len(spy.calls) == 8
    order = [(seed, held) for seed in (0, 1) for held in (3, 5, 8, 9)]
    for (seed, held), (train, validation, given_seed) in zip(order, spy.calls, strict=True):
        assert sorted([*train, *validation]) == [i for i in (3, 5, 8, 9) if i != held]
        assert (len(validation), given_seed) == (1, seed)
        mean = np.mean([d.action.mean() for d in demos if d.index in train])
        assert np.allclose(found[seed][held].positions, mean + seed)
        assert found[seed][held].positions.shape == (20, 2) and np.all(found[seed][held].deviations == 0.5)


def test_a_run_that_was_stopped_goes_on_where_it_stopped(tmp_path: Path) -> None:
    demos, first = [demonstration(i) for i in range(4)], Spy(fails=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        leave_one_out(demos, first, [0], tmp_path, progress=False)
    second, third = Spy(), Spy()
    found = leave_one_out(demos, second, [0], tmp_path, progress=False)
    assert len(first.calls) == len(second.calls) == 2 and not list(tmp_path.glob("*.part"))
    more = leave_one_out(demos, third, [0, 7], tmp_path, progress=False)  # another seed: only that one is trained
    assert [seed for _, _, seed in third.calls] == [7] * 4
    assert all(np.array_equal(more[0][i].positions, found[0][i].positions) for i in range(4))


def test_results_of_other_episodes_or_settings_are_refused(tmp_path: Path) -> None:
    demos = [demonstration(i) for i in range(4)]
    leave_one_out(demos, Spy(), [0], tmp_path, "lr=1", progress=False)
    spy = Spy()
    for others, settings in ((demos, "lr=2"), ([*demos[:3], demonstration(9)], "lr=1")):
        with pytest.raises(ValueError, match="other episodes or settings"):
            leave_one_out(others, spy, [0], tmp_path, settings, progress=False)
    (tmp_path / "leave_one_out.json").unlink()
    with pytest.raises(ValueError, match="unknown origin"):
        leave_one_out(demos, spy, [0], tmp_path, "lr=1", progress=False)
    assert spy.calls == []


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    demos = [demonstration(i) for i in range(3)]
    alone = leave_one_out(demos, Spy(), [0], tmp_path / "alone", progress=False)
    shared = leave_one_out(demos, Spy(), [0], tmp_path / "shared", jobs=2, progress=False)
    assert all(np.array_equal(alone[0][i].chunks, shared[0][i].chunks) for i in range(3))


@given(st.integers(3, 12), st.integers(0, 4), st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True))
def test_folds_use_every_episode_once_and_hold_each_out(count: int, validation: int, seeds: list[int]) -> None:
    episodes = [10 * i for i in range(count)]
    if count < validation + 2:
        with pytest.raises(ValueError, match="--validation"):
            make_folds(episodes, seeds, validation)
        return
    folds = make_folds(episodes, seeds, validation)
    assert [(fold.seed, fold.held_out) for fold in folds] == [(s, e) for s in seeds for e in episodes]
    for fold in folds:
        assert sorted([fold.held_out, *fold.train, *fold.validation]) == episodes
        assert len(fold.validation) == validation
    assert folds == make_folds(episodes, seeds, validation)
    assert len({fold.name for fold in folds}) == len(folds)


def test_folds_of_unknown_episodes_or_repeated_seeds_are_refused() -> None:
    assert [fold.held_out for fold in make_folds([0, 1, 2], [0], 1, held=[2])] == [2]
    with pytest.raises(ValueError, match=r"no episode \[7\]"):
        make_folds([0, 1, 2], [0], 1, held=[7])
    with pytest.raises(ValueError, match="each once"):
        make_folds([0, 1, 2], [0, 0])


def test_predictions_made_elsewhere_are_read_by_joint_name_and_checked(tmp_path: Path) -> None:
    demo, other = demonstration(3), demonstration(4)
    found = predict_chunks(Fixed(2.0), demo)
    turned = Prediction(found.chunks * [1.0, 10.0], None, 20)
    save_prediction(tmp_path / "episode_000003_seed_5.npz", turned, ("b", "a"))
    read = read_predictions(tmp_path, [demo])
    assert read[5][3].positions[0].tolist() == [20.0, 2.0] and read[5][3].deviation is None
    with pytest.raises(ValueError, match=r"seed 5 has no prediction of episodes \[4\]"):
        read_predictions(tmp_path, [demo, other])
    with pytest.raises(ValueError, match="holds no predictions"):
        read_predictions(tmp_path, [other])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cut, "is not a prediction"),
        (lambda p: save_prediction(p, Prediction(np.full((2, 16, 2), np.nan), None, 20), ("a", "b")), "not finite"),
        (lambda p: save_prediction(p, Prediction(np.zeros((2, 16, 2)), None, 30), ("a", "b")), "is of 30 rows"),
        (lambda p: save_prediction(p, Prediction(np.zeros((2, 16, 2)), None, 20), ("a", "c")), "missing joints: b"),
        (lambda p: save_prediction(p, Prediction(np.zeros((2, 16, 3)), None, 20), ("a", "b")), "do not fit"),
    ],
)
def test_a_prediction_that_cannot_be_used_says_why(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "episode_000003_seed_0.npz"
    save_prediction(path, predict_chunks(Fixed(2.0), demonstration(3)), ("a", "b"))
    spoil(path)
    with pytest.raises((ValueError, JointError), match=message):
        load_prediction(path, demonstration(3))


def test_chunks_may_be_asked_for_more_often_than_they_last() -> None:
    demo = demonstration(0)
    assert predict_chunks(Fixed(1.0), demo, every=5).chunks.shape == (4, 5, 2)
    assert predict_chunks(Fixed(1.0), demo, steps=11, every=5).rows == 11
    with pytest.raises(ValueError, match="every 9 rows"):
        predict_chunks(Fixed(1.0), demo, every=9)
    with pytest.raises(ValueError, match=r"chunk is \(8, 3\)"):
        predict(Fixed(1.0, shape=(8, 3)), demo)


def test_padded_rows_count_as_in_gr00ts_script() -> None:
    demo = demonstration(0, rows=10)
    error = open_loop_error(Fixed(0.0), padded(demo, 15), steps=15)
    assert error == pytest.approx((np.sum(demo.action**2) + 5 * np.sum(demo.action[-1] ** 2)) / 30)
    assert len(padded(demo, 4)) == 10


def test_same_time_counts_rows_and_an_ended_episode_keeps_its_last_action() -> None:
    short, long = demonstration(1, 10), demonstration(2, 30)
    found = predict(SameTime([short, long], horizon=16), demonstration(0, 40))
    assert np.allclose(found[5], (short.action[5] + long.action[5]) / 2)
    assert np.allclose(found[20], (short.action[9] + long.action[20]) / 2)
    assert np.allclose(found[39], (short.action[9] + long.action[29]) / 2)
    often = predict_chunks(SameTime([short, long], 16, every=4), demonstration(0, 40), every=4)
    assert np.allclose(often.positions, found)


def test_hold_arm_and_last_hand_goes_by_whether_the_state_can_stand_for_the_command() -> None:
    joints = JointLayout(("arm", "hand", "still", "unmeasured"))
    measured = JointLayout(("still", "hand", "arm"))
    rows = np.arange(40)
    arm, hand = np.sin(rows / 5.0), np.where(rows % 20 < 5, 1.5, -1.5)
    action = np.stack([arm, hand, np.full(40, -1.5), arm], axis=1)
    state = np.stack([np.full(40, 0.2), hand, arm - 0.1], axis=1)  # 'still' is commanded to -1.5 and measured as 0.2
    demo = Demonstration(0, "", 20.0, state, action, np.zeros((40, 1, 1)), measured, joints)
    chunk = HoldArmLastHand([demo]).infer(demo.observation(5)).positions
    assert np.allclose(chunk, [arm[5] - 0.1, 1.5, -1.5, arm[4]])  # the hand has just been measured to open again
    assert np.allclose(HoldArmLastHand([demo], grippers=["arm"]).infer(demo.observation(5)).positions[0, 0], arm[4])


def test_ridge_finds_a_line_and_trees_know_their_training_rows() -> None:
    demo = demonstration(0, 200)
    line = Demonstration(0, "", 20.0, demo.state, demo.state @ [[1.0, 0.0], [2.0, 0.0]], demo.tokens, JOINTS, JOINTS)
    ridge = Ridge([line], horizon=1, penalty=1e-6)
    assert np.allclose(ridge.infer(line.observation(3)).positions, line.action[3], atol=1e-6)
    trees = ExtraTrees([line], horizon=2)
    assert np.allclose(trees.infer(line.observation(3)).positions, line.action[3:5], atol=0.05)


def test_every_baseline_has_a_name() -> None:
    demos = [demonstration(i) for i in range(3)]
    assert list(fit_all_baselines(demos)) == [
        "hold state", "last action", "hold arm + last hand", "mean action", "same time index", "1-NN on state",
        "5-NN on state", "20-NN on state", "ridge on state", "extra trees on state",
    ]  # fmt: skip


@needs_demo
def test_baselines_on_the_real_episodes_are_near_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from sage_ros.episodes.dataset import EpisodeDataset
    from sage_ros.training.openloop import demonstration as demonstration_of

    monkeypatch.setattr(baselines, "TREES", 20)
    dataset = EpisodeDataset(DEMO, video=False)
    demos = [demonstration_of(episode, np.zeros((len(episode), 1, 1), np.float32)) for episode in dataset]
    found: dict[str, list[float]] = {}
    for demo in demos:
        policies = fit_all_baselines([d for d in demos if d is not demo])
        for name, errors in compare(policies, [demo], ["right_arm"], None).items():
            found.setdefault(name, []).extend(errors)
    # Those are the means of five folds, these of the four episodes at hand.
    published = {"hold arm + last hand": 0.0269, "last action": 0.0173, "same time index": 0.158,
                 "1-NN on state": 0.163, "5-NN on state": 0.158, "20-NN on state": 0.136,
                 "extra trees on state": 0.106}  # fmt: skip
    for name, error in published.items():
        assert np.mean(found[name]) == pytest.approx(error, rel=0.15), name


class Patches:
    """An encoder of one token: the frame's mean colour."""

    name, grid, features, sha256 = "patches", (1, 1), 3, "a" * 64

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return (frames.mean(axis=(1, 2)) / 255.0)[:, None].astype(np.float32)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four episodes of 40 rows, and a stand-in for the encoder and the student's trainer."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(evaluate, "load_encoder", lambda *_: Patches())
    with EpisodeWriter(tmp_path / "data", 20, "toy", JOINTS, {"front": (16, 16)}) as writer:
        for index in range(4):
            demo = demonstration(index, 40)
            frames = np.full((40, 16, 16, 3), 50 * index, np.uint8)
            writer.add(state=demo.state, action=demo.action, frames={"front": frames}, task="move")
    return tmp_path / "data"


def test_the_command_line_leaves_one_out_and_writes_all_it_found(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spy = Spy()
    monkeypatch.setattr(evaluate, "CloneStudent", lambda grid, features, config, sizes, device: spy)
    monkeypatch.setattr(Spy, "__str__", lambda _: "spy")
    out, figures = tmp_path / "folds", tmp_path / "new" / "figures.json"
    command = ["--dataset", str(dataset), "--leave-one-out", "--seeds", "0", "4", "--out", str(out), "--steps", "10",
               "0", "--json", str(figures), "--every", "8"]  # fmt: skip
    assert evaluate.main([*command, "--", "--lr", "0.01"]) == 0
    first = capsys.readouterr().out
    assert len(spy.calls) == 8 and "student by seed, whole: 0: " in first
    assert "student beats last action on all, whole episodes: no" in first
    found = json.loads(figures.read_text())
    student = found["scores"]["all"]["whole"]["student"]
    assert (found["seeds"], found["episodes"]) == ([0, 4], [0, 1, 2, 3])
    assert np.shape(student["mse_by_seed_and_episode"]) == (2, 4)
    assert student["mse"] == pytest.approx(np.mean(student["mse_by_seed_and_episode"]))
    assert f"{student['mse']:.6f}" in first and student["calibration"]["width_90%"] == pytest.approx(1.645, abs=1e-3)

    shown = [*command, "--beside", f"ACT={out}", "--report", str(tmp_path / "report"), "--per-episode"]
    assert evaluate.main(shown) == 0  # nothing is trained again
    again = capsys.readouterr().out
    assert len(spy.calls) == 8 and "all, episode 3" in again
    assert (tmp_path / "report" / "evaluation.html").is_file()
    act = json.loads(figures.read_text())["scores"]["all"]["whole"]["ACT"]
    assert act["mse"] == student["mse"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--leave-one-out"], "needs --out"),
        (["--leave-one-out", "--out", "OUT", "--validation", "3"], "lower --validation"),
        (["--leave-one-out", "--out", "OUT", "--groups", "leg"], "no joint group leg"),
        (["--leave-one-out", "--out", "OUT", "--gripper", "claw"], "no action joint claw"),
        (["--leave-one-out", "--out", "OUT", "--episodes", "9"], "no episode [9]"),
        (["--leave-one-out", "--out", "OUT", "--", "--lr", "-1"], "lr is -1.0"),
        (["--", "--lr", "0.1"], "only --leave-one-out trains"),
        (["--steps", "-1"], "--steps must be positive"),
        (["--steps", "0", "0"], "each once"),
        (["--jobs", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_trained(
    dataset: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spy = Spy()
    monkeypatch.setattr(evaluate, "CloneStudent", lambda *_: spy)
    given_out = [str(tmp_path / "out") if part == "OUT" else part for part in more]
    assert evaluate.main(["--dataset", str(dataset), *given_out]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("evaluate: ") and message in error and spy.calls == []


def test_the_students_trainer_travels_to_another_process_and_obeys_its_settings() -> None:
    config, sizes, device = student_options(["--steps", "5", "--batch-size", "8", "--width", "32"], 3)
    train = CloneStudent((1, 1), 1, config, sizes, device)
    assert "steps=5 " in str(train) and "width=32" in str(train)
    assert str(train) != str(replace(train, sizes={**sizes, "width": 16}))
    policy = pickle.loads(pickle.dumps(train))([demonstration(0), demonstration(1)], [demonstration(2)], 3)
    assert predict(policy, demonstration(3)).shape == (20, 2)


def test_help_teaches_both_ways(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as left:
        evaluate.main(["--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and "examples:" in text and "--leave-one-out" in text
    monkeypatch.setattr(sys, "argv", ["evaluate", "--", "--help"])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert "--batch-size" in capsys.readouterr().out


def test_a_policys_joints_are_found_by_name_among_others() -> None:
    demo, few = demonstration(0), JointLayout(("b",), {"wrist": (0, 1)})
    found = fit_layout(demo, few, JointLayout(("b", "a")))
    assert np.array_equal(found.state, demo.state[:, [1]]) and np.array_equal(found.action, demo.action[:, [1, 0]])
    assert (found.state_joints, found.action_joints.names) == (few, ("b", "a"))
    with pytest.raises(JointError, match="missing joints: c"):
        fit_layout(demo, JointLayout(("c",)), JOINTS)
