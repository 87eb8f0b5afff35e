"""Tissue that is not packed equal cylinders or spheres: signals by Monte Carlo, and truths.

Substrates are numbered; number n is of kind n mod 15 (`KINDS`), so that any first part is a fair
sample. Unless the kind specifies otherwise: parallel circular cylinders of one radius
(log-uniform, 1.5 to 5 um), packed at random with fraction 0.35 to 0.7 and permeability 0.003 to
0.1 um/ms (log-uniform) about a random axis, D = 2 um^2/ms on both sides. Random walks are those of
`benchmarks.tubes` for tubes and of `benchmarks.monte_carlo` for spheres; pools without exchange
are added.

delta 10 ms, Delta 20, 40, 60 ms, b = 1, 2, 3, 5 ms/um^2, 30 directions per shell, 3 b = 0 per
timing, TE 80 ms, no relaxation. Two additional small sets (`SETS`):

- ``powder``: averages over all directions of cell bodies and thin neurites, delta 4.5 ms,
  Delta 12, 20, 30, 40 ms, b = 1, 2, 3, 5, 8 ms/um^2, each diffusion time with a separate amplitude
  (0.8 to 1.2), as where coils and echo times differ
- ``muscle``: fibres of 20 to 60 um radius, stimulated echoes, delta 8 ms, Delta 30, 100, 200, 300
  ms, b = 0.3, 0.6, 1 ms/um^2

    python -m benchmarks.tissue_outside_set FILE

simulates the sets; an interrupted run resumes. Duration: about 25 CPU-min (--quick:
one substrate of each kind, 3 min). Writes FILE (npz): per set ``SET_signals`` (N, M), 1 at b = 0,
``SET_errors`` (N, M), their standard errors, and ``SET_NAME`` (N,) for each of the `MAPS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline

from benchmarks.command import command
from benchmarks.monte_carlo import DIFFUSIVITY, mean_displacements, pulse_times, signals, walk
from benchmarks.packing import Packing, random_packing
from benchmarks.tissue_testset import isotropic, spread_directions
from benchmarks.tubes import Tubes, equal_tubes, random_discs, walk_tubes
from dipy_spinverse import Acquisition

MAPS = (
    "surface_to_volume",
    "restricted_fraction",
    "pore_diameter",
    "wall_permeability",
    "exchange_time",
)
_N_TUBES = 64
_N_COSINES, _N_AZIMUTHS, _N_AXES = 21, 6, 1200
_CHECKPOINT = 5


@dataclass(frozen=True, eq=False)
class Spheres:
    """Packed spheres of one permeability (um/ms)."""

    packing: Packing
    kappa: float

    @property
    def fraction(self) -> float:
        """Volume inside over all."""
        return self.packing.fraction

    @property
    def areas(self) -> np.ndarray:
        """Of all walls (1,) over the volume, 1/um."""
        return np.array([self.packing.surface_to_volume])

    @property
    def permeability(self) -> np.ndarray:
        """Of the walls (1,)."""
        return np.array([self.kappa])


@dataclass(frozen=True, eq=False)
class Piece:
    """Bodies, the water in and around them, and where their axis points.

    Attributes
    ----------
    bodies : Tubes or Spheres
    axes : ndarray (A, 3)
    weights : ndarray (A,)
        Of the axes, summing to 1.
    share : float
        Of the volume of the tissue.
    inside, outside : float
        Diffusivities, um^2/ms.
    """

    bodies: Tubes | Spheres
    axes: np.ndarray
    weights: np.ndarray
    share: float = 1.0
    inside: float = DIFFUSIVITY
    outside: float = DIFFUSIVITY


@dataclass(frozen=True, eq=False)
class Substrate:
    """Pieces of tissue, and fractions of free (3 um^2/ms) and of immobile water."""

    pieces: tuple[Piece, ...]
    free_water: float = 0.0
    dot: float = 0.0

    @property
    def truths(self) -> dict[str, float]:
        """The `MAPS`, over all the volume."""
        tissue = 1 - self.free_water - self.dot
        inside = tissue * sum(p.share * p.bodies.fraction for p in self.pieces)
        surface = tissue * sum(p.share * p.bodies.areas.sum() for p in self.pieces)
        exchange = tissue * sum(p.share * p.bodies.areas @ p.bodies.permeability
                                for p in self.pieces)  # fmt: skip
        return {
            "surface_to_volume": surface,
            "restricted_fraction": inside,
            "pore_diameter": 4 * inside / surface,
            "wall_permeability": exchange / surface,
            "exchange_time": inside / exchange,
        }


def _log_uniform(rng, low, high):
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _one_axis(rng):
    return isotropic(rng, 1), np.ones(1)


def even_axes() -> tuple[np.ndarray, np.ndarray]:
    """Axes (A, 3) distributed uniformly over the half sphere along a spiral, and weights (A,)."""
    z = (np.arange(_N_AXES) + 0.5) / _N_AXES
    turn = np.pi * (1 + np.sqrt(5)) * np.arange(_N_AXES)
    across = np.sqrt(1 - z**2)
    axes = np.stack([across * np.cos(turn), across * np.sin(turn), z], axis=1)
    return axes, np.full(_N_AXES, 1 / _N_AXES)


def _bingham(rng, along, fanned):
    """Axes with density exp(along (x.m)^2 + fanned (x.n)^2) about a random axis m, n across m."""
    axes, _ = even_axes()
    m, other = isotropic(rng, 2)
    n = np.cross(m, other)
    n /= np.linalg.norm(n)
    weights = np.exp(along * ((axes @ m) ** 2 - 1) + fanned * (axes @ n) ** 2)
    return axes, weights / weights.sum()


def _cylinders(rng, seed, radius=(1.5, 5.0)):
    return equal_tubes(
        _log_uniform(rng, *radius), rng.uniform(0.35, 0.7), _N_TUBES, seed,
        _log_uniform(rng, 0.003, 0.1),
    )  # fmt: skip


def _balls(rng, seed, radius=(2.0, 6.0), fraction=(0.3, 0.58), kappa=(0.003, 0.1)):
    packing = random_packing(3, _log_uniform(rng, *radius), rng.uniform(*fraction), 80, seed)
    return Spheres(packing, _log_uniform(rng, *kappa))


def _either(rng, number):
    """Cylinders or spheres, one after the other."""
    bodies = _cylinders if (number // len(KINDS)) % 2 == 0 else _balls
    return Piece(bodies(rng, number), *_one_axis(rng))


def _plain(rng, number):
    return Substrate((_either(rng, number),))


def _free_water(rng, number):
    return Substrate((_either(rng, number),), free_water=0.15)


def _dot(rng, number):
    return Substrate((_either(rng, number),), dot=0.05)


def _of_radii(rng, number, relative):
    radii = _log_uniform(rng, 1.5, 3.5) * relative
    centers, side = random_discs(radii, rng.uniform(0.35, 0.65), number)
    kappa = np.full(_N_TUBES, _log_uniform(rng, 0.003, 0.1))
    tubes = Tubes(centers, side, np.repeat(radii[:, None], 2, axis=1), kappa)
    return Substrate((Piece(tubes, *_one_axis(rng)),))


def _log_normal_radii(rng, number):
    relative = np.exp(0.35 * rng.standard_normal(_N_TUBES))
    return _of_radii(rng, number, relative.clip(0.4, 2.5))


def _gamma_radii(rng, number):
    return _of_radii(rng, number, (rng.gamma(6, 1 / 6, _N_TUBES)).clip(0.4, 2.5))


def _watson(rng, number):
    return Substrate((Piece(_cylinders(rng, number), *_bingham(rng, rng.uniform(4, 16), 0)),))


def _fanned(rng, number):
    along = rng.uniform(8, 20)
    axes = _bingham(rng, along, rng.uniform(0.4, 0.8) * along)
    return Substrate((Piece(_cylinders(rng, number), *axes),))


def _square(rng, number):
    radius, fraction = _log_uniform(rng, 1.5, 5), rng.uniform(0.35, 0.7)
    side = radius * np.sqrt(np.pi / fraction)
    kappa = np.array([_log_uniform(rng, 0.003, 0.1)])
    tubes = Tubes(np.array([[side / 2, side / 2]]), side, np.full((1, 2), radius), kappa)
    return Substrate((Piece(tubes, *_one_axis(rng)),))


def _beaded(rng, number):
    """Semi-axes that vary by 20 %, tubes that undulate by up to 30 degrees."""
    beading = 0.2
    widest = _log_uniform(rng, 3, 5)
    packing = random_packing(2, widest, rng.uniform(0.55, 0.75), _N_TUBES, number)
    wave_length = rng.uniform(25, 40)
    tubes = Tubes(
        packing.centers, packing.side, np.full((_N_TUBES, 2), widest / (1 + beading)),
        np.full(_N_TUBES, _log_uniform(rng, 0.003, 0.1)), beading=beading,
        bead_length=rng.uniform(6, 12), phases=rng.uniform(0, 2 * np.pi, _N_TUBES),
        undulation=np.tan(np.radians(rng.uniform(10, 30))) * wave_length / (2 * np.pi),
        wave_length=wave_length,
    )  # fmt: skip
    return Substrate((Piece(tubes, *_one_axis(rng)),))


def _elliptic(rng, number):
    """Sections with ratios of axes of 0.5 to 0.8, each turned at random."""
    longer = _log_uniform(rng, 2, 5)
    packing = random_packing(2, longer, rng.uniform(0.6, 0.75), _N_TUBES, number)
    ratios = rng.uniform(0.5, 0.8, _N_TUBES)
    tubes = Tubes(
        packing.centers, packing.side, longer * np.stack([np.ones(_N_TUBES), ratios], axis=1),
        np.full(_N_TUBES, _log_uniform(rng, 0.003, 0.1)), rng.uniform(0, np.pi, _N_TUBES),
    )  # fmt: skip
    return Substrate((Piece(tubes, *_one_axis(rng)),))


def _two_permeabilities(rng, number):
    """Every second tube is 10 to 30 times as permeable as its neighbours."""
    kappa = np.full(_N_TUBES, _log_uniform(rng, 0.003, 0.006))
    kappa[::2] *= rng.uniform(10, 30)
    tubes = equal_tubes(_log_uniform(rng, 1.5, 5), rng.uniform(0.35, 0.7), _N_TUBES, number, kappa)
    return Substrate((Piece(tubes, *_one_axis(rng)),))


def _cell_bodies(rng, number, axes):
    share = rng.uniform(0.2, 0.4)
    neurites = equal_tubes(
        rng.uniform(0.6, 1), rng.uniform(0.4, 0.65), _N_TUBES, number,
        _log_uniform(rng, 0.005, 0.05),
    )  # fmt: skip
    bodies = _balls(rng, number, (4, 7), (0.3, 0.5), (0.003, 0.02))
    return Substrate((
        Piece(neurites, *axes, 1 - share),
        Piece(bodies, *_one_axis(rng), share),
    ))  # fmt: skip


def _soma_and_neurites(rng, number):
    return _cell_bodies(rng, number, _bingham(rng, rng.uniform(1, 6), 0))


def _two_diffusivities(rng, number):
    inside, outside = ((2.0, 1.2), (1.2, 2.0))[(number // len(KINDS)) % 2]
    tubes = _cylinders(rng, number, (2.0, 5.0))
    return Substrate((Piece(tubes, *_one_axis(rng), inside=inside, outside=outside),))


def _other_diffusivity(rng, number):
    diffusivity = (1.6, 2.4)[(number // len(KINDS)) % 2]
    tubes = _cylinders(rng, number)
    axes = _one_axis(rng)
    return Substrate((Piece(tubes, *axes, inside=diffusivity, outside=diffusivity),))


def _crossing(rng, number):
    first, other = isotropic(rng, 2)
    across = other - (other @ first) * first
    across /= np.linalg.norm(across)
    angle = np.radians(rng.uniform(60, 90))
    axes = np.stack([first, np.cos(angle) * first + np.sin(angle) * across])
    share = rng.uniform(0.4, 0.6)
    return Substrate((Piece(_cylinders(rng, number), axes, np.array([share, 1 - share])),))


def _fibres(rng, number):
    tubes = equal_tubes(
        _log_uniform(rng, 20, 60), rng.uniform(0.7, 0.78), _N_TUBES, number,
        _log_uniform(rng, 0.005, 0.05),
    )  # fmt: skip
    return Substrate((Piece(tubes, *_one_axis(rng)),))


KINDS: dict[str, Callable[[np.random.Generator, int], Substrate]] = {
    "plain": _plain,
    "log-normal radii": _log_normal_radii,
    "gamma radii": _gamma_radii,
    "Watson dispersion": _watson,
    "Bingham dispersion": _fanned,
    "square order": _square,
    "beaded and undulating": _beaded,
    "elliptic": _elliptic,
    "two permeabilities": _two_permeabilities,
    "soma and neurites": _soma_and_neurites,
    "D 2.0 / 1.2 inside / outside, and 1.2 / 2.0": _two_diffusivities,
    "D 1.6, and 2.4": _other_diffusivity,
    "15 % free water": _free_water,
    "crossing at 60 to 90 degrees": _crossing,
    "5 % immobile": _dot,
}


def _measurements(small_delta, big_deltas, shells, te, stored=None):
    spread = spread_directions()
    b = np.concatenate([np.zeros(3), np.repeat(shells, len(spread))])
    directions = np.concatenate([np.zeros((3, 3)), np.tile(spread, (len(shells), 1))])
    n, big_delta = len(big_deltas), np.repeat(big_deltas, len(b))
    return Acquisition(
        np.tile(b, n), np.tile(directions, (n, 1)), small_delta, big_delta, te=te,
        mixing_time=0.0 if stored is None else big_delta - stored,
    )  # fmt: skip


def acquisition() -> Acquisition:
    """Of the set ``main``."""
    return _measurements(10.0, (20.0, 40.0, 60.0), (1.0, 2.0, 3.0, 5.0), 80.0)


def powder_shells() -> Acquisition:
    """Of the set ``powder``, with one nominal direction for averages over all directions."""
    shells, big_deltas = np.array([0.0, 1, 2, 3, 5, 8]), (12.0, 20.0, 30.0, 40.0)
    directions = np.where(shells[:, None] > 0, [1.0, 0, 0], 0.0)
    n = len(big_deltas)
    return Acquisition(
        np.tile(shells, n), np.tile(directions, (n, 1)), 4.5,
        np.repeat(big_deltas, len(shells)), te=60.0,
    )  # fmt: skip


def stimulated_echoes() -> Acquisition:
    """Of the set ``muscle``: TE 30 ms, stored for Delta - 15 ms."""
    return _measurements(8.0, (30.0, 100.0, 200.0, 300.0), (0.3, 0.6, 1.0), 30.0, stored=15.0)


def _powder(rng, number):
    return _cell_bodies(rng, number, even_axes())


@dataclass(frozen=True)
class Set:
    """Substrates of a set and how they are measured."""

    acquisition: Callable[[], Acquisition]
    substrate: Callable[[np.random.Generator, int], Substrate]
    size: int


def kind_of(number: int) -> str:
    """Kind of a substrate of the set ``main``."""
    return list(KINDS)[number % len(KINDS)]


SETS = {
    "main": Set(acquisition, lambda rng, n: KINDS[kind_of(n)](rng, n), 10 * len(KINDS)),
    "powder": Set(powder_shells, _powder, 6),
    "muscle": Set(stimulated_echoes, _fibres, 6),
}


def simulate(name: str, number: int) -> dict[str, np.ndarray | float]:
    """Signals (M,) of a substrate of a set, their standard errors and the truths."""
    rng = np.random.default_rng([11, list(SETS).index(name), number])
    substrate = SETS[name].substrate(rng, number)
    measured = SETS[name].acquisition()
    tissue = 1 - substrate.free_water - substrate.dot
    b = np.where(measured.b0_mask, 0, measured.b)
    signal = substrate.free_water * np.exp(-3.0 * b) + substrate.dot
    square = np.zeros(len(measured))
    for piece in substrate.pieces:
        found, error = piece_signals(piece, measured, number)
        signal += tissue * piece.share * found
        square += (tissue * piece.share * error) ** 2
    amplitudes = rng.uniform(0.8, 1.2, len(measured.timings)) if name == "powder" else 1.0
    scale = np.broadcast_to(amplitudes, len(measured.timings))[measured.timing_index]
    return {"signals": scale * signal, "errors": scale * np.sqrt(square)} | substrate.truths


def piece_signals(piece: Piece, measured: Acquisition, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Signals (M,) of a piece, the mean over its axes, and their standard errors.

    A piece has no direction but its axis: it represents many copies rotated about the axis.
    """
    times = pulse_times(measured.timings[:, :2])
    if isinstance(piece.bodies, Spheres):
        integrals, inside = walk(
            piece.bodies.packing, piece.bodies.kappa, times, 16_000, seed, step_per_radius=1 / 4
        )
    else:
        radius = np.sqrt(piece.bodies.semi_axes.prod(axis=1).mean())
        n_walkers = int(np.clip(5e3 * radius**2, 6e3, 1.6e4))
        if not piece.bodies.straight or piece.inside != piece.outside:
            n_walkers = 3 * n_walkers // 2
        integrals, inside = walk_tubes(
            piece.bodies, times, n_walkers, seed, inside=piece.inside, outside=piece.outside
        )
    cosine = np.abs(measured.directions @ piece.axes.T)
    signal, error = np.ones(len(measured)), np.zeros(len(measured))
    for timing, (small_delta, big_delta, _) in enumerate(measured.timings):
        moved = mean_displacements(integrals, times, small_delta, big_delta)
        own = (measured.timing_index == timing) & ~measured.b0_mask
        for q in np.unique(measured.q[own].round(9)):
            rows = np.flatnonzero(own & np.isclose(measured.q, q))
            nodes, mean, deviation = _by_cosine(piece, moved, inside, q, measured.b[rows[0]])
            at = cosine[rows]
            signal[rows] = CubicSpline(nodes, mean)(at) @ piece.weights
            error[rows] = np.interp(at, nodes, deviation) @ piece.weights
    return signal, error


def _by_cosine(piece, moved, inside, q, b):
    """Signals at cosines to the axis, and their standard errors."""
    if isinstance(piece.bodies, Spheres):
        mean, deviation = signals(moved, inside, q * spread_directions()[None, ::2])
        return np.array([0.0, 1.0, 2.0]), np.repeat(mean, 3), np.repeat(deviation, 3)
    cosines = np.linspace(0, 1, _N_COSINES)
    sines = np.sqrt(1 - cosines**2)[:, None]
    turn = np.pi * np.arange(_N_AZIMUTHS) / _N_AZIMUTHS
    along = np.broadcast_to(cosines[:, None], (_N_COSINES, _N_AZIMUTHS))
    vectors = np.stack([sines * np.cos(turn), sines * np.sin(turn), along], axis=-1)
    mean, deviation = signals(moved, inside, q * vectors[..., : moved.shape[1]])
    if moved.shape[1] == 2:
        free = np.exp(-b * piece.inside * cosines**2)
        mean, deviation = free * mean, free * deviation
    return cosines, mean, deviation


def write_sets(path: Path, sizes: dict[str, int]) -> None:
    """Simulate the first substrates of each set; those in the file are kept."""
    arrays: dict[str, list] = {}
    if path.exists():
        with np.load(path) as file:
            arrays = {name: list(file[name]) for name in file.files}
    started = time.process_time()
    for name, size in sizes.items():
        for number in range(len(arrays.get(f"{name}_signals", ())), size):
            for key, value in simulate(name, number).items():
                arrays.setdefault(f"{name}_{key}", []).append(value)
            if number % _CHECKPOINT == _CHECKPOINT - 1 or number == size - 1:
                part = path.with_suffix(".part.npz")
                np.savez_compressed(part, **{k: np.array(v) for k, v in arrays.items()})
                part.replace(path)
                used = time.process_time() - started
                print(f"{name}: {number + 1} substrates, {used:.0f} CPU-s", flush=True)


def main():
    """Make the sets."""
    parser = command(__doc__, "one substrate of each kind into FILE")
    parser.add_argument("path", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    sizes = {name: each.size for name, each in SETS.items()}
    if arguments.quick:
        sizes = {"main": len(KINDS), "powder": 1, "muscle": 1}
    write_sets(arguments.path, sizes)


if __name__ == "__main__":
    main()
