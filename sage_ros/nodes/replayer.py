"""replayer: demonstration episodes as live topics, like a bag player."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass, fields
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.parameter import Parameter
from tqdm import tqdm

from sage_ros.core.options import check, option
from sage_ros.nodes import player_services
from sage_ros.nodes.episode_stage import EpisodeStage
from sage_ros.nodes.keyboard import DOWN, RIGHT, SPACE, UP, Keyboard
from sage_ros.nodes.lifecycle import SageNode, Status
from sage_ros.nodes.player import Player, Span
from sage_ros.nodes.process import run

MODES = ("observations", "demonstration", "command")
KEYS = "space: pause or resume; right: next row; up, down: rate by 0.1"
RATES = (0.001, 1000.0)


@dataclass(frozen=True)
class ReplayerConfig(Span):
    dataset: str = option("", "GR00T/LeRobot data set, folder or hub name; empty: the one in the package")
    episodes: str = option("all", "what to play, in order: 'all', or indices and ranges such as '0', '3,1,2' or '0-9'")
    shuffle: bool = option(False, "play them in an order of chance, another one in each lap of a loop")
    seed: int = option(0, "decides that order", low=0, high=2**31 - 1)
    mode: str = option("observations", "observations alone; demonstration: also the actions, on demo/action; command: "
                       "actions alone, on action, by which the safety filter moves a robot", choices=MODES)  # fmt: skip
    camera: str = option("", "cameras by their names in modality.json, as 'front,wrist' or 'all'; empty: the first")
    compression: str = option("jpeg", "of image_raw/compressed", choices=("jpeg", "png", "none"))
    jpeg_quality: int = option(95, "of JPEG", low=1, high=100)
    intrinsics: str = option("", "folder with a <camera>.yaml of camera_calibration for each camera, or that file")
    align: str = option("index", "a row's frame: by number, or as GR00T N1 by time", choices=("index", "timestamp"))
    skip_broken: bool = option(False, "leave out episodes that cannot be read, saying so, instead of stopping there")
    rate: float = option(1.0, "playback speed; 2 is twice as fast", low=RATES[0], high=RATES[1])
    loop: bool = option(False, "start again after the last episode")
    start_paused: bool = option(False, "wait for ~/resume")
    delay: float = option(0.0, "rest before the start, and before each lap of a loop (s)", low=0.0, high=3600.0)
    seek_time: float = option(0.0, "where ~/seek goes on the playlist (s), if it is a Trigger", low=-1e6, high=1e6)
    burst_rows: int = option(0, "rows that ~/burst plays, if it is a Trigger; 0: all", low=0, high=2**31 - 1)
    publish_clock: bool = option(False, "publish /clock and stamp by it (the other nodes then need use_sim_time)")
    clock_rate: float = option(0.0, "messages on /clock beside those of the rows (Hz); 0: none", low=0.0, high=1000.0)
    lead: float = option(0.3, "time between announcing an episode's task and its first row (s)", low=0.0, high=60.0)
    listeners: int = option(1, "subscribers of the images to wait for before the first row", low=0, high=100)
    wait: float = option(10.0, "longest wait for them (s)", low=0.0, high=3600.0)
    settle: float = option(1.0, "rest before the first row, until they have found us too (s)", low=0.0, high=60.0)
    horizon: int = option(16, "command: rows of action in a chunk", low=1, high=1000)
    approach: float = option(30.0, "command: longest wait for the robot to reach an episode's first pose (s); 0: none",
                             low=0.0, high=3600.0)  # fmt: skip
    arrival: float = option(0.05, "command: distance of every joint from that pose that counts as there (rad)",
                            low=1e-4, high=10.0)  # fmt: skip

    def __post_init__(self) -> None:
        check(self)


class Replayer(SageNode):
    """Episodes -> image_raw, joint_states, task, ~/episode (latched), ~/events (JSON), optionally camera_info, /clock.

    Several cameras publish below their names: front/image_raw. The messages of a row carry the same stamp. The
    demonstrated action goes out as ``mode`` says: not at all, on demo/action, which moves no robot, or on ``action``,
    where the safety filter takes it as it takes a policy's plan; then no observation goes out, for those are the
    robot's. The services are those of rosbag2's player. In a ``terminal`` there are its keys, and a progress bar.
    """

    Config = ReplayerConfig
    config: ReplayerConfig
    live = frozenset({"rate", "loop", "seek_time", "burst_rows"} | {item.name for item in fields(Span)})

    def __init__(self, terminal: bool = False, **kwargs: object) -> None:
        super().__init__("replayer", **kwargs)
        self._terminal = terminal
        self._player: Player | None = None
        self._stage: EpisodeStage | None = None
        self._keyboard: Keyboard | None = None
        self._bar: Any = None

    def setup(self) -> None:
        c = self.config
        self._stage = stage = EpisodeStage(self, c)
        self._player = stage.player = player = Player(stage, c.rate, c.start_paused)
        self.changed()
        player_services.offer(self, player)
        if c.publish_clock and c.clock_rate:
            self.every(1.0 / c.clock_rate, stage.show_time, clock=self.steady)
        if self._terminal:
            self.every(0.25, lambda: self._show_progress(player, stage), clock=self.steady)

    def start(self) -> None:
        player = self._player
        if player is None:
            return
        if self._terminal:
            self._keyboard = Keyboard({
                SPACE: player.toggle_paused, RIGHT: lambda: player.burst(1, lambda played: None),
                UP: lambda: self._faster(player, 0.1), DOWN: lambda: self._faster(player, -0.1),
            })  # fmt: skip
            if self._keyboard.listening:
                self.get_logger().info(KEYS)
            self._bar = tqdm(unit="row", disable=None, dynamic_ncols=True)
        player.play(self.span())

    def stop(self) -> None:
        if self._player is not None:
            self._player.stop()
        if self._keyboard is not None:
            self._keyboard.close()
            self._keyboard = None
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def teardown(self) -> None:
        self.stop()
        if self._stage is not None:
            self._stage.close_files()
        self._player = self._stage = None

    def changed(self) -> None:
        player, c = self._player, self.config
        if player is not None and self._stage is not None:
            self._stage.config = c
            player.loop, player.lead, player.delay = c.loop, c.lead, c.delay
            if player.rate != c.rate:
                player.set_rate(c.rate)

    # Control: what services and keys need beside the player's own commands

    def set_rate(self, rate: float) -> tuple[bool, str]:
        """By way of the parameter, so that there is one truth."""
        result = self.set_parameters([Parameter("rate", value=float(rate))])[0]
        return result.successful, result.reason

    def span(self) -> Span:
        return Span(**{item.name: getattr(self.config, item.name) for item in fields(Span)})

    def seek_time(self) -> float:
        return self.config.seek_time

    def burst_rows(self) -> int:
        return self.config.burst_rows

    def _faster(self, player: Player, by: float) -> None:
        self.set_rate(round(min(max(player.rate + by, RATES[0]), RATES[1]), 3))

    # What is told

    def _show_progress(self, player: Player, stage: EpisodeStage) -> None:
        bar = self._bar
        if bar is None or bar.disable:
            return
        bar.total, bar.n = player.rows, player.row
        bar.set_description("waiting" if stage.episode is None else f"episode {stage.episode}", refresh=False)
        bar.set_postfix_str("paused" if player.paused else f"rate {player.rate:g}", refresh=False)
        bar.refresh()

    def status(self) -> Status:
        player = self._player
        if self._stage is not None and self._stage.failure:
            return DiagnosticStatus.ERROR, self._stage.failure, {}
        if player is None or not player.rows:
            return DiagnosticStatus.OK, "nothing played yet", {}
        figures: dict[str, object] = {"rows_late": player.rows_late, "standstills": player.standstills}
        if player.lateness.spans:
            figures["late_ms_p99"] = f"{player.lateness.milliseconds(0.99):.3f}"
        state = "paused" if player.paused else f"playing at rate {player.rate:g}" if player.playing else "played"
        return DiagnosticStatus.OK, f"{state}, row {player.row} of {player.rows}", figures


def main(args: list[str] | None = None) -> int:
    gc.collect()
    gc.freeze()  # to look through all libraries for garbage, or
    sys.setswitchinterval(0.001)  # to wait 5 ms for another thread to let go, would make rows late
    return run(lambda: Replayer(terminal=True), args)


if __name__ == "__main__":
    sys.exit(main())
