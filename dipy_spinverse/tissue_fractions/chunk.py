"""From the images of a chunk of voxels to what a fit holds of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.tissue_fractions.fraction_estimation import (
    MixtureLikelihood,
    NormalEquations,
    likeliest_errors,
    solve,
)
from dipy_spinverse.tissue_fractions.shared_parameters import SharedParameters
from dipy_spinverse.tissue_fractions.signal_table import SignalTable
from dipy_spinverse.tissue_fractions.simplex_posterior import fraction_samples
from dipy_spinverse.voxels.image import Voxels
from dipy_spinverse.voxels.statistics import ENDINGS, summary

MOST_VOXELS = 2000
_ROUNDS = 3
# Of an error of the columns that is worth keeping, relative.
_LEAST_VARIANCE = 1e-12


def fraction_layout(
    names: tuple[str, ...], *, posterior: bool, together: bool
) -> dict[str, object]:
    """Type of everything that a fit holds of a voxel, or the voxels together ask for."""
    endings = (*ENDINGS, "_likeliest") if posterior else ("", "_likeliest")
    maps: dict[str, object] = {name + end: float for name in names for end in endings}
    if together:
        n = len(names) - 1
        maps |= {"gram": (float, (n, n)), "projection": (float, (n,))}
    return maps | {
        "S0": float, "S0_per_te": (float, (1,)), "b1": float, "b0": float, "widest_std": float,
    }  # fmt: skip


@dataclass(frozen=True, eq=False)
class NuisanceErrors:
    """What may be wrong of constants and of B1, as independent errors of standard deviation 1.

    The first P are of constants, and of what of B1 follows them; one more is of the rest of B1,
    a single number in a voxel whatever the field is made of.

    Attributes
    ----------
    of_constants : Tensor (4 T, P)
        Of their logarithms.
    of_b1 : Tensor (N, P)
        Of the polynomials of B1.
    rest_of_b1 : Tensor (N, N)
        Covariance of the polynomials of B1 beside these.
    b1_about : float
        Standard deviation of B1 about its polynomials.
    """

    of_constants: Tensor
    of_b1: Tensor
    rest_of_b1: Tensor
    b1_about: float

    @classmethod
    def of(cls, shared: SharedParameters) -> NuisanceErrors:
        """Of what voxels share, as far as it is known."""
        covariance, n_constants = shared.covariance, len(shared.covariance) - len(shared.b1)
        values, vectors = torch.linalg.eigh(covariance[:n_constants, :n_constants])
        kept = values > _LEAST_VARIANCE
        root = values[kept].sqrt()
        of_b1 = covariance[n_constants:, :n_constants] @ vectors[:, kept] / root
        rest = covariance[n_constants:, n_constants:] - of_b1 @ of_b1.T
        return cls(vectors[:, kept] * root, of_b1, rest, shared.b1_about)

    @property
    def number(self) -> int:
        errs = self.b1_about > 0 or bool((self.rest_of_b1 != 0).any())
        return self.of_constants.shape[1] + errs

    def of_b1_in(self, basis: Tensor) -> Tensor:
        """What they are of B1 in voxels (V, number), given the polynomials there (V, N)."""
        variance = torch.einsum("vi,ij,vj->v", basis, self.rest_of_b1, basis).clamp_min(0)
        rest = torch.sqrt(variance + self.b1_about**2)
        return torch.cat([basis @ self.of_b1, rest[:, None]], dim=1)[:, : self.number]


@dataclass(frozen=True, eq=False)
class FractionFitChunk:
    """The fit of a chunk of voxels.

    Attributes
    ----------
    names : tuple of str
        Of tissues, and of the background.
    table : SignalTable
    by_constants : Tensor (K, T, C, 4)
        Slopes of the table by logarithms of constants.
    errors : NuisanceErrors
    share : ndarray (F,) or None
        Prior probabilities of the faces of the simplex.
    n_draws : int
    rician : bool
    together : bool
        Whether fractions are to be found of all voxels together: their likelihood is kept.
    """

    names: tuple[str, ...]
    table: SignalTable
    by_constants: Tensor
    errors: NuisanceErrors
    share: np.ndarray | None
    n_draws: int
    rician: bool
    together: bool

    def solved(
        self, voxels: Voxels
    ) -> tuple[MixtureLikelihood, np.ndarray, Tensor, NormalEquations, Tensor]:
        """Likelihood, B1, and what `solve` says; linear in errors where these are likeliest.

        Parameters
        ----------
        voxels : Voxels
            Over S0, with their own `b1`, `b0`, `scale` (over S0), `given_b1` and `basis`.
        """
        errors = torch.zeros((len(voxels), self.errors.number), dtype=torch.float64)
        problem, b1 = self._problem(voxels, errors)
        if self.errors.number:
            for _ in range(_ROUNDS):
                errors = likeliest_errors(problem, solve(problem)[0])
                problem, b1 = self._problem(voxels, errors)
        return problem, b1, *solve(problem)

    def _problem(self, voxels, errors):
        """With columns that have errors (V, P)."""
        own, table = voxels.own, self.table
        scale, given = torch.tensor(own["scale"])[:, None, None], torch.tensor(own["given_b1"])
        data, sigma = torch.tensor(voxels.signals), torch.tensor(voxels.sigma)
        of_b1 = given[:, None] * self.errors.of_b1_in(torch.tensor(own["basis"]))
        b1 = own["b1"] + (of_b1 * errors).sum(dim=1).numpy()
        b1 = np.clip(b1, table.b1.low, table.b1.high)
        columns = table.columns(b1, own["b0"]) * scale
        if self.errors.number == 0:
            return MixtureLikelihood(data, columns, sigma, rician=self.rician), b1
        slopes = table.slopes(b1, own["b0"]) * scale
        of_tissues = self._of_tissues(table.weights(b1, own["b0"]), scale)
        n_constants = of_tissues.shape[-1]
        columns = columns + (of_tissues @ errors[:, None, :n_constants, None])[..., 0]

        def wrong(fractions, rows):
            by_b1 = torch.einsum("vt,vtc->vc", fractions, slopes[rows])
            signals = by_b1[..., None] * of_b1[rows][:, None]
            signals[..., :n_constants] += torch.einsum("vt,vtcp->vcp", fractions, of_tissues[rows])
            return signals

        return MixtureLikelihood(data, columns, sigma, wrong, errors, self.rician), b1

    def _of_tissues(self, weights, scale):
        """Errors (V, T, C, P) of pure signals by those of constants."""
        by_errors = torch.einsum(
            "ktcq,tqp->ktcp", self.by_constants,
            self.errors.of_constants.reshape(*self.by_constants.shape[1::2], -1),
        )  # fmt: skip
        of_voxels = weights @ by_errors.flatten(1)
        return of_voxels.reshape(len(weights), *by_errors.shape[1:]) * scale[..., None]

    def __call__(self, voxels: Voxels) -> dict[str, np.ndarray]:
        """Values of each voxel, with the names of `fraction_layout`."""
        problem, b1, fractions, normal, settled = self.solved(voxels)
        with_rest = torch.cat([fractions, 1 - fractions.sum(dim=1, keepdim=True)], dim=1)
        values = with_rest.clamp_min(0).numpy()
        result = {name: values[:, k] for k, name in enumerate(self.names)}
        result |= {f"{name}_likeliest": value for name, value in list(result.items())}
        if self.together:
            result |= dict(zip(("gram", "projection"), as_arrays(normal), strict=True))
        elif self.n_draws and self.share is not None:
            draws = fraction_samples(*as_arrays(normal), self.share, self.n_draws)
            maps = {name: draws[..., k].astype(float) for k, name in enumerate(self.names)}
            result |= summary(maps, axis=1)
        size = torch.einsum("vt,vtc->vc", fractions, problem.columns).abs()
        if self.rician:
            size = torch.sqrt(size**2 + torch.tensor(voxels.sigma)[:, None] ** 2)
        n_contrasts, own = problem.data.shape[1], voxels.own
        n_unknowns = (fractions > 0).sum(dim=1).numpy().astype(float)
        least = torch.linalg.eigvalsh(normal.gram)[:, 0].clamp_min(1e-12)
        return result | {
            "S0": own["scale"],
            "S0_per_te": own["scale"][:, None],
            "b1": b1,
            "b0": own["b0"],
            "widest_std": (1 / least.sqrt()).numpy(),
            "converged": settled.numpy(),
            "sigma": voxels.sigma,
            "residual_rms": (problem.data - size).square().mean(dim=1).sqrt().numpy(),
            "n_unknowns": n_unknowns,
            "excess": normal.excess.numpy() / np.maximum(n_contrasts - n_unknowns, 1),
        }


def as_arrays(normal: NormalEquations) -> tuple[np.ndarray, np.ndarray]:
    """Gram matrices and projections."""
    return normal.gram.numpy(), normal.projection.numpy()
