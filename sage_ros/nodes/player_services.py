"""rosbag2's player services: of its own types where ``rosbag2_interfaces`` is installed, else std_srvs/Trigger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from rclpy.task import Future
from std_srvs.srv import Trigger

from sage_ros.nodes.player import Player, Span

try:
    from rosbag2_interfaces import srv as rosbag2
except ImportError:  # it is no part of the PyPI wheels
    rosbag2 = None

Answer = tuple[bool, str]


class Control(Protocol):
    """What the services need of their node: ``serve``, and the requests that a Trigger cannot carry."""

    def serve(self, kind: type, name: str, answer: Callable[[Any, Any], Any]) -> None: ...
    def set_rate(self, rate: float) -> Answer: ...
    def span(self) -> Span: ...
    def seek_time(self) -> float: ...
    def burst_rows(self) -> int: ...


def offer(node: Control, player: Player) -> None:
    """Serve ~/pause, resume, toggle_paused, is_paused, get_rate, set_rate, play, play_next, burst, seek and stop."""
    if rosbag2 is not None:
        _offer_rosbag2(node, player)
    else:
        _offer_triggers(node, player)


def play(player: Player, span: Span) -> Answer:
    return (True, "playing") if player.play(span) else (False, "it plays already: stop it first")


def seek(player: Player, to: float) -> Answer:
    try:
        player.seek(to)
    except ValueError as problem:
        return False, str(problem)
    return True, f"at {max(to, 0.0):g} s"


async def burst(player: Player, rows: int) -> int:
    """Answers once the rows are out; other services are served meanwhile."""
    done: Future = Future()
    player.burst(rows, done.set_result)
    return int(await done)


def _offer_triggers(node: Control, player: Player) -> None:
    def trigger(name: str, act: Callable[[], Answer | None]) -> None:
        def answer(_: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            response.success, response.message = act() or (True, _state(player))
            return response

        node.serve(Trigger, f"~/{name}", answer)

    def bursting(rows: Callable[[], int]) -> Callable[[Any, Any], Any]:
        async def answer(_: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            played = await burst(player, rows())
            response.success = played > 0
            response.message = f"{played} rows" if played else "no row: only while paused, and before the end"
            return response

        return answer

    trigger("pause", player.pause)
    trigger("resume", player.resume)
    trigger("toggle_paused", player.toggle_paused)
    trigger("stop", player.stop)
    trigger("is_paused", lambda: (player.paused, _state(player)))
    trigger("get_rate", lambda: (True, f"{player.rate:g}"))
    trigger("set_rate", lambda: (True, f"rate {player.rate:g}: set the parameter 'rate' to change it"))
    trigger("play", lambda: play(player, node.span()))
    trigger("seek", lambda: seek(player, node.seek_time()))
    node.serve(Trigger, "~/play_next", bursting(lambda: 1))
    node.serve(Trigger, "~/burst", bursting(node.burst_rows))


def _offer_rosbag2(node: Control, player: Player) -> None:
    def serve(kind: Any, name: str, act: Callable[[Any], Any], field: str = "") -> None:
        def answer(request: Any, response: Any) -> Any:
            value = act(request)
            if field:
                setattr(response, field, value)
            return response

        node.serve(kind, f"~/{name}", answer)

    async def on_play_next(_: Any, response: Any) -> Any:
        response.success = await burst(player, 1) == 1
        return response

    async def on_burst(request: Any, response: Any) -> Any:
        response.actually_burst = await burst(player, request.num_messages)
        return response

    serve(rosbag2.Pause, "pause", lambda _: player.pause())
    serve(rosbag2.Resume, "resume", lambda _: player.resume())
    serve(rosbag2.TogglePaused, "toggle_paused", lambda _: player.toggle_paused())
    serve(rosbag2.Stop, "stop", lambda _: player.stop())
    serve(rosbag2.IsPaused, "is_paused", lambda _: player.paused, "paused")
    serve(rosbag2.GetRate, "get_rate", lambda _: player.rate, "rate")
    serve(rosbag2.SetRate, "set_rate", lambda request: node.set_rate(request.rate)[0], "success")
    serve(rosbag2.Play, "play", lambda request: play(player, _span(request))[0], "success")
    serve(rosbag2.Seek, "seek", lambda request: seek(player, _seconds(request.time))[0], "success")
    node.serve(rosbag2.PlayNext, "~/play_next", on_play_next)
    node.serve(rosbag2.Burst, "~/burst", on_burst)


def _span(request: Any) -> Span:
    return Span(
        start_offset=_seconds(request.start_offset),
        playback_duration=_seconds(request.playback_duration),
        playback_until=_seconds(request.playback_until_timestamp),
    )


def _seconds(stamp: Any) -> float:
    return float(stamp.sec + 1e-9 * stamp.nanosec)


def _state(player: Player) -> str:
    if not player.playing:
        return "nothing is played" + (", paused" if player.paused else "")
    return "paused" if player.paused else f"playing at rate {player.rate:g}"
