"""Images as they come on topics and in bags, raw or compressed, to RGB."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

# encoding -> channels and the OpenCV conversion to RGB
ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}


def rgb_of_raw(image: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB of what has the fields of sensor_msgs/Image; it may be a view of the image's data.

    Raises ValueError on an unknown encoding or a size that does not fit the data.
    """
    if image.encoding not in ENCODINGS:
        raise ValueError(f"image encoding '{image.encoding}' is not one of {', '.join(ENCODINGS)}")
    channels, conversion = ENCODINGS[image.encoding]
    picture = pixel_rows(image, channels).reshape(image.height, image.width, channels)
    return picture if conversion is None else cv2.cvtColor(np.ascontiguousarray(picture), conversion)


def rgb_of_compressed(image: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB of what has the fields of sensor_msgs/CompressedImage. Raises ValueError."""
    data = np.frombuffer(image.data, np.uint8)
    try:
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    except cv2.error:  # of an absurd size, for example
        picture = None
    if picture is None:
        raise ValueError(f"a compressed image of format '{image.format}' that OpenCV cannot read")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def pixel_rows(image: Any, pixel_bytes: int) -> np.ndarray:
    """The image's bytes (height, width * pixel_bytes) without row padding. Raises ValueError if they do not suffice."""
    used = image.width * pixel_bytes
    if image.height == 0 or used == 0:
        raise ValueError("the image is empty")
    if image.step < used or len(image.data) < image.step * image.height:
        raise ValueError(
            f"image of {image.width}x{image.height} {image.encoding} with step {image.step} needs "
            f"{max(image.step, used) * image.height} bytes, but has {len(image.data)}"
        )
    data = np.frombuffer(image.data, dtype=np.uint8, count=image.step * image.height)
    return data.reshape(image.height, image.step)[:, :used]
