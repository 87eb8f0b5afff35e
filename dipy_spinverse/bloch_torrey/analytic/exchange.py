"""Signals of water that passes membranes: planes, two sites, the limit of long times."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.bloch_torrey.analytic.bodies import DIMENSIONS, check_body, check_positive
from dipy_spinverse.bloch_torrey.encoding_groups import timing_groups, unique_encodings
from dipy_spinverse.bloch_torrey.time_steps import schedule_of

# Legendre polynomials between two planes, and time steps per pulse: more of both change signals by
# less than 5e-6 of S0, see `permeable_planes_signal`.
_POLYNOMIALS = 32
_PULSE_STEPS = 48


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
