"""Joint states and commands kept by stamp, for a node that pairs them with frames."""

from __future__ import annotations

import numpy as np
from sensor_msgs.msg import JointState

from sage_ros.core.joints import JointError, JointLayout
from sage_ros.core.timing import StampBuffer
from sage_ros.nodes.lifecycle import SageNode
from sage_ros.nodes.messages import MessageError, nanoseconds, positions_from


def keep(
    node: SageNode, buffer: StampBuffer[np.ndarray], layout: JointLayout, message: JointState, refused: str = "refused"
) -> None:
    """Put a message's positions into ``buffer``, in the order of ``layout``. One that is not finite or lacks a joint
    is left out: a warning, and a count under ``refused``.
    """
    try:
        positions = positions_from(message)[layout.order_from(message.name)]
    except (MessageError, JointError) as problem:
        node.counts[refused] += 1
        return node.complain(problem)
    buffer.add(nanoseconds(message.header.stamp), positions)
