"""Images as they come on topics and in bags, raw or compressed, to numpy: what cv_bridge does, and row padding too.

The encodings are those of sensor_msgs/image_encodings. Colours are converted by OpenCV's routines, as cv_bridge does
it: deeper pixels in their own depth first, then to 8 bit by 255 / 65535.
"""

from __future__ import annotations

import re
from typing import Any

import cv2
import numpy as np

# encoding -> dtype, channels and the OpenCV conversion to RGB. A Bayer pattern is named after its first two pixels
# here, but after the second row's second and third in OpenCV.
ENCODINGS: dict[str, tuple[str, int, int | None]] = {
    "rgb8": ("u1", 3, None),
    "bgr8": ("u1", 3, cv2.COLOR_BGR2RGB),
    "rgba8": ("u1", 4, cv2.COLOR_RGBA2RGB),
    "bgra8": ("u1", 4, cv2.COLOR_BGRA2RGB),
    "mono8": ("u1", 1, cv2.COLOR_GRAY2RGB),
    "rgb16": ("u2", 3, None),
    "bgr16": ("u2", 3, cv2.COLOR_BGR2RGB),
    "rgba16": ("u2", 4, cv2.COLOR_RGBA2RGB),
    "bgra16": ("u2", 4, cv2.COLOR_BGRA2RGB),
    "mono16": ("u2", 1, cv2.COLOR_GRAY2RGB),
    "bayer_rggb8": ("u1", 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": ("u1", 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": ("u1", 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": ("u1", 1, cv2.COLOR_BayerGB2RGB),
    "bayer_rggb16": ("u2", 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr16": ("u2", 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg16": ("u2", 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg16": ("u2", 1, cv2.COLOR_BayerGB2RGB),
    "uyvy": ("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422": ("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuyv": ("u1", 2, cv2.COLOR_YUV2RGB_YUYV),
    "yuv422_yuy2": ("u1", 2, cv2.COLOR_YUV2RGB_YUYV),
}
_PLAIN = re.compile(r"(8U|8S|16U|16S|32S|32F|64F)C([1-4])")
_DTYPES = {"8U": "u1", "8S": "i1", "16U": "u2", "16S": "i2", "32S": "i4", "32F": "f4", "64F": "f8"}


def values_of_raw(image: Any) -> np.ndarray:
    """The pixels as they are, (H, W) or (H, W, channels), of what has the fields of sensor_msgs/Image.

    In the machine's byte order; a view of the image's data where that has it too. Raises ValueError on an unknown
    encoding or a size that does not fit the data.
    """
    kind, channels = _layout(image.encoding)
    dtype = np.dtype(kind).newbyteorder(">" if image.is_bigendian else "<")
    rows = pixel_rows(image, dtype.itemsize * channels)
    if dtype.itemsize > 1:  # a row of padded bytes is no row of larger numbers
        rows = np.ascontiguousarray(rows).view(dtype).astype(dtype.newbyteorder("="), copy=False)
    shape = (image.height, image.width, channels) if channels > 1 else (image.height, image.width)
    return rows.view(kind).reshape(shape)


def rgb_of_raw(image: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB of what has the fields of sensor_msgs/Image; it may be a view of the image's data.

    Raises ValueError on an encoding that is no colour, a size that does not fit the data, or one that a Bayer pattern
    or YUV 4:2:2 cannot have.
    """
    if image.encoding not in ENCODINGS:
        raise ValueError(f"image encoding '{image.encoding}' is not one of {', '.join(ENCODINGS)}")
    picture, (kind, _, conversion) = values_of_raw(image), ENCODINGS[image.encoding]
    if conversion is not None:
        try:
            picture = cv2.cvtColor(np.ascontiguousarray(picture), conversion)
        except cv2.error as error:
            size = f"{image.width}x{image.height}"
            raise ValueError(f"an image of {size} pixels cannot be {image.encoding}") from error
    return picture if kind == "u1" else cv2.convertScaleAbs(picture, alpha=255.0 / 65535.0)


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


def _layout(encoding: str) -> tuple[str, int]:
    """dtype and channels. Raises ValueError."""
    if encoding in ENCODINGS:
        return ENCODINGS[encoding][:2]
    plain = _PLAIN.fullmatch(encoding)
    if plain is None:
        raise ValueError(
            f"image encoding '{encoding}' is neither one of {', '.join(ENCODINGS)} nor plain numbers such as 16UC1"
        )
    return _DTYPES[plain[1]], int(plain[2])


def overlay(frame: np.ndarray, weights: np.ndarray, trust: np.ndarray) -> np.ndarray:
    """The frame (H, W, 3) uint8 RGB as it is attended to: bright where ``weights`` (rows, columns) are great, red where
    ``trust`` (rows, columns), in [0, 1], is low.
    """
    size = frame.shape[1], frame.shape[0]
    bright = 0.3 + 0.7 * np.sqrt(weights / max(float(weights.max()), 1e-12))
    bright = cv2.resize(bright.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)[..., None]
    doubt = cv2.resize((0.6 * (1.0 - trust)).astype(np.float32), size, interpolation=cv2.INTER_LINEAR)[..., None]
    shown = (1.0 - doubt) * bright * frame + doubt * np.array([255.0, 0.0, 0.0], np.float32)
    return np.clip(np.rint(shown), 0, 255).astype(np.uint8)
