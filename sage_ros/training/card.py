"""The model card of a student: what it is for, what it learned from, how it measures up, where it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sage_ros.policy.manifest import Manifest
from sage_ros.training.openloop import WHOLE, format_table


def model_card(metrics: Mapping[str, Any], manifest: Manifest, tasks: Sequence[str]) -> str:
    """README.md of a checkpoint."""
    split, data, extra = metrics["split"], metrics["dataset"], metrics["simulated"]
    errors = {key: row for key, row in metrics["errors"].items() if key.startswith("all")}
    spread = [run["errors"][f"all, {WHOLE}"] for run in metrics["seeds"]]
    kept = metrics["measured_on"].replace("_", "-")
    joints = "\n".join(f"- {what}: {', '.join(layout.names)}" for what, layout in
                       (("Joints commanded, in this order", manifest.action_joints),
                        ("Joints measured", manifest.state_joints)))  # fmt: skip
    simulated = (
        f"- Simulated besides: {extra['episodes']} of the expert, world seeds {extra['seeds'][0]} to "
        f"{extra['seeds'][1] - 1}, of which {extra['validation']} stop the training\n"
        if extra["episodes"] else ""
    )  # fmt: skip
    return f"""# Student: {data["name"]}

A chunk policy of {metrics["parameters"]:,} parameters: token map of one camera, joint state, last command and task in
words in; the next {manifest.student.horizon} joint position targets at {manifest.rate:g} Hz out, each with a standard
deviation.

## Intended use

For the robot, camera view and task of the data set, within the range of its actions, behind a safety filter.

- Tasks: {"; ".join(tasks)}
{joints}
- Camera: {", ".join(manifest.cameras)}
- Encoder: {manifest.encoder.name}, sha256 {manifest.encoder.sha256[:16]}…

A robot that lacks one of these joints is refused by the joint's name.

## Data

- {data["name"]}: {data["episodes"]} episodes, {data["rows"]} rows, sha256 {data["fingerprint"][:16]}…
- Training episodes: {len(split["train"])}; validation (stops the training): {split["validation"]};
  held out: {split["held_out"]}
{simulated}{_taught(metrics.get("labels"))}
## Error on the {kept} episodes

Open loop, GR00T's metric: {metrics["metric"]}; mean of the episodes. The weights in this folder are the ones measured.

```
{format_table(errors)}
```

{len(spread)} seeds, all joints, whole episodes: {min(spread):.6f} to {max(spread):.6f}; the seed with the least
validation error ({metrics["seed"]}) is in this folder. Every figure, per episode and joint group: `metrics.json`.

## Limits

Open-loop error says how near single chunks are to the demonstrations; it does not say that the task succeeds when the
student acts on its own results. Other objects, lights, views or robots are outside of what it has seen.
"""


def _taught(labels: Mapping[str, Any] | None) -> str:
    """Which teacher's chunks it learned, and how that teacher was judged."""
    if labels is None:
        return "- Taught by the recorded actions\n"
    gate = labels["gate"]
    verdict = "not judged" if gate is None else (
        ("it beat" if gate["passed"] else "forced, for it did not beat")
        + f" every trivial baseline on episodes {', '.join(map(str, gate['episodes']))}"
    )  # fmt: skip
    return (f"- Taught by {labels['teacher']} on {labels['training_rows']} of {labels['of']} training rows, by the "
            f"recorded actions on the others\n- The teacher: {verdict}; labels sha256 {labels['sha256'][:16]}…, chunks "
            f"of {labels['horizon']} rows for {', '.join(labels['joints'])}\n")  # fmt: skip
