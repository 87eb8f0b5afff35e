"""Targets of a learner: all unknowns of a definition.

Latent coordinates turn the prior (of scalars, uniform in fractions) into a standard normal
distribution, so that no posterior sample can leave the bounds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from dipy_spinverse.compartments.definition import Definition

# Standard deviations of the prior; beyond are 2e-9 of it, and infinity at the bounds.
_MAX_LATENT = 6.0


def scaled_targets(definition: Definition, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Scalars scaled by their range, then fractions of pools (V, P + K)."""
    scalars = [(values[p.name] - p.low) / (p.high - p.low) for p in definition.parameters]
    return np.stack([*scalars, *(values[name] for name in definition.pools)], axis=1)


def to_latent(definition: Definition, targets: np.ndarray) -> np.ndarray:
    """Latent coordinates (V, P + K - 1) of :func:`scaled_targets`.

    Each fraction is taken as a share of what the previous ones leave: 1 - (1 - share)^k is
    uniform, where k others follow.
    """
    n, n_pools = len(definition.parameters), len(definition.pools)
    columns = [p.cumulative(targets[:, k]) for k, p in enumerate(definition.parameters)]
    remainder = np.ones(len(targets))
    for k in range(n_pools - 1):
        share = targets[:, n + k] / np.maximum(remainder, 1e-12)
        columns.append(1 - (1 - share.clip(0, 1)) ** (n_pools - 1 - k))
        remainder = remainder - targets[:, n + k]
    uniform = np.stack(columns, axis=1) if columns else np.zeros((len(targets), 0))
    return ndtri(uniform).clip(-_MAX_LATENT, _MAX_LATENT)


def from_latent(definition: Definition, coordinates: Tensor) -> Tensor:
    """Inverse of :func:`to_latent`, with coordinates along the first axis: (P + K - 1, ...)."""
    n, n_pools = len(definition.parameters), len(definition.pools)
    uniform = torch.special.ndtr(coordinates)
    rows = [p.quantile(uniform[k]) for k, p in enumerate(definition.parameters)]
    remainder = coordinates.new_ones(coordinates.shape[1:])
    for k in range(n_pools - 1):
        share = 1 - (1 - uniform[n + k]) ** (1 / (n_pools - 1 - k))
        rows.append(remainder * share)
        remainder = remainder * (1 - share)
    return torch.stack([*rows, remainder])


def unscaled_targets(definition: Definition, targets: Tensor) -> dict[str, Tensor]:
    """Scalars and fractions (...) from scaled targets (P + K, ...)."""
    n = len(definition.parameters)
    values = {
        p.name: p.low + (p.high - p.low) * targets[k] for k, p in enumerate(definition.parameters)
    }
    return values | dict(zip(definition.pools, targets[n:], strict=True))
