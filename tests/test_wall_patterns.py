"""Patterns of walls: what leaves the signals unchanged, and how far fields agree."""

from __future__ import annotations

import numpy as np
import pytest
from inversion_cases import shells

from dipy_spinverse import bcc_grid, simulate
from dipy_spinverse.walls.patterns import align_fields, face_symmetries, mean_pairwise_f1


@pytest.mark.parametrize("boundary", ["periodic", "reflecting", "absorbing"])
def test_symmetries_leave_signals_unchanged(boundary):
    grid = bcc_grid(3, 5.0, boundary=boundary)
    acquisition = shells([(8, 30)], (2.0,), 3)
    kappa = np.random.default_rng(0).choice([0.01, 1.0, 100.0], grid.n_faces)
    maps = face_symmetries(grid)
    assert len(maps) == (2 * grid.n_points if boundary == "periodic" else 2)
    np.testing.assert_array_equal(maps[0], np.arange(grid.n_faces))
    signals = simulate(acquisition, grid, kappa[maps])
    # The same sums in another order.
    np.testing.assert_allclose(signals, signals[[0]].repeat(len(maps), 0), atol=1e-9)


def test_moved_pattern_is_brought_back_and_an_unlike_one_stays_unlike():
    grid = bcc_grid(3, 5.0)
    rng = np.random.default_rng(1)
    walls, other = (rng.random((2, grid.n_faces)) < 0.1).astype(float)
    moved = walls[face_symmetries(grid)[[5, 70]]]
    assert mean_pairwise_f1(np.vstack([walls, moved])) < 0.5
    assert mean_pairwise_f1(np.vstack([walls, align_fields(grid, moved, walls)])) == 1
    # By chance a tenth of the walls is common, a few more after the best of 108 moves.
    assert mean_pairwise_f1(np.vstack([walls, align_fields(grid, other[None], walls)])) < 0.3


def test_agreement_is_the_mean_f1_of_pairs():
    one, two, three = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=float)
    assert mean_pairwise_f1(np.array([one, two])) == 0.5
    assert mean_pairwise_f1(np.array([one, two, three])) == pytest.approx(0.5 / 3)
    assert mean_pairwise_f1(np.array([three, three])) == 1
    assert mean_pairwise_f1(one[None]) == 1
