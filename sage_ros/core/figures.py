"""The figures of a session, and how they read as text."""

from __future__ import annotations

from dataclasses import dataclass, field

from sage_ros.core.trials import TrialResult

POLICIES = {"policy": "policy", "hold_state": "hold state", "last_action": "last action"}
METRIC = (
    "mean squared error of the commanded joints in raw units, GR00T's open-loop metric:\n"
    "a chunk every horizon rows, row j of it against the action demonstrated j rows later"
)
# What the nodes count, as far as it tells where frames went.
COUNTS = (
    "rows_out", "frames_in", "frames_out", "actions_out", "skipped_by_rate", "idle", "no_joints", "refused",
    "out_of_order", "starved", "set_points_out",
)


@dataclass(frozen=True)
class Score:
    """GR00T's open-loop metric on one episode, beside two trivial policies on the very same rows; None: no figure."""

    episode: int | None
    task: str
    rows: int  # as announced; 0: unknown
    rows_seen: int
    chunks: int  # that were compared,
    chunks_due: int  # of one per horizon
    policy: float | None = None  # mean squared error over rows and joints, raw units
    hold_state: float | None = None
    last_action: float | None = None
    joints: dict[str, float] = field(default_factory=dict)  # the policy's, by joint
    note: str = ""
    split: str = ""  # whether the student was trained on the episode

    @property
    def title(self) -> str:
        return "live work" if self.episode is None else f"episode {self.episode}"

    @property
    def errors(self) -> list[float | None]:
        """In the order of ``POLICIES``."""
        return [self.policy, self.hold_state, self.last_action]


@dataclass(frozen=True)
class Stay:
    """A time in one metabolic state, from ``at`` seconds after the session's start."""

    at: float
    state: str
    reason: str
    seconds: float


@dataclass(frozen=True)
class Latency:
    """Image to action in ms, over ``count`` actions."""

    since: str  # what it is measured from
    count: int
    p50: float | None = None
    p99: float | None = None
    longest: float | None = None


@dataclass(frozen=True)
class Figures:
    """Everything that can be said of a session, ready for JSON."""

    started: int
    seconds: float
    frames_in: int
    frames_working: int  # while a task was active
    frames_missed: int  # answered by the pipeline, but not seen by the observer
    actions_out: int
    dropped: int  # working frames without an action
    in_flight: int  # too fresh at the end to tell
    latency_ms: Latency
    own_ms: dict[str, float]  # median of each node's own computing, for the nodes between frame and action
    ros_adds_ms: float | None  # median latency minus the sum of these
    steps: int  # rows of an episode that the action error is over; 0: all
    episodes: list[Score]
    mean_error: dict[str, float | None]  # policy, hold_state, last_action: over the episodes that have a figure
    mean_by_split: dict[str, dict[str, float | None]]  # the same over those held out, those trained on, ...
    metabolism: list[Stay]
    state_seconds: dict[str, float]
    nodes: dict[str, dict[str, float | str]]
    trials: list[TrialResult] = field(default_factory=list)  # closed loop, in a simulated world
    notes: list[str] = field(default_factory=list)

    @property
    def means(self) -> list[tuple[str, list[float | None]]]:
        """Rows of means, named, in the order of ``POLICIES``: by split where it is known, over all where it is not."""
        splits = {f"mean, {split}": errors for split, errors in self.mean_by_split.items()}
        return [(name, [errors[p] for p in POLICIES]) for name, errors in (splits or {"mean": self.mean_error}).items()]


def format_table(figures: Figures, where: str = "") -> str:
    """The figures as a table for a terminal."""
    blocks = [_stream(figures, where), _trials(figures), _error(figures), _metabolism(figures), _nodes(figures)]
    if figures.notes:
        blocks.append(["notes", *(f"  {note}" for note in figures.notes)])
    return "\n\n".join("\n".join(block) for block in blocks if block)


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _stream(f: Figures, where: str) -> list[str]:
    rows = [
        ("frames in", f.frames_in, ""),
        ("actions out", f.actions_out, ""),
        ("dropped", f.dropped, f"of {f.frames_working} frames that came while a task was active: no action followed"),
    ]
    if f.in_flight:
        rows.append(("unanswered yet", f.in_flight, "too fresh at the end to tell"))
    lines = [f"session of {f.seconds:.1f} s{where}", ""] + [f"{n:<16}{v:>8}  {text}".rstrip() for n, v, text in rows]
    latency = f.latency_ms
    if latency.count:
        lines.append(
            f"{'image to action':<16}p50 {milliseconds(latency.p50)}, p99 {milliseconds(latency.p99)}, "
            f"longest {milliseconds(latency.longest)}  (from the {latency.since})"
        )
    if f.own_ms:
        parts = " + ".join(f"{name} {ms:.1f}" for name, ms in f.own_ms.items())
        lines.append(f"{'  own computing':<16}{milliseconds(sum(f.own_ms.values()))} = {parts}  (medians)")
    if f.ros_adds_ms is not None:
        lines.append(f"{'  ROS adds':<16}{milliseconds(f.ros_adds_ms)}  (median latency minus own computing)")
    return lines


def _trials(f: Figures) -> list[str]:
    if not f.trials:
        return []
    done = [trial for trial in f.trials if trial.placed is not None]
    lines = [f"closed loop, judged by physics: {len(done)} of {len(f.trials)} picked and placed", ""]
    for trial in f.trials[-10:]:
        done_at = trial.placed
        fate = f"not placed in {trial.seconds:.1f} s" if done_at is None else f"placed after {done_at:.1f} s"
        lines.append(f"  world seed {trial.seed}: {fate}, lifted to {100 * trial.highest:.1f} cm")
    return lines


def _error(f: Figures) -> list[str]:
    scores = [s for s in f.episodes if s.policy is not None]
    if not scores:
        return []
    span = f"first {f.steps} rows" if f.steps else "whole episodes"
    lines = [f"action error, {span}: {METRIC}", ""]
    lines.append(f"{'':<32}{'rows':>6}  " + "".join(f"{title:<20}" for title in POLICIES.values()).rstrip())
    for s in scores:
        name = s.title + (f" ({s.split})" if s.split else "")
        lines.append(f"{name:<32}{s.rows_seen:>6}  " + _cells(s.errors))
    lines += [f"{name:<32}{'':>6}  " + _cells(errors) for name, errors in f.means]
    return lines


def _cells(errors: list[float | None]) -> str:
    """Errors side by side, each but the first with how many times the first it is."""
    first = errors[0]
    cells = []
    for position, error in enumerate(errors):
        times = f" ({error / first:.1f}x)" if position and error is not None and first else ""
        cells.append(f"{'-' if error is None else f'{error:.6f}'}{times}")
    return "".join(f"{cell:<20}" for cell in cells).rstrip()


def _metabolism(f: Figures) -> list[str]:
    if not f.metabolism:
        return []
    total = sum(f.state_seconds.values()) or 1.0
    shares = ", ".join(f"{s} {seconds:.1f} s ({seconds / total:.0%})" for s, seconds in f.state_seconds.items())
    lines = [f"metabolic state: {shares}", ""]
    shown = f.metabolism if len(f.metabolism) <= 20 else f.metabolism[:10] + f.metabolism[-10:]
    for position, stay in enumerate(shown):
        if len(shown) < len(f.metabolism) and position == 10:
            lines.append(f"  ... {len(f.metabolism) - 20} more")
        lines.append(f"  {stay.at:8.1f} s  {stay.state:<7}{stay.seconds:8.1f} s  {stay.reason}")
    return lines


def _nodes(f: Figures) -> list[str]:
    if not f.nodes:
        return []
    lines = [f"{'node':<28}{'own ms p50':>12}{'p99':>8}{'busy':>8}  counts"]
    for name, values in sorted(f.nodes.items()):
        p50, p99, busy = (values.get(key) for key in ("own_ms_p50", "own_ms_p99", "busy_share"))
        counts = ", ".join(f"{k} {v:.0f}" for k, v in values.items() if k in COUNTS and isinstance(v, float))
        cells = [f"{v:.2f}" if isinstance(v, float) else "-" for v in (p50, p99)]
        share = f"{busy:.0%}" if isinstance(busy, float) else "-"
        lines.append(f"{name:<28}{cells[0]:>12}{cells[1]:>8}{share:>8}  {counts}".rstrip())
    return lines
