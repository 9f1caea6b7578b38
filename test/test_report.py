"""A session as pictures and as a page: complete, self-contained, and honest about what was not seen."""

import base64
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from sage_ros.core.session import SECOND, Session
from sage_ros.pictures import draw_joints, draw_latency, draw_timeline, draw_trust
from sage_ros.report import write_report

NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
START = 1_700_000_000 * SECOND
ROWS, HORIZON, FPS = 120, 16, 20.0
PICTURES = ("joints", "latency", "trust", "timeline")


def demonstration(episode: int) -> np.ndarray:
    """(ROWS, 6) smooth joint positions; wrist_roll never moves."""
    t = np.arange(ROWS)[:, None] / FPS
    action = np.sin(t * np.linspace(0.4, 1.6, 6) + episode) * np.linspace(1.2, 0.2, 6)
    action[:, 4] = 0.3
    return action


def watched(task: str = "put the cube on the plate", episodes: int = 2) -> Session:
    """A made session: a policy that is nearly right, one patch that something covers for a while, a late FOCUS."""
    rng = np.random.default_rng(0)
    session = Session(START)
    session.metabolism(START, "REST", 1.0, "started")
    now = START + SECOND
    session.task = task
    session.metabolism(now, "WAKE", 0.98, "task")
    for episode in range(episodes):
        session.begin(now, episode, task, ROWS, FPS)
        action = demonstration(episode)
        state = np.vstack((action[:1], action[:-1])) + 0.01 * rng.standard_normal(action.shape)
        for row in range(ROWS):
            stamp = now = now + SECOND // 20
            session.joints(stamp, now, NAMES, state[row])
            session.demonstrated(stamp, now, NAMES, action[row])
            if session.frame(stamp, now):
                image = np.full((64, 64, 3), 200, np.uint8)
                cv2.rectangle(image, (10, 40), (30, 50), (180, 60, 40), -1)
                cv2.circle(image, (10 + row // 3, 20), 6, (40, 120, 200), -1)
                session.album.add(now, stamp, image)
            trust = np.ones((8, 8), np.float32)
            trust[2:5, 3:6] -= 0.9 * (60 < row < 90)
            session.album.add_trust(stamp, trust)
            session.confidence.add(now, float(trust.mean()))
            future = action[np.minimum(row + np.arange(HORIZON), ROWS - 1)]
            drift = 0.004 * np.arange(HORIZON)[:, None] * rng.standard_normal(6) * (np.array(NAMES) != "wrist_roll")
            received = now + int(1e6 * rng.gamma(4.0, 1.5))
            session.chunk(stamp, received, NAMES, future + drift, FPS)
            if row % 20 == 0:
                session.metabolism(now, session.state, 0.98 - 0.001 * row - 0.2 * episode, "task")
            if row == 70:
                session.metabolism(now, "FOCUS", 0.8, "confidence 0.78 below 0.8")
            if row == 100:
                session.metabolism(now, "WAKE", 0.75, "confidence 0.97 again")
        session.end()
    for name in ("vision_irp", "trust_attention", "sage_policy"):
        session.node(now, f"/{name}", "active", {"own_ms_p50": "1.5", "own_ms_p99": "2.5", "busy_s": "0", "pid": "1"})
    session.finish(now + SECOND)
    return session


@pytest.fixture(scope="module")
def session() -> Session:
    return watched()


@pytest.fixture(scope="module")
def report(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("report"), session, session.figures()).parent


def test_the_page_shows_every_picture_from_within_itself(report: Path) -> None:
    html = (report / "report.html").read_text("utf-8")
    inline = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert [base64.b64decode(data) for data in inline] == [(report / f"{n}.png").read_bytes() for n in PICTURES]
    assert not re.findall(r'(?:src|href)="(?!data:)', html)  # nothing is loaded from elsewhere
    for name in PICTURES:
        picture = cv2.imread(str(report / f"{name}.png"))
        assert picture.std() > 5, name  # something is drawn


def test_the_figures_come_as_json(session: Session, report: Path) -> None:
    figures = session.figures()
    stored = json.loads((report / "session.json").read_text("utf-8"))
    assert stored["actions_out"] == 2 * ROWS
    assert stored["latency_ms"]["p99"] == figures.latency_ms.p99
    assert [e["policy"] for e in stored["episodes"]] == [s.policy for s in figures.episodes]


def test_text_from_the_network_stays_text(tmp_path: Path) -> None:
    session = Session(START)
    session.metabolism(START, "CRISIS", 0.5, "<script>alert(1)</script>")
    session.finish(START + SECOND)
    html = write_report(tmp_path, session, session.figures()).read_text("utf-8")
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_an_empty_session_still_gives_a_page_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "joints.png").write_bytes(b"of an earlier session")
    session = Session(START)
    session.finish(START + SECOND)
    html = write_report(tmp_path, session, session.figures()).read_text("utf-8")
    assert "No action was seen" in html and "<img" not in html
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "session.json"]


def test_joints_has_a_row_per_moving_joint_and_a_column_per_episode(session: Session) -> None:
    figure = draw_joints(session, session.figures())
    assert figure is not None and len(figure.axes) == 5 * 2  # wrist_roll stands still
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert all(name in titles[2 * row] for row, name in enumerate(n for n in NAMES if n != "wrist_roll"))
    drawn = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
    np.testing.assert_allclose(drawn["demonstrated action"].get_ydata(), demonstration(0)[:, 0])
    np.testing.assert_allclose(drawn["where it was inferred"].get_xdata(), np.arange(0, ROWS, HORIZON) / FPS, atol=1e-6)


def test_no_chunk_is_drawn_beyond_the_end_of_its_episode(session: Session) -> None:
    figure = draw_joints(session, session.figures())
    assert figure is not None
    assert max(np.nanmax(line.get_xdata()) for line in figure.axes[0].get_lines()) <= (ROWS - 1) / FPS + 1e-6


def test_live_work_is_drawn_without_a_demonstration() -> None:
    session = Session(START)
    for tick in range(100):
        stamp = START + tick * SECOND // 20
        session.joints(stamp, stamp, NAMES, np.full(6, tick / 100))
        session.chunk(stamp, stamp, NAMES, np.full((HORIZON, 6), tick / 100), FPS)
    figure = draw_joints(session, session.figures())
    assert figure is not None
    (dots,) = [line.get_xdata() for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    np.testing.assert_allclose(dots, np.arange(0, 100, HORIZON) / FPS, atol=1e-6)


def test_latency_marks_the_figures_of_the_table(session: Session) -> None:
    figures = session.figures()
    figure = draw_latency(session, figures)
    assert figure is not None
    marked = [line.get_xdata()[0] for line in figure.axes[0].get_lines()]
    assert marked == [figures.latency_ms.p50, figures.latency_ms.p99]


def test_trust_is_drawn_over_at_most_eight_frames_in_order(session: Session) -> None:
    figure = draw_trust(session)
    assert figure is not None
    shown = [axes for axes in figure.axes if len(axes.get_images()) == 2]
    assert 6 <= len(shown) <= 8
    times = [float(axes.get_title().split(" s")[0]) for axes in shown]
    assert times == sorted(times) and times[-1] - times[0] > 6.0
    assert all(axes.get_images()[1].get_clim() == (0, 1) for axes in shown)


def test_the_timeline_has_a_band_for_every_stay(session: Session) -> None:
    figures = session.figures()
    figure = draw_timeline(session, figures)
    assert figure is not None
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [label.split()[0] for label in labels[:3]] == ["REST", "WAKE", "FOCUS"]
    assert figure.axes[0].get_xlabel() and figure.axes[0].get_ylabel()
