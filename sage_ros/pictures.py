"""Pictures of a session: joints, trust, latency and metabolic state."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sage_ros.core.figures import Figures, milliseconds
from sage_ros.core.recording import Recording
from sage_ros.core.samples import Picture
from sage_ros.core.session import Session
from sage_ros.core.timing import SECOND

MOVING = 0.02  # rad between a joint's least and greatest position for it to count as moving
MOST_JOINTS = 12  # drawn: those that move most
MOST_PICTURES = 8
STATES = {"WAKE": "#8fbf8f", "FOCUS": "#f2c14e", "REST": "#b8c4d6", "DREAM": "#a48fc9", "CRISIS": "#e0665a"}
STATE_LINE, DEMO_LINE, CHUNK_LINE = "#9a9a9a", "#1f77b4", "#d1495b"
# Trusted patches stay as they are, distrusted ones turn red.
TRUST = LinearSegmentedColormap.from_list("trust", [(0.85, 0.0, 0.05, 0.85), (1.0, 0.55, 0.0, 0.5), (1.0, 1.0, 1.0, 0)])


def draw_joints(session: Session, figures: Figures) -> Figure | None:
    """Predicted chunks over demonstrated joints, as GR00T's evaluation draws them; None where no chunk was seen.

    A row per joint that moves, a column per episode.
    """
    recordings = session.drawable()
    if not recordings:
        return None
    names = _moving(recordings)
    width, height = 5.4 * len(recordings) + 0.8, 1.6 * len(names) + 1.8
    figure = Figure(figsize=(width, height))  # placed by hand: an automatic layout of so many axes takes seconds
    figure.subplots_adjust(0.75 / width, 0.9 / height, 1 - 0.1 / width, 1 - 1.0 / height, 0.06, 0.35)
    axes = figure.subplots(len(names), len(recordings), sharex="col", sharey="row", squeeze=False)
    for column, recording in enumerate(recordings):
        errors = recording.score(figures.steps).joints
        for row, name in enumerate(names):
            _joint(axes[row, column], recording, name)
            text = f"{name}, error {errors[name]:.2g} rad²" if name in errors else name
            axes[row, column].set_title(text, fontsize=9, loc="left")
            axes[row, 0].set_ylabel("position (rad)", fontsize=8)
        axes[0, column].set_title(f"{_title(recording, figures)}\n", fontsize=11)
        axes[-1, column].set_xlabel("time since the first row (s)", fontsize=9)
    lines = _legend(axes)
    figure.legend(list(lines.values()), list(lines), loc="lower center", ncols=4, frameon=False, fontsize=10)
    moving = f"the {MOST_JOINTS} joints that move most" if len(names) == MOST_JOINTS else "the joints that move"
    title = f"What the policy predicted and what was demonstrated, {moving}"
    figure.suptitle(title, fontsize=13, y=1 - 0.15 / height, va="top")
    return figure


def _moving(recordings: list[Recording]) -> list[str]:
    """The joints worth drawing, in the chunks' order."""
    spread: dict[str, float] = {}
    for recording in recordings:
        known = [(recording.action_names, recording.actions), (recording.chunk_names, list(recording.chunks.values()))]
        for names, values in known:
            flat = np.concatenate([np.atleast_2d(v) for v in values]) if values else np.empty((0, len(names)))
            for name, width in zip(names, np.ptp(flat, axis=0) if len(flat) else np.zeros(len(names)), strict=True):
                spread[name] = max(spread.get(name, 0.0), float(width))
    commanded = [name for recording in recordings[:1] for name in recording.chunk_names]
    most = sorted(commanded, key=lambda name: -spread[name])[:MOST_JOINTS]
    moving = [name for name in commanded if name in most and spread[name] > MOVING]
    return moving or commanded[:MOST_JOINTS]


def _joint(axes: Axes, recording: Recording, name: str) -> None:
    origin = (recording.action_stamps or recording.state_stamps or list(recording.chunks))[0]
    rows = np.arange(len(recording.actions)) / (recording.fps or recording.rate or 1.0)
    stamps = np.array(recording.action_stamps, dtype=np.int64)

    def seconds(of: list[int]) -> np.ndarray:
        """Stamps as episode time: by the demonstrated rows where there are any, so that a slowed replay fits."""
        at = np.array(of, dtype=np.int64)
        return np.interp(at - origin, stamps - origin, rows) if len(rows) > 1 else (at - origin) / SECOND

    if name in recording.state_names and recording.states:
        values = np.array(recording.states)[:, recording.state_names.index(name)]
        axes.plot(seconds(recording.state_stamps), values, color=STATE_LINE, lw=1.2, label="measured state")
    if name in recording.action_names:
        values = np.array(recording.actions)[:, recording.action_names.index(name)]
        axes.plot(rows, values, color=DEMO_LINE, lw=1.6, label="demonstrated action")
    if name in recording.chunk_names:
        column, last = recording.chunk_names.index(name), rows[-1] + 1e-6 if len(rows) > 1 else np.inf
        stamped = sorted(recording.chunks.items())
        starts = seconds([stamp for stamp, _ in stamped])
        first = [chunk[0, column] for _, chunk in stamped]
        at, levels = [np.empty(0)], [np.empty(0)]  # all chunks as one line, cut by nan: many lines take long to draw
        for start, (_, chunk) in zip(starts, stamped, strict=True):
            when = start + np.arange(len(chunk)) / (recording.fps or recording.rate or 1.0)
            shown = when <= last  # what a chunk says beyond the episode's end has nothing to compare with
            at += [when[shown], np.array([np.nan])]
            levels += [chunk[shown, column], np.array([np.nan])]
        axes.plot(np.concatenate(at), np.concatenate(levels), color=CHUNK_LINE, lw=1.4, label="predicted chunk")
        axes.plot(starts, first, "o", color=CHUNK_LINE, ms=3.5, label="where it was inferred", ls="none")
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8)


def _legend(axes: np.ndarray) -> dict[str, Line2D]:
    """What is drawn anywhere, once per name."""
    found: dict[str, Line2D] = {}
    for line in (line for one in axes.flat for line in one.get_lines()):
        if not str(line.get_label()).startswith("_"):
            found.setdefault(str(line.get_label()), line)
    return found


def _title(recording: Recording, figures: Figures) -> str:
    if recording.episode is None:
        return "live work"
    split = next((s.split for s in figures.episodes if s.episode == recording.episode and s.split), "")
    return f"episode {recording.episode}" + (f", {split}" if split else "")


def draw_loop(session: Session) -> Figure | None:
    """The last trial of the closed loop: what was seen, where the cube was, set points and joints. None without one."""
    trial = session.trials.current
    if trial is None or not trial.moments:
        return None
    pictures = trial.album.pictures[:: max(1, len(trial.album.pictures) // 6)]
    names = sorted(trial.moments[-1].measured)
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    strip, curves = np.ravel(np.array(figure.subfigures(2, 1, height_ratios=(1, 2.4))))
    for axes, picture in zip(np.atleast_1d(strip.subplots(1, max(1, len(pictures)))), pictures, strict=False):
        axes.imshow(picture.image)
        axes.set_axis_off()
        axes.set_title(f"{(picture.at - pictures[0].at) / SECOND:.1f} s", fontsize=9)
    grid = curves.subplots(2, 4, sharex=True).flat
    time = [moment.time for moment in trial.moments]
    for axes, title, values in (
        (grid[0], "height of the cube (cm)", [100 * m.height for m in trial.moments]),
        (grid[1], "cube to plate (cm)", [100 * m.distance for m in trial.moments]),
    ):
        axes.plot(time, values, color="#2a7f3f")
        axes.set_title(title, fontsize=10)
        if trial.placed is not None:
            axes.axvline(trial.placed, color="#2a7f3f", ls=":", lw=1)
    for axes, name in zip(grid[2:], names, strict=False):
        axes.plot(time, [m.measured.get(name, np.nan) for m in trial.moments], color=STATE_LINE)
        axes.plot(time, [m.command.get(name, np.nan) for m in trial.moments], color=CHUNK_LINE, lw=1)
        axes.set_title(f"{name} (rad)", fontsize=10)
    lines = [Line2D([], [], color=CHUNK_LINE, label="set point"), Line2D([], [], color=STATE_LINE, label="measured")]
    curves.legend(handles=lines, title="over time (s)", loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    fate = f"placed after {trial.placed:.1f} s" if trial.placed is not None else "not placed"
    figure.suptitle(f"Closed loop, world seed {trial.seed}: {fate}", fontsize=13)
    return figure


def draw_latency(session: Session, figures: Figures) -> Figure | None:
    """Histogram of image to action; the slowest percent beyond the right edge is counted. None without actions."""
    latency, (_, values) = figures.latency_ms, session.latencies()
    if latency.p50 is None or latency.p99 is None:
        return None
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    low, edge = min(0.0, float(values.min())), max(1.3 * latency.p99, latency.p50 + 1.0)
    axes.hist(values[values <= edge], bins=np.linspace(low, edge, 61).tolist(), color="#7a9cc6")
    for name, value, style in (("p50", latency.p50, "-"), ("p99", latency.p99, "--")):
        axes.axvline(value, color="#333333", ls=style, lw=1.5, label=f"{name}: {milliseconds(value)}")
    beyond = int((values > edge).sum())
    if beyond:
        text = f"{beyond} more up to\n{milliseconds(latency.longest)} →"
        axes.text(0.99, 0.55, text, transform=axes.transAxes, ha="right", fontsize=9)
    axes.set(xlabel=f"from the {latency.since} to the arrival of its action (ms)", ylabel="actions", xlim=(low, edge))
    axes.set_title(f"How long a camera frame takes to become an action ({latency.count} actions)")
    axes.legend(frameon=False)
    return figure


def draw_trust(session: Session) -> Figure | None:
    """Trust maps over their frames, spread over the session. None where no frame has one."""
    known = [p for p in session.album.pictures if p.trust is not None]
    if not known:
        return None
    chosen = [known[i] for i in np.unique(np.linspace(0, len(known) - 1, MOST_PICTURES).round().astype(int))]
    columns = min(4, len(chosen))
    lines = -(-len(chosen) // columns)
    figure = Figure(figsize=(2.8 * columns + 1.4, 2.95 * lines + 0.7), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for one in axes.flat:
        one.set_axis_off()
    for one, picture in zip(axes.flat, chosen, strict=False):
        _overlay(one, picture, (picture.at - session.started) / SECOND)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), TRUST), ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("trust: 1 as predicted (frame shows through), 0 not believed", fontsize=9)
    figure.suptitle("How far the robot trusted each part of the picture", fontsize=13)
    return figure


def _overlay(axes: Axes, picture: Picture, at: float) -> None:
    assert picture.trust is not None
    height, width = picture.image.shape[:2]
    extent = (0, width, height, 0)
    axes.imshow(picture.image, extent=extent)
    axes.imshow(picture.trust, cmap=TRUST, vmin=0, vmax=1, extent=extent, interpolation="nearest")
    axes.set_title(f"{at:.1f} s: mean {picture.trust.mean():.2f}, least {picture.trust.min():.2f}", fontsize=9)


def draw_timeline(session: Session, figures: Figures) -> Figure | None:
    """Metabolic states as bands, energy and confidence as lines over the session. None without either."""
    if not (figures.metabolism or session.energy.values or session.confidence.values):
        return None
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots()
    for stay in figures.metabolism:
        axes.axvspan(stay.at, stay.at + stay.seconds, color=STATES.get(stay.state, "#dddddd"), alpha=0.5, lw=0)
    lines = []
    for trace, name, color in ((session.energy, "energy (share of a full store)", "#222222"),
                               (session.confidence, "confidence (relevance-weighted trust)", "#1f5fa8")):
        if trace.values:
            at = (np.array(trace.times) - session.started) / SECOND
            lines += axes.plot(at, trace.values, color=color, lw=1.5, label=name)
    for mark, name in session.marks:
        began = (mark - session.started) / SECOND
        axes.axvline(began, color="#666666", lw=0.8, ls=":")
        if len(session.marks) <= 12:
            axes.text(began, 1.04, f" {name}", fontsize=8, color="#444444", va="bottom")
    seconds = {stay.state: figures.state_seconds[stay.state] for stay in figures.metabolism}
    bands = [Patch(color=STATES.get(s, "#dddddd"), alpha=0.5, label=f"{s} {n:.1f} s") for s, n in seconds.items()]
    axes.set(xlabel="time since the watch began (s)", ylabel="share", ylim=(0, 1.15))
    axes.set_xlim(0, max(figures.seconds, 1e-3))
    axes.set_yticks(np.linspace(0, 1, 6))
    figure.legend(handles=[*bands, *lines], loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    axes.set_title("Metabolic state: how much the robot looked, acted and had left")
    return figure
