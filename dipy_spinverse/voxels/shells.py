"""Shells of an acquisition, and the spherical harmonics that describe signals on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from dipy.reconst.shm import real_sh_descoteaux

from dipy_spinverse.acquisition import Acquisition, BaseAcquisition
from dipy_spinverse.acquisition.b_tensors import b_anisotropy

LARGEST_ORDER = 6
# Condition number up to which directions determine harmonics; chosen by hand.
_LARGEST_CONDITION = 5.0
_SAME_SHELL = 1.04  # ratio of b within a shell; scanners deviate by about 1 %


@dataclass(frozen=True, eq=False)
class Shell:
    """N measurements of nearly equal encoding (b in ms/um^2), and harmonics of their signals.

    `order` is that of the harmonics that the directions determine, `fit` (C, N) maps signals to
    coefficients, and the orthonormal columns of `smooth` (N, S) span the harmonics that half of
    the measurements determine.
    """

    rows: np.ndarray
    b: float
    order: int
    fit: np.ndarray
    smooth: np.ndarray

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the residual of the smooth harmonics."""
        return len(self.rows) - self.smooth.shape[1]

    @property
    def projection(self) -> np.ndarray:
        """Maps signals (N,) to residuals of a fit of the smooth harmonics, (N, N)."""
        return np.eye(len(self.rows)) - self.smooth @ self.smooth.T


@lru_cache(maxsize=8)
def shells_of(acquisition: BaseAcquisition) -> tuple[Shell, ...]:
    """Shells of one timing, or one shape of b-tensors, and similar b, without b0.

    Averages over directions are separate shells of order 0.
    """
    return tuple(_shell(acquisition, group) for group in _groups(acquisition))


def _groups(acquisition):
    weighted = np.flatnonzero(~acquisition.b0_mask)
    if isinstance(acquisition, Acquisition):
        encoding = acquisition.timing_index
    else:
        shape = (10 * b_anisotropy(acquisition.b_tensors)[0]).round()
        encoding = np.unique(shape, return_inverse=True)[1] * 1000 + acquisition.te_index
    kind = 2 * encoding + acquisition.isotropic
    order = weighted[np.lexsort((acquisition.b[weighted], kind[weighted]))]
    groups: list[list[int]] = []
    for row in order:
        first = groups[-1][0] if groups else row
        same_b = acquisition.b[row] <= _SAME_SHELL * acquisition.b[first]
        if groups and kind[row] == kind[first] and same_b:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _shell(acquisition, rows):
    rows = np.array(rows)
    directions = acquisition.directions[rows]
    order = _order(directions, len(rows))
    smooth = np.linalg.qr(harmonics(_order(directions, len(rows) / 2), directions))[0]
    fit = np.linalg.pinv(harmonics(order, directions))
    return Shell(rows, acquisition.b[rows].max(), order, fit, smooth)


def _order(directions, max_coefficients):
    """Largest order with at most `max_coefficients` harmonics that the directions determine."""
    for order in range(LARGEST_ORDER, 0, -2):
        if (order + 1) * (order + 2) // 2 > max_coefficients:
            continue
        if np.linalg.cond(harmonics(order, directions)) < _LARGEST_CONDITION:
            return order
    return 0


def harmonics(order: int, directions: np.ndarray) -> np.ndarray:
    """Real harmonics (N, C) of even order up to `order` at unit vectors (N, 3)."""
    theta = np.arccos(directions[:, 2].clip(-1, 1))
    phi = np.arctan2(directions[:, 1], directions[:, 0])
    return real_sh_descoteaux(order, theta, phi, legacy=False)[0]
