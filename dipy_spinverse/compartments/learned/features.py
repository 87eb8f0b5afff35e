"""What a learner sees of a voxel: numbers that do not change when tissue and scan are turned.

Signals of each shell, over the signal without diffusion, are expanded in spherical harmonics of
even order. All their second-order parts together give the axis of the voxel, so that a learner is
trained for one orientation and holds for all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from dipy.reconst.dki import DiffusionKurtosisModel
from dipy.reconst.dti import TensorModel
from dipy.reconst.shm import real_sh_descoteaux

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.compartments.definition import Definition

FEATURES = ("zonal", "power", "dti", "dki", "signals")
_LARGEST_ORDER = 6
_LARGEST_CONDITION = 5.0
_LEAST_FREEDOM = 4
_CLEAR = 4.0  # signal over noise above which Rician noise is normal
_SAME_SHELL = 1.04  # ratio of b
_TENSOR_B, _KURTOSIS_B = 1.6, 3.1  # ms/um^2, largest for the cumulants


@dataclass(frozen=True, eq=False)
class Shell:
    """Measurements of nearly equal encoding.

    Attributes
    ----------
    rows : ndarray (N,) of int
    b : float
    order : int
        Of the harmonics that its directions determine.
    fit : ndarray (C, N)
        From signals to their coefficients.
    rest : ndarray (N, N)
        From signals to what is beyond the harmonics that half of its measurements determine.
    freedom : int
        Degrees of freedom of the rest.
    """

    rows: np.ndarray
    b: float
    order: int
    fit: np.ndarray
    rest: np.ndarray
    freedom: int


@dataclass(frozen=True, eq=False)
class Encoder:
    """From signals to features; see :func:`encoder_for`."""

    acquisition: Acquisition
    kinds: tuple[str, ...]
    shells: tuple[Shell, ...]
    n_axes: int
    fanned: bool

    def __call__(self, data: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (V, F) and frames (V, A, 3, 3) of signals.

        Parameters
        ----------
        data : ndarray (V, M)
            Over the signal without diffusion at the same echo time.
        noise : ndarray (V, K)
            Standard deviation of the noise of `data` at each echo time.
        """
        coefficients = [data[:, shell.rows] @ shell.fit.T for shell in self.shells]
        frames = np.zeros((len(data), 0, 3, 3))
        if self.n_axes:
            frames = self._frames(coefficients)[:, None]
        parts = [np.log(noise), np.stack([c[:, 0] for c in coefficients], axis=1)]
        for kind in self.kinds:
            parts.extend(_PARTS[kind](self, data, coefficients, frames))
        return np.concatenate(parts, axis=1), frames

    def _frames(self, coefficients):
        """Orthonormal rows: fan, third axis, axis. Least signal is along the axis."""
        tensors, weights = [], []
        for shell, c in zip(self.shells, coefficients, strict=True):
            if shell.order >= 2:
                tensors.append(_as_tensor(c[:, 1:6]))
                weights.append(len(shell.rows))
        tensors = np.stack(tensors, axis=1)
        weights = np.array(weights, dtype=float)[:, None, None]
        vectors = np.linalg.eigh((weights * tensors).sum(axis=1))[1]
        axis = vectors[:, :, 0]
        # A shell counts as much as it is anisotropic: second estimate with these weights.
        along = np.abs(np.einsum("vi,vsij,vj->vs", axis, tensors, axis))
        vectors = np.linalg.eigh(((weights * along[..., None, None]) * tensors).sum(axis=1))[1]
        fan, axis = vectors[:, :, 1], vectors[:, :, 0]
        return np.stack([fan, np.cross(axis, fan), axis], axis=1)

    def noise(self, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum of squares (V,) of what is beyond the harmonics, and its degrees of freedom (V,).

        Of shells of low b, whose harmonics end soon, where signals are so far above the noise
        that it is normal; `data` (V, M) are as measured.
        """
        squares, freedom = np.zeros(len(data)), np.zeros(len(data), dtype=int)
        for shell in self.shells:
            if shell.freedom < _LEAST_FREEDOM or shell.b > _TENSOR_B:
                continue
            signals = data[:, shell.rows]
            rest = ((signals @ shell.rest.T) ** 2).sum(axis=1)
            clear = signals.mean(axis=1) > _CLEAR * np.sqrt(rest / shell.freedom)
            squares += np.where(clear, rest, 0)
            freedom += np.where(clear, shell.freedom, 0)
        return squares, freedom


def encoder_for(
    acquisition: Acquisition, definition: Definition, kinds: Iterable[str] = ("zonal",)
) -> Encoder:
    """Features of an acquisition.

    Parameters
    ----------
    acquisition : Acquisition
    definition : Definition
        With one axis at most.
    kinds : iterable of str
        Beside the noise level and the means of the shells:

        - "zonal": projections of the harmonics on the axis, and for a model with fanning on its
          plane;
        - "power": lengths of the harmonics of each order;
        - "dti": eigenvalues of a diffusion tensor and its fractional anisotropy;
        - "dki": diffusivities and kurtoses, mean and along and across the axis (about 1 ms for
          each voxel, of the training too);
        - "signals": all signals as they are; the training then has to cover the sphere.

    Raises
    ------
    ValueError
        Unknown features, or an acquisition that determines no axis.
    """
    kinds = tuple(kinds)
    unknown = sorted(set(kinds) - set(FEATURES))
    if unknown:
        raise ValueError(f"features has {unknown}; choose from {', '.join(FEATURES)}.")
    if len(definition.axes) > 1:
        raise ValueError(
            f"{definition.name} has the axes {list(definition.axes)}; learning works for models "
            "with one at most. Fit this model instead."
        )
    shells = tuple(_shells(acquisition))
    if definition.axes and not any(shell.order >= 2 for shell in shells):
        raise ValueError(
            "No shell of the acquisition has directions enough to determine an axis (six that "
            "cover the sphere, within 4 % of b): features cannot be made independent of "
            "orientation. Fit the model instead."
        )
    if "dki" in kinds and len(shells) < 2:
        raise ValueError('features has "dki", which needs two shells; leave it out.')
    n_axes = len(definition.axes)
    return Encoder(acquisition, kinds, shells, n_axes, bool(definition.fans))


def _shells(acquisition):
    weighted = np.flatnonzero(~acquisition.b0_mask)
    timing = acquisition.timing_index[weighted]
    order = weighted[np.lexsort((acquisition.b[weighted], timing))]
    first, group = None, []
    for row in order:
        same = first is not None and (
            acquisition.timing_index[row] == acquisition.timing_index[first]
            and acquisition.b[row] <= _SAME_SHELL * acquisition.b[first]
        )
        if not same and group:
            yield _shell(acquisition, group)
            group = []
        first = first if same else row
        group.append(row)
    yield _shell(acquisition, group)


def _shell(acquisition, rows):
    rows = np.array(rows)
    directions = acquisition.directions[rows]
    order = _order(directions, len(rows))
    smooth = _harmonics(_order(directions, len(rows) / 2), directions)
    rest = np.eye(len(rows)) - smooth @ np.linalg.pinv(smooth)
    fit = np.linalg.pinv(_harmonics(order, directions))
    return Shell(rows, acquisition.b[rows].max(), order, fit, rest, len(rows) - smooth.shape[1])


def _order(directions, most):
    """Largest order of harmonics, at most so many, that directions determine."""
    for order in range(_LARGEST_ORDER, 0, -2):
        design = _harmonics(order, directions)
        if design.shape[1] <= most and np.linalg.cond(design) < _LARGEST_CONDITION:
            return order
    return 0


def _harmonics(order, directions):
    theta = np.arccos(directions[:, 2].clip(-1, 1))
    phi = np.arctan2(directions[:, 1], directions[:, 0])
    return real_sh_descoteaux(order, theta, phi, legacy=False)[0]


def _monomials(directions):
    """Products (V, C) of `_LARGEST_ORDER` components; they span all harmonics up to it."""
    columns = combinations_with_replacement(directions.T, _LARGEST_ORDER)
    return np.stack([np.prod(column, axis=0) for column in columns], axis=1)


def _tables():
    """From monomials to harmonics, from second-order harmonics to tensors, order of each."""
    directions = np.random.default_rng(0).standard_normal((200, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    harmonics = _harmonics(_LARGEST_ORDER, directions)
    to_harmonics = np.linalg.lstsq(_monomials(directions), harmonics, rcond=None)[0]
    x, y, z = directions.T
    squares = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    six = np.linalg.lstsq(squares, harmonics[:, 1:6], rcond=None)[0]
    tensors = six[[0, 3, 4, 3, 1, 5, 4, 5, 2]].T.reshape(5, 3, 3)
    orders = np.repeat(
        np.arange(0, _LARGEST_ORDER + 1, 2), np.arange(1, 2 * _LARGEST_ORDER + 2, 4)
    )
    return to_harmonics, tensors, orders


_TO_HARMONICS, _TENSORS, _ORDERS = _tables()


def _as_tensor(second_order):
    return np.einsum("vc,cij->vij", second_order, _TENSORS)


def _zonal(encoder, data, coefficients, frames):
    if not encoder.n_axes:
        return
    at_axis = _monomials(frames[:, 0, 2]) @ _TO_HARMONICS
    for shell, c in zip(encoder.shells, coefficients, strict=True):
        product = c * at_axis[:, : c.shape[1]]
        starts = np.flatnonzero(np.diff(_ORDERS[: c.shape[1]])) + 1
        if len(starts):
            yield np.add.reduceat(product, starts, axis=1)
        if encoder.fanned and shell.order >= 2:
            tensor = _as_tensor(c[:, 1:6])
            fan, third = frames[:, 0, 0], frames[:, 0, 1]
            across = [np.einsum("vi,vij,vj->v", e, tensor, e) for e in (fan, third)]
            yield (across[0] - across[1])[:, None]


def _power(encoder, data, coefficients, frames):
    for c in coefficients:
        starts = np.flatnonzero(np.diff(_ORDERS[: c.shape[1]])) + 1
        if len(starts):
            yield np.sqrt(np.add.reduceat(c**2, starts, axis=1))


def _low(acquisition, largest, least):
    weighted = ~acquisition.b0_mask
    low = weighted & (acquisition.b <= largest)
    return acquisition.b0_mask | (low if low.sum() >= least else weighted)


def _dti(encoder, data, coefficients, frames):
    use = _low(encoder.acquisition, _TENSOR_B, 6)
    gtab = encoder.acquisition.subset(use).to_gtab()
    fit = TensorModel(gtab, fit_method="LS").fit(data[:, use])
    yield 1e3 * fit.evals
    yield fit.fa[:, None]


def _dki(encoder, data, coefficients, frames):
    use = _low(encoder.acquisition, _KURTOSIS_B, 21)
    gtab = encoder.acquisition.subset(use).to_gtab()
    fit = DiffusionKurtosisModel(gtab, fit_method="LS").fit(data[:, use])
    kurtoses = [fit.mk(min_kurtosis=-1, max_kurtosis=5), fit.ak(-1, 5), fit.rk(-1, 5)]
    yield np.stack([1e3 * fit.md, 1e3 * fit.ad, 1e3 * fit.rd, *kurtoses], axis=1)


def _signals(encoder, data, coefficients, frames):
    yield data[:, ~encoder.acquisition.b0_mask]


_PARTS = {"zonal": _zonal, "power": _power, "dti": _dti, "dki": _dki, "signals": _signals}
