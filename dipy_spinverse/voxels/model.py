"""Base class of all models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from dipy.core.gradients import GradientTable
from dipy.reconst.base import ReconstModel
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import (
    Acquisition,
    BaseAcquisition,
    acquisition_from_arrays,
    as_acquisition,
)
from dipy_spinverse.acquisition.plausibility import warn_of_timings
from dipy_spinverse.docstrings import fill_doc, naming_arguments
from dipy_spinverse.voxels.chunks import Engine, check_number, fit_image
from dipy_spinverse.voxels.fit import VoxelFit, with_warning_of_prior
from dipy_spinverse.voxels.fitted_model import FittedModel
from dipy_spinverse.voxels.image import Voxels, image_of
from dipy_spinverse.voxels.statistics import ENDINGS


class VoxelModel(ReconstModel, FittedModel):
    """A model of the signals of voxels.

    A subclass defines

    - `Fit`, the class of its fits, with the names of its maps,
    - `fit_chunk`, a function from a chunk of voxels to named arrays,
    - `signals_of_fit`, the predicted signals (V, M) relative to those without diffusion,
    - `settings`, the arguments with which `from_settings` creates it again.

    If it needs more arguments than those of :meth:`fit`, it has its own `fit`, which calls
    :func:`dipy_spinverse.voxels.chunks.fit_image`.

    Parameters
    ----------
    gtab : GradientTable or BaseAcquisition
    te, mixing_time, isotropic, n_averages : optional
        Timings and averages of a GradientTable, see :meth:`dipy_spinverse.Acquisition.from_gtab`.

    Attributes
    ----------
    VOX_PER_CHUNK : int
        Maximum number of voxels in a call of :meth:`fit_chunk`.
    acquisition : BaseAcquisition
        Diffusion measurements, unless a subclass defines others.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name in {"__init__", "fit"} & vars(cls).keys():
            setattr(cls, name, naming_arguments(vars(cls)[name]))

    Fit: ClassVar[type[VoxelFit]] = VoxelFit
    VOX_PER_CHUNK: ClassVar[int] = 1000
    acquisition: BaseAcquisition

    def __init__(
        self,
        gtab: GradientTable | BaseAcquisition,
        te: ArrayLike | None = None,
        mixing_time: ArrayLike | None = None,
        isotropic: ArrayLike | None = None,
        n_averages: ArrayLike | None = None,
    ):
        self.acquisition = self.acquisition_of(
            gtab, te, mixing_time=mixing_time, isotropic=isotropic, n_averages=n_averages
        )
        # Models that do not depend on timings invent those of gradient tables without.
        if isinstance(self.acquisition, Acquisition) and getattr(gtab, "big_delta", 0) is not None:
            warn_of_timings(self.acquisition)

    def __repr__(self) -> str:
        maps = ", ".join(self.empty_fit.MAPS)
        return f"{type(self).__name__}({self.acquisition!r}, maps: {maps})"

    def _repr_html_(self) -> str:
        return import_module("dipy_spinverse.report.summary").html_of_model(self)

    @property
    def empty_fit(self) -> VoxelFit:
        """A fit of no voxels, which has the names of the maps."""
        return self.Fit(self, np.zeros(0, dtype=int), {})

    @property
    def gtab(self) -> GradientTable:
        """The acquisition as a gradient table of DIPY."""
        return self.acquisition.to_gtab()

    def acquisition_of(
        self,
        gtab: GradientTable | BaseAcquisition,
        te: ArrayLike | None = None,
        **more: Any,
    ) -> BaseAcquisition:
        """The acquisition that the model needs, from the arguments of its constructor."""
        return as_acquisition(gtab, te, **more)

    @fill_doc
    def fit(
        self,
        data: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        sigma: ArrayLike | None = None,
        n_draws: int = 100,
        engine: str = "serial",
        n_jobs: int = -1,
        verbose: bool = False,
        journal: str | Path | None = None,
        max_memory: float | None = None,
    ) -> VoxelFit:
        """Fit voxels.

        Parameters
        ----------
        %(data)s
        %(mask)s
        %(sigma)s
        %(n_draws)s
        %(execution)s

        Raises
        ------
        ValueError
            Arguments of wrong shape or range.
        """
        check_number("n_draws", n_draws, 0)
        run = Engine(engine, n_jobs, verbose, journal, max_memory)
        image = image_of(data, mask, sigma, self.labelled, max_memory=max_memory, verbose=verbose)
        fit_chunk = partial(self.fit_chunk, n_draws=n_draws)
        status, values = fit_image(
            image, fit_chunk, self.layout(n_draws), run, most=self.VOX_PER_CHUNK, model=self,
            options={"n_draws": n_draws, "sigma": sigma},
        )  # fmt: skip
        return with_warning_of_prior(self.Fit(self, status, values))

    def fit_chunk(self, voxels: Voxels, n_draws: int) -> Mapping[str, ArrayLike]:
        """Values of each voxel, with the names of `layout` and those for the status.

        See :func:`dipy_spinverse.voxels.chunks.fit_image`.
        """
        raise NotImplementedError

    def layout(self, n_draws: int) -> dict:
        """Stored values of a voxel: S0 of each echo time, and maps with their statistics."""
        maps = {
            f"{name}{ending}": float
            for name in self.Fit.MAPS
            for ending in ENDINGS
            if n_draws or not ending
        }
        return {"S0_per_te": (float, (len(self.acquisition.echo_times),))} | maps

    @classmethod
    def acquisition_from(cls, arrays: Mapping[str, np.ndarray]) -> BaseAcquisition:
        """The acquisition with these :meth:`BaseAcquisition.arrays`."""
        return acquisition_from_arrays(arrays)

    @classmethod
    def from_settings(
        cls, acquisition: Any, settings: dict, arrays: Mapping[str, np.ndarray]
    ) -> VoxelModel:
        """The model with these :meth:`settings`."""
        return cls(acquisition, **settings, **dict[str, Any](arrays))
