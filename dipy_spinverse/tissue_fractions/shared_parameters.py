"""Parameters that all voxels share: tissue constants, scale, bias and B1 fields, noise.

They are estimated by variable projection [1]_: in each voxel the fractions are optimal for them,
and Gauss-Newton steps use the derivatives of the residual with the fractions adapting.

References
----------
.. [1] Golub and Pereyra, Inverse Problems 19 (2003), https://doi.org/10.1088/0266-5611/19/2/201
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.inversion.levenberg_marquardt import Damping, levenberg_marquardt
from dipy_spinverse.tissue_fractions.fraction_estimation import (
    MixtureLikelihood,
    estimate_fractions,
)
from dipy_spinverse.tissue_fractions.signal_table import (
    N_CONSTANTS,
    SignalSimulation,
    SignalTable,
)
from dipy_spinverse.voxels.rician import rician_target

UNKNOWNS = ("scale", "bias", "b1", "constants")
MOST_VOXELS = 2000  # voxels used: 100 per coefficient of fields of order 4 in three dimensions
# Standard deviations of logarithms: of coefficients of the receive bias (a factor of 1.6), chosen
# by hand; of the scale, which is in effect unrestricted.
_BIAS_STD, _SCALE_STD = 0.5, 1e3
# Levenberg-Marquardt: largest number of steps, and the relative gain at which it ends; by hand.
_DAMPING = Damping(initial=1e-3, minimum=1e-9, maximum=1e6, growth=10.0)
_MAX_STEPS, _MIN_GAIN = 50, 1e-5
_OUTLIER = 3.0  # residual of half weight^(1/2), over the median one; by hand
_TISSUE = 0.5  # of the typical signal: weaker voxels are partly background; by hand
_LEAST_VARIANCE = 1e-12  # relative, of constants: smaller errors change no signal
_LEAST_NOISE = 1e-6  # of the mean signal: noise-free data


@dataclass(frozen=True, eq=False)
class FieldMaps:
    """Known fields (V,) in voxels, and polynomials of position (V, N), the first constant."""

    b1: np.ndarray
    b0: np.ndarray
    sensitivity: np.ndarray
    basis: np.ndarray

    def __getitem__(self, rows) -> FieldMaps:
        return FieldMaps(self.b1[rows], self.b0[rows], self.sensitivity[rows], self.basis[rows])


@dataclass(frozen=True, eq=False)
class SharedParameters:
    """Estimates of what voxels share.

    `constants` (T, 5); in the polynomials of `FieldMaps.basis` the logarithm of the scale and B1
    over the known one less 1, both (N,); `covariance` (4 T + N, 4 T + N) of the logarithms of
    constants and of `b1`; `b1_scatter`, the standard deviation of B1 about its polynomials.
    """

    constants: Tensor
    log_scale: Tensor
    b1: Tensor
    covariance: Tensor
    b1_scatter: float = 0.0

    @property
    def n_log_constants(self) -> int:
        """4 T."""
        return N_CONSTANTS * len(self.constants)

    def scale(self, fields: FieldMaps) -> np.ndarray:
        """Signal (V,) of water of unit magnetisation."""
        return fields.sensitivity * np.exp(fields.basis @ self.log_scale.numpy())

    def b1_of(self, fields: FieldMaps) -> np.ndarray:
        """B1 (V,)."""
        return fields.b1 * (1 + fields.basis @ self.b1.numpy())

    def moved(self, selected: Tensor, step: Tensor) -> SharedParameters:
        """With a step of selected entries of (log constants, log scale, b1)."""
        n, n_polynomials = self.n_log_constants, len(self.b1)
        steps = torch.zeros(n + 2 * n_polynomials, dtype=torch.float64)
        steps[selected] = step
        constants = self.constants.clone()
        constants[:, :N_CONSTANTS] *= torch.exp(steps[:n].reshape(-1, N_CONSTANTS))
        log_scale = self.log_scale + steps[n : n + n_polynomials]
        return replace(
            self, constants=constants, log_scale=log_scale, b1=self.b1 + steps[n + n_polynomials :]
        )


@dataclass(frozen=True, eq=False)
class NuisanceErrors:
    """Linear effect of independent errors of standard deviation 1 on constants and B1.

    The first P are errors of constants (`of_constants` (4 T, P), of logarithms), with the errors
    of B1 that correlate with them (`of_b1` (N, P), of polynomial coefficients). One more is the
    residual error of B1, of covariance `residual_b1` (N, N) and scatter about the polynomials: in
    one voxel a single number, whatever polynomials it is made of.
    """

    of_constants: Tensor
    of_b1: Tensor
    residual_b1: Tensor
    b1_scatter: float

    @classmethod
    def from_shared(cls, shared: SharedParameters) -> NuisanceErrors:
        """From the posterior covariance of shared parameters."""
        covariance, n_constants = shared.covariance, len(shared.covariance) - len(shared.b1)
        values, vectors = torch.linalg.eigh(covariance[:n_constants, :n_constants])
        relevant = values > _LEAST_VARIANCE
        std, axes = values[relevant].sqrt(), vectors[:, relevant]
        of_b1 = covariance[n_constants:, :n_constants] @ axes / std
        residual_b1 = covariance[n_constants:, n_constants:] - of_b1 @ of_b1.T
        return cls(axes * std, of_b1, residual_b1, shared.b1_scatter)

    @property
    def number(self) -> int:
        """Of errors."""
        b1_varies = self.b1_scatter > 0 or bool((self.residual_b1 != 0).any())
        return self.of_constants.shape[1] + b1_varies

    def of_b1_in(self, basis: Tensor) -> Tensor:
        """Effect (V, number) on relative B1 in voxels with polynomials `basis` (V, N)."""
        variance = torch.einsum("vi,ij,vj->v", basis, self.residual_b1, basis).clamp_min(0)
        residual = torch.sqrt(variance + self.b1_scatter**2)
        return torch.cat([basis @ self.of_b1, residual[:, None]], dim=1)[:, : self.number]


def polynomials(positions: np.ndarray, order: int) -> np.ndarray:
    """Products (V, N) of Legendre polynomials, of total order at most `order`.

    Positions (V, D) are from -1 to 1.
    """
    factors = np.polynomial.legendre.legvander(positions, order)
    columns = [
        np.ones(len(positions)) * np.prod([factors[:, d, k] for d, k in enumerate(orders)], axis=0)
        for orders in product(range(order + 1), repeat=positions.shape[1])
        if sum(orders) <= order
    ]
    return np.stack(columns, axis=1)


@dataclass(frozen=True, eq=False)
class SharedParameterEstimator:
    """Estimates shared parameters from the images of up to `MOST_VOXELS` voxels.

    The errors are prior standard deviations: of constants, relative, and of B1.
    """

    simulation: SignalSimulation
    unknown: tuple[str, ...]
    constants_error: float
    b1_error: float

    def __call__(self, data: Tensor, sigma: Tensor | None, fields: FieldMaps, constants: Tensor):
        """Shared parameters; and, if sigma is None, the noise and its degrees of freedom."""
        shared = self.prior(constants, fields.basis)
        rows = evenly_spaced(len(data), MOST_VOXELS)
        data, fields = data[rows], fields[rows]
        sigma = None if sigma is None else sigma[rows]
        if "scale" in self.unknown:
            amounts = self._water_amounts(data, fields, shared)
            typical = np.median(amounts[amounts > _TISSUE * np.quantile(amounts, 0.95)])
            log_scale = torch.zeros_like(shared.log_scale)
            log_scale[0] = float(np.log(typical))
            shared = replace(shared, log_scale=log_scale)
            tissue = amounts > _TISSUE * typical
            data, fields = data[tissue], fields[tissue]
            sigma = None if sigma is None else sigma[tissue]
        if self.unknown:
            shared = self._minimised(data, sigma, fields, shared)
        return shared, *(self._noise(data, fields, shared) if sigma is None else (None, 0))

    def prior(self, constants: Tensor, basis: np.ndarray) -> SharedParameters:
        """Shared parameters before any data."""
        n_polynomials = basis.shape[1]
        variances = torch.zeros(N_CONSTANTS * len(constants) + n_polynomials, dtype=torch.float64)
        variances[:-n_polynomials] = self.constants_error**2
        variances[-n_polynomials] = self.b1_error**2
        zero = torch.zeros(n_polynomials, dtype=torch.float64)
        return SharedParameters(constants, zero, zero, torch.diag(variances))

    def tables(self, constants: Tensor) -> tuple[SignalTable, Tensor]:
        """Signals, and their derivatives (K, T, C, 4) by constants: 0 where these are known."""
        table = self.simulation.table(constants)
        if self.constants_error == 0:
            return table, torch.zeros((*table.signals.shape, N_CONSTANTS), dtype=torch.float64)
        return table, self.simulation.derivatives(constants)

    def _likelihood(self, data, sigma, fields, shared, table):
        pure_signals = table.pure_signals(shared.b1_of(fields), fields.b0)
        scale = torch.tensor(shared.scale(fields))[:, None, None]
        return MixtureLikelihood(data, pure_signals * scale, sigma)

    def _water_amounts(self, data, fields, shared):
        """Sum (V,) of the best nonnegative combination of tissues, of any sum."""
        table = self.simulation.table(shared.constants)
        pure_signals = table.pure_signals(shared.b1_of(fields), fields.b0)
        weakest = pure_signals.abs().mean(dim=2).amin(dim=1).clamp_min(1e-300)
        # Scaled so that the sum is below 1 in all voxels and the constraint is inactive.
        factor = 10 * data.mean(dim=1) / weakest
        likelihood = self._likelihood(data / factor[:, None], None, fields, shared, table)
        return (estimate_fractions(likelihood)[0].sum(dim=1) * factor).numpy()

    def _noise(self, data, fields, shared):
        """Standard deviation of the noise from the residuals, and its degrees of freedom."""
        table = self.simulation.table(shared.constants)
        likelihood = self._likelihood(data, None, fields, shared, table)
        fractions, normal, _ = estimate_fractions(likelihood)
        freedom = data.shape[1] - (fractions > 0).sum(dim=1)
        overdetermined, lowest = freedom > 0, _LEAST_NOISE * float(data.mean())
        if not overdetermined.any():
            return lowest, 0
        freedom = freedom[overdetermined]
        variance = (normal.chi_square[overdetermined] / freedom).median()
        return max(float(variance.sqrt()), lowest), int(freedom.sum())

    def _minimised(self, data, sigma, fields, shared):
        """Levenberg-Marquardt with robust weights, from `shared`."""
        initial, selected = shared, self._selected(shared, data.shape[1])
        precision = self._prior_precision(shared)[selected]
        shift, weight = torch.zeros(len(selected), dtype=torch.float64), None
        hessian = torch.diag(precision)
        state = self._residual(data, sigma, fields, shared, selected, None)

        def advance(_, damping):
            nonlocal shift, shared, state, weight, hessian
            residual, slopes, signs = state
            weight = self._weight(residual, sigma, data)
            cost = _cost(residual, weight, shift, precision)
            gradient = torch.einsum("vcp,v,vc->p", slopes, weight, residual) - precision * shift
            hessian = torch.einsum("vcp,v,vcq->pq", slopes, weight, slopes)
            damped = hessian + torch.diag(precision + damping * torch.diagonal(hessian))
            new_shift = shift + torch.linalg.solve(damped, gradient)
            candidate = initial.moved(selected, new_shift)
            evaluated = self._residual(data, sigma, fields, candidate, selected, signs)
            gain = cost - _cost(evaluated[0], weight, new_shift, precision)
            accepted = gain >= 0
            if accepted:
                shift, shared, state = new_shift, candidate, evaluated
            converged = accepted and gain < _MIN_GAIN * cost
            return torch.tensor([accepted]), torch.tensor([converged]), torch.tensor(0.1)

        levenberg_marquardt(advance, shift[:1], _DAMPING, _MAX_STEPS)
        posterior = torch.linalg.inv(hessian + torch.diag(precision))
        shared = replace(shared, covariance=self._covariance(shared, selected, posterior))
        if "b1" not in self.unknown:
            return shared
        residual, slopes, _ = state
        by_b1 = slopes[..., selected == shared.n_log_constants + len(shared.b1)][..., 0]
        return replace(shared, b1_scatter=_scatter(residual, by_b1, weight))

    def _prior_precision(self, shared):
        """Of log constants, log scale and b1."""
        variance = torch.cat([
            torch.diagonal(shared.covariance)[: -len(shared.b1)],
            torch.full_like(shared.log_scale, _BIAS_STD**2),
            torch.full_like(shared.b1, self.b1_error**2),
        ])  # fmt: skip
        variance[shared.n_log_constants] = _SCALE_STD**2
        return 1 / variance.clamp_min(1e-12)

    def _weight(self, residual, sigma, data):
        """Weights (V,) of squared residuals, small for outliers (Geman and McClure)."""
        size = residual.square().mean(dim=1).sqrt()
        typical = size.median().clamp_min(_LEAST_NOISE * data.mean())
        noise = typical if sigma is None else sigma
        return 1 / (noise * (1 + (size / (_OUTLIER * typical)) ** 2)) ** 2

    def _selected(self, shared, n_contrasts):
        """Indices of the unknowns among log constants, log scale and b1.

        One image does not separate fields from tissues: its B1 is a constant.
        """
        n, n_polynomials = shared.n_log_constants, len(shared.b1)
        first_b1 = n + n_polynomials
        bounds = {
            "constants": (0, n), "scale": (n, n + 1), "bias": (n + 1, first_b1),
            "b1": (first_b1, first_b1 + (n_polynomials if n_contrasts > 1 else 1)),
        }  # fmt: skip
        return torch.tensor([k for name in UNKNOWNS for k in range(*bounds[name])
                             if name in self.unknown])  # fmt: skip

    def _covariance(self, shared, selected, posterior):
        """Of constants and b1: posterior if unknown, else prior."""
        n, n_polynomials = shared.n_log_constants, len(shared.b1)
        covariance = torch.zeros((n + 2 * n_polynomials,) * 2, dtype=torch.float64)
        covariance[selected[:, None], selected] = posterior
        kept = torch.tensor([*range(n), *range(n + n_polynomials, n + 2 * n_polynomials)])
        covariance = covariance[kept[:, None], kept]
        prior = torch.diagonal(shared.covariance).clone()
        if "constants" in self.unknown:
            prior[:n] = 0
        if "b1" in self.unknown:
            prior[n:] = 0
        return covariance + torch.diag(prior)

    def _residual(self, data, sigma, fields, shared, selected, signs):
        """Residuals (V, C), their derivatives (V, C, P) with fractions adapting, and signs."""
        table, by_constants = self.tables(shared.constants)
        likelihood = self._likelihood(data, sigma, fields, shared, table)
        fractions = estimate_fractions(likelihood, full=True, signs=signs)[0]
        predicted = likelihood.signals(fractions)
        target = data if sigma is None else rician_target(data, predicted.abs(), sigma)
        residual = torch.sign(predicted) * target - predicted
        slopes = self._slopes(fields, shared, table, by_constants, fractions, predicted)
        slopes = slopes[..., selected]
        slopes = slopes - _projected(slopes, likelihood.pure_signals, fractions)
        return residual, slopes, torch.sign(predicted)

    def _slopes(self, fields, shared, table, by_constants, fractions, predicted):
        """Derivatives (V, C, 4 T + 2 N) of signals at given fractions."""
        b1, basis = shared.b1_of(fields), torch.tensor(fields.basis)
        scale = torch.tensor(shared.scale(fields))
        weights = table.weights(b1, fields.b0) * scale[:, None]
        of_constants = torch.einsum("vk,vt,ktcp->vctp", weights, fractions, by_constants)
        by_b1 = torch.einsum("vt,vtc->vc", fractions, table.slopes(b1, fields.b0))
        by_b1 = by_b1 * (scale * torch.tensor(fields.b1))[:, None]
        of_fields = [slope[..., None] * basis[:, None] for slope in (predicted, by_b1)]
        return torch.cat([of_constants.flatten(2), *of_fields], dim=-1)


def evenly_spaced(n: int, most: int) -> np.ndarray:
    """Indices of at most `most` of n voxels."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(int)


def _projected(slopes, pure_signals, fractions):
    """Component of slopes (V, C, P) that fractions within the simplex can compensate."""
    largest = fractions.argmax(dim=1)
    reference = pure_signals[torch.arange(len(largest)), largest]
    directions = (pure_signals - reference[:, None]) * (fractions > 0)[..., None]
    gram = directions @ directions.mT
    size = reference.square().sum(dim=1).clamp_min(1e-300)
    gram = gram + 1e-10 * size[:, None, None] * torch.eye(gram.shape[1])
    return directions.mT @ torch.linalg.solve(gram, directions @ slopes)


def _scatter(residual, slopes, weight):
    """Standard deviation of an error that differs between voxels, by the moments of their scores.

    Slopes (V, C) are by the error, with fractions adapting; of noise alone the variance of the
    score is the information.
    """
    score = weight * (slopes * residual).sum(dim=1)
    information = weight * (slopes**2).sum(dim=1)
    variance = (score**2 - information).sum() / (information**2).sum().clamp_min(1e-300)
    return float(variance.clamp_min(0).sqrt())


def _cost(residual, weight, shift, precision):
    return 0.5 * (weight * residual.square().sum(dim=1)).sum() + 0.5 * (precision * shift**2).sum()
