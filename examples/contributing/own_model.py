"""A model of one's own: S = S0 exp(-b D) at one echo time, by least squares of logarithms."""

import numpy as np

from dipy_spinverse import Acquisition
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.model import VoxelModel
from dipy_spinverse.voxels.statistics import statistics_of_maps


class DecayFit(VoxelFit):
    MAPS = ("diffusivity",)  # mm^2/s


class DecayModel(VoxelModel):
    Fit = DecayFit

    def fit_chunk(self, voxels, n_draws):
        b = 1e3 * self.acquisition.b  # s/mm^2
        solve = np.linalg.pinv(np.column_stack([np.ones_like(b), -b]))
        log_S0, slope = solve @ np.log(voxels.signals.clip(1e-3)).T
        values = {"S0_per_te": np.exp(log_S0)[:, None], "diffusivity": slope.clip(0)}
        signals = values["S0_per_te"] * self.signals_of_fit(values, self.acquisition)
        rms = np.sqrt(((voxels.signals - signals) ** 2).mean(axis=1))
        sigma = rms * np.sqrt(b.size / (b.size - 2)) if voxels.sigma is None else voxels.sigma
        if n_draws:
            error = sigma * np.linalg.norm(solve[1] / signals, axis=1)
            draws = slope + error * np.random.default_rng(0).standard_normal((n_draws, 1))
            values |= statistics_of_maps({"diffusivity": draws.clip(0)})
        return values | {"converged": True, "sigma": sigma, "residual_rms": rms, "n_unknowns": 2}

    def signals_of_fit(self, values, acquisition):
        return np.exp(-1e3 * np.outer(values["diffusivity"], acquisition.b))

    def settings(self):
        return {}, {}


acquisition = Acquisition([0, 0, 0.5, 1, 1.5], [1, 0, 0], small_delta=10, big_delta=30)
noise = np.random.default_rng(1).normal(scale=0.5, size=(200, 5))
fit = DecayModel(acquisition).fit(100 * np.exp(-0.8 * acquisition.b) + noise, sigma=0.5)
assert abs(fit.diffusivity.mean() - 0.8e-3) < 0.002e-3  # 3 standard errors of the mean
