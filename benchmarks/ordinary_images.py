"""Tissue fractions from one to three ordinary images, each on its own scale.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.ordinary_images [--rows 3 ...] [--seed 0]

Duration: a minute per row. Writes results/tissue_fractions/ordinary_images.md.

The phantom (`ordinary_phantom`) shares nothing with the package. Baselines: expectation
maximisation with bias field and partial volume (as FAST is described), DIPY's HMRF, Gaussian
mixture. The package is called by its defaults, with the sequences alone.
"""

from __future__ import annotations

import logging
import time
import warnings

import numpy as np

from benchmarks.command import command, keep
from benchmarks.fraction_baselines import (
    gaussian_mixture,
    markov_field_3d,
    mixture_with_partial_volume,
)
from benchmarks.fraction_scores import psnr
from benchmarks.ordinary_phantom import FLAIR, PDW, T1W, T2W, examination
from benchmarks.tables import machine, table
from dipy_spinverse import Status, TissueFractionModel

logging.getLogger("dipy").setLevel(logging.WARNING)
NAMES = ("csf", "gm", "wm")
ONE, TWO, THREE = [T1W], [T1W, T2W], [T1W, T2W, PDW]
ROWS = {
    "T1w, noise only": (ONE, {"b1": 0, "bias": 0, "variation": 0}),
    "T1w": (ONE, {}),
    "T1w, other constants, SNR 20": (ONE, {"constants": "Wansapura", "snr": 20}),
    "T1w, skull": (ONE, {"skull": True}),
    "T1w + T2w": (TWO, {}),
    "T1w + T2w, other constants, SNR 30": (TWO, {"constants": "Wansapura", "snr": 30}),
    "T1w + T2w, skull": (TWO, {"skull": True}),
    "T1w + FLAIR": ([T1W, FLAIR], {"constants": "other"}),
    "T1w + T2w + PDw": (THREE, {}),
    "T1w + T2w + PDw, other constants": (THREE, {"constants": "Wansapura"}),
}


def dice(found, truth, brain):
    """Of the largest fractions (3,)."""
    a, b = found[brain].argmax(axis=1), truth[brain].argmax(axis=1)
    return [2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in range(3)]


def fitted(exam, series):
    """Fit by the defaults of the package."""
    model = TissueFractionModel([one.described for one in series])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(exam.images, exam.mask)


def coverage(fit, exam, flagged):
    """Share (3,) of mixed voxels without a flag whose 95 % intervals cover the truth."""
    shares = []
    for k, name in enumerate(NAMES):
        true = exam.fractions[..., k]
        mixed = exam.brain & (true > 0.01) & (true < 0.99) & ~flagged
        low, high = getattr(fit, name + "_low"), getattr(fit, name + "_high")
        shares.append(((low <= true) & (true <= high))[mixed].mean() if mixed.any() else np.nan)
    return shares


def written(values, scale=1.0, digits=0):
    return " ".join(f"{scale * value:.{digits}f}" for value in values)


def row(name, seed):
    """Cells of a row: scores of the package, then of the baselines."""
    series, options = ROWS[name]
    exam = examination(series, seed=seed, **options)
    truth, brain = exam.fractions, exam.brain
    start = time.process_time()
    fit = fitted(exam, series)
    seconds = time.process_time() - start
    own = np.stack([getattr(fit, each) for each in NAMES], axis=-1)
    flagged = fit.status != Status.CONVERGED
    cells = [name, written(psnr(own[brain], truth[brain]), digits=1)]
    cells += [written(dice(own, truth, brain), digits=2)]
    cells += [written(coverage(fit, exam, np.zeros_like(brain)), 100)]
    cells += [written(coverage(fit, exam, flagged), 100), f"{100 * flagged[brain].mean():.0f}"]
    cells += [written([100 * (own[brain].sum(0) / truth[brain].sum(0) - 1)][0])]
    cells += [f"{seconds:.0f}"]
    for found in (
        mixture_with_partial_volume(exam.images, exam.mask),
        mixture_with_partial_volume(exam.images[..., :1], exam.mask),
        markov_field_3d(exam.images[..., 0], exam.mask),
        gaussian_mixture(exam.images, exam.mask),
    ):
        cells.append(written(psnr(found[brain], truth[brain]), digits=1))
    print(*cells, sep=" | ", flush=True)
    return cells


def main():
    parser = command(__doc__, "two rows")
    parser.add_argument("--rows", type=int, nargs="*", default=range(len(ROWS)))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    names = [[*ROWS][k] for k in ([1, 4] if arguments.quick else arguments.rows)]
    header = [
        "images", "dB", "Dice", "coverage, mixed voxels, %", "the same, not flagged",
        "flagged, %", "volumes, error %", "CPU s", "EM, dB", "EM of T1w alone, dB", "HMRF, dB",
        "Gaussian mixture, dB",
    ]  # fmt: skip
    rows = [row(name, arguments.seed) for name in names]
    text = (
        "# Ordinary images, each on its own scale\n\nCSF, grey, white matter; PSNR over the "
        "brain. SNR 25, B1 errors up to 15 %, bias up to 20 %, constants of Stanisz et al. that "
        "vary by up to 6 %, unless stated. EM: expectation maximisation with bias field and "
        f"partial volume. Seed {arguments.seed}.\n\n" + table(header, rows) + f"\n\n{machine()}."
    )
    complete = len(names) == len(ROWS) and not arguments.quick
    keep("tissue_fractions/ordinary_images.md", text, complete=complete)


if __name__ == "__main__":
    main()
