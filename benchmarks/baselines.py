"""The models that the benchmarks compare with, each with an amplitude for every timing."""

from __future__ import annotations

import numpy as np
from dipy.reconst.dti import TensorModel
from scipy.optimize import least_squares

from benchmarks.monte_carlo import restricted_square
from dipy_spinverse import Acquisition

_STARTS = ((0.3, 0.1), (0.7, 0.1), (0.5, 0.5))
_LARGEST_DIFFUSIVITY = 4.0  # um^2/ms, above free water
_LEAST_DIFFUSIVITY = 0.01


def fit_dti(acquisition: Acquisition, signals: np.ndarray, fitted: np.ndarray):
    """Diffusion tensor by weighted least squares (`dipy.reconst.dti`).

    Parameters
    ----------
    acquisition : Acquisition
    signals : ndarray (M,)
    fitted : ndarray (M,) of bool
        The measurements to fit; those at large b should not be among them.

    Returns
    -------
    predicted : ndarray (M,)
        For all measurements. The tensor is fitted to signals over the mean b0 of their timing,
        then the amplitude of each timing by linear least squares.
    estimates : dict
        `fa`, and `md` in um^2/ms. Elements of the tensor to which the encodings are blind (those
        off the plane, where all lie in one) are those of least norm.
    """
    relative = signals.copy()
    for timing, b0 in enumerate(acquisition.b0_per_timing):
        relative[acquisition.timing_index == timing] /= signals[b0 & fitted].mean()
    gtab = acquisition.subset(fitted).to_gtab()
    fit = TensorModel(gtab, fit_method="WLS", min_signal=1e-4).fit(relative[fitted])
    b = np.where(acquisition.b0_mask, 0, acquisition.b)
    directions = acquisition.directions
    along = np.einsum("mi,ij,mj->m", directions, fit.quadratic_form, directions)
    shape = np.exp(-b * 1e3 * along)
    estimates = {"fa": float(fit.fa), "md": 1e3 * float(fit.md)}
    return with_amplitudes(acquisition, shape, signals, fitted), estimates


def fit_stick_zeppelin_ball(
    acquisition: Acquisition,
    signals: np.ndarray,
    fitted: np.ndarray,
    *,
    orientation: np.ndarray,
    free_diffusivity: float,
):
    """Stick + zeppelin + ball with three parameters, by least squares.

    S / S0(timing) = (1 - f) (v exp(-b D c^2) + (1 - v) exp(-b (D c^2 + (1 - v) D (1 - c^2))))
                     + f exp(-b D_free)

    with c the cosine between direction and `orientation`, and the tortuosity (1 - v) D of the
    zeppelin as in NODDI [1]_. Fitted are v, f and D; orientation and D_free are fixed, and S0 of
    each timing is eliminated by linear least squares. The best of three initial values.

    Parameters
    ----------
    acquisition : Acquisition
    signals : ndarray (M,)
    fitted : ndarray (M,) of bool
    orientation : ndarray (3,)
        Unit vector.
    free_diffusivity : float
        um^2/ms.

    Returns
    -------
    predicted : ndarray (M,)
        For all measurements.
    estimates : dict
        `stick_fraction` (1 - f) v, `ball_fraction` f, `diffusivity` D (um^2/ms).

    References
    ----------
    .. [1] Zhang et al., NeuroImage 61 (2012) 1000, https://doi.org/10.1016/j.neuroimage.2012.03.072
    """
    b = np.where(acquisition.b0_mask, 0, acquisition.b)
    along = (acquisition.directions @ orientation) ** 2
    ball = np.exp(-b * free_diffusivity)

    def shape(parameters):
        v, f, diffusivity = parameters
        stick = np.exp(-b * diffusivity * along)
        zeppelin = np.exp(-b * diffusivity * (along + (1 - v) * (1 - along)))
        return (1 - f) * (v * stick + (1 - v) * zeppelin) + f * ball

    def residual(parameters):
        predicted = with_amplitudes(acquisition, shape(parameters), signals, fitted)
        return (predicted - signals)[fitted]

    bounds = ([0, 0, _LEAST_DIFFUSIVITY], [1, 1, _LARGEST_DIFFUSIVITY])
    fits = [
        least_squares(residual, (*start, free_diffusivity / 2), bounds=bounds) for start in _STARTS
    ]
    best = min(fits, key=lambda fit: fit.cost).x
    v, f, diffusivity = best
    estimates = {
        "stick_fraction": float((1 - f) * v),
        "ball_fraction": float(f),
        "diffusivity": float(diffusivity),
    }
    return with_amplitudes(acquisition, shape(best), signals, fitted), estimates


def fit_two_sites(
    acquisition: Acquisition,
    signals: np.ndarray,
    fitted: np.ndarray,
    *,
    orientation: np.ndarray,
    diffusivity: float,
    free_diffusivity: float,
):
    """Cylinders and their surroundings that exchange, and free water, by least squares.

    The Karger equations [1]_ between a site inside, whose signal across `orientation` decays as
    that of impermeable cylinders in the Gaussian phase approximation, and a hindered one outside;
    each decay is spread evenly over the diffusion time. Fitted are the share of the inside, the
    radius, the diffusivity along (of both), that across (outside), the rate of leaving the inside,
    the share of free water, and an amplitude for each timing. The best of four initial values.

    Parameters
    ----------
    acquisition : Acquisition
    signals : ndarray (M,)
    fitted : ndarray (M,) of bool
    orientation : ndarray (3,)
        Unit vector.
    diffusivity, free_diffusivity : float
        um^2/ms: of the water inside across the cylinders, and of free water.

    Returns
    -------
    predicted : ndarray (M,)
        For all measurements.
    estimates : dict
        `restricted_fraction`, `pore_diameter` (um), `exchange_time` (ms, of the inside) and
        `free_water_fraction`.

    References
    ----------
    .. [1] Karger, Pfeifer and Heink, Adv. Magn. Reson. 12 (1988),
       https://doi.org/10.1016/B978-0-12-025512-2.50004-X
    """
    weighted = ~acquisition.b0_mask
    b = np.where(weighted, acquisition.b, 0)
    q, time = np.where(weighted, acquisition.q, 0), acquisition.diffusion_time
    along = (acquisition.directions @ orientation) ** 2
    free = np.exp(-b * free_diffusivity)

    def shape(parameters):
        share, log_radius, parallel, across, log_rate, water = parameters
        squares = [
            restricted_square(2, np.exp(log_radius), small, big, diffusivity)
            for small, big, _ in acquisition.timings
        ]
        inside = b * parallel * along
        inside += q**2 * (1 - along) * np.array(squares)[acquisition.timing_index] / 2
        outside = b * (parallel * along + across * (1 - along))
        tissue = _exchanging(inside / time, outside / time, share, np.exp(log_rate), time)
        return (1 - water) * tissue + water * free

    def residual(parameters):
        return (with_amplitudes(acquisition, shape(parameters), signals, fitted) - signals)[fitted]

    limits = np.array([
        (0.02, 0.98), (np.log(0.3), np.log(15)), (0.01, 4), (0.01, 4), (np.log(1e-5), 0), (0, 1),
    ])  # fmt: skip
    starts = [(0.5, np.log(radius), diffusivity, diffusivity / 3, np.log(rate), 0.1)
              for radius in (1.5, 4) for rate in (0.002, 0.05)]  # fmt: skip
    fits = [least_squares(residual, start, bounds=limits.T, x_scale="jac") for start in starts]
    best = min(fits, key=lambda fit: fit.cost).x
    estimates = {
        "restricted_fraction": float((1 - best[5]) * best[0]),
        "pore_diameter": float(2 * np.exp(best[1])),
        "exchange_time": float(np.exp(-best[4])),
        "free_water_fraction": float(best[5]),
    }
    return with_amplitudes(acquisition, shape(best), signals, fitted), estimates


def _exchanging(inside, outside, share, rate, time):
    """Sum of two sites that decay at rates `inside` and `outside` and exchange, after a time."""
    back = rate * share / (1 - share)
    # exp(-t [[inside + rate, -back], [-rate, outside + back]]) by its two eigenvalues.
    first, second = inside + rate, outside + back
    middle = (first + second) / 2
    half = np.maximum(np.sqrt(((second - first) / 2) ** 2 + rate * back), 1e-12)
    slow, fast = np.exp(-(middle - half) * time), np.exp(-(middle + half) * time)
    even, odd = (slow + fast) / 2, (slow - fast) / (2 * half)
    in_, out = share, 1 - share
    new_in = even * in_ + odd * ((middle - first) * in_ + back * out)
    return new_in + even * out + odd * (rate * in_ + (middle - second) * out)


def with_amplitudes(acquisition: Acquisition, shape, signals, fitted) -> np.ndarray:
    """Signals (M,) of least squares a_timing shape, with one amplitude for each timing."""
    index, n = acquisition.timing_index, len(acquisition.timings)
    weighted = np.where(fitted, shape, 0)
    products = np.bincount(index, weighted * signals, n)
    squares = np.bincount(index, weighted * shape, n)
    return (products / squares)[index] * shape
