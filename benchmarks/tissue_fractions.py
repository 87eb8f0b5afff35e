"""Tissue fractions from ordinary scans, compared with the published and other methods.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.tissue_fractions [--parts recovery ...]

Duration: about 40 min on 2 cores (--quick: 3 min). Writes
results/tissue_fractions/PART.md.

Slices of 64 x 64 voxels: of the MNI152 brain, and of phantoms built in code. Truths are simulated
at a finer resolution than the images.
"""

from __future__ import annotations

import math
import resource
import time
import warnings
from dataclasses import replace
from functools import partial
from itertools import product

import numba
import numpy as np
import torch

from benchmarks.command import command, keep
from benchmarks.fraction_baselines import TrainedNetwork, markov_field, mixture
from benchmarks.fraction_phantoms import (
    PROTOCOLS,
    SEQUENCES,
    TISSUES,
    Truth,
    brain_slice,
    brain_volume,
    built,
    scanned,
    smooth_field,
)
from benchmarks.fraction_scores import dice, scores
from benchmarks.tables import machine, table
from dipy_spinverse import Status
from dipy_spinverse.tissue_fractions import (
    MPRAGE,
    PUBLISHED_TISSUES,
    InversionPreparation,
    SignalEquations,
    SpoiledGradientEcho,
    TissueFractionModel,
    TurboSpinEcho,
    constants_of,
)
from dipy_spinverse.tissue_fractions.mrzero import MRzeroSimulator

FINER = 2
SLICES, BUILT = (38, 48), (0,)
TRAINING = [z for z in range(24, 58, 2) if min(abs(z - test) for test in SLICES) > 1]
SMALL = 1e-5  # noise level specified in fits of noise-free data
# Dice, PSNR (dB), SSIM of CSF, grey and white matter, of Gupta et al. (2024), noise-free.
PUBLISHED_SCORES = {
    "one T1 contrast": ".38 .67 .62 / 17.8 14.2 12.8 / .58 .57 .38",
    "T1 x 4": ".55 .70 .76 / 27.6 16.2 18.2 / .89 .74 .78",
    "+ T2 x 4": ".55 .76 .79 / 30.9 23.5 25.6 / .97 .93 .93",
    "+ FLAIR x 4": ".55 .76 .80 / 34.6 27.7 27.0 / .98 .97 .93",
}
ALL = [*PROTOCOLS][-1]
NOISY = Truth(snr=30, b1=0.15)


def phantoms(quick: bool):
    """Slices of the brain, then built ones."""
    volume = brain_volume()
    brain = [brain_slice(volume, z, FINER) for z in SLICES]
    made = [built(seed, FINER) for seed in BUILT]
    return [brain[1]] if quick else [*brain, *made]


def fitted(scan, sequences, truth: Truth, n_draws: int = 256, smoothness: float = 0.0):
    """Fit that knows the kinds and sizes of errors of the truth, not the errors."""
    # Largest errors of smooth fields are about two of their standard deviations.
    constants_error = max([truth.constants / 2, *truth.shifted.values()])
    # Constants that vary over the image are not estimated: intervals account for them.
    unknown = {"b1": truth.b1, "constants": truth.shifted}
    model = TissueFractionModel(
        sequences, PUBLISHED_TISSUES, unknown=[name for name, wrong in unknown.items() if wrong],
        b1_error=truth.b1 / 2, constants_error=constants_error, smoothness=smoothness,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="images do not separate")
        return model.fit(
            scan.images, scan.head, sigma=scan.sigma or SMALL, b0=scan.b0, n_draws=n_draws
        )


def fitted_untold(scan, sequences, truth: Truth):
    """Fit that assumes its constants and fields to be exact."""
    return fitted(replace(scan, b0=0 * scan.b0), sequences, Truth(), n_draws=128)


def held(fit, scan, phantom):
    """Shares (2, 3) of all and of mixed voxels whose 95 % intervals cover the truth."""
    true, low, high = phantom.fractions, maps(fit, "_low"), maps(fit, "_high")
    # Bounds of pure voxels are 0 and 1 themselves.
    hit = (low - 1e-9 <= true) & (true <= high + 1e-9)
    mixed = (true > 0.01) & (true < 0.99)
    return hit[scan.head].mean(axis=0), [hit[..., k][mixed[..., k]].mean() for k in range(3)]


def maps(fit, end: str = ""):
    """Fractions (X, Y, 3)."""
    return np.stack([getattr(fit, name + end) for name in TISSUES], axis=-1)


def written(values) -> str:
    """Scores (4, 3) as CSF, grey and white matter."""
    of_labels, share, ratio, similarity = values
    parts = [[f"{v:.2f}" for v in of_labels], [f"{v:.3f}" for v in share]]
    parts += [[f"{v:.1f}" for v in ratio], [f"{v:.3f}" for v in similarity]]
    return " / ".join(" ".join(part) for part in parts)


def recovery(slices, quick):
    """The published protocol, sequence type by sequence type, as the published work saw it."""
    rows = []
    for name, sequences in PROTOCOLS.items():
        cells = []
        for truth in (Truth(), NOISY):
            if quick and name not in ("one T1 contrast", ALL):
                continue
            found = []
            for seed, phantom in enumerate(slices):
                scan = scanned(phantom, sequences, truth, SignalEquations(), seed)
                found.append(scores(maps(fitted(scan, sequences, truth)), phantom))
            cells.append(written(np.mean(found, axis=0)))
        if cells:
            rows.append([name, PUBLISHED_SCORES.get(name, ""), *cells])
            print(*rows[-1], sep=" | ", flush=True)
    ceiling = np.mean([dice(p.fractions, p.labels) for p in slices], axis=0)
    return (
        "# Recovery\n\n"
        "Means over the slices; CSF, grey, white matter. Published: Dice / PSNR (dB) / SSIM; "
        "here: Dice / Dice over that of the true maps / PSNR / SSIM. Dice of the true maps: "
        f"{' '.join(f'{v:.2f}' for v in ceiling)}.\n\n"
        + table(
            [
                "contrasts",
                "published, noise-free (other brains)",
                "noise-free",
                "SNR 30, B1 errors up to 15 %, estimated from the images",
            ],
            rows,
        )  # fmt: skip
    )


def few_contrasts(slices, quick):
    """What the likeness of neighbours adds where contrasts are few."""
    rows = []
    cases = [*product(["one T1 contrast"], [Truth(snr=30)], (0.0, 1.0, 2.0, 3.0))]
    cases += product(["one T1 contrast"], [NOISY], (0.0, 2.0))
    cases += product(["T1 x 4"], [Truth(snr=30), NOISY], (0.0, 2.0))
    for name, truth, smoothness in cases:
        if quick and (truth.b1 or smoothness not in (0, 2)):
            continue
        found, inside = [], []
        for seed, phantom in enumerate(slices):
            scan = scanned(phantom, PROTOCOLS[name], truth, SignalEquations(), seed)
            fit = fitted(scan, PROTOCOLS[name], truth, n_draws=128, smoothness=smoothness)
            found.append(scores(maps(fit), phantom))
            inside.append(held(fit, scan, phantom))
        b1 = f"errors up to {100 * truth.b1:g} %, found" if truth.b1 else "known"
        rows.append([name, b1, f"{smoothness:g}", written(np.mean(found, axis=0))])
        rows[-1] += [of_hundred(v) for v in np.mean(inside, axis=0)]
        print(*rows[-1], sep=" | ", flush=True)
    return (
        "# Few contrasts\n\nSNR 30; means over the slices. Dice / Dice over that of the true maps "
        "/ PSNR / SSIM, and the voxels (%) whose 95 % intervals cover the truth.\n\n"
        + table(
            ["contrasts", "B1", "smoothness", "scores", "inside, all", "inside, mixed"], rows
        )  # fmt: skip
    )


def of_hundred(shares) -> str:
    """Shares of CSF, grey and white matter in %."""
    return " ".join(f"{100 * v:.0f}" for v in shares)


def degradation(slices, quick):
    """All contrasts with noise and errors of fields, constants and encoding, modelled or not."""
    told, untold = {"modelled": partial(fitted, n_draws=128)}, {"not modelled": fitted_untold}
    cases = [(f"SNR {snr}, B1 15 %", Truth(snr=snr, b1=0.15), told) for snr in (50, 30, 20)]
    rough = Truth(snr=50, b1=0.15, b1_waves=5)
    cases += [("SNR 50, B1 15 %, waves half as long", rough, told)]
    cases += [("SNR 30", Truth(snr=30), told)]
    cases += [("no noise, image encoded by lines", Truth(encoded=True), told)]
    cases += [(f"B1 {100 * b1:g} %", Truth(snr=30, b1=b1), untold) for b1 in (0.05, 0.15, 0.25)]
    cases += [(f"B0 {b0} Hz, pulses of 1 ms", Truth(snr=30, b0=b0), untold) for b0 in (20, 50)]
    for name, constant in {"PD": "proton_density", "T1": "t1_s", "T2": "t2_s"}.items():
        for size in (0.1, 0.2):
            truth = Truth(snr=30, shifted={constant: size})
            cases.append((f"{name} off by {100 * size:g} %", truth, untold | told))
    varied = Truth(snr=30, constants=0.1)
    cases.append(("all constants vary by up to 10 %", varied, untold | told))
    rows, slices = [], [slices[0], slices[-1]]
    for name, truth, fits in cases:
        if quick and not name.startswith("T1"):
            continue
        sequences = PROTOCOLS[ALL]
        if truth.b0:
            sequences = [replace(each, pulse_duration=0.001) for each in sequences]
        scans = [
            scanned(phantom, sequences, truth, SignalEquations(), seed)
            for seed, phantom in enumerate(slices)
        ]
        for said, fit_of in fits.items():
            found, inside, flagged = [], [], []
            for scan, phantom in zip(scans, slices, strict=True):
                fit = fit_of(scan, sequences, truth)
                found.append(scores(maps(fit), phantom))
                inside.append(held(fit, scan, phantom))
                flagged.append((fit.status == Status.MISFIT)[scan.head].mean())
            rows.append([name, said, written(np.mean(found, axis=0))])
            rows[-1] += [of_hundred(v) for v in np.mean(inside, axis=0)]
            rows[-1].append(f"{100 * np.mean(flagged):.1f}")
            print(*rows[-1], sep=" | ", flush=True)
    return (
        f"# Effects of errors\n\n{len(PROTOCOLS[ALL])} contrasts, SNR 30 unless stated; a slice "
        "of the brain and a synthetic one. Fields are smooth, with the largest error stated; a "
        "constant with an error is too large in grey, too small in white matter. Modelled: "
        "the fit knows that it may be wrong, and by how much; B0 is known. Scores: Dice / "
        "Dice over that of the true maps / PSNR / SSIM; voxels (%) whose 95 % intervals "
        "cover the truth; voxels (%) with the status `MISFIT`.\n\n"
        + table(
            [
                "error",
                "errors are",
                "scores",
                "inside, all voxels",
                "inside, mixed voxels",
                "flagged",
            ],
            rows,
        )  # fmt: skip
    )


def other_methods(slices, quick):
    """Baselines at SNR 30 with B1 errors, 4 and all contrasts."""
    volume, rows = brain_volume(), []
    training = TRAINING[::6] if quick else TRAINING
    for name in ["T1 x 4", ALL][-1 if quick else 0 :]:
        sequences = PROTOCOLS[name]
        start = time.perf_counter()
        others = [brain_slice(volume, z, FINER) for z in training]
        seen = [
            scanned(p, sequences, NOISY, SignalEquations(), 100 + k) for k, p in enumerate(others)
        ]
        network = TrainedNetwork(seen, [p.fractions for p in others])
        print(f"trained in {time.perf_counter() - start:.0f} s", flush=True)
        methods = {
            "TissueFractionModel": lambda scan, s=sequences: maps(fitted(scan, s, NOISY)),
            f"U-Net, trained on {len(training)} other slices of the brain": network,
            "Gaussian mixture": mixture,
            "TissueClassifierHMRF, one T1 contrast": markov_field,
        }
        for method, run in methods.items():
            found = []
            for seed, phantom in enumerate(slices):
                scan = scanned(phantom, sequences, NOISY, SignalEquations(), seed)
                found.append(scores(run(scan), phantom))
            brain, made = np.mean(found[: len(SLICES)], axis=0), found[-1]
            rows.append([name, method, written(brain), written(made)])
            print(*rows[-1], sep=" | ", flush=True)
    return "# Other methods\n\nSNR 30, B1 errors up to 15 %.\n\n" + table(
        ["contrasts", "method", "slices of the brain", "built phantoms"], rows
    )


def cost(slices, quick):
    """Time of a slice, time and memory of the volume of 2 mm."""
    sequences, rows = PROTOCOLS[ALL], []
    scan = scanned(slices[0], sequences, NOISY, SignalEquations(), 0)
    one_row = replace(scan, head=scan.head & (np.indices(scan.head.shape)[0] == 32))
    for smoothness in (0.0, 2.0):
        fitted(one_row, sequences, NOISY, 2, smoothness)  # compiles, and keeps what is compiled
    for known, smoothness in [(Truth(snr=30), 0.0), (NOISY, 0.0), (NOISY, 2.0)]:
        for n_draws in (256,) if smoothness else (0, 256):
            wall, cpu = time.perf_counter(), time.process_time()
            fitted(scan, sequences, known, n_draws, smoothness)
            rows.append(
                [
                    f"64 x 64, {scan.head.sum()} in the head", "fitted" if known.b1 else "known",
                    f"{smoothness:g}", n_draws, f"{time.perf_counter() - wall:.1f}",
                    f"{time.process_time() - cpu:.1f}", "",
                ]
            )  # fmt: skip
            print(*rows[-1], sep=" | ", flush=True)
    if not quick:
        rows += _cost_of_volume(sequences)
    threads = f"{torch.get_num_threads()} of torch and {numba.get_num_threads()} of Numba"
    return (
        f"# Cost\n\n{len(sequences)} contrasts; threads: {threads}. Goals: a slice in 2 s, the "
        "volume in 180 s and 4 GiB.\n\n"
        + table(
            [
                "voxels",
                "B1",
                "smoothness",
                "samples",
                "wall s",
                "CPU s",
                "peak memory of the process, GiB",
            ],
            rows,
        )  # fmt: skip
    )


def _cost_of_volume(sequences):
    volume = brain_volume()
    rng = np.random.default_rng(0)
    head = volume.any(axis=-1)
    one = TissueFractionModel(sequences, PUBLISHED_TISSUES, unknown=())
    b1 = 1 + smooth_field(head.shape, NOISY.b1, rng)
    fractions = {name: volume[head][:, k].astype(float) for k, name in enumerate(TISSUES)}
    images = np.zeros((*head.shape, len(sequences)), dtype=np.float32)
    clean = one.signals(fractions, b1=b1[head])
    sigma = clean[:, :4].mean() / NOISY.snr
    noise = sigma * rng.normal(size=(2, *clean.shape))
    images[head] = np.hypot(clean + noise[0], noise[1])
    del clean, noise
    for n_draws, smoothness in [(0, 0.0), (256, 0.0), (128, 2.0)]:
        model = TissueFractionModel(
            sequences, PUBLISHED_TISSUES, unknown=("b1",), b1_error=0.075, smoothness=smoothness
        )
        wall, cpu = time.perf_counter(), time.process_time()
        fit = model.fit(images, head, sigma=sigma, n_draws=n_draws)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        error = np.abs(maps(fit) - volume)[head].mean(axis=0)
        row = [
            f"91 x 109 x 91, {head.sum()} in the head", "fitted", f"{smoothness:g}", n_draws,
            f"{wall:.0f}", f"{cpu:.0f}", f"{peak:.1f}",
        ]  # fmt: skip
        print(*row, error, sep=" | ", flush=True)
        yield row


def agreement(slices, quick):
    """Equations compared with MRzero, for sequences that both support."""
    flash = SpoiledGradientEcho
    kinds = {
        **{f"{name}, first": some[0] for name, some in SEQUENCES.items()},
        **{f"{name}, last": some[-1] for name, some in SEQUENCES.items()},
        "inversion, centre after 32 pulses": flash(
            0.0056, 0.0025, 5, InversionPreparation(0.5), 64, 32
        ),
        "the same every 2 s": flash(0.0056, 0.0025, 5, InversionPreparation(0.5), 64, 32, 2.0),
        "FLASH, steady state, 20 degrees": flash(0.02, 0.004, 20),
        "MPRAGE, 160 pulses of 9 degrees": MPRAGE(2.3, 0.9, 0.003, 9, 0.007, 160),
        "15 spin echoes, 150 degrees": TurboSpinEcho(4.0, 0.01, 15, 0.08, 150),
        "spin echo": TurboSpinEcho(0.5, 0.015, 1, 0.015),
    }
    b1 = torch.tensor([1.0, 0.85, 1.15, 1.0], dtype=torch.float64)
    b0 = torch.tensor([0.0, 0.0, 0.0, 20.0], dtype=torch.float64)
    constants, rows = constants_of(PUBLISHED_TISSUES), []
    for name, sequence in kinds.items():
        if quick and not isinstance(sequence, TurboSpinEcho):
            continue
        pair = [
            simulator.signals([sequence], constants, b1, b0)[..., 0]
            for simulator in (SignalEquations(), MRzeroSimulator())
        ]
        apart = (pair[1] - pair[0]).abs().amax(dim=1) / pair[0].abs().amax(dim=1)
        rows.append([name, *(f"{100 * float(v):.2f}" for v in apart)])
        print(*rows[-1], sep=" | ", flush=True)
    return (
        "# Signal equations compared with MRzero\n\n"
        "Largest difference of the three tissues' signals, "
        "% of the largest signal.\n\n"
        + table(["sequence", "B1 1", "B1 0.85", "B1 1.15", "20 Hz off resonance"], rows)
    )


def other_backend(slices, quick):
    """Truths of MRzero in each fine voxel, fitted by the signal equations."""
    name, rows = "+ FLAIR x 4", []
    for truth in (Truth(), NOISY, Truth(snr=30, b1=0.15, constants=0.05)):
        found = []
        for seed, phantom in enumerate(slices):
            scan = scanned(phantom, PROTOCOLS[name], truth, MRzeroSimulator(), seed)
            found.append(scores(maps(fitted(scan, PROTOCOLS[name], truth)), phantom))
        snr = "none" if math.isinf(truth.snr) else f"{truth.snr:g}"
        errors = [f"{100 * truth.b1:g}", f"{100 * truth.constants:g}"]
        rows.append([snr, *errors, written(np.mean(found, axis=0))])
        print(*rows[-1], sep=" | ", flush=True)
    return (
        f"# Truths simulated by MRzero\n\n{len(PROTOCOLS[name])} contrasts of five types. Dice / "
        "Dice over that of the true maps / PSNR / SSIM.\n\n"
        + table(["SNR", "B1 %", "constants %", "scores"], rows)
    )


PARTS = {
    part.__name__: part
    for part in (
        recovery,
        few_contrasts,
        degradation,
        other_backend,
        other_methods,
        cost,
        agreement,
    )
}


def main():
    """Print the tables and write them to results/."""
    parser = command(__doc__, "one slice and some of the rows")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    arguments = parser.parse_args()
    slices = phantoms(arguments.quick)
    for name in arguments.parts:
        text = PARTS[name](slices, arguments.quick)
        keep(
            f"tissue_fractions/{name}.md", f"{text}\n\n{machine()}.", complete=not arguments.quick
        )


if __name__ == "__main__":
    main()
