"""Maps of permeability fields: surface, permeability, exchange, restriction, orientation.

Every map is a smooth function of the transmissibilities.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.special import expit

from dipy_spinverse.bloch_torrey.finite_volumes.displacement import displacement_moments
from dipy_spinverse.bloch_torrey.finite_volumes.operator import face_resistance
from dipy_spinverse.grid import TetrahedralGrid

# Relative transmissibility at which a face counts half as a wall; chosen by hand.
WALL_TRANSMISSIBILITY = 0.25
# Upper limit of the map: walls with longer exchange times cannot be distinguished from impermeable
# ones by diffusion times of milliseconds.
LONGEST_EXCHANGE_TIME_MS = 1e4
# Mean squared displacement in the most restricted direction, relative to free diffusion, below
# which a spin is restricted, and the width of the sigmoid. In impermeable cylinders with a radius
# below sqrt(D t) the ratio is below 0.2; between cylinders of volume fraction 0.65 it is 0.4 to
# 0.5.
_RESTRICTED_RATIO, _RESTRICTED_WIDTH = 0.30, 0.04
# Root mean squared displacement, over the distance between centroids, in the drift of spins that
# gives normals. From 3 to 6, areas of spheres, cylinders and planes change by about 1 %.
_DRIFT_LENGTH = 4.0
# Weight of the normal of the face itself, for walls between which spins cannot move; chosen by
# hand, as the constants below.
_FACE_NORMAL_WEIGHT = 0.2
_SMOOTHING_ROUNDS = 2
# Surface-to-volume ratio (1/um) and restricted fraction below which maps decrease to zero.
_MIN_SURFACE, _MIN_RESTRICTED = 1e-3, 1e-3
_CHUNK = 32


def wall_maps(
    grid: TetrahedralGrid,
    transmissibility: torch.Tensor | np.ndarray,
    *,
    diffusivity: float,
    diffusion_time: float,
) -> dict[str, np.ndarray]:
    """Maps of the walls of permeability fields.

    A face has the weight w = 2^-(tau / 0.25)^3 of a wall, with tau its relative transmissibility.
    Walls on the faces of a grid have up to twice the area of the smooth membrane that they
    approximate; areas here are those of the membrane, the sum of w A n_f . n, with its normal n
    from the drift of spins away from it, see :func:`membrane_normals`.

    Parameters
    ----------
    grid : TetrahedralGrid
    transmissibility : array-like or tensor (V, F)
        Relative transmissibilities in [0, 1] of V permeability fields.
    diffusivity : float
        um^2/ms.
    diffusion_time : float
        Time of restriction, ms: the longest Delta - delta/3 measured.

    Returns
    -------
    dict of ndarray (V,), one (V, 3)
        surface_to_volume
            Area of the membranes over the volume of the grid, 1/um.
        wall_permeability
            Mean permeability of the membranes, um/ms; 0 without walls.
        exchange_time
            Mean time in which a restricted spin crosses a wall, ms: volume of restricted spins
            over permeability times area of the walls. At most 1e4 ms (impermeable walls); 0
            without restricted spins.
        restricted_fraction
            Volume fraction of pores: of spins whose mean squared displacement in the most
            restricted direction, if the walls were impermeable, is below 0.3 of the mean without
            walls. Does not depend on the permeability. Cylinders wider than about 3 sqrt(D t) are
            not included, nor those wider than half of a grid that is not periodic (whose outside
            is taken as reflecting).
        pore_diameter
            Mean chord length of the restricted volume, 4 V / S [1]_, um: the diameter of
            cylinders, 2/3 of that of spheres; 0 without walls or restricted spins.
        wall_orientation (V, 3)
            The axis with the least wall area across it, as that of cylinders; z >= 0; 0 without
            walls.
        wall_anisotropy
            2 (l_2 - l_3) of the eigenvalues of the mean of n n^T over the membranes: 1 for
            parallel cylinders, 0 for spheres, and for parallel planes, which have no such axis.

    Raises
    ------
    ValueError
        Transmissibilities of wrong shape or range, a diffusivity or time that is not positive.

    References
    ----------
    .. [1] Blanco and Fournier, "An invariance property of diffusive random walks", Europhys. Lett.
       61 (2003), https://doi.org/10.1209/epl/i2003-00208-x

    Examples
    --------
    >>> from dipy_spinverse.bloch_torrey import relative_transmissibility
    >>> from dipy_spinverse.grid import bcc_grid
    >>> from dipy_spinverse.substrates.membranes import cylinders
    >>> grid = bcc_grid(cells=6, cell_size_um=2.0)
    >>> walls = cylinders(grid, [0, 0, 0], radii_um=4.0)
    >>> tau = relative_transmissibility(grid, walls, diffusivity=2.0)
    >>> maps = wall_maps(grid, tau[None], diffusivity=2.0, diffusion_time=30.0)
    >>> maps["pore_diameter"].round(), maps["wall_orientation"].round(1) + 0
    (array([8.]), array([[0., 0., 1.]]))
    """
    tau = _checked(grid, transmissibility, diffusivity, diffusion_time)
    free_square = _free_square(grid, diffusivity, diffusion_time)
    chunks = [
        _maps_of(grid, tau[start : start + _CHUNK], diffusivity, diffusion_time, free_square)
        for start in range(0, len(tau), _CHUNK)
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def wall_weights(transmissibility: np.ndarray) -> np.ndarray:
    """Weight of a face as a wall, from 1 (impermeable) to 0 (open): 2^-(tau / 0.25)^3."""
    return np.exp2(-((transmissibility / WALL_TRANSMISSIBILITY) ** 3))


def membrane_normals(
    grid: TetrahedralGrid, transmissibility: np.ndarray, diffusivity: float
) -> np.ndarray:
    """Normals (V, F, 3) of the smooth membranes that walls on the faces of a grid approximate.

    On both sides of a membrane spins drift away from it, along its normal. Their mean
    displacements over four distances between tetrahedra do not depend on the orientation of single
    faces, so their difference across a face is along the normal of the membrane, with a sign:
    faces that are folded back have a negative projected area. Where spins cannot move, this is the
    normal of the face. The average of the outer product of these vectors over neighbouring walls
    gives the common direction. Normals have length 1 (less where neighbouring walls have different
    ones), and point from the first to the second tetrahedron of the face, except for folds.
    """
    step = np.linalg.norm(grid.displacements, axis=1).mean()
    time = (_DRIFT_LENGTH * step) ** 2 / (2 * diffusivity)
    drift, _ = displacement_moments(grid, _impermeable(transmissibility), time, diffusivity)
    origin, target = grid.face_tetrahedra.T
    normals = drift[:, target] - drift[:, origin] + _FACE_NORMAL_WEIGHT * grid.displacements
    normals /= step
    tensor = normals[..., :, None] * normals[..., None, :]
    tensor *= (wall_weights(transmissibility) * grid.face_areas)[..., None, None]
    tensor = _smoothed(grid, tensor)
    # The fourth power selects the dominant direction, and is smooth where eigenvectors are not.
    for _ in range(2):
        tensor /= np.trace(tensor, axis1=-2, axis2=-1)[..., None, None] + 1e-12
        tensor = tensor @ tensor
    normals = np.einsum("vfkl,vfl->vfk", tensor, normals)
    return normals / np.sqrt((normals**2).sum(axis=-1, keepdims=True) + 1e-12)


def _maps_of(grid, tau, diffusivity, diffusion_time, free_square):
    weights = wall_weights(tau)
    normals = membrane_normals(grid, tau, diffusivity)
    projection = np.einsum("vfk,fk->vf", normals, grid.face_normals)
    area = weights * grid.face_areas * projection
    surface = np.maximum(area.sum(axis=1), 0) / grid.volume_um3
    # At tau = 1 the weight vanishes faster than the permeability grows.
    permeability = tau / np.maximum(1 - tau, 1e-9) / face_resistance(grid, diffusivity)
    exchange = (weights * permeability) @ grid.face_areas / grid.volume_um3

    has_walls = surface**2 / (surface**2 + _MIN_SURFACE**2)
    per_surface = surface / (surface**2 + _MIN_SURFACE**2)
    restricted = _restricted_fraction(grid, tau, diffusivity, diffusion_time, free_square)
    restricted *= has_walls
    has_restricted = restricted**2 / (restricted**2 + _MIN_RESTRICTED**2)
    crossings = np.einsum("vf,vfk,vfl->vkl", area, normals, normals, optimize=True)
    crossings /= np.maximum(np.trace(crossings, axis1=1, axis2=2), 1e-12)[:, None, None]
    eigenvalues, axes = np.linalg.eigh(crossings)
    axis = _point_upwards(axes[:, :, 0])
    return {
        "surface_to_volume": surface,
        "wall_permeability": exchange * per_surface,
        "exchange_time": has_restricted
        * restricted
        / (exchange + restricted / LONGEST_EXCHANGE_TIME_MS),
        "restricted_fraction": restricted,
        "pore_diameter": 4 * restricted * per_surface,
        "wall_orientation": np.where(surface[:, None] > _MIN_SURFACE, axis, 0.0),
        "wall_anisotropy": has_walls * np.clip(2 * (eigenvalues[:, 1] - eigenvalues[:, 0]), 0, 1),
    }


def _impermeable(tau):
    """Transmissibilities of the same walls if they were impermeable."""
    return torch.from_numpy((1 - wall_weights(tau)) * tau)


def _free_square(grid, diffusivity, time):
    """Mean squared displacement per axis without walls, um^2: 2 D t, or less in a closed box."""
    _, second_moment = displacement_moments(grid, torch.ones(1, grid.n_faces), time, diffusivity)
    return np.trace(second_moment[0], axis1=1, axis2=2) @ grid.volumes / (3 * grid.volume_um3)


def _restricted_fraction(grid, tau, diffusivity, time, free_square):
    _, second_moment = displacement_moments(grid, _impermeable(tau), time, diffusivity)
    ratio = _soft_min_eigenvalue(second_moment / free_square)
    restricted = expit((_RESTRICTED_RATIO - ratio) / _RESTRICTED_WIDTH)
    return restricted @ grid.volumes / grid.volume_um3


def _soft_min_eigenvalue(tensor):
    """Power mean with exponent -4 of the eigenvalues of tensors: a smooth minimum."""
    inverse_square = np.linalg.matrix_power(tensor + 1e-4 * np.eye(3), -2)
    return ((inverse_square**2).sum(axis=(-2, -1)) / 3) ** -0.25


def _point_upwards(axes):
    """Axes (V, 3) with z >= 0, or if z is 0 with the next component positive."""
    rounded = np.round(axes[:, [2, 0, 1]], 9)
    leading = np.take_along_axis(rounded, (rounded != 0).argmax(axis=1)[:, None], axis=1)
    return axes * np.sign(leading)


def _checked(grid, transmissibility, diffusivity, diffusion_time):
    for name, value, unit in (
        ("diffusivity", diffusivity, "um^2/ms"),
        ("diffusion_time", diffusion_time, "ms"),
    ):
        if not np.isfinite(value) or value <= 0:
            raise ValueError(f"{name} is {value!r}; give a positive number in {unit}.")
    if isinstance(transmissibility, torch.Tensor):
        transmissibility = transmissibility.detach().cpu().numpy()
    tau = np.ascontiguousarray(transmissibility, dtype=float)
    if tau.ndim != 2 or tau.shape[1] != grid.n_faces or len(tau) == 0:
        raise ValueError(
            f"transmissibility has shape {tau.shape}; the grid has {grid.n_faces} faces, so give "
            f"(V, {grid.n_faces}) for V fields (transmissibility[None] for one)."
        )
    if not ((tau >= 0) & (tau <= 1)).all():
        raise ValueError(
            f"transmissibility is between {tau.min():g} and {tau.max():g}; give values in [0, 1] "
            "(bloch_torrey.relative_transmissibility makes them of permeabilities)."
        )
    return tau


def _smoothed(grid, tensor):
    """Tensors (V, F, 3, 3) summed over faces that share vertices, several times."""
    corners = np.repeat(np.arange(grid.n_faces), 3)
    shape = (grid.n_points, grid.n_faces)
    to_vertices = coo_matrix((np.ones(len(corners)), (grid.faces.ravel(), corners)), shape).tocsr()
    to_faces = to_vertices.T.tocsr()
    columns = tensor.swapaxes(0, 1).reshape(grid.n_faces, -1)
    for _ in range(_SMOOTHING_ROUNDS):
        columns = to_faces @ (to_vertices @ columns)
    return columns.reshape(grid.n_faces, len(tensor), 3, 3).swapaxes(0, 1)
