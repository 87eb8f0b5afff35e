"""Derivatives of signals by vertices in the span of Laplace modes: how exact, and what they cost.

Against the exact adjoint of time steps (16 per pulse), on the meshes of synthetic axons of four
families, and on a box that a permeable membrane parts; 24 measurements of three timings, to
b = 10 ms/um^2. Cost: 1890 measurements (21 b-values, 3 timings, 30 directions), with the Jacobian
of 30 fields. And discretisation errors of the meshes, against a finer one.
"""

from __future__ import annotations

import resource
import time

import numpy as np
import torch

from benchmarks.command import command, keep
from benchmarks.tables import machine, table
from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.bloch_torrey.finite_elements.modal_sensitivity import ModalSensitivities
from dipy_spinverse.bloch_torrey.finite_elements.operator import simulate_finite_elements
from dipy_spinverse.cell_shapes.synthetic_axons import FAMILIES, draw_axons
from dipy_spinverse.cell_shapes.templates import cylinder_mesh
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.grid.regions import membranes_between

_SMALL_DELTA, _BIG_DELTAS = 5.0, (10.0, 25.0, 50.0)
_EXACT_STEPS = 16
_N_FIELDS = 30


def protocol(b_values, n_directions, seed=0):
    """b0 and weighted measurements of all timings."""
    directions = np.random.default_rng(seed).normal(size=(n_directions, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    b, big, along = (x.ravel() for x in np.meshgrid(
        b_values, _BIG_DELTAS, np.arange(n_directions), indexing="ij"))  # fmt: skip
    return Acquisition(b, directions[along], _SMALL_DELTA, big)


def axon_grids(rings, layers):
    """Name, grid and permeability of an axon of each family."""
    template, rng = cylinder_mesh(rings, layers), np.random.default_rng(1)
    for family in FAMILIES:
        points = draw_axons(family, 1, rng, test=True, posed=True)[0].positions(template.points)
        grid = TetrahedralGrid.from_tetrahedra(points, template.tetrahedra, "reflecting")
        yield family, grid, np.full(grid.n_faces, np.inf)


def parted_grid(rings, layers, permeability):
    """A cylinder with a membrane across it."""
    template = cylinder_mesh(rings, layers)
    grid = TetrahedralGrid.from_tetrahedra(
        template.points * [3, 3, 4.5], template.tetrahedra, "reflecting"
    )
    side = (grid.centroids[:, 2] > 0).astype(int)
    return grid, membranes_between(grid, side, permeability)


def smooth_fields(points, n=6):
    """Fields (n, N, 3) as of shapes: polynomials of low degree."""
    rng = np.random.default_rng(2)
    x = points / np.abs(points).max()
    powers = np.stack([x[:, 0] ** i * x[:, 1] ** j * x[:, 2] ** k for i in range(3)
                       for j in range(3 - i) for k in range(3 - i - j)], axis=1)  # fmt: skip
    return np.einsum("nk,pkd->pnd", powers, rng.normal(size=(n, powers.shape[1], 3)))


def errors(name, grid, permeability, lengths, steps):
    """Rows of the table of errors."""
    acquisition = protocol([1.0, 10.0], 4)
    points = torch.tensor(grid.points_um, requires_grad=True)
    weights = np.random.default_rng(3).normal(size=len(acquisition))
    start = time.process_time()
    exact = simulate_finite_elements(
        acquisition, grid, permeability, points_um=points, steps=_EXACT_STEPS
    )
    (exact * torch.as_tensor(weights)).sum().backward()
    cost = time.process_time() - start
    gradient, exact = points.grad.numpy(), exact.detach().numpy()
    fields = smooth_fields(grid.points_um)
    along = (fields * gradient).sum(axis=(1, 2))
    outside = np.unique(grid.outer_faces)
    rows = []
    for length in lengths:
        body = ModalSensitivities(
            acquisition, grid, permeability, length_scale_um=length, steps=steps
        ).at(grid.points_um)
        found = body.gradient(weights)
        on_fields = (fields * found).sum(axis=(1, 2))
        rows.append([
            name, len(body.network.masses), len(body.modes.rates),
            f"{np.abs(body.signals - exact).max():.1e}",
            f"{apart(found, gradient):.1e}", f"{apart(found[outside], gradient[outside]):.1e}",
            f"{apart(on_fields, along):.1e}", f"{cost:.1f}",
        ])  # fmt: skip
    return rows


def apart(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def cost(rings, layers):
    """Row of the table of costs."""
    _, grid, permeability = next(axon_grids(rings, layers))
    acquisition = protocol(np.linspace(0, 10, 21), 30)
    solver = ModalSensitivities(acquisition, grid, permeability)
    fields = smooth_fields(grid.points_um, _N_FIELDS)
    solver.at(grid.points_um).jacobian(fields[:1])  # what is compiled and imported once
    times, body = [], None
    for task in (
        lambda b: b.signals,
        lambda b: b.gradient(np.ones(len(acquisition))),
        lambda b: b.jacobian(fields),
    ):
        start = time.process_time()
        body = solver.at(grid.points_um)
        task(body)
        times.append(f"{time.process_time() - start:.2f}")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [len(body.network.masses), len(body.modes.rates), *times, f"{most:.0f}"]


def mesh_errors(sizes, finest):
    """Rows: root mean square error of the mesh of a cylinder, by number of nodes."""
    acquisition = protocol([1.0, 3.0, 5.0, 10.0], 6)
    rows = []
    for family in ("bent", "fanning"):
        axon = draw_axons(family, 1, np.random.default_rng(1), test=True, posed=True)[0]
        signals = []
        for size in (*sizes, finest):
            template = cylinder_mesh(*size)
            points = axon.positions(template.points)
            grid = TetrahedralGrid.from_tetrahedra(points, template.tetrahedra, "reflecting")
            signals.append(ModalSensitivities(acquisition, grid).at(points).signals)
        for size, each in zip(sizes, signals, strict=False):
            rms, nodes = (
                np.sqrt(((each - signals[-1]) ** 2).mean()),
                len(cylinder_mesh(*size).points),
            )
            rows.append([family, nodes, f"{rms:.2e}", f"{rms * nodes:.2f}"])
    return rows


def main():
    arguments = command(__doc__, "smaller meshes").parse_args()
    torch.set_num_threads(1)
    small, costs = (
        ((3, 8), [(3, 10)]) if arguments.quick else ((3, 10), [(3, 10), (4, 13), (6, 23)])
    )
    rows = []
    for grid in axon_grids(*small):
        rows += errors(*grid, (None,), 8)
    _, first, walls = next(axon_grids(*small))
    rows += errors("bent, all modes, 64 steps", first, walls, (0.0,), 64)
    for permeability in (0.02, 0.2):
        name = f"membrane of {permeability} um/ms"
        rows += errors(name, *parted_grid(*small, permeability), (None,), 8)
    header = ["grid", "nodes", "modes", "signals, largest", "gradient, all vertices", "surface",
              "smooth fields", "exact adjoint, CPU-s"]  # fmt: skip
    text = f"Differences to the exact adjoint ({machine()}).\n\n" + table(header, rows)
    header = ["nodes", "modes", "signals, CPU-s", "and gradient", "or Jacobian of 30",
              "peak of the process, MiB"]  # fmt: skip
    text += "\n\nCost of 1890 measurements.\n\n" + table(header, [cost(*n) for n in costs])
    if not arguments.quick:
        header = ["axon", "nodes", "error of signals, rms", "times nodes"]
        rows = mesh_errors([(3, 10), (4, 13), (5, 18)], (8, 26))
        text += "\n\nAgainst 5642 nodes.\n\n" + table(header, rows)
    print(text)
    keep("modal_sensitivity.md", text, complete=not arguments.quick)


if __name__ == "__main__":
    main()
