"""Where learned parameters are, as a fit holds them, and what they leave of the data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.definition import Definition
from dipy_spinverse.compartments.fibres import MAX_FIBRES
from dipy_spinverse.compartments.fitting.amplitudes import predicted_signals
from dipy_spinverse.compartments.fitting.parameters import NonlinearParameters, physical_values
from dipy_spinverse.compartments.signals.encoding import encoding_of
from dipy_spinverse.compartments.signals.pools import pool_signals

_N_CHECKED = 48  # measurements that tell whether the model explains a voxel


def parameter_vectors(
    definition: Definition, targets: np.ndarray, frames: np.ndarray
) -> dict[str, np.ndarray]:
    """Arrays of a fit from scalars and fractions (V, P + K) and frames (V, A, 3, 3)."""
    n_voxels, fractions = len(targets), targets[:, len(definition.parameters) :]
    result = {
        "_unit": targets[:, : len(definition.parameters)],
        "_fractions": fractions,
        "_frames": frames.reshape(n_voxels, -1),
    }
    if definition.axes:
        fibres = {c.pool for c in definition.compartments if c.has_axis}
        owned = [name in fibres for name in definition.pools]
        shares, axes = np.zeros((n_voxels, MAX_FIBRES)), np.zeros((n_voxels, MAX_FIBRES, 3))
        shares[:, 0], axes[:, 0] = fractions[:, owned].sum(axis=1), frames[:, 0, 2]
        result |= {"axis": axes[:, 0], "axes": axes, "fibre_fractions": shares}
    return result


def residual_rows(acquisition: BaseAcquisition) -> np.ndarray:
    """BaseAcquisition whose residual is computed."""
    return np.unique(np.linspace(0, len(acquisition) - 1, _N_CHECKED).round().astype(int))


def residual_rms_of(
    definition: Definition,
    acquisition: BaseAcquisition,
    places: Mapping[str, np.ndarray],
    S0: np.ndarray,
    data: np.ndarray,
    noise: np.ndarray | None,
) -> np.ndarray:
    """Root mean square (V,) of what is left of some of the measurements.

    Parameters
    ----------
    definition : Definition
    acquisition : BaseAcquisition
    places : mapping
        From `parameter_vectors`.
    S0 : ndarray (V,)
    data : ndarray (V, M)
    noise : ndarray (V, K) or None
        At each echo time, where the data are magnitudes.
    """
    rows = residual_rows(acquisition)
    encoding = encoding_of(acquisition.subset(rows), torch.float32, timed=definition.timed)
    unit, frames, fractions = (
        torch.tensor(places[k]).float() for k in ("_unit", "_frames", "_fractions")
    )
    place = NonlinearParameters(unit, frames.reshape(len(unit), len(definition.axes), 3, 3))
    columns = pool_signals(definition, encoding)(physical_values(definition, place))
    expected = S0[:, None] * predicted_signals(columns, fractions).numpy()
    if noise is not None:
        # The mean of a magnitude to 0.25 of its noise, which is enough to see a misfit.
        expected = np.hypot(expected, noise[:, acquisition.te_index[rows]])
    return np.sqrt(((data[:, rows] - expected) ** 2).mean(axis=1))
