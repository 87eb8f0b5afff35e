"""The prior of the orientation dispersion index, and the estimate to report.

Errors of the median for densities (1 - odi)^p, and of the most probable value, on published NODDI
in two schemes (HCP; clinical, 9 b0, 30 directions at 0.7 and 60 at 2 ms/um^2), three kinds of
tissue and three noise levels; signals from direct quadrature (`benchmarks.published_noddi`). The
draws of the model's own prior are weighted.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.dispersion_prior

Duration: about 8 min on 1 core (--quick: 1 min). Writes results/dispersion_prior.md.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.command import command, keep
from benchmarks.compartment_truths import magnitudes, scheme
from benchmarks.published_noddi import published_signals
from benchmarks.tables import table
from dipy_spinverse import Acquisition, NODDIModel
from dipy_spinverse.compartments.definition import ORIENTATION_PRIOR
from dipy_spinverse.compartments.posterior_draws import posterior_draws

N_VOXELS, N_QUICK, N_DRAWS = 300, 20, 1000
POWERS = (0, 1, 2, 3)
# Ranges of ndi, odi and fwf.
TISSUES = {
    "all": ((0.3, 0.9), (0.02, 0.6), (0, 0.3)),
    "white matter": ((0.45, 0.75), (0.02, 0.2), (0, 0.15)),
    "grey matter": ((0.3, 0.55), (0.25, 0.7), (0, 0.3)),
}
CASES = (("all", 30), ("all", 15), ("white matter", 20), ("grey matter", 20))


def clinical() -> tuple[Acquisition, np.ndarray, np.ndarray]:
    """Acquisition, b and directions on spirals over the half sphere."""
    spirals = [_spiral(n) for n in (30, 60)]
    b = np.repeat([0.0, 0.7, 2.0], [9, 30, 60])
    directions = np.vstack([np.zeros((9, 3)), *spirals])
    return Acquisition(b, directions, small_delta=10, big_delta=30), b, directions


def _spiral(n):
    z = (np.arange(n) + 0.5) / n
    azimuth, ring = np.pi * (1 + 5**0.5) * np.arange(n), np.sqrt(1 - z**2)
    return np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), z], axis=1)


def tissue(n: int, ranges, seed: int) -> dict[str, np.ndarray]:
    """Uniform parameters within ranges, and axes."""
    rng = np.random.default_rng(seed)
    names = "ndi", "odi", "fwf"
    truth = {name: rng.uniform(*r, n) for name, r in zip(names, ranges, strict=True)}
    return truth | {"axis": np.linalg.qr(rng.standard_normal((n, 3, 3)))[0][:, 0]}


def weighted_median(samples: np.ndarray, weights: np.ndarray) -> float:
    """Median of samples (n,) with weights."""
    order = np.argsort(samples)
    cumulative = np.cumsum(weights[order])
    return samples[order][np.searchsorted(cumulative, 0.5 * cumulative[-1])]


def row_of(word: str, model, b, directions, kind: str, snr: int, n: int, seed: int) -> list:
    """Errors of the estimates, and coverage."""
    truth = tissue(n, TISSUES[kind], seed)
    data = magnitudes(published_signals(b, directions, truth), snr, seed=100 + seed)
    fit = model.fit(data, sigma=1 / snr)
    covered = (fit.odi_low <= truth["odi"]) & (truth["odi"] <= fit.odi_high)
    draws = [posterior_draws(fit[v], data[v], N_DRAWS)["odi"] for v in range(n)]
    medians = [
        [weighted_median(x, (1 - x) ** (p - ORIENTATION_PRIOR)) for x in draws] for p in POWERS
    ]
    errors = np.abs(np.array([*medians, fit.odi_likeliest]) - truth["odi"]).mean(axis=1)
    return [word, kind, snr, *(f"{e:.4f}" for e in errors), f"{100 * covered.mean():.1f}"]


def main():
    """Print the table and write it to results/."""
    quick = command(__doc__, f"{N_QUICK} voxels of each row").parse_args().quick
    torch.set_num_threads(1)
    rows = []
    for word, (acquisition, b, directions) in {"HCP": scheme(), "clinical": clinical()}.items():
        model = NODDIModel(acquisition)
        for kind, snr in CASES:
            n = N_QUICK if quick else N_VOXELS
            rows.append(row_of(word, model, b, directions, kind, snr, n, seed=len(rows)))
            print(rows[-1], flush=True)
    heads = ["scheme", "tissue", "SNR", *(f"median, p = {p}" for p in POWERS)]
    heads += ["maximum likelihood", "coverage, p = 2, %"]
    text = "# Prior of the dispersion index\n\nMean absolute error of odi.\n\n" + table(
        heads, rows
    )
    print(text)
    keep("dispersion_prior.md", text, complete=not quick)


if __name__ == "__main__":
    main()
