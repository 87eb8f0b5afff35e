"""Signals of the pools of a model, and of the model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dipy_spinverse.compartments.definition import Compartment, Definition, Values, evaluate
from dipy_spinverse.compartments.signals import dispersion
from dipy_spinverse.compartments.signals.encoding import Encoding
from dipy_spinverse.compartments.signals.kernels import KERNELS, Kernel

_FREE_DIFFUSIVITY = 3.0  # um^2/ms, where a linked value has no bound of its own


def pool_signals(definition: Definition, encoding: Encoding) -> Callable[[Values], Tensor]:
    """Function from values to the signals of the pools.

    Parameters
    ----------
    definition : Definition
    encoding : Encoding

    Returns
    -------
    callable
        From a mapping of values, tensors (V,) for scalars and (V, 3) for axes, to signals
        (V, K, M), each pool's own relative to b = 0. Differentiable, and batched by `torch.func`.
    """
    order = dispersion.legendre_order(_largest_excess(definition, encoding))
    groups = _groups(definition)

    def signals(values: Values) -> Tensor:
        columns = []
        for pool in definition.pools:
            total = sum(_group(encoding, order, group, values) for group in groups[pool])
            columns.append(total)
        return torch.stack(columns, dim=1)

    return signals


def _groups(definition):
    """Compartments of each pool that have the same axis and dispersion: they are added first."""
    groups = {}
    for c in definition.compartments:
        key = (c.oriented, c.dispersion, c.has_axis and c.axis, c.odi, c.fanning)
        groups.setdefault(c.pool, {}).setdefault(key, []).append(c)
    return {pool: list(parts.values()) for pool, parts in groups.items()}


def _group(encoding, order, group, values):
    """Signals (V, M) of compartments with the same axis and dispersion."""
    kernels = [_kernel(encoding, c, values) for c in group]
    shares = [evaluate(c.share, values) for c in group]
    directed = _directed(encoding, order, group[0], kernels, shares, values)
    if encoding.isotropic is None or not group[0].oriented:
        return directed
    averages = [dispersion.isotropic(encoding, kernel) for kernel in kernels]
    average = sum(share[:, None] * a for share, a in zip(shares, averages, strict=True))
    return torch.where(encoding.isotropic, average, directed)


def _directed(encoding, order, first, kernels, shares, values):
    if first.dispersion in ("watson", "bingham"):
        moments = sum(
            share[:, None, None] * dispersion.kernel_moments(kernel, order)
            for share, kernel in zip(shares, kernels, strict=True)
        )
        odi, axis = evaluate(first.odi, values), values[first.axis]
        if first.dispersion == "watson":
            moments = moments * dispersion.watson_moments(odi, order)[:, None]
            return dispersion.watson_signals(encoding, moments, axis)
        fanning, fan = evaluate(first.fanning, values), values[f"{first.axis}_fan"]
        return dispersion.bingham_signals(encoding, moments, odi, fanning, axis, fan)
    total = 0
    for share, kernel in zip(shares, kernels, strict=True):
        if not first.oriented:
            part = encoding.spread(torch.exp(-kernel.across))
        elif first.dispersion == "isotropic":
            part = dispersion.isotropic(encoding, kernel)
        else:
            part = dispersion.directional(encoding, kernel, values[first.axis])
        total = total + share[:, None] * part
    return total


def _kernel(encoding: Encoding, compartment: Compartment, values: Values) -> Kernel:
    arguments = {k: evaluate(e, values) for k, e in compartment.arguments.items()}
    return KERNELS[compartment.kernel](encoding, **arguments)


def _largest_excess(definition, encoding):
    """b times the largest diffusivity along an axis with dispersion."""
    largest = {p.name: p.high for p in definition.parameters}
    along = [
        c.arguments["parallel" if c.kernel == "zeppelin" else "diffusivity"]
        for c in definition.compartments
        if c.dispersion in ("watson", "bingham")
    ]
    values = [largest.get(e, _FREE_DIFFUSIVITY) if not isinstance(e, float) else e for e in along]
    return float(encoding.b.max()) * max(values, default=0.0)
