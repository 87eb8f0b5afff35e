"""CellShapeModel: the shape of a closed cell from its diffusion signals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dipy.core.gradients import GradientTable
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from dipy_spinverse.acquisition import (
    Acquisition,
    BaseAcquisition,
    as_acquisition,
    require_pulsed,
    require_single_magnitudes,
)
from dipy_spinverse.bloch_torrey.finite_elements.modal_sensitivity import (
    length_scale_of_derivatives,
)
from dipy_spinverse.cell_shapes.chunk import FitShapes, cell_shape_layout
from dipy_spinverse.cell_shapes.fit import CellShapeFit
from dipy_spinverse.cell_shapes.shape_spaces.free import FreeVertices
from dipy_spinverse.cell_shapes.shape_spaces.latent import LatentSpace
from dipy_spinverse.cell_shapes.shape_spaces.protocol import ShapeSpace
from dipy_spinverse.cell_shapes.shape_spaces.tube import TubeSpace, tube_space
from dipy_spinverse.cell_shapes.templates import Template
from dipy_spinverse.cell_shapes.unknowns import CellShape, ShapeSignals
from dipy_spinverse.docstrings import fill_doc
from dipy_spinverse.units import diffusivity_um2_per_ms
from dipy_spinverse.user_warnings import warn
from dipy_spinverse.voxels.chunks import Engine, check_number, fit_image
from dipy_spinverse.voxels.image import image_of
from dipy_spinverse.voxels.model import VoxelModel

_STORED_SPACES = FreeVertices, LatentSpace, TubeSpace


class CellShapeModel(VoxelModel):
    """The shape of a closed cell, whose water alone gives the signals.

    Vertices of a tetrahedral mesh move within a shape space until the signals of water that
    diffuses inside are those measured [1]_. Its orientation is estimated with its shape; its
    position, and which of its two point reflections it is, are not identifiable.

    For one cell, or many of one shape and orientation. Signals of tissue, of ensembles of all
    orientations, or of another diffusivity give wrong shapes that may be reported as CONVERGED.

    Parameters
    ----------
    gtab : GradientTable or Acquisition
        Pulsed gradients, with b0 at each echo time.
    shape_space : ShapeSpace, optional
        Shapes that a cell may have; tubes around a curved centre line by default.
    diffusivity : float, optional
        Diffusivity of the water inside, mm^2/s.
    te : optional
        Of a GradientTable, as in :meth:`dipy_spinverse.Acquisition.from_gtab`.
    seed : int, optional
        Seed of the posterior samples.

    Raises
    ------
    ValueError
        Free waveforms, an echo time without b0, a diffusivity that is not in mm^2/s, a template
        with inverted tetrahedra, an initial shape outside the bounds of its space.

    Attributes
    ----------
    shape_space : ShapeSpace
    coarse : ShapeSignals
        Signals on the template of the space.

    References
    ----------
    .. [1] Khole et al. (2025), https://doi.org/10.48550/arXiv.2502.01988

    Examples
    --------
    >>> import numpy as np
    >>> from dipy_spinverse import Acquisition
    >>> directions = np.vstack([np.zeros(3), np.eye(3)])
    >>> acquisition = Acquisition([0, 2, 2, 2], directions, small_delta=5, big_delta=20)
    >>> model = CellShapeModel(acquisition)
    >>> straight = model.shape_space.prior_mean
    >>> signals = model.signals(straight)
    >>> bool(signals[0] == 1 and signals[3] < signals[1])  # more is lost along the cell
    True
    """

    Fit = CellShapeFit
    acquisition: Acquisition

    def __init__(
        self,
        gtab: GradientTable | BaseAcquisition,
        shape_space: ShapeSpace | None = None,
        *,
        diffusivity: float = 2e-3,
        te: ArrayLike | None = None,
        seed: int = 0,
    ):
        super().__init__(gtab, te)
        self.acquisition = require_pulsed(self.acquisition)
        require_single_magnitudes(self.acquisition, "CellShapeModel")
        lacks_b0 = ~self.acquisition.b0_per_te.any(axis=1)
        if lacks_b0.any():
            raise ValueError(
                f"gtab has no b0 at echo time {self.acquisition.echo_times[lacks_b0][0]:g} ms, "
                "but the shape is estimated from the attenuation. Measure b0 at each echo time, "
                "or give the te that the measurements share."
            )
        self.shape_space = tube_space() if shape_space is None else shape_space
        self.diffusivity = float(diffusivity)
        self._diffusivity = diffusivity_um2_per_ms("diffusivity", diffusivity)
        self.seed = int(seed)
        self.coarse = self.forward_in(self.shape_space)
        for theta in np.asarray(self.shape_space.initial_shapes(), dtype=float):
            self._unfolded(self.coarse, theta)

    def forward_in(
        self, space: ShapeSpace, acquisition: Acquisition | None = None
    ) -> ShapeSignals:
        """Signals in a space, of the model's measurements or of others."""
        acquisition = self.acquisition if acquisition is None else acquisition
        length_um = min(
            length_scale_of_derivatives(measured, self._diffusivity)
            for measured in (self.acquisition, acquisition)
        )
        return ShapeSignals.of(space, acquisition, self._diffusivity, length_um)

    def meshed(
        self, thetas: Sequence[np.ndarray] | np.ndarray, acquisition: Acquisition | None = None
    ) -> ShapeSignals:
        """Signals after the space was remeshed for each of some shapes, one after another."""
        if len(thetas) == 0 and acquisition is None:
            return self.coarse
        space = self.shape_space
        for theta in thetas:
            space, _ = space.remeshed(theta)
        return self.forward_in(space, acquisition)

    @fill_doc
    def fit(
        self,
        data: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        sigma: ArrayLike | None = None,
        n_draws: int = 40,
        engine: str = "serial",
        n_jobs: int = -1,
        verbose: bool = False,
        journal: str | Path | None = None,
        max_memory: float | None = None,
    ) -> CellShapeFit:
        """Fit voxels, each with one cell.

        Parameters
        ----------
        %(data)s
        %(mask)s
        %(sigma)s
        %(n_draws)s
        %(execution)s
        """
        check_number("n_draws", n_draws, 0)
        execution = Engine(engine, n_jobs, verbose, journal, max_memory)
        image = image_of(
            data, mask, sigma, self.acquisition, max_memory=max_memory, verbose=verbose
        )
        status, values = fit_image(
            image, FitShapes(self, n_draws), cell_shape_layout(self, n_draws), execution, most=1,
            model=self, options={"n_draws": n_draws, "sigma": sigma},
        )  # fmt: skip
        warned = {
            "are at the bounds of their shape space (fit.at_bounds). Give a shape_space with "
            "wider bounds, or one that contains the cells.": values["at_bounds"],
            "have shapes that their signals or the prior of the shape space reject "
            "(fit.birge_ratio > 1); the estimated shapes may be wrong. Give a shape_space that "
            "contains the cells.": values["birge_ratio"] > 1,
        }
        for message, cells in warned.items():
            if cells.any():
                warn(f"{int(cells.sum())} of {len(image.voxels)} cells {message}")
        return CellShapeFit(self, status, values)

    def signals(
        self,
        theta: ArrayLike,
        rotation: ArrayLike = (0.0, 0.0, 0.0),
        gtab: GradientTable | BaseAcquisition | None = None,
    ) -> np.ndarray:
        """Noise-free signals (M,) of a shape, over those without diffusion.

        Parameters
        ----------
        theta : array-like (P,)
            In the shape space.
        rotation : array-like (3,), optional
            Rotation vector from the space to the scanner, rad.
        gtab : GradientTable or Acquisition, optional
            Measurements to predict. Default: those of the model.

        Raises
        ------
        ValueError
            A shape outside the bounds of its space, or one that turns tetrahedra inside out.
        """
        forward = self.coarse
        if gtab is not None:
            forward = self.meshed((), require_pulsed(as_acquisition(gtab)))
        points = self._unfolded(forward, theta, rotation)
        return forward.sensitivities.at(points).signals

    def signals_of_fit(
        self, values: Mapping[str, np.ndarray], acquisition: BaseAcquisition
    ) -> np.ndarray:
        """Signals (V, M) of the most probable shapes."""
        acquisition = require_pulsed(acquisition)
        signals = []
        for v, packed in enumerate(values["_stages"][:, -1]):
            meshed = values["_meshed"][v, : values["_stage_meshes"][v, -1]]
            forward = self.meshed(meshed, acquisition)
            points = forward.points(CellShape.unpack(packed))
            signals.append(forward.sensitivities.at(points).signals)
        return np.array(signals)

    def settings(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Arguments of the model, with the parts of its shape space."""
        space, arrays = self.shape_space, dict[str, np.ndarray]()
        if not is_dataclass(space):
            raise ValueError(
                f"shape_space is a {type(space).__name__}, which cannot be stored; only fits "
                "in those of dipy_spinverse.cell_shapes can be saved."
            )
        for field in fields(space):
            value = getattr(space, field.name)
            if isinstance(value, Template):
                value = value.points, value.tetrahedra
            if isinstance(value, tuple):
                arrays |= {f"{field.name}.{k}": np.asarray(x) for k, x in enumerate(value)}
            else:
                arrays[field.name] = np.asarray(value)
        settings = {"diffusivity": self.diffusivity, "seed": self.seed}
        return settings | {"shape_space": type(space).__name__}, arrays

    @classmethod
    def from_settings(
        cls, acquisition: Any, settings: dict, arrays: Mapping[str, np.ndarray]
    ) -> CellShapeModel:
        """The model of :meth:`settings`."""
        settings = dict(settings)
        name = settings.pop("shape_space")
        kinds = {kind.__name__: kind for kind in _STORED_SPACES}
        if name not in kinds:
            raise ValueError(
                f"the fit has a custom shape space, {name}, which cannot be stored; give "
                "model=, the model that was fitted."
            )
        parts = {field.name: _stored(arrays, field) for field in fields(kinds[name])}
        return cls(acquisition, kinds[name](**parts), **settings)

    def _unfolded(self, forward, theta, rotation=(0.0, 0.0, 0.0)):
        """Vertices (N, 3) of a shape within the bounds of the space and with no tetrahedron
        turned inside out."""
        theta, bounds = np.asarray(theta, dtype=float), np.asarray(self.shape_space.bounds)
        if theta.shape != (len(bounds),):
            raise ValueError(
                f"theta has shape {theta.shape}; the shape space has {len(bounds)} parameters."
            )
        outside = ~((theta >= bounds[:, 0]) & (theta <= bounds[:, 1]))
        if outside.any():
            k = int(np.argmax(outside))
            raise ValueError(
                f"theta[{k}] is {theta[k]:.4g}, outside of its bounds; give "
                f"{bounds[k, 0]:.4g} to {bounds[k, 1]:.4g}."
            )
        pose = Rotation.from_rotvec(np.asarray(rotation, dtype=float))
        points = forward.points(CellShape(theta, pose, 0.0, np.zeros(1)))
        if forward.is_degenerate(points):
            raise ValueError(
                f"theta {theta.round(2).tolist()} gives a shape with inverted tetrahedra; give "
                "one closer to the template."
            )
        return points


def _stored(arrays, field):
    """A part of a shape space: an array, a number, a template or a tuple of arrays."""
    if field.name in arrays:
        value = np.asarray(arrays[field.name])
        return value if value.ndim else value.item()
    n = sum(key.startswith(f"{field.name}.") for key in arrays)
    parts = [arrays[f"{field.name}.{k}"] for k in range(n)]
    return Template(*parts) if field.type == "Template" else tuple(parts)
