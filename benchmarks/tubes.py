"""Random walks among tubes that need not be equal circular cylinders.

Tubes run along z in a periodic bundle. Their cross-sections are ellipses of individual size,
direction and permeability; they may be beaded, their semi-axes times 1 + e cos(k z + phase), and
undulate together, shifted along x by a sin(k z), so that slices never overlap. Water diffuses with
one diffusivity inside and one outside, its density is the same.

Spins make steps of a fixed length on each side. Where a step leaves or enters a tube its position
on the wall is computed by bisection: there it passes with the probability of
`benchmarks.monte_carlo`, else it is reflected by the wall's normal.

    python -m benchmarks.tubes

compares with exact solutions and with `benchmarks.monte_carlo`. Duration: 1 min. Writes nothing.
"""

# ruff: noqa: NPY002  (compiled loops draw from the compiler's own generator)
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit
from scipy.optimize import minimize

from benchmarks.command import command
from benchmarks.monte_carlo import (
    DIFFUSIVITY,
    mean_displacements,
    pulse_times,
    random_direction,
    restricted_square,
    signals,
    walk,
)
from benchmarks.packing import random_packing

# The flux through a membrane over that of free steps, see `benchmarks.monte_carlo`.
_CROSSING = {2: np.pi / 4, 3: 2 / 3}
_STEP_PER_RADIUS, _STEP_PER_LEAST_RADIUS = 1 / 5, 1 / 3
# ms: pulses shall consist of many steps.
_LONGEST_STEP = 0.1
_CELLS_PER_RADIUS, _LARGEST_TABLE = 4, 200
_MOST_HITS, _HALVINGS = 200, 12
_N_SURFACE = 32


@dataclass(frozen=True, eq=False)
class Tubes:
    """A periodic bundle of tubes along z.

    Attributes
    ----------
    centers : ndarray (N, 2)
        um, in [0, side).
    side : float
        um.
    semi_axes : ndarray (N, 2)
        um, mean over the length.
    permeability : ndarray (N,)
        um/ms.
    angles : ndarray (N,), optional
        Of the first semi-axis to x, rad.
    beading : float, optional
        Relative amplitude of the semi-axes.
    bead_length : float, optional
        From bead to bead, um.
    phases : ndarray (N,), optional
        Of the beads, rad.
    undulation : float, optional
        Amplitude, um.
    wave_length : float, optional
        um.
    """

    centers: np.ndarray
    side: float
    semi_axes: np.ndarray
    permeability: np.ndarray
    angles: np.ndarray | None = None
    beading: float = 0.0
    bead_length: float = 10.0
    phases: np.ndarray | None = None
    undulation: float = 0.0
    wave_length: float = 20.0

    @property
    def straight(self) -> bool:
        """Whether no section differs from another."""
        return self.beading == 0 and self.undulation == 0

    @cached_property
    def volumes(self) -> np.ndarray:
        """Volume of each tube (N,) over that of the box."""
        beads = 1 + self.beading**2 / 2
        return np.pi * self.semi_axes.prod(axis=1) * beads / self.side**2

    @cached_property
    def areas(self) -> np.ndarray:
        """Area of each wall (N,) over the volume of the box, 1/um."""
        turn = 2 * np.pi * np.arange(_N_SURFACE) / _N_SURFACE
        # Beads and waves meet at every pair of phases along a long tube.
        around, bead, wave = np.meshgrid(turn, turn, turn, indexing="ij", sparse=True)
        scale = 1 + self.beading * np.cos(bead)
        slope = -2 * np.pi / self.bead_length * self.beading * np.sin(bead)
        shift = 2 * np.pi / self.wave_length * self.undulation * np.cos(wave)
        areas = []
        for (p, q), angle in zip(self.semi_axes, self._angles, strict=True):
            cos, sin = np.cos(angle), np.sin(angle)
            u, v = p * np.cos(around), q * np.sin(around)
            u_t, v_t = -p * np.sin(around), q * np.cos(around)
            x_z, y_z = slope * (u * cos - v * sin) + shift, slope * (u * sin + v * cos)
            x_t, y_t = scale * (u_t * cos - v_t * sin), scale * (u_t * sin + v_t * cos)
            normal = np.sqrt(x_t**2 + y_t**2 + (x_t * y_z - y_t * x_z) ** 2)
            areas.append(2 * np.pi * normal.mean() / self.side**2)
        return np.array(areas)

    @property
    def fraction(self) -> float:
        """Volume inside over all."""
        return float(self.volumes.sum())

    @property
    def _angles(self):
        return np.zeros(len(self.centers)) if self.angles is None else self.angles

    @property
    def _phases(self):
        return np.zeros(len(self.centers)) if self.phases is None else self.phases

    @property
    def rows(self) -> np.ndarray:
        """What the compiled loops need of each tube (N, 7): center, its axes, phase."""
        p, q = self.semi_axes.T
        cos, sin = np.cos(self._angles), np.sin(self._angles)
        return np.column_stack([self.centers, cos / p, sin / p, -sin / q, cos / q, self._phases])

    @property
    def waves(self) -> tuple[float, ...]:
        """What they need of the bundle (5): side, beads, waves."""
        beads, turns = 2 * np.pi / self.bead_length, 2 * np.pi / self.wave_length
        numbers = (self.side, self.beading, beads, self.undulation, turns)
        return tuple(float(number) for number in numbers)


def random_discs(radii: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, float]:
    """Centers (N, 2) of discs that do not overlap, and the side of their periodic box, um.

    Raises
    ------
    ValueError
        A fraction that cannot be packed.
    """
    rng = np.random.default_rng(seed)
    n = len(radii)
    side = float(np.sqrt(np.pi * (radii**2).sum() / fraction))
    first, second = np.triu_indices(n, 1)
    least = (radii[first] + radii[second]) / side

    def apart_of(flat):
        points = flat.reshape(n, 2)
        apart = points[first] - points[second]
        apart -= np.round(apart)
        return apart, np.sqrt((apart**2).sum(axis=1)) + 1e-12

    def overlap(flat):
        apart, length = apart_of(flat)
        excess = np.maximum(1 - length / (1.002 * least), 0)
        force = (-2 * excess / (1.002 * least * length))[:, None] * apart
        gradient = np.zeros((n, 2))
        np.add.at(gradient, first, force)
        np.add.at(gradient, second, -force)
        return (excess**2).sum(), gradient.ravel()

    options = {"maxiter": 4000, "maxfun": 8000, "ftol": 0, "gtol": 1e-9}
    for _ in range(10):
        start = rng.random(2 * n)
        found = minimize(overlap, start, jac=True, method="L-BFGS-B", options=options).x
        if (apart_of(found)[1] >= least).all():
            return side * (found.reshape(n, 2) % 1), side
    raise ValueError(f"fraction is {fraction:g}: {n} discs could not be packed. Give less.")


def walk_tubes(
    tubes: Tubes,
    times: np.ndarray,
    n_walkers: int,
    seed: int,
    *,
    inside: float = DIFFUSIVITY,
    outside: float = DIFFUSIVITY,
) -> tuple[np.ndarray, np.ndarray]:
    """Integrals of the position of spins with uniform initial density.

    Parameters
    ----------
    tubes : Tubes
    times : ndarray (K,)
        ms, increasing, multiples of 0.5 ms.
    n_walkers : int
    seed : int
    inside, outside : float, optional
        Diffusivities, um^2/ms.

    Returns
    -------
    integrals : ndarray (W, K, d)
        Integral from 0 of the displacement from the start, um ms; across straight tubes d = 2
        where both diffusivities are equal, so that water moves freely along them, else d = 3.
    inside : ndarray (W,) of bool
        Started inside; their number is the fraction's as closely as can be.
    """
    dimension = 2 if tubes.straight and inside == outside else 3
    ticks = np.rint(np.asarray(times) / 0.5).astype(np.int64)
    radius = np.sqrt(tubes.semi_axes.prod(axis=1).mean())
    least = tubes.semi_axes.min() * (1 - tubes.beading)
    longest = min(_STEP_PER_RADIUS * radius, _STEP_PER_LEAST_RADIUS * least)
    duration = longest**2 / (2 * dimension * max(inside, outside))
    per_tick = int(np.ceil(0.5 / min(duration, _LONGEST_STEP)))
    duration = 0.5 / per_tick
    lengths = np.sqrt(2 * dimension * duration * np.array([outside, inside]))
    # The same flux from both sides: probability times length does not depend on the side.
    odds = tubes.permeability * 2 * dimension * duration * _CROSSING[dimension]
    chances = odds[:, None] / lengths
    chances /= 1 + chances.mean(axis=1, keepdims=True)
    table = _table_of(tubes)
    starts, body = _starts(tubes, table, n_walkers, seed)
    integrals = np.empty((n_walkers, len(ticks), 3), dtype=np.float32)
    _walk(
        tubes.rows, tubes.waves, *table, starts, body, ticks * per_tick, duration, lengths,
        chances, dimension == 2, seed, integrals,
    )  # fmt: skip
    return integrals[..., :dimension], body >= 0


def _table_of(tubes):
    """Tubes that reach into each square of the section at any z."""
    side = tubes.side
    reach = tubes.semi_axes.max(axis=1) * (1 + tubes.beading)
    n = int(np.clip(_CELLS_PER_RADIUS * side / reach.max(), 1, _LARGEST_TABLE))
    middles = (np.stack(np.meshgrid(*[np.arange(n)] * 2, indexing="ij"), axis=-1) + 0.5) / n
    apart = middles.reshape(-1, 1, 2) * side - tubes.centers
    # To the nearest point of the square.
    apart = np.maximum(np.abs(apart - side * np.round(apart / side)) - side / (2 * n), 0)
    near = (apart**2).sum(axis=-1) < reach**2
    members = np.concatenate([np.flatnonzero(row) for row in near])
    return n, np.concatenate([[0], np.cumsum(near.sum(axis=1))]), members


def _starts(tubes, table, n_walkers, seed):
    """Positions of uniform density and the tube around each, -1 outside."""
    rng = np.random.default_rng(seed)
    wave = tubes.bead_length * tubes.wave_length
    extent = np.array([tubes.side, tubes.side, wave])
    n_inside = round(tubes.fraction * n_walkers)
    counts, found = (n_walkers - n_inside, n_inside), [[], []]
    while any(sum(map(len, part)) < count for part, count in zip(found, counts, strict=True)):
        places = rng.random((4 * n_walkers, 3)) * extent
        within = _containers(places, tubes.rows, tubes.waves, *table) >= 0
        found[0].append(places[~within])
        found[1].append(places[within])
    starts = np.concatenate([np.concatenate(f)[:n] for f, n in zip(found, counts, strict=True)])
    return starts, _containers(starts, tubes.rows, tubes.waves, *table)


@njit(cache=True, fastmath=True, inline="always")
def _offset(x, y, z, k, tubes, waves):
    """Position in the section of tube k over its semi-axes, and the size of the bead."""
    side, beading, beads, undulation, turns = waves
    dx, dy = x - tubes[k, 0], y - tubes[k, 1]
    if undulation > 0:
        dx -= undulation * np.sin(turns * z)
    dx -= side * np.floor(dx / side + 0.5)
    dy -= side * np.floor(dy / side + 0.5)
    u = dx * tubes[k, 2] + dy * tubes[k, 3]
    v = dx * tubes[k, 4] + dy * tubes[k, 5]
    scale = 1 + beading * np.cos(beads * z + tubes[k, 6]) if beading > 0 else 1.0
    return u, v, scale


@njit(cache=True, fastmath=True, inline="always")
def _level(x, y, z, k, tubes, waves):
    """Below 0 inside."""
    u, v, scale = _offset(x, y, z, k, tubes, waves)
    return u * u + v * v - scale * scale


@njit(cache=True, fastmath=True)
def _normal(x, y, z, k, tubes, waves):
    """Of the wall."""
    _, beading, beads, undulation, turns = waves
    u, v, scale = _offset(x, y, z, k, tubes, waves)
    nx, ny = u * tubes[k, 2] + v * tubes[k, 4], u * tubes[k, 3] + v * tubes[k, 5]
    nz = -nx * undulation * turns * np.cos(turns * z)
    nz += scale * beading * beads * np.sin(beads * z + tubes[k, 6])
    norm = np.sqrt(nx * nx + ny * ny + nz * nz)
    return nx / norm, ny / norm, nz / norm


@njit(cache=True, fastmath=True, inline="always")
def _container(x, y, z, tubes, waves, n, first, members):
    """The tube around a position, -1 outside."""
    side, undulation, turns = waves[0], waves[3], waves[4]
    sx = x - undulation * np.sin(turns * z) if undulation > 0 else x
    sx, sy = sx / side, y / side
    i = min(int((sx - np.floor(sx)) * n), n - 1)
    j = min(int((sy - np.floor(sy)) * n), n - 1)
    for m in range(first[i * n + j], first[i * n + j + 1]):
        if _level(x, y, z, members[m], tubes, waves) <= 0:
            return members[m]
    return -1


@njit(cache=True, fastmath=True)
def _containers(places, tubes, waves, n, first, members):
    found = np.empty(len(places), np.int64)
    for k in range(len(places)):
        x, y, z = places[k]
        found[k] = _container(x, y, z, tubes, waves, n, first, members)
    return found


@njit(cache=True, fastmath=True)
def _walk(
    tubes, waves, n, first, members, starts, body, ticks, dt, lengths, chances, flat, seed,
    integrals,
):  # fmt: skip
    np.random.seed(seed)
    for w in range(len(starts)):
        x, y, z = starts[w]
        here = body[w]
        x0, y0, z0 = x, y, z
        sx = sy = sz = 0.0
        step = 0
        for k in range(len(ticks)):
            while step < ticks[k]:
                step += 1
                ux, uy, uz = random_direction(flat)
                px, py, pz, rest = x, y, z, 1.0
                for _ in range(_MOST_HITS):
                    side = 1 if here >= 0 else 0
                    way = rest * lengths[side]
                    ex, ey, ez = px + way * ux, py + way * uy, pz + way * uz
                    wall = -1
                    if here < 0:
                        wall = _container(ex, ey, ez, tubes, waves, n, first, members)
                    elif _level(ex, ey, ez, here, tubes, waves) > 0:
                        wall = here
                    if wall < 0:
                        px, py, pz = ex, ey, ez
                        break
                    near, far = 0.0, way
                    for _ in range(_HALVINGS):
                        half = (near + far) / 2
                        hx, hy, hz = px + half * ux, py + half * uy, pz + half * uz
                        if (_level(hx, hy, hz, wall, tubes, waves) > 0) == (here < 0):
                            near = half
                        else:
                            far = half
                    crosses = np.random.random() < chances[wall, side]
                    gone = far if crosses else near
                    px, py, pz = px + gone * ux, py + gone * uy, pz + gone * uz
                    rest = max(rest - gone / lengths[side], 0.0)
                    if crosses:
                        here = wall if here < 0 else -1
                    else:
                        nx, ny, nz = _normal(px, py, pz, wall, tubes, waves)
                        along = 2 * (ux * nx + uy * ny + uz * nz)
                        ux -= along * nx
                        uy -= along * ny
                        uz -= along * nz
                sx += dt * ((x + px) / 2 - x0)
                sy += dt * ((y + py) / 2 - y0)
                sz += dt * ((z + pz) / 2 - z0)
                x, y, z = px, py, pz
            integrals[w, k, 0] = sx
            integrals[w, k, 1] = sy
            integrals[w, k, 2] = sz


def equal_tubes(radius: float, fraction: float, n_tubes: int, seed: int, permeability) -> Tubes:
    """Circular cylinders of one radius, packed at random."""
    packing = random_packing(2, radius, fraction, n_tubes, seed)
    kappa = np.full(n_tubes, permeability) if np.isscalar(permeability) else permeability
    return Tubes(packing.centers, packing.side, np.full((n_tubes, 2), radius), kappa)


def check_free():
    """Walls that let everything pass, two diffusivities that are nearly one: exp(-b D)."""
    times, b = pulse_times([(8.0, 15.0)]), np.array([0.5, 1.0, 2.5])
    tubes = equal_tubes(3.0, 0.5, 60, 0, 1e9)
    integrals, inside = walk_tubes(tubes, times, 40_000, 1, inside=2.0, outside=2.0 + 1e-9)
    moved = mean_displacements(integrals, times, 8.0, 15.0)
    q = np.sqrt(b / (15.0 - 8.0 / 3))
    found, error = signals(moved, inside, q[:, None, None] * np.eye(3))
    for row in zip(b, found, error, np.exp(-2 * b), strict=True):
        print("free: b {:g}: {:.4f} +- {:.4f}, exact {:.4f}".format(*row))


def check_restricted():
    """Impermeable walls: second moment across, inside discs and along beads of no height."""
    times = pulse_times([(8.0, 15.0), (8.0, 50.0)])
    for beading in (0.0, 1e-9):
        tubes = equal_tubes(3.0, 0.5, 60, 0, 0.0)
        tubes = Tubes(tubes.centers, tubes.side, tubes.semi_axes, tubes.permeability,
                      beading=beading)  # fmt: skip
        integrals, inside = walk_tubes(tubes, times, 40_000, 1)
        for separation in (15.0, 50.0):
            moved = mean_displacements(integrals[inside], times, 8.0, separation)[:, :2]
            square = moved.astype(float) ** 2
            error = square.std() / np.sqrt(square.size)
            print(
                f"restricted, {integrals.shape[-1]}-D, Delta {separation:g}: {square.mean():.4f} "
                f"+- {error:.4f} um^2, exact {restricted_square(2, 3.0, 8.0, separation):.4f}"
            )


def check_permeable():
    """Dense and permeable: against the exact tracing of `benchmarks.monte_carlo`."""
    times, q = pulse_times([(4.0, 15.0)]), np.array([0.3, 0.6, 1.2])
    vectors = q[:, None, None] * np.array([[1, 0, 0], [0, 1, 0], [0.7071, 0.7071, 0]])
    packing = random_packing(2, 2.0, 0.7, 100, 1)
    tubes = equal_tubes(2.0, 0.7, 100, 1, 0.05)
    ways = {
        "exact tracing": walk(packing, 0.05, times, 60_000, 1),
        "tubes, 2-D": walk_tubes(tubes, times, 60_000, 1),
        "tubes, 3-D": walk_tubes(tubes, times, 60_000, 1, outside=DIFFUSIVITY + 1e-9),
    }
    for name, (integrals, inside) in ways.items():
        moved = mean_displacements(integrals, times, 4.0, 15.0)
        found, error = signals(moved, inside, vectors[..., : moved.shape[1]])
        text = ", ".join(f"{s:.4f} +- {e:.4f}" for s, e in zip(found, error, strict=True))
        print(f"{name}: {text}")


def check_starts():
    """Positions inside tubes against the volumes of the tubes."""
    base = equal_tubes(2.0, 0.4, 64, 2, 0.0)
    rng = np.random.default_rng(0)
    tubes = Tubes(
        base.centers, base.side, base.semi_axes * [0.8, 0.6], base.permeability,
        rng.uniform(0, np.pi, 64), 0.2, 9.0, rng.uniform(0, 2 * np.pi, 64), 2.0, 25.0,
    )  # fmt: skip
    places = rng.random((200_000, 3)) * [base.side, base.side, 225.0]
    within = _containers(places, tubes.rows, tubes.waves, *_table_of(tubes)) >= 0
    print(f"fraction inside: {within.mean():.4f}, of the volumes {tubes.fraction:.4f}")


def main():
    """Print all checks."""
    command(__doc__).parse_args()
    check_starts()
    check_free()
    check_restricted()
    check_permeable()


if __name__ == "__main__":
    main()
