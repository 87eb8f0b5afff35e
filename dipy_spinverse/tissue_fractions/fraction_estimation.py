"""Maximum likelihood fractions of voxels whose signals of pure tissues are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.tissue_fractions.simplex_least_squares import simplex_least_squares
from dipy_spinverse.voxels.rician import rician_information, rician_target

# Chosen by hand: mixtures along an edge of the simplex that signs are taken from, how many of the
# sign patterns are tried, and rounds of fractions and signs in turn (most voxels need two).
_MIXTURE_STEPS, _SIGN_PATTERNS, _ROUNDS = 12, 3, 8
_LARGEST_ERROR = 3.0  # standard deviations: the linear approximation of errors holds within
_CONVERGED = 1e-4  # change of a fraction per round; far below any interval


@dataclass(frozen=True, eq=False)
class MixtureLikelihood:
    """Rician likelihood of the fractions of V voxels, given magnitudes and pure signals.

    `pure_signals` (V, T, C) have signs and the unit of the magnitudes `data` (V, C); without
    `sigma` (V,) it is that of least squares. `error_signals` maps fractions (V, T) and voxel
    indices to derivatives (V, C, P) of the signals by P independent errors of unit standard
    deviation, taken at `errors` (V, P), which the pure signals contain.
    """

    data: Tensor
    pure_signals: Tensor
    sigma: Tensor | None = None
    error_signals: Callable[[Tensor, Tensor | slice], Tensor] | None = None
    errors: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> MixtureLikelihood:
        """Select voxels; from a selection no further one can be made."""
        sigma = None if self.sigma is None else self.sigma[rows]
        of_all = self.error_signals
        of_rows = None if of_all is None else lambda fractions, _: of_all(fractions, rows)
        errors = None if self.errors is None else self.errors[rows]
        return MixtureLikelihood(self.data[rows], self.pure_signals[rows], sigma, of_rows, errors)

    def signals(self, fractions: Tensor) -> Tensor:
        """Signals (V, C) of mixtures, with their sign."""
        return torch.einsum("vt,vtc->vc", fractions, self.pure_signals)


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """Quadratic approximation of minus the log-likelihood of fractions.

    `gram` (V, T, T) is A W A^T, W being the inverse covariance of the data, `projection` (V, T) A
    W y, `chi_square` (V,) the sum of squared residuals over their variances.
    """

    gram: Tensor
    projection: Tensor
    chi_square: Tensor

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Gram matrices and projections."""
        return self.gram.numpy(), self.projection.numpy()


def estimate_fractions(
    likelihood: MixtureLikelihood, *, full: bool = False, signs: Tensor | None = None
) -> tuple[Tensor, NormalEquations, Tensor]:
    """Maximum likelihood fractions (V, T), normal equations there, convergence (V,).

    Magnitudes do not determine the sign of inverted signals. Signs (V, C) and fractions are
    estimated in turn, from the signs of those mixtures whose magnitudes correlate best with the
    data. Each round is one step of Fisher scoring of the Rician likelihood. `full`: without
    background.
    """
    if signs is None:
        signs = _initial_signs(likelihood, full)
    normal = _normal_equations(likelihood, signs, None)
    fractions = simplex_least_squares(normal.gram, normal.projection, full=full)
    signs, rows = signs.clone(), torch.arange(len(signs))
    for _ in range(_ROUNDS):
        selected, previous = likelihood[rows], fractions[rows]
        predicted = selected.signals(previous)
        new_signs = torch.where(predicted == 0, signs[rows], torch.sign(predicted))
        normal = _normal_equations(selected, new_signs, previous)
        updated = simplex_least_squares(normal.gram, normal.projection, full=full)
        changed = (updated - previous).abs().amax(dim=1) > _CONVERGED
        changed |= (new_signs != signs[rows]).any(dim=1)
        fractions[rows], signs[rows] = updated, new_signs
        rows = rows[changed]
        if len(rows) == 0:
            break
    converged = torch.ones(len(signs), dtype=torch.bool)
    converged[rows] = False
    return fractions, _normal_equations(likelihood, signs, fractions), converged


def _initial_signs(likelihood, full):
    """Signs (V, C) of lowest residual among those of the best correlated mixtures."""
    n_tissues = likelihood.pure_signals.shape[1]
    counts = np.array([*product(range(_MIXTURE_STEPS + 1), repeat=n_tissues)])
    mixtures = torch.tensor(counts[counts.sum(axis=1) == _MIXTURE_STEPS] / _MIXTURE_STEPS)
    signals = mixtures @ likelihood.pure_signals.mean(dim=0)
    patterns, pattern = torch.unique(torch.sign(signals), dim=0, return_inverse=True)
    normalised = (signals / signals.norm(dim=1, keepdim=True).clamp_min(1e-300)).abs()
    correlation = likelihood.data @ normalised.T
    of_patterns = [correlation[:, pattern == k].amax(dim=1) for k in range(len(patterns))]
    order = torch.stack(of_patterns, dim=1).argsort(dim=1, descending=True)[:, :_SIGN_PATTERNS]
    candidates = patterns[order.T]
    if len(candidates) == 1:
        return candidates[0]
    residuals = []
    for signs in candidates:
        normal = _normal_equations(likelihood, signs, None)
        fractions = simplex_least_squares(normal.gram, normal.projection, full=full)
        residual = likelihood.data - likelihood.signals(fractions).abs()
        residuals.append(residual.square().sum(dim=1))
    lowest = torch.stack(residuals).argmin(dim=0)
    return candidates[lowest, torch.arange(len(lowest))]


def estimate_errors(likelihood: MixtureLikelihood, fractions: Tensor) -> Tensor:
    """Posterior mean (V, P) of the errors of the pure signals, given fractions."""
    predicted = likelihood.signals(fractions)
    values, weight, derivatives = _working_data(likelihood, torch.sign(predicted), fractions)
    weighted = derivatives.mT * weight[:, None]
    precision = weighted @ derivatives + torch.eye(derivatives.shape[-1])
    errors = torch.linalg.solve(precision, weighted @ (values - predicted)[..., None])
    return errors[..., 0].clamp(-_LARGEST_ERROR, _LARGEST_ERROR)


def _working_data(likelihood, signs, fractions):
    """Signed working data of Fisher scoring (V, C), their inverse variances, error derivatives."""
    data, sigma = likelihood.data, likelihood.sigma
    if fractions is None or sigma is None:
        return signs * data, torch.ones_like(data), None
    magnitude = likelihood.signals(fractions).abs()
    information = rician_information(magnitude / sigma[:, None])
    score = rician_target(data, magnitude, sigma) - magnitude
    values = signs * (magnitude + score / information)
    weight = information / sigma[:, None] ** 2
    if likelihood.error_signals is None:
        return values, weight, None
    derivatives = likelihood.error_signals(fractions, slice(None))
    return values + (derivatives @ likelihood.errors[..., None])[..., 0], weight, derivatives


def _normal_equations(likelihood, signs, fractions):
    """Normal equations at fractions, or of least squares if None."""
    values, weight, derivatives = _working_data(likelihood, signs, fractions)
    pure = likelihood.pure_signals
    weighted = pure * weight[:, None]
    gram, projection = weighted @ pure.mT, (weighted @ values[..., None])[..., 0]
    squares = (values**2 * weight).sum(dim=1)
    if derivatives is not None:
        # Inverse of diagonal plus low rank (Woodbury identity).
        weighted = derivatives * weight[..., None]
        inner = derivatives.mT @ weighted + torch.eye(derivatives.shape[-1])
        factor, _ = torch.linalg.cholesky_ex(inner)
        of_pure = torch.linalg.solve_triangular(factor, weighted.mT @ pure.mT, upper=False)
        of_data = torch.linalg.solve_triangular(
            factor, weighted.mT @ values[..., None], upper=False
        )
        gram = gram - of_pure.mT @ of_pure
        projection = projection - (of_pure.mT @ of_data)[..., 0]
        squares = squares - (of_data**2).sum(dim=(1, 2))
    if fractions is not None:
        quadratic = torch.einsum("vi,vij,vj->v", fractions, gram, fractions)
        squares = squares - 2 * (fractions * projection).sum(dim=1) + quadratic
    return NormalEquations(gram, projection, squares.clamp_min(0))
