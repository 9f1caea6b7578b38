"""Live robot policies in ROS 2 that a laptop can run."""

__version__ = "0.1.0"
