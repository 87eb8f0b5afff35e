"""Parameters that all voxels share: tissue constants, scales, bias and B1 fields, noise levels.

Their marginal likelihood (`partial_volume_mixture`) is maximised by a quasi-Newton method, in
coordinates of unit information: that of Berndt et al. [1]_, the outer products of the scores of
voxels, whose inverse is the posterior covariance. What images do not determine keeps its prior.

References
----------
.. [1] Berndt, Hall, Hall and Hausman, Ann. Econ. Soc. Meas. 3 (1974), 653-665
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from dipy_spinverse.tissue_fractions.partial_volume_mixture import (
    PartialVolumeMixture,
    ProfileLikelihood,
)
from dipy_spinverse.tissue_fractions.signal_table import (
    N_CONSTANTS,
    SignalSimulation,
    SignalTable,
)

UNKNOWNS = ("scale", "bias", "b1", "constants")
MOST_VOXELS = 2000  # voxels used: 50 per coefficient of fields of order 4 in three dimensions
# Standard deviations of logarithms: of coefficients of the receive bias, chosen by hand; of the
# scale and the noise, which are in effect unrestricted.
_BIAS_STD, _FREE_STD = 0.5, 10.0
# Prior errors of proton density, T1, T2 and T2' over `constants_error`: water contents differ less
# between methods than relaxation times (https://doi.org/10.3389/fneur.2019.01333).
_RELATIVE_ERRORS = (0.3, 1.0, 1.0, 1.0)
_ROUNDS, _MOST_STEPS = 3, 25  # rounds of parameters and faces in turn, steps in each; by hand
_INITIAL_NOISE = 0.1  # of the mean signal; by hand
_BACKGROUND = 0.05  # expected fraction of voxels of tissue alone, at most; by hand
_SCALES = np.exp(np.linspace(-1.6, 1.0, 27))  # initial scales: brightest tissue over 95 % quantile
# Combinations of initial scales that are kept, voxels for their choice, steps of faces: by hand.
_BEAM, _FEW_VOXELS, _SHARE_STEPS = 3, 1200, 100
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

    `constants` (T, 5); in the polynomials of `FieldMaps.basis` the logarithm of the scale of each
    of G acquisitions (G, N), and B1 over the known one less 1 (N,); `log_noise` (G,); `covariance`
    (P, P) of log constants, log scales, B1 and log noise, P = 4 T + G N + N + G; `b1_scatter`, the
    standard deviation of B1 about its polynomials.
    """

    constants: Tensor
    log_scale: Tensor
    b1: Tensor
    log_noise: Tensor
    covariance: Tensor
    b1_scatter: float = 0.0

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Numbers of log constants, coefficients of scales, of B1, and noise levels."""
        sizes = N_CONSTANTS * len(self.constants), self.log_scale.numel(), len(self.b1)
        return *sizes, len(self.log_noise)

    def scale(self, fields: FieldMaps) -> np.ndarray:
        """Signals (V, G) of water of unit magnetisation."""
        return fields.sensitivity[:, None] * np.exp(fields.basis @ self.log_scale.numpy().T)

    def b1_of(self, fields: FieldMaps) -> np.ndarray:
        """B1 (V,)."""
        return fields.b1 * (1 + fields.basis @ self.b1.numpy())

    def moved(self, step: Tensor) -> SharedParameters:
        """With a step of (log constants, log scales, b1, log noise)."""
        of_constants, of_scale, of_b1, of_noise = step.split(self.sizes)
        constants = self.constants.clone()
        constants[:, :N_CONSTANTS] *= torch.exp(of_constants.reshape(-1, N_CONSTANTS))
        log_scale = self.log_scale + of_scale.reshape(self.log_scale.shape)
        return replace(
            self, constants=constants, log_scale=log_scale, b1=self.b1 + of_b1,
            log_noise=self.log_noise + of_noise,
        )  # fmt: skip

    def draws(self, n: int) -> list[SharedParameters]:
        """Posterior samples in opposite pairs; n is even. Reproducible."""
        random = torch.Generator().manual_seed(0)
        values, vectors = torch.linalg.eigh(self.covariance)
        root = vectors * values.clamp_min(0).sqrt()
        steps = [root @ torch.randn(len(root), generator=random, dtype=root.dtype)
                 for _ in range(n // 2)]  # fmt: skip
        return [self.moved(sign * step) for step in steps for sign in (1, -1)]


@dataclass(frozen=True, eq=False)
class NuisanceErrors:
    """Linear effect of independent errors of standard deviation 1 on constants and B1.

    The first P are errors of constants (`of_constants` (4 T, P), of logarithms), with the errors
    of log scales and B1 that correlate with them (`of_scale` (G, N, P), `of_b1` (N, P), of
    polynomial coefficients). One more is the residual error of B1, of covariance `residual_b1`
    (N, N) and scatter about the polynomials: in one voxel a single number.
    """

    of_constants: Tensor
    of_scale: Tensor
    of_b1: Tensor
    residual_b1: Tensor
    b1_scatter: float

    @classmethod
    def from_shared(cls, shared: SharedParameters) -> NuisanceErrors:
        """From the posterior covariance of shared parameters."""
        n, n_scales, n_b1, _ = shared.sizes
        covariance, b1 = shared.covariance, slice(n + n_scales, n + n_scales + n_b1)
        values, vectors = torch.linalg.eigh(covariance[:n, :n])
        relevant = values > _LEAST_VARIANCE
        std, axes = values[relevant].sqrt(), vectors[:, relevant]
        correlated = covariance[:, :n] @ axes / std
        of_scale = correlated[n : n + n_scales].reshape(*shared.log_scale.shape, len(std))
        residual_b1 = covariance[b1, b1] - correlated[b1] @ correlated[b1].T
        return cls(axes * std, of_scale, correlated[b1], residual_b1, shared.b1_scatter)

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
    """Products (V, N) of Legendre polynomials, of total order k at most `order`, over 1 + k.

    Positions (V, D) are from -1 to 1. The smoother a field, the larger its prior variance.
    """
    factors = np.polynomial.legendre.legvander(positions, order)
    columns = [
        np.ones(len(positions)) * np.prod([factors[:, d, k] for d, k in enumerate(orders)], axis=0)
        / (1 + sum(orders))
        for orders in product(range(order + 1), repeat=positions.shape[1])
        if sum(orders) <= order
    ]  # fmt: skip
    return np.stack(columns, axis=1)


@dataclass(frozen=True, eq=False)
class SharedParameterEstimator:
    """Maximises the marginal likelihood of shared parameters in up to `MOST_VOXELS` voxels.

    `groups` (C,) are the acquisitions of the images: one scale, bias field and noise level each.
    The errors are prior standard deviations: of constants, relative, and of B1.
    """

    simulation: SignalSimulation
    unknown: tuple[str, ...]
    constants_error: float
    b1_error: float
    groups: np.ndarray

    def __call__(
        self, data: Tensor, sigma: Tensor | None, fields: FieldMaps, constants: Tensor
    ) -> tuple[SharedParameters, Tensor]:
        """Shared parameters, and probabilities (F,) of the faces of the simplex.

        Data (V, C), noise (V,) or None.
        """
        rows = evenly_spaced(len(data), MOST_VOXELS)
        data, fields = data[rows], fields[rows]
        shared = self.prior(constants, fields.basis)
        mixture = PartialVolumeMixture(data, len(constants))
        if len(data) == 0:
            return shared, mixture.prior
        if sigma is None:
            noise = _INITIAL_NOISE * data.mean(dim=0)
        else:
            noise = sigma.median().expand(len(self.groups))
        shared = replace(shared, log_noise=torch.log(self._mean_of_groups(noise)))
        free = self._free(shared, sigma is None)
        if "scale" in self.unknown:
            few = evenly_spaced(len(data), _FEW_VOXELS)
            some = replace(mixture, data=data[few]), fields[few]
            tried = [(initial, *self._maximised(*some, initial, free, 1))
                     for initial in self._initial(*some, shared)]  # fmt: skip
            initial, _, share, _, shift = max(tried, key=lambda result: result[3])
        else:
            initial, share, shift = shared, None, None
        start = initial, free, _ROUNDS, shift, share
        shared, share, _, shift = self._maximised(mixture, fields, *start)
        if len(self.groups) > len(constants) and free.any():
            table = self.simulation.table(shared.constants)
            pure, noise = self._signals(mixture, fields, shared, table)
            tissue = (mixture.background(pure, noise, share) < _BACKGROUND).nonzero()[:, 0]
            if len(tissue):
                profile = ProfileLikelihood(data[tissue], noise_is_known=sigma is not None)
                rows = tissue.numpy()
                shared = self._maximised(
                    profile, fields[rows], initial, free, _ROUNDS, shift, share
                )[0]
        if "b1" in self.unknown and sigma is not None:
            scatter = self._b1_scatter(mixture, fields, shared, share)
            shared = replace(shared, b1_scatter=scatter)
        return shared, share

    def prior(self, constants: Tensor, basis: np.ndarray) -> SharedParameters:
        """Shared parameters before any data, and their variances."""
        n, n_groups = basis.shape[1], int(self.groups.max()) + 1
        of_scale = torch.full((n_groups, n), _BIAS_STD)
        of_scale[:, 0] = _FREE_STD
        std = torch.cat([
            self.constants_error * torch.tensor(_RELATIVE_ERRORS * len(constants)),
            of_scale.flatten(), torch.full((n,), self.b1_error),
            torch.full((n_groups,), _FREE_STD),
        ])  # fmt: skip
        zero = torch.zeros(n_groups, n, dtype=torch.float64)
        covariance = torch.diag(std.to(torch.float64) ** 2)
        return SharedParameters(constants, zero, zero[0], zero[:, 0], covariance)

    def tables(self, constants: Tensor) -> tuple[SignalTable, Tensor]:
        """Signals, and their derivatives (K, T, C, 4) by constants: 0 where these are known."""
        table = self.simulation.table(constants)
        if self.constants_error == 0:
            return table, torch.zeros((*table.signals.shape, N_CONSTANTS), dtype=torch.float64)
        return table, self.simulation.derivatives(constants)

    def _mean_of_groups(self, of_images):
        return torch.stack([of_images[torch.tensor(self.groups == g)].mean()
                            for g in range(int(self.groups.max()) + 1)])  # fmt: skip

    def _initial(self, mixture, fields, shared):
        """Parameters with likely combinations of scales, by a beam search over acquisitions."""
        table = self.simulation.table(shared.constants)
        pure = table.pure_signals(shared.b1_of(fields), fields.b0)
        pure = pure * torch.tensor(fields.sensitivity)[:, None, None]
        noise = (_INITIAL_NOISE * mixture.data.mean(dim=0)).clamp_min(1e-300)

        def likelihood(images, factors):
            some = replace(mixture, data=mixture.data[:, images])
            joint = some.log_joint(pure[..., images] * factors, noise[images], mixture.prior)
            return float(torch.logsumexp(joint, dim=1).sum())

        beam = [torch.ones(len(self.groups), dtype=torch.float64)]
        for g in range(len(shared.log_scale)):
            images = torch.tensor(self.groups == g)
            until = torch.tensor(self.groups <= g)
            typical = mixture.data[:, images].quantile(0.95) / pure[..., images].abs().max()
            alone = np.array([likelihood(images, typical / factor) for factor in _SCALES])
            padded = np.pad(alone, 1, constant_values=-np.inf)
            peaks = np.flatnonzero((alone >= padded[:-2]) & (alone >= padded[2:]))
            best = peaks[np.argsort(-alone[peaks])][:_BEAM]
            longer = [torch.where(images, typical / _SCALES[k], old) for old in beam for k in best]
            longer.sort(key=lambda factors: -likelihood(until, factors[until]))
            beam = longer[:_BEAM]
        first = [int(np.flatnonzero(self.groups == g)[0]) for g in range(len(shared.log_scale))]
        for factors in beam:
            log_scale = shared.log_scale.clone()
            log_scale[:, 0] = torch.log(factors[first])
            yield replace(shared, log_scale=log_scale)

    def _maximised(self, mixture, fields, initial, free, n_rounds, shift=None, share=None):
        """Parameters with posterior covariance, probabilities of faces, log posterior, shift.

        The prior is about `initial`; the search starts at the `shift` of its free parameters.
        """
        precision = 1 / torch.diagonal(initial.covariance)[free].clamp_min(1e-12)
        if shift is None:
            shift, share = torch.zeros(len(precision), dtype=torch.float64), mixture.prior

        def moved(shift):
            step = torch.zeros(len(free), dtype=torch.float64)
            step[free] = shift
            return initial.moved(step)

        def information(shift):
            scores = self._scores(mixture, fields, moved(shift), share)[1][:, free]
            return scores.T @ scores + torch.diag(precision)

        def cost(steps):
            """Minus the log posterior, and its gradient, in coordinates of unit information."""
            at = centre + root @ torch.tensor(steps)
            likelihood, scores, _ = self._scores(mixture, fields, moved(at), share)
            gradient = scores.sum(dim=0)[free] - precision * at
            value = 0.5 * (precision * at**2).sum() - likelihood
            return float(value), -(root.T @ gradient).numpy()

        for _ in range(n_rounds if free.any() else 0):
            centre = shift
            root = torch.linalg.inv(torch.linalg.cholesky(information(shift))).T
            options = {"maxiter": _MOST_STEPS, "ftol": 1e-7}
            found = minimize(cost, np.zeros(len(shift)), jac=True, method="L-BFGS-B",
                             options=options)  # fmt: skip
            shift = centre + root @ torch.tensor(found.x)
            if isinstance(mixture, PartialVolumeMixture):
                share = self._share(mixture, fields, moved(shift))
        shared = moved(shift)
        if not free.any():
            share = self._share(mixture, fields, shared)
        posterior = torch.linalg.inv(information(shift))
        # Known scales and noise are exact; errors of known constants and B1 remain.
        kept = torch.ones_like(free)
        kept[shared.sizes[0] : -sum(shared.sizes[2:])] = kept[-shared.sizes[3] :] = False
        covariance = torch.diag(torch.diagonal(initial.covariance) * kept)
        rows = free.nonzero()[:, 0]
        covariance[rows[:, None], rows] = posterior
        likelihood = self._scores(mixture, fields, shared, share)[0]
        log_posterior = float(likelihood - 0.5 * (precision * shift**2).sum())
        if isinstance(mixture, PartialVolumeMixture):
            log_posterior += mixture.log_prior(share)
        return replace(shared, covariance=covariance), share, log_posterior, shift

    def _share(self, mixture, fields, shared):
        """Probabilities of faces where all else is known, by expectation maximisation."""
        table = self.simulation.table(shared.constants)
        pure, noise = self._signals(mixture, fields, shared, table)
        share = mixture.prior
        with_prior = mixture.log_joint(pure, noise, share)
        for _ in range(_SHARE_STEPS):
            change = torch.log(share / mixture.prior)[mixture.face_of_cells]
            share = mixture.updated_share(torch.cat(
                [with_prior[:, :-1] + change, with_prior[:, -1:]], dim=1
            ))  # fmt: skip
        return share

    def _signals(self, mixture, fields, shared, table):
        """Pure signals (V, T, C) in voxels, and noise (C,)."""
        pure = table.pure_signals(shared.b1_of(fields), fields.b0)
        pure = pure * torch.tensor(shared.scale(fields))[:, None, self.groups]
        least = _LEAST_NOISE * mixture.data.mean()
        return pure, torch.exp(shared.log_noise)[self.groups].clamp_min(least)

    def _scores(self, mixture, fields, shared, share):
        """Log-likelihood, its derivatives (V, P) in voxels, updated probabilities of faces."""
        table, by_constants = self.tables(shared.constants)
        b1, basis = shared.b1_of(fields), torch.tensor(fields.basis)
        pure, noise = self._signals(mixture, fields, shared, table)
        likelihood, by_pure, by_noise, share = mixture.scores(pure, noise, share)
        weights = table.weights(b1, fields.b0)
        by_unit = by_pure * torch.tensor(shared.scale(fields))[:, None, self.groups]
        of_constants = torch.einsum("vk,vtc,ktcp->vtp", weights, by_unit, by_constants)
        by_b1 = (by_unit * table.slopes(b1, fields.b0)).sum(dim=(1, 2))
        of_b1 = basis * (by_b1 * torch.tensor(fields.b1))[:, None]
        member = torch.eye(len(shared.log_noise), dtype=torch.float64)[self.groups]
        of_scale = (by_pure * pure).sum(dim=1) @ member
        of_scale = of_scale[:, :, None] * basis[:, None]
        parts = [of_constants, of_scale, of_b1, by_noise @ member]
        return likelihood.sum(), torch.cat([part.flatten(1) for part in parts], dim=1), share

    def _b1_scatter(self, mixture, fields, shared, share):
        """Standard deviation of B1 about its polynomials, by the variance of its scores.

        Of noise alone this variance is the information; it is simulated.
        """
        table = self.simulation.table(shared.constants)
        pure, noise = self._signals(mixture, fields, shared, table)
        simulated = replace(mixture, data=mixture.simulated(pure, noise, share))
        k = sum(shared.sizes[:2])
        score, of_noise = (self._scores(each, fields, shared, share)[1][:, k].square()
                           for each in (mixture, simulated))  # fmt: skip
        # Information squared, of normal scores.
        squares = (of_noise.square() / 3).sum().clamp_min(1e-300)
        return float(((score - of_noise).sum() / squares).clamp_min(0).sqrt())

    def _free(self, shared, noise_is_free):
        """Mask (P,) of the parameters that are estimated."""
        n_constants, n_scales, n_b1, n_noise = shared.sizes
        scale = torch.zeros_like(shared.log_scale, dtype=torch.bool)
        scale[:, 0], scale[:, 1:] = "scale" in self.unknown, "bias" in self.unknown
        b1 = torch.full((n_b1,), "b1" in self.unknown)
        constants = torch.full((n_constants,), "constants" in self.unknown)
        return torch.cat([constants, scale.flatten(), b1, torch.full((n_noise,), noise_is_free)])


def evenly_spaced(n: int, most: int) -> np.ndarray:
    """Indices of at most `most` of n voxels."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(int)
