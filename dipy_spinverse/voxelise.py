"""Which tetrahedra of a grid stand for a body, so that its volume is right."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.substrate_bodies import Body

logger = logging.getLogger("dipy_spinverse")

_SAMPLES = 256
# Tetrahedra sampled at once.
_CHUNK = 2_000


def _sample_weights():
    """Barycentric coordinates (S, 4) that fill a tetrahedron evenly.

    An additive recurrence with the powers of the root of x^4 = x + 1, folded into the simplex. A
    regular lattice of samples would resonate with planes of the grid: volumes off by 2 %.
    """
    root = 1.2207440846057596
    cube = (0.5 + np.arange(1, _SAMPLES + 1)[:, None] * root ** -np.arange(1.0, 4.0)) % 1
    edges = np.pad(np.sort(cube, axis=1), ((0, 0), (1, 1)), constant_values=(0, 1))
    return np.diff(edges, axis=1)


def share_inside(grid: TetrahedralGrid, body: Body) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the tetrahedra that a body touches, and the share of their volume inside."""
    depth = body.radius - np.linalg.norm(body.offset(grid.centroids), axis=1)
    reach = np.linalg.norm(grid.tetrahedron_points - grid.centroids[:, None], axis=2).max(axis=1)
    share = (depth > 0).astype(float)
    weights = _sample_weights()
    crossed = np.flatnonzero(np.abs(depth) < reach)
    for start in range(0, len(crossed), _CHUNK):
        part = crossed[start : start + _CHUNK]
        points = (weights @ grid.tetrahedron_points[part]).reshape(-1, 3)
        within = np.linalg.norm(body.offset(points), axis=1) < body.radius
        share[part] = within.reshape(len(part), -1).mean(axis=1)
    touched = np.flatnonzero(share)
    return touched, share[touched]


def label_by_samples(
    grid: TetrahedralGrid, inside: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Labels (T,) of the tetrahedra of regions that a function of points (K, 3) gives."""
    weights = _sample_weights()
    found = {}
    for start in range(0, grid.n_tetrahedra, _CHUNK):
        points = (weights @ grid.tetrahedron_points[start : start + _CHUNK]).reshape(-1, 3)
        labels = np.asarray(inside(points))
        if labels.shape != (len(points),) or labels.dtype.kind not in "bui":
            raise ValueError(
                f"inside returned shape {labels.shape} and type {labels.dtype} for {len(points)} "
                "points; it must return one boolean or integer for each, shape (K,)."
            )
        labels = labels.astype(int).reshape(-1, len(weights))
        for name in np.setdiff1d(labels, [0]):
            share = (labels == name).mean(axis=1)
            touched = np.flatnonzero(share)
            found.setdefault(int(name), []).append((touched + start, share[touched]))
    names = sorted(found)
    shares = [tuple(map(np.concatenate, zip(*found[name], strict=True))) for name in names]
    return np.array([0, *names])[voxelise(grid, shares)]


def voxelise(grid: TetrahedralGrid, shares: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Label tetrahedra (T,) so that each body has its volume to half a tetrahedron.

    `shares` holds what :func:`share_inside` returns for each body; the first gets label 1. A
    tetrahedron can only go to the body that has the largest share of it; each body takes those
    of which it has most until its volume is reached.
    """
    best = np.zeros(grid.n_tetrahedra)
    owner = np.zeros(grid.n_tetrahedra, dtype=int)
    for label, (touched, share) in enumerate(shares, start=1):
        larger = touched[share > best[touched]]
        owner[larger] = label
        best[touched] = np.maximum(best[touched], share)
    labels = np.zeros(grid.n_tetrahedra, dtype=int)
    for label, (touched, share) in enumerate(shares, start=1):
        volume = share @ grid.volumes[touched]
        own = owner[touched] == label
        touched, share = touched[own], share[own]
        # Equal shares are common on a lattice: take every so many of them along the grid's
        # order, or one side of the body would bulge.
        spread = np.arange(len(share)) * (np.sqrt(5) - 1) / 2 % 1
        order = np.lexsort((spread, -share))
        taken = np.cumsum(np.concatenate([[0.0], grid.volumes[touched[order]]]))
        labels[touched[order[: np.abs(taken - volume).argmin()]]] = label
    return labels


def check_resolved(grid: TetrahedralGrid, bodies: list[Body], labels: np.ndarray) -> None:
    """Raise where a body got no tetrahedron, warn where it is as narrow as one."""
    counts = np.bincount(labels, minlength=len(bodies) + 1)[1:]
    if not counts.all():
        missing = int(counts.argmin())
        raise ValueError(
            f"body {missing} (radius {bodies[missing].radius:g} um) covers no tetrahedron: it "
            "lies outside of the grid, or is smaller than a tetrahedron of "
            f"{grid.volumes.mean():.3g} um^3. Move it, or use a grid of smaller tetrahedra."
        )
    size = np.cbrt(grid.volumes.mean())
    coarse = [body.radius for body in bodies if body.radius < size]
    if coarse:
        logger.warning(
            "%d bodies (smallest radius %g um) are less than two tetrahedra wide (%.3g um each): "
            "their shape is lost. Use a finer grid.",
            len(coarse),
            min(coarse),
            size,
        )
