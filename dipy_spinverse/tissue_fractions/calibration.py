"""Calibration of an image: shared parameters, fields and noise, estimated before the fractions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.tissue_fractions.mr_simulator import MRSimulator
from dipy_spinverse.tissue_fractions.sequences import Sequence
from dipy_spinverse.tissue_fractions.shared_parameters import (
    FieldMaps,
    NuisanceErrors,
    SharedParameterEstimator,
    polynomials,
)
from dipy_spinverse.tissue_fractions.signal_table import (
    SignalSimulation,
    SignalTable,
    axes_of,
)
from dipy_spinverse.voxels.image import Image

_ORDER = 4  # of the polynomials of bias and B1 fields; higher ones follow anatomy
_B1_MARGIN = 3.0  # standard deviations


def calibrate(
    image: Image,
    simulator: MRSimulator,
    sequences: tuple[Sequence, ...],
    constants: Tensor,
    *,
    unknown: tuple[str, ...],
    constants_error: float,
    b1_error: float,
) -> tuple[Image, Tensor, tuple[SignalTable, Tensor, NuisanceErrors]]:
    """Image with the attributes of `FractionFitChunk`, constants, and what signals depend on.

    Constants (T, 5) are estimated if `unknown`. The rest are the signals of pure tissues, their
    derivatives by constants, and the errors of both constants and B1.
    """
    voxels, maps = image.voxels, image.voxels.attributes
    basis = polynomials(_positions(image), _ORDER)
    fields = FieldMaps(maps["b1"], maps["b0"], maps["sensitivity"], basis)
    axes = axes_of(fields.b1, fields.b0, _B1_MARGIN * b1_error)
    estimator = SharedParameterEstimator(
        SignalSimulation(simulator, sequences, axes), unknown, constants_error, b1_error
    )
    sigma = None if voxels.sigma is None else torch.tensor(voxels.sigma)
    if len(voxels):
        shared, noise, freedom = estimator(torch.tensor(voxels.signals), sigma, fields, constants)
    else:
        shared, noise, freedom = estimator.prior(constants, basis), 1, 0
    if sigma is None:
        noise_map = np.full(len(voxels), float(noise))
        image = replace(image, noise=noise_map, freedom=freedom)
        voxels = replace(voxels, sigma=noise_map)
    attributes = {
        "b1": shared.b1_of(fields), "b0": fields.b0,
        "scale": shared.scale(fields) / voxels.S0[:, 0], "known_b1": fields.b1, "basis": basis,
    }  # fmt: skip
    image = replace(image, voxels=replace(voxels, attributes=attributes))
    errors = NuisanceErrors.from_shared(shared)
    return image, shared.constants, (*estimator.tables(shared.constants), errors)


def _positions(image: Image) -> np.ndarray:
    """Coordinates (V, D) from -1 to 1 along the axes of more than one voxel."""
    axes = np.unravel_index(image.rows, image.shape) if image.shape else ()
    columns = [2 * x / (n - 1) - 1 for x, n in zip(axes, image.shape, strict=True) if n > 1]
    return np.stack(columns, axis=1) if columns else np.zeros((len(image.rows), 0))
