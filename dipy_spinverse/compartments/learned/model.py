"""LearnedModel: learning to fit a compartment model from its own simulations."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
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
from dipy_spinverse.compartments.learned import learner_file, networks
from dipy_spinverse.compartments.learned.features import feature_encoder
from dipy_spinverse.compartments.learned.learner import Learner
from dipy_spinverse.compartments.learned.methods import check_options, predict, train
from dipy_spinverse.compartments.learned.out_of_distribution import (
    warn_if_noise_differs,
    warn_if_out_of_distribution,
)
from dipy_spinverse.compartments.learned.parameter_vectors import (
    parameter_vectors,
    residual_rms_of,
    residual_rows,
)
from dipy_spinverse.compartments.learned.targets import from_latent, latent, values_from
from dipy_spinverse.compartments.learned.training import training_set
from dipy_spinverse.compartments.model import CompartmentModel
from dipy_spinverse.docstrings import fill_doc
from dipy_spinverse.voxels.chunks import Engine, check_number, fit_image
from dipy_spinverse.voxels.image import Voxels, image_of, signal_without_diffusion
from dipy_spinverse.voxels.model import VoxelModel
from dipy_spinverse.voxels.progress import Bar, part
from dipy_spinverse.voxels.statistics import summary

_N_DRAWS = 128
# What settings and arrays raise that are not those of a learner.
_WRONG = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError)
_VOX_PER_CHUNK = 2000
_SIMULATED = 0.3  # of the time, before there is something to learn from


class LearnedModel(VoxelModel):
    """Learns to fit a compartment model, once; then a voxel costs a fraction of a fit.

    The model and its prior simulate the training set, with noise of all levels in `snr`. What
    the learner sees does not change when tissue and scan are turned (see `features`); the axis is
    that of the second-order harmonics of all shells together. One fibre population.

    Parameters
    ----------
    model : CompartmentModel
    gtab : GradientTable or Acquisition, optional
        That of the model where not given.
    method : {"mixture-density", "deep", "wide-and-deep", "trees", "ridge"}, optional
        "mixture-density" [1]_ gives a posterior: medians, standard deviations and 95 % intervals.
        The others give the mean alone: networks, boosted trees, and polynomial ridge regression
        (the last two need scikit-learn).
    features : iterable of {"zonal", "power", "dti", "dki", "signals"}, optional
        Beside the means of the shells and the noise: projections of the harmonics on the axis,
        lengths of the harmonics of each order, tensor and kurtosis parameters, or the signals.
    snr : tuple of float, optional
        Range of the signal without diffusion over the noise of one channel.
    n_train : int, optional
        Simulated voxels.
    seed : int, optional
        With the same one, the same learner results on the same machine.
    verbose : bool, optional
        Show a bar of the voxels that are learned, with the time that is left.
    **training
        Of the method: `optimizer` (any name in `torch.optim`), `learning_rate`, `width`,
        `depth`, `n_components`, `batch_size`, `max_epochs`, `patience` of networks;
        `learning_rate`, `max_iter`, `max_leaf_nodes` of trees; `degree`, `n_components`, `alpha`
        of ridge regression.

    Attributes
    ----------
    model : CompartmentModel
        With the acquisition that was learned.
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
    A training far too short to be used:

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
            learn = bar.fed_by(partial(self._learn, training=training))
            self.learner = learn(range(n_train))
            bar.finished(n_train)

    def _learn(self, voxels: range, training: dict[str, Any]):
        """The learner of as many simulated voxels, and its scaling."""
        with part(0.0, _SIMULATED):
            samples = training_set(self.model, self.encoder, len(voxels), self.snr, self.seed)
        x, y = samples.features, self._targets(samples)
        self.scaling = {
            "x_mean": x.mean(axis=0, dtype=float), "x_sd": _spread(x),
            "x_low": x.min(axis=0), "x_high": x.max(axis=0),
            "y_mean": y.mean(axis=0), "y_sd": _spread(y),
            "y_low": y.min(axis=0), "y_high": y.max(axis=0),
        }  # fmt: skip
        y = (y - self.scaling["y_mean"]) / self.scaling["y_sd"]
        with part(_SIMULATED, 1.0):
            return train(self.method, self._standard(x), y, self.seed, **training)

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
        """Maps of voxels, as :meth:`CompartmentModel.fit` gives them.

        Parameters
        ----------
        data : array-like (..., M)
            Magnitudes.
        %(mask)s
        sigma : float or array-like (...), optional
            Standard deviation of the noise in each channel. Where not given, from repeated b0, or
            from what is beyond the harmonics of a shell.
        n_draws : int, optional
            Draws from the posterior of "mixture-density"; 0 for means alone.
        refine : bool, optional
            Fit the model, beginning from what was learned.
        %(engine)s
        %(n_jobs)s
        %(verbose)s
        %(journal)s
        %(max_memory)s

        Returns
        -------
        CompartmentFit
            Of the model that was learned. Standard deviations and intervals only by
            "mixture-density"; ``NAME_likeliest`` is the map at the mean of the parameters.
            `residual_rms` is over 48 measurements, as all would cost more than learning.

        Raises
        ------
        ValueError
            Arguments of wrong shape or range, or a noise level that cannot be estimated.

        Warns
        -----
        UserWarning
            Noise outside of the range that was learned; signals unlike all of the training, or
            many that it does not explain.
        """
        check_number("n_draws", n_draws, 0)
        if n_draws == 1:
            raise ValueError(f"n_draws is {n_draws}; give 0, or at least 2.")
        how = Engine(engine, n_jobs, verbose, journal, max_memory)
        image = image_of(data, mask, sigma, self.acquisition, max_memory=max_memory)
        untold = np.flatnonzero(np.broadcast_to(image.freedom, len(image.voxels)) == 0)
        if len(untold):
            raise ValueError(
                "sigma is needed: there are too few repeated b0 measurements to estimate the "
                f"noise, and too few directions at low b in {len(untold)} voxels."
            )
        image = without_noise_alone(image, self.acquisition)
        image = replace(image, voxels=replace(image.voxels, sigma=image.noise))
        warn_if_noise_differs(image.noise / image.voxels.S0[:, 0], self.snr)
        posterior = self.method == "mixture-density" and n_draws > 0
        status, values = fit_image(
            image,
            partial(self._fit_chunk, n_draws=n_draws),
            compartment_layout(
                self.model.definition, image.voxels.S0.shape[1], posterior=posterior
            ),
            how if journal is None else replace(how, journal=Path(journal) / "learned"),
            most=_VOX_PER_CHUNK,
            model=self.model,
            options={"n_draws": n_draws, "sigma": sigma, **self.scaling, **self.learner.arrays},
        )
        warn_if_out_of_distribution(
            image, status, self.model.acquisition, self.encoder, self.scaling
        )
        fit = CompartmentFit(self.model, status, values)
        if refine:
            sigma = np.where(fit.sigma > 0, fit.sigma, 1)
            return self.model.fit(
                data, mask, sigma=sigma, initial_values=self.start(fit), n_draws=n_draws,
                engine=engine, n_jobs=n_jobs, verbose=verbose,
                journal=None if journal is None else Path(journal) / "refined",
                max_memory=max_memory,
            )  # fmt: skip
        return fit

    def draws(
        self, data: ArrayLike, *, sigma: float | None = None, n_draws: int = 1024
    ) -> dict[str, np.ndarray]:
        """Draws (n_draws,) of all maps of one voxel.

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
        if self.method != "mixture-density" or fit.shape != () or not fit.S0 > 0:
            raise ValueError(
                f"draws has the method {self.method!r} and voxels {fit.shape}; give the signals "
                'of one voxel, without NaN, to a learner with method="mixture-density".'
            )
        S0_te = signal_without_diffusion(data[None], self.model.acquisition)
        relative = data / S0_te[:, self.model.acquisition.te_index]
        features, _ = self.encoder(relative, float(fit.sigma) / S0_te)
        maps, _ = self._drawn(features, float(fit.sigma) / S0_te, n_draws)
        scale = {"S0": S0_te[0, 0]}
        return {name: scale.get(name, 1) * value[0].numpy() for name, value in maps.items()}

    def save(self, path: Path | str) -> None:
        """Write the learner to a file: arrays (npz) and a header (JSON), nothing that runs."""
        arrays = {f"scaling/{k}": v for k, v in self.scaling.items()}
        arrays |= {f"learner/{k}": v for k, v in self.learner.arrays.items()}
        header = {
            "method": self.method,
            "features": list(self.encoder.kinds),
            "snr": list(self.snr),
            "seed": self.seed,
            "settings": self.learner.settings,
        }
        learner_file.write(path, header, arrays, self.model)

    @classmethod
    def load(cls, path: Path | str, model: CompartmentModel) -> LearnedModel:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : path
        model : CompartmentModel
            The one that was learned, with the same acquisition.

        Raises
        ------
        ValueError
            A file of another kind, or a learner of another model or acquisition.
        """
        header, arrays = learner_file.read(path, model)
        learned = cls.__new__(cls)
        try:
            learned._assemble(model, *(header[k] for k in ("method", "features", "snr", "seed")))
            parts: dict[str, dict] = {"scaling": {}, "learner": {}}
            for key, value in arrays.items():
                kind, name = key.split("/", 1)
                parts[kind][name] = value
            learned.scaling = parts["scaling"]
            learned.learner = Learner(header["method"], parts["learner"], header["settings"])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                signals = model.signals(model.draw(1, seed=0))
                learned.fit(signals, sigma=1 / learned.snr[1], n_draws=2)
        except _WRONG as error:
            raise ValueError(
                f"{path} makes no learner ({type(error).__name__}: {error}); train one again."
            ) from error
        return learned

    def _assemble(self, model, method, features, snr, seed):
        self.model, self.acquisition = model, model.acquisition
        self.method, self.snr, self.seed = method, tuple(snr), int(seed)
        self.encoder = feature_encoder(model.acquisition, model.definition, features)

    def start(self, fit: CompartmentFit) -> dict[str, np.ndarray]:
        """What :meth:`CompartmentModel.fit` takes as `start`, from a fit of this learner."""
        definition = self.model.definition
        unit = torch.as_tensor(fit._unit)
        values = {
            p.name: (p.low + (p.high - p.low) * unit[..., k]).numpy()
            for k, p in enumerate(definition.parameters)
        }
        frames = fit._frames.reshape(*fit.shape, -1, 3, 3)
        lost = ~frames.any(axis=(-2, -1))
        frames = np.where(lost[..., None, None], np.eye(3), frames)
        values |= {name: frames[..., k, 2, :] for k, name in enumerate(definition.axes)}
        values |= {
            f"{name}_fan": frames[..., k, 0, :] for k, name in enumerate(definition.fanned_axes)
        }
        return values

    def _targets(self, samples):
        if self.method == "mixture-density":
            coordinates = latent(self.model.definition, samples.targets)
            return np.column_stack([coordinates, samples.S0])
        return np.column_stack([samples.targets, samples.S0, samples.derived])

    def _standard(self, features):
        s = self.scaling
        # Beyond what was seen in training, polynomials and networks would extrapolate.
        return (features.clip(s["x_low"], s["x_high"]) - s["x_mean"]) / s["x_sd"]

    def _fit_chunk(self, voxels: Voxels, n_draws: int) -> dict[str, np.ndarray]:
        """What a fit holds of voxels."""
        sigma = np.asarray(voxels.sigma)
        noise = sigma[:, None] / voxels.S0
        data = voxels.signals / voxels.S0[:, self.acquisition.te_index]
        n_checked = len(residual_rows(self.model.acquisition))
        result = self._estimated(data, noise, n_draws)
        return result | {
            "n_fibres": 1,
            "S0_per_te": voxels.S0 * result["S0_likeliest"][:, None],
            "converged": True,
            "sigma": sigma,
            "n_unknowns": len(self.acquisition) - n_checked,
            "excess": (result["residual_rms"] / sigma) ** 2,
        }

    def _estimated(self, data, noise, n_draws):
        """Maps, places and residual of signals over those without diffusion."""
        definition, s = self.model.definition, self.scaling
        features, frames = self.encoder(data, noise)
        n = len(definition.parameters) + len(definition.pools)
        if self.method == "mixture-density":
            maps, targets = self._drawn(features, noise, max(n_draws, _N_DRAWS))
            targets, S0 = targets.mean(dim=2).T.double().numpy(), maps["S0"].mean(dim=1).numpy()
        else:
            x = self._standard(features)
            y = predict(self.learner, x) * s["y_sd"] + s["y_mean"]
            y = y.clip(s["y_low"], s["y_high"])
            targets, S0 = y[:, :n].clip(0, 1), 1 + y[:, n] * noise[:, 0]
            pools = slice(len(definition.parameters), n)
            targets[:, pools] /= targets[:, pools].sum(axis=1, keepdims=True).clip(1e-12)
        values = values_from(definition, torch.tensor(targets.T))
        result = {k: v.numpy() for k, v in maps_of(definition, values).items()} | {"S0": S0}
        if self.method != "mixture-density":
            derived = [name for name in definition.derived if name in result]
            result |= dict(zip(derived, y[:, n + 1 :].T, strict=True))
        result |= {f"{name}_likeliest": value for name, value in result.items()}
        if self.method == "mixture-density" and n_draws:
            result |= summary({name: draws.numpy() for name, draws in maps.items()}, axis=1)
            result["effective_draws"] = np.full(len(data), float(n_draws))
        places = parameter_vectors(definition, targets, frames)
        floor = noise if self.model.likelihood == "rician" else None
        rms = residual_rms_of(definition, self.model.acquisition, places, S0, data, floor)
        return result | places | {"residual_rms": rms}

    def _drawn(self, features, noise, n_draws):
        """Draws (V, n) of maps, and targets (P + K, V, n)."""
        definition = self.model.definition
        y = networks.draw(self.learner, self._standard(features), n_draws, self.seed)
        mean, sd = (
            torch.tensor(self.scaling[k]).float()[:, None, None] for k in ("y_mean", "y_sd")
        )
        y = y * sd + mean
        targets = from_latent(definition, y[:-1])
        S0 = 1 + y[-1] * torch.tensor(noise[:, :1]).float()
        return maps_of(definition, values_from(definition, targets)) | {"S0": S0}, targets


def _spread(values):
    sd = values.std(axis=0, dtype=float)
    return np.where(sd > 1e-9, sd, 1.0)
