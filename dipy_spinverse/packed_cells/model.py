"""PackedCellsModel: packed cylinders and spheres as a DIPY model."""

from __future__ import annotations

import numpy as np
from dipy.core.gradients import GradientTable
from scipy.stats import chi2

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.packed_cells.posterior import PackedCellsPosterior, packed_cells_posterior
from dipy_spinverse.voxels.statistics import of_axes, of_draws
from dipy_spinverse.voxels.status import Status, screened, voxels_of

_MM2_PER_S = 1e3  # um^2/ms
_N_SAMPLES = 200
# Probability below which the model counts as refuted.
_REFUTED = 1e-3


class PackedCellsModel:
    """Packed permeable cylinders and spheres: the posterior of what a voxel's tissue is like.

    A numerically exact ActiveAx with exchange: the signals of parallel or dispersed permeable
    cylinders, of permeable spheres, or of both side by side, are those of the package's own
    simulation. Where tissue is of this kind, its maps are less free than those of
    :class:`SpinverseModel`, and their intervals narrower; where it is not, `status` says MISFIT.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        With pulse timings. The first fit with new timings simulates tables of signals, which
        takes about a minute for each timing and is kept in the user's cache folder.
    diffusivity : float, optional
        Of the water in the tissue, mm^2/s; known, not fitted.
    free_diffusivity : float, optional
        Of free water, mm^2/s, where :meth:`fit` is asked for it.
    te : float or array-like (M,), optional
        Echo times, s, where `gtab` is a GradientTable.
    seed : int, optional
        Of the draws.

    Raises
    ------
    ValueError
        Missing or inconsistent timings, a diffusivity that is not in mm^2/s.

    Examples
    --------
    >>> fit = PackedCellsModel(gtab).fit(data, sigma=20.0)  # doctest: +SKIP
    >>> fit.pore_diameter, fit.pore_diameter_low, fit.pore_diameter_high  # doctest: +SKIP
    """

    def __init__(
        self,
        gtab: GradientTable | Acquisition,
        *,
        diffusivity: float = 2e-3,
        free_diffusivity: float = 3e-3,
        te=None,
        seed: int = 0,
    ):
        given = isinstance(gtab, Acquisition)
        if given and te is not None:
            raise ValueError("te is given beside an Acquisition, which has its own; drop te.")
        self.acquisition = gtab if given else Acquisition.from_gtab(gtab, te=te)
        for name, value in (("diffusivity", diffusivity), ("free_diffusivity", free_diffusivity)):
            if not 0 < value < 0.1:
                raise ValueError(
                    f"{name} is {value!r}; give it in mm^2/s (water at body temperature has 3e-3)."
                )
        self.diffusivity, self.free_diffusivity = float(diffusivity), float(free_diffusivity)
        self.seed = int(seed)

    def fit(
        self,
        data: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        sigma: float | np.ndarray | None = None,
        free_water: bool = False,
        n_samples: int = _N_SAMPLES,
    ) -> PackedCellsFit:
        """Posterior of every voxel.

        Parameters
        ----------
        data : array-like (..., M)
            Magnitudes.
        mask : array-like (...), optional
            Voxels to fit; all where not given.
        sigma : float or array-like (...), optional
            Standard deviation of the noise; estimated from the residual where not given.
        free_water : bool, optional
            Also fit a fraction of free water.
        n_samples : int, optional
            Draws from the posterior of each voxel.

        Raises
        ------
        ValueError
            Arguments of wrong shape or range.
        """
        flat, wanted, noise, shape = voxels_of(data, mask, sigma, len(self.acquisition))
        status = screened(flat, wanted)
        chosen = np.flatnonzero(status == Status.CONVERGED)
        posterior = None
        if len(chosen):
            posterior = packed_cells_posterior(
                self.acquisition,
                flat[chosen],
                None if noise is None else noise[chosen],
                diffusivity=self.diffusivity * _MM2_PER_S,
                free_water=free_water,
                free_diffusivity=self.free_diffusivity * _MM2_PER_S,
                n_samples=n_samples,
                seed=self.seed,
            )
            if noise is not None:
                refuted = chi2.sf(posterior.chi_square, posterior.degrees_of_freedom) < _REFUTED
                status[chosen[refuted]] = Status.MISFIT
        return PackedCellsFit(self, posterior, chosen, status.reshape(shape))


class PackedCellsFit:
    """What :meth:`PackedCellsModel.fit` found.

    For each NAME in `MAPS` there are the posterior mean ``NAME``, the standard deviation
    ``NAME_std``, and the ends ``NAME_low`` and ``NAME_high`` of the central 95 % interval, all of
    shape (...); they are zero where nothing was fitted.

    Attributes
    ----------
    status : ndarray (...) of int
        See :class:`dipy_spinverse.spinverse.Status`.
    wall_orientation : ndarray (..., 3)
        Dominant axis of the draws, and
    wall_orientation_angle : ndarray (...)
        the angle to it that 95 % of them keep within, degrees.
    posterior : PackedCellsPosterior or None
        The draws themselves, for the fitted voxels in order.
    """

    MAPS = (
        "surface_to_volume",
        "restricted_fraction",
        "wall_permeability",
        "exchange_time",
        "pore_diameter",
        "wall_anisotropy",
        "orientation_dispersion",
        "free_water_fraction",
    )

    def __init__(self, model, posterior: PackedCellsPosterior | None, chosen, status):
        self.model, self.posterior, self.status = model, posterior, status
        for name in self.MAPS:
            values = dict.fromkeys(("", "_std", "_low", "_high"), 0)
            if posterior is not None:
                values = of_draws(posterior.maps[name])
            for suffix, value in values.items():
                setattr(self, name + suffix, _filled(status.shape, chosen, value))
        axes, angles = (0, 0) if posterior is None else of_axes(posterior.maps["wall_orientation"])
        self.wall_orientation = _filled((*status.shape, 3), chosen, axes)
        self.wall_orientation_angle = _filled(status.shape, chosen, angles)
        n_signals = len(model.acquisition)
        predicted = 0 if posterior is None else posterior.predicted
        self._predicted = _filled((*status.shape, n_signals), chosen, predicted)

    def predict(self) -> np.ndarray:
        """Expected magnitudes (..., M) at the likeliest parameters, with the noise floor."""
        return self._predicted


def _filled(shape, chosen, values):
    result = np.zeros(shape)
    rows = result.reshape(-1, shape[-1]) if np.ndim(values) == 2 else result.reshape(-1)
    if len(chosen):
        rows[chosen] = values
    return result
