"""CompartmentFit: the maps of a compartment model, and how sure they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.compartments.arguments import acquisition_for, places_of
from dipy_spinverse.compartments.definition import Definition, with_fibres
from dipy_spinverse.compartments.fitting.chunk import MOST_FIBRES, voxels_per_chunk
from dipy_spinverse.compartments.fitting.coordinates import Place, values_of
from dipy_spinverse.compartments.fitting.variable_projection import combined
from dipy_spinverse.compartments.signals.encoding import encoding_of
from dipy_spinverse.compartments.signals.pools import pool_signals
from dipy_spinverse.voxels.image import Image
from dipy_spinverse.voxels.status import Status
from dipy_spinverse.voxels.summary import ENDINGS

if TYPE_CHECKING:
    from dipy_spinverse.compartments.model import CompartmentModel

_MISFIT = 1.5


class CompartmentFit:
    """What :meth:`CompartmentModel.fit` found; zero where nothing was fitted.

    For each NAME in `MAPS` there is the likeliest value ``NAME``, and where draws were asked for,
    of the posterior the mean ``NAME_mean``, the median ``NAME_median`` (the least absolute error
    to be expected), the standard deviation ``NAME_std`` and the ends ``NAME_low`` and
    ``NAME_high`` of the central 95 % interval. ``fit[i, j, k]`` and slices give the fit of these
    voxels.

    Attributes
    ----------
    MAPS : tuple of str
        Those of the model, and S0 (in the units of the data).
    status : ndarray (...) of int
        See :class:`dipy_spinverse.spinverse.Status`.
    n_fibres : ndarray (...) of int
        Fibre populations that were fitted.
    axis : ndarray (..., 3)
        Of the largest population.
    axes : ndarray (..., 3, 3)
        Of up to three populations, as rows, largest first; zero beyond `n_fibres`.
    fibre_fractions : ndarray (..., 3)
        Their shares of the signal.
    S0_per_te : ndarray (..., K)
        Signal without diffusion at each echo time.
    sigma : ndarray (...)
        Noise that was used.
    residual_rms : ndarray (...)
    effective_draws : ndarray (...)
        Effective number of posterior draws; intervals with less than 20 are rough.
    """

    def __init__(self, model: CompartmentModel, arrays: dict[str, np.ndarray]):
        self.model, self._arrays = model, arrays
        self.MAPS = (*model.definition.maps, "S0")

    def __getattr__(self, name: str):
        arrays = self.__dict__.get("_arrays", {})
        if name in arrays:
            return arrays[name]
        raise AttributeError(
            f"This fit has no {name!r}; it has {sorted(n for n in arrays if n[0] != '_')}."
        )

    def __dir__(self):
        return [*super().__dir__(), *(name for name in self._arrays if name[0] != "_")]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the voxels."""
        return self.status.shape

    def __getitem__(self, index) -> CompartmentFit:
        index = index if isinstance(index, tuple) else (index,)
        if len(index) > len(self.shape):
            raise ValueError(f"{len(index)} indices for voxels of shape {self.shape}.")
        return CompartmentFit(self.model, {k: v[index] for k, v in self._arrays.items()})

    def predict(self, gtab: Acquisition | None = None) -> np.ndarray:
        """Noise-free signals (..., M) of the likeliest parameters.

        Parameters
        ----------
        gtab : GradientTable or Acquisition, optional
            That of the fit where not given. With several echo times in the fit, another one must
            have the same.

        Raises
        ------
        ValueError
            Echo times without a known S0.
        """
        definition, own = self.model.definition, self.model.acquisition
        acquisition = own if gtab is None else acquisition_for(gtab, definition, None)
        n = int(np.prod(self.shape))
        arrays = (getattr(self, k).reshape(n, -1) for k in ("_unit", "_frames", "_amplitudes"))
        unit, frames, amplitudes = (torch.tensor(each) for each in arrays)
        scale = self._scale.reshape(n, -1)[:, places_of(acquisition.echo_times, own.echo_times)]
        count, status = self.n_fibres.reshape(-1), self.status.reshape(-1)
        fitted = np.isin(status, (Status.CONVERGED, Status.NOT_CONVERGED, Status.MISFIT))
        encoding = encoding_of(acquisition, torch.float64, timed=definition.timed)
        result, size = np.zeros((n, len(acquisition))), voxels_per_chunk(definition, acquisition)
        for k in np.unique(count[fitted]):
            of_k = with_fibres(definition, int(k))
            pools, n_axes = pool_signals(of_k, encoding), len(of_k.axes)
            all_rows = np.flatnonzero(fitted & (count == k))
            for first in range(0, len(all_rows), size):
                rows = all_rows[first : first + size]
                place = Place(
                    unit[rows, : len(of_k.parameters)],
                    frames[rows, : 9 * n_axes].reshape(len(rows), n_axes, 3, 3),
                )
                columns = pools(values_of(of_k, place))
                noise_free = combined(columns, amplitudes[rows, : len(of_k.pools)])
                result[rows] = noise_free.numpy() * scale[rows][:, acquisition.te_index]
        return result.reshape((*self.shape, len(acquisition)))


def empty_arrays(definition: Definition, n_voxels: int, *, posterior: bool) -> dict:
    """Zeros for everything that a fit holds, populations of the most fibres included.

    Parameters
    ----------
    definition : Definition
    n_voxels : int
    posterior : bool
        Whether the fit has means, standard deviations and intervals.
    """
    most = with_fibres(definition, MOST_FIBRES)
    names = (*definition.maps, "S0")
    widths = {name: () for name in names}
    if posterior:
        widths |= {f"{name}_{end}": () for name in names for end in ENDINGS}
    widths |= {"effective_draws": ()} if posterior else {}
    widths |= {
        "residual_rms": (), "sigma": (), "converged": (), "axis": (3,),
        "axes": (MOST_FIBRES, 3), "fibre_fractions": (MOST_FIBRES,),
        "_unit": (len(most.parameters),), "_amplitudes": (len(most.pools),),
        "_frames": (9 * len(most.axes),),
    }  # fmt: skip
    return {name: np.zeros((n_voxels, *width)) for name, width in widths.items()}


def fit_of(
    model: CompartmentModel,
    arrays: dict[str, np.ndarray],
    image: Image,
    noise: np.ndarray | None,
    n_fibres: np.ndarray,
) -> CompartmentFit:
    """Fit of an image in the units of its signals, with the status of each voxel.

    Parameters
    ----------
    model : CompartmentModel
    arrays : dict of ndarray (V, ...)
        As `empty_arrays` has them, filled in where `image` can be fitted, over its S0.
    image : Image
    noise : ndarray (V,) or None
        What the residual is judged by.
    n_fibres : ndarray (V,)
    """
    for name in arrays:
        if name.split("_")[0] == "S0" or name in ("sigma", "residual_rms", "_amplitudes"):
            arrays[name] *= image.S0.reshape(-1, *(1,) * (arrays[name].ndim - 1))
    status, fitted = image.status.copy(), image.status == Status.CONVERGED
    converged = arrays.pop("converged").astype(bool)
    status[fitted & ~converged] = Status.NOT_CONVERGED
    if noise is not None:
        status[fitted & (arrays["residual_rms"] > _MISFIT * noise)] = Status.MISFIT
    scale = np.where(fitted[:, None], image.scale, 0)
    arrays |= {
        "status": status,
        "n_fibres": np.where(fitted, n_fibres, 0),
        "S0_per_te": scale * arrays["S0"][:, None],
        "_scale": scale,
    }
    arrays = {name: a.reshape((*image.shape, *a.shape[1:])) for name, a in arrays.items()}
    return CompartmentFit(model, arrays)
