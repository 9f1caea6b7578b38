"""Data sets at hand: random access to frames, memory within its budget, and the index of 10,000 episodes.

Data sets are made in a temporary folder. The film is 470 frames of 256x256 with two key frames; each measurement of
memory runs in a process of its own, whose peak is the kernel's (VmHWM: getrusage would begin at the parent's).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import Bar, arguments, conclude

from sage_ros.core.joints import JointLayout
from sage_ros.episodes import EpisodeDataset, EpisodeWriter
from sage_ros.episodes.video import decode, encode

ROWS, SIZE, KEY_FRAMES_APART = 470, 256, 250  # as GR00T's demonstrations
EPISODES = 10_000
FILMS = 8  # of 92 MB decoded each
BUDGET = 256 << 20
BARS: dict[str, Bar] = {
    "frame at random, ms median": ("<=", 1.0),
    "memory over the budget, share of it": ("<=", 1.0),
    "v2.1 index of 10000 episodes, s": ("<=", 2.0),
    "v2.1 index of 10000 episodes, MB": ("<=", 300.0),
    "v3.0 index of 10000 episodes, s": ("<=", 2.0),
    "v3.0 index of 10000 episodes, MB": ("<=", 300.0),
}
OPEN = """
import json, sys, time
began = time.perf_counter()
from sage_ros.episodes import EpisodeDataset
imported = time.perf_counter()
dataset = EpisodeDataset(sys.argv[1])
opened = time.perf_counter()
assert len(dataset) == int(sys.argv[2]) and len(dataset[0]) and dataset.lengths[-1]
peak = float(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
print(json.dumps([imported - began, opened - imported, peak]))
"""
ROAM = """
import json, sys
import numpy as np
from sage_ros.episodes import EpisodeDataset
dataset = EpisodeDataset(sys.argv[1], cache=int(sys.argv[2]))
peak = lambda: 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
dataset[0].frames()
first, film, rng = peak(), dataset[0].frames().nbytes, np.random.default_rng(0)
for _ in range(60):
    episode = dataset[int(rng.integers(len(dataset)))]
    episode.frame(int(rng.integers(len(episode)))).sum()
print(json.dumps([peak() - first + film, film]))
"""


def make_films(folder: Path) -> Path:
    """``FILMS`` episodes that all have the same film, which looks like a camera's: smooth, moving, a little noisy."""
    rng = np.random.default_rng(0)
    across = np.linspace(0, 6, SIZE)
    noise = rng.integers(-4, 5, (8, SIZE, SIZE, 3))

    def frames():  # type: ignore[no-untyped-def]
        for t in range(ROWS):
            wave = 120 + 60 * np.sin(across[:, None] + t / 20) + 50 * np.cos(across[None, :] * 2 - t / 30)
            yield np.clip(wave[..., None] + noise[t % 8], 0, 255).astype(np.uint8)

    film = folder / "film.mp4"
    encode(film, frames(), 20, gop=KEY_FRAMES_APART)
    joints = JointLayout(tuple(f"joint_{k}" for k in range(6)))
    with EpisodeWriter(folder / "films", 20, "arm", joints, {"front": (SIZE, SIZE)}) as writer:
        for _ in range(FILMS):
            rows = rng.normal(size=(ROWS, 6))
            writer.add(rows, rows, "look", {"front": film})
    return folder / "films"


def make_v21_index(folder: Path, source: Path) -> Path:
    """A data set of 10,000 listed episodes, of which the first is there."""
    meta = folder / "meta"
    meta.mkdir(parents=True)
    for name in ("info.json", "modality.json", "tasks.jsonl"):
        (meta / name).write_bytes((source / "meta" / name).read_bytes())
    listed = ({"episode_index": k, "tasks": ["look"], "length": ROWS} for k in range(EPISODES))
    (meta / "episodes.jsonl").write_text("".join(json.dumps(one) + "\n" for one in listed))
    for path in (path for part in ("data", "videos") for path in (source / part).rglob("*000000.*")):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder


def make_v3_index(folder: Path, source: Path) -> Path:
    """The same as LeRobot v3.0 lists it, statistics of every episode included; of the rows, one file of 100."""
    info = json.loads((source / "meta/info.json").read_text())
    key = "observation.images.front"
    info |= {"codebase_version": "v3.0", "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"}
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    numbers, together = np.arange(EPISODES), 100
    columns: dict[str, object] = {"episode_index": numbers, "length": np.full(EPISODES, ROWS)}
    columns["tasks"] = [["look"]] * EPISODES
    for at in ("data/", f"videos/{key}/"):
        columns |= {f"{at}chunk_index": np.zeros(EPISODES, np.int64), f"{at}file_index": numbers // together}
    columns[f"videos/{key}/from_timestamp"] = numbers % together * ROWS / 20.0
    columns[f"videos/{key}/to_timestamp"] = (numbers % together + 1) * ROWS / 20.0
    for column in ("observation.state", "action"):
        for number in ("mean", "std", "min", "max", "q01", "q99"):
            values = pa.array(np.random.default_rng(1).normal(size=EPISODES * 6))
            columns[f"stats/{column}/{number}"] = pa.FixedSizeListArray.from_arrays(values, 6)
    for part in ("meta/episodes/chunk-000", "data/chunk-000", f"videos/{key}/chunk-000"):
        (folder / part).mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task_index": [0], "task": ["look"]}), folder / "meta/tasks.parquet")
    (folder / "meta/info.json").write_text(json.dumps(info))
    (folder / "meta/modality.json").write_bytes((source / "meta/modality.json").read_bytes())
    first = pq.ParquetFile(source / "data/chunk-000/episode_000000.parquet").read()
    place = first.column_names.index("episode_index")
    with pq.ParquetWriter(folder / "data/chunk-000/file-000.parquet", first.schema) as writer:
        for k in range(together):
            writer.write_table(first.set_column(place, "episode_index", pa.array(np.full(ROWS, k))))
    film = source / f"videos/chunk-000/{key}/episode_000000.mp4"
    (folder / f"videos/{key}/chunk-000/file-000.mp4").write_bytes(film.read_bytes())
    return folder


def run(script: str, *given: object) -> list[float]:
    command = [sys.executable, "-c", script, *map(str, given)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    numbers: list[float] = json.loads(answer.stdout)
    return numbers


def access(films: Path, accesses: int) -> dict[str, float]:
    """Frames at random after the first touch, beside decoding from the key frame before, as without a cache."""
    dataset = EpisodeDataset(films)
    began = time.perf_counter()
    dataset[0].frames()
    first = time.perf_counter() - began
    rng, spans = np.random.default_rng(0), []
    for k in rng.integers(ROWS, size=accesses).tolist():
        began = time.perf_counter()
        dataset[0].frame(k).copy()
        spans.append(time.perf_counter() - began)
    path, seeks = dataset[0].videos["front"].path, []
    for k in rng.integers(ROWS, size=10).tolist():
        began = time.perf_counter()
        next(decode(path, 20.0, k / 20, (k + 1) / 20))
        seeks.append(time.perf_counter() - began)
    return {
        "first touch of an episode, ms": 1e3 * first,
        "frame at random, ms median": 1e3 * float(np.median(spans)),
        "frame at random, ms p99": 1e3 * float(np.quantile(spans, 0.99)),
        "the same by seeking in the film, ms median": 1e3 * float(np.median(seeks)),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--accesses", type=int, default=5000, help="frames taken at random (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        films = make_films(Path(scratch))
        figures = access(films, args.accesses)
        grown, film = run(ROAM, films, BUDGET)
        figures["decoded films of the data set, MB"] = FILMS * film / 2**20
        figures["budget and one film at work, MB"] = (BUDGET + film) / 2**20
        figures["memory grown by, MB"] = grown / 2**20
        figures["memory over the budget, share of it"] = grown / (BUDGET + film)
        for version, make in (("v2.1", make_v21_index), ("v3.0", make_v3_index)):
            folder = make(Path(scratch) / version, films)
            runs = [run(OPEN, folder, EPISODES) for _ in range(3)]
            imports, opened, peak = np.median(runs, axis=0).tolist()
            figures[f"{version} index of {EPISODES} episodes, s"] = opened
            figures[f"{version} index of {EPISODES} episodes, MB"] = peak
            figures[f"{version} besides, to import the package, s"] = imports
    conclude("episodes", figures, BARS, args.record)


if __name__ == "__main__":
    main()
