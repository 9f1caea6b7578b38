"""An evaluation as a page that anybody can open: claims, tables and pictures."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

from sage_ros.report import STYLE
from sage_ros.training.evaluation_pictures import (
    MOST_EPISODES,
    draw_errors,
    draw_grippers,
    draw_trajectory,
    drawn_episodes,
)
from sage_ros.training.scores import Evaluation, to_json

PAGE, FIGURES = "evaluation.html", "evaluation.json"
RIVALS = 3  # drawn beside the judged policy in the timeline of the gripper
YES, NO = "#2a7f3f", "#a33d32"


def write_report(folder: Path, evaluation: Evaluation) -> Path:
    """Write evaluation.json, PNG pictures and evaluation.html into ``folder`` (made where needed); returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = to_json(evaluation)
    (folder / FIGURES).write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", "utf-8")
    for old in folder.glob("evaluation_*.png"):  # of an earlier evaluation
        old.unlink()
    drawn = {"errors": draw_errors(evaluation), "grippers": draw_grippers(evaluation, _best(evaluation, figures))}
    for place in drawn_episodes(evaluation):
        drawn[f"episode_{evaluation.demonstrations[place].index:06d}"] = draw_trajectory(evaluation, place)
    pictures = {}
    for name, picture in drawn.items():
        if picture is not None:
            pictures[name] = folder / f"evaluation_{name}.png"
            picture.savefig(pictures[name], dpi=100)
    page = folder / PAGE
    page.write_text(_page(evaluation, figures, pictures), "utf-8")
    return page


def _best(evaluation: Evaluation, figures: dict[str, Any]) -> list[str]:
    subset, length = next(iter(evaluation.subsets)), evaluation.length(evaluation.lengths[-1])
    rows = figures["scores"][subset][length]
    others = [name for name in rows if not name.startswith(evaluation.judged)]
    return sorted(others, key=lambda name: rows[name]["mse"])[:RIVALS]


def _page(evaluation: Evaluation, figures: dict[str, Any], pictures: dict[str, Path]) -> str:
    parts = [f"<h1>{escape(evaluation.title)}</h1><p>{escape(evaluation.note)}</p>", "<h2>Claims</h2><ul>"]
    for claim in figures["claims"]:
        head, _, tail = claim["claim"].partition(": ")
        answer, _, rest = tail.partition(",")
        color = YES if claim["holds"] else NO
        parts.append(f"<li>{escape(head)}: <b style='color:{color}'>{escape(answer)}</b>,{escape(rest)}</li>")
    parts.append(
        "</ul><p>A ratio is the mean error over the baseline's; its range is that of single episodes and seeds.</p>"
        "<h2>Error</h2><p>GR00T's open-loop metric: mean squared error over rows and joints, raw units, mean of the "
        "episodes and seeds. Smaller is better.</p>"
    )
    parts.append(_errors(evaluation, figures))
    parts.append(_figure(pictures["errors"], "The dotted line is the judged policy's mean."))
    first, last = next(iter(evaluation.subsets)), evaluation.length(evaluation.lengths[-1])
    parts.append(_joints(evaluation, figures, first, last))
    parts.append(_behaviour(evaluation, figures, first, last))
    if "grippers" in pictures:
        parts.append(_figure(pictures["grippers"], "Repeating the last command is a chunk late."))
    parts.append("<h2>Trajectories</h2>")
    if len(evaluation.demonstrations) > MOST_EPISODES:
        count = len(evaluation.demonstrations)
        parts.append(f"<p>{MOST_EPISODES} of {count}, from the least error to the greatest.</p>")
    for name, path in pictures.items():
        if name.startswith("episode"):
            parts.append(_figure(path, "Where red lies on blue, the policy would have done what was demonstrated."))
    head = f"<meta charset='utf-8'><title>{escape(evaluation.title)}</title><style>{STYLE}</style>"
    return f"<!DOCTYPE html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _figure(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{path.stem}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


Rows = list[tuple[str, list[float | None]]]


def _table(heads: list[str], rows: Rows, digits: str, best: str = "") -> str:
    """Rows of figures under heads; the least of each "column" or "row" is bold."""

    def least(values: list[float | None]) -> float | None:
        return min((value for value in values if value is not None), default=None)

    columns = [least(list(column)) for column in zip(*(row for _, row in rows), strict=True)]
    lines = ["<table><tr><th></th>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"]
    for name, row in rows:
        marks = columns if best == "column" else [least(row) if best == "row" else None] * len(row)
        lines.append(f"<tr><td>{escape(name)}</td>")
        for value, mark in zip(row, marks, strict=True):
            style = " class=best" if value is not None and value == mark else ""
            lines.append(f"<td{style}>{'-' if value is None else format(value, digits)}</td>")
        lines.append("</tr>")
    return "".join(lines) + "</table>"


def _errors(evaluation: Evaluation, figures: dict[str, Any]) -> str:
    keys = [(subset, evaluation.length(steps)) for subset in evaluation.subsets for steps in evaluation.lengths]
    scores, judged, parts = figures["scores"], evaluation.judged, []
    rows: Rows = [(n, [scores[s][length][n]["mse"] for s, length in keys]) for n in evaluation.predictions]
    parts.append(_table([f"{subset}, {length}" for subset, length in keys], rows, ".4g", "column"))
    seeds = list(evaluation.predictions[judged])
    parts.append(f"<p>{escape(judged)}, each episode" + (" (mean of the seeds)" if len(seeds) > 1 else "") + ":</p>")
    rows = []
    for place, demonstration in enumerate(evaluation.demonstrations):
        each = [[row[place] for row in scores[s][length][judged]["mse_by_seed_and_episode"]] for s, length in keys]
        rows.append((f"episode {demonstration.index}", [sum(row) / len(row) for row in each]))
    if len(seeds) > 1:
        spread = [scores[s][length][judged]["deviation_over_seeds"] for s, length in keys]
        rows.append((f"deviation over {len(seeds)} seeds", spread))
    return "".join(parts) + _table([f"{s}, {length}" for s, length in keys], rows, ".4g")


def _joints(evaluation: Evaluation, figures: dict[str, Any], subset: str, length: str) -> str:
    scores = figures["scores"][subset][length]
    heads = [evaluation.judged, *(n for n in evaluation.predictions if not n.startswith(evaluation.judged))]
    rows: Rows = [(joint, [scores[name]["rmse"][joint] for name in heads]) for joint in evaluation.joints(subset)]
    text = f"<h2>Joints</h2><p>Root mean squared error of each joint in rad, {escape(length)}; the least in bold.</p>"
    return text + _table(heads, [(joint, row) for joint, row in rows if any(row)], ".4f", "row")


def _behaviour(evaluation: Evaluation, figures: dict[str, Any], subset: str, length: str) -> str:
    scores = figures["scores"][subset][length]
    parts = [
        f"<h2>Smoothness, grippers, calibration</h2><p>{escape(subset)}, {escape(length)}. Steps between two chunks, "
        "and acceleration and jerk inside of them, are of the joints but grippers; a constant chunk has none.</p>"
    ]
    heads = {"jump_l2": "mean step (rad, L2)", "jump_max": "greatest step of a joint (rad)",
             "acceleration": "acceleration (rad/s²)", "jerk": "jerk (rad/s³)", "mae": "absolute error"}  # fmt: skip
    rows: Rows = [(name, [row[key] for key in heads]) for name, row in scores.items()]
    shown = figures["demonstrated"][subset][length]
    rows.append(("demonstrated", [shown[key] for key in heads]))
    parts.append(_table(list(heads.values()), rows, ".3g"))
    for gripper in (g.name for g in evaluation.inside(subset)):
        keys = {"f1": "F1", "timing_error_ticks": "timing error (ticks)", "missed": "missed", "extra": "false"}
        count = next(iter(scores.values()))["grippers"][gripper]["switches"]
        runs = len(evaluation.predictions[evaluation.judged])
        parts.append(
            f"<p>{escape(gripper)}: {count // runs} demonstrated switches"
            + (f", counted once per seed of {escape(evaluation.judged)}" if runs > 1 else "")
            + f". The timing error is the mean distance to the predicted switch of the same direction, at most "
            f"{evaluation.cap} ticks, which a missed one counts as; false ones meet no demonstrated one.</p>"
        )
        rows = [(name, [row["grippers"][gripper][k] for k in keys]) for name, row in scores.items()]
        parts.append(_table(list(keys.values()), rows, ".3g"))
    known = {name: row["calibration"] for name, row in scores.items() if row["calibration"] is not None}
    if known:
        heads = {key: key.replace("_", " ") for key in next(iter(known.values()))}
        parts.append("<p>Share of the errors inside of their central interval, and its mean width (rad):</p>")
        rows = [(name, [row[key] for key in heads]) for name, row in known.items()]
        parts.append(_table(list(heads.values()), rows, ".3f"))
    return "".join(parts)
