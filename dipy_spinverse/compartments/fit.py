"""CompartmentFit: the maps of a compartment model, and how sure they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dipy_spinverse.acquisition import Acquisition

if TYPE_CHECKING:
    from dipy_spinverse.compartments.model import CompartmentModel


class CompartmentFit:
    """What :meth:`CompartmentModel.fit` found; zero where nothing was fitted.

    For each NAME in `MAPS` there is the likeliest value ``NAME``, and where draws were asked for,
    the posterior mean ``NAME_mean``, the standard deviation ``NAME_std`` and the ends ``NAME_low``
    and ``NAME_high`` of the central 95 % interval. ``fit[i, j, k]`` and slices give the fit of
    these voxels.

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
        return self.model._predict(self, gtab)
