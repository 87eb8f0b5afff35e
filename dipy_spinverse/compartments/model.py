"""CompartmentModel: a model of compartments as a DIPY model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from dipy.core.gradients import GradientTable
from dipy.direction.peaks import PeaksAndMetrics
from dipy.utils.parallel import paramap

from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.compartments.arguments import (
    acquisition_for,
    check_acquisition,
    complete,
    places_of,
    populations,
    signal_without_diffusion,
)
from dipy_spinverse.compartments.chunk import MOST_FIBRES, Chunk, Settings, fit_chunk
from dipy_spinverse.compartments.coordinates import Place, values_of
from dipy_spinverse.compartments.definition import (
    Definition,
    maps_of,
    with_fibres,
)
from dipy_spinverse.compartments.encoding import encoding_of
from dipy_spinverse.compartments.fit import CompartmentFit
from dipy_spinverse.compartments.signals import pool_signals
from dipy_spinverse.compartments.variable_projection import combined
from dipy_spinverse.inversion.noise import noise_from_b0
from dipy_spinverse.voxels import Status, screened, voxels_of

LIKELIHOODS = ("rician", "gaussian")
SOLVERS = ("variable-projection", "mix", "interior-point")
_N_DRAWS = 256
_SAMPLES_PER_CHUNK = 300_000
_MISFIT = 1.5


class CompartmentModel:
    """Signals as a sum of compartments; see :func:`compose` for own ones.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With pulse timings where the model has cylinders or spheres.
    definition : Definition
        Its compartments.
    te : float or array-like (M,), optional
        Echo times, s, where `gtab` is a GradientTable. Each has its own S0, from its b0.
    likelihood : {"rician", "gaussian"}, optional
        Of magnitudes. "rician" is right for one coil, and for many combined with their
        sensitivities.
    solver : {"variable-projection", "mix", "interior-point"}, optional
        "variable-projection": best of a dictionary, then Levenberg-Marquardt with the fractions
        eliminated. "mix": differential evolution instead of the dictionary [1]_. Both do all
        voxels at once. "interior-point": `scipy.optimize.minimize` (trust-constr) over all
        parameters, voxel by voxel, from the dictionary; slow, to compare with.
    dtype : {"float64", "float32"}, optional
    seed : int, optional
        Of the draws, and of differential evolution.

    Raises
    ------
    ValueError
        Missing timings, too few shells or measurements for the model, an unknown option.

    References
    ----------
    .. [1] Farooq et al., Sci. Rep. 6 (2016) 38927, https://doi.org/10.1038/srep38927
    """

    def __init__(
        self,
        gtab: GradientTable | Acquisition,
        definition: Definition,
        *,
        te=None,
        likelihood: str = "rician",
        solver: str = "variable-projection",
        dtype: str = "float64",
        seed: int = 0,
    ):
        for name, value, known in (
            ("likelihood", likelihood, LIKELIHOODS),
            ("solver", solver, SOLVERS),
            ("dtype", dtype, ("float64", "float32")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; use one of {', '.join(map(repr, known))}.")
        self.definition = definition
        self.acquisition = acquisition_for(gtab, definition, te)
        check_acquisition(definition, self.acquisition)
        self.likelihood, self.solver, self.seed = likelihood, solver, int(seed)
        self.dtype = dtype

    def fit(
        self,
        data: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        sigma: float | np.ndarray | None = None,
        peaks: PeaksAndMetrics | None = None,
        start: Mapping[str, np.ndarray] | None = None,
        n_draws: int = _N_DRAWS,
        engine: str = "serial",
        n_jobs: int = -1,
        vox_per_chunk: int | None = None,
        verbose: bool = False,
    ) -> CompartmentFit:
        """Fit voxels.

        Parameters
        ----------
        data : array-like (..., M)
            Magnitudes.
        mask : array-like (...), optional
            Voxels to fit; all where not given.
        sigma : float or array-like (...), optional
            Standard deviation of the noise in each channel. Where not given, from repeated b0
            measurements (if there are enough), or else from the residual.
        peaks : PeaksAndMetrics, optional
            Number (0 to 3) and first directions of the fibre populations of each voxel. One
            population along the first eigenvector of a diffusion tensor where not given.
        start : mapping of ndarray (...) or (..., 3), optional
            All parameters and axes to begin with, for instance from a learner, instead of the
            dictionary; for one population.
        n_draws : int, optional
            Draws from the posterior of each voxel, for means, standard deviations and intervals;
            0 for the likeliest values only, which is faster.
        engine : {"serial", "joblib", "dask", "ray"}, optional
            How chunks of voxels are spread over processes.
        n_jobs : int, optional
            Number of processes of the other engines; -1 for all but one core.
        vox_per_chunk : int, optional
            Voxels fitted together; by default as many as fit into some hundred MiB.
        verbose : bool, optional
            Show a progress bar.

        Raises
        ------
        ValueError
            Arguments of wrong shape or range.
        """
        size = self._chunk_size() if vox_per_chunk is None else vox_per_chunk
        if n_draws < 0 or size < 1:
            raise ValueError(
                f"n_draws is {n_draws} and vox_per_chunk {size}; give at least 0 and 1."
            )
        flat, wanted, noise, shape = voxels_of(data, mask, sigma, len(self.acquisition))
        S0_te = signal_without_diffusion(flat, self.acquisition)
        status = screened(flat, wanted, S0_te.min(axis=1))
        chosen = np.flatnonzero(status == Status.CONVERGED)
        if noise is None:
            noise = _noise_of(flat, chosen, self.acquisition)
        count, axes = populations(peaks, shape)
        starts = self._starts(start, shape)
        settings = Settings(
            self.likelihood, self.solver, n_draws, self.seed, getattr(torch, self.dtype)
        )
        S0 = np.where(status == Status.CONVERGED, S0_te[:, 0], 1)
        scale = S0_te / S0[:, None]

        def chunk_of(part):
            return Chunk(
                data=flat[part] / S0[part, None],
                scale=scale[part][:, self.acquisition.te_index],
                sigma=None if noise is None else noise[part] / S0[part],
                refine_sigma=sigma is None,
                axes=None if axes is None else axes[part],
                start=None if starts is None else {k: v[part] for k, v in starts.items()},
            )

        arrays = self._empty(len(flat), n_draws)
        for n in np.unique(count[chosen]):
            rows = chosen[count[chosen] == n]
            parts = [rows[k : k + size] for k in range(0, len(rows), size)]
            results = paramap(
                fit_chunk,
                [chunk_of(part) for part in parts],
                func_args=[with_fibres(self.definition, int(n)), self.acquisition, settings],
                engine=engine,
                n_jobs=n_jobs,
                verbose=verbose,
            )
            for part, result in zip(parts, results, strict=True):
                for name, value in result.items():
                    arrays[name][(part, *map(slice, value.shape[1:]))] = value
        return self._as_fit(arrays, status, count, S0, scale, noise, shape)

    def signals(self, parameters: Mapping[str, np.ndarray], gtab=None) -> np.ndarray:
        """Noise-free signals of given parameters.

        Parameters
        ----------
        parameters : mapping of array-like (...) and (..., 3)
            Scalars of the definition in its own units (diffusivities um^2/ms, diameters um), axes
            (`axis`, and with fanning `axis_fan`), and fractions of pools, of which one may be left
            out. `S0` is 1 where not given. Tensors are differentiated through.
        gtab : GradientTable or Acquisition, optional
            The model's own where not given.

        Returns
        -------
        ndarray or Tensor (..., M)

        Raises
        ------
        ValueError
            Missing or unknown parameters.
        """
        acquisition = self.acquisition
        if gtab is not None:
            acquisition = acquisition_for(gtab, self.definition, None)
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

        Scalars are uniform inside their bounds, axes on the sphere, fractions among all that add
        up to one; S0 is 1.
        """
        rng = np.random.default_rng(self.seed if seed is None else seed)
        definition = self.definition
        unit = torch.tensor(rng.random((n, len(definition.parameters))))
        frames = np.linalg.qr(rng.standard_normal((n, len(definition.axes), 3, 3)))[0]
        values = values_of(definition, Place(unit, torch.tensor(frames)))
        fractions = rng.dirichlet(np.ones(len(definition.pools)), n).T
        values = {name: value.numpy() for name, value in values.items() if name != "_"}
        return values | dict(zip(definition.pools, fractions, strict=True)) | {"S0": np.ones(n)}

    def maps(self, parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Maps of a fit (...), in their units, from parameters as `signals` takes them."""
        values, shape = complete(self.definition, parameters)
        maps = maps_of(self.definition, values) | {"S0": values["S0"]}
        return {name: value.reshape(shape).numpy() for name, value in maps.items()}

    def predict(self, parameters, gtab=None, S0=1.0) -> np.ndarray:
        """As `signals`, with S0 (...) beside the parameters."""
        return self.signals({**parameters, "S0": S0}, gtab)

    def _chunk_size(self):
        # Sums over the modes of pores are the largest arrays, as long as signals 20 times.
        per_voxel = len(self.acquisition) * (20 if self.definition.timed else 1)
        return max(1, min(1000, _SAMPLES_PER_CHUNK // per_voxel))

    def _starts(self, start, shape):
        if start is None:
            return None
        n_voxels = int(np.prod(shape))
        names = {p.name: () for p in self.definition.parameters}
        names |= {name: (3,) for name in self.definition.axes}
        names |= {f"{name}_fan": (3,) for name in self.definition.fans}
        missing = sorted(set(names) - set(start))
        if missing:
            raise ValueError(f"start lacks {missing}; give all of {sorted(names)}.")
        return {
            name: np.broadcast_to(start[name], (*shape, *width)).reshape(n_voxels, *width)
            for name, width in names.items()
        }

    def _empty(self, n_voxels, n_draws):
        """Zeros for everything that a fit holds, populations of the most fibres included."""
        most = with_fibres(self.definition, MOST_FIBRES)
        names = (*self.definition.maps, "S0")
        endings = ("", "_mean", "_std", "_low", "_high") if n_draws else ("",)
        widths = {name + end: () for name in names for end in endings}
        widths |= {"effective_draws": ()} if n_draws else {}
        widths |= {
            "residual_rms": (), "sigma": (), "converged": (), "axis": (3,),
            "axes": (MOST_FIBRES, 3), "fibre_fractions": (MOST_FIBRES,),
            "_unit": (len(most.parameters),), "_amplitudes": (len(most.pools),),
            "_frames": (9 * len(most.axes),),
        }  # fmt: skip
        return {name: np.zeros((n_voxels, *width)) for name, width in widths.items()}

    def _as_fit(self, arrays, status, count, S0, scale, noise, shape):
        """Units of the data, status, and the shape of the image."""
        for name in arrays:
            if name.split("_")[0] == "S0" or name in ("sigma", "residual_rms", "_amplitudes"):
                arrays[name] *= S0.reshape(-1, *(1,) * (arrays[name].ndim - 1))
        fitted = status == Status.CONVERGED
        converged = arrays.pop("converged").astype(bool)
        status[fitted & ~converged] = Status.NOT_CONVERGED
        if noise is not None:
            status[fitted & (arrays["residual_rms"] > _MISFIT * noise)] = Status.MISFIT
        scale = np.where(fitted[:, None], scale, 0)
        arrays |= {
            "status": status,
            "n_fibres": np.where(fitted, count, 0),
            "S0_per_te": scale * arrays["S0"][:, None],
            "_scale": scale,
        }
        arrays = {name: a.reshape((*shape, *a.shape[1:])) for name, a in arrays.items()}
        return CompartmentFit(self, arrays)

    def _predict(self, fit, gtab):
        acquisition = self.acquisition
        if gtab is not None:
            acquisition = acquisition_for(gtab, self.definition, None)
        shape, n = fit.shape, int(np.prod(fit.shape))
        flat = {k: getattr(fit, k).reshape(n, -1) for k in ("_unit", "_frames", "_amplitudes")}
        scale = fit._scale.reshape(n, -1)
        te = places_of(acquisition.echo_times, self.acquisition.echo_times)
        result, size = np.zeros((n, len(acquisition))), self._chunk_size()
        count, status = fit.n_fibres.reshape(-1), fit.status.reshape(-1)
        encoding = encoding_of(acquisition, torch.float64, timed=self.definition.timed)
        fitted = np.isin(status, (Status.CONVERGED, Status.NOT_CONVERGED, Status.MISFIT))
        for k in np.unique(count[fitted]):
            definition = with_fibres(self.definition, int(k))
            pools = pool_signals(definition, encoding)
            of_k = np.flatnonzero(fitted & (count == k))
            for first in range(0, len(of_k), size):
                rows = of_k[first : first + size]
                unit, frames, amplitudes = (torch.tensor(v[rows]) for v in flat.values())
                n_axes = len(definition.axes)
                place = Place(
                    unit[:, : len(definition.parameters)],
                    frames[:, : 9 * n_axes].reshape(len(rows), n_axes, 3, 3),
                )
                columns = pools(values_of(definition, place))
                noise_free = combined(columns, amplitudes[:, : len(definition.pools)])
                result[rows] = noise_free.numpy() * scale[rows][:, te[acquisition.te_index]]
        return result.reshape((*shape, len(acquisition)))


def _noise_of(flat, chosen, acquisition):
    """Noise (V,) from repeated b0 of the voxels chosen, or None."""
    found = noise_from_b0(flat[chosen], acquisition)[0] if len(chosen) else None
    if found is None:
        return None
    noise = np.ones(len(flat))
    noise[chosen] = found
    return noise
