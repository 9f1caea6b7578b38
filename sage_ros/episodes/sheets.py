"""Pictures of episodes: a contact sheet of a data set, one episode as a PNG or as a page to scrub through."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from string import Template

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from .dataset import Episode, EpisodeDataset
from .summary import STILL

COLUMNS = 8  # frames of an episode on a sheet
MOST_ROWS = 24  # films on a sheet
MOST_FRAMES = 400  # of a camera on a page
MOST_JOINTS = 12
STATE_LINE, ACTION_LINE = "#9a9a9a", "#1f77b4"


def contact_sheet(dataset: EpisodeDataset) -> Figure:
    """A row of frames, evenly spread over time, for each camera of each episode; of a large set, spread over it."""
    cameras = dataset.cameras or ("",)
    count = max(1, min(len(dataset), MOST_ROWS // len(cameras)))
    positions = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(int)).tolist()
    films = [(position, camera) for position in positions for camera in cameras]
    label, cell = 2.9, 1.35
    width, height = label + COLUMNS * cell + 0.1, 0.75 + len(films) * (cell + 0.06) + 0.1
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(0.15 / width, 1 - 0.3 / height, dataset.path.name, fontsize=15, weight="bold", va="center")
    about = f"{len(dataset)} episodes, {sum(dataset.lengths)} rows at {dataset.fps:g} fps, {dataset.robot_type}"
    figure.text(0.15 / width, 1 - 0.55 / height, about, fontsize=9, color="#555555", va="center")
    for line, (position, camera) in enumerate(tqdm(films, "films", unit="", disable=None, leave=False)):
        episode = dataset[position]
        top = 0.75 + line * (cell + 0.06)
        words = f"episode {episode.index}" + (f" · {camera}" if len(cameras) > 1 else "")
        detail = f"{len(episode)} rows, {len(episode) / dataset.fps:.1f} s\n{_wrap(episode.task, 40)}"
        figure.text(0.15 / width, 1 - (top + 0.18) / height, words, fontsize=10, weight="bold", va="center")
        figure.text(0.15 / width, 1 - (top + 0.36) / height, detail, fontsize=8, color="#333333", va="top")
        if not camera:
            continue
        rows = np.linspace(0, len(episode) - 1, COLUMNS).round().astype(int)
        for column, row in enumerate(rows.tolist()):
            place = ((label + column * cell) / width, 1 - (top + cell) / height, (cell - 0.05) / width, cell / height)
            axes = figure.add_axes(place)
            axes.imshow(_small(episode.frame(row, camera), 220))
            axes.set_axis_off()
            axes.text(0.04, 0.95, f"{row / dataset.fps:.1f} s", transform=axes.transAxes, fontsize=7, va="top",
                      color="white", bbox={"facecolor": "black", "alpha": 0.45, "pad": 1.2, "lw": 0})  # fmt: skip
    return figure


def episode_figure(episode: Episode) -> Figure:
    """One episode: frames of every camera over the curves of the joints that move most, state and action."""
    names = _moving(episode)
    cameras, lines = list(episode.videos), -(-max(len(names), 1) // 3)
    heights = [1.5] * len(cameras) + [1.5 * lines + 0.6]
    figure = Figure(figsize=(12, sum(heights) + 0.9), layout="constrained")
    parts = np.atleast_1d(np.array(figure.subfigures(len(heights), 1, height_ratios=heights)))
    for part, camera in zip(parts, cameras, strict=False):
        rows = np.linspace(0, len(episode) - 1, COLUMNS).round().astype(int).tolist()
        for axes, row in zip(part.subplots(1, COLUMNS), rows, strict=True):
            axes.imshow(_small(episode.frame(row, camera), 300))
            axes.set_axis_off()
            axes.set_title(f"{row / episode.fps:.1f} s", fontsize=8)
        if len(cameras) > 1:
            part.suptitle(camera, fontsize=9, x=0.01, ha="left")
    for axes, name in zip(np.ravel(parts[-1].subplots(lines, 3, sharex=True, squeeze=False)), names, strict=False):
        _curves(axes, episode, name)
    parts[-1].supxlabel("time (s)", fontsize=9)
    figure.suptitle(f"episode {episode.index}: {episode.task} (grey: measured state, blue: action)", fontsize=12)
    return figure


def _curves(axes: Axes, episode: Episode, name: str) -> None:
    time = np.arange(len(episode)) / episode.fps
    for layout, values, colour in ((episode.state_joints, episode.state, STATE_LINE),
                                   (episode.action_joints, episode.action, ACTION_LINE)):  # fmt: skip
        if name in layout.names:
            axes.plot(time, values[:, layout.names.index(name)], color=colour, lw=1.3)
    axes.set_title(name, fontsize=8, loc="left")
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)


def _moving(episode: Episode) -> list[str]:
    """The joints that move most, in their own order."""
    spread: dict[str, float] = {}
    for layout, values in ((episode.state_joints, episode.state), (episode.action_joints, episode.action)):
        for name, width in zip(layout.names, np.ptp(values, axis=0).tolist(), strict=True):
            spread[name] = max(spread.get(name, 0.0), width)
    most = sorted(spread, key=lambda name: -spread[name])[:MOST_JOINTS]
    return [name for name in spread if name in most and spread[name] > STILL]


def episode_page(episode: Episode) -> str:
    """One episode as a page of HTML that needs nothing else: frames of every camera and curves under one slider."""
    rows = np.unique(np.linspace(0, len(episode) - 1, MOST_FRAMES).round().astype(int)).tolist()
    films = {camera: [_jpeg(episode.frame(row, camera)) for row in rows] for camera in episode.videos}
    charts = "".join(_chart(episode, name) for name in _moving(episode))
    data = {"films": films, "rows": rows, "fps": episode.fps, "length": len(episode)}
    pictures = "".join(f'<figure><img data-camera="{html.escape(c)}"><figcaption>{html.escape(c)}</figcaption></figure>'
                       for c in films)  # fmt: skip
    return PAGE.substitute(
        title=html.escape(f"episode {episode.index}: {episode.task}"),
        about=f"{len(episode)} rows at {episode.fps:g} fps, {len(episode) / episode.fps:.1f} s",
        pictures=pictures,
        charts=charts,
        last=len(rows) - 1,
        data=json.dumps(data).replace("</", "<\\/"),
    )


def _chart(episode: Episode, name: str) -> str:
    """State and action of one joint as a small SVG; the page moves its line ``now``."""
    lines = []
    for layout, values, colour in ((episode.state_joints, episode.state, STATE_LINE),
                                   (episode.action_joints, episode.action, ACTION_LINE)):  # fmt: skip
        if name in layout.names:
            lines.append((values[:, layout.names.index(name)], colour))
    low, high = min(v.min() for v, _ in lines), max(v.max() for v, _ in lines)
    x = np.linspace(0, 300, len(episode))
    paths = []
    for values, colour in lines:
        y = 62 - 56 * (values - low) / max(high - low, STILL)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        paths.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
    return (
        f'<div class="chart"><b>{html.escape(name)}</b> <span>{low:.3g} to {high:.3g}</span>'
        f'<svg viewBox="0 0 300 68" preserveAspectRatio="none">{"".join(paths)}'
        '<line class="now" y1="0" y2="68" x1="0" x2="0" stroke="#d1495b"/></svg></div>'
    )


PAGE = Template("""<!doctype html><html lang="en"><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width">
<style>body{font:14px system-ui,sans-serif;margin:1.2em auto;max-width:1100px;padding:0 1em;color:#222}
h1{font-size:1.25em;margin:0}p{color:#666;margin:.2em 0 1em}.films{display:flex;flex-wrap:wrap;gap:10px}
figure{margin:0}img{height:300px;max-width:100%;border-radius:4px;background:#eee}figcaption{color:#666;font-size:12px}
.bar{display:flex;gap:10px;align-items:center;position:sticky;top:0;background:#fff;padding:8px 0}
input{flex:1}.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:12px}
.chart span{color:#888;font-size:12px}svg{width:100%;height:70px;background:#f7f7f7;border-radius:3px}</style>
<h1>$title</h1><p>$about. Grey: measured state, blue: action. Space plays.</p><div class="films">$pictures</div>
<div class="bar"><button id="play">play</button><input id="at" type="range" min="0" max="$last" value="0">
<output id="time"></output></div><div class="charts">$charts</div>
<script>const d=$data,at=document.getElementById("at"),play=document.getElementById("play");let timer=null;
function show(){const k=+at.value,row=d.rows[k];for(const i of document.querySelectorAll("img"))
i.src="data:image/jpeg;base64,"+d.films[i.dataset.camera][k];
document.getElementById("time").textContent=(row/d.fps).toFixed(2)+" s, row "+row;
for(const n of document.querySelectorAll(".now")){const x=300*row/Math.max(1,d.length-1);
n.setAttribute("x1",x);n.setAttribute("x2",x)}}
function toggle(){if(timer){clearInterval(timer);timer=null}else timer=setInterval(()=>{
at.value=(+at.value+1)%d.rows.length;show()},1000*d.length/d.rows.length/d.fps);play.textContent=timer?"pause":"play"}
at.oninput=show;play.onclick=toggle;document.onkeydown=e=>{if(e.key===" "){e.preventDefault();toggle()}};show()</script>
</html>
""")


def _small(frame: np.ndarray, longest: int) -> np.ndarray:
    scale = longest / max(frame.shape[:2])
    return frame if scale >= 1 else cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _jpeg(frame: np.ndarray) -> str:
    options: Sequence[int] = [cv2.IMWRITE_JPEG_QUALITY, 80]
    _, coded = cv2.imencode(".jpg", cv2.cvtColor(_small(frame, 480), cv2.COLOR_RGB2BGR), options)
    return base64.b64encode(coded.tobytes()).decode()


def _wrap(text: str, width: int) -> str:
    """At most three lines."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:3]) + (" …" if len(lines) > 3 else "")
