"""Attenuation by diffusion between walls, in the Gaussian phase approximation.

    -log E = 2 (q/delta)^2 sum_n (2 D a^2 delta - 2 + ...) / (D^2 a^6 (a^2 R^2 - d + 1))

in d dimensions, with a = root / R. The sum in the numerator runs over the overlaps of the two
pulses. Over R^2 the sum over roots depends on diffusivity and radius by D / R^2 alone, and is
interpolated: it would take most of the time of a fit.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from dipy_spinverse.bloch_torrey.analytic import DIMENSIONS, dipole_roots
from dipy_spinverse.compartments.signals.encoding import Encoding

_N_ROOTS = 20  # terms fall with the sixth power of the root
# Logarithms of D / R^2 (1/ms): beyond them the sum is a power of it. Cubic splines between nodes
# at a distance h = 0.07 have an error of about h^4 / 80 = 3e-7.
_FIRST, _LAST, _N_NODES = np.log(1e-6), np.log(1e6), 400


def restricted(encoding: Encoding, diffusivity: Tensor, diameter: Tensor, pore: str) -> Tensor:
    """Minus the logarithm (V, S) of the attenuation across a "slab", "cylinder" or "sphere".

    Diffusivities (V,) are in um^2/ms, diameters (V,) in um.
    """
    radius = 0.5 * diameter[:, None]
    log_rate = (torch.log(diffusivity) - 2 * torch.log(radius[:, 0])).clamp(_FIRST, _LAST)
    step, polynomials = _sums(encoding, pore)
    position = (log_rate - _FIRST) / step
    k = position.detach().long().clamp(0, _N_NODES - 2)
    offset = step * (position - k)[:, None]
    cubic, quadratic, linear, constant = polynomials.to(position.dtype)[:, k]
    logarithm = constant + offset * (linear + offset * (quadratic + offset * cubic))
    strength = torch.where(encoding.q > 0, encoding.q / encoding.small_delta, 0)
    return 2 * (strength * radius) ** 2 * torch.exp(logarithm)


@lru_cache(maxsize=8)
def _sums(encoding, pore):
    """Step of the nodes, and polynomials (4, N - 1, S) between them of the sum's logarithm."""
    nodes = np.linspace(_FIRST, _LAST, _N_NODES)
    times = (x.double().numpy()[:, None] for x in (encoding.small_delta, encoding.big_delta))
    small, big = (np.where(time > 0, time, 1.0) for time in times)
    square = np.array(dipole_roots(pore, _N_ROOTS)) ** 2
    rate = np.exp(nodes)[:, None, None] * square
    # 2 (x - 1) + 2 (e^-x + e^-y) - e^(x-y) - e^(-x-y) without differences of large numbers.
    decay = np.expm1(-rate * small)
    pulses = 2 * (decay + rate * small) - np.exp(-rate * (big - small)) * decay**2
    total = (pulses / (rate**2 * square * (square - DIMENSIONS[pore] + 1))).sum(axis=2)
    spline = CubicSpline(nodes, np.log(total))
    return nodes[1] - nodes[0], torch.tensor(spline.c)
