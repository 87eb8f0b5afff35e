"""Tubes around a centre line: curvatures, radius and cross-section are B-splines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import torch
from scipy.interpolate import BSpline

from dipy_spinverse.cell_shapes.shape_spaces.protocol import TemplateSpace
from dipy_spinverse.cell_shapes.synthetic_axons import LENGTH, Axon, training_axons
from dipy_spinverse.cell_shapes.templates import Template, cylinder_mesh

# Kinds of parameters in their order: number, bounds, and prior standard deviation in addition to
# that of the synthetic axons. Bounds and deviations are chosen by hand, wide.
_KINDS = {
    "bend_x": (4, (-2.5, 2.5), 0.05),
    "bend_y": (4, (-2.5, 2.5), 0.05),
    "log_radius": (8, (np.log(0.2), np.log(20.0)), 0.03),
    "oblong": (3, (-0.8, 0.8), 0.02),
    "oblique": (3, (-0.8, 0.8), 0.02),
    "log_length": (1, (np.log(1.0), np.log(100.0)), 0.1),
    "bulge": (1, (-0.3, 0.9), 0.1),
}
_RINGS = (3, 4)  # of the first template, and of those that are meshed for a shape
_GAUSS = 4  # quadrature points between two layers: exact for polynomials of degree 7
_NO_ANGLE = 1e-16  # rad^2, added to squared angles: keeps derivatives finite where all is straight


@dataclass(frozen=True, eq=False, repr=False)
class TubeSpace(TemplateSpace):
    """Tubes around a curved centre line, with ends that are flat or bulge.

    At positions -1 <= t <= 1 of the centre line, with B-splines b, r, e::

        tilt w(t) = integral of b from 0 to t;  frame R(t) turns z towards w by the angle |w|
        centre c(t) = length / 2 * integral of R z
        cross-section exp(r(t)) expm([[e_1, e_2], [e_2, -e_1]](t)) of the unit disc

    Parameters (P,) are bends (rad), logarithms of radii and length (um), shapes of the
    cross-section, and how far the ends bulge (in radii). Build one with `tube_space`.

    Examples
    --------
    >>> space = tube_space()
    >>> space
    TubeSpace(24 parameters, 370 vertices)
    >>> space.vertices(torch.as_tensor(space.prior_mean)).shape
    torch.Size([370, 3])
    """

    reference: Template  # straight cylinder of radius 1, -1 <= z <= 1
    prior_mean: np.ndarray
    prior_covariance: np.ndarray

    has_scale = True

    @property
    def bounds(self) -> np.ndarray:
        return np.array([bounds for n, bounds, _ in _KINDS.values() for _ in range(n)])

    @cached_property
    def template(self) -> Template:  # type: ignore[override]
        points = self.vertices(torch.as_tensor(self.prior_mean))
        return Template(points.numpy(), self.reference.tetrahedra)

    def initial_shapes(self) -> np.ndarray:
        """Bent like a C, an S and a screw, beaded, and fanning (5, P)."""
        starts = np.repeat(self.prior_mean[None], 5, axis=0)
        changes: list[dict[str, float | np.ndarray]] = [
            {"bend_x": 0.3},
            {"bend_x": np.linspace(-0.5, 0.5, 4)},
            {"bend_x": 0.3, "bend_y": np.linspace(-0.3, 0.3, 4)},
            {"bend_x": 0.15, "log_radius": 0.2 * np.sin(np.linspace(0, np.pi, 8))},
            {"bend_x": 0.1, "log_radius": np.linspace(-0.2, 0.2, 8), "oblong": 0.1},
        ]
        for start, change in zip(starts, changes, strict=True):
            for kind, value in change.items():
                start[_slices()[kind]] += value
        return starts

    def vertices(self, theta: torch.Tensor) -> torch.Tensor:
        """Positions (N, 3), um, around their mean; differentiable by theta (P,)."""
        columns = _slices()
        layer, disc, position, dome = self._at_nodes
        bends = torch.stack([theta[columns["bend_x"]], theta[columns["bend_y"]]], dim=1)
        half_length = torch.exp(theta[columns["log_length"]]) / 2
        weights, tilt_between = self._quadrature
        centre = half_length * (weights @ _frames(tilt_between @ bends)[:, :, 2])
        tilt, radius_splines, splines = self._at_layers
        radius = torch.exp(radius_splines @ theta[columns["log_radius"]])
        shape = _shapes(splines @ theta[columns["oblong"]], splines @ theta[columns["oblique"]])
        section = torch.einsum("kij,kj->ki", (radius[:, None, None] * shape)[layer], disc)
        along = theta[columns["bulge"]] * radius[layer] * position * dome
        local = torch.cat([section, along[:, None]], dim=1)
        rotated = torch.einsum("kij,kj->ki", _frames(tilt @ bends)[layer], local)
        vertices = centre[layer] + rotated
        return vertices - vertices.mean(dim=0)

    def remeshed(self, theta: np.ndarray) -> tuple[TubeSpace, np.ndarray]:
        """On a finer template whose layers are as far apart as its rings; same parameters."""
        theta = np.asarray(theta, dtype=float)
        columns = _slices()
        ring_width = np.exp(theta[columns["log_radius"]].mean()) / _RINGS[1]
        n_layers = int(np.clip(np.exp(theta[columns["log_length"]][0]) / ring_width, 6, 40)) + 1
        return replace(self, reference=cylinder_mesh(_RINGS[1], n_layers)), theta

    @cached_property
    def _at_nodes(self):
        """Layer, position in the disc and along the tube (-1 to 1), and height of the bulge."""
        x, y, t = self.reference.points.T
        squared = x**2 + y**2
        dome = np.sqrt(np.maximum(1 - squared / squared.max(), 0))
        layer = torch.as_tensor(np.searchsorted(self._layers, t))
        return layer, *map(torch.as_tensor, (np.column_stack([x, y]), t, dome))

    @cached_property
    def _layers(self):
        return np.unique(self.reference.points[:, 2])

    @cached_property
    def _quadrature(self):
        """Weights (layers, Gauss points) of integrals from the first layer on, and tilts there."""
        nodes, weights = np.polynomial.legendre.leggauss(_GAUSS)
        half_intervals = np.diff(self._layers)[:, None] / 2
        lower = np.tril(np.ones((len(self._layers), len(half_intervals))), -1)
        weights = np.repeat(lower, _GAUSS, axis=1) * (half_intervals * weights).ravel()
        t = (self._layers[1:] + self._layers[:-1])[:, None] / 2 + half_intervals * nodes
        return torch.as_tensor(weights), torch.as_tensor(_tilt(t.ravel()))

    @cached_property
    def _at_layers(self):
        """Tilts, and the splines of radius and of the cross-section."""
        t = self._layers
        return tuple(map(torch.as_tensor, (_tilt(t), _splines(8)(t), _splines(3)(t))))


@cache
def tube_space() -> TubeSpace:
    """Tubes whose prior is that of synthetic axons, and somewhat wider."""
    thetas = np.array([tube_parameters(axon) for axon in training_axons()])
    columns = _slices()
    # Left and right are equally probable.
    mean = thetas.mean(axis=0)
    mean[np.r_[columns["bend_x"], columns["bend_y"], columns["oblong"], columns["oblique"]]] = 0
    extra_sd = np.concatenate([np.full(n, sd) for n, _, sd in _KINDS.values()])
    covariance = np.cov(thetas.T) + np.diag(extra_sd**2)
    return TubeSpace(cylinder_mesh(_RINGS[0], 10), mean, covariance)


def tube_parameters(axon: Axon) -> np.ndarray:
    """Parameters (P,) of a tube like an axon, by splines fitted to its bends and radii."""
    t = np.linspace(-1, 1, 101)
    direction = axon.heading + axon.torsion * LENGTH / 2 * t
    bend = axon.curvature * LENGTH / 2
    log_axis_1, log_axis_2 = np.log(axon.half_axes(t)).T
    angle = 2 * axon.facing + axon.twist * t
    oblong = (log_axis_1 - log_axis_2) / 2
    curves = {
        "bend_x": bend * np.cos(direction),
        "bend_y": bend * np.sin(direction),
        "log_radius": (log_axis_1 + log_axis_2) / 2 + np.log(axon.scale),
        "oblong": oblong * np.cos(angle),
        "oblique": oblong * np.sin(angle),
    }
    fitted = [
        np.linalg.lstsq(_splines(_KINDS[kind][0])(t), curve)[0] for kind, curve in curves.items()
    ]
    return np.concatenate([*fitted, [np.log(LENGTH * axon.scale), 0.0]])


@cache
def _slices():
    """Slice of theta of each kind of parameter."""
    stops = np.cumsum([n for n, _, _ in _KINDS.values()])
    return {
        kind: slice(stop - n, stop)
        for (kind, (n, _, _)), stop in zip(_KINDS.items(), stops, strict=True)
    }


def _splines(n):
    """The n B-splines on -1 <= t <= 1, together."""
    degree = min(3, n - 1)
    knots = np.r_[[-1] * degree, np.linspace(-1, 1, n - degree + 1), [1] * degree]
    return BSpline(knots.astype(float), np.eye(n), degree)


def _tilt(t):
    """Integrals (K, 4) of the splines of bends, from 0 on."""
    integral = _splines(4).antiderivative()
    return integral(t) - integral(0.0)


def _frames(tilt):
    """Rotations (K, 3, 3) that turn z towards tilts (K, 2) by their size, rad."""
    angle = torch.sqrt((tilt**2).sum(dim=1) + _NO_ANGLE)
    x, y = (tilt * (torch.sin(angle) / angle)[:, None]).T
    outer = tilt[:, :, None] * tilt[:, None, :]
    block = torch.eye(2) - (2 * (torch.sin(angle / 2) / angle) ** 2)[:, None, None] * outer
    top = torch.cat([block, torch.stack([x, y], dim=1)[:, :, None]], dim=2)
    return torch.cat([top, torch.stack([-x, -y, torch.cos(angle)], dim=1)[:, None]], dim=1)


def _shapes(oblong, oblique):
    """Matrices (K, 2, 2) of determinant 1 that stretch a disc into ellipses."""
    size = torch.sqrt(oblong**2 + oblique**2 + _NO_ANGLE)
    stretch = torch.stack([oblong, oblique, oblique, -oblong], dim=1).reshape(-1, 2, 2)
    growth = (torch.sinh(size) / size)[:, None, None] * stretch
    return torch.cosh(size)[:, None, None] * torch.eye(2) + growth
