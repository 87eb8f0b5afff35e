"""What an acquisition tells nothing about."""

from __future__ import annotations

import numpy as np
import torch

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.definition import Definition
from dipy_spinverse.compartments.fitting.parameters import NonlinearParameters, physical_values
from dipy_spinverse.compartments.fitting.variable_projection import (
    SeparableProblem,
    optimal_amplitudes,
    predicted_signals,
    signal_jacobian,
)
from dipy_spinverse.compartments.signals.encoding import encoding_of
from dipy_spinverse.compartments.signals.pools import pool_signals

SNR = 100.0
_USUAL_SNR, _TOLD = 30.0, 2.0  # of the signal without diffusion; standard deviations
_MOST = 0.8  # of the signal, of the cylinders whose diameter is looked at
_N_DIAMETERS = 100
_N_DRAWS = 32
_PRIOR_PRECISION = 12.0  # of a uniform value between 0 and 1
# Standard deviation of the posterior over that of the prior.
_UNDETERMINED = 0.7


def undetermined_parameters(definition: Definition, acquisition: BaseAcquisition) -> list[str]:
    """Parameters and fractions on which the signals, at an SNR of 100, tell nearly nothing.

    By the information at 32 draws from the prior: named is what keeps, in half of them, at least
    0.7 of its standard deviation (two fractions of which only the sum shows keep 0.71).
    """
    rng = np.random.default_rng(0)
    n_scalars, n_axes = len(definition.parameters), len(definition.axes)
    frames = np.linalg.qr(rng.standard_normal((_N_DRAWS, n_axes, 3, 3)))[0]
    place = NonlinearParameters(
        torch.tensor(rng.random((_N_DRAWS, n_scalars))), torch.tensor(frames)
    )
    amplitudes = torch.tensor(rng.dirichlet(np.ones(len(definition.pools)), _N_DRAWS))
    encoding = encoding_of(acquisition, torch.float64, timed=definition.timed)
    ones = torch.ones(_N_DRAWS, len(acquisition), dtype=torch.float64)
    problem = SeparableProblem(definition, pool_signals(definition, encoding), ones, None, None)
    columns = problem.columns(place)
    slopes = signal_jacobian(problem, place, columns, amplitudes)
    changes = SNR * torch.cat([slopes, columns], dim=1)
    precision = changes @ changes.mT + _PRIOR_PRECISION * torch.eye(changes.shape[1])
    variance = torch.diagonal(torch.linalg.inv(precision), dim1=1, dim2=2)
    kept = torch.sqrt(_PRIOR_PRECISION * variance).median(dim=0).values
    scalars, pools = kept[:n_scalars], kept[slopes.shape[1] :]
    names = [p.name for p in definition.parameters] + list(definition.pools)
    return [
        n for n, k in zip(names, torch.cat([scalars, pools]), strict=True) if k > _UNDETERMINED
    ]


def resolution_limits(definition: Definition, acquisition: BaseAcquisition) -> dict[str, float]:
    """Of each diameter of cylinders, the value (um) below which all look alike at an SNR of 30.

    The pool of the cylinders has most of the signal, other scalars are in the middle of their
    range; the fractions may change to hide what the diameter does.
    """
    encoding = encoding_of(acquisition, torch.float64, timed=definition.timed)
    signals_of = pool_signals(definition, encoding)
    frames = torch.eye(3, dtype=torch.float64).expand(_N_DIAMETERS, len(definition.axes), 3, 3)
    of_cylinders = {c.arguments["diameter"]: c.pool for c in definition.compartments
                    if c.kernel == "cylinder"}  # fmt: skip
    found = {}
    for k, parameter in enumerate(definition.parameters):
        if parameter.name not in of_cylinders:
            continue
        unit = torch.full((_N_DIAMETERS, len(definition.parameters)), 0.5, dtype=torch.float64)
        unit[:, k] = torch.linspace(0, 1, _N_DIAMETERS)
        values = physical_values(definition, NonlinearParameters(unit, frames))
        columns = signals_of(values)
        rest = (1 - _MOST) / max(len(definition.pools) - 1, 1)
        largest = of_cylinders[parameter.name]
        shares = [_MOST if pool == largest else rest for pool in definition.pools]
        amounts = torch.tensor(shares, dtype=torch.float64).expand(_N_DIAMETERS, -1)
        signals = predicted_signals(columns, amounts)
        _, squares = optimal_amplitudes(columns[:1].expand_as(columns), signals)
        told = torch.nonzero(squares * _USUAL_SNR**2 > _TOLD**2)
        least = int(told[0]) if len(told) else _N_DIAMETERS - 1
        found[parameter.name] = float(values[parameter.name][least])
    return found
