"""Base class of all fits: maps, indexing, prediction, saving."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from dipy.core.gradients import GradientTable
from dipy.reconst.base import ReconstFit
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.user_warnings import warn
from dipy_spinverse.voxels import storage
from dipy_spinverse.voxels.fitted_model import FittedModel
from dipy_spinverse.voxels.image import per_voxel
from dipy_spinverse.voxels.status import FITTED, USABLE, Status

# Prior probability of an interval with 0.7 of its width, as in `compartments.identifiability`.
_PRIOR_DOMINATED = 0.95 * 0.7


def _report(module):
    """A module of `report`, which is above this folder: loaded when it is used."""
    return import_module(f"dipy_spinverse.report.{module}")


_Fit = TypeVar("_Fit", bound="VoxelFit")


class VoxelFit(ReconstFit):
    """Maps of voxels and their uncertainties.

    For each NAME in `MAPS` there are ``NAME``, the posterior median; its standard deviation
    ``NAME_std``; the ends ``NAME_low`` and ``NAME_high`` of the central 95 % interval; and, in
    models that search for it, the most probable value ``NAME_likeliest``. Without posterior
    samples (``n_draws=0``), ``NAME`` is the most probable value, and there are no intervals.

    All arrays have the leading shape `shape` of the data and are zero where nothing was fitted.
    ``fit[i, j, k]`` and slices give the fit of these voxels.

    Parameters
    ----------
    model : VoxelModel
    status : ndarray (...) of int
    values : dict of ndarray (V, ...)
        Arrays of the fitted voxels, in order. Names with a leading underscore are private.

    Attributes
    ----------
    status : ndarray (...) of int
        See :class:`Status`.
    sigma : ndarray (...)
        Standard deviation of the noise, given or estimated, in the unit of the data.
    residual_rms : ndarray (...)
        Root mean square of the residuals.
    """

    MAPS: tuple[str, ...] = ()

    def __init__(self, model: FittedModel, status: np.ndarray, values: dict[str, np.ndarray]):
        self.model, self.status, self._values = model, np.asarray(status), values

    def __getattr__(self, name: str):
        # `_values` itself is missing while a fit is unpickled.
        values = self.__dict__.get("_values", {})
        if name in values:
            return self._dense(values[name])
        names = [n for n in values if n[0] != "_"]
        similar = get_close_matches(name, names, n=3, cutoff=0.5) or names
        raise AttributeError(
            f"{type(self).__name__} has no {name!r}; it has {', '.join(similar[:5])} ..."
        )

    def __dir__(self):
        return [*super().__dir__(), *(name for name in self._values if name[0] != "_")]

    def __repr__(self) -> str:
        return _report("summary").text_of(self)

    def _repr_html_(self) -> str:
        return _report("summary").html_of(self)

    def plot(self, names: Iterable[str] | None = None) -> Any:
        """Maps of a slice by matplotlib, see :func:`dipy_spinverse.report.figures.plot_maps`.

        Parameters
        ----------
        names : iterable of str, optional
            Some of `MAPS`; all by default.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ValueError
            Unknown maps.
        ImportError
            Without matplotlib.

        Examples
        --------
        >>> fit[:, :, 20].plot(["ndi", "odi"])  # doctest: +SKIP
        """
        return _report("figures").plot_maps(self, names)

    def save_maps(self, folder: str | Path, affine: np.ndarray) -> None:
        """Write maps, with their standard deviations and intervals, S0 and status as NIfTI.

        The files of the commands: ``NAME.nii.gz``, ``NAME_std.nii.gz``, ``NAME_low.nii.gz`` and
        ``NAME_high.nii.gz``. Files of these names are replaced.

        Parameters
        ----------
        folder : str or Path
            Created if it does not exist.
        affine : ndarray (4, 4)
            That of the image.

        Examples
        --------
        >>> data, affine = load_nifti("dwi.nii.gz")  # doctest: +SKIP
        >>> model.fit(data).save_maps("maps", affine)  # doctest: +SKIP
        """
        _report("images").save_maps(self, folder, affine)

    def to_dataframe(self) -> Any:
        """A table with a row for each voxel of the mask.

        Returns
        -------
        pandas.DataFrame
            Indices i, j, k of the voxel, name of its status, `usable`, and the maps with their
            standard deviations and intervals. Units are in ``attrs["units"]``.

        Raises
        ------
        ImportError
            Without pandas.

        Examples
        --------
        >>> fit.to_dataframe().query("usable").ndi.describe()  # doctest: +SKIP
        """
        return _report("summary").dataframe_of(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the voxels."""
        return self.status.shape

    @property
    def S0_hat(self) -> np.ndarray:
        """Signal without diffusion (...), or (..., K) of K > 1 echo times in ascending order."""
        S0 = self.S0_per_te
        return S0[..., 0] if S0.shape[-1] == 1 else S0

    @property
    def usable(self) -> np.ndarray:
        """Voxels (...) whose maps and intervals can be used: the model is not rejected."""
        return np.isin(self.status, USABLE)

    @property
    def _rows(self):
        """Indices (V,) of the fitted voxels in the flattened image."""
        return np.flatnonzero(np.isin(self.status, FITTED))

    def _dense(self, values, rows=None):
        dense = np.zeros((self.status.size, *values.shape[1:]), values.dtype)
        dense[self._rows if rows is None else rows] = values
        return dense.reshape(self.shape + values.shape[1:])[()]

    def __getitem__(self, index):
        position = np.full(self.status.size, -1)
        position[self._rows] = np.arange(self._rows.size)
        chosen = np.asarray(position.reshape(self.shape)[index])
        selected = chosen[chosen >= 0]
        return type(self)(self.model, self.status[index], self._of_voxels(selected))

    def _of_voxels(self, chosen):
        """Values of some of the fitted voxels."""
        return {name: value[chosen] for name, value in self._values.items()}

    def check(self) -> None:
        """Raise ValueError for unknown status codes, and missing or invalid arrays."""
        codes = self.status
        if codes.dtype.kind not in "iu" or not np.isin(codes, [*Status]).all() or codes.ndim > 3:
            raise ValueError(f"status has type {codes.dtype} and shape {codes.shape}, or unknown "
                             "codes.")  # fmt: skip
        needed = {"sigma", "residual_rms", "S0_per_te", *self.MAPS}
        missing = sorted(needed - self._values.keys())
        if missing:
            raise ValueError(f"{', '.join(missing)} missing.")
        for name, value in self._values.items():
            rows = self._n_rows(name)
            if value.dtype.kind not in "biuf" or value.shape[:1] != (rows,):
                raise ValueError(
                    f"{name} has type {value.dtype} and shape {value.shape}, but {rows} voxels "
                    "were fitted."
                )
            if np.isnan(value).any():
                raise ValueError(f"{name} has NaN.")

    def _n_rows(self, name):
        """Length of a named array."""
        return self._rows.size

    def prior_dominated(self, name: str) -> np.ndarray:
        """Whether (...) the signals hardly change what the prior says of a map.

        Its 95 % interval then contains at least two thirds of the prior probability, as that of a
        posterior with 0.7 of the standard deviation of a uniform prior. False without intervals,
        and of maps whose prior the model does not state.

        Parameters
        ----------
        name : str
            One of `MAPS`.

        Raises
        ------
        ValueError
            An unknown map.

        Examples
        --------
        >>> fit.exchange_time[~fit.prior_dominated("exchange_time")]  # doctest: +SKIP
        """
        if name not in self.MAPS:
            raise ValueError(f"name is {name!r}; give one of {', '.join(self.MAPS)}.")
        prior, low = self.model.prior_maps.get(name), self._values.get(f"{name}_low")
        if prior is None or low is None:
            return self._dense(np.zeros(self._rows.size, dtype=bool))
        prior, high = np.sort(prior), self._values[f"{name}_high"]
        inside = np.searchsorted(prior, high, "right") - np.searchsorted(prior, low, "left")
        return self._dense(inside >= _PRIOR_DOMINATED * len(prior))

    def prior_dominated_percent(self) -> dict[str, float]:
        """Percent of the fitted voxels in which each map is prior-dominated, where in any."""
        dominated = {name: self.prior_dominated(name) for name in self.MAPS}
        n_voxels = max(self._rows.size, 1)
        return {
            name: round(float(100 * flags.sum() / n_voxels), 1)
            for name, flags in dominated.items()
            if flags.any()
        }

    def predict(
        self, gtab: GradientTable | BaseAcquisition | None = None, S0: ArrayLike | None = None
    ) -> np.ndarray:
        """Noise-free signals (..., M) of the most probable parameters.

        Parameters
        ----------
        gtab : GradientTable or Acquisition, optional
            Measurements to predict; by default those of the fitted data.
        S0 : float or array-like (...), optional
            Signal without diffusion; by default the fitted one of each echo time.

        Raises
        ------
        ValueError
            Measurements without a fitted S0, an S0 of the wrong shape.
        """
        acquisition = self.model.acquisition
        if gtab is not None:
            acquisition = self.model.acquisition_of(gtab)
        if S0 is None:
            fitted_S0 = self._values.get("S0_per_label", self._values["S0_per_te"])
            scale = fitted_S0[:, self.model.labels_at(acquisition)]
        else:
            scale = per_voxel("S0", S0, self.shape)[self._rows, None]
        if self._rows.size == 0:
            return np.zeros((*self.shape, len(acquisition)))
        return self._dense(scale * self.model.signals_of_fit(self._values, acquisition))

    def save(self, path: str | Path) -> None:
        """Write the fit, its model and acquisition to one file of arrays and JSON (``.npz``).

        :func:`dipy_spinverse.load_fit` reads it.

        Parameters
        ----------
        path : str or Path

        Raises
        ------
        ValueError
            A model that cannot be saved, such as one with user-defined priors.
        """
        settings, arrays = self.model.settings()
        header = {"kind": "a fit", "model": type(self.model).__name__, "settings": settings}
        groups = {
            "model": arrays, "acquisition": self.model.acquisition.arrays(),
            "value": self._values, "of": {"status": self.status},
        }  # fmt: skip
        named = {
            f"{group}/{name}": v
            for group, members in groups.items()
            for name, v in members.items()
        }
        storage.write(path, header, named)


def with_warning_of_prior(fit: _Fit) -> _Fit:
    """The fit; warns if most of its maps are prior-dominated in most voxels."""
    percent = fit.prior_dominated_percent()
    dominated = [name for name, value in percent.items() if value > 50]
    if 2 * len(dominated) > len(fit.model.prior_maps):
        warn(
            f"The signals hardly determine {', '.join(dominated)}: in most voxels these maps and "
            "their intervals are those of the prior (fit.prior_dominated). Acquire more b-values, "
            "directions or diffusion times; dipy_check_acquisition says which."
        )
    return fit
