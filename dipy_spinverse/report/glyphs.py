"""Superquadric glyphs of voxel models."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from dipy.core.gradients import gradient_table
from dipy.data import get_sphere
from dipy.reconst.dti import TensorModel

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.compartments.fit import CompartmentFit

_SHARPNESS = 3.0  # of the edges: the exponent gamma of the reference, which shows 3
_B = 1.0  # ms/um^2, usual for a diffusion tensor
_FILL = 0.48  # half axis over the distance of voxels: glyphs do not touch


class Glyphs(NamedTuple):
    """Closed surfaces, one per voxel."""

    vertices: np.ndarray  # (G, N, 3), in voxels, relative to the centre of each voxel
    triangles: np.ndarray  # (T, 3), the same in each glyph
    centres: np.ndarray  # (G, 3), index of each voxel

    def mesh(self) -> tuple[np.ndarray, np.ndarray]:
        """Vertices (G N, 3) and triangles (G T, 3) of all glyphs together."""
        n_glyphs, n_vertices = self.vertices.shape[:2]
        offsets = n_vertices * np.arange(n_glyphs)[:, None, None]
        vertices = (self.vertices + self.centres[:, None]).reshape(-1, 3)
        return vertices, (self.triangles + offsets).reshape(-1, 3)


def superquadrics(fit: CompartmentFit) -> Glyphs:
    """Superquadric tensor glyphs [1]_ of fitted voxels.

    The tensor is fitted to the signals that the model predicts at b = 1 ms/um^2, so that models
    of any kind compare: a ball is isotropic, a rod a bundle of fibres, a disc fibres in a plane.
    The longest half axis of a glyph fills the voxel.

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
    acquisition = _tensor_acquisition(fit.model.acquisition)
    signals = fit.predict(acquisition).reshape(-1, len(acquisition))
    shape = (*fit.shape, *(1,) * (3 - len(fit.shape)))
    fitted = np.flatnonzero(signals.any(axis=1))
    gtab = gradient_table(1e3 * acquisition.b, bvecs=acquisition.directions)
    tensor = TensorModel(gtab, fit_method="LS").fit(signals[fitted])
    evals = tensor.evals.clip(min=1e-3 * tensor.evals.max(axis=1, keepdims=True))
    sphere = get_sphere(name="repulsion200")
    size = _FILL * evals / evals[:, :1]
    vertices = _unit_superquadrics(evals, sphere.vertices) * size[:, None]
    vertices = np.einsum("gij,gnj->gni", tensor.evecs, vertices)
    centres = np.stack(np.unravel_index(fitted, shape), axis=1)
    return Glyphs(vertices, sphere.faces.astype(int), centres.astype(float))


def _tensor_acquisition(acquisition):
    """One shell of the timing of an acquisition."""
    hemisphere = get_sphere(name="repulsion100").vertices[:50]  # the others are opposite
    small_delta, big_delta, te = acquisition.timings[0]
    return Acquisition(
        b=np.r_[0, np.full(len(hemisphere), _B)],
        directions=np.vstack([np.zeros(3), hemisphere]),
        small_delta=small_delta,
        big_delta=big_delta,
        te=te,
    )


def _unit_superquadrics(evals, points):
    """Superquadrics (G, N, 3) along the axes of the eigenvalues (largest first).

    x = cos^a(phi) sin^b(theta), y = sin^a(phi) sin^b(theta), z = cos^b(theta) with signed powers,
    at the angles of points on the sphere; z is the first axis of a rod, the last of a disc.
    """
    linear = (evals[:, 0] - evals[:, 1]) / evals.sum(axis=1)
    planar = 2 * (evals[:, 1] - evals[:, 2]) / evals.sum(axis=1)
    is_rod = (linear >= planar)[:, None]
    alpha = (1 - np.minimum(linear, planar)[:, None]) ** _SHARPNESS
    beta = (1 - np.maximum(linear, planar)[:, None]) ** _SHARPNESS
    x, y, z = points.T
    sine = np.hypot(x, y)
    ring = sine**beta
    x, y = (_signed_power(component / sine, alpha) * ring for component in (x, y))
    z = _signed_power(z, beta)
    rods, discs = np.stack([z, -y, x], axis=2), np.stack([x, y, z], axis=2)
    return np.where(is_rod[..., None], rods, discs)


def _signed_power(base, exponent):
    return np.sign(base) * np.abs(base) ** exponent
