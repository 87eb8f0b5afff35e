"""Draws of the amplitudes of pools at given non-linear parameters.

The likelihood near a fit is nearly normal in the amplitudes. Amplitudes are drawn from that normal
distribution restricted to positive values, one after the other [1]_, and weighted by the exact
likelihood over the density that they were drawn with: the mean of the weights is the marginal
likelihood of the non-linear parameters.

References
----------
.. [1] Geweke, Econometrica 57 (1989) 1317, https://doi.org/10.2307/1913710
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from dipy_spinverse.compartments.fitting.variable_projection import (
    GaussianApproximation,
    SeparableProblem,
)
from dipy_spinverse.voxels.rician import (
    EXCESSES,
    compiled_log_likelihood,
    compiled_log_likelihood_of_means,
)

# Of an amplitude that the data do not distinguish from others: standard deviation 0.35 S0.
_LEAST_PRECISION = 8.0
_TAIL = 5.0  # standard deviations beyond which a normal tail is taken as exponential


def draw_amplitudes(
    problem: SeparableProblem,
    basis_signals: Tensor,
    gaussian: GaussianApproximation,
    uniform: Tensor,
    voxels: Tensor,
) -> tuple[Tensor, Tensor]:
    """Amplitudes (R, K) from random numbers (R, K), and logarithms (R,) of their weights.

    Row r has the basis signals (K, M) of point r in the voxel ``voxels[r]``.
    """
    weight = gaussian.inverse_sd**2
    inputs = (basis_signals, weight, weight * gaussian.values, voxels)
    gram, projection = _normal_equations(*(x.contiguous().numpy() for x in inputs))
    n_pools = basis_signals.shape[1]
    precision = torch.from_numpy(gram) + _LEAST_PRECISION * torch.eye(n_pools)
    factor, _ = torch.linalg.cholesky_ex(precision)
    mean = torch.cholesky_solve(torch.from_numpy(projection)[..., None], factor)[..., 0]
    amplitudes, log_density = _positive_draws(mean, factor, uniform)
    # Uniform are S0 and the fractions, not the amplitudes: these have the density S0^(1 - K).
    log_prior = (1 - n_pools) * torch.log(amplitudes.sum(dim=1).clamp_min(1e-12))
    no_means = torch.empty((0, 0), dtype=basis_signals.dtype)
    n_averages = no_means if problem.n_averages is None else problem.n_averages
    data = (problem.data, basis_signals, amplitudes, problem.noise, n_averages, voxels)
    arrays = (x.contiguous().numpy() for x in data)
    likelihood = torch.from_numpy(_log_likelihoods(*arrays, problem.rician, EXCESSES))
    if problem.inflation is not None:
        likelihood = likelihood / problem.inflation[voxels]
    return amplitudes, likelihood + log_prior - log_density


@njit(cache=True, nogil=True, fastmath=True)
def _normal_equations(basis_signals, weight, weighted, voxels):
    """A^T W A (R, K, K) and A^T W y (R, K)."""
    n_rows, n_pools, n = basis_signals.shape
    gram, projection = np.empty((n_rows, n_pools, n_pools)), np.empty((n_rows, n_pools))
    for r in range(n_rows):
        w, y = weight[voxels[r]], weighted[voxels[r]]
        for k in range(n_pools):
            row = basis_signals[r, k]
            total = row.dtype.type(0)
            for m in range(n):
                total += row[m] * y[m]
            projection[r, k] = total
            for j in range(k + 1):
                column = basis_signals[r, j]
                total = row.dtype.type(0)
                for m in range(n):
                    total += row[m] * column[m] * w[m]
                gram[r, k, j] = gram[r, j, k] = total
    return gram, projection


@njit(cache=True, nogil=True, fastmath=True)
def _log_likelihoods(
    data, basis_signals, amplitudes, sigma, n_averages, voxels, rician, table
):  # fmt: skip
    """Of rows (R,), with signals of the pools (R, K, M) and amplitudes (R, K)."""
    n_rows, n_pools, n = basis_signals.shape
    result = np.empty(n_rows)
    predicted, work = np.empty(n, basis_signals.dtype), np.empty(n, basis_signals.dtype)
    for r in range(n_rows):
        v = voxels[r]
        predicted[:] = 0
        for k in range(n_pools):
            basis, amplitude = basis_signals[r, k], basis_signals.dtype.type(amplitudes[r, k])
            for m in range(n):
                predicted[m] += amplitude * basis[m]
        if len(n_averages) and rician:
            result[r] = compiled_log_likelihood_of_means(
                data[v], predicted, sigma[v], n_averages[v], table
            )
        elif len(n_averages):
            squares = n_averages[v] * (data[v] - predicted) ** 2
            result[r] = -0.5 * squares.sum() / sigma[v] ** 2
        elif rician:
            result[r] = compiled_log_likelihood(data[v], predicted, sigma[v], work)
        else:
            result[r] = -0.5 * ((data[v] - predicted) ** 2).sum() / sigma[v] ** 2
    return result


def _positive_draws(mean, factor, uniform):
    """Draws (V, K) with precision L L^T restricted to positive values, and log-densities (V,).

    The last amplitude is drawn first, the others conditional on those after them: L^T (w - mean)
    is standard normal. Far in a tail the draw is exponential.
    """
    offset, amplitudes = torch.zeros_like(mean), torch.zeros_like(mean)
    log_density = torch.zeros_like(mean[:, 0])
    for j in range(mean.shape[1] - 1, -1, -1):
        precision = factor[:, j, j]
        shift = (factor[:, j + 1 :, j] * offset[:, j + 1 :]).sum(dim=1)
        conditional_mean = mean[:, j] - shift / precision
        bound = conditional_mean * precision
        log_normalisation = torch.special.log_ndtr(bound.clamp_min(-_TAIL))
        # Upper tail: draws stay accurate where the probability to be positive is small.
        tail = torch.special.ndtr(bound.clamp_min(-_TAIL)) * (1 - uniform[:, j])
        step = -torch.special.ndtri(tail.clamp_min(1e-300))
        log_normal = torch.log(precision / np.sqrt(2 * np.pi)) - 0.5 * step**2
        rate = (-bound).clamp_min(_TAIL) * precision
        exponential = -torch.log1p(-uniform[:, j]) / rate
        in_tail = bound < -_TAIL
        normal = (conditional_mean + step / precision).clamp_min(0)
        amplitudes[:, j] = torch.where(in_tail, exponential, normal)
        log_density = log_density + torch.where(
            in_tail, torch.log(rate) - rate * exponential, log_normal - log_normalisation
        )
        offset[:, j] = amplitudes[:, j] - mean[:, j]
    return amplitudes, log_density
