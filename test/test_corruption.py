"""The corruption suite: what each kind does, how much of it, from when to when, and that a seed repeats it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_ros.core.timing import SECOND
from sage_ros.corruption import (
    DEVELOPMENT,
    FIELD_OF_VIEW,
    FRAMES,
    HELD_OUT,
    JOINTS,
    KINDS,
    Corruption,
    CorruptionConfig,
    parse_corruption,
)
from sage_ros.corruption_sheet import UNITS, draw_sheet, main

STEP = SECOND // 20
ON_FRAMES = [kind for kind, about in KINDS.items() if about.stream == FRAMES]
ON_JOINTS = [kind for kind, about in KINDS.items() if about.stream == JOINTS]
LOOKS = [kind for kind in ON_FRAMES if kind not in ("freeze", "latency", "frame_drop")]


def frames(count: int, size: int = 48) -> list[np.ndarray]:
    """Pictures of a bright square on a gradient; it moves by a pixel a frame."""
    ground = np.linspace(40, 200, size * size * 3).reshape(size, size, 3).astype(np.uint8)
    found = []
    for number in range(count):
        frame = ground.copy()
        frame[10:20, number % 30 : number % 30 + 10] = (250, 60, 20)
        frame[0, 0] = number % 256  # its number, as far as it goes
        found.append(frame)
    return found


def seen(shown: list[np.ndarray], kind: str, severity: int = 3, **settings: float) -> list[np.ndarray | None]:
    """What comes of them, at 20 Hz from second 100 on."""
    corruption = Corruption(CorruptionConfig(kind, severity, **settings))  # type: ignore[arg-type]
    return [corruption.frame(100 * SECOND + row * STEP, frame) for row, frame in enumerate(shown)]


def reported(states: np.ndarray, kind: str, severity: int = 3, **settings: float) -> np.ndarray:
    corruption = Corruption(CorruptionConfig(kind, severity, **settings))  # type: ignore[arg-type]
    return np.array([corruption.joints(100 * SECOND + row * STEP, state) for row, state in enumerate(states)])


def test_every_kind_is_either_for_development_or_held_out() -> None:
    assert {*DEVELOPMENT} | {*HELD_OUT} == {*KINDS} and not {*DEVELOPMENT} & {*HELD_OUT}
    assert abs(len(DEVELOPMENT) - len(HELD_OUT)) <= 1
    assert set(HELD_OUT) == {"noise", "colour_shift", "frame_drop", "biased_joints", "camera_moved"}


@pytest.mark.parametrize("kind", KINDS)
def test_levels_only_grow(kind: str) -> None:
    assert all(low < high for low, high in pairwise(KINDS[kind].levels))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(KINDS)), st.integers(1, 5), st.integers(0, 2**31 - 1))
def test_the_same_seed_repeats_it_and_nothing_given_is_changed(kind: str, severity: int, seed: int) -> None:
    shown, states = frames(12), np.cumsum(np.full((12, 6), 0.1), axis=0)
    before = [frame.copy() for frame in shown]
    first, again = (seen(shown, kind, severity, seed=seed) for _ in range(2))
    assert all((a is None and b is None) or np.array_equal(a, b) for a, b in zip(first, again, strict=True))  # type: ignore[arg-type]
    assert all(np.array_equal(a, b) for a, b in zip(shown, before, strict=True))
    kept = states.copy()
    assert np.array_equal(reported(states, kind, severity, seed=seed), reported(states, kind, severity, seed=seed))
    assert np.array_equal(states, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_and_ends_when_told_and_else_hands_on_what_it_was_given(kind: str) -> None:
    shown, states = frames(40), np.cumsum(np.full((40, 6), 0.01), axis=0)
    corruption = Corruption(CorruptionConfig(kind, 5, begin=0.5, duration=1.0))
    hit = []
    for row, (frame, state) in enumerate(zip(shown, states, strict=True)):
        stamp = 100 * SECOND + row * STEP
        picture, positions = corruption.frame(stamp, frame), corruption.joints(stamp, state)
        hit.append(picture is not frame or positions is not state)
        assert not hit[-1] or corruption.hits(stamp)
        assert (picture is frame) or KINDS[kind].stream == FRAMES
        assert (positions is state) or KINDS[kind].stream == JOINTS
    assert not any(hit[:10]) and not any(hit[30:])
    assert sum(hit[10:30]) == (20 if kind != "frame_drop" else pytest.approx(18, abs=2))


def test_none_changes_nothing() -> None:
    shown = frames(5)
    assert all(out is frame for out, frame in zip(seen(shown, "none"), shown, strict=True))


@pytest.mark.parametrize("kind", LOOKS)
def test_a_worse_one_leaves_less_of_the_picture(kind: str) -> None:
    (frame,) = frames(1)
    apart = [np.mean([np.abs(seen([frame], kind, severity, seed=seed)[0].astype(int) - frame).mean()  # type: ignore[union-attr]
                      for seed in range(20)]) for severity in range(1, 6)]  # fmt: skip
    assert all(low < high for low, high in pairwise(apart)), apart


@pytest.mark.parametrize("kind", [kind for kind in LOOKS if kind != "blur"])
def test_seeds_differ(kind: str) -> None:
    (frame,) = frames(1)
    assert len({seen([frame], kind, seed=seed)[0].tobytes() for seed in range(20)}) > 1  # type: ignore[union-attr]


@pytest.mark.parametrize("severity", range(1, 6))
def test_occlusion_covers_its_share(severity: int) -> None:
    frame = np.full((100, 160, 3), 7, np.uint8)
    for seed in range(30):
        (out,) = seen([frame], "occlusion", severity, seed=seed)
        assert out is not None
        covered = (out != frame).any(axis=2).mean()
        assert covered == pytest.approx(KINDS["occlusion"].levels[severity - 1], abs=0.02)


def test_blur_spreads_a_point_over_its_disk_and_keeps_the_light() -> None:
    frame = np.zeros((224, 224, 3), np.uint8)
    frame[108:117, 108:117] = 240  # bright enough for its sum to be told after rounding
    (out,) = seen([frame], "blur", 3)
    assert out is not None and out.sum() == pytest.approx(frame.sum(), rel=0.02)
    assert np.ptp(np.flatnonzero(out[112, :, 0])) == pytest.approx(9 + 2 * 6, abs=2)


def test_noise_has_its_deviation_and_is_fresh_in_each_frame() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    first, second = seen([grey, grey], "noise", 1)
    assert first is not None and second is not None and (first != second).mean() > 0.9
    assert (first.astype(float) - 128).std() / 255 == pytest.approx(0.08, rel=0.05)


def test_exposure_multiplies_the_light_by_two_per_stop() -> None:
    grey = np.full((8, 8, 3), 188, np.uint8)  # sRGB 188 is half of the light of 255
    outs = {int(seen([grey], "exposure", 2, seed=seed)[0][0, 0, 0]) for seed in range(10)}  # type: ignore[index]
    assert outs == {137, 255}  # a quarter, all


def test_a_colour_shift_leaves_one_channel_alone() -> None:
    grey = np.full((8, 8, 3), 128, np.uint8)
    for seed in range(10):
        (out,) = seen([grey], "colour_shift", 3, seed=seed)
        assert out is not None
        assert sorted(np.sign(out[0, 0].astype(int) - 128)) == [-1, 0, 1]


def test_a_frozen_camera_shows_its_last_good_picture_for_so_long() -> None:
    shown = frames(60)
    outs = [int(out[0, 0, 0]) for out in seen(shown, "freeze", 2, begin=0.5)]  # type: ignore[index]
    assert outs[:10] == [*range(10)]
    assert outs[10:] == [9] * 19 + [29] * 20 + [49] * 11
    assert [int(out[0, 0, 0]) for out in seen(shown, "freeze", 5, begin=0.5)][10:] == [9] * 50  # type: ignore[index]


def test_a_frozen_picture_is_not_that_of_a_buffer_filled_anew() -> None:
    buffer = np.zeros((4, 4, 3), np.uint8)
    corruption = Corruption(CorruptionConfig("freeze", 5))
    corruption.frame(0, buffer)
    buffer[:] = 9
    out = corruption.frame(STEP, buffer)
    assert out is not None and not out.any()


@pytest.mark.parametrize("severity", range(1, 6))
def test_late_pictures_are_as_old_as_told_in_spite_of_jitter(severity: int) -> None:
    rows = round(KINDS["latency"].levels[severity - 1] * 20)
    corruption = Corruption(CorruptionConfig("latency", severity, begin=1.0))
    jitter = np.random.default_rng(0).integers(-SECOND // 1000, SECOND // 1000, 60)
    outs = [corruption.frame(row * STEP + int(jitter[row]), f) for row, f in enumerate(frames(60))]
    assert [int(out[0, 0, 0]) for out in outs][25:] == [*range(25 - rows, 60 - rows)]  # type: ignore[index]
    assert len(corruption._past) <= rows + 2


@pytest.mark.parametrize("severity", range(1, 6))
def test_frames_are_dropped_at_their_rate(severity: int) -> None:
    outs = seen(frames(600, 4), "frame_drop", severity)
    share = KINDS["frame_drop"].levels[severity - 1]
    assert np.mean([out is None for out in outs]) == pytest.approx(share, abs=0.06)


def test_a_turned_camera_moves_the_middle_by_the_angle() -> None:
    """About an axis in the picture's plane the middle moves by f tan(angle), about the line of sight not at all."""
    size, degrees = 401, 4.0
    frame = np.zeros((size, size, 3), np.uint8)
    frame[198:203, 198:203] = 255
    focal = size / 2 / np.tan(np.radians(FIELD_OF_VIEW) / 2)
    for seed in range(5):
        (out,) = seen([frame], "camera_moved", 3, seed=seed)
        axis = np.random.default_rng(seed).standard_normal(3)
        x, y, z = axis / np.linalg.norm(axis)
        angle = np.radians(degrees)
        ray = [np.sin(angle) * y + (1 - np.cos(angle)) * x * z, -np.sin(angle) * x + (1 - np.cos(angle)) * y * z,
               np.cos(angle) + (1 - np.cos(angle)) * z * z]  # fmt: skip  # Rodrigues' formula on (0, 0, 1)
        weight = out[..., 0].astype(float)  # type: ignore[index]
        rows, columns = np.mgrid[:size, :size]
        found = [(weight * places).sum() / weight.sum() - 200 for places in (columns, rows)]
        assert found == pytest.approx([focal * ray[0] / ray[2], focal * ray[1] / ray[2]], abs=0.3)


@pytest.mark.parametrize(("severity", "count"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6)])
def test_stuck_joints_report_what_they_last_reported(severity: int, count: int) -> None:
    states = np.cumsum(np.full((30, 6), 0.01), axis=0)
    out = reported(states, "stuck_joints", severity, begin=0.5)
    stuck = np.ptp(out[10:], axis=0) == 0
    assert stuck.sum() == count
    assert (out[10:, stuck] == states[9, stuck]).all() and np.array_equal(out[:, ~stuck], states[:, ~stuck])
    assert reported(np.cumsum(np.ones((5, 1)), axis=0), "stuck_joints", 1).ravel().tolist() == [1] * 5, "at least one"


@pytest.mark.parametrize("severity", range(1, 6))
def test_biased_joints_are_off_by_their_level_for_good(severity: int) -> None:
    states = np.cumsum(np.full((30, 6), 0.01), axis=0)
    off = reported(states, "biased_joints", severity) - states
    assert (np.abs(off[0]) > 0).sum() == 2
    assert np.allclose(off, off[0]) and np.abs(off[0]).max() == pytest.approx(
        KINDS["biased_joints"].levels[severity - 1]
    )


def test_a_stream_that_begins_anew_has_its_fault_anew() -> None:
    corruption, shown = Corruption(CorruptionConfig("freeze", 5, begin=0.2)), frames(20)
    runs = [[corruption.frame(at * SECOND + row * STEP, f) for row, f in enumerate(shown)] for at in (100, 50)]
    assert [out[0, 0, 0] for out in runs[0]] == [out[0, 0, 0] for out in runs[1]]  # type: ignore[index]
    assert corruption.hits(51 * SECOND)
    corruption.reset()
    assert not corruption.hits(51 * SECOND)


def test_written_as_kind_and_severity() -> None:
    assert parse_corruption("freeze") == CorruptionConfig("freeze", 3)
    assert parse_corruption("blur:5", seed=2, begin=1.0) == CorruptionConfig("blur", 5, 2, 1.0)
    assert str(parse_corruption("blur:5")) == "blur:5"
    for text, problem in (("fog", "no kind 'fog', but occlusion"), ("blur:6", "from 1 to 5, not '6'"),
                          ("blur:", "not ''"), ("none", "no kind 'none'")):  # fmt: skip
        with pytest.raises(ValueError, match=problem):
            parse_corruption(text)
    with pytest.raises(ValueError, match="severity is 0"):
        CorruptionConfig("blur", 0)


def test_a_picture_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not \(4, 4\) uint8"):
        Corruption(CorruptionConfig("blur")).frame(0, np.zeros((4, 4), np.uint8))


def test_the_sheet_shows_every_kind_at_every_severity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(UNITS) == set(ON_FRAMES)
    axes = draw_sheet(np.stack(frames(40)), 20.0).axes
    assert len(axes) == 6 * len(ON_FRAMES)
    shown = [ax.images[0].get_array()[..., :3] for ax in axes]
    for row, kind in enumerate(ON_FRAMES):
        assert np.array_equal(shown[6 * row], frames(40)[39])
        assert not np.array_equal(shown[6 * row + 5], shown[6 * row]), kind
    assert [text.get_text() for ax in axes for text in ax.texts][-1] == "no frame"
    assert main(["--out", str(tmp_path / "sheet.jpg")]) == 0
    assert (tmp_path / "sheet.jpg").stat().st_size < 300_000
    for wrong, problem in ((["--episode", "99"], "no episode 99"), (["--at", "99"], "outside of the episode")):
        assert main(["--out", str(tmp_path / "no.jpg"), *wrong]) == 1
        assert problem in capsys.readouterr().err
