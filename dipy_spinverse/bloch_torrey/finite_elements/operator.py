"""Linear finite elements on any tetrahedral grid: signals, and derivatives by vertex positions.

Magnetisation is linear in each tetrahedron and continuous but across faces that carry a
permeability, where nodes are doubled [1]_. Masses are lumped at the nodes, which makes the
elements a network of nodes and links (see `sweep`): on the plateau of a
gradient water that cannot leave its body keeps its signal exactly. The phase of a node is taken
halfway between its vertex and its centre of mass. With the vertex, the second moments of a body,
which determine the attenuation, would be too large by a term of second order (the mass of a node
at a wall lies on one side of it), with the centre of mass too small by the same.

References
----------
.. [1] Li et al., NeuroImage 202 (2019), https://doi.org/10.1016/j.neuroimage.2019.116120
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.bloch_torrey.encoding_groups import timing_groups, unique_encodings
from dipy_spinverse.bloch_torrey.finite_elements.sweep import LumpedNetwork, Stepper
from dipy_spinverse.bloch_torrey.medium import positive_per_tetrahedron
from dipy_spinverse.bloch_torrey.propagators import differentiable_signals
from dipy_spinverse.bloch_torrey.time_steps import check_steps, schedule_of
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.grid.regions import faces_as_corners
from dipy_spinverse.grid.tetrahedral_grid import connected_component

EDGES = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])
_CHUNK_BYTES = 2**28  # memory of the states of one chunk of measurements
_STORED_STATES = 400  # of a backward sweep: those between exponentials, and those of one series


@dataclass(frozen=True, eq=False)
class FiniteElements:
    """Nodes and links of linear finite elements, whatever the positions and coefficients."""

    grid: TetrahedralGrid
    membranes: np.ndarray  # (I,), faces that carry a permeability
    nodes: np.ndarray  # (T, 4), at each vertex of each tetrahedron
    vertices: np.ndarray  # (N,), of each node
    free: np.ndarray  # (N,) of bool, False on an absorbing outside
    home: np.ndarray  # (N + images,), node of each node or periodic image
    wraps: np.ndarray  # (N + images, 3), periods between them
    ends: np.ndarray  # (L, 2), node, and node or image, that a link joins
    tetrahedron_links: np.ndarray  # (T, 6), of each edge
    membrane_links: np.ndarray  # (I, 3), through each corner of a membrane's face


def finite_elements(grid: TetrahedralGrid, permeability: ArrayLike) -> FiniteElements:
    """Linear finite elements of a grid, split where permeabilities (F,), um/ms, are finite."""
    permeability = np.asarray(permeability, dtype=float)
    membranes = np.flatnonzero(np.isfinite(permeability))
    corner_pairs, n_corners = np.stack(faces_as_corners(grid), axis=-1), grid.tetrahedra.size
    joined = corner_pairs[np.isinf(permeability)].reshape(-1, 2)
    node = connected_component(joined, n_corners)
    n_nodes = node.max() + 1
    vertices = np.empty(n_nodes, int)
    vertices[node] = grid.tetrahedra.ravel()
    period = np.ones(3) if grid.period_um is None else grid.period_um
    offset = grid.tetrahedron_points - grid.points_um[grid.tetrahedra]
    wrap = np.round(offset / period).astype(int).reshape(-1, 3)

    corners = np.arange(n_corners).reshape(-1, 4)
    edges = corners[:, EDGES].reshape(-1, 2)
    shift = wrap[edges[:, 1]] - wrap[edges[:, 0]]
    pairs = np.concatenate([node[edges], node[corner_pairs[membranes]].reshape(-1, 2)])
    shift = np.concatenate([shift, np.zeros((3 * len(membranes), 3), int)])
    # the two sides of a membrane across a periodic face are at the same position
    flip = pairs[:, 0] > pairs[:, 1]
    pairs[flip], shift[flip] = pairs[flip, ::-1], -shift[flip]
    keys, link = np.unique(np.column_stack([pairs, shift]), axis=0, return_inverse=True)
    link = link.ravel()
    images, image = np.unique(keys[:, 1:], axis=0, return_inverse=True)
    home, wraps, link_ends = _with_images(n_nodes, keys, images, image.ravel())
    free = np.ones(n_nodes, bool)
    if grid.boundary == "absorbing":
        free[np.isin(vertices, grid.outer_faces)] = False
    return FiniteElements(
        grid=grid,
        membranes=membranes,
        nodes=node.reshape(-1, 4),
        vertices=vertices,
        free=free,
        home=home,
        wraps=wraps,
        ends=link_ends,
        tetrahedron_links=link[: edges.shape[0]].reshape(-1, 6),
        membrane_links=link[edges.shape[0] :].reshape(-1, 3),
    )


def simulate_finite_elements(
    acquisition: BaseAcquisition,
    grid: TetrahedralGrid,
    permeability: ArrayLike | torch.Tensor,
    *,
    points_um: torch.Tensor | None = None,
    diffusivity: ArrayLike = 2.0,
    steps: int = 16,
) -> np.ndarray | torch.Tensor:
    """Signals of an acquisition in a grid with membranes, by linear finite elements.

    Unlike the finite volumes these need no lattice: the grid may follow curved membranes.
    Spins that leave an absorbing grid are lost at its outer faces, also on a lattice.

    Parameters
    ----------
    acquisition, grid, permeability, diffusivity
        As in :func:`dipy_spinverse.simulate`; permeability (F,).
    points_um : torch.Tensor (P, 3), optional
        Positions of the grid's vertices instead of its own, um.
    steps : int, optional
        Largest number of time intervals per part of the encoding, as a gradient pulse (even).

    Returns
    -------
    ndarray or torch.Tensor (M,)
        Relative to the initial magnetisation. A tensor where `permeability` or `points_um` is
        one; differentiable with respect to both.

    Raises
    ------
    ValueError
        An argument of wrong shape or range, or vertices so far off that tetrahedra are inverted.

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> from dipy_spinverse.acquisition import Acquisition
    >>> acquisition = Acquisition(b=[0, 1], directions=[[0, 0, 0], [1, 0, 0]],
    ...                           small_delta=10, big_delta=30)
    >>> grid = bcc_grid(4, 1.0)
    >>> simulate_finite_elements(acquisition, grid, np.full(grid.n_faces, np.inf)).round(3)
    array([1.   , 0.136])
    """
    returns_tensor = isinstance(permeability, torch.Tensor) or isinstance(points_um, torch.Tensor)
    kappa = torch.as_tensor(permeability, dtype=torch.float64)
    points = torch.as_tensor(
        grid.points_um if points_um is None else points_um, dtype=torch.float64
    )
    diffusivity = checked_coefficients(grid, kappa, points, diffusivity)
    check_steps(steps)
    refuse_inverted(grid, points.detach().numpy())
    elements = finite_elements(grid, kappa.detach().numpy())
    network = coefficients(elements, points, kappa, diffusivity)
    propagator = NetworkPropagator(elements, acquisition, int(steps))
    signals = differentiable_signals(propagator, *network)
    return signals if returns_tensor else signals.numpy()


def coefficients(
    elements: FiniteElements,
    points: torch.Tensor,
    permeability: torch.Tensor,
    diffusivity: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Conductances (L,) of links, um^3/ms; masses (N,), um^3, and positions (N, 3), um, of nodes.

    Differentiable with respect to everything.
    """
    grid = elements.grid
    corners = points[grid.tetrahedra] + _wrapped(grid)
    edges = corners[:, 1:] - corners[:, :1]
    volumes = (torch.linalg.det(edges) / 6).abs()
    slopes = torch.linalg.inv(edges).transpose(1, 2)  # (T, 3 vertices, 3)
    slopes = torch.cat([-slopes.sum(dim=1, keepdim=True), slopes], dim=1)
    products = (slopes[:, EDGES[:, 0]] * slopes[:, EDGES[:, 1]]).sum(dim=2)
    per_edge = -(diffusivity * volumes)[:, None] * products
    n_links, n_nodes = len(elements.ends), len(elements.vertices)
    conductance = _scatter(n_links, elements.tetrahedron_links, per_edge)
    wrapped_faces = torch.as_tensor(grid.face_points - grid.points_um[grid.faces])
    a, b, c = (points[grid.faces] + wrapped_faces)[elements.membranes].unbind(dim=1)
    areas = torch.linalg.cross(b - a, c - a).norm(dim=1) / 2
    of_membrane = (permeability[elements.membranes] * areas / 3)[:, None].expand(-1, 3)
    conductance = conductance + _scatter(n_links, elements.membrane_links, of_membrane)
    masses = _scatter(n_nodes, elements.nodes, (volumes / 4)[:, None].expand(-1, 4))
    return conductance, masses, _positions(elements, points, corners, volumes, masses)


def inverted_tetrahedra(grid: TetrahedralGrid, points: np.ndarray) -> np.ndarray:
    """Whether (T,) tetrahedra with their vertices at other points (P, 3) are turned inside out.

    The tetrahedra of a grid may have either orientation; which one must not change.
    """
    corners = points[grid.tetrahedra] + _wrapped(grid).numpy()
    volume, reference = (
        np.linalg.det(vertices[:, 1:] - vertices[:, :1])
        for vertices in (corners, grid.tetrahedron_points)
    )
    return volume * reference <= 0


def refuse_inverted(grid: TetrahedralGrid, points: np.ndarray) -> None:
    """Refuse points (P, 3) at which tetrahedra are inverted."""
    inverted = inverted_tetrahedra(grid, points)
    if inverted.any():
        raise ValueError(
            "points_um: vertices were moved so far that tetrahedra are inverted (first: "
            f"{int(np.argmax(inverted))}); move them less, or mesh anew."
        )


def _positions(elements, points, corners, volumes, masses):
    """Halfway between the vertices and the centres of the masses that are lumped there."""
    # a vertex' share of a tetrahedron is centred at a fifth of all vertices and of itself again
    to_centre = 0.8 * (corners.mean(dim=1, keepdim=True) - corners)
    weighted = to_centre * (volumes / 4)[:, None, None]
    offset = _scatter(len(masses), elements.nodes, weighted) / masses[:, None]
    return points[elements.vertices] + offset / 2


def lumped_network(
    elements: FiniteElements, conductance: np.ndarray, masses: np.ndarray, positions: np.ndarray
) -> LumpedNetwork:
    """The network of elements with these coefficients."""
    period = 0.0 if elements.grid.period_um is None else elements.grid.period_um
    return LumpedNetwork(
        home=elements.home,
        free=elements.free,
        ends=elements.ends,
        positions=positions[elements.home] + elements.wraps * period,
        conductance=conductance,
        masses=masses,
    )


def checked_coefficients(grid, permeability, points, diffusivity) -> torch.Tensor:
    """Diffusivity (T,) after refusing arguments of wrong shape or range."""
    if permeability.shape != (grid.n_faces,) or not bool((permeability >= 0).all()):
        raise ValueError(
            f"permeability has shape {tuple(permeability.shape)}, or negative or NaN values; give "
            f"({grid.n_faces},) values of at least 0 in um/ms, infinite for no membrane."
        )
    if points.shape != (grid.n_points, 3) or not bool(torch.isfinite(points).all()):
        raise ValueError(
            f"points_um has shape {tuple(points.shape)}; give finite positions of shape "
            f"({grid.n_points}, 3), um."
        )
    return torch.tensor(positive_per_tetrahedron("diffusivity", diffusivity, grid, "um^2/ms"))


@dataclass(frozen=True, eq=False)
class NetworkPropagator:
    """Signals by conductances (L,), masses (N,) and positions (N, 3); a `Propagator`."""

    elements: FiniteElements
    acquisition: BaseAcquisition
    steps: int

    def signals(self, *coefficients: torch.Tensor) -> torch.Tensor:
        """Signals (M,)."""
        signals = np.empty(len(self._encodings[0]))
        for rows, stepper in self._steppers(coefficients):
            signals[rows] = stepper.signals()
        return torch.as_tensor(signals[self._encodings[1]])

    def pull_back(
        self, cotangent: torch.Tensor, *coefficients: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Derivatives of the sum of cotangent times signals."""
        representatives, encoding = self._encodings
        weights = np.bincount(encoding, cotangent.numpy(), len(representatives))
        gradients = [np.zeros(x.shape) for x in coefficients]
        by_conductance, by_mass, by_position = gradients
        i, j = self.elements.home[self.elements.ends].T
        for rows, stepper in self._steppers(coefficients):
            of_links, of_masses, of_displacements = stepper.pull_back(weights[rows])
            by_conductance += of_links
            by_mass += of_masses
            np.add.at(by_position, j, of_displacements)
            np.add.at(by_position, i, -of_displacements)
        return tuple(map(torch.as_tensor, gradients))

    @cached_property
    def _encodings(self):
        return unique_encodings(self.acquisition)

    def _steppers(self, coefficients):
        """(rows among the representatives, stepper) of encodings alike in time, in chunks."""
        network = lumped_network(self.elements, *(x.numpy() for x in coefficients))
        size = max(8, _CHUNK_BYTES // (_STORED_STATES * 16 * len(network.masses)))
        lossless = bool(network.free.all())
        for waveforms, symmetric in timing_groups(self.acquisition, self._encodings[0]):
            for start in range(0, len(waveforms.rows), size):
                chunk = np.arange(start, min(start + size, len(waveforms.rows)))
                selected = waveforms.select(chunk)
                schedule = schedule_of(selected, symmetric, self.steps, False, lossless=lossless)
                yield selected.rows, Stepper(network, schedule)


def _with_images(n_nodes, keys, images, image):
    """`home`, `wraps` and `ends` of links (node, node, periods between)."""
    wrapped = images[:, 1:].any(axis=1)
    index = np.where(wrapped, n_nodes + np.cumsum(wrapped) - 1, images[:, 0])
    home = np.concatenate([np.arange(n_nodes), images[wrapped, 0]])
    wraps = np.concatenate([np.zeros((n_nodes, 3), int), images[wrapped, 1:]])
    return home, wraps, np.column_stack([keys[:, 0], index[image]])


def _wrapped(grid):
    """Distance of the tetrahedra's vertices from the stored ones, whole periods."""
    return torch.as_tensor(grid.tetrahedron_points - grid.points_um[grid.tetrahedra])


def _scatter(n, index, values):
    """Sum of values (*index.shape, ...) by index."""
    shape = values.shape[index.ndim :]
    total = torch.zeros(n, *shape, dtype=values.dtype)
    return total.index_add(0, torch.as_tensor(index.ravel()), values.reshape(index.size, *shape))
