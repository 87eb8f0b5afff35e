"""
Spinverse, NODDI and ActiveAx on the same voxels
================================================

Measured data: the genu of a human corpus callosum, scanned at 300 mT/m. Each model is fitted to
half of the measurements and predicts the other half.
"""

# %%
# The data
# --------
#
# Signals of the white-matter challenge of ISBI 2015, downloaded once (0.6 MB): 3612 measurements
# at twelve timings, of which every sixth is used here, to finish within a minute.

import time
import warnings

import matplotlib.pyplot as plt
import numpy as np

from dipy_spinverse import ActiveAxModel, NODDIModel, SpinverseModel
from dipy_spinverse.datasets import read_isbi2015
from dipy_spinverse.voxels import Status

signals, whole = read_isbi2015("genu")
rng = np.random.default_rng(0)
taken = np.sort(rng.choice(len(whole), len(whole) // 6, replace=False))
taken = np.union1d(taken, np.flatnonzero(whole.b0_mask)[::3])
data, acquisition = signals[:3, taken], whole.subset(taken)
seen = acquisition.b0_mask | (rng.random(len(acquisition)) < 0.5)
unseen = ~seen
print(acquisition)

# %%
# Three models
# ------------
#
# All are constructed from a gradient table or an acquisition, and fitted in the same way. Only
# maps are computed for the first; ``walls=True`` would also sample walls.

models = {
    "Spinverse": (SpinverseModel, {"walls": False}),
    "NODDI": (NODDIModel, {}),
    "ActiveAx": (ActiveAxModel, {}),
}
fits, predicted = {}, {}
for name, (model, options) in models.items():
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusivities that are fixed, see below
        fits[name] = model(acquisition.subset(seen)).fit(data[:, seen], **options)
    predicted[name] = fits[name].predict(acquisition)
    status = [Status(code).name for code in fits[name].status]
    print(f"{name}: {time.perf_counter() - start:.0f} s, {status}")

# %%
# Prediction of left-out measurements
# -----------------------------------
#
# The error of the left-out half relative to the noise of consecutive b0. All b0 of a timing
# scatter more than that, so that no error can reach 1: smooth curves through all of these data,
# without any model, have 2.4. Right, measured minus predicted signals of one voxel, shell by
# shell.

repeats = acquisition.b0_per_timing
steps = np.concatenate([np.diff(data[:, rows], axis=1) for rows in repeats], axis=1)
sigma = 1.48 * np.median(np.abs(steps), axis=1) / np.sqrt(2)
around = [data[:, rows] - data[:, rows].mean(axis=1, keepdims=True) for rows in repeats]
scatter = np.concatenate(around, axis=1).std(axis=1)
print("all b0 of a timing, over that noise:", (scatter / sigma).round(1))
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
place = np.arange(len(data))
shells = np.unique(acquisition.b[unseen].round(1))
for k, (name, values) in enumerate(predicted.items()):
    rest = (data - values) / sigma[:, None]
    left.bar(
        place + 0.25 * (k - 1), np.sqrt((rest[:, unseen] ** 2).mean(axis=1)), 0.25, label=name
    )
    of_shell = [rest[0, unseen & (acquisition.b.round(1) == b)].mean() for b in shells]
    right.plot(shells, of_shell, "o-", markersize=3, label=name)
left.axhline(1, color="k", linewidth=0.8)
left.set(xticks=place, xlabel="voxel", ylabel="error of unseen signals / noise")
figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
right.axhline(0, color="k", linewidth=0.8)
right.set(xscale="log", xlabel="b (ms/um^2)", ylabel="(measured - predicted) / noise, voxel 0")
plt.show()

# %%
# Maps of each model
# ------------------
#
# Their maps answer different questions. NODDI and ActiveAx have fixed diffusivities and no
# exchange. Where a status is ``MISFIT`` the model is rejected, and its interval is too narrow.

for name, map_name in (
    ("Spinverse", "restricted_fraction"), ("NODDI", "ndi"), ("Spinverse", "pore_diameter"),
    ("ActiveAx", "axon_diameter"), ("Spinverse", "exchange_time"),
):  # fmt: skip
    value, low, high = (getattr(fits[name], map_name + end) for end in ("", "_low", "_high"))
    texts = [f"{v:.2f} ({a:.2f} to {b:.2f})" for v, a, b in zip(value, low, high, strict=True)]
    print(f"{name + ' ' + map_name:<31}", ", ".join(texts))
