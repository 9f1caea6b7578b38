"""Film of an episode: decode an mp4, or a part of it, or a column of images; pair frames with rows; encode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
import pyarrow as pa
from av.codec.context import Flags
from av.video.reformatter import VideoReformatter

from .errors import DatasetError
from .files import inside, require

Align = Literal["index", "timestamp"]
Timed = tuple[float | None, np.ndarray]
MAX_DECODED_BYTES = 8 << 30  # of one film, in memory
_RESTORE = "restore the file, or open the data set with video=False"


def decode(path: Path, fps: float = 0.0, start: float = 0.0, end: float | None = None) -> Iterator[Timed]:
    """Frames of an mp4 (H.264, AV1, …) in the order shown: time stamp in seconds (None: has none), (H, W, 3) uint8 RGB.

    All of them, or with ``end`` those of the part from ``start`` to ``end`` seconds, at ``fps``; times count from
    ``start``. Raises DatasetError if the file is missing, broken or damaged, or if the frame size changes.
    """
    require(path, _RESTORE)
    slack = 0.5 / fps if end is not None else 0.0  # s: time stamps are rounded
    shape: tuple[int, ...] | None = None
    try:
        # The format is given so that a playlist in disguise cannot make FFmpeg open other files.
        with av.open(str(path), format="mp4", options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise DatasetError("has no video stream", path, remedy=_RESTORE)
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if end is not None and start > 0 and stream.time_base:
                container.seek(int((start + slack) / stream.time_base), stream=stream)
            to_rgb = VideoReformatter()  # kept: a new one for each frame, or its threads, cost more than the decoding
            for number, frame in enumerate(container.decode(stream)):
                if frame.is_corrupt:
                    raise DatasetError(f"frame {number} is damaged", path, remedy=_RESTORE)
                if end is not None and frame.time is not None:
                    if frame.time >= end - slack:
                        break
                    if frame.time < start - slack:
                        continue
                image = to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
                if shape not in (None, image.shape):
                    raise DatasetError(f"frame {number} is of another size than the first", path, remedy=_RESTORE)
                shape = image.shape
                yield None if frame.time is None else frame.time - start, image
    except (av.FFmpegError, EOFError, UnicodeDecodeError) as error:  # the last from spoilt metadata
        raise DatasetError(f"is broken or no mp4 ({error})", path, remedy=_RESTORE) from error


def decode_images(
    rows: Callable[[], pa.Table], column: str, path: Path, root: Path, times: np.ndarray
) -> Iterator[Timed]:
    """Frames of an image column (PNG, JPEG; structs of ``bytes`` and ``path``, or plain bytes), as :func:`decode`.

    An image without bytes is read from its path, which must lie in the data set's folder ``root``. Raises
    DatasetError with the row.
    """
    shape: tuple[int, ...] | None = None
    for row, cell in enumerate(rows().column(column)):
        value = cell.as_py()
        coded = value.get("bytes") if isinstance(value, dict) else value
        if not coded and isinstance(value, dict) and isinstance(value.get("path"), str):
            file = require(inside(root, value["path"], f"{path}: row {row}: '{column}'"), "restore the image")
            coded = file.read_bytes()
        if not isinstance(coded, bytes) or not coded:
            raise DatasetError(f"'{column}' holds no image", path, row, "store PNG or JPEG bytes, or their path")
        try:
            image = cv2.imdecode(np.frombuffer(coded, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:
            image, reason = None, f" ({str(error).strip().splitlines()[-1]:.200})"
        else:
            reason = ""
        if image is None:
            raise DatasetError(f"'{column}' is no PNG or JPEG that can be read{reason}", path, row, "restore the image")
        if shape not in (None, image.shape):
            raise DatasetError(f"'{column}' is of another size than in row 0", path, row, "record the episode again")
        shape = image.shape
        yield float(times[row]), cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class Video:
    """One camera's film of one episode, decoded when first asked for and then kept.

    ``source`` starts decoding ``path`` (None: it is a whole mp4). ``align="index"``: row t shows frame t (GR00T N1.6
    and later, LeRobot). ``align="timestamp"``: row t shows the frame whose time stamp is nearest to the row's, the
    earlier of two equally near (GR00T N1 and N1.5). ``decoded`` is told the bytes of the frames once they are there.
    """

    def __init__(
        self,
        path: Path,
        timestamp: np.ndarray,
        fps: float,
        align: Align = "index",
        source: Callable[[], Iterator[Timed]] | None = None,
        decoded: Callable[[int], None] | None = None,
    ) -> None:
        self.path, self.align = path, align
        self._timestamp, self._fps = timestamp, fps
        self._source = source or partial(decode, path)
        self._decoded = decoded

    def __len__(self) -> int:
        """Rows T, which are the frames shown."""
        return len(self._timestamp)

    def frames(self) -> np.ndarray:
        """The frames (T, H, W, 3) uint8 RGB, row t's at t. The array is shared: copy before changing it.

        Raises DatasetError if the file is broken, or has not one frame for each row (by index: as many frames as
        rows; by timestamp: one within 1.5 frame periods of each row).
        """
        return self._frames

    @cached_property
    def _frames(self) -> np.ndarray:
        film = self._by_index() if self.align == "index" else self._by_timestamp()
        if self._decoded is not None:
            self._decoded(film.nbytes)
        return film

    def _by_index(self) -> np.ndarray:
        rows, count = len(self), 0
        film: np.ndarray | None = None
        for _, image in self._source():
            if film is None:
                self._check_room(rows, image)
                film = np.empty((rows, *image.shape), np.uint8)
            if count < rows:
                film[count] = image
            count += 1
        if film is None or count < rows:
            raise DatasetError(
                f"film ends early: {count} frames for {rows} rows",
                self.path,
                count,
                "record the episode again, cut its rows to the film, or remove it from meta/episodes.jsonl",
            )
        if count > rows:
            raise DatasetError(
                f"film is longer than the episode: {count} frames for {rows} rows",
                self.path,
                rows,
                f"cut the film to its first {rows} frames, or pair by time with align='timestamp'",
            )
        return film

    def _by_timestamp(self) -> np.ndarray:
        frames: list[np.ndarray] = []
        times: list[float] = []
        for time, image in self._source():
            if time is None:
                raise DatasetError(f"frame {len(frames)} has no time stamp", self.path, remedy="use align='index'")
            frames.append(image)
            times.append(time)
            self._check_room(len(self) + len(frames), image)
        if not frames:
            raise DatasetError("film has no frame", self.path, remedy=_RESTORE)
        shown = nearest(np.array(times), self._timestamp)
        distance = np.abs(np.array(times)[shown] - self._timestamp)
        far = np.flatnonzero(distance > 1.5 / self._fps)
        if len(far):
            row = int(far[0])
            raise DatasetError(
                f"no frame within 1.5 frame periods of the row's time stamp {self._timestamp[row]:.3f} s "
                f"({len(frames)} frames for {len(self)} rows)",
                self.path,
                row,
                "record the episode again, cut its rows to the film, or use align='index'",
            )
        return np.stack([frames[index] for index in shown])

    def _check_room(self, count: int, image: np.ndarray) -> None:
        if count * image.nbytes > MAX_DECODED_BYTES:
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise DatasetError(
                f"{count} frames of {size} take {count * image.nbytes / 2**30:.0f} GiB decoded",
                self.path,
                remedy=f"split the episode or shrink the film: at most {MAX_DECODED_BYTES >> 30} GiB are held",
            )


def nearest(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index (int64) into the ascending ``times`` of the one nearest to each ``wanted``; of two, the earlier."""
    after = np.clip(np.searchsorted(times, wanted), 1, max(len(times) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(times) - 1)
    return np.where(wanted - times[before] <= times[after] - wanted, before, after).astype(np.int64)


def encode(
    path: Path, frames: Iterable[np.ndarray], fps: float, crf: int = 23, gop: int = 40, lossless: bool = False,
    preset: str = "medium",
) -> None:  # fmt: skip
    """Write frames (H, W, 3) uint8 RGB, H and W even, as H.264 mp4; frame t is shown at t / fps.

    In yuv420p of quality ``crf``, or ``lossless`` in RGB: the very same pixels, in several times the bytes. The same
    frames give the same bytes: one thread, nothing of the time or the machine in the file. There are no B-frames, so
    that every reader finds frame t at its time without an edit list. ``gop`` frames lie between key frames: few for
    quick seeking, many for small files. ``preset`` is x264's: how much time it takes to make them smaller.
    """
    rate = Fraction(fps).limit_denominator(10_000)
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    codec, pixels = ("libx264rgb", "rgb24") if lossless else ("libx264", "yuv420p")
    quality = {"qp": "0"} if lossless else {"crf": str(crf)}
    quality |= {"preset": preset, "bf": "0", "threads": "1"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        stream = container.add_stream(codec, rate=rate, options=quality)
        stream.pix_fmt = pixels
        stream.gop_size = gop
        stream.codec_context.flags |= Flags.bitexact
        to_yuv = VideoReformatter()
        for number, image in enumerate(frames):
            if number == 0:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(to_yuv.reformat(frame, format=pixels, threads=1)))
        container.mux(stream.encode())


def codec_of(path: Path) -> tuple[str, str, int, int]:
    """Codec, pixel format, height and width of an mp4, as its head says. Raises DatasetError."""
    require(path, _RESTORE)
    try:
        with av.open(str(path), format="mp4", options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise DatasetError("has no video stream", path, remedy=_RESTORE)
            context = container.streams.video[0].codec_context
            name = {"libdav1d": "av1"}.get(context.name, context.name)
            return name, str(context.pix_fmt), context.height, context.width
    except (av.FFmpegError, EOFError, UnicodeDecodeError) as error:
        raise DatasetError(f"is broken or no mp4 ({error})", path, remedy=_RESTORE) from error
