"""A student on disk: it comes back as it was, and nothing damaged, unfitting or dangerous is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from sage_ros.core.chunks import Observation
from sage_ros.core.irp import Budget, Refinement
from sage_ros.core.joints import JointLayout
from sage_ros.core.trust import Calibration
from sage_ros.policy.checkpoint import load_checkpoint, save_checkpoint
from sage_ros.policy.config import StudentConfig
from sage_ros.policy.manifest import INSIDE, CheckpointError, EncoderReference, Manifest, file_sha256
from sage_ros.policy.normalization import Normalization
from sage_ros.policy.student import Student, StudentPolicy
from sage_ros.vision import encoder as encoders

STATE = JointLayout(("pan", "lift", "grip"), {"arm": (0, 2), "gripper": (2, 3)})
ACTION = JointLayout(("pan", "lift"), {"arm": (0, 2)})
CONFIG = StudentConfig(grid=(2, 2), features=3, state_dim=3, action_dim=2, width=16, heads=2, queries=2)


class Fake:
    """An encoder whose weights are a word."""

    name, grid, features = "fake", (2, 2), 3

    def __init__(self, sha256: str = "a" * 64) -> None:
        self.sha256 = sha256

    def encode(self, frames: np.ndarray) -> np.ndarray:
        return np.zeros((len(frames), 4, 3), np.float32)

    def refine(self, frame: np.ndarray, budget: Budget) -> Refinement[np.ndarray]:
        raise NotImplementedError


def parts(encoder: EncoderReference) -> tuple[Student, Manifest, Normalization, Calibration]:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    student = Student(CONFIG)
    torch.nn.init.normal_(student.head.weight)
    tokens = rng.normal(size=(30, 4, 3)).astype(np.float32)
    state, action = rng.normal(size=(30, 3)), rng.normal(size=(30, 2))
    norm = Normalization.fit([state], [action], [tokens], CONFIG.horizon, np.ones(CONFIG.motion))
    manifest = Manifest(CONFIG, 20.0, ("front",), STATE, ACTION, encoder, {})
    return student, manifest, norm, Calibration.fit([tokens], 20.0)


def save(folder: Path, inside: bool = False, **options: bool) -> tuple[Path, StudentPolicy]:
    files = None
    if inside:
        files = folder.with_name("the_encoder")
        files.mkdir(exist_ok=True)
        (files / "config.json").write_text("{}")
        (files / "model.safetensors").write_bytes(b"weights")
        (files / "notes.md").write_text("stays behind")
    reference = EncoderReference("fake", INSIDE if inside else "somewhere/else", "a" * 64)
    student, manifest, norm, calibration = parts(reference)
    save_checkpoint(folder, student, manifest, norm, calibration, {"error": 0.5}, "# card\n", files, **options)
    return folder, StudentPolicy(student, norm, 20.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "student")[0]


def observation() -> Observation:
    rng = np.random.default_rng(3)
    return Observation(rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=3), rng.normal(size=2), "pick")


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    folder, policy = save(tmp_path / "deep/student")
    loaded = load_checkpoint(folder)
    assert np.array_equal(loaded.policy.infer(observation()).positions, policy.infer(observation()).positions)
    assert (loaded.state_joints, loaded.action_joints) == (STATE, ACTION)
    assert (loaded.rate, loaded.horizon, loaded.grid, loaded.features) == (20.0, 16, (2, 2), 3)
    assert (loaded.encoder_name, loaded.encoder_source, loaded.cameras) == ("fake", "somewhere/else", ("front",))
    assert loaded.metrics == {"error": 0.5}
    assert np.array_equal(loaded.normalization.action_range[:, 0], policy.normalization.action_low)
    assert loaded.calibration.limit == pytest.approx(parts(loaded.manifest.encoder)[3].limit)
    assert (folder / "README.md").read_text() == "# card\n"


def test_every_file_but_the_card_is_hashed(folder: Path) -> None:
    listed = json.loads((folder / "config.json").read_text())["files"]
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(listed) == found - {"config.json", "README.md"}
    assert listed["model.safetensors"] == file_sha256(folder / "model.safetensors")


def test_the_same_student_gives_the_same_files(tmp_path: Path) -> None:
    one, other = save(tmp_path / "one")[0], save(tmp_path / "other")[0]
    assert (one / "config.json").read_bytes() == (other / "config.json").read_bytes()


def test_the_encoder_travels_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = save(tmp_path / "student", inside=True)
    assert sorted(p.name for p in (folder / INSIDE).iterdir()) == ["config.json", "model.safetensors"]
    opened: list[str] = []

    def load(source: str | Path, *_: object) -> encoders.Encoder:
        opened.append(str(source))
        return Fake()

    monkeypatch.setitem(encoders.ENCODERS, "fake", load)
    assert load_checkpoint(folder).load_encoder().sha256 == "a" * 64
    assert opened == [str(folder / INSIDE)]


def test_another_encoder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encoders.ENCODERS, "fake", lambda *_: Fake("b" * 64))
    with pytest.raises(CheckpointError, match="trained on encoder fake aaaaaaaaaaaa"):
        load_checkpoint(folder).load_encoder()
    wider = Fake()
    wider.features = 4
    monkeypatch.setitem(encoders.ENCODERS, "fake", lambda *_: wider)
    with pytest.raises(CheckpointError, match="of 4"):
        load_checkpoint(folder).load_encoder()


def rehash(folder: Path, name: str) -> None:
    """Make config.json believe a changed file, so that the check behind the hash is what fails."""
    edit(folder, lambda config: config["files"].update({name: file_sha256(folder / name)}))


def edit(folder: Path, change: Callable[[dict], object], name: str = "config.json") -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["model.safetensors", "normalization.json", "calibration.safetensors", "metrics.json"])
def test_a_missing_or_changed_file_is_named_with_a_remedy(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=rf"{name}: sha256 .* damaged or changed; restore"):
        load_checkpoint(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: missing: restore"):
        load_checkpoint(folder)


def test_a_missing_folder_or_config_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such folder: .* `distil`"):
        load_checkpoint(tmp_path / "nowhere")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.pt", "encoder/pytorch_model.bin", "weights.PKL"])
def test_pickle_is_refused_unread(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match=r"may hold pickle, which runs code when read.*model\.safetensors"):
        load_checkpoint(folder)


def test_a_pointer_to_large_file_storage_is_recognised(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        load_checkpoint(folder)


def tensors(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    change(arrays)
    safetensors.numpy.save_file(arrays, path)
    rehash(folder, "model.safetensors")


@pytest.mark.parametrize("change, message", [
    (lambda t: t.pop("head.bias"), r"missing: head\.bias"),
    (lambda t: t.update(extra=np.zeros(1)), "unknown: extra"),
    (lambda t: t.update({"head.bias": np.zeros(3, np.float32)}), r"'head\.bias' is torch\.float32 \(3,\), but"),
    (lambda t: t.update({"head.bias": t["head.bias"].astype(np.float16)}), r"'head\.bias' is torch\.float16"),
    (lambda t: t["head.bias"].__setitem__(0, np.nan), r"'head\.bias' holds values that are not finite"),
])
def test_weights_must_fit_the_config(folder: Path, change: Callable[[dict], object], message: str) -> None:
    tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "calibration.safetensors"])
def test_a_file_that_is_no_safetensors_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x80\x04nothing")
    rehash(folder, name)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder)


@pytest.mark.parametrize("change, message", [
    (lambda c: c.update(format="sage_ros.student/9"), "format is 'sage_ros.student/9'"),
    (lambda c: c.pop("rate"), "has no 'rate'"),
    (lambda c: c.update(rate=-1), "rate is -1"),
    (lambda c: c.update(rate="fast"), "could not convert"),
    (lambda c: c.update(cameras=[]), "cameras is empty"),
    (lambda c: c["student"].update(width=10**9), "width is 1000000000"),
    (lambda c: c["student"].update(horizon="16"), "horizon is 16"),
    (lambda c: c["student"].pop("heads"), "expected exactly the entries"),
    (lambda c: c["student"].update(state_dim=4), "state_joints names 3 joints, but the student has 4"),
    (lambda c: c["action_joints"]["names"].reverse(), "is for the joints pan, lift, but config.json names lift, pan"),
    (lambda c: c["state_joints"]["names"].__setitem__(0, "lift"), "more than once"),
    (lambda c: c["state_joints"]["names"].__setitem__(0, "yaw"), "config.json names yaw, lift, grip"),
    (lambda c: c["files"].pop("normalization.json"), "does not list normalization.json"),
    (lambda c: c["files"].update({"../secret": "0" * 64}), "outside the checkpoint"),
    (lambda c: c["files"].update({"/etc/passwd": "0" * 64}), "outside the checkpoint"),
    (lambda c: c["encoder"].pop("sha256"), "expected exactly the entries name, sha256, source"),
    (lambda c: c["encoder"].update(source=INSIDE), "does not list encoder/config.json"),
])
def test_a_config_that_does_not_fit_is_refused(folder: Path, change: Callable[[dict], object], message: str) -> None:
    edit(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize("change, message", [
    (lambda n: n.pop("offset_std"), "offset_std"),
    (lambda n: n["state_std"].update(pan=0.0), "'state_std' must be positive"),
    (lambda n: n["tokens_mean"].append(0.0), "4 token features, config.json says 3"),
    (lambda n: n["command_mean"].pop("lift"), "for the joints pan, but config.json names pan, lift"),
    (lambda n: n.update(first_command=[0.0, 0.0]), "config.json names pan, lift"),
])
def test_a_normalization_that_does_not_fit_is_refused(
    folder: Path, change: Callable[[dict], object], message: str
) -> None:
    edit(folder, change, "normalization.json")
    rehash(folder, "normalization.json")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_a_calibration_for_other_tokens_is_refused(folder: Path) -> None:
    other = Calibration.fit([np.random.default_rng(0).normal(size=(9, 5, 3))], 20.0)
    safetensors.numpy.save_file(other.arrays(), folder / "calibration.safetensors")
    rehash(folder, "calibration.safetensors")
    with pytest.raises(CheckpointError, match=r"is for tokens \(5, 3\), but the student's are \(4, 3\)"):
        load_checkpoint(folder)


def test_checks_of_another_form_are_refused_and_left_out_on_request(folder: Path) -> None:
    path = folder / "calibration.safetensors"
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(arrays | {"checks.limits": np.ones((4, 3))}, path)
    rehash(folder, path.name)
    with pytest.raises(CheckpointError, match="checks that `calibrate` has to fit anew: limits must be"):
        load_checkpoint(folder)
    assert load_checkpoint(folder, checks=False).calibration.checks is None


def test_only_a_checkpoint_is_overwritten_and_only_on_request(tmp_path: Path, folder: Path) -> None:
    before = (folder / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match="--overwrite"):
        save(folder)
    (folder / "model.safetensors").unlink()
    save(folder, overwrite=True)
    assert load_checkpoint(folder).config == CONFIG
    assert (folder / "config.json").read_bytes() == before
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="holds no student checkpoint"):
        save(home, overwrite=True)
    assert (home / "letter.txt").read_text() == "dear"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "student"]


def test_a_failed_write_leaves_the_old_checkpoint(folder: Path) -> None:
    student, manifest, norm, calibration = parts(EncoderReference("fake", "x", "a" * 64))
    broken = replace(manifest, action_joints=JointLayout(("only",)))
    with pytest.raises(ValueError, match="argument"):
        save_checkpoint(folder, student, broken, norm, calibration, {}, "", overwrite=True)
    assert load_checkpoint(folder).metrics == {"error": 0.5}
