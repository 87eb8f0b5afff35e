"""A model that is fitted in no time: S = S0 exp(-b D), by least squares of logarithms."""

from __future__ import annotations

import numpy as np

from dipy_spinverse import Acquisition
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.model import VoxelModel


class DecayFit(VoxelFit):
    MAPS = ("diffusivity",)


class DecayModel(VoxelModel):
    Fit = DecayFit

    def __init__(self, gtab, shift=0.0):
        super().__init__(gtab)
        self.shift = shift

    def fit_chunk(self, voxels, n_draws):
        b = self.acquisition.b
        solve = np.linalg.pinv(np.column_stack([np.ones_like(b), -b]))
        log_S0, slope = solve @ np.log(voxels.signals.clip(1e-3)).T
        values = {"S0_per_te": np.exp(log_S0)[:, None], "diffusivity": slope + self.shift}
        signals = values["S0_per_te"] * self.signals_of_fit(values, self.acquisition)
        rms = np.sqrt(((voxels.signals - signals) ** 2).mean(axis=1))
        sigma = rms + 1e-3 if voxels.sigma is None else voxels.sigma
        if n_draws:
            values |= {f"diffusivity{end}": slope for end in ("_std", "_low", "_high")}
        return values | {"converged": True, "sigma": sigma, "residual_rms": rms, "n_unknowns": 2}

    def signals_of_fit(self, values, acquisition):
        return np.exp(-np.outer(values["diffusivity"], acquisition.b))

    def settings(self):
        return {"shift": self.shift}, {}


class InSmallBlocks(DecayModel):
    """With few voxels per chunk, so that a small image has many chunks."""

    VOX_PER_CHUNK = 5


B = np.r_[np.zeros(4), 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0]
ACQUISITION = Acquisition(
    b=B, directions=np.tile([1.0, 0, 0], (len(B), 1)), small_delta=10, big_delta=30,
    b0_threshold=0.0,
)  # fmt: skip


def decays(shape, seed=0):
    """Noisy signals (..., M)."""
    rng = np.random.default_rng(seed)
    clean = 100 * np.exp(-np.multiply.outer(rng.uniform(0.5, 1.5, shape), B))
    return clean + rng.standard_normal(clean.shape)
