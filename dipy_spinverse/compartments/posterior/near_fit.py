"""What the likelihood alone says near a fit, where a flat prior says too much.

Of three fibre populations the data tell little of each dispersion, and narrow fibres are a corner
of all dispersions that are equally likely: intervals of the posterior lie above them. They are
widened downwards.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.compartments.fitting.parameters import NonlinearParameters, apply_step
from dipy_spinverse.compartments.fitting.variable_projection import (
    SeparableProblem,
    predicted_signals,
    signal_jacobian,
)
from dipy_spinverse.compartments.posterior.amplitude_draws import gaussian_approximation

MANY_FIBRES = 3
# Between axes: below it the likelihood is no longer normal, and tells no least dispersion.
_RESOLVED = np.cos(np.radians(60.0))
_LEAST_PRECISION = 1e-3  # of what the data do not tell, in ranges and rad


def draws_near_fit(
    problem: SeparableProblem,
    place: NonlinearParameters,
    columns: Tensor,
    amplitudes: Tensor,
    sigma: Tensor,
    n: int,
    seed: int,
) -> tuple[NonlinearParameters, Tensor]:
    """Places and amplitudes (n V, K) of the normal likelihood at a fit, inside of the bounds.

    Voxels vary fastest, as in `sample_posterior`.
    """
    slopes = signal_jacobian(problem, place, columns, amplitudes)
    normal = gaussian_approximation(problem, predicted_signals(columns, amplitudes), sigma)
    white = torch.cat([slopes, columns], dim=1) * normal.inverse_sd[:, None]
    white = white.double()
    precision = white @ white.mT + _LEAST_PRECISION * torch.eye(white.shape[1])
    factor, _ = torch.linalg.cholesky_ex(torch.linalg.inv(precision))
    random = np.random.default_rng(seed).standard_normal((n, white.shape[1]))
    step = torch.einsum("vpq,nq->nvp", factor, torch.tensor(random)).to(amplitudes.dtype)
    step, change = step.split([slopes.shape[1], amplitudes.shape[1]], dim=2)
    scalars = slice(place.unit.shape[1])
    step[..., scalars] = (place.unit + step[..., scalars]).clamp(0, 1) - place.unit
    everywhere = NonlinearParameters(place.unit.repeat(n, 1), place.frames.repeat(n, 1, 1, 1))
    drawn = (amplitudes + change).clamp_min(0)
    return apply_step(problem.definition, everywhere, step.flatten(0, 1)), drawn.flatten(0, 1)


def unresolved(place: NonlinearParameters) -> np.ndarray:
    """Whether (V,) two axes are nearer to each other than dispersion can be told apart from."""
    axes = place.frames[:, :, 2]
    cosine = (axes @ axes.mT).abs() - torch.eye(axes.shape[1], dtype=axes.dtype)
    return (cosine.amax(dim=(1, 2)) > _RESOLVED).numpy()
