"""
What an acquisition can identify, before the scan
=================================================

Two scans of the same length are compared: one diffusion time, and three.
"""

# %%
# Two scans
# ---------

import matplotlib.pyplot as plt
import numpy as np

from dipy_spinverse import Acquisition, identifiability

rng = np.random.default_rng(0)
directions = rng.normal(size=(60, 3))
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
b = np.repeat([0.0, 1.0, 2.5], [4, 30, 30])
table = np.vstack([np.zeros((4, 3)), directions])


def scan(big_delta):
    """64 volumes."""
    return Acquisition(b=b, directions=table, small_delta=15.0, big_delta=big_delta, te=110.0)


one_time = scan(40.0)
several_times = scan(np.tile([20.0, 40.0, 80.0, 40.0], 16))

# %%
# What each can identify
# ----------------------
#
# Tissues are drawn from the prior; the figure shows the ratio of posterior to prior standard
# deviation. Exchange needs several diffusion times.

reports = [identifiability(each, sigma=0.02, n_draws=100) for each in (one_time, several_times)]
print(reports[0])

# %%

figure, axes = plt.subplots(2, 1, figsize=(8, 9), layout="constrained")
for axis, report, title in zip(axes, reports, ("one time", "three times"), strict=True):
    report.figure(axis)
    axis.set_title(title, loc="left", pad=24)
plt.show()

# %%
# The same from files: ``dipy_check_acquisition dwi.bval dwi.bvec --big_delta 0.04 --small_delta
# 0.015``.

left = [
    {row["map"]: row["posterior"] / row["prior"] for row in report.table()} for report in reports
]
print("exchange time, share of the spread that is left:", [round(x["exchange_time"], 2) for x in
                                                           left])  # fmt: skip
