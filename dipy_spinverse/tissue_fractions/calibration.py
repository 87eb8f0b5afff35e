"""Calibration of an image: shared parameters, fields and noise, estimated before the fractions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.tissue_fractions.mr_simulator import MRSimulator
from dipy_spinverse.tissue_fractions.sequences import Sequence
from dipy_spinverse.tissue_fractions.shared_parameters import (
    MOST_VOXELS,
    FieldMaps,
    SharedParameterEstimator,
    SharedParameters,
    polynomials,
)
from dipy_spinverse.tissue_fractions.signal_table import (
    SignalSimulation,
    SignalTable,
    axes_of,
)
from dipy_spinverse.voxels.image import Image, Voxels

_ORDER = 4  # of the polynomials of bias and B1 fields; higher ones follow anatomy
_B1_MARGIN = 3.0  # standard deviations


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a fit of voxels needs, once shared parameters are known.

    Signals of `image` have the noise of the first one: they are multiplied by `gains` (C,). The
    likeliest parameters and posterior samples of them come with the signals of pure tissues;
    `by_constants` (K, T, C, 4) are derivatives of these by logarithms of constants, and `share`
    (F,) probabilities of the faces of the simplex.
    """

    image: Image
    likeliest: tuple[SignalTable, SharedParameters]
    by_constants: Tensor
    samples: list[tuple[SignalTable, SharedParameters]]
    share: Tensor
    groups: np.ndarray
    gains: np.ndarray

    def pure_signals(
        self, voxels: Voxels, table: SignalTable, shared: SharedParameters
    ) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Signals (V, T, C) of pure tissues, B1 (V,), scales (V, C)."""
        maps = voxels.attributes
        fields = FieldMaps(maps["known_b1"], maps["b0"], maps["sensitivity"], maps["basis"])
        b1 = np.clip(shared.b1_of(fields), table.b1.low, table.b1.high)
        scale = shared.scale(fields)[:, self.groups] * self.gains
        return table.pure_signals(b1, fields.b0) * torch.tensor(scale)[:, None], b1, scale


def calibrate(
    image: Image,
    simulator: MRSimulator,
    sequences: tuple[Sequence, ...],
    constants: Tensor,
    *,
    unknown: tuple[str, ...],
    constants_error: float,
    b1_error: float,
    groups: np.ndarray,
    n_samples: int,
) -> Calibration:
    """Calibration of an image; with posterior samples of shared parameters, if any."""
    voxels, maps = image.voxels, image.voxels.attributes
    basis = polynomials(_positions(image), _ORDER)
    fields = FieldMaps(maps["b1"], maps["b0"], maps["sensitivity"], basis)
    axes = axes_of(fields.b1, fields.b0, _B1_MARGIN * b1_error)
    estimator = SharedParameterEstimator(
        SignalSimulation(simulator, sequences, axes), unknown, constants_error, b1_error, groups
    )
    sigma = None if voxels.sigma is None else torch.tensor(voxels.sigma)
    shared, share = estimator(torch.tensor(voxels.signals), sigma, fields, constants)
    noise = torch.exp(shared.log_noise).numpy()[groups]
    gains = np.ones_like(noise) if sigma is not None else noise[0] / noise
    if sigma is None:
        noise_map = np.full(len(voxels), float(noise[0]))
        freedom = np.full(len(voxels), min(len(voxels), MOST_VOXELS) * len(groups))
        image = replace(image, noise=noise_map, freedom=freedom)
        voxels = replace(voxels, sigma=noise_map)
    signals = voxels.signals * gains
    S0 = signals.mean(axis=1, keepdims=True)
    attributes = {
        "known_b1": fields.b1, "b0": fields.b0, "basis": basis,
        "sensitivity": fields.sensitivity / S0[:, 0],
    }  # fmt: skip
    voxels = replace(voxels, signals=signals, S0=S0, attributes=attributes)
    table, by_constants = estimator.tables(shared.constants)
    simulated = estimator.simulation.table
    samples = [(simulated(drawn.constants), drawn) for drawn in shared.draws(n_samples)]
    return Calibration(
        replace(image, voxels=voxels), (table, shared), by_constants, samples, share, groups, gains
    )


def _positions(image: Image) -> np.ndarray:
    """Coordinates (V, D) from -1 to 1 along the axes of more than one voxel."""
    axes = np.unravel_index(image.rows, image.shape) if image.shape else ()
    columns = [2 * x / (n - 1) - 1 for x, n in zip(axes, image.shape, strict=True) if n > 1]
    return np.stack(columns, axis=1) if columns else np.zeros((len(image.rows), 0))
