"""Face permeabilities of a grid with membranes around bodies.

The faces between the tetrahedra inside and outside a body form a staircase, whose area exceeds
that of the membrane and does not converge to it as the grid is refined. Each face therefore
has the projected permeability::

    kappa_f = kappa |n_f . n|

with ``n_f`` the normal of the face and ``n`` that of the membrane: the sum of ``kappa_f A_f`` is
then the membrane's permeability times its area.

In all functions here

- `grid` is the grid; a body that crosses the side of a periodic grid continues at the other side;
- positions and radii are in um, an `axis` may have any length;
- `permeability` is that of the membranes, um/ms: 0 or more, and finite; of cylinders and spheres
  one for all or one for each, in `from_inside` that of each face between two labels;
- the result is the permeability (F,) of each face, um/ms: infinite where there is no membrane,
  and that of both membranes in series where two bodies share a face;
- wrong shapes, radii that are not positive, bodies that overlap each other or their own periodic
  images, and bodies smaller than a tetrahedron raise a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.substrates.bodies import (
    SweptSphere,
    check_disjoint,
    circle,
    closing_direction,
    dense_line,
    line_images,
    offset_from_lines,
    permeabilities,
    positive_length,
    tube,
    unit_axis,
    vectors,
)  # fmt: skip
from dipy_spinverse.substrates.labelling import (
    check_resolved,
    label_regions,
    label_tetrahedra,
    volume_fractions,
)  # fmt: skip
from dipy_spinverse.walls.normals import wall_normals


def cylinders(
    grid: TetrahedralGrid,
    centers_um: ArrayLike,
    radii_um: ArrayLike,
    axis: ArrayLike = (0.0, 0.0, 1.0),
    permeability: ArrayLike = 0.0,
) -> np.ndarray:
    """Parallel cylinders without ends.

    On a periodic grid the axis must lead from a point to one of its periodic images: along a side
    or diagonal of the box, or a combination of few of its sides.

    Parameters
    ----------
    centers_um : array-like (3,) or (N, 3)
        A point on the axis of each cylinder, um.
    radii_um : float or array-like (N,)
        um.
    axis : array-like (3,), optional
        Direction of all cylinders.

    Raises
    ------
    ValueError
        Also for an axis that does not close on the periodic box; the message suggests one.

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> grid = bcc_grid(cells=8, cell_size_um=1.0)
    >>> permeability = cylinders(grid, [0, 0, 0], 3.0, permeability=0.02)
    >>> walls = np.isfinite(permeability)
    >>> area = (permeability * grid.face_areas)[walls].sum() / 0.02
    >>> bool(abs(area / (2 * np.pi * 3.0 * 8.0) - 1) < 0.03)
    True
    """
    direction = unit_axis(axis)
    if grid.period_um is not None:
        direction = closing_direction(direction, grid.period_um)
    images, spacing = line_images(direction, grid.period_um)

    def offset_from(center):
        return lambda points: offset_from_lines(
            grid.minimum_image(points - center), direction, images
        )

    centers = vectors("centers_um", centers_um)
    return _permeability_of(grid, offset_from, centers, radii_um, permeability, spacing)


def spheres(
    grid: TetrahedralGrid,
    centers_um: ArrayLike,
    radii_um: ArrayLike,
    permeability: ArrayLike = 0.0,
) -> np.ndarray:
    """Spheres.

    Parameters
    ----------
    centers_um : array-like (3,) or (N, 3)
        um.
    radii_um : float or array-like (N,)
        um.

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> permeability = spheres(bcc_grid(cells=4, cell_size_um=5.0), [0, 0, 0], 7.0)
    >>> permeability.shape, np.unique(permeability)
    ((1536,), array([ 0., inf]))
    """

    def offset_from(center):
        return lambda points: grid.minimum_image(points - center)

    spacing = np.inf if grid.period_um is None else grid.period_um.min()
    centers = vectors("centers_um", centers_um)
    return _permeability_of(grid, offset_from, centers, radii_um, permeability, spacing)


def torus(
    grid: TetrahedralGrid,
    center_um: ArrayLike,
    radius_um: float,
    tube_radius_um: float,
    axis: ArrayLike = (0.0, 0.0, 1.0),
    permeability: float = 0.0,
) -> np.ndarray:
    """A torus.

    Parameters
    ----------
    center_um : array-like (3,)
        um.
    radius_um, tube_radius_um : float
        Radius of the circle in the middle of the tube, and of the tube around it, um.
    axis : array-like (3,), optional
        Axis of symmetry.

    Raises
    ------
    ValueError
        Also for a tube that is wider than the hole.
    """
    center = vectors("center_um", center_um, single=True)[0]
    direction = unit_axis(axis)
    radius = positive_length("radius_um", radius_um)
    tube_radius = positive_length("tube_radius_um", tube_radius_um)
    if tube_radius >= radius:
        raise ValueError(
            f"tube_radius_um is {tube_radius:g} but radius_um is {radius:g}: the torus has no "
            "hole. Give a tube_radius_um below radius_um, or use spheres."
        )
    if grid.period_um is not None:
        extent = radius * np.sqrt(1 - direction**2) + tube_radius
        if (2 * extent > grid.period_um).any():
            raise ValueError(
                f"radius_um is {radius:g} and tube_radius_um {tube_radius:g}: the torus is up to "
                f"{2 * extent.max():g} um wide and overlaps its own image in the periodic box of "
                f"{grid.period_um} um. Use smaller radii or a larger box."
            )
    body = tube(grid, circle(center, radius, direction, tube_radius), tube_radius)
    return _walls_of_bodies(grid, [body], permeabilities(permeability, 1))


def bent_tube(
    grid: TetrahedralGrid,
    centerline_um: ArrayLike,
    radius_um: float,
    permeability: float = 0.0,
) -> np.ndarray:
    """A tube of constant radius along a bent line, with round ends.

    On a periodic grid the tube has no ends if the last point of the line is a periodic image of
    the first.

    Parameters
    ----------
    centerline_um : array-like (N, 3)
        At least two points along the line, um, joined by straight segments. To cross the
        boundary of the grid, the line must end beyond it.
    radius_um : float
        um.
    """
    line = vectors("centerline_um", centerline_um)
    if len(line) < 2:
        raise ValueError(
            f"centerline_um has {len(line)} point; give at least two, shape (N, 3), um."
        )
    radius = positive_length("radius_um", radius_um)
    if grid.period_um is not None and 2 * radius > grid.period_um.min():
        raise ValueError(
            f"radius_um is {radius:g}: the tube overlaps its own image in the periodic box of "
            f"{grid.period_um} um. Use at most {grid.period_um.min() / 2:g} or a larger box."
        )
    body = tube(grid, dense_line(line, radius), radius)
    return _walls_of_bodies(grid, [body], permeabilities(permeability, 1))


def from_inside(
    grid: TetrahedralGrid,
    inside: Callable[[np.ndarray], np.ndarray] | np.ndarray,
    normal: Callable[[np.ndarray], np.ndarray] | None = None,
    permeability: float = 0.0,
) -> np.ndarray:
    """Membranes around arbitrary regions.

    Parameters
    ----------
    inside : callable or array-like (T,)
        Function of points (K, 3), um, that returns (K,) booleans, or integers for several regions
        (0: outside); on a periodic grid it must be periodic and defined outside the box. Or the
        boolean or integer label of each tetrahedron.
    normal : callable, optional
        Function of points (K, 3), um, that returns normal vectors (K, 3) of the membrane, of any
        length and sign. Default: smoothed normals of the faces.

    Raises
    ------
    ValueError
        `inside` or `normal` has or returns the wrong shape or type, a negative permeability.

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> grid = bcc_grid(cells=4, cell_size_um=5.0)
    >>> slab = from_inside(grid, lambda points: abs(points[:, 0]) < 5, permeability=0.1)
    >>> walls = np.isfinite(slab)
    >>> area = (slab * grid.face_areas)[walls].sum() / 0.1
    >>> bool(abs(area / (2 * 20 * 20) - 1) < 0.05)
    True
    """
    kappa = permeabilities(permeability, 1)[0]
    if callable(inside):
        labels = label_regions(grid, inside)
    else:
        labels = np.asarray(inside)
        if labels.shape != (grid.n_tetrahedra,) or labels.dtype.kind not in "bui":
            raise ValueError(
                f"inside has shape {labels.shape} and type {labels.dtype}; give one boolean or "
                f"integer per tetrahedron, shape ({grid.n_tetrahedra},), or a function of points."
            )
        labels = labels.astype(int)
    sides = labels[grid.face_tetrahedra]
    walls = sides[:, 0] != sides[:, 1]
    if normal is None:
        normals = wall_normals(grid, walls)
    else:
        points = grid.face_centroids[walls]
        normals = np.asarray(normal(points), dtype=float)
        if normals.shape != points.shape or not np.isfinite(normals).all():
            raise ValueError(
                f"normal returned shape {normals.shape} for {len(points)} points; it must return "
                "a finite vector for each, shape (K, 3)."
            )
    result = np.full(grid.n_faces, np.inf)
    result[walls] = kappa * _projection(grid, walls, normals)
    return result


def _permeability_of(grid, offset_from, centers, radii_um, permeability, spacing):
    """Face permeabilities of bodies that differ in centre and radius only."""
    radii = np.asarray(radii_um, dtype=float)
    if radii.ndim > 1 or (radii.ndim == 1 and len(radii) != len(centers)):
        raise ValueError(
            f"radii_um has shape {radii.shape} for {len(centers)} centres; give one radius or one "
            "per centre, um."
        )
    radii = np.broadcast_to(radii, len(centers))
    for radius in radii:
        positive_length("radii_um", radius)
        if 2 * radius > spacing * (1 + 1e-9):
            raise ValueError(
                f"radii_um contains {radius:g}: the body overlaps its own periodic image, "
                f"{spacing:g} um away. Use at most {spacing / 2:g} um or a larger box."
            )
    kappas = permeabilities(permeability, len(centers))
    bodies = [SweptSphere(offset_from(c), r) for c, r in zip(centers, radii, strict=True)]
    check_disjoint(bodies, centers)
    return _walls_of_bodies(grid, bodies, kappas, convex_across=True)


def _walls_of_bodies(grid, bodies, kappas, convex_across=False):
    """Face permeabilities (F,), in series where two bodies share a face.

    Convex bodies (spheres and cylinders) also have membranes to their own periodic images.
    """
    labels = label_tetrahedra(grid, [volume_fractions(grid, body) for body in bodies])
    check_resolved(grid, bodies, labels)
    resistance = np.zeros(grid.n_faces)
    sides = labels[grid.face_tetrahedra]
    for label, (body, kappa) in enumerate(zip(bodies, kappas, strict=True), start=1):
        membranes = (sides == label).sum(axis=1) % 2
        if convex_across:
            interior = np.flatnonzero((sides == label).all(axis=1))
            membranes[interior[_leads_to_image(grid, body, interior)]] = 2
        walls = membranes > 0
        normals = body.offset(grid.face_centroids[walls])
        with np.errstate(divide="ignore"):
            resistance[walls] += membranes[walls] / (kappa * _projection(grid, walls, normals))
    with np.errstate(divide="ignore"):
        return 1 / resistance


def _leads_to_image(grid, body, faces):
    """Which faces within a body connect two of its periodic images."""
    centroids = grid.centroids[grid.face_tetrahedra[faces]]
    jump = np.linalg.norm(body.offset(centroids[:, 1]) - body.offset(centroids[:, 0]), axis=1)
    # Within one image the offset changes by at most the distance of the centroids.
    return jump > 1.001 * np.linalg.norm(grid.displacements[faces], axis=1)


def _projection(grid, walls, normals):
    lengths = np.linalg.norm(normals, axis=1)
    along = np.abs(np.einsum("fk,fk->f", grid.face_normals[walls], normals))
    # No projection where the normal vanishes.
    return np.divide(along, lengths, out=np.ones(len(along)), where=lengths > 0)
