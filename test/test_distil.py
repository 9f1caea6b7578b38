"""Distillation: it learns what the picture shows, repeatably, and its command line leaves an honest checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.core.crosscheck import STATISTICS
from sage_ros.core.irp import Budget, Refinement
from sage_ros.core.joints import JointLayout
from sage_ros.episodes import EpisodeDataset, EpisodeWriter
from sage_ros.policy.checkpoint import load_checkpoint
from sage_ros.policy.config import StudentConfig
from sage_ros.policy.student import StudentPolicy
from sage_ros.training import calibrate, evaluate
from sage_ros.training import distil as command
from sage_ros.training.calibration import SPREAD, clone_calibrated
from sage_ros.training.cloning import CloningConfig, clone
from sage_ros.training.distil import distil, split_episodes
from sage_ros.training.openloop import Demonstration, open_loop_error
from sage_ros.training.tokens import encode_frames, load_demonstrations
from sage_ros.vision import encoder as encoders

JOINTS = JointLayout(("pan", "lift"), {"arm": (0, 2)})
STUDENT = StudentConfig(grid=(2, 4), features=3, state_dim=2, action_dim=2, width=32, heads=2, queries=2, ahead=(),
                        history=8, persistence=0.9, clock=True)
QUICK = CloningConfig(
    steps=300, batch_size=32, evaluate_every=50, warmup=20, lr=3e-3, token_dropout=0.0, command_dropout=0.0,
    pose_noise=0.1,
)
ROWS = 48


class Pooled:
    """Mean colour of each of 2 x 4 patches, in [0, 1]."""

    name, grid, features = "pooled", (2, 4), 3

    def __init__(self, sha256: str = "c" * 64) -> None:
        self.sha256, self.encoded = sha256, 0

    def encode(self, frames: np.ndarray) -> np.ndarray:
        n, height, width, _ = frames.shape
        self.encoded += n
        patches = frames.reshape(n, 2, height // 2, 4, width // 4, 3).mean(axis=(2, 4))
        return (patches / 255.0).reshape(n, 8, 3).astype(np.float32)

    def refine(self, frame: np.ndarray, budget: Budget) -> Refinement[np.ndarray]:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pooled]:
    """A cache of its own, the pooling encoder in the registry, one thread."""
    pooled, threads = Pooled(), torch.get_num_threads()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(encoders.ENCODERS, "pooled", lambda source, device, runtime: pooled)
    torch.set_num_threads(1)
    yield pooled
    torch.set_num_threads(threads)


def episode(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """State, action, frames: the arm rests, then goes where the blue of the left and of the right half say."""
    rng = np.random.default_rng(seed)
    goal = rng.uniform(-1.0, 1.0, 2)
    share = np.clip((np.arange(ROWS) - 4) / 30.0, 0.0, 1.0)[:, None]
    action = share * goal
    state = np.vstack((action[:1], action[:-1])) + 0.01 * rng.normal(size=(ROWS, 2))
    frames = np.full((ROWS, 32, 64, 3), 90, np.uint8)
    frames[:, :, :32, 2] = int(127 + 100 * goal[0])
    frames[:, :, 32:, 2] = int(127 + 100 * goal[1])
    return state, action, frames


def demonstrations(count: int, start: int = 0) -> list[Demonstration]:
    found = []
    for seed in range(start, start + count):
        state, action, frames = episode(seed)
        tokens = encode_frames(Pooled(), frames)
        found.append(Demonstration(seed, "follow the blue", 20.0, state, action, tokens, JOINTS, JOINTS))
    return found


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "blue"
    with EpisodeWriter(folder, 20, "toy", JOINTS, {"front": (32, 64)}) as writer:
        for seed in range(9):
            state, action, frames = episode(seed)
            writer.add(state=state, action=action, frames={"front": frames}, task="follow the blue")
    return folder


def test_a_student_that_sees_beats_every_baseline_on_episodes_it_never_saw() -> None:
    demos = demonstrations(36)
    _, metrics = distil(demos[:26], demos[26:28], demos[28:], STUDENT, QUICK, blind=True, progress=False)
    errors = {name: np.mean(found) for name, found in metrics["errors"]["all, whole"].items()}
    student = errors.pop("student")
    assert set(errors) == {"hold state", "last action", "mean action", "20-NN on state", "student, tokens blanked",
                           "student, trained blind"}
    assert student < 0.5 * min(errors.values())
    assert metrics["measured_on"] == "held_out"


def test_the_same_seed_gives_the_same_student() -> None:
    demos, short = demonstrations(4), replace(QUICK, steps=8, evaluate_every=4)
    one, same = (clone(demos[:3], demos[3:], STUDENT, short, progress=False) for _ in range(2))
    other = clone(demos[:3], demos[3:], STUDENT, replace(short, seed=1), progress=False)
    assert one.curve == same.curve
    pairs = zip(one.student.state_dict().values(), same.student.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert other.curve != one.curve


def test_training_stops_when_validation_says_so_and_keeps_the_best() -> None:
    demos = demonstrations(4)
    eager = replace(QUICK, steps=4000, evaluate_every=10, patience=2)
    found = clone(demos[:3], demos[3:], STUDENT, eager, progress=False)
    steps, _, errors = zip(*found.curve, strict=True)
    assert steps[-1] == found.step + 20 < 4000
    assert found.step == steps[int(np.argmin(errors))]
    kept = StudentPolicy(found.student, found.normalization, 20.0)
    assert open_loop_error(kept, demos[3], steps=None) == pytest.approx(min(errors), rel=1e-5)


def test_a_student_that_learned_nothing_useful_carries_on_as_it_moves() -> None:
    demos = demonstrations(4)
    still = [replace(demos[3], action=np.zeros_like(demos[3].action))]  # following the blue is wrong here
    found = clone(demos[:3], still, STUDENT, replace(QUICK, steps=40, evaluate_every=10, patience=2), progress=False)
    assert found.step == 0
    kept = StudentPolicy(found.student, found.normalization, 20.0)
    velocity = demos[0].action[8] - demos[0].action[7]
    expected = demos[0].action[8] + np.cumsum(STUDENT.persistence ** np.arange(1, 17))[:, None] * velocity
    assert np.allclose(kept.infer(demos[0].observation(9)).positions, expected)


@pytest.mark.parametrize("validation", [0, 5])
def test_calibrated_deviations_hold_the_errors_of_episodes_not_trained_on(validation: int) -> None:
    demos = demonstrations(15)
    train, stop = demos[:5], demos[5 : 5 + validation]
    found = clone_calibrated(train, stop, STUDENT, replace(QUICK, steps=150), progress=False)
    student = StudentPolicy(found.student, found.normalization, 20.0)
    within = []
    for demo in demos[10:]:
        for row in range(0, ROWS - 16, 4):
            chunk = student.infer(demo.observation(row))
            assert chunk.deviation is not None
            within.append(np.abs(chunk.positions - demo.action[row : row + 16]) <= SPREAD * chunk.deviation)
    assert 0.75 < np.mean(within) < 0.99


def test_a_part_of_the_episodes_in_which_the_gripper_never_switches_spoils_no_calibration() -> None:
    gripped = []
    for place, demo in enumerate(demonstrations(3)):
        action = demo.action.copy()
        action[:, 1] = np.where((np.arange(ROWS) > 20) & (place == 0), 1.5, -1.5)  # in the first episode only
        gripped.append(replace(demo, action=action))
    student = replace(STUDENT, bits=(1,))
    found = clone_calibrated(gripped, [], student, replace(QUICK, steps=10), progress=False)
    assert np.isfinite(found.normalization.uncertainty).all()
    assert all(torch.isfinite(weights).all() for weights in found.student.state_dict().values())


def test_without_validation_the_last_weights_are_kept() -> None:
    found = clone(demonstrations(2), [], STUDENT, replace(QUICK, steps=12, evaluate_every=5), progress=False)
    assert [step for step, _, _ in found.curve] == [5, 10, 12]
    assert found.step == 12


def test_a_diverging_run_says_what_to_change() -> None:
    demos = demonstrations(2)
    wild = replace(QUICK, steps=100, evaluate_every=50, lr=1.0, weight_decay=10.0, warmup=1)
    with pytest.raises(ValueError, match=r"not finite at step 50: lower the learning rate \(--lr, now 1\.0\)"):
        clone(demos, [], STUDENT, wild, progress=False)


@given(st.integers(1, 40), st.integers(0, 20), st.integers(0, 20), st.integers(0, 3))
def test_a_split_uses_every_episode_once(count: int, held_out: int, validation: int, seed: int) -> None:
    indices = [7 + 2 * k for k in range(count)]
    if held_out + validation >= count:
        with pytest.raises(ValueError, match="left"):
            split_episodes(indices, str(held_out), str(validation), seed)
        return
    split = split_episodes(indices, str(held_out), str(validation), seed)
    assert sorted(split.train + split.validation + split.held_out) == indices
    assert (len(split.held_out), len(split.validation)) == (held_out, validation)
    assert split == split_episodes(indices, str(held_out), str(validation), seed)


@pytest.mark.parametrize("count, kept", [(1, (0, 0)), (2, (1, 0)), (3, (1, 0)), (4, (1, 0)), (40, (8, 4))])
def test_an_automatic_split_leaves_something_to_train_on(count: int, kept: tuple[int, int]) -> None:
    split = split_episodes(range(count), "auto", "auto")
    assert (len(split.held_out), len(split.validation)) == kept
    assert len(split.train) == count - sum(kept)


def test_a_split_takes_lists() -> None:
    split = split_episodes(range(6), "5,0", "2,")
    assert (split.held_out, split.validation, split.train) == ([0, 5], [2], [1, 3, 4])
    for held_out, validation in (("9,1", "0"), ("1,1", "0"), ("1,2", "2,3"), ("x", "0")):
        with pytest.raises(ValueError):
            split_episodes(range(6), held_out, validation)


def test_frames_are_encoded_once_per_encoder(dataset: Path, setting: Pooled, caplog: pytest.LogCaptureFixture) -> None:
    data = EpisodeDataset(dataset)
    first = load_demonstrations(data, setting, episodes=[1, 4], progress=False)
    assert setting.encoded == 2 * ROWS
    again = load_demonstrations(data, setting, episodes=[4], progress=False)
    assert setting.encoded == 2 * ROWS
    assert np.array_equal(again[0].tokens, first[1].tokens)
    assert first[0].tokens.shape == (ROWS, 8, 3)
    other = Pooled("d" * 64)
    load_demonstrations(data, other, episodes=[4], progress=False)
    assert other.encoded == ROWS
    for file in command_cache(dataset).rglob("*.safetensors"):
        file.write_bytes(b"spoilt")
    mended = load_demonstrations(data, setting, episodes=[4], progress=False)
    assert np.array_equal(mended[0].tokens, first[1].tokens)
    assert "damaged" in caplog.text


def command_cache(dataset: Path) -> Path:
    return dataset.parent / "cache"


def test_an_unknown_episode_is_named(dataset: Path, setting: Pooled) -> None:
    with pytest.raises(ValueError, match=r"no episode \[77\]"):
        load_demonstrations(EpisodeDataset(dataset), setting, episodes=[1, 77], progress=False)


def run_distil(dataset: Path, out: Path, *more: str) -> int:
    return command.main([
        "--dataset", str(dataset), "--out", str(out), "--encoder", "pooled", "--encoder-source", "a/hub-name",
        "--holdout", "2", "--validation", "1", "--steps", "30", "--evaluate-every", "10", "--batch-size", "16",
        "--threads", "1", "--device", "cpu", *more,
    ])


def test_the_command_line_leaves_a_checkpoint_that_evaluates_to_its_own_figures(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student"
    assert run_distil(dataset, out, "--seeds", "0", "1") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("student", "hold state", "last action", "mean action", "20-NN on state"))
    loaded = load_checkpoint(out)
    metrics = loaded.metrics
    assert (loaded.encoder_name, loaded.encoder_source, loaded.cameras) == ("pooled", "a/hub-name", ("front",))
    assert [len(metrics["split"][part]) for part in ("train", "validation", "held_out")] == [6, 1, 2]
    assert metrics["dataset"]["fingerprint"] == EpisodeDataset(dataset).fingerprint()
    assert [seed["seed"] for seed in metrics["seeds"]] == [0, 1]
    chosen = min(metrics["seeds"], key=lambda seed: seed["validation_error"])
    assert metrics["seed"] == chosen["seed"]
    assert np.mean(metrics["errors"]["all, whole"]["student"]) == pytest.approx(chosen["errors"]["all, whole"])
    card = (out / "README.md").read_text()
    assert "20-NN on state" in card and str(tmp_path) not in card + json.dumps(metrics)

    assert evaluate.main(["--checkpoint", str(out), "--dataset", str(dataset), "--steps", "0"]) == 0
    shown = capsys.readouterr().out.partition("\n")[2]
    for name, errors in metrics["errors"]["all, whole"].items():
        line = next(line for line in shown.splitlines() if line.startswith(f"{name} "))
        assert f"{np.mean(errors):.6f}" in line
    assert "trained on" not in shown.lower()
    trained_on = str(metrics["split"]["train"][0])
    evaluate.main(["--checkpoint", str(out), "--dataset", str(dataset), "--episodes", trained_on])
    assert "were trained on" in capsys.readouterr().out

    given = ["--checkpoint", str(out), "--dataset", str(dataset), "--corrupt", "occlusion:5", "biased_joints"]
    assert evaluate.main([*given, "--fault-at", "0.3", "--every", "4", "--json", str(tmp_path / "figures.json")]) == 0
    table = capsys.readouterr().out.partition("under corruptions from 0.3 s on")[2]
    costs = json.loads((tmp_path / "figures.json").read_text())["corruptions"]
    assert list(costs) == ["clean", "occlusion:5", "biased_joints:3", "blind"]
    assert all(len(cost["with_trust"]) == 2 and f"\n{name} " in table for name, cost in costs.items())
    assert evaluate.main([*given, "--fault-at", "99"]) == 1
    assert "after the end of episode" in capsys.readouterr().err


def test_a_student_comes_with_the_checks_that_calibrate_fits_to_its_training_episodes(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "student"
    assert run_distil(dataset, out, "--steps", "1") == 0
    assert "without checks" not in capsys.readouterr().out
    loaded = load_checkpoint(out)
    found, split = loaded.calibration.checks, loaded.metrics["split"]
    aside = [str(index) for part in ("validation", "held_out") for index in split[part]]
    again = ["--checkpoint", str(out), "--dataset", str(dataset)]
    assert calibrate.main([*again, "--leave-out", *aside]) == 0
    fitted = load_checkpoint(out).calibration.checks
    assert found is not None and fitted is not None
    for name, array in found.arrays().items():
        np.testing.assert_allclose(array, fitted.arrays()[name], rtol=1e-5, err_msg=name)
    printed = capsys.readouterr().out
    assert all(name in printed for name in STATISTICS)

    assert run_distil(dataset, tmp_path / "few", "--steps", "1", "--holdout", "3") == 0
    assert "without checks of camera, joints and commands" in (said := capsys.readouterr().out)
    assert "5 episodes to calibrate on; at least 6 are needed" in said
    assert load_checkpoint(tmp_path / "few").calibration.checks is None
    few = ["--checkpoint", str(tmp_path / "few"), "--dataset", str(dataset)]
    assert calibrate.main([*few, "--leave-out", "0", "1", "2", "3"]) == 2
    assert "5 episodes to calibrate on" in capsys.readouterr().err
    monkeypatch.setattr(calibrate, "MEMORY", 1)  # much less than they take: no reason to leave out what is needed
    assert calibrate.main(few) == 0, "all but the three that are held out"
    assert load_checkpoint(tmp_path / "few").calibration.checks is not None


def test_the_command_line_refuses_before_it_trains(
    dataset: Path, tmp_path: Path, setting: Pooled, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    for out, more, message in (
        (full, [], "--overwrite"),
        (full, ["--overwrite"], "no student checkpoint"),
        (tmp_path / "new", ["--encoder", "magic"], "there is no encoder 'magic'"),
        (tmp_path / "new", ["--holdout", "8"], "left to train on"),
        (tmp_path / "new", ["--lr", "-1"], "lr is -1.0"),
        (tmp_path / "new", ["--camera", "wrist"], "wrist"),
        (tmp_path / "new", ["--dataset", str(tmp_path / "none")], "none"),
    ):
        assert run_distil(dataset, out, *more) == 1
        assert message in capsys.readouterr().err
    assert setting.encoded == 0
    assert not (tmp_path / "new").exists()


def test_evaluate_refuses_another_robots_episodes(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_distil(dataset, tmp_path / "student", "--steps", "1") == 0
    other = tmp_path / "other"
    with EpisodeWriter(other, 20, "toy", JointLayout(("yaw", "lift"), {"arm": (0, 2)}), {"front": (32, 64)}) as writer:
        state, action, frames = episode(0)
        writer.add(state=state, action=action, frames={"front": frames}, task="follow the blue")
    assert evaluate.main(["--checkpoint", str(tmp_path / "student"), "--dataset", str(other)]) == 1
    assert "are yaw, lift, but" in capsys.readouterr().err
    assert evaluate.main(["--checkpoint", str(tmp_path / "student"), "--dataset", str(dataset), "--groups", "leg"]) == 1
    assert "no joint group leg" in capsys.readouterr().err


def test_a_student_that_a_trivial_baseline_beats_is_said_not_to_be_worth_running() -> None:
    errors = {
        "all, whole": {"student": [0.2, 0.4], "last action": [0.1, 0.2], "hold state": [1.0, 1.0],
                       "student, tokens blanked": [0.1, 0.1]},
        "all, 150 steps": {"student": [0.1], "last action": [0.2], "hold state": [1.0]},
        "arm, whole": {"student": [0.3], "last action": [0.1], "hold state": [1.0]},
    }  # fmt: skip
    (warning,) = command.not_beaten(errors)
    assert "'all, whole' last action err" in warning and "hold state" not in warning
