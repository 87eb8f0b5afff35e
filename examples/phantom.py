"""A phantom with the anatomy of a brain's slice, and its scan, by simulations of packed cells.

Bundles of thin and of thick axons, a crossing, grey matter, cerebrospinal fluid and a lesion whose
axons leak. Cylinders are simulated by finite elements on grids that follow their membranes,
spheres by finite volumes; the fit uses nothing of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from dipy.core.sphere import HemiSphere, disperse_charges
from scipy.interpolate import CubicSpline

from dipy_spinverse import Acquisition, bcc_grid, simulate
from dipy_spinverse.bloch_torrey.finite_elements.operator import simulate_finite_elements
from dipy_spinverse.grid.packed_cylinders import packed_cylinders_grid
from dipy_spinverse.grid.regions import membranes_between
from dipy_spinverse.substrates.membranes import spheres

SHAPE = (29, 35, 2)
DIFFUSIVITY, FREE_DIFFUSIVITY = 2.0, 3.0  # um^2/ms
SIGMA = 20.0
# Gradients of at most 285 mT/m; delta, shortest and longest Delta as of the Connectome scanner in
# Tian et al., Sci. Data 9 (2022) 7, https://doi.org/10.1038/s41597-021-01092-6.
SMALL_DELTA_MS, BIG_DELTAS_MS, TE_MS = 8.0, (19.0, 32.0, 49.0), 77.0
SHELLS = (1.0, 2.5, 6.0)  # ms/um^2
N_DIRECTIONS, N_B0 = 16, 2
# b (ms/um^2) of the simulated signals, between which those of all directions are interpolated.
SIMULATED_B = np.array([0.0, 0.3, 0.7, 1.2, 2.0, 3.0, 4.5, 6.0])
N_CYLINDERS = 4  # of a periodic packing


@dataclass(frozen=True)
class Tissue:
    """Equal cells; lengths in um, permeability in um/ms."""

    name: str
    shape: str = ""
    radius: float = 1.0
    restricted_fraction: float = 0.0
    wall_permeability: float = np.nan
    S0: float = 800.0

    @property
    def surface_to_volume(self):
        return (3 if self.shape == "spheres" else 2) * self.restricted_fraction / self.radius

    @property
    def pore_diameter(self):
        """Mean chord length."""
        return {"spheres": 4 / 3, "cylinders": 2, "": np.nan}[self.shape] * self.radius


CSF, GREY, THIN, THICK, ALONG_Y, CROSSING, LESION = range(1, 8)
THIN_AXONS = ("cylinders", 2.0, 0.6, 0.0)
TISSUES = {
    CSF: Tissue("cerebrospinal fluid", S0=1600),
    GREY: Tissue("grey matter", "spheres", 6.0, 0.4, 0.01, S0=1000),
    THIN: Tissue("thin axons", *THIN_AXONS),
    ALONG_Y: Tissue("thin axons along y", *THIN_AXONS),
    CROSSING: Tissue("crossing of the two", *THIN_AXONS),
    THICK: Tissue("thick axons", "cylinders", 4.5, 0.6, 0.0),
    LESION: Tissue("lesion", "cylinders", 2.0, 0.45, 0.05, S0=1000),
}


def anatomy():
    """Tissue of each voxel, 0 outside, and the axes (..., 2, 3) of its two bundles of axons."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    side, ahead, radius = np.abs(x), np.abs(y), np.hypot(x, y)
    white = radius < 0.78 + 0.055 * np.cos(11 * np.arctan2(y, side))
    labels = np.where(radius < 1, GREY, 0)
    labels[white] = THIN
    labels[white & (side > 0.56)] = ALONG_Y
    labels[white & (side > 0.3) & (side <= 0.56) & (ahead > 0.36)] = CROSSING
    labels[white & (np.hypot((side - 0.42) / 0.13, y / 0.42) < 1)] = THICK
    labels[white & (np.hypot((side - 0.22) / 0.09, y / 0.22) < 1)] = GREY
    ventricle = np.abs(side - 0.04 - 0.8 * (ahead - 0.08) ** 2) < 0.085 + 0.01 * z
    labels[white & ventricle & (ahead < 0.5)] = CSF
    labels[(radius < 1) & (side < 0.04) & (ahead > 0.66)] = CSF
    labels[white & (labels > GREY) & (np.hypot(x - 0.36, y + 0.52) < 0.18 - 0.02 * z)] = LESION
    across = np.stack([np.ones(SHAPE), 2.2 * x * np.sign(y), 0.0 * x], axis=-1)
    along = np.broadcast_to([0.0, 1.0, 0.0], across.shape)
    axes = np.stack([across, across], axis=-2)
    axes[labels == ALONG_Y] = axes[labels == CROSSING, 1] = along[0, 0, 0]
    axes[labels == THICK] = (0, 0, 1)
    return labels, axes / np.linalg.norm(axes, axis=-1, keepdims=True)


def acquisition(n_directions=N_DIRECTIONS, big_deltas=BIG_DELTAS_MS):
    """Two b0 and three shells at each diffusion time; one echo time."""
    rng = np.random.default_rng(1)
    start = HemiSphere(
        theta=np.arccos(rng.uniform(0, 1, n_directions)),
        phi=2 * np.pi * rng.uniform(0, 1, n_directions),
    )
    vertices = disperse_charges(start, 2000)[0].vertices
    directions = np.vstack([np.zeros((N_B0, 3)), *[vertices] * len(SHELLS)])
    b = np.repeat((0.0, *SHELLS), (N_B0, *[n_directions] * len(SHELLS)))
    timings = len(big_deltas)
    return Acquisition(
        b=np.tile(b, timings),
        directions=np.tile(directions, (timings, 1)),
        small_delta=SMALL_DELTA_MS,
        big_delta=np.repeat(big_deltas, b.size),
        te=TE_MS,
    )


@cache
def cell_signals(shape, radius, fraction, permeability, big_deltas):
    """Log signals of cells by b, perpendicular to their axis, as a spline for each Delta."""
    angles = np.pi * (np.arange(6) + 0.5) / 6
    directions = np.stack([np.cos(angles), np.sin(angles), np.zeros(6)], axis=1)
    if shape == "spheres":  # the lattice is cubic
        directions = np.array(
            [[1, 0, 0], [1, 1, 0], [1, -1, 0], [1, 1, 1], [1, -1, 1], [1, 1, -1]]
        )
        directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    b, delta, k = np.meshgrid(SIMULATED_B[1:], big_deltas, np.arange(6), indexing="ij")
    probes = Acquisition(
        b=b.ravel(),
        directions=directions[k.ravel()],
        small_delta=SMALL_DELTA_MS,
        big_delta=delta.ravel(),
        te=TE_MS,
    )
    if shape == "spheres":
        side = 2 * radius * (np.pi / 3 / fraction) ** (1 / 3)
        grid = bcc_grid(cells=16, cell_size_um=side / 16)
        walls = spheres(grid, [[0, 0, 0], [side / 2] * 3], radius, permeability)
        signals = simulate(probes, grid, walls, diffusivity=DIFFUSIVITY, dtype="float32")
    else:
        side, centres = random_packing(radius, fraction)
        grid, region = packed_cylinders_grid(side, centres, radius, radius / 3)
        walls = membranes_between(grid, region, permeability)
        signals = simulate_finite_elements(probes, grid, walls, diffusivity=DIFFUSIVITY)
    mean = signals.reshape(*b.shape).mean(axis=2)  # over packings of all orientations
    logs = np.log(np.vstack([np.ones(len(big_deltas)), mean]))
    return {delta: CubicSpline(SIMULATED_B, logs[:, k]) for k, delta in enumerate(big_deltas)}


def random_packing(radius, fraction):
    """Side of a periodic square, and centres of cylinders in it that do not overlap."""
    rng = np.random.default_rng(0)
    side = radius * np.sqrt(N_CYLINDERS * np.pi / fraction)
    while True:
        centres = rng.uniform(-side / 2, side / 2, (N_CYLINDERS, 2))
        apart = centres[:, None] - centres
        apart = np.linalg.norm(apart - side * np.round(apart / side), axis=-1)
        if apart[np.triu_indices(N_CYLINDERS, 1)].min() > 2.1 * radius:
            return side, centres


def simulated_signals(tissue, measured, axes):
    """Signals (V, M) of voxels with a tissue, whose cylinders are half along each axis (V, 2, 3).

    Diffusion along cylinders is free and independent of that across them.
    """
    if not tissue.shape:
        return np.tile(np.exp(-measured.b * FREE_DIFFUSIVITY), (len(axes), 1))
    logs = cell_signals(
        tissue.shape, tissue.radius, tissue.restricted_fraction, tissue.wall_permeability,
        tuple(np.unique(measured.big_delta)),
    )  # fmt: skip
    square = (axes @ measured.directions.T) ** 2
    if tissue.shape == "spheres":
        square = np.zeros_like(square)
    signals = np.empty_like(square)
    for delta, spline in logs.items():
        rows = measured.big_delta == delta
        along = measured.b[rows] * square[..., rows]
        signals[..., rows] = np.exp(spline(measured.b[rows] - along) - DIFFUSIVITY * along)
    return signals.mean(axis=1)


def with_noise(signals):
    """Magnitudes with Rician noise."""
    noise = np.random.default_rng(2).normal(scale=SIGMA, size=(2, *signals.shape))
    return np.hypot(signals + noise[0], noise[1]).astype(np.float32)


def simulate_scan(measured, labels, axes):
    """Noisy magnitudes of all voxels."""
    data = np.zeros((*labels.shape, len(measured)))
    for label in np.unique(labels[labels > 0]):
        tissue, voxels = TISSUES[label], labels == label
        data[voxels] = tissue.S0 * simulated_signals(tissue, measured, axes[voxels])
    return with_noise(data)
