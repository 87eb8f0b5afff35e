"""Signals known without a grid, against which tests and benchmarks compare simulations.

Water inside impermeable bodies by their Laplace modes (matrix formalism), across equidistant
permeable planes in Legendre polynomials, and the limit of long times.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import expm

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.acquisition.conversion import require_pulsed
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey.analytic import (
    DIMENSIONS,
    check_body,
    check_positive,
    gaussian_phase_attenuation,
    radial_roots,
)
from dipy_spinverse.bloch_torrey.encoding_groups import timing_groups, unique_encodings
from dipy_spinverse.bloch_torrey.time_steps import schedule_of

# Highest radial root, which bounds the cost: 830 modes of a cylinder. For the accuracy see
# `exact_restricted_signal`.
_MAX_ROOT = 80.0
# Legendre polynomials between two planes, and time steps per pulse: more of both change signals by
# less than 5e-6 of S0, see `permeable_planes_signal`.
_POLYNOMIALS = 32
_PULSE_STEPS = 48


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


@lru_cache(maxsize=12)
def _laplace_modes(shape, highest):
    """Roots (n,), where rates are D (root / radius)^2, and x / radius between the modes (n, n).

    Only modes that a gradient along x reaches from the uniform one, which is the first.
    """
    order, roots = [np.zeros(1, int)], [np.zeros(1)]
    while len(zeros := radial_roots(shape, len(order) - 1, highest)):
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


def permeable_planes_signal(
    acquisition: BaseAcquisition,
    spacing: float,
    permeability: float,
    *,
    diffusivity: float = 2.0,
    normal: ArrayLike = (1, 0, 0),
) -> np.ndarray:
    """Signals across equidistant permeable planes, under pulses of finite length or waveforms.

    The Bloch-Torrey equation of one period [1]_ in Legendre polynomials of both sides of a
    membrane, whose jump carries the permeability; Magnus steps of fourth order while q changes.
    Signals are exact to 5e-6 of S0 (found by taking more of both) for q spacing up to 10 rad.
    Along the planes water is free.

    Parameters
    ----------
    acquisition : BaseAcquisition
        M measurements.
    spacing : float
        Distance of the planes, um.
    permeability : float
        um/ms, 0 or more.
    diffusivity : float, optional
        um^2/ms.
    normal : array-like (3,), optional
        Direction across the planes.

    Returns
    -------
    ndarray (M,)
        Relative to b = 0.

    Raises
    ------
    ValueError
        Spacing, diffusivity or normal that is not positive; permeability that is negative or
        infinite.

    References
    ----------
    .. [1] Tanner, J. Chem. Phys. 69 (1978), https://doi.org/10.1063/1.436751

    Examples
    --------
    >>> from dipy_spinverse.acquisition.pulsed import Acquisition
    >>> acquisition = Acquisition(b=[1, 5], directions=[1, 0, 0], small_delta=5, big_delta=20)
    >>> permeable_planes_signal(acquisition, 6.0, 0.05).round(4)
    array([0.7476, 0.3606])
    """
    check_positive("spacing", spacing)
    check_positive("diffusivity", diffusivity)
    length = np.linalg.norm(normal)
    check_positive("normal", length)
    if not 0 <= permeability < np.inf:
        raise ValueError(
            f"permeability is {permeability}; give a finite number of at least 0, in um/ms "
            "(without membranes the signal is that of free water)."
        )
    unit = np.asarray(normal, dtype=float) / length
    operators = _periodic_operators(spacing, permeability, diffusivity)
    representatives, encoding = unique_encodings(acquisition)
    signals = np.empty(len(representatives))
    for waveforms, symmetric in timing_groups(acquisition, representatives):
        schedule = schedule_of(waveforms, symmetric, _PULSE_STEPS, False, lossless=True)
        along = waveforms.b_tensors()
        along = np.trace(along, axis1=1, axis2=2) - np.einsum("mij,i,j->m", along, unit, unit)
        q_normal = np.moveaxis(schedule.q, -1, 0) @ unit
        across_planes = [_planes_signal(operators, schedule, q) for q in q_normal]
        signals[waveforms.rows] = np.array(across_planes) * np.exp(-diffusivity * along)
    return signals[encoding]


def _periodic_operators(spacing, permeability, diffusivity):
    """The three terms of K(q) = K0 + i q K1 + q^2 D (turning frame), 1/ms."""
    nodes, weights = np.polynomial.legendre.leggauss(_POLYNOMIALS)
    k = np.arange(_POLYNOMIALS)
    scale = np.sqrt((2 * k + 1) / spacing)
    values = np.polynomial.legendre.legvander(nodes, _POLYNOMIALS - 1) * scale
    derivative = np.polynomial.legendre.legder(np.eye(_POLYNOMIALS))
    slopes = values[:, :-1] / scale[:-1] @ derivative * scale * (2 / spacing)
    weights = weights * spacing / 2
    # u(right end) - u(left end), between which lies the membrane
    jump = scale * (1 - (-1.0) ** k)
    stiffness = diffusivity * slopes.T @ (weights[:, None] * slopes)
    drift = diffusivity * slopes.T @ (weights[:, None] * values)
    return stiffness + permeability * np.outer(jump, jump), drift - drift.T, diffusivity


def _planes_signal(operators, schedule, q):
    """Signal of one encoding, q (E, 2) across the planes."""
    stiffness, drift, diffusivity = operators
    total = schedule.amplitude.sum(axis=1)
    linear = (schedule.amplitude * q).sum(axis=1)
    quadratic = diffusivity * (schedule.amplitude * q**2).sum(axis=1)
    generators = total[:, None, None] * stiffness + 1j * linear[:, None, None] * drift
    rates, modes = np.linalg.eigh(generators)
    state = np.eye(len(stiffness))[0].astype(complex)
    for rate, mode, decay in zip(rates, modes, quadratic, strict=True):
        state = mode @ (np.exp(-rate - decay) * (mode.conj().T @ state))
    # the second half of a symmetric encoding is the first in reverse
    return (np.abs(state) ** 2).sum() if schedule.symmetric else state[0].real


def long_time_diffusivity(
    shape: str, fraction: float, radius: float, permeability: float, diffusivity: float
) -> float:
    """Diffusivity across packed permeable bodies after a long time (tortuosity limit).

    D (1 - d f / (T + f)) as Maxwell for dilute or well separated bodies in d dimensions,
    T = (s + d - 1) / (1 - s), with s = 1 / (1 + D / (kappa R)) for a membrane on water of
    the same diffusivity [1]_. It applies to all water, with a fraction f inside; for
    impermeable bodies, the water outside has this value divided by 1 - f. Exact for slabs (evenly
    spaced planes are f = 1/2). For cylinders Rayleigh's next term of the square lattice is
    included [2]_: exact up to order f^8.

    Parameters
    ----------
    shape : {"slab", "cylinder", "sphere"}
    fraction : float
        Of the volume inside bodies.
    radius : float
        um; of a slab half its width.
    permeability : float
        um/ms, 0 or more, may be infinite.
    diffusivity : float
        um^2/ms.

    Returns
    -------
    float
        um^2/ms.

    Raises
    ------
    ValueError
        Unknown shape, fraction outside of (0, 1), or values that are negative.

    References
    ----------
    .. [1] Hasselman and Johnson, J. Compos. Mater. 21 (1987),
       https://doi.org/10.1177/002199838702100602
    .. [2] Perrins, McKenzie and McPhedran, Proc. R. Soc. A 369 (1979),
       https://doi.org/10.1098/rspa.1979.0160

    Examples
    --------
    >>> round(long_time_diffusivity("cylinder", 0.4, 3.0, 0.0, 2.0) / (1 - 0.4), 3)
    1.418
    """
    check_body(shape, radius, diffusivity)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}; give the share inside bodies, in (0, 1).")
    if not permeability >= 0:
        raise ValueError(f"permeability is {permeability}; give at least 0, in um/ms.")
    if permeability == np.inf:
        return float(diffusivity)
    dimension = DIMENSIONS[shape]

    def contrast(order):
        # of the multipole: D/(kappa R) grows with how often its flux changes sign around a body
        passing = permeability * radius / (permeability * radius + order * diffusivity)
        return (passing + dimension - 1) / (1 - passing)

    lattice = 0.305827 * fraction**4 / contrast(3) if shape == "cylinder" else 0.0
    return float(diffusivity * (1 - dimension * fraction / (contrast(1) + fraction - lattice)))
