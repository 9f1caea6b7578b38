"""Closed-loop evaluation: who succeeds, what is counted, what a second run does, and that both pipelines agree."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.core.limits import MOST
from sage_ros.corruption import CorruptionConfig
from sage_ros.nodes.rollout import Way, chosen_ways, evaluate, main, parse, settings
from sage_ros.nodes.rollout_stage import RosStage
from sage_ros.paths import CHECKPOINT
from sage_ros.sim.results import EPISODES, Ledger, LedgerError, summary, summary_text, table, wilson
from sage_ros.sim.rollout import Joins, Judge, rms_jerk
from sage_ros.sim.trials import Stages, Trial, run_trials

SEED = 100_000
PLATE = np.array([0.2, -0.1, 0.0])
ON_PLATE, IN_AIR, BESIDE = np.array([0.2, -0.1, 0.02]), np.array([0.2, 0.0, 0.1]), np.array([0.25, 0.05, 0.0125])


@pytest.fixture(scope="module")
def trial() -> Trial:
    return Trial(bounds=MOST)


# Intervals and sums


def test_wilson_interval_is_that_of_the_textbook() -> None:
    assert wilson(95, 100) == pytest.approx((0.8883, 0.9785), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_rate_and_mirrors_failures(counts: tuple[int, int]) -> None:
    good, count = counts
    low, high = wilson(good, count)
    assert 0.0 <= low <= good / count <= high <= 1.0
    assert wilson(count - good, count) == pytest.approx((1 - high, 1 - low))


def test_failures_are_counted_by_how_they_happened() -> None:
    records = [_record(seed, failure) for seed, failure in enumerate(["", "a", "b", "a"])]
    values = summary(records)
    assert values["failures"] == {"a": 2, "b": 1}
    assert "1 of 4 succeeded, 25.0 %" in summary_text("student", values)
    assert len(table(records).splitlines()) == 5
    many = [_record(seed, "a" if seed == 7 else "") for seed in range(30)]
    assert [line.split()[0] for line in table(many).splitlines()[2:]] == ["7"]


def _record(seed: int, failure: str) -> dict[str, object]:
    figures = {"jump": None, "target_jerk": None, "jerk": 80.0, "holds": 0, "seconds": 5.0}
    return {"trial": "student", "seed": seed, "success": not failure, "failure": failure, **figures}


# The end of an episode


def test_success_must_last() -> None:
    judge = Judge(10.0)
    assert not any(judge.look(t, True, ON_PLATE, PLATE) for t in (1.0, 1.2, 1.45))
    assert not judge.look(1.48, False, ON_PLATE, PLATE), "it was shaken off again"
    assert not judge.look(2.0, True, ON_PLATE, PLATE)
    assert judge.look(2.5, True, ON_PLATE, PLATE)
    assert (judge.success, judge.seconds, judge.failure) == (True, 2.0, "")


@pytest.mark.parametrize(
    ("way", "failure"),
    [
        ([BESIDE], "never lifted the cube"),
        ([BESIDE, IN_AIR], "still holds the cube"),
        ([IN_AIR, BESIDE], "put the cube beside the plate"),
        ([IN_AIR, ON_PLATE], "did not let the cube rest"),
    ],
)
def test_failures_have_names(way: list[np.ndarray], failure: str) -> None:
    judge = Judge(len(way) * 0.05)
    over = [judge.look((i + 1) * 0.05, False, cube, PLATE) for i, cube in enumerate(way)]
    assert over == [False] * (len(way) - 1) + [True]
    assert not judge.success and judge.failure == failure


# Figures


def test_a_smooth_target_has_no_jump_and_a_step_shows_as_one() -> None:
    smooth, step = Joins(100.0), Joins(100.0)
    for tick in range(100):
        aim, velocity = np.array([0.01 * tick]), np.array([1.0])
        smooth.add(tick // 10, (aim, velocity))
        step.add(tick // 50, (aim + (tick >= 50) * 0.2, velocity))
    assert smooth.jump == pytest.approx(0.0, abs=1e-12) and smooth.jerk == pytest.approx(0.0, abs=1e-6)
    assert step.jump == pytest.approx(0.2)
    # Third differences of a step are 1, -2, 1 of it; 8 of them lie within 5 ticks to either side
    assert step.jerk == pytest.approx(0.2 * 1e6 * np.sqrt(6 / 8))


def test_without_a_join_there_is_neither_jump_nor_jerk() -> None:
    joins = Joins(100.0)
    for _ in range(10):
        joins.add(0, (np.zeros(2), np.zeros(2)))
    assert np.isnan(joins.jump) and np.isnan(joins.jerk) and np.isnan(rms_jerk(np.zeros((3, 2)), 100.0))


# Episodes


def test_the_expert_succeeds_and_holding_still_does_not(trial: Trial) -> None:
    hold = replace(trial, pilot="hold", longest=1.0)
    expert, held = run_trials([(replace(trial, pilot="expert"), SEED, None), (hold, SEED, None)])
    assert expert.success and 3.0 < expert.seconds < 9.0 and not expert.failure
    assert not held.success and held.failure == "never lifted the cube" and held.seconds == 1.0
    assert np.ptp(held.path, axis=0).max() < 0.02


def test_the_student_succeeds_and_shows_its_joins(trial: Trial) -> None:
    with Stages() as stages:
        outcome = stages.run((trial, SEED, None))
    assert outcome.success and outcome.holds == 0
    assert 0.0 < outcome.jump < 0.02 and 0.0 < outcome.target_jerk < 3000.0 and 0.0 < outcome.jerk < 200.0


def test_outcomes_do_not_depend_on_jobs_nor_on_what_was_played_before(trial: Trial) -> None:
    short = replace(trial, longest=0.5)
    tasks = [(short, seed, None) for seed in (SEED, SEED + 1, SEED + 2)]
    alone, shared = list(run_trials(tasks)), list(run_trials(tasks, jobs=2))
    with Stages() as stages:
        backwards = [stages.run(task) for task in reversed(tasks)][::-1]
    for one, two, three in zip(alone, shared, backwards, strict=True):
        assert one.record() == two.record() == three.record()
        assert np.array_equal(one.path, two.path) and np.array_equal(one.path, three.path)


def test_the_student_sees_what_a_corruption_makes_by_the_worlds_seed(trial: Trial) -> None:
    short = replace(trial, longest=1.0)
    with Stages() as stages:
        clean, late, noisy, again, other = (
            stages.run((replace(short, corruption=config), SEED, None)).path
            for config in (CorruptionConfig(), CorruptionConfig("noise", 5, begin=2.0),
                           CorruptionConfig("noise", 5, 0, 0.5), CorruptionConfig("noise", 5, 1, 0.5),
                           CorruptionConfig("biased_joints", 2, begin=0.5))
        )  # fmt: skip
    assert np.array_equal(clean, late), "it had not begun yet"
    assert np.array_equal(noisy, again), "the seed is the world's"
    for path in (noisy, other):
        assert np.array_equal(path[:11], clean[:11]) and not np.array_equal(path, clean)


# Going on


HOLD = ["--pilot", "hold", "--longest", "0.2"]


def test_a_second_run_plays_only_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main([*HOLD, "--episodes", "2", "--out", str(out), "--videos", "1"]) == 0
    assert [film.name for film in out.glob("*.mp4")] == [f"hold_{SEED}.mp4"]
    lines = (out / EPISODES).read_text().splitlines()
    marked = json.loads(lines[0]) | {"seconds": 99.0}  # a played episode would not say so
    (out / EPISODES).write_text(json.dumps(marked) + "\n" + lines[1][:20])  # ... and the run was killed in line 2
    assert main([*HOLD, "--episodes", "3", "--out", str(out)]) == 0
    records = [json.loads(line) for line in (out / EPISODES).read_text().splitlines()]
    assert [(record["seed"], record["seconds"]) for record in records] == [
        (SEED, 99.0),
        (SEED + 1, 0.2),
        (SEED + 2, 0.2),
    ]
    assert "0 of 3 succeeded" in capsys.readouterr().out


def test_episodes_of_other_settings_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*HOLD, "--episodes", "1", "--out", str(tmp_path)]) == 0
    before = (tmp_path / EPISODES).read_text()
    assert main([*HOLD, "--episodes", "1", "--out", str(tmp_path), "--region-scale", "1.5"]) == 2
    assert "hold.region_scale 1.0 there, 1.5 here" in capsys.readouterr().err
    assert (tmp_path / EPISODES).read_text() == before


def test_a_line_that_is_no_episode_is_named(tmp_path: Path) -> None:
    (tmp_path / EPISODES).write_text("{}\n")
    with pytest.raises(LedgerError, match=r"line 1: not an episode \(KeyError\('trial'\)\)"):
        Ledger(tmp_path, {})


def test_settings_tell_checkpoints_apart_by_content_not_by_place(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(CHECKPOINT / "config.json", copy)
    here, there = (settings(chosen_ways(parse(["--checkpoint", path]))) for path in ("", str(copy)))
    assert here == there
    (copy / "config.json").write_text("{}")
    assert settings(chosen_ways(parse(["--checkpoint", str(copy)]))) != here


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--episodes", "0"], "--episodes"),
        (["--pipeline", "ros", "--pilot", "expert"], "for the student alone"),
        (["--pipeline", "both", "--jobs", "2"], "--jobs is for --pipeline core"),
        (["--real-time"], "needs --pipeline ros"),
        (["--videos", "1"], "needs --out"),
        (["--corrupt", "blur", "--pilot", "hold"], "hold sees nothing"),
    ],
)
def test_what_does_not_go_together_is_refused(
    args: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(args)
    assert problem in capsys.readouterr().err


def test_bad_numbers_and_missing_checkpoints_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--latency", "9"]) == 2
    assert "latency is 9.0 s" in capsys.readouterr().err
    assert main(["--corrupt", "fog"]) == 2
    assert "there is no kind 'fog'" in capsys.readouterr().err
    assert main(["--corrupt", "frame_drop", "--fault-at", "0"]) == 2
    assert "let the fault begin later" in capsys.readouterr().err
    assert main(["--checkpoint", "/nowhere"]) == 2
    assert "/nowhere" in capsys.readouterr().err


# Through ROS


def test_the_nodes_in_lock_step_move_the_arm_as_the_core_does(trial: Trial) -> None:
    short = replace(trial, longest=1.0)
    found = evaluate([Way("core", short), Way("ros", short, ros=True)], [SEED, SEED + 1], progress=False)
    for core, ros in zip(found["core"], found["ros"], strict=True):
        assert ros["apart"] < 1e-6, "both pipelines are the same code on the same numbers"
        assert (core["success"], core["failure"], core["holds"]) == (ros["success"], ros["failure"], ros["holds"])
        assert ros["jerk"] == pytest.approx(core["jerk"], rel=0.05)


def test_a_corruption_and_no_trust_are_the_same_through_the_nodes(trial: Trial) -> None:
    noisy = replace(trial, longest=1.0, corruption=CorruptionConfig("noise", 3, begin=0.3), trust=False)
    found = evaluate([Way("core", noisy), Way("ros", noisy, ros=True)], [SEED, SEED + 1], progress=False)
    assert [record["apart"] for record in found["ros"]] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_lost_frames_do_not_stop_the_lock_step(trial: Trial) -> None:
    lossy = replace(trial, longest=1.0, corruption=CorruptionConfig("frame_drop", 4, begin=0.3))
    with RosStage(lossy) as stage:
        outcome = stage.run(SEED)
    assert len(outcome.path) >= 20 and outcome.failure == "never lifted the cube", "it went on to the end"
