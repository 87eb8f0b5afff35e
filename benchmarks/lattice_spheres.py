"""Signals of periodic packings of equal permeable spheres on the lattice of the package."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey.finite_volumes.operator import relative_transmissibility
from dipy_spinverse.bloch_torrey.finite_volumes.simulator import Simulator
from dipy_spinverse.grid import TetrahedralGrid, bcc_grid
from dipy_spinverse.substrates.bodies import SweptSphere
from dipy_spinverse.substrates.labelling import label_tetrahedra, volume_fractions

# Two spheres in body-centred order, from which they move.
_ORDERED = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
_SWEEPS = 200  # of moves of both
_LEAST_GAP = 0.06  # in radii, where the fraction allows: narrower gaps close on the lattice
_BIG_DELTA_MS, _DIFFUSIVITY = 20.0, 2.0
_STEPS = 12  # of time, per pulse
# Errors of the lattice grow with this power of its cubes' size (measured), and
_ORDER = 1.6
# the coarser lattice's cubes are so much larger.
_COARSENING = 1.5
# Above, gaps close on the coarser lattice, and the change is not informative about the limit.
LOOSE_FRACTION = 0.5


@dataclass(frozen=True, eq=False)
class SpherePacking:
    """Two equal spheres in a periodic box.

    Attributes
    ----------
    grid : TetrahedralGrid
    inside : ndarray (T,) of bool
    resistance : ndarray (F,)
        Of the membranes on each face for a permeability of 1, with projected areas.
    """

    grid: TetrahedralGrid
    inside: np.ndarray
    resistance: np.ndarray

    @property
    def fraction(self) -> float:
        """Of the volume inside, on the grid."""
        return self.grid.volumes[self.inside].sum() / self.grid.volumes.sum()


def sphere_packing(
    fraction: float, radius: float, rng: np.random.Generator, coarse: bool
) -> SpherePacking:
    """A random packing; `coarse`, of the same generator, on cubes 1.5 times as large."""
    volume = 2 * 4 / 3 * np.pi / fraction
    side = np.cbrt(volume)
    cubes_per_radius = 2.9 + 2.9 * fraction**2
    thirds = max(round(side * cubes_per_radius / 3), 2)
    count = (2 if coarse else 3) * thirds
    grid = bcc_grid((count, count, count), radius * side / count)
    centres = _moved(_ORDERED * side, side, rng) + rng.uniform(size=3) * side
    bodies = [SweptSphere(_offset(radius * centre, radius * side), radius) for centre in centres]
    labels = label_tetrahedra(grid, [volume_fractions(grid, body) for body in bodies])
    return SpherePacking(grid, labels > 0, _resistance(grid, bodies, labels))


def lattice_signals(
    fraction: float,
    permeability: float,
    inside: float,
    q: np.ndarray,
    small_delta: float,
    big_delta: float,
    seed: list[int],
) -> tuple[float, np.ndarray, np.ndarray]:
    """Fraction on the grid, signals (n_q,), and what the coarser lattice adds to them.

    The last, subtracted times its coefficient (see `limit`), gives signals extrapolated to cubes
    of size zero.
    """
    # The same numbers in the usual units.
    radius, both = np.sqrt(_DIFFUSIVITY * _BIG_DELTA_MS / big_delta), []
    pulse = small_delta / big_delta * _BIG_DELTA_MS
    acquisition = _acquisition(q / radius, pulse, _BIG_DELTA_MS)
    for coarse in (False, True):
        packing = sphere_packing(fraction, radius, np.random.default_rng(seed), coarse)
        diffusivity = _DIFFUSIVITY * np.where(packing.inside, inside, 1.0)
        simulator = Simulator(
            acquisition, packing.grid, diffusivity=diffusivity, steps=_STEPS, dtype="float64"
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            walls = np.where(
                packing.resistance > 0,
                permeability * _DIFFUSIVITY / radius / packing.resistance,
                np.inf,
            )
        tau = torch.from_numpy(relative_transmissibility(packing.grid, walls[None], diffusivity))
        both.append(simulator.signals(tau)[0].numpy().reshape(-1, 2).mean(axis=1))
        if not coarse:
            found = packing.fraction
    return found, both[0], (both[0] - both[1]) / (_COARSENING**_ORDER - 1)


def _acquisition(q, small_delta, big_delta):
    """Two directions for each q: a full vector register of the simulator."""
    pair = np.array([[1, 0, 0], [1, 1, 1] / np.sqrt(3)], dtype=float)
    q = np.repeat(q, 2)
    return Acquisition(
        b=q**2 * (big_delta - small_delta / 3),
        directions=np.tile(pair, (len(q) // 2, 1)),
        small_delta=small_delta,
        big_delta=big_delta,
        b0_threshold=0,
    )


def _moved(positions, side, rng):
    """Two spheres that moved freely without overlap."""
    ordered = side * np.sqrt(3) / 2
    nearest = min(_LEAST_GAP + 2, (ordered + 2) / 2)
    for _ in range(_SWEEPS):
        step = rng.normal(size=3) * side * 0.5 ** rng.integers(1, 7)
        gap = positions[1] + step - positions[0]
        gap -= side * np.round(gap / side)
        if np.linalg.norm(gap) > nearest:
            positions = np.stack([positions[0], positions[1] + step])
    return positions


def _offset(centre, side):
    def offset(points):
        gaps = points - centre
        return gaps - side * np.round(gaps / side)

    return offset


def _resistance(grid, bodies, labels):
    """Membranes (F,) in series on each face, each with its projected area."""
    sides = labels[grid.face_tetrahedra]
    ends = grid.centroids[grid.face_tetrahedra[:, 0]]
    resistance = np.zeros(grid.n_faces)
    for label, body in enumerate(bodies, start=1):
        membranes = (sides == label).sum(axis=1) % 2
        # Two membranes lie between a body and its own periodic image. Within one image the
        # offset changes by no more than the way to the neighbour.
        within = np.flatnonzero((sides == label).all(axis=1))
        steps = grid.displacements[within]
        jump = body.offset(ends[within] + steps) - body.offset(ends[within])
        far = np.linalg.norm(jump, axis=1) > 1.001 * np.linalg.norm(steps, axis=1)
        membranes[within[far]] = 2
        walls = membranes > 0
        normals = body.offset(grid.face_centroids[walls])
        cosine = np.abs(np.einsum("fk,fk->f", normals, grid.face_normals[walls]))
        cosine /= np.linalg.norm(normals, axis=1)
        resistance[walls] += membranes[walls] / np.maximum(cosine, 1e-9)
    return resistance
