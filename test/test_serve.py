"""The student served: GR00T's protocol as its own clients speak it, and whatever else may come to an open port."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zmq

from sage_ros.core.chunks import ActionChunk, Observation
from sage_ros.core.joints import JointLayout
from sage_ros.episodes import EpisodeDataset
from sage_ros.paths import EPISODES
from sage_ros.teacher import serve
from sage_ros.teacher.client import InferenceClient, connect
from sage_ros.teacher.modality import TeacherError, from_wire
from sage_ros.teacher.server import LANGUAGE, StudentServer
from sage_ros.teacher.teachers import Gr00tTeacher
from sage_ros.teacher.wire import Coding, Wire, pack, unpack

STATE = JointLayout(("pan", "lift", "grip"), {"arm": (0, 2), "gripper": (2, 3)})
ACTION = JointLayout(("grip", "pan", "lift"), {"gripper": (0, 1), "arm": (1, 3)})
HORIZON, RATE = 4, 20.0


class Telling:
    """A policy that goes on from its last command by the brightness that it sees, and keeps what it was told."""

    horizon = HORIZON

    def __init__(self) -> None:
        self.told: list[Observation] = []

    def reset(self) -> None: ...

    def infer(self, observation: Observation) -> ActionChunk:
        self.told.append(observation)
        last = np.zeros(3) if observation.last_command is None else observation.last_command
        rows = np.arange(1, HORIZON + 1)[:, None]
        return ActionChunk(last + rows * float(observation.tokens.mean()), RATE)


class Brightness:
    def encode(self, frames: np.ndarray) -> np.ndarray:
        return frames.mean(axis=(1, 2, 3), dtype=np.float32)[:, None, None]


def checkpoint(**changes: Any) -> Any:
    """What a server needs of a checkpoint, with a policy whose answers tell what it was told."""
    norm = SimpleNamespace(state_mean=np.zeros(3))
    return SimpleNamespace(**{
        "folder": Path("telling"), "policy": Telling(), "cameras": ("front",), "state_joints": STATE, "rate": RATE,
        "action_joints": ACTION, "horizon": HORIZON, "normalization": norm, "load_encoder": lambda _: Brightness(),
    } | changes)  # fmt: skip


def observation(bright: int = 1, task: str = "pick", batch: int = 1, **changes: Any) -> dict[str, Any]:
    state = np.tile(np.array([[[0.1, 0.2, 0.3]]], np.float32), (batch, 1, 1))
    return {
        "video": {"front": np.full((batch, 1, 5, 7, 3), bright, np.uint8)},
        "state": {"arm": state[..., :2], "gripper": state[..., 2:]},
        "language": {LANGUAGE: [[task]] * batch},
    } | changes


def asked(told: Any = None, endpoint: str = "get_action", coding: Coding = Coding.MSGPACK_NUMPY) -> bytes:
    data = {"observation": observation() if told is None else told, "options": None}
    return pack({"endpoint": endpoint} | ({"data": data} if endpoint == "get_action" else {}), coding)


@pytest.fixture
def server() -> StudentServer:
    return StudentServer(checkpoint(), Brightness())  # type: ignore[arg-type]


def reply(server: StudentServer, request: bytes, session: bytes = b"1") -> Any:
    return unpack(server.answer(session, [request]))[0]


def rows(answer: Any, group: str = "arm") -> np.ndarray:
    return answer[0][group][0, :, 0]


@pytest.mark.parametrize("coding", Coding)
def test_the_reply_comes_in_the_coding_of_the_request(coding: Coding, server: StudentServer) -> None:
    answer, seen = unpack(server.answer(b"1", [asked(coding=coding)]))
    assert seen is coding
    action, info = answer
    assert {g: (a.shape, a.dtype) for g, a in action.items()} == {
        "gripper": ((1, HORIZON, 1), np.float32), "arm": ((1, HORIZON, 2), np.float32)
    }  # fmt: skip
    assert info["inference_seconds"] >= 0 and info["confidence"] == [1.0]
    told = server.checkpoint.policy.told[-1]
    assert np.allclose(told.state, [0.1, 0.2, 0.3]) and told.task == "pick" and told.last_command is None


@pytest.mark.parametrize("wire", [Wire.N16, Wire.N17])
def test_clients_of_each_generation_know_it_as_theirs(wire: Wire) -> None:
    server = StudentServer(checkpoint(), Brightness(), wire)  # type: ignore[arg-type]
    assert from_wire(reply(server, asked(endpoint="get_modality_config"))) == (wire, server.interface)
    assert server.interface.state.keys == ("arm", "gripper") and server.interface.horizon == HORIZON


def test_the_last_row_that_a_client_ran_is_its_last_command(server: StudentServer) -> None:
    assert rows(reply(server, asked())).tolist() == [1, 2, 3, 4]
    assert rows(reply(server, asked(observation(10)))).tolist() == [14, 24, 34, 44]
    past = server.checkpoint.policy.told[-1].past
    assert past is not None and past.elapsed == HORIZON / RATE
    assert past.commands[:5, 0].tolist()[:4] == [4, 3, 2, 1] and np.isnan(past.commands[4:]).all()
    assert np.allclose(past.states[[0, 4], 0], 0.1) and np.isnan(past.states[1:4]).all()
    assert rows(reply(server, asked(), session=b"2")).tolist() == [1, 2, 3, 4], "another client is another robot"
    assert reply(server, asked(endpoint="reset")) == {}
    assert rows(reply(server, asked())).tolist() == [1, 2, 3, 4]
    assert rows(reply(server, asked(), session=b"2")).tolist() == [5, 6, 7, 8], "it was not reset"


def test_clients_that_run_fewer_rows(server: StudentServer) -> None:
    server.executed = 2
    assert [rows(reply(server, asked())).tolist() for _ in range(3)] == [[1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7, 8]]
    with pytest.raises(ValueError, match="--executed"):
        StudentServer(checkpoint(), Brightness(), executed=5)  # type: ignore[arg-type]


def test_a_new_task_begins_where_the_robot_stands(server: StudentServer) -> None:
    reply(server, asked())
    assert rows(reply(server, asked(observation(task="place")))).tolist() == [5, 6, 7, 8]
    past = server.checkpoint.policy.told[-1].past
    assert past is not None and past.elapsed == 0.0 and np.isnan(past.commands[1:]).all()


def test_a_batch_is_as_many_robots(server: StudentServer) -> None:
    two = observation(batch=2)
    two["video"]["front"][1] = 10
    first, second = (reply(server, asked(two))[0]["arm"][:, :, 0].tolist() for _ in range(2))
    assert (first, second) == ([[1, 2, 3, 4], [10, 20, 30, 40]], [[5, 6, 7, 8], [50, 60, 70, 80]])


def test_silent_sessions_are_forgotten(server: StudentServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sage_ros.teacher.server.MAX_SESSIONS", 2)
    for session in (b"1", b"2", b"1", b"3"):
        reply(server, asked(), session)
    assert rows(reply(server, asked(), b"1"))[0] == 9 and rows(reply(server, asked(), b"2"))[0] == 1


FRONT, ARM = observation()["video"]["front"], observation()["state"]["arm"]


def state(arm: Any) -> dict[str, Any]:
    return observation(state=observation()["state"] | {"arm": arm})


@pytest.mark.parametrize(
    ("told", "error"),
    [
        (state(ARM.astype(float)), "State key 'arm' must be a numpy array of type np.float32. Got float64"),
        (state(ARM[0]), "State key 'arm' must be a numpy array of shape (B, T, D), got (1, 2)"),
        (state(np.tile(ARM, (1, 2, 1))), "State key 'arm's horizon must be 1. Got 2"),
        (state(np.tile(ARM, (2, 1, 1))), "State key 'arm' must have batch size 1. Got 2"),
        (state(ARM[..., :1]), "State key 'arm' must have 2 joints (pan, lift). Got 1"),
        (state(ARM * np.nan), "State key 'arm' must be finite"),
        (state([0.1]), "State key 'arm' must be a numpy array. Got <class 'list'>"),
        (observation(state={}), "State key 'arm' must be in observation"),
        (observation(state=[]), "Observation 'state' must be a dictionary. Got <class 'list'>"),
        ({key: value for key, value in observation().items() if key != "state"},
         "Observation must contain a 'state' key"),
        ([], "Observation must be a dictionary. Got <class 'list'>"),
        (observation(video={"front": FRONT[0]}),
         "Video key 'front' must be a numpy array of shape (B, T, H, W, C), got (1, 5, 7, 3)"),
        (observation(video={"front": FRONT.astype(np.float32)}),
         "Video key 'front' must be a numpy array of type np.uint8. Got float32"),
        (observation(video={"front": {"__ndarray__": 1}}),
         "Video key 'front' must be a numpy array. Got <class 'dict'>"),
        (observation(video={"front": FRONT[..., :1]}), "Video key 'front's channel 'C' must be 3. Got 1"),
        (observation(video={"front": np.tile(FRONT, (65, 1, 1, 1, 1))}),
         "Video key 'front' must have a batch of 1 to 64 frames. Got (65, 1, 5, 7, 3)"),
        (observation(video={"front": FRONT[:, :, :0]}),
         "Video key 'front' must have a batch of 1 to 64 frames. Got (1, 1, 0, 7, 3)"),
        (observation(language={LANGUAGE: [["a"] * 4]}), f"Language key '{LANGUAGE}'s horizon must be 1. Got 4"),
        (observation(language={LANGUAGE: "pick"}), f"Language key '{LANGUAGE}' must be a list. Got <class 'str'>"),
        (observation(language={LANGUAGE: []}), f"Language key '{LANGUAGE}' must have batch size 1. Got 0"),
        (observation(language={LANGUAGE: ["a"]}), "Language batch item must be a list. Got <class 'str'>"),
        (observation(language={LANGUAGE: [[1]]}), "Language batch item must be a string. Got <class 'int'>"),
        (observation(language={}), f"Language key '{LANGUAGE}' must be in observation"),
    ],
)  # fmt: skip
def test_wrong_observations_are_told_in_gr00ts_words(told: Any, error: str, server: StudentServer) -> None:
    assert reply(server, asked(told)) == {"error": error}
    assert not server.checkpoint.policy.told, "nothing wrong reaches the policy"


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"endpoint": "nope"}, "Unknown endpoint: nope"),
        ({"endpoint": "kill"}, "kill is not offered"),
        ({"endpoint": "get_action", "data": {"video.front": 1}},
         "BasePolicy.get_action() got an unexpected keyword argument 'video.front'"),
        ({"data": {}}, "BasePolicy.get_action() missing 1 required positional argument: 'observation'"),
        ({"data": None}, "get_action's data must be a map"),
        ([], "A request must be a map"),
    ],
)  # fmt: skip
def test_wrong_requests_are_answered(request_: Any, error: str, server: StudentServer) -> None:
    assert reply(server, pack(request_, Coding.NPY))["error"].startswith(error)


def test_only_the_token_opens() -> None:
    server = StudentServer(checkpoint(), Brightness(), api_token="sekret")  # type: ignore[arg-type]
    for token in ({}, {"api_token": "other"}, {"api_token": 1}, {"api_token": None}, {"api_token": "sekretä"}):
        request = pack({"endpoint": "ping"} | token, Coding.NPY)
        assert reply(server, request) == {"error": "Unauthorized: Invalid API token"}
    assert reply(server, pack({"endpoint": "ping", "api_token": "sekret"}, Coding.NPY))["status"] == "ok"


def test_joints_without_a_group_cannot_be_served() -> None:
    with pytest.raises(ValueError, match="state joints grip"):
        StudentServer(checkpoint(state_joints=JointLayout(STATE.names, {"arm": (0, 2)})), Brightness())  # type: ignore[arg-type]


# As a process

STAND_IN = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import test_serve
from sage_ros.teacher import serve
serve.load_checkpoint = lambda *_: test_serve.checkpoint()
sys.exit(serve.main())
"""


def start(*options: str, stand_in: bool = True) -> tuple[subprocess.Popen[str], int]:
    """A server process and its port, once it listens."""
    code = ["-c", STAND_IN, str(Path(__file__).parent)] if stand_in else ["-m", "sage_ros.teacher.serve"]
    process = subprocess.Popen(
        [sys.executable, *code, "--port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if "listening" in line:
            return process, int(line.rsplit(":", 1)[1])
    raise AssertionError(process.stderr.read())


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    process, port = start("--max-message", "1")
    yield port
    assert process.poll() is None, "it has died meanwhile"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert process.stdout is not None and "stopped" in process.stdout.read()


@pytest.fixture
def client(port: int) -> Iterator[InferenceClient]:
    with InferenceClient(port=port, timeout=20.0) as client:
        yield client


def test_our_client_and_our_server_agree(client: InferenceClient) -> None:
    assert client.call("ping") == {"status": "ok", "message": "Server is running"}
    gr00t = connect(client)
    assert gr00t.interface.horizon == HORIZON
    assert gr00t.ask(observation())["arm"][0, :, 0].tolist() == [1, 2, 3, 4]
    gr00t.restart()
    assert gr00t.ask(observation())["arm"][0, :, 0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "frames",
    [
        [b"", asked(), b"more"],
        [b"", *[b"x"] * 50],
        [b""],
        [b"", b""],
        [b"", b"\xc1garbage"],
        [b"no empty frame"],
        [b"number", b"", asked(endpoint="ping")],
    ],
    ids=["two frames", "many frames", "no body", "empty body", "garbage", "bare", "numbered"],
)
def test_whatever_comes_is_answered(frames: Sequence[bytes], port: int, client: InferenceClient) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger, dealer.rcvtimeo = 0, 20_000
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send_multipart(frames)
        answer = unpack(dealer.recv_multipart()[-1])[0]
    assert ("error" in answer) != (frames[0] == b"number")
    assert client.call("ping")["status"] == "ok"


def test_oversized_messages_and_other_protocols_are_dropped(port: int, client: InferenceClient) -> None:
    with InferenceClient(port=port, timeout=0.3) as big, pytest.raises(TeacherError, match="no reply"):
        big.call("get_action", {"observation": bytes(2**20 + 1)})
    with socket.create_connection(("127.0.0.1", port)) as http:
        http.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"\0" * 100)
        http.shutdown(socket.SHUT_WR)
        while http.recv(1000):
            pass
    assert client.call("ping")["status"] == "ok"


def test_kill_does_not_kill(client: InferenceClient) -> None:
    with pytest.raises(TeacherError, match="kill is not offered"):
        client.call("kill")
    assert client.call("ping")["status"] == "ok"


def test_sigint_stops_it_and_a_taken_port_is_an_error_that_says_so() -> None:
    process, port = start("--host", "0.0.0.0")
    with process:
        with zmq.Context() as context, pytest.raises(serve.ServeError, match=f"127.0.0.1:{port}.*another --port"):
            serve.bind(context, "127.0.0.1", port, 1000)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr is not None and "give it --api-token" in process.stderr.read()


def test_the_packaged_student_labels_its_own_episodes() -> None:
    """Through its real process: frames in, chunks out that are near the demonstration's."""
    dataset = EpisodeDataset(EPISODES)
    episode = dataset[0]
    process, port = start(stand_in=False)
    with process, InferenceClient(port=port, timeout=20.0) as client:
        teacher = Gr00tTeacher(connect(client), dataset)
        found = np.concatenate(list(teacher.label(episode, range(0, 96, 16))))
        process.terminate()
        assert process.wait(10) == 0
    still = np.mean((episode.action[:96] - episode.action[0]) ** 2)
    assert np.mean((episode.action[:96] - found) ** 2) < 0.2 * still


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serve.main(["--help"])
    assert "SAGE_ROS_API_TOKEN" in capsys.readouterr().out
