"""Which estimate of a map to report: posterior mean, posterior median or maximum likelihood.

Voxels of NODDI, ActiveAx, ZCD and IVIM are sampled from the prior, with Rician noise, and the
errors of the three estimates are compared for every map. Mean and median are those of samples.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.estimators

Duration: about 6 min on 2 cores (--quick: 30 s). Writes results/estimators.md.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.command import command, keep
from benchmarks.prior_voxels import models, simulated
from benchmarks.tables import table
from dipy_spinverse.compartments.posterior_draws import posterior_draws

N_VOXELS, N_QUICK, N_DRAWS = 300, 20, 256
ESTIMATES = ("mean", "median", "likeliest")


def estimates_of(model, data: np.ndarray, sigma: float) -> dict[str, np.ndarray]:
    """The three estimates (3, V) of each map, as `ESTIMATES` has them."""
    # Without a posterior, maps are maximum-likelihood estimates.
    fit = model.fit(data, sigma=sigma, n_draws=0)
    draws = [posterior_draws(fit[k], data[k], N_DRAWS) for k in range(len(data))]
    found = {}
    for name in model.definition.maps:
        of_voxels = np.stack([each[name] for each in draws])
        mean, median = of_voxels.mean(axis=1), np.median(of_voxels, axis=1)
        found[name] = np.stack([mean, median, getattr(fit, name)])
    return found


def rows_of(word: str, model, snr: int, n: int) -> list[list]:
    """Errors over the range of the truth, absolute and root mean square, of each map."""
    parameters, data = simulated(model, n, snr)
    truth = model.maps(parameters)
    rows = []
    for name, estimates in estimates_of(model, data, 1 / snr).items():
        error = (estimates - truth[name]) / np.ptp(truth[name])
        rows.append(
            [word, snr, name, np.abs(error).mean(axis=1), np.sqrt((error**2).mean(axis=1))]
        )
    return rows


def report(rows: list[list], n: int) -> str:
    """The table and its summary."""
    absolute, square = (np.array([row[k] for row in rows]) for k in (3, 4))
    heads = ["model", "SNR", "map"]
    heads += [f"{kind}: {each}" for kind in ("MAE", "RMSE") for each in ESTIMATES]
    lines = [[*row[:3], *(f"{x:.4f}" for x in (*row[3], *row[4]))] for row in rows]
    summary = [
        [
            each,
            f"{(absolute.argmin(axis=1) == k).sum()}",
            f"{np.exp(np.log(absolute[:, k] / absolute.min(axis=1)).mean()):.3f}",
            f"{(absolute[:, k] / absolute.min(axis=1)).max():.2f}",
            f"{(square.argmin(axis=1) == k).sum()}",
            f"{np.exp(np.log(square[:, k] / square.min(axis=1)).mean()):.3f}",
            f"{(square[:, k] / square.min(axis=1)).max():.2f}",
        ]
        for k, each in enumerate(ESTIMATES)
    ]
    heads_of_summary = ["", "least MAE in maps", "MAE over the least, mean", "worst"]
    heads_of_summary += ["least RMSE in maps", "RMSE over the least, mean", "worst"]
    return (
        "# Which estimate to report\n\n"
        f"{n} voxels of each model, parameters from the prior, Rician noise, {N_DRAWS} "
        "samples. Mean absolute (MAE) and root mean square error (RMSE) over the range of the "
        "truth.\n\n"
        + table(heads_of_summary, summary)
        + "\n\n"
        + table(heads, lines)
        + "\n\n`fit.NAME` is the median, for every model: it minimises the expected "
        "absolute error, it lies inside its interval, and it is invariant where "
        "a map is transformed monotonically (rate to time, diameter to area). The mean minimises "
        "the expected root mean square error. The maximum-likelihood estimate is "
        "`fit.NAME_likeliest`."
    )


def main():
    """Print the tables and write them to results/."""
    quick = command(__doc__, f"{N_QUICK} voxels of each model").parse_args().quick
    torch.set_num_threads(1)
    n, rows = N_QUICK if quick else N_VOXELS, []
    for word, model, snr in models():
        rows += rows_of(word, model, snr, n)
        print(f"{word}: {n} voxels", flush=True)
    text = report(rows, n)
    print(text)
    keep("estimators.md", text, complete=not quick)


if __name__ == "__main__":
    main()
