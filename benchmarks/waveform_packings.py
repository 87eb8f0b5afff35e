"""Signals of random packings under free waveforms: cylinders by finite elements, spheres on the
lattice of the package."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh, splu
from scipy.special import ive

from benchmarks.lattice_spheres import sphere_packing
from benchmarks.periodic_cylinders import Matrices, matrices_of, random_mesh
from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.bloch_torrey.finite_volumes.operator import relative_transmissibility
from dipy_spinverse.bloch_torrey.finite_volumes.simulator import Simulator
from dipy_spinverse.packed_cells.equivalent_pulses import tensor_spectra

# Steps of time: the longest, and over the time in which a gradient changes; nearest knots.
_LONGEST_MS, _SHARE, _SHORTEST_MS = 0.4, 0.12, 1e-6
_MOST_MODES = 90
_SHIFT = 0.05  # of rates, which begin at 0
_QUARTER = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
_ACCURATE = 1e-7
# Rates times a step: faster modes follow the others.
_FAST = 25.0
_COARSENING = 1.5**1.6


@dataclass(frozen=True, eq=False)
class Modes:
    """Small matrices of the decay at q = 0, of the term linear in q and of q^2; uniform state."""

    decay: np.ndarray
    drift: np.ndarray
    diffusivity: np.ndarray
    start: np.ndarray


def modes_of(matrices: Matrices, permeability: float, inside: float, n_modes: int) -> Modes:
    """The slowest modes for kappa R / D_out and D_in / D_out, and the response of each to q."""
    stiffness = matrices.stiffness[0] + inside * matrices.stiffness[1]
    stiffness = stiffness + permeability * matrices.membrane
    mass = matrices.mass[0] + matrices.mass[1]
    size = mass.shape[0]
    shifted = splu((stiffness + _SHIFT * mass).tocsc())
    solve = LinearOperator(mass.shape, matvec=shifted.solve, dtype=float)
    n_modes = min(n_modes, size // 3)
    rates, vectors = eigsh(stiffness, n_modes, mass, sigma=-_SHIFT, OPinv=solve)
    vectors = vectors[:, np.argsort(rates)]
    drift = [matrices.drift[0][k] + inside * matrices.drift[1][k] for k in range(2)]
    drift = [part - part.T for part in drift]
    # A mode has no slope across membranes, the state at q has -i q: what is missing between.
    basis = np.concatenate([vectors] + [shifted.solve(part @ vectors) for part in drift], axis=1)
    gram = basis.T @ (mass @ basis)
    strength, mixing = np.linalg.eigh(gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram))))
    kept = strength > 1e-9 * strength[-1]
    basis = (basis / np.sqrt(np.diag(gram))) @ (mixing[:, kept] / np.sqrt(strength[kept]))
    ones = np.ones(size)
    return Modes(
        basis.T @ (stiffness @ basis),
        np.array([basis.T @ (part @ basis) for part in drift]),
        basis.T @ ((matrices.mass[0] + inside * matrices.mass[1]) @ basis),
        basis.T @ (mass @ ones) / np.sqrt(ones @ (mass @ ones)),
    )


def cylinder_signals(
    tissue: np.ndarray, frame: np.ndarray, acquisition: BaseAcquisition, rng: np.random.Generator,
    finer: float = 1.0,
) -> np.ndarray:  # fmt: skip
    """Signals (M,) of parallel cylinders, mean of a packing and of itself turned about the axis.

    Deviations of a packing of few bodies in single directions across the axis average out.

    Parameters
    ----------
    tissue : ndarray (5,)
        Radius, fraction, permeability, diffusivities inside and outside; um and ms.
    frame : ndarray (3, 3)
        Rows: two directions across, and the axis.
    acquisition : BaseAcquisition
    rng : numpy Generator
        Of the packing.
    finer : float, optional
        By which steps of time are shorter.
    """
    radius, fraction, permeability, inside, outside = tissue
    q_max = max(w.largest_q.max() for w in acquisition.waveforms) * radius
    scale = max(1.2 * q_max + 3.5, 5.0)
    for n in (12, 8, 6, 4, 2):
        n_modes = int(1.15 * n * np.pi / fraction * scale**2 / (4 * np.pi)) + 12
        if n_modes <= _MOST_MODES:
            break
    n_modes = min(n_modes, _MOST_MODES)
    modes = modes_of(
        matrices_of(random_mesh(n, fraction, rng)), permeability * radius / outside,
        inside / outside, n_modes,
    )  # fmt: skip
    signals = np.empty(len(acquisition))
    for part in acquisition.waveforms:
        if not part.rates.any():
            signals[part.rows] = 1.0
            continue
        duration, (_, time) = part.times[-1], tensor_spectra(part)
        step = min(_LONGEST_MS, _SHARE * time.min()) / finer
        n_steps = int(np.ceil(duration / step))
        edges = np.union1d(np.linspace(0, duration, n_steps + 1), _turns(part))
        edges = np.append(edges[:-1][np.diff(edges) > _SHORTEST_MS], duration)
        mean, slope = part.linear_approximation(edges)
        spans = np.diff(edges)
        square = (mean**2 + (slope * spans[:, None, None]) ** 2 / 12).sum(axis=2)
        q = radius * np.einsum("ij,kmj->kmi", frame, mean)
        both = np.concatenate([q, q @ _QUARTER], axis=1), np.tile(radius**2 * square, 2)
        found = _decayed(modes, spans * outside / radius**2, *both)
        signals[part.rows] = found.reshape(2, -1).mean(axis=0)
    return signals


def _turns(part):
    """Knots at which a gradient jumps, or all of a few."""
    return part.times if len(part.times) < 100 else part.times[[0, -1]]


def _decayed(modes: Modes, spans, q, square):
    """Signals (m,) after steps of constant generators, by Chebyshev polynomials.

    Modes that decay within a fraction of a step follow the others without delay.
    """
    rates, turn = np.linalg.eigh(modes.decay)
    slow = rates < _FAST / np.median(spans)
    start = (turn.T @ modes.start)[slow]
    spread = (turn.T @ modes.diffusivity @ turn)[np.ix_(slow, slow)]
    drift = [turn.T @ part @ turn for part in modes.drift]
    aside = [part[np.ix_(slow, ~slow)] / np.sqrt(rates[~slow]) for part in drift]
    follow = {(i, j): aside[i] @ aside[j].T for i in range(2) for j in range(i + 1)}
    rates = rates[slow]
    matrices = [part[np.ix_(slow, slow)] for part in drift] + [spread]
    matrices += [-0.5 * (1 + (i != j)) * (part + part.T) for (i, j), part in follow.items()]
    largest = [np.linalg.norm(part, 2) for part in matrices[:3]]
    matrices = [part.astype(np.float32) for part in matrices]
    state = np.repeat(start[:, None], q.shape[1], axis=1).astype(np.complex64)
    for h, (x, y, _), power in zip(spans, np.moveaxis(q, 2, 1), square, strict=True):
        if not power.any():
            state *= np.exp(-rates * h)[:, None].astype(np.float32)
            continue
        pairs = {(0, 0): x * x, (1, 0): x * y, (1, 1): y * y}
        weights = [1j * x, 1j * y, power, *(pairs[each] for each in follow)]
        bounds = [np.abs(weight).max() for weight in weights[:3]]
        most = rates[-1] + np.dot(largest, bounds)
        scale = 2 / most
        own = (1 - scale * rates)[:, None].astype(np.float32)
        weights = [(-scale * weight).astype(np.complex64) for weight in weights]

        def shifted(u, own=own, weights=weights):
            found = own * u
            for matrix, weight in zip(matrices, weights, strict=True):
                found += _product(matrix, u * weight)
            return found

        state = _chebyshev(shifted, state, most * h / 2)
    return (start @ state).real


def _product(matrix, columns):
    """Of a real matrix and complex columns."""
    return (matrix @ columns.view(np.float32)).view(np.complex64)


def _chebyshev(operator, state, half):
    """exp(-half (1 - operator)) state for an operator of spectrum in [-1, 1]."""
    weights = ive(np.arange(int(12 + half + 6 * np.sqrt(half))), half)
    weights = weights[: np.flatnonzero(weights > _ACCURATE)[-1] + 2].astype(np.float32)
    before, now = state, operator(state)
    total = weights[0] * before + 2 * weights[1] * now
    for weight in weights[2:]:
        before, now = now, 2 * operator(now) - before
        total += 2 * weight * now
    return total


def sphere_signals(
    tissue: np.ndarray, acquisition: BaseAcquisition, seed: list[int]
) -> tuple[float, np.ndarray]:
    """Fraction on the grid, and signals (M,) extrapolated to cubes of no size."""
    radius, fraction, permeability, inside, outside = tissue
    both = []
    for coarse in (False, True):
        packing = sphere_packing(fraction, radius, np.random.default_rng(seed), coarse)
        diffusivity = outside * np.where(packing.inside, inside / outside, 1.0)
        simulator = Simulator(acquisition, packing.grid, diffusivity=diffusivity, dtype="float64")
        with np.errstate(divide="ignore", invalid="ignore"):
            walls = np.where(packing.resistance > 0, permeability / packing.resistance, np.inf)
        tau = torch.from_numpy(relative_transmissibility(packing.grid, walls[None], diffusivity))
        both.append(simulator.signals(tau)[0].numpy())
        if not coarse:
            found = packing.fraction
    return found, both[0] + (both[0] - both[1]) / (_COARSENING - 1)
