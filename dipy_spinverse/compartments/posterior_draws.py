"""Draws from the posterior of one fitted voxel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike

from dipy_spinverse.compartments.fibres import (
    with_fibres,
    with_S0_corrections,
    without_correction,
)
from dipy_spinverse.compartments.fit import CompartmentFit, maps_at, stored_parameters
from dipy_spinverse.compartments.fitting.initial_values import halton_initial_values
from dipy_spinverse.compartments.fitting.variable_projection import (
    Solution,
    separable_problem,
    variable_projection,
)
from dipy_spinverse.compartments.posterior.sample import sample_posterior


def posterior_draws(
    fit: CompartmentFit, data: ArrayLike, n_draws: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Draws of all maps of one voxel.

    Parameters
    ----------
    fit : CompartmentFit
        Of one voxel, such as ``fit[i, j, k]``, by :meth:`CompartmentModel.fit`.
    data : array-like (M,)
        Signals that were fitted.
    n_draws : int, optional
    seed : int, optional

    Returns
    -------
    dict of ndarray (n_draws,)

    Raises
    ------
    ValueError
        More than one voxel, or one that was not fitted.

    Examples
    --------
    >>> draws = posterior_draws(fit[3, 4, 5], data[3, 4, 5])  # doctest: +SKIP
    >>> np.corrcoef(draws["ndi"], draws["fwf"])  # doctest: +SKIP
    """
    model = fit.model
    data = np.asarray(data, dtype=float)
    if fit.shape != () or data.shape != (len(model.acquisition),):
        raise ValueError(
            f"fit has voxels {fit.shape} and data the shape {data.shape}; give one voxel, as "
            "fit[i, j, k] and data[i, j, k]."
        )
    if not fit.S0_likeliest > 0:
        raise ValueError(f"The voxel was not fitted (status {int(fit.status)}).")
    definition = with_fibres(model.definition, int(fit.n_fibres))
    stored = {name: getattr(fit, name)[None] for name in ("_unit", "_frames", "_fractions")}
    parameters, amplitudes = stored_parameters(definition, stored, slice(None))
    n_scalars = len(definition.parameters)
    names = [definition.parameters[k].name for k in np.flatnonzero(fit._known[:n_scalars])]
    definition = replace(with_S0_corrections(definition, model.has_b0), known=tuple(names))
    S0 = float(fit.S0_likeliest)
    S0_per_label = torch.tensor(fit.S0_per_label / fit.S0_likeliest)[None]
    problem = separable_problem(
        definition,
        model.acquisition,
        torch.tensor(data / S0)[None],
        S0_per_label,
        model.labels,
    )
    sigma, rician = torch.tensor([float(fit.sigma) / S0]), model.likelihood == "rician"
    rician &= data.min() >= 0  # others are real parts, as in the fit
    inflation = torch.tensor([float(getattr(fit, "birge_ratio", 1.0)) ** 2])
    problem = replace(problem, sigma=sigma, rician=rician, inflation=inflation)
    if fit.outliers.any():
        problem = problem.without(fit.outliers[None])
    corrections = parameters.unit.new_tensor([without_correction(definition)])
    parameters = replace(parameters, unit=torch.cat([parameters.unit, corrections], dim=1))
    known = torch.tensor([p.name in definition.known for p in definition.parameters])
    problem = replace(problem, known=torch.where(known, parameters.unit, torch.nan))
    converged = torch.ones(1, dtype=torch.bool)
    solution = Solution(parameters, problem.basis_signals(parameters), amplitudes, converged)
    starts = halton_initial_values(problem, parameters.frames, definition.n_starts)[1:]
    minima = [parameters, *(variable_projection(problem, start).parameters for start in starts)]
    samples = sample_posterior(problem, solution, minima, n_draws, seed)
    maps = maps_at(definition, samples.parameters, samples.amplitudes)
    return maps | {"S0": S0 * maps["S0"]}
