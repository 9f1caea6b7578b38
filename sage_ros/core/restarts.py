"""How often something that fell may be started again."""

from __future__ import annotations

from collections import defaultdict


class RestartLimit:
    """At most ``count`` restarts of each name within ``window`` s: what falls again and again needs a person."""

    def __init__(self, count: int = 5, window: float = 60.0) -> None:
        self.count, self.window = count, window
        self._times: dict[str, list[float]] = defaultdict(list)

    def allows(self, name: str, now: float) -> bool:
        """Whether ``name`` may be restarted at ``now`` (s, never less than before); if so, that is taken note of."""
        recent = [time for time in self._times[name] if now - time < self.window]
        allowed = len(recent) < self.count
        self._times[name] = [*recent, now] if allowed else recent
        return allowed
