"""dreamer: while the robot dreams, its student learns from what was recorded; a better one takes its place."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.client import Client
from rclpy.task import Future
from std_srvs.srv import Trigger

from sage_ros.core.options import check, option
from sage_ros.core.pace import Pace
from sage_ros.core.parents import PARENT
from sage_ros.nodes.lifecycle import SageNode, Status
from sage_ros.nodes.process import run
from sage_ros.paths import checkpoint_path
from sage_ros.policy.champions import DROPPED, PROMOTED, Champions
from sage_ros.policy.manifest import CheckpointError

USERS = ("sage_policy/load", "trust_attention/load")  # services of those who use the champion
RETRY = 5.0  # s until somebody who did not take a champion is asked again


@dataclass(frozen=True)
class DreamerConfig:
    champions: str = option("", "folder of this robot's students; the nodes' checkpoint is champions/current")
    checkpoint: str = option("", "student that a new folder begins with; empty: the one in the package")
    sessions: str = option("", "data set of the recorder")
    originals: str = option("", "data sets that must not be forgotten, with spaces between; empty: the package's")
    teacher: str = option("", "options of `label`, as '--teacher server --host gpu-box': it relabels sessions first")
    options: str = option("", "more options of `dream`, as '--steps 800'")
    nice: int = option(19, "how far training steps back for other processes", low=0, high=19)
    patience: float = option(3.0, "longest time without hearing of the metabolic state (s)", low=0.5, high=60.0)

    def __post_init__(self) -> None:
        check(self)

    @property
    def command(self) -> list[str]:
        """`dream` as a process of low priority."""
        parts = ["nice", "-n", str(self.nice), sys.executable, "-m", "sage_ros.training.dream", "--no-progress"]
        parts += ["--champions", self.champions, "--checkpoint", self.checkpoint, "--sessions", self.sessions]
        parts += ["--originals", *shlex.split(self.originals)] if self.originals else []
        parts += [f"--teacher={self.teacher}"] if self.teacher else []
        return parts + shlex.split(self.options)


class Dreamer(SageNode):
    """metabolic_state in; ~/rollback. Has `dream` run while the state allows learning and forbids actuation.

    The process is killed the moment that the robot wakes, or where nothing is heard of the state any more: it has saved
    what it needs to go on with the next time. Whatever changed the champion (a dream, ~/rollback, the command `dream`),
    the nodes that use it are asked to load it, between two frames.
    """

    Config = DreamerConfig
    config: DreamerConfig

    def __init__(self, **kwargs: object) -> None:
        super().__init__("dreamer", **kwargs)
        self._process: subprocess.Popen[bytes] | None = None
        self._champions: Champions | None = None
        self._problem = ""

    def setup(self) -> None:
        c = self.config
        if not c.champions or not c.sessions:
            raise ValueError("name two folders: champions, made if it is not there, and sessions, what is recorded")
        self._champions = Champions.found(c.champions, checkpoint_path(c.checkpoint))
        self._log = self._champions.folder / "dream.log"  # what the process says
        self._used = self._champions.champion  # by the nodes, which come up with it
        self._asked: dict[str, tuple[float, str]] = {}  # who was asked to load which champion, and when
        self._told, self._allowed, self._dreamt = 0.0, False, False
        self._last, self._problem = "nothing dreamt yet", ""
        self._users: dict[str, Client] = {}
        for name in USERS:
            client = self._users[name] = self.create_client(Trigger, name)
            self._entities.append((self.destroy_client, client))
        self.listen_to_metabolism(self._on_metabolism)
        self.every(0.1, self._tend, clock=self.steady)
        self.serve(Trigger, "~/rollback", self._on_rollback)

    def stop(self) -> None:
        self._wake()

    def teardown(self) -> None:
        self._wake()

    # Dreaming

    def _on_metabolism(self, pace: Pace) -> None:
        self._told = time.monotonic()
        self._allowed = pace.learning and not pace.actuation
        if not self._allowed:
            self._wake()
            self._dreamt = False  # there may be new sessions the next time

    def _tend(self) -> None:
        if self._allowed and time.monotonic() - self._told > self.config.patience:
            self._allowed = False
            self.complain(f"no metabolic_state for {self.config.patience:g} s: no dream goes on without it")
            self._wake()
        if self._process is not None and self._process.poll() is not None:
            self._end(self._process.wait())
        elif self._process is None and self._allowed and not self._dreamt:
            self._begin()
        self._share()

    def _begin(self) -> None:
        # Threads beyond one would only fight over the time that is left.
        environment = os.environ | {"OMP_NUM_THREADS": "1", PARENT: str(os.getpid())}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self.config.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip
        self.counts["dreams_begun"] += 1
        self.get_logger().info("dreams")

    def _end(self, code: int) -> None:
        lines = self._log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        self._process, self._dreamt = None, True
        self._last, self._problem = lines[-1].removeprefix("dream: "), lines[-1] if code else ""
        if code:
            self.counts["dreams_failed"] += 1
            self.get_logger().error(f"dreaming failed with exit code {code}: {lines[-1]}")
        else:
            self.counts["dreams_ended"] += 1
            self.get_logger().info(self._last)

    def _wake(self) -> None:
        """End the process at once; a dream is never lost by that, see `resume`."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self.counts["dreams_broken_off"] += 1
        self.get_logger().info("woken: the dream goes on the next time")

    # The champion

    def _share(self) -> None:
        """Ask those who use another champion than the present one to load it; who does not answer is asked again."""
        assert self._champions is not None
        champion, now = self._champions.champion, time.monotonic()
        if champion == self._used:
            return
        for name, client in self._users.items():
            when, asked = self._asked.get(name, (0.0, ""))
            if asked == f"{champion} loaded" or (asked == champion and now - when < RETRY):
                continue
            self._asked[name] = (now, champion)
            if client.service_is_ready():
                client.call_async(Trigger.Request()).add_done_callback(partial(self._on_load, name, champion))
        if all(self._asked[name][1] == f"{champion} loaded" for name in self._users):
            self._used, self._problem = champion, ""
            self.get_logger().info(f"{champion} is in use")

    def _on_load(self, name: str, champion: str, answer: Future) -> None:
        said = answer.result()
        if said is not None and said.success:
            self._asked[name] = (time.monotonic(), f"{champion} loaded")
        else:
            self._problem = f"{name}: {said.message if said is not None else 'no answer'}"
            self.complain(self._problem)

    def _on_rollback(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Back to the champion's parent: at once on disk, and in use as soon as it is loaded."""
        assert self._champions is not None
        try:
            response.message = f"{self._champions.rollback()} is the champion again"
            response.success = True
        except CheckpointError as error:
            response.message = str(error)
        return response

    def status(self) -> Status:
        if self._champions is None:
            return DiagnosticStatus.OK, "not configured", {}
        events = [entry["event"] for entry in self._champions.lineage]
        figures: dict[str, object] = {
            "champion": self._champions.champion, "in_use": self._used, "promoted": events.count(PROMOTED),
            "dropped": events.count(DROPPED), "last": self._last, "folder": str(self._champions.folder),
        }  # fmt: skip
        if self._problem:
            return DiagnosticStatus.WARN, self._problem, figures
        if self._process is None:
            return DiagnosticStatus.OK, f"awake: {self._last}", figures
        figures |= {"steps": self._champions.dreamt, "dream_pid": self._process.pid}
        return DiagnosticStatus.OK, f"dreams: {figures['steps']} steps saved", figures


def main(args: list[str] | None = None) -> int:
    return run(Dreamer, args)


if __name__ == "__main__":
    sys.exit(main())
