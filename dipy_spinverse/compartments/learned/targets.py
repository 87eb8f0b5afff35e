"""What a learner predicts: all that a definition searches for, in coordinates made for it.

Latent coordinates turn the prior (scalars and fractions equally likely) into a standard normal
distribution, so that no draw of a posterior can leave the bounds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from dipy_spinverse.compartments.definition import Definition

_FARTHEST = 6.0  # standard deviations of the prior


def scaled_targets(definition: Definition, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Scalars over their range, then fractions of pools (V, P + K)."""
    unit = [(values[p.name] - p.low) / (p.high - p.low) for p in definition.parameters]
    return np.stack([*unit, *(values[name] for name in definition.pools)], axis=1)


def latent(definition: Definition, targets: np.ndarray) -> np.ndarray:
    """Latent coordinates (V, P + K - 1) of `scaled_targets`.

    Of fractions, each as a share of what those before it leave: 1 - (1 - share)^k is uniform,
    where k others follow.
    """
    n, n_pools = len(definition.parameters), len(definition.pools)
    columns = list(targets[:, :n].T)
    left = np.ones(len(targets))
    for k in range(n_pools - 1):
        share = targets[:, n + k] / np.maximum(left, 1e-12)
        columns.append(1 - (1 - share.clip(0, 1)) ** (n_pools - 1 - k))
        left = left - targets[:, n + k]
    uniform = np.stack(columns, axis=1) if columns else np.zeros((len(targets), 0))
    return ndtri(uniform).clip(-_FARTHEST, _FARTHEST)


def from_latent(definition: Definition, coordinates: Tensor) -> Tensor:
    """Inverse of `latent`, with coordinates along the first axis: (P + K - 1, ...)."""
    n, n_pools = len(definition.parameters), len(definition.pools)
    uniform = torch.special.ndtr(coordinates)
    rows = list(uniform[:n])
    left = coordinates.new_ones(coordinates.shape[1:])
    for k in range(n_pools - 1):
        share = 1 - (1 - uniform[n + k]) ** (1 / (n_pools - 1 - k))
        rows.append(left * share)
        left = left * (1 - share)
    return torch.stack([*rows, left])


def values_from(definition: Definition, targets: Tensor) -> dict[str, Tensor]:
    """All values (...) from `scaled_targets` (P + K, ...), as maps are made from them."""
    n = len(definition.parameters)
    values = {
        p.name: p.low + (p.high - p.low) * targets[k] for k, p in enumerate(definition.parameters)
    }
    return values | dict(zip(definition.pools, targets[n:], strict=True))
