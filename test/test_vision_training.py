"""``train_vae`` and its probes, on a small film of a red square that moves over a grey table."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_ros.core.joints import JointLayout
from sage_ros.episodes import EpisodeDataset, EpisodeWriter
from sage_ros.training.probes import Pca, Ridge, colour_centre, psnr
from sage_ros.training.vae import VaeTraining, main, train
from sage_ros.vision.encoder import load_encoder
from sage_ros.vision.tiny_vae import TinyVae, TinyVaeConfig

RED = (217, 20, 15)
ROWS = 30


def film(corners: np.ndarray, side: int = 64, edge: int = 12) -> np.ndarray:
    """Frames (T, side, side, 3) with a red square whose upper left corner is at ``corners`` (T, 2), x and y."""
    frames = np.full((len(corners), side, side, 3), 140, np.uint8)
    for frame, (x, y) in zip(frames, corners, strict=True):
        frame[y : y + edge, x : x + edge] = RED
    return frames


def walk(seed: int, rows: int = ROWS) -> np.ndarray:
    start, end = np.random.default_rng(seed).integers(0, 52, (2, 2))
    return np.linspace(start, end, rows).astype(int)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("episodes")
    with EpisodeWriter(folder, 20, "so101", JointLayout(("pan",), {"arm": (0, 1)}), {"front": (64, 64)}) as writer:
        for seed in range(7):
            joint = np.linspace(0, 1, ROWS)[:, None]
            writer.add(state=joint, action=joint, frames={"front": film(walk(seed))}, task="look")
    return folder


def options(data: Path, out: Path, *more: str) -> list[str]:
    return [
        "--dataset", str(data), "--out", str(out), "--size", "16", "--features", "4", "--widths", "12",
        "--holdout", "2", "--validation", "1", "--steps", "200", "--evaluate-every", "50", "--lr", "0.01",
        "--threads", "1", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "vae"
    assert main(options(data, out)) == 0
    return out


def test_the_command_writes_an_encoder_that_loads_and_sees(trained: Path) -> None:
    encoder = load_encoder("tiny_vae", trained)
    assert (encoder.grid, encoder.features) == ((8, 8), 4)
    here, there = encoder.encode(film(np.array([[4, 4], [44, 40]])))
    assert np.abs(here - there).max() > 0.1


def test_the_metrics_stand_beside_pca_and_the_mean_frame(trained: Path, data: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    errors = {name: row["mse"] for name, row in metrics["reconstruction"].items()}
    assert set(errors) == {"tiny_vae", "pca", "mean frame"}
    assert errors["tiny_vae"] < errors["mean frame"] and errors["pca"] < errors["mean frame"]
    assert metrics["dataset"]["fingerprint"] == EpisodeDataset(data).fingerprint()
    energies = [row["energy"] for row in metrics["refinement"]]
    assert energies == sorted(energies, reverse=True)
    assert metrics["localisation"]["tiny_vae"]["median"] < 30


def test_held_out_episodes_are_whole_and_apart(trained: Path) -> None:
    split = json.loads((trained / "metrics.json").read_text())["split"]
    assert (len(split["train"]), len(split["validation"]), len(split["held_out"])) == (4, 1, 2)
    assert sorted(index for part in split.values() for index in part) == list(range(7))


def test_the_same_seed_gives_the_same_weights(trained: Path, data: Path, tmp_path: Path) -> None:
    assert main(options(data, tmp_path / "again")) == 0
    assert main(options(data, tmp_path / "other", "--seed", "1")) == 0
    folders = (trained, tmp_path / "again", tmp_path / "other")
    first, again, other = (load_encoder("tiny_vae", folder).sha256 for folder in folders)
    assert first == again != other


def test_training_lowers_the_error_and_keeps_the_best_look() -> None:
    frames = film(np.concatenate([walk(seed) for seed in range(4)]))
    torch.manual_seed(0)
    _, best, curve = train(TinyVae(TinyVaeConfig(64, 4, (8, 8, 8))), frames[::2], frames[1::2],
                           VaeTraining(steps=40, evaluate_every=10, warmup=5), progress=False)
    errors = {int(step or 0): error for step, _, error in curve}
    assert errors[best] == min(e for e in errors.values() if e is not None)
    assert best > 10 and errors[best] < errors[10]  # type: ignore[operator]


def test_training_stops_when_validation_no_longer_improves() -> None:
    frames = film(walk(0))
    apart = np.random.default_rng(0).integers(0, 256, frames.shape, dtype=np.uint8)  # learning frames cannot help here
    config = VaeTraining(steps=2000, evaluate_every=5, patience=2, warmup=5, lr=1e-2)
    _, best, curve = train(TinyVae(TinyVaeConfig(64, 2, (4, 4, 4))), frames, apart, config, progress=False)
    assert curve[-1][0] == best + 10 < 2000


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    frames = film(walk(0))
    with pytest.raises(ValueError, match="lower the learning rate"):
        model = TinyVae(TinyVaeConfig(64, 2, (4, 4, 4)))
        with torch.no_grad():
            next(model.decoder.parameters()).fill_(float("nan"))
        train(model, frames, frames, VaeTraining(steps=5), progress=False)


@pytest.mark.parametrize(
    ("more", "text"),
    [(["--camera", "side"], "no camera 'side'"), (["--holdout", "7"], "only|no episode"),
     (["--colour", "1,2"], "R,G,B"), (["--size", "15"], "multiple of 2"), (["--lr", "-1"], "lr is -1"),
     (["--device", "gpu"], "device 'gpu'")],
)  # fmt: skip
def test_what_cannot_be_done_is_said_on_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], text: str
) -> None:
    assert main(options(data, tmp_path / "vae", *more)) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("train_vae: ") and any(part in said for part in text.split("|"))
    assert not (tmp_path / "vae").exists()


def test_a_folder_with_other_things_is_never_overwritten(data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(options(data, tmp_path, "--overwrite")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@given(x=st.integers(0, 52), y=st.integers(0, 52))
@settings(max_examples=30, deadline=None)
def test_the_centre_of_a_colour_is_where_the_thing_is(x: int, y: int) -> None:
    np.testing.assert_allclose(colour_centre(film(np.array([[x, y]])), RED), [[(x + 6) / 64, (y + 6) / 64]], atol=1e-9)


def test_a_thing_that_is_hidden_has_no_centre() -> None:
    assert np.isnan(colour_centre(film(np.array([[4, 4]]), edge=4), RED)).all()
    assert np.isnan(colour_centre(np.zeros((1, 8, 8, 3), np.uint8), RED)).all()


@given(rank=st.integers(1, 6), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_pca_gives_rows_of_its_rank_back_and_more_numbers_never_hurt(rank: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(30, rank, generator=random) @ torch.randn(rank, 50, generator=random) + 3.0
    errors = []
    for numbers in range(1, rank + 1):
        pca = Pca.fit(rows, numbers)
        assert pca.components.shape == (numbers, 50)
        errors.append(float((pca.decode(pca.encode(rows)) - rows).square().mean()))
    assert errors[-1] < 1e-5 and all(b <= a + 1e-5 for a, b in pairwise(errors))


def test_the_ridge_probe_finds_a_linear_place_and_needs_two_episodes() -> None:
    random = np.random.default_rng(0)
    features, groups = random.normal(size=(400, 12)), np.repeat(np.arange(10), 40)
    places = features @ random.normal(size=(12, 2)) * 0.1 + 0.5
    assert Ridge(features[:320], places[:320], groups[:320]).error(features[320:], places[320:])["p90"] < 1.0
    with pytest.raises(ValueError, match="two training episodes"):
        Ridge(features, places, np.zeros(400))


def test_psnr_is_that_of_pixels_between_0_and_1() -> None:
    assert psnr(0.01) == pytest.approx(20.0)
