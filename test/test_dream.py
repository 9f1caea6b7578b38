"""Dreams: what surprises is replayed, failures teach nothing, and only a better student becomes the champion."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_distil import JOINTS, QUICK, STUDENT, Pooled, demonstrations, episode

from sage_ros.episodes import EpisodeDataset, EpisodeWriter
from sage_ros.policy.champions import Champions
from sage_ros.policy.checkpoint import Checkpoint, load_checkpoint
from sage_ros.policy.config import StudentConfig
from sage_ros.policy.manifest import CheckpointError
from sage_ros.policy.student import StudentPolicy
from sage_ros.training import distil
from sage_ros.training import dream as command
from sage_ros.training.cloning import clone
from sage_ros.training.dreams import DreamConfig, cloning_settings, judge, learn, plan, upper
from sage_ros.training.openloop import Demonstration, open_loop_error
from sage_ros.training.rows import Rows
from sage_ros.training.sessions import Session, load_sessions, session_errors
from sage_ros.training.settings import CloningConfig
from sage_ros.vision import encoder as encoders

FAST = DreamConfig(steps=120, batch_size=48, lr=3e-3, least=3)
OPTIONS = ["--steps", "120", "--batch-size", "48", "--lr", "3e-3", "--least", "3", "--cost", "0.2", "--no-progress"]


@pytest.fixture(autouse=True)
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own, the pooling encoder in the registry, one thread."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    register(monkeypatch.setitem)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def register(put=dict.__setitem__) -> None:
    put(encoders.ENCODERS, "pooled", lambda source, device, runtime: Pooled())


def shifted(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The toy world under another light: what was blue is red, on another ground."""
    state, action, frames = episode(seed)
    return state, action, np.stack([frames[..., 2], frames[..., 1] // 2, frames[..., 0] + 40], axis=-1)


def write(folder: Path, episodes: list[tuple[np.ndarray, ...]], outcomes: list[bool | None]) -> Path:
    with EpisodeWriter(folder, 20, "toy", JOINTS, {"front": (32, 64)}) as writer:
        for (state, action, frames), success in zip(episodes, outcomes, strict=True):
            about = {} if success is None else {"success": success}
            writer.add(state, action, "follow the blue", {"front": frames}, about=about)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Originals, sessions of the shifted world (one failed, one unjudged), and a student of the originals."""
    folder = tmp_path_factory.mktemp("dream")
    write(folder / "originals", [episode(seed) for seed in range(30)], [None] * 30)
    outcomes: list[bool | None] = [True] * 32
    outcomes[0], outcomes[1] = False, None
    write(folder / "sessions", [shifted(seed) for seed in range(100, 132)], outcomes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        register(patch.setitem)
        sizes = ["--width", "32", "--queries", "2", "--recipe", "many", "--history", "8", "--trunk", "64"]
        how = ["--validation", "2", "--steps", "300", "--batch-size", "32", "--lr", "3e-3", "--device", "cpu"]
        assert distil.main(["--dataset", str(folder / "originals"), "--out", str(folder / "student"), "--encoder",
                            "pooled", "--encoder-source", "anywhere", *sizes, *how]) == 0  # fmt: skip
    return folder


def argv(world: Path, champions: Path, *more: str) -> list[str]:
    return ["--champions", str(champions), "--checkpoint", str(world / "student"), "--sessions",
            str(world / "sessions"), "--originals", str(world / "originals"), *OPTIONS, *more]  # fmt: skip


def sessions_of(world: Path) -> tuple[Checkpoint, list[Session]]:
    champion = load_checkpoint(world / "student")
    return champion, load_sessions(EpisodeDataset(world / "sessions"), champion, progress=False)


def test_a_dream_makes_the_student_better_where_the_world_has_changed_and_no_worse_where_it_has_not(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "champions"
    assert command.main(argv(world, folder)) == 0
    assert "promoted 000001" in capsys.readouterr().out
    champions = Champions(folder)
    entry = champions.lineage[-1]
    assert (entry["event"], entry["champion"], entry["parent"]) == ("promoted", "000001", "000000")
    assert (entry["successes"], entry["failures"], entry["unjudged"]) == (30, 1, 1)
    assert entry["figures"]["change"] < -0.2 and entry["figures"]["original_change"] <= 0.2
    first, now = (load_checkpoint(folder / name) for name in ("000000", "current"))
    assert now.metrics["dream"]["data"] == entry["data"]
    assert np.array_equal(first.normalization.action_range, now.normalization.action_range)  # limits are not loosened
    judged = [s for s in sessions_of(world)[1] if s.held_out and s.success]
    assert np.mean(session_errors(now.policy, judged)) == pytest.approx(entry["figures"]["error"])

    assert command.main(argv(world, folder)) == 0
    assert "nothing new" in capsys.readouterr().out
    assert command.main(["--champions", str(folder), "--rollback"]) == 0
    assert champions.champion == "000000"
    assert command.main(["--champions", str(folder), "--list"]) == 0
    assert "rolled back" in capsys.readouterr().out


def test_a_challenger_that_is_no_better_is_dropped_and_the_reason_is_kept(world: Path, tmp_path: Path) -> None:
    assert command.main(argv(world, tmp_path / "c", "--steps", "1", "--lr", "1e-8")) == 0
    champions = Champions(tmp_path / "c")
    assert champions.champion == "000000" and champions.lineage[-1]["event"] == "dropped"
    assert "no better by more than noise" in champions.lineage[-1]["reason"]
    assert not (tmp_path / "c" / "000001").exists()


def test_what_costs_too_much_on_the_originals_is_dropped(world: Path, tmp_path: Path) -> None:
    assert command.main(argv(world, tmp_path / "c", "--rehearsal", "0", "--cost", "0.02")) == 0
    champions = Champions(tmp_path / "c")
    assert champions.champion == "000000" and "more on the originals" in champions.lineage[-1]["reason"]


def test_a_dream_that_is_killed_goes_on_where_it_last_saved(world: Path, tmp_path: Path) -> None:
    options = ["--save-every", "10"]
    code = "import sys, test_dream; test_dream.register(); sys.exit(test_dream.command.main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    child = subprocess.Popen([sys.executable, "-c", code, *argv(world, tmp_path / "killed", *options)], env=environment)
    state = tmp_path / "killed" / ".dream" / "challenger.safetensors"
    while not state.exists():
        assert child.poll() is None, "it ended before it saved anything"
        threading.Event().wait(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert Champions(tmp_path / "killed").champion == "000000"
    assert command.main(argv(world, tmp_path / "killed", *options)) == 0
    assert not state.exists()
    assert command.main(argv(world, tmp_path / "whole", *options)) == 0
    one, other = (load_checkpoint(tmp_path / name / "current").policy.student for name in ("killed", "whole"))
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    lines = [Champions(tmp_path / name).lineage for name in ("killed", "whole")]
    assert [line["figures"] for line in lines[0]] == [line["figures"] for line in lines[1]]


def test_nothing_is_judged_by_too_few_sessions(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(argv(world, tmp_path / "c", "--least", "9")) == 0
    assert "8 sessions to judge by, 9 are needed" in capsys.readouterr().out
    assert Champions(tmp_path / "c").lineage == []


# What is replayed


@given(st.floats(0.0, 2.0), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_surprising_rows_are_drawn_more_often_and_count_less(priority: float, correction: float, seed: int) -> None:
    demos = demonstrations(3, 10 * seed)
    champion = toy_champion()
    sessions = [Session(demos[0], True), Session(demos[1], None), Session(demos[2], False)]
    config = replace(FAST, priority=priority, correction=correction)
    replay = plan(champion, sessions, demonstrations(1, 500), config)
    rows = [slice(48 * k, 48 * (k + 1)) for k in range(4)]
    assert replay.chances.sum() == pytest.approx(1.0) and (replay.chances >= 0).all()
    assert replay.chances[rows[3]].sum() == pytest.approx(config.rehearsal)
    assert not replay.chances[rows[2]].any() and not replay.own[rows[2]].any()  # a failure teaches nothing
    chances, weights = replay.chances[rows[0]], replay.weights[rows[0]]
    assert (np.diff(weights[np.argsort(chances, kind="stable")]) <= 1e-9).all()
    if correction == 1.0:
        assert np.allclose(chances * weights, (chances * weights)[0])
        counts = [(replay.chances * replay.weights)[part].mean() for part in rows[:2]]
        assert counts[1] == pytest.approx(config.unjudged * counts[0])
    drawn = replay.chances * replay.weights  # sessions count as much in all as their share of the rows says
    assert drawn[:144].sum() == pytest.approx(1 - config.rehearsal)


def toy_champion() -> Checkpoint:
    torch.manual_seed(0)
    cloned = clone(demonstrations(2), [], STUDENT, replace(QUICK, steps=5, evaluate_every=5), progress=False)
    return argparse.Namespace(  # type: ignore[return-value]
        policy=StudentPolicy(cloned.student, cloned.normalization, 20.0), normalization=cloned.normalization,
        config=STUDENT, rate=20.0, metrics={"config": asdict(QUICK)},
    )  # fmt: skip


def with_labels(session: Demonstration, goal: np.ndarray, reach: int) -> Demonstration:
    """A teacher's chunks of ``reach`` rows: go to ``goal`` (A,)."""
    return replace(session, labels=np.tile(goal.astype(np.float32), (len(session), reach, 1)))


def test_a_failure_teaches_only_what_a_teacher_says_of_it() -> None:
    failed = with_labels(demonstrations(1)[0], np.array([0.5, -0.5]), 16)
    champion = toy_champion()
    config = StudentConfig(**{**vars(STUDENT), "ahead": (24,)})
    replay = plan(champion, [Session(failed, False)], [], replace(FAST, rehearsal=0.0))
    rows = Rows([failed], config, CloningConfig(batch_size=8), torch.device("cpu"), replay=replay)
    _, targets = rows.batch(8)
    weight = np.broadcast_to(targets.weight.numpy(), targets.offsets.shape)
    assert (weight[:, :16] > 0).all()
    assert not weight[:, 16:].any()  # what lies beyond the teacher's chunk is the failure's own

    whole = replace(FAST, rehearsal=0.0, reach=1.0)  # this champion knows nothing that could be kept
    cloned = learn(champion, [Session(failed, False)], [], whole, progress=False)
    taught = StudentPolicy(cloned.student, cloned.normalization, 20.0)
    before, after = (session_errors(p, [Session(failed, False)])[0] for p in (champion.policy, taught))
    assert after < 0.3 * before
    assert open_loop_error(taught, failed) > after  # it did not learn what was done


def test_a_dream_goes_a_part_of_the_way_to_what_it_learned() -> None:
    champion, session = toy_champion(), Session(demonstrations(1)[0], True)
    start = champion.policy.student.state_dict()
    part, whole = (
        learn(champion, [session], [], replace(FAST, steps=20, reach=reach), progress=False).student.state_dict()
        for reach in (0.25, 1.0)
    )
    for name, first in start.items():
        torch.testing.assert_close(part[name], first + 0.25 * (whole[name] - first))
    assert any((whole[name] != first).any() for name, first in start.items())


def test_a_student_dreams_with_the_settings_that_it_was_distilled_with() -> None:
    champion = toy_champion()
    champion.metrics["config"] = asdict(replace(QUICK, dropout=0.5, labelled_only=True)) | {"of_old": 0.1}
    found = cloning_settings(champion, FAST)
    assert found.dropout == 0.5 and found.pose_noise == QUICK.pose_noise
    assert (found.steps, found.batch_size, found.lr) == (FAST.steps, FAST.batch_size, FAST.lr)
    assert not found.labelled_only  # a teacher's labels are of the demonstrations, not of the sessions


def test_without_a_success_or_a_teacher_there_is_nothing_to_learn() -> None:
    with pytest.raises(ValueError, match="none succeeded, and no teacher has labelled one"):
        plan(toy_champion(), [Session(demonstrations(1)[0], False)], [], FAST)


def test_sessions_know_their_outcome_and_whether_they_are_held_out(world: Path) -> None:
    _, sessions = sessions_of(world)
    assert [s.success for s in sessions[:3]] == [False, None, True]
    assert [s.demonstration.index for s in sessions if s.held_out] == [3, 7, 11, 15, 19, 23, 27, 31]
    assert not sessions[0].judgeable and not sessions[1].judgeable and sessions[2].judgeable


# Champions


@given(st.lists(st.floats(0.1, 10.0), min_size=5, max_size=20), st.floats(0.5, 1.5))
@settings(deadline=None)
def test_the_bound_on_a_change_is_above_the_change_and_scales_with_it(errors: list[float], factor: float) -> None:
    before = np.array(errors)
    assert upper(before, factor * before, 0.95) == pytest.approx(factor - 1.0)
    noisy = before * np.resize([0.5, 1.5], len(before))
    assert upper(before, noisy, 0.95) >= noisy.mean() / before.mean() - 1.0 - 1e-9


def test_the_champion_itself_is_no_better_than_the_champion(world: Path) -> None:
    champion, sessions = sessions_of(world)
    judged = [s for s in sessions if s.judgeable]
    verdict = judge(champion.policy, champion.policy, judged, demonstrations(3), FAST)
    assert not verdict.better and verdict.figures["change"] == 0.0


def test_the_lineage_survives_half_a_line_and_the_first_champion_cannot_be_rolled_back(
    world: Path, tmp_path: Path
) -> None:
    champions = Champions.found(tmp_path / "c", world / "student")
    champions.drop({"reason": "no better"})
    with (tmp_path / "c" / "lineage.jsonl").open("a") as file:
        file.write('{"event": "prom')
    champions.drop({"reason": "again"})
    assert [entry["reason"] for entry in champions.lineage] == ["no better", "again"]
    with pytest.raises(CheckpointError, match="is the first champion"):
        champions.rollback()
    with champions.alone(), pytest.raises(CheckpointError, match="dreaming here"), champions.alone():
        pass


def test_a_folder_that_holds_something_else_is_refused(world: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="something else than champions"):
        Champions.found(tmp_path, world / "student")
    with pytest.raises(CheckpointError, match="holds no champion: begin with `dream"):
        Champions(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
