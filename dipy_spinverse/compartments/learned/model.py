"""LearnedModel: a regression that replaces the fit of a compartment model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dipy.core.gradients import GradientTable
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.compartments.arguments import without_noise_alone
from dipy_spinverse.compartments.fibres import maps_of
from dipy_spinverse.compartments.fit import CompartmentFit, compartment_layout
from dipy_spinverse.compartments.learned.features import feature_encoder
from dipy_spinverse.compartments.learned.learner import Learner, Scaling
from dipy_spinverse.compartments.learned.learner_file import read_learner, write_learner
from dipy_spinverse.compartments.learned.methods import LEARNERS, check_options
from dipy_spinverse.compartments.learned.networks import MixtureDensityNetwork
from dipy_spinverse.compartments.learned.out_of_distribution import (
    warn_if_noise_differs,
    warn_if_out_of_distribution,
)
from dipy_spinverse.compartments.learned.parameter_vectors import (
    checked_residual,
    checked_rows,
    parameter_vectors,
)
from dipy_spinverse.compartments.learned.targets import from_latent, parameter_values, to_latent
from dipy_spinverse.compartments.learned.training import training_set
from dipy_spinverse.compartments.model import CompartmentModel
from dipy_spinverse.docstrings import fill_doc
from dipy_spinverse.voxels.chunks import Engine, check_number, fit_image
from dipy_spinverse.voxels.image import Voxels, image_of, signal_without_diffusion
from dipy_spinverse.voxels.model import VoxelModel
from dipy_spinverse.voxels.progress import Bar, part
from dipy_spinverse.voxels.statistics import summary

# Posterior samples of a voxel: a power of two, for which Sobol sequences are balanced.
_N_DRAWS = 128
# What settings and arrays of a file raise that are not those of a learner.
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
    gtab : GradientTable or Acquisition, optional
        That of the model by default.
    method : {"mixture-density", "deep", "wide-and-deep", "trees", "ridge"}, optional
        "mixture-density" [1]_ gives a posterior: medians, standard deviations and 95 % intervals.
        The others give the mean alone: networks, boosted trees, and polynomial ridge regression
        (the last two need scikit-learn).
    features : iterable of {"zonal", "power", "dti", "dki", "signals"}, optional
        In addition to the means of the shells and the noise; see
        :func:`dipy_spinverse.compartments.learned.features.feature_encoder`.
    snr : tuple of float, optional
        Range of the signal without diffusion over the noise of one channel.
    n_train : int, optional
        Simulated voxels.
    seed : int, optional
        The same seed gives the same learner on the same machine.
    verbose : bool, optional
        Show a progress bar of the training, with the estimated time left.
    **training
        Options of the method: `optimizer` (any name in `torch.optim`), `learning_rate`, `width`,
        `depth`, `n_components`, `batch_size`, `max_epochs`, `patience` of networks;
        `learning_rate`, `max_iter`, `max_leaf_nodes` of trees; `degree`, `n_components`, `alpha`
        of ridge regression.

    Attributes
    ----------
    model : CompartmentModel
        With the acquisition of the training.
    learner : Learner
    acquisition : BaseAcquisition

    Raises
    ------
    ValueError
        Unknown method, features or training options; an acquisition that determines no axis.

    References
    ----------
    .. [1] Bishop, Mixture density networks, Aston University NCRG/94/004 (1994),
       https://publications.aston.ac.uk/id/eprint/373/

    Examples
    --------
    With a training that is far too short for use:

    >>> import numpy as np
    >>> from dipy.core.gradients import gradient_table
    >>> from dipy_spinverse import LearnedModel, NODDIModel
    >>> directions = np.random.default_rng(0).standard_normal((60, 3))
    >>> directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    >>> gtab = gradient_table(np.repeat([0, 1000, 2500], 20), bvecs=directions)
    >>> model = NODDIModel(gtab)
    >>> learned = LearnedModel(model, snr=(20, 40), n_train=500, max_epochs=2)
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
        gtab: GradientTable | BaseAcquisition | None = None,
        *,
        method: str = "mixture-density",
        features: Iterable[str] = ("zonal",),
        snr: tuple[float, float] = (10.0, 100.0),
        n_train: int = 120_000,
        seed: int = 0,
        verbose: bool = False,
        **training: Any,
    ):
        check_options(method, training)
        if not 0 < snr[0] < snr[1]:
            raise ValueError(f"snr is {snr}; give a range, as (10, 100).")
        if gtab is not None:
            model = model.of_acquisition(gtab)
        self._assemble(model, method, features, snr, seed)
        with Bar(n_train, verbose) as bar:
            train = bar.fed_by(partial(self._train, options=training))
            self.learner = train(range(n_train))
            bar.finished(n_train)

    def _assemble(self, model, method, features, snr, seed):
        self.model, self.acquisition = model, model.acquisition
        self.method, self.snr, self.seed = method, tuple(snr), int(seed)
        self.encoder = feature_encoder(model.acquisition, model.definition, features)

    def _train(self, voxels: range, options: dict[str, Any]) -> Learner:
        """The learner and its scaling, from as many simulated voxels."""
        with part(0.0, _SIMULATED):
            samples = training_set(self.model, self.encoder, len(voxels), self.snr, self.seed)
        learner = LEARNERS[self.method]
        if learner is MixtureDensityNetwork:
            latent = to_latent(self.model.definition, samples.targets)
            targets = np.column_stack([latent, samples.S0])
        else:
            targets = np.column_stack([samples.targets, samples.S0, samples.derived])
        self.feature_scaling = Scaling.of(samples.features)
        self.target_scaling = Scaling.of(targets)
        with part(_SIMULATED, 1.0):
            return learner.train(
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
        refine: bool = False,
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
            Posterior samples of "mixture-density"; with 0 only the means.
        refine : bool, optional
            Fit the model, with the predictions as initial values.
        %(engine)s
        %(n_jobs)s
        %(verbose)s
        %(journal)s
        %(max_memory)s

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
        image = image_of(data, mask, sigma, self.acquisition, max_memory=max_memory)
        n_unknown = np.count_nonzero(np.broadcast_to(image.freedom, len(image.voxels)) == 0)
        if n_unknown:
            raise ValueError(
                "sigma is needed: there are too few repeated b0 measurements to estimate the "
                f"noise, and too few directions at low b in {n_unknown} voxels."
            )
        image = without_noise_alone(image, self.acquisition)
        image = replace(image, voxels=replace(image.voxels, sigma=image.noise))
        warn_if_noise_differs(image.noise / image.voxels.S0[:, 0], self.snr)
        posterior = isinstance(self.learner, MixtureDensityNetwork) and n_draws > 0
        status, values = fit_image(
            image,
            partial(self._fit_chunk, n_draws=n_draws),
            compartment_layout(
                self.model.definition, image.voxels.S0.shape[1], posterior=posterior
            ),
            execution
            if journal is None
            else replace(execution, journal=Path(journal) / "learned"),
            most=_VOX_PER_CHUNK,
            model=self.model,
            options={"n_draws": n_draws, "sigma": sigma, **self._arrays()},
        )
        warn_if_out_of_distribution(
            image, status, self.acquisition, self.encoder, self.feature_scaling
        )
        fit = CompartmentFit(self.model, status, values)
        if refine:
            sigma = np.where(fit.sigma > 0, fit.sigma, 1)
            return self.model.fit(
                data, mask, sigma=sigma, initial_values=self.initial_values(fit), n_draws=n_draws,
                engine=engine, n_jobs=n_jobs, verbose=verbose,
                journal=None if journal is None else Path(journal) / "refined",
                max_memory=max_memory,
            )  # fmt: skip
        return fit

    def draws(
        self, data: ArrayLike, *, sigma: float | None = None, n_draws: int = 1024
    ) -> dict[str, np.ndarray]:
        """Posterior samples (n_draws,) of all maps of one voxel.

        Parameters
        ----------
        data : array-like (M,)
        sigma : float, optional
            As for `fit`.
        n_draws : int, optional

        Raises
        ------
        ValueError
            A method without a posterior, or other than one voxel that can be fitted.
        """
        data = np.asarray(data, dtype=float)
        fit = self.fit(data, sigma=sigma, n_draws=0)
        has_posterior = isinstance(self.learner, MixtureDensityNetwork)
        if not has_posterior or fit.shape != () or not fit.S0 > 0:
            raise ValueError(
                f"draws has the method {self.method!r} and voxels {fit.shape}; give the signals "
                'of one voxel, without NaN, to a learner with method="mixture-density".'
            )
        S0_te = signal_without_diffusion(data[None], self.acquisition)
        relative, noise = data / S0_te[:, self.acquisition.te_index], float(fit.sigma) / S0_te
        maps, _ = self._posterior_samples(self.encoder(relative, noise)[0], noise, n_draws)
        scale = {"S0": S0_te[0, 0]}
        return {name: scale.get(name, 1) * value[0].numpy() for name, value in maps.items()}

    def initial_values(self, fit: CompartmentFit) -> dict[str, np.ndarray]:
        """Initial values for the argument of :meth:`CompartmentModel.fit`, from a prediction."""
        definition = self.model.definition
        values = {
            p.name: p.low + (p.high - p.low) * fit._unit[..., k]
            for k, p in enumerate(definition.parameters)
        }
        frames = fit._frames.reshape(*fit.shape, -1, 3, 3)
        has_frame = frames.any(axis=(-2, -1))
        frames = np.where(has_frame[..., None, None], frames, np.eye(3))
        values |= {name: frames[..., k, 2, :] for k, name in enumerate(definition.axes)}
        values |= {
            f"{name}_fan": frames[..., k, 0, :] for k, name in enumerate(definition.fanned_axes)
        }
        return values

    def save(self, path: Path | str) -> None:
        """Write the learner to a file: arrays (npz) and a header (JSON), no code."""
        header = {
            "method": self.method,
            "features": list(self.encoder.kinds),
            "snr": list(self.snr),
            "seed": self.seed,
            "settings": self.learner.settings,
        }
        write_learner(path, header, self._arrays(), self.model)

    @classmethod
    def load(cls, path: Path | str, model: CompartmentModel) -> LearnedModel:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : path
        model : CompartmentModel
            The one of the training, with the same acquisition.

        Raises
        ------
        ValueError
            A file of another kind, or a learner of another model or acquisition.
        """
        header, stored = read_learner(path, model)
        learned = cls.__new__(cls)
        try:
            learned._assemble(model, *(header[k] for k in ("method", "features", "snr", "seed")))
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
                f"{path} makes no learner ({type(error).__name__}: {error}); train one again."
            ) from error
        return learned

    def _arrays(self):
        """All arrays that determine the predictions."""
        groups = {"features": self.feature_scaling, "targets": self.target_scaling}
        arrays = {
            f"{group}/{field.name}": getattr(scaling, field.name)
            for group, scaling in groups.items()
            for field in fields(scaling)
        }
        return arrays | {f"learner/{name}": value for name, value in self.learner.arrays.items()}

    def _fit_chunk(self, voxels: Voxels, n_draws: int) -> dict[str, np.ndarray]:
        """The arrays of a fit, by the names of `compartment_layout`."""
        definition, acquisition = self.model.definition, self.acquisition
        sigma = np.asarray(voxels.sigma)
        noise = sigma[:, None] / voxels.S0
        data = voxels.signals / voxels.S0[:, acquisition.te_index]
        features, frames = self.encoder(data, noise)
        if isinstance(self.learner, MixtureDensityNetwork):
            maps, samples = self._posterior_samples(features, noise, max(n_draws, _N_DRAWS))
            targets, S0 = samples.mean(dim=2).T.double().numpy(), maps["S0"].mean(dim=1).numpy()
            result = self._maps_at(targets)
        else:
            targets, S0, derived = self._point_estimate(features, noise)
            result = self._maps_at(targets)
            names = [name for name in definition.derived if name in result]
            result |= dict(zip(names, derived.T, strict=True))
        result |= {"S0": S0}
        result |= {f"{name}_likeliest": value for name, value in result.items()}
        if isinstance(self.learner, MixtureDensityNetwork) and n_draws:
            result |= summary({name: value.numpy() for name, value in maps.items()}, axis=1)
            result["effective_draws"] = np.full(len(data), float(n_draws))
        parameters = parameter_vectors(definition, targets, frames)
        noise_floor = noise if self.model.likelihood == "rician" else None
        rms = checked_residual(definition, acquisition, parameters, S0, data, noise_floor)
        return (
            result
            | parameters
            | {
                "residual_rms": rms,
                "n_fibres": 1,
                "S0_per_te": voxels.S0 * S0[:, None],
                "converged": True,
                "sigma": sigma,
                "n_unknowns": len(acquisition) - len(checked_rows(acquisition)),
                "excess": (rms / sigma) ** 2,
            }
        )

    def _maps_at(self, targets):
        definition = self.model.definition
        maps = maps_of(definition, parameter_values(definition, torch.tensor(targets.T)))
        return {name: value.numpy() for name, value in maps.items()}

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
        return maps_of(definition, parameter_values(definition, targets)) | {"S0": S0}, targets
