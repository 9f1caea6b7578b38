"""One camera's topics, named as image_transport has them: ``image_raw``, ``image_raw/compressed``, ``camera_info``."""

from __future__ import annotations

import array
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from sage_ros.nodes.lifecycle import STREAM, SageNode
from sage_ros.nodes.messages import image_message

FORMATS = {"jpeg": ".jpg", "png": ".png"}


class CameraTopics:
    """Publishes frames of one camera below ``prefix`` ("" or "front/"). What nobody listens to is not built."""

    def __init__(
        self, node: SageNode, camera: str, prefix: str, compression: str, quality: int, info: CameraInfo | None
    ) -> None:
        """``compression``: jpeg, png or none; ``quality`` is JPEG's; ``info``: the intrinsics, where known."""
        self.frame_id = f"{topic_name(camera)}_optical_frame"
        self._suffix = FORMATS.get(compression, "")
        self._format = f"rgb8; {compression} compressed bgr8"
        self._options = [cv2.IMWRITE_PNG_COMPRESSION, 1]
        if compression == "jpeg":
            self._options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        self._raw = node.publish_on(Image, f"{prefix}image_raw", STREAM, overridable=True)
        self._packed: Any = None
        if self._suffix:
            self._packed = node.publish_on(CompressedImage, f"{prefix}image_raw/compressed", STREAM, overridable=True)
        self._info = info
        self._infos = node.publish_on(CameraInfo, f"{prefix}camera_info", STREAM, overridable=True) if info else None
        self._image: Image | None = None  # to be filled anew

    @property
    def listeners(self) -> int:
        packed = self._packed.get_subscription_count() if self._packed is not None else 0
        return int(self._raw.get_subscription_count() + packed)

    def prepare(self, frame: np.ndarray, stamp: Time) -> list[tuple[Any, Any]]:
        """Publishers and messages for a frame (H, W, 3) uint8 RGB; all share ``stamp``, to be filled in later."""
        header = Header(stamp=stamp, frame_id=self.frame_id)
        messages: list[tuple[Any, Any]] = []
        if self._info is not None:
            self._info.header = header
            messages.append((self._infos, self._info))
        if self._raw.get_subscription_count():
            self._image = image_message(frame, header, self._image)
            messages.append((self._raw, self._image))
        if self._packed is not None and self._packed.get_subscription_count():
            messages.append((self._packed, self._compress(frame, header)))
        return messages

    def _compress(self, frame: np.ndarray, header: Header) -> CompressedImage:
        done, packed = cv2.imencode(self._suffix, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), self._options)
        if not done:
            raise RuntimeError(f"OpenCV cannot write a frame of {frame.shape} as {self._suffix}")
        return CompressedImage(header=header, format=self._format, data=array.array("B", packed.tobytes()))


def topic_name(camera: str) -> str:
    """The camera's name as a part of a topic: letters, digits and underscores."""
    name = re.sub(r"\W", "_", camera, flags=re.ASCII)
    return f"camera_{name}" if not name or name[0].isdigit() else name


def intrinsics(folder: str, known: Mapping[str, Any] | None, camera: str, size: tuple[int, int]) -> CameraInfo | None:
    """A camera's intrinsics: ``folder``/<camera>.yaml of camera_calibration, else what the data set has ``known``.

    ``folder`` may also be the one file of an only camera; ``size`` (H, W) is the frames'. None if nothing is known.
    Raises ValueError if they are malformed or of another size, OSError if a file cannot be read.
    """
    path = Path(folder).expanduser()
    path = path if path.is_file() else path / f"{camera}.yaml"
    if folder and path.is_file():
        try:
            return _from_calibration(yaml.safe_load(path.read_text("utf-8")), camera, size)
        except (yaml.YAMLError, UnicodeDecodeError, ValueError) as problem:
            raise ValueError(f"{path}: {problem}") from problem
    if known is None:
        return None
    lens = [float(value) for value in known.get("d", ())]
    return _complete(known["k"], lens, str(known.get("distortion_model", "plumb_bob")), size)


def _from_calibration(content: Any, camera: str, size: tuple[int, int]) -> CameraInfo:
    """From image_width, camera_matrix, distortion_coefficients and so on. Raises ValueError."""
    try:
        height, width = int(content["image_height"]), int(content["image_width"])
        lens = _numbers(content.get("distortion_coefficients", [0.0] * 5))
        model = str(content.get("distortion_model", "plumb_bob"))
        info = _complete(_numbers(content["camera_matrix"]), lens, model, (height, width))
        if "rectification_matrix" in content:
            info.r = np.array(_numbers(content["rectification_matrix"], 9))
        if "projection_matrix" in content:
            info.p = np.array(_numbers(content["projection_matrix"], 12))
    except (KeyError, TypeError, AttributeError, AssertionError) as problem:
        raise ValueError(f"no intrinsics as camera_calibration writes them ({problem!r})") from problem
    if (height, width) != size:
        raise ValueError(f"made for {width}x{height}, but camera '{camera}' has {size[1]}x{size[0]}")
    return info


def _complete(matrix: Sequence[float], lens: Sequence[float], model: str, size: tuple[int, int]) -> CameraInfo:
    """Of a camera that is no half of a stereo pair. Raises ValueError."""
    k = np.array(_numbers(matrix, 9))
    info = CameraInfo(height=size[0], width=size[1], distortion_model=model, d=array.array("d", lens))
    info.k, info.r = k, np.eye(3).ravel()
    info.p = np.hstack([k.reshape(3, 3), np.zeros((3, 1))]).ravel()
    return info


def _numbers(matrix: Any, count: int = 0) -> list[float]:
    values = [float(value) for value in (matrix["data"] if isinstance(matrix, dict) else matrix)]
    if count and len(values) != count:
        raise ValueError(f"{len(values)} numbers where {count} should be")
    return values
