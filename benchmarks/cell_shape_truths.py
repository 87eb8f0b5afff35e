"""True cells of `cell_shapes --parts kinds`: implicit surfaces, with signals of another solver.

Nothing here comes from the package's shapes, meshes or simulations: depths are functions of the
position, surfaces are marching cubes (scikit-image) with evenly spaced vertices (pyacvd), solids
are TetGen's, and signals are those of quadratic finite elements (scikit-fem) in their slowest
modes, with matrix exponentials for the pulses.

    pip install scikit-fem scikit-image pyvista pyacvd tetgen
    python -m benchmarks.cell_shape_truths [--kinds KIND ...]

Signals are kept in results/cell_shapes/truths/, one file for each cell. Writes the differences
from signals of coarser meshes to results/cell_shapes/truths.md. Duration: 30 CPU-s for each cell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import expm
from scipy.sparse.linalg import eigsh
from scipy.spatial.transform import Rotation

from benchmarks.cell_shape_targets import DIFFUSIVITY, Truth, protocol, volume_inside
from benchmarks.command import RESULTS, command, keep
from benchmarks.smooth_bodies_set import ellipsoid, tube
from benchmarks.tables import machine, table

TRUTHS = RESULTS / "cell_shapes" / "truths"
_CUBES = 4  # marching cubes along the smallest radius
_EDGES = 0.5, 0.3, 0.7  # of meshes: over the smallest radius, least and largest, um
_COARSER = 1.4  # edges of the meshes that state the error
_SHORTEST = 1.5  # um, of modes
_BATCH = 64
_TRIES = 1.0, 0.9, 0.8, 0.7  # factors of edges, until the surface does not intersect itself


@dataclass(frozen=True, eq=False)
class Body:
    """Depth (um, positive inside) of points, a box that contains it, and its smallest radius."""

    depth: Callable[[np.ndarray], np.ndarray]
    half_box: np.ndarray
    thinnest: float


def _sphere(k):
    radius = (2.0, 3.5, 5.0)[k]
    return Body(lambda p: radius - np.linalg.norm(p, axis=1), np.full(3, radius), radius)


def _ellipsoid(k):
    axes = np.array([(2.5, 3.0, 5.0), (2.0, 4.0, 4.5), (3.0, 3.5, 7.0)][k])
    return Body(ellipsoid(0.0, axes, np.eye(3)), axes, axes.min() / 1.5)


def _bumpy(k):
    radius, height = ((3.0, 0.25), (4.0, 0.2), (2.5, 0.35))[k]

    def depth(p):
        distance = np.linalg.norm(p, axis=1).clip(1e-9)
        x, y, z = p.T / distance
        return radius * (1 + height * (5 * x * y * z + 2 * x**2 - 2 * y**2) / 1.5) - distance

    return Body(depth, np.full(3, radius * (1 + 2 * height)), radius / 2)


def _disc(k):
    radius, half = ((5.0, 1.0), (4.0, 0.8), (6.0, 1.5))[k]

    def depth(p):  # a disc with a round rim
        away = np.maximum(np.hypot(p[:, 0], p[:, 1]) - (radius - half), 0)
        return half - np.hypot(away, p[:, 2])

    return Body(depth, np.array([radius, radius, half]), half)


def _around(line, radius):
    half = np.abs(line).max(axis=0) + np.max(radius)
    return Body(tube(line, radius), half, float(np.min(radius)))


def _centred(line):
    return line - (line.max(axis=0) + line.min(axis=0)) / 2


def _bent_with_beads(k):
    radius, length, curvature, height = (
        (1.8, 12.0, 0.15, 0.5), (1.2, 16.0, 0.1, 0.8), (2.2, 14.0, 0.08, 0.4),
    )[k]  # fmt: skip
    s = np.linspace(-length / 2, length / 2, 61)
    angle = curvature * s
    line = np.column_stack([1 - np.cos(angle), 0 * s, np.sin(angle)]) / curvature
    beads = sum(np.exp(-(((s / length - at) / 0.1) ** 2) / 2) for at in (-0.25, 0.22))
    return _around(_centred(line), radius * (1 + height * beads))


def _axon(k):
    radius, length = ((0.5, 24.0), (0.7, 16.0), (0.4, 12.0))[k]
    half = length / 2 - radius
    return _around(np.array([[0, 0, -half], [0, 0, half]]), radius)


def _neurite(k):
    radius, length = ((1.0, 36.0), (1.3, 26.0), (1.5, 40.0))[k]
    s = np.linspace(-length / 2 + radius, length / 2 - radius, 41)
    return _around(_centred(np.column_stack([0.5 * np.sin(s / 5), 0 * s, s])), radius)


def _joined(lines, radii, smooth=0.3):
    parts = [tube(line, radius) for line, radius in zip(lines, radii, strict=True)]

    def depth(p):
        deepest = np.array([part(p) for part in parts])
        return smooth * np.logaddexp.reduce(deepest / smooth, axis=0)

    half = np.max([np.abs(line).max(axis=0) + np.max(radius)
                   for line, radius in zip(lines, radii, strict=True)], axis=0)  # fmt: skip
    return Body(depth, half + smooth, min(float(np.min(radius)) for radius in radii))


def _dendrite(k):
    """A trunk that splits in two."""
    radius, trunk, branch, opening = (
        (1.0, 8.0, 6.0, 0.7), (0.8, 10.0, 8.0, 0.5), (1.3, 7.0, 7.0, 0.9),
    )[k]  # fmt: skip
    tips = [branch * np.array([sign * np.sin(opening), 0, np.cos(opening)]) for sign in (-1, 1)]
    ends = np.array([[0, 0, -trunk], *tips])
    ends[:, 2] -= (ends[:, 2].max() + ends[:, 2].min()) / 2
    fork = np.array([0, 0, ends[0, 2] + trunk])
    return _joined([np.array([fork, end]) for end in ends], [np.array([1.2, 0.8]) * radius] * 3)


def _helix(k):
    radius, coil, pitch, turns = (
        (1.0, 2.5, 6.0, 1.5),
        (0.8, 2.0, 5.0, 2.0),
        (1.2, 3.0, 8.0, 1.2),
    )[k]
    t = np.linspace(-1, 1, 81) * np.pi * turns
    line = np.column_stack([coil * np.cos(t), coil * np.sin(t), pitch * t / (2 * np.pi)])
    return _around(_centred(line), radius)


def _soma(k):
    """A soma with two processes, not opposite each other."""
    radius, thin, length = ((3.5, 0.8, 8.0), (3.0, 0.6, 12.0), (4.5, 1.0, 7.0))[k]
    s = np.linspace(-1, 1, 81) * (radius + length)
    angle = 0.3 * np.tanh(s / radius)
    line = np.column_stack([np.abs(s) * np.sin(np.abs(angle)), 0 * s, s * np.cos(angle)])
    soma = np.sqrt(np.maximum(radius**2 - s**2, 0))
    return _around(_centred(line), np.maximum(soma, thin))


KINDS: dict[str, Callable[[int], Body]] = {
    "sphere": _sphere,
    "ellipsoid": _ellipsoid,
    "bumpy sphere": _bumpy,
    "disc": _disc,
    "bent tube with beads": _bent_with_beads,
    "thin axon": _axon,
    "neurite": _neurite,
    "branching dendrite": _dendrite,
    "helix": _helix,
    "soma with two processes": _soma,
}
VARIANTS = 3


@dataclass(frozen=True, eq=False)
class SimulatedTruth(Truth):
    """A true cell with its signals (M,) of the published protocol, and its sizes."""

    signals: np.ndarray
    sizes: dict[str, float]
    error: float  # root mean square difference from signals of a coarser mesh


def truth_of(kind: str, k: int) -> SimulatedTruth:
    """The kth cell of a kind; simulated once, from then on read."""
    name = f"{kind} {k}"
    path = TRUTHS / f"{name.replace(' ', '_')}.npz"
    if not path.exists():
        body = KINDS[kind](k)
        edge = float(np.clip(_EDGES[0] * body.thinnest, *_EDGES[1:]))
        pose = Rotation.random(random_state=np.random.default_rng([len(kind), k]))
        signals, sizes, surface = simulated(body, edge, pose)
        coarser, _, _ = simulated(body, _COARSER * edge, pose, sizes["volume"])
        TRUTHS.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path, vertices=surface[0], triangles=surface[1], signals=signals.astype("float32"),
            sizes=np.array(list(sizes.values())), names=list(sizes),
            error=np.sqrt(((signals - coarser) ** 2).mean()),
        )  # fmt: skip
    with np.load(path) as file:
        sizes = dict(zip(file["names"].tolist(), file["sizes"].tolist(), strict=True))
        return SimulatedTruth(
            name, file["vertices"], file["triangles"], file["signals"].astype(float), sizes,
            float(file["error"]),
        )  # fmt: skip


def surface_of(body: Body, edge: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, 3) and triangles (F, 3) of a body, of about equal edges."""
    import pyacvd
    import pyvista
    from skimage.measure import marching_cubes

    spacing = body.thinnest / _CUBES
    half = np.ceil(body.half_box / spacing + 2).astype(int)
    axes = [spacing * np.arange(-n, n + 1) for n in half]
    lattice = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    depth = body.depth(lattice.reshape(-1, 3)).reshape(lattice.shape[:3])
    vertices, triangles, _, _ = marching_cubes(depth, 0.0, spacing=(spacing,) * 3)
    raw = pyvista.PolyData.from_regular_faces(vertices - spacing * half, triangles)
    n = int(raw.area / (edge**2 * np.sqrt(3) / 2))
    while raw.n_points < 4 * n:
        raw = raw.subdivide(1)
    clusters = pyacvd.Clustering(raw)
    clusters.cluster(n)
    even = clusters.create_mesh()
    points, triangles = np.array(even.points, float), np.array(even.regular_faces)
    for _ in range(3):  # onto the surface
        step = 1e-4
        slope = np.stack([body.depth(points + step * e) - body.depth(points - step * e)
                          for e in np.eye(3)], axis=1) / (2 * step)  # fmt: skip
        size = np.maximum((slope**2).sum(axis=1), 0.1)
        move = -(body.depth(points) / size)[:, None] * slope
        points = points + np.clip(move, -edge / 4, edge / 4)
    if volume_inside(points, triangles) < 0:
        triangles = triangles[:, ::-1]
    return points, triangles


def simulated(body, edge, pose, volume=None):
    """Signals (M,), sizes, and surface of a body in a pose, scaled to a volume if one is given."""
    for finer in _TRIES:
        points, triangles = surface_of(body, finer * edge)
        if volume is not None:
            points = points * (volume / volume_inside(points, triangles)) ** (1 / 3)
        points = pose.apply(points)
        try:
            rates, moments, start = quadratic_modes(points, triangles, finer * edge)
            break
        except RuntimeError as error:  # surfaces that intersect themselves
            print(f"edge {finer * edge:.2f} um: {error}", flush=True)
    else:
        raise RuntimeError("no mesh could be filled with tetrahedra")
    a, b, c = np.moveaxis(points[triangles], 1, 0)
    inside = volume_inside(points, triangles)
    length = float(np.pi * np.sqrt(DIFFUSIVITY / rates[1]))
    sizes = {
        "volume": inside,
        "surface": float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2),
        "length": length,
        "mean_radius": float(np.sqrt(inside / (np.pi * length))),
    }
    return pulsed_signals(protocol("published"), rates, moments, start), sizes, (points, triangles)


def quadratic_modes(points, triangles, edge):
    """Rates (n,), moments (3, n, n) of positions and start (n,) of quadratic finite elements."""
    import pyvista
    import skfem
    import tetgen
    from skfem.helpers import dot, grad

    solid = tetgen.TetGen(pyvista.PolyData.from_regular_faces(points, triangles))
    nodes, tetrahedra, *_ = solid.tetrahedralize(
        plc=True, quality=True, minratio=1.4, nobisect=True, maxvolume=0.15 * edge**3
    )
    mesh = skfem.MeshTet(np.ascontiguousarray(nodes.T), np.ascontiguousarray(tetrahedra.T))
    basis = skfem.Basis(mesh, skfem.ElementTetP2(), intorder=5)
    mass = skfem.BilinearForm(lambda u, v, w: u * v).assemble(basis)
    stiffness = skfem.BilinearForm(lambda u, v, w: dot(grad(u), grad(v))).assemble(basis)
    highest = DIFFUSIVITY * (np.pi / _SHORTEST) ** 2
    n = 40
    while True:
        rates, modes = eigsh(DIFFUSIVITY * stiffness, n, mass, sigma=-0.01)
        order = np.argsort(rates)
        rates, modes = rates[order], modes[:, order]
        if rates[-1] > highest:
            break
        n *= 2
    kept = rates <= highest
    rates, modes = rates[kept], modes[:, kept]
    unit = mass @ np.ones(mass.shape[0])
    moments = []
    for d in range(3):
        weighted = skfem.BilinearForm(lambda u, v, w, d=d: w.x[d] * u * v).assemble(basis)
        moments.append(modes.T @ (weighted @ modes))
    return rates, np.array(moments), modes.T @ unit / np.sqrt(unit.sum())


def pulsed_signals(acquisition, rates, moments, start):
    """Signals (M,) of two rectangular pulses, over those without diffusion."""
    small, big = acquisition.small_delta, acquisition.big_delta
    q = np.sqrt(acquisition.b / (big - small / 3))  # rad/um
    signals = np.ones(len(q))
    rows = np.flatnonzero(q > 0)
    for first in range(0, len(rows), _BATCH):
        chosen = rows[first : first + _BATCH]
        gradient = q[chosen, None] * acquisition.directions[chosen] / small[chosen, None]
        generators = -np.diag(rates) - 1j * np.einsum("kd,dij->kij", gradient, moments)
        after = expm(small[chosen, None, None] * generators) @ start
        gap = np.exp(-rates * (big - small)[chosen, None])
        signals[chosen] = (gap * np.abs(after) ** 2).sum(axis=1)
    return signals


def main() -> None:
    """Simulate the cells that lack signals, and write the table of errors."""
    parser = command(__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    args = parser.parse_args()
    rows = []
    for k in range(VARIANTS):
        for kind in args.kinds:
            truth = truth_of(kind, k)
            sizes = (f"{x:.3g}" for x in truth.sizes.values())
            rows.append([truth.name, len(truth.vertices), *sizes, f"{100 * truth.error:.3f}"])
            print(*rows[-1], sep=" | ", flush=True)
    header = ["cell", "vertices", "volume (um^3)", "surface (um^2)", "length (um)", "radius (um)",
              "difference, % of S0"]  # fmt: skip
    text = (
        "# Cells of `cell_shapes --parts kinds`\n\nRoot mean square difference of signals from "
        f"those of meshes with edges {_COARSER} times as long, of the same volume.\n\n"
    )
    keep("cell_shapes/truths.md", f"{text}{table(header, sorted(rows))}\n\n{machine()}.",
         complete=args.kinds == [*KINDS])  # fmt: skip


if __name__ == "__main__":
    main()
