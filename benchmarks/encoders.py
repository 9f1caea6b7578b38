"""What an encoder costs and what it is worth: speed by runtime, TinyVAE's pictures, students with eyes and without.

CLIP     ViT-B/32 with random weights: speed, and int8 against fp32; nothing of it speaks of a trained CLIP's accuracy.
         torch eager fp32 beside onnxruntime int8, batch 1, two threads; the whole pipeline through ROS at 20 Hz.
gpu      the same CLIP on a CUDA device, where there is one: from frame to action without ROS.
TinyVAE  one frame on one thread; held-out frames of the package's episodes against PCA of as many numbers, and with its
         numbers in 8 bits against JPEG of no more bytes.
sight    a student of the default encoder beside one that is trained blind, on the package's episodes and some more
         simulated ones: on held-out episodes, the chunks of the second before the gripper closes; and in closed loop.
real     --real FOLDER, GR00T's demonstration episodes: leave one out, a student of every encoder that has trained
         weights here, beside a blind one.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from harness import Bar, arguments, conclude

from sage_ros.core.chunks import ChunkPolicy, Observation
from sage_ros.core.limits import MOST
from sage_ros.core.trust import Calibration, TrustAttention
from sage_ros.episodes.dataset import EpisodeDataset
from sage_ros.paths import CHECKPOINT, ENCODER, EPISODES
from sage_ros.policy.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from sage_ros.policy.manifest import EncoderReference
from sage_ros.policy.student import Student, StudentPolicy
from sage_ros.sim.trials import Trial, run_trials
from sage_ros.training.cloning import Cloned, CloningConfig, clone
from sage_ros.training.openloop import Demonstration, blinded, open_loop_error
from sage_ros.training.probes import format_metrics, measure, milliseconds, psnr
from sage_ros.training.recipes import FEW, recipe, student_for
from sage_ros.training.simulated import FIRST_SEED, simulate
from sage_ros.training.tokens import load_demonstrations
from sage_ros.training.vae import load_views
from sage_ros.vision.clip import Clip
from sage_ros.vision.encoder import load_encoder
from sage_ros.vision.lite0 import PACKAGE
from sage_ros.vision.runtime import Runtime, cosine
from sage_ros.vision.tiny_vae import TinyVae

ENCODERS = {"tiny_vae": str(ENCODER), "lite0": PACKAGE}  # those with trained weights on any machine
PARTS = ("clip", "gpu", "real", "sight", "tiny_vae")  # each with a result of its own
UNSEEN = 900_000  # first world seed of the closed loop
BEFORE = 20  # rows before the gripper closes, a second


def median_ms(work: Callable[[], object], times: int) -> float:
    for _ in range(5):
        work()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * 1e3)
    return float(np.median(taken))


def random_clip(folder: Path) -> None:
    """A CLIP ViT-B/32 image tower of random weights, as the hub's folders hold one."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=32, projection_dim=512)).save_pretrained(folder)


def clip_speed(folder: Path, frames: np.ndarray, times: int) -> dict[str, float]:
    """Batch 1, two threads, resizing left out (it is the same for all)."""
    torch.set_num_threads(2)
    eager = Clip.load(folder)
    figures, pixels = dict[str, float](), eager.prepare(frames)
    exact = np.concatenate([eager._run(one[None]) for one in pixels])
    figures["clip_torch_fp32_ms"] = median_ms(lambda: eager._run(pixels[:1]), times)
    for name, runtime in (("fp32", Runtime("onnxruntime", "fp32", 2)), ("int8", Runtime("onnxruntime", "int8", 2))):
        quick = Clip.load(folder, runtime=runtime)
        figures[f"clip_onnxruntime_{name}_ms"] = median_ms(functools.partial(quick._run, pixels[:1]), times)
        found = np.concatenate([quick._run(one[None]) for one in pixels])
        figures[f"clip_{name}_cosine"] = cosine(found, exact)
    figures["clip_int8_times_faster"] = figures["clip_torch_fp32_ms"] / figures["clip_onnxruntime_int8_ms"]
    return figures


def untrained(folder: Path, clip: Path, frames: np.ndarray) -> Checkpoint:
    """A student of the package's robot on that CLIP, untrained, as a checkpoint: what matters here is its speed."""
    like, encoder = load_checkpoint(CHECKPOINT), Clip.load(clip)
    config = replace(like.config, grid=encoder.grid, features=encoder.features)
    manifest = replace(like.manifest, student=config, encoder=EncoderReference("clip", str(clip), encoder.sha256))
    tokens = encoder.encode(frames)
    wide = {"tokens_mean": tokens.mean(axis=(0, 1)), "tokens_std": tokens.std(axis=(0, 1)) + 1e-3}
    normalization = replace(like.normalization, **wide)
    save_checkpoint(folder, Student(config), manifest, normalization, Calibration.fit([tokens], like.rate),
                    like.metrics, "")  # fmt: skip
    return load_checkpoint(folder)


def through_ros(student: Path, threads: int) -> dict[str, float]:
    """Camera to action of an episode's replay at 20 Hz through all nodes, as ``monitor`` measures it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sage_ros.nodes.pick_place", "--episodes", "2,3", "--report", folder,
                   "--checkpoint", str(student), "--ros-args", "-p", f"vision_irp:threads:={threads}",
                   "-p", "vision_irp:precision:=int8"]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, text=True)
        latency = json.loads((Path(folder) / "session.json").read_text())["latency_ms"]
    return {"clip_camera_to_action_p50_ms": latency["p50"], "clip_camera_to_action_p99_ms": latency["p99"]}


def on_gpu(student: Path, clip: Path, frames: np.ndarray, state: np.ndarray, times: int) -> dict[str, float]:
    """Frame to action on one GPU without ROS: CLIP, trust filter and student; GPU memory with the CUDA context."""
    free = torch.cuda.mem_get_info()[0]
    context = torch.cuda.mem_get_info()[1] - free  # all that is taken before anything is allocated
    checkpoint = load_checkpoint(student, "cuda")
    encoder = Clip.load(clip, "cuda", Runtime("auto", "auto", gpu_memory=1.0))
    trust, row = TrustAttention(checkpoint.calibration), iter(range(10**9))

    def act() -> object:
        frame = frames[next(row) % len(frames)]
        tokens = trust.update(encoder.encode(frame[None])[0], 0.05).tokens
        return checkpoint.policy.infer(Observation(tokens, state, None, "pick"))

    print(f"CLIP on the GPU: {encoder.runtime}", flush=True)
    p50 = median_ms(act, times)
    memory = (torch.cuda.max_memory_reserved() + context) / 1e9
    return {"clip_gpu_camera_to_action_p50_ms": p50, "clip_gpu_memory_gb": memory}


def tiny_vae() -> dict[str, float]:
    """Held-out reconstruction beside PCA and JPEG of the same size."""
    encoder = load_encoder("tiny_vae", ENCODER)
    assert isinstance(encoder, TinyVae)
    split = json.loads((ENCODER / "metrics.json").read_text())["split"]
    dataset = EpisodeDataset(EPISODES)
    training, held_out = (load_views(dataset, split[part], encoder.config.size, None, (217.0, 20.0, 15.0))
                          for part in ("train", "held_out"))  # fmt: skip
    metrics = measure(encoder, training, held_out)
    print(format_metrics(metrics))
    frames = np.concatenate([view.frames for view in held_out])[::8]
    latent = torch.cat([encoder.posterior(encoder.prepare(part))[0] for part in np.array_split(frames, 8)])
    step = latent.abs().amax(dim=(0, 2, 3), keepdim=True) / 127.0
    seen = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255.0
    coded = float((encoder.decode((latent / step).round() * step) - seen).square().mean())
    jpeg = [jpeg_error(frame, latent[0].numel()) for frame in frames]
    ours, theirs = psnr(coded), psnr(float(np.mean(jpeg)))
    print(f"in {latent[0].numel()} bytes a frame: TinyVAE {ours:.2f} dB, JPEG {theirs:.2f} dB")
    table = metrics["reconstruction"]
    return {
        "tiny_vae_ms": milliseconds(encoder, np.repeat(np.repeat(frames[0], 4, axis=0), 4, axis=1), 200),
        "tiny_vae_mse": table["tiny_vae"]["mse"],
        "pca_mse": table["pca"]["mse"],
        "tiny_vae_over_pca": table["tiny_vae"]["mse"] / table["pca"]["mse"],
        "tiny_vae_8_bit_mse": coded,
        "jpeg_mse": float(np.mean(jpeg)),
    }


def jpeg_error(frame: np.ndarray, most: int) -> float:
    """Mean squared error (pixels in [0, 1]) of the best JPEG of at most so many bytes."""
    for quality in range(100, 0, -1):
        data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        if len(data) <= most:
            break
    back = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1]
    return float(np.square(back / 255.0 - frame / 255.0).mean())


def grasp_error(policy: ChunkPolicy, demonstration: Demonstration) -> float:
    """Mean squared error of the chunks that are asked for in the second before the gripper closes."""
    gripper = demonstration.action[:, demonstration.action_joints.names.index("gripper")]
    closing = int(np.argmin(np.diff(gripper)))
    errors = []
    for row in range(max(0, closing - BEFORE), closing + 1, 2):
        goal = demonstration.action[row : row + policy.horizon]
        chunk = policy.infer(demonstration.observation(row)).positions[: len(goal)]
        errors.append(np.square(chunk - goal).mean())
    return float(np.mean(errors))


def sight(options: argparse.Namespace) -> dict[str, float]:
    """A student with eyes and one without, by held-out error before the grasp and overall, and by closed loop."""
    shipped, dataset = load_checkpoint(CHECKPOINT), EpisodeDataset(EPISODES)
    shown = {d.index: d for d in load_demonstrations(dataset, shipped.load_encoder(), shipped.cameras[0])}
    parts = [[shown[i] for i in shipped.metrics["split"][part]] for part in ("train", "validation", "held_out")]
    parts[0] += simulate(range(FIRST_SEED, FIRST_SEED + options.simulate), shipped.encoder_name,
                         shipped.encoder_source, options.jobs)  # fmt: skip
    figures: dict[str, float] = {"demonstrations": len(parts[0])}
    for name, (train, validation, held_out) in (("sighted", parts), ("blind", [blinded(part) for part in parts])):
        cloned = clone(train, validation, shipped.config, CloningConfig(steps=options.steps))
        policy = StudentPolicy(cloned.student, cloned.normalization, shipped.rate)
        figures[f"{name}_grasp_error"] = float(np.mean([grasp_error(policy, d) for d in held_out]))
        figures[f"{name}_error"] = float(np.mean([open_loop_error(policy, d, steps=None) for d in held_out]))
        if name == "blind":  # what it sees in the closed loop is as nothing, as it was in training
            torch.nn.init.zeros_(cloned.student.embed.weight)
        figures[f"{name}_placed_percent"] = placed(shipped, cloned, options)
    for kind in ("grasp_error", "error"):
        figures[f"sighted_over_blind_{kind}"] = figures[f"sighted_{kind}"] / figures[f"blind_{kind}"]
    sighted, blind = figures["sighted_placed_percent"], figures["blind_placed_percent"]
    figures["share_placed_by_sight"] = (sighted - blind) / sighted if sighted else 0.0
    return figures


def placed(like: Checkpoint, cloned: Cloned, options: argparse.Namespace) -> float:
    """Percent of unseen simulated episodes in which it places the cube, through the whole pipeline in one thread."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "student", cloned.student, like.manifest, cloned.normalization, like.calibration,
                        like.metrics, "", like.encoder_files)  # fmt: skip
        trial = Trial(checkpoint=f"{folder}/student", bounds=MOST)
        tasks = [(trial, UNSEEN + k, None) for k in range(options.episodes)]
        return 100.0 * float(np.mean([outcome.success for outcome in run_trials(tasks, options.jobs)]))


def real(folder: Path, steps: int) -> dict[str, float]:
    """Leave one episode out: GR00T's metric of a student per encoder, trained as on few episodes, but with eyes."""
    dataset, figures = EpisodeDataset(folder), dict[str, float]()
    config, sizes = recipe(FEW, len(dataset) - 1)
    config, sizes = replace(config, steps=steps), sizes | {"queries": 8}
    for name, source in ENCODERS.items():
        encoder = load_encoder(name, source)
        shown = load_demonstrations(dataset, encoder)
        for way, demonstrations in (("", shown), ("_blinded", blinded(shown) if name == "tiny_vae" else [])):
            errors = []
            for held in demonstrations:
                train = [d for d in demonstrations if d is not held]
                cloned = clone(train, [], student_for(train, encoder.grid, encoder.features, sizes), config)
                policy = StudentPolicy(cloned.student, cloned.normalization, held.rate)
                errors.append(open_loop_error(policy, held, steps=None))
            if errors:
                figures[f"real_{name}{way}_error"] = float(np.mean(errors))
    return figures


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[], help="what to measure (all that can be here)")
    parser.add_argument("--times", type=int, default=40, help="timed passes (%(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="gradient steps of a student (%(default)s)")
    parser.add_argument("--simulate", type=int, default=200, help="demonstrations besides, for sight (%(default)s)")
    parser.add_argument("--episodes", type=int, default=20, help="closed loop of sight, of either kind (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes that simulate (%(default)s)")
    parser.add_argument("--real", default="", metavar="FOLDER", help="GR00T's demonstration episodes")
    options = parser.parse_args()
    there = {"gpu": torch.cuda.is_available(), "real": bool(options.real)}
    options.only = options.only or [part for part in PARTS if there.get(part, True)]
    if "real" in options.only and not options.real:
        parser.error("real needs --real FOLDER")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    bars: dict[str, Bar]
    if "tiny_vae" in options.only:
        bars = {"tiny_vae_ms": ("<=", 5.0), "tiny_vae_over_pca": ("<=", 1.0)}
        conclude("encoders_tiny_vae", tiny_vae(), bars, options.record)
    if "sight" in options.only:
        bars = {"sighted_over_blind_grasp_error": ("<=", 0.5), "share_placed_by_sight": (">=", 0.5)}
        conclude("encoders_sight", sight(options), bars, options.record)
    if "real" in options.only:
        conclude("encoders_real", real(Path(options.real), options.steps // 4), {}, options.record)
    if {"clip", "gpu"} & set(options.only):
        print("CLIP has random weights here: its figures are of speed, none of accuracy", flush=True)
        episode = EpisodeDataset(EPISODES)[0]
        frames = episode.frames()
        with tempfile.TemporaryDirectory() as folder:
            clip, student = Path(folder) / "clip", Path(folder) / "student"
            random_clip(clip)
            untrained(student, clip, frames[:16])
            if "clip" in options.only:
                figures = clip_speed(clip, frames[:: len(frames) // 8][:8], options.times) | through_ros(student, 2)
                bars = {"clip_int8_times_faster": (">=", 3.0), "clip_int8_cosine": (">=", 0.999),
                        "clip_camera_to_action_p99_ms": ("<=", 50.0)}  # fmt: skip
                conclude("encoders_clip", figures, bars, options.record)
            if "gpu" in options.only:
                figures = on_gpu(student, clip, frames, episode.state[0], 10 * options.times)
                bars = {"clip_gpu_camera_to_action_p50_ms": ("<=", 3.0), "clip_gpu_memory_gb": ("<=", 1.0)}
                conclude("encoders_gpu", figures, bars, options.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
