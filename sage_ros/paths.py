"""Where the package's own data, configuration and launch files are, however it was installed; and its cache."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parent
EPISODES = PACKAGE / "data" / "episodes" / "pick_place"
CHECKPOINT = PACKAGE / "data" / "checkpoints" / "pick_place"
ENCODER = PACKAGE / "data" / "checkpoints" / "tiny_vae"


def checkpoint_path(given: str) -> Path:
    """The checkpoint folder to use: the given one, or the package's where none is given."""
    return Path(given).expanduser() if given else CHECKPOINT


def dataset_path(given: str) -> Path:
    """The data set folder to use: the given one, or the package's where none is given."""
    return Path(given).expanduser() if given else EPISODES


def cache_folder() -> Path:
    """Where what can be made again is kept: ``$XDG_CACHE_HOME/sage_ros``, by default ``~/.cache/sage_ros``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sage_ros"


def share(*parts: str) -> Path:
    """A file of the ``share/sage_ros`` folder: in the source tree, in a colcon install space or in pip's prefix.

    Raises FileNotFoundError naming the places searched.
    """
    prefixes = [PACKAGE.parents[i] / "share" / "sage_ros" for i in range(1, min(5, len(PACKAGE.parents)))]
    places = [PACKAGE.parent, *prefixes, Path(sys.prefix) / "share" / "sage_ros"]
    for place in places:
        if (place / "package.xml").is_file() and place.joinpath(*parts).exists():
            return place.joinpath(*parts)
    raise FileNotFoundError(f"{'/'.join(parts)} of sage_ros is in none of: {', '.join(map(str, places))}")


def profiles_variable() -> str:
    """The environment variable that names Fast DDS's profiles: Kilted (rclpy 9) warns of the one that Jazzy reads."""
    kilted = int(version("rclpy").split(".")[0]) > 7
    return "FASTDDS_DEFAULT_PROFILES_FILE" if kilted else "FASTRTPS_DEFAULT_PROFILES_FILE"
