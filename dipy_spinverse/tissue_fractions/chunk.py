"""The fit of a chunk of voxels: fractions, nuisance errors, posterior samples."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from dipy_spinverse.tissue_fractions.calibration import Calibration
from dipy_spinverse.tissue_fractions.fraction_estimation import (
    MixtureLikelihood,
    estimate_errors,
    estimate_fractions,
)
from dipy_spinverse.tissue_fractions.shared_parameters import NuisanceErrors
from dipy_spinverse.tissue_fractions.simplex_posterior import fraction_samples, with_impurities
from dipy_spinverse.voxels.image import Voxels
from dipy_spinverse.voxels.statistics import ENDINGS, statistics_of_maps

MOST_VOXELS = 2000  # per chunk: some 100 MiB of derivatives by constants
_ROUNDS = 3  # of fractions and errors in turn; chosen by hand


def fraction_layout(
    names: tuple[str, ...], n_images: int, *, posterior: bool, n_samples: int
) -> dict[str, object]:
    """Names and types of the arrays of a chunk."""
    endings = (*ENDINGS, "_likeliest") if posterior else ("", "_likeliest")
    maps: dict[str, object] = {name + ending: float for name in names for ending in endings}
    if n_samples:
        n = len(names) - 1
        maps |= {"gram": ("f4", (n_samples, n, n)), "projection": ("f4", (n_samples, n))}
    return maps | {
        "S0": float, "S0_per_te": (float, (n_images,)), "b1": float, "b0": float,
        "widest_std": float, "widest_pair": int,
    }  # fmt: skip


def statistics_of_samples(
    names: tuple[str, ...], samples: np.ndarray, gram: np.ndarray, projection: np.ndarray
) -> dict[str, np.ndarray]:
    """Statistics of maps from samples (V, n, T + 1) of fractions with impurities.

    `widest_std` and `widest_pair`, the index in `pairs_of`, are of the pair of classes whose
    exchange is least determined: half the difference of their fractions.
    """
    samples = with_impurities(samples, gram, projection)
    maps = {name: samples[..., k].astype(float) for k, name in enumerate(names)}
    stds = np.stack([0.5 * (samples[..., a] - samples[..., b]).std(axis=1)
                     for a, b in pairs_of(len(names))], axis=1)  # fmt: skip
    widest = {"widest_std": stds.max(axis=1), "widest_pair": stds.argmax(axis=1)}
    return statistics_of_maps(maps, axis=1) | widest


def pairs_of(n_classes: int) -> list[tuple[int, int]]:
    """Pairs of classes."""
    return [*combinations(range(n_classes), 2)]


@dataclass(frozen=True, eq=False)
class FractionFitChunk:
    """The fit of a chunk of voxels: arrays of `fraction_layout` from voxels.

    With samples of shared parameters (spatial prior), all voxels are sampled jointly afterwards,
    from the normal equations of each sample. Without, errors of shared parameters are taken to be
    independent between voxels.
    """

    names: tuple[str, ...]
    calibration: Calibration
    n_draws: int

    def estimate(self, voxels: Voxels):
        """Likelihood, B1, scales, and results of `estimate_fractions`, at the likeliest errors.

        Signals are over S0; attributes of the voxels are those of :func:`calibrate`.
        """
        of_errors = NuisanceErrors.from_shared(self.calibration.likeliest[1])
        n_errors = 0 if self.calibration.samples else of_errors.number
        errors = torch.zeros((len(voxels), n_errors), dtype=torch.float64)
        likelihood, b1, scale = self._likelihood(voxels, of_errors, errors)
        for _ in range(_ROUNDS if n_errors else 0):
            errors = estimate_errors(likelihood, estimate_fractions(likelihood)[0])
            likelihood, b1, scale = self._likelihood(voxels, of_errors, errors)
        return likelihood, b1, scale, *estimate_fractions(likelihood)

    def _likelihood(self, voxels, of_errors, errors):
        """Likelihood, B1 and scales with errors (V, P)."""
        calibration, (table, shared) = self.calibration, self.calibration.likeliest
        data, sigma = torch.tensor(voxels.signals), torch.tensor(voxels.sigma)
        pure_signals, b1, scale = calibration.pure_signals(voxels, table, shared)
        if errors.shape[1] == 0:
            return MixtureLikelihood(data, pure_signals, sigma), b1, scale
        maps, basis = voxels.attributes, torch.tensor(voxels.attributes["basis"])
        of_b1 = torch.tensor(maps["known_b1"])[:, None] * of_errors.of_b1_in(basis)
        change = (of_b1 * errors).sum(dim=1).numpy()
        b1 = np.clip(b1 + change, table.b1.low, table.b1.high)
        pure_signals = table.pure_signals(b1, maps["b0"]) * torch.tensor(scale)[:, None]
        slopes = table.slopes(b1, maps["b0"]) * torch.tensor(scale)[:, None]
        weights = table.weights(b1, maps["b0"])
        of_tissues = self._of_tissues(of_errors, weights, torch.tensor(scale)[:, None])
        of_scale = torch.einsum("vn,gnp->vgp", basis, of_errors.of_scale)[:, calibration.groups]
        of_tissues = of_tissues + pure_signals[..., None] * of_scale[:, None]
        n_constants = of_tissues.shape[-1]
        pure_signals = pure_signals + (of_tissues @ errors[:, None, :n_constants, None])[..., 0]

        def error_signals(fractions, rows):
            by_b1 = torch.einsum("vt,vtc->vc", fractions, slopes[rows])
            signals = by_b1[..., None] * of_b1[rows][:, None]
            signals[..., :n_constants] += torch.einsum("vt,vtcp->vcp", fractions, of_tissues[rows])
            return signals

        return MixtureLikelihood(data, pure_signals, sigma, error_signals, errors), b1, scale

    def _of_tissues(self, of_errors, weights, scale):
        """Derivatives (V, T, C, P) of pure signals by the errors of constants."""
        by_constants = self.calibration.by_constants
        by_errors = torch.einsum(
            "ktcq,tqp->ktcp", by_constants,
            of_errors.of_constants.reshape(*by_constants.shape[1::2], -1),
        )  # fmt: skip
        of_voxels = weights @ by_errors.flatten(1)
        return of_voxels.reshape(len(weights), *by_errors.shape[1:]) * scale[..., None]

    def _normal_equations(self, voxels: Voxels) -> dict[str, np.ndarray]:
        """Of each sample of shared parameters."""
        data, sigma = torch.tensor(voxels.signals), torch.tensor(voxels.sigma)
        arrays = []
        for table, shared in self.calibration.samples:
            pure_signals = self.calibration.pure_signals(voxels, table, shared)[0]
            normal = estimate_fractions(MixtureLikelihood(data, pure_signals, sigma))[1]
            arrays.append(normal.arrays())
        stacked = [np.stack(each, axis=1) for each in zip(*arrays, strict=True)]
        return dict(zip(("gram", "projection"), stacked, strict=True))

    def __call__(self, voxels: Voxels) -> dict[str, np.ndarray]:
        """Arrays of the voxels, named as in `fraction_layout`."""
        likelihood, b1, scale, fractions, normal, converged = self.estimate(voxels)
        background = 1 - fractions.sum(dim=1, keepdim=True)
        values = torch.cat([fractions, background], dim=1).clamp_min(0).numpy()
        result = {name: values[:, k] for k, name in enumerate(self.names)}
        result |= {f"{name}_likeliest": value for name, value in list(result.items())}
        if self.calibration.samples:
            result |= self._normal_equations(voxels)
        elif self.n_draws:
            share = self.calibration.share.numpy()
            gram, projection = normal.arrays()
            samples = fraction_samples(gram, projection, share, self.n_draws)
            result |= statistics_of_samples(self.names, samples, gram, projection)
        sigma = torch.tensor(voxels.sigma)[:, None]
        mean_square = likelihood.signals(fractions) ** 2 + sigma**2
        residual = likelihood.data - torch.sqrt(mean_square)
        n_unknowns = (fractions > 0).sum(dim=1).numpy().astype(float)
        freedom = np.maximum(likelihood.data.shape[1] - n_unknowns, 1)
        return result | {
            "S0": scale[:, 0],
            "S0_per_te": scale / self.calibration.gains,
            "b1": b1,
            "b0": voxels.attributes["b0"],
            "converged": converged.numpy(),
            "sigma": voxels.sigma,
            "residual_rms": residual.square().mean(dim=1).sqrt().numpy(),
            "n_unknowns": n_unknowns,
            "reduced_chi_square": normal.chi_square.numpy() / freedom,
        }
