"""Model-free description of signals: a Gaussian process over gradient vectors.

Signals of one timing, amplitude and b-tensor shape are a smooth even function of the vector
x = sqrt(b) u. Its covariance is a radial part, which all directions share, plus a part that
depends on the direction; length and variance are those of the largest evidence in each voxel [1]_.
The residual gives the noise of measurements without a model of tissue, and the prediction of a
measurement from the others is the standard to which those of a model are compared.

References
----------
.. [1] Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), ch. 5,
   https://doi.org/10.7551/mitpress/3206.001.0001
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dipy_spinverse.packed_cells.equivalent_pulses import EquivalentPulses, PulsedMeasurements

# Lengths, (ms/um^2)^(1/2), from the decay of free water (0.4) to that across thin axons, and
# variances of the signals over that of the noise: wide grids, in which the evidence chooses.
_LENGTHS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
_VARIANCE_RATIOS = 10 ** np.linspace(-1, 8, 13)
# Share and relative length of the radial part, and lengths of the part of directions: of those
# tried by hand, the largest evidence; what it predicts: benchmarks/results/misfit_size.md.
_RADIAL_SHARE, _RADIAL_LENGTH = 0.9, 3.0
_RADIAL_LENGTH_OF_DIRECTIONS, _LENGTH_OF_DIRECTIONS = 2.0, 1 / 1.6
# More measurements are divided at random: the preparation costs the cube of their number.
_LARGEST_GROUP = 600


class GaussianProcess(NamedTuple):
    """Groups of measurements, and the eigenvectors of their covariances.

    Each of the `rows` (n,) has `eigenvalues` (K, n) and `eigenvectors` (K, n, n) for K kernels.
    """

    rows: list[np.ndarray]
    eigenvalues: list[np.ndarray]
    eigenvectors: list[np.ndarray]


class Smoothing(NamedTuple):
    """Residuals (V, M) of smoothed values, and their degrees of freedom (V, M), both 0 where none.

    The smoothed value depends on the measured one by 1 - freedom.
    """

    residual: np.ndarray
    freedom: np.ndarray

    @property
    def left_out_error(self) -> np.ndarray:
        """Errors (V, M) of values predicted from all others of a group."""
        return self.residual / np.maximum(self.freedom, 1e-12)


def gaussian_process(
    acquisition: PulsedMeasurements, labels: np.ndarray, used: np.ndarray
) -> GaussianProcess:
    """Process of the measurements that are used (M,); those of one label share an amplitude."""
    shape = np.zeros(len(acquisition))
    if isinstance(acquisition, EquivalentPulses):
        shape = acquisition.b_anisotropy.round(2)
    kinds = np.stack([acquisition.timing_index, labels, shape, acquisition.direction_averaged])
    kind = np.unique(kinds, axis=1, return_inverse=True)[1].reshape(-1)
    x = np.sqrt(acquisition.b)[:, None] * acquisition.directions
    # Powder averages depend on b only.
    averaged = acquisition.direction_averaged
    x[averaged] = np.sqrt(acquisition.b[averaged])[:, None] * [1, 0, 0]
    rng, process = np.random.default_rng(0), GaussianProcess([], [], [])
    for k in np.unique(kind[used]):
        members = rng.permutation(np.flatnonzero((kind == k) & used))
        for rows in np.array_split(members, -(-len(members) // _LARGEST_GROUP)):
            values, vectors = np.linalg.eigh(_covariances(x[rows]))
            process.rows.append(rows)
            process.eigenvalues.append(np.maximum(values, 0))
            process.eigenvectors.append(vectors)
    return process


def _covariances(x):
    """Covariances (K, n, n) of two kernels for each length, in units of the variance."""
    r = np.linalg.norm(x, axis=1)
    u = x / np.maximum(r, 1e-9)[:, None]
    radial = (r[:, None] - r) ** 2
    # Signals do not depend on the direction at b = 0; from 1 ms/um^2 on they do.
    weight = np.sqrt(-np.expm1(-(r**2)))
    kernels = []
    for length in _LENGTHS:
        shared = _RADIAL_SHARE * _gaussian(radial, _RADIAL_LENGTH * length)
        by_vector = _even(x, length)
        by_direction = np.outer(weight, weight) * _even(u, _LENGTH_OF_DIRECTIONS * length)
        by_direction *= _gaussian(radial, _RADIAL_LENGTH_OF_DIRECTIONS * length)
        kernels += [shared + (1 - _RADIAL_SHARE) * part for part in (by_vector, by_direction)]
    return np.stack(kernels)


def _even(x, length):
    """Gaussian covariance (n, n) of even functions of vectors (n, 3)."""
    squares = (x**2).sum(axis=1)
    sums, products = squares[:, None] + squares, 2 * x @ x.T
    return (_gaussian(sums - products, length) + _gaussian(sums + products, length)) / 2


def _gaussian(square, length):
    return np.exp(-0.5 * square / length**2)


def smooth(process: GaussianProcess, values: np.ndarray) -> Smoothing:
    """Smoothing of values (V, M), with the covariance of the largest evidence in each voxel."""
    n_values = sum(map(len, process.rows))
    projections = [
        vectors.transpose(0, 2, 1) @ values[:, rows].T
        for rows, vectors in zip(process.rows, process.eigenvectors, strict=True)
    ]
    powers = [projection**2 for projection in projections]
    costs = []
    for ratio in _VARIANCE_RATIOS:
        # The variance of the noise that maximises the evidence is in closed form.
        squares, log_determinant = 0.0, 0.0
        for eigenvalues, power in zip(process.eigenvalues, powers, strict=True):
            variance = 1 + ratio * eigenvalues
            squares = squares + np.einsum("knv,kn->kv", power, 1 / variance)
            log_determinant = log_determinant + np.log(variance).sum(axis=1)[:, None]
        costs.append(n_values * np.log(np.maximum(squares, 1e-300)) + log_determinant)
    n_kernels = 2 * len(_LENGTHS)
    best = np.concatenate(costs).argmin(axis=0)
    ratio, kernel = _VARIANCE_RATIOS[best // n_kernels], best % n_kernels
    smoothing = Smoothing(np.zeros(values.shape), np.zeros(values.shape))
    for k in np.unique(kernel):
        voxels = np.flatnonzero(kernel == k)
        for rows, eigenvalues, vectors, projection in zip(*process, projections, strict=True):
            shrinkage = 1 / (1 + ratio[voxels, None] * eigenvalues[k])
            target = np.ix_(voxels, rows)
            smoothing.residual[target] = (shrinkage * projection[k][:, voxels].T) @ vectors[k].T
            smoothing.freedom[target] = shrinkage @ (vectors[k] ** 2).T
    return smoothing
