"""CompartmentModel: a model of compartments as a DIPY model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from dipy.core.gradients import GradientTable
from dipy.direction.peaks import PeaksAndMetrics
from dipy.utils.parallel import paramap

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.compartments.arguments import (
    acquisition_for,
    check_acquisition,
    complete,
    populations,
)
from dipy_spinverse.compartments.definition import (
    Definition,
    maps_of,
    with_fibres,
)
from dipy_spinverse.compartments.fit import CompartmentFit, empty_arrays, fit_of
from dipy_spinverse.compartments.fitting.chunk import Chunk, Settings, fit_chunk, voxels_per_chunk
from dipy_spinverse.compartments.fitting.coordinates import Place, values_of
from dipy_spinverse.compartments.signals.encoding import encoding_of
from dipy_spinverse.compartments.signals.pools import pool_signals
from dipy_spinverse.voxels.image import image_of
from dipy_spinverse.voxels.noise import noise_from_b0

LIKELIHOODS = ("rician", "gaussian")
SOLVERS = ("variable-projection", "mix", "interior-point")
_N_DRAWS = 256


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
        size = vox_per_chunk
        if size is None:
            size = voxels_per_chunk(self.definition, self.acquisition, n_draws)
        if n_draws < 0 or size < 1:
            raise ValueError(
                f"n_draws is {n_draws} and vox_per_chunk {size}; give at least 0 and 1."
            )
        image = image_of(data, mask, sigma, self.acquisition)
        noise, S0, shape = image.noise, image.S0, image.shape
        if noise is None:
            noise = _noise_of(image, self.acquisition)
        count, axes = populations(peaks, shape)
        starts = self._starts(start, shape)
        settings = Settings(
            self.likelihood, self.solver, n_draws, self.seed, getattr(torch, self.dtype)
        )

        def chunk_of(part):
            return Chunk(
                data=image.signals[part] / S0[part, None],
                scale=image.scale[part][:, self.acquisition.te_index],
                sigma=None if noise is None else noise[part] / S0[part],
                refine_sigma=sigma is None,
                axes=None if axes is None else axes[part],
                start=None if starts is None else {k: v[part] for k, v in starts.items()},
            )

        arrays = empty_arrays(self.definition, len(S0), posterior=n_draws > 0)
        for n in np.unique(count[image.rows]):
            rows = image.rows[count[image.rows] == n]
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
        return fit_of(self, arrays, image, noise, count)

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


def _noise_of(image, acquisition):
    """Noise (V,) from repeated b0 of the voxels to fit, or None."""
    rows = image.rows
    found = noise_from_b0(image.signals[rows], acquisition)[0] if len(rows) else None
    if found is None:
        return None
    noise = np.ones(len(image.signals))
    noise[rows] = found
    return noise
