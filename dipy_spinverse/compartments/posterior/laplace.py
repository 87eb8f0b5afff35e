"""Samples of the likelihood alone, in its normal approximation at a fit.

The data constrain each dispersion of three fibre populations little, and three narrow ones are a
corner of the prior: intervals of the posterior lie above them (77 % coverage with a uniform prior
in benchmarks/notes/compartments.md, "Three populations, later"). The lower limits of these samples
widen them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.compartments.fitting.parameters import NonlinearParameters, apply_step
from dipy_spinverse.compartments.fitting.variable_projection import (
    SeparableProblem,
    Solution,
    gaussian_approximation,
    scaled_derivatives,
)

MANY_FIBRES = 3
# For closer axes the likelihood is not normal, and its intervals cover 78 % instead of 95 %
# (benchmarks/notes/compartments.md).
_LARGEST_COSINE = np.cos(np.radians(60.0))
_LEAST_PRECISION = 1e-3  # in ranges and rad: what the data do not constrain gets all of its range


def laplace_samples(
    problem: SeparableProblem, solution: Solution, n: int, seed: int
) -> tuple[NonlinearParameters, Tensor]:
    """Parameters and amplitudes (n V, K) of the normal likelihood at a fit, inside of the bounds.

    Voxels vary fastest, as in `sample_posterior`.
    """
    inverse_sd = gaussian_approximation(problem, solution.predicted).inverse_sd
    derivatives = scaled_derivatives(problem, solution, inverse_sd).double()
    amplitudes, n_pools = solution.amplitudes, solution.amplitudes.shape[1]
    precision = derivatives @ derivatives.mT + _LEAST_PRECISION * torch.eye(derivatives.shape[1])
    factor, _ = torch.linalg.cholesky_ex(torch.linalg.inv(precision))
    random = np.random.default_rng(seed).standard_normal((n, derivatives.shape[1]))
    step = torch.einsum("vpq,nq->nvp", factor, torch.tensor(random)).to(amplitudes.dtype)
    step, change = step.split([step.shape[2] - n_pools, n_pools], dim=2)
    unit = solution.parameters.unit
    scalars = slice(unit.shape[1])
    step[..., scalars] = (unit + step[..., scalars]).clamp(0, 1) - unit
    parameters = apply_step(
        problem.definition, solution.parameters.repeated(n), step.flatten(0, 1)
    )
    return parameters, (amplitudes + change).clamp_min(0).flatten(0, 1)


def unresolved_axes(parameters: NonlinearParameters) -> np.ndarray:
    """Whether (V,) two axes are too close for their dispersions to be distinguished."""
    axes = parameters.frames[:, :, 2]
    cosine = (axes @ axes.mT).abs() - torch.eye(axes.shape[1], dtype=axes.dtype)
    return (cosine.amax(dim=(1, 2)) > _LARGEST_COSINE).numpy()
