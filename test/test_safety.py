"""The safety filter without ROS: what it sends, and above all when it sends nothing or holds."""

from __future__ import annotations

import numpy as np
import pytest

from sage_ros.core.gate import Refusal
from sage_ros.core.limits import JointLimits
from sage_ros.core.safety import Mode, SafetyConfig, SafetyFilter

SECOND = 1_000_000_000
NAMES = ["a", "b"]
RATE = 100.0
LIMITS = JointLimits(
    ("a", "b"), np.array([[-1.0, 1.0]] * 2), np.array([1.0, 1.0]), np.array([8.0, 8.0]), np.array([100.0, 100.0])
)


class Robot:
    """A filter, its clock, and a robot that is wherever it is told to be."""

    def __init__(self, **config: float) -> None:
        self.filter = SafetyFilter(LIMITS, RATE, SafetyConfig(**config))
        self.ms, self.at = 1000, np.array([0.1, -0.1])
        self.sent: list[np.ndarray] = []

    @property
    def now(self) -> int:
        return self.ms * SECOND // 1000

    def joints(self, **more: object) -> None:
        self.filter.joints(self.now, NAMES, self.at, self.now, self.ms / 1000, **more)  # type: ignore[arg-type]

    def chunk(self, target: float | list[list[float]] = 0.5, names: list[str] = NAMES) -> None:
        rows = [[target, -target]] * 16 if isinstance(target, float) else target
        times = [(i + 1) / 20 for i in range(len(rows))]
        self.filter.chunk(self.now, names, rows, times, self.now, self.ms / 1000)

    def run(self, ms: int, chunks: bool = True, joints: bool = True, follow: bool = True) -> list[np.ndarray | None]:
        """Tick at 100 Hz, with a chunk every 50 ms."""
        answers = []
        for _ in range(ms // 10):
            self.ms += 10
            if joints:
                self.joints()
            if chunks and self.ms % 50 == 0:
                self.chunk()
            set_point = self.filter.tick(self.now, self.ms / 1000)
            if set_point is not None:
                self.sent.append(set_point)
                self.at = set_point.copy() if follow else self.at
            answers.append(set_point)
        return answers

    def started(self) -> Robot:
        self.run(100)
        assert self.filter.enable(self.ms / 1000) == ""
        return self

    def moving(self) -> Robot:
        self.started().run(400)
        assert self.filter.mode is Mode.RUNNING and self.filter.moving
        return self

    def within_limits(self) -> bool:
        path = np.array(self.sent)
        rows = (LIMITS.velocity, LIMITS.acceleration, LIMITS.jerk)
        fine = [np.abs(np.diff(path, n + 1, axis=0)) * RATE ** (n + 1) <= top * 1.00001 for n, top in enumerate(rows)]
        return all(bool(part.all()) for part in fine) and bool((np.abs(path) <= 1.0).all())


def test_a_fresh_filter_is_a_dry_run():
    robot = Robot()
    assert robot.run(500) == [None] * 50
    assert robot.filter.mode is Mode.DRY_RUN and robot.filter.reason == "not enabled"


def test_enabling_eases_in_from_the_measured_pose_and_reaches_the_plan_within_all_limits():
    robot = Robot().started()
    robot.run(10)
    assert np.abs(robot.sent[0] - [0.1, -0.1]).max() < 1e-3
    robot.run(3000)
    assert robot.sent[-1] == pytest.approx([0.5, -0.5], abs=1e-3)
    assert robot.within_limits()


def test_easing_in_is_slower_at_first():
    quick, slow = (Robot(ease_in=s).started() for s in (0.0, 2.0))
    for robot in (quick, slow):
        robot.run(300)
    assert slow.sent[-1][0] < quick.sent[-1][0]


def test_it_is_not_enabled_without_fresh_joints_and_says_so():
    robot = Robot()
    assert "no joint_states with all of a, b" in robot.filter.enable(1.0)
    robot.joints()
    robot.ms += 500
    assert "no joint_states" in robot.filter.enable(robot.ms / 1000)
    assert robot.filter.mode is Mode.DRY_RUN


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda r: r.run(300, chunks=False), "no chunk for 0.08 s"),
        (lambda r: r.run(400, joints=False), "no joint_states for 0.2 s"),
        (lambda r: (r.filter.forbid("metabolism", "CRISIS: a fault"), r.run(300)), "CRISIS: a fault"),
        (lambda r: (r.filter.confide(0.1), r.run(300)), "confidence 0.10"),
        (lambda r: (r.filter.confide(float("nan")), r.run(300)), "confidence 0.00"),
    ],
)
def test_what_is_missing_makes_it_hold_until_it_is_back(fault, reason):
    robot = Robot().moving()
    fault(robot)
    assert robot.filter.mode is Mode.HOLDING and reason in robot.filter.reason
    held = robot.run(100, chunks=False, joints=False)
    assert not robot.filter.moving and np.array_equal(held[0], held[-1])
    robot.filter.forbid("metabolism", "")
    robot.filter.confide(1.0)
    robot.ms += 50 - robot.ms % 50 - 10
    robot.run(10)  # joints and a chunk
    assert robot.filter.mode is Mode.RUNNING, "it goes on in the very tick"
    assert robot.within_limits()


def test_a_hold_begins_within_the_watchdogs_time():
    robot = Robot().moving()
    before = len(robot.sent)
    robot.run(300, chunks=False)
    speed = np.abs(np.diff(np.array(robot.sent[before:]), axis=0)).max(axis=1)
    assert (np.diff(speed)[11:] <= 1e-9).all(), "it brakes from the watchdog's tick on"


def test_a_plan_that_is_used_up_is_held():
    robot = Robot(watchdog=5.0).moving()
    robot.run(1500, chunks=False)
    assert robot.filter.reason == "the plan is used up" and robot.filter.mode is Mode.HOLDING


@pytest.mark.parametrize(
    ("rows", "names", "reason"),
    [
        ([[0.5, float("nan")]] * 16, NAMES, "not_finite"),
        ([[0.5]] * 16, NAMES, "incomplete"),
        ([], NAMES, "empty"),
        ([[0.5, 0.5]] * 16, ["a", "x"], "missing_joint"),
        ([[0.5, 0.5, 0.5]] * 16, ["a", "b", "c"], "unknown_joint"),
        ([[0.5, 0.5]] * 16, ["a", "a"], "repeated_joint"),
    ],
)
def test_a_chunk_that_does_not_fit_changes_nothing(rows, names, reason):
    robot, twin = Robot().moving(), Robot().moving()
    with pytest.raises(Refusal) as refusal:
        robot.chunk(rows, names)
    assert refusal.value.reason == reason
    assert np.array_equal(robot.run(200), twin.run(200))


def test_joints_are_known_by_their_names():
    robot, twin = Robot().moving(), Robot().moving()
    robot.run(40), twin.run(40)
    for r, names, sign in ((robot, ["b", "a"], -1.0), (twin, NAMES, 1.0)):
        r.ms += 10
        r.chunk([[sign * 0.9, -sign * 0.9]] * 16, names)
    assert np.array_equal(robot.run(40, chunks=False), twin.run(40, chunks=False))


def test_low_confidence_slows_down():
    sure, unsure = Robot(ease_in=0.0).started(), Robot(ease_in=0.0).started()
    unsure.filter.confide(0.3)
    sure.run(300), unsure.run(300)
    assert unsure.filter.mode is Mode.RUNNING
    assert 0.1 < unsure.sent[-1][0] < sure.sent[-1][0]


def test_an_emergency_hold_brakes_falls_silent_and_lasts_until_it_is_reset():
    robot = Robot().moving()
    robot.filter.stop("somebody is in the way")
    answers = robot.run(1000)
    assert answers[0] is not None and answers[-1] is None and robot.within_limits()
    assert (robot.filter.mode, robot.filter.reason) == (Mode.STOPPED, "somebody is in the way")
    robot.filter.stop("another reason")
    assert robot.filter.reason == "somebody is in the way"
    assert "reset it first" in robot.filter.enable(robot.ms / 1000)
    robot.filter.reset()
    assert robot.filter.mode is Mode.DRY_RUN and robot.run(50) == [None] * 5
    assert robot.filter.enable(robot.ms / 1000) == ""
    robot.run(500)
    assert robot.filter.mode is Mode.RUNNING


def test_disabling_brakes_before_it_falls_silent():
    robot = Robot().moving()
    robot.filter.disable()
    answers = robot.run(1000)
    assert answers[0] is not None and answers[-1] is None and robot.within_limits()


def test_a_robot_that_does_not_follow_is_an_emergency():
    robot = Robot(follow_tolerance=0.1, follow_time=0.3).moving()
    robot.run(1500, follow=False)
    assert robot.filter.mode is Mode.STOPPED and "from its set point for 0.3 s" in robot.filter.reason


def test_a_robot_that_comes_back_elsewhere_is_an_emergency():
    robot = Robot(follow_tolerance=0.1).moving()
    robot.run(500, joints=False)
    assert robot.filter.mode is Mode.HOLDING
    robot.at = robot.at + 0.3
    robot.run(10, follow=False)
    assert robot.filter.mode is Mode.STOPPED


@pytest.mark.parametrize("speed", [9.0, float("nan")])
def test_a_joint_out_of_control_is_an_emergency(speed):
    robot = Robot().moving()
    robot.ms += 10
    robot.joints(speeds=[0.0, speed])
    assert robot.filter.mode is Mode.STOPPED and "b moves at" in robot.filter.reason


def test_when_time_goes_back_all_plans_are_forgotten_and_it_goes_on_with_new_ones():
    robot = Robot().moving()
    robot.filter.clear()
    steady = robot.ms / 1000
    assert robot.filter.tick(5 * SECOND // 10, steady) is not None
    assert robot.filter.mode is Mode.HOLDING
    robot.filter.joints(SECOND // 2, NAMES, robot.at, SECOND // 2, steady)
    robot.filter.chunk(SECOND // 2, NAMES, [[0.5, -0.5]] * 16, [(i + 1) / 20 for i in range(16)], SECOND // 2, steady)
    robot.filter.tick(SECOND // 2 + 1, steady)
    assert robot.filter.mode is Mode.RUNNING


def test_what_it_announces_is_where_it_will_lead():
    robot = Robot().moving()
    ahead = robot.filter.ahead(robot.now, 20.0)
    assert ahead.shape[1] == 2 and 10 <= len(ahead) <= 16
    robot = Robot(watchdog=5.0, ease_in=0.0).moving()
    ahead = robot.filter.ahead(robot.now, 20.0)
    robot.run(500, chunks=False)
    assert robot.sent[-1] == pytest.approx(ahead[9], abs=0.03)


def test_where_it_holds_it_announces_the_pose_held():
    robot = Robot().started()
    robot.filter.forbid("metabolism", "REST")
    robot.run(200)
    assert robot.filter.ahead(robot.now, 20.0) == pytest.approx(robot.filter.motion.position[None])


def test_limits_change_only_while_the_robot_rests_and_is_not_enabled():
    robot = Robot().moving()
    with pytest.raises(RuntimeError, match="rests"):
        robot.filter.relimit(LIMITS)
    robot.filter.disable()
    robot.run(1000)
    robot.filter.relimit(LIMITS)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="hold_below"):
        SafetyConfig(hold_below=0.7, full_above=0.6)
