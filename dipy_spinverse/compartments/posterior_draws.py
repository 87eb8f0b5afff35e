"""Draws from the posterior of fitted voxels, to look at or to compute with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from dipy_spinverse.compartments.chunk import all_values
from dipy_spinverse.compartments.fibres import maps_of, with_fibres, with_S0_corrections
from dipy_spinverse.compartments.fit import CompartmentFit
from dipy_spinverse.compartments.fitting.initial_values import (
    MEASURED_S0,
    dictionary_initial_values,
)
from dipy_spinverse.compartments.fitting.parameters import NonlinearParameters
from dipy_spinverse.compartments.fitting.variable_projection import (
    EchoTimeScale,
    SeparableProblem,
    variable_projection,
)
from dipy_spinverse.compartments.posterior.sample import sample_posterior
from dipy_spinverse.compartments.signals.encoding import encoding_of
from dipy_spinverse.compartments.signals.pools import pool_signals


def posterior_draws(
    fit: CompartmentFit, data: ArrayLike, n_draws: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Draws of all maps of one voxel.

    Parameters
    ----------
    fit : CompartmentFit
        Of one voxel, such as ``fit[i, j, k]``, by :meth:`CompartmentModel.fit`; a learner of a
        posterior has draws of its own (:meth:`LearnedModel.draws`).
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
    encoding = encoding_of(model.acquisition, torch.float64, timed=definition.timed)
    scale, n_scalars = None, len(definition.parameters)
    definition = with_S0_corrections(definition, len(model.acquisition.echo_times))
    if definition.n_S0_corrections:
        told = torch.tensor(fit.S0_per_te / fit.S0_likeliest)[None]
        scale = EchoTimeScale(told, torch.tensor(model.acquisition.te_index))
    n_axes, n_pools = len(definition.axes), len(definition.pools)
    told_levels = np.full(definition.n_S0_corrections, MEASURED_S0)
    unit = torch.tensor(np.append(fit._unit[:n_scalars], told_levels))[None]
    frames = torch.tensor(fit._frames[: 9 * n_axes]).reshape(1, n_axes, 3, 3)
    S0 = float(fit.S0_likeliest)
    sigma = torch.tensor([float(fit.sigma) / S0])
    noise = sigma if model.likelihood == "rician" else None
    pools = pool_signals(definition, encoding)
    problem = SeparableProblem(definition, pools, torch.tensor(data / S0)[None], scale, noise)
    amplitudes = torch.tensor(fit._fractions[None, :n_pools])
    place = NonlinearParameters(unit, frames)
    starts = dictionary_initial_values(problem, place.frames, definition.n_starts)
    ends = [place, *(variable_projection(problem, start)[0] for start in starts[1:])]
    found = sample_posterior(problem, ends, amplitudes, sigma, n_draws, seed)
    values = all_values(definition, found.place, found.amplitudes)
    maps = maps_of(definition, values) | {"S0": S0 * values["S0"]}
    return {name: value.numpy() for name, value in maps.items()}
