"""Properties of the tetrahedra: diffusivity, spin density, relaxation, outer boundary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipy_spinverse.grid import TetrahedralGrid

_TINY = np.finfo(float).tiny


@dataclass(frozen=True, eq=False)
class Medium:
    """Properties of the tetrahedra of a grid, see :func:`medium_of`."""

    diffusivity: np.ndarray  # (T,), um^2/ms
    density: np.ndarray  # (T,), spin density, relative
    loss_rate: np.ndarray  # (2, T), 1/ms, of transverse and stored magnetisation
    outer_conductance: np.ndarray  # (B,), um^3/ms, of outer faces that spins leave through
    relaxation: np.ndarray  # (2,), 1/T2 and 1/T1 where the same everywhere, 1/ms; not in loss_rate
    retained_fraction: float  # of spins not lost at once next to the sides of an absorbing lattice

    def equilibrium(self, grid: TetrahedralGrid) -> np.ndarray:
        """Symmetrised magnetisation (T,); the sum of squares is `retained_fraction`."""
        weights = self.density * grid.volumes
        return np.sqrt(self.retained_fraction * weights / weights.sum())


def medium_of(
    grid: TetrahedralGrid,
    diffusivity=2.0,
    *,
    initial_density=1.0,
    t2_ms=None,
    t1_ms=None,
    outer_permeability=None,
) -> Medium:
    """Medium of a grid, after checks; parameters as in :func:`dipy_spinverse.simulate`."""
    shape = (grid.n_tetrahedra,)
    diffusivity = positive_per_tetrahedron("diffusivity", diffusivity, grid, "um^2/ms")
    density = positive_per_tetrahedron("initial_density", initial_density, grid, "1")
    outer = _outer_conductance(grid, diffusivity, outer_permeability)
    lost = np.bincount(grid.outer_tetrahedra, outer, len(density)) / grid.volumes
    loss, relaxation = np.tile(lost, (2, 1)), [0, 0]
    for k, (name, value) in enumerate((("t2_ms", t2_ms), ("t1_ms", t1_ms))):
        rate = 1 / _checked(name, np.inf if value is None else value, shape, "ms", low=_TINY)
        if rate.ndim:
            loss[k] += rate
        else:
            relaxation[k] = rate
    # A membrane specified for the outside lies on the outer faces, with nothing beyond it.
    retained = grid.volume_um3 / grid.box_volume_um3 if outer_permeability is None else 1.0
    return Medium(diffusivity, density, loss, outer, np.array(relaxation, dtype=float), retained)


def positive_per_tetrahedron(name: str, value, grid: TetrahedralGrid, unit: str) -> np.ndarray:
    """Finite values (T,) above 0, of one number or one for each tetrahedron."""
    shape = (grid.n_tetrahedra,)
    checked = _checked(name, value, shape, unit, low=_TINY, high=np.finfo(float).max)
    return np.broadcast_to(checked, shape)


def _outer_conductance(grid, diffusivity, outer_permeability):
    """Conductance (B,), um^3/ms, of the outer faces, through which spins leave the grid."""
    distance = grid.outer_distances
    if outer_permeability is None:
        outer_permeability = np.inf if grid.boundary == "absorbing" else 0.0
        distance = grid.absorption_distances_um
    elif grid.boundary != "absorbing":
        raise ValueError(
            f"outer_permeability is set, but spins cannot leave a {grid.boundary} grid; use a "
            "grid with boundary='absorbing', or leave it out."
        )
    shape = (len(grid.outer_faces),)
    kappa = _checked("outer_permeability", outer_permeability, shape, "um/ms", low=0.0)
    with np.errstate(divide="ignore"):
        resistance = distance / diffusivity[grid.outer_tetrahedra] + 1 / kappa
    return grid.outer_areas / resistance


def _checked(name, value, shape, unit, low, high=np.inf):
    """`value` as a number or an array of a shape, within bounds."""
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {value!r}; give numbers (unit: {unit}).") from error
    if array.shape not in ((), shape) or not ((array >= low) & (array <= high)).all():
        extent = f"{array.min():g} to {array.max():g}" if array.size else "none"
        raise ValueError(
            f"{name} has shape {array.shape} and values {extent}; give one "
            f"{'number of at least 0' if low == 0 else 'positive number'} (unit: {unit}), or "
            f"one for each, shape {shape}."
        )
    return array
