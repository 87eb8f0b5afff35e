"""Rotations of a box onto itself: of fields in it, and of signals without a simulation."""

from __future__ import annotations

from functools import cached_property
from itertools import permutations, product

import numpy as np

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.voxels.shells import harmonics, shells_of

# Order of the harmonics of a shell below which they do not predict signals along other directions;
# those of order 6 do to 0.05 of the noise (benchmarks/notes/walls_off_grid.md).
_MIN_ORDER = 4


class Rotations:
    """Rotations of a box onto itself, as an acquisition can follow them.

    Cells rotated by R have along a direction g the signals of the cells along R^T g, which follow
    from the harmonics of a shell. With too few directions in a shell only the identity remains.

    Parameters
    ----------
    acquisition : Acquisition
    box_um : ndarray (3,)
        Sides of the box.
    """

    def __init__(self, acquisition: Acquisition, box_um: np.ndarray):
        self._acquisition, self._shells = acquisition, shells_of(acquisition)
        can_rotate = all(shell.order >= _MIN_ORDER for shell in self._shells)
        self.matrices = [
            matrix
            for matrix in _signed_permutations()
            if np.allclose(np.abs(matrix) @ box_um, box_um)
            and (can_rotate or np.array_equal(matrix, np.eye(3)))
        ]

    def __len__(self) -> int:
        return len(self.matrices)

    def fields(self, k: int, fields: np.ndarray) -> np.ndarray:
        """Fields (N, R^3) on a raster after the rotation `k`."""
        n = round(fields.shape[1] ** (1 / 3))
        axis = np.arange(n) - (n - 1) / 2
        voxels = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        source = np.rint(voxels @ self.matrices[k] + (n - 1) / 2).astype(int)
        return fields[:, np.ravel_multi_index(tuple(source.T), (n, n, n))]

    def signals(self, k: int, signals: np.ndarray) -> np.ndarray:
        """Signals (N, M) after the rotation `k`."""
        return signals @ self._signal_matrices[k].T

    @cached_property
    def _signal_matrices(self):
        directions, number = self._acquisition.directions, len(self._acquisition)
        matrices = []
        for rotation in self.matrices:
            matrix = np.eye(number)
            if not np.array_equal(rotation, np.eye(3)):
                for shell in self._shells:
                    rotated = harmonics(shell.order, directions[shell.rows] @ rotation)
                    matrix[np.ix_(shell.rows, shell.rows)] = rotated @ shell.fit
            matrices.append(matrix)
        return matrices


def _signed_permutations():
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = signs
            if np.linalg.det(matrix) > 0:
                yield matrix
