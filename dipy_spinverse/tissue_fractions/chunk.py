"""The fit of a chunk of voxels: fractions, nuisance errors, posterior samples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.tissue_fractions.fraction_estimation import (
    MixtureLikelihood,
    NormalEquations,
    estimate_errors,
    estimate_fractions,
)
from dipy_spinverse.tissue_fractions.shared_parameters import NuisanceErrors, evenly_spaced
from dipy_spinverse.tissue_fractions.signal_table import SignalTable
from dipy_spinverse.tissue_fractions.simplex_posterior import (
    face_prior_probabilities,
    fraction_samples,
)
from dipy_spinverse.voxels.image import Voxels
from dipy_spinverse.voxels.statistics import ENDINGS, statistics_of_maps

MOST_VOXELS = 2000  # per chunk: some 100 MiB of derivatives by constants
_ROUNDS = 3  # of fractions and errors in turn; chosen by hand


def fraction_layout(
    names: tuple[str, ...], *, posterior: bool, spatial_prior: bool
) -> dict[str, object]:
    """Names and types of the arrays of a chunk."""
    endings = (*ENDINGS, "_likeliest") if posterior else ("", "_likeliest")
    maps: dict[str, object] = {name + ending: float for name in names for ending in endings}
    if spatial_prior:
        n = len(names) - 1
        maps |= {"gram": (float, (n, n)), "projection": (float, (n,))}
    return maps | {
        "S0": float, "S0_per_te": (float, (1,)), "b1": float, "b0": float, "widest_std": float,
    }  # fmt: skip


@dataclass(frozen=True, eq=False)
class FractionFitChunk:
    """The fit of a chunk of voxels: arrays of `fraction_layout` from voxels.

    `by_constants` (K, T, C, 4) are derivatives of the table by logarithms of constants;
    `face_probabilities` (F,) those of the faces of the simplex. With `spatial_prior` all voxels
    are sampled jointly afterwards, from the normal equations.
    """

    names: tuple[str, ...]
    table: SignalTable
    by_constants: Tensor
    errors: NuisanceErrors
    face_probabilities: np.ndarray | None
    n_draws: int
    spatial_prior: bool

    def with_face_probabilities(self, voxels: Voxels) -> Self:
        """The same with prior probabilities of the faces, from voxels spread over the image."""
        rows = evenly_spaced(len(voxels), MOST_VOXELS)
        normal = self.estimate(voxels[rows].over_S0())[3]
        return replace(self, face_probabilities=face_prior_probabilities(*normal.arrays()))

    def estimate(
        self, voxels: Voxels
    ) -> tuple[MixtureLikelihood, np.ndarray, Tensor, NormalEquations, Tensor]:
        """Likelihood, B1, and results of `estimate_fractions`, at the most probable errors.

        Signals and the attribute `scale` are over S0; the other attributes of the voxels are
        `b1`, `b0`, `known_b1` and `basis`.
        """
        errors = torch.zeros((len(voxels), self.errors.number), dtype=torch.float64)
        likelihood, b1 = self._likelihood(voxels, errors)
        if self.errors.number:
            for _ in range(_ROUNDS):
                errors = estimate_errors(likelihood, estimate_fractions(likelihood)[0])
                likelihood, b1 = self._likelihood(voxels, errors)
        return likelihood, b1, *estimate_fractions(likelihood)

    def _likelihood(self, voxels, errors):
        """Likelihood and B1 with errors (V, P)."""
        maps, table = voxels.attributes, self.table
        scale, nominal_b1 = torch.tensor(maps["scale"]), torch.tensor(maps["known_b1"])
        scale = scale[:, None, None]
        data, sigma = torch.tensor(voxels.signals), torch.tensor(voxels.sigma)
        of_b1 = nominal_b1[:, None] * self.errors.of_b1_in(torch.tensor(maps["basis"]))
        b1 = maps["b1"] + (of_b1 * errors).sum(dim=1).numpy()
        b1 = np.clip(b1, table.b1.low, table.b1.high)
        pure_signals = table.pure_signals(b1, maps["b0"]) * scale
        if self.errors.number == 0:
            return MixtureLikelihood(data, pure_signals, sigma), b1
        slopes = table.slopes(b1, maps["b0"]) * scale
        of_tissues = self._of_tissues(table.weights(b1, maps["b0"]), scale)
        n_constants = of_tissues.shape[-1]
        pure_signals = pure_signals + (of_tissues @ errors[:, None, :n_constants, None])[..., 0]

        def error_signals(fractions, rows):
            by_b1 = torch.einsum("vt,vtc->vc", fractions, slopes[rows])
            signals = by_b1[..., None] * of_b1[rows][:, None]
            signals[..., :n_constants] += torch.einsum("vt,vtcp->vcp", fractions, of_tissues[rows])
            return signals

        return MixtureLikelihood(data, pure_signals, sigma, error_signals, errors), b1

    def _of_tissues(self, weights, scale):
        """Derivatives (V, T, C, P) of pure signals by the errors of constants."""
        by_errors = torch.einsum(
            "ktcq,tqp->ktcp", self.by_constants,
            self.errors.of_constants.reshape(*self.by_constants.shape[1::2], -1),
        )  # fmt: skip
        of_voxels = weights @ by_errors.flatten(1)
        return of_voxels.reshape(len(weights), *by_errors.shape[1:]) * scale[..., None]

    def __call__(self, voxels: Voxels) -> dict[str, np.ndarray]:
        """Arrays of the voxels, named as in `fraction_layout`."""
        likelihood, b1, fractions, normal, converged = self.estimate(voxels)
        background = 1 - fractions.sum(dim=1, keepdim=True)
        values = torch.cat([fractions, background], dim=1).clamp_min(0).numpy()
        result = {name: values[:, k] for k, name in enumerate(self.names)}
        result |= {f"{name}_likeliest": value for name, value in list(result.items())}
        if self.spatial_prior:
            result |= dict(zip(("gram", "projection"), normal.arrays(), strict=True))
        elif self.n_draws and self.face_probabilities is not None:
            samples = fraction_samples(*normal.arrays(), self.face_probabilities, self.n_draws)
            maps = {name: samples[..., k].astype(float) for k, name in enumerate(self.names)}
            result |= statistics_of_maps(maps, axis=1)
        sigma = torch.tensor(voxels.sigma)[:, None]
        mean_square = likelihood.signals(fractions) ** 2 + sigma**2
        residual = likelihood.data - torch.sqrt(mean_square)
        n_unknowns = (fractions > 0).sum(dim=1).numpy().astype(float)
        freedom = np.maximum(likelihood.data.shape[1] - n_unknowns, 1)
        lowest = torch.linalg.eigvalsh(normal.gram)[:, 0].clamp_min(1e-12)
        scale = voxels.attributes["scale"]
        return result | {
            "S0": scale,
            "S0_per_te": scale[:, None],
            "b1": b1,
            "b0": voxels.attributes["b0"],
            "widest_std": (1 / lowest.sqrt()).numpy(),
            "converged": converged.numpy(),
            "sigma": voxels.sigma,
            "residual_rms": residual.square().mean(dim=1).sqrt().numpy(),
            "n_unknowns": n_unknowns,
            "reduced_chi_square": normal.chi_square.numpy() / freedom,
        }
