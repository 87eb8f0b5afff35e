"""LearnedFit: learning to fit a compartment model from its own simulations."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from dipy.core.gradients import GradientTable

from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.compartments.arguments import signal_without_diffusion
from dipy_spinverse.compartments.chunk import MOST_FIBRES
from dipy_spinverse.compartments.coordinates import Place, values_of
from dipy_spinverse.compartments.definition import maps_of
from dipy_spinverse.compartments.encoding import encoding_of
from dipy_spinverse.compartments.fit import CompartmentFit
from dipy_spinverse.compartments.learned import networks, ridge, storage, trees
from dipy_spinverse.compartments.learned.features import encoder_for
from dipy_spinverse.compartments.learned.learner import Learner
from dipy_spinverse.compartments.learned.targets import from_latent, latent, values_from
from dipy_spinverse.compartments.learned.training import training_set
from dipy_spinverse.compartments.model import CompartmentModel
from dipy_spinverse.compartments.signals import pool_signals
from dipy_spinverse.compartments.variable_projection import combined
from dipy_spinverse.inversion.noise import noise_from_b0
from dipy_spinverse.voxels import Status, per_voxel, screened

_NETWORKS = ("deep", "wide-and-deep", "mixture-density")
METHODS = ("mixture-density", "deep", "wide-and-deep", "trees", "ridge")
_N_DRAWS = 256
_VOX_PER_CHUNK = 2000
_N_CHECKED = 48  # measurements that tell whether the model explains a voxel


class LearnedFit:
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
        "mixture-density" [1]_ gives a posterior: means, standard deviations and 95 % intervals.
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
    >>> learned = LearnedFit(NODDIModel(gtab))  # doctest: +SKIP
    >>> fit = learned.fit(data)  # doctest: +SKIP
    >>> fit.ndi, fit.ndi_low, fit.ndi_high  # doctest: +SKIP
    """

    def __init__(
        self,
        model: CompartmentModel,
        gtab: GradientTable | Acquisition | None = None,
        *,
        method: str = "mixture-density",
        features: Iterable[str] = ("zonal",),
        snr: tuple[float, float] = (10.0, 100.0),
        n_train: int = 120_000,
        seed: int = 0,
        **training,
    ):
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; use one of {', '.join(METHODS)}.")
        if not 0 < snr[0] < snr[1]:
            raise ValueError(f"snr is {snr}; give a range, as (10, 100).")
        if gtab is not None:
            model = CompartmentModel(
                gtab, model.definition, likelihood=model.likelihood, solver=model.solver,
                dtype=model.dtype, seed=model.seed,
            )  # fmt: skip
        self._assemble(model, method, features, snr, seed)
        samples = training_set(model, self.encoder, n_train, self.snr, self.seed)
        x, y = samples.features, self._targets(samples)
        self.scaling = {
            "x_mean": x.mean(axis=0, dtype=float), "x_sd": _spread(x),
            "x_low": x.min(axis=0), "x_high": x.max(axis=0),
            "y_mean": y.mean(axis=0), "y_sd": _spread(y),
            "y_low": y.min(axis=0), "y_high": y.max(axis=0),
        }  # fmt: skip
        y = (y - self.scaling["y_mean"]) / self.scaling["y_sd"]
        self.learner = _trainer(method)(self._standard(x), y, self.seed, **training)

    def fit(
        self,
        data: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        sigma: float | np.ndarray | None = None,
        n_draws: int = _N_DRAWS,
        refine: bool = False,
        vox_per_chunk: int = _VOX_PER_CHUNK,
    ) -> CompartmentFit:
        """Maps of voxels, as :meth:`CompartmentModel.fit` gives them.

        Parameters
        ----------
        data : array-like (..., M)
            Magnitudes.
        mask : array-like (...), optional
            Voxels to fit; all where not given.
        sigma : float or array-like (...), optional
            Standard deviation of the noise in each channel. Where not given, from repeated b0, or
            from what is beyond the harmonics of a shell.
        n_draws : int, optional
            Draws from the posterior of "mixture-density".
        refine : bool, optional
            Fit the model, beginning from what was learned.
        vox_per_chunk : int, optional
            Voxels held in memory together.

        Returns
        -------
        CompartmentFit
            Its values are posterior means. Without standard deviations and intervals unless the
            method is "mixture-density".
            `status` is MISFIT where the model does not explain the signals; `residual_rms` is over
            48 measurements spread over the acquisition, as all would cost more than learning.

        Raises
        ------
        ValueError
            Arguments of wrong shape or range, or a noise level that cannot be estimated.

        Warns
        -----
        UserWarning
            Noise outside of the range that was learned.
        """
        model, acquisition = self.model, self.model.acquisition
        data = np.asarray(data)
        if not 1 <= data.ndim <= 4 or data.shape[-1] != len(acquisition):
            raise ValueError(
                f"data has shape {data.shape}, the acquisition {len(acquisition)} measurements; "
                "give them along the last of 1 to 4 axes."
            )
        if n_draws < 2 or vox_per_chunk < 1:
            raise ValueError(
                f"n_draws is {n_draws} and vox_per_chunk {vox_per_chunk}; give at least 2 and 1."
            )
        shape = data.shape[:-1]
        flat = data.reshape(-1, data.shape[-1]).astype(float)
        wanted = per_voxel("mask", True if mask is None else mask, shape).astype(bool)
        S0_te = signal_without_diffusion(flat, acquisition)
        status = screened(flat, wanted, S0_te.min(axis=1))
        chosen = np.flatnonzero(status == Status.CONVERGED)
        noise = np.zeros(len(flat))
        noise[chosen] = self._noise(flat[chosen], S0_te[chosen], sigma, shape, chosen)
        self._warn_of_noise(noise[chosen] / S0_te[chosen, 0])
        arrays = model._empty(len(flat), n_draws if self.method == "mixture-density" else 0)
        for first in range(0, len(chosen), vox_per_chunk):
            part = chosen[first : first + vox_per_chunk]
            relative = noise[part, None] / S0_te[part]
            found = self._voxels(
                flat[part] / S0_te[part][:, acquisition.te_index], relative, n_draws
            )
            for name, value in found.items():
                arrays[name][(part, *map(slice, value.shape[1:]))] = value
        arrays["sigma"][chosen] = noise[chosen] / S0_te[chosen, 0]
        count = np.ones(len(flat), dtype=int)
        S0 = np.where(status == Status.CONVERGED, S0_te[:, 0], 1)
        fit = model._as_fit(arrays, status, count, S0, S0_te / S0[:, None], noise, shape)
        if refine:
            sigma = np.where(fit.sigma > 0, fit.sigma, 1)
            return model.fit(data, mask, sigma=sigma, start=self.start(fit))
        return fit

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
        storage.write(path, header, arrays, self.model)

    @classmethod
    def load(cls, path: Path | str, model: CompartmentModel) -> LearnedFit:
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
        header, arrays = storage.read(path, model)
        learned = cls.__new__(cls)
        learned._assemble(model, *(header[k] for k in ("method", "features", "snr", "seed")))
        parts = {"scaling": {}, "learner": {}}
        for key, value in arrays.items():
            part, name = key.split("/", 1)
            parts[part][name] = value
        learned.scaling = parts["scaling"]
        learned.learner = Learner(header["method"], parts["learner"], header["settings"])
        return learned

    def _assemble(self, model, method, features, snr, seed):
        self.model, self.method, self.snr, self.seed = model, method, tuple(snr), int(seed)
        self.encoder = encoder_for(model.acquisition, model.definition, features)

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
        values |= {f"{name}_fan": frames[..., k, 0, :] for k, name in enumerate(definition.fans)}
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

    def _voxels(self, data, noise, n_draws):
        """What a fit holds of voxels, over their measured signal without diffusion."""
        definition, s = self.model.definition, self.scaling
        features, frames = self.encoder(data, noise)
        x = self._standard(features)
        n = len(definition.parameters) + len(definition.pools)
        if self.method == "mixture-density":
            y = networks.draw(self.learner, x, n_draws, self.seed)
            mean, sd = (torch.tensor(s[k]).float()[:, None, None] for k in ("y_mean", "y_sd"))
            y = y * sd + mean
            targets = from_latent(definition, y[:-1])
            S0 = 1 + y[-1] * torch.tensor(noise[:, :1]).float()
            maps = maps_of(definition, values_from(definition, targets)) | {"S0": S0}
            result = _summary(maps)
            result["effective_draws"] = np.full(len(data), float(n_draws))
            targets, S0 = targets.mean(dim=2).T.double().numpy(), result["S0"]
        else:
            y = _predictor(self.method)(self.learner, x) * s["y_sd"] + s["y_mean"]
            y = y.clip(s["y_low"], s["y_high"])
            targets, S0 = y[:, :n].clip(0, 1), 1 + y[:, n] * noise[:, 0]
            pools = slice(len(definition.parameters), n)
            targets[:, pools] /= targets[:, pools].sum(axis=1, keepdims=True).clip(1e-12)
            values = values_from(definition, torch.tensor(targets.T))
            result = {k: v.numpy() for k, v in maps_of(definition, values).items()}
            derived = [name for name in definition.derived if name in result]
            result |= {"S0": S0} | dict(zip(derived, y[:, n + 1 :].T, strict=True))
        places = self._places(targets, S0, frames)
        return result | places | {"residual_rms": self._residual(places, data, noise)}

    def _residual(self, places, data, noise):
        """Root mean square (V,) of what is left of some of the measurements."""
        definition, acquisition = self.model.definition, self.model.acquisition
        rows = np.unique(np.linspace(0, len(acquisition) - 1, _N_CHECKED).round().astype(int))
        encoding = encoding_of(acquisition.subset(rows), torch.float32, timed=definition.timed)
        unit, frames, amplitudes = (
            torch.tensor(places[k]).float() for k in ("_unit", "_frames", "_amplitudes")
        )
        place = Place(unit, frames.reshape(len(unit), len(definition.axes), 3, 3))
        columns = pool_signals(definition, encoding)(values_of(definition, place))
        expected = combined(columns, amplitudes).numpy()
        if self.model.likelihood == "rician":
            # The mean of a magnitude to 0.25 of its noise, which is enough to see a misfit.
            expected = np.hypot(expected, noise[:, acquisition.te_index[rows]])
        return np.sqrt(((data[:, rows] - expected) ** 2).mean(axis=1))

    def _places(self, targets, S0, frames):
        definition, n_voxels = self.model.definition, len(targets)
        fractions = targets[:, len(definition.parameters) :]
        result = {
            "_unit": targets[:, : len(definition.parameters)],
            "_amplitudes": fractions * S0[:, None],
            "_frames": frames.reshape(n_voxels, -1),
            "converged": np.ones(n_voxels),
        }
        if definition.axes:
            fibres = {c.pool for c in definition.compartments if c.has_axis}
            owned = [name in fibres for name in definition.pools]
            shares, axes = np.zeros((n_voxels, MOST_FIBRES)), np.zeros((n_voxels, MOST_FIBRES, 3))
            shares[:, 0], axes[:, 0] = fractions[:, owned].sum(axis=1), frames[:, 0, 2]
            result |= {"axis": axes[:, 0], "axes": axes, "fibre_fractions": shares}
        return result

    def _noise(self, flat, S0_te, sigma, shape, chosen):
        if sigma is not None:
            sigma = per_voxel("sigma", sigma, shape).astype(float)[chosen]
            if not (sigma > 0).all():
                raise ValueError("sigma has values that are not positive; give sd > 0.")
            return sigma
        acquisition = self.model.acquisition
        b0 = acquisition.b0_mask
        squares, freedom = self.encoder.noise(flat)
        if b0.any():
            of_b0, freedom_b0 = noise_from_b0(flat[:, b0], acquisition.subset(b0))
            if of_b0 is not None:
                squares, freedom = squares + freedom_b0 * of_b0**2, freedom + freedom_b0
        if not (freedom > 0).all():
            raise ValueError(
                "sigma is needed: there are too few repeated b0 measurements to estimate the "
                f"noise, and too few directions at low b in {(freedom == 0).sum()} voxels."
            )
        return np.sqrt(squares / freedom)

    def _warn_of_noise(self, noise):
        outside = (noise > 1.1 / self.snr[0]) | (noise < 0.9 / self.snr[1])
        if outside.any():
            warnings.warn(
                f"{outside.sum()} of {len(noise)} voxels have a signal-to-noise ratio outside of "
                f"{self.snr[0]:g} to {self.snr[1]:g}, for which this learner was trained; train "
                "one with a wider snr, or fit these voxels.",
                stacklevel=3,
            )


def _summary(maps):
    """Mean, standard deviation and central 95 % of draws (V, n)."""
    result = {}
    for name, draws in maps.items():
        draws = draws.numpy()
        n = draws.shape[1]
        mean = draws.mean(axis=1)
        result |= {name: mean, f"{name}_mean": mean, f"{name}_std": draws.std(axis=1)}
        # Of n points in order, the k-th from 0 stands for the quantile (k + 1/2) / n.
        places = np.clip(np.array([0.025, 0.975]) * n - 0.5, 0, n - 1)
        below = places.astype(int)
        above = np.minimum(below + 1, n - 1)
        ordered = np.partition(draws, np.union1d(below, above), axis=1)
        ends = ordered[:, below] + (places - below) * (ordered[:, above] - ordered[:, below])
        result |= {f"{name}_low": ends[:, 0], f"{name}_high": ends[:, 1]}
    return result


def _spread(values):
    sd = values.std(axis=0, dtype=float)
    return np.where(sd > 1e-9, sd, 1.0)


def _trainer(method):
    if method in ("ridge", "trees") and find_spec("sklearn") is None:
        raise ValueError(
            f"method={method!r} needs scikit-learn (pip install scikit-learn); networks do not."
        )
    if method in _NETWORKS:
        return partial(networks.train, method=method)
    return {"ridge": ridge.train, "trees": trees.train}[method]


def _predictor(method):
    if method in _NETWORKS:
        return networks.predict
    return {"ridge": ridge.predict, "trees": trees.predict}[method]
