"""Estimated parameters as the arrays of a fit, and the residual of their signals."""

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

# Measurements by which voxels are checked for a misfit; all would cost more than the prediction.
# Chosen by hand.
_N_CHECKED = 48


def parameter_vectors(
    definition: Definition, targets: np.ndarray, frames: np.ndarray
) -> dict[str, np.ndarray]:
    """Arrays of a fit from scaled targets (V, P + K) and frames (V, A, 3, 3)."""
    n_voxels, fractions = len(targets), targets[:, len(definition.parameters) :]
    result = {
        "_unit": targets[:, : len(definition.parameters)],
        "_fractions": fractions,
        "_frames": frames.reshape(n_voxels, -1),
    }
    if definition.axes:
        fibre_pools = {c.pool for c in definition.compartments if c.has_axis}
        is_fibre = [name in fibre_pools for name in definition.pools]
        shares, axes = np.zeros((n_voxels, MAX_FIBRES)), np.zeros((n_voxels, MAX_FIBRES, 3))
        shares[:, 0], axes[:, 0] = fractions[:, is_fibre].sum(axis=1), frames[:, 0, 2]
        result |= {"axis": axes[:, 0], "axes": axes, "fibre_fractions": shares}
    return result


def checked_rows(acquisition: BaseAcquisition) -> np.ndarray:
    """Measurements whose residual is computed."""
    return np.unique(np.linspace(0, len(acquisition) - 1, _N_CHECKED).round().astype(int))


def checked_residual(
    definition: Definition,
    acquisition: BaseAcquisition,
    parameters: Mapping[str, np.ndarray],
    S0: np.ndarray,
    data: np.ndarray,
    noise: np.ndarray | None,
) -> np.ndarray:
    """Root mean square residual (V,) of the measurements of :func:`checked_rows`.

    `parameters` are from :func:`parameter_vectors`; S0 (V,) and data (V, M) are relative; `noise`
    (V, K) at each echo time is given where the data are magnitudes.
    """
    rows = checked_rows(acquisition)
    encoding = encoding_of(acquisition.subset(rows), torch.float32, timed=definition.timed)
    unit, frames, fractions = (
        torch.tensor(parameters[k]).float() for k in ("_unit", "_frames", "_fractions")
    )
    state = NonlinearParameters(unit, frames.reshape(len(unit), len(definition.axes), 3, 3))
    basis_signals = pool_signals(definition, encoding)(physical_values(definition, state))
    predicted = S0[:, None] * predicted_signals(basis_signals, fractions).numpy()
    if noise is not None:
        # The mean of a magnitude to 0.25 of its noise, which is enough to see a misfit.
        predicted = np.hypot(predicted, noise[:, acquisition.te_index[rows]])
    return np.sqrt(((data[:, rows] - predicted) ** 2).mean(axis=1))
