"""Adaptive importance sampling with mixtures of Student t distributions, then Markov chains.

Every round draws from a mixture that is fitted to all weighted draws so far [1]_; a draw's weight
is relative to the average of all mixtures used [2]_. The mean weight is the evidence. In many
dimensions few draws carry the weight: chains that learn their steps from each other [3]_ start
from them and spread. All voxels share their random numbers, so that a voxel's draws do not
depend on the others.

References
----------
.. [1] Cappe et al., Stat. Comput. 18 (2008), https://doi.org/10.1007/s11222-008-9059-x
.. [2] Cornuet et al., Scand. J. Stat. 39 (2012), https://doi.org/10.1111/j.1467-9469.2011.00756.x
.. [3] ter Braak, Stat. Comput. 16 (2006), https://doi.org/10.1007/s11222-006-8769-1
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, logsumexp

from dipy_spinverse.packed_cells.modes import Modes

# Of the Student t distributions.
_DEGREES_OF_FREEDOM = 5.0
# Initial widths relative to those of the modes.
_INFLATION = 1.5
# Share of the wide component in each mixture, which bounds the weights, and
_DEFENSIVE_WEIGHT = 0.05
# its variance: that of z = ln(u / (1 - u)) for uniform u is 3.3.
_DEFENSIVE_VARIANCE = 4.0
# Relative lengths of the chains' steps; the longest is the best one of a Gaussian target [3]_.
_STEP_LENGTHS = (1.0, 0.5, 0.2)
# Of the chains' steps, relative to the scatter of all.
_STEP_NOISE = 0.05


@dataclass(frozen=True, eq=False)
class WeightedDraws:
    """Draws (V, N, P), logarithms of their weights (V, N), and of the evidence (V,)."""

    places: np.ndarray
    log_weights: np.ndarray
    log_evidence: np.ndarray

    @property
    def effective_size(self) -> np.ndarray:
        """Effective number of draws (V,)."""
        return _effective(self.log_weights)

    def of_voxels(self, index: np.ndarray) -> WeightedDraws:
        """Some of the voxels."""
        return WeightedDraws(self.places[index], self.log_weights[index], self.log_evidence[index])


def importance_draws(
    log_target: Callable[[np.ndarray], np.ndarray],
    modes: Modes,
    *,
    draws_per_round: int,
    rounds: int,
    rng: np.random.Generator,
) -> WeightedDraws:
    """Weighted draws from targets of V voxels, found from their modes.

    Parameters
    ----------
    log_target : callable
        Of draws (V, n, P), to (V, n).
    modes : Modes
    draws_per_round, rounds : int
    rng : numpy Generator
    """
    p = modes.places.shape[2]
    volume = 0.5 * np.linalg.slogdet(modes.covariances)[1]
    log_share = np.where(np.isfinite(modes.costs), -0.5 * modes.costs + 0.5 * volume, -np.inf)
    log_share -= logsumexp(log_share, axis=1, keepdims=True)
    mixture = _with_defence(np.exp(log_share), modes.places, modes.covariances * _INFLATION**2)
    history, targets = [], []
    draws: list[np.ndarray] = []
    densities: list[np.ndarray] = []
    for _ in range(rounds):
        new = _draw(mixture, draws_per_round, rng)
        targets.append(log_target(new))
        densities = [
            np.logaddexp(density, _log_density(mixture, earlier))
            for density, earlier in zip(densities, draws, strict=True)
        ]
        history.append(mixture)
        draws.append(new)
        own = [_log_density(each, new) for each in history]
        densities.append(logsumexp(own, axis=0))
        log_weights = np.concatenate(targets, axis=1) - np.concatenate(densities, axis=1)
        log_weights += np.log(len(history))
        everything = np.concatenate(draws, axis=1)
        mixture = _fitted(mixture, everything, log_weights, p)
    log_evidence = logsumexp(log_weights, axis=1) - np.log(log_weights.shape[1])
    return WeightedDraws(everything, log_weights, log_evidence)


def spread_by_chains(
    draws: WeightedDraws,
    log_target: Callable[[np.ndarray], np.ndarray],
    *,
    n_chains: int,
    steps: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Equally weighted draws (V, n_chains, P): chains of differential evolution from the weighted.

    Either half of the chains moves along differences between members of the other half.
    """
    weights = np.exp(draws.log_weights - logsumexp(draws.log_weights, axis=1, keepdims=True))
    position = rng.permutation((np.arange(n_chains) + rng.random()) / n_chains)
    total = np.cumsum(weights, axis=1)
    total /= total[:, -1:]
    chosen = np.stack([np.searchsorted(t, position) for t in total])
    chosen = np.minimum(chosen, weights.shape[1] - 1)
    row = np.arange(len(weights))[:, None]
    state = draws.places[row, chosen]
    level = log_target(state)
    p, half = state.shape[2], n_chains // 2
    halves = np.arange(half), np.arange(half, n_chains)
    # The first steps part the copies of a draw: they also move by its neighbours' scatter.
    scatter = state.std(axis=1, keepdims=True) + 1e-3
    for step in range(2 * steps):
        moving, others = halves if step % 2 == 0 else halves[::-1]
        a, b = (state[:, rng.choice(others, half)] for _ in range(2))
        length = 2.38 / np.sqrt(2 * p) * rng.choice(_STEP_LENGTHS, (half, 1))
        noise = _STEP_NOISE * rng.standard_normal((half, p)) * scatter
        moved = state[:, moving] + length * (a - b) + noise
        new = log_target(moved)
        accepted = np.log(rng.random(half)) < new - level[:, moving]
        state[:, moving] = np.where(accepted[..., None], moved, state[:, moving])
        level[:, moving] = np.where(accepted, new, level[:, moving])
    return state


def _with_defence(shares, means, covariances):
    """Append a wide component at the centre of the prior."""
    n_voxels, _, p = means.shape
    shares = (1 - _DEFENSIVE_WEIGHT) * shares / shares.sum(axis=1, keepdims=True)
    shares = np.concatenate([shares, np.full((n_voxels, 1), _DEFENSIVE_WEIGHT)], axis=1)
    means = np.concatenate([means, np.zeros((n_voxels, 1, p))], axis=1)
    wide = np.broadcast_to(_DEFENSIVE_VARIANCE * np.eye(p), (n_voxels, 1, p, p))
    return shares, means, np.concatenate([covariances, wide], axis=1)


def _draw(mixture, n, rng):
    shares, means, covariances = mixture
    n_voxels, n_components, p = means.shape
    # Systematic choice of components: the same expectation with less variance.
    position = (np.arange(n) + rng.random()) / n
    component = (position[:, None] > np.cumsum(shares, axis=1)[:, None]).sum(axis=2)
    component = np.minimum(component, n_components - 1)
    normal = rng.standard_normal((n, p))
    scale = np.sqrt(_DEGREES_OF_FREEDOM / rng.chisquare(_DEGREES_OF_FREEDOM, (n, 1)))
    factor = np.linalg.cholesky(covariances)
    row = np.arange(n_voxels)[:, None]
    return means[row, component] + scale * np.einsum(
        "vnpq,nq->vnp", factor[row, component], normal
    )


def _component_densities(mixture, places):
    """Logarithms (V, n, K) of shares times densities, and squared distances."""
    shares, means, covariances = mixture
    p = means.shape[2]
    nu = _DEGREES_OF_FREEDOM
    factor = np.linalg.cholesky(covariances)
    inverse = np.linalg.inv(factor)
    apart = places[:, None] - means[:, :, None]
    white = apart @ np.swapaxes(inverse, 2, 3)
    square = np.einsum("vknp,vknp->vnk", white, white)
    log_norm = gammaln((nu + p) / 2) - gammaln(nu / 2) - 0.5 * p * np.log(nu * np.pi)
    log_det = np.log(np.einsum("vkpp->vkp", factor)).sum(axis=2)
    with np.errstate(divide="ignore"):
        start = np.log(shares) + log_norm - log_det
    return start[:, None] - 0.5 * (nu + p) * np.log1p(square / nu), square


def _log_density(mixture, places):
    return logsumexp(_component_densities(mixture, places)[0], axis=2)


def _fitted(mixture, places, log_weights, p):
    """One step of expectation maximisation on weighted draws, the wide component kept."""
    _, means, covariances = mixture
    weights = _tempered(log_weights, 10 * p)
    densities, square = _component_densities(mixture, places)
    member = np.exp(densities - logsumexp(densities, axis=2, keepdims=True))[..., :-1]
    member = member * weights[..., None]
    share = member.sum(axis=1)
    robust = member * ((_DEGREES_OF_FREEDOM + p) / (_DEGREES_OF_FREEDOM + square[..., :-1]))
    total = robust.sum(axis=1) + 1e-300
    mean = np.einsum("vnk,vnp->vkp", robust, places) / total[..., None]
    apart = places[:, None] - mean[:, :, None]
    weighted = apart * np.swapaxes(robust, 1, 2)[..., None]
    scatter = np.swapaxes(weighted, 2, 3) @ apart / (share[..., None, None] + 1e-300)
    # A component with few draws keeps its place and width.
    size = share**2 / ((member**2).sum(axis=1) + 1e-300)
    trust = (size / (size + 4 * p))[..., None]
    mean = trust * mean + (1 - trust) * means[:, :-1]
    trust = trust[..., None]
    covariance = trust * scatter + (1 - trust) * covariances[:, :-1] + 1e-8 * np.eye(p)
    return _with_defence(share + 1e-12, mean, covariance)


def _tempered(log_weights, least):
    """Normalised weights (V, N), flattened by a power where they leave too few draws."""
    power = np.ones((len(log_weights), 1))
    for _ in range(6):
        few = _effective(power * log_weights) < least
        power[few] *= 0.6
    log_weights = power * log_weights
    return np.exp(log_weights - logsumexp(log_weights, axis=1, keepdims=True))


def _effective(log_weights):
    total = 2 * logsumexp(log_weights, axis=1) - logsumexp(2 * log_weights, axis=1)
    return np.exp(total)
