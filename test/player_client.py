"""Asks a replayer as rosbag2's tools do where its interfaces are installed, else by std_srvs and parameters."""

from __future__ import annotations

from typing import Any

from graph import Graph
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from sage_ros.nodes.player_services import rosbag2


class PlayerClient:
    """The player's services with plain arguments and answers, the same whichever types carry them."""

    def __init__(self, graph: Graph, name: str = "replayer") -> None:
        self._graph, self._name = graph, name
        self._node = next(node for node in graph.nodes if node.get_name() == name)

    def pause(self) -> None:
        self._call("pause", "Pause")

    def resume(self) -> None:
        self._call("resume", "Resume")

    def toggle_paused(self) -> None:
        self._call("toggle_paused", "TogglePaused")

    def stop(self) -> None:
        self._call("stop", "Stop")

    def is_paused(self) -> bool:
        answer = self._call("is_paused", "IsPaused")
        return bool(answer.paused if rosbag2 else answer.success)

    def rate(self) -> float:
        answer = self._call("get_rate", "GetRate")
        return float(answer.rate if rosbag2 else answer.message)

    def set_rate(self, rate: float) -> bool:
        if rosbag2:
            return bool(self._call("set_rate", "SetRate", rate=rate).success)
        done = self._set("rate", rate)
        assert self._call("set_rate", "SetRate").success
        return done

    def play_next(self) -> bool:
        return bool(self._call("play_next", "PlayNext").success)

    def burst(self, rows: int) -> int:
        if rosbag2:
            return int(self._call("burst", "Burst", num_messages=rows).actually_burst)
        self._set("burst_rows", rows)
        answer = self._call("burst", "Burst")
        return int(answer.message.split()[0]) if answer.success else 0

    def seek(self, time: float) -> bool:
        if rosbag2:
            answer = self._call("seek", "Seek", time=_stamp(time))
        else:
            self._set("seek_time", time)
            answer = self._call("seek", "Seek")
        return bool(answer.success)

    def play(self, start_offset: float = 0.0, playback_duration: float = -1.0, playback_until: float = -1.0) -> bool:
        if rosbag2:
            from builtin_interfaces.msg import Duration

            duration = Duration(sec=int(playback_duration // 1), nanosec=round(playback_duration % 1 * 1e9))
            until = _stamp(playback_until)
            about = {"start_offset": _stamp(start_offset), "playback_duration": duration}
            return bool(self._call("play", "Play", **about, playback_until_timestamp=until).success)
        self._set("start_offset", start_offset)
        self._set("playback_duration", playback_duration)
        self._set("playback_until", playback_until)
        return bool(self._call("play", "Play").success)

    def _set(self, name: str, value: Any) -> bool:
        return self._node.set_parameters([Parameter(name, value=value)])[0].successful

    def _call(self, name: str, kind: str, **request: Any) -> Any:
        service = getattr(rosbag2, kind) if rosbag2 else Trigger
        return self._graph.probe.call(service, f"{self._name}/{name}", service.Request(**request))


def _stamp(seconds: float) -> Any:
    from builtin_interfaces.msg import Time

    return Time(sec=int(seconds // 1), nanosec=round(seconds % 1 * 1e9))
