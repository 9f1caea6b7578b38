"""A session as a page that anybody can open, with its pictures and figures."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from sage_ros.core.figures import POLICIES, Figures, Score, format_table, milliseconds
from sage_ros.core.session import Session
from sage_ros.core.timing import SECOND
from sage_ros.pictures import draw_joints, draw_latency, draw_loop, draw_timeline, draw_trust

CAPTIONS = {
    "loop": "The student alone decides; physics judges. Set points are what the safety filter let out, the measured "
    "joints lag behind them as a servo does.",
    "joints": "Every predicted chunk is drawn from the row that it was inferred at (dot). Where red lies on blue, the "
    "policy would have done what the demonstrator did. Errors are mean squared, in rad².",
    "latency": "From the camera frame to the arrival of the finished action at this observer.",
    "trust": "Patches that did not look as predicted lose trust and turn red; where the robot trusts its eyes, the "
    "frame shows as the camera saw it.",
    "timeline": "WAKE: normal work. FOCUS: looks harder. REST: no task or no energy, holds still. DREAM: learns. "
    "CRISIS: holds until it is reset.",
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 100%; } figure { margin: 2rem 0; } figcaption { color: #555; }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 13px; line-height: 1.4; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .25rem .8rem; border-bottom: 1px solid #ddd; }
td { text-align: right; } td:first-child, th:first-child { text-align: left; } .best { font-weight: bold; }
"""


def write_report(folder: Path, session: Session, figures: Figures) -> Path:
    """Write session.json, the pictures and report.html into ``folder`` (made where needed); returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "session.json").write_text(json.dumps(asdict(figures), indent=1, allow_nan=False) + "\n", "utf-8")
    drawn = {
        "loop": draw_loop(session),
        "joints": draw_joints(session, figures),
        "latency": draw_latency(session, figures),
        "trust": draw_trust(session),
        "timeline": draw_timeline(session, figures),
    }
    for name, picture in drawn.items():
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)  # of an earlier session
        if picture is not None:
            picture.savefig(path, dpi=100)
    page = folder / "report.html"
    page.write_text(_page(folder, [name for name, picture in drawn.items() if picture is not None], figures), "utf-8")
    return page


def _page(folder: Path, pictures: list[str], figures: Figures) -> str:
    """The report: nothing outside of the page is needed to show it."""
    when = datetime.fromtimestamp(figures.started / SECOND, UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [
        f"<h1>A session of the robot policy</h1><p>{when}, {figures.seconds:.1f} s. sage_ros turns each camera frame "
        "and the measured joints into a chunk of future joint positions; here is what an observer saw.</p>",
        f"<p>{escape(_summary(figures))}</p>",
        _error_table([s for s in figures.episodes if s.policy is not None], figures),
    ]
    for name in pictures:
        data = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
        image = f'<img alt="{name}" src="data:image/png;base64,{data}">'
        parts.append(f"<figure>{image}<figcaption>{escape(CAPTIONS[name])}</figcaption></figure>")
    missing = [name for name in CAPTIONS if name not in pictures]
    if missing:
        parts.append(f"<p>Nothing to draw was received for: {', '.join(missing)}.</p>")
    parts.append(f"<h2>All figures</h2><pre>{escape(format_table(figures))}</pre>")
    head = f"<meta charset='utf-8'><title>sage_ros session</title><style>{STYLE}</style>"
    return f"<!DOCTYPE html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _summary(f: Figures) -> str:
    latency = f.latency_ms
    text = f"{f.frames_in} camera frames came in and {f.actions_out} action chunks went out; {f.dropped} of "
    text += f"{f.frames_working} frames that came while a task was active got none. "
    if latency.p50 is not None:
        text += f"Half of the actions were there within {milliseconds(latency.p50)} of their frame, 99 of 100 within "
        text += f"{milliseconds(latency.p99)}. "
    if f.ros_adds_ms is not None:
        text += f"The nodes' own computing takes {milliseconds(sum(f.own_ms.values()))} of the median, ROS "
        text += f"{milliseconds(f.ros_adds_ms)}. "
    if f.trials:
        done = sum(trial.placed is not None for trial in f.trials)
        text += f"In the simulated world the cube was picked up and placed in {done} of {len(f.trials)} trials. "
    return text + ("" if f.actions_out else "No action was seen: see the notes below.")


def _error_table(scores: list[Score], figures: Figures) -> str:
    if not scores:
        return ""
    rows = [(s.title, s.split, s.errors) for s in scores] + [(name, "", errors) for name, errors in figures.means]
    span = f"the first {figures.steps} rows of each episode" if figures.steps else "whole episodes"
    lines = [
        f"<h2>Action error</h2><p>How far the predicted chunks were from the demonstration, over {span} (GR00T's "
        "open-loop metric: mean squared error, rad²; a chunk every horizon rows), beside what two trivial policies "
        "would have done: stay where the joints are, or repeat the last action. Smaller is better.</p>"
    ]
    heads = "".join(f"<th>{escape(title)}</th>" for title in POLICIES.values())
    lines.append(f"<table><tr><th></th><th></th>{heads}</tr>")
    for name, split, errors in rows:
        least = min((e for e in errors if e is not None), default=None)
        figured = ((e, " class=best" if e == least else "") for e in errors)
        cells = "".join("<td>-</td>" if e is None else f"<td{style}>{e:.6f}</td>" for e, style in figured)
        lines.append(f"<tr><td>{escape(name)}</td><td>{escape(split)}</td>{cells}</tr>")
    return "".join(lines) + "</table>"
