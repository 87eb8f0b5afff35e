"""PackedCellsModel: the DIPY face of the posterior of packed cells."""

from __future__ import annotations

import numpy as np
import pytest
from test_packed_cells import protocol

from dipy_spinverse import PackedCellsModel
from dipy_spinverse.packed_cells import PackedCellsFit
from dipy_spinverse.spinverse.model import Status


@pytest.fixture
def model():
    return PackedCellsModel(protocol())


def test_volume_gives_maps_with_intervals_and_a_bad_voxel_stops_nothing(model):
    rng = np.random.default_rng(0)
    free = np.exp(-1.0 * model.acquisition.b)
    data = 100 * np.abs(free + 0.02 * rng.standard_normal((2, 2, len(free))))
    data[0, 1, 4] = np.nan
    mask = np.array([[True, True], [True, False]])
    with pytest.warns(UserWarning, match="1 of 3 voxels"):
        fit = model.fit(data, mask, sigma=2.0, n_draws=50)
    assert fit.status[0, 1] == Status.BAD_SAMPLES and fit.status[1, 1] == Status.NOT_FITTED
    fitted = np.isin(fit.status, (Status.CONVERGED, Status.MISFIT))
    assert fitted.tolist() == [[True, False], [True, False]]
    for name in PackedCellsFit.MAPS:
        mean, low, high = (getattr(fit, name + end) for end in ("", "_low", "_high"))
        # Few draws far away take the mean of these beyond the interval.
        skewed = name in ("exchange_time", "orientation_dispersion")
        assert skewed or (low[fitted] <= mean[fitted] + 1e-9).all(), name
        assert (low <= high).all() and (getattr(fit, name + "_std") >= 0).all()
        assert (mean[~fitted] == 0).all()
    assert fit.wall_orientation.shape == (2, 2, 3)
    assert fit.predict().shape == data.shape


def test_empty_mask_gives_an_empty_fit(model):
    fit = model.fit(np.ones((3, len(model.acquisition))), np.zeros(3, dtype=int))
    assert (fit.status == Status.NOT_FITTED).all() and (fit.pore_diameter == 0).all()


def test_wrong_arguments_say_how_to_be_right(model):
    with pytest.raises(ValueError, match="last axis"):
        model.fit(np.ones(3))
    with pytest.raises(ValueError, match="sigma has shape"):
        model.fit(np.ones((2, len(model.acquisition))), sigma=np.ones(3))
    with pytest.raises(ValueError, match="mm\\^2/s"):
        PackedCellsModel(model.acquisition, diffusivity=2.0)
