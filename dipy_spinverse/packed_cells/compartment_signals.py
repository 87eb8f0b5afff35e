"""Signals of the pools of water in tissue, and their slopes: compiled loops over its rows.

    S = w_free exp(-b D_free) + w_dot + w_hindered exp(-B : H) + w_cells S_cells

Shares are of what those before leave: free water, the dot, the hindered pool. That of free water
grows with the echo time where it relaxes more slowly than the rest, by

    w_free / (1 - w_free) = f / (1 - f) exp(r (TE - shortest TE))

and D_free is that given times the exponential of an excess. S_cells is that of spheres, a share
of the cells, and of cylinders, dispersed about one axis or about two that cross (see
``orientations``). H, the dispersion and the plane of crossing share one frame, whose third axis is
that of the cylinders.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from dipy_spinverse.packed_cells.orientations import add_dispersed

COMPARTMENT_PARAMETERS = (
    "dispersion_1", "dispersion_2", "half_angle", "crossing_share", "sphere_share",
    "free_water", "relaxation", "dot", "hindered", "hindered_1", "hindered_2", "hindered_along",
    "free_excess",
)  # fmt: skip
(
    _ONE, _TWO, _ANGLE, _CROSSING, _SPHERES, _FREE, _RELAXATION, _DOT, _HINDERED, _H_1, _H_2, _H_3,
    _EXCESS,
) = range(len(COMPARTMENT_PARAMETERS))  # fmt: skip
# What signals of cylinders bend with: the first four pools, and the directions in the frame.
_BENDS = 7
_BY_X, _BY_Y, _BY_Z = 4, 5, 6
# t at which no direction is left.
_ISOTROPIC = 50.0
# Directions, golden spiral, that the hindered pool of a powder average is averaged over.
_N_POWDER = 64


def _spiral(n):
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = np.pi * (1 + np.sqrt(5)) * np.arange(n)
    across = np.sqrt(1 - z**2)
    return np.stack([across * np.cos(angle), across * np.sin(angle), z], axis=1)


_POWDER_SQUARES = _spiral(_N_POWDER) ** 2


class ShellArrays(NamedTuple):
    """M measurements on S shells, in the order of these.

    Attributes
    ----------
    directions : ndarray (M, 3)
    isotropic : ndarray (M,) of bool
        Averages over all directions.
    echo : ndarray (M,)
        Echo times less the shortest, ms.
    first : ndarray (S + 1,) of int
        Where the measurements of each shell begin.
    b : ndarray (S,)
        ms/um^2.
    b_anisotropy : ndarray (S,)
        Shape of the b-tensors, whose axes are the directions; 1 of gradients along these.
    free_diffusivity : float
        um^2/ms.
    """

    directions: np.ndarray
    isotropic: np.ndarray
    echo: np.ndarray
    first: np.ndarray
    b: np.ndarray
    b_anisotropy: np.ndarray
    free_diffusivity: float


class CellSignals(NamedTuple):
    """Signals of one shape of cells in N tissues, and derivatives by Q parameters.

    Attributes
    ----------
    coefficients : ndarray (N, 1 + Q, S, L)
        Of even Legendre polynomials; N is 0 where there are no such cells.
    degrees : ndarray (S,) of int
        How many of them each shell has.
    columns : ndarray (Q,) of int
        Of the derivatives, in the Jacobian.
    """

    coefficients: np.ndarray
    degrees: np.ndarray
    columns: np.ndarray


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def compartment_signals(scan, pools, frames, cylinders, spheres, n_axes, by_z, columns, jacobian):
    """Signals (N, M) of N tissues; derivatives go into `jacobian`.

    Parameters
    ----------
    scan : ShellArrays
    pools : ndarray (N, K)
        Values of `POOLS`.
    frames : ndarray (N, 3, 3)
        Rows.
    cylinders, spheres : CellSignals
    n_axes : int
        Of cylinders: 0, 1, or 2.
    by_z : ndarray (N, K)
        Derivatives of the pools by their parameters,
    columns : ndarray (K + 1,) of int
        which are these; -1 for none. The last is the first of the rotation, by which derivatives
        hold where it is 0.
    jacobian : ndarray (N, P, M)
        P is 0 where derivatives are not wanted.
    """
    slopes = jacobian.shape[1] > 0
    width = np.diff(scan.first).max()
    signals = np.empty((len(pools), len(scan.directions)))
    # Without cylinders nothing bends: what is left of other arrays may not be a number.
    along, squares, bends = np.empty((3, width)), np.empty((3, width)), np.zeros((_BENDS, width))
    cells = np.zeros((max(cylinders.coefficients.shape[1], 1), width))
    hindered, inside, share, work = (
        np.empty(width), np.empty(width), np.empty(width), np.empty((13, width))
    )  # fmt: skip
    for n in range(len(pools)):
        v = pools[n]
        if slopes:
            jacobian[n] = 0
        for s in range(len(scan.b)):
            start, b, linear = scan.first[s], scan.b[s], scan.b_anisotropy[s]
            count = scan.first[s + 1] - start
            isotropic, echo = scan.isotropic[start:], scan.echo[start:]
            _components(frames[n], scan.directions[start:], isotropic, count, along)
            if linear == 1:
                _hindered(b, v, along, isotropic, count, hindered, squares)
            else:
                _hindered_by_tensors(b, linear, v, along, count, hindered, squares)
            if n_axes:
                kernel = cylinders.coefficients[n, :, s, : cylinders.degrees[s]]
                _cylinders(kernel, v, n_axes, along, isotropic, count, cells, bends, work)
            round_ones = 0.0
            if len(spheres.coefficients):
                round_ones = spheres.coefficients[n, 0, s, 0]
            decay = b * scan.free_diffusivity * np.exp(v[_EXCESS])
            free = np.exp(-decay)
            for i in range(count):
                inside[i] = (1 - v[_SPHERES]) * cells[0, i] + v[_SPHERES] * round_ones
                tissue = (1 - v[_HINDERED]) * inside[i] + v[_HINDERED] * hindered[i]
                share[i] = _free_share(v, echo[i])
                water = (1 - v[_DOT]) * tissue + v[_DOT]
                signals[n, start + i] = share[i] * free + (1 - share[i]) * water
            if not slopes:
                continue
            rows, scale = jacobian[n], by_z[n]
            rest, change = work[0, :count], work[1, :count]
            for i in range(count):
                rest[i] = (1 - share[i]) * (1 - v[_DOT])
            for q in range(len(cylinders.columns)):
                weight = (1 - v[_HINDERED]) * (1 - v[_SPHERES])
                _add(rows, start, cylinders.columns[q], weight, rest, cells[1 + q])
            for k in range(_BY_X):
                weight = (1 - v[_HINDERED]) * (1 - v[_SPHERES]) * scale[k]
                _add(rows, start, columns[k], weight, rest, bends[k])
            change[:] = 1.0
            for q in range(len(spheres.columns)):
                weight = (1 - v[_HINDERED]) * v[_SPHERES] * spheres.coefficients[n, 1 + q, s, 0]
                _add(rows, start, spheres.columns[q], weight, rest, change)
            for i in range(count):
                change[i] = round_ones - cells[0, i]
            _add(
                rows, start, columns[_SPHERES], (1 - v[_HINDERED]) * scale[_SPHERES], rest, change
            )
            for i in range(count):
                change[i] = hindered[i] - inside[i]
            _add(rows, start, columns[_HINDERED], scale[_HINDERED], rest, change)
            for k in range(3):
                for i in range(count):
                    change[i] = -b * hindered[i] * squares[k, i]
                _add(rows, start, columns[_H_1 + k], v[_HINDERED] * scale[_H_1 + k], rest, change)
            _of_water(
                v, scale, columns, decay, hindered, inside, share[:count], echo, rows, start, work
            )
            if columns[-1] >= 0:
                turned = rows[columns[-1] :]
                _of_rotation(b * linear, v, along, hindered, bends, rest, turned, start)
    return signals


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _add(rows, start, column, weight, shares, change):
    if column >= 0:
        row = rows[column, start:]
        for i in range(len(shares)):
            row[i] += weight * shares[i] * change[i]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _components(frame, directions, isotropic, count, along):
    """Components (3, count) of directions in a frame; none of averages over all directions."""
    for i in range(count):
        g, here = directions[i], not isotropic[i]
        for k in range(3):
            along[k, i] = here * (frame[k, 0] * g[0] + frame[k, 1] * g[1] + frame[k, 2] * g[2])


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _free_share(v, echo):
    """Share of free water at an echo time."""
    if v[_RELAXATION] == 0:
        return v[_FREE]
    growth = np.exp(v[_RELAXATION] * echo)
    return v[_FREE] * growth / (1 + v[_FREE] * (growth - 1))


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _hindered(b, v, along, isotropic, count, signals, squares):
    """Signals of the hindered pool, and the squared components that they decay by."""
    for i in range(count):
        if isotropic[i]:
            signals[i] = 0
            squares[:, i] = 0
            for square in _POWDER_SQUARES:
                tensor = v[_H_1] * square[0] + v[_H_2] * square[1] + v[_H_3] * square[2]
                each = np.exp(-b * tensor) / _N_POWDER
                signals[i] += each
                for k in range(3):
                    squares[k, i] += each * square[k]
            squares[:, i] /= signals[i]
            continue
        for k in range(3):
            squares[k, i] = along[k, i] ** 2
        tensor = v[_H_1] * squares[0, i] + v[_H_2] * squares[1, i] + v[_H_3] * squares[2, i]
        signals[i] = np.exp(-b * tensor)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _hindered_by_tensors(b, linear, v, along, count, signals, squares):
    """The same under b-tensors of a shape."""
    for i in range(count):
        for k in range(3):
            squares[k, i] = (1 - linear) / 3 + linear * along[k, i] ** 2
        tensor = v[_H_1] * squares[0, i] + v[_H_2] * squares[1, i] + v[_H_3] * squares[2, i]
        signals[i] = np.exp(-b * tensor)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _cylinders(kernel, v, n_axes, along, isotropic, count, cells, bends, work):
    """Signals (1 + Q, count) of cylinders about one axis or two, and what they bend with."""
    one, two, share = v[_ONE], v[_TWO], v[_CROSSING]
    sine, cosine = np.sin(v[_ANGLE]), np.cos(v[_ANGLE])
    cells[:, :count] = 0
    bends[:, :count] = 0
    squares, spread, by_square, by_spread, before = work[0], work[1], work[2], work[3], work[4]
    for axis in range(n_axes):
        side = 1 - 2 * axis
        weight = 1.0 if n_axes == 1 else (share if axis else 1 - share)
        for i in range(count):
            x, y, z = along[0, i], along[1, i], along[2, i]
            squares[i] = (cosine * z + side * sine * x) ** 2
            spread[i] = one * x * x + two * y * y + (one + two) / 2 * z * z
            if isotropic[i]:
                spread[i] = _ISOTROPIC
            before[i] = cells[0, i]
        add_dispersed(
            kernel, weight, squares[:count], spread[:count], cells, by_square, by_spread, work[5:]
        )
        if len(kernel) == 1:
            continue
        for i in range(count):
            x, y, z = along[0, i], along[1, i], along[2, i]
            aligned = cosine * z + side * sine * x
            by_aligned = 2 * aligned * by_square[i]
            bends[0, i] += by_spread[i] * (x * x + z * z / 2)
            bends[1, i] += by_spread[i] * (y * y + z * z / 2)
            bends[2, i] += by_aligned * (side * cosine * x - sine * z)
            bends[3, i] -= side * (cells[0, i] - before[i]) / weight
            bends[_BY_X, i] += by_aligned * side * sine + 2 * one * x * by_spread[i]
            bends[_BY_Y, i] += 2 * two * y * by_spread[i]
            bends[_BY_Z, i] += by_aligned * cosine + (one + two) * z * by_spread[i]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _of_water(v, scale, columns, decay, hindered, inside, share, echo, rows, start, work):
    """Puts derivatives by the shares of free and still water, by relaxation and D_free."""
    count, free = len(share), np.exp(-decay)
    ones, apart, change = work[2, :count], work[3, :count], work[4, :count]
    relaxes = v[_RELAXATION] != 0
    for i in range(count):
        tissue = (1 - v[_HINDERED]) * inside[i] + v[_HINDERED] * hindered[i]
        ones[i] = 1.0
        apart[i] = free - ((1 - v[_DOT]) * tissue + v[_DOT])
        change[i] = (1 - share[i]) * (1 - tissue)
    _add(rows, start, columns[_DOT], scale[_DOT], ones, change)
    for i in range(count):
        growth = np.exp(v[_RELAXATION] * echo[i]) if relaxes else 1.0
        change[i] = growth / (1 + v[_FREE] * (growth - 1)) ** 2
    _add(rows, start, columns[_FREE], scale[_FREE], apart, change)
    for i in range(count):
        change[i] = echo[i] * share[i] * (1 - share[i])
    _add(rows, start, columns[_RELAXATION], scale[_RELAXATION], apart, change)
    _add(rows, start, columns[_EXCESS], -decay * free * scale[_EXCESS], ones, share)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _of_rotation(b, v, along, hindered, bends, rest, rows, start):
    """Puts derivatives by a rotation: of its vector and the directions' gradient, the product."""
    cells = (1 - v[_HINDERED]) * (1 - v[_SPHERES])
    for i in range(len(rest)):
        x, y, z = along[0, i], along[1, i], along[2, i]
        decay = -2 * b * v[_HINDERED] * hindered[i]
        by_x = rest[i] * (cells * bends[_BY_X, i] + decay * v[_H_1] * x)
        by_y = rest[i] * (cells * bends[_BY_Y, i] + decay * v[_H_2] * y)
        by_z = rest[i] * (cells * bends[_BY_Z, i] + decay * v[_H_3] * z)
        rows[0, start + i] += y * by_z - z * by_y
        rows[1, start + i] += z * by_x - x * by_z
        rows[2, start + i] += x * by_y - y * by_x
