"""The same cells at other places, which signals of an absorbing box hardly tell.

What a cell adds to the signals depends on how far it is from the sides of the box, so it is nearly
the same at the images of its place under the symmetries of the box, and for the cell reflected in
its centre.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations, product

import numpy as np
from scipy.ndimage import map_coordinates

from dipy_spinverse.cell_search.smooth.forward import SmoothCells, split_into_cells
from dipy_spinverse.cell_search.smooth.level_set import RASTER, FieldPrior

_GAP = 0.1  # lengths of the prior, by which cells stand apart
_BESIDE = 0.5  # lengths that the space of other cells is outside of a cell, at least
_CLEAR = 0.08  # sides of the box, by which cells stay inside, unless they did not before
_MIRRORS = np.array([*product((1, -1), repeat=3)])
_NEAR = 0.05  # sides, within which an image of a place is the same one


def symmetry_images(cells: SmoothCells, prior: FieldPrior) -> list[SmoothCells]:
    """Cells of which one stands at another place, or is reflected, or two have changed places.

    Parameters
    ----------
    cells : SmoothCells
    prior : FieldPrior

    Returns
    -------
    list of SmoothCells
        Without those whose cells would touch.
    """
    points, cells = prior.raster[0], split_into_cells(cells, prior)
    field = prior.on_raster(cells.z).ravel()
    parts = np.broadcast_to(cells.parts, (RASTER,) * 3).ravel()
    outside = np.minimum(field, -_BESIDE * prior.length)
    single = [np.where(parts == k, field, outside) for k in range(parts.max() + 1)]
    centres = [points[one > 0].mean(axis=0) for one in single]
    found = []
    for k, one in enumerate(single):
        places = [(1, x) for x in _images(centres[k], prior.box_um)[1:]]
        if len(single) > 1:  # one reflected in the centre of the box has the same signals
            places += [(-1, mirror * centres[k]) for mirror in _MIRRORS]
        for sign, there in places:
            moved = _moved(one, centres[k], there, sign, prior)
            found.append([*single[:k], moved, *single[k + 1 :]])
    for k, n in combinations(range(len(single)), 2):
        exchanged = list(single)
        exchanged[k] = _moved(single[k], centres[k], centres[n], 1, prior)
        exchanged[n] = _moved(single[n], centres[n], centres[k], 1, prior)
        found.append(exchanged)
    apart = [x for x in found if (np.sort(x, axis=0)[-2:-1] < -_GAP * prior.length).all()]
    return [
        replace(
            cells,
            z=prior.field_of(np.max(x, axis=0)),
            parts=np.argmax(x, axis=0).reshape((RASTER,) * 3),
        )
        for x in apart
    ]


def _images(place, box_um):
    """Images (n, 3) of a place under the symmetries of a box, the place itself first."""
    images = [place]
    for order, mirror in product(permutations(range(3)), _MIRRORS):
        image, same_box = mirror * place[list(order)], np.allclose(box_um[list(order)], box_um)
        apart = np.linalg.norm((image - images) / box_um, axis=1).min()
        if same_box and apart > _NEAR:
            images.append(image)
    return images


def _moved(field, centre, there, sign, prior):
    """Field (R^3,) of a cell, reflected or not, whose centre is put somewhere else, in the box."""
    points = prior.raster[0]
    inside = points[field > 0]
    reach, bound = sign * (inside - centre), np.abs(inside).max(axis=0)
    bound = np.maximum(bound, (0.5 - _CLEAR) * prior.box_um)
    there = np.minimum(np.maximum(there, -bound - reach.min(axis=0)), bound - reach.max(axis=0))
    before = centre + sign * (points - there)
    place = ((before / prior.box_um + 0.5) * RASTER - 0.5).T
    return map_coordinates(
        field.reshape((RASTER,) * 3), place, order=1, mode="constant", cval=-prior.length
    )
