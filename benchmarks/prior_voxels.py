"""Voxels simulated by compartment models: parameters from the prior, Rician noise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from dipy.core.gradients import gradient_table

from benchmarks.datasets import data_file
from dipy_spinverse import Acquisition, ActiveAxModel, IVIMModel, NODDIModel, ZCDModel

_SHELLS = ((0, 8, 20, 6), (1, 8, 20, 20), (4, 12, 25, 30), (9, 15, 30, 40), (15, 15, 60, 40))
_IVIM_B = (*[0] * 5, 10, 20, 30, 40, 60, 80, 100, 140, 180, 250, 350, 450, 600, 800, 1000)


def hcp_scheme() -> Acquisition:
    """The HCP scheme of noddi200: 18 b0 and three shells of 90 directions."""
    return Acquisition.from_scheme(data_file("noddi200/schemefile_hcp_wu_minn.scheme1"))


def strong_scheme() -> Acquisition:
    """136 measurements at 300 mT/m; shells are b (ms/um^2), delta, Delta (ms), directions."""
    rng = np.random.default_rng(3)
    b, small, big = np.concatenate([np.tile(s[:3], (s[3], 1)) for s in _SHELLS]).T
    vectors = rng.standard_normal((len(b), 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Acquisition(b, vectors, small, big, te=90.0)


def ivim_table():
    """20 b-values (s/mm^2) along one direction."""
    return gradient_table(_IVIM_B, bvecs=np.tile([1.0, 0, 0], (len(_IVIM_B), 1)), b0_threshold=0)


def models(dtype: str = "float64") -> Iterator[tuple[str, object, int]]:
    """Words, model and SNR of the four named models; `dtype` is NODDI's."""
    yield "NODDI, HCP scheme", NODDIModel(hcp_scheme(), dtype=dtype), 30
    yield "ActiveAx, 300 mT/m", ActiveAxModel(strong_scheme()), 50
    yield "ZCD, 300 mT/m", ZCDModel(strong_scheme()), 50
    yield "IVIM, 20 b-values", IVIMModel(ivim_table()), 50


def simulated(model, n: int, snr: float, seed: int = 11) -> tuple[dict, np.ndarray]:
    """Parameters of `n` voxels from the prior and their magnitudes (n, M); S0 is 1."""
    truth = model.draw(n, seed=seed)
    clean = model.signals(truth)
    noise = np.random.default_rng(seed + 1).standard_normal((2, *clean.shape)) / snr
    return truth, np.hypot(clean + noise[0], noise[1])
