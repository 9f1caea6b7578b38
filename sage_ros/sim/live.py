"""The world in a thread of its own, in time with the wall clock or in step with those who answer it."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from sage_ros.core.timing import SECOND, Stopwatch
from sage_ros.sim.controllers import Controller, Goal
from sage_ros.sim.world import PickPlaceWorld

LONGEST_LAG = 0.25  # s behind schedule after which it is moved: no burst follows a long pause


@dataclass
class Answers:
    """A stream of answers, one every ``spacing`` control ticks: as long as they keep coming, they are waited for."""

    name: str
    spacing: int
    due: int | None = None  # the tick that the next one is to answer; None: they do not come

    def answer(self, tick: int) -> None:
        self.due = tick + self.spacing

    def miss(self) -> None:
        self.due = None

    def expected(self, tick: int) -> bool:
        return self.due is not None and tick >= self.due


@dataclass(frozen=True)
class Pace:
    """``control_rate`` in Hz; ``factor``: simulated s per s, where 0 goes as fast as answers come.

    At factor 0 time stands still until a frame's action and the command of each tick of ``command_rate`` (Hz) are
    there; for ``patience`` (s) at most, after which it goes on without them until they come again.
    """

    control_rate: float = 100.0
    factor: float = 1.0
    command_rate: float = 100.0
    patience: float = 1.0


class LiveWorld:
    """Opened, drawn and closed in one thread, as OpenGL wants it. Every method may be called from any thread.

    ``show`` is called in that thread at each control tick, and returns the tick's stamp in ns: the controller's time.
    ``missed`` is called, with its name, for an answer that did not come.
    """

    def __init__(
        self, pace: Pace, controller: Controller, now: int, show: Callable[[], int], missed: Callable[[str], None]
    ) -> None:
        self.pace, self.controller, self._show, self._missed = pace, controller, show, missed
        self.watch = Stopwatch()  # physics
        self.now = now  # ns of simulated time, which never goes back
        self.late = 0.0  # s behind schedule
        self.pauses = 0
        self.failure = ""
        self._tick = 0  # control ticks so far
        self._wake = threading.Condition()  # guards everything below
        self._inbox: deque[tuple[float, Goal]] = deque()  # with the monotonic time of arrival
        self._resets: list[Callable[[int | None], None]] = []
        self._quit, self._running, self._idle = False, False, True

    def open(self, image_size: int, region_scale: float, seed: int, look: str = "plain") -> PickPlaceWorld:
        """The world, reset to ``seed``.

        Raises ValueError on a bad rate; ImportError or RenderError where MuJoCo or OpenGL is missing (``sim.gl``).
        """
        opened: Future[PickPlaceWorld] = Future()
        self._thread = threading.Thread(target=self._live, args=(opened, image_size, region_scale, look), daemon=True)
        self._thread.start()
        self.world = world = opened.result()
        self.period = round(SECOND / self.pace.control_rate)  # ns
        self._timestep, frame = round(SECOND * world.timestep), round(SECOND / world.rate)
        if self.period % self._timestep or frame % self.period:
            raise ValueError(f"control_rate is {self.pace.control_rate} Hz; it must be 20, 40, 80, 100, 200 or 400")
        self.ticks_per_frame = frame // self.period
        self.actions = Answers("action", self.ticks_per_frame, due=0)
        self.commands = Answers("command", max(1, round(self.pace.control_rate / self.pace.command_rate)))
        self.next_seed = seed
        self._reset()
        return world

    def close(self) -> None:
        with self._wake:
            self._quit = True
        self.stop()
        self._thread.join(timeout=5.0)

    def start(self) -> None:
        """Go on from where the world stands; what was asked of the arm before is over."""
        self.controller.start(self.world.command)
        with self._wake:
            self.failure, self._running, self._idle = "", True, False
            self._wake.notify_all()

    def stop(self) -> None:
        """Returns once the world stands still."""
        with self._wake:
            self._running = False
            self._wake.notify_all()
            self._wake.wait_for(lambda: self._idle, 5.0)

    def accept(self, goal: Goal) -> None:
        """Give the controller a command, which acts from now on."""
        with self._wake:
            self._inbox.append((time.monotonic(), goal))
            self.commands.answer(self._tick)
            self._wake.notify_all()

    def acted(self, stamp: int) -> None:
        """There is an action for the frame of simulated time ``stamp`` (ns)."""
        with self._wake:
            self.actions.answer(self._tick - (self.now - stamp) // self.period)
            self._wake.notify_all()

    def reset(self, answer: Callable[[int | None], None]) -> None:
        """Put the world to the next seed before the next frame; then ``answer`` is called with it, or None if stopped.

        Until then, all goes on: simulated time, and the 20 Hz of the frames, know no episodes.
        """
        with self._wake:
            if self._running:
                return self._resets.append(answer)
        answer(None)

    @property
    def frame(self) -> int | None:
        """The episode's frame that this control tick shows, from 0; None: it shows none."""
        number, rest = divmod(self._age, self.ticks_per_frame)
        return None if rest else number

    # The thread

    def _live(self, opened: Future[PickPlaceWorld], image_size: int, region_scale: float, look: str) -> None:
        try:
            world = PickPlaceWorld(image_size, region_scale, look)
            world.render()  # what is missing shows now, and the first frame is no slower than the others
        except Exception as error:
            return opened.set_exception(error)
        with world:
            opened.set_result(world)
            while self._wait_for_work():
                try:
                    self._run()
                except Exception:  # the world stands still from here on, and its owner says so
                    self.failure = traceback.format_exc()
                self._rest()

    def _wait_for_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._running or self._quit)
            return not self._quit

    def _rest(self) -> None:
        with self._wake:
            self._running, self._idle = False, True
            self._inbox.clear()
            self._wake.notify_all()
        for answer in self._take_resets():
            answer(None)

    def _run(self) -> None:
        """Tick by tick until stopped. A tick's physics are computed at its end, when its commands are known."""
        factor = self.pace.factor
        span = self.period / SECOND / factor if factor else 0.0  # s of wall time
        self.now += self.period  # since it last ran, some time has passed
        due = time.monotonic()
        self._look(due)
        while self._wait_until(due + span):
            with self.watch.span():
                self._advance(due if factor else math.inf, span)
            due = due + span if factor else time.monotonic()
            if (lag := time.monotonic() - due) > LONGEST_LAG:
                self.pauses += 1
                due += lag
            self._look(due)

    def _wait_until(self, due: float) -> bool:
        """False when stopped meanwhile."""
        with self._wake:
            while self._running and (left := due - time.monotonic()) > 0:
                self._wake.wait(left)
            return self._running

    def _advance(self, begun: float, span: float) -> None:
        """The control tick that began at ``begun`` and took ``span`` s: every command acts from its arrival on."""
        steps = self.period // self._timestep
        for step in range(steps):
            now = self._stamp + step * self._timestep
            with self._wake:
                while self._inbox and self._inbox[0][0] <= begun + step * span / steps:
                    self.controller.take(self._inbox.popleft()[1], now)
            if step == 0:
                self.controller.update(now)
            self.world.advance(self.controller.command, 1)
        with self._wake:
            self.now += self.period
            self._tick += 1
        self._age += 1

    def _look(self, due: float) -> None:
        """Show this tick and, in step, wait for what it is answered with."""
        frame = self.frame is not None
        for answer in self._take_resets() if frame else ():
            self._reset()
            answer(self.seed)
        self.late = time.monotonic() - due
        self._stamp = self._show()
        if self.pace.factor == 0.0:
            if frame:
                self._await(self.actions)
            self._await(self.commands)

    def _await(self, answers: Answers) -> None:
        with self._wake:
            if self._wake.wait_for(lambda: not (self._running and answers.expected(self._tick)), self.pace.patience):
                return
            answers.miss()
        self._missed(answers.name)

    def _take_resets(self) -> list[Callable[[int | None], None]]:
        with self._wake:
            resets, self._resets = self._resets, []
            return resets

    def _reset(self) -> None:
        """The next episode; what was asked of the arm before is over."""
        with self._wake:
            self.seed, self.next_seed = self.next_seed, self.next_seed + 1
            self._inbox.clear()
        self.world.reset(self.seed)
        self.controller.start(self.world.command)
        self._age = 0  # control ticks of this episode
