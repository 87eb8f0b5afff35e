"""Signals of the pools of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dipy_spinverse.compartments.definition import Definition, Values, expression_value
from dipy_spinverse.compartments.signals import dispersion
from dipy_spinverse.compartments.signals.encoding import Encoding
from dipy_spinverse.compartments.signals.kernels import CustomKernel

_FREE_DIFFUSIVITY = 3.0  # um^2/ms, of water at 37 degrees: where a linked value has no bound


def pool_signals(definition: Definition, encoding: Encoding) -> Callable[[Values], Tensor]:
    """Function from values (V,) or (1,) and axes (V, 3) to signals (V, K, M), 1 at b = 0."""
    order = dispersion.legendre_order(_largest_difference(definition, encoding))
    groups = _groups(definition)

    def signals(values: Values) -> Tensor:
        basis_signals = []
        for pool in definition.pools:
            total: Any = 0
            series: dict[str, Any] = {}
            for group in groups[pool]:
                axis = group[0].axis
                if _is_zonal(encoding, order, group[0]):
                    series[axis] = series.get(axis, 0) + _series(encoding, order, group, values)
                else:
                    relaxation = _relaxation(encoding, group[0], values)
                    total = total + _signals(encoding, order, group, values) * relaxation
            for axis, coefficients in series.items():
                zonal = dispersion.zonal_signals(encoding, coefficients, values[axis])
                total = total + zonal
            basis_signals.append(total)
        return torch.stack(torch.broadcast_tensors(*basis_signals), dim=1)

    return signals


def _groups(definition):
    """Compartments of each pool with the same axis, dispersion and relaxation."""
    groups = {}
    for c in definition.compartments:
        orientation = (c.oriented, c.dispersion, c.average, c.has_axis and c.axis)
        key = (*orientation, c.odi, c.fanning, c.T2, c.T1)
        groups.setdefault(c.pool, {}).setdefault(key, []).append(c)
    return {pool: list(by_key.values()) for pool, by_key in groups.items()}


def _is_zonal(encoding, order, c):
    """Whether signals are sums of few polynomials of the cosine to an axis, of each shell."""
    if encoding.isotropic is not None or not c.has_axis or (c.T2, c.T1) != (None, None):
        return False
    if c.dispersion == "watson" and c.average == "signals":
        return True
    return c.dispersion in (None, "watson") and order < dispersion.MAX_ORDER


def _series(encoding, order, group, values):
    """Chebyshev series (V, L, S) of compartments with the same axis and dispersion."""
    reference, total = group[0], 0
    odi = None if reference.odi is None else expression_value(reference.odi, values)
    for c in group:
        kernel, share = _kernel(encoding, c, values), _share(c, values)[..., None]
        if reference.average == "tensor":
            kernel = kernel.averaged(dispersion.watson_order(odi))
        if reference.dispersion is None or reference.average == "tensor":
            total = total + share * dispersion.kernel_series(kernel, order)
        else:
            total = total + share * dispersion.kernel_moments(kernel, order, share.dtype)
    if reference.dispersion == "watson" and reference.average == "signals":
        total = total * dispersion.watson_moments(odi, order)[:, None]
        total = dispersion.legendre_series(total)
    return total


def _signals(encoding, order, group, values):
    """Signals (V, M) of compartments with the same axis and dispersion."""
    reference = group[0]
    kernels = [_kernel(encoding, c, values) for c in group]
    shares = [_share(c, values) for c in group]

    def total(signal_of):
        return sum(
            share * signal_of(kernel) for share, kernel in zip(shares, kernels, strict=True)
        )

    if reference.average == "tensor":
        return total(lambda kernel: _tensor_signals(encoding, reference, kernel, values))
    custom = isinstance(reference.kernel, CustomKernel) and reference.dispersion is None
    if not reference.oriented:
        square = encoding.b.new_zeros(1)
        return encoding.spread(total(lambda kernel: kernel.at(square)[..., 0]))
    if reference.dispersion in ("watson", "bingham") or custom:
        directed = _dispersed_signals(encoding, order, reference, kernels, shares, values)
    elif reference.dispersion == "isotropic":
        directed = total(lambda kernel: dispersion.isotropic(encoding, kernel))
    else:
        axis = values[reference.axis]
        directed = total(lambda kernel: dispersion.directional(encoding, kernel, axis))
    if encoding.isotropic is None:
        return directed
    average = total(lambda kernel: dispersion.isotropic(encoding, kernel))
    return torch.where(encoding.isotropic, average, directed)


def _tensor_signals(encoding, c, kernel, values):
    """Signals (V, M) where the tensor is averaged over the axes."""
    if c.dispersion == "isotropic":
        return encoding.spread(torch.exp(-kernel.averaged(0.0).perpendicular))
    odi, axis = expression_value(c.odi, values), values[c.axis]
    if c.dispersion == "bingham":
        fanning, fan_axis = expression_value(c.fanning, values), values[f"{c.axis}_fan"]
        return dispersion.bingham_tensor(encoding, kernel, odi, fanning, axis, fan_axis)
    kernel = kernel.averaged(dispersion.watson_order(odi))
    directed = dispersion.directional(encoding, kernel, axis)
    if encoding.isotropic is None:
        return directed
    return torch.where(encoding.isotropic, dispersion.isotropic(encoding, kernel), directed)


def _dispersed_signals(encoding, order, c, kernels, shares, values):
    """Signals (V, M) by expansion in harmonics, whose coefficients are summed first."""
    moments = sum(
        share[..., None] * dispersion.kernel_moments(kernel, order, share.dtype)
        for share, kernel in zip(shares, kernels, strict=True)
    )
    axis = values[c.axis]
    if c.dispersion == "bingham":
        odi, fanning = (expression_value(e, values) for e in (c.odi, c.fanning))
        fan_axis = values[f"{c.axis}_fan"]
        return dispersion.bingham_signals(encoding, moments, odi, fanning, axis, fan_axis)
    if c.dispersion == "watson":
        odi = expression_value(c.odi, values)
        moments = moments * dispersion.watson_moments(odi, order)[:, None]
    return dispersion.zonal_signals(encoding, dispersion.legendre_series(moments), axis)


def _relaxation(encoding, c, values):
    """exp(-te/T2 - mixing_time/T1) (V, M); 1 without relaxation times."""
    attenuation = 1.0
    for time, constant in ((encoding.te, c.T2), (encoding.mixing_time, c.T1)):
        if constant is not None:
            decay = torch.exp(-time / expression_value(constant, values)[:, None])
            attenuation = attenuation * decay
    return attenuation


def _share(c, values):
    """(V, 1)."""
    return expression_value(c.share, values)[:, None]


def _kernel(encoding, c, values):
    arguments = {k: expression_value(e, values) for k, e in c.arguments.items()}
    return c.kernel_definition(encoding, **arguments)


def _largest_difference(definition, encoding):
    """b times the largest diffusivity that depends on an axis; None of custom kernels."""
    upper_bounds = {p.name: p.high for p in definition.parameters} | dict(definition.fixed)
    diffusivities = []
    for c in definition.compartments:
        if isinstance(c.kernel, CustomKernel) and c.oriented:
            return None
        if c.has_axis:
            parallel = "parallel" if c.kernel == "zeppelin" else "diffusivity"
            diffusivities.append(c.arguments[parallel])
            perpendicular = c.arguments.get("perpendicular", 0.0)
            diffusivities += [] if callable(perpendicular) else [perpendicular]
    values = [
        e if isinstance(e, float) else upper_bounds.get(e, _FREE_DIFFUSIVITY)
        for e in diffusivities
    ]
    return float(encoding.b.max()) * max(values, default=0.0)
