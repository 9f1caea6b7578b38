"""LeRobot v3.0: many episodes in a file; AV1, image columns; data sets without modality.json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from episode_sets import edit, film, make, make_v3, spoilt_and_refused

from sage_ros.episodes import DatasetError, EpisodeDataset
from sage_ros.episodes.modality import flat_names, guess_modality, save_modality

LEROBOT = Path(__file__).parent / "data/lerobot_v3"  # written by lerobot 0.4.4: AV1, three episodes
ROWS = "data/chunk-000/file-000.parquet"
LIST = "meta/episodes/chunk-000/file-000.parquet"
FILM = "videos/observation.images.front/chunk-000/file-000.mp4"


def change(path: Path, alter) -> None:
    """Rewrite a parquet file: ``alter`` gets and changes a map of column name to Arrow array."""
    table = pq.ParquetFile(path).read()
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    alter(columns)
    pq.write_table(pa.table(columns), path)


def error_of(folder: Path, position: int = 1) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        EpisodeDataset(folder)[position].frames()
    assert caught.value.remedy
    return caught.value


def test_files_that_lerobot_wrote_are_read_to_the_frame():
    dataset = EpisodeDataset(LEROBOT)
    assert (dataset.version, dataset.fps, dataset.cameras) == ("v3.0", 30.0, ("front", "wrist"))
    assert dataset.lengths == (20, 35, 12) and dataset.tasks == ("pick", "place")
    for number, (episode, task) in enumerate(zip(dataset, ("pick", "place", "pick"), strict=True)):
        rows = np.arange(len(episode))
        assert episode.task == task
        assert np.allclose(episode.state, (number + rows / 100)[:, None])
        assert np.allclose(episode.action, (number - rows / 100)[:, None])
        # AV1 of crf 30: each row's grey is its own, 5 and 4 levels from the next row's
        assert np.abs(episode.frames("front")[:, 60, 100].mean(-1) - (20 + 5 * rows)).max() < 7
        assert np.abs(episode.frames("wrist")[:, 40, 40].mean(-1) - (200 - 4 * rows)).max() < 3


@pytest.mark.parametrize("images", [False, True])
def test_episodes_of_one_file_are_those_of_a_file_each(tmp_path, images):
    old, new = EpisodeDataset(make(tmp_path / "old")), EpisodeDataset(make_v3(tmp_path / "new", images))
    for a, b in zip(old, new, strict=True):
        assert np.array_equal(a.state, b.state) and np.array_equal(a.action, b.action)
        assert np.array_equal(a.timestamp, b.timestamp) and a.task == b.task
        exact = film(len(b))
        assert np.abs(b.frames().astype(int) - exact).max() <= (0 if images else 6)
    assert np.allclose(old.stats["action"]["mean"], new.stats["action"]["mean"])
    by_time = EpisodeDataset(tmp_path / "new", align="timestamp")
    assert np.array_equal(by_time[1].frames(), new[1].frames())


def test_image_column_may_name_files_inside_the_data_set_only(tmp_path):
    folder = make_v3(tmp_path / "set", images=True)
    key = "observation.images.front"
    cells = pq.ParquetFile(folder / ROWS).read().column(key).to_pylist()
    (folder / "images").mkdir()
    for k, cell in enumerate(cells):
        (folder / f"images/{k}.png").write_bytes(cell["bytes"])
    paths = [{"bytes": None, "path": f"images/{k}.png"} for k in range(14)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    change(folder / ROWS, lambda columns: columns.update({key: pa.array(paths, kind)}))
    assert np.array_equal(EpisodeDataset(folder)[1].frames(), film(8))
    for path in ("../outside.png", "/etc/passwd"):
        bad = [*paths[:8], {"bytes": None, "path": path}, *paths[9:]]
        change(folder / ROWS, lambda columns, bad=bad: columns.update({key: pa.array(bad, kind)}))
        assert "outside the data set" in str(error_of(folder))
    for coded, says in ((b"\x89PNG", "PNG or JPEG"), (None, "no image")):
        cell = {"bytes": coded, "path": None}
        bad = [*paths[:8], cell, *paths[9:]]
        change(folder / ROWS, lambda columns, bad=bad: columns.update({key: pa.array(bad, kind)}))
        error = error_of(folder)
        assert says in str(error) and error.row == 2


@pytest.mark.parametrize("relative", [ROWS, FILM, LIST, "meta/tasks.parquet"])
def test_missing_empty_or_truncated_files_are_named(tmp_path, relative):
    folder = make_v3(tmp_path / "set")
    path = folder / relative
    good = path.read_bytes()
    for content in (b"", good[: len(good) // 2], b"\0" * 4096):
        path.write_bytes(content)
        assert error_of(folder).file == path
    path.unlink()
    assert relative.split("/")[1] in str(error_of(folder))


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("length", [6, 9], "8 rows, but meta/episodes says 9"),
        ("length", [6, 0], "length 0"),
        ("episode_index", [0, 0], "twice"),
        ("episode_index", [0, 7], "0 rows"),
        ("data/file_index", [0, 5], "missing"),
        ("videos/observation.images.front/from_timestamp", [0.0, 0.7], "from 0.7 to 0.7"),
        ("videos/observation.images.front/from_timestamp", [0.0, 0.4], "6 frames for 8 rows"),
        ("videos/observation.images.front/to_timestamp", [0.3, float("nan")], "finite"),
        ("data/chunk_index", [0, None], "null"),
        ("data/chunk_index", ["0", "0"], "not numbers"),
    ],
)
def test_list_of_episodes_that_does_not_fit(tmp_path, column, values, says):
    folder = make_v3(tmp_path / "set")
    change(folder / LIST, lambda columns: columns.update({column: pa.array(values)}))
    assert says in str(error_of(folder))


def test_rows_of_an_episode_must_be_in_one_piece(tmp_path):
    folder = make_v3(tmp_path / "set")
    mixed = pa.array([0, 1] * 7)
    change(folder / ROWS, lambda columns: columns.update(episode_index=mixed))
    assert "one piece" in str(error_of(folder))
    change(folder / ROWS, lambda columns: columns.pop("episode_index"))
    assert "episode_index" in str(error_of(folder))


@pytest.mark.parametrize("template", ["../{chunk_index}", "/etc/{file_index}", "{chunk_index.real}", "{video_key}"])
def test_templates_cannot_leave_the_folder(tmp_path, template):
    folder = make_v3(tmp_path / "set")
    edit(folder / "meta/info.json", lambda info: info.update(data_path=template))
    assert "data_path" in str(error_of(folder))


def test_spoilt_bytes_raise_nothing_but_dataset_errors(tmp_path):
    folder = make_v3(tmp_path / "set", images=True)

    def read():
        assert [len(episode.frames()) for episode in EpisodeDataset(folder)] == [6, 8]

    assert spoilt_and_refused([path for path in sorted(folder.rglob("*")) if path.is_file()] * 25, read) > 25


def test_names_are_found_however_they_nest():
    assert flat_names(["a.pos", "b"]) == (["a", "b"], {})
    assert flat_names([["a"], ["b", "c"]])[0] == ["a", "b", "c"]
    assert flat_names({"motors": ["a", "b"]}) == (["a", "b"], {"motors": 2})
    assert flat_names({"left": ["a"], "right": [["b", "c"]]}) == (["a", "b", "c"], {"left": 1, "right": 2})
    assert flat_names({"y": 1, "x": 0})[0] == ["x", "y"]
    assert flat_names([1, None, "a"])[0] == ["", "", "a"]


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["pan.pos", "lift.pos", "gripper.pos"], {"single_arm": [0, 2], "gripper": [2, 3]}),
        (["left_a", "left_gripper", "right_a"], {"left_arm": [0, 1], "left_gripper": [1, 2], "right_arm": [2, 3]}),
        ({"left": ["a", "b"], "right": ["c"]}, {"left": [0, 2], "right": [2, 3]}),
        ([["a"], ["b", "c"]], {"joints": [0, 3]}),
        (["gripper", "a", "gripper_2"], {"joints": [0, 3]}),
        (["a", "b"], {"joints": [0, 3]}),
        (None, {"joints": [0, 3]}),
    ],
)
def test_groups_are_guessed_from_the_names(names, groups):
    feature = {"dtype": "float32", "shape": [3], "names": names}
    modality = guess_modality({"observation.state": feature, "action": feature}, lambda key: True)
    assert {name: [e["start"], e["end"]] for name, e in modality["state"].items()} == groups
    assert modality["state"].keys() == modality["action"].keys()


def test_the_guess_is_told_once_and_can_be_saved_and_edited(tmp_path, caplog):
    folder = make_v3(tmp_path / "set")
    ghost = {"dtype": "video", "shape": [9, 9, 3], "names": None}
    edit(folder / "meta/info.json", lambda info: info["features"].update({"observation.images.ghost": ghost}))
    dataset = EpisodeDataset(folder)
    assert dataset.guessed and dataset.cameras == ("front",)
    assert [r.message for r in caplog.records if "guessed" in r.message and "front" in r.message]
    assert dataset.state_joints.groups == {"left_arm": (0, 2), "left_gripper": (2, 3)}
    path = save_modality(folder, dataset.modality)
    edit(path, lambda modality: modality["state"].update(claw=modality["state"].pop("left_gripper")))
    again = EpisodeDataset(folder)
    assert not again.guessed and again.state_joints.groups == {"left_arm": (0, 2), "claw": (2, 3)}
    assert again[1].task == "place"
    with pytest.raises(DatasetError, match="already"):
        save_modality(folder, dataset.modality)


def test_index_of_many_episodes_is_read_without_their_files(tmp_path):
    folder = make(tmp_path / "set")
    lines = [json.dumps({"episode_index": k, "tasks": ["pick"], "length": 6}) for k in range(10_000)]
    (folder / "meta/episodes.jsonl").write_text("\n".join(lines))
    dataset = EpisodeDataset(folder)
    assert len(dataset) == 10_000 and len(dataset[0]) == 6
    with pytest.raises(DatasetError, match="episode_000005"):
        dataset[5]
