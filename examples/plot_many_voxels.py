"""
Many voxels on many cores, and overnight
========================================

The same fit in one process, in several, and after an interruption.
"""

# %%
# A volume
# --------
#
# 1200 noisy voxels of NODDI; a brain has three hundred times as many.

import tempfile
import time
from pathlib import Path

import numpy as np
from dipy.core.gradients import gradient_table

from dipy_spinverse import NODDIModel

N_VOXELS = 1200
rng = np.random.default_rng(0)
directions = rng.normal(size=(66, 3))
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
gtab = gradient_table(np.repeat([0, 700, 2000], [6, 20, 40]), bvecs=directions)
model = NODDIModel(gtab)
clean = 1000 * model.signals(model.draw(N_VOXELS))
noise = rng.normal(scale=20, size=(2, *clean.shape))
data = np.hypot(clean + noise[0], noise[1])

# %%
# Several processes
# -----------------
#
# ``engine="joblib"`` uses the cores of this machine, "dask" and "ray" those of a cluster. The
# result is that of one process. Starting processes takes some seconds, which is worthwhile for
# larger images only.

fits = {}
for engine, n_jobs in (("serial", 1), ("joblib", 2)):
    start = time.perf_counter()
    fits[engine] = model.fit(data, sigma=20, engine=engine, n_jobs=n_jobs)
    print(f"{engine}, {n_jobs} jobs: {time.perf_counter() - start:.0f} s")
print("the same:", np.array_equal(fits["serial"].ndi, fits["joblib"].ndi))

# %%
# An interrupted run
# ------------------
#
# With a journal, finished voxels are stored in a folder, one file for each block. Half of the
# files are removed here, as after a failure: the same fit, started again, reads the others and
# computes the missing ones.

with tempfile.TemporaryDirectory() as folder:
    journal = Path(folder) / "journal"
    model.fit(data, sigma=20, journal=journal)
    blocks = sorted(journal.glob("*.npz"))
    for block in blocks[len(blocks) // 2 :]:
        block.unlink()
    start = time.perf_counter()
    again = model.fit(data, sigma=20, journal=journal)
    print(f"{len(blocks) // 2} of {len(blocks)} blocks were stored; "
          f"the others took {time.perf_counter() - start:.0f} s")  # fmt: skip
print("the same as without interruption:", np.array_equal(again.ndi, fits["serial"].ndi))

# %%
# On the command line: ``dipy_fit_noddi ... --engine joblib --n_jobs 8 --journal journal``.
