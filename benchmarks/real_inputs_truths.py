"""Signals of tissue models by textbook formulas in NumPy and SciPy: no code of the package.

Units are ms and um: b in ms/um^2, diffusivities in um^2/ms, diameters in um. Parameters are arrays
(V,) of voxels, axes (V, 3), signals (V, M) relative to those without diffusion. Published NODDI is
in `benchmarks.published_noddi`, packed cells in `benchmarks.monte_carlo`.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import jnp_zeros, spherical_jn

from benchmarks.published_noddi import sphere

GYROMAGNETIC_RATIO = 0.2675221874  # of protons, rad/(um ms) per T/m
_N_MODES = 40
_N_STEPS = 48  # per pulse: signals of two sites differ by 2e-5 from a general solver's
_POLAR, _POLAR_WEIGHTS = np.polynomial.legendre.leggauss(48)
_SQUARED_COSINES, _POWDER_WEIGHTS = (0.5 * (_POLAR + 1)) ** 2, 0.5 * _POLAR_WEIGHTS


def unit_vectors(n: int, seed: int) -> np.ndarray:
    """Directions (n, 3) along a spiral over the half sphere, rotated at random."""
    z, turn = (np.arange(n) + 0.5) / n, np.pi * (1 + np.sqrt(5)) * np.arange(n)
    across = np.sqrt(1 - z**2)
    vectors = np.stack([across * np.cos(turn), across * np.sin(turn), z], axis=1)
    return vectors @ rotations(1, np.random.default_rng(seed))[0]


def rotations(n: int, rng: np.random.Generator) -> np.ndarray:
    """Orthogonal matrices (n, 3, 3), uniformly distributed; their rows are random axes."""
    return np.linalg.qr(rng.standard_normal((n, 3, 3)))[0]


def magnitudes(clean, sigma, rng, n_averages: int = 1) -> np.ndarray:
    """Mean of `n_averages` Rician magnitudes, each with noise `sigma` in both channels."""
    total = 0.0
    for _ in range(n_averages):
        noise = sigma * rng.standard_normal((2, *np.shape(clean)))
        total = total + np.hypot(clean + noise[0], noise[1])
    return total / n_averages


def ball(b, diffusivity):
    """Free diffusion."""
    return np.exp(-np.multiply.outer(diffusivity, b))


def ivim(b, perfusion_fraction, D, D_star):
    """Perfusing blood and tissue."""
    f = perfusion_fraction[:, None]
    return f * ball(b, D_star) + (1 - f) * ball(b, D)


def sticks(b, directions, axes, diffusivity):
    """Diffusion along one axis."""
    return np.exp(-b * diffusivity[:, None] * (axes @ directions.T) ** 2)


def powder_sticks(b, diffusivity):
    """Mean over all directions of a stick."""
    return np.exp(-np.multiply.outer(_SQUARED_COSINES, np.multiply.outer(diffusivity, b))).T.dot(
        _POWDER_WEIGHTS
    ).T  # fmt: skip


def watson_density(axis, odi):
    """Directions (Q, 3) and weights (Q,) of a Watson distribution, odi = 2/pi arctan(1/kappa)."""
    vectors, weights = sphere()
    helper = np.eye(3)[np.abs(axis).argmin()]
    first = np.cross(axis, helper)
    first /= np.linalg.norm(first)
    kappa = 1 / np.tan(0.5 * np.pi * odi)
    density = weights * np.exp(kappa * (vectors[:, 2] ** 2 - 1))
    return vectors @ np.stack([first, np.cross(axis, first), axis]), density / density.sum()


def dispersed(b, shape, directions, axes, odi, along, across):
    """Watson-dispersed axisymmetric tensors under b-tensors of this shape (1 linear, 0 spherical).

    The exponent of a tensor with eigenvalues l (along n) and t: b (1 - shape) (l + 2 t) / 3 +
    b shape (t + (l - t) cos^2).
    """
    result = np.empty((len(axes), len(b)))
    for v, axis in enumerate(axes):
        neurites, density = watson_density(axis, odi[v])
        square = (neurites @ directions.T) ** 2
        linear = across[v] + (along[v] - across[v]) * square
        mean = (along[v] + 2 * across[v]) / 3
        result[v] = density @ np.exp(-b * ((1 - shape) * mean + shape * linear))
    return result


@cache
def _modes(dimension):
    """Roots of the radial modes of a disc or ball with reflecting walls."""
    if dimension == 2:
        return jnp_zeros(1, _N_MODES)
    middle = np.pi * (np.arange(_N_MODES) + 0.7)
    slope = lambda x: spherical_jn(1, x, True)  # noqa: E731
    return np.array([brentq(slope, m - 1.0, m + 1.0) for m in middle])


def restricted(q, small, big, diameter, diffusivity, dimension):
    """Gaussian phase approximation for balls (dimension 3) or across cylinders (2) (V, M).

    Balinov et al., J. Magn. Reson. A 104 (1993) 17, https://doi.org/10.1006/jmra.1993.1184; van
    Gelderen et al., J. Magn. Reson. B 103 (1994) 255, https://doi.org/10.1006/jmrb.1994.1038.
    """
    roots, radius = _modes(dimension), np.asarray(diameter)[:, None, None] / 2
    rate = diffusivity * (roots / radius) ** 2
    small, big = np.asarray(small)[:, None], np.asarray(big)[:, None]
    decay = (
        2 * rate * small - 2 + 2 * np.exp(-rate * small) + 2 * np.exp(-rate * big)
        - np.exp(-rate * (big - small)) - np.exp(-rate * (big + small))
    )  # fmt: skip
    weight = radius**2 / (roots**2 * (roots**2 - (dimension - 1)))
    return np.exp(-2 * (q / small[:, 0]) ** 2 * (weight * decay / rate**2).sum(axis=-1))


def cylinders(b, small, big, directions, axes, diameter, diffusivity):
    """Impermeable cylinders of one diameter, water of one diffusivity inside."""
    square = np.minimum((axes @ directions.T) ** 2, 1)
    q = np.sqrt(b / (big - small / 3) * (1 - square))
    across = restricted(q, small, big, diameter, diffusivity, 2)
    return across * np.exp(-b * diffusivity * square)


def two_sites(b, small, big, fraction, exchange_time, inside, outside):
    """Mean over directions of sticks that exchange with their surroundings (V, M).

    dm/dt = (-q(t)^2 diag(D cos^2, D_e) - K) m of the Kaerger equations during finite pulses, by
    exponentials of 2 x 2 matrices at the midpoints of short steps; K keeps the equilibrium.
    1 / exchange_time is the sum of both rates.
    """
    result = np.empty((len(fraction), len(b)))
    rate, share = 1 / exchange_time[:, None], fraction[:, None]
    q = np.sqrt(b / (big - small / 3))
    along = inside[:, None] * _SQUARED_COSINES
    for m in range(len(b)):
        state = np.stack(np.broadcast_arrays(share, 1 - share, along)[:2])

        def advance(state, square, duration):
            first = square * along + rate * (1 - share)
            second = square * outside[:, None] + rate * share
            mean, half = 0.5 * (first + second), 0.5 * (first - second)
            root = np.sqrt(half**2 + rate**2 * share * (1 - share))
            grow, shrink = (np.exp((sign * root - mean) * duration) for sign in (1, -1))
            even, odd = 0.5 * (grow + shrink), 0.5 * (grow - shrink) / root
            return np.stack([
                (even - odd * half) * state[0] + odd * rate * share * state[1],
                odd * rate * (1 - share) * state[0] + (even + odd * half) * state[1],
            ])  # fmt: skip

        ramp = (np.arange(_N_STEPS) + 0.5) / _N_STEPS
        for level in ramp:
            state = advance(state, (q[m] * level) ** 2, small[m] / _N_STEPS)
        state = advance(state, q[m] ** 2, big[m] - small[m])
        for level in ramp[::-1]:
            state = advance(state, (q[m] * level) ** 2, small[m] / _N_STEPS)
        result[:, m] = state.sum(axis=0) @ _POWDER_WEIGHTS
    return result
