"""Grippers, smoothness, calibration, scores and claims, on cases small enough to work out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_ros.core.joints import JointError, JointLayout
from sage_ros.training.evaluation_report import write_report
from sage_ros.training.measures import (
    Switching,
    boundary_jumps,
    compare_bits,
    coverage,
    f1,
    find_grippers,
    roughness,
    timing_error,
)
from sage_ros.training.openloop import Demonstration, Prediction
from sage_ros.training.scores import Evaluation, choose_subsets, claims, score, summary, to_json

JOINTS = JointLayout(("a", "b", "thumb", "finger", "fixed"), {"arm": (0, 2), "hand": (2, 4), "rest": (4, 5)})
ALL = np.arange(5)


def bits(text: str) -> np.ndarray:
    return np.array([letter == "#" for letter in text])


def demonstration(index: int = 0, rows: int = 40, on: tuple[int, int] = (10, 20)) -> Demonstration:
    """The arm moves at random; the thumb goes from -1 to 1 and the finger from 3 to -3 while on."""
    rng = np.random.default_rng(index)
    closed = (np.arange(rows) >= on[0]) & (np.arange(rows) < on[1])
    hand = np.where(closed[:, None], [1.0, -3.0], [-1.0, 3.0])
    action = np.hstack([rng.uniform(-1, 1, (rows, 2)), hand, np.full((rows, 1), 0.5)])
    return Demonstration(index, "move", 20.0, action + 0.1, action, np.zeros((rows, 1, 1)), JOINTS, JOINTS)


def predicted(action: np.ndarray, every: int = 16, deviation: np.ndarray | None = None) -> Prediction:
    """Chunks whose rows are these actions; the last row fills the last chunk."""
    keep = np.minimum(np.arange(-(-len(action) // every) * every), len(action) - 1).reshape(-1, every)
    return Prediction(action[keep], None if deviation is None else deviation[keep], len(action))


def test_joints_with_two_values_that_switch_together_are_one_gripper() -> None:
    (gripper,) = find_grippers([demonstration()])
    assert gripper.name == "thumb and 1 more" and gripper.columns.tolist() == [2, 3]
    assert gripper.on.tolist() == [1.0, -3.0] and gripper.off.tolist() == [-1.0, 3.0]  # the rarer side is on
    assert np.flatnonzero(gripper.bits(demonstration().action)).tolist() == list(range(10, 20))
    halfway = np.array([[0, 0, 0.1, -0.1, 0], [0, 0, -0.1, 0.1, 0], [0, 0, 1.0, 0.0, 0]])
    assert gripper.bits(halfway).tolist() == [True, False, True]


def test_a_gripper_that_moves_slowly_has_to_be_named() -> None:
    demo = demonstration()
    slow = demo.action.copy()
    slow[:, 2:4] = np.linspace(0, 1, 40)[:, None] ** 2 * [1.0, 1.0]
    demo = Demonstration(0, "", 20.0, slow, slow, demo.tokens, JOINTS, JOINTS)
    assert find_grippers([demo]) == []
    (thumb,) = find_grippers([demo], ["thumb"])
    assert thumb.name == "thumb" and thumb.bits(slow).sum() == (slow[:, 2] > 0.5).sum()
    with pytest.raises(JointError, match="no action joint claw; there are: a, b"):
        find_grippers([demo], ["thumb", "claw"])
    with pytest.raises(JointError, match="fixed never moves"):
        find_grippers([demo], ["fixed"])


@pytest.mark.parametrize(
    ("said", "late", "missed", "extra"),
    [
        ("...####...", [0, 0], 0, 0),
        (".####.....", [-2, -2], 0, 0),
        ("....####..", [1, 1], 0, 0),
        ("..........", [], 2, 0),
        ("#######...", [0], 1, 0),  # the end is met, the beginning is not
        ("..######..", [-1, 1], 0, 0),
        ("...#.##...", [0, 0], 0, 2),  # it let go in between: one end and one beginning too many
    ],
)
def test_each_demonstrated_switch_is_met_by_one_of_its_direction(
    said: str, late: list[int], missed: int, extra: int
) -> None:
    found = compare_bits(bits(said), bits("...####..."), cap=5)
    assert (found.late, found.missed, found.extra) == (late, missed, extra)


def test_a_switch_beyond_the_cap_is_missed_and_counts_as_the_cap() -> None:
    there, said = bits("..####......"), bits(".......#####")  # rises 5 late; does not fall
    assert compare_bits(said, there, cap=5).late == [5]
    far = compare_bits(said, there, cap=4)
    assert (far.late, far.missed, far.extra) == ([], 2, 1)
    assert timing_error([far], cap=4) == 4.0
    assert timing_error([far, compare_bits(there, there, cap=4)], cap=4) == 2.0
    assert timing_error([compare_bits(bits("..."), bits("..."))]) is None


def test_f1_is_over_the_rows_of_all_episodes() -> None:
    one, other = compare_bits(bits("##.."), bits(".##.")), compare_bits(bits("...."), bits("...#"))
    assert (one.true, one.false, one.missing, other.missing) == (1, 1, 1, 1)
    assert f1([one, other]) == pytest.approx(2 / (2 + 3))
    assert f1([compare_bits(bits(".."), bits(".."))]) is None


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.lists(st.booleans(), min_size=60, max_size=60))
def test_every_switch_is_met_missed_or_extra(demonstrated: list[bool], more: list[bool]) -> None:
    there, said = np.array(demonstrated), np.array(more[: len(demonstrated)])
    found = compare_bits(said, there, cap=7)
    assert len(found.late) + found.missed == np.count_nonzero(np.diff(there))
    assert len(found.late) + found.extra == np.count_nonzero(np.diff(said))
    assert all(abs(ticks) <= 7 for ticks in found.late)
    same = compare_bits(there, there)
    assert (set(same.late) <= {0}, same.missed, same.extra, same.false, same.missing) == (True, 0, 0, 0, 0)


def test_jumps_are_between_the_last_row_of_a_chunk_and_the_first_of_the_next() -> None:
    chunks = np.array([[[0.0, 0.0], [1.0, 1.0]], [[4.0, 5.0], [5.0, 5.0]], [[5.0, 4.0], [9.0, 9.0]]])
    assert boundary_jumps(chunks).tolist() == [[3.0, 4.0], [0.0, -1.0]]
    found = score(Prediction(chunks, None, 6), _plain(np.zeros((6, 2))), np.array([0, 1]))
    assert found.jump_l2 == pytest.approx((5 + 1) / 2) and found.jump_max == 4.0


def test_acceleration_and_jerk_are_differences_inside_of_chunks() -> None:
    t = np.arange(5) / 10.0
    parabola = (1.5 * t**2)[None, :, None]  # acceleration 3, no jerk
    cubic = (2.0 * t**3)[None, :, None]  # jerk 12
    assert roughness(np.concatenate([parabola, 5 - parabola]), 10.0) == pytest.approx((3.0, 0.0))
    assert roughness(cubic, 10.0)[1] == pytest.approx(12.0)
    assert roughness(np.zeros((2, 2, 1)), 10.0) == (None, None)


def test_jumps_and_jitter_leave_grippers_out() -> None:
    demo = demonstration()
    action = demo.action.copy()
    action[:, :2] = 0.0
    (gripper,) = find_grippers([demo])
    found = score(predicted(action, every=4), demo, ALL, [gripper])
    assert (found.jump_l2, found.jump_max, found.acceleration) == (0.0, 0.0, 0.0)
    hand = score(predicted(action), demo, JOINTS.columns(["hand"]), [gripper])
    assert hand.jump_l2 is None and hand.acceleration is None and len(hand.switching) == 1
    assert score(predicted(action), demo, np.array([2]), [gripper]).switching == ()  # half a hand says nothing


def test_coverage_is_the_share_inside_of_the_normal_interval() -> None:
    error = np.array([0.6, -0.7, 1.6, -1.7])  # the limits are 0.674 and 1.645 deviations
    assert coverage(error, np.ones(4), 0.5) == 0.25
    assert coverage(error, np.ones(4), 0.9) == 0.75
    assert coverage(2 * error, 2 * np.ones(4), 0.9) == 0.75


def test_true_deviations_are_covered_and_joints_that_stand_still_do_not_count() -> None:
    rng, demo = np.random.default_rng(0), _plain(np.linspace(0, 1, 20000)[:, None] * [1.0, 0.0])
    deviation = np.tile([0.2, 5.0], (20000, 1))
    noisy = demo.action + 0.2 * rng.normal(size=(20000, 2))
    found = score(predicted(noisy, deviation=deviation), demo, np.array([0, 1])).calibration
    assert found is not None
    assert found.covered == pytest.approx({0.5: 0.5, 0.9: 0.9}, abs=0.015)
    assert found.width == pytest.approx(2 * 1.6449 * 0.2, rel=1e-3)
    assert score(predicted(noisy), demo, np.array([0, 1])).calibration is None


@given(st.integers(1, 50), st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True), st.integers(0, 99))
def test_a_subset_scores_the_mean_of_its_joints_and_perfection_scores_nothing(
    rows: int, columns: list[int], seed: int
) -> None:
    demo = demonstration(rows=50)
    prediction = predicted(demo.action + np.random.default_rng(seed).normal(size=demo.action.shape)).first(rows)
    whole, part = score(prediction, demo, ALL), score(prediction, demo, np.array(columns))
    assert part.mse == pytest.approx(np.mean(whole.squared[columns]))
    assert part.mse >= part.absolute**2
    assert part.mse == pytest.approx(np.mean((prediction.positions - demo.action[:rows])[:, columns] ** 2))
    perfect = score(predicted(demo.action).first(rows), demo, ALL, find_grippers([demo]))
    assert perfect.mse == perfect.absolute == 0.0 and set(perfect.switching[0].late) <= {0}


def test_summary_gives_each_joints_rmse_over_all_episodes() -> None:
    demos = [demonstration(0), demonstration(1)]
    scores = [score(predicted(d.action + off * np.eye(5)[0]), d, ALL) for d, off in zip(demos, (3.0, 4.0), strict=True)]
    found = summary(scores, JOINTS.names, [])
    assert found["rmse"]["a"] == pytest.approx(np.sqrt((9 + 16) / 2)) and found["rmse"]["b"] == 0.0
    assert found["mse"] == pytest.approx((9 + 16) / 2 / 5) and found["mae"] == pytest.approx(3.5 / 5)
    assert found["calibration"] is None and found["grippers"] == {}


def test_a_prediction_begins_as_it_began() -> None:
    demo = demonstration(rows=40)
    prediction = predicted(demo.action)
    assert np.array_equal(prediction.first(17).positions, demo.action[:17])
    assert len(prediction.first(17).chunks) == 2 and prediction.first(None).rows == 40
    assert prediction.first(99).rows == 40


def test_subsets_are_the_groups_as_one_and_each() -> None:
    demos = [demonstration()]
    assert list(choose_subsets(demos, [])) == ["all", "arm", "hand"]  # the rest never moves
    chosen = choose_subsets(demos, ["hand", "arm"])
    assert {name: columns.tolist() for name, columns in chosen.items()} == {
        "hand+arm": [2, 3, 0, 1], "hand": [2, 3], "arm": [0, 1]
    }  # fmt: skip
    assert list(choose_subsets(demos, ["arm"])) == ["arm"]
    with pytest.raises(JointError, match="no joint group leg"):
        choose_subsets(demos, ["leg"])


def test_a_claim_gives_the_ratio_and_its_spread_over_episodes_and_seeds() -> None:
    evaluation = _evaluation({"student": {0: (1.0, 3.0), 1: (1.0, 1.0)}, "last action": {0: (2.0, 2.0)}})
    (claim,) = claims(evaluation)
    # Squared: student 1, 9 and 1, 1; last action 4, 4.
    assert claim.ratio == pytest.approx(3.0 / 4) and claim.holds
    assert claim.folds == pytest.approx((1 / 4, 5 / 4)) and claim.seeds == pytest.approx((1 / 4, 5 / 4))
    assert str(claim) == (
        "student beats last action on arm, whole episodes: yes, 0.75x (0.25-1.25 over episodes, 0.25-1.25 over seeds)"
    )


def test_claims_are_against_the_last_action_and_the_best_but_not_against_variants() -> None:
    evaluation = _evaluation({"student": {0: (2.0, 2.0)}, "last action": {0: (3.0, 3.0)}, "trees": {0: (1.0, 1.0)},
                              "student, tokens blanked": {0: (0.5, 0.5)}})  # fmt: skip
    found = claims(evaluation)
    assert [(claim.baseline, claim.holds) for claim in found] == [("last action", True), ("trees", False)]
    assert str(found[1]) == "student beats trees on arm, whole episodes: no, 4.00x (4.00-4.00 over episodes)"


def test_the_report_holds_every_figure_claim_and_picture(tmp_path: Path) -> None:
    demos = (demonstration(0), demonstration(1, rows=50, on=(5, 30)))
    wrong, spread = 0.1 * np.ones(5), np.full((50, 5), 0.1)
    evaluation = Evaluation(
        "A <title>", "what was trained on what", demos,
        {
            "student": {s: [predicted(d.action + wrong, 16, spread[: len(d)]) for d in demos] for s in (3, 4)},
            "last action": {0: [predicted(d.action * 0.5) for d in demos]},
        },
        tuple(find_grippers(demos)), choose_subsets(demos, []), (30, None),
    )  # fmt: skip
    (tmp_path / "evaluation_episode_000099.png").write_bytes(b"old")
    page = write_report(tmp_path, evaluation).read_text()
    assert "A &lt;title&gt;" in page and "http" not in page.replace("http://www.w3.org", "")
    assert all(str(claim).split(":")[0] in page for claim in claims(evaluation))
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {f"evaluation_{n}.png" for n in ("errors", "grippers", "episode_000000", "episode_000001")}
    assert page.count("data:image/png;base64,") == 4
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures == json.loads(json.dumps(to_json(evaluation)))
    student = figures["scores"]["all"]["whole"]["student"]
    assert student["mse"] == pytest.approx(0.01) and student["deviation_over_seeds"] == pytest.approx(0.0)
    assert student["grippers"]["thumb and 1 more"] == {
        "f1": 1.0, "timing_error_ticks": 0.0, "switches": 8, "missed": 0, "extra": 0
    }  # fmt: skip
    assert student["calibration"]["covered_90%"] == 1.0 and student["calibration"]["covered_50%"] == 0.0
    assert figures["grippers"] == {"thumb and 1 more": ["thumb", "finger"]} and figures["seeds"] == [3, 4]


def test_a_policy_that_keeps_still_and_a_data_set_without_gripper_are_drawn(tmp_path: Path) -> None:
    evaluation = _evaluation({"student": {0: (0.0, 0.0)}})
    page = write_report(tmp_path, evaluation).read_text()
    assert claims(evaluation) == [] and "evaluation_grippers" not in page
    assert not (tmp_path / "evaluation_grippers.png").exists()


def _plain(action: np.ndarray) -> Demonstration:
    joints = JointLayout(("a", "b"), {"arm": (0, 2)})
    return Demonstration(0, "", 20.0, action, action, np.zeros((len(action), 1, 1)), joints, joints)


def _evaluation(offsets: dict[str, dict[int, tuple[float, float]]]) -> Evaluation:
    """Two episodes; each policy is off by so much on each, per seed."""
    demos = tuple(_plain(np.random.default_rng(i).normal(size=(20, 2))) for i in range(2))
    predictions = {
        name: {seed: [predicted(d.action + o) for d, o in zip(demos, off, strict=True)] for seed, off in rows.items()}
        for name, rows in offsets.items()
    }
    return Evaluation("title", "note", demos, predictions, (), {"arm": np.array([0, 1])}, (None,))


def test_switching_is_what_it_says() -> None:
    assert compare_bits(bits("##.#"), bits(".#.#")) == Switching(2, 1, 0, [0, 0], 1, 0)
