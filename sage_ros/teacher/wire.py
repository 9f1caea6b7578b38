"""Messages of GR00T's inference service: msgpack maps with numpy arrays in one of two codings.

=========== =============================== ========================= ==========================================
generation  array                           ModalityConfig            get_action
=========== =============================== ========================= ==========================================
N1.5        ``__ndarray_class__``, NPY      marker, JSON as text      flat map in, flat map out
N1.6        the same                        marker, JSON as a map     nested observation in, [action, info] out
N1.7        msgpack_numpy's ``nd`` maps     another marker, a map     as N1.6
=========== =============================== ========================= ==========================================

The first generation (N1, N1.5 before September 2025) sends ``torch.save`` files, which are pickle: never read here.
Both array codings are written here: msgpack_numpy unpickles arrays of dtype object, and ``np.load`` allocates what a
header claims. Only numbers are read, and only as many as the message holds.
"""

from __future__ import annotations

import io
import math
import re
from enum import Enum
from typing import Any

import msgpack
import numpy as np

TOKEN = "SAGE_ROS_API_TOKEN"  # environment variable that holds a token which `ps` does not show
MAX_MESSAGE = 64 * 2**20  # bytes: four 1080p frames and room
_LONGEST = 4096  # entries of a list or map: what one claims is allocated before it is read
_NUMBER = re.compile(r"[<>|=]?[biuf]\d{1,2}")


class WireError(ValueError):
    """A message that is not GR00T's: says what is wrong with it."""


class Wire(str, Enum):
    """A generation of the protocol."""

    N15 = "n1.5"
    N16 = "n1.6"
    N17 = "n1.7"

    @property
    def coding(self) -> Coding:
        return Coding.MSGPACK_NUMPY if self is Wire.N17 else Coding.NPY

    @property
    def flat(self) -> bool:
        """Whether observations are flat maps of prefixed keys, and replies too."""
        return self is Wire.N15


class Coding(Enum):
    """How an array travels."""

    NPY = "npy"
    MSGPACK_NUMPY = "msgpack_numpy"


def pack(message: Any, coding: Coding) -> bytes:
    """A message of maps, lists, texts, numbers, bytes and numeric arrays. Raises WireError on anything else."""

    def array(thing: Any) -> Any:
        if isinstance(thing, np.generic):
            return thing.item()
        if not isinstance(thing, np.ndarray) or thing.dtype.kind not in "biuf":
            raise WireError(f"{getattr(thing, 'dtype', type(thing))} cannot be sent: only numbers travel")
        if coding is Coding.NPY:
            file = io.BytesIO()
            np.save(file, thing, allow_pickle=False)
            return {"__ndarray_class__": True, "as_npy": file.getvalue()}
        return {b"nd": True, b"type": thing.dtype.str, b"kind": b"", b"shape": thing.shape, b"data": thing.tobytes()}

    return msgpack.packb(message, default=array)


def unpack(data: bytes) -> tuple[Any, Coding | None]:
    """The message, and how its arrays were coded (None: there were none). Arrays are read-only.

    Raises WireError on anything that is not one msgpack message within the limits, or has other than numeric arrays.
    """
    seen: list[Coding] = []

    def array(entries: dict[Any, Any]) -> Any:
        if entries.get("__ndarray_class__"):
            seen.append(Coding.NPY)
            return _read_npy(entries.get("as_npy"))
        if b"nd" in entries:
            seen.append(Coding.MSGPACK_NUMPY)
            return _read_nd(entries)
        return entries

    try:
        message = msgpack.unpackb(
            data, object_hook=array, max_array_len=_LONGEST, max_map_len=_LONGEST, max_ext_len=0, max_str_len=2**20
        )
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"is no msgpack message ({type(error).__name__}: {error})") from error
    return message, seen[-1] if seen else None


def _read_npy(data: Any) -> np.ndarray:
    """An array from the bytes of an .npy file, without ever allocating more than they hold."""
    if not isinstance(data, bytes):
        raise WireError("an array has no 'as_npy' bytes")
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, column_major, dtype = read(file)
    except (ValueError, KeyError, SyntaxError, TypeError) as error:
        raise WireError(f"an array's NPY header cannot be read ({error})") from error
    return _array(data[file.tell() :], dtype, shape, "F" if column_major else "C")


def _read_nd(entries: dict[Any, Any]) -> np.ndarray:
    kind, name, data = entries.get(b"kind"), entries.get(b"type"), entries.get(b"data")
    name = name.decode("latin-1") if isinstance(name, bytes) else name
    if kind not in (b"", "", None) or not isinstance(name, str) or not _NUMBER.fullmatch(name):
        raise WireError(f"an array of type {name!r:.40}, kind {kind!r:.10} is refused: only numbers are read")
    shape = entries.get(b"shape") if entries[b"nd"] is True else []
    if not isinstance(shape, list) or not isinstance(data, bytes):
        raise WireError("an array has no shape or no data")
    try:
        dtype = np.dtype(name)
    except TypeError as error:
        raise WireError(f"an array of type {name!r} is refused: numpy knows no such type") from error
    return _array(data, dtype, shape, "C")


def _array(data: bytes, dtype: np.dtype, shape: Any, order: Any) -> np.ndarray:
    if dtype.kind not in "biuf":
        raise WireError(f"an array of dtype {dtype} is refused: only numbers are read")
    if len(shape) > 8 or not all(type(side) is int and 0 <= side < 2**31 for side in shape):
        raise WireError(f"an array's shape is {str(shape)[:80]}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise WireError(f"an array of {dtype} {tuple(shape)} cannot be {len(data)} bytes long")
    return np.frombuffer(data, dtype).reshape(shape, order=order)
