"""recorder: a live session into episodes of a LeRobot v2.1 data set that can be read at every moment."""

from __future__ import annotations

import sys
import time
from concurrent.futures import Future as Pending
from dataclasses import dataclass
from functools import partial

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from sage_ros.core.options import check, option
from sage_ros.core.timing import SECOND
from sage_ros.episodes.archive import Archive
from sage_ros.episodes.take import FilmSettings, Take
from sage_ros.nodes.lifecycle import EXPECTED_ERRORS, LATCHED, SageNode, Status
from sage_ros.nodes.process import run
from sage_ros.nodes.recorder_inputs import SIGNALS, Inputs

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow")
Result = tuple[bool, str]


@dataclass(frozen=True)
class RecorderConfig:
    dataset: str = option("", "folder of the data set; one that is there is gone on with")
    split: str = option("service", "episodes begin and end by ~/start and ~/stop, or with the topic task",
                        choices=("service", "task"))  # fmt: skip
    task: str = option("", "what is done, in words, where nothing comes on the topic task")
    fps: float = option(20.0, "rows per second; a camera that is faster is thinned out", low=0.1, high=1000.0)
    cameras: str = option("front=image_raw", "cameras and their topics, as 'front=image_raw,wrist=wrist/image_raw'; "
                          "the first sets the pace; topics that end in /compressed are CompressedImage")  # fmt: skip
    like: str = option("", "data set whose joints, their groups and its robot type to take over")
    robot_type: str = option("robot", "what the data set says of the robot")
    action: str = option("command", "actions are what last_command says, or the measured joints of a robot that is "
                         "guided by hand", choices=("command", "joints"))  # fmt: skip
    signals: bool = option(True, "record confidence, trust, surprise and the metabolic state too, as sage.* columns")
    lossless: bool = option(False, "keep the very pixels, in several times the bytes")
    crf: int = option(23, "x264's quality: lower is better, 18 looks lossless", low=0, high=51)
    preset: str = option("veryfast", "x264's effort", choices=PRESETS)
    joint_tolerance: float = option(0.1, "oldest joint state or other camera's frame of a row (s)", low=1e-3, high=10.0)
    command_tolerance: float = option(2.0, "oldest command of a row (s)", low=1e-3, high=600.0)
    settle: float = option(0.2, "how long what belongs to a row may still be on its way (s)", low=0.0, high=10.0)
    patience: float = option(2.0, "longest wait for joints, a command or another camera's frame that the middleware "
                             "delivers late (s)", low=0.0, high=60.0)  # fmt: skip
    min_free: int = option(200, "stop while there is still so much room on the disk (MB)", low=0, high=10**7)
    buffer: int = option(256, "frames that may wait for encoding, per camera (MB)", low=1, high=10**5)

    def __post_init__(self) -> None:
        check(self)

    @property
    def topics(self) -> dict[str, str]:
        """Camera -> image topic. Raises ValueError."""
        topics: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in self.cameras.split(","))):
            camera, equals, topic = (piece.strip() for piece in part.partition("="))
            if not (camera and equals and topic) or camera in topics:
                raise ValueError(f"cameras '{self.cameras}': write each once, as front=image_raw, with commas between")
            topics[camera] = topic
        return topics


class Recorder(SageNode):
    """Cameras, joint_states, last_command, task and what the pipeline says of itself -> episodes of a data set.

    ~/start, ~/stop (save) and ~/discard are Triggers, ~/success is a SetBool that labels the episode in progress, or
    else the last one. ~/episode (latched) says what was begun, saved, discarded or failed. A row goes with the newest
    sample at or before its camera frame, as in replayed and training data (``episodes.alignment``). Whatever ends the
    process costs at most the episode in progress; a disk that is full ends recording, and what stands is kept.
    """

    Config = RecorderConfig
    config: RecorderConfig

    def __init__(self, **kwargs: object) -> None:
        super().__init__("recorder", **kwargs)
        self._take: Take | None = None
        self._ending: list[tuple[Take, Future]] = []  # ended, while what belongs to their rows may still arrive
        self._archive: Archive | None = None
        self._failure = ""

    def setup(self) -> None:
        c = self.config
        if not c.dataset:
            raise ValueError("dataset is empty: name the folder to record into")
        if not c.topics:
            raise ValueError("cameras is empty: name at least one, as front=image_raw; its frames set the pace")
        films = FilmSettings(c.fps, c.crf, lossless=c.lossless, preset=c.preset, room=c.buffer << 20)
        extras = SIGNALS if c.signals else {}
        self._archive = Archive(c.dataset, films, c.robot_type, c.like, extras, c.min_free)
        self._task, self._failure = c.task, ""
        self._inputs = Inputs(self, c, self._archive, self._on_tick)
        self.listen(String, "task", self._on_task, LATCHED, always=True)
        self._events = self.publish_on(DiagnosticArray, "~/episode", LATCHED)
        self.every(0.05, self._advance, clock=self.steady)
        self.every(1.0, self._look_at_disk, clock=self.steady)
        self.serve(Trigger, "~/start", self._on_start)
        self.serve(Trigger, "~/stop", self._on_stop)
        self.serve(Trigger, "~/discard", self._on_discard)
        self.serve(SetBool, "~/success", self._on_success)

    def start(self) -> None:
        self._failure = ""
        if self.config.split == "task" and self._task:
            self._begin(self._task)

    def stop(self) -> None:
        """Save what was in progress: nothing that stands is lost by an orderly end."""
        self._end_all()
        try:
            self.archive.close()
        except EXPECTED_ERRORS as error:
            self._fail(error)

    def teardown(self) -> None:
        if self._archive is not None:
            self._archive.end()
            self._archive = None

    def clear(self) -> None:
        """Time went back: what comes from now on is another episode."""
        task = self._take.task if self._take is not None else ""
        self._end_all()
        self._inputs.clear()
        if task and self.config.split == "task":
            self._begin(task)

    @property
    def archive(self) -> Archive:
        """The data set. Raises RuntimeError before the node is configured."""
        if self._archive is None:
            raise RuntimeError("the node is not configured")
        return self._archive

    def _on_tick(self, stamp: int) -> None:
        if self._take is not None and not self._take.tick(stamp, time.monotonic()):
            self.counts["frames_between_rows"] += 1

    # Episodes

    def _on_task(self, message: String) -> None:
        if message.data == self._task:
            return
        self._task = message.data or self.config.task
        if self.config.split == "task" and self.active:
            self._end()
            if message.data:
                self._begin(message.data)

    def _begin(self, task: str) -> Result:
        if self._failure:
            return False, f"not recording since {self._failure}"
        if self._take is not None:
            return False, "an episode is being recorded: stop or discard it first"
        c = self.config
        try:
            if problem := self.archive.lacks_room():
                raise OSError(problem)
            self._take = self.archive.begin(task, self._inputs.streams, c.settle, c.patience)
        except EXPECTED_ERRORS as error:
            self._fail(error)
            return False, self._failure
        self._tell("begun", task=task)
        return True, f"recording '{task}'"

    def _end(self) -> Future | None:
        """End the episode in progress; the future is done with (success, message) once it is saved."""
        if self._take is None:
            return None
        take, done = self._take, Future()
        take.ended = time.monotonic()
        self._take = None
        self._ending.append((take, done))
        return done

    def _end_all(self) -> None:
        """End the episode in progress, and save with it whatever was to wait for its last samples."""
        self._end()
        ending, self._ending = self._ending, []
        for take, done in ending:
            self._save(take, done)

    def _drop(self, why: str) -> str:
        """Discard the episode in progress; what is dropped is told."""
        take, self._take = self._take, None
        if take is None:
            return ""
        take.discard()
        self._tell(why, task=take.task, rows=len(take))
        return f"{len(take)} rows of '{take.task}'"

    def _advance(self) -> None:
        """Make rows of what has arrived, and save the episodes that are whole."""
        now = time.monotonic()
        if self._take is not None and (self._failure or not self._grow(self._take, now)):
            self._drop("failed")
        ending, self._ending = self._ending, []
        for take, done in ending:
            if not self._grow(take, now):
                take.discard()
                done.set_result((False, self._failure))
            elif take.over(now):
                self._save(take, done)
            else:
                self._ending.append((take, done))
        waiting = [take.oldest for take in (self._take, *(take for take, _ in self._ending)) if take is not None]
        oldest = min((stamp for stamp in waiting if stamp >= 0), default=self.get_clock().now().nanoseconds - SECOND)
        self._inputs.forget(oldest)

    def _grow(self, take: Take, now: float) -> bool:
        """Rows of the ticks that are ripe; False if its films cannot be written."""
        lost = take.overrun
        try:
            made = take.advance(now)
        except EXPECTED_ERRORS as error:
            self._fail(error)
            return False
        self.counts["rows"] += made
        if made and made == len(take):  # its first: the data set can be opened, or turns out to be another one
            self.archive.open(take).add_done_callback(self._on_open)
        if take.lacking and len(take):
            self.complain(f"a row is left out: it lacks {', '.join(sorted(take.lacking))}")
        if take.overrun > lost:
            self.complain(f"{take.overrun} rows lost: encoding does not keep up (try another preset)")
        return True

    def _on_open(self, opened: Pending[None]) -> None:
        """In the saver's thread."""
        if error := opened.exception():
            self._fail(error)

    def _save(self, take: Take, done: Future) -> None:
        """Hand it over to be saved, with no regard to what is still on its way."""
        take.settle = take.patience = 0.0
        if not self._grow(take, time.monotonic()):
            take.discard()
            done.set_result((False, self._failure))
        elif len(take):
            self.archive.save(take).add_done_callback(partial(self._on_saved, take, done))
        else:
            take.discard()
            lacking = ", ".join(sorted(take.lacking)) or "camera frames"
            message = f"nothing was recorded of '{take.task}': there were no {lacking}"
            self.get_logger().warning(message)
            self._tell("empty", task=take.task, lacking=lacking)
            done.set_result((False, message))

    def _on_saved(self, take: Take, done: Future, saved: Pending[int]) -> None:
        """In the saver's thread."""
        if error := saved.exception():
            self._fail(error)
            return done.set_result((False, self._failure))
        index = saved.result()
        self.counts["rows_left_out"] += take.left_out + take.overrun
        self._tell("saved", task=take.task, episode=index, rows=len(take), **take.about)
        done.set_result((True, f"episode {index}: {len(take)} rows of '{take.task}'"))

    # What can go wrong

    def _look_at_disk(self) -> None:
        """End the episode in progress while there is room to save it."""
        if self._take is not None and (problem := self.archive.lacks_room(self._take)):
            self._end()
            self._fail(problem)

    def _fail(self, reason: object) -> None:
        """Record no more, and say so loudly; ~/start tries again. The episode in progress is dropped by the timer."""
        self._failure = str(reason)
        self.get_logger().error(f"RECORDING HAS STOPPED: {reason}")
        self._tell("failed", reason=reason)

    # Services

    def _on_start(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success, response.message = self._try_start()
        return response

    def _try_start(self) -> Result:
        if not self.active:
            return False, "the node is not active: bring it up first"
        if not self._task:
            return False, "there is no task: publish one on task, or set the parameter task"
        self._failure = ""
        return self._begin(self._task)

    async def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answers once the episode is saved; others are heard meanwhile."""
        done = self._end()
        if done is None:
            response.message = f"not recording since {self._failure}" if self._failure else "nothing is being recorded"
        else:
            response.success, response.message = await done
        return response

    def _on_discard(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        dropped = self._drop("discarded")
        response.success, response.message = bool(dropped), dropped or "nothing is being recorded; what is saved stays"
        return response

    async def _on_success(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        takes = [*(take for take, _ in self._ending), self._take]
        if (last := next((take for take in reversed(takes) if take is not None), None)) is not None:
            last.success = request.data
            response.success, response.message = True, "the episode in progress is labelled"
            return response
        done: Future = Future()
        self.archive.label(request.data).add_done_callback(done.set_result)
        labelled = await done
        if error := labelled.exception():
            response.message = str(error)
        else:
            response.success, response.message = True, f"episode {labelled.result()} is labelled"
        return response

    def _tell(self, event: str, **about: object) -> None:
        level = DiagnosticStatus.ERROR if event == "failed" else DiagnosticStatus.OK
        self._events.publish(self.report("episode", level, event, about))

    def status(self) -> Status:
        figures: dict[str, object] = {"episodes_saved": self._archive.saved if self._archive is not None else 0}
        if self._failure:
            return DiagnosticStatus.ERROR, f"RECORDING HAS STOPPED: {self._failure}", figures
        if self._take is None:
            return DiagnosticStatus.OK, "waits for an episode", figures
        take = self._take
        figures |= {"episode_rows": len(take), "left_out": take.left_out, "gaps": take.gaps, "overrun": take.overrun}
        level = DiagnosticStatus.WARN if take.left_out or take.overrun else DiagnosticStatus.OK
        return level, f"records '{take.task}', {len(take)} rows", figures


def main(args: list[str] | None = None) -> int:
    return run(Recorder, args)


if __name__ == "__main__":
    sys.exit(main())
