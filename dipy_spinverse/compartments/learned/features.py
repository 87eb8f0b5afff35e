"""Features of a voxel, invariant to joint rotations of tissue and scan.

Signals of each shell, over the signal without diffusion, are expanded in spherical harmonics of
even order. Their second-order coefficients, of all shells together, give the axis of the voxel, so
that a learner trained for one orientation is valid for all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from dipy.reconst.dki import DiffusionKurtosisModel
from dipy.reconst.dti import TensorModel

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.definition import Definition
from dipy_spinverse.voxels.shells import LARGEST_ORDER, Shell, harmonics, shells_of

FEATURES = ("zonal", "power", "dti", "dki", "signals")
# Largest b (ms/um^2) for the cumulants: somewhat above the usual 1 for a tensor and the 3 up to
# which kurtosis is valid (https://doi.org/10.1002/nbm.1518).
_TENSOR_B = 1.6
_KURTOSIS_B = 3.1
# Order of each harmonic.
_ORDERS = np.repeat(np.arange(0, LARGEST_ORDER + 1, 2), np.arange(1, 2 * LARGEST_ORDER + 2, 4))


@dataclass(frozen=True, eq=False)
class FeatureEncoder:
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
        columns = [np.log(noise), np.stack([c[:, 0] for c in coefficients], axis=1)]
        for kind in self.kinds:
            columns.extend(getattr(self, f"_{kind}")(data, coefficients, frames))
        return np.concatenate(columns, axis=1), frames

    def _frames(self, coefficients):
        """Orthonormal rows: fan, third axis, axis. The signal is least along the axis."""
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
        anisotropy = np.abs(np.einsum("vi,vsij,vj->vs", axis, tensors, axis))
        weights = weights * anisotropy[..., None, None]
        vectors = np.linalg.eigh((weights * tensors).sum(axis=1))[1]
        fan, axis = vectors[:, :, 1], vectors[:, :, 0]
        return np.stack([fan, np.cross(axis, fan), axis], axis=1)

    def _zonal(self, data, coefficients, frames):
        if not self.n_axes:
            return
        at_axis = harmonics(LARGEST_ORDER, frames[:, 0, 2])
        for shell, c in zip(self.shells, coefficients, strict=True):
            yield from _sums_by_order(c * at_axis[:, : c.shape[1]])
            if self.fanned and shell.order >= 2:
                fan_plane = frames[:, 0, :2]
                tensor = _as_tensor(c[:, 1:6])
                forms = np.einsum("vki,vij,vkj->vk", fan_plane, tensor, fan_plane)
                yield forms[:, :1] - forms[:, 1:]

    def _power(self, data, coefficients, frames):
        for c in coefficients:
            yield from (np.sqrt(power) for power in _sums_by_order(c**2))

    def _dti(self, data, coefficients, frames):
        gtab, rows = self._cumulant_rows(_TENSOR_B, n_unknowns=6)
        fit = TensorModel(gtab, fit_method="LS").fit(data[:, rows])
        yield 1e3 * fit.evals
        yield fit.fa[:, None]

    def _dki(self, data, coefficients, frames):
        gtab, rows = self._cumulant_rows(_KURTOSIS_B, n_unknowns=21)
        fit = DiffusionKurtosisModel(gtab, fit_method="LS").fit(data[:, rows])
        kurtoses = [fit.mk(min_kurtosis=-1, max_kurtosis=5), fit.ak(-1, 5), fit.rk(-1, 5)]
        yield np.stack([1e3 * fit.md, 1e3 * fit.ad, 1e3 * fit.rd, *kurtoses], axis=1)

    def _signals(self, data, coefficients, frames):
        yield data[:, ~self.acquisition.b0_mask]

    def _cumulant_rows(self, max_b, n_unknowns):
        """Measurements up to a b-value, or all of them where these are too few."""
        weighted = ~self.acquisition.b0_mask
        low_b = weighted & (self.acquisition.b <= max_b)
        rows = self.acquisition.b0_mask | (low_b if low_b.sum() >= n_unknowns else weighted)
        return self.acquisition.subset(rows).to_gtab(), rows


def feature_encoder(
    acquisition: BaseAcquisition, definition: Definition, kinds: Iterable[str] = ("zonal",)
) -> FeatureEncoder:
    """Features of an acquisition.

    Parameters
    ----------
    acquisition : BaseAcquisition
    definition : Definition
        With one axis at most.
    kinds : iterable of str
        In addition to the noise level and the means of the shells:

        - "zonal": projections of the harmonics on the axis, and for a model with fanning on its
          plane;
        - "power": norms of the harmonic coefficients of each order;
        - "dti": eigenvalues of a diffusion tensor and its fractional anisotropy;
        - "dki": mean, axial and radial diffusivities and kurtoses (about 1 ms for each voxel, of
          the training too);
        - "signals": all signals; the training then has to cover the sphere.

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
            "No shell of the acquisition has enough directions to determine an axis (six that "
            "cover the sphere, within 4 % of b): features cannot be made independent of "
            "orientation. Fit the model instead."
        )
    if "dki" in kinds and len(shells) < 2:
        raise ValueError('features has "dki", which needs two shells; leave it out.')
    n_axes = len(definition.axes)
    return FeatureEncoder(acquisition, kinds, shells, n_axes, bool(definition.fanned_axes))


def _sums_by_order(terms):
    """Sums (V, K) over the harmonics of each order above 0, if there are any."""
    first_of_order = np.flatnonzero(np.diff(_ORDERS[: terms.shape[1]])) + 1
    if len(first_of_order):
        yield np.add.reduceat(terms, first_of_order, axis=1)


def _second_order_tensors():
    """Symmetric matrices (5, 3, 3) whose quadratic forms are the harmonics of order 2."""
    directions = np.random.default_rng(0).standard_normal((200, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    x, y, z = directions.T
    squares = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    entries = np.linalg.lstsq(squares, harmonics(2, directions)[:, 1:], rcond=None)[0]
    return entries[[0, 3, 4, 3, 1, 5, 4, 5, 2]].T.reshape(5, 3, 3)


_TENSORS = _second_order_tensors()


def _as_tensor(second_order):
    return np.einsum("vc,cij->vij", second_order, _TENSORS)
