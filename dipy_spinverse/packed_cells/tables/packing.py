"""Periodic pieces of tissue: random packings of equal cylinders or spheres on a lattice.

They are in units of the bodies' radius. Cylinders along z repeat with every layer of the
lattice, so that one layer stands for all: tetrahedra that a translation of the tissue maps onto
each other carry the same magnetisation in the frame that turns with the local phase.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dipy_spinverse.grid import TetrahedralGrid, bcc_grid
from dipy_spinverse.substrates.bodies import Body
from dipy_spinverse.substrates.voxelise import share_inside, voxelise

SHAPES = ("cylinder", "sphere")
# Volume fractions at which neighbours in the densest order that fits the box touch: hexagonal
# for four cylinders, body-centred cubic for two spheres.
TOUCHING_FRACTION = {"cylinder": np.pi / np.sqrt(12), "sphere": np.pi * np.sqrt(3) / 8}
# Positions of the bodies in the densest order, relative to the box.
_ORDERED = {
    "cylinder": np.array([[0, 0], [0.5, 0], [0.25, 0.5], [0.75, 0.5]]),
    "sphere": np.array([[0, 0, 0], [0.5, 0.5, 0.5]]),
}
# Relative edges of the box.
_ASPECT = {"cylinder": np.array([2, np.sqrt(3)]), "sphere": np.ones(3)}
# Of moves of all bodies.
_SWEEPS = 200
# Between bodies, in radii, where the fraction allows: narrower gaps would close on the lattice.
_LEAST_GAP = 0.06


@dataclass(frozen=True, eq=False)
class Packing:
    """A periodic packing of bodies of radius 1.

    Attributes
    ----------
    grid : TetrahedralGrid
        In units of the radius.
    resistance : ndarray (F,)
        Resistance of the membranes on each face for a membrane of permeability 1, with
        projected areas; 0 where there is no membrane.
    fraction : float
        Volume fraction of the bodies on the grid.
    cube_edge : float
        Of the lattice cubes, in radii.
    """

    grid: TetrahedralGrid
    resistance: np.ndarray
    fraction: float
    cube_edge: float

    def face_permeability(self, permeability: float) -> np.ndarray:
        """Permeability (F,) of the faces; infinite where there is no membrane."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.resistance > 0, permeability / self.resistance, np.inf)

    def scaled_grid(self, radius_um: float) -> TetrahedralGrid:
        """The grid for bodies of a given radius."""
        grid = self.grid
        lengths = ("period_um", "points_um", "tetrahedron_points", "centroids", "face_points",
                   "face_distances", "displacements")  # fmt: skip
        return replace(
            grid,
            volumes=grid.volumes * radius_um**3,
            face_areas=grid.face_areas * radius_um**2,
            **{name: getattr(grid, name) * radius_um for name in lengths},
        )


def random_packing(
    shape: str,
    fraction: float,
    cubes_per_radius: float,
    rng: np.random.Generator,
    coarse: bool = False,
) -> Packing:
    """A random packing, from the equilibrium of hard bodies that move freely.

    Parameters
    ----------
    shape : {"cylinder", "sphere"}
        Four cylinders along z, or two spheres.
    fraction : float
        Volume fraction of the bodies.
    cubes_per_radius : float
        Resolution (about): lattice cubes per radius.
    rng : numpy Generator
    coarse : bool, optional
        The packing that the same generator gives otherwise, on cubes 1.5 times as large.

    Returns
    -------
    Packing

    Raises
    ------
    ValueError
        An unknown shape, or a fraction at which the bodies touch or overlap.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape is {shape!r}; use one of {', '.join(SHAPES)}.")
    limit = TOUCHING_FRACTION[shape]
    if not 0 < fraction < limit:
        raise ValueError(
            f"fraction is {fraction!r}; packed {shape}s of one size take volume fractions "
            f"between 0 and {limit:.3f}."
        )
    n_bodies, n_axes = _ORDERED[shape].shape
    measure = n_bodies * (np.pi if shape == "cylinder" else 4 / 3 * np.pi) / fraction
    side = _ASPECT[shape] * (measure / _ASPECT[shape].prod()) ** (1 / n_axes)
    thirds = np.maximum(np.round(side * cubes_per_radius / 3).astype(int), 2)
    box = 3 * thirds * (measure / (3 * thirds).prod()) ** (1 / n_axes)
    counts = (2 if coarse else 3) * thirds
    cube_edge = (measure / counts.prod()) ** (1 / n_axes)
    centres = _hard_bodies(_ORDERED[shape] * box, box, rng)
    # A packing in any position on the lattice.
    centres = centres + rng.uniform(size=n_axes) * box
    if shape == "cylinder":
        grid = _one_layer(bcc_grid((*counts, 3), cube_edge), cube_edge)
    else:
        grid = bcc_grid(tuple(counts), cube_edge)
    bodies = [Body(_offset(centre, box), 1.0) for centre in centres]
    labels = voxelise(grid, [share_inside(grid, body) for body in bodies])
    inside = grid.volumes[labels > 0].sum() / grid.volumes.sum()
    return Packing(grid, _resistance(grid, bodies, labels), inside, cube_edge)


def _hard_bodies(positions, box, rng):
    """Positions (N, k) after Metropolis moves of bodies of radius 1 that cannot overlap."""
    n, k = positions.shape
    spacing = (box.prod() / n) ** (1 / k)
    apart = positions - np.roll(positions, 1, axis=0)
    apart -= box * np.round(apart / box)
    ordered = np.sqrt((apart**2).sum(axis=1).min())
    nearest = min(_LEAST_GAP + 2, (ordered + 2) / 2)
    for _ in range(_SWEEPS):
        # Steps of all lengths: long ones in loose packings, short ones in dense ones.
        steps = rng.normal(size=(n, k)) * spacing * 0.5 ** rng.integers(1, 7, size=(n, 1))
        for i in range(n):
            moved = positions[i] + steps[i]
            gaps = np.delete(positions, i, axis=0) - moved
            gaps -= box * np.round(gaps / box)
            if (gaps**2).sum(axis=1).min() > nearest**2:
                positions = positions.copy()
                positions[i] = moved
    return positions


def _offset(centre, box):
    axes = len(box)

    def offset(points):
        vectors = np.zeros_like(points)
        gaps = points[:, :axes] - centre
        vectors[:, :axes] = gaps - box * np.round(gaps / box)
        return vectors

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


def _one_layer(grid, cube_edge):
    """A periodic grid with tetrahedra merged that lie above each other by whole cubes."""
    step = np.array([0, 0, cube_edge])
    of_tetrahedron, kept = _orbits(grid.centroids, step, grid.period_um)
    _, kept_faces = _orbits(grid.face_centroids, step, grid.period_um)
    per_face = ("faces", "face_points", "face_areas", "face_normals", "face_distances",
                "displacements")  # fmt: skip
    per_tetrahedron = ("tetrahedra", "tetrahedron_points", "volumes", "centroids")
    return replace(
        grid,
        face_tetrahedra=of_tetrahedron[grid.face_tetrahedra[kept_faces]],
        **{name: getattr(grid, name)[kept_faces] for name in per_face},
        **{name: getattr(grid, name)[kept] for name in per_tetrahedron},
    )


def _orbits(points, step, period):
    """Orbit (N,) of each point under a translation, and one member of each orbit."""
    here, there = _order(points, period), _order(points + step, period)
    n = len(points)
    links = coo_matrix((np.ones(n), (here, there)), (n, n))
    orbit = connected_components(links, directed=False)[1]
    return orbit, np.unique(orbit, return_index=True)[1]


def _order(points, period):
    """Order of points by their place in the periodic box: the same for the same set of points."""
    # Odd offset: no point of the lattice is near the ends of an interval.
    return np.lexsort(np.floor((points / period % 1 + 0.000137) % 1 * 2**16).T)
