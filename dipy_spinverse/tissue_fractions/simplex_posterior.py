"""Posterior of fractions: truncated normal densities on the faces of the simplex.

A voxel is a mixture of up to four of the classes: a face of the simplex, with a uniform prior of
fractions. The posterior of face and fractions is integrated by quadrature, the last coordinate
analytically, and sampled coordinate by coordinate with a low-discrepancy sequence: samples need
no seed and no burn-in, and do not depend on other voxels.
"""

from __future__ import annotations

from math import erf, erfc, exp, inf, log, log1p, pi, sqrt

import numpy as np
from numba import njit, prange

from dipy_spinverse.tissue_fractions.simplex_least_squares import (
    density_on_face,
    faces_of,
    with_background,
)

MOST_TISSUES = 5
MOST_MIXED = 4  # classes in one voxel: quadrature in at most three coordinates
# Cells of a coordinate, and refinements of its range: errors of quantiles of 1/20 of the range of
# non-negligible density, which test_draws_have_the_moments_of_the_density bounds.
_NODES, _REFINEMENTS = 20, 12
_NEGLIGIBLE = 14.0  # log density below the maximum: 1e-6
_TAIL = 5.0  # standard deviations, beyond which asymptotic expansions have errors below 1e-3
# R2 sequence, powers of the reciprocal plastic number (Roberts, 2018,
# http://extremelearning.com.au/unreasonable-effectiveness-of-quasirandom-sequences).
_STEPS = (0.7548776662466927, 0.5698402909980532)
_REACH = 6.5  # standard deviations of the initial range about the mode
_REFINED = 0.5  # refine while the relevant range is less than this fraction of the grid
_LEAST_PRECISION, _LEAST_DETERMINANT = 1e-6, 1e-13  # regularisation of undetermined fractions
_IMPURITY = (0.01, 0.3)  # by hand, on the phantom of benchmarks/ordinary_images.py


@njit(cache=True, nogil=True)
def _log_mass(a, b):
    """Log probability of a standard normal variable between a < b."""
    if a + b > 0:
        a, b = -b, -a
    if b < -_TAIL:
        # Asymptotic expansion of the tail.
        tail = -0.5 * b * b - log(-b * sqrt(2 * pi)) - 1 / (b * b)
        return tail + log1p(-exp(max(-0.5 * (a * a - b * b) + log(b / a), -700.0)))
    mass = 0.5 * (erfc(-b / sqrt(2.0)) - erfc(-a / sqrt(2.0)))
    if a > -1 and b < 1:
        mass = 0.5 * (erf(b / sqrt(2.0)) - erf(a / sqrt(2.0)))
    return log(max(mass, 1e-300))


@njit(cache=True, nogil=True)
def _quantile(p):
    """Of the standard normal distribution, to 1e-9 (rational approximation by Acklam)."""
    if p > 0.5:
        return -_quantile(1 - p)
    p = max(p, 1e-300)
    if p < 0.02425:
        q = sqrt(-2 * log(p))
        top = ((((-7.784894002430293e-03 * q - 3.223964580411365e-01) * q
                 - 2.400758277161838e00) * q - 2.549732539343734e00) * q
               + 4.374664141464968e00) * q + 2.938163982698783e00  # fmt: skip
        low = (((7.784695709041462e-03 * q + 3.224671290700398e-01) * q
                + 2.445134137142996e00) * q + 3.754408661907416e00) * q + 1  # fmt: skip
        return top / low
    q = p - 0.5
    r = q * q
    top = (((((-3.969683028665376e01 * r + 2.209460984245205e02) * r
              - 2.759285104469687e02) * r + 1.383577518672690e02) * r
            - 3.066479806614716e01) * r + 2.506628277459239e00) * q  # fmt: skip
    low = ((((-5.447609879822406e01 * r + 1.615858368580409e02) * r
             - 1.556989798598866e02) * r + 6.680131188771972e01) * r
           - 1.328068155288572e01) * r + 1  # fmt: skip
    return top / low


@njit(cache=True, nogil=True)
def truncated_quantile(a, b, u):
    """The u-quantile of a standard normal variable truncated to a < b."""
    if a + b > 0:
        return -truncated_quantile(-b, -a, 1 - u)
    if b < -_TAIL:  # nearly exponential, rising to b
        rate = -b
        mass = 1 - exp(max(rate * (a - b), -700.0))
        return max(b + log(max(1 - (1 - u) * mass, 1e-300)) / rate, a)
    low, high = 0.5 * erfc(-a / sqrt(2.0)), 0.5 * erfc(-b / sqrt(2.0))
    return min(max(_quantile(low + u * (high - low)), a), b)


@njit(cache=True, nogil=True)
def log_line_integral(g, b, length):
    """Logarithm of the integral of exp(b x - g x^2 / 2) from 0 to `length`."""
    if length <= 0:
        return -inf
    mean, root = b / g, sqrt(g)
    return 0.5 * b * mean + 0.5 * log(2 * pi / g) + _log_mass(-mean * root, (length - mean) * root)


@njit(cache=True, nogil=True)
def _mode_on_triangle(a, c, d, p, q, total):
    """Mode of p x + q y - (a x^2 + 2 c x y + d y^2) / 2 on a triangle, and its height."""
    determinant = max(a * d - c * c, _LEAST_DETERMINANT * a * d)
    x, y = (d * p - c * q) / determinant, (a * q - c * p) / determinant
    if x >= 0 and y >= 0 and x + y <= total:
        return x, y, p * x + q * y - 0.5 * (a * x * x + 2 * c * x * y + d * y * y)
    # Otherwise on an edge; on the hypotenuse y = total - x.
    curvature = max(a - 2 * c + d, _LEAST_PRECISION)
    hypotenuse = min(max((p - q + (d - c) * total) / curvature, 0.0), total)
    edges = (
        (min(max(p / a, 0.0), total), 0.0), (0.0, min(max(q / d, 0.0), total)),
        (hypotenuse, total - hypotenuse),
    )  # fmt: skip
    maximum = (0.0, 0.0, -inf)
    for x, y in edges:
        height = p * x + q * y - 0.5 * (a * x * x + 2 * c * x * y + d * y * y)
        if height > maximum[2]:
            maximum = (x, y, height)
    return maximum


@njit(cache=True, nogil=True)
def _mode_on_tetrahedron(g, b):
    """First coordinate of the mode of b x - x g x / 2 on the tetrahedron, and its std."""
    minor = max(g[1, 1] * g[2, 2] - g[1, 2] ** 2, _LEAST_DETERMINANT * g[1, 1] * g[2, 2])
    # Conditional modes of the other two coordinates are linear in the first.
    slope_y = (g[0, 1] * g[2, 2] - g[0, 2] * g[1, 2]) / minor
    slope_z = (g[0, 2] * g[1, 1] - g[0, 1] * g[1, 2]) / minor
    precision = g[0, 0] - g[0, 1] * slope_y - g[0, 2] * slope_z
    precision = max(precision, _LEAST_DETERMINANT * g[0, 0])
    x = (b[0] - b[1] * slope_y - b[2] * slope_z) / precision
    y = (b[1] * g[2, 2] - b[2] * g[1, 2]) / minor - slope_y * x
    z = (b[2] * g[1, 1] - b[1] * g[1, 2]) / minor - slope_z * x
    if x >= 0 and y >= 0 and z >= 0 and x + y + z <= 1:
        return x, 1 / sqrt(precision)
    mode, _, height = _mode_on_triangle(g[0, 0], g[0, 1], g[1, 1], b[0], b[1], 1.0)
    candidate, _, higher = _mode_on_triangle(g[0, 0], g[0, 2], g[2, 2], b[0], b[2], 1.0)
    if higher > height:
        mode, height = candidate, higher
    _, _, higher = _mode_on_triangle(g[1, 1], g[1, 2], g[2, 2], b[1], b[2], 1.0)
    if higher > height:
        mode, height = 0.0, higher
    # On the last triangle z = 1 - x - y.
    candidate, _, higher = _mode_on_triangle(
        g[0, 0] - 2 * g[0, 2] + g[2, 2], g[0, 1] - g[0, 2] - g[1, 2] + g[2, 2],
        g[1, 1] - 2 * g[1, 2] + g[2, 2], b[0] - b[2] + g[2, 2] - g[0, 2],
        b[1] - b[2] + g[2, 2] - g[1, 2], 1.0,
    )  # fmt: skip
    if higher + b[2] - 0.5 * g[2, 2] > height:
        mode = candidate
    return mode, 1 / sqrt(precision)


@njit(cache=True, nogil=True)
def _triangle(g, b, total, masses):
    """`_grid` in two dimensions, separate because numba lacks recursion."""
    if total <= 0:
        return 0.0, 0.0, -inf
    x, _, _ = _mode_on_triangle(g[0, 0], g[0, 1], g[1, 1], b[0], b[1], total)
    precision = max(g[0, 0] - g[0, 1] ** 2 / g[1, 1], _LEAST_DETERMINANT * g[0, 0])
    low, width = _around(x, 1 / sqrt(precision), total)
    for _ in range(_REFINEMENTS):
        step, largest = width / _NODES, -inf
        for k in range(_NODES):
            x = low + (k + 0.5) * step
            log_factor = b[0] * x - 0.5 * g[0, 0] * x * x
            masses[k] = log_factor + log_line_integral(g[1, 1], b[1] - g[0, 1] * x, total - x)
            largest = max(largest, masses[k])
        start, stop = _relevant_range(masses, largest, low, step, total)
        if stop - start > _REFINED * width:
            break
        low, width = start, stop - start
    return low, step, _to_masses(masses, largest, step)


@njit(cache=True, nogil=True)
def _grid(g, b, dim, masses, spare):
    """Probabilities of cells of the first coordinate, over its range of relevant density.

    Returns start and width of the cells, and the log integral over the face.
    """
    if dim == 2:
        return _triangle(g, b, 1.0, masses)
    low, width = _around(*_mode_on_tetrahedron(g, b), 1.0)
    conditional = np.empty(2)
    for _ in range(_REFINEMENTS):
        step, largest = width / _NODES, -inf
        for k in range(_NODES):
            x = low + (k + 0.5) * step
            conditional[0], conditional[1] = b[1] - g[0, 1] * x, b[2] - g[0, 2] * x
            log_factor = b[0] * x - 0.5 * g[0, 0] * x * x
            masses[k] = log_factor + _triangle(g[1:, 1:], conditional, 1 - x, spare)[2]
            largest = max(largest, masses[k])
        start, stop = _relevant_range(masses, largest, low, step, 1.0)
        if stop - start > _REFINED * width:
            break
        low, width = start, stop - start
    return low, step, _to_masses(masses, largest, step)


@njit(cache=True, nogil=True)
def _around(x, sd, total):
    """Start and width of a range about x."""
    low = max(x - _REACH * sd, 0.0)
    return low, min(x + _REACH * sd, total) - low


@njit(cache=True, nogil=True)
def _relevant_range(logs, largest, low, step, total):
    """Range of cells of relevant density, and one more on both sides."""
    lowest, highest = _NODES, -1
    for k in range(_NODES):
        if logs[k] > largest - _NEGLIGIBLE:
            lowest, highest = min(lowest, k), k
    return max(low + (lowest - 0.5) * step, 0.0), min(low + (highest + 1.5) * step, total)


@njit(cache=True, nogil=True)
def _to_masses(logs, largest, step):
    """Normalise log densities to probabilities, in place; return the log integral."""
    summed = 0.0
    for k in range(_NODES):
        logs[k] = exp(logs[k] - largest)
        summed += logs[k]
    for k in range(_NODES):
        logs[k] /= summed
    return largest + log(summed * step)


@njit(cache=True, nogil=True)
def _on_face(gram, projection, face, dim, g, b):
    constant = density_on_face(gram, projection, face, dim, g, b)
    for i in range(dim):
        g[i, i] += _LEAST_PRECISION
    return constant


@njit(cache=True, nogil=True)
def _log_evidence(gram, projection, face, dim, g, b, masses, spare):
    """Grid of a face, and its log mean density."""
    constant = _on_face(gram, projection, face, dim, g, b)
    if dim == 0:
        return 0.0, 0.0, constant
    if dim == 1:
        return 0.0, 0.0, constant + log_line_integral(g[0, 0], b[0], 1.0)
    low, step, log_integral = _grid(g, b, dim, masses, spare)
    return low, step, constant + log_integral + log(2.0 if dim == 2 else 6.0)


@njit(cache=True, nogil=True, parallel=True)
def _samples(gram, projection, faces, dims, log_prior, n, steps):
    n_voxels, n_faces = len(gram), len(faces)
    result = np.zeros((n_voxels, n, gram.shape[1]), np.float32)
    for v in prange(n_voxels):
        g, b = np.empty((3, 3)), np.empty(3)
        masses, spare = np.empty((n_faces, _NODES)), np.empty(_NODES)
        lows, widths, share = np.empty(n_faces), np.empty(n_faces), np.empty(n_faces)
        for f in range(n_faces):
            lows[f], widths[f], share[f] = _log_evidence(
                gram[v], projection[v], faces[f], dims[f], g, b, masses[f], spare
            )
        share += log_prior
        share = np.exp(share - share.max())
        share /= share.sum()
        start, summed = 0, 0.0
        for f in range(n_faces):
            summed += share[f]
            stop = n if f == n_faces - 1 else min(int(round(summed * n)), n)
            if stop > start:
                _on_face(gram[v], projection[v], faces[f], dims[f], g, b)
                _sample_face(
                    result[v, start:stop], faces[f], dims[f], g, b, lows[f], widths[f], masses[f],
                    spare, steps,
                )  # fmt: skip
            start = max(start, stop)
    return result


@njit(cache=True, nogil=True)
def _sample_face(samples, face, dim, g, b, low, step, masses, spare, steps):
    """Samples (n, K) on a face, ordered by its first coordinate."""
    n, reference = len(samples), face[dim]
    cell, cumulative, inner, start, width = 0, 0.0, -1, 0.0, 0.0
    x, conditional = np.zeros(3), np.empty(2)
    for k in range(n):
        u = (k + 0.5) / n
        if dim == 1:
            x[0] = _sample_line(g[0, 0], b[0], 1.0, u)
        elif dim > 1:
            while cell < _NODES - 1 and u > cumulative + masses[cell]:
                cumulative += masses[cell]
                cell += 1
            inside = min((u - cumulative) / max(masses[cell], 1e-300), 1.0)
            x[0] = low + (cell + inside) * step
            u2, u3 = ((k + 0.5) * steps[0]) % 1, ((k + 0.5) * steps[1]) % 1
        if dim == 2:
            x[1] = _sample_line(g[1, 1], b[1] - g[0, 1] * x[0], 1 - x[0], u2)
        if dim == 3:
            middle = low + (cell + 0.5) * step
            if inner != cell:
                conditional[0], conditional[1] = b[1] - g[0, 1] * middle, b[2] - g[0, 2] * middle
                start, width, _ = _triangle(g[1:, 1:], conditional, 1 - middle, spare)
                inner = cell
            # The grid at the centre of the cell, shifted with the conditional mean.
            slope = -(g[0, 1] - g[0, 2] * g[1, 2] / g[2, 2]) / (g[1, 1] - g[1, 2] ** 2 / g[2, 2])
            coordinate = _sample_cells(spare, start, width, u2) + slope * (x[0] - middle)
            x[1] = min(max(coordinate, 0.0), 1 - x[0])
            linear = b[2] - g[0, 2] * x[0] - g[1, 2] * x[1]
            x[2] = _sample_line(g[2, 2], linear, 1 - x[0] - x[1], u3)
        remainder = 1.0
        for i in range(dim):
            samples[k, face[i]] = x[i]
            remainder -= x[i]
        samples[k, reference] = max(remainder, 0.0)


@njit(cache=True, nogil=True)
def _sample_line(g, b, length, u):
    if length <= 0:
        return 0.0
    mean, root = b / g, sqrt(g)
    return min(
        max(mean + truncated_quantile(-mean * root, (length - mean) * root, u) / root, 0.0), length
    )


@njit(cache=True, nogil=True)
def _sample_cells(masses, low, step, u):
    cumulative = 0.0
    for k in range(_NODES):
        if u <= cumulative + masses[k] or k == _NODES - 1:
            return low + (k + min((u - cumulative) / max(masses[k], 1e-300), 1.0)) * step
        cumulative += masses[k]
    return low


def with_impurities(samples: np.ndarray, gram: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """Samples (V, n, T + 1) mixed with a little of another class, where the data allow it.

    Faces have exact zeros, voxels of a body hardly any: the share of the other class is
    log-uniform over `_IMPURITY`, and a Metropolis step decides whether a sample takes it.
    """
    random = np.random.default_rng(0)
    n_voxels, n, n_classes = samples.shape
    share = np.exp(random.uniform(np.log(_IMPURITY[0]), np.log(_IMPURITY[1]), n))[:, None]
    other = np.eye(n_classes, dtype=samples.dtype)[random.integers(n_classes, size=n)]
    change = share.astype(samples.dtype) * (other - samples)
    by_change = change[..., :-1]
    slope = projection[:, None] - np.einsum("vkt,vts->vks", samples[..., :-1], gram)
    gain = (by_change * (slope - 0.5 * np.einsum("vkt,vts->vks", by_change, gram))).sum(axis=-1)
    accepted = np.log(random.uniform(size=n)) < gain
    return samples + accepted[..., None] * change


def fraction_samples(
    gram: np.ndarray, projection: np.ndarray, share: np.ndarray, n: int
) -> np.ndarray:
    """Posterior samples (V, n, T + 1) of fractions, the last of the background.

    From the normal equations of tissues and prior probabilities `share` (F,) of the faces.
    """
    gram, projection = with_background(gram, projection)
    faces, dims = faces_of(projection.shape[1], MOST_MIXED)
    return _samples(gram, projection, faces, dims, np.log(share), n, np.array(_STEPS))
