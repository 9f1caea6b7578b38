"""Leave one episode out: a policy per episode and seed, trained on the others, and what it predicts on that one.

Predictions lie in a folder, one file per fold and seed, so that a run that was stopped goes on where it stopped. A
policy that needs an environment of its own can write such files itself (:func:`save_prediction`).
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from tqdm import tqdm

from sage_ros.core.chunks import ChunkPolicy
from sage_ros.training.openloop import EVERY, Demonstration, Prediction, predict_chunks

PLAN = "leave_one_out.json"
# Training episodes, validation episodes, seed -> policy; it must be picklable where several processes are asked for.
Train = Callable[[list[Demonstration], list[Demonstration], int], ChunkPolicy]


@dataclass(frozen=True)
class Fold:
    """Which episodes, by number, a policy is trained on, stops its training by, and is judged on."""

    held_out: int
    train: tuple[int, ...]
    validation: tuple[int, ...]
    seed: int

    @property
    def name(self) -> str:
        return f"episode_{self.held_out:06d}_seed_{self.seed}"


def make_folds(
    episodes: Sequence[int], seeds: Sequence[int], validation: int = 1, held: Sequence[int] = ()
) -> list[Fold]:
    """One fold per episode of ``held`` (none: all) and seed, seeds outermost; the seed also draws the ``validation``
    episodes out of the others.

    Raises ValueError on unknown or repeated numbers, or where no episode is left to train on.
    """
    held = list(held or episodes)
    if unknown := sorted(set(held) - set(episodes)):
        raise ValueError(f"there is no episode {unknown} to leave out; there are {list(episodes)}")
    if len(set(seeds)) != len(seeds) or len(set(held)) != len(held) or not seeds:
        raise ValueError(f"seeds and episodes must be given, each once, but are {list(seeds)} and {held}")
    if len(episodes) < validation + 2:
        raise ValueError(
            f"leaving one of {len(episodes)} episodes out and {validation} for validation leaves none to train on: "
            "lower --validation or record more episodes"
        )
    folds = []
    for seed in seeds:
        for one in held:
            rest = [index for index in episodes if index != one]
            drawn = np.random.default_rng([seed, one]).permutation(len(rest))[:validation]
            aside = tuple(sorted(rest[i] for i in drawn))
            folds.append(Fold(one, tuple(index for index in rest if index not in aside), aside, seed))
    return folds


def save_prediction(path: Path, prediction: Prediction, joints: Sequence[str]) -> None:
    """Write a prediction as .npz: ``chunks`` (C, every, A), ``rows``, ``joints`` (names) and maybe ``deviation``."""
    arrays = {"chunks": prediction.chunks, "rows": np.array(prediction.rows), "joints": np.array(joints)}
    if prediction.deviation is not None:
        arrays["deviation"] = prediction.deviation
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # the file appears whole or not at all
    with part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    part.replace(path)


def load_prediction(path: Path, demonstration: Demonstration) -> Prediction:
    """Read what :func:`save_prediction` wrote, for this episode; columns go by joint name.

    Raises ValueError where the file is damaged, of too few rows, not finite, or lacks a joint.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            kept = {name: file[name] for name in file.files}
        chunks, rows, names = kept["chunks"], int(kept["rows"]), [str(name) for name in kept["joints"]]
    except (BadZipFile, KeyError, OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a prediction ({error}): delete it and run again") from error
    order = demonstration.action_joints.order_from(names)
    found = [chunks] + ([kept["deviation"]] if "deviation" in kept else [])
    for array in found:
        if array.ndim != 3 or array.shape != chunks.shape or array.shape[2] != len(names):
            raise ValueError(f"{path}: chunks {chunks.shape} and {len(names)} joints do not fit: delete it, run again")
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: values are not finite")
    if rows != len(demonstration) or -(-rows // chunks.shape[1]) != len(chunks):
        raise ValueError(f"{path}: is of {rows} rows in {len(chunks)} chunks, but episode {demonstration.index} has "
                         f"{len(demonstration)}")  # fmt: skip
    return Prediction(chunks[..., order], found[1][..., order] if len(found) > 1 else None, rows)


def plan_key(demonstrations: Sequence[Demonstration], settings: str) -> str:
    """A hash of the episodes' content and of whatever else decides the result, in words."""
    digest = hashlib.sha256(settings.encode())
    for d in demonstrations:
        digest.update(f"{d.index} {d.task} {d.rate} {d.state_joints.names} {d.action_joints.names}".encode())
        for array in (d.state, d.action, d.tokens):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def leave_one_out(
    demonstrations: Sequence[Demonstration],
    train: Train,
    seeds: Sequence[int],
    out: Path,
    settings: str = "",
    held: Sequence[int] = (),
    validation: int = 1,
    every: int = EVERY,
    jobs: int = 1,
    threads: int = 1,
    progress: bool = True,
) -> dict[int, dict[int, Prediction]]:
    """Whole-episode predictions by seed and episode number, of policies that never saw that episode.

    ``settings`` says in words what ``train`` does: ``out`` is refused with ValueError where it holds results of other
    settings or episodes. What is there already is not trained again. ``jobs`` processes train at a time, each with
    ``threads`` threads. Raises whatever ``train`` raises; what was done before is kept.
    """
    folds = make_folds([d.index for d in demonstrations], seeds, validation, held)
    settings = f"{settings} validation={validation} every={every}"
    _claim(out, plan_key(demonstrations, settings), settings)
    by_index = {d.index: d for d in demonstrations}
    missing = [fold for fold in folds if not (out / f"{fold.name}.npz").exists()]
    if skipped := len(folds) - len(missing):
        tqdm.write(f"{skipped} of {len(folds)} trainings are in {out} already")
    bar = tqdm(total=len(missing), desc="leave one out", unit="training", disable=not progress)
    with bar, _workers(jobs, threads, demonstrations, train) as run:
        for fold, prediction in run(missing, every):
            save_prediction(out / f"{fold.name}.npz", prediction, demonstrations[0].action_joints.names)
            bar.update()
    found: dict[int, dict[int, Prediction]] = {seed: {} for seed in seeds}
    for fold in folds:
        found[fold.seed][fold.held_out] = load_prediction(out / f"{fold.name}.npz", by_index[fold.held_out])
    return found


def read_predictions(folder: Path, demonstrations: Sequence[Demonstration]) -> dict[int, dict[int, Prediction]]:
    """All predictions in a folder on these episodes, by seed and episode number.

    Raises ValueError where a seed lacks an episode or there is nothing.
    """
    by_index = {d.index: d for d in demonstrations}
    found: dict[int, dict[int, Prediction]] = {}
    for path in sorted(folder.glob("episode_*_seed_*.npz")):
        index, seed = (int(part) for part in path.stem.removeprefix("episode_").split("_seed_"))
        if index in by_index:
            found.setdefault(seed, {})[index] = load_prediction(path, by_index[index])
    if not found:
        raise ValueError(f"{folder} holds no predictions (episode_000003_seed_0.npz and so on) of these episodes")
    for seed, row in found.items():
        if lacking := sorted(set(by_index) - set(row)):
            raise ValueError(f"{folder}: seed {seed} has no prediction of episodes {lacking}")
    return found


def _claim(out: Path, key: str, settings: str) -> None:
    """Say in ``out`` what its results are of. Raises ValueError where it says something else."""
    plan = out / PLAN
    if plan.exists():
        try:
            known = json.loads(plan.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{plan} is damaged ({error}): delete {out} or choose another folder") from error
        if known.get("key") != key:
            raise ValueError(
                f"{out} holds results of other episodes or settings ({known.get('settings')}; now: {settings}): "
                "choose another folder or delete it"
            )
        return
    if out.is_dir() and any(out.glob("*.npz")):
        raise ValueError(f"{out} holds predictions of an unknown origin: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    part = plan.with_suffix(".part")
    part.write_text(json.dumps({"key": key, "settings": settings}, indent=1) + "\n", "utf-8")
    part.replace(plan)


def _train_and_predict(by_index: dict[int, Demonstration], train: Train, fold: Fold, every: int) -> Prediction:
    policy = train([by_index[i] for i in fold.train], [by_index[i] for i in fold.validation], fold.seed)
    return predict_chunks(policy, by_index[fold.held_out], every=min(every, policy.horizon))


Run = Callable[[Sequence[Fold], int], Iterator[tuple[Fold, Prediction]]]


@contextmanager
def _workers(jobs: int, threads: int, demonstrations: Sequence[Demonstration], train: Train) -> Iterator[Run]:
    """How to run folds: here one after the other, or in processes of their own, as they end."""
    by_index = {d.index: d for d in demonstrations}
    if jobs <= 1:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield lambda folds, every: ((fold, _train_and_predict(by_index, train, fold, every)) for fold in folds)
        finally:
            torch.set_num_threads(before)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    pool = ProcessPoolExecutor(jobs, context, _Worker.start, (by_index, train, threads))

    def run(folds: Sequence[Fold], every: int) -> Iterator[tuple[Fold, Prediction]]:
        waiting = {pool.submit(_Worker.work, fold, every): fold for fold in folds}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            failed = [future for future in done if future.exception() is not None]
            for future in done - set(failed):
                yield waiting.pop(future), future.result()
            for future in failed:
                future.result()  # raises

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)


class _Worker:
    """What a worker process keeps between trainings."""

    by_index: dict[int, Demonstration]
    train: Train

    @classmethod
    def start(cls, by_index: dict[int, Demonstration], train: Train, threads: int) -> None:
        torch.set_num_threads(threads)
        cls.by_index, cls.train = by_index, train

    @classmethod
    def work(cls, fold: Fold, every: int) -> Prediction:
        return _train_and_predict(cls.by_index, cls.train, fold, every)
