"""GR00T's wire: the bytes that its own programs were seen to send, and nothing but numbers read from anybody's."""

from __future__ import annotations

import io
import pickle
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, integer_dtypes, unsigned_integer_dtypes

from sage_ros.teacher.modality import Interface, Modality, TeacherError, from_wire
from sage_ros.teacher.wire import Coding, Wire, WireError, pack, unpack

NUMBERS = st.one_of(
    integer_dtypes(), unsigned_integer_dtypes(), st.sampled_from([np.dtype(t) for t in ("f2", "<f4", ">f4", "f8", "?")])
)
INTERFACE = Interface(
    Modality((0,), ("ego_view",)), Modality((0,), ("left_arm",)), Modality(tuple(range(16)), ("left_arm",)),
    Modality((0,), ("annotation.human.action.task_description",)),
)  # fmt: skip


def test_requests_without_arrays_are_the_bytes_seen() -> None:
    assert pack({"endpoint": "ping"}, Coding.NPY) == bytes.fromhex("81a8656e64706f696e74a470696e67")
    token = pack({"endpoint": "ping", "api_token": "sekret"}, Coding.NPY)
    assert (len(token), token[:1], token[15:]) == (32, b"\x82", b"\xa9api_token\xa6sekret")
    reset = pack({"endpoint": "reset", "data": {"options": None}}, Coding.MSGPACK_NUMPY)
    assert reset == b"\x82\xa8endpoint\xa5reset\xa4data\x81\xa7options\xc0"
    alive = pack({"status": "ok", "message": "Server is running"}, Coding.NPY)
    assert alive == b"\x82\xa6status\xa2ok\xa7message\xb1Server is running" and len(alive) == 37


def test_arrays_are_the_bytes_seen() -> None:
    values = np.arange(7, dtype=np.float32).reshape(1, 1, 7)
    npy = pack({"left_arm": values}, Coding.NPY)
    head = b"\x81\xa8left_arm\x82\xb1__ndarray_class__\xc3\xa6as_npy\xc4\x9c\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', "
    assert npy.startswith(head) and len(npy) == 10 + 1 + 18 + 1 + 7 + 2 + 156
    nd = pack(values, Coding.MSGPACK_NUMPY)
    head = b"\x85\xc4\x02nd\xc3\xc4\x04type\xa3<f4\xc4\x04kind\xc4\x00\xc4\x05shape\x93\x01\x01\x07\xc4\x04data\xc4\x1c"
    assert nd == head + values.tobytes() and len(nd) == 71


@given(st.sampled_from(Coding), NUMBERS.flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, min_side=0))))
def test_arrays_come_back_as_they_were(coding: Coding, values: np.ndarray) -> None:
    found, seen = unpack(pack({"a": [values, None, "text"]}, coding))
    assert seen is coding and found["a"][1:] == [None, "text"]
    assert found["a"][0].dtype == values.dtype and found["a"][0].shape == values.shape
    assert found["a"][0].tobytes() == np.ascontiguousarray(values).tobytes()


def test_column_major_arrays_keep_their_values() -> None:
    values = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert all(np.array_equal(unpack(pack(values, coding))[0], values) for coding in Coding)


@given(st.binary(max_size=200))
def test_garbage_is_a_wire_error_or_a_message(data: bytes) -> None:
    try:
        unpack(data)
    except WireError as error:
        assert str(error)


def spoilt_nd(**changes: Any) -> bytes:
    entries = {"nd": True, "type": "<f4", "kind": b"", "shape": [2], "data": b"\0" * 8} | changes
    return msgpack.packb({key.encode(): value for key, value in entries.items()})


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


HUGE = npy(np.zeros(2, np.float32)).replace(b"(2,), ", b"(2" + b"0" * 5 + b",)")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (spoilt_nd(kind=b"O", data=pickle.dumps([1])), "refused"),
        (spoilt_nd(type="O"), "refused"),
        (spoilt_nd(type="<U4"), "refused"),
        (spoilt_nd(kind=b"V", type=[["a", "<f4"]]), "refused"),
        (spoilt_nd(type="(99999,)f4"), "refused"),
        (spoilt_nd(type="<f3"), "refused"),
        (spoilt_nd(shape=[10**9, 10**9]), "cannot be 8 bytes"),
        (spoilt_nd(shape=[-2]), "shape is"),
        (spoilt_nd(shape=None), "no shape"),
        (msgpack.packb({"__ndarray_class__": True, "as_npy": npy(np.array([{}], object))}), "refused"),
        (msgpack.packb({"__ndarray_class__": True, "as_npy": HUGE}), "cannot be 11 bytes"),
        (msgpack.packb({"__ndarray_class__": True, "as_npy": pickle.dumps([1])}), "header"),
        (msgpack.packb({"__ndarray_class__": True}), "no 'as_npy'"),
        (b"\xdd\xff\xff\xff\xff", "no msgpack"),
        (b"\x91" * 100_000, "no msgpack"),
        (b"", "no msgpack"),
        (msgpack.packb(1) * 2, "no msgpack"),
    ],
)  # fmt: skip
def test_pickles_and_false_claims_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        unpack(data)


def test_objects_are_not_sent() -> None:
    for coding in Coding:
        with pytest.raises(WireError, match="only numbers"):
            pack(np.array([object()]), coding)


@pytest.mark.parametrize("wire", [Wire.N16, Wire.N17])
def test_the_modality_configuration_comes_back(wire: Wire) -> None:
    assert from_wire(unpack(pack(INTERFACE.to_wire(wire), wire.coding))[0]) == (wire, INTERFACE)


def test_n15_is_known_by_its_text_and_its_prefixes_go() -> None:
    def entry(rows: str, key: str) -> dict[str, Any]:
        return {"__ModalityConfig_class__": True, "as_json": f'{{"delta_indices":{rows},"modality_keys":["{key}"]}}'}

    reply = {"video": entry("[0]", "video.ego_view"), "state": entry("[0]", "state.left_arm"),
             "action": entry(str(list(range(16))), "action.left_arm"),
             "language": entry("[0]", "annotation.human.action.task_description")}  # fmt: skip
    assert from_wire(reply) == (Wire.N15, INTERFACE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "no modality configuration"),
        ({"__ModalityConfig__": True, "as_json": {"delta_indices": [0, 2], "modality_keys": ["a"]}}, "rows"),
        ({"__ModalityConfig__": True, "as_json": {"delta_indices": "x", "modality_keys": ["a"]}}, "rows"),
        ({"__ModalityConfig__": True, "as_json": {"delta_indices": [0], "modality_keys": []}}, "no action"),
        ({"__ModalityConfig__": True, "as_json": {"delta_indices": [0]}}, "modality_keys"),
        ({"__ModalityConfig__": True, "as_json": None}, "delta_indices"),
        ({"__ModalityConfig_class__": True, "as_json": "{"}, "no JSON"),
    ],
)
def test_other_configurations_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(TeacherError, match=says):
        from_wire({"action": change})
