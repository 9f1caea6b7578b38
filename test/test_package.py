"""The package as colcon, pip and ROS see it."""

from __future__ import annotations

import ast
import os
import subprocess
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest
import yaml

import sage_ros
from sage_ros.nodes.pick_place import ALL
from sage_ros.paths import share

ROOT = Path(__file__).parents[1]


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "sage_ros").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    part = path.relative_to(ROOT / "sage_ros").parts[0]
    roots = {name.split(".")[0] for name in imports(path)}
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("sage_ros.")}
    if part != "nodes":
        assert "rclpy" not in roots, "only nodes import rclpy"
        assert "nodes" not in ours, "nothing imports nodes"
    if part == "core":
        assert not roots & {"torch", "onnxruntime", "transformers", "cv2", "pyarrow", "pandas"}, "core is numpy only"
        assert ours <= {"core"}


def test_versions_agree():
    assert xml.parse(ROOT / "package.xml").findtext("version") == sage_ros.__version__
    assert f'version="{sage_ros.__version__}"' in (ROOT / "setup.py").read_text()


def test_every_parameter_in_the_file_exists_with_its_type():
    """Unknown names in a parameter file are silently ignored by ROS, so a misspelt one must fail here."""
    from dataclasses import fields

    from sage_ros.core.allowance import Allowance, State
    from sage_ros.nodes.metabolic_manager import ManagerConfig
    from sage_ros.nodes.replayer import ReplayerConfig
    from sage_ros.nodes.safety_filter import FilterConfig
    from sage_ros.nodes.sage_policy import PolicyConfig
    from sage_ros.nodes.sim_robot import SimRobotConfig
    from sage_ros.nodes.trust_attention import TrustNodeConfig
    from sage_ros.nodes.vision_irp import VisionConfig

    configs = {
        "vision_irp": VisionConfig,
        "trust_attention": TrustNodeConfig,
        "sage_policy": PolicyConfig,
        "metabolic_manager": ManagerConfig,
        "replayer": ReplayerConfig,
        "safety_filter": FilterConfig,
        "sim_robot": SimRobotConfig,
    }
    for node, content in yaml.safe_load(share("config", "pick_place.yaml").read_text()).items():
        default = configs[node.removeprefix("/**/")]()
        known = {item.name: getattr(default, item.name) for item in fields(default)}
        if node.endswith("metabolic_manager"):
            names = [(state.value.lower(), item.name) for state in State for item in fields(Allowance)]
            known |= {"table": ""} | {f"{state}.{item}": getattr(Allowance(), item) for state, item in names}
        for name, value in content["ros__parameters"].items():
            assert name in known, f"{node} has no parameter {name}"
            assert type(value) is type(known[name]), f"{node} {name} must be a {type(known[name]).__name__}"


def test_colcon_installs_executables_launch_config_and_data(install, sourced):
    tools = ["pick_place", "monitor", "distil", "evaluate", "record_expert", "train_vae", "rollout", "run_task"]
    tools += ["corruption_sheet", "dream"]
    for name in [*ALL, *tools]:
        assert os.access(install / "lib" / "sage_ros" / name, os.X_OK), f"ros2 run sage_ros {name} would not work"
    assert (install / "share/ament_index/resource_index/packages/sage_ros").is_file()
    assert (install / "share/sage_ros/launch/pick_place.launch.py").is_file()
    assert (install / "share/sage_ros/config/pick_place.yaml").is_file()
    assert list(install.rglob("data/checkpoints/pick_place/model.safetensors"))
    assert list(install.rglob("data/episodes/pick_place/videos/**/*.mp4"))
    run = subprocess.run([*sourced, install / "lib/sage_ros/pick_place", "--help"], capture_output=True, text=True)
    assert run.returncode == 0 and "--source" in run.stdout, run.stderr
