"""What the tetrahedra are made of: diffusivity, spin density, relaxation, outer boundary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipy_spinverse.grid import TetrahedralGrid


@dataclass(frozen=True, eq=False)
class Medium:
    """Properties of the tetrahedra of a grid, see :func:`medium_of`.

    Attributes
    ----------
    diffusivity, density : ndarray (T,)
        um^2/ms; spin density, relative.
    loss : ndarray (2, T)
        Rates, 1/ms, at which transverse and stored magnetisation is lost, where they differ
        between tetrahedra: to the outside, and by relaxation.
    relaxation : ndarray (2,)
        Rates 1/T2 and 1/T1 that are the same everywhere, 1/ms, not in `loss`.
    """

    diffusivity: np.ndarray
    density: np.ndarray
    loss: np.ndarray
    relaxation: np.ndarray


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
    per_tetrahedron = {}
    for name, value, unit in (
        ("diffusivity", diffusivity, "in um^2/ms"), ("initial_density", initial_density, ""),
    ):  # fmt: skip
        value = _positive(name, value, (grid.n_tetrahedra,), unit, "tetrahedra")
        if not np.isfinite(value).all():
            raise ValueError(f"{name} is infinite; give finite numbers {unit}.".replace(" .", "."))
        per_tetrahedron[name] = np.broadcast_to(value, grid.n_tetrahedra)
    loss = np.tile(_outer_loss(grid, per_tetrahedron["diffusivity"], outer_permeability), (2, 1))
    relaxation = np.zeros(2)
    for k, (name, value) in enumerate((("t2_ms", t2_ms), ("t1_ms", t1_ms))):
        value = np.inf if value is None else value
        rate = 1 / _positive(name, value, (grid.n_tetrahedra,), "in ms", "tetrahedra")
        if rate.ndim:
            loss[k] += rate
        else:
            relaxation[k] = rate
    return Medium(per_tetrahedron["diffusivity"], per_tetrahedron["initial_density"], loss,
                  relaxation)  # fmt: skip


def _outer_loss(grid, diffusivity, outer_permeability):
    """Rate (T,), 1/ms, at which each tetrahedron loses spins to the outside of the grid."""
    loss = np.zeros(grid.n_tetrahedra)
    if outer_permeability is None:
        outer_permeability = np.inf if grid.boundary == "absorbing" else 0.0
    elif grid.boundary != "absorbing":
        raise ValueError(
            f"outer_permeability is given, but spins cannot leave a {grid.boundary} grid; use a "
            "grid with boundary='absorbing', or leave it out."
        )
    kappa = _positive(
        "outer_permeability", outer_permeability, (len(grid.outer_faces),), "in um/ms",
        "outer faces", or_zero=True,
    )  # fmt: skip
    outside = grid.outer_tetrahedra
    with np.errstate(divide="ignore"):
        resistance = grid.outer_distances / diffusivity[outside] + 1 / kappa
    np.add.at(loss, outside, grid.outer_areas / resistance / grid.volumes[outside])
    return loss


def _positive(name, value, shape, unit, things, or_zero=False):
    """`value` as an array of no or one dimension, after checks."""
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {value!r}; give numbers {unit}".strip() + ".") from error
    if array.shape not in ((), shape) or not (array >= 0).all() or not (or_zero or array.all()):
        raise ValueError(
            f"{name} has shape {array.shape}, least value {array.min(initial=np.inf):g}; give one "
            f"{'number of at least 0' if or_zero else 'positive number'} {unit}, or one for each "
            f"of the {shape[0]} {things}.".replace("  ", " ").replace(" ,", ",")
        )
    return array
