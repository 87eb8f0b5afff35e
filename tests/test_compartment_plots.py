"""Glyphs, posteriors and figures of compartment fits."""

from __future__ import annotations

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
from dipy.core.sphere import HemiSphere, disperse_charges

from dipy_spinverse import Acquisition
from dipy_spinverse.compartments import NODDIModel
from dipy_spinverse.compartments.posterior_draws import posterior_draws
from dipy_spinverse.report.figures import plot_maps, plot_signals
from dipy_spinverse.report.glyphs import superquadrics
from dipy_spinverse.report.scenes import plot_glyphs

matplotlib.use("agg")
AXES = np.array([[1.0, 0, 0], [0, 0.6, 0.8]])
SIGMA = 0.02


@pytest.fixture(scope="module")
def noddi():
    start = np.random.default_rng(0).standard_normal((30, 3))
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    directions = disperse_charges(HemiSphere(xyz=start), 300)[0].vertices
    return NODDIModel(
        Acquisition(
            b=np.repeat([0.0, 1.0, 2.5], [6, 30, 30]),
            directions=np.vstack([np.zeros((6, 3)), directions, directions]),
            small_delta=10,
            big_delta=30,
        )
    )


@pytest.fixture(scope="module")
def data(noddi):
    """Fibres along two axes, free water, and an empty voxel; (2, 2, M)."""
    clean = noddi.signals(
        {
            "ndi": [0.7, 0.6, 0.5],
            "odi": [0.03, 0.1, 0.3],
            "fwf": [0.0, 0.1, 1.0],
            "axis": [*AXES, [1, 0, 0]],
        }
    )
    rng = np.random.default_rng(0)
    noisy = np.hypot(clean + SIGMA * rng.standard_normal(clean.shape), 0)
    return np.vstack([noisy, np.zeros((1, clean.shape[1]))]).reshape(2, 2, -1)


@pytest.fixture(scope="module")
def fit(noddi, data):
    return noddi.fit(data, mask=data[..., 0] > 0, sigma=SIGMA)


def test_glyphs_are_closed_and_point_along_the_fibres(fit):
    glyphs = superquadrics(fit)
    assert glyphs.centres[:, :2].astype(int).tolist() == [[0, 0], [0, 1], [1, 0]]
    edges = np.sort(glyphs.triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    for vertices, axis in zip(glyphs.vertices, AXES, strict=False):
        along, length = vertices @ axis, np.linalg.norm(vertices, axis=1)
        # A rod is longest along its fibres; 0.48 of a voxel to either side, at its rim a bit more.
        assert along.max() == pytest.approx(0.48, abs=0.02)
        across = np.sqrt(np.maximum(length**2 - along**2, 0))
        assert across.max() < 0.6 * along.max()


def test_the_glyph_of_free_water_is_a_ball(fit):
    radius = np.linalg.norm(superquadrics(fit).vertices[2], axis=1)
    assert radius.min() > 0.85 * radius.max()  # noise of the fit leaves some tissue


def test_draws_agree_with_the_summary_of_the_fit(fit, data):
    draws = posterior_draws(fit[0, 1], data[0, 1], n_draws=400)
    for name, drawn in draws.items():
        sd = float(getattr(fit, f"{name}_std")[0, 1])
        assert abs(drawn.mean() - getattr(fit, name)[0, 1]) < 0.3 * sd, name
        assert drawn.std() == pytest.approx(sd, rel=0.3), name


def test_draws_of_several_voxels_are_refused(fit, data):
    with pytest.raises(ValueError, match="give one voxel"):
        posterior_draws(fit, data)
    with pytest.raises(ValueError, match="was not fitted"):
        posterior_draws(fit[1, 1], data[1, 1])


def test_figures_show_what_was_asked_for(fit, data):
    figure = plot_maps(fit, ["ndi", "fwf"])
    assert {"ndi", "fwf"} <= {axis.get_title() for axis in figure.axes}
    low, middle, high = (figure.axes[2 * k].images[0].get_array() for k in range(3))
    assert (low <= middle).all() and (middle <= high).all() and middle.mask[1, 1]
    signals = plot_signals(fit, data, (0, 1))
    (line,) = signals.axes[0].lines[-1:]
    # Means over 30 directions with noise of 2 %.
    points = signals.axes[0].containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(points, line.get_ydata(), atol=0.02)
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("colour", [None, "ndi"])
def test_a_picture_of_glyphs_is_neither_empty_nor_full(fit, colour):
    pytest.importorskip("pyvista")
    plotter = plot_glyphs(fit, colour=colour, size=(200, 200), off_screen=True)
    image = plotter.screenshot(return_img=True)
    plotter.close()
    assert image.shape == (200, 200, 3)
    assert 0.02 < (image.min(axis=2) < 240).mean() < 0.9


def test_unknown_maps_are_refused(fit):
    with pytest.raises(ValueError, match="no map"):
        plot_maps(fit, ["fa"])
    with pytest.raises(ValueError, match="one that was fitted"):
        plot_signals(fit, np.zeros((2, 2, 66)), (1, 1))
    with pytest.raises(ValueError, match="colour is 'fa'"):
        plot_glyphs(fit, colour="fa")


def test_first_axis_of_an_image_is_drawn_to_the_right(fit):
    figure = plot_maps(fit[:, :1], ["ndi"])
    drawn = figure.axes[1].images[0].get_array()
    assert drawn.shape == (1, 2)
    np.testing.assert_array_equal(drawn[0], fit.ndi[:, 0])
    matplotlib.pyplot.close(figure)
