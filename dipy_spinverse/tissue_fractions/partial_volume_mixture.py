"""Marginal likelihood of what voxels share: a Gaussian mixture with partial volume.

A voxel is pure, or mixes the classes of a face of the simplex in any proportion. Cells of each
face are components, with the mean signal of their centre and the variance of noise and cell. Means
follow from the signals of pure tissues: fractions are integrated out, which one image needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.tissue_fractions.fraction_estimation import (
    MixtureLikelihood,
    estimate_fractions,
)
from dipy_spinverse.tissue_fractions.simplex_least_squares import faces_of
from dipy_spinverse.tissue_fractions.simplex_posterior import MOST_MIXED

# Cells along an edge of faces of one to four classes; an edge has nine. By hand.
_CELLS = (1, 10, 7, 6)
# Prior of faces, relative: most voxels have one or two tissues
# (https://doi.org/10.1006/nimg.2000.0730). Weight of this prior, share of outliers: by hand.
_PRIOR = (1.0, 1.0, 0.1, 0.02)
_PRIOR_WEIGHT, _OUTLIERS = 0.05, 0.01
_ROBUST = 9.0  # reduced chi-square of a quarter of the weight (Geman and McClure); by hand


@lru_cache
def cells(n_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centres (J, T + 1) of cells of all faces, their faces (J,), and classes (F, T + 1)."""
    faces, dims = faces_of(n_classes, MOST_MIXED)
    classes = torch.zeros((len(faces), n_classes), dtype=torch.float64)
    centres, index = [], []
    for f, (face, dim) in enumerate(zip(faces, dims, strict=True)):
        n, chosen = _CELLS[dim], face[: dim + 1]
        classes[f, chosen] = 1
        chosen_cuts = [*combinations(range(1, n), dim)]
        cuts = np.array(chosen_cuts, dtype=int).reshape(len(chosen_cuts), dim)
        parts = np.diff(np.pad(cuts, ((0, 0), (1, 1)), constant_values=((0, 0), (0, n))), axis=1)
        centre = np.zeros((len(parts), n_classes))
        centre[:, chosen] = parts / n
        centres.append(centre)
        index += [f] * len(parts)
    return torch.tensor(np.concatenate(centres)), torch.tensor(index), classes


@dataclass(frozen=True, eq=False)
class PartialVolumeMixture:
    """Mixture of T tissues and background in magnitudes (V, C), with uniform outliers."""

    data: Tensor
    n_tissues: int

    @property
    def prior(self) -> Tensor:
        """Probabilities (F,) of faces before any data."""
        classes = cells(self.n_tissues + 1)[2].sum(dim=1)
        probability = torch.tensor(_PRIOR, dtype=torch.float64)[classes.long() - 1]
        return probability / probability.sum()

    @property
    def face_of_cells(self) -> Tensor:
        """Index (J,) of the face of each cell."""
        return cells(self.n_tissues + 1)[1]

    def background(self, pure: Tensor, noise: Tensor, share: Tensor) -> Tensor:
        """Expected fractions (V,) of background."""
        weights = torch.softmax(self.log_joint(pure, noise, share)[:, :-1], dim=1)
        return weights @ cells(self.n_tissues + 1)[0][:, -1]

    def simulated(self, pure: Tensor, noise: Tensor, share: Tensor) -> Tensor:
        """Magnitudes of voxels of the mixture that are like the data; reproducible."""
        random = torch.Generator().manual_seed(0)
        weights = torch.softmax(self.log_joint(pure, noise, share)[:, :-1], dim=1)
        chosen = torch.multinomial(weights, 1, generator=random)[:, 0]
        mean = torch.einsum("vt,vtc->vc", cells(self.n_tissues + 1)[0][chosen, :-1], pure)
        errors = torch.randn((2, *mean.shape), generator=random, dtype=mean.dtype) * noise
        return torch.hypot(mean + errors[0], errors[1])

    def log_joint(self, pure: Tensor, noise: Tensor, share: Tensor) -> Tensor:
        """Log density (V, J + 1) of data and component; outliers last.

        Pure signals (V, T, C), noise (V, C) or (C,), probabilities of faces (F,).
        """
        centres, of_cell, classes = cells(self.n_tissues + 1)
        n_cells = torch.bincount(of_cell)
        count = classes.sum(dim=1)
        size = torch.tensor(_CELLS)[count.long() - 1]
        mean = torch.einsum("jt,vtc->vjc", centres[:, :-1], pure)
        # Variance of the signal in a cell of a face: that of fractions uniform along each edge.
        total = torch.einsum("ft,vtc->vfc", classes[:, :-1], pure)
        squares = torch.einsum("ft,vtc->vfc", classes[:, :-1], pure**2)
        within = (squares - total**2 / count[:, None]) / (6 * size**2)[:, None]
        variance = within[:, of_cell] + noise[..., None, :] ** 2
        expected = torch.sqrt(mean**2 + noise[..., None, :] ** 2)
        squares = (self.data[:, None] - expected) ** 2 / variance
        logs = -0.5 * (squares + torch.log(2 * torch.pi * variance)).sum(dim=2)
        logs = logs + torch.log((1 - _OUTLIERS) * share / n_cells)[of_cell]
        width = 1.5 * torch.quantile(self.data, 0.99, dim=0)
        outlier = np.log(_OUTLIERS) - torch.log(width).sum()
        return torch.cat([logs, outlier.expand(len(logs), 1)], dim=1)

    def log_prior(self, share: Tensor) -> float:
        """Log density of probabilities (F,) of faces, up to a constant."""
        weight = _PRIOR_WEIGHT * len(self.data)
        return float(weight * (self.prior * torch.log(share.clamp_min(1e-300))).sum())

    def updated_share(self, log_joint: Tensor) -> Tensor:
        """Probabilities (F,) of faces by a step of expectation maximisation."""
        of_cell = cells(self.n_tissues + 1)[1]
        weights = torch.softmax(log_joint, dim=1)[:, :-1].sum(dim=0)
        share = torch.zeros_like(self.prior).index_add(0, of_cell, weights)
        share = share + _PRIOR_WEIGHT * len(log_joint) * self.prior
        return share / share.sum()

    def scores(
        self, pure: Tensor, noise: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-likelihoods (V,), slopes by pure signals (V, T, C) and log noise (V, C), share."""
        pure = pure.detach().requires_grad_()
        log_noise = torch.log(noise).expand(self.data.shape).detach().requires_grad_()
        log_joint = self.log_joint(pure, torch.exp(log_noise), share)
        likelihoods = torch.logsumexp(log_joint, dim=1)
        slopes = torch.autograd.grad(likelihoods.sum(), (pure, log_noise))
        share = self.updated_share(log_joint.detach())
        return likelihoods.detach(), slopes[0], slopes[1], share


@dataclass(frozen=True, eq=False)
class ProfileLikelihood:
    """Likelihood of magnitudes (V, C) at the likeliest fractions of voxels without background.

    For more images than tissues: there it is finer than cells, and nothing is to be integrated.
    Background would make the scale arbitrary.
    """

    data: Tensor
    noise_is_known: bool

    def scores(
        self, pure: Tensor, noise: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As those of the mixture; fractions are stationary, and outliers weigh little."""
        likelihood = MixtureLikelihood(
            self.data / noise, pure / noise, torch.ones(len(self.data), dtype=torch.float64)
        )
        fractions = estimate_fractions(likelihood, full=True)[0]
        predicted = likelihood.signals(fractions)
        residual = (likelihood.data**2 - 1).clamp_min(0).sqrt() - predicted.abs()
        residual = residual * torch.sign(predicted)
        n_unknowns = (fractions > 0).sum(dim=1)
        freedom = (self.data.shape[1] - n_unknowns).clamp_min(1)
        size = residual.square().sum(dim=1)
        typical = (size / freedom).median().clamp_min(1.0)
        scaled = 1 + size / freedom / (_ROBUST * typical)
        # Far from the maximum residuals exceed known noise: their common factor is likeliest.
        factor = ((size / scaled).sum() / freedom.sum()).clamp_min(1.0)
        factor = factor if self.noise_is_known else torch.ones_like(factor)
        weight = (1 / scaled**2)[:, None] / factor
        by_pure = fractions[..., None] * (weight * residual / noise)[:, None]
        expected = (freedom / self.data.shape[1])[:, None]
        by_noise = weight * (residual**2 - expected)
        values = -0.5 * size / scaled / factor
        values = values - freedom * (torch.log(noise).mean() + 0.5 * torch.log(factor))
        return values, by_pure, by_noise, share
