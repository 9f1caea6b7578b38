"""Whether anything has moved: the gate that spares the encoder frames that show what the last one showed."""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 32  # cells across; a cell's mean is free of a camera's noise, and small enough for a gripper to fill


class Stillness:
    """Compares frames with the last one that was encoded, place by place.

    A frame is still where no cell's mean colour has changed by more than ``threshold`` grey levels (of 255) and no more
    than ``longest`` seconds have passed; a threshold of 0 takes no frame for still. Slow motion adds up, as it is not
    the frame before but the one encoded last that is compared with.
    """

    def __init__(self, threshold: float, longest: float) -> None:
        self.threshold, self.longest = threshold, longest
        self._last: np.ndarray | None = None
        self._stamp = 0

    def holds(self, stamp: int, frame: np.ndarray) -> bool:
        """Whether frame (H, W, 3) uint8 of ``stamp`` (ns) is still; if it is not, it becomes the one compared with."""
        if self.threshold <= 0:
            return False
        cells = cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
        fresh = 0 <= stamp - self._stamp <= self.longest * 1e9
        if self._last is not None and fresh and np.abs(cells - self._last).max() <= self.threshold:
            return True
        self._last, self._stamp = cells, stamp
        return False

    def reset(self) -> None:
        """Forget: the next frame is none that is still."""
        self._last = None
