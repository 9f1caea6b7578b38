"""GR00T's own demonstrations, where they lie beside the checkout: distilled from, then replayed through all nodes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from episode_sets import DEMO, needs_demo
from graph import Graph, stamps
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from sage_ros.core.recording import Recording
from sage_ros.episodes import EpisodeDataset
from sage_ros.nodes.lifecycle import EVENTS, STREAM
from sage_ros.nodes.messages import chunk_from, positions_from, rgb_from
from sage_ros.nodes.pick_place import NODES
from sage_ros.training import distil

RATE = 1.5


@needs_demo
def test_a_real_episode_goes_through_the_pipeline_with_a_student_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    student = tmp_path / "student"
    # Without memory of the last commands: a machine under load may bring one of them after its frame.
    told = ["--recipe", "many", "--steps", "20", "--holdout", "0,"]
    assert distil.main(["--dataset", str(DEMO), "--out", str(student), *told]) == 0
    episode = EpisodeDataset(DEMO)[0]

    parameters = {f"{node}:checkpoint": str(student) for node in ("vision_irp", "trust_attention", "sage_policy")}
    parameters |= {"replayer:dataset": str(DEMO), "replayer:episodes": "0", "replayer:rate": RATE}
    parameters |= {"replayer:mode": "demonstration"}
    told = [f"{node}:last_command:=demo/action" for node in ("sage_policy", "trust_attention")]
    with Graph(list(NODES.values()), parameters, told) as graph:
        probe = graph.probe
        actions = probe.listen(JointTrajectory, "action")
        demonstrated = probe.listen(JointState, "demo/action")
        measured = probe.listen(JointState, "joint_states")
        images = probe.listen(Image, "image_raw", STREAM)
        seen = probe.listen(String, "replayer/events", EVENTS)
        graph.up()
        probe.until(lambda: "finished" in [json.loads(m.data)["event"] for m in seen], "the end", timeout=60.0)
        probe.until(lambda: stamps(actions)[-1:] == stamps(measured)[-1:], "the last action")
        probe.until(lambda: len(demonstrated) == len(episode), "every row")

    assert (len(episode), len(episode.action_joints)) == (416, 44)
    assert np.allclose([positions_from(m) for m in measured], episode.state)
    assert np.allclose([positions_from(m) for m in demonstrated], episode.action)
    assert np.array_equal(rgb_from(images[0]), episode.frames()[0]) and len(images) >= 0.95 * len(episode)
    assert len(actions) >= 0.95 * len(episode)  # a machine under load may skip a frame, but not more
    assert all(tuple(m.joint_names) == episode.action_joints.names for m in actions)
    watched = Recording(0)
    for message in demonstrated:
        watched.add_action(stamps([message])[0], message.name, positions_from(message))
    for message in actions:
        watched.add_chunk(stamps([message])[0], message.joint_names, chunk_from(message), episode.fps)
    offline = json.loads((student / "metrics.json").read_text())["errors"]["all, whole"]["student"][0]
    assert watched.score().policy == pytest.approx(offline, rel=0.05), "live, the student must err as it does offline"
