"""A set of tissues with permeable walls, their signals by Monte Carlo and their truths.

The signals come from `benchmarks.monte_carlo`, which is independent of the package. Substrates
are numbered; number n is of class n mod 3, so that any first part of the set is a fair sample:

0. parallel cylinders of one radius, packed at random, along a random axis
1. spheres of one radius, packed at random
2. both side by side: two tissues as above, of the same radius and permeability, that exchange no
   water and whose signals add by the volumes

Radius is log-uniform between 1 and 8 um, volume fraction uniform between 0.2 and 0.8 (cylinders)
or 0.6 (spheres: random packings end at 0.64), permeability log-uniform between 0.001 and 0.2
um/ms, the spheres' share of a mixture uniform between 0.25 and 0.75. D = 2 um^2/ms on both
sides.

Two gradient systems, 30 directions per shell, 3 b = 0 per timing, TE 95 ms, no relaxation:

- ``300``: delta 8 ms, Delta 15, 30, 50, 80 ms, b = 1, 2.5, 5 ms/um^2 (297 mT/m at most)
- ``80``: delta 13, 22.5, 16, 12.5 ms at the same Delta, b = 1, 2.5, 5, but 0.2, 0.4, 0.8 at
  Delta 15 ms, which the gradient limits (79 mT/m at most)

Water moves freely along cylinders: exp(-b D cos^2) exactly. A random packing has no preferred
direction, but for its axis: cylinders' signals are averaged over directions across the axis,
spheres' over all.

Format of the file (npz), N substrates, M = 372 measurements per system, float32::

    signals_300, signals_80 (N, M)   without noise, 1 at b = 0
    errors_300, errors_80 (N, M)     standard errors of the Monte Carlo (float16); those of one
                                     timing of one substrate are correlated (the same walkers)
    repeats (N,)                     independent simulations whose mean the signals are
    shape (N,)                       0, 1, 2 as above
    radius (N,)                      um
    cylinder_fraction, sphere_fraction (N,)   of each tissue
    sphere_share (N,)                volume of the sphere tissue over all
    axis (N, 3)                      of the cylinders (stored, but without meaning, for spheres)
    wall_permeability (N,)           um/ms
    restricted_fraction (N,)         volume inside over all
    surface_to_volume (N,)           area of membranes over all volume, 1/um
    pore_diameter (N,)               4 V / S inside, um: cylinders 2 R, spheres 4 R / 3
    exchange_time (N,)               volume inside over permeability times area, ms

`acquisition` returns the acquisitions; `load_testset` reads the file and adds noise.

    python -m benchmarks.tissue_testset FILE

simulates the set; an interrupted run resumes, and ``--repeats 2`` adds a second
simulation of each to the mean. Duration: about 40 CPU-min (--quick: 1 min). Writes FILE.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dipy.core.sphere import HemiSphere, disperse_charges
from scipy.interpolate import CubicSpline

from benchmarks.command import command
from benchmarks.monte_carlo import (
    DIFFUSIVITY,
    mean_displacements,
    pulse_times,
    signals,
    walk,
)
from benchmarks.packing import random_packing
from dipy_spinverse import Acquisition

SYSTEMS = ("300", "80")
SHAPES = ("cylinders", "spheres", "mixture")
N_SUBSTRATES, N_QUICK = 210, 6
_BIG_DELTA = (15.0, 30.0, 50.0, 80.0)
_SMALL_DELTA = {"300": (8.0,) * 4, "80": (13.0, 22.5, 16.0, 12.5)}
_SHELLS = {"300": ((1.0, 2.5, 5.0),) * 4, "80": ((0.2, 0.4, 0.8),) + ((1.0, 2.5, 5.0),) * 3}
_N_DIRECTIONS, _N_B0, _TE = 30, 3, 95.0
_TRUTHS = (
    "shape",
    "radius",
    "cylinder_fraction",
    "sphere_fraction",
    "sphere_share",
    "axis",
    "wall_permeability",
    "restricted_fraction",
    "surface_to_volume",
    "pore_diameter",
    "exchange_time",
)
_N_BODIES = {2: 100, 3: 100}
# Steps: bodies and the gaps between them are many steps wide. Small bodies need short steps and
# get fewer walkers (per um^2 of squared radius, least, most), which keeps the cost.
_STEP_PER_RADIUS = {2: 1 / 6, 3: 1 / 4}
_WALKERS = {2: (8e3, 8e3, 6e4), 3: (7e3, 7e3, 5e4)}
_N_Q, _N_ANGLES = 24, 6
_CHECKPOINT = 10
_KINDS = ("signals", "errors")


@dataclass(frozen=True, eq=False)
class TissueSet:
    """Signals of many substrates and their truths; fields as in the file, see above.

    Attributes
    ----------
    acquisition : Acquisition
    signals : ndarray (N, M)
    errors : ndarray (N, M)
        Standard errors of the Monte Carlo.
    sigma : float
        Of the noise that was added, 0 without.
    truths : dict of ndarray (N,) or (N, 3)
    """

    acquisition: Acquisition
    signals: np.ndarray
    errors: np.ndarray
    sigma: float
    truths: dict[str, np.ndarray]


def load_testset(path, system: str = "300", snr: float | None = None, seed: int = 0) -> TissueSet:
    """Read the set, with Rician noise of S0 / `snr` (none: no noise).

    Raises
    ------
    ValueError
        An unknown gradient system.
    """
    if system not in SYSTEMS:
        raise ValueError(f"system is {system!r}; give one of {', '.join(SYSTEMS)} (mT/m).")
    with np.load(path) as file:
        clean = file[f"signals_{system}"].astype(float)
        errors = file[f"errors_{system}"].astype(float)
        truths = {name: file[name] for name in _TRUTHS}
    sigma = 0.0 if snr is None else 1 / snr
    noise = sigma * np.random.default_rng(seed).standard_normal((2, *clean.shape))
    noisy = np.hypot(clean + noise[0], noise[1]) if sigma else clean
    return TissueSet(acquisition(system), noisy, errors, sigma, truths)


def acquisition(system: str) -> Acquisition:
    """The measurements on a gradient system, "300" or "80" mT/m."""
    b, directions, small, big = [], [], [], []
    spread = spread_directions()
    rows = zip(_SMALL_DELTA[system], _BIG_DELTA, _SHELLS[system], strict=True)
    for small_delta, big_delta, shells in rows:
        b += [np.zeros(_N_B0), np.repeat(shells, _N_DIRECTIONS)]
        directions += [np.zeros((_N_B0, 3)), np.tile(spread, (len(shells), 1))]
        n = _N_B0 + len(shells) * _N_DIRECTIONS
        small.append(np.full(n, small_delta))
        big.append(np.full(n, big_delta))
    return Acquisition(
        np.concatenate(b),
        np.concatenate(directions),
        np.concatenate(small),
        np.concatenate(big),
        te=_TE,
    )


def spread_directions():
    """The 30 directions of a shell, distributed uniformly over the half sphere."""
    start = HemiSphere(xyz=isotropic(np.random.default_rng(0), _N_DIRECTIONS))
    return disperse_charges(start, 2000)[0].vertices


def isotropic(rng, n):
    """Random directions (n, 3)."""
    vectors = rng.standard_normal((n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def substrate(number: int) -> dict[str, float | np.ndarray]:
    """Truths of a substrate (those of the file)."""
    rng = np.random.default_rng([7, number])
    shape = number % 3
    radius = float(np.exp(rng.uniform(0, np.log(8))))
    cylinders, spheres = rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.6)
    kappa = float(np.exp(rng.uniform(np.log(0.001), np.log(0.2))))
    axis = isotropic(rng, 1)[0]
    share = (0.0, 1.0, rng.uniform(0.25, 0.75))[shape]
    fraction = (1 - share) * cylinders + share * spheres
    surface = ((1 - share) * 2 * cylinders + share * 3 * spheres) / radius
    return {
        "shape": shape,
        "radius": radius,
        "cylinder_fraction": cylinders if share < 1 else 0.0,
        "sphere_fraction": spheres if share > 0 else 0.0,
        "sphere_share": share,
        "axis": axis,
        "wall_permeability": kappa,
        "restricted_fraction": fraction,
        "surface_to_volume": surface,
        "pore_diameter": 4 * fraction / surface,
        "exchange_time": fraction / (kappa * surface),
    }


def simulate(number: int, repeat: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Signals (M,) of a substrate and their standard errors, for both gradient systems.

    Each `repeat` is another packing with other walkers.
    """
    truth = substrate(number)
    parts = []
    if truth["sphere_share"] < 1:
        parts.append((2, 1 - truth["sphere_share"], truth["cylinder_fraction"]))
    if truth["sphere_share"] > 0:
        parts.append((3, truth["sphere_share"], truth["sphere_fraction"]))
    acquisitions = {system: acquisition(system) for system in SYSTEMS}
    sums = {system: [np.zeros(len(a)), np.zeros(len(a))] for system, a in acquisitions.items()}
    timings = np.concatenate([a.timings[:, :2] for a in acquisitions.values()])
    times = pulse_times(timings)
    for dimension, share, fraction in parts:
        seed = 10 * (number + 1000 * repeat) + dimension
        packing = random_packing(dimension, truth["radius"], fraction, _N_BODIES[dimension], seed)
        per_square, least, most = _WALKERS[dimension]
        n_walkers = int(share * np.clip(per_square * truth["radius"] ** 2, least, most))
        integrals, inside = walk(
            packing, truth["wall_permeability"], times, n_walkers, seed,
            step_per_radius=_STEP_PER_RADIUS[dimension],
        )  # fmt: skip
        for system, a in acquisitions.items():
            signal, error = _signals_of(a, integrals, inside, times, truth["axis"])
            sums[system][0] += share * signal
            sums[system][1] += (share * error) ** 2
    return {system: (signal, np.sqrt(square)) for system, (signal, square) in sums.items()}


def _signals_of(a, integrals, inside, times, axis):
    dimension = integrals.shape[-1]
    along = (a.directions @ axis) ** 2 if dimension == 2 else np.zeros(len(a))
    across = a.q * np.sqrt(np.maximum(1 - along, 0))
    free = np.exp(-a.b * (~a.b0_mask) * DIFFUSIVITY * along)
    angles = np.pi * np.arange(_N_ANGLES) / _N_ANGLES
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if dimension == 3:
        vectors = spread_directions()[::2]
    signal, error = np.ones(len(a)), np.zeros(len(a))
    for timing, (small_delta, big_delta, _) in enumerate(a.timings):
        rows = a.timing_index == timing
        moved = mean_displacements(integrals, times, small_delta, big_delta)
        if dimension == 3:
            q, place = np.unique(across[rows].round(9), return_inverse=True)
        else:
            q = np.linspace(0, across[rows].max(), _N_Q)
        mean, deviation = signals(moved, inside, q[:, None, None] * vectors)
        if dimension == 3:
            signal[rows], error[rows] = mean[place], deviation[place]
        else:
            signal[rows] = CubicSpline(q, mean)(across[rows])
            error[rows] = np.interp(across[rows], q, deviation)
    return signal * free, error * free


def write_testset(path: Path, n_substrates: int = N_SUBSTRATES, repeats: int = 1) -> None:
    """Simulate the first substrates of the set, or add repeats; those in the file are kept."""
    results, counts = [], np.zeros(n_substrates, dtype=int)
    if path.exists():
        with np.load(path) as file:
            known = [file[f"{kind}_{s}"].astype(float) for s in SYSTEMS for kind in _KINDS]
            counts[: len(known[0])] = file["repeats"]
        for signal, error, signal_80, error_80 in zip(*known, strict=True):
            results.append({"300": (signal, error), "80": (signal_80, error_80)})
    started = time.process_time()
    todo = [(r, n) for r in range(repeats) for n in range(n_substrates) if counts[n] <= r]
    for done, (repeat, number) in enumerate(todo, start=1):
        found = simulate(number, repeat)
        if repeat:
            found = {s: _pooled(results[number][s], found[s], repeat) for s in SYSTEMS}
            results[number] = found
        else:
            results.append(found)
        counts[number] += 1
        if done % _CHECKPOINT == 0 or done == len(todo):
            _save(path, results, counts)
            worst = max(result["300"][1].max() for result in results[: number + 1])
            used = time.process_time() - started
            print(
                f"repeat {repeat}, {number + 1} substrates, {used:.0f} CPU-s, "
                f"errors <= {worst:.4f}",
                flush=True,
            )


@contextmanager
def quick_testset() -> Iterator[Path]:
    """The first few substrates, in a temporary file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "testset.npz"
        write_testset(path, N_QUICK)
        yield path


def _pooled(known, new, repeat):
    signal = (repeat * known[0] + new[0]) / (repeat + 1)
    return signal, np.hypot(repeat * known[1], new[1]) / (repeat + 1)


def _save(path, results, counts):
    truths = [substrate(number) for number in range(len(results))]
    arrays = {name: np.array([t[name] for t in truths], np.float32) for name in _TRUTHS}
    arrays["shape"] = arrays["shape"].astype(np.int8)
    arrays["repeats"] = counts[: len(results)]
    for system in SYSTEMS:
        arrays[f"signals_{system}"] = np.array([r[system][0] for r in results], np.float32)
        arrays[f"errors_{system}"] = np.array([r[system][1] for r in results], np.float16)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)
    part.replace(path)


def main():
    """Make the set."""
    parser = command(__doc__, f"the first {N_QUICK} substrates into FILE")
    parser.add_argument("path", type=Path, metavar="FILE")
    parser.add_argument("--substrates", type=int, default=N_SUBSTRATES)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    n_substrates = N_QUICK if arguments.quick else arguments.substrates
    write_testset(arguments.path, n_substrates, arguments.repeats)


if __name__ == "__main__":
    main()
