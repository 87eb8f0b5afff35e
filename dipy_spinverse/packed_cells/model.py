"""PackedCellsModel: tissue with packed cylinders and spheres as a DIPY model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from dipy.core.gradients import GradientTable
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.acquisition.amplitudes import amplitude_labels, labels_of_others
from dipy_spinverse.packed_cells.emulator import RANGES
from dipy_spinverse.packed_cells.equivalent_pulses import equivalent_pulses
from dipy_spinverse.packed_cells.fit import PackedCellsFit, packed_cells_layout, values_of_fit
from dipy_spinverse.packed_cells.gaussian_process import GaussianProcess, gaussian_process
from dipy_spinverse.packed_cells.interpolation import LARGEST_SPREAD
from dipy_spinverse.packed_cells.maps import PARAMETERS, prior_maps
from dipy_spinverse.packed_cells.nuisance import fast_signals, polarity_factors
from dipy_spinverse.packed_cells.posterior import PackedCellsPosterior, Setting, posterior_of
from dipy_spinverse.packed_cells.residual_tests import residual_groups
from dipy_spinverse.packed_cells.tissue_classes import (
    ALIGNED,
    CLASSES,
    TYPICAL_RADIUS,
    tissue_class,
)
from dipy_spinverse.packed_cells.tissue_signals import tissue_signals
from dipy_spinverse.units import diffusivity_um2_per_ms
from dipy_spinverse.voxels.chunks import check_number
from dipy_spinverse.voxels.image import Voxels, per_voxel
from dipy_spinverse.voxels.model import VoxelModel

_N_PRIOR_SAMPLES = 2000  # of each class; a probability of 2/3 has a standard error of 0.01


class PackedCellsModel(VoxelModel):
    """Tissue of packed permeable cells: the posterior, averaged over tissue classes.

    Cells are dispersed or crossing cylinders, spheres, or both side by side, with permeable
    membranes; their signals are emulated from simulations of packings. Further compartments are
    free, immobile and hindered water. The classes are weighted by their evidence; `tissue_class`
    is the most probable one. Unless specified, diffusivities inside and outside of cells are
    unknown, with a prior of about 1.1e-3 mm^2/s by a factor of 1.8 that includes tissue in vivo
    and fixed, and makes both nearly equal. Where they are not identifiable, as in spheres, the
    prior dominates.

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
        Median of the log-normal prior of the cells' radii, um; one standard deviation is a factor
        of 3. The default is for white and grey matter; muscle fibres have about 25.
    radius_spread : float, optional
        Standard deviation of the radii of a voxel's cells over their mean, if known, as of axons
        from histology (0.4 to 0.6). Radii are then gamma-distributed, and sizes are those of equal
        cells with the same surface over volume. By default cells are equal.
    amplitudes : {"te", "timing"} or array-like (M,), optional
        Measurements that share a signal without diffusion: those of one echo time, of one timing,
        or of one label, if the amplitude of b0 or of a sweep differs.
    least_b : float, optional
        Weighted measurements with a smaller b, s/mm^2, are excluded; b0 is not.
    te, mixing_time, isotropic, n_averages : optional
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
    VOX_PER_CHUNK = 256
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
        n_averages: ArrayLike | None = None,
        seed: int = 0,
    ):
        super().__init__(gtab, te, mixing_time, isotropic, n_averages)
        if self.acquisition.b0_mask.all():
            raise ValueError(
                f"gtab has {len(self.acquisition)} measurements, none with diffusion weighting; "
                "give some above its b0_threshold."
            )
        self.pulses = equivalent_pulses(self.acquisition)
        self.diffusivity = self._um2_per_ms = None
        if diffusivity is not None:
            if np.shape(diffusivity) not in ((), (1,), (2,)):
                raise ValueError(
                    f"diffusivity is {diffusivity!r}; give one number in mm^2/s, or one inside "
                    "and one outside of cells."
                )
            self.diffusivity = tuple(np.broadcast_to(diffusivity, 2).astype(float).tolist())
            inside, outside = (diffusivity_um2_per_ms("diffusivity", d) for d in self.diffusivity)
            self._um2_per_ms = inside, outside
        self.free_diffusivity = float(free_diffusivity)
        self._free_um2_per_ms = diffusivity_um2_per_ms("free_diffusivity", free_diffusivity)
        self.typical_radius = float(typical_radius)
        self.radius_spread = float(radius_spread)
        self.amplitudes = amplitudes if isinstance(amplitudes, str) else np.asarray(amplitudes)
        self.labels = amplitude_labels(self.pulses, amplitudes)
        self.least_b = float(least_b)
        self.used = self.acquisition.b0_mask | (self.acquisition.b >= 1e-3 * self.least_b)
        self.classes = tuple(classes)
        self.seed = int(seed)
        self._check_arguments()
        self.groups = residual_groups(self.pulses, self.used)

    def _check_arguments(self):
        limits = {
            "typical_radius": (*RANGES["radius"], "um"),
            "radius_spread": (0, LARGEST_SPREAD, "of their mean"),
            "least_b": (0, 1e3 * self.acquisition.b.max(), "s/mm^2, the largest b"),
        }
        for name, (low, high, unit) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(
                    f"{name} is {value!r}; give a number from {low:g} to {high:.4g} {unit}."
                )
        if not self.classes or not set(self.classes) <= {*CLASSES, ALIGNED}:
            available = ", ".join((*CLASSES, ALIGNED))
            raise ValueError(f"classes is {self.classes!r}; give some of {available}.")

    def layout(self, n_draws: int) -> dict:
        """Names, types and shapes of the values that a fit stores of a voxel."""
        return packed_cells_layout(self, n_draws)

    def fit_chunk(self, voxels: Voxels, n_draws: int) -> dict[str, np.ndarray]:
        """Values of a chunk of voxels."""
        posterior = self.posterior(voxels.signals, voxels.sigma, n_draws)
        return values_of_fit(self, voxels, posterior, n_draws)

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
            Signals of the wrong shape, not finite or all 0 in a voxel; a sigma of the wrong shape
            or not positive; a negative n_samples.
        """
        signals = np.ascontiguousarray(signals, dtype=float)
        if signals.shape[1:] != (len(self.acquisition),):
            raise ValueError(
                f"signals has shape {signals.shape}; the acquisition has {len(self.acquisition)} "
                f"measurements, so give (V, {len(self.acquisition)}) for V voxels."
            )
        if not (np.isfinite(signals).all(axis=1) & signals.any(axis=1)).all():
            raise ValueError(
                "signals has voxels that are 0 throughout or values that are not finite; leave "
                "such voxels out, or use fit, which marks them."
            )
        check_number("n_samples", n_samples, 0)
        if sigma is not None:
            sigma = per_voxel("sigma", sigma, (len(signals),)).copy()
            if not (np.isfinite(sigma) & (sigma > 0)).all():
                raise ValueError(
                    f"sigma is between {sigma.min():g} and {sigma.max():g}; give positive numbers "
                    "in the unit of the signals, or None."
                )
        return posterior_of(self._setting(), signals, sigma, n_samples, self.seed)

    @cached_property
    def prior_maps(self) -> dict[str, np.ndarray]:
        """Samples (N,) of maps from the prior."""
        samples = prior_maps(self._tissues(), self._um2_per_ms, _N_PRIOR_SAMPLES)
        return {name: samples[name] for name in self.Fit.MAPS if np.ptp(samples[name])}

    def _tissues(self):
        relaxes = np.ptp(self.pulses.te) > 0
        return [
            tissue_class(name, self._um2_per_ms is not None, relaxes, self.typical_radius)
            for name in self.classes
        ]

    def _setting(self):
        tissues = self._tissues()
        shapes = tuple(sorted(set().union(*(tissue.shapes for tissue in tissues))))
        signals = tissue_signals(
            self.pulses, self._um2_per_ms, self._free_um2_per_ms, shapes,
            radius_spread=self.radius_spread,
        )  # fmt: skip
        return Setting(
            self.pulses, signals, tissues, self.labels, self.used, self.groups, self._process
        )

    @cached_property
    def _process(self) -> GaussianProcess:
        return gaussian_process(self.pulses, self.labels, self.used)

    @property
    def labelled(self) -> BaseAcquisition:
        """The acquisition, grouped by the labels of amplitudes: other b0 are no repeats."""
        return self.acquisition.with_labels(self.labels)

    def labels_at(self, acquisition: BaseAcquisition) -> np.ndarray:
        """Label (M,) of other measurements: that of the same echo time or timing.

        Raises
        ------
        ValueError
            Measurements without a label of the fit.
        """
        if acquisition is self.acquisition:
            return self.labels
        fitted, others = map(equivalent_pulses, (self.acquisition, acquisition))
        return labels_of_others(fitted, self.labels, self.amplitudes, others)

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
