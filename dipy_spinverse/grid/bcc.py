"""The body-centred cubic lattice of congruent tetrahedra."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dipy_spinverse.grid.tetrahedral_grid import BOUNDARIES, TetrahedralGrid, build_grid

# Corners of the square between two body centres, in the plane normal to their axis.
_SQUARE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])


def bcc_grid(
    cells: int | Sequence[int] = 4, cell_size_um: float = 5.0, boundary: str = "periodic"
) -> TetrahedralGrid:
    """Grid of congruent tetrahedra on a body-centred cubic lattice, centred on the origin.

    Each tetrahedron joins two neighbouring body centres with an edge of the square between
    them. All are congruent disphenoids, whose circumcentre is their centroid: lines between
    neighbouring centroids are normal to their faces, so that the two-point flux of the finite
    volumes is consistent [1]_.

    Parameters
    ----------
    cells : int or sequence of 3 ints, optional
        Lattice cubes along x, y, z; at least 3 if periodic.
    cell_size_um : float, optional
        Edge of a lattice cube, um.
    boundary : {"periodic", "absorbing", "reflecting"}, optional
        A periodic grid has 12 tetrahedra per lattice cube; the others lack those that cross the
        sides of the box. An absorbing grid represents the whole box at any resolution: spins are
        lost at its sides, and those of the omitted tetrahedra immediately.

    Raises
    ------
    ValueError
        Too few lattice cubes, an edge that is not positive, an unknown boundary.

    References
    ----------
    .. [1] Eymard, Gallouet and Herbin, "Finite volume methods", Handbook of Numerical Analysis
       7 (2000), https://doi.org/10.1016/S1570-8659(00)07005-8

    Examples
    --------
    >>> bcc_grid(cells=4, cell_size_um=5.0)
    TetrahedralGrid(768 tetrahedra, 1536 faces, 8000 um^3, periodic)
    """
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary is {boundary!r}; use one of {', '.join(BOUNDARIES)}.")
    periodic = boundary == "periodic"
    counts = np.broadcast_to(np.asarray(cells), (3,))
    smallest = 3 if periodic else 2
    if not np.issubdtype(counts.dtype, np.integer) or counts.min() < smallest:
        raise ValueError(
            f"cells is {cells!r}; a {boundary} grid takes an integer of at least {smallest} "
            "lattice cubes, or three of them."
        )
    if not np.isfinite(cell_size_um) or cell_size_um <= 0:
        raise ValueError(f"cell_size_um is {cell_size_um!r}; give a positive length in um.")

    # Lattice coordinates in half cubes: corners are even, body centres odd.
    tetrahedra = np.concatenate([_tetrahedra_along(axis, counts, periodic) for axis in range(3)])
    # Neighbours next to each other in memory: sort by the cube of the first body centre.
    tetrahedra = tetrahedra[np.lexsort(tetrahedra[:, 0, ::-1].T)]
    half_cube = cell_size_um / 2
    offset = counts * half_cube
    wrapped = tetrahedra % (2 * counts) if periodic else tetrahedra
    lattice, index = np.unique(wrapped.reshape(-1, 3), axis=0, return_inverse=True)
    return build_grid(
        lattice * half_cube - offset,
        index.reshape(-1, 4),
        tetrahedra * half_cube - offset,
        boundary,
        2 * offset if periodic else None,
        2 * offset if boundary == "absorbing" else None,
    )


def _tetrahedra_along(axis, counts, periodic):
    """Lattice coordinates (n, 4, 3) of the tetrahedra whose body centres are along an axis."""
    pairs = counts.copy()
    if not periodic:
        pairs[axis] -= 1
    centres = np.moveaxis(np.indices(pairs), 0, -1).reshape(-1, 3) * 2 + 1
    step = np.zeros(3, dtype=int)
    step[axis] = 1
    square = np.insert(_SQUARE, axis, 0, axis=1)
    corner = centres[:, None] + step + square
    centre = np.broadcast_to(centres[:, None], corner.shape)
    quads = np.stack([centre, centre + 2 * step, corner, np.roll(corner, -1, axis=1)], axis=2)
    return quads.reshape(-1, 4, 3)
