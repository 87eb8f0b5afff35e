"""Outliers: single measurements without their signal, by motion or faults of the scanner.

Measurements of a group (a shell, repeated b0) are compared with its smooth part: low harmonics,
or the mean.

References
----------
.. [1] Rosner, Technometrics 25 (1983) 165, https://doi.org/10.1080/00401706.1983.10487848
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numba import njit
from scipy.stats import binom, norm, t

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.user_warnings import warn
from dipy_spinverse.voxels.shells import shells_of
from dipy_spinverse.voxels.status import FALSE_REJECTION_RATE

# By hand, for small errors of NODDI with dropouts and few outliers of models with too few fibres
# (tests/test_outliers.py): false outliers per voxel; distance of isolated ones from the smooth
# part of the residual, in standard deviations; share of a group, above which they are a misfit.
_LEVEL, _ISOLATED, _LARGEST_SHARE = 0.01, 2.5, 0.2
_LEVEL_OF_NOISE = 0.02  # false outliers per group in estimates of the noise; by hand
_SCREENED = 0.4  # of the significant decrease, below which no deletion is tried
_MEDIAN_OF_CHI_SQUARE, _TINY = 0.455, 1e-9
_MIN_NOISE = 1e-3  # relative to S0: smaller residuals are those of simulations
_MIN_SHARE = 0.01  # of voxels in which a volume that is reported is an outlier; by hand


def squares_without_outliers(
    residual: np.ndarray, projection: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squares (V,) of residuals (V, N) of a linear fit, and the numbers of outliers.

    `projection` (N, N) maps data to residuals; the noise is unknown. The one whose deletion lowers
    the sum most is deleted, again and again; outliers are all up to the last significant one [1]_,
    so that they do not mask each other.
    """
    n = len(projection)
    freedom = np.maximum(np.arange(n) - 1, 1)
    significant = t.isf(_LEVEL_OF_NOISE / (2 * n), freedom) ** 2
    return _without_largest(residual, projection, significant, int(_LARGEST_SHARE * n))


@njit(cache=True, nogil=True, error_model="numpy")
def _without_largest(residual, projection, significant, most):
    """`significant` (N,) is the decrease over the remaining variance, by degrees of freedom."""
    squares, n_outliers = (residual**2).sum(axis=1), np.zeros(len(residual), np.int64)
    variances = np.maximum(np.diag(projection), _TINY)
    n_freedom = int(np.round(np.trace(projection)))
    factor = np.empty((most, len(projection)))
    for v in range(len(residual)):
        # Most voxels have no candidate, by a variance that outliers hardly change.
        gains = residual[v] ** 2 / variances
        usual = np.median(gains) / _MEDIAN_OF_CHI_SQUARE
        if most == 0 or gains.max() <= _SCREENED * significant[n_freedom] * usual:
            continue
        # Deletions in order are the pivots of a Cholesky factor of the projection.
        r, remaining = residual[v].copy(), np.diag(projection).copy()
        total, freedom = squares[v], n_freedom
        for k in range(min(most, n_freedom - 2)):
            i, gain = 0, 0.0
            for m in range(len(r)):
                if remaining[m] > _TINY and r[m] ** 2 / remaining[m] > gain:
                    i, gain = m, r[m] ** 2 / remaining[m]
            total, freedom = max(total - gain, 0.0), freedom - 1
            if gain * freedom > significant[freedom + 1] * total:
                squares[v], n_outliers[v] = total, k + 1
            column = projection[i].copy()
            for j in range(k):
                column -= factor[j, i] * factor[j]
            factor[k] = column / np.sqrt(column[i])
            r -= column * (r[i] / column[i])
            remaining -= factor[k] ** 2
            r[i], remaining[i] = 0.0, 0.0
    return squares, n_outliers


def outliers_of_fit(
    residual: np.ndarray, acquisition: BaseAcquisition, sigma: np.ndarray | None
) -> np.ndarray:
    """Outliers (V, M) among residuals of a model, over S0 and in units of their noise.

    They are improbable as noise, few, and far from the smooth part of the residual in their group,
    which is a misfit of the model. `sigma` (V,) is the noise, if it was known before the fit; the
    residual of most measurements then replaces it.
    """
    if sigma is None:
        scale = np.median(np.abs(residual), axis=1) / norm.isf(0.25)
    else:
        scale = np.maximum(_MIN_NOISE / sigma, 1)
    residual = residual / np.maximum(scale, _TINY)[:, None]
    improbable = np.abs(residual) > norm.isf(_LEVEL / (2 * residual.shape[1]))
    outliers, voxels = np.zeros_like(improbable), np.flatnonzero(improbable.any(axis=1))
    for rows, smooth in _groups(acquisition) if len(voxels) else ():
        values, candidates = residual[voxels][:, rows], improbable[voxels][:, rows]
        kept = ~candidates
        gram = np.einsum("ns,vn,nt->vst", smooth, kept, smooth) + _TINY * np.eye(smooth.shape[1])
        fit = np.linalg.solve(gram, ((kept * values) @ smooth)[..., None])[..., 0] @ smooth.T
        freedom = np.maximum(kept.sum(axis=1) - smooth.shape[1], 1)
        scatter = np.sqrt(np.maximum((kept * (values - fit) ** 2).sum(axis=1) / freedom, 1))
        # Neighbours among the candidates count: they are a misfit, not isolated.
        beyond = values - (values @ smooth) @ smooth.T
        distance = np.abs(beyond) / np.sqrt(np.maximum(1 - (smooth**2).sum(axis=1), _TINY))
        isolated = candidates & (distance > _ISOLATED * scatter[:, None])
        isolated[candidates.mean(axis=1) > _LARGEST_SHARE] = False
        outliers[voxels[:, None], rows] = isolated
    return outliers


def _groups(acquisition) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Measurements (N,) of shells and of repeated b0, and columns (N, S) of what is smooth."""
    for shell in shells_of(acquisition):
        if shell.order >= 2 or acquisition.isotropic[shell.rows].all():
            yield shell.rows, shell.smooth
    for group in acquisition.repeated_b0:
        yield np.flatnonzero(group), np.full((group.sum(), 1), group.sum() ** -0.5)


def volumes_with_outliers(outliers: np.ndarray) -> dict[int, float]:
    """Volumes and shares of the voxels, where outliers (V, M) are more frequent than elsewhere."""
    if not outliers.any():
        return {}
    n, counts = len(outliers), outliers.sum(axis=0)
    p_value = binom.sf(counts - 1, n, outliers.mean())
    frequent = (p_value * len(counts) < FALSE_REJECTION_RATE) & (counts > max(1, _MIN_SHARE * n))
    return {int(m): float(counts[m] / n) for m in np.flatnonzero(frequent)}


def warn_of_volumes(shares: dict[int, float]) -> None:
    """Warn of volumes that are outliers in these shares of the voxels."""
    if shares:
        listed = ", ".join(f"{m} ({100 * share:.0f} %)" for m, share in shares.items())
        warn(
            f"Volumes {listed} are outliers in these shares of the voxels, more than by chance: "
            "their signal is lost or disturbed, as by motion or the scanner. They were left out "
            "there (fit.outliers). Inspect these volumes, counted from 0."
        )
