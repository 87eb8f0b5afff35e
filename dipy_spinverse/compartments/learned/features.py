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

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.definition import Definition
from dipy_spinverse.voxels.shells import LARGEST_ORDER, Shell, harmonics, shells_of

FEATURES = ("zonal", "power", "dti", "dki", "signals")
# Largest b (ms/um^2) for the cumulants.
_TENSOR_B = 1.6
_KURTOSIS_B = 3.1


@dataclass(frozen=True, eq=False)
class Encoder:
    """From signals to features; see :func:`feature_encoder`."""

    acquisition: BaseAcquisition
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


def feature_encoder(
    acquisition: BaseAcquisition, definition: Definition, kinds: Iterable[str] = ("zonal",)
) -> Encoder:
    """Features of an acquisition.

    Parameters
    ----------
    acquisition : BaseAcquisition
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
        Unknown features, a model with relaxation times, an acquisition that determines no axis.
    """
    kinds = tuple(kinds)
    unknown = sorted(set(kinds) - set(FEATURES))
    if unknown:
        raise ValueError(f"features has {unknown}; choose from {', '.join(FEATURES)}.")
    if definition.has_relaxation:
        raise ValueError(
            f"{definition.name} has relaxation times, which features do not show; fit it instead."
        )
    if len(definition.axes) > 1:
        raise ValueError(
            f"{definition.name} has the axes {list(definition.axes)}; learning works for models "
            "with one at most. Fit this model instead."
        )
    shells = tuple(shells_of(acquisition))
    if definition.axes and not any(shell.order >= 2 for shell in shells):
        raise ValueError(
            "No shell of the acquisition has directions enough to determine an axis (six that "
            "cover the sphere, within 4 % of b): features cannot be made independent of "
            "orientation. Fit the model instead."
        )
    if "dki" in kinds and len(shells) < 2:
        raise ValueError('features has "dki", which needs two shells; leave it out.')
    n_axes = len(definition.axes)
    return Encoder(acquisition, kinds, shells, n_axes, bool(definition.fanned_axes))


def _monomials(directions):
    """Products (V, C) of `LARGEST_ORDER` components; they span all harmonics up to it."""
    columns = combinations_with_replacement(directions.T, LARGEST_ORDER)
    return np.stack([np.prod(column, axis=0) for column in columns], axis=1)


def _tables():
    """From monomials to harmonics, from second-order harmonics to tensors, order of each."""
    directions = np.random.default_rng(0).standard_normal((200, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    known = harmonics(LARGEST_ORDER, directions)
    to_harmonics = np.linalg.lstsq(_monomials(directions), known, rcond=None)[0]
    x, y, z = directions.T
    squares = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    six = np.linalg.lstsq(squares, known[:, 1:6], rcond=None)[0]
    tensors = six[[0, 3, 4, 3, 1, 5, 4, 5, 2]].T.reshape(5, 3, 3)
    orders = np.repeat(np.arange(0, LARGEST_ORDER + 1, 2), np.arange(1, 2 * LARGEST_ORDER + 2, 4))
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
