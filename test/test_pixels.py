"""Every encoding, row padding and byte order becomes the picture it is; a broken cv_bridge is never used."""

from __future__ import annotations

import itertools
import types
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image

from sage_ros.nodes import bridge as bridge_module
from sage_ros.nodes.bridge import Bridge, find_bridge, raw_image, to_rgb, works
from sage_ros.pixels import ENCODINGS, rgb_of_compressed, rgb_of_raw, values_of_raw

PLAIN = [f"{kind}C{channels}" for kind in ("8U", "8S", "16U", "16S", "32S", "32F", "64F") for channels in (1, 2, 3, 4)]
DTYPES = {"8U": "u1", "8S": "i1", "16U": "u2", "16S": "i2", "32S": "i4", "32F": "f4", "64F": "f8"}
RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
FLAT = np.full((6, 8, 3), (200, 90, 30), np.uint8)  # what a Bayer pattern or shared chroma can say exactly


def told(encoding: str) -> tuple[np.ndarray, np.ndarray]:
    """A picture in ``encoding``, made here by hand, and the RGB (H, W, 3) that it is."""
    deep = encoding.endswith("16")
    name = encoding.removesuffix("16").removesuffix("8")
    scale = (lambda x: x.astype(np.uint16) * 257) if deep else (lambda x: x)
    opaque = np.full((6, 8, 1), 17, np.uint8)
    plain = {"rgb": RGB, "bgr": RGB[..., ::-1], "rgba": np.dstack([RGB, opaque]),
             "bgra": np.dstack([RGB[..., ::-1], opaque])}  # fmt: skip
    if name in plain:
        return scale(plain[name]), RGB
    if name == "mono":
        return scale(RGB[..., 0]), np.repeat(RGB[..., :1], 3, axis=2)
    if name.startswith("bayer_"):
        pattern = np.array(["rgb".index(letter) for letter in name.removeprefix("bayer_")]).reshape(2, 2)
        return scale(np.take_along_axis(FLAT, np.tile(pattern, (3, 4))[..., None], axis=2)[..., 0]), FLAT
    luma, pairs = np.full((6, 8), 110, np.uint8), np.tile(np.array([90, 180], np.uint8), (6, 4))
    packed = np.dstack([pairs, luma] if encoding in ("uyvy", "yuv422") else [luma, pairs])
    y, u, v = 1.164 * (110 - 16), 90 - 128, 180 - 128  # BT.601
    return packed, np.full((6, 8, 3), np.rint([y + 1.596 * v, y - 0.813 * v - 0.391 * u, y + 2.018 * u]), np.uint8)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 7, 12])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_colour_becomes_rgb(encoding: str, padding: int, big: bool) -> None:
    picture, expected = told(encoding)
    found = rgb_of_raw(raw_image(picture, encoding, padding, big))
    assert found.dtype == np.uint8 and found.shape == expected.shape
    exact = encoding.startswith(("rgb", "bgr", "mono", "bayer"))
    assert np.abs(found.astype(int) - expected).max() <= (0 if exact else 1)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PLAIN), st.integers(1, 5), st.integers(1, 5), st.integers(0, 9), st.booleans())
def test_plain_numbers_stay_what_they_are(encoding: str, height: int, width: int, padding: int, big: bool) -> None:
    kind, channels = encoding.split("C")
    shape = (height, width) if channels == "1" else (height, width, int(channels))
    values = (np.random.default_rng(height * width).standard_normal(shape) * 1e4).astype(DTYPES[kind])
    found = values_of_raw(raw_image(values, encoding, padding, big))
    assert found.dtype == np.dtype(DTYPES[kind]) and np.array_equal(found, values)


def test_deep_colours_round_to_the_nearest_level() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(rgb_of_raw(raw_image(levels, "mono16"))[..., 0], np.rint(levels / 257.0).astype(np.uint8))


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1", "8UC3", "nv12", "", "RGB8"])
def test_what_is_no_colour_is_refused_with_those_that_are(encoding: str) -> None:
    image = raw_image(RGB, "rgb8")
    image.encoding = encoding
    with pytest.raises(ValueError, match=f"'{encoding}' is not one of rgb8, .*bayer_grbg16.*yuyv"):
        rgb_of_raw(image)
    if encoding in ("nv12", "", "RGB8"):
        with pytest.raises(ValueError, match="nor plain numbers such as 16UC1"):
            values_of_raw(image)


def test_sizes_that_an_encoding_cannot_have_are_refused() -> None:
    with pytest.raises(ValueError, match="3x2 pixels cannot be uyvy"):
        rgb_of_raw(raw_image(np.zeros((2, 3, 2), np.uint8), "uyvy"))
    short = raw_image(np.zeros((4, 4), np.uint16), "mono16")
    short.step = 7
    with pytest.raises(ValueError, match="with step 7"):
        rgb_of_raw(short)


@pytest.mark.parametrize("kind", [".png", ".jpg"])
def test_a_compressed_image_is_read(kind: str) -> None:
    data = cv2.imencode(kind, FLAT[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    found = to_rgb(CompressedImage(format=kind[1:], data=data))
    assert np.abs(found.astype(int) - FLAT).max() <= (0 if kind == ".png" else 2)


def test_what_is_no_compressed_image_is_refused() -> None:
    for data in (b"", b"no picture"):
        with pytest.raises(ValueError, match="of format 'jpeg'"):
            rgb_of_compressed(CompressedImage(format="jpeg", data=data))


class PyPiBridge:
    """Reads as PyPI's port does: 16UC1 as bytes, in the byte order that comes, conversions left out."""

    def imgmsg_to_cv2(self, image: Image, encoding: str) -> np.ndarray:
        channels = ENCODINGS[image.encoding][1] if image.encoding in ENCODINGS else 1
        count = image.height * image.width * channels
        found = np.frombuffer(image.data, np.uint8, count).reshape(image.height, image.width, channels)
        return found if channels > 1 else found[..., 0]


class Ros2Bridge:
    """Reads as ROS 2's does: rows by ``step / pixel``, no bytes swapped with a numpy that cannot."""

    def imgmsg_to_cv2(self, image: Image, encoding: str) -> np.ndarray:
        assert not image.is_bigendian, "numpy.ndarray has no newbyteorder"
        dtype = np.uint16 if "16" in image.encoding else np.uint8
        channels = ENCODINGS[image.encoding][1] if image.encoding in ENCODINGS else 1
        columns = image.step // np.dtype(dtype).itemsize // channels
        buffer = np.frombuffer(image.data, dtype)[: image.height * columns * channels]
        found = buffer.reshape(image.height, columns, channels)[:, : image.width]
        if encoding == "passthrough":
            return found if channels > 1 else found[..., 0]
        if image.encoding not in ENCODINGS:
            raise TypeError(f"[{image.encoding}] is not a color format")
        conversion = ENCODINGS[image.encoding][2]
        found = found if conversion is None else cv2.cvtColor(np.ascontiguousarray(found), conversion)
        return found if dtype == np.uint8 else np.rint(found / 257.0).astype(np.uint8)


def module(kind: type) -> Any:
    return types.SimpleNamespace(CvBridge=kind, CvBridgeError=TypeError)


def test_a_cv_bridge_that_misreads_is_not_used() -> None:
    assert not works(Bridge(module(PyPiBridge)))
    assert works(Bridge(module(Ros2Bridge)))


@pytest.fixture(params=["as ROS 2's", "installed"])
def other(request: pytest.FixtureRequest) -> Bridge:
    if request.param == "as ROS 2's":
        return Bridge(module(Ros2Bridge))
    return find_bridge() or pytest.skip("no working cv_bridge is installed here")


def test_both_converters_give_the_same(other: Bridge) -> None:
    for encoding, padding, big in itertools.product(ENCODINGS, (0, 1, 7, 12), (False, True)):
        image = raw_image(told(encoding)[0], encoding, padding, big)
        assert np.array_equal(other.rgb(image), rgb_of_raw(image)), (encoding, padding, big)
        assert np.array_equal(other.values(image), values_of_raw(image)), (encoding, padding, big)


def test_both_converters_refuse_the_same(other: Bridge) -> None:
    with pytest.raises(ValueError, match="16UC1"):
        other.rgb(raw_image(np.zeros((2, 2), np.uint16), "16UC1"))
    image = raw_image(RGB, "rgb8")
    image.height = 60
    with pytest.raises(ValueError, match="needs"):
        other.rgb(image)


def test_a_working_cv_bridge_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    class Counted(Ros2Bridge):
        def imgmsg_to_cv2(self, image: Image, encoding: str) -> np.ndarray:
            used.append(encoding)
            return super().imgmsg_to_cv2(image, encoding)

    monkeypatch.setattr(bridge_module, "find_bridge", lambda: Bridge(module(Counted)))
    assert np.array_equal(to_rgb(raw_image(RGB, "rgb8")), RGB) and used == ["rgb8"]
