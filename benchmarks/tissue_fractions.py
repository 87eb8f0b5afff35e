"""Tissue fractions from ordinary scans, beside the published way and other methods.

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
from dataclasses import replace

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
from dipy_spinverse.tissue_fractions import (
    MPRAGE,
    PUBLISHED,
    Inversion,
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
SMALL = 1e-5  # noise level that a fit without noise is told
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


def fitted(scan, sequences, truth: Truth, n_draws: int = 256):
    """Fit that knows the kinds and sizes of errors of the truth, not the errors."""
    # Largest errors of smooth fields are about two of their standard deviations.
    unknown = [name for name in ("b1", "constants") if getattr(truth, name)]
    model = TissueFractionModel(
        sequences, PUBLISHED, unknown=unknown, b1_error=truth.b1 / 2,
        constants_error=truth.constants / 2,
    )  # fmt: skip
    return model.fit(scan.images, scan.head, sigma=scan.sigma or SMALL, n_draws=n_draws)


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
                "SNR 30, B1 errors up to 15 %, found from the images",
            ],
            rows,
        )  # fmt: skip
    )


def degradation(slices, quick):
    """All contrasts against noise, B1, constants and encoding, with coverage."""
    cases = [Truth(snr=snr, b1=0.15) for snr in (50, 30, 20)]
    cases += [Truth(snr=30)]
    cases += [Truth(snr=30, b1=0.15, constants=error) for error in (0.05, 0.1)]
    cases += [Truth(encoded=True)]
    rows, sequences, slices = [], PROTOCOLS[ALL], [slices[0], slices[-1]]
    for truth in cases[-1:] if quick else cases:
        found, inside, mixed = [], [], []
        for seed, phantom in enumerate(slices):
            scan = scanned(phantom, sequences, truth, SignalEquations(), seed)
            fit = fitted(scan, sequences, truth)
            found.append(scores(maps(fit), phantom))
            true, low, high = phantom.fractions, maps(fit, "_low"), maps(fit, "_high")
            # Bounds of pure voxels are 0 and 1 themselves.
            hit = (low - 1e-9 <= true) & (true <= high + 1e-9)
            partial = (true > 0.01) & (true < 0.99)
            inside.append(hit[scan.head].mean(axis=0))
            mixed.append([hit[..., k][partial[..., k]].mean() for k in range(3)])
        said = [f"{100 * v:.0f}" for v in np.mean(inside, axis=0)]
        said_mixed = [f"{100 * v:.0f}" for v in np.mean(mixed, axis=0)]
        rows.append(
            [
                "none" if math.isinf(truth.snr) else f"{truth.snr:g}", f"{100 * truth.b1:g}",
                f"{100 * truth.constants:g}", "by lines" if truth.encoded else "voxel means",
                written(np.mean(found, axis=0)), " ".join(said), " ".join(said_mixed),
            ]
        )  # fmt: skip
        print(*rows[-1], sep=" | ", flush=True)
    return (
        f"# What degrades it\n\n{len(sequences)} contrasts; a slice of the brain and a built one. "
        "Dice / Dice over that of the true maps / PSNR / SSIM, and the "
        "voxels (%) whose 95 % intervals hold the truth.\n\n"
        + table(
            [
                "SNR",
                "B1 %",
                "constants %",
                "image",
                "scores",
                "inside, all voxels",
                "inside, mixed voxels",
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
    # Compiles, and keeps what is compiled.
    fitted(
        replace(scan, head=scan.head & (np.indices(scan.head.shape)[0] == 32)), sequences, NOISY
    )
    for known in (Truth(snr=30), NOISY):
        for n_draws in (0, 256):
            wall, cpu = time.perf_counter(), time.process_time()
            fitted(scan, sequences, known, n_draws)
            rows.append(
                [
                    f"64 x 64, {scan.head.sum()} in the head", "found" if known.b1 else "known",
                    n_draws, f"{time.perf_counter() - wall:.1f}",
                    f"{time.process_time() - cpu:.1f}", "",
                ]
            )  # fmt: skip
            print(*rows[-1], sep=" | ", flush=True)
    if not quick:
        rows += _cost_of_volume(sequences)
    return "# Cost\n\n24 contrasts, two threads.\n\n" + table(
        ["voxels", "B1", "draws", "wall s", "CPU s", "peak memory of the process, GiB"], rows
    )


def _cost_of_volume(sequences):
    volume = brain_volume()
    rng = np.random.default_rng(0)
    head = volume.any(axis=-1)
    one = TissueFractionModel(sequences, PUBLISHED, unknown=())
    b1 = 1 + smooth_field(head.shape, NOISY.b1, rng)
    fractions = {name: volume[head][:, k].astype(float) for k, name in enumerate(TISSUES)}
    images = np.zeros((*head.shape, len(sequences)), dtype=np.float32)
    clean = one.signals(fractions, b1=b1[head])
    sigma = clean[:, :4].mean() / NOISY.snr
    noise = sigma * rng.normal(size=(2, *clean.shape))
    images[head] = np.hypot(clean + noise[0], noise[1])
    del clean, noise
    for n_draws in (0, 256):
        model = TissueFractionModel(sequences, PUBLISHED, unknown=("b1",), b1_error=0.075)
        wall, cpu = time.perf_counter(), time.process_time()
        fit = model.fit(images, head, sigma=sigma, n_draws=n_draws)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        error = np.abs(maps(fit) - volume)[head].mean(axis=0)
        row = [
            f"91 x 109 x 91, {head.sum()} in the head", "found", n_draws, f"{wall:.0f}",
            f"{cpu:.0f}", f"{peak:.1f}",
        ]  # fmt: skip
        print(*row, error, sep=" | ", flush=True)
        yield row


def agreement(slices, quick):
    """Equations beside MRzero, for sequences that both can do."""
    flash = SpoiledGradientEcho
    kinds = {
        **{f"{name}, first": some[0] for name, some in SEQUENCES.items()},
        **{f"{name}, last": some[-1] for name, some in SEQUENCES.items()},
        "inversion, centre after 32 pulses": flash(0.0056, 0.0025, 5, Inversion(0.5), 64, 32),
        "the same every 2 s": flash(0.0056, 0.0025, 5, Inversion(0.5), 64, 32, 2.0),
        "FLASH, steady state, 20 degrees": flash(0.02, 0.004, 20),
        "MPRAGE, 160 pulses of 9 degrees": MPRAGE(2.3, 0.9, 0.003, 9, 0.007, 160),
        "15 spin echoes, 150 degrees": TurboSpinEcho(4.0, 0.01, 15, 0.08, 150),
        "spin echo": TurboSpinEcho(0.5, 0.015, 1, 0.015),
    }
    b1 = torch.tensor([1.0, 0.85, 1.15, 1.0], dtype=torch.float64)
    b0 = torch.tensor([0.0, 0.0, 0.0, 20.0], dtype=torch.float64)
    constants, rows = constants_of(PUBLISHED), []
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
        "# Signal equations beside MRzero\n\nLargest difference of the three tissues' signals, "
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
    for part in (recovery, degradation, other_backend, other_methods, cost, agreement)
}


def main():
    """Print the tables and write them to results/."""
    parser = command(__doc__, "one slice and some of the rows")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    slices = phantoms(arguments.quick)
    for name in arguments.parts:
        text = PARTS[name](slices, arguments.quick)
        keep(
            f"tissue_fractions/{name}.md", f"{text}\n\n{machine()}.", complete=not arguments.quick
        )


if __name__ == "__main__":
    main()
