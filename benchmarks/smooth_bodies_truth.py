"""How exact the true signals of smooth bodies are, and those that fits simulate.

A ball in the box, against linear finite elements on meshes that follow it, in the limit of fine
meshes (edges of 1.2 and 0.8 um; needs Gmsh), and the ring of `smooth_bodies_set.py`, against plain
finite volumes in the limit of 24 and 32 cubes along the box. Root mean square and largest
difference of the means over directions at b = 0, 1, 2 and 4 ms/um^2 of three timings, in percent
of each timing's S(b=0). Fits use the field of their prior that is closest to the body, of the same
volume.

    python -m benchmarks.smooth_bodies_truth

Duration: 6 min on one core (--quick: 1 min, the ball against coarser meshes). Writes
results/smooth_bodies_truth.md.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.spatial import ConvexHull

from benchmarks.command import command, keep
from benchmarks.recovery import published_protocol
from benchmarks.shapes import published_grid
from benchmarks.smooth_bodies import DIFFUSIVITY, area_and_volume
from benchmarks.smooth_bodies_set import (
    CUBES,
    REPORTED,
    SIDE,
    TrueCell,
    bodies,
    depths,
    ellipsoid,
    on_lattice,
)
from dipy_spinverse.bloch_torrey import simulate_finite_elements
from dipy_spinverse.cell_search.smooth import level_set_prior
from dipy_spinverse.cell_search.smooth.forward import SmoothModel
from dipy_spinverse.cell_search.smooth.level_set import (
    LOG_PERMEABILITY_SD,
    TYPICAL_PERMEABILITY,
    single_cell_field,
)
from dipy_spinverse.grid import mesh_surfaces

CENTRE, RADIUS, PERMEABILITY = np.array([0.7, -0.4, 0.3]), 6.0, 0.02
EDGES, COARSE_EDGES, FINER = (1.2, 0.8), (2.4, 1.8), (24, 32)
OF_BOX = 1.3  # edges away from the ball, over those on it
B_VALUES, N_DIRECTIONS = (0, 1, 2, 4), 6
OF_FITS = 6, 9, 12


def some_measurements():
    """A few directions of each shell."""
    every = published_protocol()
    shells = [(t, b) for t in range(3) for b in B_VALUES]
    rows = [
        np.flatnonzero((every.timing_index == t) & np.isclose(every.b, b))[:N_DIRECTIONS]
        for t, b in shells
    ]
    return every.subset(np.concatenate(rows))


def limit(coarse, fine, ratio):
    """Signals that those of two meshes tend to, whose edges have a ratio."""
    return fine + (fine - coarse) / (ratio**2 - 1)


def finite_elements(acquisition, edge):
    """Signals of the ball."""
    n = int(4 * np.pi * RADIUS**2 / edge**2 / 0.866)  # of equilateral triangles
    height, angle = 1 - 2 * (np.arange(n) + 0.5) / n, np.pi * (1 + 5**0.5) * np.arange(n)
    across = np.sqrt(1 - height**2)
    points = np.stack([np.cos(angle) * across, np.sin(angle) * across, height], axis=1)
    hull = ConvexHull(points)
    size = RADIUS * (4 / 3 * np.pi / hull.volume) ** (1 / 3)
    ball = CENTRE + size * points, hull.simplices
    grid, region = mesh_surfaces([_box(OF_BOX * edge), ball], OF_BOX * edge, "absorbing")
    first, second = region[grid.face_tetrahedra].T
    return simulate_finite_elements(
        acquisition, grid, np.where(first != second, PERMEABILITY, np.inf)
    )


def _box(edge):
    """Vertices and triangles of the sides of the box."""
    n = int(np.ceil(SIDE / edge))
    flat = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1).reshape(-1, 2)
    corners = flat[:, None] + [[0, 0], [1, 0], [1, 1], [0, 1]]
    squares = [np.insert(corners, axis, side, axis=2) for axis in range(3) for side in (0, n)]
    points, place = np.unique(np.concatenate(squares).reshape(-1, 3), axis=0, return_inverse=True)
    place = place.reshape(-1, 4)
    return (points / n - 0.5) * SIDE, np.concatenate([place[:, [0, 1, 2]], place[:, [0, 2, 3]]])


def of_fits(acquisition, cells):
    """Signals that lattices of fits have, for cells of one permeability."""
    prior = level_set_prior(published_grid())
    models = [SmoothModel(acquisition, prior, n, DIFFUSIVITY) for n in OF_FITS]
    volume = sum(area_and_volume(cell)[1] for cell in cells)
    depth = depths(cells, prior.raster[0])
    leak = np.log(cells[0].permeability / TYPICAL_PERMEABILITY) / LOG_PERMEABILITY_SD

    def near(offset):
        return single_cell_field(prior.coefficients_of(depth + offset), leak)

    found = brentq(
        lambda x: models[-1].volume_fractions.geometry(near(x))[0].sum() - volume, -1, 1, xtol=1e-3
    )
    *_, middle, fine = signals = [model.signals(near(found)) for model in models]
    named = {f"fit, {n} cubes": x for n, x in zip(OF_FITS, signals, strict=True)}
    return named | {"fit, limit of 9 and 12": limit(middle, fine, OF_FITS[2] / OF_FITS[1])}


def main():
    """Print the table and write it to results/."""
    args = command(__doc__, "the ball against coarser meshes").parse_args()
    acquisition = some_measurements()
    ball = [TrueCell(ellipsoid(CENTRE, np.full(3, RADIUS), np.eye(3)), PERMEABILITY)]
    edges = COARSE_EDGES if args.quick else EDGES
    on_meshes = [finite_elements(acquisition, edge) for edge in edges]
    references = {"ball": (ball, limit(*on_meshes, edges[0] / edges[1]))}
    if not args.quick:
        ring = dict(bodies(REPORTED, 5))["ring 5"]
        finer = [on_lattice(acquisition, ring, n) for n in FINER]
        references["ring"] = ring, limit(*finer, FINER[1] / FINER[0])
    lines = ["| body | signals | rms % | largest % |", "|---|---|---|---|"]
    for body, (cells, reference) in references.items():
        plain = [on_lattice(acquisition, cells, n) for n in CUBES]
        named = {f"plain, {n} cubes": x for n, x in zip(CUBES, plain, strict=True)}
        named["plain, limit: the truth of fits"] = limit(*plain, CUBES[1] / CUBES[0])
        for name, signals in (named | of_fits(acquisition, cells)).items():
            off, b0 = ((x.reshape(3, len(B_VALUES), -1)).mean(axis=2)
                       for x in (signals - reference, reference))  # fmt: skip
            off = 100 * off / b0[:, :1]
            lines.append(f"| {body} | {name} | {np.sqrt((off**2).mean()):.2f} "
                         f"| {off.flat[np.abs(off).argmax()]:+.2f} |")  # fmt: skip
    print("\n".join(lines))
    text = __doc__.split("\n\n")[1] + "\n\n" + "\n".join(lines)
    keep("smooth_bodies_truth.md", text, complete=not args.quick)


if __name__ == "__main__":
    main()
