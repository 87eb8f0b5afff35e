"""Fractions of voxels whose signals of pure tissues are known: signs, Rician noise, covariance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.tissue_fractions.simplex_least_squares import simplex_least_squares
from dipy_spinverse.voxels.rician import rician_information, rician_target

_STEPS = 12  # of the mixtures that signs are taken from, along an edge of the simplex
_STARTS, _ROUNDS = 3, 8
_MOST_ERROR = 3.0  # standard deviations
_SAME = 1e-4  # of a fraction, from round to round; what is left is a tenth


@dataclass(frozen=True, eq=False)
class MixtureLikelihood:
    """Magnitudes of voxels and what may explain them.

    Attributes
    ----------
    data : Tensor (V, C)
    columns : Tensor (V, T, C)
        Signals of pure tissues, with their sign, in the unit of the data.
    sigma : Tensor (V,) or None
        Noise in each channel; None: as if there were none.
    wrong : callable or None
        From fractions (V, T), and which voxels they are of, to what independent errors of the
        columns, of standard deviation 1, make of the signals (V, C, P).
    errors : Tensor (V, P) or None
        Errors that the columns already have; what `wrong` says is the slope there.
    rician : bool
    """

    data: Tensor
    columns: Tensor
    sigma: Tensor | None = None
    wrong: Callable[[Tensor, Tensor | slice], Tensor] | None = None
    errors: Tensor | None = None
    rician: bool = True

    def __getitem__(self, rows: Tensor) -> MixtureLikelihood:
        """Some of the voxels, of which no more are taken."""
        sigma = None if self.sigma is None else self.sigma[rows]
        of_all = self.wrong
        wrong = None if of_all is None else lambda fractions, _: of_all(fractions, rows)
        errors = None if self.errors is None else self.errors[rows]
        return MixtureLikelihood(
            self.data[rows], self.columns[rows], sigma, wrong, errors, self.rician
        )


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """The likelihood of fractions near a solution, as that of a linear model.

    Attributes
    ----------
    gram : Tensor (V, T, T)
        A W A^T, W being the inverse covariance of the data.
    projection : Tensor (V, T)
        A W y.
    excess : Tensor (V,)
        Sum of squared residuals over their variances.
    """

    gram: Tensor
    projection: Tensor
    excess: Tensor


def solve(
    problem: MixtureLikelihood, *, full: bool = False, signs: Tensor | None = None
) -> tuple[Tensor, NormalEquations, Tensor]:
    """The likeliest fractions.

    Magnitudes lose the sign of what was inverted. Signs and fractions are found in turns, each
    the best for the other, from the signs of those mixtures whose magnitudes are most alike to
    the voxel's. Rician noise enters by its score and information there.

    Parameters
    ----------
    problem : MixtureLikelihood
    full : bool, optional
        Whether fractions sum to 1, without background.
    signs : Tensor (V, C), optional
        Of signals, to begin with.

    Returns
    -------
    fractions : Tensor (V, T)
    normal : NormalEquations
        There.
    settled : Tensor (V,) of bool
        Whether the turns came to their end.
    """
    if signs is None:
        signs = _first_signs(problem, full)
    normal = _normal(problem, signs, None)
    fractions = simplex_least_squares(normal.gram, normal.projection, full=full)
    signs, rows = signs.clone(), torch.arange(len(signs))
    for _ in range(_ROUNDS):
        part, before = problem[rows], fractions[rows]
        predicted = torch.einsum("vt,vtc->vc", before, part.columns)
        turned = torch.where(predicted == 0, signs[rows], torch.sign(predicted))
        normal = _normal(part, turned, before)
        after = simplex_least_squares(normal.gram, normal.projection, full=full)
        moves = (after - before).abs().amax(dim=1) > _SAME
        moves |= (turned != signs[rows]).any(dim=1)
        fractions[rows], signs[rows] = after, turned
        rows = rows[moves]
        if len(rows) == 0:
            break
    settled = torch.ones(len(signs), dtype=torch.bool)
    settled[rows] = False
    return fractions, _normal(problem, signs, fractions), settled


def _first_signs(problem, full):
    """Signs (V, C) to begin with: the best of those of a few mixtures."""
    mixtures = torch.tensor(_mixtures(problem.columns.shape[1]))
    signals = mixtures @ problem.columns.mean(dim=0)
    signs, of = torch.unique(torch.sign(signals), dim=0, return_inverse=True)
    alike = problem.data @ (signals / signals.norm(dim=1, keepdim=True).clamp_min(1e-300)).abs().T
    alike = [alike[:, of == k].amax(dim=1) for k in range(len(signs))]
    order = torch.stack(alike, dim=1).argsort(dim=1, descending=True)[:, :_STARTS]
    best, lowest = signs[order[:, 0]], None
    for trial in signs[order.T] if order.shape[1] > 1 else ():
        normal = _normal(problem, trial, None)
        fractions = simplex_least_squares(normal.gram, normal.projection, full=full)
        residual = problem.data - torch.einsum("vt,vtc->vc", fractions, problem.columns).abs()
        size = residual.square().sum(dim=1)
        if lowest is not None:
            better = size < lowest
            best = torch.where(better[:, None], trial, best)
            lowest = torch.where(better, size, lowest)
        else:
            best, lowest = trial, size
    return best


def _mixtures(n_tissues):
    """Mixtures of tissues, evenly over the simplex."""
    axes = [np.arange(_STEPS + 1)] * n_tissues
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, n_tissues)
    return grid[grid.sum(axis=1) == _STEPS] / _STEPS


def likeliest_errors(problem: MixtureLikelihood, fractions: Tensor) -> Tensor:
    """Errors (V, P) of the columns beside given fractions, from what these leave of the data."""
    predicted = torch.einsum("vt,vtc->vc", fractions, problem.columns)
    values, weight, wrong = _normal_data(problem, torch.sign(predicted), fractions)
    scaled = wrong.mT * weight[:, None]
    square = scaled @ wrong + torch.eye(wrong.shape[-1])
    right = scaled @ (values - predicted)[..., None]
    return torch.linalg.solve(square, right)[..., 0].clamp(-_MOST_ERROR, _MOST_ERROR)


def _normal(problem, signs, fractions):
    """Likelihood near fractions, or without noise and errors if None."""
    return _linear(*_normal_data(problem, signs, fractions), problem.columns, fractions)


def _normal_data(problem, signs, fractions):
    """Signed data, their inverse variances, and slopes by errors."""
    data, sigma = problem.data, problem.sigma
    values, weight = data, torch.ones_like(data)
    if fractions is None or sigma is None:
        return signs * values, weight, None
    if problem.rician:
        size = torch.einsum("vt,vtc->vc", fractions, problem.columns).abs()
        information = rician_information(size / sigma[:, None])
        score = rician_target(data, size, sigma) - size
        values, weight = size + score / information, information
    weight = weight / sigma[:, None] ** 2
    if problem.wrong is None:
        return signs * values, weight, None
    wrong = problem.wrong(fractions, slice(None))
    return signs * values + (wrong @ problem.errors[..., None])[..., 0], weight, wrong


def _linear(values, weight, wrong, columns, fractions):
    weighed = columns * weight[:, None]
    parts = [weighed @ columns.mT, (weighed @ values[..., None])[..., 0]]
    squares = (values**2 * weight).sum(dim=1)
    if wrong is not None:
        # Inverse of diagonal plus low rank (Woodbury).
        scaled = wrong * weight[..., None]
        inner = wrong.mT @ scaled + torch.eye(wrong.shape[-1])
        factor, _ = torch.linalg.cholesky_ex(inner)
        across = torch.linalg.solve_triangular(factor, scaled.mT @ columns.mT, upper=False)
        data = torch.linalg.solve_triangular(factor, scaled.mT @ values[..., None], upper=False)
        parts[0] = parts[0] - across.mT @ across
        parts[1] = parts[1] - (across.mT @ data)[..., 0]
        squares = squares - (data**2).sum(dim=(1, 2))
    gram, projection = parts
    excess = squares
    if fractions is not None:
        curved = torch.einsum("vi,vij,vj->v", fractions, gram, fractions)
        excess = squares - 2 * (fractions * projection).sum(dim=1) + curved
    return NormalEquations(gram, projection, excess.clamp_min(0))
