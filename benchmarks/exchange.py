"""Exchange of packed permeable cylinders: rank order of fitted rates and true permeabilities.

Monte Carlo signals of ``perm_cyl_mcmr`` (Zheng, MCMRSimulator; see `load_permeable_cylinders`), 21
permeabilities, gradient across the cylinders, with Rician noise of SNR 50. Methods compared on the
same noisy signals:

- two-site exchange: the Karger equations [1]_ with a restricted first site, see `two_site_signals`
- packed cells: the package's posterior of packed permeable cylinders, with and without the
  assumption that they are parallel and across the gradient (which two-site exchange makes), with
  diffusivities unknown as by default, and with the spread of their radii specified

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.exchange

Duration: about 3 min on 2 cores (--quick: 20 s). Writes results/exchange.md.

References
----------
.. [1] Karger, Pfeifer and Heink, Adv. Magn. Reson. 12 (1988),
   https://doi.org/10.1016/B978-0-12-025512-2.50004-X; NEXI is the same model between neurites and
   their surroundings: Jelescu et al., NeuroImage 256 (2022),
   https://doi.org/10.1016/j.neuroimage.2022.119277
"""

from __future__ import annotations

import io
import re
import time
import zipfile
from functools import partial

import numpy as np
from scipy.optimize import least_squares
from scipy.special import ive, j1
from scipy.stats import spearmanr

from benchmarks.command import command, keep
from benchmarks.datasets import data_file
from dipy_spinverse import Acquisition, PackedCellsModel

DIFFUSIVITY = 2.3
RADIUS_SPREAD = 0.5  # of the 1642 cylinders: standard deviation over mean
SNR = 50.0
_BIG_DELTA = (10, 15, 20, 30, 40, 50, 60, 80)
_SMALL_DELTA, _TE = 2.5, 166.0
_GRADIENTS = np.arange(0, 1201, 80) * 1e-3
# rad/(ms um) per T/m.
_GAMMA = 0.26752218744
# Restricted fraction, radius (um), outer diffusivity (um^2/ms), ln of the rate (1/ms), S0.
_LOWER = (0.05, 0.1, 0.1, np.log(1e-5), 0.8)
_UPPER = (0.95, 8.0, DIFFUSIVITY, np.log(1.0), 1.2)
_STARTS = [(0.6, radius, 1.0, np.log(rate), 1.0) for radius in (1.5, 3) for rate in (0.002, 0.02)]


def load_permeable_cylinders() -> tuple[Acquisition, np.ndarray, np.ndarray]:
    """Acquisition, permeability (21,) in um/ms, and noise-free signals (21, 128).

    1642 parallel cylinders in a periodic box, density 0.65, mean radius 2 um, D = 2.3 um^2/ms. The
    source gives the probability p to cross; kappa = -ln(1 - p) sqrt(D / pi).
    """
    q = _GAMMA * _GRADIENTS * _SMALL_DELTA
    big_delta = np.repeat(np.array(_BIG_DELTA, dtype=float), len(q))
    q = np.tile(q, len(_BIG_DELTA))
    acquisition = Acquisition(
        q**2 * (big_delta - _SMALL_DELTA / 3),
        np.where(q[:, None] > 0, [1.0, 0.0, 0.0], 0.0),
        _SMALL_DELTA,
        big_delta,
        te=_TE,
        # b of the weakest gradient is 0.026 ms/um^2.
        b0_threshold=0.001,
    )
    chances, signals = [], []
    with zipfile.ZipFile(data_file("perm_cyl_mcmr/perm_results.zip")) as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".csv")):
            chances.append(float(re.search(r"_perm_([0-9.]+)_", name)[1]))
            total = np.loadtxt(io.BytesIO(archive.read(name)), delimiter=",")[:, 2]
            signals.append(total / total[0])
    permeability = -np.log(1 - np.array(chances)) * np.sqrt(DIFFUSIVITY / np.pi)
    return acquisition, permeability, np.array(signals)


def two_site_signals(q, time, fraction, radius, outer_diffusivity, rate):
    """Signals of two sites that exchange.

    Between short pulses the magnetisation (m_in, m_out) follows the Karger equations, with no
    decay inside (restricted) and q^2 D_out outside; each pulse weighs what is inside then with the
    disc's form factor 2 J1(q R) / (q R), so that without exchange inside signals are its square.

    Parameters
    ----------
    q, time : ndarray (M,)
        rad/um and ms (diffusion time Delta - delta/3).
    fraction, radius, outer_diffusivity : float
        Inside fraction, um, um^2/ms.
    rate : float
        Of leaving the inside, 1/ms.
    """
    phase = np.maximum(q * radius, 1e-9)
    form = 2 * j1(phase) / phase
    back = rate * fraction / (1 - fraction)
    decay = q**2 * outer_diffusivity + back
    # exp(-t [[rate, -back], [-rate, decay]]) by its two eigenvalues.
    middle, half = (rate + decay) / 2, np.sqrt(((decay - rate) / 2) ** 2 + rate * back)
    half = np.maximum(half, 1e-12)
    slow, fast = np.exp(-(middle - half) * time), np.exp(-(middle + half) * time)
    even, odd = (slow + fast) / 2, (slow - fast) / (2 * half)
    inside, outside = fraction * form, 1 - fraction
    new_inside = even * inside + odd * ((middle - rate) * inside + back * outside)
    new_outside = even * outside + odd * (rate * inside + (middle - decay) * outside)
    return form * new_inside + new_outside


def two_site_fit(acquisition: Acquisition, data: np.ndarray, sigma: float) -> np.ndarray:
    """Exchange rates (V,) 1/ms, fitted with the Rician mean; best of several initial values."""
    q, time = acquisition.q, acquisition.diffusion_time
    rates = []
    for signal in data:

        def residual(x, signal=signal):
            clean = x[4] * two_site_signals(q, time, *x[:3], np.exp(x[3]))
            return (_rician_mean(clean, sigma) - signal) / sigma

        fits = [least_squares(residual, start, bounds=(_LOWER, _UPPER)) for start in _STARTS]
        rates.append(np.exp(min(fits, key=lambda fit: fit.cost).x[3]))
    return np.array(rates)


def _rician_mean(clean, sigma):
    x = (clean / sigma) ** 2 / 4
    return sigma * np.sqrt(np.pi / 2) * ((1 + 2 * x) * ive(0, x) + 2 * x * ive(1, x))


def packed_cells_fit(
    acquisition: Acquisition,
    data: np.ndarray,
    sigma: float,
    tissue: str = "cylinders",
    diffusivity: float | None = DIFFUSIVITY,
    radius_spread: float = 0.0,
) -> np.ndarray:
    """Posterior medians (V,) of the wall permeability, um/ms, of packed cylinders."""
    mm2_per_s = None if diffusivity is None else 1e-3 * diffusivity
    model = PackedCellsModel(
        acquisition, diffusivity=mm2_per_s, radius_spread=radius_spread, classes=(tissue,)
    )
    posterior = model.posterior(data, sigma)
    return np.median(posterior.maps["wall_permeability"], axis=0)


METHODS = {
    "two-site exchange": two_site_fit,
    "packed cells": packed_cells_fit,
    "packed cells, parallel": partial(packed_cells_fit, tissue="aligned cylinders"),
    "packed cells, diffusivities unknown": partial(packed_cells_fit, diffusivity=None),
    "packed cells, parallel, diffusivities unknown": partial(
        packed_cells_fit, tissue="aligned cylinders", diffusivity=None
    ),
    "packed cells, diffusivities unknown, spread of radii known": partial(
        packed_cells_fit, diffusivity=None, radius_spread=RADIUS_SPREAD
    ),
    "packed cells, parallel, diffusivities unknown, spread of radii known": partial(
        packed_cells_fit, tissue="aligned cylinders", diffusivity=None, radius_spread=RADIUS_SPREAD
    ),
}
GOAL = 0.98


def main() -> None:
    """Print Spearman correlations over the levels, for each noise; write them to results/."""
    parser = command(__doc__, "every third level with one noise")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    arguments = parser.parse_args()
    n_repeats, methods = arguments.repeats, arguments.methods
    acquisition, permeability, clean = load_permeable_cylinders()
    if arguments.quick:
        n_repeats, permeability, clean = 1, permeability[::3], clean[::3]
    lines = [
        "# Permeable cylinders: fitted exchange against true permeability",
        "",
        f"`python -m benchmarks.exchange`: {len(clean)} levels, {len(acquisition)} measurements, "
        f"Rician noise of SNR {SNR:g}, {n_repeats} noise seeds (0, 1, ...). Goal of the median "
        f"rank correlation: {GOAL:g}, with and without parallel cylinders.",
        "",
        "| method | Spearman, median (least) | without noise | CPU-s per level |",
        "|---|---|---|---|",
    ]
    details = ["", f"First noise; kappa in um/ms: {_row(permeability)}", ""]
    for name in methods:
        fit, found = METHODS[name], []
        started = time.process_time()
        for seed in range(n_repeats):
            noise = np.random.default_rng(seed).standard_normal((2, *clean.shape)) / SNR
            found.append(fit(acquisition, np.hypot(clean + noise[0], noise[1]), 1 / SNR))
        seconds = (time.process_time() - started) / (n_repeats * len(clean))
        ranks = [spearmanr(values, permeability)[0] for values in found]
        quiet = spearmanr(fit(acquisition, clean, 1 / SNR), permeability)[0]
        lines.append(
            f"| {name} | {np.median(ranks):.3f} ({min(ranks):.3f}) | {quiet:.3f} | {seconds:.2f} |"
        )
        details.append(f"- {name}: {_row(found[0])}")
    text = "\n".join(lines + details) + "\n"
    print(text)
    keep("exchange.md", text, complete=not arguments.quick)


def _row(values):
    return ", ".join(f"{value:.4f}" for value in values)


if __name__ == "__main__":
    main()
