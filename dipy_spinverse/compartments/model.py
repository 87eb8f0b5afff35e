"""CompartmentModel: a model of compartments as a DIPY model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dipy.core.gradients import GradientTable
from dipy.direction.peaks import PeaksAndMetrics
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.acquisition.amplitudes import amplitude_labels
from dipy_spinverse.compartments.arguments import (
    acquisition_for,
    check_acquisition,
    check_kernels,
    complete,
    populations,
    with_known,
    without_noise_alone,
)
from dipy_spinverse.compartments.chunk import CompartmentChunkFit, voxels_per_chunk
from dipy_spinverse.compartments.definition import (
    UNITS,
    Compartment,
    Definition,
    Parameter,
    check_choice,
)
from dipy_spinverse.compartments.fibres import maps_of, with_fibres, with_S0_corrections
from dipy_spinverse.compartments.fit import CompartmentFit, compartment_layout, stored_parameters
from dipy_spinverse.compartments.fitting.amplitudes import predicted_signals
from dipy_spinverse.compartments.fitting.model_test import pooled_score_test
from dipy_spinverse.compartments.fitting.parameters import NonlinearParameters, physical_values
from dipy_spinverse.compartments.signals.encoding import encoding_of
from dipy_spinverse.compartments.signals.pools import pool_signals
from dipy_spinverse.docstrings import fill_doc
from dipy_spinverse.user_warnings import warn
from dipy_spinverse.voxels.chunks import Engine, check_number, fit_image
from dipy_spinverse.voxels.fit import with_warning_of_prior
from dipy_spinverse.voxels.image import image_of
from dipy_spinverse.voxels.model import VoxelModel
from dipy_spinverse.voxels.outliers import volumes_with_outliers, warn_of_volumes
from dipy_spinverse.voxels.status import Status

LIKELIHOODS = ("rician", "gaussian")
SOLVERS = ("variable-projection", "mix")
_N_DRAWS = 256
_N_PRIOR_SAMPLES = 4000  # a probability of 2/3 has a standard error of 0.007


class CompartmentModel(VoxelModel):
    """Signals as a sum of compartments; see :func:`compose` for custom models.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With pulse timings where the model has cylinders or spheres.
    definition : Definition
        Its compartments.
    te, mixing_time : float or array-like (M,), optional
        Echo times, and mixing times of stimulated echoes, s, where `gtab` is a GradientTable. Each
        pair has its own S0, from its b0.
    isotropic : bool or array-like (M,), optional
        Averages over all directions, where `gtab` is a GradientTable. Without other measurements
        axes and their dispersion are not determined.
    n_averages : int or array-like (M,), optional
        Magnitudes of which each measurement is the mean, as in `Acquisition`, where `gtab` is a
        GradientTable: the directions of a powder average, or repetitions.
    likelihood : {"rician", "gaussian"}, optional
        Distribution of the noise; "rician" for magnitudes of one coil, or of several combined
        with their sensitivities.
    amplitudes : {"te", "timing"} or array-like (M,), optional
        Measurements that share a signal without diffusion: those of one echo time, of one timing
        (if the gain or the echo time differs between diffusion times), or of one label.
    solver : {"variable-projection", "mix"}, optional
        "variable-projection": Levenberg-Marquardt with the fractions eliminated, from the best
        of a dictionary, or from several of it where the model may have several good fits. "mix":
        differential evolution instead of the dictionary [1]_. Both do all voxels at once.
    dtype : {"float64", "float32"}, optional
    seed : int, optional
        Seed of the posterior samples and of differential evolution.

    Raises
    ------
    ValueError
        Missing timings, too few shells or measurements for the model, an unknown option.

    References
    ----------
    .. [1] Farooq et al., Sci. Rep. 6 (2016) 38927, https://doi.org/10.1038/srep38927
    """

    Fit = CompartmentFit
    acquisition: BaseAcquisition

    def __init__(
        self,
        gtab: GradientTable | BaseAcquisition,
        definition: Definition,
        *,
        te: ArrayLike | None = None,
        mixing_time: ArrayLike | None = None,
        isotropic: ArrayLike | None = None,
        n_averages: ArrayLike | None = None,
        likelihood: str = "rician",
        amplitudes: str | ArrayLike = "te",
        solver: str = "variable-projection",
        dtype: str = "float64",
        seed: int = 0,
    ):
        check_choice("likelihood", likelihood, LIKELIHOODS)
        check_choice("solver", solver, SOLVERS)
        check_choice("dtype", dtype, ("float64", "float32"))
        self.definition = definition
        super().__init__(gtab, te, mixing_time, isotropic, n_averages)
        self.amplitudes = amplitudes if isinstance(amplitudes, str) else np.asarray(amplitudes)
        self.labels = amplitude_labels(self.acquisition, amplitudes)
        if type(self) is CompartmentModel:
            check_kernels(definition, self.acquisition)
        check_acquisition(definition, self.acquisition, self.labels)
        self.likelihood, self.solver, self.seed = likelihood, solver, int(seed)
        self.dtype = dtype

    @fill_doc
    def fit(
        self,
        data: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        sigma: ArrayLike | None = None,
        peaks: PeaksAndMetrics | None = None,
        crossings: bool = False,
        known: Mapping[str, ArrayLike] | None = None,
        n_draws: int = _N_DRAWS,
        engine: str = "serial",
        n_jobs: int = -1,
        verbose: bool = False,
        journal: str | Path | None = None,
        max_memory: float | None = None,
    ) -> CompartmentFit:
        """Fit voxels.

        Parameters
        ----------
        %(data)s
        %(mask)s
        %(sigma)s
        peaks : PeaksAndMetrics, optional
            Number (0 to 3) and initial directions of the fibre populations of each voxel. By
            default one population, initially along the first eigenvector of a diffusion tensor.
        crossings : bool, optional
            Fit the number (0 to 3) of fibre populations with the largest Bayesian evidence,
            whose directions are estimated without peaks.
        known : mapping of float or array-like (...), optional
            Values of parameters in each voxel, in the units of maps, such as a diffusivity that
            was measured or an earlier map; they are not fitted. Voxels where one is not finite
            get the status BAD_SAMPLES.
        %(n_draws)s
        %(execution)s

        Raises
        ------
        ValueError
            Arguments of wrong shape or range.
        """
        check_number("n_draws", n_draws, 0)
        if crossings and (peaks is not None or not self.definition.axes):
            raise ValueError(
                f"crossings=True estimates the fibre populations of {self.definition.name}; leave "
                "it out if peaks are given or the model has no axis."
            )
        if peaks is not None and len(self.definition.axes) > 1:
            raise ValueError(
                f"peaks are of fibre populations, each with one axis of the model; "
                f"{self.definition.name} has {len(self.definition.axes)} axes "
                f"({', '.join(self.definition.axes)}). Leave peaks out: its axes are found "
                "without them, or give the compartments one axis."
            )
        settings = Engine(engine, n_jobs, verbose, journal, max_memory)
        attributes = populations(peaks, np.shape(data)[:-1])
        image = image_of(
            data,
            mask,
            sigma,
            self.labelled,
            attributes=attributes,
            max_memory=max_memory,
            verbose=verbose,
        )
        known, several = dict(known or {}), crossings or peaks is not None
        image = with_known(image, known, self.definition, several)
        image = without_noise_alone(image, self.acquisition).with_initial_noise()
        definition = with_S0_corrections(self.definition, self.has_b0)
        definition = replace(definition, known=tuple(known))
        fit_chunk = CompartmentChunkFit(
            definition, self.acquisition, self.likelihood, self.solver, n_draws, self.seed,
            getattr(torch, self.dtype), crossings, refine_sigma=sigma is None,
            labels=self.labels,
        )  # fmt: skip
        groups = 2 * image.voxels.attributes["n_fibres"] + image.voxels.signed
        status, values = fit_image(
            image,
            fit_chunk,
            compartment_layout(
                definition, self.acquisition, len(self.has_b0), posterior=n_draws > 0
            ),
            settings,
            most=voxels_per_chunk(self.definition, self.acquisition, n_draws),
            model=self,
            options={
                "n_draws": n_draws,
                "sigma": sigma,
                "crossings": crossings,
                **attributes,
                **known,
            },
            groups=[np.flatnonzero(groups == group) for group in np.unique(groups)],
        )
        self._test_fixed_values(image.status, status, values)
        warn_of_volumes(volumes_with_outliers(values["outliers"]))
        return with_warning_of_prior(CompartmentFit(self, status, values))

    def _test_fixed_values(self, screened, status, values):
        """Mark voxels whose neighbourhoods reject a fixed value; warn if the image rejects it."""
        definition, fitted = self.definition, screened == Status.CONVERGED
        explained = status[fitted] != Status.MISFIT
        names = "_score", "_information", "_score_bias"
        statistics = (values[name][explained] for name in names)
        mask = fitted & (status != Status.MISFIT)
        rejected, supported = pooled_score_test(definition.fixed, *statistics, mask)
        status[mask] = np.where(rejected, Status.MISFIT, status[mask])
        for name, value in supported.items():
            unit = UNITS[definition.unit_of(name)]
            cure = definition.remedies.get(name, f"Give {name}={unit * value:.2g}")
            if name in definition.arguments:
                cure += f', or {name}="free", which has it fitted'
            warn(
                f"{name} is fixed at {unit * definition.fixed[name]:.3g} in {definition.name}, "
                f"but the data as a whole support about {unit * value:.2g}: the maps are biased, "
                f"and their intervals too narrow, also where the status is CONVERGED "
                f"({rejected.sum()} voxels are MISFIT). {cure}."
            )

    def signals_of_fit(
        self, values: Mapping[str, np.ndarray], acquisition: BaseAcquisition
    ) -> np.ndarray:
        """Signals (V, M) of the maximum-likelihood parameters."""
        encoding = encoding_of(acquisition, torch.float64, timed=self.definition.timed)
        result, n_fibres = np.zeros((len(values["S0"]), len(acquisition))), values["n_fibres"]
        size = voxels_per_chunk(self.definition, acquisition)
        for n in np.unique(n_fibres):
            definition = with_fibres(self.definition, int(n))
            pools = pool_signals(definition, encoding)
            pools_at_b0 = pool_signals(definition, encoding.without_diffusion())
            all_rows = np.flatnonzero(n_fibres == n)
            for rows in (all_rows[k : k + size] for k in range(0, len(all_rows), size)):
                nonlinear, fractions = stored_parameters(definition, values, rows)
                parameters = physical_values(definition, nonlinear)
                signals = predicted_signals(pools(parameters), fractions)
                if definition.has_relaxation:
                    signals = signals / predicted_signals(pools_at_b0(parameters), fractions)
                result[rows] = signals.numpy()
        return result

    def acquisition_of(
        self,
        gtab: GradientTable | BaseAcquisition,
        te: ArrayLike | None = None,
        **options: Any,
    ) -> BaseAcquisition:
        """Pulsed gradients, without timings where the model does not need them, or b-tensors."""
        return acquisition_for(gtab, self.definition, te, **options)

    def of_acquisition(self, gtab: GradientTable | BaseAcquisition) -> CompartmentModel:
        """The same model of other measurements."""
        model = copy(self)
        model.acquisition = self.acquisition_of(gtab)
        model.labels = amplitude_labels(model.acquisition, self.amplitudes)
        check_acquisition(self.definition, model.acquisition, model.labels)
        return model

    @property
    def has_b0(self) -> list[bool]:
        """Whether each label has b0."""
        b0 = self.acquisition.b0_mask
        return [bool(b0[self.labels == k].any()) for k in range(self.labels.max() + 1)]

    @property
    def labelled(self) -> BaseAcquisition:
        """The acquisition, grouped by the labels of amplitudes: other b0 are no repeats."""
        return self.acquisition.with_labels(self.labels)

    def settings(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Arguments of a published model; a summary of a composed one, without functions."""
        names = ("likelihood", "solver", "dtype", "seed")
        options, definition = {name: getattr(self, name) for name in names}, self.definition
        arrays = {}
        if isinstance(self.amplitudes, str):
            options["amplitudes"] = self.amplitudes
        else:
            arrays["amplitudes"] = self.amplitudes
        if type(self) is not CompartmentModel:
            return {**definition.arguments, **options}, arrays
        parameters = [[p.name, p.low, p.high] for p in definition.parameters]
        described = {"parameters": parameters, "pools": list(definition.pools)}
        return {"name": definition.name, **described, **options}, arrays

    def signals(
        self,
        parameters: Mapping[str, ArrayLike],
        gtab: GradientTable | BaseAcquisition | None = None,
    ) -> np.ndarray:
        """Noise-free signals of given parameters.

        Parameters
        ----------
        parameters : mapping of array-like (...) and (..., 3)
            Scalars of the definition in its own units (diffusivities um^2/ms, diameters um), axes
            (`axis`, and with fanning `axis_fan`), and fractions of pools, of which one may be left
            out. `S0` is 1 by default. The signals are differentiable in tensors.
        gtab : GradientTable or Acquisition, optional
            By default that of the model.

        Returns
        -------
        ndarray or Tensor (..., M)

        Raises
        ------
        ValueError
            Missing or unknown parameters.
        """
        acquisition = self.acquisition if gtab is None else self.acquisition_of(gtab)
        differentiable = any(isinstance(v, torch.Tensor) for v in parameters.values())
        values, shape = complete(self.definition, parameters)
        encoding = encoding_of(acquisition, torch.float64, timed=self.definition.timed)
        pools = pool_signals(self.definition, encoding)(values)
        fractions = torch.stack([values[name] for name in self.definition.pools], dim=1)
        signals = (values["S0"][:, None, None] * fractions[:, None] @ pools)[:, 0]
        signals = signals.reshape((*shape, len(acquisition)))
        return signals if differentiable else signals.numpy()

    def draw(self, n: int, seed: int | None = None) -> dict[str, np.ndarray]:
        """Parameters (n,) and axes (n, 3) from the prior, as `signals` takes them.

        Scalars have their priors, axes are uniform on the sphere, fractions among all that add up
        to one; S0 is 1.
        """
        rng = np.random.default_rng(self.seed if seed is None else seed)
        definition = self.definition
        unit = torch.tensor(rng.random((n, len(definition.parameters))))
        for k, p in enumerate(definition.parameters):
            unit[:, k] = p.quantile(unit[:, k])
        frames = np.linalg.qr(rng.standard_normal((n, len(definition.axes), 3, 3)))[0]
        values = physical_values(definition, NonlinearParameters(unit, torch.tensor(frames)))
        fractions = rng.dirichlet(np.ones(len(definition.pools)), n).T
        left_out = {"_", *definition.fixed}
        drawn = {name: value.numpy() for name, value in values.items() if name not in left_out}
        return drawn | dict(zip(definition.pools, fractions, strict=True)) | {"S0": np.ones(n)}

    @cached_property
    def prior_maps(self) -> dict[str, np.ndarray]:
        """Samples (N,) of maps from the prior, in the units of a fit."""
        return {
            name: values
            for name, values in self.maps(self.draw(_N_PRIOR_SAMPLES, seed=0)).items()
            if name != "S0"
        }

    def maps(self, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Maps of a fit (...), in their units, from parameters as `signals` takes them."""
        values, shape = complete(self.definition, parameters)
        maps = maps_of(self.definition, values) | {"S0": values["S0"]}
        return {name: value.reshape(shape).numpy() for name, value in maps.items()}

    def predict(
        self,
        parameters: Mapping[str, ArrayLike],
        gtab: GradientTable | BaseAcquisition | None = None,
        S0: ArrayLike = 1.0,
    ) -> np.ndarray:
        """As `signals`, with S0 (...) separate from the parameters."""
        return self.signals({**parameters, "S0": S0}, gtab)


def compose(
    gtab: GradientTable | BaseAcquisition,
    compartments: Iterable[Compartment],
    parameters: Iterable[Parameter] = (),
    *,
    name: str = "custom model",
    fixed: Mapping[str, float] | None = None,
    derived: Mapping[str, Callable] | None = None,
    maps: Iterable[str] = (),
    **kwargs: Any,
) -> CompartmentModel:
    """A custom model, from compartments and parameters.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
    compartments : iterable of Compartment
        Each argument is the name of a parameter (fitted within its bounds), a number (known), or
        a function of all values (linked).
    parameters : iterable of Parameter
    name : str, optional
    fixed : mapping of float, optional
        Values that arguments may name, which are not fitted, but tested against the data.
    derived : mapping, optional
        Further maps, functions of all values and fractions.
    maps : iterable of str, optional
        Names of the maps of a fit; by default all parameters, pools and derived maps.
    **kwargs
        As :class:`CompartmentModel`.

    Examples
    --------
    Sticks and free water, with a diffusivity of the sticks that is fitted:

    >>> import numpy as np
    >>> from dipy.core.gradients import gradient_table
    >>> from dipy_spinverse.compartments import Compartment, Parameter, compose
    >>> directions = np.random.default_rng(0).standard_normal((40, 3))
    >>> directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    >>> gtab = gradient_table(np.repeat([0, 1000, 2000, 3000], 10), bvecs=directions)
    >>> model = compose(
    ...     gtab,
    ...     [Compartment("stick", "neurites", {"diffusivity": "along"}),
    ...      Compartment("ball", "water", {"diffusivity": 3.0})],
    ...     [Parameter("along", 0.5, 3.0, "mm^2/s")])
    >>> truth = {"along": 2.0, "neurites": 0.7, "axis": [1, 0, 0]}
    >>> fit = model.fit(100 * model.signals(truth), sigma=0.01)
    >>> float(fit.along.round(6)), float(fit.neurites.round(3))
    (0.002, 0.7)
    """
    definition = Definition(
        name, tuple(parameters), tuple(compartments), fixed or {}, derived or {}, maps=tuple(maps)
    )
    return CompartmentModel(gtab, definition, **kwargs)
