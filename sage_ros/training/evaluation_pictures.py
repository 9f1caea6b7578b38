"""Pictures of an evaluation: trajectories as GR00T's own evaluation draws them, grippers over time, errors."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from sage_ros.pictures import CHUNK_LINE, DEMO_LINE, STATE_LINE
from sage_ros.training.measures import LEVELS, Gripper, interval, switches
from sage_ros.training.openloop import Demonstration
from sage_ros.training.scores import Evaluation

MOST_JOINTS = 16  # drawn: those that move most
MOST_EPISODES = 8
COLUMNS = 3
INK, OTHER = "#333333", "#8a94a3"


def drawn_joints(evaluation: Evaluation) -> list[int]:
    """Action columns worth drawing: of the first subset, those that are commanded to move, at most MOST_JOINTS."""
    columns = next(iter(evaluation.subsets.values()))
    spread = np.max([np.ptp(d.action[:, columns], axis=0) for d in evaluation.demonstrations], axis=0)
    order = np.argsort(-spread, kind="stable")[:MOST_JOINTS]
    return sorted(int(columns[i]) for i in order if spread[i] > 0) or [int(columns[0])]


def drawn_episodes(evaluation: Evaluation) -> list[int]:
    """Places of the episodes worth drawing: all, or MOST_EPISODES from the least to the greatest error."""
    errors = evaluation.errors(evaluation.judged, next(iter(evaluation.subsets)), None).mean(axis=0)
    chosen = np.unique(np.linspace(0, len(errors) - 1, min(MOST_EPISODES, len(errors))).round().astype(int))
    return sorted(int(place) for place in np.argsort(errors, kind="stable")[chosen])


def draw_trajectory(evaluation: Evaluation, place: int) -> Figure:
    """The judged policy's first seed on the ``place``-th episode: one subplot per joint."""
    demonstration, columns = evaluation.demonstrations[place], drawn_joints(evaluation)
    seed, row = next(iter(evaluation.predictions[evaluation.judged].items()))
    prediction = row[place]
    lines = -(-len(columns) // COLUMNS)
    height = 1.75 * lines + 1.5
    figure = Figure(figsize=(13, height))
    figure.subplots_adjust(0.045, 0.85 / height, 0.99, 1 - 0.85 / height, 0.13, 0.32)
    axes = figure.subplots(lines, COLUMNS, sharex=True, squeeze=False)
    time = np.arange(prediction.rows) / demonstration.rate
    for one, column in zip(axes.flat, columns, strict=False):
        name = demonstration.action_joints.names[column]
        if name in demonstration.state_joints.names:
            state = demonstration.state[: prediction.rows, demonstration.state_joints.names.index(name)]
            one.plot(time, state, color=STATE_LINE, lw=1.2)
        one.plot(time, demonstration.action[: prediction.rows, column], color=DEMO_LINE, lw=1.6)
        foretold, deviations = prediction.positions[:, column], prediction.deviations
        if deviations is not None:
            wide = interval(deviations[:, column], LEVELS[-1])
            one.fill_between(time, foretold - wide, foretold + wide, color=CHUNK_LINE, alpha=0.18, lw=0)
        one.plot(time, foretold, color=CHUNK_LINE, lw=1.2)
        asked = np.arange(0, prediction.rows, prediction.every)
        one.plot(asked / demonstration.rate, foretold[asked], "o", color=CHUNK_LINE, ms=3)
        error = float(np.sqrt(np.mean((foretold - demonstration.action[: prediction.rows, column]) ** 2)))
        one.set_title(f"{name}, RMSE {error:.3f} rad", fontsize=9, loc="left", pad=3)
        one.grid(alpha=0.25)
        one.tick_params(labelsize=8)
        one.margins(x=0.01)
    for one in axes.flat[len(columns) :]:
        one.set_axis_off()
    for position, one in enumerate(axes.flat[: len(columns)]):
        if position + COLUMNS >= len(columns):
            one.set_xlabel("time (s)", fontsize=9)
            one.tick_params(labelbottom=True)
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=STATE_LINE, lw=1.2, label="measured state"),
        Line2D([], [], color=DEMO_LINE, lw=1.6, label="demonstrated action"),
        Line2D([], [], color=CHUNK_LINE, lw=1.2, label="predicted action"),
        Line2D([], [], color=CHUNK_LINE, marker="o", ls="none", ms=4, label="where a chunk was asked for"),
    ]
    if prediction.deviation is not None:
        handles.append(Patch(color=CHUNK_LINE, alpha=0.18, label=f"its {LEVELS[-1]:.0%} interval"))
    figure.legend(handles=handles, loc="lower center", ncols=5, frameon=False, fontsize=9)
    trained = f", seed {seed}" if len(evaluation.predictions[evaluation.judged]) > 1 else ""
    head = f"Episode {demonstration.index}: {evaluation.judged}{trained}, positions in rad"
    figure.suptitle(head, fontsize=12, x=0.045, ha="left", y=1 - 0.14 / height, va="top")
    figure.text(0.045, 1 - 0.42 / height, f"“{demonstration.task}”", fontsize=9, color="#555555", va="top")
    return figure


def draw_grippers(evaluation: Evaluation, rivals: list[str]) -> Figure | None:
    """On and off over time: demonstrated, and as each seed and rival would have it. None without a gripper."""
    grippers = evaluation.inside(next(iter(evaluation.subsets)))
    if not grippers:
        return None
    judged = evaluation.predictions[evaluation.judged]
    names = [(evaluation.judged, seed) for seed in judged] + [(name, None) for name in rivals]
    panels = [(gripper, place) for gripper in grippers for place in drawn_episodes(evaluation)]
    tall = 0.23 * (len(names) + 1) + 0.62
    height = tall * len(panels) + 1.0
    figure = Figure(figsize=(13, height), layout="constrained")
    axes = np.ravel(np.array(figure.subplots(len(panels), 1, sharex=True)))
    axes[0].set_xlim(0, max(len(d) / d.rate for d in evaluation.demonstrations))
    for one, (gripper, place) in zip(axes, panels, strict=True):
        demonstration = evaluation.demonstrations[place]
        rows = [("demonstrated", gripper.bits(demonstration.action), DEMO_LINE)]
        for name, seed in names:
            policy = evaluation.predictions[name]
            prediction = (policy[seed] if seed is not None else next(iter(policy.values())))[place]
            label = f"{name}, seed {seed}" if seed is not None and len(judged) > 1 else name
            color = CHUNK_LINE if name == evaluation.judged else OTHER
            rows.append((label, gripper.bits(prediction.positions), color))
        _bands(one, rows, demonstration, gripper)
    axes[-1].set_xlabel("time (s)", fontsize=9)
    figure.suptitle("Gripper: filled where on (mostly: closed); dotted lines at the demonstrated switches", fontsize=12)
    return figure


def _bands(
    axes: Axes, rows: list[tuple[str, np.ndarray, str]], demonstration: Demonstration, gripper: Gripper
) -> None:
    for level, (_, bits, color) in enumerate(rows):
        edges = np.flatnonzero(np.diff(np.concatenate(([False], bits, [False])).astype(int))).reshape(-1, 2)
        spans = [(a / demonstration.rate, (b - a) / demonstration.rate) for a, b in edges]
        axes.broken_barh(spans, (-level - 0.36, 0.72), color=color, lw=0)
    for row in np.concatenate([switches(rows[0][1], rising) for rising in (True, False)]):
        axes.axvline(row / demonstration.rate, color=INK, lw=0.7, ls=":")
    axes.set_yticks([-level for level in range(len(rows))], [name for name, _, _ in rows], fontsize=8)
    axes.axvline(len(demonstration) / demonstration.rate, color=INK, lw=1.2)  # its end
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(f"episode {demonstration.index}, {gripper.name}", fontsize=9, loc="left", pad=3)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def draw_errors(evaluation: Evaluation) -> Figure:
    """GR00T's metric of every policy, a panel per subset and length: a dot per episode, a bar at their mean."""
    panels = [(subset, steps) for steps in evaluation.lengths for subset in evaluation.subsets]
    names = list(evaluation.predictions)
    columns = min(4, len(evaluation.subsets))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(13, lines * (0.24 * len(names) + 0.75) + 0.6), layout="constrained")
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for one in axes.flat[len(panels) :]:
        one.set_axis_off()
    for one, (subset, steps) in zip(axes.flat, panels, strict=False):
        for level, name in enumerate(names):
            errors = evaluation.errors(name, subset, steps).mean(axis=0)
            color = CHUNK_LINE if name == evaluation.judged else OTHER
            one.plot(errors, np.full(len(errors), -level), "o", color=color, ms=3.5, alpha=0.55, mew=0)
            one.plot(errors.mean(), -level, "|", color=color, ms=13, mew=2.4)
        one.axvline(float(evaluation.errors(names[0], subset, steps).mean()), color=CHUNK_LINE, lw=0.7, ls=":")
        positive = [line for line in one.get_lines() if np.all(np.asarray(line.get_xdata(), dtype=float) > 0)]
        if len(positive) == len(one.get_lines()):
            one.set_xscale("log")
            one.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            one.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            one.xaxis.set_minor_formatter(NullFormatter())
        one.set_title(f"{subset}, {evaluation.length(steps)}", fontsize=9, loc="left")
        one.set_yticks([-level for level in range(len(names))], names, fontsize=8)
        one.tick_params(axis="x", labelsize=7)
        one.grid(axis="x", alpha=0.25)
        one.set_ylim(-len(names) + 0.4, 0.6)
    figure.suptitle("Mean squared error, raw units: a dot per episode, a bar at the mean (left is better)", fontsize=12)
    return figure
