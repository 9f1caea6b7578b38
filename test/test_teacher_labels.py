"""Labels on disk: whole after any kill, read as they were written, and only of a teacher that is worth it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from sage_ros.core.joints import JointLayout
from sage_ros.episodes import Episode, EpisodeDataset, EpisodeWriter
from sage_ros.policy.normalization import chunks
from sage_ros.teacher import label
from sage_ros.teacher.gate import VARYING, judge
from sage_ros.teacher.labels import INDEX, LabelCache, LabelError, label_key, load_labels
from sage_ros.teacher.modality import TeacherError
from sage_ros.teacher.teachers import Demonstrations

JOINTS = JointLayout(("pan", "lift", "grip", "waist"), {"arm": (0, 2), "gripper": (2, 3), "body": (3, 4)})
EPISODES, ROWS, HORIZON = 5, 40, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Waves of another phase per episode; the waist never moves."""
    folder = tmp_path_factory.mktemp("data") / "set"
    with EpisodeWriter(folder, 20, "robot", JOINTS, {}) as writer:
        for episode in range(EPISODES):
            time = np.arange(ROWS)[:, None] / 5 + episode + np.array([0.0, 1.0, 2.0, 3.0])
            action = np.sin(time) * np.array([1, 1, 1, 0])
            writer.add(state=action - 0.1, action=action, frames={}, task="pick")
    return folder


@pytest.fixture
def dataset(folder: Path) -> EpisodeDataset:
    return EpisodeDataset(folder)


class Skewed:
    """The demonstrations of the arm, ``error`` rad off; it remembers what it was asked."""

    horizon = HORIZON
    joints = JointLayout(("lift", "pan", "waist"), {"arm": (0, 2), "body": (2, 3)})

    def __init__(self, error: float = 0.01) -> None:
        self.error, self.identity, self.asked = error, f"skewed {error}", 0

    def label(self, episode: Episode, rows: Sequence[int]) -> Iterator[np.ndarray]:
        for row in rows:
            self.asked += 1
            yield chunks(episode.action, HORIZON)[row][:, [1, 0, 3]] + self.error


def labelled(folder: Path, dataset: EpisodeDataset, teacher: Skewed, every: int = 1) -> list[int]:
    with LabelCache(folder, label_key(dataset, teacher, every)).open() as cache:
        return cache.label(teacher, dataset, list(dataset.indices), progress=False)


def test_labels_come_back_by_joint_name(tmp_path: Path, dataset: EpisodeDataset) -> None:
    assert labelled(tmp_path, dataset, Skewed()) == [0, 1, 2, 3, 4]
    found = load_labels(tmp_path, dataset)
    assert list(found) == list(dataset.indices)
    for episode in dataset:
        expected = chunks(episode.action, HORIZON) + np.array([0.01, 0.01, 0.0, 0.01])
        assert found[episode.index].shape == (ROWS, HORIZON, 4) and found[episode.index].dtype == np.float32
        assert np.allclose(found[episode.index], expected, atol=1e-6), "grip as recorded"


def test_rows_that_were_not_labelled_are_nan(tmp_path: Path, dataset: EpisodeDataset) -> None:
    labelled(tmp_path, dataset, Skewed(), every=7)
    found = load_labels(tmp_path, dataset)[2]
    assert np.isfinite(found[::7]).all() and np.isnan(np.delete(found, np.s_[::7], axis=0)).all()


def test_what_is_labelled_stays_and_what_is_damaged_is_labelled_again(tmp_path: Path, dataset: EpisodeDataset) -> None:
    teacher = Skewed()
    labelled(tmp_path, dataset, teacher)
    before = load_labels(tmp_path, dataset)
    file = tmp_path / "episode_000003.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    (tmp_path / "episode_000001.safetensors").unlink()
    with pytest.raises(LabelError, match="episode"):
        load_labels(tmp_path, dataset)
    teacher.asked = 0
    assert labelled(tmp_path, dataset, teacher) == [1, 3] and teacher.asked == 2 * ROWS
    assert labelled(tmp_path, dataset, teacher) == []
    after = load_labels(tmp_path, dataset)
    assert all(np.array_equal(before[index], after[index]) for index in before)


def test_a_damaged_index_starts_again(tmp_path: Path, dataset: EpisodeDataset) -> None:
    labelled(tmp_path, dataset, Skewed())
    (tmp_path / INDEX).write_text((tmp_path / INDEX).read_text()[:50])
    with pytest.raises(LabelError, match="damaged"):
        load_labels(tmp_path, dataset)
    assert labelled(tmp_path, dataset, Skewed()) == list(dataset.indices)


def test_labels_of_others_are_never_taken(tmp_path: Path, dataset: EpisodeDataset, folder: Path) -> None:
    labelled(tmp_path / "labels", dataset, Skewed())
    with pytest.raises(LabelError, match=r"teacher skewed 0\.01 \(not skewed 0\.5\)"):
        labelled(tmp_path / "labels", dataset, Skewed(0.5))
    with EpisodeWriter(tmp_path / "other", 20, "robot", JOINTS, {}) as writer:
        writer.add(state=np.zeros((3, 4)), action=np.zeros((3, 4)), frames={}, task="pick")
    with pytest.raises(LabelError, match="another data set"):
        load_labels(tmp_path / "labels", EpisodeDataset(tmp_path / "other"))
    with pytest.raises(LabelError, match="something else"):
        labelled(tmp_path / "other", dataset, Skewed())
    with pytest.raises(LabelError, match="missing"):
        load_labels(tmp_path / "nowhere", dataset)


def test_one_at_a_time(tmp_path: Path, dataset: EpisodeDataset) -> None:
    with (
        LabelCache(tmp_path, label_key(dataset, Skewed(), 1)).open(),
        pytest.raises(LabelError, match="another process"),
    ):
        labelled(tmp_path, dataset, Skewed())


KILLED = """
import sys
sys.path.insert(0, sys.argv[3])
from test_teacher_labels import EpisodeDataset, Path, Skewed, labelled
class Halting(Skewed):
    def label(self, episode, rows):
        for row, chunk in zip(rows, super().label(episode, rows)):
            if (episode.index, row) == (int(sys.argv[4]), 20):
                print("here", flush=True)
                sys.stdin.read()
            yield chunk
labelled(Path(sys.argv[1]), EpisodeDataset(sys.argv[2]), Halting())
"""


@pytest.mark.parametrize("at", [0, 3])
def test_a_kill_costs_the_episode_at_work(at: int, tmp_path: Path, dataset: EpisodeDataset, folder: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(folder), str(Path(__file__).parent), str(at)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"here\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    (tmp_path / "episode_000004.safetensors.part").write_bytes(b"half")
    assert labelled(tmp_path, dataset, Skewed()) == list(range(at, EPISODES))
    assert not list(tmp_path.glob("*.part")) and len(load_labels(tmp_path, dataset)) == EPISODES


def test_a_file_that_the_index_does_not_know_is_not_trusted(tmp_path: Path, dataset: EpisodeDataset) -> None:
    """As after a kill between the two."""
    labelled(tmp_path, dataset, Skewed())
    index = json.loads((tmp_path / INDEX).read_text())
    del index["episodes"]["4"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert 4 not in load_labels(tmp_path, dataset)
    assert labelled(tmp_path, dataset, Skewed()) == [4]


def test_the_gate_lets_the_better_teacher_pass_and_names_where_the_other_loses(dataset: EpisodeDataset) -> None:
    good = judge(Skewed(0.01), dataset, [0, 3], None, progress=False)
    assert good.passed and list(good.errors) == [VARYING, "arm"], "the waist never moves: it would flatter"
    assert np.allclose(good.errors[VARYING]["teacher"], 1e-4) and "last action" in good.table
    assert good.errors["arm"]["teacher"] == pytest.approx(good.errors[VARYING]["teacher"])
    bad = judge(Skewed(2.0), dataset, [0, 3], None, progress=False)
    assert not bad.passed and len(bad.lost) == 2 and "arm: " in bad.lost[1] and "last action" in bad.lost[1]


def test_the_gate_holds_out_what_it_judges_on(tmp_path: Path, dataset: EpisodeDataset) -> None:
    verdict = judge(Demonstrations(dataset, HORIZON), dataset, [0, 3], 16, progress=False)
    assert verdict.passed and verdict.errors[VARYING]["teacher"] == [0.0, 0.0]
    for position, shown in enumerate([0, 3]):
        mean = np.mean([dataset[other].action for other in range(EPISODES) if other != shown], axis=(0, 1))
        wrong = np.mean((dataset[shown].action[:16] - mean)[:, :3] ** 2)
        assert verdict.errors[VARYING]["mean action"][position] == pytest.approx(wrong)
    with EpisodeWriter(tmp_path / "one", 20, "robot", JOINTS, {}) as writer:
        writer.add(state=dataset[0].state, action=dataset[0].action, frames={}, task="pick")
    one = EpisodeDataset(tmp_path / "one")
    with pytest.raises(ValueError, match="only episode 0"):
        judge(Demonstrations(one), one, [0], progress=False)


def test_the_command_refuses_unless_forced_and_does_not_judge_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = Skewed(2.0)
    monkeypatch.setattr(label, "open_teacher", lambda *_: teacher)
    command = ["--dataset", str(folder), "--teacher", "server", "--gate-steps", "0", "--out", str(tmp_path)]
    assert label.main(command) == 1
    out, err = capsys.readouterr()
    assert "20-NN on state" in out and "arm: " in out and "--force" in err
    with pytest.raises(LabelError, match="no labelled episode"):
        load_labels(tmp_path, EpisodeDataset(folder))
    assert label.main([*command, "--force"]) == 0
    teacher.asked = 0
    assert label.main([*command, "--force"]) == 0 and teacher.asked == 0
    assert len(load_labels(tmp_path, EpisodeDataset(folder))) == EPISODES
    assert label.main([*command, "--gate-episodes", "2"]) == 1 and teacher.asked == ROWS / HORIZON, "judged on another"
    assert json.loads((tmp_path / INDEX).read_text())["gate"]["episodes"] == [2]


def test_the_command_labels_demonstrations_into_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert label.main(["--dataset", str(folder), "--teacher", "demonstrations", "--horizon", "4"]) == 0
    place = Path(capsys.readouterr().out.rsplit("labels: ", 1)[1].strip())
    assert place.is_relative_to(tmp_path)
    dataset = EpisodeDataset(folder)
    found = load_labels(place, dataset)
    assert all(np.allclose(found[e.index], chunks(e.action, 4), atol=1e-6) for e in dataset)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--teacher", "gr00t"], "--model"),
        (["--teacher", "gr00t", "--model", "m", "--embodiment", "gr1"], "not installed"),
        (["--teacher", "server", "--port", "1", "--timeout", "0.1"], "no reply"),
        (["--teacher", "server", "--host", "gpu box"], "no address"),
        (["--teacher", "demonstrations", "--episodes", "9"], r"no episode \[9\]"),
        (["--teacher", "server", "--port", "70000"], "--port must"),
        (["--teacher", "demonstrations", "--every", "0"], "--every"),
        (["--teacher", "demonstrations", "--dataset", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_an_error_that_says_what_to_do(
    options: list[str], says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label.main(["--dataset", str(folder), "--out", str(tmp_path / "out"), *options]) == 1
    assert pytest.raises(TeacherError, match=says).matches(TeacherError(capsys.readouterr().err))
