"""Training at scale: what is killed goes on bit for bit, what does not fit into memory is streamed, many share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sage_ros.core.joints import JointLayout
from sage_ros.episodes import EpisodeDataset, EpisodeWriter
from sage_ros.paths import ENCODER
from sage_ros.policy.config import StudentConfig
from sage_ros.policy.student import StudentPolicy
from sage_ros.teacher import label
from sage_ros.teacher.labels import load_labels
from sage_ros.training import distil as command
from sage_ros.training.calibration import clone_calibrated
from sage_ros.training.cloning import Cloned, clone
from sage_ros.training.engine import Engine
from sage_ros.training.openloop import Demonstration
from sage_ros.training.resume import INDEX, State, Unfinished
from sage_ros.training.rows import Rows
from sage_ros.training.settings import CloningConfig
from sage_ros.training.tokens import load_demonstrations
from sage_ros.vision.encoder import load_encoder

JOINTS = JointLayout(("pan", "lift", "grip"), {"arm": (0, 2), "gripper": (2, 3)})
STUDENT = StudentConfig(grid=(2, 2), features=3, state_dim=3, action_dim=3, width=16, heads=2, queries=2, trunk=16,
                        history=4, persistence=0.9, clock=True, bits=(2,))  # fmt: skip
QUICK = CloningConfig(steps=24, batch_size=12, evaluate_every=8, warmup=4, dropout=0.2)
ROWS = 30


@pytest.fixture(autouse=True)
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own, one thread."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def motion(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    action = np.cumsum(0.1 * rng.normal(size=(ROWS, 3)), axis=0)
    action[:, 2] = np.where(np.arange(ROWS) < 10 + seed, -1.5, 1.5)
    return np.vstack((action[:1], action[:-1])), action


def demonstrations(count: int) -> list[Demonstration]:
    found = []
    for seed in range(count):
        tokens = np.random.default_rng(seed).normal(size=(ROWS, 4, 3)).astype(np.float32)
        found.append(Demonstration(seed, "move", 20.0, *motion(seed), tokens, JOINTS, JOINTS))
    return found


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "moves"
    with EpisodeWriter(folder, 20, "toy", JOINTS, {"front": (32, 32)}) as writer:
        for seed in range(5):
            state, action = motion(seed)
            frames = np.random.default_rng(seed).integers(0, 255, (ROWS, 32, 32, 3), np.uint8)
            writer.add(state=state, action=action, frames={"front": frames}, task="move")
    return folder


def arguments(dataset: Path, out: Path, *more: str) -> list[str]:
    return ["--dataset", str(dataset), "--out", str(out), "--holdout", "1", "--validation", "1", "--width", "16",
            "--batch-size", "12", "--threads", "1", "--device", "cpu", "--evaluate-every", "10", *more]  # fmt: skip


def same(one: Cloned, other: Cloned) -> bool:
    pairs = zip(one.student.state_dict().values(), other.student.state_dict().values(), strict=True)
    return str(one.curve) == str(other.curve) and all(torch.equal(a, b) for a, b in pairs)


class Killed(Exception):
    pass


class Fragile(Unfinished):
    """Dies right after its ``left``-th saving."""

    left = 0

    def save(self, name: str, state: State) -> None:
        super().save(name, state)
        self.left -= 1
        if not self.left:
            raise Killed


@pytest.mark.parametrize("validation", [0, 1])
def test_a_training_that_is_stopped_anywhere_ends_as_if_it_had_not_been(validation: int, tmp_path: Path) -> None:
    demos = demonstrations(3)
    training, aside = demos[validation:], demos[:validation]

    def train(unfinished: Unfinished | None) -> Cloned:
        engine = Engine(save_every=5)
        return clone_calibrated(training, aside, STUDENT, QUICK, engine, False, unfinished)

    whole = train(None)
    deaths = 0
    while True:
        fragile = Fragile(tmp_path / "unfinished", {"a": 1})
        fragile.left = 2
        try:
            found = train(fragile)
            break
        except Killed:
            deaths += 1
    assert deaths == (2 if validation else 10), "five savings of each of one or four trainings"
    assert same(found, whole)
    assert found.normalization.to_dict() == whole.normalization.to_dict()


def test_a_process_killed_with_sigkill_goes_on_to_the_same_checkpoint(dataset: Path, tmp_path: Path) -> None:
    more = ("--steps", "600", "--save-every", "20")
    script = [sys.executable, "-m", "sage_ros.training.distil", *arguments(dataset, tmp_path / "killed", *more)]
    process = subprocess.Popen(script, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    saved = tmp_path / "killed.training" / "seed_0.safetensors"
    while not saved.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "killed").exists()
    assert command.main(arguments(dataset, tmp_path / "killed", *more)) == 0
    assert command.main(arguments(dataset, tmp_path / "whole", *more)) == 0
    for name in ("model.safetensors", "normalization.json", "calibration.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not saved.parent.exists()


def test_what_an_interrupted_training_left_is_not_taken_for_another(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "model_card", stop)
        assert command.main(arguments(dataset, tmp_path / "out", "--steps", "2")) == 130
    assert "same command goes on" in capsys.readouterr().err
    assert command.main(arguments(dataset, tmp_path / "out", "--steps", "3")) == 1
    assert "with another settings: repeat its command" in capsys.readouterr().err
    with (tmp_path / "out.training" / "seed_0.safetensors").open("ab") as file:
        file.truncate(100)
    assert command.main(arguments(dataset, tmp_path / "out", "--steps", "2")) == 1
    assert "seed_0.safetensors is damaged" in capsys.readouterr().err
    assert command.main(arguments(dataset, tmp_path / "out", "--steps", "3", "--restart")) == 0
    folder = tmp_path / "other.training"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert command.main(arguments(dataset, tmp_path / "other", "--steps", "3", "--restart")) == 1
    assert "holds something else" in capsys.readouterr().err and (folder / "notes.txt").exists()


def test_rows_that_do_not_fit_into_memory_are_streamed_to_the_same_student(tmp_path: Path, dataset: Path) -> None:
    encoder, data = load_encoder("tiny_vae", ENCODER), EpisodeDataset(dataset)
    held = load_demonstrations(data, encoder, progress=False)
    mapped = load_demonstrations(data, encoder, progress=False, memory=1000)
    assert all(np.array_equal(one.tokens, other.tokens) for one, other in zip(held, mapped, strict=True))
    files = Path("/proc/self/maps").read_text()
    assert files.count("episode_00000") >= 5, "tokens lie in mapped files"
    student = replace(STUDENT, grid=encoder.grid, features=encoder.features)
    assert Rows(mapped, student, QUICK, torch.device("cpu"), memory=1000).streamed
    found = [clone(demos[:4], demos[4:], student, QUICK, Engine(memory=memory, save_every=5), False, Unfinished(at, {}))
             for demos, memory, at in ((held, None, tmp_path / "a"), (mapped, 1000, tmp_path / "b"))]  # fmt: skip
    assert same(*found)
    fragile = Fragile(tmp_path / "c", {})
    fragile.left = 2
    with pytest.raises(Killed):
        clone(mapped[:4], mapped[4:], student, QUICK, Engine(memory=1000, save_every=5), False, fragile)
    fragile.left = 100
    assert same(clone(mapped[:4], mapped[4:], student, QUICK, Engine(memory=1000, save_every=5), False, fragile),
                found[0])  # fmt: skip


def test_changed_tokens_in_the_cache_are_noticed(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder, data = load_encoder("tiny_vae", ENCODER), EpisodeDataset(dataset)
    (first,) = load_demonstrations(data, encoder, episodes=[0], progress=False)
    (file,) = (tmp_path / "cache").rglob("episode_000000.safetensors")
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    (again,) = load_demonstrations(data, encoder, episodes=[0], progress=False)
    assert np.array_equal(first.tokens, again.tokens) and "another sha256" in caplog.text


def test_a_step_in_parts_learns_from_as_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    demos, asked = demonstrations(3), []
    draw = Rows.batch
    monkeypatch.setattr(Rows, "batch", lambda rows, n: asked.append(n) or draw(rows, n))
    still = replace(QUICK, steps=4, pose_noise=0.0, motion_noise=0.0, command_noise=0.0, token_noise=0.0, dropout=0.0,
                    token_dropout=0.0, command_dropout=0.0)  # fmt: skip
    found = clone(demos, [], STUDENT, still, Engine(accumulate=3), False)
    assert asked == [4] * 12
    assert found.curve[-1][1] == pytest.approx(clone(demos, [], STUDENT, still, "cpu", False).curve[-1][1], rel=0.5)
    with pytest.raises(ValueError, match="--batch-size 12 is no multiple of 1 processes x 5 parts"):
        clone(demos, [], STUDENT, QUICK, Engine(accumulate=5), False)


def test_the_gradients_of_a_step_in_parts_are_those_of_the_whole_step() -> None:
    net = torch.nn.Linear(3, 1)
    x = torch.randn(12, 3)
    net(x).pow(2).mean().backward()
    whole = net.weight.grad
    assert whole is not None
    net.zero_grad()
    for part in x.chunk(3):
        Engine(accumulate=3).backward(net, net(part).pow(2).mean(), last=True)
    assert net.weight.grad is not None and torch.allclose(net.weight.grad, whole)


def test_mixed_precision_keeps_weights_whole_and_learns() -> None:
    pytest.importorskip("accelerate")
    demos = demonstrations(3)
    mixed = clone(demos, [], STUDENT, QUICK, Engine(precision="bf16"), False)
    whole = clone(demos, [], STUDENT, QUICK, "cpu", False)
    assert {weights.dtype for weights in mixed.student.state_dict().values()} == {torch.float32}
    assert mixed.curve != whole.curve and mixed.curve[-1][1] == pytest.approx(whole.curve[-1][1], rel=0.05)
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        Engine(precision="fp16")


def test_two_processes_share_each_step_and_leave_one_checkpoint(dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    more = arguments(dataset, tmp_path / "out", "--steps", "20", "--curves", str(tmp_path / "curves"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run([*torchrun, "-m", "sage_ros.training.distil", *more], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checkpoint: ") == 1 and "cpu, 2 processes, fp32" in done.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["processes"] == 2 and metrics["errors"]
    assert list((tmp_path / "curves" / "seed_0").glob("events.out.tfevents.*"))
    assert not (tmp_path / "out.training").exists()


def test_curves_need_tensorboard(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert command.main(arguments(dataset, tmp_path / "out", "--curves", str(tmp_path / "curves"))) == 1
    assert "pip install 'sage_ros[train]'" in capsys.readouterr().err


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_out_of_memory_says_what_to_lower(
    error: Exception, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(command, "distil", fail)
    assert command.main(arguments(dataset, tmp_path / "out", "--memory", "2")) == 1
    said = capsys.readouterr().err
    assert all(word in said for word in ("--memory (now 2 GiB)", "--batch-size (now 12)", "--accumulate (now 1)"))


# Labels


def taught(demo: Demonstration, rows: slice, by: float, horizon: int = 20) -> Demonstration:
    labels = np.full((ROWS, horizon, 3), np.nan, np.float32)
    labels[rows] = demo.action[rows, None] + by
    return replace(demo, labels=labels)


def test_labelled_rows_have_the_teachers_chunk_and_the_others_the_recorded_one() -> None:
    demos = demonstrations(2)
    shown = [taught(demos[0], slice(3, 6), 0.5), demos[1]]
    plain, rows = (Rows(x, STUDENT, QUICK, torch.device("cpu"))._held for x in (demos, shown))
    scale = Rows(demos, STUDENT, QUICK, torch.device("cpu")).norm.offset_std
    differ = (plain.target != rows.target).any(dim=2)
    assert differ.nonzero()[:, 0].unique().tolist() == [3, 4, 5]
    assert differ[3:6, :16].all() and not differ[:, 16:].any(), "beyond the teacher's 20 rows it stays as recorded"
    command = demos[0].action[2]
    assert np.allclose(rows.target[3, 0].numpy() * scale, demos[0].action[3] + 0.5 - command, atol=1e-5)
    only = Rows(shown, STUDENT, replace(QUICK, labelled_only=True), torch.device("cpu"))
    assert only.count == 3 and torch.equal(only._held.target, rows.target[3:6])


def test_a_student_learns_what_its_teacher_does_rather_than_what_was_recorded() -> None:
    demos = demonstrations(3)
    shifted = [taught(demo, slice(None), 0.3, 64) for demo in demos]
    config = replace(QUICK, steps=150, batch_size=32, dropout=0.0, lr=2e-2, command_noise=0.0)
    student = replace(STUDENT, bits=(), queries=0)
    offsets = []
    for training in (demos, shifted):
        found = clone(training, [], student, config, "cpu", False)
        chunk = StudentPolicy(found.student, found.normalization, 20.0).infer(demos[0].observation(12))
        offsets.append(chunk.positions[0, :2] - demos[0].action[12, :2])
    assert np.allclose(offsets[1] - offsets[0], 0.3, atol=0.12)


def test_the_command_learns_from_labels_and_says_so_in_checkpoint_and_card(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels"
    made = ["--dataset", str(dataset), "--teacher", "demonstrations", "--out", str(labels), "--every", "3"]
    assert label.main([*made, "--horizon", "24", "--episodes", "0", "1", "2"]) == 0
    more = ("--steps", "2", "--labels", str(labels))
    assert command.main(arguments(dataset, tmp_path / "out", *more, "--holdout", "3,", "--validation", "4,")) == 0
    assert "taught by demonstrations: 30 of 90 training rows are labelled" in capsys.readouterr().out
    kept = json.loads((tmp_path / "out" / "metrics.json").read_text())["labels"]
    assert (kept["teacher"], kept["every"], kept["horizon"]) == ("demonstrations", 3, 24)
    assert (kept["episodes"], kept["training_rows"], kept["of"]) == ([0, 1, 2], 30, 90)
    assert "Taught by demonstrations" in (tmp_path / "out" / "README.md").read_text()
    assert np.isnan(load_labels(labels, EpisodeDataset(dataset))[0][1]).all()


def test_labels_that_do_not_fit_are_refused_before_anything_is_trained(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def labels(name: str, *more: str, of: Path = dataset) -> str:
        folder = str(tmp_path / name)
        assert label.main(["--dataset", str(of), "--teacher", "demonstrations", "--out", folder, *more]) == 0
        return folder

    other = tmp_path / "other"
    with EpisodeWriter(other, 20, "toy", JOINTS, {"front": (32, 32)}) as writer:
        for seed in (7, 8):
            state, action = motion(seed)
            writer.add(state=state, action=action, frames={"front": np.zeros((ROWS, 32, 32, 3), np.uint8)}, task="no")
    spoilt = Path(labels("spoilt"))
    (spoilt / "episode_000000.safetensors").write_bytes(b"spoilt")
    renamed = Path(labels("renamed"))
    index = json.loads((renamed / "index.json").read_text())
    index["key"]["joints"][0] = "yaw"
    (renamed / "index.json").write_text(json.dumps(index))
    for folder, more, says in (
        (labels("of another", of=other), (), "labels of another data set"),
        (labels("short", "--horizon", "8"), (), "reach 8 rows ahead, but a student's chunk has 16"),
        (str(renamed), (), "yaw"),
        (str(spoilt), (), "damaged or changed (its sha256 is another)"),
        (labels("held out", "--episodes", "4"), ("--holdout", "4,"), "none of which is trained on"),
        (str(tmp_path / "nowhere"), (), "name a folder that `label` has made"),
    ):
        assert command.main(arguments(dataset, tmp_path / "out", "--labels", folder, *more)) == 1
        assert says in capsys.readouterr().err
    assert command.main(arguments(dataset, tmp_path / "out", "--labelled-only")) == 1
    assert "--labels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / f"out.training/{INDEX}").exists()
