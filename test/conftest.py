"""Every test run gets a ROS domain of its own, on this machine only, and leaves nothing behind."""

from __future__ import annotations

import os
import socket
import tempfile

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


os.environ["ROS_DOMAIN_ID"] = str(_claim_domain())
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["FASTDDS_BUILTIN_TRANSPORTS"] = "UDPv4"  # no files in /dev/shm after a kill
os.environ["ROS_LOG_DIR"] = tempfile.mkdtemp(prefix="sage_ros_test_log_")
os.environ.setdefault("OMP_NUM_THREADS", "1")
