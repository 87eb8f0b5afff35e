"""Rows of `benchmarks.real_inputs`: averages over directions (NEXI, SANDI, VERDICT)."""

from __future__ import annotations

import numpy as np

from benchmarks.monte_carlo import mean_displacements, pulse_times, signals, walk
from benchmarks.packing import random_packing
from benchmarks.ready_made_intervals import prostate
from benchmarks.real_inputs_rows import Trial, middle_interval, row
from benchmarks.real_inputs_truths import (
    ball,
    magnitudes,
    powder_sticks,
    restricted,
    two_sites,
    unit_vectors,
)
from dipy_spinverse import Acquisition, NEXIModel
from dipy_spinverse.compartments import SANDIModel, VERDICTModel

_N_DIRECTIONS, _SIGMA = 30, 1 / 20
_OF_MEAN, _LOW = _SIGMA / np.sqrt(_N_DIRECTIONS), 0.003
_TE = 80.0
_AS_DEFAULT, _N_STATED = {}, {"n_averages": _N_DIRECTIONS}


def averages(b, small, big, te=_TE, **options) -> Acquisition:
    """Averages over directions, ms/um^2 and ms."""
    return Acquisition(b, np.zeros((len(b), 3)), small, big, te=te, isotropic=True, **options)


_NEXI = {"b": np.tile([0.0, 1, 2, 3.5, 5, 7], 4), "small": np.full(24, 9.0),
         "big": np.repeat([16.0, 25, 35, 45], 6)}  # fmt: skip


def _neuropil(n, rng):
    return {
        "neurite_fraction": rng.uniform(0.3, 0.7, n), "exchange_time": rng.uniform(5, 60, n),
        "neurite_diffusivity": rng.uniform(1.8, 3.0, n),
        "extra_diffusivity": rng.uniform(0.5, 1.2, n),
    }  # fmt: skip


def _exchange(n, rng, *, noise, gains=False, somas=0.0, sigma=None, acquired=_AS_DEFAULT,
              rows=slice(None), **options):  # fmt: skip
    """NEXI; `noise` makes the measured averages, `gains` an S0 of each diffusion time."""
    truth = _neuropil(n, rng)
    clean = two_sites(**_NEXI, fraction=truth["neurite_fraction"],
                      exchange_time=truth["exchange_time"], inside=truth["neurite_diffusivity"],
                      outside=truth["extra_diffusivity"])  # fmt: skip
    if somas:
        q = np.sqrt(_NEXI["b"] / (_NEXI["big"] - _NEXI["small"] / 3))
        bodies = restricted(q, _NEXI["small"], _NEXI["big"], np.full(n, 16.0), 3.0, 3)
        clean = (1 - somas) * clean + somas * bodies
    if gains:
        clean = clean * np.repeat([1.0, 0.93, 1.05, 0.9], 6)
    data = noise(clean, rng)[:, rows]

    def run():
        acquisition = averages(**_NEXI, **acquired).subset(rows)
        return NEXIModel(acquisition, **options).fit(data, sigma=sigma)

    return Trial(run, truth, note=middle_interval("exchange_time"))


def _real(sigma):
    return lambda clean, rng: clean + sigma * rng.standard_normal(clean.shape)


def _mean_magnitudes(clean, rng):
    return magnitudes(clean, _SIGMA, rng, _N_DIRECTIONS)


@row("ordinary", "NEXI, means of 30 real parts of SNR 20", 150, 16)
def nexi(n, rng):
    return _exchange(n, rng, noise=_real(_OF_MEAN), likelihood="gaussian")


@row("A5", "NEXI, means of 30 magnitudes of SNR 20, their number not given", 150, 16)
def nexi_magnitudes(n, rng):
    return _exchange(n, rng, noise=_mean_magnitudes)


@row("A5", "NEXI, means of 30 magnitudes of SNR 20, n_averages=30", 150, 16)
def nexi_n_averages(n, rng):
    return _exchange(n, rng, noise=_mean_magnitudes, acquired=_N_STATED)


@row("A5", "NEXI, means of 30 magnitudes of SNR 20, n_averages=30, noise known", 150, 16)
def nexi_n_averages_noise_known(n, rng):
    return _exchange(n, rng, noise=_mean_magnitudes, acquired=_N_STATED, sigma=_SIGMA)


@row("A6", "NEXI in tissue with 20 % of cell bodies, noise of .3 %, known", 150, 16)
def nexi_somas(n, rng):
    return _exchange(n, rng, somas=0.2, noise=_real(_LOW), sigma=_LOW, likelihood="gaussian")


@row("A6", "NEXI in tissue with 20 % of cell bodies, noise of .3 %, unknown", 150, 16)
def nexi_somas_noise_unknown(n, rng):
    return _exchange(n, rng, somas=0.2, noise=_real(_LOW), likelihood="gaussian")


def _nexi_gains(n, rng, **options):
    return _exchange(n, rng, gains=True, noise=_real(_LOW), sigma=_LOW, likelihood="gaussian",
                     **options)  # fmt: skip


@row("A7", "NEXI, a gain of each diffusion time (.9 to 1.05), noise of .3 %, known", 150, 16)
def nexi_gains(n, rng):
    return _nexi_gains(n, rng)


@row("A7", 'NEXI, gains, noise known, amplitudes="timing"', 150, 16)
def nexi_gains_timing(n, rng):
    return _nexi_gains(n, rng, amplitudes="timing")


@row("A7", "NEXI, an echo time of each diffusion time, b0 at the first only", 150, 16)
def nexi_echo_times(n, rng):
    rows, te = np.r_[:6, 7:12, 13:18, 19:24], np.repeat([60.0, 68.0, 76.0, 84.0], 6)
    return _exchange(n, rng, gains=True, noise=_real(_LOW), sigma=_LOW, likelihood="gaussian",
                     rows=rows, acquired={"te": te})  # fmt: skip


_THREE = (13.0, 20.0, 30.0)


def _somata(big):
    b = np.r_[0.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]
    return {"b": np.tile(b, len(big)), "small": np.full(len(b) * len(big), 5.0),
            "big": np.repeat(big, len(b))}  # fmt: skip


_SANDI_MAPS = ("neurite_fraction", "soma_fraction", "extra_fraction", "soma_diameter",
               "neurite_diffusivity", "extra_diffusivity")  # fmt: skip


def _sandi(n, rng, *, noise, gains=None, big=(13.0,), sigma=None, acquired=_AS_DEFAULT,
           **options):  # fmt: skip
    scan, fractions = _somata(big), rng.dirichlet([6, 5, 5], n).T
    others = [rng.uniform(*limits, n) for limits in ((10, 20), (1.5, 2.8), (0.6, 1.6))]
    truth = dict(zip(_SANDI_MAPS, (*fractions, *others), strict=True))
    q = np.sqrt(scan["b"] / (scan["big"] - scan["small"] / 3))
    parts = (powder_sticks(scan["b"], truth["neurite_diffusivity"]),
             restricted(q, scan["small"], scan["big"], truth["soma_diameter"], 3.0, 3),
             ball(scan["b"], truth["extra_diffusivity"]))  # fmt: skip
    clean = sum(f[:, None] * part for f, part in zip(fractions, parts, strict=True))
    if gains is not None:
        clean = clean * np.repeat(gains, len(scan["b"]) // len(big))
    data = noise(clean, rng)
    run = lambda: SANDIModel(averages(**scan, **acquired), **options).fit(data, sigma=sigma)  # noqa: E731
    return Trial(run, truth, note=middle_interval("soma_diameter"))


@row("ordinary", "SANDI, one diffusion time, means of 30 real parts of SNR 20")
def sandi(n, rng):
    return _sandi(n, rng, noise=_real(_OF_MEAN), likelihood="gaussian")


@row("ordinary", "SANDI, three diffusion times, means of 30 real parts of SNR 20")
def sandi_three(n, rng):
    return _sandi(n, rng, noise=_real(_OF_MEAN), big=_THREE, likelihood="gaussian")


@row("A5", "SANDI, means of 30 magnitudes of SNR 20, their number not given")
def sandi_magnitudes(n, rng):
    return _sandi(n, rng, noise=_mean_magnitudes)


@row("A5", "SANDI, means of 30 magnitudes of SNR 20, n_averages=30")
def sandi_n_averages(n, rng):
    return _sandi(n, rng, noise=_mean_magnitudes, acquired=_N_STATED)


@row("A5", "SANDI, means of 30 magnitudes of SNR 20, n_averages=30, noise known")
def sandi_n_averages_noise_known(n, rng):
    return _sandi(n, rng, noise=_mean_magnitudes, acquired=_N_STATED, sigma=_SIGMA)


@row("A5", "SANDI, means of 30 magnitudes of SNR 20, n_averages=30, sigma of the means given")
def sandi_n_averages_sigma_of_means(n, rng):
    return _sandi(n, rng, noise=_mean_magnitudes, acquired=_N_STATED, sigma=_OF_MEAN)


def _sandi_gains(n, rng, **options):
    return _sandi(n, rng, gains=(1.0, 0.93, 1.05), big=_THREE, noise=_real(_LOW), sigma=_LOW,
                  likelihood="gaussian", **options)  # fmt: skip


@row("A7", "SANDI, a gain of each diffusion time (.93 to 1.05), noise of .3 %, known")
def sandi_gains(n, rng):
    return _sandi_gains(n, rng)


@row("A7", 'SANDI, gains, noise known, amplitudes="timing"')
def sandi_gains_timing(n, rng):
    return _sandi_gains(n, rng, amplitudes="timing")


_N_PACKINGS, _N_WALKERS = 8, 4000


def _permeable_somas(n, rng, big):
    """SANDI on somas with permeable membranes: Monte Carlo of packed balls, D 3 um^2/ms."""
    scan, clean, truth = _somata(big), [], []
    times = pulse_times({(5.0, each) for each in big})
    for k in range(_N_PACKINGS):
        radius, kappa = rng.uniform(4, 8), rng.uniform(0.02, 0.06)
        packing = random_packing(3, radius, rng.uniform(0.3, 0.5), 60, int(rng.integers(2**31)))
        moved, inside = walk(packing, kappa, times, _N_WALKERS, k, step_per_radius=1 / 4,
                             diffusivity=3.0)  # fmt: skip
        cells = np.empty(len(scan["b"]))
        for each in big:
            rows = scan["big"] == each
            q = np.sqrt(scan["b"][rows] / (each - 5.0 / 3))
            vectors = q[:, None, None] * unit_vectors(12, k)
            shift = mean_displacements(moved, times, 5.0, each)
            cells[rows] = signals(shift, inside, vectors)[0]
        along, share = rng.uniform(1.5, 2.8), rng.uniform(0.3, 0.5)
        stick = powder_sticks(scan["b"], np.array([along]))[0]
        clean.append(share * stick + (1 - share) * cells)
        soma = (1 - share) * packing.fraction
        truth.append([share, soma, 1 - share - soma, 2 * radius, along])
    which = np.arange(n) % _N_PACKINGS
    data = _real(_OF_MEAN)(np.array(clean)[which], rng)
    model = lambda: SANDIModel(averages(**scan), likelihood="gaussian")  # noqa: E731
    columns = np.array(truth)[which].T
    return Trial(lambda: model().fit(data), dict(zip(_SANDI_MAPS, columns, strict=False)),
                 note=middle_interval("soma_diameter"))  # fmt: skip


@row("A8", "SANDI, one diffusion time, somas with permeable membranes (Monte Carlo)")
def sandi_permeable(n, rng):
    return _permeable_somas(n, rng, (25.0,))


@row("A8", "SANDI, three diffusion times, somas with permeable membranes (Monte Carlo)")
def sandi_permeable_three(n, rng):
    return _permeable_somas(n, rng, _THREE)


@row("ordinary", "VERDICT of the prostate, five b in three directions, SNR 50")
def verdict(n, rng):
    acquisition = prostate()
    every, te = acquisition.b, acquisition.te
    small, big = acquisition.small_delta, acquisition.big_delta
    fractions, diameter = rng.dirichlet([2, 6, 6], n).T, rng.uniform(6, 18, n)
    q = np.sqrt(every / (big - small / 3))
    parts = (powder_sticks(every, np.full(n, 8.0)), restricted(q, small, big, diameter, 2.0, 3),
             ball(every, np.full(n, 2.0)))  # fmt: skip
    clean = sum(f[:, None] * part for f, part in zip(fractions, parts, strict=True))
    data = magnitudes(clean * np.exp(-te / 80.0) / np.exp(-50 / 80.0), 1 / 50, rng)
    names = ("vascular_fraction", "intracellular_fraction", "extracellular_fraction",
             "cell_diameter")  # fmt: skip
    truth = dict(zip(names, (*fractions, diameter), strict=True))
    return Trial(lambda: VERDICTModel(acquisition).fit(data), truth)
