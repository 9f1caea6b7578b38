"""How often messages of a topic come and how old their stamps are, told as ROS's diagnostic_updater tells it."""

from __future__ import annotations

from dataclasses import dataclass, field

from sage_ros.core.timing import SECOND

EARLIEST, LATEST = -0.1, 1.0  # s: how old a stamp may be
NOTHING = "No events recorded."


@dataclass
class Heard:
    """One topic. The keys and messages are those of diagnostic_updater's TopicDiagnostic (FrequencyStatus and
    TimeStampStatus), so that its viewers and analyzers read them.
    """

    count: int = 0
    _delays: list[float] = field(default_factory=list)  # earliest and latest since the last report (s)
    _since: tuple[float, int] = (0.0, 0)  # when the last report was (s, steady), and the count then

    def tick(self, stamp: int, now: int) -> None:
        """A message stamped ``stamp`` came at ``now`` (ns of the same clock)."""
        self.count += 1
        delay = (now - stamp) / SECOND
        self._delays = [min([delay, *self._delays]), max([delay, *self._delays])]

    def report(self, steady: float, wanted: bool = True) -> tuple[bool, str, dict[str, str]]:
        """Whether all is well, in words, and figures, for what came since the last report; ``steady`` in s.

        A topic that is not ``wanted`` at the moment may be silent.
        """
        since, before = self._since
        window, events = max(steady - since, 1e-9), self.count - before
        delays, self._delays, self._since = self._delays, [], (steady, self.count)
        wrong = [] if events or not wanted else [NOTHING]
        wrong += ["Timestamps too far in future seen."] if delays and delays[0] < EARLIEST else []
        wrong += ["Timestamps too far in past seen."] if delays and delays[1] > LATEST else []
        values = {
            "Events in window": f"{events}", "Events since startup": f"{self.count}",
            "Duration of window (s)": f"{window:.3f}", "Actual frequency (Hz)": f"{events / window:.2f}",
        }  # fmt: skip
        if delays:
            values |= {"Earliest timestamp delay": f"{delays[0]:.4f}", "Latest timestamp delay": f"{delays[1]:.4f}"}
        fine = f"{events / window:.1f} Hz" if wanted or events else "not listened to"
        return not wrong, " ".join(wrong) or fine, values
