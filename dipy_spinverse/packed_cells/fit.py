"""PackedCellsFit, and the named arrays of a fit: from estimates and posterior samples."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from dipy_spinverse.acquisition.amplitudes import mean_per_te
from dipy_spinverse.packed_cells.equivalent_pulses import PulsedMeasurements
from dipy_spinverse.packed_cells.maps import PARAMETERS
from dipy_spinverse.packed_cells.posterior import PackedCellsPosterior
from dipy_spinverse.packed_cells.residual_tests import ResidualGroups, describe_residual
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.fitted_model import FittedModel
from dipy_spinverse.voxels.image import Voxels
from dipy_spinverse.voxels.statistics import ENDINGS, dominant_axis, statistics_of_maps
from dipy_spinverse.voxels.status import Status

# Of the errors of left-out measurements of the model and of a model-free description: a ratio that
# counts as equal, and the least difference in standard errors; chosen by hand.
_SUFFICIENT_RATIO, _SIGNIFICANT = 1.1, 3.0


class PackedCells(FittedModel, Protocol):
    """A model of packed cells, as its fits use it."""

    pulses: PulsedMeasurements
    labels: np.ndarray
    groups: ResidualGroups
    classes: tuple[str, ...]
    free_diffusivity: float
    used: np.ndarray  # (M,) bool: the measurements that are not excluded


class PackedCellsFit(VoxelFit):
    """Tissue of voxels, from :meth:`PackedCellsModel.fit`; see :class:`VoxelFit` for its maps.

    Where `status` is MISFIT, the variance of the noise is multiplied by the reduced chi-square, so
    that intervals are wider.

    Attributes
    ----------
    wall_orientation : ndarray (..., 3)
        Dominant axis of the posterior samples.
    wall_orientation_angle : ndarray (...)
        Half-angle of the cone about it that contains 95 % of the samples, degrees.
    class_probabilities : ndarray (..., C)
        Of the `classes` of the model.
    systematic_error : ndarray (...)
        Standard deviation of errors proportional to the signal, relative to it.
    misfit_percent : ndarray (...)
        Root mean square of the residual beyond the noise, in percent of S0.
    left_out_ratio : ndarray (...)
        Error of measurements predicted from the others by the model, over that of a model-free
        description (a Gaussian process); 0 where there are too few measurements for it.
    misfit_level : ndarray (...) of int
        0 where the status is not MISFIT; 1 where the model is rejected, but predicts left-out
        measurements as well as the model-free description does (a ratio of at most 1.1, or not
        significantly above 1 at three standard errors): the scan or its noise is the cause, and
        intervals, which include the systematic error, can be used; 2 where the model misses
        `misfit_percent`, so that maps may be biased by more than their intervals.
    free_diffusivity : ndarray (...)
        Estimated diffusivity of free water, mm^2/s: that specified, unless no class fits with it.
    """

    MAPS = (
        "surface_to_volume",
        "restricted_fraction",
        "wall_permeability",
        "exchange_time",
        "pore_diameter",
        "wall_anisotropy",
        "orientation_dispersion",
        "free_water_fraction",
        "dot_fraction",
        "hindered_fraction",
        "diffusivity_inside",
        "diffusivity_outside",
    )
    model: PackedCells

    @property
    def tissue_class(self) -> np.ndarray:
        """Most probable tissue class (...); "" where nothing was fitted."""
        names = np.array(["", *self.model.classes])
        return names[self._dense(self._values["_class"] + 1)]

    @property
    def misfit_level(self) -> np.ndarray:
        """0 to 2 (...), see above."""
        ratio, significance = self.left_out_ratio, self._left_out_significance
        as_good = (ratio <= _SUFFICIENT_RATIO) | (significance <= _SIGNIFICANT)
        return np.where(self.status == Status.MISFIT, np.where((ratio > 0) & as_good, 1, 2), 0)

    @property
    def usable(self) -> np.ndarray:
        """Voxels (...) whose maps and intervals can be used: a `misfit_level` of at most 1."""
        return super().usable | (self.misfit_level == 1)

    def residual_structure(self, index: tuple[int, ...] | int = ()) -> str:
        """Shells, timings and directions of a voxel whose residual exceeds the noise, in words.

        Reduced chi-squares account for the noise and for known errors of the emulator. Groups with
        p > 0.001, corrected for their number, are not named.

        Parameters
        ----------
        index : tuple of int, optional
            Of the voxel.
        """
        voxel = self[index]
        if voxel.shape or not len(voxel._rows):
            raise ValueError(
                f"index is {index!r}; give that of one voxel that was fitted, within shape "
                f"{self.shape}."
            )
        chi_square, freedom = (
            voxel._values[f"_group_{name}"][0] for name in ("chi_square", "degrees_of_freedom")
        )
        return describe_residual(self.model.groups.names, chi_square, freedom)


def packed_cells_layout(model: PackedCells, n_draws: int) -> dict:
    """Names, types and shapes of the values that a fit stores of a voxel."""
    endings = (*ENDINGS, "_likeliest") if n_draws else ("", "_likeliest")
    n_groups, n_timings = len(model.groups.names) + 3, len(model.pulses.timings)
    return {
        "wall_orientation": (float, (3,)),
        "wall_orientation_angle": float,
        "class_probabilities": (float, (len(model.classes),)),
        "systematic_error": float,
        "free_diffusivity": float,
        "misfit_percent": float,
        "left_out_ratio": float,
        "_left_out_significance": float,
        "S0_per_te": (float, (len(model.acquisition.echo_times),)),
        "S0_per_label": (float, (int(model.labels.max()) + 1,)),
        "_class": int,
        "_parameters": (float, (len(PARAMETERS),)),
        "_frame": (float, (3, 3)),
        "_polarity_asymmetry": (float, (6 * n_timings,)),
        "_fast_fraction": (float, (n_timings,)),
        "_group_chi_square": (float, (n_groups,)),
        "_group_degrees_of_freedom": (float, (n_groups,)),
    } | {name + ending: float for name in PackedCellsFit.MAPS for ending in endings}


def values_of_fit(
    model: PackedCells, voxels: Voxels, posterior: PackedCellsPosterior, n_draws: int
) -> dict[str, np.ndarray]:
    """Values that a fit stores of a chunk of voxels, from the first `n_draws` samples."""
    names = PackedCellsFit.MAPS
    estimates = {name: posterior.estimated_maps[name] for name in names}
    values = {f"{name}_likeliest": value for name, value in estimates.items()}
    if n_draws:
        values |= statistics_of_maps({name: posterior.maps[name][:n_draws] for name in names})
        axis, angle = dominant_axis(posterior.maps["wall_orientation"][:n_draws])
    else:
        values |= estimates
        axis, angle = dominant_axis(posterior.estimated_maps["wall_orientation"][None])
    parameters = posterior.estimated_parameters
    free_diffusivity = model.free_diffusivity * np.exp(parameters["log_free_ratio"])
    residual = (voxels.signals - posterior.predicted)[:, model.used]
    n_unknowns = model.used.sum() - posterior.degrees_of_freedom
    return values | {
        "wall_orientation": axis,
        "wall_orientation_angle": angle,
        "class_probabilities": np.stack([*posterior.class_probabilities.values()], axis=1),
        "systematic_error": posterior.systematic_error,
        "free_diffusivity": free_diffusivity,
        "misfit_percent": posterior.misfit_percent,
        "left_out_ratio": posterior.left_out_ratio,
        "_left_out_significance": posterior.left_out_significance,
        "S0_per_te": mean_per_te(model.acquisition, posterior.amplitudes[:, model.labels]),
        "S0_per_label": posterior.amplitudes,
        "_class": posterior.estimated_class,
        "_parameters": np.stack([parameters[name] for name in PARAMETERS], axis=1),
        "_frame": posterior.estimated_frames,
        "_polarity_asymmetry": posterior.polarity_asymmetry,
        "_fast_fraction": posterior.fast_fraction,
        "_group_chi_square": posterior.group_chi_square,
        "_group_degrees_of_freedom": posterior.group_degrees_of_freedom,
        "converged": True,
        "sigma": posterior.sigma,
        "residual_rms": np.sqrt((residual**2).mean(axis=1)),
        "n_unknowns": n_unknowns + (~model.used).sum(),
        "reduced_chi_square": posterior.chi_square / posterior.degrees_of_freedom,
        "worst_reduced_chi_square": posterior.worst_reduced_chi_square,
        "worst_degrees_of_freedom": posterior.worst_degrees_of_freedom,
        "n_groups": len(model.groups.names),
    }
