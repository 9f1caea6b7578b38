"""The player's services in rosbag2's own types, which PyPI has not: stand-ins with their fields, no middleware.

Where ``rosbag2_interfaces`` is installed, test_replayer asks through the real ones.
"""

from __future__ import annotations

import inspect
import time
from types import SimpleNamespace

import pytest
from builtin_interfaces.msg import Duration, Time

from sage_ros.episodes.playback import Playlist
from sage_ros.nodes import player_services
from sage_ros.nodes.player import Player, Span

# rosbag2_interfaces/srv: the fields of request and response
KINDS = {
    "Pause": ("", ""), "Resume": ("", ""), "TogglePaused": ("", ""), "Stop": ("", ""), "IsPaused": ("", "paused"),
    "GetRate": ("", "rate"), "SetRate": ("rate", "success"), "PlayNext": ("", "success"),
    "Burst": ("num_messages", "actually_burst"), "Seek": ("time", "success"),
    "Play": ("start_offset playback_duration playback_until_timestamp", "success"),
}  # fmt: skip
ROWS = 40


class Score:
    """A stage of one episode of 40 rows at 100 Hz, which keeps the rows that were played."""

    fps = 100.0

    def __init__(self):
        self.rows, self.ends = [], []

    def playlist(self, lap):
        return Playlist([0], [ROWS])

    def ready(self): ...

    def enter(self, playlist, place, row):
        return True

    def prepare(self, place, row):
        return row

    def publish(self, prepared, time):
        self.rows.append(prepared)

    def leave(self): ...

    def close(self, how, error=""):
        self.ends.append(how)


class Control:
    """What services need of their node; ``ask`` calls them as a client would."""

    def __init__(self, player):
        self._player, self._services = player, {}

    def serve(self, kind, name, answer):
        self._services[name] = (kind, answer)

    def set_rate(self, rate):
        if not rate > 0:
            return False, "rate"
        self._player.set_rate(rate)
        return True, ""

    def ask(self, name, **request):
        kind, answer = self._services[f"~/{name}"]
        fields, answers = KINDS[kind]
        assert sorted(request) == sorted(fields.split())
        response = SimpleNamespace(**dict.fromkeys(answers.split()))
        given = answer(SimpleNamespace(**request), response)
        if inspect.iscoroutine(given):
            given = finish(given)
        assert given is response and sorted(vars(response)) == sorted(answers.split()), "no other field is there"
        return getattr(response, answers) if answers else None


def finish(coroutine):
    """Do what an executor does with a service that waits."""
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        time.sleep(0.001)
    raise AssertionError("the service did not answer")


@pytest.fixture
def bag(monkeypatch):
    """Player, its stage, and the client of its services."""
    monkeypatch.setattr(player_services, "rosbag2", SimpleNamespace(**{kind: kind for kind in KINDS}))
    stage = Score()
    player = Player(stage, paused=True)
    control = Control(player)
    player_services.offer(control, player)
    assert player.play(Span())
    deadline = time.monotonic() + 10.0
    while not player.rows and time.monotonic() < deadline:
        time.sleep(0.001)
    yield player, stage, control
    player.stop()


def test_they_pause_step_burst_and_tell(bag):
    _, stage, control = bag
    assert control.ask("is_paused") is True and control.ask("get_rate") == 1.0
    assert control.ask("play_next") is True
    assert control.ask("burst", num_messages=3) == 3
    assert stage.rows == [0, 1, 2, 3]
    control.ask("toggle_paused")
    assert control.ask("is_paused") is False
    assert control.ask("play_next") is False and control.ask("burst", num_messages=1) == 0, "only while paused"
    control.ask("pause")
    control.ask("pause")
    assert control.ask("is_paused") is True
    control.ask("resume")
    assert control.ask("is_paused") is False


def test_they_seek_and_set_the_rate_within_bounds(bag):
    _, stage, control = bag
    assert control.ask("seek", time=Time(nanosec=250_000_000)) is True
    assert control.ask("play_next") is True and stage.rows == [25]
    assert control.ask("seek", time=Time(sec=1)) is False, "after the end"
    assert control.ask("seek", time=Time(sec=-1)) is True, "before the start is the start"
    assert control.ask("burst", num_messages=0) == ROWS, "0 is all"
    assert control.ask("set_rate", rate=0.0) is False and control.ask("set_rate", rate=-1.0) is False
    assert control.ask("set_rate", rate=2.5) is True and control.ask("get_rate") == 2.5


def test_they_play_a_part_once_what_was_played_is_stopped(bag):
    player, stage, control = bag
    span = {"start_offset": Time(nanosec=100_000_000), "playback_duration": Duration(nanosec=50_000_000),
            "playback_until_timestamp": Time(sec=-1)}  # fmt: skip
    assert control.ask("play", **span) is False, "it plays already"
    control.ask("stop")
    assert stage.ends == ["stopped"]
    control.ask("resume")
    assert control.ask("play", **span) is True
    deadline = time.monotonic() + 10.0
    while player.playing and time.monotonic() < deadline:
        time.sleep(0.001)
    player.stop()
    assert stage.rows == [10, 11, 12, 13, 14, 15] and stage.ends == ["stopped", "finished"]
