"""Coverage of intervals of packed cells for truths from the prior.

Tissues are sampled from the prior of each class with cells, at random orientations; their signals
are those of the emulator with errors of the assumed distribution, and Rician noise. Each is fitted
with its class specified and, as by default, with all of them. Correct coverage here is necessary,
not sufficient, for tissue that the prior does not describe.

    python -m benchmarks.tissue_prior

Duration: about 6 CPU-min (--quick: 1 min). Writes results/tissue_prior.md.
"""

from __future__ import annotations

import time

import numpy as np
from scipy.spatial.transform import Rotation

from benchmarks.command import command, keep
from benchmarks.tables import machine, table
from benchmarks.tissue import MAPS
from benchmarks.tissue_testset import acquisition
from dipy_spinverse import PackedCellsModel
from dipy_spinverse.packed_cells.emulator_errors import error_patterns, model_errors
from dipy_spinverse.packed_cells.maps import (
    tissue_maps,
    tissue_parameters,
    with_unequal_membranes,
)
from dipy_spinverse.packed_cells.tissue_classes import tissue_class
from dipy_spinverse.packed_cells.tissue_signals import tissue_signals

CLASSES = ("cylinders", "spheres", "mixture", "crossing")
SNRS = (50, 150, 500)
_N_DRAWS = 100


def drawn(name: str, n: int, snr: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes (n, M) and true maps (n, 5) of tissues of a class."""
    rng = np.random.default_rng(seed)
    tissue = tissue_class(name, diffusivity_known=False)
    model = tissue_signals(acquisition("300"), None, 3.0, interpolated=False)
    z = rng.standard_normal((n, tissue.n_parameters))
    z[:, -3:] = 0
    frames = Rotation.random(n, random_state=seed).as_matrix()
    patterns = model_errors(model, tissue, z, frames, error_patterns(model.shells))
    clean = model(tissue, z, frames)
    clean += np.einsum("nk,nkm->nm", rng.standard_normal(patterns.shape[:2]), patterns)
    noise = rng.standard_normal((2, *clean.shape)) / snr
    signals = np.empty_like(clean)
    signals[:, model.shells.order] = np.hypot(clean + noise[0], noise[1])
    maps = tissue_maps(tissue_parameters(tissue, z, None), frames)
    each = {key: value[:, None] for key, value in maps.items()}
    maps = {key: value[:, 0] for key, value in with_unequal_membranes(each, rng).items()}
    return signals, np.stack([maps[key] for key in MAPS], axis=1)


def row(name: str, n: int, snr: float, alone: bool, seed: int) -> tuple:
    """Coverage and width of intervals."""
    signals, truth = drawn(name, n, snr, seed)
    classes = {"classes": (name,)} if alone else {}
    started = time.process_time()
    model = PackedCellsModel(acquisition("300"), **classes)
    found = model.posterior(signals, 1 / snr, _N_DRAWS)
    spent = (time.process_time() - started) / n
    draws = np.stack([found.maps[key] for key in MAPS], axis=-1)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    held = (low <= truth) & (truth <= high)
    width = np.median(np.minimum(high / np.maximum(low, 1e-9), 1e3), axis=0)
    return (
        snr, name, "known" if alone else "unknown", n, f"{100 * held.mean():.0f}",
        " ".join(f"{100 * x:.0f}" for x in held.mean(axis=0)),
        " ".join(f"{x:.3g}" for x in width), f"{1e3 * spent:.0f}",
    )  # fmt: skip


def main() -> None:
    """Command line."""
    given = command(__doc__, quick="8 tissues of two classes at SNR 50").parse_args()
    snrs, classes, n = ((50,), CLASSES[:2], 8) if given.quick else (SNRS, CLASSES, 40)
    lines = [
        row(name, n, snr, alone, seed=100 + number)
        for snr in snrs
        for alone in (True, False)
        for number, name in enumerate(classes)
    ]
    head = (
        "SNR", "tissue", "class", "tissues", "coverage, %", f"coverage, % of {', '.join(MAPS)}",
        "upper over lower end, median", "CPU-ms",
    )  # fmt: skip
    text = (
        "# Tissues of the prior: coverage of intervals\n\n"
        "`python -m benchmarks.tissue_prior`, once. 95 % intervals of five maps; 372 measurements "
        f"at up to 300 mT/m, {_N_DRAWS} samples, diffusivities unknown, noise known.\n\n"
        f"{table(head, lines)}\n\n{machine()}"
    )
    print(text)
    keep("tissue_prior.md", text, complete=not given.quick)


if __name__ == "__main__":
    main()
