"""Which image converter serves: cv_bridge where a working ROS 2 one is installed, else :mod:`sage_ros.pixels`.

PyPI's cv-bridge is a port of ROS 1's: it fails with current numpy and OpenCV, and takes 16UC1 for bytes. It has the
same name, so what is found is tried on images that tell them apart before it is used.
"""

from __future__ import annotations

import array
import functools
import importlib
import sys
from typing import Any

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from sage_ros.pixels import rgb_of_compressed, rgb_of_raw, values_of_raw


class Bridge:
    """cv_bridge's conversions. Both raise ValueError.

    It gets whole rows in the machine's byte order: ROS 2's own shears rows that are padded by less than a pixel, and
    asks numpy for a method to swap bytes that numpy no longer has.
    """

    def __init__(self, cv_bridge: Any) -> None:
        """``cv_bridge``: the module."""
        self._bridge = cv_bridge.CvBridge()
        self._error: type[Exception] = cv_bridge.CvBridgeError

    def rgb(self, image: Image) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return self._convert(image, "rgb8")

    def values(self, image: Image) -> np.ndarray:
        """The pixels as they are, (H, W) or (H, W, channels)."""
        return self._convert(image, "passthrough")

    def _convert(self, image: Image, encoding: str) -> np.ndarray:
        values = values_of_raw(image)
        tight = values.nbytes // len(values)
        if image.step != tight or bool(image.is_bigendian) != (sys.byteorder == "big"):
            image = raw_image(values, image.encoding)
        try:
            return np.asarray(self._bridge.imgmsg_to_cv2(image, encoding))
        except self._error as error:
            raise ValueError(f"cv_bridge cannot make {encoding} of {image.encoding}: {error}") from error


def raw_image(values: np.ndarray, encoding: str, padding: int = 0, big: bool = sys.byteorder == "big") -> Image:
    """An image of ``values`` (H, W) or (H, W, channels), with ``padding`` bytes after each row."""
    rows = np.ascontiguousarray(values, values.dtype.newbyteorder(">" if big else "<"))
    height, width = values.shape[:2]
    padded = np.pad(rows.reshape(height, -1).view(np.uint8), ((0, 0), (0, padding)), constant_values=99)
    image = Image(height=height, width=width, encoding=encoding, step=padded.shape[1], is_bigendian=int(big))
    image.data = array.array("B", padded.tobytes())
    return image


def works(bridge: Bridge) -> bool:
    """Whether it reads depth and colours as they are, deep ones too."""
    depth = np.array([[1, 2, 300], [4, 50000, 6]], dtype=np.uint16)
    colours = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    deep = colours.astype(np.uint16) * 257
    try:
        return all((
            np.array_equal(bridge.values(raw_image(depth, "16UC1")), depth),
            np.array_equal(bridge.rgb(raw_image(colours, "bgr8", padding=4)), colours[..., ::-1]),
            np.array_equal(bridge.rgb(raw_image(deep, "rgb16", big=True)), colours),
        ))  # fmt: skip
    except Exception:  # whatever is broken in it: it is not used
        return False


@functools.cache
def find_bridge() -> Bridge | None:
    """The installed cv_bridge if it works; looked for once."""
    try:
        bridge = Bridge(importlib.import_module("cv_bridge"))
    except Exception:  # built for another numpy, it raises all sorts of things on import
        return None
    return bridge if works(bridge) else None


def to_rgb(image: Image | CompressedImage) -> np.ndarray:
    """(H, W, 3) uint8 RGB; it may be a view of the message's data. Raises ValueError as :func:`rgb_of_raw` does."""
    if isinstance(image, CompressedImage):
        return rgb_of_compressed(image)
    bridge = find_bridge()
    return rgb_of_raw(image) if bridge is None else bridge.rgb(image)
