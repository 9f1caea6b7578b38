"""A bad data set gets an error that names the file, the row and the remedy."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from episode_sets import DEMO, edit, film, make, needs_demo, rewrite, spoilt_and_refused

from sage_ros.episodes import DatasetError, EpisodeDataset
from sage_ros.episodes.video import encode

PARQUET = "data/chunk-000/episode_000000.parquet"
MP4 = "videos/chunk-000/observation.images.front/episode_000000.mp4"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "set")


def error_of(folder: Path, align: str = "index") -> DatasetError:
    """The error of reading the first episode with its frames; fails if there is none, or one without a remedy."""
    with pytest.raises(DatasetError) as caught:
        EpisodeDataset(folder, align)[0].frames()
    assert caught.value.remedy
    assert "Remedy: " in str(caught.value)
    return caught.value


def test_error_names_file_row_and_remedy_and_survives_pickling():
    error = DatasetError("is NaN", Path("/d/a.parquet"), 7, "record it again")
    assert str(error) == "/d/a.parquet: row 7: is NaN. Remedy: record it again"
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.file, copy.row, copy.remedy) == (str(error), error.file, 7, "record it again")


@pytest.mark.parametrize("name", ["info.json", "modality.json", "episodes.jsonl", "tasks.jsonl"])
def test_missing_empty_broken_or_pointer_metadata(folder, name):
    path = folder / "meta" / name
    good = path.read_text()
    for content, says in (("", "empty"), ("{", "JSON"), ("[1]", "not an object"), (LFS, "git lfs pull")):
        path.write_text(content)
        error = error_of(folder)
        assert says in str(error) and error.file == path
    path.write_bytes(b"\xff\xfe{")
    assert error_of(folder).file == path
    path.unlink()
    if name != "modality.json":  # which is guessed
        assert "missing" in str(error_of(folder))
    path.write_text(good)
    EpisodeDataset(folder)[0].frames()


def test_missing_folder(tmp_path):
    assert "no folder" in str(error_of(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("version", "says"),
    [("v1.6", "v1_to_v2"), ("v2.2", "convert"), (2, "codebase_version")],
)
def test_other_versions_are_refused_with_the_way_out(folder, version, says):
    edit(folder / "meta/info.json", lambda info: info.update(codebase_version=version))
    error = error_of(folder)
    assert str(version) in str(error) and says in str(error)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fps", 0),
        ("fps", -20),
        ("fps", float("nan")),
        ("fps", 1e9),
        ("fps", "20"),
        ("fps", True),
        ("chunks_size", 0),
        ("features", None),
        ("data_path", None),
        ("video_path", 3),
    ],
)
def test_impossible_info(folder, key, value):
    edit(folder / "meta/info.json", lambda info: info.update({key: value}))
    error = error_of(folder)
    assert key in str(error) and error.file == folder / "meta/info.json"


@pytest.mark.parametrize("shape", [[0], [-3], [10**9], [3, 3], [], "3", None, [True], [3.0]])
def test_absurd_shapes(folder, shape):
    edit(folder / "meta/info.json", lambda info: info["features"]["action"].update(shape=shape))
    assert "features['action'] has shape" in str(error_of(folder))


def test_feature_that_info_json_lacks(folder):
    edit(folder / "meta/info.json", lambda info: info["features"].pop("action"))
    assert "no 'action'" in str(error_of(folder))


@pytest.mark.parametrize(
    ("group", "says"),
    [
        ({"start": 0, "end": 4}, "[0:4], but column 'action' has 3"),
        ({"start": 2, "end": 2}, "[2:2]"),
        ({"start": -1, "end": 2}, "[-1:2]"),
        ({"start": 0}, "'end' is missing"),
        ({"start": 0, "end": 2.5}, "'end' is 2.5"),
        ({"start": 0, "end": 2, "original_key": "nope"}, "no 'nope'"),
        ({"start": 0, "end": 2, "original_key": 5}, "original_key"),
        ({"start": 1, "end": 3}, "in two groups"),
        (7, "'action'"),
    ],
)
def test_groups_that_do_not_fit(folder, group, says):
    edit(folder / "meta/modality.json", lambda modality: modality["action"].update(arm=group))
    assert says in str(error_of(folder))


@pytest.mark.parametrize(
    ("name", "record", "says"),
    [
        ("episodes.jsonl", {"episode_index": 1, "length": 6}, "occurs twice"),
        ("episodes.jsonl", {"episode_index": -1, "length": 6}, "negative"),
        ("episodes.jsonl", {"episode_index": 2, "length": 0}, "length 0"),
        ("episodes.jsonl", {"episode_index": 2}, "'length' is missing"),
        ("tasks.jsonl", {"task_index": 1, "task": "x"}, "occurs twice"),
        ("tasks.jsonl", {"task_index": "2", "task": "x"}, "'task_index'"),
        ("tasks.jsonl", {"task_index": 2, "task": None}, "'task'"),
    ],
)
def test_bad_line_names_its_row(folder, name, record, says):
    with (folder / "meta" / name).open("a") as file:
        file.write(json.dumps(record) + "\n")
    error = error_of(folder)
    assert says in str(error) and error.row == 2 and error.file == folder / "meta" / name


def test_no_episodes(folder):
    (folder / "meta/episodes.jsonl").write_text("\n")
    assert "no episode" in str(error_of(folder))


@pytest.mark.parametrize("relative", [PARQUET, MP4])
def test_missing_empty_truncated_or_pointer_file(folder, relative):
    path = folder / relative
    good = path.read_bytes()
    cases = ((b"", "empty"), (good[: len(good) // 2], ""), (b"\0" * 4096, "broken"), (LFS.encode(), "git lfs pull"))
    for content, says in cases:
        path.write_bytes(content)
        error = error_of(folder)
        assert says in str(error) and error.file == path
    path.unlink()
    error = error_of(folder)
    assert "missing" in str(error) and error.file == path
    path.mkdir()
    assert error_of(folder).file == path


def test_damaged_film_is_not_shown(folder):
    path = folder / MP4
    noise = np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), np.uint8)
    encode(path, noise, 20, crf=10)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 2000
    content[start : start + 4000] = b"\x55" * 4000
    path.write_bytes(content)
    assert error_of(folder).file == path


@pytest.mark.parametrize("align", ["index", "timestamp"])
def test_short_film_names_rows_and_frames(folder, align):
    encode(folder / MP4, film(3), 20)
    error = error_of(folder, align)
    assert "3 frames for 6 rows" in str(error) and error.file == folder / MP4
    assert error.row == (3 if align == "index" else 4)  # a row may show a frame of one period earlier


def test_length_that_differs_from_episodes_jsonl(folder):
    (folder / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 5}')
    error = error_of(folder)
    assert "6 rows" in str(error) and "says 5" in str(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_value_that_is_no_number_names_row_and_joint(folder, value):
    state = EpisodeDataset(folder)[0].state
    state[4, 1] = value
    rewrite(folder, lambda columns: columns.update({"observation.state": pa.array(state.tolist())}))
    error = error_of(folder)
    assert error.row == 4 and "lift" in str(error) and str(value) in str(error) and error.file == folder / PARQUET


def test_null_row_and_null_value(folder):
    rows = EpisodeDataset(folder)[0].action.tolist()
    for bad in (None, [1.0, None, 2.0]):
        rows[3] = bad
        for kind in (pa.list_(pa.float32()), pa.list_(pa.float32(), 3)):
            rewrite(folder, lambda columns, k=kind: columns.update(action=pa.array(rows, k)))
            error = error_of(folder)
            assert error.row == 3 and "null" in str(error)


def test_wrong_width_names_both_widths_and_the_row(folder):
    rows = EpisodeDataset(folder)[0].action.tolist()
    rows[2].append(0.0)
    rewrite(folder, lambda columns: columns.update(action=pa.array(rows)))
    error = error_of(folder)
    assert error.row == 2 and "has 4 values, but meta/info.json says 3" in str(error)
    rewrite(folder, lambda columns: columns.update(action=pa.array([[0.0] * 7] * 6, pa.list_(pa.float32(), 7))))
    assert "has 7 values, but meta/info.json says 3" in str(error_of(folder))
    rewrite(folder, lambda columns: columns.update(action=pa.array([0.0] * 6)))
    assert "has 1 values, but meta/info.json says 3" in str(error_of(folder))


def test_columns_that_are_missing_or_of_text(folder):
    rewrite(folder, lambda columns: columns.update(action=pa.array([["a", "b", "c"]] * 6)))
    assert "not numbers" in str(error_of(folder))
    rewrite(folder, lambda columns: columns.pop("action"))
    assert "no column action" in str(error_of(folder))


def test_time_that_runs_backwards(folder):
    rewrite(folder, lambda columns: columns.update(timestamp=pa.array([0.0, 0.1, 0.2, 0.2, 0.3, 0.4])))
    assert error_of(folder).row == 3


def test_task_that_is_unknown_or_changes(folder):
    column = "annotation.human.action.task_description"
    rewrite(folder, lambda columns: columns.update({column: pa.array([0, 0, 0, 0, 9, 0])}))
    error = error_of(folder)
    assert error.row == 4 and "tasks.jsonl" in str(error)
    rewrite(folder, lambda columns: columns.update({column: pa.array([0, 0, 0, 1, 1, 1])}))
    assert error_of(folder).row == 3


def test_statistics_that_do_not_fit(folder):
    for change in (
        lambda stats: stats["action"].update(mean=[0.0]),
        lambda stats: stats["action"].update(mean=[0.0, float("nan"), 0.0]),
        lambda stats: stats.update(action=5),
        lambda stats: stats["action"].update(mean="high"),
    ):
        good = (folder / "meta/stats.json").read_text()
        edit(folder / "meta/stats.json", change)
        with pytest.raises(DatasetError, match=r"stats\.json.*Remedy: delete"):
            _ = EpisodeDataset(folder).stats
        (folder / "meta/stats.json").write_text(good)


@pytest.mark.parametrize(
    "template",
    [
        "../set2/{episode_index:06d}.parquet",
        "/etc/passwd",
        "data/../../{episode_index}",
        "{episode_index.__class__}",
        "{episode_index!r}",
        "{secret}",
        "{0}",
        "{}",
        "{episode_index",
        "{episode_index:0999999999d}",
        "{episode_index:{episode_chunk}d}",
        "data/\0",
    ],
)
def test_path_templates_cannot_leave_the_folder_nor_run_code(folder, template):
    (folder.parent / "set2").mkdir()
    shutil.copy(folder / PARQUET, folder.parent / "set2/000000.parquet")
    edit(folder / "meta/info.json", lambda info: info.update(data_path=template))
    assert "data_path" in str(error_of(folder))


def test_video_key_cannot_leave_the_folder(folder):
    key = "../../../../outside"
    edit(folder / "meta/modality.json", lambda modality: modality["video"]["front"].update(original_key=key))
    assert "outside the data set" in str(error_of(folder))


@pytest.mark.parametrize("relative", [PARQUET, MP4, "meta/tasks.jsonl"])
def test_link_that_leaves_the_folder(folder, relative):
    outside = folder.parent / "outside"
    shutil.move(folder / relative, outside)
    (folder / relative).symlink_to(outside)
    error = error_of(folder)
    assert "outside the data set" in str(error) and "cp -rL" in str(error)


def test_film_too_large_for_memory(folder, monkeypatch):
    monkeypatch.setattr("sage_ros.episodes.video.MAX_DECODED_BYTES", 6 * 48 * 64 * 3 - 1)
    for align in ("index", "timestamp"):
        assert "frames of 64x48 take" in str(error_of(folder, align))


def test_spoilt_bytes_anywhere_raise_nothing_but_dataset_errors(folder):
    files = [path for path in sorted(folder.rglob("*0.*")) if path.is_file()] + sorted(folder.glob("meta/*"))

    def read():
        dataset = EpisodeDataset(folder)
        assert dataset[0].frames().shape[3] == 3 and dataset.stats

    assert spoilt_and_refused(files * 12, read) > 40


@needs_demo
def test_published_demo_without_one_film_names_it(tmp_path):
    copy = tmp_path / "demo"
    shutil.copytree(DEMO, copy, copy_function=shutil.copyfile)
    film_path = copy / "videos/chunk-000/observation.images.ego_view/episode_000002.mp4"
    film_path.unlink()
    dataset = EpisodeDataset(copy)
    assert len(dataset[1]) == 470
    with pytest.raises(DatasetError, match=r"episode_000002\.mp4.*missing.*ego_view"):
        dataset[2]
