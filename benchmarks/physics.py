"""How exact the simulation is: free water, planes, Monte Carlo, waveforms, derivatives, steps.

    DIPY_SPINVERSE_DATA=<folder> python -m benchmarks.physics [table ...]

prints the tables (all of them by default) and replaces their last version.
Without the data folder the table against Monte Carlo is left out.

Duration: about 8 min on 2 cores (--quick: 1 min). Writes results/physics.md.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks import waveform_physics
from benchmarks.command import RESULTS, command, keep
from benchmarks.datasets import data_at_hand, data_file
from benchmarks.tables import machine, percent, table, unit, verdict
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import simulate, simulate_with_jacobian
from dipy_spinverse.grid import bcc_grid
from dipy_spinverse.substrates.membranes import cylinders, from_inside

DIFFUSIVITY = 2.0  # um^2/ms
KAPPAS = (0.0, 0.02, 0.2, 1.0)  # um/ms
AXES = {
    "100": [1, 0, 0], "010": [0, 1, 0], "001": [0, 0, 1], "110": [1, 1, 0], "111": [1, 1, 1],
    "123": [1, 2, 3],
}  # fmt: skip
_LEFT_OUT = "Left out"
_QUICK = ("free", "jacobian", "steps", "precision", "media")


def pulsed(b, directions, small_delta, big_delta):
    return Acquisition(b=b, directions=directions, small_delta=small_delta, big_delta=big_delta)


def free_diffusion():
    """Error of free diffusion against the cell size, and its order."""
    b = 3.0
    directions = np.array([unit(v) for v in AXES.values()])
    acquisition = pulsed(np.full(len(directions), b), directions, 10.0, 30.0)
    rows, before = [], None
    for cell_size in (4.0, 3.0, 2.0, 1.5):
        grid = bcc_grid(4, cell_size)
        signals = simulate(acquisition, grid, np.full(grid.n_faces, np.inf))
        errors = signals / np.exp(-b * DIFFUSIVITY) - 1
        order = "-"
        if before is not None:
            order = f"{np.log(before[1] / errors.mean()) / np.log(before[0] / cell_size):.2f}"
        before = cell_size, errors.mean()
        worst = np.abs(errors).max()
        goal = verdict(worst, 0.02) if cell_size == 2.0 else ""
        rows.append([cell_size, *percent(errors), f"{1e4 * np.ptp(errors):.1f}", order, goal])
    return (
        "S / exp(-bD) - 1 in %, b = 3 ms/um^2, delta 10, Delta 30 ms, D = 2 um^2/ms, all faces "
        "open. Goal: 2 % at 2 um.\n\n"
        + table(["cell size (um)", *AXES, "spread over directions (1e-4)", "order", "goal"], rows)
    )


def planes_in_one_dimension(acquisition, spacing, kappa, n=96, steps=64):
    """Signals across equidistant planes: finite differences of spacing/n, midpoint time steps."""
    h = spacing / n
    conductance = np.full(n, DIFFUSIVITY / h)
    conductance[-1] = 1 / (h / DIFFUSIVITY + 1 / kappa) if kappa else 0.0
    here, there = np.arange(n), (np.arange(n) + 1) % n

    def step(u, q, duration):
        operator = np.diag(-conductance - np.roll(conductance, 1)).astype(complex)
        operator[here, there] += conductance * np.exp(1j * q * h)
        operator[there, here] += conductance * np.exp(-1j * q * h)
        rates, modes = np.linalg.eigh(operator / h)
        return modes @ (np.exp(rates * duration) * (modes.conj().T @ u))

    signals = []
    for q, delta, separation in zip(
        acquisition.q, acquisition.small_delta, acquisition.big_delta, strict=True
    ):
        u = np.ones(n, complex)
        for level in q * (np.arange(steps) + 0.5) / steps:
            u = step(u, level, delta / steps)
        u = step(u, q, (separation - delta) / 2)
        signals.append(np.mean(np.abs(u) ** 2))  # the second half is the first in reverse
    return np.array(signals)


def staircase_planes(cell_size, spacing, kappa):
    """Planes across the x axis, which do not consist of lattice faces."""
    grid = bcc_grid([round(2 * spacing / cell_size), 3, 3], cell_size)

    def inside(points):
        return np.abs((points[:, 0] + spacing) % (2 * spacing) - spacing) < spacing / 2

    def normal(points):
        return np.tile([1.0, 0, 0], (len(points), 1))

    return grid, from_inside(grid, inside, normal=normal, permeability=kappa)


def lattice_planes(cell_size, period, kappa):
    """Planes across (1, 1, 0), which consist of lattice faces."""
    n = round(period / cell_size)
    grid = bcc_grid([n, n, 3], cell_size)
    position = (grid.face_centroids[:, 0] + grid.face_centroids[:, 1] + period / 2) % period
    on_plane = np.abs(grid.face_normals @ unit([1, 1, 0])) > 1 - 1e-9
    on_plane &= np.abs(position - period / 2) < 1e-6
    return grid, np.where(on_plane, kappa, np.inf)


def permeable_planes():
    """Permeable planes against a fine one-dimensional solution."""
    b = np.array([0.5, 1.0, 2.0, 3.0])
    kinds = {
        "staircase, 4 um apart": (staircase_planes, 4.0, 4.0, [1, 0, 0]),
        "staircase, 8 um apart": (staircase_planes, 8.0, 8.0, [1, 0, 0]),
        "lattice faces, 5.66 um apart": (lattice_planes, 8.0, 8 / np.sqrt(2), [1, 1, 0]),
    }
    rows = []
    for small_delta, big_delta in ((10.0, 30.0), (5.0, 40.0)):
        for name, (build, size, spacing, axis) in kinds.items():
            acquisition = pulsed(b, np.tile(unit(axis), (len(b), 1)), small_delta, big_delta)
            expected = [planes_in_one_dimension(acquisition, spacing, k) for k in KAPPAS]
            for cell_size in (2.0, 1.0):
                fields = [build(cell_size, size, kappa) for kappa in KAPPAS]
                signals = simulate(acquisition, fields[0][0], np.stack([f for _, f in fields]))
                worst = np.abs(signals - expected).max(axis=1)
                goal = verdict(worst.max(), 0.003) if cell_size == 2.0 else ""
                timing = f"{small_delta:g}, {big_delta:g}"
                rows.append([name, timing, cell_size, *percent(worst), goal])
    across = (
        "Largest error over b 0.5 to 3 ms/um^2 in % of S0, direction across the planes. Goal: "
        "0.3 % at 2 um. The staircase carries kappa |n_f . n|.\n\n"
        + table(
            ["planes", "delta, Delta (ms)", "cell size (um)", *(f"kappa {k:g}" for k in KAPPAS),
             "goal"], rows,
        )
    )  # fmt: skip
    rows = []
    for cell_size in (2.0, 1.0, 0.5):
        grid, field = staircase_planes(cell_size, 8.0, 0.0)
        axes = np.array([[0, 1, 0], [0, 0, 1]])
        acquisition = pulsed(np.array([0.5, 0.5]), axes, 10.0, 30.0)
        error = simulate(acquisition, grid, field) - np.exp(-0.5 * DIFFUSIVITY)
        rows.append([cell_size, *percent(error)])
    along = (
        "Along impermeable staircase planes 8 um apart, where water should be free: error in % of "
        "S0 at b = 0.5 ms/um^2 (10, 30 ms). The steps obstruct diffusion; first order.\n\n"
        + table(["cell size (um)", "along y", "along z"], rows)
    )
    return across + "\n\n" + along


def packed_cylinders():
    """Packed permeable cylinders against two pooled Monte Carlo simulations."""
    if not data_at_hand():
        return f"{_LEFT_OUT}: DIPY_SPINVERSE_DATA is not set."
    data = np.load(data_file("packed_cylinders_mc/one_cylinder_per_cell.npz"))
    kappas = np.unique(data["kappa_um_per_ms"])
    rows_of = [np.flatnonzero(data["kappa_um_per_ms"] == k) for k in kappas]
    first = rows_of[0]
    acquisition = pulsed(
        data["b_ms_per_um2"][first], data["direction"][first], data["delta_ms"][first],
        data["Delta_ms"][first],
    )  # fmt: skip
    expected = np.stack([data["signal_pooled"][rows] for rows in rows_of])
    side, radius = float(data["side_um"]), float(data["radii_um"][0])
    diffusivity = float(data["diffusivity_um2_per_ms"])

    def signals(n, centre):
        grid = bcc_grid([n, n, 3], side / n)
        fields = [cylinders(grid, centre, radius, permeability=k) for k in kappas]
        return simulate(
            acquisition, grid, np.stack(fields), diffusivity=diffusivity, dtype="float32"
        )

    generic, found, rows = (0.21, 0.13, 0.05), {}, []
    for n, centre in (
        (12, (0, 0, 0)), (12, (0.333, 0, 0)), (12, (0.1, 0.3, 0)),
        (16, (0, 0, 0)), (16, (0.333, 0, 0)), (16, (0.1, 0.3, 0)), (20, (0, 0, 0)),
        (8, generic), (12, generic), (16, generic), (20, generic),
    ):  # fmt: skip
        found[n] = signals(n, centre)
        rows.append([f"{side / n:.3f}", str(centre), *_errors(found[n] - expected, side / n)])
    for coarse, fine in ((8, 12), (12, 16), (16, 20)):
        extrapolated = found[fine] + (found[fine] - found[coarse]) * coarse / (fine - coarse)
        name = f"{side / coarse:.3f} and {side / fine:.3f}, extrapolated"
        rows.append([name, str(generic), *_errors(extrapolated - expected, side / fine)])
    header = ["cell size (um)", "centre of the cylinder", *(f"kappa {k:g}" for k in kappas)]
    parts = [
        f"{len(kappas)} permeabilities x {len(first)} measurements (3 timings, 5 b, 4 "
        "directions). Largest error in % of S0 and, in brackets, root mean square. Goal: 1.2 % at "
        "0.7 um or less, for every measurement. The substrate is the same wherever its centre "
        "lies in the lattice; the staircase is not. Extrapolation is linear in the cell size.",
        table([*header, "goal"], rows),
        "By timing, at 0.667 um and the last centre: largest error in % of S0 over b.",
        _by_timing(acquisition, kappas, found[12] - expected),
        _reference_scatter(acquisition, expected, data["stderr_pooled"].max()),
    ]
    return "\n\n".join(parts)


def _errors(errors, cell_size):
    worst, rms = np.abs(errors).max(axis=1), np.sqrt((errors**2).mean(axis=1))
    text = [f"{100 * w:.2f} ({100 * r:.2f})" for w, r in zip(worst, rms, strict=True)]
    return [*text, verdict(worst.max(), 0.012) if cell_size <= 0.7 else ""]


def _by_timing(acquisition, kappas, errors):
    axes, axis = np.unique(acquisition.directions.round(3), axis=0, return_inverse=True)
    axis = axis.ravel()
    rows = []
    for kappa, error in zip(kappas, errors, strict=True):
        for t, (delta, separation, _) in enumerate(acquisition.timings):
            here = acquisition.timing_index == t
            worst = [np.abs(error[here & (axis == a)]).max() for a in range(len(axes))]
            rows.append([f"{kappa:g}", f"{delta:g}, {separation:g}", *percent(worst)])
    names = ["(" + ", ".join(f"{x:g}" for x in a) + ")" for a in axes]
    return table(["kappa", "delta, Delta (ms)", *names], rows)


def _reference_scatter(acquisition, expected, standard_error):
    """How much the Monte Carlo differs between x and y, which are equal by symmetry."""
    x, y = (
        np.flatnonzero(np.abs(acquisition.directions @ axis) > 1 - 1e-6)
        for axis in ([1, 0, 0], [0, 1, 0])
    )
    order_x, order_y = (
        i[np.lexsort((acquisition.b[i], acquisition.timing_index[i]))] for i in (x, y)
    )
    scatter = np.abs(expected[:, order_x] - expected[:, order_y]).max(axis=1) / 2
    return (
        f"The reference itself: largest standard error {100 * standard_error:.2f} % of S0; x and "
        "y are equal by symmetry, but differ from their mean by up to "
        f"{', '.join(percent(scatter))} % of S0 (by kappa): that much of the errors is not ours."
    )


def _random_case():
    """A grid of random permeabilities and 36 measurements of three timings."""
    grid = bcc_grid(4, 5.0)
    kappa = 10 ** np.random.default_rng(0).uniform(-2, 0, grid.n_faces)
    timings = np.repeat([[5.0, 6.0], [10.0, 30.0], [20.0, 60.0]], 12, axis=0)
    directions = np.tile([unit(v) for v in AXES.values()], (6, 1))
    b = np.tile(np.repeat([0.5, 3.0], 6), 3)
    return grid, kappa, pulsed(b, directions, *timings.T)


def jacobian():
    """Jacobian against central differences of the same solver."""
    grid, kappa, acquisition = _random_case()
    faces = np.random.default_rng(1).choice(grid.n_faces, 24, replace=False)
    change = 1e-3
    fields = np.repeat(kappa[None], 2 * len(faces), axis=0)
    fields[np.arange(len(faces)), faces] *= np.exp(change)
    fields[np.arange(len(faces)) + len(faces), faces] *= np.exp(-change)
    weights = np.random.default_rng(2).normal(size=len(acquisition))
    rows = []
    for steps in (4, 8, 16, 32, 64):
        signals = simulate(acquisition, grid, fields, steps=steps)
        expected = (signals[: len(faces)] - signals[len(faces) :]).T / (2 * change)
        found = simulate_with_jacobian(acquisition, grid, kappa, steps=steps)[1]
        error = np.linalg.norm(found[:, faces] - expected) / np.linalg.norm(expected)
        worst = np.abs(found[:, faces] - expected).max() / np.abs(expected).max()
        tensor = torch.tensor(kappa, requires_grad=True)
        (simulate(acquisition, grid, tensor, steps=steps) @ torch.as_tensor(weights)).backward()
        gradient = tensor.grad.numpy() * kappa
        autograd = np.abs(gradient - weights @ found).max() / np.abs(gradient).max()
        goal = {8: verdict(error, 1e-3), 64: verdict(error, 1e-6)}.get(steps, "")
        rows.append([steps, *(f"{e:.1e}" for e in (error, worst, autograd)), goal])
    return (
        f"768 tetrahedra, {len(acquisition)} measurements of 3 timings, 24 faces, step {change:g} "
        "in ln kappa (whose error is about 2e-7). Goals: 1e-3 at the default of 8 steps, 1e-6 "
        "with more.\n\n"
        + table(
            ["steps per pulse", "norm of error / norm", "largest error / largest entry",
             "autograd - Jacobian, relative", "goal"], rows,
        )
    )  # fmt: skip


def time_steps():
    """Signals against those of 128 steps per pulse."""
    grid, kappa, acquisition = _random_case()
    exact = simulate(acquisition, grid, kappa, steps=128)
    rows = []
    for steps in (2, 4, 8, 16, 32, 64):
        error = np.abs(simulate(acquisition, grid, kappa, steps=steps) - exact)
        worst = [error[acquisition.timing_index == t].max() for t in range(3)]
        rows.append([steps, *(f"{e:.1e}" for e in worst)])
    names = [f"delta {d:g}, Delta {s:g} ms" for d, s, _ in acquisition.timings]
    return (
        "Largest error over b 0.5 and 3 ms/um^2 and 6 directions, in units of S0; the default is "
        "8. The series of each exponential are cut at 1e-8.\n\n"
        + table(["steps per pulse", *names], rows)
    )


def precision():
    """float32 against float64."""
    grid, kappa, acquisition = _random_case()
    rows = []
    for name, field in (
        ("random, 0.01 to 1 um/ms", kappa),
        ("10 um/ms", np.full(grid.n_faces, 10.0)),
    ):
        double = simulate_with_jacobian(acquisition, grid, field)
        single = simulate_with_jacobian(acquisition, grid, field, dtype="float32")
        change = np.abs(single[1] - double[1]).max() / np.abs(double[1]).max()
        rows.append([name, f"{np.abs(single[0] - double[0]).max():.1e}", f"{change:.1e}"])
    b0 = pulsed(np.zeros(1), np.zeros((1, 3)), 10.0, 30.0)
    lost = np.abs(simulate(b0, grid, kappa)[0] - 1)
    return (
        table(["permeabilities", "signals", "Jacobian / its largest entry"], rows)
        + f"\n\nSignal lost at b = 0 on the closed grid, float64: {lost:.0e}."
    )


TABLES = {
    "free": ("Free diffusion on the periodic grid", free_diffusion),
    "planes": ("Permeable planes against one dimension", permeable_planes),
    "cylinders": ("Packed permeable cylinders against Monte Carlo", packed_cylinders),
    "jacobian": ("Jacobian against central differences", jacobian),
    "steps": ("Time steps", time_steps),
    "precision": ("float32 against float64", precision),
    "waveforms": ("Waveforms in free water", waveform_physics.free_diffusion),
    "waveform_planes": ("Waveforms across planes", waveform_physics.planes),
    "waveform_steps": ("Time steps of waveforms", waveform_physics.time_steps),
    "media": ("Two layers of different media", waveform_physics.two_layers),
    "waveform_jacobian": ("Jacobian of waveforms", waveform_physics.jacobian),
    "waveform_cost": ("Cost of waveforms", waveform_physics.cost),
}


def main():
    parser = command(__doc__, ", ".join(_QUICK))
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(TABLES)}; default: all")
    arguments = parser.parse_args()
    chosen = list(_QUICK) if arguments.quick else arguments.tables or list(TABLES)
    if unknown := sorted(set(chosen) - set(TABLES)):
        parser.error(f"no table {', '.join(unknown)}; there are {', '.join(TABLES)}")
    sections = _sections_on_file()
    for name in chosen:
        title, make = TABLES[name]
        start = time.perf_counter()
        text = make()
        seconds = time.perf_counter() - start
        text += f"\n\n({seconds:.0f} s, {machine()})"
        print(f"\n## {title}\n\n{text}", flush=True)
        if not text.startswith(_LEFT_OUT):
            sections[title] = text
    head = (
        "# Physics\n\nComputed by `python -m benchmarks.physics`, each figure once (all random "
        "numbers are seeded)."
    )
    titles = [title for title, _ in TABLES.values() if title in sections]
    parts = [f"## {title}\n\n{sections[title]}" for title in titles]
    keep("physics.md", "\n\n".join([head, *parts]), complete=not arguments.quick)


def _sections_on_file():
    """Tables by their titles, of the last run."""
    parts = (RESULTS / "physics.md").read_text().split("\n## ")[1:]
    return {title: text.strip() for title, text in (part.split("\n", 1) for part in parts)}


if __name__ == "__main__":
    main()
