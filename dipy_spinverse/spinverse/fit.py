"""SpinverseFit: the walls found in voxels, what follows from them, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dipy_spinverse.inversion.unknowns import wall_faces
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.walls.interface import InterfaceMesh, interface_mesh

if TYPE_CHECKING:
    from dipy_spinverse.packed_cells import PackedCellsFit

# Mean F1 between the walls of fields below which their pattern does not count as determined.
SAME_PATTERN = 0.8
# In front of the names of what is kept of the packed cells.
TISSUE = "_tissue/"


class SpinverseFit(VoxelFit):
    """Tissue and walls of voxels, from :meth:`SpinverseModel.fit` or :func:`load_fit`.

    Each map named in `MAPS` comes with its standard deviation and 95 % interval, as in every
    :class:`VoxelFit`. Maps and predicted signals are those of packed cylinders and spheres, see
    :class:`dipy_spinverse.PackedCellsModel`, whose other maps are in `tissue`. In voxels with
    walls whose signals these do not explain, they are read off the ensemble of wall fields; the
    intervals then contain the scatter between fields, from starts and noise of their own, and the
    errors `WALL_ERRORS` that all fields share.

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
    field_free_water : ndarray (...)
        Fraction of free water beside this field.
    permeability_fields : ndarray (..., n, F)
        Other fields, each from a start and noise of its own; moved to where they agree most
        with `permeability` (by shifts and reflections that leave the signals unchanged).
    wall_probability : ndarray (..., F)
        Probability that a face is a wall, over all these fields.
    pattern_agreement : ndarray (...)
        Mean F1 between the walls of these fields, 0 to 1.
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
    # Relative standard deviations of truth from estimate that hold 95 % of the substrates of
    # benchmarks/wall_fields.py, on the default grid.
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
        "field_free_water",
        "history_iterations",
        "history_misfit",
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
        values = tissue_of(self._values)
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
            An index of several voxels, a voxel without walls, a field that there is not.
        """
        voxel = self[index]
        if voxel.shape != ():
            raise ValueError(
                f"index is {index!r}, which selects {voxel.shape} voxels; give one index for each "
                f"of the axes of {self.shape}."
            )
        if not voxel.has_walls:
            raise ValueError(
                f"index is {index!r}, a voxel without wall fields; fit with walls=True, or with "
                "walls= a mask that has it."
            )
        grid, permeability, walls = self.model.grid, voxel.permeability, None
        if field is not None:
            fields = np.vstack([permeability, voxel.permeability_fields])
            if field not in range(len(fields)):
                raise ValueError(f"field is {field!r}; the fit has fields 0 to {len(fields) - 1}.")
            permeability = fields[field]
            walls = wall_faces(grid, permeability, self.model.diffusivity_um2_per_ms)
        return interface_mesh(
            grid, permeability, voxel.wall_probability,
            threshold=threshold, closed_only=closed_only, walls=walls,
        )  # fmt: skip


def tissue_of(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values of the packed cells among those of a fit; empty where there are none."""
    return {n.removeprefix(TISSUE): v for n, v in values.items() if n.startswith(TISSUE)}
