"""What /diagnostics says of topics, and how the aggregator groups it."""

import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from graph import Graph
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from sage_ros.core.heard import NOTHING, Heard
from sage_ros.core.timing import SECOND
from sage_ros.nodes.lifecycle import STREAM, values_of
from sage_ros.nodes.messages import map_message
from sage_ros.nodes.pick_place import ALL
from sage_ros.nodes.trust_attention import TrustAttentionNode
from sage_ros.paths import CHECKPOINT, share
from sage_ros.policy.checkpoint import load_checkpoint


def test_a_topic_is_told_by_its_rate_and_the_age_of_its_stamps():
    heard = Heard()
    heard.report(10.0)
    for tick in range(20):
        heard.tick(tick * SECOND, tick * SECOND + SECOND // 100 * (1 + tick % 3))
    well, words, values = heard.report(11.0)
    assert well and words == "20.0 Hz"
    assert values["Actual frequency (Hz)"] == "20.00" and values["Events since startup"] == "20"
    assert (values["Earliest timestamp delay"], values["Latest timestamp delay"]) == ("0.0100", "0.0300")


@pytest.mark.parametrize("wanted, well, words", [(True, False, NOTHING), (False, True, "not listened to")])
def test_silence_is_a_fault_only_where_something_is_wanted(wanted, well, words):
    heard = Heard()
    heard.tick(0, 0)
    heard.report(1.0)
    assert heard.report(2.0, wanted)[:2] == (well, words)


@pytest.mark.parametrize("age, words", [(-0.2, "Timestamps too far in future seen."),
                                        (1.5, "Timestamps too far in past seen.")])  # fmt: skip
def test_stamps_of_another_time_are_told(age, words):
    heard = Heard()
    heard.tick(10 * SECOND, round((10 + age) * SECOND))
    assert heard.report(1.0)[:2] == (False, words)
    heard.tick(11 * SECOND, 11 * SECOND)
    assert heard.report(2.0)[0], "once only"


def test_a_node_tells_of_its_topics_beside_itself():
    checkpoint = load_checkpoint(CHECKPOINT)
    tokens = checkpoint.calibration.variance * 0.0
    with Graph([TrustAttentionNode]) as graph:
        probe = graph.up().probe
        told = probe.listen(DiagnosticArray, "/diagnostics")

        def topic():
            found = [s for m in told for s in m.status if s.name == "trust_attention: vision/tokens topic status"]
            return found[-1] if found else None

        silent = probe.until(topic, "a status")
        assert (silent.level, silent.message) == (DiagnosticStatus.WARN, NOTHING)
        images = probe.publisher(Image, "vision/tokens", STREAM)

        def shown():
            images.publish(map_message(tokens, Header(stamp=probe.node.get_clock().now().to_msg())))
            return topic().level == DiagnosticStatus.OK

        probe.until(shown, "a status that is well")
        assert float(values_of(topic())["Actual frequency (Hz)"]) > 0
        assert told[-1].status[0].name == "trust_attention: pipeline"


def test_the_aggregator_has_one_place_for_every_node():
    content = yaml.safe_load(share("config", "diagnostics.yaml").read_text())["/**"]["ros__parameters"]
    analyzers = [value for value in content.values() if isinstance(value, dict)]
    assert len({a["path"] for a in analyzers}) == len(analyzers)
    assert {a["type"] for a in analyzers} == {"diagnostic_aggregator/GenericAnalyzer"}
    places = [start for a in analyzers for start in a["startswith"]]
    for name in [*ALL, "recorder", "run_task", "fault_injector"]:
        assert sum(f"{name}: pipeline".startswith(start) for start in places) == 1, f"{name} has no place, or two"
