"""Number of fibre populations of a voxel and their axes, by Bayesian evidence.

Models of 0 to 3 populations are fitted from the directions whose narrow populations explain the
signals best, all pairs tried. The evidence of each is Laplace's approximation [1]_,

    log Z = log L - 1/2 log |1 + H / P| + log n! - (n - 1) log 2

with the information H at the fit, the precision P of a normal prior with the standard deviation of
the uniform one, the n! ways to number the populations, and each further one half as likely a
priori.

References
----------
.. [1] MacKay, Neural Comput. 4 (1992) 415, https://doi.org/10.1162/neco.1992.4.3.415
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import lgamma, log

import numpy as np
import torch
from dipy.core.sphere import unit_icosahedron
from torch import Tensor

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.definition import Definition
from dipy_spinverse.compartments.fibres import MAX_FIBRES, with_fibres
from dipy_spinverse.compartments.fitting.initial_values import (
    halton_initial_values,
    tensor_axis_frames,
)
from dipy_spinverse.compartments.fitting.parameters import (
    NonlinearParameters,
    orthonormal_frames,
    physical_values,
)
from dipy_spinverse.compartments.fitting.variable_projection import (
    SeparableProblem,
    Solution,
    gaussian_approximation,
    residual_noise,
    scaled_derivatives,
    variable_projection,
)

# Scaled parameters of the candidates: little dispersion, usual values otherwise. By hand; they
# only set initial values.
_NARROW, _USUAL = 0.05, 0.6
_LARGEST_COSINE = np.cos(np.radians(20.0))  # between candidates; closer ones are hardly distinct
# Precisions of normal priors: 12 is that of a uniform distribution on (0, 1), 3 that of a
# component of a uniformly distributed axis.
_UNIFORM_PRECISION, _ROTATION_PRECISION = 12.0, 3.0


def select_populations(
    problem_of: Callable[[Definition], SeparableProblem],
    definition: Definition,
    acquisition: BaseAcquisition,
    signals: np.ndarray,
    rician: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Number (V,) of populations with the largest evidence, and their axes (V, 3, 3) as rows.

    `problem_of` makes the least-squares problem of a definition, with the noise if it is known;
    `definition` is that of one population. `rician`: the signals are magnitudes.
    """
    single_fibre = problem_of(definition)
    tensor_frames = tensor_axis_frames(acquisition, signals, single_fibre.data.dtype)
    sigma = single_fibre.sigma
    if sigma is None:
        start = halton_initial_values(single_fibre, tensor_frames[:, None])[0]
        sigma = residual_noise(single_fibre, variable_projection(single_fibre, start))
    candidates = _candidate_axes(single_fibre)
    n_voxels = len(sigma)
    largest_evidence = torch.full((n_voxels,), -torch.inf, dtype=torch.float64)
    number, axes = np.zeros(n_voxels, dtype=int), np.tile(np.eye(3), (n_voxels, 1, 1))
    for n in range(MAX_FIBRES + 1):
        problem = problem_of(with_fibres(definition, n))
        problem = replace(problem, sigma=sigma, rician=rician)
        if n < 2:
            frames = tensor_frames[:, None].expand(-1, n, -1, -1)
        else:
            frames = orthonormal_frames(candidates[n].reshape(-1, 3)).reshape(n_voxels, n, 3, 3)
        solution = variable_projection(problem, halton_initial_values(problem, frames)[0])
        log_prior = lgamma(n + 1) - max(n - 1, 0) * log(2)
        evidence = _log_evidence(problem, solution) + log_prior
        larger = (evidence > largest_evidence).numpy()
        largest_evidence = torch.maximum(largest_evidence, evidence)
        number[larger] = n
        axes[larger, :n] = solution.parameters.frames[larger, :, 2].double().numpy()
    return number, axes


def _log_evidence(problem: SeparableProblem, solution: Solution) -> Tensor:
    """log L - 1/2 log |1 + H / P| (V,)."""
    predicted = solution.predicted
    inverse_sd = gaussian_approximation(problem, predicted).inverse_sd
    derivatives = scaled_derivatives(problem, solution, inverse_sd)
    n_scalars, n = solution.parameters.unit.shape[1], derivatives.shape[1]
    precision = torch.full((n,), _UNIFORM_PRECISION, dtype=torch.float64)
    precision[n_scalars : n - len(problem.definition.pools)] = _ROTATION_PRECISION
    scaled = derivatives.double() / torch.sqrt(precision)[:, None]
    information = scaled @ scaled.mT + torch.eye(n, dtype=torch.float64)
    return problem.log_likelihoods(predicted).double() - 0.5 * torch.linalg.slogdet(information)[1]


def _candidate_axes(problem: SeparableProblem) -> dict[int, Tensor]:
    """Axes (V, 2, 3) and (V, 3, 3) whose narrow populations explain the signals best."""
    vertices = unit_icosahedron.subdivide(n=2).vertices
    vertices = vertices[vertices @ [0.01, 0.1, 1.0] > 0]
    axes = torch.tensor(vertices, dtype=problem.data.dtype)
    fibre_signals = _fibre_signals(problem, axes)
    gram, projection = fibre_signals @ fibre_signals.T, problem.data @ fibre_signals.T
    separated = (axes @ axes.T).abs() < _LARGEST_COSINE
    pair = _best_pair(gram, projection, separated)
    third_axis = _best_addition(gram, projection, separated, pair)
    return {2: axes[pair], 3: axes[torch.cat([pair, third_axis[:, None]], dim=1)]}


def _fibre_signals(problem, axes):
    """Signals (N, M) of narrow populations along axes, projected off the pools without axis."""
    definition, n = problem.definition, len(axes)
    scaled = [_NARROW if p.per_fibre else _USUAL for p in definition.parameters]
    unit = torch.tensor(scaled, dtype=axes.dtype).expand(n, -1)
    frames = orthonormal_frames(axes)[:, None].expand(-1, len(definition.axes), -1, -1)
    values = physical_values(definition, NonlinearParameters(unit, frames))
    pools = problem.pools(values)  # (N, K, M)
    with_axis = {c.pool for c in definition.compartments if c.has_axis}
    fibres = pools[:, [name in with_axis for name in definition.pools]].mean(dim=1)
    isotropic = pools[0, [name not in with_axis for name in definition.pools]]
    scale = torch.ones_like(problem.data[0])
    if problem.S0 is not None:  # differs little from voxel to voxel
        scale = problem.S0.mean(dim=0)[problem.labels]
    basis = torch.linalg.qr((isotropic * scale).T)[0]
    return fibres * scale - (fibres * scale) @ basis @ basis.T


def _best_pair(gram, projection, separated):
    """Indices (V, 2) of the pair of populations with the largest gain in the sum of squares."""
    n, squares = len(gram), torch.diagonal(gram)
    determinant = squares[:, None] * squares - gram**2
    amplitude = (projection[:, :, None] * squares - projection[:, None] * gram) / determinant
    partner = amplitude.mT
    gain = amplitude * projection[:, :, None] + partner * projection[:, None]
    gain = torch.where(separated & (amplitude > 0) & (partner > 0), gain, -torch.inf)
    pair = gain.flatten(1).argmax(dim=1)
    return torch.stack([pair // n, pair % n], dim=1)


def _best_addition(gram, projection, separated, pair):
    """Index (V,) of the population that explains most together with the pair."""
    n, n_voxels = len(gram), len(pair)
    candidates = torch.arange(n).expand(n_voxels, n)[..., None]
    triples = torch.cat([pair[:, None].expand(-1, n, -1), candidates], dim=2)
    grams = gram[triples[..., :, None], triples[..., None, :]]
    projections = projection[:, None].expand(-1, n, -1).gather(2, triples)
    ridge = 1e-6 * torch.diagonal(gram).mean() * torch.eye(3, dtype=gram.dtype)
    amplitudes = torch.linalg.solve(grams + ridge, projections)
    gain = (amplitudes * projections).sum(dim=2)
    allowed = separated[pair].all(dim=1) & (amplitudes > 0).all(dim=2)
    return torch.where(allowed, gain, -torch.inf).argmax(dim=1)
