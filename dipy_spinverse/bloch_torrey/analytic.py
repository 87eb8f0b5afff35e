"""Signals in closed form: free water, impermeable bodies of Gaussian phases, two exchanging sites.

Bodies are the slab between two planes, the cylinder and the sphere (`DIMENSIONS`).
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import jvp, spherical_jn

from dipy_spinverse.acquisition.base import BaseAcquisition

DIMENSIONS = {"slab": 1, "cylinder": 2, "sphere": 3}
_GAUSSIAN_TERMS = 12  # terms fall at least with the fourth power of their root: to 1e-5


def free_signal(acquisition: BaseAcquisition, diffusivity: float) -> np.ndarray:
    """Signals exp(-b D) (M,) of free water; diffusivity in um^2/ms.

    Examples
    --------
    >>> from dipy_spinverse import Acquisition
    >>> acquisition = Acquisition(b=1, directions=[1, 0, 0], small_delta=5, big_delta=20)
    >>> free_signal(acquisition, 2.0).round(4)
    array([0.1353])
    """
    check_positive("diffusivity", diffusivity)
    return np.exp(-acquisition.b * diffusivity)


def gaussian_phase_attenuation(
    shape: str,
    radius: ArrayLike,
    q: ArrayLike,
    small_delta: ArrayLike,
    big_delta: ArrayLike,
    diffusivity: float,
) -> np.ndarray:
    """-ln S of impermeable bodies in Gaussian phase approximation.

    Slab and sphere as Murday and Cotts [1]_ and Neuman [2]_, cylinder as van Gelderen [3]_. All
    are exact to second order in q; higher orders are neglected. That is right for q radius
    well below 1 whatever the pulses, and for stronger gradients while phases average out during
    a pulse, gamma g radius^3 = (q / delta) radius^3 well below D. Beyond, where signals show
    diffraction or what is left along the walls, it is wrong in either direction.

    Arguments are those of `exact_restricted_signal`, and broadcast.

    References
    ----------
    .. [1] Murday and Cotts, J. Chem. Phys. 48 (1968), https://doi.org/10.1063/1.1668160
    .. [2] Neuman, J. Chem. Phys. 60 (1974), https://doi.org/10.1063/1.1680931
    .. [3] van Gelderen et al., J. Magn. Reson. B 103 (1994),
       https://doi.org/10.1006/jmrb.1994.1038

    Examples
    --------
    >>> gaussian_phase_attenuation("sphere", 4.0, [0.0, 0.5], 5.0, 20.0, 2.0).round(4)
    array([0.    , 0.3836])
    """
    radius, q, small, big = map(np.asarray, (radius, q, small_delta, big_delta))
    check_body(shape, radius, diffusivity)
    total = 0
    for root in dipole_roots(shape):
        rate = diffusivity * (root / radius) ** 2
        phases = 2 * rate * small - 2 + 2 * np.exp(-rate * small) + 2 * np.exp(-rate * big)
        phases -= np.exp(-rate * (big - small)) + np.exp(-rate * (big + small))
        total += phases * radius**2 / (rate**2 * root**2 * (root**2 - DIMENSIONS[shape] + 1))
    return 2 * (q / small) ** 2 * total


def karger_closed_form(
    first_attenuation: ArrayLike,
    second_attenuation: ArrayLike,
    leaving: ArrayLike,
    fraction: ArrayLike,
) -> np.ndarray:
    """Signal of two exchanging sites (Karger, https://doi.org/10.1002/bbpc.19710750727).

    exp(-R) applied to (fraction, 1 - fraction) and summed, R the matrix of attenuations (-ln S of
    either site alone) and exchange over the diffusion time, in which water leaves the first site
    `leaving` times on average. Arguments broadcast.
    """
    first_attenuation, second_attenuation, leaving, fraction = map(
        np.asarray, (first_attenuation, second_attenuation, leaving, fraction)
    )
    entering = leaving * fraction / (1 - fraction)
    a, b = first_attenuation + leaving, second_attenuation + entering
    splitting = np.sqrt((a - b) ** 2 + 4 * leaving * entering + 1e-12)
    slow, fast = (a + b - splitting) / 2, (a + b + splitting) / 2
    fast_fraction = (
        fraction * first_attenuation + (1 - fraction) * second_attenuation - slow
    ) / splitting
    return (1 - fast_fraction) * np.exp(-slow) + fast_fraction * np.exp(-fast)


def check_positive(name: str, value: ArrayLike) -> None:
    """Refuse a value that is not finite and above 0."""
    value = np.asarray(value, dtype=float)
    if not (np.isfinite(value) & (value > 0)).all():
        raise ValueError(f"{name} is {value}; give finite values above 0.")


def check_body(shape: str, radius: ArrayLike, diffusivity: float) -> str:
    """The shape, after checks."""
    if shape not in DIMENSIONS:
        raise ValueError(f"shape is {shape!r}; it must be one of {', '.join(DIMENSIONS)}.")
    check_positive("radius", radius)
    check_positive("diffusivity", diffusivity)
    return shape


@lru_cache(maxsize=6)
def dipole_roots(shape, n=_GAUSSIAN_TERMS):
    """First zeros of the slope of the radial modes that a uniform gradient excites."""
    return tuple(radial_roots(shape, 1, np.pi * (n + 1))[:n])


def radial_slope(shape, order, x):
    """Slope of the radial mode of an order: cosine or sine, a Bessel function, a spherical one."""
    if shape == "slab":
        return -np.sin(x) if order == 0 else np.cos(x)
    return jvp(order, x) if shape == "cylinder" else spherical_jn(order, x, derivative=True)


def radial_roots(shape, order, highest):
    """Positive zeros, up to the highest, of the slope of the radial modes of an order.

    Modes of a slab are even (order 0) or odd (order 1).
    """
    if shape == "slab":
        k = np.arange(2 - order, 2 * highest / np.pi, 2)
        return k * np.pi / 2 if order < 2 else k[:0]
    slope = partial(radial_slope, shape, order)
    # zeros are at least 2 apart, and none is below 1
    x = np.arange(0.5, highest + 0.5, 0.5)
    values = slope(x)
    changes = np.flatnonzero(values[1:] * values[:-1] < 0)
    zeros = np.array([brentq(slope, x[i], x[i + 1]) for i in changes])
    return zeros[zeros <= highest]
