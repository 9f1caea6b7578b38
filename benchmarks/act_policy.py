"""LeRobot's ACT on exported episodes, in an environment of its own (``pip install lerobot==0.4.4``): no sage_ros here.

``act_policy.py train PLAN FOLD`` trains a policy by LeRobot's own recipe for a fold of the plan and keeps its chunks;
``act_policy.py time PLAN`` measures as many inferences as each line that it reads says. Plan and episodes are from
``act_comparison.py``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.utils.constants import OBS_IMAGES

IMAGE, STATE, ACTION = "observation.images.camera", "observation.state", "action"
IMAGENET = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)  # as LeRobot normalises pictures
CLIP = 10.0  # gradient norm, as LeRobot's trainer


def make_policy(plan: dict[str, Any], device: str) -> ACTPolicy:
    shape = tuple(plan["frame"])
    config = ACTConfig(
        input_features={
            IMAGE: PolicyFeature(FeatureType.VISUAL, (3, *shape)),
            STATE: PolicyFeature(FeatureType.STATE, (plan["state"],)),
        },
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (len(plan["joints"]),))},
        device=device,
    )
    if plan["backbone"] == "scratch":
        config.pretrained_backbone_weights = None
    return ACTPolicy(config).to(device)


class Rows:
    """The training episodes' rows on the device, normalised as LeRobot does by mean and deviation."""

    def __init__(self, folder: Path, episodes: list[int], device: str) -> None:
        found = [np.load(folder / f"{index}.npz", allow_pickle=False) for index in episodes]
        state, action = (np.concatenate([e[name] for e in found]) for name in ("state", "action"))
        self.moments = {STATE: moments(state), ACTION: moments(action)}
        self.frames = torch.from_numpy(np.concatenate([e["frames"] for e in found])).to(device)
        self.state = torch.from_numpy(normal(state, self.moments[STATE])).to(device)
        self.action = torch.from_numpy(normal(action, self.moments[ACTION])).to(device)
        lengths = [len(e["state"]) for e in found]
        self.last = torch.from_numpy(np.repeat(np.cumsum(lengths) - 1, lengths)).to(device)
        self.pixels = torch.from_numpy(IMAGENET).to(device)

    def batch(self, size: int, chunk: int) -> dict[str, torch.Tensor]:
        device = self.state.device
        pick = torch.randint(len(self.state), (size,), device=device)
        rows = pick[:, None] + torch.arange(chunk, device=device)
        last = self.last[pick, None]
        return {IMAGE: pictures(self.frames[pick], self.pixels), STATE: self.state[pick],
                ACTION: self.action[torch.minimum(rows, last)], "action_is_pad": rows > last}  # fmt: skip


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(axis=0), values.std(axis=0) + 1e-8


def normal(values: np.ndarray, by: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return ((values - by[0]) / by[1]).astype(np.float32)


def pictures(frames: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), normalised."""
    return ((frames.float() / 255.0 - pixels[0]) / pixels[1]).movedim(-1, 1).contiguous()


def train(plan: dict[str, Any], fold: dict[str, Any], folder: Path, device: str) -> tuple[ACTPolicy, Rows, float]:
    """LeRobot's loop: AdamW at a constant rate, no validation, the last weights count."""
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True  # as LeRobot's trainer
    torch.manual_seed(fold["seed"])
    policy = make_policy(plan, device)
    rows = Rows(folder, fold["train"], device)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    start = time.perf_counter()
    policy.train()

    def gradients() -> torch.Tensor:
        optimizer.zero_grad()
        loss, l1 = losses(policy, rows.batch(plan["batch"], policy.config.chunk_size))
        loss.backward()
        return l1

    compute = graphed(gradients) if device == "cuda" else gradients
    for step in range(1, plan["steps"] + 1):
        l1 = compute()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
        optimizer.step()
        if step % 500 == 0:
            print(f"{fold['name']} step {step} of {plan['steps']}: l1 {float(l1):.4f}", flush=True)
    return policy.eval(), rows, time.perf_counter() - start


def losses(policy: ACTPolicy, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and its L1 part as in ``ACTPolicy.forward``, which no CUDA graph could record as it reads them."""
    answer, (mean, log_variance) = policy.model(batch | {OBS_IMAGES: [batch[IMAGE]]})
    off = (answer - batch[ACTION]).abs() * ~batch["action_is_pad"][..., None]
    divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(-1)
    return off.mean() + policy.config.kl_weight * divergence.mean(), off.mean()


def graphed(work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """``work`` as one CUDA graph: with batches of 8 most of a step would be the launches of its kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = work()

    def replay() -> torch.Tensor:
        graph.replay()
        return found

    return replay


def predict(policy: ACTPolicy, rows: Rows, held: Path, every: int, device: str) -> tuple[np.ndarray, int]:
    """Chunks (C, every, A) in raw units, one from each ``every``-th row, and how many rows there are."""
    shown = np.load(held, allow_pickle=False)
    mean, deviation = rows.moments[ACTION]
    chunks = []
    for row in range(0, len(shown["state"]), every):
        frame = torch.from_numpy(shown["frames"][row : row + 1]).to(device)
        state = torch.from_numpy(normal(shown["state"][row : row + 1], rows.moments[STATE])).to(device)
        answer = policy.predict_action_chunk({IMAGE: pictures(frame, rows.pixels), STATE: state})
        chunks.append(answer[0, :every].cpu().numpy() * deviation + mean)
    return np.stack(chunks), len(shown["state"])


def train_fold(plan: dict[str, Any], fold: dict[str, Any], folder: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy, rows, seconds = train(plan, fold, folder / "episodes", device)
    held = folder / "episodes" / f"{fold['held_out']}.npz"
    chunks, count = predict(policy, rows, held, plan["every"], device)
    target = folder / f"{fold['name']}.npz"
    done = {"seconds": round(seconds, 1), "device": device, "steps": plan["steps"], "rows": len(rows.state)}
    target.with_suffix(".json").write_text(json.dumps(done) + "\n")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez_compressed(file, chunks=chunks, rows=np.array(count), joints=np.array(plan["joints"]))
    part.replace(target)


def time_inferences(plan: dict[str, Any]) -> None:
    """Answer each line N with the milliseconds of N inferences, frame to chunk, on one core."""
    torch.set_num_threads(1)
    policy = make_policy(plan | {"backbone": "scratch"}, "cpu").eval()  # weights do not change the time
    frame = torch.zeros((1, *plan["frame"], 3), dtype=torch.uint8)
    state, pixels = torch.zeros((1, plan["state"])), torch.from_numpy(IMAGENET)
    print(json.dumps({"parameters": sum(p.numel() for p in policy.parameters())}), flush=True)
    for line in sys.stdin:
        spans = []
        for _ in range(int(line)):
            start = time.perf_counter()
            policy.predict_action_chunk({IMAGE: pictures(frame, pixels), STATE: state})
            spans.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(spans), flush=True)


def main() -> int:
    job, *given = sys.argv[1:] or [""]
    if (job, len(given)) not in (("train", 2), ("time", 1)):
        sys.exit(f"usage: act_policy.py train PLAN FOLD | time PLAN\n\n{__doc__}")
    path = Path(given[0])
    plan = json.loads(path.read_text())
    if job == "time":
        time_inferences(plan)
    else:
        (fold,) = (fold for fold in plan["folds"] if fold["name"] == given[1])
        train_fold(plan, fold, path.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
