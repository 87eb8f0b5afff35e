"""Random walks among permeable cylinders and spheres: an independent simulator to test
the package.

Bodies of one radius are packed at random in a periodic box (two-dimensional across parallel
cylinders, three-dimensional for spheres). Spins make steps of a fixed length L in random
directions and are traced exactly along each step: at every hit of a membrane they pass with
probability P, else they are reflected. This conserves an even density for any step, and the flux
through a membrane of permeability kappa fixes P by

    P / (1 - P) = kappa L C / D,        C = pi / 4 in two dimensions, 2 / 3 in three

(to first order in P, [1]_ eq. 17; the denominator is the part of the steady flux that the gradient
across one step carries). Per walk the integral of the position is stored at specified times, so
that one walk gives the phases of all pulsed gradients whose pulses start and end at these times.

    python -m benchmarks.monte_carlo

compares with exact solutions and, where DIPY_SPINVERSE_DATA is set, with two other simulators'
permeable cylinders. Duration: about 4 min on 2 cores (--quick: 1 min). Writes
nothing.

References
----------
.. [1] Fieremans and Lee, "Physical and numerical phantoms for the validation of brain
   microstructural MRI", NeuroImage 182 (2018), https://doi.org/10.1016/j.neuroimage.2018.06.046
"""

# ruff: noqa: NPY002  (compiled loops draw from the compiler's own generator)
from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit
from scipy.optimize import brentq
from scipy.spatial import cKDTree
from scipy.special import jnp_zeros, spherical_jn

from benchmarks.command import command
from benchmarks.datasets import data_at_hand, data_file
from benchmarks.packing import Packing, random_packing

# um^2/ms
DIFFUSIVITY = 2.0
_CROSSING = {2: np.pi / 4, 3: 2 / 3}
# Cells of the look-up table per radius.
_CELLS_PER_RADIUS = 4
_LARGEST_TABLE = 120
_MOST_HITS = 200
# ms: pulses shall consist of many steps.
_LONGEST_STEP = 0.1


def walk(
    packing: Packing,
    permeability: float,
    times: np.ndarray,
    n_walkers: int,
    seed: int,
    *,
    step_per_radius: float = 1 / 6,
    diffusivity: float = DIFFUSIVITY,
) -> tuple[np.ndarray, np.ndarray]:
    """Integrals of the position of spins with uniform initial density.

    Parameters
    ----------
    packing : Packing
    permeability : float
        um/ms.
    times : ndarray (K,)
        ms, increasing, multiples of 0.5 ms.
    n_walkers : int
    seed : int
    step_per_radius : float, optional
        Longest step over the radius.
    diffusivity : float, optional
        um^2/ms, inside and outside.

    Returns
    -------
    integrals : ndarray (W, K, d)
        Integral from 0 of the displacement from the start, um ms.
    inside : ndarray (W,) of bool
        Started inside; their number is the fraction's as closely as can be.
    """
    dimension = packing.dimension
    ticks = np.rint(np.asarray(times) / 0.5).astype(np.int64)
    longest = (step_per_radius * packing.radius) ** 2 / (2 * dimension * diffusivity)
    per_tick = int(np.ceil(0.5 / min(longest, _LONGEST_STEP)))
    duration = 0.5 / per_tick
    length = np.sqrt(2 * dimension * diffusivity * duration)
    odds = permeability * length * _CROSSING[dimension] / diffusivity
    table = _look_up_table(packing, 1.01 * length)
    starts, body = _starts(packing, n_walkers, seed)
    integrals = np.empty((n_walkers, len(ticks), 3), dtype=np.float32)
    _walk_among(
        _in_space(packing.centers), packing.radius, packing.side, dimension == 2, *table,
        _in_space(starts), body, ticks * per_tick, duration, length, odds / (1 + odds), seed,
        integrals,
    )  # fmt: skip
    return integrals[..., :dimension], body >= 0


def _in_space(points):
    return np.pad(points, ((0, 0), (0, 3 - points.shape[1])))


def _starts(packing, n_walkers, seed):
    """Places of even density and the body around each, -1 outside."""
    rng = np.random.default_rng(seed)
    tree = cKDTree(packing.centers % packing.side, boxsize=packing.side)
    n_inside = round(packing.fraction * n_walkers)
    found = [[], []]
    counts = [n_walkers - n_inside, n_inside]
    while any(sum(map(len, places)) < count for places, count in zip(found, counts, strict=True)):
        places = rng.random((4 * n_walkers, packing.dimension)) * packing.side
        within = tree.query(places)[0] < packing.radius
        found[0].append(places[~within])
        found[1].append(places[within])
    starts = np.concatenate([np.concatenate(f)[:n] for f, n in zip(found, counts, strict=True)])
    body = tree.query(starts)[1]
    body[: counts[0]] = -1
    return starts, body.astype(np.int64)


def _look_up_table(packing, reach):
    """Images of the bodies that a spin outside can meet within `reach` of each cell of the box."""
    side, radius, dimension = packing.side, packing.radius, packing.dimension
    n = min(int(np.ceil(_CELLS_PER_RADIUS * side / radius)), _LARGEST_TABLE)
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * dimension, indexing="ij"), axis=-1)
    images = (packing.centers + side * shifts.reshape(-1, 1, dimension)).reshape(-1, dimension)
    index = np.tile(np.arange(len(packing.centers)), 3**dimension)
    cell = side / n
    far = radius + reach + cell * np.sqrt(dimension)
    near = ((images > -far) & (images < side + far)).all(axis=1)
    images, index = images[near], index[near]
    axes = [(np.arange(n) + 0.5) * cell] * dimension
    middles = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, dimension)
    half_diagonal = cell * np.sqrt(dimension) / 2
    lists = cKDTree(images).query_ball_point(middles, radius + reach + half_diagonal)
    counts = np.array([len(members) for members in lists])
    members = np.concatenate([np.asarray(m, dtype=np.int64) for m in lists])
    first = np.concatenate([[0], np.cumsum(counts)])
    return n, first, _in_space(images)[members], index[members]


@njit(cache=True, fastmath=True, inline="always")
def random_direction(flat):
    """Unit vector, even on the circle or (Marsaglia) on the sphere."""
    while True:
        x, y = 2 * np.random.random() - 1, 2 * np.random.random() - 1
        norm = x * x + y * y
        if 1e-12 < norm <= 1:
            break
    if flat:
        scale = 1 / np.sqrt(norm)
        return x * scale, y * scale, 0.0
    scale = 2 * np.sqrt(1 - norm)
    return x * scale, y * scale, 1 - 2 * norm


@njit(cache=True, fastmath=True)
def _walk_among(
    centers, radius, side, flat, n, first, images, index, starts, body, ticks, dt, length,
    chance, seed, integrals,
):  # fmt: skip
    np.random.seed(seed)
    square, safe = radius * radius, max(radius - length, 0.0) ** 2
    for w in range(len(starts)):
        x, y, z = starts[w]
        here = body[w]
        wx = wy = wz = sx = sy = sz = 0.0
        step = 0
        for k in range(len(ticks)):
            while step < ticks[k]:
                step += 1
                ux, uy, uz = random_direction(flat)
                px, py, pz, rest = x, y, z, length
                cell = min(int(x / side * n), n - 1) * n + min(int(y / side * n), n - 1)
                if not flat:
                    cell = cell * n + min(int(z / side * n), n - 1)
                low, high = first[cell], first[cell + 1]
                cx = cy = cz = 0.0
                if here >= 0:
                    cx, cy, cz = centers[here]
                    cx += side * np.round((x - cx) / side)
                    cy += side * np.round((y - cy) / side)
                    cz += side * np.round((z - cz) / side)
                    if (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < safe:
                        px, py, pz = x + ux * length, y + uy * length, z + uz * length
                        rest = 0.0
                hits = 0
                while rest > 0:
                    nearest, which = rest, -1
                    if here >= 0:
                        dx, dy, dz = px - cx, py - cy, pz - cz
                        along = ux * dx + uy * dy + uz * dz
                        gap = dx * dx + dy * dy + dz * dz - square
                        way = -along + np.sqrt(max(along * along - min(gap, 0.0), 0.0))
                        if way < rest:
                            nearest, which = way, here
                    else:
                        for m in range(low, high):
                            dx, dy, dz = px - images[m, 0], py - images[m, 1], pz - images[m, 2]
                            along = ux * dx + uy * dy + uz * dz
                            if along < 0:
                                gap = max(dx * dx + dy * dy + dz * dz - square, 0.0)
                                root = along * along - gap
                                if root > 0:
                                    way = -along - np.sqrt(root)
                                    if way < nearest:
                                        nearest, which = way, index[m]
                                        cx, cy, cz = images[m]
                    px += ux * nearest
                    py += uy * nearest
                    pz += uz * nearest
                    rest -= nearest
                    if which < 0:
                        break
                    hits += 1
                    if np.random.random() < chance:
                        here = which if here < 0 else -1
                    else:
                        nx, ny, nz = (px - cx) / radius, (py - cy) / radius, (pz - cz) / radius
                        along = 2 * (ux * nx + uy * ny + uz * nz)
                        ux -= along * nx
                        uy -= along * ny
                        uz -= along * nz
                    if hits > _MOST_HITS:
                        break
                dx, dy, dz = px - x, py - y, pz - z
                sx += dt * (wx + 0.5 * dx)
                sy += dt * (wy + 0.5 * dy)
                sz += dt * (wz + 0.5 * dz)
                wx += dx
                wy += dy
                wz += dz
                x = px - side * np.floor(px / side)
                y = py - side * np.floor(py / side)
                z = pz - side * np.floor(pz / side)
            integrals[w, k, 0] = sx
            integrals[w, k, 1] = sy
            integrals[w, k, 2] = sz


def mean_displacements(integrals, times, small_delta, big_delta):
    """Mean position over the second pulse less that over the first (W, d), um."""

    def until(t):
        return 0.0 if t == 0 else integrals[:, np.flatnonzero(np.isclose(times, t))[0]]

    return (until(big_delta + small_delta) - until(big_delta) - until(small_delta)) / small_delta


def pulse_times(timings) -> np.ndarray:
    """The times (K,) at which pulses of (delta, Delta) start and end, ms, without 0."""
    times = {t for small, big in timings for t in (small, big, big + small)}
    return np.array(sorted(times))


def signals(displacements, inside, q_vectors) -> tuple[np.ndarray, np.ndarray]:
    """Signals relative to b = 0 and their standard errors.

    Parameters
    ----------
    displacements : ndarray (W, d)
        See `mean_displacements`, um.
    inside : ndarray (W,) of bool
        Where the spins started; their numbers are not random.
    q_vectors : ndarray (G, N, d)
        rad/um; the signal is the mean over the N vectors of each of G groups, and over spins.

    Returns
    -------
    ndarray (G,), ndarray (G,)
    """
    signal, variance = np.zeros(len(q_vectors)), np.zeros(len(q_vectors))
    for stratum in (displacements[inside], displacements[~inside]):
        share = len(stratum) / len(displacements)
        mean, square = _cosines(np.ascontiguousarray(stratum, dtype=float), q_vectors)
        signal += share * mean
        variance += share * np.maximum(square - mean**2, 0) / len(displacements)
    return signal, np.sqrt(variance)


@njit(cache=True, fastmath=True)
def _cosines(displacements, q_vectors):
    """Mean and mean square of cos(q . x), over walkers and over the vectors of each group."""
    n_groups, n_vectors, dimension = q_vectors.shape
    mean, square = np.zeros(n_groups), np.zeros(n_groups)
    for g in range(n_groups):
        for w in range(len(displacements)):
            total = 0.0
            for v in range(n_vectors):
                phase = 0.0
                for k in range(dimension):
                    phase += q_vectors[g, v, k] * displacements[w, k]
                total += np.cos(phase)
            total /= n_vectors
            mean[g] += total
            square[g] += total * total
    n = max(len(displacements), 1)
    return mean / n, square / n


def restricted_square(dimension, radius, small_delta, big_delta, diffusivity=DIFFUSIVITY):
    """Mean square (um^2, one axis) of `mean_displacements` in an impermeable disc or ball.

    The exact second moment that the Gaussian phase approximation rests on: sum over modes of
    B (2 a d - 2 + 2 e^-ad + 2 e^-aD - e^-a(D-d) - e^-a(D+d)) / (a d)^2 [1]_.

    .. [1] Murday and Cotts, J. Chem. Phys. 48 (1968), https://doi.org/10.1063/1.1668160
    """
    mu, weight = _modes(dimension)
    weight = 4 * radius**2 * weight
    rate = diffusivity * (mu / radius) ** 2
    lags = np.array([small_delta, big_delta, big_delta - small_delta, big_delta + small_delta])
    decay = 2 * rate * small_delta - 2 + [2, 2, -1, -1] @ np.exp(-lags[:, None] * rate)
    return (weight * decay / (rate * small_delta) ** 2).sum()


@cache
def _modes(dimension):
    """Roots and weights of the modes of a disc or ball."""
    if dimension == 2:
        mu = jnp_zeros(1, 60)
        return mu, 1 / (mu**2 * (mu**2 - 1))
    guess = np.pi * (np.arange(60) + 0.7)
    mu = np.array([brentq(lambda x: spherical_jn(1, x, True), g - 1.0, g + 1.0) for g in guess])
    return mu, 1 / (mu**2 * (mu**2 - 2))


def check_free(dimension):
    """Walls that let everything pass: exp(-b D)."""
    times, b = pulse_times([(8.0, 15.0)]), np.array([0.5, 1.0, 2.5])
    packing = random_packing(dimension, 3.0, 0.5, 60, 0)
    integrals, inside = walk(packing, 1e9, times, 40_000, 1)
    moved = mean_displacements(integrals, times, 8.0, 15.0)
    q = np.sqrt(b / (15.0 - 8.0 / 3))
    found, error = signals(moved, inside, q[:, None, None] * np.eye(dimension))
    for row in zip(b, found, error, np.exp(-b * DIFFUSIVITY), strict=True):
        print("free, {}-D: b {:g}: {:.4f} +- {:.4f}, exact {:.4f}".format(dimension, *row))


def check_restricted(dimension, step_per_radius):
    """Impermeable walls: second moment inside."""
    times = pulse_times([(8.0, 15.0), (8.0, 50.0)])
    packing = random_packing(dimension, 3.0, 0.5, 60, 0)
    integrals, inside = walk(packing, 0.0, times, 60_000, 1, step_per_radius=step_per_radius)
    for separation in (15.0, 50.0):
        square = mean_displacements(integrals[inside], times, 8.0, separation).astype(float) ** 2
        error = square.std() / np.sqrt(square.size)
        exact = restricted_square(dimension, 3.0, 8.0, separation)
        print(
            f"restricted, {dimension}-D, step {step_per_radius:.3f} R, Delta {separation:g}: "
            f"{square.mean():.4f} +- {error:.4f} um^2, exact {exact:.4f}"
        )


def check_steps(dimension, fraction):
    """Dense and permeable: signals at step lengths from long to short."""
    times, q = pulse_times([(4.0, 15.0)]), np.array([0.3, 0.6, 1.2])
    packing = random_packing(dimension, 2.0, fraction, 100, 1)
    for step in (1 / 3, 1 / 4, 1 / 6, 1 / 10):
        integrals, inside = walk(packing, 0.05, times, 60_000, 1, step_per_radius=step)
        moved = mean_displacements(integrals, times, 4.0, 15.0)
        found, error = signals(moved, inside, q[:, None, None] * np.eye(dimension))
        text = ", ".join(f"{s:.4f} +- {e:.4f}" for s, e in zip(found, error, strict=True))
        print(f"fraction {fraction:g}, {dimension}-D, step {step:.3f} R: {text}")


def check_permeable(path):
    """One permeable cylinder per cell, against two pooled simulators."""
    with np.load(path) as file:
        data = dict(file)
    packing = Packing(np.array([[4.0, 4.0]]), 3.0, 8.0)
    timing = np.stack([data["delta_ms"], data["Delta_ms"]], axis=1)
    times = pulse_times(np.unique(timing, axis=0))
    for kappa in np.unique(data["kappa_um_per_ms"]):
        integrals, inside = walk(packing, kappa, times, 60_000, 3)
        difference, deviation = [], []
        for small, big in np.unique(timing, axis=0):
            own = (timing == (small, big)).all(axis=1) & (data["kappa_um_per_ms"] == kappa)
            b, direction = data["b_ms_per_um2"][own], data["direction"][own]
            moved = mean_displacements(integrals, times, small, big)
            q = np.sqrt(b / (big - small / 3))[:, None] * direction[:, :2]
            found, error = signals(moved, inside, q[:, None])
            free = np.exp(-b * DIFFUSIVITY * direction[:, 2] ** 2)
            difference.append(free * found - data["signal_pooled"][own])
            deviation.append(np.hypot(free * error, data["stderr_pooled"][own]))
        difference, deviation = np.concatenate(difference), np.concatenate(deviation)
        known = deviation > 0
        score = np.sqrt(np.mean((difference[known] / deviation[known]) ** 2))
        print(
            f"kappa {kappa:g}: {difference.size} signals, largest difference "
            f"{np.abs(difference).max():.4f}, mean {difference.mean():.4f}, rms over standard "
            f"errors {score:.2f}"
        )


def main():
    """Print all checks."""
    quick = command(__doc__, "the two-dimensional checks").parse_args().quick
    for dimension, dense in ((2, 0.75),) if quick else ((2, 0.75), (3, 0.58)):
        check_free(dimension)
        for step in (1 / 4, 1 / 6, 1 / 12):
            check_restricted(dimension, step)
        check_steps(dimension, dense)
    if data_at_hand() and not quick:
        check_permeable(data_file("packed_cylinders_mc/one_cylinder_per_cell.npz"))


if __name__ == "__main__":
    main()
