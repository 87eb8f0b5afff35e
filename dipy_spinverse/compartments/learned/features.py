"""Features of a voxel, invariant to joint rotations of tissue and scan.

Signals of each shell, over the signal without diffusion, are expanded in spherical harmonics of
even order. Their second-order coefficients, of all shells together, give the axis of the voxel, so
that a learner trained for one orientation is valid for all. Features are the noise, the means of
shells, for models with an axis projections of the harmonics on it, and maps of a fitted model.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.definition import Definition
from dipy_spinverse.compartments.model import CompartmentModel
from dipy_spinverse.voxels.shells import LARGEST_ORDER, Shell, harmonics, shells_of

# Order of each harmonic.
_ORDERS = np.repeat(np.arange(0, LARGEST_ORDER + 1, 2), np.arange(1, 2 * LARGEST_ORDER + 2, 4))


@dataclass(frozen=True, eq=False)
class FeatureEncoder:
    """From signals to features; see :func:`feature_encoder`."""

    shells: tuple[Shell, ...]
    has_axis: bool
    fanned: bool
    fitted_model: CompartmentModel | None = None

    def __call__(self, data: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (V, F) and frames (V, A, 3, 3) of signals (V, M) over S0 of their echo time.

        `noise` (V, K) is that of `data` at each echo time.
        """
        coefficients = [data[:, shell.rows] @ shell.fit.T for shell in self.shells]
        columns = [np.log(noise), np.stack([c[:, 0] for c in coefficients], axis=1)]
        frames = np.zeros((len(data), 0, 3, 3))
        if self.has_axis:
            frames = self._frames(coefficients)[:, None]
            columns.extend(self._zonal(coefficients, frames[:, 0]))
        if self.fitted_model:
            with warnings.catch_warnings():  # those of the learned model are enough
                warnings.simplefilter("ignore")
                fit = self.fitted_model.fit(data, sigma=noise[:, 0], n_draws=0)
            columns += [getattr(fit, name)[:, None] for name in fit.MAPS]
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

    def _zonal(self, coefficients, frames):
        """Projections of harmonics on the axis and, for a model with fanning, on its plane."""
        at_axis = harmonics(LARGEST_ORDER, frames[:, 2])
        for shell, c in zip(self.shells, coefficients, strict=True):
            first_of_order = np.flatnonzero(np.diff(_ORDERS[: c.shape[1]])) + 1
            if len(first_of_order):
                yield np.add.reduceat(c * at_axis[:, : c.shape[1]], first_of_order, axis=1)
            if self.fanned and shell.order >= 2:
                fan_plane, tensor = frames[:, :2], _as_tensor(c[:, 1:6])
                forms = np.einsum("vki,vij,vkj->vk", fan_plane, tensor, fan_plane)
                yield forms[:, :1] - forms[:, 1:]


def feature_encoder(
    acquisition: BaseAcquisition,
    definition: Definition,
    fitted_model: CompartmentModel | None = None,
) -> FeatureEncoder:
    """Features of an acquisition; ValueError for models and acquisitions that have none."""
    if definition.has_relaxation:
        raise ValueError(
            f"{definition.name} has relaxation times, which are no features; fit it instead."
        )
    if len(definition.axes) > 1:
        raise ValueError(
            f"{definition.name} has the axes {list(definition.axes)}; learning works for models "
            "with one at most. Fit this model instead."
        )
    if fitted_model and not np.array_equal(fitted_model.acquisition.b, acquisition.b):
        raise ValueError(
            f"feature_model {fitted_model.definition.name} has another acquisition than "
            f"{definition.name}; make both of the same gradient table."
        )
    shells = shells_of(acquisition)
    if definition.axes and not any(shell.order >= 2 for shell in shells):
        raise ValueError(
            "No shell of the acquisition has enough directions to determine an axis (six that "
            "cover the sphere, within 4 % of b): features cannot be made independent of "
            "orientation. Fit the model instead."
        )
    axes = bool(definition.axes), bool(definition.fanned_axes)
    return FeatureEncoder(shells, *axes, fitted_model)


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
