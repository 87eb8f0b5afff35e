"""Scalar maps of fitted walls: surface, permeability, exchange, restriction, orientation.

Every map is a smooth function of the transmissibilities, so that uncertainties can be carried
over to it by linearisation.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.special import expit

from dipy_spinverse.bloch_torrey.finite_volumes.displacement import displacement_moments
from dipy_spinverse.bloch_torrey.finite_volumes.operator import face_resistance
from dipy_spinverse.grid import TetrahedralGrid

WALL_TRANSMISSIBILITY = 0.25
LONGEST_EXCHANGE_TIME_MS = 1e4
# A spin counts as restricted where its least mean squared displacement is this part of a free
# spin's, with a soft step of this width. Inside of impermeable cylinders, sqrt(D t) above their
# radius, it is below 0.2; between cylinders of volume fraction 0.65 it is 0.4 to 0.5.
_RESTRICTED_RATIO = 0.30
_RESTRICTED_WIDTH = 0.04
# Relative length over which the drift of spins tells the normal of a rough wall: root mean
# squared displacement over the distance between centroids. From 3 to 6, areas of spheres,
# cylinders and planes change by about 1 %.
_DRIFT_LENGTH = 4.0
# Share of the face's own normal, for walls where nothing can move.
_OWN_NORMAL = 0.2
_SMOOTHING_ROUNDS = 2
# Below, there is no wall and nothing restricted to speak of.
_LEAST_SURFACE = 1e-3  # 1/um
_LEAST_RESTRICTED = 1e-3  # fraction
_CHUNK = 32


def wall_maps(
    grid: TetrahedralGrid,
    transmissibility: torch.Tensor | np.ndarray,
    *,
    diffusivity: float,
    diffusion_time: float,
) -> dict[str, np.ndarray]:
    """Maps of the walls of permeability fields.

    A face is a wall by w = 2^-(tau / 0.25)^3, half where its transmissibility tau is a quarter of
    an open face's. Walls on the faces of a grid are a staircase with up to twice the area of the
    membrane that they stand for; all areas here are the membrane's, the sum of w A n_f . n, with
    its normal n found from the drift of spins away from it, see :func:`membrane_normals`.

    Parameters
    ----------
    grid : TetrahedralGrid
    transmissibility : array-like or tensor (V, F)
        Relative transmissibilities in [0, 1] of V permeability fields.
    diffusivity : float
        um^2/ms.
    diffusion_time : float
        Time over which spins are or are not restricted, ms: the longest Delta - delta/3 measured.

    Returns
    -------
    dict of ndarray (V,), one (V, 3)
        surface_to_volume
            Area of the membranes over the volume of the grid, 1/um.
        wall_permeability
            Mean permeability of the membranes, um/ms; 0 without walls.
        exchange_time
            Mean time that a restricted spin takes to cross a wall, ms: volume of restricted
            spins over the walls' permeability times area. At most 1e4 ms (walls that seem
            impermeable); 0 where nothing is restricted.
        restricted_fraction
            Volume fraction of the pores: where spins start that would not get far in at least one
            direction if the walls were closed: least mean squared displacement below 0.3 of what
            it is on average without walls. How closed the walls really are, is for the exchange
            time to say. Cylinders wider than about 3 sqrt(D t) do not count, nor those wider than
            half of a grid that is not periodic (whose outside counts as reflecting).
        pore_diameter
            Mean chord length of the restricted volume, 4 V / S [1]_, um: the diameter of
            cylinders, 2/3 of that of spheres; 0 without walls or restricted spins.
        wall_orientation (V, 3)
            The axis that crosses walls least, as the axis of cylinders; z >= 0; 0 without walls.
        wall_anisotropy
            How well the walls determine this axis, 2 (l_2 - l_3) of the eigenvalues of the mean
            of n n^T over the membranes: 1 for parallel cylinders, 0 for spheres, and for parallel
            planes, which leave all axes within them alike.

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
    """How much a face counts as a wall, from 1 (closed) to 0 (open): 2^-(tau / 0.25)^3."""
    return np.exp2(-((transmissibility / WALL_TRANSMISSIBILITY) ** 3))


def membrane_normals(
    grid: TetrahedralGrid, transmissibility: np.ndarray, diffusivity: float
) -> np.ndarray:
    """Normals of the membranes that stand on the staircase of a grid's walls.

    On both sides of a membrane spins drift away from it, along its normal. Their mean
    displacements over four distances between tetrahedra know nothing of the steps of the
    staircase; their difference across a face is therefore along the membrane's normal, and has a
    sign: a step that is folded back has a negative projected area. Where no spin moves, the face
    keeps its own normal. An average over neighbouring walls of the outer product of these vectors
    selects the common direction.

    Parameters
    ----------
    grid : TetrahedralGrid
    transmissibility : ndarray (V, F)
        Relative transmissibilities.
    diffusivity : float
        um^2/ms.

    Returns
    -------
    ndarray (V, F, 3)
        Of length 1 (less where nearby walls contradict each other), in the direction from the
        first to the second tetrahedron of the face, but for folds.
    """
    step = np.linalg.norm(grid.displacements, axis=1).mean()
    time = (_DRIFT_LENGTH * step) ** 2 / (2 * diffusivity)
    drift, _ = displacement_moments(grid, _closed(transmissibility), time, diffusivity)
    origin, target = grid.face_tetrahedra.T
    normals = drift[:, target] - drift[:, origin] + _OWN_NORMAL * grid.displacements
    normals /= step
    tensor = normals[..., :, None] * normals[..., None, :]
    tensor *= (wall_weights(transmissibility) * grid.face_areas)[..., None, None]
    tensor = _around_faces(grid, tensor)
    # The fourth power leaves the direction that dominates, without the kinks of an eigenvector.
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

    has_walls = surface**2 / (surface**2 + _LEAST_SURFACE**2)
    per_surface = surface / (surface**2 + _LEAST_SURFACE**2)
    restricted = _restricted_fraction(grid, tau, diffusivity, diffusion_time, free_square)
    restricted *= has_walls
    has_restricted = restricted**2 / (restricted**2 + _LEAST_RESTRICTED**2)
    crossings = np.einsum("vf,vfk,vfl->vkl", area, normals, normals, optimize=True)
    crossings /= np.maximum(np.trace(crossings, axis1=1, axis2=2), 1e-12)[:, None, None]
    spread, axes = np.linalg.eigh(crossings)
    axis = _point_upwards(axes[:, :, 0])
    return {
        "surface_to_volume": surface,
        "wall_permeability": exchange * per_surface,
        "exchange_time": has_restricted
        * restricted
        / (exchange + restricted / LONGEST_EXCHANGE_TIME_MS),
        "restricted_fraction": restricted,
        "pore_diameter": 4 * restricted * per_surface,
        "wall_orientation": np.where(surface[:, None] > _LEAST_SURFACE, axis, 0.0),
        "wall_anisotropy": has_walls * np.clip(2 * (spread[:, 1] - spread[:, 0]), 0, 1),
    }


def _closed(tau):
    """Transmissibilities of the same walls without their permeability."""
    return torch.from_numpy((1 - wall_weights(tau)) * tau)


def _free_square(grid, diffusivity, time):
    """Mean squared displacement per axis without walls, um^2: 2 D t, or less in a closed box."""
    _, second_moment = displacement_moments(grid, torch.ones(1, grid.n_faces), time, diffusivity)
    return np.trace(second_moment[0], axis1=1, axis2=2) @ grid.volumes / (3 * grid.volume_um3)


def _restricted_fraction(grid, tau, diffusivity, time, free_square):
    _, second_moment = displacement_moments(grid, _closed(tau), time, diffusivity)
    ratio = _soft_least_eigenvalue(second_moment / free_square)
    restricted = expit((_RESTRICTED_RATIO - ratio) / _RESTRICTED_WIDTH)
    return restricted @ grid.volumes / grid.volume_um3


def _soft_least_eigenvalue(tensor):
    """Power mean with exponent -4 of the eigenvalues: their least, but smooth.

    From the invariants: the mean of the fourth powers of the inverse's eigenvalues.
    """
    xx, yy, zz = (tensor[..., k, k] + 1e-4 for k in range(3))
    xy, xz, yz = tensor[..., 0, 1], tensor[..., 0, 2], tensor[..., 1, 2]
    determinant = xx * yy * zz + 2 * xy * xz * yz - xx * yz**2 - yy * xz**2 - zz * xy**2
    sum_1 = (xx * yy + xx * zz + yy * zz - xy**2 - xz**2 - yz**2) / determinant
    pairs_1 = (xx + yy + zz) / determinant
    sum_2 = sum_1**2 - 2 * pairs_1
    pairs_2 = pairs_1**2 - 2 * sum_1 / determinant
    return ((sum_2**2 - 2 * pairs_2) / 3) ** -0.25


def _point_upwards(axes):
    """Axes (V, 3) with z >= 0, or where z is 0 with the first other component positive."""
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


def _around_faces(grid, tensor):
    """Tensors (V, F, 3, 3) summed over faces that share vertices, as often as there are rounds."""
    corners = np.repeat(np.arange(grid.n_faces), 3)
    shape = (grid.n_points, grid.n_faces)
    to_vertices = coo_matrix((np.ones(len(corners)), (grid.faces.ravel(), corners)), shape).tocsr()
    to_faces = to_vertices.T.tocsr()
    upper = np.triu_indices(3)
    columns = tensor[..., upper[0], upper[1]].transpose(1, 0, 2).reshape(grid.n_faces, -1)
    for _ in range(_SMOOTHING_ROUNDS):
        columns = to_faces @ (to_vertices @ columns)
    columns = columns.reshape(grid.n_faces, len(tensor), 6).transpose(1, 0, 2)
    result = np.empty_like(tensor)
    result[..., upper[0], upper[1]] = columns
    result[..., upper[1], upper[0]] = columns
    return result
