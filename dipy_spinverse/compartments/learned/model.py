"""LearnedModel: a regression that replaces the fit of a compartment model."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import BaseAcquisition, require_single_magnitudes
from dipy_spinverse.compartments.arguments import without_noise_alone
from dipy_spinverse.compartments.fibres import maps_of
from dipy_spinverse.compartments.fit import (
    CompartmentFit,
    compartment_layout,
    with_discrepancy,
)
from dipy_spinverse.compartments.learned.features import feature_encoder
from dipy_spinverse.compartments.learned.learner import Learner, Scaling
from dipy_spinverse.compartments.learned.learner_file import read_learner, write_learner
from dipy_spinverse.compartments.learned.networks import (
    DeepNetwork,
    MixtureDensityNetwork,
    WideAndDeepNetwork,
)
from dipy_spinverse.compartments.learned.out_of_distribution import (
    warn_if_noise_differs,
    warn_if_out_of_distribution,
)
from dipy_spinverse.compartments.learned.parameter_vectors import (
    checked_residual,
    checked_rows,
    parameter_vectors,
)
from dipy_spinverse.compartments.learned.scikit_learners import BoostedTrees, RidgeRegression
from dipy_spinverse.compartments.learned.targets import from_latent, to_latent, unscaled_targets
from dipy_spinverse.compartments.learned.training import training_set
from dipy_spinverse.compartments.model import CompartmentModel
from dipy_spinverse.docstrings import fill_doc
from dipy_spinverse.voxels.chunks import Engine, check_number, fit_image
from dipy_spinverse.voxels.fit import with_warning_of_prior
from dipy_spinverse.voxels.image import Voxels, image_of
from dipy_spinverse.voxels.model import VoxelModel
from dipy_spinverse.voxels.progress import Bar, part
from dipy_spinverse.voxels.statistics import statistics_of_maps
from dipy_spinverse.voxels.status import birge_variance

LEARNERS: dict[str, type[Learner]] = {
    "mixture-density": MixtureDensityNetwork,
    "deep": DeepNetwork,
    "wide-and-deep": WideAndDeepNetwork,
    "trees": BoostedTrees,
    "ridge": RidgeRegression,
}
# Posterior samples of a voxel: a power of two, for which Sobol sequences are balanced.
_N_DRAWS = 128
# Errors that invalid settings and arrays of a file raise.
_INVALID = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)
_VOX_PER_CHUNK = 2000  # limits memory
_SIMULATED = 0.3  # of the time of training, for its progress bar


class LearnedModel(VoxelModel):
    """A regression that replaces the fit of a compartment model, at a fraction of its cost.

    The model simulates the training set at parameters from its prior, with noise of all levels in
    `snr`. Features are invariant to joint rotations of tissue and scan; the axis is that of the
    second-order harmonics of all shells together. One fibre population.

    Parameters
    ----------
    model : CompartmentModel
    method : {"mixture-density", "deep", "wide-and-deep", "trees", "ridge"}, optional
        "mixture-density" [1]_ gives a posterior: medians, standard deviations and 95 % intervals.
        The others give the mean alone: networks, boosted trees, and polynomial ridge regression
        (the last two need scikit-learn).
    snr : tuple of float, optional
        Range of the signal without diffusion over the noise of one channel.
    n_train : int, optional
        Simulated voxels.
    feature_model : CompartmentModel, optional
        A model of the same acquisition, whose maximum-likelihood maps are features in addition to
        the signals: simpler regressions then suffice, at the cost of its fit.
    seed : int, optional
        The same seed gives the same learner on the same machine.
    verbose : bool, optional
        Show a progress bar of the training, with the estimated time left.
    **training
        Options of the method: `learning_rate`, `width`, `depth`, `n_components` (normal
        distributions of a mixture), `batch_size`, `max_epochs` of networks; `learning_rate`,
        `max_iter`, `max_leaf_nodes` of trees; `degree`, `n_components`, `alpha` (penalty) of ridge
        regression.

    Attributes
    ----------
    model : CompartmentModel
    learner : Learner
    acquisition : BaseAcquisition

    Raises
    ------
    ValueError
        Unknown method or training options; an acquisition that determines no axis.

    References
    ----------
    .. [1] Bishop, Mixture density networks, Aston University NCRG/94/004 (1994),
       https://publications.aston.ac.uk/id/eprint/373/

    Examples
    --------
    With a training that is too short for use:

    >>> import numpy as np
    >>> from dipy.core.gradients import gradient_table
    >>> from dipy_spinverse import LearnedModel, NODDIModel
    >>> directions = np.random.default_rng(0).standard_normal((60, 3))
    >>> directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    >>> gtab = gradient_table(np.repeat([0, 1000, 2500], 20), bvecs=directions)
    >>> model = NODDIModel(gtab)
    >>> learned = LearnedModel(model, snr=(20, 40), n_train=2000, max_epochs=10, batch_size=50)
    >>> data = model.signals({"ndi": 0.6, "odi": 0.2, "fwf": 0.1, "axis": [0, 0, 1]})
    >>> fit = learned.fit(data, sigma=0.03)  # model.fit(data, sigma=0.03) fits instead
    >>> bool(fit.ndi_low < fit.ndi < fit.ndi_high)
    True
    """

    acquisition: BaseAcquisition
    feature_scaling: Scaling
    target_scaling: Scaling
    learner: Learner

    def __init__(
        self,
        model: CompartmentModel,
        *,
        method: str = "mixture-density",
        snr: tuple[float, float] = (10.0, 100.0),
        n_train: int = 120_000,
        feature_model: CompartmentModel | None = None,
        seed: int = 0,
        verbose: bool = False,
        **training: Any,
    ):
        _check_options(method, training)
        if not 0 < snr[0] < snr[1]:
            raise ValueError(f"snr is {snr}; give a range, as (10, 100).")
        require_single_magnitudes(model.acquisition, f"a learned {model.definition.name}")
        if (model.labels != model.acquisition.te_index).any() or not all(model.has_b0):
            raise ValueError(
                f"model is {model.definition.name} with amplitudes that b0 of the echo times do "
                'not give; learned models need amplitudes="te" and b0 at each echo time. Fit it.'
            )
        self._assemble(model, method, snr, seed, feature_model)
        with Bar(n_train, verbose) as bar:
            train = bar.fed_by(partial(self._train, options=training))
            self.learner = train(range(n_train))
            bar.finished(n_train)

    def _assemble(self, model, method, snr, seed, feature_model):
        self.model, self.acquisition = model, model.acquisition
        self.method, self.snr, self.seed = method, tuple(snr), int(seed)
        self.encoder = feature_encoder(model.acquisition, model.definition, feature_model)

    def _train(self, voxels: range, options: dict[str, Any]) -> Learner:
        """Train on simulated voxels; sets the scalings."""
        with part(0.0, _SIMULATED):
            samples = training_set(self.model, self.encoder, len(voxels), self.snr, self.seed)
        if self._has_posterior:
            latent = to_latent(self.model.definition, samples.targets)
            targets = np.column_stack([latent, samples.S0])
        else:
            targets = np.column_stack([samples.targets, samples.S0, samples.derived])
        self.feature_scaling = Scaling.of(samples.features)
        self.target_scaling = Scaling.of(targets)
        with part(_SIMULATED, 1.0):
            return LEARNERS[self.method].train(
                self.feature_scaling.standardised(samples.features),
                self.target_scaling.standardised(targets),
                self.seed,
                **options,
            )

    @fill_doc
    def fit(
        self,
        data: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        sigma: ArrayLike | None = None,
        n_draws: int = _N_DRAWS,
        engine: str = "serial",
        n_jobs: int = -1,
        verbose: bool = False,
        journal: str | Path | None = None,
        max_memory: float | None = None,
    ) -> CompartmentFit:
        """Predict the maps of voxels; the result is that of :meth:`CompartmentModel.fit`.

        Parameters
        ----------
        %(data)s
        %(mask)s
        sigma : float or array-like (...), optional
            Standard deviation of the noise in each channel. By default it is estimated from
            repeated b0, or from the residual of spherical harmonics on the shells.
        n_draws : int, optional
            Posterior samples of "mixture-density", at least 2; with 0 only the means.
        %(execution)s

        Returns
        -------
        CompartmentFit
            Of the compartment model. Standard deviations and intervals only with
            "mixture-density"; ``NAME_likeliest`` is the map at the mean of the parameters.
            `residual_rms` is over 48 measurements, as all would cost more than the prediction.

        Raises
        ------
        ValueError
            Arguments of wrong shape or range, or a noise level that cannot be estimated.

        Warns
        -----
        UserWarning
            Noise outside of the range of the training; many signals outside of the distribution of
            the training set, or that the prediction does not explain.
        """
        check_number("n_draws", n_draws, 0)
        if n_draws == 1:
            raise ValueError(f"n_draws is {n_draws}; give 0, or at least 2.")
        execution = Engine(engine, n_jobs, verbose, journal, max_memory)
        image = image_of(
            data, mask, sigma, self.acquisition, max_memory=max_memory, verbose=verbose
        )
        n_unknown = np.count_nonzero(image.freedom == 0)
        if n_unknown:
            raise ValueError(
                "sigma is needed: there are too few repeated b0 measurements to estimate the "
                f"noise, and too few directions at low b in {n_unknown} voxels."
            )
        image = without_noise_alone(image, self.acquisition)
        image = replace(image, voxels=replace(image.voxels, sigma=image.noise))
        warn_if_noise_differs(image.noise / image.voxels.S0[:, 0], self.snr)
        status, values = fit_image(
            image,
            partial(self._fit_chunk, n_draws=n_draws),
            compartment_layout(
                self.model.definition,
                self.acquisition,
                image.voxels.S0.shape[1],
                posterior=self._has_posterior and n_draws > 0,
            ),
            execution,
            most=_VOX_PER_CHUNK,
            model=self.model,
            options={"n_draws": n_draws, "sigma": sigma, **self._arrays()},
        )
        warn_if_out_of_distribution(
            image, status, self.acquisition, self.encoder, self.feature_scaling
        )
        return with_warning_of_prior(CompartmentFit(self.model, status, values))

    def save(self, path: Path | str) -> None:
        """Write the learner to a file: arrays (npz) and a header (JSON), no code."""
        header = {
            "method": self.method,
            "snr": list(self.snr),
            "seed": self.seed,
            "feature_model": _name(self.encoder.fitted_model),
            "settings": self.learner.settings,
        }
        write_learner(path, header, self._arrays(), self.model)

    @classmethod
    def load(
        cls,
        path: Path | str,
        model: CompartmentModel,
        feature_model: CompartmentModel | None = None,
    ) -> LearnedModel:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : path
        model, feature_model : CompartmentModel
            Those of the training, with the same acquisition.

        Raises
        ------
        ValueError
            A file of another kind, or a learner of another model or acquisition.
        """
        header, stored = read_learner(path, model)
        if header.get("feature_model") != _name(feature_model):
            raise ValueError(
                f"{path} has the feature_model {header.get('feature_model')}, not "
                f"{_name(feature_model)}; give this model."
            )
        learned = cls.__new__(cls)
        try:
            method, snr, seed = (header[k] for k in ("method", "snr", "seed"))
            learned._assemble(model, method, snr, seed, feature_model)
            arrays: dict[str, dict[str, np.ndarray]] = {}
            for key, value in stored.items():
                group, name = key.split("/", 1)
                arrays.setdefault(group, {})[name] = value
            learned.feature_scaling = Scaling(**arrays["features"])
            learned.target_scaling = Scaling(**arrays["targets"])
            learned.learner = LEARNERS[learned.method](arrays["learner"], header["settings"])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                signals = model.signals(model.draw(1, seed=0))
                learned.fit(signals, sigma=1 / learned.snr[1], n_draws=2)
        except _INVALID as error:
            raise ValueError(
                f"{path} is no valid learner ({type(error).__name__}: {error}); train one again."
            ) from error
        return learned

    @property
    def _has_posterior(self):
        return LEARNERS[self.method] is MixtureDensityNetwork

    def _arrays(self):
        """All arrays that determine the predictions."""
        groups = {
            "features": vars(self.feature_scaling),
            "targets": vars(self.target_scaling),
            "learner": self.learner.arrays,
        }
        return {f"{group}/{name}": a for group, of in groups.items() for name, a in of.items()}

    def _fit_chunk(self, voxels: Voxels, n_draws: int) -> dict[str, np.ndarray]:
        """The arrays of a fit, by the names of `compartment_layout`."""
        definition, acquisition = self.model.definition, self.acquisition
        sigma = np.asarray(voxels.sigma)
        noise = sigma[:, None] / voxels.S0
        data = voxels.signals / voxels.S0[:, acquisition.te_index]
        features, frames = self.encoder(data, noise)
        if self._has_posterior:
            draws, samples = self._posterior_samples(features, noise, max(n_draws, _N_DRAWS))
            targets, S0 = samples.mean(dim=2).T.double().numpy(), draws["S0"].mean(dim=1).numpy()
        else:
            targets, S0, derived = self._point_estimate(features, noise)
        maps = maps_of(definition, unscaled_targets(definition, torch.tensor(targets.T)))
        result = {name: value.numpy() for name, value in maps.items()}
        if not self._has_posterior:
            names = [name for name in definition.derived if name in result]
            result |= dict(zip(names, derived.T, strict=True))
        result |= {"S0": S0}
        result |= {f"{name}_likeliest": value for name, value in result.items()}
        parameters = parameter_vectors(definition, targets, frames)
        noise_floor = noise if self.model.likelihood == "rician" else None
        rms = checked_residual(definition, acquisition, parameters, S0, data, noise_floor)
        if self._has_posterior and n_draws:
            n_checked = len(checked_rows(acquisition))
            birge_ratio = np.sqrt(birge_variance((rms / sigma) ** 2, n_checked))
            self._widen(draws, birge_ratio, data, noise)
            flat = {name: value.T.flatten() for name, value in draws.items()}
            flat = with_discrepancy(definition, flat, len(data))
            result |= statistics_of_maps(
                {name: value.reshape(-1, len(data)).numpy() for name, value in flat.items()}
            )
            result["birge_ratio"] = birge_ratio
            result["effective_draws"] = np.full(len(data), float(n_draws))
        return {
            **result,
            **parameters,
            "residual_rms": rms,
            "n_fibres": 1,
            "S0_per_te": voxels.S0 * S0[:, None],
            "S0_per_label": voxels.S0 * S0[:, None],
            "converged": True,
            "sigma": sigma,
            # So that the degrees of freedom are those of the checked measurements.
            "n_unknowns": len(acquisition) - len(checked_rows(acquisition)),
            "reduced_chi_square": (rms / sigma) ** 2,
        }

    def _widen(self, draws, birge_ratio, data, noise):
        """Replace draws (V, n) where the model is rejected by those of more noise.

        At most that of the training.
        """
        rows = np.flatnonzero(birge_ratio > 1)
        if len(rows):
            wide = np.minimum(noise * birge_ratio[:, None], 1 / self.snr[0])[rows]
            features, _ = self.encoder(data[rows], wide)
            n_draws = draws["S0"].shape[1]
            for name, values in self._posterior_samples(features, wide, n_draws)[0].items():
                draws[name][rows] = values

    def _point_estimate(self, features, noise):
        """Scaled targets (V, P + K), relative S0 (V,) and derived maps (V, D)."""
        n_parameters = len(self.model.definition.parameters)
        n = n_parameters + len(self.model.definition.pools)
        predicted = self.learner.predict(self.feature_scaling.standardised(features))
        predicted = self.target_scaling.restored(predicted)
        targets, S0 = predicted[:, :n].clip(0, 1), 1 + predicted[:, n] * noise[:, 0]
        fractions = targets[:, n_parameters:]
        fractions /= fractions.sum(axis=1, keepdims=True).clip(1e-12)
        return targets, S0, predicted[:, n + 1 :]

    def _posterior_samples(self, features, noise, n_draws):
        """Samples (V, n) of maps, and of scaled targets (P + K, V, n)."""
        definition, scaling = self.model.definition, self.target_scaling
        features = self.feature_scaling.standardised(features)
        samples = self.learner.sample(features, n_draws, self.seed)
        mean, sd = (torch.tensor(a).float()[:, None, None] for a in (scaling.mean, scaling.sd))
        samples = samples * sd + mean
        targets = from_latent(definition, samples[:-1])
        S0 = 1 + samples[-1] * torch.tensor(noise[:, :1]).float()
        return maps_of(definition, unscaled_targets(definition, targets)) | {"S0": S0}, targets


def _name(model):
    return model and model.definition.name


def _check_options(method: str, options: dict[str, Any]) -> None:
    """ValueError for options that training would refuse."""
    if method not in LEARNERS:
        raise ValueError(f"method is {method!r}; use one of {', '.join(LEARNERS)}.")
    if method in ("trees", "ridge") and find_spec("sklearn") is None:
        raise ValueError(
            f"method={method!r} needs scikit-learn (pip install scikit-learn); networks do not."
        )
    available = set(signature(LEARNERS[method].train).parameters) - {"features", "targets", "seed"}
    if not set(options) <= available:
        raise ValueError(
            f"{method} has no options {sorted(set(options) - available)}; it has "
            f"{sorted(available)}."
        )
