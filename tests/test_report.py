"""The page about a fit: what is on it, that it needs no network, and that a browser shows it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot
import nibabel as nib
import numpy as np
import pytest
from model_cases import CASES
from plotly.colors import sample_colorscale

from dipy_spinverse import bcc_grid
from dipy_spinverse.report import check_packages
from dipy_spinverse.report import plotly_figures as draw
from dipy_spinverse.report.figures import plane_intersection, plot_walls
from dipy_spinverse.report.methods import methods_paragraph
from dipy_spinverse.report.page import (
    _html,
    _signal_figures,
    _verdict,
    save_page,
)
from dipy_spinverse.report.summary import to_common_decimals
from dipy_spinverse.report.viewer import viewer_volumes
from dipy_spinverse.spinverse.sample_surfaces import sample_mesh
from dipy_spinverse.substrates import cylinders
from dipy_spinverse.voxels import Status
from dipy_spinverse.voxels.image_files import resampled_volume
from dipy_spinverse.voxels.rician import rician_mean
from dipy_spinverse.walls.interface import interface_mesh

pytest.importorskip("plotly")
matplotlib.use("agg")
AFFINE = np.diag([-2.0, 2.0, 2.5, 1.0])
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def fitted():
    """IVIM of a volume of 2 x 2 x 3 voxels, one of them empty, with draws; and its data."""
    case = CASES["IVIM"]
    data = np.tile(case.data[:, None, None], (1, 2, 3, 1))
    data[1, 0, 2] = 0
    with pytest.warns(UserWarning, match="1 of 12 voxels cannot be fitted"):
        return case.fit(data), data


@pytest.fixture(scope="module")
def page(fitted, tmp_path_factory):
    """Path of the page of that fit."""
    fit, data = fitted
    path = tmp_path_factory.mktemp("page") / "report.html"
    settings = {"settings": {"n_draws": 20, "name": "<b>"}, "versions": {"numpy": "2"}}
    save_page(fit, path, data, affine=AFFINE, settings=settings, title="A fit")
    return path


@pytest.fixture(scope="module")
def mesh():
    """Walls of a cylinder, half of them unsure."""
    grid = bcc_grid(cells=4, cell_size_um=2.0)
    permeability = cylinders(grid, [[0.0, 0, 0]], [2.5], permeability=0.02)
    walls = np.isfinite(permeability)
    probability = np.where(np.arange(grid.n_faces) % 2, 0.9, 0.3) * walls
    return interface_mesh(grid, np.where(walls, permeability, 100.0), probability, walls=walls)


@pytest.fixture(scope="module")
def ranked():
    """Three voxels of IVIM with known noise, of which the second is explained worst."""
    case = CASES["IVIM"]
    data = np.tile(case.data[0], (3, 1))
    data[1, 3::2] *= 1.4
    data[2, 3::2] *= 1.1
    return case.model.fit(data, sigma=2.0, n_draws=0), data


def test_voxels_are_drawn_in_the_order_of_their_residuals(ranked, monkeypatch):
    shown = {}

    def drawn(acquisition, names, measured, predicted, S0):
        shown.update(zip((name.split(":")[0] for name in names), measured, strict=True))
        shown["predicted"] = predicted
        return draw.go.Figure()

    monkeypatch.setattr(draw, "signal_figure", drawn)
    _signal_figures(*ranked)
    for name, voxel in (("best explained", 0), ("typical", 2), ("worst explained", 1)):
        np.testing.assert_array_equal(shown[name], ranked[1][voxel])
    # With the noise floor: magnitudes at sigma = 2 exceed a signal of 20 by 0.1.
    expected = rician_mean(ranked[0][[2, 0, 1]].predict(), 2.0)
    np.testing.assert_allclose(shown["predicted"], expected)


def test_only_explained_voxels_count_as_explained(fitted, tmp_path):
    part = fitted[0][:, :1, :2]
    part.status = np.reshape([Status.CONVERGED, Status.NOT_CONVERGED, Status.MISFIT, 0], (2, 1, 2))
    assert "explains 1 of 3 voxels (33.3 %)" in _verdict(part)[0]


def test_numbers_of_a_row_have_the_decimals_of_the_largest():
    assert to_common_decimals([163.2, 40.1, 3213.4]) == ["163", "40", "3213"]
    assert to_common_decimals([0.02, 4.3e-7, 0.185]) == ["0.020", "0.000", "0.185"]
    assert to_common_decimals([0.0]) == ["0"]


def test_slices_cut_a_closed_cell_in_closed_lines():
    grid = bcc_grid(4, 5.0, boundary="absorbing")
    inside = (abs(grid.centroids) < [4, 7, 4]).all(axis=1)
    first, second = grid.face_tetrahedra.T
    faces = grid.face_points[inside[first] != inside[second]]
    # In the lattice's own planes, z = 2.5 um, walls lie within the slice and would be lost.
    ends = plane_intersection(faces, 2.6)[0].reshape(-1, 2).round(6)
    assert (np.unique(ends, axis=0, return_counts=True)[1] % 2 == 0).all() and len(ends) > 8


def test_page_holds_all_it_needs_and_is_below_3_mb(page):
    text = page.read_text()
    assert page.stat().st_size < 3e6
    own = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", own)
    assert "&lt;b&gt;" in own  # settings are text, not markup


def test_page_says_units_meanings_status_and_whom_to_cite(page, fitted):
    fit, text = fitted[0], page.read_text()
    for said in ("mm^2/s", "fraction of blood", "NO_SIGNAL", "10.1148/radiology.168.2.3393671"):
        assert said in text
    for name in fit.MAPS:
        assert name in text


@pytest.mark.parametrize(
    ("statuses", "said", "level"),
    [
        ([Status.MISFIT] * 4, "It does not explain the signals of 4:", "bad"),
        ([Status.CONVERGED] * 4, "explains 4 of 4 voxels (100 %).</section>", "good"),
        (
            [Status.CONVERGED] * 2 + [Status.TISSUES_NOT_SEPARATED] * 2,
            "2: the contrasts",
            "partly",
        ),
    ],
)
def test_the_headline_is_of_all_statuses(fitted, tmp_path, statuses, said, level):
    fit, data = fitted
    judged = fit[:, :1, :2]
    judged.status = np.reshape(statuses, judged.shape)
    save_page(judged, tmp_path / "page.html", data[:, :1, :2])
    text = (tmp_path / "page.html").read_text()
    assert said in text and f'class="verdict {level}"' in text


@pytest.mark.parametrize("name", ["NODDI", "Spinverse, periodic"])
def test_every_kind_of_model_has_a_page(name, tmp_path):
    case = CASES[name]
    fit = case.fit(case.data, n_draws=0)
    save_page(fit, tmp_path / "report.html", case.data)
    assert "can be trusted" in (tmp_path / "report.html").read_text()
    if "Spinverse" in name:
        drawn = plot_walls(fit, (0,), n_slices=2).axes[0].collections[0]
        assert len(drawn.get_segments()) == len(drawn.get_array()) > 0
        matplotlib.pyplot.close("all")


def test_a_slice_through_a_triangle_is_a_segment():
    triangle = np.array([[[0.0, 0, 0], [2, 0, 0], [0, 2, 2]], [[0, 0, 3.0], [1, 0, 3], [0, 1, 4]]])
    segments, cut = plane_intersection(triangle, 1.0)
    assert cut.tolist() == [True, False]
    assert sorted(segments[0].tolist()) == [[0, 1], [1, 1]]


def test_a_fit_of_nothing_has_a_page(fitted, tmp_path):
    fit, data = fitted
    save_page(fit.model.fit(data, np.zeros(fit.shape)), tmp_path / "none.html", data)
    assert "No voxel was selected" in (tmp_path / "none.html").read_text()


def test_volumes_of_the_viewer_are_the_maps_with_x_to_the_right(fitted):
    fit, data = fitted
    about, volumes = viewer_volumes(fit, data, AFFINE)  # the first axis is to the left
    assert about["shape"] == [2, 2, 3] and about["axes"][0]["flip"]
    codes = np.frombuffer(volumes, np.uint8).reshape(-1, 2, 2, 3)[:, ::-1]
    np.testing.assert_array_equal(codes[1], fit.status)
    start = 2
    for row in about["maps"]:
        low, median, high, width = codes[start : start + 4]
        start += 4
        np.testing.assert_array_equal(median > 0, fit.status == Status.CONVERGED)
        limit = row["least"] + (row["most"] - row["least"]) * (low - 1.0) / 254
        expected = np.clip(getattr(fit, f"{row['name']}_low"), row["least"], row["most"])
        np.testing.assert_allclose(limit[low > 0], expected[low > 0], atol=row["most"] / 254)
        step = (row["most"] - row["least"]) / 254
        shown = row["least"] + step * (median - 1.0)
        expected = np.clip(getattr(fit, row["name"]), row["least"], row["most"])
        assert np.abs(shown - expected)[median > 0].max() <= 0.51 * step
        assert (width[median > 0] >= 1).all() and (low <= high).all()
    assert start == len(codes)


def test_the_background_is_an_image_of_any_resolution_in_the_position_of_the_scan(
    fitted, tmp_path
):
    fit, data = fitted
    # Its values are x + 2 z in mm of the scanner, on a finer grid that is turned and shifted.
    affine = np.array([[0, 0.7, 0, -6], [0.7, 0, 0, -3], [0, 0, 0.7, -1], [0, 0, 0, 1]])
    points = np.moveaxis(np.indices((20, 20, 20)), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    nib.save(nib.Nifti1Image(points[..., 0] + 2 * points[..., 2], affine), tmp_path / "t1.nii.gz")
    image = resampled_volume(tmp_path / "t1.nii.gz", (fit.shape, AFFINE), "background")
    x, _, z = np.moveaxis(np.moveaxis(np.indices(fit.shape), 0, -1) @ np.diag([-2, 2, 2.5]), -1, 0)
    np.testing.assert_allclose(image, x + 2 * z, atol=1e-5)  # stored in single precision
    codes = np.frombuffer(viewer_volumes(fit, data, AFFINE, image)[1], np.uint8)
    shown = codes[: image.size].reshape(fit.shape)[::-1]
    expected = 255 * np.clip(image / np.quantile(image, 0.995), 0, 1)
    np.testing.assert_allclose(shown, expected, atol=1)


def test_a_whole_brain_fits_into_a_page(fitted):
    large = fitted[0][0, 0]
    large.status = np.ones((100, 100, 60), dtype=int)
    values = np.random.default_rng(0).random(large.status.size)
    large._values |= {name + end: values for name in large.MAPS for end in ("", "_low", "_high")}
    data = np.ones((1, 1, 1, 16)) * np.ones((100, 100, 60, 1))
    about, volumes = viewer_volumes(large, data, AFFINE)
    assert 5e6 < len(volumes) < 8e6 and about["slices_skipped"]
    assert about["size"][2] > AFFINE[2, 2]


def test_methods_paragraph_says_what_was_measured(fitted):
    paragraph, references = methods_paragraph(fitted[0])
    assert "16 measurements" in paragraph and "b up to 800 s/mm^2" in paragraph
    assert len(references) == 2


def test_residuals_of_noise_are_one_in_every_group(fitted):
    acquisition = CASES["NODDI"].model.acquisition
    rng = np.random.default_rng(0)
    data = rng.normal(size=(2000, len(acquisition)))
    figure = draw.residual_figure(acquisition, 3 * data, np.zeros_like(data), np.full(2000, 3.0))
    bars = np.array([bar.y[0] for bar in figure.data])
    # Medians of the root mean square of 2 to 12 samples.
    assert ((bars > 0.8) & (bars < 1.05)).all()


def test_measured_and_predicted_signals_are_drawn_over_S0_in_one_order():
    acquisition = CASES["NODDI"].model.acquisition
    predicted = 50 * np.exp(-np.linspace(0, 2, len(acquisition)))[None]
    figure = draw.signal_figure(
        acquisition, ["voxel"], 1.1 * predicted, predicted, np.array([50.0])
    )
    points, line = (
        np.concatenate(
            [[y for y in trace.y if y is not None] for trace in figure.data if mode in trace.mode]
        )
        for mode in ("markers", "lines")
    )
    assert len(points) == len(line) == len(acquisition)
    np.testing.assert_allclose(points, 1.1 * line)
    np.testing.assert_allclose(np.sort(line), np.sort(predicted[0] / 50))


def test_a_menu_shows_the_signals_of_one_voxel_at_a_time():
    acquisition, signals = CASES["NODDI"].model.acquisition, np.ones((2, 1))
    data = signals * np.exp(-acquisition.b)
    figure = draw.signal_figure(acquisition, ["one", "two"], data, data, np.ones(2))
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == ["one", "two"]
    shown = np.array([[bool(state) for state in b.args[0]["visible"]] for b in buttons])
    assert (shown.sum(axis=0) == 1).all() and shown.sum(axis=1).tolist() == [
        len(figure.data) / 2
    ] * 2
    assert [bool(trace.visible) for trace in figure.data] == shown[0].tolist()


def test_uncertain_walls_are_transparent(mesh):
    figure = draw.mesh_figure(mesh)
    drawn = {trace.name: (trace.opacity, len(trace.i)) for trace in figure.data}
    assert sum(n for _, n in drawn.values()) == len(mesh.triangles)
    assert drawn["uncertain (below 0.5)"][0] < 0.3 and len(drawn) == 2
    # As the page has it: numbers of plotly's types are little-endian.
    stored = json.loads(figure.to_json())["data"][0]
    points = np.stack([
        np.frombuffer(base64.b64decode(stored[axis]["bdata"]), f"<{stored[axis]['dtype']}")
        for axis in "xyz"
    ], axis=1)  # fmt: skip
    np.testing.assert_array_equal(points, mesh.vertices_um.astype(np.float32))
    assert figure.layout.coloraxis.showscale
    certain = draw.mesh_figure(replace(mesh, wall_probability=np.ones(len(mesh.triangles))))
    assert not certain.layout.coloraxis.showscale and not certain.data[0].showlegend
    unknown = draw.mesh_figure(mesh, 0.05)
    (trace,), scale = unknown.data, unknown.layout.coloraxis
    assert trace.opacity == 1 and scale.cmax == 0.05
    assert scale.colorbar.title.text == "permeability (um/ms)"
    np.testing.assert_array_equal(trace.intensity, mesh.permeability)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr("dipy_spinverse.report.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"plotly and jinja2: pip install dipy_spinverse\[rep"):
        check_packages()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_a_browser_shows_the_page_without_errors_and_its_sliders_move(page, mesh, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "with_walls.html"
    walls = f'<div id="w3d">{_html(draw.mesh_figure(mesh))}</div></main>'
    path.write_text(page.read_text().replace("</main>", walls))
    said, asked = [], []
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
        )
        tab = browser.new_page()
        tab.set_default_timeout(180_000)  # of a loaded machine
        tab.on("console", lambda message: said.append((message.type, message.text)))
        tab.on("pageerror", lambda error: said.append(("error", str(error))))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        tab.wait_for_selector("#w3d canvas")
        tab.wait_for_selector("body[data-ready]", state="attached")
        canvas, slider = tab.locator(".panels canvas").last, tab.locator(".panels input").last
        before = canvas.evaluate("canvas => canvas.toDataURL()")
        slider.evaluate("s => { s.value = 1 - s.value; s.oninput(); }")
        after = canvas.evaluate("canvas => canvas.toDataURL()")
        canvas.hover()
        values = tab.locator("#viewer output").inner_text()
        picture = tab.locator("#w3d").screenshot()
        browser.close()
    assert before != after
    assert "voxel (" in values and "interval width" in values
    assert said == []
    assert asked == [path.as_uri()]
    # Walls in colour on white.
    colours = np.asarray(image.open(io.BytesIO(picture)).convert("HSV"))[80:-80, 80:-180, 1]
    assert (colours > 60).mean() > 0.02


def test_slices_of_walls_are_where_the_walls_are():
    """One tetrahedron of a grid that is otherwise open."""
    grid = bcc_grid(4, 5.0)
    probability = np.where((grid.face_tetrahedra == 7).any(axis=1), 0.9, 0.01)
    voxel = SimpleNamespace(shape=(), has_walls=True, wall_probability=probability)
    fit = type("Fit", (), {"__getitem__": lambda self, index: voxel})()
    fit.model = SimpleNamespace(grid=grid)
    axes = plot_walls(fit, n_slices=3).axes[:3]
    for axis in axes:
        assert (axis.collections[0].get_array() == 0.9).sum() >= 3  # a plane cuts 3 or 4 faces
        assert axis.get_xlim() == axes[0].get_xlim()  # those of the grid
    matplotlib.pyplot.close("all")


def test_samples_are_drawn_at_one_scale_with_a_bar_and_colours_of_their_permeability():
    side, frame = 20.0, np.eye(3)
    meshes = [
        sample_mesh(np.array([in_spheres, radius, 0.5, permeability]), frame, side, 0)
        for in_spheres, radius, permeability in ((0, 1.0, 0.003), (1, 3.0, 0.03))
    ]
    figure = draw.samples_figure(meshes, [False, True], ["sample 1", "sample 2"])
    cells = [trace for trace in figure.data if trace.type == "mesh3d"]
    bars = [trace for trace in figure.data if trace.type == "scatter3d"]
    # On a logarithmic scale from 0.001 to 0.1 um/ms.
    shares = [np.log10(0.003 / 0.001) / 2, np.log10(0.03 / 0.001) / 2]
    assert [trace.color for trace in cells] == sample_colorscale("YlOrRd", shares)
    assert {(bar.x[-1] - bar.x[0], bar.text[1]) for bar in bars} == {(10.0, "10 um")}
    assert len({figure.layout[name].xaxis.range for name in ("scene", "scene2")}) == 1
