"""How many fibre populations a voxel has, and where they begin: by evidence.

Models of 0 to 3 populations are fitted from the directions whose narrow populations explain the
signals best, all pairs tried. The evidence of each is Laplace's approximation [1]_,

    log Z = log L - 1/2 log |1 + H / P| + log n! - (n - 1) log 2

with the information H at the fit, the precision P of a normal prior of the same spread as the
uniform one, the n! ways to number the populations, and each further one half as likely a priori.

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

from dipy_spinverse.compartments.definition import Definition
from dipy_spinverse.compartments.fibres import with_fibres
from dipy_spinverse.compartments.fitting.initial_values import dictionary_initial_values
from dipy_spinverse.compartments.fitting.parameters import (
    NonlinearParameters,
    orthonormal_frames,
    physical_values,
)
from dipy_spinverse.compartments.fitting.variable_projection import (
    SeparableProblem,
    predicted_signals,
    signal_jacobian,
    variable_projection,
)
from dipy_spinverse.compartments.posterior.amplitude_draws import gaussian_approximation
from dipy_spinverse.voxels.rician import log_likelihoods

MAX_FIBRES = 3
# Scalars of candidates, over their range: dispersion is little, the rest usual.
_NARROW, _USUAL = 0.05, 0.6
_APART = np.cos(np.radians(20.0))  # of candidates
# Precisions of priors: of values uniform on (0, 1), and of turns of an axis.
_UNIFORM, _TURNS = 12.0, 3.0


def select_populations(
    problem_of: Callable[[Definition], SeparableProblem],
    definition: Definition,
    frames: Tensor,
    sigma: Tensor,
) -> tuple[np.ndarray, np.ndarray]:
    """Number (V,) of populations of most evidence, and their axes (V, 3, 3) as rows.

    Parameters
    ----------
    problem_of : callable
        The problem of a definition, in Gaussian form.
    definition : Definition
        Of one population.
    frames : Tensor (V, 3, 3)
        Of the tensor, whose last row is where one population begins.
    sigma : Tensor (V,)
        Noise.
    """
    starts = _directions(problem_of(definition), frames)
    n_voxels = len(sigma)
    best = torch.full((n_voxels,), -torch.inf, dtype=torch.float64)
    number, axes = np.zeros(n_voxels, dtype=int), np.tile(np.eye(3), (n_voxels, 1, 1))
    for n in range(MAX_FIBRES + 1):
        several = with_fibres(definition, n)
        problem = replace(problem_of(several), sigma=sigma)
        if n < 2:
            turned = frames[:, None].expand(-1, n, -1, -1)
        else:
            found = starts[n - 2]
            turned = orthonormal_frames(found.reshape(-1, 3)).reshape(n_voxels, n, 3, 3)
        place, columns, amplitudes, _ = variable_projection(
            problem, dictionary_initial_values(problem, turned)[0]
        )
        prior = lgamma(n + 1) - max(n - 1, 0) * log(2)
        evidence = _evidence(problem, place, columns, amplitudes, sigma) + prior
        better = (evidence > best).numpy()
        best = torch.maximum(best, evidence)
        number[better] = n
        axes[better, :n] = place.frames[better, :, 2].double().numpy()
    return number, axes


def _evidence(problem, place, columns, amplitudes, sigma):
    slopes = signal_jacobian(problem, place, columns, amplitudes)
    predicted = predicted_signals(columns, amplitudes)
    normal = gaussian_approximation(problem, predicted, sigma)
    white = (torch.cat([slopes, columns], dim=1) * normal.inverse_sd[:, None]).double()
    n_scalars, n_all = place.unit.shape[1], white.shape[1]
    precision = torch.full((n_all,), _UNIFORM, dtype=torch.float64)
    precision[n_scalars : slopes.shape[1]] = _TURNS
    white = white / torch.sqrt(precision)[:, None]
    information = white @ white.mT + torch.eye(n_all, dtype=torch.float64)
    likelihood = log_likelihoods(problem.data, predicted, sigma, problem.sigma is not None)
    return likelihood.double() - 0.5 * torch.linalg.slogdet(information)[1]


def _directions(problem: SeparableProblem, frames: Tensor) -> list[Tensor]:
    """Axes (V, 2, 3) and (V, 3, 3) whose narrow populations explain the signals best."""
    definition, data = problem.definition, problem.data
    vertices = unit_icosahedron.subdivide(n=2).vertices
    vertices = vertices[vertices @ [0.01, 0.1, 1.0] > 0]
    axes = torch.tensor(vertices, dtype=data.dtype)
    n = len(axes)
    units = [_NARROW if p.per_fibre else _USUAL for p in definition.parameters]
    unit = torch.tensor(units, dtype=data.dtype).expand(n, -1)
    place = NonlinearParameters(
        unit, orthonormal_frames(axes)[:, None].expand(-1, len(definition.axes), -1, -1)
    )
    pools = problem.pools(physical_values(definition, place))  # (N, K, M)
    with_axis = {c.pool for c in definition.compartments if c.has_axis}
    fibres = pools[:, [name in with_axis for name in definition.pools]].mean(dim=1)
    others = pools[0, [name not in with_axis for name in definition.pools]]
    scale = torch.ones_like(data[0])
    if problem.scale is not None:  # differs little from voxel to voxel
        scale = problem.scale.S0.mean(dim=0)[problem.scale.index]
    basis = torch.linalg.qr((others * scale).T)[0]
    fibres = fibres * scale - (fibres * scale) @ basis @ basis.T
    gram, projection = fibres @ fibres.T, data @ fibres.T
    own = torch.diagonal(gram)
    determinant = own[:, None] * own - gram**2
    apart = (axes @ axes.T).abs() < _APART
    first = (projection[:, :, None] * own - projection[:, None] * gram) / determinant
    second = first.mT
    gain = first * projection[:, :, None] + second * projection[:, None]
    gain = torch.where(apart & (first > 0) & (second > 0), gain, -torch.inf)
    pair = gain.flatten(1).argmax(dim=1)
    pair = torch.stack([pair // n, pair % n], dim=1)
    triples = torch.cat(
        [pair[:, None].expand(-1, n, -1), torch.arange(n).expand(len(data), n)[..., None]], dim=2
    )
    square = gram[triples[..., :, None], triples[..., None, :]]
    right = projection[:, None].expand(-1, n, -1).gather(2, triples)
    ridge = 1e-6 * own.mean() * torch.eye(3, dtype=data.dtype)
    amounts = torch.linalg.solve(square + ridge, right)
    gain = (amounts * right).sum(dim=2)
    allowed = apart[pair].all(dim=1) & (amounts > 0).all(dim=2)
    third = torch.where(allowed, gain, -torch.inf).argmax(dim=1)
    return [axes[pair], axes[torch.cat([pair, third[:, None]], dim=1)]]
