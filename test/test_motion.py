import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruckig import ControlInterface, InputParameter, Ruckig, RuckigError, Trajectory

from sage_ros.core.braking import Stop
from sage_ros.core.chunks import ActionChunk
from sage_ros.core.limits import JointLimits
from sage_ros.core.motion import MotionFilter
from sage_ros.core.steps import BANDWIDTH, tracking

T = 0.01


def limits(joints: int = 1, low=-1.0, high=1.0, velocity=2.0, acceleration=10.0, jerk=100.0) -> JointLimits:
    full = [np.full(joints, value) for value in (velocity, acceleration, jerk)]
    return JointLimits(tuple(f"j{i}" for i in range(joints)), np.tile([low, high], (joints, 1)), *full)


def started(at=0.0, **changes) -> MotionFilter:
    motion = MotionFilter(limits(**changes), T)
    motion.start(np.atleast_1d(at).astype(float))
    return motion


def shares(bounds: JointLimits, period: float, points: list[np.ndarray]) -> np.ndarray:
    """(3, A): the greatest speed, acceleration and jerk of set points that begin at rest, as shares of the limits.

    What float64 positions cannot resolve is not counted.
    """
    path = np.array([points[0]] * 3 + points)
    rounding = 8 * np.finfo(float).eps * np.abs(path).max()
    orders = enumerate((bounds.velocity, bounds.acceleration, bounds.jerk), start=1)
    return np.array([(np.abs(np.diff(path, n, axis=0)).max(axis=0) - rounding) / period**n / top for n, top in orders])


def assert_lawful(bounds: JointLimits, period: float, points: list[np.ndarray], inside: bool = True) -> None:
    assert shares(bounds, period, points).max() <= 1 + 1e-6
    if inside:
        path = np.array(points)
        assert (path >= bounds.position[:, 0]).all() and (path <= bounds.position[:, 1]).all()


@st.composite
def robots(draw) -> tuple[JointLimits, float, np.random.Generator]:
    """Limits of up to 4 joints, of grippers in m as of fast arms in rad, and a period."""
    joints, rng = draw(st.integers(1, 4)), np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    span = 10 ** rng.uniform(-2, 1, joints)
    low = rng.uniform(-1, 1, joints) - span / 2
    velocity = span * 10 ** rng.uniform(-1, 1, joints)
    acceleration = velocity * 10 ** rng.uniform(-0.5, 2, joints)
    jerk = acceleration * 10 ** rng.uniform(-0.5, 2, joints)
    names = tuple(f"j{i}" for i in range(joints))
    bounds = JointLimits(names, np.stack([low, low + span], axis=1), velocity, acceleration, jerk)
    return bounds, draw(st.sampled_from([0.002, 0.01, 0.05])), rng


commands = st.lists(
    st.tuples(
        st.sampled_from(["jump", "follow", "race", "edge", "noise", "absurd", "hold"]),
        st.sampled_from([1.0, 1.0, 0.5, 0.03, 0.0]),
        st.integers(1, 15),
    ),
    min_size=1,
    max_size=12,
)


def drive(motion: MotionFilter, script, rng: np.random.Generator) -> list[np.ndarray]:
    """The set points that a script of (what, pace, how often) leads to, the start first."""
    bounds, period = motion.limits, motion.period
    (low, high), fast, joints = bounds.position.T, bounds.velocity, len(bounds)
    span, points, target = high - low, [motion.position], motion.position
    for what, pace, times in script:
        if what == "jump":
            target = rng.uniform(low - 0.3 * span, high + 0.3 * span)
        if what == "edge":
            target = np.where(rng.random(joints) < 0.5, low, high)
        drift = fast * rng.uniform(-1, 1, joints)
        for _ in range(times):
            if what == "hold":
                points.append(motion.hold())
                continue
            velocity = None
            if what == "follow":
                target, velocity = target + drift * period, drift
            if what == "race":
                target, velocity = target + 3 * fast * period, 3 * fast
            if what == "noise":
                target, velocity = target + rng.normal(0, fast * period), rng.normal(0, fast)
            if what == "absurd":
                target, velocity = rng.choice([-1e300, 0.0, 1e-300, 1e300], joints), rng.choice([-1e300, 1e300], joints)
            points.append(motion.step(target, velocity, pace))
            target = np.clip(target, low - span, high + span)
    return points


@settings(max_examples=300, deadline=None)
@given(robots(), commands, st.sampled_from(["middle", "edge"]))
def test_whatever_comes_set_points_keep_every_limit(robot, script, begin):
    bounds, period, rng = robot
    motion = MotionFilter(bounds, period)
    motion.start(rng.uniform(*bounds.position.T) if begin == "middle" else bounds.position[:, 1])
    assert_lawful(bounds, period, drive(motion, script, rng))


@settings(max_examples=100, deadline=None)
@given(robots(), commands)
def test_a_joint_that_starts_outside_only_ever_moves_inwards(robot, script):
    bounds, period, rng = robot
    low, high = bounds.position.T
    side = rng.choice([-1, 0, 1], len(bounds))
    away = side * (high - low) * rng.uniform(0.001, 1, len(bounds))
    begin = np.choose(side + 1, [low, (low + high) / 2, high]) + away
    motion = MotionFilter(bounds, period)
    motion.start(begin)
    assert motion.outside == tuple(n for n, s in zip(bounds.names, side, strict=True) if s)
    path = np.array(drive(motion, script, rng))
    assert_lawful(bounds, period, list(path), inside=False)
    tiny = 1e-9 * (high - low)
    assert (path[1:] <= np.maximum(high, path[:-1] + tiny)).all()
    assert (path[1:] >= np.minimum(low, path[:-1] - tiny)).all()


def test_a_joint_outside_comes_back_to_an_inner_target_and_to_the_limit_for_an_outer_one():
    motion = started([3.0, -2.5, 0.0], joints=3)
    for _ in range(1000):
        motion.step(np.array([0.5, -9.0, 0.0]))
    assert motion.position == pytest.approx([0.5, -1.0, 0.0], abs=1e-5)
    assert motion.outside == ()


def test_holding_outside_stays_outside():
    motion = started(3.0)
    assert motion.hold() == motion.step(np.zeros(1), pace=0.0) == 3.0
    assert motion.outside == ("j0",)


class Broken:
    """A planner that raises."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def calculate(self, *_):
        raise self.error("unlucky")


class Liar:
    """A planner whose next states need a jerk that is too great now and then, or does not even exist."""

    def __init__(self, limits: JointLimits, period: float, rng: np.random.Generator) -> None:
        self.limits, self.period, self.rng = limits, period, rng
        self.proposals = 0

    def calculate(self, plan, way):
        self.plan = plan
        return 0

    def at_time(self, _):
        t, plan, joints = self.period, self.plan, len(self.limits)
        p, v, a = (np.array(x) for x in (plan.current_position, plan.current_velocity, plan.current_acceleration))
        push = self.rng.uniform(-1.05, 1.05, joints) + self.rng.choice([0.0, 0.1, 0.5]) * self.rng.normal(
            size=(3, joints)
        )
        x, y, z = push * self.limits.jerk
        self.proposals += joints
        p, v, a = p + t * (v + t * (a / 2 + t * x / 6)), v + t * (a + t * y / 2), a + t * z
        return p.tolist(), v.tolist(), a.tolist()


@settings(max_examples=100, deadline=None)
@given(robots())
def test_whatever_a_planner_proposes_set_points_keep_every_limit(robot):
    bounds, period, rng = robot
    motion = MotionFilter(bounds, period)
    motion.start(np.where(rng.random(len(bounds)) < 0.7, bounds.position[:, 0], rng.uniform(*bounds.position.T)))
    motion._otg = motion._way = liar = Liar(bounds, period, rng)
    points = [motion.position] + [motion.step(np.zeros(len(bounds))) for _ in range(200)]
    assert_lawful(bounds, period, points)
    assert 0 < motion.interventions < liar.proposals


@pytest.mark.parametrize("error", [RuckigError, ValueError])
def test_a_planner_that_fails_brakes_the_joint_within_its_limits(error):
    motion = started()
    points = [motion.position] + [motion.step(np.ones(1)) for _ in range(20)]
    assert motion.velocity > 0.5
    motion._otg = Broken(error)
    points += [motion.step(-np.ones(1)) for _ in range(200)]
    assert_lawful(motion.limits, T, points)
    assert motion.at_rest
    assert motion.interventions == 200


@settings(deadline=None)
@given(st.floats(-1, 1), st.floats(-1, 1))
def test_a_joint_goes_to_where_it_is_told_as_fast_as_its_limits_allow_and_stays(begin, end):
    motion = started(begin)
    way = abs(min(max(end, -0.999999), 0.999999) - begin)
    # From rest to rest: without reaching the acceleration limit, the speed limit, and with both
    short, middle, far = 4 * (way / 200) ** (1 / 3), 0.1 + math.sqrt(0.01 + 4 * way / 10), way / 2 + 0.2 + 0.1
    fastest = short if way <= 0.2 else middle if way <= 0.6 else far
    steps = math.ceil(fastest / T + 1e-3) + 1
    points = [motion.position] + [motion.step(np.array([end])) for _ in range(steps)]
    assert motion.position == pytest.approx([end], abs=2.1e-6)
    assert motion.at_rest
    assert motion.step(np.array([end])) == pytest.approx(points[-1], abs=1e-8)
    assert motion.interventions == 0


def test_a_moving_target_is_followed_without_lag():
    motion = started(-0.9)
    for k in range(300):
        target = -0.9 + 0.5 * T * (k + 1)
        motion.step(np.array([target]), np.array([0.5]))
    assert motion.position == pytest.approx([target], abs=1e-9)
    assert motion.velocity == pytest.approx([0.5], abs=1e-9)
    still = started(-0.9)
    for k in range(300):
        still.step(np.array([-0.9 + 0.5 * T * (k + 1)]))
    assert target - still.position > 0.01  # what the velocity is for


def test_an_ordinary_plan_is_followed_closely_and_never_braked():
    motion, worst = started(), 0.0
    for k in range(1, 600):
        t = k * T
        point = motion.step(np.array([0.5 * math.sin(3 * t)]), np.array([1.5 * math.cos(3 * t)]))
        worst = max(worst, abs(point[0] - 0.5 * math.sin(3 * t)) if t > 1 else 0.0)
    assert worst < 0.01
    assert motion.interventions == 0


def test_a_target_that_trembles_costs_a_joint_little_of_its_jerk():
    motion, rng = started(), np.random.default_rng(0)
    for k in range(1, 700):
        t, tremble = k * T, rng.normal(0, 2e-4)
        motion.step(np.array([0.5 * math.sin(t) + tremble]), np.array([0.5 * math.cos(t) + tremble * 20]))
        if k == 100:
            points = [motion.position]
        elif k > 100:
            points.append(motion.position)
    jerk = np.diff(np.array(points), 3, axis=0) / T**3
    assert np.sqrt(np.mean(jerk**2)) < 20  # the limit is 100, which a time-optimal way takes all the time
    assert motion.interventions == 0


@pytest.mark.parametrize("step", [1e-4, 0.003, 0.02, 0.1, 0.5])
def test_a_target_that_leaps_aside_is_caught_up_with_in_one_go(step):
    motion, errors, jerks = started(-0.9), [], []
    for k in range(300):
        target = -0.9 + 0.2 * T * (k + 1) + (step if k > 100 else 0.0)
        before = motion.acceleration
        errors.append(target - motion.step(np.array([target]), np.array([0.2]))[0])
        jerks.append((motion.acceleration - before)[0] / T)
    assert min(errors[101:]) > -0.02 * step - 1e-9
    assert errors[-1] == pytest.approx(0.0, abs=1e-9)
    great = np.sign(np.array(jerks[101:])[np.abs(jerks[101:]) > 0.02 * np.abs(jerks[101:]).max()])
    assert (np.diff(great) != 0).sum() <= 3  # up, down, level out: the law and the planner do not hand it to and fro


@pytest.mark.parametrize("period", [0.002, 0.01, 0.05])
def test_a_deviation_from_a_moving_target_decays_in_the_same_time_at_every_period_and_without_overshoot(period):
    state, errors = np.array([1.0, 0.3, 0.0]), []
    for k in range(1, round(0.5 / period) + 1):
        target = 0.3 * k * period
        state = tracking(period)[:3] @ [*state, 0.3, 1.0, target]
        errors.append(state[0] - target)
    at = BANDWIDTH * period * np.arange(1, len(errors) + 1)
    assert min(errors) > -1e-9
    assert errors[-1] < 1e-4
    if period < 0.01:
        np.testing.assert_allclose(errors, np.exp(-at) * (1 + at + at**2 / 2), atol=0.02)


def test_a_plan_that_runs_into_the_limit_ends_at_the_limit():
    motion = started()
    points = [motion.position]
    points += [motion.step(np.array([1.5 * T * k]), np.array([1.5])) for k in range(1, 200)]
    assert_lawful(motion.limits, T, points)
    assert motion.position == pytest.approx([1.0], abs=1e-5)
    assert motion.at_rest


def test_pace_scales_the_speed_and_nought_holds():
    motion = started(-1.0)
    for pace in (1.0, 0.25):
        speed = 0.0
        motion.start(np.array([-1.0]))
        for _ in range(60):
            motion.step(np.ones(1), pace=pace)
            speed = max(speed, motion.velocity[0])
        assert speed == pytest.approx(2.0 * pace, rel=1e-3)
    held = started(0.0)
    assert held.step(np.ones(1), pace=0.0) == 0.0


@settings(max_examples=50, deadline=None)
@given(st.floats(0.05, 1.9), st.booleans())
def test_a_hold_is_the_fastest_stop(speed, backwards):
    sign = -1.0 if backwards else 1.0
    motion = started(joints=1, low=-1e6, high=1e6)
    for _ in range(200):
        motion.step(np.array([sign * 1e5]), pace=speed / 2.0)
    begin, v = motion.position[0], abs(motion.velocity[0])
    assert v == pytest.approx(speed, rel=1e-3)
    seconds = 2 * math.sqrt(v / 100) if v <= 1.0 else v / 10 + 0.1
    points = [motion.hold() for _ in range(math.ceil(seconds / T + 1e-3))]
    assert motion.at_rest
    assert sign * (points[-1][0] - begin) == pytest.approx(v * seconds / 2, rel=1e-3)
    assert motion.hold() == points[-1]


def oracle(velocity: float, acceleration: float) -> Trajectory:
    """Ruckig's own stop."""
    plan, way = InputParameter(1), Trajectory(1)
    plan.control_interface = ControlInterface.Velocity
    plan.current_velocity, plan.current_acceleration = [velocity], [acceleration]
    plan.max_acceleration, plan.max_jerk = [1.0], [1.0]
    Ruckig(1).calculate(plan, way)
    return way


@settings(max_examples=300, deadline=None)
@given(st.floats(-2, 2), st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_closed_form_stop_is_ruckigs(levelled, acceleration, early, late):
    velocity = levelled - acceleration * abs(acceleration) / 2
    stop, way = Stop(np.array([velocity]), np.array([acceleration])), oracle(velocity, acceleration)
    time = early * way.duration
    x, v, a = stop.after(np.array([time]))[:, 0]
    assert (x, v, a) == pytest.approx([values[0] for values in way.at_time(time)], abs=1e-6)
    ends = sorted(float((stop.sign * end)[0]) for end in stop.extent())
    reach = way.position_extrema[0]
    assert ends == pytest.approx([reach.min, reach.max], abs=1e-6)
    # The rest of a stop is the stop from there
    more = late * way.duration
    again = Stop(np.array([v]), np.array([a])).after(np.array([more]))[:, 0] + [x, 0, 0]
    assert again == pytest.approx(stop.after(np.array([time + more]))[:, 0], abs=1e-6)


def test_a_preview_tells_where_steps_will_lead_and_changes_nothing():
    chunk = ActionChunk(0.4 * (1 - np.cos(2 * 0.05 * np.arange(1, 33)))[:, None], 20.0)
    motion, twin = started(), started()
    for k in range(50):
        for each in (motion, twin):
            each.step(*chunk.at((k + 1) * T))
    forecast = motion.preview(chunk.positions[10:], 20.0)
    assert forecast.shape == (22, 1)
    for k in range(50, 160):
        point = motion.step(*chunk.at((k + 1) * T))
        assert point == twin.step(*chunk.at((k + 1) * T))
        if (k + 1) % 5 == 0:
            assert point == pytest.approx(forecast[(k + 1) // 5 - 11], abs=0.003)


@settings(max_examples=50, deadline=None)
@given(robots(), commands)
def test_a_preview_keeps_limits_and_ends_like_a_hold_where_pace_is_nought(robot, script):
    bounds, period, rng = robot
    motion = MotionFilter(bounds, period)
    motion.start(rng.uniform(*bounds.position.T))
    drive(motion, script, rng)
    rows = rng.uniform(*bounds.position.T, (12, len(bounds)))
    path = np.concatenate([motion.position[None], motion.preview(rows, 20.0)])
    assert (np.abs(np.diff(path, axis=0)) * 20.0 <= bounds.velocity * (1 + 1e-6)).all()
    assert (path >= bounds.position[:, 0]).all() and (path <= bounds.position[:, 1]).all()
    braked = motion.preview(rows, 20.0, pace=0.0)
    while not motion.at_rest:
        motion.hold()
    if (bounds.velocity / bounds.acceleration + bounds.acceleration / bounds.jerk).max() < 12 / 20.0 / 3:  # time enough
        assert braked[-1] == pytest.approx(motion.position, abs=1e-9)


@pytest.mark.parametrize(
    ("target", "velocity", "pace"),
    [
        ([np.nan, 0.0], None, 1.0),
        ([np.inf, 0.0], None, 1.0),
        ([0.0], None, 1.0),
        ([[0.0, 0.0]], None, 1.0),
        ([0.0, 0.0], [np.nan, 0.0], 1.0),
        ([0.0, 0.0], [0.0], 1.0),
        ([0.0, 0.0], None, 1.1),
        ([0.0, 0.0], None, -0.1),
        ([0.0, 0.0], None, np.nan),
    ],
)
def test_a_target_that_cannot_be_used_is_refused_and_changes_nothing(target, velocity, pace):
    motion, twin = started([0.0, 0.0], joints=2), started([0.0, 0.0], joints=2)
    for each in (motion, twin):
        for _ in range(10):
            each.step(np.array([1.0, -1.0]))
    with pytest.raises(ValueError, match=r"finite|pace"):
        motion.step(np.array(target), None if velocity is None else np.array(velocity), pace)
    assert motion.step(np.ones(2)).tolist() == twin.step(np.ones(2)).tolist()


def test_without_a_measured_pose_there_is_no_set_point():
    motion = MotionFilter(limits(), T)
    for act in (lambda: motion.step(np.zeros(1)), motion.hold, lambda: motion.preview(np.zeros((2, 1)), 20.0)):
        with pytest.raises(RuntimeError, match="no measured pose"):
            act()
    with pytest.raises(ValueError, match="finite measured positions"):
        motion.start(np.array([np.nan]))
    assert not motion.started
    motion.start(np.array([0.5]))
    assert motion.hold() == 0.5
    motion.stop()
    with pytest.raises(RuntimeError, match="no measured pose"):
        _ = motion.position


@pytest.mark.parametrize("period", [0.0, -1.0, np.nan, np.inf])
def test_a_period_without_sense_is_refused(period):
    with pytest.raises(ValueError, match="period"):
        MotionFilter(limits(), period)


@pytest.mark.parametrize("rows", [np.zeros((0, 1)), np.zeros(1), np.zeros((3, 2)), np.full((3, 1), np.nan)])
def test_a_preview_of_what_is_no_plan_is_refused(rows):
    with pytest.raises(ValueError):
        started().preview(rows, 20.0)
