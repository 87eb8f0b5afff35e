"""What all voxels of an image share: tissue constants, scale, bias and B1 fields, noise.

They are found by variable projection: the fractions are the best for them in each voxel, and
Gauss-Newton steps take the residual's slope with fractions following [1]_.

References
----------
.. [1] Golub and Pereyra, Inverse Problems 19 (2003), https://doi.org/10.1088/0266-5611/19/2/201
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.tissue_fractions.fraction_estimation import MixtureLikelihood, solve
from dipy_spinverse.tissue_fractions.signal_table import (
    SignalTable,
    axes_of,
    slopes_by_constants,
    table_of,
)
from dipy_spinverse.voxels.rician import rician_target

UNKNOWNS = ("scale", "bias", "b1", "constants")
_N_CONSTANTS = 4  # of a tissue: proton density, T1, T2, T2'
_MOST_VOXELS, _STEPS = 2000, 25
_BIAS_SD = 0.5
_MOST_DAMPING, _LEAST_GAIN = 1e6, 1e-5
_OUTLIER = 3.0  # residual over the typical one
_TISSUE = 0.5  # of the typical size: smaller voxels are partly background
_LEAST_NOISE = 1e-6  # of the signals


@dataclass(frozen=True, eq=False)
class FieldMaps:
    """What varies over an image, in V voxels.

    Attributes
    ----------
    b1, b0, sensitivity : ndarray (V,)
        As given; 1, 0 and 1 where not.
    basis : ndarray (V, N)
        Low polynomials of the place, the first one constant.
    """

    b1: np.ndarray
    b0: np.ndarray
    sensitivity: np.ndarray
    basis: np.ndarray

    def __getitem__(self, rows) -> FieldMaps:
        return FieldMaps(self.b1[rows], self.b0[rows], self.sensitivity[rows], self.basis[rows])


@dataclass(frozen=True, eq=False)
class SharedParameters:
    """What voxels share, as far as it is known.

    Attributes
    ----------
    constants : Tensor (T, 5)
    log_scale : Tensor (N,)
        Logarithm of the scale, in the polynomials of `FieldMaps.basis`.
    b1 : Tensor (N,)
        B1 over the given one, less 1.
    covariance : Tensor (4 T + N, 4 T + N)
        Of errors of the logarithms of constants, and of `b1`.
    b1_about : float
        Standard deviation of B1 about its polynomials.
    """

    constants: Tensor
    log_scale: Tensor
    b1: Tensor
    covariance: Tensor
    b1_about: float = 0.0

    def scale(self, fields: FieldMaps) -> np.ndarray:
        """Signal (V,) of water of unit magnetisation."""
        return fields.sensitivity * np.exp(fields.basis @ self.log_scale.numpy())

    def b1_of(self, fields: FieldMaps) -> np.ndarray:
        """B1 (V,) as it is known now."""
        return fields.b1 * (1 + fields.basis @ self.b1.numpy())


def polynomials(places: np.ndarray, order: int) -> np.ndarray:
    """Products (V, N) of Legendre polynomials, of total order at most so high.

    Parameters
    ----------
    places : ndarray (V, D)
        Coordinates from -1 to 1.
    order : int
    """
    each = np.polynomial.legendre.legvander(places, order)
    columns = [
        np.ones(len(places)) * np.prod([each[:, d, k] for d, k in enumerate(orders)], axis=0)
        for orders in product(range(order + 1), repeat=places.shape[1])
        if sum(orders) <= order
    ]
    return np.stack(columns, axis=1)


@dataclass(frozen=True, eq=False)
class SharedParameterEstimator:
    """How to find what is shared.

    Attributes
    ----------
    tables : callable
        From constants to a :class:`SignalTable` and the slopes (K, T, C, 4) by constants.
    unknown : tuple of str
        Of `UNKNOWNS`.
    constants_error, b1_error : float
        Standard deviations of constants about those given, relative, and of B1.
    rician : bool
    """

    tables: Callable[[Tensor], tuple[SignalTable, Tensor]]
    unknown: tuple[str, ...]
    constants_error: float
    b1_error: float
    rician: bool

    def __call__(self, data: Tensor, sigma: Tensor | None, fields: FieldMaps, constants: Tensor):
        """What is shared; the noise, where it is not given, and its degrees of freedom."""
        shared = self.beforehand(constants, fields.basis)
        rows = _spread(len(data))
        data, fields = data[rows], fields[rows]
        sigma = None if sigma is None else sigma[rows]
        if "scale" in self.unknown:
            size = self._sizes(data, fields, shared)
            typical = size[size > _TISSUE * np.quantile(size, 0.95)]
            start = torch.zeros_like(shared.log_scale)
            start[0] = float(np.log(np.median(typical)))
            shared = replace(shared, log_scale=start)
            tissue = size > _TISSUE * np.median(typical)
            data, fields = data[tissue], fields[tissue]
            sigma = None if sigma is None else sigma[tissue]
        if self.unknown:
            shared = self._descended(data, sigma, fields, shared)
        return shared, *(self._noise(data, fields, shared) if sigma is None else (None, 0))

    def beforehand(self, constants: Tensor, basis: np.ndarray) -> SharedParameters:
        """What is thought of what voxels share before their data."""
        n_poly = basis.shape[1]
        variances = torch.zeros(_N_CONSTANTS * len(constants) + n_poly, dtype=torch.float64)
        variances[:-n_poly] = self.constants_error**2
        variances[-n_poly] = self.b1_error**2
        zero = torch.zeros(n_poly, dtype=torch.float64)
        return SharedParameters(constants, zero, zero, torch.diag(variances))

    def _problem(self, data, sigma, fields, shared, table):
        columns = table.columns(shared.b1_of(fields), fields.b0)
        columns = columns * torch.tensor(shared.scale(fields))[:, None, None]
        return MixtureLikelihood(data, columns, sigma, rician=self.rician)

    def _sizes(self, data, fields, shared):
        """Sum (V,) of fractions that may be any positive numbers."""
        table, _ = self.tables(shared.constants)
        size = data.mean(dim=1)
        largest = table.columns(shared.b1_of(fields), fields.b0).abs().mean(dim=2).amin(dim=1)
        # Scaled down so far that the sum is below 1 in all voxels.
        down = 10 * size / largest.clamp_min(1e-300)
        problem = self._problem(data / down[:, None], None, fields, shared, table)
        return (solve(problem)[0].sum(dim=1) * down).numpy()

    def _noise(self, data, fields, shared):
        """Standard deviation of the noise from what the fractions leave of the data."""
        table, _ = self.tables(shared.constants)
        problem = self._problem(data, None, fields, shared, table)
        fractions, normal, _ = solve(problem)
        left = data.shape[1] - (fractions > 0).sum(dim=1)
        told, least = left > 0, _LEAST_NOISE * float(data.mean())
        if not told.any():
            return least, 0
        variance = (normal.excess[told] / left[told]).median()
        return max(float(variance.sqrt()), least), int(left[told].sum())

    def _descended(self, data, sigma, fields, shared):
        """Gauss-Newton steps, damped, with outlying voxels weighed down."""
        chosen = self._chosen(shared, data.shape[1])
        prior = torch.cat([
            torch.diagonal(shared.covariance)[: -len(shared.b1)],
            torch.full_like(shared.log_scale, _BIAS_SD**2),
            torch.full_like(shared.b1, self.b1_error**2),
        ])  # fmt: skip
        prior[-2 * len(shared.b1)] = 1e6  # the scale itself is anything
        precision = 1 / prior[chosen].clamp_min(1e-12)
        first, moved, damping = shared, torch.zeros(len(chosen), dtype=torch.float64), 1e-3
        residual, slopes, signs = self._residual(data, sigma, fields, shared, chosen, None)
        for _ in range(_STEPS):
            weight = self._weight(residual, sigma, data)
            cost = _cost(residual, weight, moved, precision)
            slope = torch.einsum("vcp,v,vc->p", slopes, weight, residual) - precision * moved
            square = torch.einsum("vcp,v,vcq->pq", slopes, weight, slopes)
            while damping < _MOST_DAMPING:
                system = square + torch.diag(precision + damping * torch.diagonal(square))
                step = torch.linalg.solve(system, slope)
                trial = self._moved(first, chosen, moved + step)
                new, new_slopes, new_signs = self._residual(
                    data, sigma, fields, trial, chosen, signs
                )
                gain = cost - _cost(new, weight, moved + step, precision)
                if gain >= 0:
                    break
                damping *= 10
            else:
                break
            moved, shared, residual, slopes, signs = (
                moved + step,
                trial,
                new,
                new_slopes,
                new_signs,
            )
            damping = max(damping / 10, 1e-9)
            if gain < _LEAST_GAIN * cost:
                break
        square = square + torch.diag(precision)
        shared = replace(shared, covariance=self._left_open(shared, chosen, square))
        if "b1" not in self.unknown:
            return shared
        own = slopes[..., chosen == _N_CONSTANTS * len(shared.constants) + len(shared.b1)]
        return replace(shared, b1_about=_spread_about(residual, own[..., 0], weight))

    def _weight(self, residual, sigma, data):
        """Weights (V,) of squared residuals, small for outliers (Geman and McClure)."""
        size = residual.square().mean(dim=1).sqrt()
        typical = size.median().clamp_min(_LEAST_NOISE * data.mean())
        noise = typical if sigma is None else sigma
        return 1 / (noise * (1 + (size / (_OUTLIER * typical)) ** 2)) ** 2

    def _chosen(self, shared, n_contrasts):
        """Places of the unknowns among constants, logarithm of scale and B1.

        One image tells no field from tissue: its B1 is a constant.
        """
        n_constants, n_poly = _N_CONSTANTS * len(shared.constants), len(shared.b1)
        bounds = {"constants": (0, n_constants), "scale": (n_constants, n_constants + 1)}
        bounds["bias"] = (n_constants + 1, n_constants + n_poly)
        n_of_b1 = n_poly if n_contrasts > 1 else 1
        bounds["b1"] = (n_constants + n_poly, n_constants + n_poly + n_of_b1)
        return torch.tensor([k for name in UNKNOWNS for k in range(*bounds[name])
                             if name in self.unknown])  # fmt: skip

    def _moved(self, shared, chosen, step):
        n_constants, n_poly = _N_CONSTANTS * len(shared.constants), len(shared.b1)
        whole = torch.zeros(n_constants + 2 * n_poly, dtype=torch.float64)
        whole[chosen] = step
        factor = torch.exp(whole[:n_constants].reshape(-1, _N_CONSTANTS))
        constants = shared.constants.clone()
        constants[:, :_N_CONSTANTS] *= factor
        return replace(
            shared, constants=constants,
            log_scale=shared.log_scale + whole[n_constants : n_constants + n_poly],
            b1=shared.b1 + whole[n_constants + n_poly :],
        )  # fmt: skip

    def _left_open(self, shared, chosen, precision):
        """Covariance of constants and B1 after the data."""
        n_constants, n_poly = _N_CONSTANTS * len(shared.constants), len(shared.b1)
        covariance = torch.zeros((n_constants + 2 * n_poly,) * 2, dtype=torch.float64)
        covariance[chosen[:, None], chosen] = torch.linalg.inv(precision)
        kept = torch.cat([
            torch.arange(n_constants), torch.arange(n_constants + n_poly, n_constants + 2 * n_poly)
        ])  # fmt: skip
        covariance = covariance[kept[:, None], kept]
        before = torch.diagonal(shared.covariance).clone()
        if "constants" in self.unknown:
            before[:n_constants] = 0
        if "b1" in self.unknown:
            before[n_constants:] = 0
        return covariance + torch.diag(before)

    def _residual(self, data, sigma, fields, shared, chosen, signs):
        """What fractions leave (V, C), its slopes (V, C, P) with fractions following; signs."""
        table, by_constants = self.tables(shared.constants)
        problem = self._problem(data, sigma, fields, shared, table)
        fractions = solve(problem, full=True, signs=signs)[0]
        predicted = torch.einsum("vt,vtc->vc", fractions, problem.columns)
        target = data
        if sigma is not None and self.rician:
            target = rician_target(data, predicted.abs(), sigma)
        residual = torch.sign(predicted) * target - predicted
        slopes = self._slopes(fields, shared, table, by_constants, fractions, predicted)
        slopes = slopes[..., chosen]
        slopes = slopes - _followed(slopes, problem.columns, fractions)
        return residual, slopes, torch.sign(predicted)

    def _slopes(self, fields, shared, table, by_constants, fractions, predicted):
        b1, basis = shared.b1_of(fields), torch.tensor(fields.basis)
        scale = torch.tensor(shared.scale(fields))
        weights = table.weights(b1, fields.b0) * scale[:, None]
        mixed = torch.einsum("vk,vt,ktcp->vctp", weights, fractions, by_constants)
        by_b1 = torch.einsum("vt,vtc->vc", fractions, table.slopes(b1, fields.b0))
        by_b1 = by_b1 * (scale * torch.tensor(fields.b1))[:, None]
        of_fields = [each[..., None] * basis[:, None] for each in (predicted, by_b1)]
        return torch.cat([mixed.flatten(2), *of_fields], dim=-1)


def _followed(slopes, columns, fractions):
    """What of slopes (V, C, P) fractions that are not at a bound take up; they sum to 1."""
    last = fractions.argmax(dim=1)
    reference = columns[torch.arange(len(last)), last]
    free = (columns - reference[:, None]) * (fractions > 0)[..., None]
    gram = free @ free.mT
    size = reference.square().sum(dim=1).clamp_min(1e-300)
    gram = gram + 1e-10 * size[:, None, None] * torch.eye(gram.shape[1])
    return free.mT @ torch.linalg.solve(gram, free @ slopes)


def _spread_about(residual, slopes, weight):
    """Standard deviation of voxels' own errors, by the moments of their scores.

    Slopes (V, C) are by an error, with fractions following; residuals of noise alone have scores
    whose variance is the information.
    """
    score = weight * (slopes * residual).sum(dim=1)
    information = weight * (slopes**2).sum(dim=1)
    excess = (score**2 - information).sum() / (information**2).sum().clamp_min(1e-300)
    return float(excess.clamp_min(0).sqrt())


def _cost(residual, weight, moved, precision):
    return 0.5 * (weight * residual.square().sum(dim=1)).sum() + 0.5 * (precision * moved**2).sum()


def _spread(n):
    """Rows of at most so many voxels, evenly."""
    return np.arange(n) if n <= _MOST_VOXELS else np.linspace(0, n - 1, _MOST_VOXELS).astype(int)


@dataclass(frozen=True, eq=False)
class SignalTables:
    """Signal tables of tissues with given constants, with their derivatives."""

    simulator: object
    sequences: tuple
    axes: tuple
    sloped: bool = True

    @classmethod
    def over(
        cls, simulator, sequences, fields: FieldMaps, margin: float, *, sloped=True
    ) -> SignalTables:
        """For all B1 and B0 of an image, with a margin of B1."""
        return cls(simulator, sequences, axes_of(fields.b1, fields.b0, margin), sloped)

    def __call__(self, constants: Tensor) -> tuple[SignalTable, Tensor]:
        table = table_of(self.simulator, self.sequences, constants, self.axes)
        if not self.sloped:
            return table, torch.zeros((*table.signals.shape, _N_CONSTANTS), dtype=torch.float64)
        slopes = slopes_by_constants(self.simulator, self.sequences, constants, self.axes)
        return table, slopes[..., :_N_CONSTANTS]
