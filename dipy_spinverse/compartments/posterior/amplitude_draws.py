"""Draws of the amplitudes of pools where the other parameters are given.

Magnitudes near a fit are nearly normal in the amplitudes. Amplitudes are drawn from that normal
distribution restricted to positive values, one after the other [1]_, and weighted by the exact
likelihood over the density that they were drawn with: the mean of the weights is the likelihood
of the other parameters alone.

References
----------
.. [1] Geweke, Econometrica 57 (1989) 1317, https://doi.org/10.2307/1913710
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.compartments.fitting.variable_projection import Problem, combined
from dipy_spinverse.voxels.rician import (
    log_likelihoods,
    rician_information,
    rician_target,
)

# Of an amplitude that is not told from others: about 0.35 of the signal without diffusion.
_LEAST_PRECISION = 8.0
_TAIL = 5.0  # standard deviations


@dataclass(frozen=True, eq=False)
class NormalData:
    """Normal approximation of measurements: values (V, M) and inverse standard deviations."""

    values: Tensor
    inverse_sd: Tensor

    def of_voxels(self, index) -> NormalData:
        """Some of the voxels."""
        return NormalData(self.values[index], self.inverse_sd[index])


def normal_data(problem: Problem, predicted: Tensor, sigma: Tensor) -> NormalData:
    """Normal data with the score and the information that magnitudes have at `predicted`."""
    if problem.sigma is None:
        return NormalData(problem.data, (1 / sigma[:, None]).expand_as(problem.data))
    score = rician_target(problem.data, predicted, sigma) - predicted
    information = rician_information(predicted / sigma[:, None])
    return NormalData(predicted + score / information, torch.sqrt(information) / sigma[:, None])


def draw_amplitudes(
    problem: Problem, columns: Tensor, normal: NormalData, sigma: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Amplitudes (V, K) and logarithms (V,) of their weights.

    Parameters
    ----------
    problem : Problem
    columns : Tensor (V, K, M)
        Signals of the pools.
    normal : NormalData
    sigma : Tensor (V,)
        Noise.
    uniform : Tensor (V, K)
        Random numbers.
    """
    white = columns * normal.inverse_sd[:, None]
    data = (normal.values * normal.inverse_sd)[..., None]
    n_pools = columns.shape[1]
    gram = (white @ white.mT).double() + _LEAST_PRECISION * torch.eye(n_pools)
    factor, _ = torch.linalg.cholesky_ex(gram)
    mean = torch.cholesky_solve((white @ data).double(), factor)[..., 0]
    amplitudes, log_density = _positive(mean, factor, uniform)
    # Alike are S0 and fractions, not amplitudes: they have the density S0^(1 - K).
    log_prior = (1 - n_pools) * torch.log(amplitudes.sum(dim=1).clamp_min(1e-12))
    predicted = combined(columns, amplitudes.to(columns.dtype))
    likelihood = log_likelihoods(problem.data, predicted, sigma, problem.sigma is not None)
    return amplitudes, likelihood.double() + log_prior - log_density


def _positive(mean, factor, uniform):
    """Draws (V, K) with precision L L^T restricted to positive values, and logarithms of density.

    The last amplitude is conditioned on nothing, each before on those after it: L^T (w - mean) is
    standard normal. Far in a tail the draw is exponential.
    """
    offset, amplitudes = torch.zeros_like(mean), torch.zeros_like(mean)
    log_density = torch.zeros_like(mean[:, 0])
    for j in range(mean.shape[1] - 1, -1, -1):
        precision = factor[:, j, j]
        later = (factor[:, j + 1 :, j] * offset[:, j + 1 :]).sum(dim=1)
        conditional = mean[:, j] - later / precision
        bound = conditional * precision
        near = bound.clamp_min(-_TAIL)
        # Upper tail: draws stay accurate where the chance to be positive is small.
        tail = torch.special.ndtr(near) * (1 - uniform[:, j])
        step = -torch.special.ndtri(tail.clamp_min(1e-300))
        log_normal = torch.log(precision / np.sqrt(2 * np.pi)) - 0.5 * step**2
        rate = (-bound).clamp_min(_TAIL) * precision
        beyond = -torch.log1p(-uniform[:, j]) / rate
        far = bound < -_TAIL
        drawn = torch.where(far, beyond, (conditional + step / precision).clamp_min(0))
        log_density = log_density + torch.where(
            far,
            torch.log(rate) - rate * beyond,
            log_normal - torch.special.log_ndtr(near),
        )
        amplitudes[:, j] = drawn
        offset[:, j] = drawn - mean[:, j]
    return amplitudes, log_density
