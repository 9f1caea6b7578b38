"""Cameras and joints on a bad day: named corruptions of five severities, for whoever wants to know what they do.

Each kind has a physical meaning and five levels, in the spirit of ImageNet-C (Hendrycks & Dietterich 2019), whose
levels blur and noise keep. What a corruption does is a function of its settings and of the stream, and of nothing else:
the same seed gives the same pixels. Stamps are never changed; what they do wrong is the business of ``fault_injector``.

Half of the kinds are HELD_OUT: nothing in this package may be tuned on them, so that they can tell how it copes with
what nobody thought of.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from sage_ros.core.options import check, option
from sage_ros.core.timing import SECOND

FRAMES, JOINTS = "frames", "joints"
FIELD_OF_VIEW = 41.0  # degrees from the picture's top to its bottom, for camera_moved: the simulated camera's
BIASED = 1 / 3  # share of the joints that biased_joints hits
SLACK = 0.005 * SECOND  # ns by which a late picture may be younger than asked for: stamps jitter


@dataclass(frozen=True)
class Kind:
    """A way in which a stream goes wrong; ``levels[severity - 1]`` is in the unit that ``meaning`` names."""

    stream: str  # FRAMES or JOINTS
    levels: tuple[float, float, float, float, float]
    meaning: str


KINDS = {
    "occlusion": Kind(FRAMES, (0.05, 0.10, 0.20, 0.35, 0.50),
                      "something stands before the lens: a patch of one colour covers this share of the picture; its "
                      "shape, place and colour by the seed"),
    "blur": Kind(FRAMES, (3.0, 4.0, 6.0, 8.0, 10.0),
                 "out of focus: a point becomes a disk of this radius, in pixels of a picture 224 high (as in "
                 "ImageNet-C's defocus blur)"),
    "noise": Kind(FRAMES, (0.08, 0.12, 0.18, 0.26, 0.38),
                  "the sensor has too little light: Gaussian noise of this deviation, full scale being 1, fresh in "
                  "each frame (as in ImageNet-C)"),
    "exposure": Kind(FRAMES, (0.5, 1.0, 1.5, 2.0, 3.0),
                     "too long or too short, by so many stops: light is multiplied by two to their power and clipped; "
                     "up or down by the seed"),
    "colour_shift": Kind(FRAMES, (1.15, 1.3, 1.5, 1.8, 2.2),
                         "white balance for another lamp: the light of one channel is multiplied by this, that of "
                         "another divided by it; which by the seed"),
    "freeze": Kind(FRAMES, (0.25, 1.0, 3.0, 10.0, math.inf),
                   "the driver hands out its last picture again, with fresh stamps, for so many s; then comes one new "
                   "picture"),
    "frame_drop": Kind(FRAMES, (0.10, 0.25, 0.50, 0.75, 0.90),
                       "this share of the frames never comes, each by chance"),
    "latency": Kind(FRAMES, (0.05, 0.10, 0.20, 0.40, 0.80),
                    "the driver stamps when it delivers: pictures are so many s older than their stamps"),
    "camera_moved": Kind(FRAMES, (1.0, 2.0, 4.0, 7.0, 12.0),
                         "somebody bumped into the camera: it is turned by so many degrees, about an axis by the seed; "
                         "what it never saw repeats the picture's edge"),
    "stuck_joints": Kind(JOINTS, (1 / 6, 1 / 3, 1 / 2, 2 / 3, 1.0),
                         "encoders report what they last reported: of this share of the joints, at least one; which by "
                         "the seed"),
    "biased_joints": Kind(JOINTS, (0.02, 0.05, 0.10, 0.20, 0.40),
                          "encoders lost their zero: a third of the joints, at least one, is off by so many rad; "
                          "which, and up or down, by the seed"),
}  # fmt: skip
DEVELOPMENT = ("occlusion", "blur", "exposure", "freeze", "latency", "stuck_joints")
HELD_OUT = ("noise", "colour_shift", "frame_drop", "camera_moved", "biased_joints")  # from all tuning, for ever
NONE = "none"


@dataclass(frozen=True)
class CorruptionConfig:
    kind: str = option(NONE, f"what goes wrong: {', '.join(KINDS)}; none: nothing", choices=(NONE, *KINDS))
    severity: int = option(3, "how badly", low=1, high=5)
    seed: int = option(0, "where, which way, when", low=0, high=2**31 - 1)
    begin: float = option(0.0, "from when on (s after the first message)", low=0.0, high=1e6)
    duration: float = option(0.0, "for how long (s); 0: for good", low=0.0, high=1e6)

    def __post_init__(self) -> None:
        check(self)

    @property
    def level(self) -> float:
        """The severity in the kind's own unit; nan for none."""
        return KINDS[self.kind].levels[self.severity - 1] if self.kind in KINDS else math.nan

    def __str__(self) -> str:
        return f"{self.kind}:{self.severity}" if self.kind in KINDS else self.kind


def parse_corruption(text: str, seed: int = 0, begin: float = 0.0, duration: float = 0.0) -> CorruptionConfig:
    """The corruption written as KIND or KIND:SEVERITY. Raises ValueError."""
    kind, colon, severity = text.partition(":")
    if kind not in KINDS:
        raise ValueError(f"corruption '{text}': there is no kind '{kind}', but {', '.join(KINDS)}")
    if colon and severity not in ("1", "2", "3", "4", "5"):
        raise ValueError(f"corruption '{text}': the severity must be from 1 to 5, not '{severity}'")
    return CorruptionConfig(kind, int(severity or 3), seed, begin, duration)


class Corruption:
    """A corruption of one stream of frames and one of joint positions; give it every message, in the stamps' order.

    What is not hit comes back as the very object that was given, so that ``is`` tells. Memory is constant: latency
    keeps as many frames as it delays, freeze one.
    """

    def __init__(self, config: CorruptionConfig) -> None:
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Forget the stream: ``begin`` counts from the next message on."""
        self._first: int | None = None  # stamp
        self._shown: tuple[int, np.ndarray] | None = None  # freeze: the last new picture, and when it was shown
        self._past: deque[tuple[int, np.ndarray]] = deque()  # latency: when, and what
        self._reported: np.ndarray | None = None  # stuck_joints: the last good positions

    def hits(self, stamp: int) -> bool:
        """Whether the corruption is on at ``stamp`` (ns); before the first message it is not."""
        if self._first is None or self.config.kind == NONE:
            return False
        since = (stamp - self._first) / SECOND - self.config.begin
        return since >= 0.0 and (not self.config.duration or since < self.config.duration)

    def frame(self, stamp: int, frame: np.ndarray) -> np.ndarray | None:
        """What comes of the frame (H, W, 3) uint8 RGB of ``stamp`` (ns), which is not changed; None: nothing comes.

        Raises ValueError on another shape or dtype.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"a frame is (H, W, 3) uint8, not {frame.shape} {frame.dtype}")
        self._begin(stamp)
        kind, hit = self.config.kind, self.hits(stamp)
        if kind == "freeze":
            return self._frozen(stamp, frame, hit)
        if kind == "latency":
            return self._late(stamp, frame, hit)
        if not hit or KINDS[kind].stream != FRAMES:
            return frame
        if kind == "frame_drop":
            return None if self._chance(stamp).random() < self.config.level else frame
        random = self._chance(stamp) if kind == "noise" else np.random.default_rng(self.config.seed)
        return APPEARANCES[kind](frame, self.config.level, random)

    def joints(self, stamp: int, positions: np.ndarray) -> np.ndarray:
        """What is reported in place of the positions (A,) of ``stamp`` (ns), rad, which are not changed."""
        self._begin(stamp)
        kind, hit = self.config.kind, self.hits(stamp)
        if kind == "stuck_joints" and (not hit or self._reported is None or self._reported.shape != positions.shape):
            self._reported = positions.copy()
        if not hit or KINDS[kind].stream != JOINTS:
            return positions
        random, spoiled = np.random.default_rng(self.config.seed), positions.copy()
        share = self.config.level if kind == "stuck_joints" else BIASED
        chosen = random.permutation(len(positions))[: max(1, round(share * len(positions)))]
        if kind == "stuck_joints":
            assert self._reported is not None
            spoiled[chosen] = self._reported[chosen]
        else:
            spoiled[chosen] += self.config.level * random.choice((-1.0, 1.0), len(chosen))
        return spoiled

    def _begin(self, stamp: int) -> None:
        if self._first is not None and stamp < self._first:  # the stream has begun anew
            self.reset()
        if self._first is None:
            self._first = stamp

    def _chance(self, stamp: int) -> np.random.Generator:
        """Chance of its own for each message, whatever came before it."""
        assert self._first is not None
        return np.random.default_rng([self.config.seed, stamp - self._first])

    def _frozen(self, stamp: int, frame: np.ndarray, hit: bool) -> np.ndarray:
        if not hit or self._shown is None or stamp - self._shown[0] >= self.config.level * SECOND:
            self._shown = stamp, frame.copy()  # whose memory may be filled anew
            return frame
        return self._shown[1]

    def _late(self, stamp: int, frame: np.ndarray, hit: bool) -> np.ndarray:
        self._past.append((stamp, frame.copy()))
        due = stamp - self.config.level * SECOND + SLACK
        while len(self._past) > 1 and self._past[1][0] <= due:
            self._past.popleft()
        return self._past[0][1] if hit else frame


# What a picture looks like: (H, W, 3) uint8, the level and chance in, a new picture out


def _occluded(frame: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    height, width = frame.shape[:2]
    aspect = 2.0 ** random.uniform(-1.0, 1.0)  # of the patch's height to its width, in units of the picture's
    tall = min(1.0, math.sqrt(share * aspect))
    tall = max(tall, share)  # else it would be wider than the picture
    rows, columns = round(tall * height), round(share / tall * width)
    top, left = (int(random.integers(room + 1)) for room in (height - rows, width - columns))
    spoiled = frame.copy()
    spoiled[top : top + rows, left : left + columns] = random.integers(256, size=3)
    return spoiled


def _blurred(frame: np.ndarray, radius: float, random: np.random.Generator) -> np.ndarray:
    radius *= len(frame) / 224
    reach = math.ceil(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = np.clip(radius + 0.5 - np.hypot(x, y), 0.0, 1.0)  # its edge as smooth as pixels are wide
    return cv2.filter2D(frame, -1, disk / disk.sum(), borderType=cv2.BORDER_REFLECT_101)


def _noisy(frame: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    noise = random.standard_normal(frame.shape, np.float32) * np.float32(255 * deviation)
    return np.clip(np.rint(frame + noise), 0, 255).astype(np.uint8)


def _exposed(frame: np.ndarray, stops: float, random: np.random.Generator) -> np.ndarray:
    return _lit(frame, np.full(3, 2.0 ** (stops * random.choice((-1, 1)))))


def _shifted(frame: np.ndarray, factor: float, random: np.random.Generator) -> np.ndarray:
    more, less = random.permutation(3)[:2]
    gains = np.ones(3)
    gains[more], gains[less] = factor, 1.0 / factor
    return _lit(frame, gains)


def _turned(frame: np.ndarray, degrees: float, random: np.random.Generator) -> np.ndarray:
    """The picture of a pinhole camera that is turned about its centre: a homography, whatever there is to be seen."""
    height, width = frame.shape[:2]
    axis = random.standard_normal(3)
    turn, _ = cv2.Rodrigues(axis / np.linalg.norm(axis) * math.radians(degrees))
    focal = height / 2 / math.tan(math.radians(FIELD_OF_VIEW) / 2)
    lens = np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])
    warp = lens @ turn @ np.linalg.inv(lens)
    return cv2.warpPerspective(frame, warp, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _lit(frame: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """The picture (sRGB) with the light of each channel multiplied by ``gains`` (3,)."""
    value = np.arange(256)[:, None] / 255
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4) * gains
    value = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return cv2.LUT(frame, np.rint(np.clip(value, 0.0, 1.0) * 255).astype(np.uint8)[None])


APPEARANCES: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "occlusion": _occluded,
    "blur": _blurred,
    "noise": _noisy,
    "exposure": _exposed,
    "colour_shift": _shifted,
    "camera_moved": _turned,
}
