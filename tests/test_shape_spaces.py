"""Shape spaces move their vertices smoothly, and hold made-up axons."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dipy_spinverse.cell_shapes import (
    FreeVertices,
    latent_space,
    tube_space,
)
from dipy_spinverse.cell_shapes.shape_spaces.latent import straight_template
from dipy_spinverse.cell_shapes.shape_spaces.tube import tube_parameters
from dipy_spinverse.cell_shapes.synthetic_axons import FAMILIES, Axon, draw_axons
from dipy_spinverse.cell_shapes.templates import Template, cylinder_mesh
from dipy_spinverse.cell_shapes.unknowns import ShapeSignals

SPACES = {
    "tube": tube_space,
    "latent": latent_space,
    "free": lambda: FreeVertices(straight_template(3, 10, 1)[0]),
}


@pytest.fixture(params=SPACES, scope="module")
def space(request):
    return SPACES[request.param]()


def volumes(points, template):
    edges = points[template.tetrahedra[:, 1:]] - points[template.tetrahedra[:, :1]]
    return np.linalg.det(edges) / 6


def draws_of(space, n):
    """Shapes from the prior of a space."""
    root = np.linalg.cholesky(space.prior_covariance)
    normal = np.random.default_rng(0).normal(size=(n, space.n_parameters))
    return space.prior_mean + normal @ root.T


def test_tetrahedra_fill_the_cylinder_and_are_not_flat():
    template = cylinder_mesh(n_rings=3, n_layers=10)
    each = volumes(template.points, template)
    # the rim is a polygon of the circle's area
    assert each.sum() == pytest.approx(2 * np.pi, rel=1e-12)
    edges = template.points[template.tetrahedra]
    longest = np.linalg.norm(edges[:, :, None] - edges[:, None], axis=3).max(axis=(1, 2))
    # a regular tetrahedron has 0.118, the corner of a cube 0.059
    assert (each / longest**3).min() > 0.02


def test_the_surface_is_closed_and_looks_outward():
    template = cylinder_mesh(n_rings=4, n_layers=13)
    edges = np.sort(template.triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    a, b, c = np.moveaxis(template.points[template.triangles], 1, 0)
    # the divergence theorem, which holds only where all triangles look outward
    assert (np.cross(a, b) * c).sum() / 6 == pytest.approx(2 * np.pi, rel=1e-12)


def test_the_inside_follows_a_linear_motion_of_the_surface_exactly():
    template = cylinder_mesh(n_rings=3, n_layers=10)
    motion = template.points @ np.random.default_rng(0).normal(size=(3, 3)) + [1, 2, 3]
    followed = template.harmonic_extension @ motion[template.surface]
    np.testing.assert_allclose(followed, motion, atol=1e-12)


def test_the_laplacian_of_the_surface_gives_the_rates_of_a_sphere():
    ball = cylinder_mesh(n_rings=6, n_layers=16)
    x, y, z = ball.points.T
    rim = np.hypot(x, y)
    # every ray from the centre reaches the cylinder and the sphere at the same share of its way
    on_surface = np.maximum(rim / rim.max(), np.abs(z))
    lengths = np.maximum(np.linalg.norm(ball.points, axis=1), 1e-12)
    sphere = Template(ball.points * (on_surface / lengths)[:, None], ball.tetrahedra)
    rates, _ = sphere.surface_modes(3)
    # l (l + 1) = 2 three times; 468 vertices
    np.testing.assert_allclose(rates, 2, rtol=0.03)


def test_a_bent_and_twisted_axon_has_the_curvature_and_torsion_it_is_given():
    t = np.linspace(-1, 1, 401)
    axon = Axon(curvature=0.1, torsion=0.12, heading=0.7)
    line = axon.positions(np.column_stack([0 * t, 0 * t, t]))
    step = 4.5 * (t[1] - t[0])
    first, second, third = (np.diff(line, n, axis=0) / step**n for n in (1, 2, 3))
    np.testing.assert_allclose(np.linalg.norm(second, axis=1), 0.1, rtol=1e-3)
    binormal = np.cross(first[1:], second)
    torsion = (binormal[1:] * third).sum(axis=1) / (binormal[1:] ** 2).sum(axis=1)
    np.testing.assert_allclose(torsion, 0.12, rtol=1e-3)


def test_beads_and_fans_are_as_wide_as_they_are_given():
    beaded = Axon(beads=((0.2, 0.4, 1.0),)).half_axes(np.array([0.2, -1.0]))
    np.testing.assert_allclose(beaded, [[4.2, 4.2], [3, 3]], atol=1e-4)
    fan = Axon(growth=(0.8, 0.3), wide_end=-1).half_axes(np.array([-1.0, 1.0]))
    np.testing.assert_allclose(fan, [[5.4, 3.9], [3, 3]])


def test_test_axons_reach_beyond_the_training_axons_at_both_ends():
    rng = np.random.default_rng(0)
    seen, others = (draw_axons("bent", 500, rng, test=test) for test in (False, True))
    for name in ("curvature", "scale"):
        a, b = (np.array([getattr(axon, name) for axon in axons]) for axons in (seen, others))
        assert b.min() < a.min() and b.max() > a.max()


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="give one of bent, beaded, fanning, combined"):
        draw_axons("round", 1, np.random.default_rng(0))


def test_vertices_follow_their_derivatives_by_the_parameters(space):
    theta = torch.as_tensor(draws_of(space, 1)[0])
    way = torch.as_tensor(draws_of(space, 2)[1] - space.prior_mean)
    _, change = torch.func.jvp(space.vertices, (theta,), (way,))
    step = 1e-5
    ahead, behind = (space.vertices(theta + sign * step * way) for sign in (1, -1))
    # central differences in double precision: 1e-10 of positions of some um
    np.testing.assert_allclose((ahead - behind) / (2 * step), change, atol=1e-7)


def test_derivatives_exist_where_nothing_is_bent(space):
    jacobian = torch.func.jacrev(lambda x: space.vertices(x)[:7])(
        torch.as_tensor(space.prior_mean)
    )
    assert torch.isfinite(jacobian).all()


def test_shapes_of_the_prior_have_no_inverted_tetrahedra(space):
    for theta in draws_of(space, 20):
        points = space.vertices(torch.as_tensor(theta)).numpy()
        assert volumes(points, space.template).min() > 0


def test_starts_are_different_shapes_within_bounds_without_inverted_tetrahedra(space):
    low, high = space.bounds.T
    shapes = [space.vertices(torch.as_tensor(start)).numpy() for start in space.initial_shapes()]
    for theta, points in zip(space.initial_shapes(), shapes, strict=True):
        assert ((low < theta) & (theta < high)).all()
        assert volumes(points, space.template).min() > 0
    for k, points in enumerate(shapes):
        for other in shapes[:k]:
            assert np.abs(points - other).max() > 0.3


def test_mean_precision_and_covariance_of_the_prior_fit_together(space):
    n = space.n_parameters
    assert space.prior_mean.shape == (n,) and space.bounds.shape == (n, 2)
    identity = space.prior_precision @ space.prior_covariance
    np.testing.assert_allclose(identity, np.eye(n), atol=1e-6)
    assert np.linalg.eigvalsh(space.prior_covariance).min() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_tubes_are_like_axons_of_every_family(family):
    space = tube_space()
    for axon in draw_axons(family, 10, np.random.default_rng(1), test=True):
        truth = axon.positions(space.reference.points)[space.template.surface]
        found = space.vertices(torch.as_tensor(tube_parameters(axon))).numpy()[
            space.template.surface
        ]
        apart = np.linalg.norm(truth - truth.mean(0) - found + found.mean(0), axis=1)
        # Gaussian beads of 0.8 um between knots 1.8 um apart; all else is within 0.02 um
        assert apart.mean() < 0.15


def test_a_tube_keeps_its_shape_on_a_finer_template():
    space = tube_space()
    theta = space.initial_shapes()[2]
    finer, same = space.remeshed(theta)
    assert len(finer.template.points) > 1.5 * len(space.template.points)
    coarse, fine = (
        s.vertices(torch.as_tensor(x)).numpy() for s, x in ((space, theta), (finer, same))
    )
    total = [volumes(p, s.template).sum() for p, s in ((coarse, space), (fine, finer))]
    # 9 and 12 layers of straight pieces along the same bend
    assert total[0] == pytest.approx(total[1], rel=5e-3)


def test_free_vertices_are_as_spread_as_said_and_neighbours_move_together():
    space = FreeVertices(
        straight_template(3, 10, 1)[0], prior_std_um=0.2, correlation_length_um=1.5
    )
    sd = np.sqrt(np.diag(space.prior_covariance))
    # of the plane; the cell is closed and small, its rim is sharp
    np.testing.assert_allclose(sd, 0.2, rtol=0.25)
    points = space.template.points[space.template.surface]
    near, far = (np.linalg.norm(points - points[0], axis=1) < 1.1), points[:, 2] > 3
    correlation = space.prior_covariance[0, ::3] / (sd[0] * sd[::3])
    # (r / l) K1(r / l) in the plane: 0.73 at 1 um, 0.1 at 5 um
    assert correlation[near].min() > 0.6 and np.abs(correlation[far]).max() < 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_decodes_axons_that_it_never_saw(family):
    space, reference = latent_space(), cylinder_mesh(n_rings=4, n_layers=13)
    volume = volumes(space.template.points, space.template).sum()
    for axon in draw_axons(family, 3, np.random.default_rng(9), test=True):
        points = axon.positions(reference.points)
        points *= np.cbrt(volume / volumes(points, space.template).sum())
        target = torch.as_tensor(points)
        theta = torch.as_tensor(space.prior_mean)

        def apart(theta, target=target):
            difference = (target - space.vertices(theta))[space.template.surface]
            return difference - difference.mean(dim=0)  # wherever it is

        for _ in range(8):
            slopes = torch.func.jacfwd(apart)(theta).reshape(-1, 16)
            step = torch.linalg.lstsq(slopes, apart(theta).reshape(-1, 1))
            theta = theta - step.solution[:, 0]
        left = apart(theta)
        # 0.02-0.04 um are left of test axons on average
        assert left.norm(dim=1).mean() < 0.1


def test_the_network_of_the_package_is_small_and_needs_no_pickle():
    from importlib.resources import files

    path = files("dipy_spinverse.cell_shapes.shape_spaces") / "autoencoder.npz"
    assert path.stat().st_size < 2 * 2**20
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype.kind in "fi" for name in file)


def test_a_file_that_is_no_network_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="make_shape_autoencoder"):
        latent_space(tmp_path / "other.npz")


def test_shapes_that_are_not_finite_have_no_signals():
    points = np.zeros((4, 3))
    points[2, 1] = np.nan
    of_shape = SimpleNamespace(points=lambda shape: points, is_degenerate=lambda points: False)
    assert ShapeSignals.at(of_shape, None) is None
