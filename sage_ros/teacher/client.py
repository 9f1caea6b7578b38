"""A client of GR00T's inference server that always gets an answer, an error or a timeout."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import zmq

from sage_ros.teacher.modality import TeacherError, from_wire
from sage_ros.teacher.teachers import Gr00t
from sage_ros.teacher.wire import MAX_MESSAGE, Coding, Wire, WireError, pack, unpack

_PICKLE = (
    "it is of the first generation (N1, or N1.5 before September 2025), whose messages are pickles: reading them would "
    "run whatever code the server sends. Update Isaac-GR00T there to a later N1.5, N1.6 or N1.7"
)


class ServerTimeout(TeacherError):
    """No answer within the time allowed."""


class InferenceClient:
    """One request at a time over a ZMQ REQ socket; each is exactly one frame, as a second one kills GR00T's servers.

    After a timeout the socket is closed and a new one made: the server sees another peer, so an answer that comes late
    goes nowhere instead of being taken for the next request's. ``timeout`` is in s; replies above ``max_reply`` bytes
    are dropped by ZMQ, and so time out.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 5555,
        timeout: float = 15.0,
        api_token: str = "",
        max_reply: int = MAX_MESSAGE,
    ) -> None:
        self.address, self.timeout, self.max_reply = f"tcp://{host}:{port}", timeout, max_reply
        self._token = api_token
        self._context = zmq.Context()
        self._socket: zmq.Socket | None = None

    def close(self) -> None:
        self._drop()
        self._context.term()

    def __enter__(self) -> InferenceClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def call(self, endpoint: str, data: Any = None, coding: Coding = Coding.NPY, timeout: float | None = None) -> Any:
        """The reply of an endpoint. ``data`` None: the request has none.

        Raises ServerTimeout, and TeacherError where the server answers with an error or in no known coding.
        """
        request = {"endpoint": endpoint} | ({} if data is None else {"data": data})
        reply = self._exchange(pack(request | ({"api_token": self._token} if self._token else {}), coding), timeout)
        if reply == b"ERROR" or reply[:2] == b"PK":  # torch.save writes zip files
            raise TeacherError(f"{self.address} cannot be used: {_PICKLE}")
        try:
            answer, _ = unpack(reply)
        except WireError as error:
            raise TeacherError(f"the reply of {self.address} {error}: is it a GR00T inference server?") from error
        if isinstance(answer, dict) and "error" in answer:  # present, whatever it says: "" is one too
            text = str(answer["error"]) or "an error without words"
            hint = ": give the server's own with --api-token" if text.startswith("Unauthorized") else ""
            raise TeacherError(f"{self.address} answers {endpoint} with: {text}{hint}")
        return answer

    def _exchange(self, request: bytes, timeout: float | None) -> bytes:
        limit = self.timeout if timeout is None else timeout
        if self._socket is None:
            self._socket = self._context.socket(zmq.REQ)
            self._socket.linger = 0
            self._socket.maxmsgsize = self.max_reply
            try:
                self._socket.connect(self.address)
            except zmq.ZMQError as error:
                self._drop()
                raise TeacherError(f"{self.address} is no address to connect to ({error})") from error
        self._socket.sndtimeo = self._socket.rcvtimeo = max(1, round(1000 * limit))
        try:
            self._socket.send(request)
            frames = self._socket.recv_multipart()
        except zmq.Again:
            self._drop()
            raise ServerTimeout(
                f"no reply from {self.address} within {limit:g} s: is a GR00T inference server running there, and its "
                f"reply below {self.max_reply / 2**20:.3g} MiB?"
            ) from None
        except BaseException:  # the socket is half-way through an exchange
            self._drop()
            raise
        if len(frames) != 1:
            raise TeacherError(f"{self.address} answered with {len(frames)} frames: it is no GR00T inference server")
        return frames[0]

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None


def connect(client: InferenceClient, name: str = "", retries: int = 2) -> Gr00t:
    """The GR00T policy behind a server; one request tells its generation, keys and horizon.

    ``name`` tells models apart that are served at one address at different times (empty: the address is all that is
    known). A request that times out is repeated ``retries`` times, each given longer: the server finishes the old one
    first. Raises TeacherError, for the pickle generation too.
    """
    wire, interface = from_wire(client.call("get_modality_config"))

    def patient(endpoint: str, data: Any) -> Any:
        for attempt in range(retries + 1):
            try:
                return client.call(endpoint, data, wire.coding, client.timeout * (attempt + 1))
            except ServerTimeout:
                if attempt == retries:
                    raise
        raise AssertionError("unreachable")

    def ask(observation: dict[str, Any]) -> dict[str, Any]:
        reply = patient("get_action", observation if wire.flat else {"observation": observation, "options": None})
        action = reply[0] if not wire.flat and isinstance(reply, list) and len(reply) == 2 else reply
        if not isinstance(action, dict) or (action is reply and not wire.flat):
            raise TeacherError(f"{client.address} answered get_action with {str(reply)[:80]}, not with an action")
        return action

    def restart() -> None:
        if wire is not Wire.N15:  # which has no such endpoint
            patient("reset", {"options": None})

    shape = hashlib.sha256(json.dumps(interface.to_dict()).encode()).hexdigest()[:12]
    return Gr00t(f"server {wire.value} {name or client.address} {shape}", interface, wire.flat, ask, restart)
