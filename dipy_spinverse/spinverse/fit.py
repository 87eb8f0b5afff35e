"""SpinverseFit: the walls found in voxels, what follows from them, and how sure it is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.cell_search.smooth import (
    CELL_ARRAYS,
    level_set_prior,
    smooth_mesh,
    stored_cells,
)
from dipy_spinverse.inversion.unknowns import WALL_THRESHOLD, scaled_transmissibility, wall_faces
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.status import FITTED, Status
from dipy_spinverse.walls.interface import InterfaceMesh, interface_mesh

if TYPE_CHECKING:
    from dipy_spinverse.packed_cells import PackedCellsFit

# Mean F1 between the walls of fields below which their pattern does not count as determined.
AGREEMENT_THRESHOLD = 0.8
# In front of the names of what is kept of the packed cells.
CELLS_PREFIX = "_tissue/"
# What a voxel without a fit is, and what to do about it.
_NOT_FITTED = {
    Status.NOT_FITTED: "outside of the mask; fit with a mask and walls= that have it",
    Status.BAD_SAMPLES: "with NaN or infinite measurements; correct the data or leave these out",
    Status.NO_SIGNAL: "without any signal; choose one within the tissue",
    Status.NO_B0: "without a positive signal at b = 0; choose another, or give S0",
}
# Of faces without walls, relative to those without any membrane: a few percent of diffusivity.
_LEAST_OPEN = 0.97
# Walls that are not to be taken for those of the tissue.
_DOUBTFUL = {
    Status.MISFIT: "its walls do not explain its signals (see residual_rms); a diffusivity a few "
    "percent too low, an S0 that is off and bodies off the grid do this, too",
    Status.NOT_CONVERGED: "the search for its walls ended above the noise, as for bodies off the "
    "grid; see history",
}


class SpinverseFit(VoxelFit):
    """Tissue and walls of voxels, from :meth:`SpinverseModel.fit` or :func:`load_fit`.

    Each map named in `MAPS` comes with its standard deviation and 95 % interval, as in every
    :class:`VoxelFit`. Maps and predicted signals are those of packed cylinders and spheres, see
    :class:`dipy_spinverse.PackedCellsModel`, whose other maps are in `tissue`. In voxels with
    walls whose signals these do not explain, they are read off the ensemble of wall fields, and
    intervals contain the scatter between these; of walls alone also the errors `WALL_ERRORS`
    that all fields share.

    Attributes
    ----------
    surface_to_volume : ndarray (...)
        Area of the membranes over volume, 1/um.
    wall_permeability : ndarray (...)
        Mean permeability of the membranes, um/ms.
    exchange_time : ndarray (...)
        Mean time in which restricted spins cross a wall, ms.
    restricted_fraction : ndarray (...)
        Fraction of spins that do not get far in at least one direction.
    pore_diameter : ndarray (...)
        Mean chord length of the restricted space, um.
    wall_anisotropy : ndarray (...)
        How well the walls determine their axis, 0 to 1.
    free_water_fraction : ndarray (...)
    wall_orientation : ndarray (..., 3)
        Unit vector along which walls are crossed least, and
    wall_orientation_angle : ndarray (...)
        the angle to it that 95 % of the draws or fields keep within, degrees.
    packed_cells : ndarray (...) of bool
        Whether the maps are those of packed cells.
    has_walls : ndarray (...) of bool
        Whether there are wall fields. What follows is of these voxels, and only there if fields
        were asked for at all.
    permeability : ndarray (..., F)
        Of each face, um/ms; infinite where there is no membrane at all. One wall field of many.
    packing_permeability : ndarray (..., F)
        The packing that it started from; of walls alone the same.
    field_free_water : ndarray (...)
        Fraction of free water beside this field.
    permeability_fields : ndarray (..., n, F)
        Other fields, each from a draw of its own. Of walls alone, from a start and noise of its
        own, moved to where it agrees most with `permeability` (by shifts and reflections that
        leave the signals unchanged).
    field_scale : ndarray (..., n + 1)
        Length of each field's lattice over that of the model's grid, `permeability` first; and
    field_frame : ndarray (..., n + 1, 3, 3)
        its axes, in rows, in the frame of the gradients, and
    field_diffusivity : ndarray (..., n + 1)
        the diffusivity of its water, um^2/ms.
    field_share : ndarray (..., n + 1)
        Fraction of the water that is in tissue as the field is.
    wall_probability : ndarray (..., F)
        Probability that a face is a wall, over all these fields. The signals do not tell where
        in the lattice a packing is: over all places of it. Of smooth cells, that a wall is within
        4 % of the box's side of the face's centre.
    pattern_agreement : ndarray (...)
        Mean F1 between the walls of these fields, 0 to 1; of packings at independent places.
    wall_status : ndarray (...)
        :class:`Status` of the walls themselves, whatever the maps rest on.
    """

    MAPS = (
        "surface_to_volume",
        "wall_permeability",
        "exchange_time",
        "restricted_fraction",
        "pore_diameter",
        "wall_anisotropy",
        "free_water_fraction",
    )
    # Relative standard deviations of truth from estimate that hold 95 % of 20 tissues of Monte
    # Carlo, for fields from random starts on the default grid.
    WALL_ERRORS: ClassVar[dict[str, float]] = {
        "surface_to_volume": 1.8,
        "restricted_fraction": 0.5,
        "wall_permeability": 0.7,
        "exchange_time": 4.0,
        "pore_diameter": 0.4,
    }

    WALLS = (
        "permeability",
        "permeability_fields",
        "wall_probability",
        "pattern_agreement",
        "wall_status",
        "field_free_water",
        "packing_permeability",
        "field_scale",
        "field_frame",
        "field_diffusivity",
        "field_share",
        "history_iterations",
        "history_misfit",
        *CELL_ARRAYS,
    )

    def __getattr__(self, name: str):
        if name not in self.WALLS:
            return super().__getattr__(name)
        values = self.__dict__.get("_values", {})
        if name not in values:
            raise AttributeError(
                f"{name} is of wall fields, which were not asked for; fit with walls=True, or "
                "with walls= a mask of the voxels that are to have them."
            )
        return self._dense(values[name], self._rows[values["has_walls"]])

    def _n_rows(self, name):
        has_walls = self._values["has_walls"]
        return np.count_nonzero(has_walls) if name in self.WALLS else super()._n_rows(name)

    def _of_voxels(self, chosen):
        has_walls = self._values["has_walls"]
        place = np.cumsum(has_walls) - 1
        walls = place[chosen][has_walls[chosen]]
        return {
            name: value[walls if name in self.WALLS else chosen]
            for name, value in self._values.items()
        }

    @property
    def tissue(self) -> PackedCellsFit:
        """The packed cells of all voxels, also of those that they do not explain.

        Raises
        ------
        ValueError
            A fit of walls alone.
        """
        values = packed_cells_values(self._values)
        if not values:
            raise ValueError(
                "tissue is that of packed cells, which were not fitted beside these walls; see "
                "n_draws and walls of SpinverseModel.fit, or use PackedCellsModel."
            )
        status = self._dense(self._values["_tissue_status"])
        return self.model.tissue_model.Fit(self.model.tissue_model, status, values)

    @property
    def history(self) -> dict[str, np.ndarray]:
        """What each stage of the inversion did: "iterations" and "misfit", (..., S) each.

        The stages are those of the curriculum, then the last one again at the true noise (0
        iterations where the search had no more); the cell search counts as one, whose iterations
        are simulations. The misfit is the mean squared residual over the noise that the stage
        went by.
        """
        return {name: getattr(self, f"history_{name}") for name in ("iterations", "misfit")}

    def interface(
        self,
        index: tuple[int, ...] = (),
        threshold: float = 0.5,
        closed_only: bool = False,
        field: int | None = None,
    ) -> InterfaceMesh:
        """Mesh of the walls of one voxel, with the confidence of each triangle.

        Of smooth cells (`optimizer="smooth-cells"`) it is a smooth closed surface, all of it; the
        wall probability of a triangle is that of a wall within 4 % of the box's side.

        Parameters
        ----------
        index : int or tuple of int, optional
            The voxel; not needed in the fit of a single one.
        threshold : float, optional
            Least wall probability of a triangle.
        closed_only : bool, optional
            Leave out walls that are not part of a closed surface.
        field : int, optional
            Draw all walls of one field instead, however sure they are: 0 for `permeability`,
            k for the k-th of `permeability_fields`. Where the pattern is not determined this is
            one of many that explain the signals.

        Raises
        ------
        ValueError
            An index of several voxels, a voxel that was not fitted or has no walls, a field that
            there is not.

        Warns
        -----
        UserWarning
            Walls that do not explain the signals, or whose search did not converge
            (`wall_status`).
        """
        voxel = self[index]
        _check_drawable(voxel, index, self.shape)
        grid, permeability, walls = self.model.grid, voxel.permeability, None
        fields = np.vstack([permeability, voxel.permeability_fields])
        if field is not None and field not in range(len(fields)):
            raise ValueError(f"field is {field!r}; the fit has fields 0 to {len(fields) - 1}.")
        if "cell_field" in voxel._values:
            cells = stored_cells(voxel)
            return smooth_mesh(level_set_prior(grid), cells[field or 0], cells)
        scale, frame = voxel.field_scale[field or 0], voxel.field_frame[field or 0]
        if field is not None:
            permeability = fields[field]
            # Distances are in the numerator where diffusivity is in the denominator.
            walls = wall_faces(grid, permeability, voxel.field_diffusivity[field] / scale)
        mesh = interface_mesh(
            grid, permeability, voxel.wall_probability,
            threshold=threshold, closed_only=closed_only, walls=walls,
        )  # fmt: skip
        return replace(
            mesh, vertices_um=scale * mesh.vertices_um @ frame, normals=mesh.normals @ frame
        )


def _check_drawable(voxel, index, shape):
    """Refuse to draw what has no walls; warn of walls that are not those of the tissue."""
    if voxel.shape != ():
        raise ValueError(
            f"index is {index!r}, which selects {voxel.shape} voxels; give one index for each "
            f"of the axes of {shape}."
        )
    if voxel.status not in FITTED:
        status = Status(int(voxel.status))
        raise ValueError(f"index is {index!r}, a voxel {_NOT_FITTED[status]} ({status.name}).")
    if not voxel.has_walls:
        raise ValueError(
            f"index is {index!r}, a voxel without wall fields; fit with walls=True, or with "
            "walls= a mask that has it."
        )
    status = Status(int(voxel.wall_status))
    if status in _DOUBTFUL:
        warnings.warn(f"Voxel {index!r} is {status.name}: {_DOUBTFUL[status]}.", stacklevel=3)
    given = voxel.field_diffusivity[0]
    found = given * open_transmissibility(voxel)
    if found < _LEAST_OPEN * given:
        warnings.warn(
            f"Voxel {index!r}: faces without walls let water through as if its diffusivity were "
            f"{found:.2f}, not {given:.2f} um^2/ms; walls of a diffusivity that is too high are "
            "not those of the tissue.",
            stacklevel=3,
        )


def open_transmissibility(voxel: SpinverseFit) -> float:
    """Median transmissibility, over that without a membrane, of a voxel's faces without walls."""
    diffusivity = voxel.field_diffusivity[0] / voxel.field_scale[0]
    tau = relative_transmissibility(voxel.model.grid, voxel.permeability, diffusivity)
    is_open = scaled_transmissibility(tau) >= WALL_THRESHOLD
    return float(np.median(tau[is_open])) if is_open.any() else 1.0


def packed_cells_values(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values of the packed cells among those of a fit; empty where there are none."""
    return {
        n.removeprefix(CELLS_PREFIX): v for n, v in values.items() if n.startswith(CELLS_PREFIX)
    }
