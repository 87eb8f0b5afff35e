"""SpinverseFit: maps, permeability fields and meshes of voxels, and their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dipy_spinverse.bloch_torrey import relative_transmissibility
from dipy_spinverse.cell_search.smooth import CELL_ARRAYS
from dipy_spinverse.inversion.unknowns import WALL_THRESHOLD, scaled_transmissibility
from dipy_spinverse.spinverse.sample_surfaces import cube_side, sample_mesh
from dipy_spinverse.units import MM2_PER_S
from dipy_spinverse.user_warnings import warn
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.status import FITTED, Status
from dipy_spinverse.walls.interface import InterfaceMesh

if TYPE_CHECKING:
    from dipy_spinverse.packed_cells import PackedCellsFit

# Mean F1 between permeability fields below which the pattern of walls is not determined; chosen
# by hand.
AGREEMENT_THRESHOLD = 0.8
# In front of the names of the values of packed cells.
CELLS_PREFIX = "_tissue/"
# Why a voxel has no fit, and what to do about it.
_NOT_FITTED = {
    Status.NOT_FITTED: "outside the mask; fit with a mask and walls= that include it",
    Status.BAD_SAMPLES: "with NaN or infinite measurements; correct the data or omit these",
    Status.NO_SIGNAL: "without any signal; choose one within the tissue",
    Status.NO_B0: "without a positive signal at b = 0; choose another, or give S0",
}
# Median relative transmissibility of open faces below which a mesh comes with a warning: an error
# of a few percent of the diffusivity; chosen by hand.
_MIN_OPEN_TRANSMISSIBILITY = 0.97
_STATUS_WARNINGS = {
    Status.MISFIT: "its walls do not explain its signals (see residual_rms). This can also be "
    "caused by a diffusivity that is a few percent too low, a wrong S0, or bodies off the grid, "
    "which in an absorbing box ClosedCellInversion(smooth=True) estimates",
    Status.NOT_CONVERGED: "the residual of its walls is larger than the noise, for instance of "
    "bodies off the grid",
}


def wall_layout(n_faces: int, n_fields: int) -> dict[str, object]:
    """Type and shape of what a fit stores of a voxel with permeability fields."""
    return {
        "permeability": ("f4", (n_faces,)),
        "permeability_fields": ("f4", (n_fields, n_faces)),
        "packing_permeability": ("f4", (n_faces,)),
        "wall_probability": ("f4", (n_faces,)),
        "pattern_agreement": float,
        "field_free_water": float,
        "field_scale": (float, (n_fields + 1,)),
        "field_frame": (float, (n_fields + 1, 3, 3)),
        "field_diffusivity": (float, (n_fields + 1,)),
        "field_share": (float, (n_fields + 1,)),
        "field_bodies": (float, (n_fields + 1, 4)),
    }


class SpinverseFit(VoxelFit):
    """Tissue and walls of voxels, from :meth:`SpinverseModel.fit` or :func:`load_fit`.

    Each map named in `MAPS` comes with its standard deviation and 95 % interval, as in every
    :class:`VoxelFit`. Maps and predicted signals are those of packed cylinders and spheres, see
    :class:`dipy_spinverse.PackedCellsModel`, whose other maps are in `tissue`. In voxels with
    walls whose signals these do not explain, and of engines without packed cells, they are
    computed from the permeability fields, and intervals contain the scatter between these; of
    faces on a periodic grid also the errors `WALL_ERRORS` that all fields share.

    Attributes
    ----------
    surface_to_volume : ndarray (...)
        Area of the membranes over volume, 1/um.
    wall_permeability : ndarray (...)
        Mean permeability of the membranes, um/ms.
    exchange_time : ndarray (...)
        Mean time in which restricted spins cross a wall, ms.
    restricted_fraction : ndarray (...)
        Fraction of spins whose displacement is restricted in at least one direction.
    pore_diameter : ndarray (...)
        Mean chord length of the restricted space, um.
    wall_anisotropy : ndarray (...)
        How well the walls determine their axis, 0 to 1.
    free_water_fraction : ndarray (...)
    wall_orientation : ndarray (..., 3)
        Unit vector with the least area of walls across it.
    wall_orientation_angle : ndarray (...)
        Angle to it that 95 % of the posterior samples or fields do not exceed, degrees.
    packed_cells : ndarray (...) of bool
        Whether the maps are those of packed cells.
    has_walls : ndarray (...) of bool
        Whether there are permeability fields. The following attributes are of these voxels, and
        exist only if fields were requested.
    permeability : ndarray (..., F)
        Of each face, um/ms; infinite where there is no membrane. One permeability field of many.
    packing_permeability : ndarray (..., F)
        The packing from which it was estimated; the same if there was none.
    field_free_water : ndarray (...)
        Fraction of free water in addition to this field.
    permeability_fields : ndarray (..., n, F)
        Further fields, each from another posterior sample of packed cells; without packed cells,
        from other initial values and noise, and transformed to the best agreement with
        `permeability` (by shifts and reflections that leave the signals unchanged).
    field_scale : ndarray (..., n + 1)
        Length of each field's lattice over that of the model's grid, `permeability` first.
    field_frame : ndarray (..., n + 1, 3, 3)
        Axes of each field's lattice, in rows, in the frame of the gradients.
    field_diffusivity : ndarray (..., n + 1)
        Diffusivity of the water of each field, mm^2/s.
    field_share : ndarray (..., n + 1)
        Fraction of the water in tissue that is as each field.
    field_bodies : ndarray (..., n + 1, 4)
        The bodies of each packing: 1 for spheres and 0 for cylinders, radius (um), volume
        fraction, permeability (um/ms). Zeros where there are none.
    wall_probability : ndarray (..., F)
        Probability that a face is a wall, over all these fields, and over all positions of
        packings. Of smooth cells, that a wall is within 4 % of the box's side of the face.
    pattern_agreement : ndarray (...)
        Mean F1 between the walls of these fields, 0 to 1; of packings at independent positions.
    wall_status : ndarray (...)
        :class:`Status` of the permeability fields, whether or not the maps are computed from them.
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
    # Relative standard deviations with which intervals contain the truth in 95 % of 20 Monte Carlo
    # tissues, for fields from random initial values on the default grid (benchmarks/README.md, an
    # earlier run).
    WALL_ERRORS: ClassVar[dict[str, float]] = {
        "surface_to_volume": 1.8,
        "restricted_fraction": 0.5,
        "wall_permeability": 0.7,
        "exchange_time": 4.0,
        "pore_diameter": 0.4,
    }

    WALLS = (*wall_layout(0, 0), "wall_status", *CELL_ARRAYS)

    def __getattr__(self, name: str):
        if name not in self.WALLS:
            return super().__getattr__(name)
        values = self.__dict__.get("_values", {})
        if name not in values:
            raise AttributeError(
                f"{name} belongs to permeability fields, which were not requested; fit with "
                "walls=True, or with walls= a mask of the voxels that need them."
            )
        return self._dense(values[name], self._rows[values["has_walls"]])

    def _n_rows(self, name):
        has_walls = self._values["has_walls"]
        return np.count_nonzero(has_walls) if name in self.WALLS else super()._n_rows(name)

    def _of_voxels(self, chosen):
        has_walls = self._values["has_walls"]
        wall_rows = (np.cumsum(has_walls) - 1)[chosen][has_walls[chosen]]
        return {
            name: value[wall_rows if name in self.WALLS else chosen]
            for name, value in self._values.items()
        }

    @property
    def tissue(self) -> PackedCellsFit:
        """The packed cells of all voxels, also of those that they do not explain.

        Raises
        ------
        ValueError
            A fit without packed cells.
        """
        values = packed_cells_values(self._values)
        if not values:
            raise ValueError(
                "tissue needs packed cells, which this inversion does not fit; use SpinverseModel "
                "without inversion= on a periodic grid, or PackedCellsModel."
            )
        status = self._dense(self._values["_tissue_status"])
        return self.model.tissue_model.Fit(self.model.tissue_model, status, values)

    def interface(
        self,
        index: tuple[int, ...] = (),
        threshold: float = 0.5,
        field: int | None = None,
        sample: int | None = None,
    ) -> InterfaceMesh:
        """Mesh of the walls of one voxel, with the wall probability of each triangle.

        Signals of tissue determine sizes, densities and permeabilities of cells, hardly their
        positions: `sample` draws smooth cells with the parameters of a posterior sample.

        Smooth cells (`ClosedCellInversion(smooth=True)`) give complete closed surfaces; the wall
        probability of a triangle is that of a wall within 4 % of the box's side.

        Parameters
        ----------
        index : int or tuple of int, optional
            The voxel; not needed in the fit of a single one.
        threshold : float, optional
            Minimal wall probability of a triangle.
        field : int, optional
            Draw all walls of one field instead, whatever their probability: 0 for `permeability`,
            k for the k-th of `permeability_fields`. Where the pattern is not determined this is
            one of many that explain the signals.
        sample : int, optional
            Draw closed cylinders or spheres of packed cells instead, at random positions in a cube
            that is the same for all samples of a voxel: 0 for the most probable parameters, k for
            the k-th posterior sample (`field_bodies`). Wall probabilities are NaN.

        Returns
        -------
        InterfaceMesh
            In um, in the frame of the gradients.

        Raises
        ------
        ValueError
            An index of several voxels, a voxel that was not fitted or has no walls, a field or
            sample that does not exist, both of them, a sample without packed cells.

        Warns
        -----
        UserWarning
            Walls that do not explain the signals, or whose search did not converge
            (`wall_status`); a mesh without triangles.
        """
        voxel = self[index]
        _check_drawable(voxel, index, self.shape)
        n_fields = 1 + len(voxel.permeability_fields)
        for name, number in (("field", field), ("sample", sample)):
            if number is not None and number not in range(n_fields):
                raise ValueError(f"{name} is {number!r}; the fit has {name}s 0 to {n_fields - 1}.")
        if sample is not None:
            if field is not None:
                raise ValueError("field and sample were both given; give one of them.")
            return self._sample_mesh(voxel, index, sample)
        mesh = self.model.voxel_inversion().mesh(voxel, threshold, field)
        if not len(mesh.triangles):
            reason = "no face of this field is a wall"
            if field is None:
                largest = voxel.wall_probability.max(initial=0)
                reason = (
                    f"no face is a wall with a probability of {threshold:g} (largest: "
                    f"{largest:.2f}), as signals hardly determine positions. Draw one field "
                    "(field=0), or use a smaller threshold"
                )
            warn(f"Voxel {index!r} has an empty mesh: {reason}.")
        return mesh

    def _sample_mesh(self, voxel, index, sample):
        """Mesh of the cells of a posterior sample."""
        bodies = voxel.field_bodies
        if not packed_cells_values(self._values):
            raise ValueError(
                f"sample is {sample}, but this inversion has no packed cells; draw a permeability "
                f"field instead (field={sample})."
            )
        if not bodies[sample, 2]:
            warn(f"Voxel {index!r} has an empty mesh: sample {sample} is tissue without cells.")
        frame = voxel.field_frame[sample]
        return sample_mesh(bodies[sample], frame, cube_side(bodies), self.model.seed + sample)


def _check_drawable(voxel, index, shape):
    """Refuse voxels without walls; warn of walls that are probably not those of the tissue."""
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
            f"index is {index!r}, a voxel without permeability fields; fit with walls=True, or "
            "with walls= a mask that includes it."
        )
    status = Status(int(voxel.wall_status))
    if status in _STATUS_WARNINGS:
        warn(f"Voxel {index!r} is {status.name}: {_STATUS_WARNINGS[status]}.")
    diffusivity, scale = MM2_PER_S * voxel.field_diffusivity[0], voxel.field_scale[0]
    tau = relative_transmissibility(voxel.model.grid, voxel.permeability, diffusivity / scale)
    open_tau = tau[scaled_transmissibility(tau) >= WALL_THRESHOLD]
    open_diffusivity = diffusivity * np.median(open_tau if open_tau.size else 1.0)
    if open_diffusivity < _MIN_OPEN_TRANSMISSIBILITY * diffusivity:
        warn(
            f"Voxel {index!r}: the transmissibility of faces without walls is that of a "
            f"diffusivity of {open_diffusivity:.2f}e-3, not {diffusivity:.2f}e-3 mm^2/s; with a "
            "diffusivity that is too high, estimated walls are not those of the tissue."
        )


def status_with_pattern(
    status: np.ndarray, has_walls: np.ndarray, values: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Status (...) that also says where the pattern of the walls is not determined.

    `values` has the "pattern_agreement" of the fitted voxels with walls (V,), if there are any.
    """
    status, agreement = status.copy(), np.ones(len(has_walls))
    agreement[has_walls] = values.get("pattern_agreement", 1.0)
    fitted = status[np.isin(status, FITTED)]
    undetermined = (fitted == Status.CONVERGED) & (agreement < AGREEMENT_THRESHOLD)
    status[np.isin(status, FITTED)] = np.where(undetermined, Status.PATTERN_NOT_DETERMINED, fitted)
    return status


def packed_cells_values(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values of the packed cells among those of a fit; empty where there are none."""
    return {
        n.removeprefix(CELLS_PREFIX): v for n, v in values.items() if n.startswith(CELLS_PREFIX)
    }
