"""The closer look: energy is the detail not seen, each window lowers it, attention says where to look first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_ros.core.irp import Budget, Halt, Refinement, refine
from sage_ros.vision.fovea import NOISE, Fovea, Look


def encode(grid: tuple[int, int]):
    """Tokens of one feature: the mean grey of each cell."""

    def cells(frames: np.ndarray) -> np.ndarray:
        parts = [[column.mean() for row in np.array_split(frame, grid[0]) for column in np.array_split(row, grid[1], 1)]
                 for frame in frames]  # fmt: skip
        return np.array(parts, np.float32)[..., None]

    return cells


def look(frame: np.ndarray, budget: Budget, attention: np.ndarray | None = None, grid: tuple[int, int] = (4, 4)
         ) -> Refinement[Look]:  # fmt: skip
    return refine(Fovea(encode(grid), grid, 32, attention), frame, budget)


def speckled(at: tuple[slice, slice], side: int = 64) -> np.ndarray:
    """A grey frame with fine detail in one place."""
    frame = np.full((side, side, 3), 128, np.uint8)
    checks = 255 * (np.indices((side, side)).sum(axis=0) % 2).astype(np.uint8)
    frame[at] = checks[at][..., None]
    return frame


def test_the_first_look_goes_where_the_detail_is() -> None:
    found = look(speckled((slice(32, 64), slice(0, 32))), Budget(5))
    assert found.state.windows[0] == (2, 0)
    assert found.energies[1] == pytest.approx(NOISE) and found.halt is Halt.CONVERGED


def test_attention_decides_between_equal_details() -> None:
    frame = speckled((slice(0, 64), slice(0, 64)))
    for corner in ((0, 0), (0, 2), (2, 0), (2, 2)):
        attention = np.full((4, 4), 0.1)
        attention[corner[0] : corner[0] + 2, corner[1] : corner[1] + 2] = 1.0
        assert look(frame, Budget(1), attention).state.windows == (corner,)


def test_a_plain_frame_is_not_looked_at_again() -> None:
    found = look(np.full((256, 256, 3), 90, np.uint8), Budget(5))
    assert found.halt is Halt.CONVERGED and found.energies[0] == pytest.approx(NOISE)


def test_a_frame_that_is_no_larger_than_the_network_sees_has_nothing_to_refine() -> None:
    found = look(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), Budget(5))
    assert found.energies[0] == NOISE and found.halt is Halt.CONVERGED


def test_a_window_replaces_its_own_tokens_by_the_mean_of_what_it_shows() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    coarse = encode((4, 4))(frame[None])[0].reshape(4, 4)
    found = look(frame, Budget(1)).state
    (top, left), tokens = found.windows[0], found.tokens[..., 0]
    np.testing.assert_allclose(tokens, coarse, rtol=1e-5)  # means of means are the same means
    assert (found.lost[top : top + 2, left : left + 2] == 0).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(33, 90), st.integers(33, 90), st.integers(0, 99))
def test_on_any_frame_and_grid_no_look_raises_the_energy(rows: int, columns: int, h: int, w: int, seed: int) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    found = look(frame, Budget(4, tolerance=0.0), grid=(rows, columns))
    assert (np.diff(found.energies) <= 0).all() and found.state.tokens.shape == (rows, columns, 1)
    assert np.isfinite(found.state.tokens).all() and found.energies[-1] >= NOISE


@pytest.mark.parametrize("bad", [np.ones((2, 2)), np.full((4, 4), np.nan), np.full((4, 4), -1.0)])
def test_attention_that_does_not_fit_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"attention must be \(4, 4\) finite weights >= 0"):
        look(speckled((slice(0, 9), slice(0, 9))), Budget(1), bad)
