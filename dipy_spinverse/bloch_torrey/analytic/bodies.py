"""Exact and approximate signals of free water and of water inside impermeable bodies.

Bodies are the slab between two planes, the cylinder and the sphere (`DIMENSIONS`). The exact
signals follow from the Laplace modes of the body (matrix formalism), the Gaussian-phase ones from
a sum that is far cheaper and accurate where signals decay little. Exchange is in `exchange`.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import expm
from scipy.optimize import brentq
from scipy.special import jvp, spherical_jn

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.acquisition.conversion import require_pulsed
from dipy_spinverse.acquisition.pulsed import Acquisition

DIMENSIONS = {"slab": 1, "cylinder": 2, "sphere": 3}
# Highest radial root, which bounds the cost: 830 modes of a cylinder. For the accuracy see
# `exact_restricted_signal`.
_MAX_ROOT = 80.0
_GAUSSIAN_TERMS = 12  # terms fall at least with the fourth power of their root: to 1e-5


def free_signal(acquisition: BaseAcquisition, diffusivity: float) -> np.ndarray:
    """Signals exp(-b D) (M,) of free water; diffusivity in um^2/ms.

    Examples
    --------
    >>> acquisition = Acquisition(b=1, directions=[1, 0, 0], small_delta=5, big_delta=20)
    >>> free_signal(acquisition, 2.0).round(4)
    array([0.1353])
    """
    check_positive("diffusivity", diffusivity)
    return np.exp(-acquisition.b * diffusivity)


def restricted_signal(
    acquisition: Acquisition,
    shape: str,
    radius: float,
    *,
    diffusivity: float = 2.0,
    axis: ArrayLike = (0, 0, 1),
    gaussian_phase: bool = False,
) -> np.ndarray:
    """Signals of water inside impermeable bodies, under pulses of finite length.

    Water is restricted along the normal of a slab, across the axis of a cylinder and everywhere
    in a sphere; it is free in the other directions.

    Parameters
    ----------
    acquisition : Acquisition
        M measurements.
    shape : {"slab", "cylinder", "sphere"}
    radius : float
        um; of a slab half its width.
    diffusivity : float, optional
        um^2/ms.
    axis : array-like (3,), optional
        Normal of the slab or axis of the cylinder.
    gaussian_phase : bool, optional
        Assume normally distributed phases, see `gaussian_phase_attenuation`.

    Returns
    -------
    ndarray (M,)
        Relative to b = 0.

    Raises
    ------
    ValueError
        Unknown shape; radius, diffusivity or axis that is not positive.

    Examples
    --------
    >>> acquisition = Acquisition(b=[1, 5], directions=[1, 0, 0], small_delta=5, big_delta=20)
    >>> restricted_signal(acquisition, "cylinder", 3.0).round(4)
    array([0.9532, 0.7846])
    """
    acquisition = require_pulsed(acquisition)
    length = np.linalg.norm(axis)
    check_positive("axis", length)
    along = acquisition.q_vectors @ np.asarray(axis, dtype=float) / length
    radial = np.sqrt(np.maximum(acquisition.q**2 - along**2, 0))
    confined, free = {
        "slab": (along, radial),
        "cylinder": (radial, along),
        "sphere": (acquisition.q, 0.0),
    }[check_body(shape, radius, diffusivity)]
    pulses = acquisition.small_delta, acquisition.big_delta
    if gaussian_phase:
        signal = np.exp(-gaussian_phase_attenuation(shape, radius, confined, *pulses, diffusivity))
    else:
        signal = exact_restricted_signal(shape, radius, confined, *pulses, diffusivity)
    return signal * np.exp(-diffusivity * free**2 * acquisition.diffusion_time)


def exact_restricted_signal(
    shape: str,
    radius: float,
    q: ArrayLike,
    small_delta: ArrayLike,
    big_delta: ArrayLike,
    diffusivity: float,
) -> np.ndarray:
    """Signals of impermeable bodies by the matrix formalism [1]_, [2]_.

    The modes are cut where signals change by 1e-5 of S0 at most (found by taking twice as many),
    if D delta / radius^2 is at least 0.005; by 3e-5 at 0.001.

    Parameters
    ----------
    shape : {"slab", "cylinder", "sphere"}
    radius : float
        um; of a slab half its width.
    q, small_delta, big_delta : array-like (M,)
        In the restricted direction; rad/um and ms.
    diffusivity : float
        um^2/ms.

    Returns
    -------
    ndarray (M,)

    References
    ----------
    .. [1] Grebenkov, Rev. Mod. Phys. 79 (2007), https://doi.org/10.1103/RevModPhys.79.1077
    .. [2] Grebenkov, Concepts Magn. Reson. A 32 (2008), https://doi.org/10.1002/cmr.a.20117

    Examples
    --------
    >>> exact_restricted_signal("sphere", 4.0, [0.0, 0.5], [5.0, 5.0], [20.0, 20.0], 2.0).round(4)
    array([1.    , 0.6745])
    """
    check_body(shape, radius, diffusivity)
    q, small, big = np.broadcast_arrays(*map(np.atleast_1d, (q, small_delta, big_delta)))
    pulse_time = diffusivity * small.min() / radius**2
    cut = 20 + 1.5 / np.sqrt(max(pulse_time, 1e-6)) + radius * np.abs(q).max()
    roots, moment = _laplace_modes(shape, min(10 * np.ceil(cut / 10), _MAX_ROOT))
    rates, start = diffusivity * (roots / radius) ** 2, np.eye(len(roots))[0]
    pulses, pulse_of = np.unique(
        np.column_stack([np.abs(q), small]).round(9), axis=0, return_inverse=True
    )
    # after the first pulse; the second is the same in reverse
    states = np.array([
        expm(-np.diag(rates * delta) - 1j * strength * radius * moment) @ start
        for strength, delta in pulses
    ])  # fmt: skip
    pause = (big - small)[:, None]
    return (np.abs(states[pulse_of.ravel()]) ** 2 * np.exp(-rates * pause)).sum(axis=1)


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


@lru_cache(maxsize=12)
def _laplace_modes(shape, highest):
    """Roots (n,), where rates are D (root / radius)^2, and x / radius between the modes (n, n).

    Only modes that a gradient along x reaches from the uniform one, which is the first.
    """
    order, roots = [np.zeros(1, int)], [np.zeros(1)]
    while len(zeros := _roots(shape, len(order) - 1, highest)):
        order.append(np.full(len(zeros), len(order) - 1))
        roots.append(zeros)
    n, roots = np.concatenate(order), np.concatenate(roots)
    square, d = roots**2, DIMENSIONS[shape]
    # n (n + d - 2) are the eigenvalues of the angular part
    norm = np.ones(len(n))
    norm[1:] = square[1:] / (square[1:] - n[1:] * (n[1:] + d - 2))
    row, column = np.meshgrid(np.arange(len(n)), np.arange(len(n)), indexing="ij")
    row, column = (pair[np.abs(n[row] - n[column]) == 1] for pair in (row, column))
    n1, n2, s1, s2 = n[row], n[column], square[row], square[column]
    uniform = (row == 0) | (column == 0)
    if shape == "slab":
        angular = np.where(uniform, np.sqrt(2), 2)
    elif shape == "cylinder":
        angular = np.sqrt(1.0 + (n1 == 0) + (n2 == 0))
    else:
        # the uniform mode's own factor is 3/2, the limit of its norm
        angular = (n1 + n2 + 1) / np.sqrt((2.0 * n1 + 1) * (2 * n2 + 1))
        angular = angular * np.where(uniform, np.sqrt(1.5), 1)
    cross = n1 * (n2 + d - 2) + n2 * (n1 + d - 2) - (d - 2)
    moment = np.zeros((len(n), len(n)))
    moment[row, column] = angular * np.sqrt(norm[row] * norm[column])
    moment[row, column] *= (s1 + s2 - cross) / (s1 - s2) ** 2
    return roots, moment


def _roots(shape, order, highest):
    """Positive zeros, up to the highest, of the slope of the radial modes of an order.

    Modes of a slab are even (order 0) or odd (order 1).
    """
    if shape == "slab":
        k = np.arange(2 - order, 2 * highest / np.pi, 2)
        return k * np.pi / 2 if order < 2 else k[:0]
    bessel_slopes = {"cylinder": jvp, "sphere": partial(spherical_jn, derivative=True)}
    slope = partial(bessel_slopes[shape], order)
    # zeros are at least 2 apart, and none is below 1
    x = np.arange(0.5, highest + 0.5, 0.5)
    values = slope(x)
    changes = np.flatnonzero(values[1:] * values[:-1] < 0)
    zeros = np.array([brentq(slope, x[i], x[i + 1]) for i in changes])
    return zeros[zeros <= highest]


@lru_cache(maxsize=3)
def dipole_roots(shape):
    """Zeros of the slope of the radial modes that a uniform gradient excites."""
    return tuple(_roots(shape, 1, np.pi * (_GAUSSIAN_TERMS + 1))[:_GAUSSIAN_TERMS])
