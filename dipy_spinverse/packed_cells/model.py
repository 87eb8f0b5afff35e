"""PackedCellsModel: tissue with packed cylinders and spheres as a DIPY model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from dipy.core.gradients import GradientTable
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import BaseAcquisition, as_acquisition
from dipy_spinverse.packed_cells.equivalent_pulses import equivalent_pulses
from dipy_spinverse.packed_cells.maps import PARAMETERS
from dipy_spinverse.packed_cells.nuisance import amplitude_labels, fast_signals, polarity_factors
from dipy_spinverse.packed_cells.posterior import PackedCellsPosterior, packed_cells_posterior
from dipy_spinverse.packed_cells.residual_tests import describe_residual, residual_groups
from dipy_spinverse.packed_cells.tissue_classes import CLASSES, TYPICAL_RADIUS, tissue_class
from dipy_spinverse.packed_cells.tissue_signals import tissue_signals
from dipy_spinverse.units import diffusivity_um2_per_ms
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.image import Voxels
from dipy_spinverse.voxels.model import VoxelModel
from dipy_spinverse.voxels.statistics import ENDINGS, of_axes, summary


class PackedCellsFit(VoxelFit):
    """What :meth:`PackedCellsModel.fit` found; see :class:`VoxelFit` for what a map has.

    Where `status` is MISFIT, intervals are those with so much more noise that the residual would
    be typical.

    Attributes
    ----------
    wall_orientation : ndarray (..., 3)
        Dominant axis of the draws, and
    wall_orientation_angle : ndarray (...)
        the angle to it that 95 % of them keep within, degrees.
    class_probabilities : ndarray (..., 5)
        Of cylinders, crossing cylinders, spheres, both side by side, and no cells at all.
    systematic_error : ndarray (...)
        Share of every signal that the scanner seems to add to the noise.
    free_diffusivity : ndarray (...)
        Of free water, likeliest, um^2/ms: that given, unless nothing explains the voxel with it.
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
        """Class of tissue (...) of the likeliest parameters; "" where nothing was fitted."""
        names = np.array(["", *CLASSES])
        return names[self._dense(self._values["_class"] + 1)]

    def residual_structure(self, index: tuple[int, ...] | int = ()) -> str:
        """What the likeliest tissue leaves of a voxel, in words.

        By shell, timing and direction to the axis: sums of squares over what noise, and known
        errors of the emulator, make them. Only what chance makes in less than one of 1000 voxels
        is named.

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
        squares, freedom = (
            voxel._values[name][0] for name in ("_group_chi_square", "_group_degrees_of_freedom")
        )
        return describe_residual(groups.names, squares, freedom)

    def predict(
        self, gtab: GradientTable | BaseAcquisition | None = None, S0: ArrayLike | None = None
    ) -> np.ndarray:
        """Noise-free signals (..., M) of the likeliest parameters.

        Parameters
        ----------
        gtab : GradientTable, Acquisition or WaveformAcquisition, optional
            Of what to predict; of the fitted data where not given.
        S0 : float or array-like (...), optional
            Signal without diffusion; the fitted amplitudes where not given.

        Raises
        ------
        ValueError
            Measurements of which no amplitude is known, an S0 of the wrong shape.
        """
        if S0 is not None or not len(self._rows):
            return super().predict(gtab, S0)
        own = self.model.acquisition
        acquisition = own if gtab is None else as_acquisition(gtab)
        scale = self._values["S0_per_label"][:, self.model.labels_at(acquisition)]
        return self._dense(scale * self.model.signals_of_fit(self._values, acquisition))


class PackedCellsModel(VoxelModel):
    """Packed permeable cells, and the water beside them: the posterior of a voxel's tissue.

    Dispersed or crossing cylinders, spheres, or both side by side, whose membranes water passes,
    with their signals from simulations of packings; beside them free water, water that does not
    move, and a hindered pool with a tensor of its own. These compete by evidence: `tissue_class`
    says which. Diffusivities inside and outside are unknown unless given: their prior, about 1.1
    um^2/ms by a factor of 1.8 and nearly equal, holds tissue in vivo and fixed. Where the data say
    little of them, as of spheres, which cannot determine both, the prior speaks.

    What opposite gradient directions differ by beyond chance, and what is gone at 100 s/mm^2 (of
    either sign, a priori within 5 % of the signal), is told from tissue and predicted. Voxels that
    nothing explains have two more unknowns: what b0 has beyond the rest, and the diffusivity of
    free water, a priori that given within a factor of 1.3.

    Free waveforms, such as oscillations and b-tensors, count as the pulses that are most like
    them, and what a closed form with exchange adds; its error widens the intervals. Waveforms that
    differ in all three directions are taken for symmetric about an axis.

    Parameters
    ----------
    gtab : GradientTable, Acquisition or WaveformAcquisition
        With the timings of pulses, or with waveforms. The first fit with new ones takes some
        seconds more.
    diffusivity : float or (inside, outside), optional
        Of the water in the tissue, mm^2/s, where known.
    free_diffusivity : float, optional
        Of free water, mm^2/s.
    typical_radius : float, optional
        Of the cells, um: where their radii are likely to be, within a factor of 3 or so. The
        default is that of white and grey matter; of muscle fibres it is about 25.
    radius_spread : float, optional
        Standard deviation of the radii of a voxel's cells over their mean, where it is known, as
        of axons from histology (0.4 to 0.6): radii are then gamma-distributed, and sizes those of
        equal cells with as much surface. The default takes cells as equal.
    amplitudes : {"te", "timing"} or array-like (M,), optional
        Measurements that share a signal without diffusion: those of one echo time, of one timing,
        or of one label, as where b0 or a sweep has its own.
    least_b : float, optional
        Weighted measurements below it, s/mm^2, do not count; b0 does.
    te, mixing_time, isotropic : optional
        Of a GradientTable, as in :meth:`dipy_spinverse.Acquisition.from_gtab`.
    seed : int, optional
        Of the draws.

    Raises
    ------
    ValueError
        Missing or inconsistent timings, b-tensors without waveforms, a diffusivity that is not in
        mm^2/s, labels of the wrong number.

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
        te: ArrayLike | None = None,
        mixing_time: ArrayLike | None = None,
        isotropic: ArrayLike | None = None,
        seed: int = 0,
    ):
        super().__init__(gtab, te, mixing_time, isotropic)
        self.pulses = equivalent_pulses(self.acquisition)
        self.diffusivity = None
        if diffusivity is not None:
            self.diffusivity = tuple(np.broadcast_to(diffusivity, 2).astype(float).tolist())
        self.free_diffusivity = float(free_diffusivity)
        self._free = diffusivity_um2_per_ms("free_diffusivity", free_diffusivity)
        self._known = None
        if self.diffusivity is not None:
            inside, outside = (
                diffusivity_um2_per_ms("diffusivity", each) for each in self.diffusivity
            )
            self._known = inside, outside
        self.typical_radius = float(typical_radius)
        self.radius_spread = float(radius_spread)
        self.amplitudes = amplitudes if isinstance(amplitudes, str) else np.asarray(amplitudes)
        self.labels = amplitude_labels(self.pulses, amplitudes)
        self.least_b = float(least_b)
        self.seed = int(seed)

    @property
    def used(self) -> np.ndarray:
        """(M,) bool: the measurements that count."""
        return self.acquisition.b0_mask | (self.acquisition.b >= 1e-3 * self.least_b)

    def layout(self, n_draws: int) -> dict:
        """Names, types and shapes of what a fit holds of a voxel."""
        endings = (*ENDINGS, "_likeliest") if n_draws else ("", "_likeliest")
        n_groups = len(residual_groups(self.pulses, self.used).names) + 3
        n_timings = len(self.pulses.timings)
        return {
            "wall_orientation": (float, (3,)),
            "wall_orientation_angle": float,
            "class_probabilities": (float, (len(CLASSES),)),
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
        } | {name + end: float for name in PackedCellsFit.MAPS for end in endings}

    def fit_chunk(self, voxels: Voxels, n_draws: int) -> dict[str, np.ndarray]:
        """Posterior of a chunk of voxels."""
        return self.values_of_fit(voxels, self.posterior(voxels, n_draws), n_draws)

    def posterior(self, voxels: Voxels, n_samples: int) -> PackedCellsPosterior:
        """Maximum a posteriori estimates and posterior samples of a chunk of voxels."""
        return packed_cells_posterior(
            self.pulses,
            voxels.signals,
            voxels.sigma,
            diffusivity=self._known,
            free_diffusivity=self._free,
            typical_radius=self.typical_radius,
            radius_spread=self.radius_spread,
            n_draws=n_samples,
            seed=self.seed,
            amplitudes=self.labels,
            least_b=1e-3 * self.least_b,
        )

    def values_of_fit(
        self, voxels: Voxels, posterior: PackedCellsPosterior, n_draws: int
    ) -> dict[str, np.ndarray]:
        """What a fit stores of a chunk of voxels, from the first `n_draws` samples."""
        names = PackedCellsFit.MAPS
        estimates = {name: posterior.estimated_maps[name] for name in names}
        values = {f"{name}_likeliest": value for name, value in estimates.items()}
        if n_draws:
            values |= summary({name: posterior.maps[name][:n_draws] for name in names})
            axis, angle = of_axes(posterior.maps["wall_orientation"][:n_draws])
        else:
            values |= estimates
            axis, angle = of_axes(posterior.estimated_maps["wall_orientation"][None])
        parameters = posterior.estimated_parameters
        residual = (voxels.signals - posterior.predicted)[:, self.used]
        n_unknowns = self.used.sum() - posterior.degrees_of_freedom
        return values | {
            "wall_orientation": axis,
            "wall_orientation_angle": angle,
            "class_probabilities": np.stack([*posterior.class_probabilities.values()], axis=1),
            "systematic_error": posterior.systematic_error,
            "free_diffusivity": self._free * np.exp(parameters["log_free_ratio"]),
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
            "excess": posterior.chi_square / posterior.degrees_of_freedom,
            "worst_excess": posterior.worst_reduced_chi_square,
            "worst_freedom": posterior.worst_degrees_of_freedom,
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
        own, others = (
            self._keys(equivalent_pulses(each)) for each in (self.acquisition, acquisition)
        )
        if not isinstance(self.amplitudes, str):
            # A label stands for its measurements alone, unless all of a timing have the same.
            pairs = np.unique(np.column_stack([own, self.labels]), axis=0)
            unclear = len(np.unique(own, axis=0)) < len(pairs)
        known, first = np.unique(own, axis=0, return_index=True)
        apart = np.abs(others[:, None] - known).max(axis=2)
        if apart.min(axis=1).max() > 1e-3 or (not isinstance(self.amplitudes, str) and unclear):
            raise ValueError(
                "gtab has measurements whose amplitude the fit does not tell; predict at the "
                "timings that were fitted, or give S0."
            )
        return self.labels[first][apart.argmin(axis=1)]

    def _keys(self, acquisition):
        echo = acquisition.te, acquisition.mixing_time
        pulses = acquisition.small_delta, acquisition.big_delta
        by_echo = isinstance(self.amplitudes, str) and self.amplitudes == "te"
        return np.column_stack(echo if by_echo else (*echo, *pulses))

    def signals_of_fit(
        self, values: Mapping[str, np.ndarray], acquisition: BaseAcquisition
    ) -> np.ndarray:
        """Signals (V, M) of the likeliest tissue."""
        pulses = equivalent_pulses(acquisition)
        model = tissue_signals(
            pulses, self._known, self._free, interpolated=False,
            shortest_te=self.acquisition.te.min(), radius_spread=self.radius_spread,
        )  # fmt: skip
        parameters = dict(zip(PARAMETERS, values["_parameters"].T, strict=True))
        signals = np.empty((len(values["_class"]), len(pulses)))
        for k, name in enumerate(CLASSES):
            rows = np.flatnonzero(values["_class"] == k)
            if len(rows):
                own = {each: value[rows] for each, value in parameters.items()}
                tissue = tissue_class(name, self._known is not None, relaxes=True)
                tissue = tissue.of_unknown_water
                found = model.of_values(tissue, own, values["_frame"][rows])
                signals[np.ix_(rows, model.shells.order)] = found
        signals += fast_signals(self.pulses, pulses, values["_fast_fraction"])
        return signals * polarity_factors(self.pulses, pulses, values["_polarity_asymmetry"])

    def settings(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Its arguments."""
        names = "diffusivity", "free_diffusivity", "typical_radius", "radius_spread", "least_b"
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
    """Mean amplitude (V, K) of the measurements of each echo time."""
    at = model.acquisition.te_index == np.arange(len(model.acquisition.echo_times))[:, None]
    return amplitudes[:, model.labels] @ at.T / at.sum(axis=1)
