"""Signal and Jacobian of the package against the dense matrix formalism of published codes.

The dense method: P1 finite elements whose tetrahedra are all broken apart (4 nodes each, so that
any face can be a wall), coupled through the permeability of their common faces; all Laplace
eigenmodes by a dense eigendecomposition, of which those above a length scale are kept; per
measurement a torch.matrix_exp of the complex (modes x modes) Bloch-Torrey matrix; gradients by
torch autograd through all of it. Written from the mathematics of SpinDoctor (Li et al.,
NeuroImage 202 (2019) 116120, https://doi.org/10.1016/j.neuroimage.2019.116120) and its matrix
formalism (https://arxiv.org/abs/1911.07165).

    python -m benchmarks.dense_matrix_formalism [validate] [compare]

Duration: about 5 min on 2 cores (--quick: 1 min). Writes nothing; the table in results/ is what it
prints.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
import torch

from benchmarks.command import command
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import simulate, simulate_with_jacobian
from dipy_spinverse.grid import TetrahedralGrid, bcc_grid

DIFFUSIVITY = 2.0  # um^2/ms
TIMINGS = ((5.0, 6.0), (10.0, 20.0), (10.0, 60.0))  # delta, Delta in ms
N_MEASUREMENTS = 300
# Length scale, um, and precision of the dense way: a coarse cut of the modes, which costs about
# 0.5 % of S0 in accuracy, and a fine one (0.05 %). Printed with each, against FINE_LENGTH_UM.
DENSE_SETTINGS = ((3.0, torch.float32), (3.0, torch.float64), (2.0, torch.float64))
FINE_LENGTH_UM = 1.5
REPEATS = 5
PERMEABILITY_RANGE = (0.01, 100.0)  # um/ms, walls to open faces


@dataclass(frozen=True, eq=False)
class BrokenElements:
    """P1 matrices of a mesh whose tetrahedra share no nodes, made symmetric by M^(-1/2).

    Attributes
    ----------
    face_nodes : ndarray (F, 6)
        Broken nodes (4 per tetrahedron) of both sides of each face, in the same order.
    face_areas : ndarray (F,)
        um^2.
    mass_root : ndarray (T, 4, 4)
        M^(-1/2), 1/um^(3/2): the mass matrix has one block per tetrahedron.
    stiffness : ndarray (T, 4, 4)
        Integrals of grad phi_i . grad phi_j, um.
    moments : ndarray (3, T, 4, 4)
        M^(-1/2) J M^(-1/2), J the integrals of x phi_i phi_j, um.
    start : ndarray (4 T,)
        M^(1/2) 1 / sqrt(volume), the equilibrium magnetisation.
    """

    face_nodes: np.ndarray
    face_areas: np.ndarray
    mass_root: np.ndarray
    stiffness: np.ndarray
    moments: np.ndarray
    start: np.ndarray


def broken_elements(points, tetrahedra, faces, face_tetrahedra, face_areas) -> BrokenElements:
    """Assemble the matrices that do not depend on the permeabilities.

    Parameters
    ----------
    points : ndarray (P, 3)
        um.
    tetrahedra : ndarray (T, 4)
    faces : ndarray (F, 3)
        Vertices of the faces between two tetrahedra. Outer faces reflect.
    face_tetrahedra : ndarray (F, 2)
    face_areas : ndarray (F,)
        um^2.
    """
    corners = points[tetrahedra]
    barycentric = np.linalg.inv(np.concatenate([np.ones_like(corners[..., :1]), corners], axis=2))
    volumes = 1 / (6 * np.abs(np.linalg.det(barycentric)))
    gradients = barycentric[:, 1:]
    stiffness = volumes[:, None, None] * np.einsum("tki,tkj->tij", gradients, gradients)

    one, ones = np.eye(4), np.ones((4, 4))
    # (I + 1 1^T) / 20 has the eigenvalue 1/4 for constants and 1/20 for the rest.
    reference_root = np.sqrt(20) * (one - ones / 4) + 2 * ones / 4
    mass_root = reference_root / np.sqrt(volumes)[:, None, None]
    triple = (1 + one[:, :, None] + one[:, None, :] + one[None, :, :]) / 120
    triple += 2 * np.einsum("ij,jm->ijm", one, one) / 120
    moments = np.einsum("t,ijm,tmk->ktij", volumes, triple, corners)

    local = (tetrahedra[face_tetrahedra][..., None] == faces[:, None, None, :]).argmax(axis=2)
    return BrokenElements(
        face_nodes=(4 * face_tetrahedra[..., None] + local).reshape(-1, 6),
        face_areas=face_areas,
        mass_root=mass_root,
        stiffness=stiffness,
        moments=mass_root @ moments @ mass_root,
        start=np.repeat(np.sqrt(volumes / volumes.sum()) / 2, 4),
    )


def laplace_eigenmodes(elements, permeability, diffusivity, length_scale):
    """Laplace eigenmodes of the permeable elements, down to a length scale.

    Solves (D S + Q(kappa)) p = lambda M p with the flux matrix Q(kappa), the sum over faces f of
    kappa_f times the integral over f of the product of jumps, and keeps
    lambda <= D (pi / length_scale)^2.

    Parameters
    ----------
    elements : BrokenElements
    permeability : tensor (F,)
        um/ms; its dtype is that of the computation.
    diffusivity : float
        um^2/ms.
    length_scale : float
        um.

    Returns
    -------
    eigenvalues : tensor (N,)
        1/ms.
    moments : tensor (3, N, N)
        x, y, z in the modes, um.
    start : tensor (N,)
        The equilibrium magnetisation in the modes, of norm 1.
    """
    as_tensor = partial(torch.as_tensor, dtype=permeability.dtype)
    mass_root, nodes = as_tensor(elements.mass_root), torch.as_tensor(elements.face_nodes)
    n_tetrahedra = len(mass_root)
    jump = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    jump_product = as_tensor(torch.kron(jump, (torch.eye(3) + 1) / 12))
    flux = (permeability * as_tensor(elements.face_areas))[:, None, None] * jump_product
    zeros = permeability.new_zeros(4 * n_tetrahedra, 4 * n_tetrahedra)
    flux = zeros.index_put((nodes[:, :, None], nodes[:, None, :]), flux, accumulate=True)
    flux = flux.view(n_tetrahedra, 4, n_tetrahedra, 4)
    flux = torch.einsum("sab,sbtc,tcd->satd", mass_root, flux, mass_root)
    stiffness = mass_root @ as_tensor(elements.stiffness) @ mass_root
    here = torch.arange(n_tetrahedra)
    blocks = flux.transpose(1, 2)
    blocks = blocks.index_put((here, here), diffusivity * stiffness, accumulate=True)

    eigenvalues, vectors = torch.linalg.eigh(blocks.transpose(1, 2).reshape(zeros.shape))
    n_modes = int((eigenvalues <= diffusivity * (np.pi / length_scale) ** 2).sum())
    eigenvalues, vectors = eigenvalues[:n_modes], vectors[:, :n_modes]
    per_tetrahedron = vectors.view(n_tetrahedra, 4, -1)
    moved = torch.einsum("ktab,tbn->ktan", as_tensor(elements.moments), per_tetrahedron)
    moments = vectors.T @ moved.reshape(3, *vectors.shape)
    return eigenvalues, moments, vectors.T @ as_tensor(elements.start)


def pulsed_gradient_signal(eigenvalues, moments, start, q_vector, small_delta, big_delta):
    """Signal of one measurement in the Laplace eigenmodes, relative to b = 0.

    S = s^T P^H exp(-(Delta - delta) L) P s with P = exp(-delta (L + i q.A / delta)), the
    eigenvalues L, the moments A and the start s; L and A are real and symmetric, so the second
    pulse is P^H.

    Parameters
    ----------
    eigenvalues, moments, start : tensors (N,), (3, N, N), (N,)
    q_vector : ndarray (3,)
        Plateau of q, rad/um.
    small_delta, big_delta : float
        ms.
    """
    phase = torch.einsum("k,kmn->mn", torch.tensor(q_vector, dtype=moments.dtype), moments)
    pulse = torch.matrix_exp(-torch.complex(torch.diag(small_delta * eigenvalues), phase))
    after_pulse = pulse @ start.to(pulse.dtype)
    rest = torch.exp(-(big_delta - small_delta) * eigenvalues)
    return (rest * after_pulse.abs() ** 2).sum()


def elements_of(grid: TetrahedralGrid) -> BrokenElements:
    """Broken elements of a grid that is not periodic."""
    return broken_elements(
        grid.points_um, grid.tetrahedra, grid.faces, grid.face_tetrahedra, grid.face_areas
    )


def dense_signals(acquisition, elements, permeability, length_scale):
    """Signals (M,) of an acquisition, differentiable with respect to the permeability."""
    modes = laplace_eigenmodes(elements, permeability, DIFFUSIVITY, length_scale)
    return torch.stack([pulsed_gradient_signal(*modes, *row) for row in encodings(acquisition)])


def encodings(acquisition):
    """(q vector, delta, Delta) of each measurement."""
    q, small, big = acquisition.q_vectors, acquisition.small_delta, acquisition.big_delta
    return list(zip(q, small, big, strict=True))


def cut_open(grid: TetrahedralGrid) -> TetrahedralGrid:
    """The tetrahedra of a periodic grid, whose periodic faces become reflecting outer faces.

    A phase that grows linearly with x is not periodic: the matrix formalism has no periodic box.
    """
    corners = grid.tetrahedron_points.reshape(-1, 3).round(9)
    points, tetrahedra = np.unique(corners, axis=0, return_inverse=True)
    return TetrahedralGrid.from_tetrahedra(points, tetrahedra.reshape(-1, 4), "reflecting")


def three_timings(n_measurements: int, largest_b: float = 5.0) -> Acquisition:
    """One b = 0 and uniformly distributed directions with b up to the largest, for each timing."""
    n = n_measurements // len(TIMINGS)
    k = np.arange(n)
    z, azimuth = 1 - (2 * k + 1) / n, np.pi * (1 + np.sqrt(5)) * k
    radius = np.sqrt(1 - z**2)
    directions = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=1)
    b = largest_b * k / (n - 1)
    small_delta, big_delta = np.repeat(TIMINGS, n, axis=0).T
    return Acquisition(
        b=np.tile(b, len(TIMINGS)),
        directions=np.tile(np.where(b[:, None] > 0.05, directions, 0), (len(TIMINGS), 1)),
        small_delta=small_delta,
        big_delta=big_delta,
        te=small_delta + big_delta,
    )


def random_permeability(n_faces: int) -> np.ndarray:
    """Log-uniform permeabilities between walls and open faces, um/ms."""
    low, high = np.log(PERMEABILITY_RANGE)
    return np.exp(np.random.default_rng(0).uniform(low, high, n_faces))


# --- validate ----------------------------------------------------------------------------------


def cube_grid(n: int, edge_um: float) -> TetrahedralGrid:
    """A cube cut into n^3 small cubes of 6 tetrahedra: a flat-sided box, unlike a lattice's."""
    axis = np.linspace(-edge_um / 2, edge_um / 2, n + 1)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    corner = np.indices((n, n, n)).reshape(3, -1).T
    tetrahedra = []
    for order in permutations(np.eye(3, dtype=int)):
        path = corner[:, None] + np.cumsum([np.zeros(3, dtype=int), *order], axis=0)
        tetrahedra.append(path @ [(n + 1) ** 2, n + 1, 1])
    return TetrahedralGrid.from_tetrahedra(points, np.concatenate(tetrahedra), "reflecting")


def box_signals(acquisition, edge_um, n_modes=60):
    """Free diffusion between two reflecting planes across x, in its cosine modes."""
    k = np.arange(n_modes)
    eigenvalues = DIFFUSIVITY * (np.pi * k / edge_um) ** 2
    x = edge_um * (np.polynomial.legendre.leggauss(400)[0] + 1) / 2
    weights = np.polynomial.legendre.leggauss(400)[1] / 2
    modes = np.where(k == 0, 1, np.sqrt(2)) * np.cos(np.pi * np.outer(x / edge_um, k))
    moments = torch.zeros(3, n_modes, n_modes, dtype=torch.float64)
    moments[0] = torch.as_tensor((modes * (weights * x)[:, None]).T @ modes)
    start = torch.eye(n_modes, dtype=torch.float64)[0]
    modes = torch.as_tensor(eigenvalues), moments, start
    return np.array([float(pulsed_gradient_signal(*modes, *r)) for r in encodings(acquisition)])


def validate():
    """Print results of the dense method where the exact solution is known."""
    b = np.tile([0.0, 1.0, 3.0], len(TIMINGS))
    small_delta, big_delta = np.repeat(TIMINGS, 3, axis=0).T
    along_x = np.where(b[:, None] > 0, [1.0, 0.0, 0.0], 0.0)
    acquisition = Acquisition(b, along_x, small_delta, big_delta)
    torch.set_num_threads(1)
    print("The dense matrix formalism against exact solutions; b = 0, 1, 3 ms/um^2 along x,")
    print(f"delta, Delta = {', '.join(f'{d:g}, {D:g}' for d, D in TIMINGS)} ms; errors of S / S0:")

    edge = 8.0
    exact = box_signals(acquisition, edge)
    for n in (2, 4):
        grid = cube_grid(n, edge)
        permeability = torch.full((grid.n_faces,), 1e4, dtype=torch.float64)
        signals = dense_signals(acquisition, elements_of(grid), permeability, FINE_LENGTH_UM)
        error = np.abs(signals.numpy() - exact)
        print(
            f"  box of {edge:g} um, kappa 1e4, {grid.n_tetrahedra} tetrahedra with edges of "
            f"{edge / n:g} um: b = 0 {error[b == 0].max():.0e}, b > 0 {error.max():.4f}"
        )

    grid = bcc_grid(3, 2.5, "reflecting")
    acquisition = three_timings(15, largest_b=2.0)
    elements = elements_of(grid)
    for name, permeability in (
        ("kappa 0.05 um/ms", np.full(grid.n_faces, 0.05)),
        ("kappa 0.5 um/ms", np.full(grid.n_faces, 0.5)),
        ("random kappa", random_permeability(grid.n_faces)),
    ):
        finite_volumes = simulate(acquisition, grid, permeability, diffusivity=DIFFUSIVITY)
        dense = dense_signals(acquisition, elements, torch.tensor(permeability), FINE_LENGTH_UM)
        difference = np.abs(dense.numpy() - finite_volumes)
        print(
            f"  {grid.n_tetrahedra} tetrahedra, {name}, b <= 2: from the finite volumes "
            f"{difference.mean():.4f} on average, {difference.max():.4f} at most"
        )
    check_gradient(grid, elements, acquisition.subset([2, 7, 13]))


def check_gradient(grid, elements, acquisition):
    """Autograd of a sum of signals against central differences, on a few faces."""
    log_kappa = torch.tensor(np.log(random_permeability(grid.n_faces)), requires_grad=True)

    def total(x):
        return dense_signals(acquisition, elements, x.exp(), FINE_LENGTH_UM).sum()

    (gradient,) = torch.autograd.grad(total(log_kappa), log_kappa)
    faces = gradient.abs().argsort(descending=True)[:3]
    with torch.no_grad():
        steps = 1e-3 * torch.eye(grid.n_faces, dtype=torch.float64)[faces]
        differences = [(total(log_kappa + s) - total(log_kappa - s)) / 2e-3 for s in steps]
    error = (gradient[faces] / torch.stack(differences) - 1).abs().max()
    print(f"  autograd against central differences (float64, 3 largest faces): {error:.0e}")


# --- compare -----------------------------------------------------------------------------------


def cpu_seconds(function, *args):
    """Result of a call and the CPU time of all its threads."""
    start = time.process_time()
    result = function(*args)
    return result, time.process_time() - start


def peak_gib():
    """Peak resident memory of this process, GiB."""
    # Not resource.getrusage: its maximum survives exec, so that a child inherits its parent's.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 2**20


def measure_dense(length_scale, dtype):
    """CPU seconds of one measurement per timing, forward and backward, scaled to all of them.

    The eigendecomposition (forward and backward) counts once; the matrix exponentials are scaled
    by the number of measurements per timing. The backward pass is that of one misfit.
    """
    torch.set_num_threads(1)
    elements = elements_of(cut_open(bcc_grid(4, 5.0)))
    log_kappa = np.log(random_permeability(len(elements.face_areas)))
    log_kappa = torch.tensor(log_kappa, dtype=dtype, requires_grad=True)
    modes, forward = cpu_seconds(
        lambda: laplace_eigenmodes(elements, log_kappa.exp(), DIFFUSIVITY, length_scale)
    )
    eigen = {"forward": forward}
    # The graph is cut at the modes to time its two halves; the sum is that of the whole graph.
    leaves = [mode.detach().requires_grad_() for mode in modes]
    scale = N_MEASUREMENTS / len(TIMINGS)
    total = dict.fromkeys(("forward", "backward"), 0.0)
    signals = []
    rows = encodings(three_timings(3 * len(TIMINGS)))[1::3]
    for row in rows:
        signal, seconds = cpu_seconds(pulsed_gradient_signal, *leaves, *row)
        total["forward"] += scale * seconds
        total["backward"] += scale * cpu_seconds(signal.backward)[1]
        signals.append(signal.item())
    gradients = [leaf.grad for leaf in leaves]
    _, eigen["backward"] = cpu_seconds(torch.autograd.backward, modes, gradients)
    memory = peak_gib()

    # One measurement in the graph keeps the matrix and its exponential until the backward pass.
    kept = 2 * len(modes[0]) ** 2 * torch.finfo(dtype).bits / 4 / 2**30
    with torch.no_grad():
        fine = laplace_eigenmodes(elements, log_kappa.double().exp(), DIFFUSIVITY, FINE_LENGTH_UM)
        reference = np.array([float(pulsed_gradient_signal(*fine, *row)) for row in rows])
    return {
        "nodes": len(elements.start),
        "modes": len(modes[0]),
        "cut_error": np.abs(signals - reference).max(),
        "eigen": eigen,
        "matrix_exp": total,
        "cpu": sum(eigen.values()) + sum(total.values()),
        "gib": memory,
        "graph_gib": kept * N_MEASUREMENTS,
    }


def measure_package():
    """CPU seconds of signal and full Jacobian in the package, after a warm-up, and peak memory."""
    grid, acquisition = bcc_grid(4, 5.0), three_timings(N_MEASUREMENTS)
    permeability = random_permeability(grid.n_faces)
    before = peak_gib()

    def run():
        return simulate_with_jacobian(acquisition, grid, permeability, diffusivity=DIFFUSIVITY)

    run()
    wall = time.perf_counter()
    seconds = [cpu_seconds(run)[1] for _ in range(REPEATS)]
    return {
        "cpu": seconds,
        "wall": (time.perf_counter() - wall) / REPEATS,
        "gib": peak_gib(),
        "imports_gib": before,
    }


def alone(function, *args):
    """Result of a call in a separate process, whose peak memory is that of the call."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def compare(settings=DENSE_SETTINGS):
    """Print CPU time and memory of both ways, 768 tetrahedra and 300 measurements."""
    print(f"\n768 tetrahedra, {N_MEASUREMENTS} measurements in 3 timings, signals and derivatives")
    package = alone(measure_package)
    print(
        f"  package: all signals and the Jacobian (300 x 1536), periodic, float64: median "
        f"{np.median(package['cpu']):.3f} CPU-s (min {min(package['cpu']):.3f}, max "
        f"{max(package['cpu']):.3f}, {REPEATS} runs), {package['wall']:.3f} s; peak memory "
        f"{package['gib']:.2f} GiB, of which imports {package['imports_gib']:.2f}"
    )
    print(
        "  dense way: the same tetrahedra, periodic faces cut and reflecting; measured with one\n"
        "  measurement per timing (b 2.5 ms/um^2), exponentials x 100, eigendecomposition once;\n"
        "  one thread. Its backward pass is the gradient of ONE misfit, not the Jacobian.\n"
        "  length   preci-                S error  eigen CPU-s     matrix_exp CPU-s    total"
        "   ratio median (min-max)   peak GiB\n"
        "  scale um sion    nodes  modes  by cut   forw.  backw.   forw.    backw.     CPU-s"
        "   dense / package          (all 300 in one graph)"
    )
    for length_scale, dtype in settings:
        dense = alone(measure_dense, length_scale, dtype)
        ratios = dense["cpu"] / np.array(package["cpu"])
        eigen, matrix_exp = dense["eigen"], dense["matrix_exp"]
        print(
            f"  {length_scale:<8g} {str(dtype)[6:]} {dense['nodes']}  {dense['modes']:5d}  "
            f"{dense['cut_error']:.0e}  {eigen['forward']:6.1f} {eigen['backward']:6.1f}  "
            f"{matrix_exp['forward']:8.1f} {matrix_exp['backward']:9.1f}  {dense['cpu']:8.0f}  "
            f"{np.median(ratios):8.0f} ({ratios.min():.0f}-{ratios.max():.0f})"
            f"          {dense['gib']:.2f} (+{dense['graph_gib']:.1f})"
        )


def main():
    parts = {"validate": validate, "compare": compare}
    parser = command(__doc__, "the coarsest cut of the modes, compared")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all by default")
    arguments = parser.parse_args()
    if arguments.quick:
        return compare(DENSE_SETTINGS[:1])
    chosen = arguments.parts or list(parts)
    if unknown := set(chosen) - set(parts):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; use {', '.join(parts)}")
    for name in chosen:
        parts[name]()


if __name__ == "__main__":
    main()
