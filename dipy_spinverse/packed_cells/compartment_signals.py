"""Signals of the water compartments of tissue, and their derivatives: compiled loops.

    S = w_free exp(-b D_free) + w_dot + w_hindered exp(-B : H) + w_cells S_cells

Fractions are successive: free water, immobile water (the dot) and hindered water each take a
fraction of what remains. The fraction of free water f grows with the echo time where it relaxes
more slowly than tissue, by

    w_free / (1 - w_free) = f / (1 - f) exp(r (TE - shortest TE))

and D_free is the specified diffusivity times the exponential of a parameter. S_cells is that of
spheres and of cylinders dispersed about one axis or two crossing ones (``orientations``). H, the
dispersion and the plane of crossing share one frame, whose third axis is that of the cylinders.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from dipy_spinverse.packed_cells.orientations import add_dispersed

COMPARTMENT_PARAMETERS = (
    "dispersion_1", "dispersion_2", "half_angle", "crossing_share", "sphere_share",
    "free_water", "relaxation", "dot", "hindered", "hindered_1", "hindered_2", "hindered_along",
    "log_free_ratio",
)  # fmt: skip
(
    _DISPERSION_1, _DISPERSION_2, _ANGLE, _CROSSING, _SPHERES, _FREE, _RELAXATION, _DOT,
    _HINDERED, _H_1, _H_2, _H_3, _FREE_RATIO,
) = range(len(COMPARTMENT_PARAMETERS))  # fmt: skip
# Variables that shape the signals of cylinders: the first four parameters, and the components of
# the direction in the frame.
_N_SHAPE = 7
_BY_X, _BY_Y, _BY_Z = 4, 5, 6
_ISOTROPIC = 50.0  # diffusion time of axes after which no orientation remains
_N_POWDER = 64  # directions over which hindered water is averaged for powder averages


def _spiral(n):
    """Directions (n, 3) on a golden spiral."""
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = np.pi * (1 + np.sqrt(5)) * np.arange(n)
    radial = np.sqrt(1 - z**2)
    return np.stack([radial * np.cos(angle), radial * np.sin(angle), z], axis=1)


_POWDER_SQUARES = _spiral(_N_POWDER) ** 2


class ShellArrays(NamedTuple):
    """M measurements on S shells, in the order of these.

    `isotropic` (M,) measurements are averages over all directions; `echo_delay` is the echo time
    minus the shortest, ms. b (S,) is in ms/um^2, and `b_anisotropy` (S,), 1 of linear encoding, is
    the shape of b-tensors whose axes are the directions (M, 3).
    """

    directions: np.ndarray
    isotropic: np.ndarray
    echo_delay: np.ndarray
    starts: np.ndarray
    b: np.ndarray
    b_anisotropy: np.ndarray
    free_diffusivity: float


class CellSignals(NamedTuple):
    """Signals of one shape of cells in N tissues, and their derivatives by Q parameters.

    Coefficients (N, 1 + Q, S, L) of even Legendre polynomials, of which shell s uses degrees[s];
    N is 0 where there are no such cells. `columns` (Q,) are those of the Jacobian.
    """

    coefficients: np.ndarray
    degrees: np.ndarray
    columns: np.ndarray


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def compartment_signals(scan, values, frames, cylinders, spheres, n_axes, by_z, columns, jacobian):
    """Signals (N, M) of N tissues; their derivatives are written into `jacobian` (N, P, M).

    `values` (N, K) are those of `COMPARTMENT_PARAMETERS`, `by_z` their derivatives by z, and
    `columns` (K + 1,) those of the Jacobian, -1 for none; the last is the first of the rotation,
    by which derivatives are exact where it is 0. Frames (N, 3, 3) have axes in rows; cylinders
    have `n_axes` 0, 1 or 2. P is 0 where derivatives are not needed.
    """
    slopes = jacobian.shape[1] > 0
    width = 0  # np.diff would take a fifth of the time of compilation
    for s in range(len(scan.b)):
        width = max(width, scan.starts[s + 1] - scan.starts[s])
    signals = np.empty((len(values), len(scan.directions)))
    # Without cylinders by_shape stays 0; other arrays may then contain anything, even NaN.
    g, squares, by_shape = np.empty((3, width)), np.empty((3, width)), np.zeros((_N_SHAPE, width))
    cells = np.zeros((max(cylinders.coefficients.shape[1], 1), width))
    hindered, intra, share, work = (
        np.empty(width), np.empty(width), np.empty(width), np.empty((13, width))
    )  # fmt: skip
    for n in range(len(values)):
        v = values[n]
        if slopes:
            jacobian[n] = 0
        for s in range(len(scan.b)):
            start, b, linear = scan.starts[s], scan.b[s], scan.b_anisotropy[s]
            count = scan.starts[s + 1] - start
            isotropic, echo_delay = scan.isotropic[start:], scan.echo_delay[start:]
            _components(frames[n], scan.directions[start:], isotropic, count, g)
            _hindered(b, linear, v, g, isotropic, count, hindered, squares)
            if n_axes:
                kernel = cylinders.coefficients[n, :, s, : cylinders.degrees[s]]
                _cylinders(kernel, v, n_axes, g, isotropic, count, cells, by_shape, work)
            sphere_signal = 0.0
            if len(spheres.coefficients):
                sphere_signal = spheres.coefficients[n, 0, s, 0]
            decay = b * scan.free_diffusivity * np.exp(v[_FREE_RATIO])
            free = np.exp(-decay)
            for i in range(count):
                intra[i] = (1 - v[_SPHERES]) * cells[0, i] + v[_SPHERES] * sphere_signal
                tissue = (1 - v[_HINDERED]) * intra[i] + v[_HINDERED] * hindered[i]
                share[i] = _free_share(v, echo_delay[i])
                water = (1 - v[_DOT]) * tissue + v[_DOT]
                signals[n, start + i] = share[i] * free + (1 - share[i]) * water
            if not slopes:
                continue
            rows, scale = jacobian[n], by_z[n]
            mobile, change = work[0, :count], work[1, :count]
            for i in range(count):
                mobile[i] = (1 - share[i]) * (1 - v[_DOT])
            for q in range(len(cylinders.columns)):
                weight = (1 - v[_HINDERED]) * (1 - v[_SPHERES])
                _add(rows, start, cylinders.columns[q], weight, mobile, cells[1 + q])
            for k in range(_BY_X):
                weight = (1 - v[_HINDERED]) * (1 - v[_SPHERES]) * scale[k]
                _add(rows, start, columns[k], weight, mobile, by_shape[k])
            change[:] = 1.0
            for q in range(len(spheres.columns)):
                weight = (1 - v[_HINDERED]) * v[_SPHERES] * spheres.coefficients[n, 1 + q, s, 0]
                _add(rows, start, spheres.columns[q], weight, mobile, change)
            for i in range(count):
                change[i] = sphere_signal - cells[0, i]
            weight = (1 - v[_HINDERED]) * scale[_SPHERES]
            _add(rows, start, columns[_SPHERES], weight, mobile, change)
            for i in range(count):
                change[i] = hindered[i] - intra[i]
            _add(rows, start, columns[_HINDERED], scale[_HINDERED], mobile, change)
            for k in range(3):
                for i in range(count):
                    change[i] = -b * hindered[i] * squares[k, i]
                weight = v[_HINDERED] * scale[_H_1 + k]
                _add(rows, start, columns[_H_1 + k], weight, mobile, change)
            _add_water(
                v, scale, columns, decay, hindered, intra, share[:count], echo_delay, rows, start,
                work,
            )  # fmt: skip
            if columns[-1] >= 0:
                rotation_rows = rows[columns[-1] :]
                _add_rotation(b * linear, v, g, hindered, by_shape, mobile, rotation_rows, start)
    return signals


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _add(rows, start, column, weight, shares, change):
    if column >= 0:
        row = rows[column, start:]
        for i in range(len(shares)):
            row[i] += weight * shares[i] * change[i]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _components(frame, directions, isotropic, count, g):
    """Components (3, count) of directions in a frame; 0 of averages over all directions."""
    for i in range(count):
        d, has_direction = directions[i], not isotropic[i]
        for k in range(3):
            projection = frame[k, 0] * d[0] + frame[k, 1] * d[1] + frame[k, 2] * d[2]
            g[k, i] = has_direction * projection


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _free_share(v, echo_delay):
    """Fraction of free water at an echo time."""
    if v[_RELAXATION] == 0:
        return v[_FREE]
    growth = np.exp(v[_RELAXATION] * echo_delay)
    return v[_FREE] * growth / (1 + v[_FREE] * (growth - 1))


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _hindered(b, linear, v, g, isotropic, count, signals, squares):
    """Signals of hindered water, and the squared components that they decay by."""
    for i in range(count):
        if isotropic[i] and linear == 1:
            signals[i] = 0
            squares[:, i] = 0
            for square in _POWDER_SQUARES:
                tensor = v[_H_1] * square[0] + v[_H_2] * square[1] + v[_H_3] * square[2]
                signal = np.exp(-b * tensor) / _N_POWDER
                signals[i] += signal
                for k in range(3):
                    squares[k, i] += signal * square[k]
            squares[:, i] /= signals[i]
            continue
        for k in range(3):
            squares[k, i] = (1 - linear) / 3 + linear * g[k, i] ** 2
        tensor = v[_H_1] * squares[0, i] + v[_H_2] * squares[1, i] + v[_H_3] * squares[2, i]
        signals[i] = np.exp(-b * tensor)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _cylinders(kernel, v, n_axes, g, isotropic, count, cells, by_shape, work):
    """Signals (1 + Q, count) of cylinders about one axis or two, and derivatives `by_shape`."""
    t_1, t_2, share = v[_DISPERSION_1], v[_DISPERSION_2], v[_CROSSING]
    sine, cosine = np.sin(v[_ANGLE]), np.cos(v[_ANGLE])
    cells[:, :count] = 0
    by_shape[:, :count] = 0
    squares, times, by_square, by_time, previous = work[0], work[1], work[2], work[3], work[4]
    for axis in range(n_axes):
        side = 1 - 2 * axis
        weight = 1.0 if n_axes == 1 else (share if axis else 1 - share)
        for i in range(count):
            x, y, z = g[0, i], g[1, i], g[2, i]
            squares[i] = (cosine * z + side * sine * x) ** 2
            times[i] = t_1 * x * x + t_2 * y * y + (t_1 + t_2) / 2 * z * z
            if isotropic[i]:
                times[i] = _ISOTROPIC
            previous[i] = cells[0, i]
        add_dispersed(
            kernel, weight, squares[:count], times[:count], cells, by_square, by_time, work[5:]
        )
        if len(kernel) == 1:
            continue
        for i in range(count):
            x, y, z = g[0, i], g[1, i], g[2, i]
            cosine_to_axis = cosine * z + side * sine * x
            by_cosine = 2 * cosine_to_axis * by_square[i]
            by_shape[0, i] += by_time[i] * (x * x + z * z / 2)
            by_shape[1, i] += by_time[i] * (y * y + z * z / 2)
            by_shape[2, i] += by_cosine * (side * cosine * x - sine * z)
            by_shape[3, i] -= side * (cells[0, i] - previous[i]) / weight
            by_shape[_BY_X, i] += by_cosine * side * sine + 2 * t_1 * x * by_time[i]
            by_shape[_BY_Y, i] += 2 * t_2 * y * by_time[i]
            by_shape[_BY_Z, i] += by_cosine * cosine + (t_1 + t_2) * z * by_time[i]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _add_water(v, scale, columns, decay, hindered, intra, share, echo_delay, rows, start, work):
    """Add derivatives by the fractions of free and immobile water, by relaxation and D_free."""
    count, free = len(share), np.exp(-decay)
    ones, difference, change = work[2, :count], work[3, :count], work[4, :count]
    relaxes = v[_RELAXATION] != 0
    for i in range(count):
        tissue = (1 - v[_HINDERED]) * intra[i] + v[_HINDERED] * hindered[i]
        ones[i] = 1.0
        difference[i] = free - ((1 - v[_DOT]) * tissue + v[_DOT])
        change[i] = (1 - share[i]) * (1 - tissue)
    _add(rows, start, columns[_DOT], scale[_DOT], ones, change)
    for i in range(count):
        growth = np.exp(v[_RELAXATION] * echo_delay[i]) if relaxes else 1.0
        change[i] = growth / (1 + v[_FREE] * (growth - 1)) ** 2
    _add(rows, start, columns[_FREE], scale[_FREE], difference, change)
    for i in range(count):
        change[i] = echo_delay[i] * share[i] * (1 - share[i])
    _add(rows, start, columns[_RELAXATION], scale[_RELAXATION], difference, change)
    _add(rows, start, columns[_FREE_RATIO], -decay * free * scale[_FREE_RATIO], ones, share)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _add_rotation(b, v, g, hindered, by_shape, mobile, rows, start):
    """Add derivatives by a rotation vector: cross products of direction and gradient by it."""
    cells = (1 - v[_HINDERED]) * (1 - v[_SPHERES])
    for i in range(len(mobile)):
        x, y, z = g[0, i], g[1, i], g[2, i]
        decay = -2 * b * v[_HINDERED] * hindered[i]
        by_x = mobile[i] * (cells * by_shape[_BY_X, i] + decay * v[_H_1] * x)
        by_y = mobile[i] * (cells * by_shape[_BY_Y, i] + decay * v[_H_2] * y)
        by_z = mobile[i] * (cells * by_shape[_BY_Z, i] + decay * v[_H_3] * z)
        rows[0, start + i] += y * by_z - z * by_y
        rows[1, start + i] += z * by_x - x * by_z
        rows[2, start + i] += x * by_y - y * by_x
