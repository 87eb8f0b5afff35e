"""Finite volumes: the Bloch-Torrey operator of a grid with permeable faces.

In the frame that turns with the local phase, the magnetisation u of the tetrahedra obeys

    w_i du_i/dt = sum_f t_f (exp(i q(t).(x_j - x_i)) u_j - u_i) - w_i loss_i u_i,
    t_f = A_f / (d_i/(D_i rho_i) + d_j/(D_j rho_j) + 1/(kappa_f rho_f)),   w_i = V_i rho_i,

where u is relative to the spin density rho, so that equilibrium is u = 1 on both sides of every
wall, and rho_f is the harmonic mean of the densities on the sides of a face (detailed balance:
kappa_ij rho_i = kappa_ji rho_j = kappa rho_f; kappa is the permeability from either side where
they are equal).

All solvers here work with the symmetrised v = sqrt(w) u, for which the operator is Hermitian.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike

from dipy_spinverse.bloch_torrey.medium import Medium
from dipy_spinverse.grid import TetrahedralGrid


@dataclass(frozen=True, eq=False)
class Links:
    """Neighbours of tetrahedra: the part of the operator that is the same for all permeabilities.

    Outer faces are slots that lead back to the tetrahedron itself, with face index F.
    """

    neighbours: np.ndarray  # (T, 4), through each face of a tetrahedron
    slot_faces: np.ndarray  # (T, 4), that face
    slot_links: np.ndarray  # (T, 4), its displacement in (link_vectors, -link_vectors)
    face_links: np.ndarray  # (F,), that from the first to the second tetrahedron of a face
    link_vectors: np.ndarray  # (L, 3), um, the different displacements; a lattice has only six


@lru_cache(maxsize=8)
def links_of(grid: TetrahedralGrid) -> Links:
    """Links of a grid (kept for the grids used last)."""
    n_faces, n_tetrahedra = grid.n_faces, grid.n_tetrahedra
    vectors, face_links = _undirected(grid.displacements)
    reverse = (face_links + len(vectors)) % (2 * len(vectors))

    source = np.concatenate([grid.face_tetrahedra[:, 0], grid.face_tetrahedra[:, 1]])
    target = np.concatenate([grid.face_tetrahedra[:, 1], grid.face_tetrahedra[:, 0]])
    order = np.argsort(source, kind="stable")
    counts = np.bincount(source, minlength=n_tetrahedra)
    slot = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    row = source[order]

    neighbours = np.repeat(np.arange(n_tetrahedra)[:, None], 4, axis=1)
    slot_faces = np.full((n_tetrahedra, 4), n_faces)
    slot_links = np.zeros((n_tetrahedra, 4), dtype=int)
    neighbours[row, slot] = target[order]
    slot_faces[row, slot] = np.tile(np.arange(n_faces), 2)[order]
    slot_links[row, slot] = np.concatenate([face_links, reverse])[order]
    return Links(
        neighbours=neighbours.astype(np.int32),
        slot_faces=slot_faces,
        slot_links=slot_links.astype(np.int32),
        face_links=face_links.astype(np.int32),
        link_vectors=vectors,
    )


def _undirected(displacements):
    """Different vectors up to sign, and for each row its index in (vectors, -vectors)."""
    rounded = np.round(displacements, 9) + 0.0
    first_nonzero = np.argmax(rounded != 0, axis=1)
    sign = np.sign(np.take_along_axis(rounded, first_nonzero[:, None], axis=1))
    vectors, index = np.unique(rounded * sign, axis=0, return_inverse=True)
    return vectors, np.where(sign[:, 0] > 0, index.ravel(), index.ravel() + len(vectors))


def face_resistance(
    grid: TetrahedralGrid, diffusivity: ArrayLike = 2.0, initial_density: ArrayLike = 1.0
) -> np.ndarray:
    """Resistance of the water on both sides of each face, ms/um, shape (F,).

    rho_f (d_i / (D_i rho_i) + d_j / (D_j rho_j)), rho_f the harmonic mean of the spin densities;
    d_i/D_i + d_j/D_j where these are equal. Diffusivity (um^2/ms) and density are numbers or (T,).
    """
    diffusivities, density = (
        np.broadcast_to(x, grid.n_tetrahedra)[grid.face_tetrahedra]
        for x in (diffusivity, initial_density)
    )
    relative = 2 * density[:, ::-1] / density.sum(axis=1, keepdims=True)  # rho_f / rho_i
    return (grid.face_distances / diffusivities * relative).sum(axis=1)


def open_conductance(grid: TetrahedralGrid, medium: Medium) -> np.ndarray:
    """Conductance t_f of faces without a membrane, um^3/ms, shape (F,)."""
    density = medium.density[grid.face_tetrahedra]
    shared = 2 * density.prod(axis=1) / density.sum(axis=1)
    resistance = face_resistance(grid, medium.diffusivity, medium.density)
    return grid.face_areas * shared / resistance


def relative_transmissibility(
    grid: TetrahedralGrid,
    permeability: ArrayLike,
    diffusivity: ArrayLike = 2.0,
    initial_density: ArrayLike = 1.0,
) -> np.ndarray:
    """Transmissibility (..., F) of faces relative to the same faces without a membrane.

    tau = 1 / (1 + 1 / (kappa r)) in [0, 1], r the resistance of the water on both sides, kappa the
    permeability (..., F), um/ms, infinite where there is no membrane.
    """
    resistance = face_resistance(grid, diffusivity, initial_density)
    with np.errstate(divide="ignore"):
        return 1 / (1 + 1 / (np.asarray(permeability) * resistance))


def permeability_of(
    grid: TetrahedralGrid, transmissibility: ArrayLike, diffusivity: ArrayLike = 2.0
) -> np.ndarray:
    """Permeability (..., F), um/ms, of relative transmissibilities in [0, 1]; their inverse."""
    tau = np.asarray(transmissibility)
    with np.errstate(divide="ignore"):
        return tau / (1 - tau) / face_resistance(grid, diffusivity)


def symmetrised_operator(
    grid: TetrahedralGrid, transmissibility: torch.Tensor, medium: Medium
) -> tuple[torch.Tensor, torch.Tensor]:
    """Entries of the Hermitian operator, 1/ms, without link phases, of transmissibilities (V, F).

    Coupling (V, T, 4) to `Links.neighbours`; diagonals (V, 2, T) of transverse and of stored
    magnetisation.
    """
    links = links_of(grid)
    tensor = transmissibility.new_tensor
    conductance = transmissibility * tensor(open_conductance(grid, medium))
    # Outer faces, the slots that lead back to their own tetrahedron, exchange with nobody.
    conductance = torch.nn.functional.pad(conductance, (0, 1))
    per_slot = conductance[:, torch.as_tensor(links.slot_faces, device=conductance.device)]
    weights = medium.density * grid.volumes
    diagonal = -per_slot.sum(dim=-1) / tensor(weights)
    mean_weight = np.sqrt(weights[:, None] * weights[links.neighbours])
    return (
        per_slot / tensor(mean_weight),
        diagonal[:, None] - tensor(medium.loss_rate),
    )


def largest_rate(grid: TetrahedralGrid, medium: Medium) -> float:
    """Bound on the operator's norm, 1/ms, for all permeabilities (Gershgorin, all faces open)."""
    every_face_open = torch.ones(1, grid.n_faces, dtype=torch.float64)
    diagonals = symmetrised_operator(grid, every_face_open, medium)[1][0].numpy()
    return float((-2 * diagonals - medium.loss_rate).max())
