"""What is promised of every model: one contract, whatever is fitted."""

from __future__ import annotations

import inspect
import pickle
import re
import warnings
from pathlib import Path

import matplotlib
import matplotlib.pyplot
import model_cases
import nibabel as nib
import numpy as np
import pytest
import torch
from dipy.core.gradients import GradientTable
from dipy.reconst.base import ReconstFit, ReconstModel
from model_cases import CASES, S0, SNR

from dipy_spinverse import Status, load_fit
from dipy_spinverse.acquisition import as_acquisition
from dipy_spinverse.report.descriptions import map_description
from dipy_spinverse.report.summary import to_common_decimals
from dipy_spinverse.voxels import chunks
from dipy_spinverse.voxels.status import FITTED

pytestmark = [
    pytest.mark.filterwarnings("ignore:The grid is too coarse"),
    pytest.mark.filterwarnings("ignore:The acquisition hardly determines"),
    pytest.mark.filterwarnings("ignore:.*have a signal-to-noise ratio outside"),
]


MODELS = [
    pytest.param(name, marks=pytest.mark.slow if case.slow else ()) for name, case in CASES.items()
]


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def fit(case):
    return case.fit(case.data)


def values_of(fit):
    """Everything that a fit holds, by name."""
    names = [name for name in dir(fit) if name in fit._values]
    return {"status": fit.status, **{name: getattr(fit, name) for name in names}}


def assert_same(found, expected, rtol=0.0):
    found, expected = values_of(found), values_of(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Relative to the largest: the order of sums differs, and what is 0 up to rounding. Shares
        # of 1e-6, the sixth power of a probability, are nothing.
        size = np.abs(np.asarray(value)[np.isfinite(value)]).max(initial=1e-6)
        np.testing.assert_allclose(
            found[name], value, rtol=rtol, atol=rtol * size, err_msg=name, equal_nan=False
        )


# Fits of other sets of voxels: single precision, and directions of a search that rounding turns.
NEARLY = 2e-3
# Of other processes: on one kind of processor (AVX-512) S0 differed by 1e-15 from that of here.
LAST_DIGITS = 1e-12


def test_model_and_fit_are_those_of_dipy(case, fit):
    assert isinstance(case.model, ReconstModel) and isinstance(fit, ReconstFit)
    assert isinstance(case.model.gtab, GradientTable)
    assert len(case.model.gtab.bvals) == case.data.shape[1]


def test_a_voxel_that_the_model_explains_is_not_a_misfit(fit):
    explained = (Status.CONVERGED, Status.NOT_CONVERGED, Status.PATTERN_NOT_DETERMINED)
    assert np.isin(fit.status, explained).all()
    assert (fit.residual_rms < 1.5 * S0 / SNR).all() and (fit.sigma > 0).all()
    assert np.allclose(fit.S0_hat, S0, rtol=0.1)


def test_a_fit_shows_its_maps_with_units_and_statuses_as_text_html_figure_files_and_table(
    case, fit, tmp_path
):
    matplotlib.use("agg")
    masked = case.fit(case.data, [True, False])
    status = Status(int(masked.status[0])).name
    for text in (repr(masked), masked._repr_html_()):
        assert type(masked).__name__ in text and f"1 {status}: " in text
        assert all(name in text and map_description(name, fit).unit in text for name in fit.MAPS)
    assert all(name in case.model._repr_html_() for name in case.model.empty_fit.MAPS)
    name, median = fit.MAPS[0], float(getattr(masked, fit.MAPS[0])[0])
    assert f"{name} " in repr(masked) and to_common_decimals([median])[0][:4] in repr(masked)
    figure = fit.plot([name])
    np.testing.assert_allclose(figure.axes[0].images[0].get_array().ravel(), fit_low(fit, name))
    matplotlib.pyplot.close(figure)
    masked.save_maps(tmp_path / "new", np.eye(4))
    for name in (*fit.MAPS, "S0", "status"):
        image = nib.load(tmp_path / "new" / f"{name}.nii.gz")
        assert image.shape[:3] == (2, 1, 1) and image.header["descrip"].item().decode()
        expected = getattr(masked, name, masked.S0_hat)
        np.testing.assert_allclose(image.get_fdata().reshape(expected.shape), expected, rtol=1e-6)
    table = pytest.importorskip("pandas") and masked.to_dataframe()
    assert table.i.tolist() == [0] and table.status.tolist() == [status]
    for column in (end for name in fit.MAPS for end in (name, f"{name}_high")):
        if hasattr(fit, column):
            assert table[column][0] == getattr(masked, column)[0]
    assert table.attrs["units"][fit.MAPS[0]] == map_description(fit.MAPS[0], fit).unit


def fit_low(fit, name):
    return getattr(fit, f"{name}_low", getattr(fit, name))


def test_data_of_one_to_four_dimensions_give_the_same_fit(case, fit):
    for shape in ((), (2,), (2, 1), (1, 2, 1)):
        data = case.data[0] if shape == () else case.data.reshape(*shape, -1)
        found = case.fit(data)
        assert found.shape == shape and found.predict().shape == data.shape
        first = found if shape == () else found[(0,) * len(shape)]
        assert_same(first, fit[0], NEARLY)


def test_masks_may_be_boolean_integer_empty_or_missing(case, fit):
    for mask in ([True, False], np.array([1, 0]), np.array([2.0, 0.0])):
        found = case.fit(case.data, mask)
        assert found.status[1] == Status.NOT_FITTED
        assert_same(found[0], fit[0], NEARLY)
    nothing = case.fit(case.data, np.zeros(2, dtype=int))
    assert (nothing.status == Status.NOT_FITTED).all()
    for name, value in values_of(nothing).items():
        assert np.shape(value) == np.shape(values_of(fit)[name]) and not np.any(value), name
    assert not nothing.predict().any()


def test_bad_voxels_say_why_and_leave_others_alone(case, fit):
    good, b0 = case.data[0], case.model.acquisition.b0_mask
    nan, infinite = good.copy(), good.copy()
    nan[-1], infinite[-1] = np.nan, np.inf
    bad = [nan, infinite, np.zeros_like(good), np.where(b0, 0, good)]
    expected = [Status.BAD_SAMPLES] * 2 + [Status.NO_SIGNAL, Status.NO_B0]
    data = np.stack([good, *bad, nan])
    mask = np.r_[np.ones(len(data) - 1), 0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message=".*have a signal-to-noise ratio outside")
        found = case.fit(data, mask)
    told = [w for w in caught if "voxels cannot be fitted" in str(w.message)]
    assert [str(w.message).split(" voxels")[0] for w in told] == ["4 of 5"]
    assert told[0].filename == model_cases.__file__  # where fit was called
    assert found.status[1:].tolist() == [*expected, Status.NOT_FITTED]
    for name, value in values_of(found).items():
        assert not np.isnan(value).any(), name
        assert name == "status" or not np.any(value[1:]), name
    assert not found.predict()[1:].any()
    assert_same(found[0], fit[0], NEARLY)


def test_real_parts_may_be_negative_and_do_not_change_other_voxels(case, fit):
    real = case.data.copy()
    real[1, real[1].argmin()] = -0.5 * S0 / SNR
    found = case.fit(real)
    assert np.isin(found.status, FITTED).all()
    assert_same(found[0], fit[0], NEARLY)


@pytest.mark.parametrize("kind", ["rising", "constant"])
@pytest.mark.parametrize("noise", ["given", "not given"])
def test_signals_that_no_diffusion_makes_are_a_misfit(case, kind, noise):
    b = case.model.acquisition.b
    clean = S0 * (1 + b / b.max() if kind == "rising" else np.ones_like(b))
    sigma = S0 / SNR
    data = clean + sigma * np.random.default_rng(1).standard_normal(len(b))
    found = case.fit(data, sigma=sigma if noise == "given" else None)
    explained = kind == "constant" and case.explains_still_water
    assert (found.status == Status.MISFIT) != explained


def test_maps_come_with_intervals_that_hold_them(case, fit):
    assert fit.MAPS
    for name in fit.MAPS:
        centre, low, high = (getattr(fit, name + end) for end in ("", "_low", "_high"))
        # Rounding; where the data leave nothing open, all three are the same.
        slack = 1e-6 * np.abs(centre)
        assert (low - slack <= centre).all() and (centre <= high + slack).all(), name
        assert (getattr(fit, name + "_std") >= 0).all(), name


def test_without_draws_maps_are_the_likeliest_values(case):
    found = case.fit(case.data[0], n_draws=0)
    assert found.status in FITTED
    for name in found.MAPS:
        if hasattr(found, name + "_likeliest"):
            assert getattr(found, name) == getattr(found, name + "_likeliest")
            assert not hasattr(found, name + "_low")


def test_a_fit_is_indexed_like_its_arrays(case, fit):
    whole = case.fit(np.stack([case.data, case.data[::-1]]), [[1, 0], [1, 1]])
    signals = whole.predict().reshape(4, -1)
    for index in (0, (1, 1), slice(None, None, -1), (Ellipsis, 0), np.array([[1, 0], [0, 1]]) > 0):
        part, place = whole[index], np.arange(4).reshape(2, 2)[index]
        for name, value in values_of(part).items():
            all_values = values_of(whole)[name].reshape(4, *np.shape(value)[np.ndim(place) :])
            np.testing.assert_array_equal(value, all_values[place], err_msg=name)
        # Single precision, of other numbers of voxels together.
        np.testing.assert_allclose(part.predict(), signals[place], rtol=1e-5, atol=1e-4)
    with pytest.raises(IndexError):
        whole[2]
    name = fit.MAPS[0]
    with pytest.raises(AttributeError, match=name):
        getattr(fit, name[:-1])


def test_a_fit_predicts_its_data_and_other_measurements(case, fit):
    # The fits of the contract are quick: the noise, and as much again.
    rms = np.sqrt(((fit.predict() - case.data) ** 2).mean(axis=1))
    assert (rms < 2 * S0 / SNR).all()
    some = np.arange(0, case.data.shape[1], 2)
    other = case.model.acquisition.subset(some)
    # Simulations in single precision.
    np.testing.assert_allclose(fit.predict(other), fit.predict()[:, some], rtol=1e-4, atol=1e-3)
    # A gradient table knows no echo times.
    gtab = other.to_gtab()
    without_te = as_acquisition(gtab)
    np.testing.assert_allclose(
        fit.predict(gtab, S0=1.0), fit.predict(without_te, S0=[1.0, 1.0]), rtol=1e-4
    )
    np.testing.assert_allclose(
        fit.predict(other, S0=[1.0, 3.0]) / fit.predict(other, S0=1.0), [[1.0], [3.0]] + 0 * some,
        rtol=1e-6,
    )  # fmt: skip
    with pytest.raises(ValueError, match="^S0 has shape"):
        fit.predict(S0=np.ones(3))


def test_a_saved_fit_is_read_as_it_was(case, fit, tmp_path):
    fit.save(tmp_path / "fit.npz")
    if case.needs_model:
        with pytest.raises(ValueError, match="give model="):
            load_fit(tmp_path / "fit.npz")
    again = load_fit(tmp_path / "fit.npz", case.model if case.needs_model else None)
    assert type(again) is type(fit)
    assert_same(again, fit)
    np.testing.assert_allclose(again.predict(), fit.predict(), rtol=1e-6)
    fit[0].save(tmp_path / "voxel.npz")
    assert_same(load_fit(tmp_path / "voxel.npz", fit.model), fit[0])


def test_the_default_engine_of_spinverse_keeps_the_contract(tmp_path):
    case = CASES["Spinverse, walls of tissue"]
    fit = case.fit(case.data)
    assert fit.has_walls.all() and fit.packed_cells.all()
    test_a_voxel_that_the_model_explains_is_not_a_misfit(fit)
    test_maps_come_with_intervals_that_hold_them(case, fit)
    test_a_fit_is_indexed_like_its_arrays(case, fit)
    test_a_fit_predicts_its_data_and_other_measurements(case, fit)
    test_a_saved_fit_is_read_as_it_was(case, fit, tmp_path)


def test_a_file_of_another_model_is_refused(case, fit, tmp_path):
    fit.save(tmp_path / "fit.npz")
    other = CASES["IVIM" if case is not CASES["IVIM"] else "NODDI"].model
    with pytest.raises(ValueError, match="^model is not the one"):
        load_fit(tmp_path / "fit.npz", other)


def test_model_and_fit_can_be_pickled(case, fit):
    assert_same(pickle.loads(pickle.dumps(fit)), fit)
    copy = pickle.loads(pickle.dumps(case.model))
    assert_same(copy.fit(case.data, sigma=S0 / SNR, **case.options), fit, NEARLY)


def test_seeds_give_the_same_fit(case, fit):
    assert_same(case.fit(case.data), fit)


@pytest.fixture
def in_pairs(monkeypatch):
    """Two voxels are computed together, as hundreds are of an image."""
    monkeypatch.setattr(chunks, "_MIN_VOXELS", 2)


@pytest.fixture(scope="module")
def five(case):
    """Data of five voxels."""
    return case.data[[0, 1, 1, 0, 1]]


@pytest.fixture(scope="module")
def fit_of_five(case, five):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(chunks, "_MIN_VOXELS", 2)
        return case.fit(five)


@pytest.fixture
def two_threads():
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(usual)


def test_threads_do_not_change_a_bit_of_a_fit(case, five, fit_of_five, in_pairs, two_threads):
    assert_same(case.fit(five), fit_of_five)


def test_blocks_hardly_change_a_fit(fit, fit_of_five):
    assert_same(fit_of_five[:2], fit, NEARLY)
    assert_same(fit_of_five[-1], fit[1], NEARLY)  # a block of its own


@pytest.fixture(scope="module", params=["dask", "ray"])
def cluster(request):
    """Two workers, which stay for all models."""
    if request.param == "dask":
        distributed = pytest.importorskip("distributed")
        with distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None):
            yield "dask"
    else:
        ray = pytest.importorskip("ray")
        # Modules of the tests, of which some models have parts.
        here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=here)
        yield "ray"
        ray.shutdown()


def check_engine(case, five, fit_of_five, engine):
    n_threads = torch.get_num_threads()
    found = case.fit(five, engine=engine, n_jobs=2)
    assert_same(found, fit_of_five, LAST_DIGITS)
    assert torch.get_num_threads() == n_threads


def test_workers_of_joblib_give_the_serial_fit(case, five, fit_of_five, in_pairs):
    pytest.importorskip("joblib")
    check_engine(case, five, fit_of_five, "joblib")


@pytest.mark.slow  # starts processes, which read the package anew
def test_every_engine_gives_the_serial_fit(cluster, case, five, fit_of_five, in_pairs):
    check_engine(case, five, fit_of_five, cluster)


def test_progress_is_shown_by_voxel_and_only_on_request(case, capsys):
    case.fit(case.data[0])
    assert capsys.readouterr() == ("", "")
    case.fit(case.data[0], verbose=True)
    assert "1/1" in capsys.readouterr().err


def test_bad_arguments_are_named(case):
    data, fit = case.data, case.fit
    calls = {
        "data has shape": [
            lambda: fit(data[:, :-1]), lambda: fit(data[None, None, None]), lambda: fit(3.0),
        ],
        "data has complex": [lambda: fit(data.astype(complex))],
        "mask has shape": [lambda: fit(data, np.ones((2, 2)))],
        "sigma has": [
            lambda: fit(data, sigma=np.ones(3)), lambda: fit(data, sigma=0.0),
            lambda: fit(data, sigma=np.nan),
        ],
        "n_draws is": [lambda: fit(data, n_draws=-1)],
        "n_jobs is": [lambda: fit(data, engine="joblib", n_jobs=0)],
        "engine is": [lambda: fit(data, engine="threads")],
    }  # fmt: skip
    for start, some in calls.items():
        for call in some:
            with pytest.raises(ValueError, match=f"^{start}"):
                call()


def test_the_help_of_fit_describes_every_parameter(case):
    documentation = inspect.getdoc(case.model.fit)
    assert "%(" not in documentation
    for name in set(inspect.signature(case.model.fit).parameters) - {"b0", "sensitivity"}:
        assert re.search(rf"^{name}( :|, )", documentation, re.MULTILINE), name
