"""Teachers that answer: servers of each generation as they were seen to talk, GR00T's package as its API is."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from episode_sets import make

from sage_ros.episodes import EpisodeDataset
from sage_ros.teacher.client import InferenceClient, ServerTimeout, connect
from sage_ros.teacher.inprocess import load_gr00t
from sage_ros.teacher.modality import TeacherError
from sage_ros.teacher.teachers import Demonstrations, Gr00tTeacher
from sage_ros.teacher.wire import Wire, pack, unpack

HORIZON, GROUPS = 4, {"arm": 2, "gripper": 1}
ROWS = np.arange(HORIZON, dtype=np.float32)[:, None] / 10


def config(wire: Wire, frames: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """get_modality_config's reply."""
    flat, found = wire is Wire.N15, {}
    parts = {"video": (frames, ["front"]), "state": ((0,), list(GROUPS)), "action": (range(HORIZON), list(GROUPS)),
             "language": ((0,), ["annotation.task"])}  # fmt: skip
    for name, (rows, keys) in parts.items():
        prefixed = [f"{name}.{key}" if flat and name != "language" else key for key in keys]
        content: Any = {"delta_indices": list(rows), "modality_keys": prefixed}
        mark = "__ModalityConfig__" if wire is Wire.N17 else "__ModalityConfig_class__"
        found[name] = {mark: True, "as_json": json.dumps(content) if flat else content}
    return found


def action(wire: Wire, data: dict[str, Any]) -> Any:
    """What the servers answer: the state, and a tenth of a radian more in each row."""
    if wire is Wire.N15:
        return {f"action.{g}": data[f"state.{g}"].astype(np.float32) + ROWS for g in GROUPS}
    return [{g: data["observation"]["state"][g] + ROWS[None] for g in GROUPS}, {}]


class Served:
    """A REP socket in a thread; ``reply`` makes bytes of each request's."""

    def __init__(self, reply: Callable[[bytes], bytes]) -> None:
        self.requests: list[list[bytes]] = []
        self._reply, self._context = reply, zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.linger = 0
        self.port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            while True:
                self.requests.append(self._socket.recv_multipart())
                self._socket.send(self._reply(self.requests[-1][0]))
        except zmq.ContextTerminated:
            self._socket.close()

    def close(self) -> None:
        self._context.term()
        self._thread.join(10)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    opened: list[Served] = []

    def start(reply: Callable[[bytes], bytes]) -> Served:
        opened.append(Served(reply))
        return opened[-1]

    yield start
    for served in opened:
        served.close()


def speaks(wire: Wire, change: Callable[[Any], Any] = lambda reply: reply, **kwargs: Any) -> Callable[[bytes], bytes]:
    def reply(request: bytes) -> bytes:
        content, _ = unpack(request)
        if content["endpoint"] == "get_modality_config":
            return pack(config(wire, **kwargs), wire.coding)
        if content["endpoint"] == "get_action":
            return pack(change(action(wire, content["data"])), wire.coding)
        return pack({} if wire is not Wire.N15 else {"error": f"Unknown endpoint: {content['endpoint']}"}, wire.coding)

    return reply


@pytest.fixture
def dataset(tmp_path: Path) -> EpisodeDataset:
    return EpisodeDataset(make(tmp_path / "set"))


def expected(dataset: EpisodeDataset, row: int) -> np.ndarray:
    return dataset[0].state[row].astype(np.float32) + ROWS


@pytest.mark.parametrize("wire", Wire)
def test_each_generation_is_recognised_and_labels(wire: Wire, serve: Any, dataset: EpisodeDataset) -> None:
    served = serve(speaks(wire))
    with InferenceClient(port=served.port, timeout=5.0, api_token="sekret") as client:
        gr00t = connect(client, "model-7")
        teacher = Gr00tTeacher(gr00t, dataset)
        found = list(teacher.label(dataset[0], [0, 3]))
    assert wire.value in teacher.identity and "model-7" in teacher.identity and str(served.port) not in teacher.identity
    assert (teacher.joints.names, teacher.joints.groups) == (dataset.action_joints.names, dataset.action_joints.groups)
    assert np.allclose(found, [expected(dataset, 0), expected(dataset, 3)])
    assert {len(frames) for frames in served.requests} == {1}, "two frames kill GR00T's servers"
    told = [unpack(frames[0]) for frames in served.requests]
    assert all(content["api_token"] == "sekret" for content, _ in told)
    endpoints = [content["endpoint"] for content, _ in told]
    reset = [] if wire is Wire.N15 else ["reset"]
    assert endpoints == ["get_modality_config", *reset, "get_action", "get_action"]
    content, coding = told[-1]
    assert coding is wire.coding
    if wire is Wire.N15:
        assert content["data"]["video.front"].shape == (1, 48, 64, 3)
        assert content["data"]["state.arm"].dtype == np.float64 and content["data"]["state.arm"].shape == (1, 2)
        assert content["data"]["annotation.task"] == ["pick"]
    else:
        seen = content["data"]["observation"]
        assert seen["video"]["front"].shape == (1, 1, 48, 64, 3) and seen["video"]["front"].dtype == np.uint8
        assert seen["state"]["arm"].dtype == np.float32 and seen["state"]["arm"].shape == (1, 1, 2)
        assert seen["language"] == {"annotation.task": [["pick"]]} and content["data"]["options"] is None


def test_frames_of_the_past_repeat_the_first_and_are_resized(serve: Any, dataset: EpisodeDataset) -> None:
    served = serve(speaks(Wire.N17, frames=(-2, 0)))
    with InferenceClient(port=served.port) as client:
        teacher = Gr00tTeacher(connect(client), dataset, ["gripper"], {}, (24, 32))
        found = list(teacher.label(dataset[0], [1, 4]))
    assert teacher.joints.names == ("grip",) and found[0].shape == (HORIZON, 1)
    films = [unpack(frames[0])[0]["data"]["observation"]["video"]["front"] for frames in served.requests[2:]]
    assert films[0].shape == (1, 2, 24, 32, 3)
    shown, level = dataset[0].frames(), [film.mean(axis=(0, 2, 3, 4)) for film in films]
    assert np.allclose(level, [shown[[0, 1]].mean(axis=(1, 2, 3)), shown[[2, 4]].mean(axis=(1, 2, 3))], atol=1.0)


def test_names_are_bridged_and_unknown_ones_named(serve: Any, dataset: EpisodeDataset) -> None:
    with InferenceClient(port=serve(speaks(Wire.N16)).port) as client:
        gr00t = connect(client)
        for groups, rename, says in (
            ([], {"front": "wrist"}, "cameras wrist.*it has: front"),
            ([], {"arm": "left"}, "state groups left"),
            (["leg"], {}, "action groups leg"),
            ([], {"top": "front"}, "no top to rename"),
        ):
            with pytest.raises(TeacherError, match=says):
                Gr00tTeacher(gr00t, dataset, groups, rename)


def spoil(key: str, change: Callable[[np.ndarray], Any]) -> Callable[[Any], Any]:
    return lambda reply: [reply[0] | {key: change(reply[0][key])}, reply[1]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (spoil("arm", lambda a: a * np.nan), "'arm' is not finite"),
        (spoil("arm", lambda a: a.astype(np.int32)), "'arm' is int32"),
        (spoil("arm", lambda a: a.tolist()), "'arm' is list"),
        (spoil("gripper", lambda a: a[:, 1:]), r"'gripper' is \(1, 3, 1\), but must be \(1, 4, 1\)"),
        (spoil("gripper", lambda a: a[0]), r"'gripper' is \(4, 1\)"),
        (lambda reply: [{"arm": reply[0]["arm"]}, {}], "no 'gripper'"),
        (lambda reply: reply[0], "not with an action"),
        (lambda reply: {"error": ""}, "an error without words"),
        (lambda reply: {"error": "Unauthorized: Invalid API token"}, "--api-token"),
    ],
)
def test_wrong_replies_are_refused_by_joint_group(change: Any, says: str, serve: Any, dataset: EpisodeDataset) -> None:
    with InferenceClient(port=serve(speaks(Wire.N17, change)).port) as client:
        teacher = Gr00tTeacher(connect(client), dataset)
        with pytest.raises(TeacherError, match=says):
            next(teacher.label(dataset[0], [0]))


@pytest.mark.parametrize(
    ("reply", "says"),
    [(b"ERROR", "pickles"), (b"PK\x03\x04 torch.save", "pickles"), (b"\xc1", "no msgpack"), (b"\xc0", "no modality")],
)
def test_the_pickle_generation_and_strangers_are_refused(reply: bytes, says: str, serve: Any) -> None:
    with InferenceClient(port=serve(lambda _: reply).port) as client, pytest.raises(TeacherError, match=says):
        connect(client)


def test_timeouts_time_out_and_a_late_reply_is_not_the_next_ones(serve: Any) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def reply(request: bytes) -> bytes:
        number = unpack(request)[0]["data"]
        if number == 1:
            begun.set()
            go_on.wait(20)
        return pack(number, Wire.N17.coding)

    with InferenceClient(port=serve(reply).port, timeout=10.0) as client:
        start = time.monotonic()
        with pytest.raises(ServerTimeout, match="no reply"):
            client.call("get_action", 1, timeout=0.3)
        assert 0.25 < time.monotonic() - start < 5.0
        assert begun.wait(10)
        go_on.set()  # the reply to the first comes while the second waits
        assert client.call("get_action", 2) == 2
        assert client.call("get_action", 3) == 3


def test_nobody_there_times_out() -> None:
    with zmq.Context() as context, context.socket(zmq.REP) as free:
        port = free.bind_to_random_port("tcp://127.0.0.1")
    with InferenceClient(port=port, timeout=0.2) as client, pytest.raises(ServerTimeout):
        connect(client)


def test_a_slow_server_is_asked_again(serve: Any, dataset: EpisodeDataset) -> None:
    answer, resets = speaks(Wire.N17), []

    def reply(request: bytes) -> bytes:
        if unpack(request)[0]["endpoint"] == "reset":
            resets.append(request)
            if len(resets) == 1:
                time.sleep(0.6)  # the case itself: longer than the client waits at first
        return answer(request)

    with InferenceClient(port=serve(reply).port, timeout=5.0) as client:
        teacher = Gr00tTeacher(connect(client), dataset)
        client.timeout = 0.5
        assert np.allclose(next(teacher.label(dataset[0], [2])), expected(dataset, 2))
    assert len(resets) == 2


def test_oversized_replies_never_arrive(serve: Any) -> None:
    served = serve(lambda _: b"\xc6\x00\x10\x00\x00" + bytes(2**20))
    with InferenceClient(port=served.port, timeout=0.5, max_reply=2**16) as client, pytest.raises(ServerTimeout):
        client.call("ping")


def test_the_demonstrations_are_a_teacher(dataset: EpisodeDataset) -> None:
    teacher, episode = Demonstrations(dataset, 4), dataset[0]
    first, last = teacher.label(episode, [0, 5])
    assert np.array_equal(first, episode.action[:4]) and np.array_equal(last, np.tile(episode.action[5], (4, 1)))


# gr00t in process: packages with exactly the API of the two generations

CONFIG_15 = """
class Config:
    def __init__(self, delta_indices, modality_keys):
        self.delta_indices, self.modality_keys = delta_indices, modality_keys
class Robot:
    def modality_config(self):
        groups = ["arm", "gripper"]
        return {"video": Config([0], ["video.front"]), "state": Config([0], ["state." + g for g in groups]),
                "action": Config(list(range(4)), ["action." + g for g in groups]),
                "language": Config([0], ["annotation.task"])}
    def transform(self):
        return "transform"
DATA_CONFIG_MAP = {"robot": Robot()}
"""
POLICY_15 = """
import numpy as np
class Gr00tPolicy:
    def __init__(self, model_path, embodiment_tag, modality_config, modality_transform, denoising_steps=None,
                 device="cuda"):
        assert (model_path, embodiment_tag, modality_transform, denoising_steps) == ("m", "gr1", "transform", 8)
        self.config = modality_config
    def get_modality_config(self):
        return self.config
    def get_action(self, observations):
        assert observations["annotation.task"] == ["pick"] and observations["video.front"].shape == (1, 48, 64, 3)
        rows = np.arange(4, dtype=np.float32)[:, None] / 10
        state = {g: observations["state." + g].astype(np.float32) for g in ("arm", "gripper")}
        return {"action." + g: np.squeeze(values + rows) for g, values in state.items()}
"""
POLICY_16 = """
import numpy as np
class ModalityConfig:
    def __init__(self, delta_indices, modality_keys):
        self.delta_indices, self.modality_keys = delta_indices, modality_keys
class Gr00tPolicy:
    def __init__(self, embodiment_tag, model_path, *, device, strict=True):
        assert (embodiment_tag, model_path, device) == ("gr1", "m", "cpu")
        self.ready = False
    def get_modality_config(self):
        groups = ["arm", "gripper"]
        return {"video": ModalityConfig([0], ["front"]), "state": ModalityConfig([0], groups),
                "action": ModalityConfig(list(range(4)), groups), "language": ModalityConfig([0], ["annotation.task"])}
    def reset(self, options=None):
        self.ready = True
        return {}
    def get_action(self, observation, options=None):
        assert self.ready and observation["language"] == {"annotation.task": [["pick"]]}
        rows = np.arange(4, dtype=np.float32)[None, :, None] / 10
        return {g: value + rows for g, value in observation["state"].items()}, {}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], None]]:
    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / "site" / "gr00t" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            for folder in (path.parent, tmp_path / "site" / "gr00t"):
                (folder / "__init__.py").touch()
            path.write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "gr00t"]:
        del sys.modules[name]


def test_gr00t_n16_in_process(package: Any, dataset: EpisodeDataset) -> None:
    package({"policy/gr00t_policy.py": POLICY_16})
    teacher = Gr00tTeacher(load_gr00t("m", "gr1", device="cpu"), dataset)
    assert np.allclose(next(teacher.label(dataset[0], [2])), expected(dataset, 2))


def test_gr00t_n15_in_process(package: Any, dataset: EpisodeDataset) -> None:
    package({"model/policy.py": POLICY_15, "experiment/data_config.py": CONFIG_15})
    with pytest.raises(TeacherError, match=r"needs --data-config.*robot"):
        load_gr00t("m", "gr1")
    with pytest.raises(TeacherError, match="no data config other"):
        load_gr00t("m", "gr1", "other")
    teacher = Gr00tTeacher(load_gr00t("m", "gr1", "robot", "cpu", 8), dataset)
    assert np.allclose(next(teacher.label(dataset[0], [2])), expected(dataset, 2))


def test_without_gr00t_it_says_what_to_do(package: Any) -> None:
    with pytest.raises(TeacherError, match=r"not installed.*--teacher server"):
        load_gr00t("m", "gr1")
    package({"other.py": ""})
    with pytest.raises(TeacherError, match="neither"):
        load_gr00t("m", "gr1")
