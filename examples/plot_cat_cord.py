"""
A spinal cord and its histology
===============================

Measured data: the spinal cord of a cat, ex vivo, with axon diameters from histology.
"""

# %%
# The data
# --------
#
# They are downloaded once (13 MB) to ``~/.dipy``, or read from the folder named by the
# environment variable ``DIPY_SPINVERSE_DATA``. The scan has eight diffusion times from 7 to
# 40 ms and gradients up to 848 mT/m, all in the plane across the cord.

import matplotlib.pyplot as plt
import numpy as np

from dipy_spinverse import PackedCellsModel
from dipy_spinverse.datasets import read_cat_cord
from dipy_spinverse.report.figures import plot_signals
from dipy_spinverse.voxels import Status

cord = read_cat_cord()
print(cord.acquisition)

# %%
# Four voxels
# -----------
#
# White matter with many axons, from thin to thick. A fit takes about 15 s per voxel with all
# measurements; a third of them is used here.

diameter, g_ratio = cord.histology["axon_diameter"], cord.histology["g_ratio"]
# Histology fades out at the border, where the g-ratio drops.
inside = g_ratio > 0.95 * np.median(g_ratio[cord.white_matter])
many = np.argwhere(inside & (cord.histology["n_axons"] > 100))
by_diameter = many[np.argsort(diameter[tuple(many.T)])]
chosen = tuple(by_diameter[np.linspace(0, len(many) - 1, 4).astype(int)].T)

figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
b0 = cord.data[..., cord.acquisition.b0_mask].mean(axis=-1)
for axis, values, title in zip(axes, (b0, diameter), ("b = 0", "axon diameter (um)"), strict=True):
    shown = axis.imshow(values.T, origin="lower", cmap="gray" if values is b0 else "viridis")
    axis.plot(*chosen, "r+", markersize=10)
    axis.set_title(title)
    axis.axis("off")
    figure.colorbar(shown, ax=axis, shrink=0.8)
plt.show()

# %%
# The fit
# -------
#
# Each timing has its own signal without diffusion weighting. Below 100 s/mm^2 all voxels of this
# scan share deviations that are not diffusion, for which the model has a term.

random = np.random.default_rng(0)
part = cord.acquisition.b0_mask | (random.random(len(cord.acquisition)) < 1 / 3)
data, acquisition = cord.data[chosen][:, part], cord.acquisition.subset(part)
model = PackedCellsModel(acquisition, amplitudes="timing")
fit = model.fit(data)
print([Status(code).name for code in fit.status])

# %%
# Do sizes agree with histology?
# ------------------------------
#
# Consider the status first. ``MISFIT`` means that packed cells are rejected: estimates are then
# average sizes at best, and intervals may not contain the true ones. Four voxels are not
# informative; over 24 (page "Measured data") pore and axon diameters are not correlated.

true = diameter[chosen]
low, high = fit.pore_diameter - fit.pore_diameter_low, fit.pore_diameter_high - fit.pore_diameter
figure, axis = plt.subplots(figsize=(5, 4.5), layout="constrained")
axis.errorbar(true, fit.pore_diameter, [low, high], fmt="o", capsize=3)
axis.set(xlabel="axon diameter, histology (um)", ylabel="pore diameter, diffusion (um)")
axis.axline((0, 0), slope=1, color="0.7", linestyle="--")
axis.set(xlim=(0, None), ylim=(0, None))
plt.show()

# %%
# Residuals
# ---------
#
# Signals of one voxel with their fit, and a description of their differences.

plot_signals(fit, data, (1,))
plt.show()

# %%

print(fit.residual_structure(1))
