"""Processes that end with whoever started them, however that ends."""

from __future__ import annotations

import ctypes
import os
import sys

PARENT = "SAGE_ROS_PARENT"  # environment variable: the id of the process that started this one
PR_SET_PDEATHSIG = 1


def follow_parent(number: int) -> bool:
    """Get the signal ``number`` when the parent that :data:`PARENT` names dies, on Linux; True if it is dead already.

    The kernel sends it when the parent's thread ends that started this process.
    """
    parent = os.environ.get(PARENT)
    if not parent or sys.platform != "linux":
        return False
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    return os.getppid() != int(parent)
