"""Posterior of fractions: normal densities on the faces of the simplex, by quadrature.

A voxel is a mixture of up to four of the classes: a face of the simplex, on which fractions are
alike beforehand. The density of face and fractions after the data is integrated coordinate by
coordinate, the last one exactly, and drawn from in the same order with points of low discrepancy:
draws need no seed and no burn-in, and do not depend on other voxels.
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
MOST_MIXED = 4  # classes in one voxel: the quadrature is of at most three coordinates
_NODES, _NARROWINGS = 20, 12  # of a coordinate: of a grid over it, and of its range
_COUNTS = 14.0  # in logarithms of density below the largest
_FAR = 5.0  # standard deviations
# Steps of points of low discrepancy in two dimensions (Roberts).
_STEPS = (0.7548776662466927, 0.5698402909980532)
_REACH, _WORTH = 6.5, 0.5  # standard deviations; of a range, what is worth another grid
_LEAST_PRECISION, _LEAST_DETERMINANT = 1e-6, 1e-13
# Strength of what is thought beforehand of each face, in voxels; rounds of expectation.
_BEFOREHAND, _ROUNDS = 1.0, 300


@njit(cache=True, nogil=True)
def _log_mass(a, b):
    """Logarithm of the probability of a standard normal variable between a < b."""
    if a + b > 0:
        a, b = -b, -a
    if b < -_FAR:
        # Ratio of density and tail, far out.
        tail = -0.5 * b * b - log(-b * sqrt(2 * pi)) - 1 / (b * b)
        return tail + log1p(-exp(max(-0.5 * (a * a - b * b) + log(b / a), -700.0)))
    mass = 0.5 * (erfc(-b / sqrt(2.0)) - erfc(-a / sqrt(2.0)))
    if a > -1 and b < 1:
        mass = 0.5 * (erf(b / sqrt(2.0)) - erf(a / sqrt(2.0)))
    return log(max(mass, 1e-300))


@njit(cache=True, nogil=True)
def _quantile(p):
    """Of the standard normal distribution, to 1e-9 (Acklam)."""
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
def between(a, b, u):
    """The u-quantile of a standard normal variable that is between a < b."""
    if a + b > 0:
        return -between(-b, -a, 1 - u)
    if b < -_FAR:  # nearly exponential, rising to b
        rate = -b
        whole = 1 - exp(max(rate * (a - b), -700.0))
        return max(b + log(max(1 - (1 - u) * whole, 1e-300)) / rate, a)
    low, high = 0.5 * erfc(-a / sqrt(2.0)), 0.5 * erfc(-b / sqrt(2.0))
    return min(max(_quantile(low + u * (high - low)), a), b)


@njit(cache=True, nogil=True)
def log_line(g, b, end):
    """Logarithm of the integral of exp(b x - g x^2 / 2) from 0 to end."""
    if end <= 0:
        return -inf
    mean, root = b / g, sqrt(g)
    return 0.5 * b * mean + 0.5 * log(2 * pi / g) + _log_mass(-mean * root, (end - mean) * root)


@njit(cache=True, nogil=True)
def _largest_on_triangle(a, c, d, p, q, total):
    """Where p x + q y - (a x^2 + 2 c x y + d y^2) / 2 is largest on a triangle, and how large."""
    determinant = max(a * d - c * c, _LEAST_DETERMINANT * a * d)
    x, y = (d * p - c * q) / determinant, (a * q - c * p) / determinant
    if x >= 0 and y >= 0 and x + y <= total:
        return x, y, p * x + q * y - 0.5 * (a * x * x + 2 * c * x * y + d * y * y)
    # Else on an edge; on the last, y is total - x.
    curvature = max(a - 2 * c + d, _LEAST_PRECISION)
    third = min(max((p - q + (d - c) * total) / curvature, 0.0), total)
    edges = (
        (min(max(p / a, 0.0), total), 0.0), (0.0, min(max(q / d, 0.0), total)),
        (third, total - third),
    )  # fmt: skip
    best = (0.0, 0.0, -inf)
    for x, y in edges:
        height = p * x + q * y - 0.5 * (a * x * x + 2 * c * x * y + d * y * y)
        if height > best[2]:
            best = (x, y, height)
    return best


@njit(cache=True, nogil=True)
def _first_of_largest(g, b):
    """First coordinate of where b x - x g x / 2 is largest on the tetrahedron; its sd."""
    minor = max(g[1, 1] * g[2, 2] - g[1, 2] ** 2, _LEAST_DETERMINANT * g[1, 1] * g[2, 2])
    # The other two follow the first.
    one = (g[0, 1] * g[2, 2] - g[0, 2] * g[1, 2]) / minor
    two = (g[0, 2] * g[1, 1] - g[0, 1] * g[1, 2]) / minor
    precision = g[0, 0] - g[0, 1] * one - g[0, 2] * two
    precision = max(precision, _LEAST_DETERMINANT * g[0, 0])
    x = (b[0] - b[1] * one - b[2] * two) / precision
    y = (b[1] * g[2, 2] - b[2] * g[1, 2]) / minor - one * x
    z = (b[2] * g[1, 1] - b[1] * g[1, 2]) / minor - two * x
    if x >= 0 and y >= 0 and z >= 0 and x + y + z <= 1:
        return x, 1 / sqrt(precision)
    first, _, height = _largest_on_triangle(g[0, 0], g[0, 1], g[1, 1], b[0], b[1], 1.0)
    other, _, higher = _largest_on_triangle(g[0, 0], g[0, 2], g[2, 2], b[0], b[2], 1.0)
    if higher > height:
        first, height = other, higher
    _, _, higher = _largest_on_triangle(g[1, 1], g[1, 2], g[2, 2], b[1], b[2], 1.0)
    if higher > height:
        first, height = 0.0, higher
    # On the last triangle z is 1 - x - y.
    other, _, higher = _largest_on_triangle(
        g[0, 0] - 2 * g[0, 2] + g[2, 2], g[0, 1] - g[0, 2] - g[1, 2] + g[2, 2],
        g[1, 1] - 2 * g[1, 2] + g[2, 2], b[0] - b[2] + g[2, 2] - g[0, 2],
        b[1] - b[2] + g[2, 2] - g[1, 2], 1.0,
    )  # fmt: skip
    if higher + b[2] - 0.5 * g[2, 2] > height:
        first = other
    return first, 1 / sqrt(precision)


@njit(cache=True, nogil=True)
def _triangle(g, b, total, masses):
    """As `_grid`, in two dimensions: what `_grid` of three calls, as numba has no recursion."""
    if total <= 0:
        return 0.0, 0.0, -inf
    x, _, _ = _largest_on_triangle(g[0, 0], g[0, 1], g[1, 1], b[0], b[1], total)
    precision = max(g[0, 0] - g[0, 1] ** 2 / g[1, 1], _LEAST_DETERMINANT * g[0, 0])
    low, width = _around(x, 1 / sqrt(precision), total)
    for _ in range(_NARROWINGS):
        step, largest = width / _NODES, -inf
        for k in range(_NODES):
            x = low + (k + 0.5) * step
            here = b[0] * x - 0.5 * g[0, 0] * x * x
            masses[k] = here + log_line(g[1, 1], b[1] - g[0, 1] * x, total - x)
            largest = max(largest, masses[k])
        start, end = _counting(masses, largest, low, step, total)
        if end - start > _WORTH * width:
            break
        low, width = start, end - start
    return low, step, _to_masses(masses, largest, step)


@njit(cache=True, nogil=True)
def _grid(g, b, dim, masses, spare):
    """Probabilities of cells of the first coordinate.

    Truncation narrows a normal density: all that counts is near where it is largest.

    Returns
    -------
    low, step : float
        Of the cells, over the part of the range that counts.
    whole : float
        Logarithm of the integral over the face.
    """
    if dim == 2:
        return _triangle(g, b, 1.0, masses)
    low, width = _around(*_first_of_largest(g, b), 1.0)
    later = np.empty(2)
    for _ in range(_NARROWINGS):
        step, largest = width / _NODES, -inf
        for k in range(_NODES):
            x = low + (k + 0.5) * step
            later[0], later[1] = b[1] - g[0, 1] * x, b[2] - g[0, 2] * x
            here = b[0] * x - 0.5 * g[0, 0] * x * x
            masses[k] = here + _triangle(g[1:, 1:], later, 1 - x, spare)[2]
            largest = max(largest, masses[k])
        start, end = _counting(masses, largest, low, step, 1.0)
        if end - start > _WORTH * width:
            break
        low, width = start, end - start
    return low, step, _to_masses(masses, largest, step)


@njit(cache=True, nogil=True)
def _around(x, sd, total):
    """Low end and width of a range about x."""
    low = max(x - _REACH * sd, 0.0)
    return low, min(x + _REACH * sd, total) - low


@njit(cache=True, nogil=True)
def _counting(logs, largest, low, step, total):
    """What of a range counts, by a cell more on both sides."""
    first, last = _NODES, -1
    for k in range(_NODES):
        if logs[k] > largest - _COUNTS:
            first, last = min(first, k), k
    return max(low + (first - 0.5) * step, 0.0), min(low + (last + 1.5) * step, total)


@njit(cache=True, nogil=True)
def _to_masses(logs, largest, step):
    """Logarithms to shares, in place; the logarithm of the whole."""
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
    """Grid of a face, and the logarithm of its mean density."""
    constant = _on_face(gram, projection, face, dim, g, b)
    if dim == 0:
        return 0.0, 0.0, constant
    if dim == 1:
        return 0.0, 0.0, constant + log_line(g[0, 0], b[0], 1.0)
    low, step, whole = _grid(g, b, dim, masses, spare)
    return low, step, constant + whole + log(2.0 if dim == 2 else 6.0)


@njit(cache=True, nogil=True, parallel=True)
def _log_evidences(gram, projection, faces, dims):
    result = np.empty((len(gram), len(faces)))
    for v in prange(len(gram)):
        g, b = np.empty((3, 3)), np.empty(3)
        masses, spare = np.empty(_NODES), np.empty(_NODES)
        for f in range(len(faces)):
            result[v, f] = _log_evidence(
                gram[v], projection[v], faces[f], dims[f], g, b, masses, spare
            )[2]
    return result


@njit(cache=True, nogil=True, parallel=True)
def _draws(gram, projection, faces, dims, log_prior, n, steps):
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
        begin, summed = 0, 0.0
        for f in range(n_faces):
            summed += share[f]
            end = n if f == n_faces - 1 else min(int(round(summed * n)), n)
            if end > begin:
                _on_face(gram[v], projection[v], faces[f], dims[f], g, b)
                _draw_on_face(
                    result[v, begin:end], faces[f], dims[f], g, b, lows[f], widths[f], masses[f],
                    spare, steps,
                )  # fmt: skip
            begin = max(begin, end)
    return result


@njit(cache=True, nogil=True)
def _draw_on_face(out, face, dim, g, b, low, step, masses, spare, steps):
    """Draws (n, K) on a face, in the order of its first coordinate."""
    n, last = len(out), face[dim]
    cell, below, inner, start, width = 0, 0.0, -1, 0.0, 0.0
    x, later = np.zeros(3), np.empty(2)
    for k in range(n):
        u = (k + 0.5) / n
        if dim == 1:
            x[0] = _on_line(g[0, 0], b[0], 1.0, u)
        elif dim > 1:
            while cell < _NODES - 1 and u > below + masses[cell]:
                below += masses[cell]
                cell += 1
            inside = min((u - below) / max(masses[cell], 1e-300), 1.0)
            x[0] = low + (cell + inside) * step
            u2, u3 = ((k + 0.5) * steps[0]) % 1, ((k + 0.5) * steps[1]) % 1
        if dim == 2:
            x[1] = _on_line(g[1, 1], b[1] - g[0, 1] * x[0], 1 - x[0], u2)
        if dim == 3:
            middle = low + (cell + 0.5) * step
            if inner != cell:
                later[0], later[1] = b[1] - g[0, 1] * middle, b[2] - g[0, 2] * middle
                start, width, _ = _triangle(g[1:, 1:], later, 1 - middle, spare)
                inner = cell
            # The grid is of the cell's middle: it moves with the mean.
            slope = -(g[0, 1] - g[0, 2] * g[1, 2] / g[2, 2]) / (g[1, 1] - g[1, 2] ** 2 / g[2, 2])
            second = _in_cells(spare, start, width, u2) + slope * (x[0] - middle)
            x[1] = min(max(second, 0.0), 1 - x[0])
            rest = b[2] - g[0, 2] * x[0] - g[1, 2] * x[1]
            x[2] = _on_line(g[2, 2], rest, 1 - x[0] - x[1], u3)
        left = 1.0
        for i in range(dim):
            out[k, face[i]] = x[i]
            left -= x[i]
        out[k, last] = max(left, 0.0)


@njit(cache=True, nogil=True)
def _on_line(g, b, end, u):
    if end <= 0:
        return 0.0
    mean, root = b / g, sqrt(g)
    return min(max(mean + between(-mean * root, (end - mean) * root, u) / root, 0.0), end)


@njit(cache=True, nogil=True)
def _in_cells(masses, low, step, u):
    below = 0.0
    for k in range(_NODES):
        if u <= below + masses[k] or k == _NODES - 1:
            return low + (k + min((u - below) / max(masses[k], 1e-300), 1.0)) * step
        below += masses[k]
    return low


def face_prior_probabilities(gram: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """How many of the voxels are mixtures of which classes, by expectation maximisation.

    Parameters
    ----------
    gram : ndarray (V, T, T)
        A^T W A of tissues, W being the inverse covariance of the data.
    projection : ndarray (V, T)
        A^T W y.

    Returns
    -------
    ndarray (F,)
        Probabilities of the faces of `faces_of`, the background being the last class.
    """
    gram, projection = with_background(gram, projection)
    faces, dims = faces_of(projection.shape[1], MOST_MIXED)
    share = np.full(len(faces), 1 / len(faces))
    logs = _log_evidences(gram, projection, faces, dims)
    likelihood = np.exp(logs - logs.max(axis=1, keepdims=True))
    for _ in range(_ROUNDS):
        joint = likelihood * share
        share = _BEFOREHAND + (joint / joint.sum(axis=1, keepdims=True)).sum(axis=0)
        share /= share.sum()
    return share


def fraction_samples(
    gram: np.ndarray, projection: np.ndarray, share: np.ndarray, n: int
) -> np.ndarray:
    """Draws (V, n, T + 1) of fractions, the last of the background.

    Parameters
    ----------
    gram, projection
        As in :func:`face_prior_probabilities`.
    share : ndarray (F,)
        Prior probabilities of the faces.
    n : int
    """
    gram, projection = with_background(gram, projection)
    faces, dims = faces_of(projection.shape[1], MOST_MIXED)
    return _draws(gram, projection, faces, dims, np.log(share), n, np.array(_STEPS))
