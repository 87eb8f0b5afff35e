"""Signals of the pools of a model, and of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dipy_spinverse.compartments.definition import (
    Compartment,
    Definition,
    Values,
    expression_value,
)
from dipy_spinverse.compartments.signals import dispersion
from dipy_spinverse.compartments.signals.encoding import Encoding
from dipy_spinverse.compartments.signals.kernels import KERNELS, CustomKernel

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
        From a mapping of values, tensors (V,) or (1,) for scalars and (V, 3) for axes, to signals
        (V, K, M), each pool's own relative to b = 0. Differentiable, and batched by `torch.func`.
    """
    order = dispersion.legendre_order(_largest_excess(definition, encoding))
    groups = _groups(definition)

    def signals(values: Values) -> Tensor:
        columns = []
        for pool in definition.pools:
            total: Any = 0
            series: dict[str, Any] = {}
            for group in groups[pool]:
                about = group[0].axis
                if _zonal(encoding, order, group[0]):
                    series[about] = series.get(about, 0) + _series(encoding, order, group, values)
                else:
                    part = _group(encoding, order, group, values)
                    total = total + part * _relaxed(encoding, group[0], values)
            for axis, coefficients in series.items():
                zonal = dispersion.zonal_signals(encoding, coefficients, values[axis])
                total = total + zonal
            columns.append(total)
        return torch.stack(torch.broadcast_tensors(*columns), dim=1)

    return signals


def _groups(definition):
    """Compartments of each pool that have the same axis and dispersion: they are added first."""
    groups = {}
    for c in definition.compartments:
        alike = (c.oriented, c.dispersion, c.average, c.has_axis and c.axis, c.odi, c.fanning)
        key = (*alike, c.T2, c.T1)
        groups.setdefault(c.pool, {}).setdefault(key, []).append(c)
    return {pool: list(parts.values()) for pool, parts in groups.items()}


def _zonal(encoding, order, c):
    """Whether signals are sums of few polynomials of the cosine to an axis, of each shell."""
    if encoding.isotropic is not None or not c.has_axis or (c.T2, c.T1) != (None, None):
        return False
    if c.dispersion == "watson" and c.average == "signals":
        return True
    return c.dispersion in (None, "watson") and order < dispersion.MAX_ORDER


def _series(encoding, order, group, values):
    """Chebyshev series (V, L, S) of compartments with the same axis and dispersion."""
    first, total = group[0], 0
    for c in group:
        kernel, share = (
            _kernel(encoding, c, values),
            expression_value(c.share, values)[:, None, None],
        )
        if first.average == "tensor":
            kernel = kernel.averaged(dispersion.watson_order(expression_value(first.odi, values)))
        if first.dispersion is None or first.average == "tensor":
            total = total + share * dispersion.kernel_series(kernel, order)
        else:
            moments = dispersion.kernel_moments(kernel, order, share.dtype)
            total = total + share * moments
    if first.dispersion == "watson" and first.average == "signals":
        spread = dispersion.watson_moments(expression_value(first.odi, values), order)
        total = dispersion.legendre_series(total * spread[:, None])
    return total


def _group(encoding, order, group, values):
    """Signals (V, M) of compartments with the same axis and dispersion."""
    kernels = [_kernel(encoding, c, values) for c in group]
    shares = [expression_value(c.share, values) for c in group]
    if group[0].average == "tensor":
        parts = [_of_tensor(encoding, group[0], kernel, values) for kernel in kernels]
        return sum(share[:, None] * part for share, part in zip(shares, parts, strict=True))
    directed = _directed(encoding, order, group[0], kernels, shares, values)
    if encoding.isotropic is None or not group[0].oriented:
        return directed
    averages = [dispersion.isotropic(encoding, kernel) for kernel in kernels]
    average = sum(share[:, None] * a for share, a in zip(shares, averages, strict=True))
    return torch.where(encoding.isotropic, average, directed)


def _relaxed(encoding, compartment, values):
    """What relaxation leaves (V, M); 1 where the model does not know of it."""
    left = 1.0
    for time, constant in ((encoding.te, compartment.T2), (encoding.mixing_time, compartment.T1)):
        if constant is not None:
            left = left * torch.exp(-time / expression_value(constant, values)[:, None])
    return left


def _of_tensor(encoding, compartment, kernel, values):
    """Signals (V, M) where the tensor is averaged over the axes."""
    if compartment.dispersion == "isotropic":
        return encoding.spread(torch.exp(-kernel.averaged(0.0).across))
    odi, axis = expression_value(compartment.odi, values), values[compartment.axis]
    if compartment.dispersion == "bingham":
        fanning, fan = (
            expression_value(compartment.fanning, values),
            values[f"{compartment.axis}_fan"],
        )
        return dispersion.bingham_tensor(encoding, kernel, odi, fanning, axis, fan)
    kernel = kernel.averaged(dispersion.watson_order(odi))
    directed = dispersion.directional(encoding, kernel, axis)
    if encoding.isotropic is None:
        return directed
    return torch.where(encoding.isotropic, dispersion.isotropic(encoding, kernel), directed)


def _directed(encoding, order, first, kernels, shares, values):
    own = isinstance(first.kernel, CustomKernel) and first.dispersion is None and first.oriented
    if first.dispersion in ("watson", "bingham") or own:
        moments = sum(
            share[:, None, None] * dispersion.kernel_moments(kernel, order, share.dtype)
            for share, kernel in zip(shares, kernels, strict=True)
        )
        axis = values[first.axis]
        if own:
            series = dispersion.legendre_series(moments)
            return dispersion.zonal_signals(encoding, series, axis)
        odi = expression_value(first.odi, values)
        if first.dispersion == "watson":
            moments = moments * dispersion.watson_moments(odi, order)[:, None]
            series = dispersion.legendre_series(moments)
            return dispersion.zonal_signals(encoding, series, axis)
        fanning, fan = expression_value(first.fanning, values), values[f"{first.axis}_fan"]
        return dispersion.bingham_signals(encoding, moments, odi, fanning, axis, fan)
    total = 0
    for share, kernel in zip(shares, kernels, strict=True):
        if not first.oriented:
            of_shells = kernel.at(share.new_zeros(1))[..., 0]
            part = encoding.spread(share[:, None] * of_shells)
        elif first.dispersion == "isotropic":
            part = share[:, None] * dispersion.isotropic(encoding, kernel)
        else:
            part = share[:, None] * dispersion.directional(encoding, kernel, values[first.axis])
        total = total + part
    return total


def _kernel(encoding: Encoding, compartment: Compartment, values: Values):
    arguments = {k: expression_value(e, values) for k, e in compartment.arguments.items()}
    if isinstance(compartment.kernel, CustomKernel):
        return compartment.kernel(encoding, **arguments)
    kernel = KERNELS[compartment.kernel](encoding, **arguments)
    return kernel if encoding.linear else kernel.averaged(encoding.anisotropy)


def _largest_excess(definition, encoding):
    """b times the largest diffusivity that depends on an axis; None of own kernels."""
    largest = {p.name: p.high for p in definition.parameters} | dict(definition.fixed)
    along = []
    for c in definition.compartments:
        if isinstance(c.kernel, CustomKernel) and c.oriented:
            return None
        if c.has_axis:
            along.append(c.arguments["parallel" if c.kernel == "zeppelin" else "diffusivity"])
            across = c.arguments.get("perpendicular", 0.0)
            along += [] if callable(across) else [across]
    values = [largest.get(e, _FREE_DIFFUSIVITY) if not isinstance(e, float) else e for e in along]
    return float(encoding.b.max()) * max(values, default=0.0)
