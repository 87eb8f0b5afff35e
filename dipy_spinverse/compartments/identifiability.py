"""Parameters that an acquisition cannot determine, before any data."""

from __future__ import annotations

import numpy as np
import torch

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.definition import Definition
from dipy_spinverse.compartments.fitting.amplitudes import optimal_amplitudes, predicted_signals
from dipy_spinverse.compartments.fitting.parameters import NonlinearParameters
from dipy_spinverse.compartments.fitting.variable_projection import (
    Solution,
    scaled_derivatives,
    separable_problem,
)

SNR = 100.0  # of the signal without diffusion, better than most scans
# Posterior over prior standard deviation. Two fractions of which only the sum is determined keep
# 1 / sqrt(2) = 0.71.
_UNDETERMINED = 0.7
_N_DRAWS = 32
_PRIOR_PRECISION = 12.0  # of a uniform value between 0 and 1
# The resolution limit of a diameter: a difference of two standard deviations at a usual SNR, in a
# voxel with this fraction of cylinders.
_USUAL_SNR, _SIGNIFICANT = 30.0, 2.0
_CYLINDER_FRACTION = 0.8
_N_DIAMETERS = 100


def undetermined_parameters(definition: Definition, acquisition: BaseAcquisition) -> list[str]:
    """Parameters and fractions that the signals, at an SNR of 100, hardly determine.

    By the information at 32 draws from the prior: those that keep, in half of them, at least 0.7
    of their standard deviation.
    """
    rng = np.random.default_rng(0)
    n_scalars, n_axes = len(definition.parameters), len(definition.axes)
    frames = np.linalg.qr(rng.standard_normal((_N_DRAWS, n_axes, 3, 3)))[0]
    unit = torch.tensor(rng.random((_N_DRAWS, n_scalars)))
    parameters = NonlinearParameters(unit, torch.tensor(frames))
    amplitudes = torch.tensor(rng.dirichlet(np.ones(len(definition.pools)), _N_DRAWS))
    signals = torch.ones(_N_DRAWS, len(acquisition), dtype=torch.float64)
    problem = separable_problem(definition, acquisition, signals)
    converged = torch.ones(_N_DRAWS, dtype=torch.bool)
    solution = Solution(parameters, problem.basis_signals(parameters), amplitudes, converged)
    derivatives = scaled_derivatives(problem, solution, problem.weighted(SNR * signals))
    information = derivatives @ derivatives.mT
    precision = information + _PRIOR_PRECISION * torch.eye(derivatives.shape[1])
    variance = torch.diagonal(torch.linalg.inv(precision), dim1=1, dim2=2)
    ratio = torch.sqrt(_PRIOR_PRECISION * variance).median(dim=0).values
    ratios = torch.cat([ratio[:n_scalars], ratio[-len(definition.pools) :]])
    names = [p.name for p in definition.parameters] + list(definition.pools)
    return [name for name, r in zip(names, ratios, strict=True) if r > _UNDETERMINED]


def resolution_limits(definition: Definition, acquisition: BaseAcquisition) -> dict[str, float]:
    """Diameters of cylinders (um) below which all have the same signals at an SNR of 30.

    Other scalars are in the middle of their range; the fractions may change to compensate.
    """
    n_scalars, n_pools = len(definition.parameters), len(definition.pools)
    ones = torch.ones(_N_DIAMETERS, len(acquisition), dtype=torch.float64)
    problem = separable_problem(definition, acquisition, ones)
    frames = torch.eye(3, dtype=torch.float64).expand(_N_DIAMETERS, len(definition.axes), 3, 3)
    pool_of = {
        c.arguments["diameter"]: c.pool for c in definition.compartments if c.kernel == "cylinder"
    }
    limits = {}
    for k, parameter in enumerate(definition.parameters):
        if parameter.name not in pool_of:
            continue
        unit = torch.full((_N_DIAMETERS, n_scalars), 0.5, dtype=torch.float64)
        unit[:, k] = torch.linspace(0, 1, _N_DIAMETERS)
        nonlinear = NonlinearParameters(unit, frames)
        basis_signals = problem.weighted(problem.basis_signals(nonlinear))
        amplitudes = ones.new_full((n_pools,), (1 - _CYLINDER_FRACTION) / max(n_pools - 1, 1))
        amplitudes[definition.pools.index(pool_of[parameter.name])] = _CYLINDER_FRACTION
        signals = predicted_signals(basis_signals, amplitudes.expand(_N_DIAMETERS, -1))
        _, squares = optimal_amplitudes(basis_signals[:1].expand_as(basis_signals), signals)
        different = torch.nonzero(squares * _USUAL_SNR**2 > _SIGNIFICANT**2)
        index = int(different[0]) if len(different) else _N_DIAMETERS - 1
        fraction = float(unit[index, k])
        limits[parameter.name] = parameter.low + (parameter.high - parameter.low) * fraction
    return limits
