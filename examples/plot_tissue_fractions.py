"""
Grey matter, white matter and CSF from conventional images
==========================================================

Tissue fractions from a few images and their sequence parameters, without training data or
diffusion.
"""

# %%
# A slice
# -------
#
# A folded ribbon of grey matter between white matter and fluid, generated at four times the
# resolution of the voxels, so that voxels at boundaries are mixtures.

import matplotlib.pyplot as plt
import numpy as np

from dipy_spinverse import TissueFractionModel
from dipy_spinverse.tissue_fractions import (
    MPRAGE,
    InversionPreparation,
    SpoiledGradientEcho,
    TurboSpinEcho,
)

SIZE, FINER = 64, 4
n = SIZE * FINER
x, y = np.meshgrid(*[(np.arange(n) + 0.5) / n * 2 - 1] * 2, indexing="ij")
angle, radius = np.arctan2(y, x), np.hypot(x / 0.8, y)
pial = 0.8 + 0.04 * np.cos(11 * angle) + 0.03 * np.cos(17 * angle + 1)
ventricles = ((np.abs(x) - 0.15) / 0.07) ** 2 + (y / 0.25) ** 2 < 1
white = (radius < pial - 0.12 + 0.02 * np.cos(11 * angle)) & ~ventricles
grey = (radius < pial) & ~white & ~ventricles
fluid = (radius < 0.9) & ~white & ~grey
fine = np.stack([fluid, grey, white], axis=-1).astype(float)
fractions = fine.reshape(SIZE, FINER, SIZE, FINER, 3).mean(axis=(1, 3))
head = fractions.any(axis=-1)

# %%
# Six images
# ----------
#
# These parameters are in the protocol or BIDS sidecar of a scan; seconds and degrees. The transmit
# field is off by up to 15 %, unknown in the fit, and the signal-to-noise ratio is 10.

names, b1_error = ("csf", "gm", "wm"), 0.15
sequences = {
    "MPRAGE": MPRAGE(2.3, 0.9, 0.003, 9, 0.007, 176),
    "MPRAGE, long TI": MPRAGE(2.8, 1.2, 0.003, 9, 0.007, 176),
    "FLASH": SpoiledGradientEcho(0.025, 0.004, 25),
    "proton density": TurboSpinEcho(4.0, 0.01, 2, 0.01),
    "T2": TurboSpinEcho(4.0, 0.01, 10, 0.09, refocusing_angle=150),
    "FLAIR": TurboSpinEcho(
        9.0, 0.01, 12, 0.1, preparation=InversionPreparation(2.5, adiabatic=True)
    ),
}
model = TissueFractionModel(
    [*sequences.values()], unknown=("scale", "b1"), b1_error=b1_error / 2,
    series=[0] * len(sequences),
)  # fmt: skip

places = np.linspace(-1, 1, SIZE)
b1 = 1 + b1_error * (1 - 1.5 * places[:, None] ** 2 - 0.5 * places**2)
clean = model.signals(dict(zip(names, np.moveaxis(fractions, -1, 0), strict=True)), b1=b1)
sigma = clean[fractions.sum(axis=-1) > 0.5, 0].mean() / 10
noise = np.random.default_rng(0).normal(scale=sigma, size=(2, *clean.shape))
images = np.hypot(clean + noise[0], noise[1])

figure, axes = plt.subplots(1, 6, figsize=(10, 1.9), layout="constrained")
for k, (name, axis) in enumerate(zip(sequences, axes, strict=True)):
    axis.imshow(images[..., k].T, cmap="gray", origin="lower")
    axis.set_title(name, fontsize="medium")
    axis.axis("off")
plt.show()

# %%
# The fit
# -------

fit = model.fit(images, head, sigma=sigma)

for k, name in enumerate(names):
    true, found = fractions[head][:, k], getattr(fit, name)[head]
    low, high = getattr(fit, f"{name}_low")[head], getattr(fit, f"{name}_high")[head]
    inside = 100 * ((low <= true) & (true <= high)).mean()
    print(
        f"{name}: mean error {np.abs(found - true).mean():.3f}, truth in the 95 % interval "
        f"of {inside:.0f} % of the voxels"
    )
print(f"transmit field: mean error {100 * np.abs(fit.b1 - b1)[head].mean():.1f} %")

# %%
# Fractions, errors and standard deviations
# -----------------------------------------
#
# Errors and standard deviations are largest at tissue boundaries, where voxels are mixtures.

figure, grid = plt.subplots(3, 4, figsize=(10, 7), layout="constrained")
for k, (name, row) in enumerate(zip(names, grid, strict=True)):
    true, found = fractions[..., k], getattr(fit, name)
    shown = {
        "true": (true, 0, 1, "viridis"),
        "estimated": (found, 0, 1, "viridis"),
        "estimated - true": (found - true, -0.05, 0.05, "RdBu"),
        "standard deviation": (getattr(fit, f"{name}_std"), 0, 0.05, "magma"),
    }
    for axis, (label, (values, low, high, colours)) in zip(row, shown.items(), strict=True):
        drawn = axis.imshow(values.T, vmin=low, vmax=high, cmap=colours, origin="lower")
        figure.colorbar(drawn, ax=axis, shrink=0.8)
        axis.set_title(f"{name.upper()}, {label}", fontsize="medium")
        axis.axis("off")
plt.show()
