"""The student behind GR00T's inference protocol, N1.6 and N1.7: requests in, replies out, sessions between."""

from __future__ import annotations

import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sage_ros.core.chunks import ActionChunk, Observation, Past
from sage_ros.core.history import COMMANDS, STATES, nothing_known
from sage_ros.core.joints import JointLayout
from sage_ros.policy.checkpoint import Checkpoint
from sage_ros.teacher.modality import Interface, Modality
from sage_ros.teacher.wire import Wire, WireError, pack, unpack
from sage_ros.vision.encoder import Encoder

LANGUAGE = "annotation.human.action.task_description"
MAX_BATCH = 64
MAX_SESSIONS = 256  # the one that was silent longest is forgotten
log = logging.getLogger(__name__)


class RequestError(ValueError):
    """A request that is answered with an error: GR00T's own words where it has some."""


@dataclass
class _Session:
    """What one robot did, as far as the server can know: newest rows first, NaN where it cannot."""

    task: str
    commands: np.ndarray  # (COMMANDS + 1, A)
    states: np.ndarray  # (STATES + 1, S)
    rows: int = 0  # executed since the task began


@dataclass
class StudentServer:
    """Answers requests for a student. One instance serves many clients; a session is a client's connection.

    ``executed`` is how many rows of a chunk clients run before they ask again: the last of these is the student's last
    command the next time. A new connection, ``reset`` and a changed batch size begin an episode.
    """

    checkpoint: Checkpoint
    encoder: Encoder
    wire: Wire = Wire.N17
    executed: int = 0  # 0: the whole chunk
    language: str = LANGUAGE
    api_token: str = ""
    _sessions: OrderedDict[bytes, list[_Session]] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        checkpoint = self.checkpoint
        self.executed = self.executed or checkpoint.horizon
        if not 1 <= self.executed <= checkpoint.horizon:
            raise ValueError(f"--executed must be from 1 to {checkpoint.horizon}, the rows of a chunk")
        for what, joints in (("state", checkpoint.state_joints), ("action", checkpoint.action_joints)):
            grouped = {name for span in joints.groups.values() for name in joints.names[slice(*span)]}
            if loose := [name for name in joints.names if name not in grouped]:
                raise ValueError(f"GR00T's protocol names joint groups, but the {what} joints {', '.join(loose)} of "
                                 f"{checkpoint.folder} are in none")  # fmt: skip
        present = (0,)
        self.interface = Interface(
            video=Modality(present, checkpoint.cameras[:1]),
            state=Modality(present, tuple(checkpoint.state_joints.groups)),
            action=Modality(tuple(range(checkpoint.horizon)), tuple(checkpoint.action_joints.groups)),
            language=Modality(present, (self.language,)),
        )

    def warm_up(self, frame: tuple[int, int] = (256, 256)) -> None:
        """The first passes of a network cost many times the later ones."""
        state = self.checkpoint.normalization.state_mean
        for _ in range(3):
            tokens = self.encoder.encode(np.zeros((1, *frame, 3), np.uint8))[0]
            self.checkpoint.policy.infer(Observation(tokens, state, None, ""))

    def answer(self, session: bytes, frames: Sequence[bytes]) -> bytes:
        """The reply to a request's frames; whatever they hold, it is a reply."""
        coding = self.wire.coding
        try:
            if len(frames) != 1:
                raise RequestError(f"A request must be one frame. Got {len(frames)}")
            request, seen = unpack(frames[0])
            coding = seen or coding
            return pack(self._handle(session, request), coding)
        except (RequestError, WireError) as error:
            return pack({"error": str(error)}, coding)
        except Exception as error:  # a fault of ours must not take the robots of others down
            log.exception("a request failed")
            return pack({"error": f"{type(error).__name__}: {error}"}, coding)

    def _handle(self, session: bytes, request: Any) -> Any:
        if not isinstance(request, dict):
            raise RequestError(f"A request must be a map. Got {type(request)}")
        token = request.get("api_token")
        if self.api_token and not (
            isinstance(token, str) and hmac.compare_digest(token.encode(), self.api_token.encode())
        ):
            raise RequestError("Unauthorized: Invalid API token")
        endpoint = request.get("endpoint", "get_action")
        data = request.get("data", {})
        match endpoint:
            case "ping":
                return {"status": "ok", "message": "Server is running"}
            case "get_modality_config":
                return self.interface.to_wire(self.wire)
            case "reset":
                self._sessions.pop(session, None)
                return {}
            case "get_action":
                return self._get_action(session, data)
            case "kill":
                raise RequestError("kill is not offered: stop this server where it runs, with Ctrl-C or SIGTERM")
        raise RequestError(f"Unknown endpoint: {str(endpoint)[:80]}")

    def _get_action(self, session: bytes, data: Any) -> list[Any]:
        """[action, info]: by joint group (B, H, D) float32; seconds of inference, and the student's confidence (B,)."""
        if not isinstance(data, dict):
            raise RequestError(f"get_action's data must be a map. Got {type(data)}")
        for key in data:
            if key not in ("observation", "options"):
                raise RequestError(f"BasePolicy.get_action() got an unexpected keyword argument '{str(key)[:80]}'")
        if "observation" not in data:
            raise RequestError("BasePolicy.get_action() missing 1 required positional argument: 'observation'")
        films, states, tasks = self._check(data["observation"])
        robots = self._robots(session, tasks)
        start = time.perf_counter()
        tokens = self.encoder.encode(films)
        found = [self._infer(*one) for one in zip(robots, tokens, states, tasks, strict=True)]
        seconds = time.perf_counter() - start
        positions = np.stack([chunk.positions for chunk in found]).astype(np.float32)
        groups = self.checkpoint.action_joints.groups
        action = {group: np.ascontiguousarray(positions[..., slice(*span)]) for group, span in groups.items()}
        return [action, {"inference_seconds": seconds, "confidence": [chunk.confidence for chunk in found]}]

    def _robots(self, session: bytes, tasks: list[str]) -> list[_Session]:
        known = self._sessions.pop(session, [])
        if len(known) != len(tasks):
            actions, states = len(self.checkpoint.action_joints), len(self.checkpoint.state_joints)
            pasts = [nothing_known(actions, states) for _ in tasks]
            known = [_Session(task, past.commands, past.states) for task, past in zip(tasks, pasts, strict=True)]
        self._sessions[session] = known
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return known

    def _infer(self, robot: _Session, tokens: np.ndarray, state: np.ndarray, task: str) -> ActionChunk:
        if task != robot.task:  # what was before a task is not its past, but the robot still stands where it stands
            robot.task, robot.rows = task, 0
            robot.commands[1:] = np.nan
            robot.states[:] = np.nan
        robot.states[0] = state
        last = None if np.isnan(robot.commands[0]).any() else robot.commands[0].copy()
        past = Past(robot.commands.copy(), robot.states.copy(), robot.rows / self.checkpoint.rate)
        chunk = self.checkpoint.policy.infer(Observation(tokens, state, last, task, past))
        run = chunk.positions[: self.executed]
        robot.rows += len(run)
        robot.commands = np.concatenate([run[::-1], robot.commands])[: COMMANDS + 1]
        between = np.full((len(run), len(state)), np.nan)  # the client did not tell
        robot.states = np.concatenate([between, robot.states])[: STATES + 1]
        return chunk

    def _check(self, observation: Any) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Frames (B, H, W, 3) uint8, states (B, S) float64 and tasks. Raises RequestError, in GR00T's words."""
        if not isinstance(observation, dict):
            raise RequestError(f"Observation must be a dictionary. Got {type(observation)}")
        for modality in ("video", "state", "language"):
            if modality not in observation:
                raise RequestError(f"Observation must contain a '{modality}' key")
            if not isinstance(observation[modality], dict):
                raise RequestError(f"Observation '{modality}' must be a dictionary. Got {type(observation[modality])}")
        key = self.interface.video.keys[0]
        film = _array(observation["video"], "Video", key, np.uint8, "(B, T, H, W, C)")
        if film.shape[-1] != 3:
            raise RequestError(f"Video key '{key}'s channel 'C' must be 3. Got {film.shape[-1]}")
        batch = len(film)
        if not 1 <= batch <= MAX_BATCH or 0 in film.shape:
            raise RequestError(f"Video key '{key}' must have a batch of 1 to {MAX_BATCH} frames. Got {film.shape}")
        joints = self.checkpoint.state_joints
        states = np.empty((batch, len(joints)))
        for group, span in joints.groups.items():
            states[:, slice(*span)] = self._state(observation["state"], group, joints, batch)
        return film[:, 0], states, self._tasks(observation["language"], batch)

    def _state(self, values: dict[Any, Any], group: str, joints: JointLayout, batch: int) -> np.ndarray:
        array = _array(values, "State", group, np.float32, "(B, T, D)")
        names = joints.names[slice(*joints.groups[group])]
        if len(array) != batch:
            raise RequestError(f"State key '{group}' must have batch size {batch}. Got {len(array)}")
        if array.shape[2] != len(names):
            raise RequestError(f"State key '{group}' must have {len(names)} joints ({', '.join(names)}). "
                               f"Got {array.shape[2]}")  # fmt: skip
        if not np.isfinite(array).all():
            raise RequestError(f"State key '{group}' must be finite")
        return array[:, 0]

    def _tasks(self, values: dict[Any, Any], batch: int) -> list[str]:
        key = self.language
        if key not in values:
            raise RequestError(f"Language key '{key}' must be in observation")
        told = values[key]
        if not isinstance(told, list):
            raise RequestError(f"Language key '{key}' must be a list. Got {type(told)}")
        if len(told) != batch:
            raise RequestError(f"Language key '{key}' must have batch size {batch}. Got {len(told)}")
        for item in told:
            if not isinstance(item, list):
                raise RequestError(f"Language batch item must be a list. Got {type(item)}")
            if len(item) != 1:
                raise RequestError(f"Language key '{key}'s horizon must be 1. Got {len(item)}")
            if not isinstance(item[0], str):
                raise RequestError(f"Language batch item must be a string. Got {type(item[0])}")
        return [item[0] for item in told]


def _array(values: dict[Any, Any], what: str, key: str, dtype: type[np.generic], axes: str) -> np.ndarray:
    """The array of a key, of ``dtype`` and as many axes as named, the second of length 1."""
    if key not in values:
        raise RequestError(f"{what} key '{key}' must be in observation")
    array = values[key]
    if not isinstance(array, np.ndarray):
        raise RequestError(f"{what} key '{key}' must be a numpy array. Got {type(array)}")
    if array.dtype != dtype:
        raise RequestError(f"{what} key '{key}' must be a numpy array of type np.{dtype.__name__}. Got {array.dtype}")
    if array.ndim != axes.count(",") + 1:
        raise RequestError(f"{what} key '{key}' must be a numpy array of shape {axes}, got {array.shape}")
    if array.shape[1] != 1:
        raise RequestError(f"{what} key '{key}'s horizon must be 1. Got {array.shape[1]}")
    return array
