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
from numba import njit
from torch import Tensor

from dipy_spinverse.compartments.fitting.variable_projection import SeparableProblem
from dipy_spinverse.voxels.rician import (
    compiled_log_likelihood,
    rician_information,
    rician_target,
)

# Of an amplitude that is not told from others: about 0.35 of the signal without diffusion.
_LEAST_PRECISION = 8.0
_TAIL = 5.0  # standard deviations


@dataclass(frozen=True, eq=False)
class GaussianApproximation:
    """Normal approximation of measurements: values (V, M) and inverse standard deviations."""

    values: Tensor
    inverse_sd: Tensor


def gaussian_approximation(
    problem: SeparableProblem, predicted: Tensor, sigma: Tensor
) -> GaussianApproximation:
    """Normal data with the score and the information that magnitudes have at `predicted`."""
    if problem.sigma is None:
        return GaussianApproximation(problem.data, (1 / sigma[:, None]).expand_as(problem.data))
    score = rician_target(problem.data, predicted, sigma) - predicted
    information = rician_information(predicted / sigma[:, None])
    return GaussianApproximation(
        predicted + score / information, torch.sqrt(information) / sigma[:, None]
    )


def draw_amplitudes(
    problem: SeparableProblem,
    columns: Tensor,
    normal: GaussianApproximation,
    sigma: Tensor,
    uniform: Tensor,
    voxels: Tensor,
) -> tuple[Tensor, Tensor]:
    """Amplitudes (R, K) and logarithms (R,) of their weights.

    Parameters
    ----------
    problem : Problem
    columns : Tensor (R, K, M)
        Signals of the pools.
    normal : NormalData
    sigma : Tensor (V,)
        Noise.
    uniform : Tensor (R, K)
        Random numbers.
    voxels : Tensor (R,) of int
        Which of the V voxels each row is of.
    """
    weight = normal.inverse_sd**2
    arrays = (columns, weight, weight * normal.values, voxels)
    gram, projection = _normal_equations(*(each.contiguous().numpy() for each in arrays))
    n_pools = columns.shape[1]
    precision = torch.from_numpy(gram) + _LEAST_PRECISION * torch.eye(n_pools)
    factor, _ = torch.linalg.cholesky_ex(precision)
    mean = torch.cholesky_solve(torch.from_numpy(projection)[..., None], factor)[..., 0]
    amplitudes, log_density = _positive(mean, factor, uniform)
    # Alike are S0 and fractions, not amplitudes: they have the density S0^(1 - K).
    log_prior = (1 - n_pools) * torch.log(amplitudes.sum(dim=1).clamp_min(1e-12))
    of_rows = (problem.data, columns, amplitudes, sigma, voxels)
    likelihood = _log_likelihoods(
        *(each.contiguous().numpy() for each in of_rows), problem.sigma is not None
    )
    return amplitudes, torch.from_numpy(likelihood) + log_prior - log_density


@njit(cache=True, nogil=True, fastmath=True)
def _normal_equations(columns, weight, weighted, voxels):
    """A^T W A (R, K, K) and A^T W y (R, K)."""
    n_rows, n_pools, n = columns.shape
    gram, projection = np.empty((n_rows, n_pools, n_pools)), np.empty((n_rows, n_pools))
    for r in range(n_rows):
        w, y = weight[voxels[r]], weighted[voxels[r]]
        for k in range(n_pools):
            own = columns[r, k]
            total = own.dtype.type(0)
            for m in range(n):
                total += own[m] * y[m]
            projection[r, k] = total
            for j in range(k + 1):
                other = columns[r, j]
                total = own.dtype.type(0)
                for m in range(n):
                    total += own[m] * other[m] * w[m]
                gram[r, k, j] = gram[r, j, k] = total
    return gram, projection


@njit(cache=True, nogil=True, fastmath=True)
def _log_likelihoods(data, columns, amplitudes, sigma, voxels, rician):
    """Of rows (R,), each with its own columns (K, M) and amplitudes (K,)."""
    n_rows, n_pools, n = columns.shape
    result = np.empty(n_rows)
    predicted, work = np.empty(n, columns.dtype), np.empty(n, columns.dtype)
    for r in range(n_rows):
        v = voxels[r]
        predicted[:] = 0
        for k in range(n_pools):
            own, amount = columns[r, k], columns.dtype.type(amplitudes[r, k])
            for m in range(n):
                predicted[m] += amount * own[m]
        if rician:
            result[r] = compiled_log_likelihood(data[v], predicted, sigma[v], work)
        else:
            result[r] = -0.5 * ((data[v] - predicted) ** 2).sum() / sigma[v] ** 2
    return result


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
