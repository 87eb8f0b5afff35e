"""What an acquisition tells nothing about."""

from __future__ import annotations

import numpy as np
import torch

from dipy_spinverse.acquisition import Measurements
from dipy_spinverse.compartments.definition import Definition
from dipy_spinverse.compartments.fitting.coordinates import Place
from dipy_spinverse.compartments.fitting.variable_projection import Problem, linearised
from dipy_spinverse.compartments.signals.encoding import encoding_of
from dipy_spinverse.compartments.signals.pools import pool_signals

_SNR = 100.0
_N_DRAWS = 32
_PRIOR_PRECISION = 12.0  # of a uniform value between 0 and 1
# Standard deviation of the posterior over that of the prior.
_UNDETERMINED = 0.7


def undetermined(definition: Definition, acquisition: Measurements) -> list[str]:
    """Parameters and fractions on which the signals, at an SNR of 100, tell nearly nothing.

    By the information at 32 draws from the prior: named is what keeps, in half of them, at least
    0.7 of its standard deviation (two fractions of which only the sum shows keep 0.71).
    """
    rng = np.random.default_rng(0)
    n_scalars, n_axes = len(definition.parameters), len(definition.axes)
    frames = np.linalg.qr(rng.standard_normal((_N_DRAWS, n_axes, 3, 3)))[0]
    place = Place(torch.tensor(rng.random((_N_DRAWS, n_scalars))), torch.tensor(frames))
    amplitudes = torch.tensor(rng.dirichlet(np.ones(len(definition.pools)), _N_DRAWS))
    encoding = encoding_of(acquisition, torch.float64, timed=definition.timed)
    ones = torch.ones(1, len(acquisition), dtype=torch.float64)
    problem = Problem(
        definition, pool_signals(definition, encoding), ones.expand(_N_DRAWS, -1), ones, None
    )
    columns, slopes = linearised(problem, place, amplitudes)
    changes = _SNR * torch.cat([slopes, columns], dim=1)
    precision = changes @ changes.mT + _PRIOR_PRECISION * torch.eye(changes.shape[1])
    variance = torch.diagonal(torch.linalg.inv(precision), dim1=1, dim2=2)
    kept = torch.sqrt(_PRIOR_PRECISION * variance).median(dim=0).values
    scalars, pools = kept[:n_scalars], kept[slopes.shape[1] :]
    names = [p.name for p in definition.parameters] + list(definition.pools)
    return [
        n for n, k in zip(names, torch.cat([scalars, pools]), strict=True) if k > _UNDETERMINED
    ]
