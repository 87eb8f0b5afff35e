"""Shapes of cells from signals, compared with the published table of ReMiDi (arXiv 2502.01988).

    python -m benchmarks.cell_shapes [--parts PART ...] [--shapes N] [--tables]

True cells are axons of the test ranges, at random poses, and shapes of no family. Their signals
are simulated on separate Gmsh meshes (``pip install dipy_spinverse[mesh]``), by Taylor series
in their modes; fits see signals only, of 1890 measurements (as published) or of a protocol that a
scanner can run. All choices were made on seed 0, tables are of seed 1. Completed fits are kept in
results/cell_shapes/fits.jsonl: an interrupted run resumes, and a table states its number of
shapes.

Duration: 40 CPU-s per fit. Writes results/cell_shapes/.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import least_squares

from benchmarks.cell_shape_targets import (
    DIFFUSIVITY,
    Truth,
    axon_truths,
    distances,
    distances_of_vertices,
    in_own_process,
    measured,
    outside_truths,
    protocol,
    roughly_apart,
)
from benchmarks.cell_shape_truths import KINDS, VARIANTS, SimulatedTruth, truth_of
from benchmarks.command import RESULTS, command, keep
from benchmarks.tables import machine, table
from dipy_spinverse.cell_shapes import CellShapeModel, latent_space, tube_space
from dipy_spinverse.cell_shapes.geometry import MAPS
from dipy_spinverse.cell_shapes.synthetic_axons import FAMILIES, draw_axons
from dipy_spinverse.cell_shapes.templates import Template
from dipy_spinverse.voxels.status import Status

FITS = RESULTS / "cell_shapes" / "fits.jsonl"
SPACES = {"tube": tube_space, "latent": latent_space}
PUBLISHED = {"bent": "1.709 +- 0.261", "beaded": "0.568 +- 0.086", "fanning": "7.433 +- 4.844"}
_DRAWS, _COMPARED = 40, 4  # samples per posterior; number compared with the MAP shape
_WITHIN = 1.96  # standard deviations, for 95 %


def fitted(truth: Truth, protocol_name: str, snr: float, space: str) -> dict:
    """One reconstruction and its figures of merit."""
    acquisition = protocol(protocol_name)
    if isinstance(truth, SimulatedTruth):
        data, true_sizes = truth.signals, truth.sizes
    else:
        data, true_sizes = in_own_process(measured, truth, acquisition)
    if np.isfinite(snr):
        noise = np.random.default_rng(7).normal(scale=1 / snr, size=(2, len(data)))
        data = np.hypot(data + noise[0], noise[1])
    model = CellShapeModel(acquisition, SPACES[space](), diffusivity=DIFFUSIVITY * 1e-3)
    wall, cpu = time.perf_counter(), time.process_time()
    noisy = np.isfinite(snr)
    fit = model.fit(data, sigma=1 / snr if noisy else None, n_draws=_DRAWS if noisy else 0)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found, start = fit.mesh(), fit.mesh(stage="start")
    surface, birge_ratio = (found.vertices_um, found.triangles), float(fit.birge_ratio)
    target = truth.vertices, truth.triangles
    chamfer, aside = distances(surface, target)
    draws = fit.draws()[:_COMPARED] if noisy else []
    outer = Template(*fit.tetrahedra()).surface
    endings = ("", "_std", "_low", "_high") if noisy else ("",)
    expected = [roughly_apart((draw[outer], found.triangles), surface) for draw in draws]
    return {
        "chamfer": chamfer,
        "surface": aside,
        "start": roughly_apart((start.vertices_um, start.triangles), target),
        "expected": birge_ratio * float(np.mean(expected)) if noisy else np.nan,
        "vertices": of_vertices(surface, found.vertex_std_um, target) if noisy else None,
        "sizes": {
            name: [size, *(float(getattr(fit, name + end)) for end in endings)]
            for name, size in true_sizes.items()
        },
        "status": int(fit.status),
        "at_bounds": bool(fit.at_bounds),
        "birge_ratio": birge_ratio,
        "residual": float(fit.residual_rms),
        "cpu": cpu,
        "wall": wall,
        "gib": gib,
    }


def of_vertices(surface: tuple, std: np.ndarray, target: tuple) -> dict[str, float]:
    """Distances of vertices from the true surface, and their standard deviations, um."""
    off = distances_of_vertices(surface, target)
    return {
        "error": float(np.sqrt((off**2).mean())),
        "std": float(np.sqrt((std**2).mean())),
        "inside": float((off <= _WITHIN * std).mean()),
    }


@dataclass(frozen=True)
class Run:
    """Number of shapes of each family or kind, their seed, and whether to fit more."""

    shapes: int
    seed: int
    fit_more: bool


def fits(
    run: Run, truths: list[Truth], protocol_name: str, snr: float, space: str = "tube"
) -> list[dict]:
    """Fits of these cells, those that were done before from the file."""
    lines = FITS.read_text().splitlines() if FITS.exists() else []
    names = ("name", "protocol", "snr", "space")
    done = {tuple(each[name] for name in names): each for each in map(json.loads, lines)}
    keys = [(truth.name, protocol_name, _written(snr), space) for truth in truths]
    for truth, key in zip(truths, keys, strict=True):
        if key not in done and run.fit_more:
            done[key] = dict(zip(names, key, strict=True)) | fitted(
                truth, protocol_name, snr, space
            )
            FITS.parent.mkdir(exist_ok=True)
            with FITS.open("a") as file:
                file.write(json.dumps(done[key]) + "\n")
            print(json.dumps(done[key]), flush=True)
    return [done[key] for key in keys if key in done]


def _written(snr):
    return f"{snr:g}" if np.isfinite(snr) else "none"


def summary(some: list[dict]) -> list:
    """Cells of a table that sum up fits."""
    if not some:
        return [0, *["-"] * (len(_HEADER) - 1)]
    numbers = ("chamfer", "surface", "start", "expected", "cpu", "gib")
    values = {name: np.array([each[name] for each in some]) for name in numbers}
    flagged = [each["status"] != int(Status.CONVERGED) or _widened(each) > 1 for each in some]
    off = [abs(each["sizes"]["volume"][1] / each["sizes"]["volume"][0] - 1) for each in some]
    inside, expected = "-", "-"
    if np.isfinite(values["expected"]).all():
        inside = f"{sum(_held(each['sizes']['volume']) for each in some)}"
        expected = f"{values['expected'].mean():.3f}"
    return [
        len(some),
        f"{values['chamfer'].mean():.3f} +- {values['chamfer'].std():.3f}",
        f"{values['surface'].mean():.3f} +- {values['surface'].std():.3f}",
        f"{values['surface'].max():.3f}",
        f"{values['start'].mean():.2f}",
        expected,
        f"{100 * np.mean(off):.1f}",
        inside,
        f"{sum(flagged)}",
        f"{values['cpu'].mean():.0f}",
        f"{values['gib'].max():.2f}",
    ]


def _widened(fit):
    """Birge ratio; 1 for stored fits that lack it."""
    return fit.get("birge_ratio", 1.0)


def _held(size):
    true, _, _, low, high = size
    return low <= true <= high


_HEADER = [
    "shapes", "Chamfer (um)", "surface (um)", "worst", "at the start", "expected from samples",
    "volume error (%)", "volume covered (95 %)", "flagged", "CPU s", "peak GiB",
]  # fmt: skip
_NOTE = (
    "Chamfer: as published, but between 20,000 points of each surface instead of vertices, and "
    "without rotational alignment: half the mean distance from the points of one surface to the "
    "nearest of the other, and half the mean the other way; the least over the point reflection. "
    "Surface: to the surface itself. Expected: mean surface distance of samples to the MAP shape, "
    "times fit.birge_ratio. Flagged: a status other than CONVERGED, or fit.birge_ratio above 1. "
    "Means +- standard deviations over shapes."
)


def published(run: Run) -> str:
    """Families with the published protocol, noise-free and at SNR 50."""
    rows = []
    for snr in (np.inf, 50.0):
        for family in FAMILIES:
            some = fits(run, axon_truths(family, run.shapes, run.seed), "published", snr)
            rows.append([family, _written(snr), PUBLISHED.get(family, ""), *summary(some)])
    header = ["family", "SNR", "published Chamfer, noise-free, same mesh", *_HEADER]
    return f"# Axons\n\n{_NOTE}\n\n" + table(header, rows)


def scanner(run: Run) -> str:
    """Families with a protocol of 450 measurements that a scanner can run."""
    rows = []
    for family in FAMILIES:
        some = fits(run, axon_truths(family, run.shapes, run.seed), "scanner", 50.0)
        rows.append([family, *summary(some)])
    return (
        "# Axons, protocol of a scanner\n\n4 b-values to 5 ms/um^2, delta 8, Delta 16, 30, 50 ms, "
        f"30 directions, 290 mT/m; SNR 50. {_NOTE}\n\n" + table(["family", *_HEADER], rows)
    )


def outside(run: Run) -> str:
    """Shapes of no family."""
    rows = []
    for kind, truths in outside_truths(run.shapes, run.seed).items():
        rows.append([kind, *summary(fits(run, truths, "published", 50.0))])
    return f"# Shapes of no family\n\nSNR 50. {_NOTE}\n\n" + table(["shape", *_HEADER], rows)


def kinds(run: Run) -> str:
    """Cells of `cell_shape_truths`: surfaces, meshes and signals from elsewhere."""
    rows = []
    for snr in (50.0, np.inf):
        for kind in KINDS:
            truths = [truth_of(kind, k) for k in range(min(run.shapes, VARIANTS))]
            some = fits(run, truths, "published", snr)
            rows.append([kind, _written(snr), *summary(some), *_of_sizes(some)])
    header = [
        "kind",
        "SNR",
        *_HEADER,
        *(f"{name}: error (%), covered" for name in _SIZES),
        "status",
    ]
    return f"# Kinds of cells, from elsewhere\n\n{_NOTE}\n\n" + table(header, rows)


_SIZES = "surface", "length", "mean_radius"


def _of_sizes(some):
    """Median error and coverage of sizes, and the statuses, of fits."""
    cells = []
    for name in _SIZES:
        sizes = [fit["sizes"][name] for fit in some]
        errors = [100 * abs(size[1] / size[0] - 1) for size in sizes]
        covered = sum(_held(size) for size in sizes if len(size) == 5)
        noisy = any(len(size) == 5 for size in sizes)
        cells.append(f"{np.median(errors):.1f}{f', {covered}' if noisy else ''}" if some else "-")
    return [*cells, " ".join(sorted({Status(fit["status"]).name for fit in some})) or "-"]


def intervals(run: Run) -> str:
    """Coverage and width of intervals of all completed fits with noise."""
    done = [json.loads(line) for line in FITS.read_text().splitlines()]
    groups = {
        "axons, published protocol": lambda fit: fit["protocol"] == "published" and _axon(fit),
        "axons, protocol of a scanner": lambda fit: fit["protocol"] == "scanner",
        "shapes of no family": lambda fit: not _axon(fit),
    }
    rows, surfaces = [], []
    for group, belongs in groups.items():
        some = [f for f in done if f["snr"] == "50" and f["space"] == "tube" and belongs(f)]
        for name in MAPS if some else ():
            sizes = np.array([fit["sizes"][name] for fit in some])
            true, found, std = sizes[:, :3].T
            held, off = np.mean([_held(size) for size in sizes]), found / true - 1
            cells = [held, off.mean(), np.median(np.abs(off)), np.median(std / true)]
            rows.append([group, len(some), name, *(f"{100 * x:.1f}" for x in cells)])
        of_each = [fit["vertices"] for fit in some if fit.get("vertices")]
        if of_each:
            error, std, inside = (
                np.array([each[name] for each in of_each]) for name in ("error", "std", "inside")
            )
            surfaces.append([
                group, len(of_each), f"{100 * inside.mean():.1f}", f"{100 * inside.min():.0f}",
                *(f"{np.sqrt((x**2).mean()):.3f}" for x in (error, std)),
            ])  # fmt: skip
    header = ["cells", "shapes", "size", "in the 95 % interval, %", "mean error, %",
              "median error, %", "median std, %"]  # fmt: skip
    of_surfaces = ["cells", "shapes", "vertices within 1.96 std of the true surface, %",
                   "least of a shape, %", "rms error, um", "rms std, um"]  # fmt: skip
    return (
        "# Intervals\n\nSNR 50, tubes. Errors of medians.\n\n" + table(header, rows)
        + "\n\nVertices, of the fits that were asked (mesh().vertex_std_um):\n\n"
        + table(of_surfaces, surfaces)
    )  # fmt: skip


def _axon(fit):
    return fit["name"].split()[0] in FAMILIES


def other_spaces(run: Run) -> str:
    """The same signals in other shape spaces."""
    rows = []
    for space in SPACES:
        for family in FAMILIES:
            some = fits(run, axon_truths(family, run.shapes, run.seed), "published", 50.0, space)
            rows.append([space, family, *summary(some)])
    return f"# Shape spaces\n\nSNR 50. {_NOTE}\n\n" + table(["space", "family", *_HEADER], rows)


def representation(run: Run) -> str:
    """Approximation error of each shape space for test shapes with known vertices."""
    rows = []
    for name, make in SPACES.items():
        cells = []
        for family in FAMILIES:
            rng = np.random.default_rng([run.seed, 9])
            axons = draw_axons(family, run.shapes, rng, test=True)
            apart = [_closest(make(), axon) for axon in axons]
            cells.append(f"{np.mean(apart):.3f} ({np.max(apart):.3f})")
        rows.append([name, make().n_parameters, *cells])
        print(*rows[-1], sep=" | ", flush=True)
    return (
        "# Approximation error of the shape spaces\n\n"
        "Mean distance of vertices on the surface after a least-squares "
        f"fit to those of {run.shapes} axons of the test ranges, um (worst).\n\n"
        + table(["space", "parameters", *FAMILIES], rows)
    )


def _closest(space, axon):
    """Mean distance (um) that is left between the surface vertices of an axon and of a space."""
    surface = space.template.surface
    straight = space.template.points if not hasattr(space, "reference") else None
    unit = space.reference.points if straight is None else straight / [3, 3, 4.5]
    target = torch.as_tensor(axon.positions(unit)[surface])

    def apart(unknown):
        theta = torch.as_tensor(unknown[: space.n_parameters])
        size = 1.0 if space.has_scale else float(np.exp(unknown[-1]))
        difference = target - size * space.vertices(theta)[surface]
        return difference - difference.mean(dim=0)

    start = space.prior_mean if space.has_scale else np.append(space.prior_mean, 0.0)

    def slopes(unknown):
        theta = torch.as_tensor(unknown[: space.n_parameters])
        size = 1.0 if space.has_scale else float(np.exp(unknown[-1]))
        moves = -size * torch.func.jacfwd(space.vertices)(theta)[surface]
        if not space.has_scale:
            moves = torch.cat([moves, -size * space.vertices(theta)[surface][..., None]], dim=2)
        return (moves - moves.mean(dim=0)).reshape(-1, len(unknown)).numpy()

    found = least_squares(lambda x: apart(x).numpy().ravel(), start, slopes, max_nfev=20)
    return float(apart(found.x).norm(dim=1).mean())


PARTS = {
    part.__name__: part
    for part in (representation, published, scanner, outside, kinds, other_spaces, intervals)
}


def main() -> None:
    """Print the tables and write them to results/."""
    parser = command(__doc__, "one shape of each kind")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument(
        "--shapes", type=int, default=10, help="number of shapes of each family or kind"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tables", action="store_true", help="tables of stored fits only")
    given = parser.parse_args()
    run = Run(1 if given.quick else given.shapes, given.seed, not given.tables)
    torch.set_num_threads(1)
    for name in given.parts:
        text = PARTS[name](run)
        print(text, flush=True)
        keep(f"cell_shapes/{name}.md", f"{text}\n\n{machine()}.", complete=not given.quick)


if __name__ == "__main__":
    main()
