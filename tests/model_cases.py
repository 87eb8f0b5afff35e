"""Every public model, with a voxel that it explains: what `test_every_model` goes through.

A new family of models joins by one line in `CASES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from cell_shape_cases import lozenges
from inversion_cases import GRID, multi_shell, shells, tissue_signals

from dipy_spinverse import (
    Acquisition,
    ActiveAxModel,
    CellShapeModel,
    FaceInversion,
    IVIMModel,
    LearnedModel,
    NODDIModel,
    PackedCellsModel,
    SpinverseModel,
    ZCDModel,
    bcc_grid,
    simulate,
)
from dipy_spinverse.compartments import Compartment, Parameter, compose
from dipy_spinverse.inversion import Stage, WallArea
from dipy_spinverse.voxels.model import VoxelModel

S0, SNR = 100.0, 50.0
_QUICK_DRAWS = {"n_draws": 20}
# Enough to find something; what is promised of every fit does not depend on iterations.
_QUICK = (
    Stage(diffusion_times=(0,), priors=(WallArea(0.05),), max_iterations=2, initial_value=0.8),
    Stage(priors=(WallArea(0.1),), max_iterations=2),
)
_PULSED = multi_shell(12)
_STRONG = shells([(10, 15), (15, 25), (20, 30)], (1.0, 3.0, 6.0), 12, n_b0=2)
_IVIM = Acquisition(
    b=np.r_[np.zeros(6), 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 0.6, 0.7, 0.8],
    directions=np.tile([1.0, 0, 0], (16, 1)), small_delta=10, big_delta=30, b0_threshold=0.0,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Case:
    """A model and how it is tried.

    Attributes
    ----------
    make : callable
        Makes the model.
    signals : callable
        Of the model, signals (2, M) over S0 that it explains.
    options : dict
        Of a fit, so that it is quick.
    explains_still_water : bool
        Whether signals that do not decay are those of some parameters, nearly.
    needs_model : bool
        Whether no file holds the model, so that `load_fit` must be given it.
    slow : bool
        Whether the whole contract takes long.
    """

    make: Callable[[], VoxelModel]
    signals: Callable[[VoxelModel], np.ndarray]
    options: dict = field(default_factory=lambda: dict(_QUICK_DRAWS))
    explains_still_water: bool = False
    needs_model: bool = False
    slow: bool = False

    @cached_property
    def model(self) -> VoxelModel:
        return self.make()

    @cached_property
    def data(self) -> np.ndarray:
        """Noisy magnitudes (2, M)."""
        clean = S0 * self.signals(self.model)
        noise = S0 / SNR * np.random.default_rng(0).standard_normal((2, *clean.shape))
        return np.hypot(clean + noise[0], noise[1])

    def fit(self, data, mask=None, **options):
        """The model's fit of data with known noise, unless options say otherwise."""
        return self.model.fit(data, mask, **{"sigma": S0 / SNR, **self.options, **options})


def _tissue(model):
    along_x = tissue_signals(model.acquisition, axis=(1, 0, 0))
    return np.stack([tissue_signals(model.acquisition), along_x])


def _drawn(model):
    model = getattr(model, "model", model)
    return model.signals(model.draw(2, seed=5))


def _walls(boundary):
    grid = GRID if boundary == "periodic" else bcc_grid(3, 6.0, boundary=boundary)
    return SpinverseModel(_PULSED, grid=grid, inversion=FaceInversion(curriculum=_QUICK))


def _in_box(model):
    everywhere = np.full((2, model.grid.n_faces), 100.0)
    everywhere[0, :40] = 0.01
    return simulate(model.acquisition, model.grid, everywhere, diffusivity=2.0, dtype="float32")


def _composed():
    return compose(
        _PULSED,
        [
            Compartment("stick", "neurites", {"diffusivity": "along"}),
            Compartment("ball", "water", {"diffusivity": 3.0}),
        ],
        [Parameter("along", 0.5, 3.0, "mm^2/s")],
    )


def _cells(model):
    prior = model.shape_space.prior_mean
    return np.stack([
        model.signals(prior + [0.3, -0.2, 0.2, 0.03], [0.3, 0.8, 0.1]),
        model.signals(prior + [0.1, 0.2, 0.2, 0.0], [0.0, 1.0, 0.4]),
    ])  # fmt: skip


def _learned():
    training = {"n_train": 12_000, "max_epochs": 16, "width": 48, "depth": 2, "batch_size": 100}
    return LearnedModel(NODDIModel(_PULSED), snr=(20, 100), **training)


_FIELDS = {"n_fields": 1, "n_draws": 0}
_IN_BOX = _FIELDS | {"S0": S0}
CASES = {
    "Spinverse, walls of tissue": Case(
        lambda: SpinverseModel(_PULSED, grid=GRID),
        _tissue,
        _FIELDS | _QUICK_DRAWS,
        True,
        slow=True,
    ),
    "Spinverse, periodic": Case(lambda: _walls("periodic"), _tissue, _FIELDS, True),
    "Spinverse, absorbing": Case(lambda: _walls("absorbing"), _in_box, _IN_BOX),
    "packed cells": Case(lambda: PackedCellsModel(_PULSED), _tissue, _QUICK_DRAWS, True),
    "NODDI": Case(lambda: NODDIModel(_PULSED), _drawn),
    "ActiveAx": Case(lambda: ActiveAxModel(_STRONG), _drawn, _QUICK_DRAWS, True),
    "ZCD": Case(lambda: ZCDModel(_STRONG), _drawn, _QUICK_DRAWS, True),
    "IVIM": Case(lambda: IVIMModel(_IVIM), _drawn, _QUICK_DRAWS, True),
    "composed": Case(_composed, _drawn, needs_model=True),
    "cell shapes": Case(
        lambda: CellShapeModel(_PULSED, lozenges()), _cells, {"n_draws": 3}, True, True
    ),
    "learned": Case(_learned, _drawn),
}
