"""PackedCellsModel: tissue with packed cylinders and spheres as a DIPY model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from dipy.core.gradients import GradientTable
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import BaseAcquisition, as_acquisition
from dipy_spinverse.packed_cells.emulator import RANGES
from dipy_spinverse.packed_cells.equivalent_pulses import equivalent_pulses
from dipy_spinverse.packed_cells.interpolation import LARGEST_SPREAD
from dipy_spinverse.packed_cells.maps import PARAMETERS
from dipy_spinverse.packed_cells.nuisance import amplitude_labels, fast_signals, polarity_factors
from dipy_spinverse.packed_cells.posterior import PackedCellsPosterior, Setting, posterior_of
from dipy_spinverse.packed_cells.residual_tests import describe_residual, residual_groups
from dipy_spinverse.packed_cells.tissue_classes import (
    ALIGNED,
    CLASSES,
    TYPICAL_RADIUS,
    tissue_class,
)
from dipy_spinverse.packed_cells.tissue_signals import tissue_signals
from dipy_spinverse.units import diffusivity_um2_per_ms
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.image import Voxels
from dipy_spinverse.voxels.model import VoxelModel
from dipy_spinverse.voxels.statistics import ENDINGS, dominant_axis, statistics_of_maps


class PackedCellsFit(VoxelFit):
    """Tissue of voxels, from :meth:`PackedCellsModel.fit`; see :class:`VoxelFit` for its maps.

    Where `status` is MISFIT, intervals are for as much more noise as makes the residual typical.

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
    free_diffusivity : ndarray (...)
        Estimated diffusivity of free water, um^2/ms: that specified, unless no class fits with it.
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
    model: PackedCellsModel

    @property
    def tissue_class(self) -> np.ndarray:
        """Most probable tissue class (...); "" where nothing was fitted."""
        names = np.array(["", *self.model.classes])
        return names[self._dense(self._values["_class"] + 1)]

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
        groups = residual_groups(self.model.pulses, self.model.used)
        chi_square, freedom = (
            voxel._values[f"_group_{name}"][0] for name in ("chi_square", "degrees_of_freedom")
        )
        return describe_residual(groups.names, chi_square, freedom)

    def predict(
        self, gtab: GradientTable | BaseAcquisition | None = None, S0: ArrayLike | None = None
    ) -> np.ndarray:
        """Noise-free signals (..., M) of the maximum a posteriori estimate.

        Parameters
        ----------
        gtab : GradientTable, Acquisition or WaveformAcquisition, optional
            Measurements to predict; by default those that were fitted.
        S0 : float or array-like (...), optional
            Signal without diffusion; by default the fitted amplitudes.

        Raises
        ------
        ValueError
            Measurements whose amplitude was not fitted, an S0 of the wrong shape.
        """
        if S0 is not None or not len(self._rows):
            return super().predict(gtab, S0)
        acquisition = self.model.acquisition if gtab is None else as_acquisition(gtab)
        amplitudes = self._values["S0_per_label"][:, self.model.labels_at(acquisition)]
        return self._dense(amplitudes * self.model.signals_of_fit(self._values, acquisition))


class PackedCellsModel(VoxelModel):
    """Tissue of packed permeable cells: the posterior, averaged over tissue classes.

    Cells are dispersed or crossing cylinders, spheres, or both side by side, with permeable
    membranes; their signals are emulated from simulations of packings. Further compartments are
    free, immobile and hindered water. The classes are weighted by their evidence; `tissue_class`
    is the most probable one. Unless specified, diffusivities inside and outside of cells are
    unknown, with a prior of about 1.1 um^2/ms by a factor of 1.8 that includes tissue in vivo and
    fixed, and makes both nearly equal. Where they are not identifiable, as in spheres, the prior
    dominates.

    The polarity asymmetry (differences between opposite gradient directions beyond chance) and
    fast components, which have decayed at 100 s/mm^2 (of either sign, a priori within 5 % of the
    signal), are separated from tissue and predicted. Voxels without an adequate fit have two more
    unknowns: a fast component at b0, and the diffusivity of free water, a priori within a factor
    of 1.3 of that specified.

    Free waveforms, such as oscillations and b-tensors, are treated as equivalent pulses with a
    closed-form correction for their spectrum and exchange, whose error widens the intervals.
    B-tensors with three different eigenvalues are treated as axially symmetric.

    Parameters
    ----------
    gtab : GradientTable, Acquisition or WaveformAcquisition
        With the timings of pulses, or with waveforms. The first fit takes some seconds more.
    diffusivity : float or (inside, outside), optional
        Diffusivity of the water in tissue, mm^2/s, if known.
    free_diffusivity : float, optional
        Diffusivity of free water, mm^2/s.
    typical_radius : float, optional
        Median of the log-normal prior of the cells' radii, um, whose factor is 3. The default is
        for white and grey matter; muscle fibres have about 25.
    radius_spread : float, optional
        Standard deviation of the radii of a voxel's cells over their mean, if known, as of axons
        from histology (0.4 to 0.6). Radii are then gamma-distributed, and sizes are those of equal
        cells with the same surface over volume. By default cells are equal.
    amplitudes : {"te", "timing"} or array-like (M,), optional
        Measurements that share a signal without diffusion: those of one echo time, of one timing,
        or of one label, if b0 or a sweep has its own.
    least_b : float, optional
        Weighted measurements with a smaller b, s/mm^2, are excluded; b0 is not.
    te, mixing_time, isotropic : optional
        Of a GradientTable, as in :meth:`dipy_spinverse.Acquisition.from_gtab`.
    classes : sequence of str, optional
        Tissue classes that are compared: "cylinders", "crossing" ones, "spheres", a "mixture" of
        cylinders and spheres side by side, and "no cells", or some of these; also
        "aligned cylinders", parallel to the first eigenvector of the diffusion tensor.
    seed : int, optional
        Seed of the posterior samples.

    Raises
    ------
    ValueError
        Missing or inconsistent timings, b-tensors without waveforms, a diffusivity that is not in
        mm^2/s, labels of the wrong number, other arguments out of range.

    Examples
    --------
    >>> fit = PackedCellsModel(gtab).fit(data, sigma=20.0)  # doctest: +SKIP
    >>> fit.pore_diameter, fit.pore_diameter_low, fit.pore_diameter_high  # doctest: +SKIP
    >>> fit.tissue_class[0], fit.residual_structure(0)  # doctest: +SKIP
    """

    Fit = PackedCellsFit
    VOX_PER_CHUNK = 64
    acquisition: BaseAcquisition

    def __init__(
        self,
        gtab: GradientTable | BaseAcquisition,
        *,
        diffusivity: float | tuple[float, float] | None = None,
        free_diffusivity: float = 3e-3,
        typical_radius: float = TYPICAL_RADIUS,
        radius_spread: float = 0.0,
        amplitudes: str | ArrayLike = "te",
        least_b: float = 0.0,
        classes: Sequence[str] = CLASSES,
        te: ArrayLike | None = None,
        mixing_time: ArrayLike | None = None,
        isotropic: ArrayLike | None = None,
        seed: int = 0,
    ):
        super().__init__(gtab, te, mixing_time, isotropic)
        self.pulses = equivalent_pulses(self.acquisition)
        self.diffusivity = self._um2_per_ms = None
        if diffusivity is not None:
            inside, outside = np.broadcast_to(diffusivity, 2).astype(float).tolist()
            self.diffusivity = inside, outside
            self._um2_per_ms = (
                diffusivity_um2_per_ms("diffusivity", inside),
                diffusivity_um2_per_ms("diffusivity", outside),
            )
        self.free_diffusivity = float(free_diffusivity)
        self._free_um2_per_ms = diffusivity_um2_per_ms("free_diffusivity", free_diffusivity)
        self.typical_radius = float(typical_radius)
        self.radius_spread = float(radius_spread)
        self.amplitudes = amplitudes if isinstance(amplitudes, str) else np.asarray(amplitudes)
        self.labels = amplitude_labels(self.pulses, amplitudes)
        self.least_b = float(least_b)
        self.classes = tuple(classes)
        self.seed = int(seed)
        self._check_arguments()

    def _check_arguments(self):
        if self.acquisition.b0_mask.all():
            raise ValueError(
                f"gtab has {len(self.acquisition)} measurements, none with diffusion weighting; "
                "give some above its b0_threshold."
            )
        low, high = RANGES["radius"]
        if not low <= self.typical_radius <= high:
            raise ValueError(
                f"typical_radius is {self.typical_radius!r}; give the radius of typical cells in "
                f"um, from {low:g} to {high:g}."
            )
        if not 0 <= self.radius_spread <= LARGEST_SPREAD:
            raise ValueError(
                f"radius_spread is {self.radius_spread!r}; give the standard deviation of the "
                f"radii of cells over their mean, from 0 to {LARGEST_SPREAD:g}."
            )
        largest_b = 1e3 * self.acquisition.b.max()
        if not 0 <= self.least_b <= largest_b:
            raise ValueError(
                f"least_b is {self.least_b!r}; give a number from 0 to the largest b, "
                f"{largest_b:.4g} s/mm^2."
            )
        if not self.classes or not set(self.classes) <= {*CLASSES, ALIGNED}:
            available = ", ".join((*CLASSES, ALIGNED))
            raise ValueError(f"classes is {self.classes!r}; give some of {available}.")

    @property
    def used(self) -> np.ndarray:
        """(M,) bool: the measurements that are not excluded."""
        return self.acquisition.b0_mask | (self.acquisition.b >= 1e-3 * self.least_b)

    def layout(self, n_draws: int) -> dict:
        """Names, types and shapes of the values that a fit stores of a voxel."""
        endings = (*ENDINGS, "_likeliest") if n_draws else ("", "_likeliest")
        n_groups = len(residual_groups(self.pulses, self.used).names) + 3
        n_timings = len(self.pulses.timings)
        return {
            "wall_orientation": (float, (3,)),
            "wall_orientation_angle": float,
            "class_probabilities": (float, (len(self.classes),)),
            "systematic_error": float,
            "free_diffusivity": float,
            "S0_per_te": (float, (len(self.acquisition.echo_times),)),
            "S0_per_label": (float, (int(self.labels.max()) + 1,)),
            "_class": int,
            "_parameters": (float, (len(PARAMETERS),)),
            "_frame": (float, (3, 3)),
            "_polarity_asymmetry": (float, (6 * n_timings,)),
            "_fast_fraction": (float, (n_timings,)),
            "_group_chi_square": (float, (n_groups,)),
            "_group_degrees_of_freedom": (float, (n_groups,)),
        } | {name + ending: float for name in PackedCellsFit.MAPS for ending in endings}

    def fit_chunk(self, voxels: Voxels, n_draws: int) -> dict[str, np.ndarray]:
        """Values of a chunk of voxels."""
        posterior = self.posterior(voxels.signals, voxels.sigma, n_draws)
        return self.values_of_fit(voxels, posterior, n_draws)

    def posterior(
        self, signals: ArrayLike, sigma: ArrayLike | None = None, n_samples: int = 200
    ) -> PackedCellsPosterior:
        """Maximum a posteriori estimates of voxels, and samples of their posterior.

        The prior is that of ``tissue_classes``; amplitudes have a flat prior and are integrated
        out.

        Parameters
        ----------
        signals : array-like (V, M)
            Magnitudes, or real parts, which can be negative; finite, and not 0 throughout a voxel.
        sigma : float or array-like (V,), optional
            Standard deviation of the noise in each channel; by default estimated from the
            residual.
        n_samples : int, optional
            0 for maximum a posteriori estimates only.

        Raises
        ------
        ValueError
            Signals of the wrong shape.
        """
        signals = np.ascontiguousarray(signals, dtype=float)
        if signals.shape[1:] != (len(self.acquisition),):
            raise ValueError(
                f"signals has shape {signals.shape}; the acquisition has {len(self.acquisition)} "
                f"measurements, so give (V, {len(self.acquisition)}) for V voxels."
            )
        if sigma is not None:
            sigma = np.broadcast_to(np.asarray(sigma, dtype=float), len(signals)).copy()
        return posterior_of(self._setting(), signals, sigma, n_samples, self.seed)

    def _setting(self):
        relaxes = np.ptp(self.pulses.te) > 0
        tissues = [
            tissue_class(name, self._um2_per_ms is not None, relaxes, self.typical_radius)
            for name in self.classes
        ]
        shapes = tuple(sorted(set().union(*(tissue.shapes for tissue in tissues))))
        signals = tissue_signals(
            self.pulses, self._um2_per_ms, self._free_um2_per_ms, shapes,
            radius_spread=self.radius_spread,
        )  # fmt: skip
        groups = residual_groups(self.pulses, self.used)
        return Setting(self.pulses, signals, tissues, self.labels, self.used, groups)

    def values_of_fit(
        self, voxels: Voxels, posterior: PackedCellsPosterior, n_draws: int
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
        residual = (voxels.signals - posterior.predicted)[:, self.used]
        n_unknowns = self.used.sum() - posterior.degrees_of_freedom
        return values | {
            "wall_orientation": axis,
            "wall_orientation_angle": angle,
            "class_probabilities": np.stack([*posterior.class_probabilities.values()], axis=1),
            "systematic_error": posterior.systematic_error,
            "free_diffusivity": self._free_um2_per_ms * np.exp(parameters["log_free_ratio"]),
            "S0_per_te": _per_te(self, posterior.amplitudes),
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
            "n_unknowns": n_unknowns + (~self.used).sum(),
            "reduced_chi_square": posterior.chi_square / posterior.degrees_of_freedom,
            "worst_reduced_chi_square": posterior.worst_reduced_chi_square,
            "worst_degrees_of_freedom": posterior.worst_degrees_of_freedom,
            "n_groups": posterior.group_chi_square.shape[1],
        }

    def labels_at(self, acquisition: BaseAcquisition) -> np.ndarray:
        """Label (M,) of other measurements: that of the same echo time or timing.

        Raises
        ------
        ValueError
            Measurements without a label of the fit.
        """
        if acquisition is self.acquisition:
            return self.labels
        fitted_keys, keys = (
            self._keys(equivalent_pulses(scan)) for scan in (self.acquisition, acquisition)
        )
        fitted_keys, index = np.unique(fitted_keys, axis=0, return_inverse=True)
        # Labels that share a timing cannot be assigned to other measurements of it.
        pairs = np.unique(np.column_stack([index.reshape(-1), self.labels]), axis=0)
        distance = np.abs(keys[:, None] - fitted_keys).max(axis=2)
        if distance.min(axis=1).max() > 1e-3 or len(fitted_keys) < len(pairs):
            raise ValueError(
                "gtab has measurements whose amplitude was not fitted; predict at the timings "
                "that were fitted, or give S0."
            )
        return pairs[distance.argmin(axis=1), 1]

    def _keys(self, acquisition):
        echo = acquisition.te, acquisition.mixing_time
        pulses = acquisition.small_delta, acquisition.big_delta
        by_echo = isinstance(self.amplitudes, str) and self.amplitudes == "te"
        return np.column_stack(echo if by_echo else (*echo, *pulses))

    def signals_of_fit(
        self, values: Mapping[str, np.ndarray], acquisition: BaseAcquisition
    ) -> np.ndarray:
        """Signals (V, M) of the maximum a posteriori estimates."""
        pulses = equivalent_pulses(acquisition)
        model = tissue_signals(
            pulses, self._um2_per_ms, self._free_um2_per_ms, interpolated=False,
            shortest_te=self.acquisition.te.min(), radius_spread=self.radius_spread,
        )  # fmt: skip
        parameters = dict(zip(PARAMETERS, values["_parameters"].T, strict=True))
        signals = np.empty((len(values["_class"]), len(pulses)))
        for k, name in enumerate(self.classes):
            rows = np.flatnonzero(values["_class"] == k)
            if len(rows):
                tissue = tissue_class(name, self._um2_per_ms is not None, relaxes=True)
                signals[np.ix_(rows, model.shells.order)] = model.of_values(
                    tissue.of_unknown_water,
                    {parameter: value[rows] for parameter, value in parameters.items()},
                    values["_frame"][rows],
                )
        signals += fast_signals(self.pulses, pulses, values["_fast_fraction"])
        return signals * polarity_factors(self.pulses, pulses, values["_polarity_asymmetry"])

    def settings(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Arguments of the model."""
        names = (
            "diffusivity",
            "free_diffusivity",
            "typical_radius",
            "radius_spread",
            "least_b",
            "classes",
        )
        settings = {name: getattr(self, name) for name in (*names, "seed")}
        if isinstance(self.amplitudes, str):
            return settings | {"amplitudes": self.amplitudes}, {}
        return settings, {"amplitudes": self.amplitudes}

    @classmethod
    def from_settings(
        cls, acquisition: Any, settings: dict, arrays: Mapping[str, np.ndarray]
    ) -> PackedCellsModel:
        """The model of :meth:`settings`."""
        return cls(acquisition, **settings, **dict[str, Any](arrays))


def _per_te(model, amplitudes):
    """Mean amplitude (V, T) of the measurements of each echo time."""
    echo_times = np.arange(len(model.acquisition.echo_times))
    members = model.acquisition.te_index == echo_times[:, None]
    return amplitudes[:, model.labels] @ members.T / members.sum(axis=1)
