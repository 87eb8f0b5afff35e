"""Maps that the signals hardly determine are named by fit, warning, report and files."""

from __future__ import annotations

import json
import warnings

import nibabel as nib
import numpy as np
import pytest
from compartment_cases import directions, magnitudes
from model_cases import CASES

from benchmarks.published_noddi import published_signals, tissue
from dipy_spinverse import Acquisition, IVIMModel, NODDIModel, PackedCellsModel, load_fit
from dipy_spinverse.report.bids import save_derivatives
from dipy_spinverse.report.page import save_page
from dipy_spinverse.report.settings import run_settings


def scan(*b):
    return Acquisition(np.array(b), directions(len(b)), small_delta=10, big_delta=30)


def test_two_shells_determine_noddi():
    acquisition = scan(*np.repeat([0.0, 1.0, 2.0], [4, 30, 30]))
    data = published_signals(acquisition.b, acquisition.directions, tissue(20))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit = NODDIModel(acquisition).fit(magnitudes(data, 1 / 30), sigma=1 / 30)
    assert fit.prior_dominated_percent() == {}
    with pytest.raises(ValueError, match="name is 'NDI'; give one of ndi, odi"):
        fit.prior_dominated("NDI")


def test_eight_volumes_determine_no_cells(tmp_path):
    acquisition = scan(*np.repeat([0.0, 2.0], [2, 6]))
    data = magnitudes(np.tile(np.exp(-0.7 * acquisition.b), (4, 1, 1, 1)), 0.03)
    with pytest.warns(UserWarning, match="hardly determine .*exchange_time.*prior_dominated"):
        fit = PackedCellsModel(acquisition).fit(data, sigma=0.03)
    # The interval of a quantity that is not determined spans nearly all of its prior.
    assert fit.prior_dominated("exchange_time").all()
    percent = fit.prior_dominated_percent()
    assert percent["exchange_time"] == percent["pore_diameter"] == 100
    assert fit[0, 0, 0].prior_dominated("pore_diameter").all()
    fit.save(tmp_path / "fit.npz")
    assert load_fit(tmp_path / "fit.npz").prior_dominated_percent() == percent
    assert run_settings({}, {}, fit, 1.0, {})["prior_dominated_percent"] == percent
    save_derivatives(fit, ["exchange_time"], tmp_path / "sub-1", "a.nii.gz", np.eye(4), "cells")
    sidecar = json.loads(next(tmp_path.glob("*exchangeTime_dwimap.json")).read_text())
    assert sidecar["PriorDominatedPercent"] == 100
    save_page(fit, tmp_path / "page.html", data)
    row = (tmp_path / "page.html").read_text().split("<td>exchange_time</td>")[1]
    assert "100 %" in row.split("</tr>")[0]


def test_one_map_may_be_undetermined_while_others_are_not():
    """Pseudo-diffusion of 10 % of the signal at an SNR of 40 is lost, diffusion is not."""
    b = np.array([0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
    data = magnitudes(np.tile(0.1 * np.exp(-15 * b) + 0.9 * np.exp(-b), (20, 1)), 1 / 40)
    model = IVIMModel(Acquisition(b, directions(7), 10, 30, b0_threshold=0))
    percent = model.fit(data, sigma=1 / 40).prior_dominated_percent()
    assert percent["D_star"] > 50 and percent.get("D", 0) < 10


def test_a_report_states_no_share_of_maps_that_have_no_interval(tmp_path):
    case = CASES["IVIM"]
    for n_draws in (0, 50):
        fit = case.model.fit(case.data, n_draws=n_draws)
        save_page(fit, tmp_path / "page.html", case.data)
        for name in ("D", "perfusion_fraction"):
            page = (tmp_path / "page.html").read_text()
            row = page.split(f"<td>{name}</td>")[1].split("</tr>")[0]
            share = f"{fit.prior_dominated_percent().get(name, 0):.0f} %" if n_draws else "&ndash;"
            assert row.rsplit("<td", 1)[1] == f' class="number">{share}</td>'


def test_a_derivative_without_intervals_has_estimates_and_S0_alone(tmp_path):
    fit = CASES["IVIM"].model.fit(CASES["IVIM"].data, n_draws=0)
    save_derivatives(fit, ["S0", "D"], tmp_path / "sub-1", "a.nii.gz", np.eye(4), "IVIM")
    saved = {path.name: nib.load(path).get_fdata().ravel() for path in tmp_path.glob("*.nii.gz")}
    assert sorted(saved) == [f"sub-1_param-{name}_dwimap.nii.gz" for name in ("D", "S0")]
    for name, values in (("S0", fit.S0_hat), ("D", fit.D)):
        np.testing.assert_allclose(saved[f"sub-1_param-{name}_dwimap.nii.gz"], values, rtol=1e-6)
