"""The command `episodes`: info, check, convert, view."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from episode_sets import JOINTS, edit, film, make, make_v3, rewrite

from sage_ros.episodes import EpisodeDataset, EpisodeWriter
from sage_ros.episodes.checks import check
from sage_ros.episodes.cli import main
from sage_ros.episodes.conversion import to_v21
from sage_ros.episodes.video import encode

PARQUET = "data/chunk-000/episode_000000.parquet"
MP4 = "videos/chunk-000/observation.images.front/episode_000000.mp4"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "set")


def test_info_says_what_is_in_a_data_set(folder, capsys):
    rewrite(folder, lambda columns: columns.update(action=pa.array([[0.0, float(k), 2.0] for k in range(6)])))
    rewrite(folder, lambda columns: columns.update(action=pa.array([[0.0, 1.0, 2.0]] * 8)), 1)
    assert main(["info", str(folder), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["version"], about["fps"], about["lengths"], about["rows"]) == ("v2.1", 20.0, [6, 8], 14)
    assert about["tasks"] == {"pick": 1, "place": 1} and about["cameras"] == {"front": [48, 64, "h264"]}
    assert [(j["name"], j["least"], j["greatest"]) for j in about["action"]] == [
        ("pan", 0.0, 0.0), ("lift", 0.0, 5.0), ("grip", 2.0, 2.0)]  # fmt: skip
    lift = np.array([0, 1, 2, 3, 4, 5, *[1] * 8])
    assert about["action"][1]["std"] == pytest.approx(lift.std())
    assert main(["info", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "action: 3 joints, 1 of them move" in text and "still: pan = 0, grip = 2" in text


def test_contact_sheet_shows_every_episode_over_time(folder, tmp_path):
    assert main(["info", str(folder), "--contact-sheet", str(tmp_path / "sheet.png")]) == 0
    sheet = cv2.imread(str(tmp_path / "sheet.png"), cv2.IMREAD_GRAYSCALE)
    assert sheet.shape[1] > 1000 and sheet.shape[0] > 300
    line = sheet[sheet.shape[0] // 2, 340:]  # frames grow brighter over an episode
    shades = [int(np.median(part)) for part in np.array_split(line, 8)]
    assert shades == sorted(shades) and shades[-1] > shades[0] + 60


def test_guess_is_saved_when_asked(tmp_path, capsys):
    folder = make_v3(tmp_path / "set")
    assert main(["info", str(folder), "--save-modality"]) == 0
    assert "left_gripper" in json.loads((folder / "meta/modality.json").read_text())["action"]
    assert main(["info", str(folder), "--save-modality"]) == 1
    assert "already" in capsys.readouterr().err


def test_sound_data_sets_pass_the_check(tmp_path, capsys):
    for folder in (make(tmp_path / "a"), make_v3(tmp_path / "b"), make_v3(tmp_path / "c", images=True)):
        assert main(["check", str(folder)]) == 0
        assert capsys.readouterr().out == "nothing is wrong\n"


def test_check_lists_everything_that_is_wrong_with_file_row_and_remedy(folder, capsys):
    state = EpisodeDataset(folder)[0].state.tolist()
    state[4][1] = float("nan")
    narrow = [[0.0, 0.0]] * 6
    rewrite(folder, lambda columns: columns.update({"observation.state": pa.array(state), "action": pa.array(narrow)}))
    times = pa.array([0.0, 0.05, 0.1, 0.15, 0.9, 0.95, 1.0, 1.05])
    rewrite(folder, lambda columns: columns.update(timestamp=times), 1)
    encode(folder / MP4, film(5), 20)
    last = folder / MP4.replace("000000", "000001")
    last.write_bytes(last.read_bytes()[:900])
    stray = folder / PARQUET.replace("000000", "000007")
    stray.write_bytes(b"")
    edit(folder / "meta/info.json", lambda info: info.update(total_frames=99))
    edit(folder / "meta/info.json", lambda info: info["features"]["action"].update(names=["a", "a", "b"]))
    found = [(p.fatal, Path(str(p.file)).name, p.row, p.what) for p in check(folder)]
    for fatal, name, row, says in (
        (True, "episode_000000.parquet", 4, "'observation.state' value 1 (value 1) is nan"),
        (True, "episode_000000.parquet", 0, "'action' has 2 values, but meta/info.json says 3"),
        (False, "episode_000001.parquet", 4, "1 of 7 rows are not 0.05 s after the last, but 0.75 s"),
        (True, "episode_000000.mp4", 5, "has 5 frames for 6 rows"),
        (False, "episode_000007.parquet", None, "belongs to no episode of meta/episodes.jsonl"),
        (False, "info.json", None, "'total_frames' is 99, but there are 14"),
        (False, "info.json", None, "'action' names a twice"),
    ):
        assert (fatal, name, row, says) in found
    assert any(fatal and name == "episode_000001.mp4" and "broken" in what for fatal, name, _, what in found)
    assert len(found) == 8
    assert main(["check", str(folder), "--no-films"]) == 1
    out = capsys.readouterr().out
    assert f"error: {folder / PARQUET}: row 4:" in out and "Remedy: " in out and "2 errors, 4 warnings" in out


def test_check_lists_all_that_is_wrong_with_the_metadata(folder, capsys):
    edit(folder / "meta/info.json", lambda info: info["features"]["action"].update(shape=[10**9]))
    edit(folder / "meta/modality.json", lambda modality: modality["state"]["arm"].update(end=9))
    with (folder / "meta/episodes.jsonl").open("a") as file:
        file.write('{"episode_index": 2, "length": 0}\n')
    assert main(["check", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "shape [1000000000]" in out and "[0:9]" in out and "length 0" in out and "3 errors" in out
    edit(folder / "meta/info.json", lambda info: info.update(fps=0))
    assert main(["check", str(folder)]) == 1
    assert "fps is 0" in capsys.readouterr().out


def test_warnings_count_only_when_asked(folder):
    edit(folder / "meta/info.json", lambda info: info.update(total_tasks=7))
    assert main(["check", str(folder)]) == 0 and main(["check", str(folder), "--strict"]) == 1


def test_v3_becomes_v21_with_modality_and_its_h264_films_are_copied_from_v2(tmp_path, capsys):
    assert main(["convert", str(make_v3(tmp_path / "new")), str(tmp_path / "old"), "--to", "v2.1"]) == 0
    a, b = EpisodeDataset(tmp_path / "new"), EpisodeDataset(tmp_path / "old")
    assert b.version == "v2.1" and not b.guessed and b.state_joints == a.state_joints
    for one, two in zip(a, b, strict=True):
        assert np.array_equal(one.state, two.state) and one.task == two.task
        assert np.abs(one.frames().astype(int) - two.frames()).max() < 8
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "again"), "--to", "v2.1"]) == 0
    assert (tmp_path / "again" / MP4).read_bytes() == (tmp_path / "old" / MP4).read_bytes()
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "again"), "--to", "v2.1"]) == 0
    assert "0 episodes written now" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "new"), str(tmp_path / "again"), "--to", "v2.1"]) == 1
    assert "source differs" in capsys.readouterr().err


def test_bags_and_back_by_command(folder, tmp_path, capsys):
    assert main(["convert", str(folder), str(tmp_path / "bags"), "--to", "mcap"]) == 0
    assert main(["convert", str(tmp_path / "bags"), str(tmp_path / "back"), "--to", "v2.1", "--lossless"]) == 0
    assert np.array_equal(EpisodeDataset(tmp_path / "back")[1].frames(), EpisodeDataset(folder)[1].frames())
    assert main(["convert", str(tmp_path / "bags"), str(tmp_path / "more"), "--to", "mcap"]) == 1
    (tmp_path / "bags/mapping.yaml").unlink()
    assert main(["convert", str(tmp_path / "bags"), str(tmp_path / "more"), "--to", "v2.1"]) == 1
    assert "write it like this" in capsys.readouterr().err


def test_conversion_that_was_killed_goes_on_to_the_same_bytes(tmp_path):
    with EpisodeWriter(tmp_path / "set", 20, "arm", JOINTS, {"front": (48, 64)}) as writer:
        for k in range(30):
            writer.add(np.full((12, 3), k), np.full((12, 3), -k), f"task {k % 7}", {"front": film(12)})
    command = [sys.executable, "-m", "sage_ros.episodes", "convert", str(tmp_path / "set"), str(tmp_path / "new"),
               "--to", "v2.1", "--lossless"]  # fmt: skip
    listed = tmp_path / "new/meta/episodes.jsonl"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not listed.exists() or len(listed.read_text().splitlines()) < 3:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    left = len(EpisodeDataset(tmp_path / "new"))
    assert 3 <= left < 30
    dataset = EpisodeDataset(tmp_path / "set")
    assert to_v21(dataset, tmp_path / "new", lossless=True) == 30 - left
    to_v21(dataset, tmp_path / "whole", lossless=True)
    assert EpisodeDataset(tmp_path / "new").fingerprint() == EpisodeDataset(tmp_path / "whole").fingerprint()


def test_odd_sizes_lose_their_last_line_rather_than_fail(tmp_path):
    folder = make_v3(tmp_path / "set", images=True)
    import pyarrow.parquet as pq

    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.ParquetFile(path).read()
    odd = cv2.imencode(".png", np.full((47, 63, 3), 90, np.uint8))[1].tobytes()
    cells = pa.array([{"bytes": odd, "path": ""}] * 14)
    key = "observation.images.front"
    pq.write_table(table.set_column(table.column_names.index(key), key, cells), path)
    to_v21(EpisodeDataset(folder), tmp_path / "new")
    assert EpisodeDataset(tmp_path / "new")[0].frames().shape == (6, 46, 62, 3)


def test_view_writes_a_page_or_a_picture(folder, tmp_path, capsys):
    assert main(["view", str(folder), "1", "--out", str(tmp_path / "one.html")]) == 0
    page = (tmp_path / "one.html").read_text()
    assert page.count("data:image") == 1 and page.count('"/9j/') == 8  # a JPEG a row, shown by the script
    assert "episode 1: place" in page and "http" not in page and page.count("<polyline") == 6
    assert main(["view", str(folder), "1", "--out", str(tmp_path / "one.png")]) == 0
    assert cv2.imread(str(tmp_path / "one.png")).shape[1] > 1000
    assert main(["view", str(folder), "7", "--out", str(tmp_path / "x.png")]) == 1
    assert "no episode 7" in capsys.readouterr().err
    assert main(["view", str(folder), "1", "--out", str(tmp_path / "x.gif")]) == 1


def test_page_cannot_be_broken_out_of_by_a_task(tmp_path):
    with EpisodeWriter(tmp_path / "set", 20, "arm", JOINTS, {}) as writer:
        writer.add(np.zeros((3, 3)), np.ones((3, 3)), "</title><script>alert(1)</script>")
    assert main(["view", str(tmp_path / "set"), "0", "--out", str(tmp_path / "one.html")]) == 0
    assert "<script>alert" not in (tmp_path / "one.html").read_text()


def test_errors_are_one_line_and_status_1(tmp_path, capsys):
    assert main(["info", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert [problem.fatal for problem in check("./nowhere")] == [True]


def test_help_teaches_without_ros(capsys):
    for command in ("info", "check", "convert", "view"):
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0 and len(capsys.readouterr().out) > 300
    assert subprocess.run([sys.executable, "-m", "sage_ros.episodes", "--help"], capture_output=True).returncode == 0
