"""Superquadric glyphs of voxel models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from dipy.core.gradients import gradient_table
from dipy.core.sphere import HemiSphere, disperse_charges
from dipy.reconst.dti import TensorModel

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.compartments.fit import CompartmentFit

_SHARPNESS = 3.0
_B = 1.0  # ms/um^2
_N_DIRECTIONS = 30
_N_AROUND = 24
_N_ALONG = 13
_FILL = 0.48  # of the distance of voxels


@dataclass(frozen=True, eq=False)
class Glyphs:
    """Closed surfaces, one per voxel.

    Attributes
    ----------
    vertices : ndarray (G, N, 3)
        Relative to the centre of each voxel, in voxels.
    triangles : ndarray (T, 3)
        Of each glyph.
    centres : ndarray (G, 3)
        Index of each voxel.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    centres: np.ndarray

    def mesh(self) -> tuple[np.ndarray, np.ndarray]:
        """Vertices (G N, 3) and triangles (G T, 3) of all glyphs together."""
        n_glyphs, n = self.vertices.shape[:2]
        places = (self.vertices + self.centres[:, None]).reshape(-1, 3)
        offsets = n * np.arange(n_glyphs)[:, None, None]
        return places, (self.triangles + offsets).reshape(-1, 3)


def superquadrics(fit: CompartmentFit) -> Glyphs:
    """Superquadric tensor glyphs [1]_ of fitted voxels.

    The tensor is that of the signals that the fit predicts at b = 1 ms/um^2, so that models of
    any kind compare: a ball is isotropic, a rod a bundle of fibres, a disc fibres in a plane. The
    longest half axis of a glyph fills the voxel.

    Parameters
    ----------
    fit : CompartmentFit
        Of up to three-dimensional data.

    Returns
    -------
    Glyphs
        Of voxels that were fitted.

    References
    ----------
    .. [1] Kindlmann, Proc. IEEE TCVG Symp. Visualization (2004) 147,
       https://doi.org/10.2312/VisSym/VisSym04/147-154

    Examples
    --------
    >>> glyphs = superquadrics(fit)  # doctest: +SKIP
    >>> vertices, triangles = glyphs.mesh()  # doctest: +SKIP
    """
    acquisition = _low_b(fit.model.acquisition)
    signals = fit.predict(acquisition).reshape(-1, len(acquisition))
    shape = (*fit.shape, *(1,) * (3 - len(fit.shape)))
    shown = np.flatnonzero(signals.any(axis=1))
    gtab = gradient_table(1e3 * acquisition.b, bvecs=acquisition.directions)
    tensor = TensorModel(gtab, fit_method="LS").fit(signals[shown])
    evals = tensor.evals.clip(min=1e-3 * tensor.evals.max(axis=1, keepdims=True))
    vertices, triangles = _surfaces(evals)
    size = _FILL * evals / evals[:, :1]
    vertices = np.einsum("gij,gnj->gni", tensor.evecs, vertices * size[:, None])
    centres = np.stack(np.unravel_index(shown, shape), axis=1)
    return Glyphs(vertices, triangles, centres.astype(float))


def _low_b(acquisition):
    start = np.random.default_rng(0).standard_normal((_N_DIRECTIONS, 3))
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    directions = disperse_charges(HemiSphere(xyz=start), 200)[0].vertices
    small, big, te = acquisition.timings[0]
    return Acquisition(
        b=np.repeat([0, _B], [1, _N_DIRECTIONS]),
        directions=np.vstack([np.zeros(3), directions]),
        small_delta=small,
        big_delta=big,
        te=te,
    )


def _surfaces(evals):
    """Unit superquadrics (G, N, 3) along the axes of the eigenvalues (largest first)."""
    linear = (evals[:, 0] - evals[:, 1]) / evals.sum(axis=1)
    planar = 2 * (evals[:, 1] - evals[:, 2]) / evals.sum(axis=1)
    rod = (linear >= planar)[:, None]
    alpha = (1 - np.where(rod[:, 0], planar, linear)[:, None]) ** _SHARPNESS
    beta = (1 - np.where(rod[:, 0], linear, planar)[:, None]) ** _SHARPNESS
    around, along = np.meshgrid(
        np.linspace(0, 2 * np.pi, _N_AROUND, endpoint=False),
        np.linspace(0, np.pi, _N_ALONG)[1:-1],
        indexing="ij",
    )
    # The poles are single points, so that the surface is closed.
    around = np.concatenate([around.ravel(), [0, 0]])
    along = np.concatenate([along.ravel(), [0, np.pi]])
    ring = _power(np.sin(along), beta)
    first = _power(np.cos(around), alpha) * ring
    second = _power(np.sin(around), alpha) * ring
    pole = _power(np.cos(along), beta)
    # The pole is the first axis of a rod, the last of a disc.
    rods = np.stack([pole, -second, first], axis=2)
    discs = np.stack([first, second, pole], axis=2)
    return np.where(rod[..., None], rods, discs), _triangles()


def _power(base, exponent):
    base = np.where(np.abs(base) < 1e-12, 0, base)
    return np.sign(base) * np.abs(base) ** exponent


def _triangles():
    n = _N_ALONG - 2
    index = np.arange(_N_AROUND * n).reshape(_N_AROUND, n)
    following = np.roll(index, -1, axis=0)
    first, last = index.size, index.size + 1
    corners = [
        a.ravel() for a in (index[:, :-1], index[:, 1:], following[:, 1:], following[:, :-1])
    ]
    a, b, c, d = corners
    sides = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])
    top, bottom = np.full(_N_AROUND, first), np.full(_N_AROUND, last)
    caps = [
        np.stack([top, index[:, 0], following[:, 0]], axis=1),
        np.stack([bottom, following[:, -1], index[:, -1]], axis=1),
    ]
    return np.concatenate([sides, *caps])
