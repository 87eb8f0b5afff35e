"""Coverage of 95 % intervals: the ready-made models other than the four named ones.

Parameters are sampled from the prior of each model, in an acquisition suited to it, and magnitudes
have Rician noise of SNR 30 and 100 (NEXI also 200), which is known. NODDI, ActiveAx, ZCD and IVIM
with their defaults are in `benchmarks.compartments intervals`.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.ready_made_intervals

Duration: about 8 CPU-min (--quick: 30 s). Writes results/ready_made_intervals.md.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.command import command, keep
from benchmarks.prior_voxels import hcp_scheme, simulated, strong_scheme
from benchmarks.tables import table
from dipy_spinverse import Acquisition, ActiveAxModel, NODDIModel
from dipy_spinverse.acquisition import TensorAcquisition
from dipy_spinverse.compartments import (
    CompartmentModel,
    MTENODDIModel,
    NEXIModel,
    SANDIModel,
    StandardModel,
    VERDICTModel,
)

SNRS = (30, 100)
_OF_AVERAGES = (*SNRS, 200)  # over some ten directions
_N_VOXELS, _N_QUICK = 200, 20
_SEED = 21


def averages(b, small_delta, big_delta, te) -> Acquisition:
    """Averages over directions."""
    return Acquisition(
        b, np.zeros((len(b), 3)), small_delta=small_delta, big_delta=big_delta, te=te,
        isotropic=True,
    )  # fmt: skip


def neuropil() -> Acquisition:
    """Four diffusion times with five b each, pulses of 9 ms."""
    big_delta = np.repeat([16.0, 25.0, 35.0, 45.0], 6)
    return averages(np.tile([0.0, 1.0, 2.0, 3.5, 5.0, 7.0], 4), 9.0, big_delta, 80.0)


def somata() -> Acquisition:
    """Two b0 and nine b up to 10 ms/um^2, short pulses."""
    return averages([0.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0], 5.0, 13.0, 60.0)


def prostate() -> Acquisition:
    """Five b with a b0 at each echo time, three directions."""
    b, small, big, te = np.array([
        [0.09, 3.9, 23.8, 50.0], [0.5, 11.4, 31.3, 65.0], [1.5, 23.9, 43.8, 90.0],
        [2.0, 14.4, 34.4, 71.0], [3.0, 18.9, 38.8, 80.0],
    ]).T  # fmt: skip
    every = np.column_stack([0 * b, *[b] * 3]).ravel()
    directions = np.tile(np.vstack([np.zeros(3), np.eye(3)]), (len(b), 1))
    small, big, te = (np.repeat(each, 4) for each in (small, big, te))
    return Acquisition(every, directions, small, big, te=te, b0_threshold=0.01)


def directions(n: int, seed: int = 0) -> np.ndarray:
    """Unit vectors (n, 3)."""
    vectors = np.random.default_rng(seed).standard_normal((n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def linear_and_spherical() -> TensorAcquisition:
    """Three shells of linear and two of spherical b-tensors."""
    b = np.r_[np.zeros(6), np.repeat([1.0, 2.5, 5.0], 40), np.repeat([1.0, 2.0], 8)]
    vectors = directions(len(b))
    tensors = b[:, None, None] * np.einsum("mi,mj->mij", vectors, vectors)
    tensors[-16:] = b[-16:, None, None] * np.eye(3) / 3
    return TensorAcquisition(tensors)


def two_echo_times() -> Acquisition:
    """Two shells of 30 directions at each echo time."""
    b = np.tile(np.r_[np.zeros(4), np.repeat([0.7, 2.0], 30)], 2)
    te = np.repeat([60.0, 110.0], len(b) // 2)
    return Acquisition(b, directions(len(b)), small_delta=10, big_delta=30, te=te)


def models() -> Iterator[tuple[str, CompartmentModel, tuple[int, ...]]]:
    """Words, model and SNRs."""
    yield "SANDI", SANDIModel(somata()), SNRS
    yield "NEXI", NEXIModel(neuropil()), _OF_AVERAGES
    yield "VERDICT", VERDICTModel(prostate()), SNRS
    yield "standard model", StandardModel(linear_and_spherical()), SNRS
    yield "MTE-NODDI", MTENODDIModel(two_echo_times()), SNRS
    free = NODDIModel(hcp_scheme(), parallel_diffusivity="free")
    yield "NODDI, diffusivity free", free, SNRS
    yield "NODDI, Bingham", NODDIModel(hcp_scheme(), dispersion="bingham"), SNRS
    yield "ActiveAx, gamma", ActiveAxModel(strong_scheme(), diameters="gamma"), SNRS


def rows_of(word: str, model: CompartmentModel, snr: float, n: int, seed: int) -> list[list]:
    """Model, SNR, map, coverage, truths below and above, width and cost."""
    truth, data = simulated(model, n, snr, seed)
    started = time.process_time()
    fit = model.fit(data, sigma=1 / snr)
    cost = 1e3 * (time.process_time() - started) / n
    rows = []
    for name, values in model.maps(truth).items():
        if name == "S0":
            continue
        low, high = (getattr(fit, name + end) for end in ("_low", "_high"))
        below, above = (values < low).mean(), (values > high).mean()
        width = (high - low).mean() / np.ptp(values)
        shares = [f"{100 * each:.1f}" for each in (1 - below - above, below, above)]
        rows.append([word, snr, name, *shares, f"{width:.2f}", f"{cost:.0f}"])
    return rows


def main():
    """Print the table and write it to results/."""
    parser = command(__doc__, f"{_N_QUICK} voxels of each model")
    parser.add_argument("--seed", type=int, default=_SEED, help="of truths and noise")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The acquisition hardly determines")
    n, rows, means = _N_QUICK if options.quick else _N_VOXELS, [], []
    for word, model, snrs in models():
        of_model = [row for snr in snrs for row in rows_of(word, model, snr, n, options.seed)]
        mean = np.mean([float(row[3]) for row in of_model])
        means.append(f"{word} {mean:.1f}")
        print(means[-1], flush=True)
        rows += of_model
    heads = ["model", "SNR", "map", "coverage, %", "truth below, %", "truth above, %",
             "mean width over range", "CPU ms per voxel"]  # fmt: skip
    inside = sum(93 <= float(row[3]) <= 97 for row in rows)
    spread = 100 * np.sqrt(0.95 * 0.05 / n)
    text = (
        "# Coverage of 95 % intervals: every other ready-made model\n\n"
        "`python -m benchmarks.ready_made_intervals`\n\n"
        f"{n} voxels of each row, parameters from the prior: 95 % has a standard error of "
        f"{spread:.1f} %. {inside} of {len(rows)} maps cover 93 to 97 %. Means over the maps of "
        f"each model, %: {', '.join(means)}.\n\n{table(heads, rows)}"
    )
    print(text)
    keep("ready_made_intervals.md", text, complete=not options.quick)


if __name__ == "__main__":
    main()
