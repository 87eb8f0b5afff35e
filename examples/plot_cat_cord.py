"""
A spinal cord beside its histology
==================================

Real data: the spinal cord of a cat, ex vivo, whose axons were measured under the microscope.
"""

# %%
# The data
# --------
#
# They are fetched once (13 MB) and kept in ``~/.dipy``, or read from the folder that the
# environment variable ``DIPY_SPINVERSE_DATA`` names. The scan has eight diffusion times from 7 to
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
# Of white matter with many axons, from thin ones to thick ones. A fit takes about 15 s for a voxel
# with so many measurements; a third of them is taken here.

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
# scan share deviations that no diffusion makes: the model has a term for what a scan loses there.

random = np.random.default_rng(0)
part = cord.acquisition.b0_mask | (random.random(len(cord.acquisition)) < 1 / 3)
data, acquisition = cord.data[chosen][:, part], cord.acquisition.subset(part)
model = PackedCellsModel(acquisition, amplitudes="timing")
fit = model.fit(data)
print([Status(code).name for code in fit.status])

# %%
# Do sizes follow histology?
# --------------------------
#
# The statuses are to be read first. ``MISFIT`` means that packed cells do not explain all of the
# signals: what is found is then no more than an average size, and the true one may well lie
# outside of its interval. Four voxels show nothing; over 24 (page "Real data") pores and axons do
# not go together.

true = diameter[chosen]
low, high = fit.pore_diameter - fit.pore_diameter_low, fit.pore_diameter_high - fit.pore_diameter
figure, axis = plt.subplots(figsize=(5, 4.5), layout="constrained")
axis.errorbar(true, fit.pore_diameter, [low, high], fmt="o", capsize=3)
axis.set(xlabel="axon diameter, histology (um)", ylabel="pore diameter, diffusion (um)")
axis.axline((0, 0), slope=1, color="0.7", linestyle="--")
axis.set(xlim=(0, None), ylim=(0, None))
plt.show()

# %%
# What the model misses
# ---------------------
#
# Signals of one voxel with their fit, and in words where they differ.

plot_signals(fit, data, (1,))
plt.show()

# %%

print(fit.residual_structure(1))
