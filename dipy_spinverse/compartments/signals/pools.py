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
    """Function from values (V,) or (1,) and axes (V, 3) to signals (V, K, M), 1 at b = 0.

    What depends on fixed values alone is computed once for all voxels.
    """
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
        size = max(map(len, values.values())), len(encoding.shell)
        return torch.stack([signal.expand(size) for signal in basis_signals], dim=1)

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
    c, dtype = group[0], encoding.b.dtype
    if c.average == "tensor" or c.dispersion is None:
        return _sum(encoding, group, values, lambda k: dispersion.kernel_series(k, order, dtype))
    moments = _moments(encoding, order, group, values)
    if c.dispersion == "watson":
        odi = expression_value(c.odi, values)
        moments = moments * dispersion.watson_moments(odi, order)[:, None]
    return dispersion.legendre_series(moments)


def _signals(encoding, order, group, values):
    """Signals (V, M) of compartments with the same axis and dispersion."""

    def total(signal_of):
        return _sum(encoding, group, values, signal_of)

    c, tensor = group[0], group[0].average == "tensor"
    if not c.oriented or (tensor and c.dispersion == "isotropic"):
        square = encoding.b.new_zeros(1)
        return encoding.spread(total(lambda kernel: kernel.at(square)[..., 0]))
    if c.dispersion == "isotropic":
        return total(lambda kernel: dispersion.isotropic(encoding, kernel))
    if c.dispersion == "bingham":
        distribution = [expression_value(e, values) for e in (c.odi, c.fanning)]
        distribution += [values[c.axis], values[f"{c.axis}_fan"]]
        if tensor:
            return total(lambda k: dispersion.bingham_tensor(encoding, k, *distribution))
        moments = _moments(encoding, order, group, values)
        directed = dispersion.bingham_signals(encoding, moments, *distribution)
    elif c.dispersion == "watson" and not tensor:
        series = _series(encoding, order, group, values)
        directed = dispersion.zonal_signals(encoding, series, values[c.axis])
    else:
        directed = total(lambda k: dispersion.directional(encoding, k, values[c.axis]))
    if encoding.isotropic is None:
        return directed
    average = total(lambda kernel: dispersion.isotropic(encoding, kernel))
    return torch.where(encoding.isotropic, average, directed)


def _moments(encoding, order, group, values):
    """Legendre coefficients (V, S, L) of the kernels, summed."""
    dtype = encoding.b.dtype
    return _sum(encoding, group, values, lambda k: dispersion.kernel_moments(k, order, dtype))


def _sum(encoding, group, values, quantity):
    """Sum over compartments of the share times a quantity (V, ...) of the kernel."""
    total: Any = 0
    for c in group:
        term = quantity(_kernel(encoding, c, values))
        share = expression_value(c.share, values)
        total = total + share.reshape(-1, *[1] * (term.ndim - 1)) * term
    return total


def _relaxation(encoding, c, values):
    """exp(-te/T2 - mixing_time/T1) (V, M); 1 without relaxation times."""
    attenuation = 1.0
    for time, constant in ((encoding.te, c.T2), (encoding.mixing_time, c.T1)):
        if constant is not None:
            decay = torch.exp(-time / expression_value(constant, values)[:, None])
            attenuation = attenuation * decay
    return attenuation


def _kernel(encoding, c, values):
    """Kernel at the values, its tensor averaged over the axes where the compartment says so."""
    arguments = {k: expression_value(e, values) for k, e in c.arguments.items()}
    kernel = c.kernel_definition(encoding, **arguments)
    if c.average == "tensor" and c.dispersion == "watson":
        moments = dispersion.watson_moments(expression_value(c.odi, values), 2)
        return kernel.averaged(moments[:, 1:])  # <P_2>
    if c.average == "tensor" and c.dispersion == "isotropic":
        return kernel.averaged(0.0)
    return kernel


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
