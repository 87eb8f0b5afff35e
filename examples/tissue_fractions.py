"""How much CSF, grey and white matter is in each voxel of ordinary images.

Simulates six common images of a slice, with noise and errors of the transmit field of up to 15 %
that the fit is not told, and finds the fractions from the images and their sequences alone. Run
it as ``python examples/tissue_fractions.py [folder]``; it writes ``tissue_fractions.png``.
``--quick`` makes a smaller slice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from dipy_spinverse import TissueFractionModel
from dipy_spinverse.tissue_fractions import MPRAGE, Inversion, SpoiledGradientEcho, TurboSpinEcho

NAMES = ("csf", "gm", "wm")
FINER = 4  # the slice is drawn so much finer than its voxels
SNR, B1_ERROR = 10.0, 0.15  # of the MPRAGE image; one noise level for all
# A scan says all of this in its protocol or BIDS sidecar; seconds and degrees.
SEQUENCES = {
    "MPRAGE": MPRAGE(2.3, 0.9, 0.003, 9, 0.007, 176),
    "MPRAGE, long TI": MPRAGE(2.8, 1.2, 0.003, 9, 0.007, 176),
    "FLASH": SpoiledGradientEcho(0.025, 0.004, 25),
    "proton density": TurboSpinEcho(4.0, 0.01, 2, 0.01),
    "T2": TurboSpinEcho(4.0, 0.01, 10, 0.09, refocusing_angle=150),
    "FLAIR": TurboSpinEcho(9.0, 0.01, 12, 0.1, preparation=Inversion(2.5, adiabatic=True)),
}


def slice_of_tissue(size):
    """Fractions (X, Y, 3): a folded ribbon of grey matter between white matter and CSF."""
    n = size * FINER
    x, y = np.meshgrid(*[(np.arange(n) + 0.5) / n * 2 - 1] * 2, indexing="ij")
    angle, radius = np.arctan2(y, x), np.hypot(x / 0.8, y)
    pial = 0.8 + 0.04 * np.cos(11 * angle) + 0.03 * np.cos(17 * angle + 1)
    ventricles = ((np.abs(x) - 0.15) / 0.07) ** 2 + (y / 0.25) ** 2 < 1
    white = (radius < pial - 0.12 + 0.02 * np.cos(11 * angle)) & ~ventricles
    grey = (radius < pial) & ~white & ~ventricles
    csf = (radius < 0.9) & ~white & ~grey
    fine = np.stack([csf, grey, white], axis=-1).astype(float)
    return fine.reshape(size, FINER, size, FINER, 3).mean(axis=(1, 3))


def scan(model, fractions):
    """Magnitudes (X, Y, C) with noise, the true transmit field, and the noise level."""
    places = np.linspace(-1, 1, len(fractions))
    b1 = 1 + B1_ERROR * (1 - 1.5 * places[:, None] ** 2 - 0.5 * places**2)
    clean = model.signals(dict(zip(NAMES, np.moveaxis(fractions, -1, 0), strict=True)), b1=b1)
    sigma = clean[fractions.sum(axis=-1) > 0.5, 0].mean() / SNR
    noise = np.random.default_rng(0).normal(scale=sigma, size=(2, *clean.shape))
    return np.hypot(clean + noise[0], noise[1]), b1, sigma


def draw(path, images, fractions, fit):
    """The images; true and found fractions; how sure they are."""
    figure = plt.figure(figsize=(10, 9), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 4))
    for k, (name, axis) in enumerate(zip(SEQUENCES, top.subplots(1, 6), strict=True)):
        axis.imshow(images[..., k].T, cmap="gray", origin="lower")
        axis.set_title(name, fontsize="medium")
        axis.axis("off")
    for k, (name, row) in enumerate(zip(NAMES, bottom.subplots(3, 4), strict=True)):
        true, found = fractions[..., k], getattr(fit, name)
        shown = {
            "true": (true, 0, 1, "viridis"),
            "found": (found, 0, 1, "viridis"),
            "found - true": (found - true, -0.1, 0.1, "RdBu"),
            "standard deviation": (getattr(fit, f"{name}_std"), 0, 0.1, "magma"),
        }
        for axis, (label, (values, low, high, colours)) in zip(row, shown.items(), strict=True):
            drawn = axis.imshow(values.T, vmin=low, vmax=high, cmap=colours, origin="lower")
            bottom.colorbar(drawn, ax=axis, shrink=0.8)
            axis.set_title(f"{name.upper()}, {label}", fontsize="medium")
            axis.axis("off")
    figure.savefig(path, dpi=80)


def main():
    """Simulate, fit, say how right it is, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default=".", type=Path)
    parser.add_argument("--quick", action="store_true", help="a smaller slice")
    arguments = parser.parse_args()

    fractions = slice_of_tissue(20 if arguments.quick else 64)
    model = TissueFractionModel(
        [*SEQUENCES.values()], unknown=("scale", "b1"), b1_error=B1_ERROR / 2
    )
    images, b1, sigma = scan(model, fractions)
    head = fractions.any(axis=-1)
    fit = model.fit(images, head, sigma=sigma)

    for k, name in enumerate(NAMES):
        true, found = fractions[head][:, k], getattr(fit, name)[head]
        low, high = getattr(fit, f"{name}_low")[head], getattr(fit, f"{name}_high")[head]
        inside = 100 * ((low <= true) & (true <= high)).mean()
        print(
            f"{name}: mean error {np.abs(found - true).mean():.3f}, truth in the 95 % interval "
            f"of {inside:.0f} % of the voxels"
        )
    print(f"transmit field: mean error {100 * np.abs(fit.b1 - b1)[head].mean():.1f} %")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    draw(arguments.folder / "tissue_fractions.png", images, fractions, fit)


if __name__ == "__main__":
    main()
