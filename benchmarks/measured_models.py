"""How `benchmarks.real_data` fits each model to a measured voxel.

Each takes the voxels, the number of one of them and the measurements to fit (M,) of bool, and
returns the predicted signals (M,) of all measurements and a dictionary of estimates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from benchmarks.baselines import fit_dti, fit_stick_zeppelin_ball, fit_two_sites, with_amplitudes
from benchmarks.datasets import TENSOR_B, Voxels
from benchmarks.descriptions import floor, gaussians, map_mri, static_gaussians
from dipy_spinverse import (
    ActiveAxModel,
    FaceInversion,
    NODDIModel,
    PackedCellsModel,
    SpinverseModel,
    Status,
    bcc_grid,
)
from dipy_spinverse.packed_cells.nuisance import polarity_asymmetry, polarity_factors

# ms/um^2: the cat's signals at smaller b leave any curve in the same way in all voxels.
LEAST_B = 0.1
# What a user would choose for these scans, besides an amplitude for each timing: the signals of
# the cat were divided by the b0 of each, the human ones have an echo time for each.
PACKED_CELLS: dict[str, dict] = {"cat": {}, "genu": {}, "fornix": {}}
# The cat's gradients (q to 1.8 rad/um) need small cells, and are blind to the axis of the cord,
# along which the box may be short.
WALL_FIELDS = {
    "cat": {"cells": (6, 6, 3), "cell_size_um": 2.0, "free_water": True},
    "genu": {"cells": (4, 4, 4), "cell_size_um": 5.0, "free_water": True},
    "fornix": {"cells": (4, 4, 4), "cell_size_um": 5.0, "free_water": True},
}
MAPS = (
    "pore_diameter", "restricted_fraction", "surface_to_volume", "wall_permeability",
    "exchange_time", "free_water_fraction",
)  # fmt: skip

Fitted = tuple[np.ndarray, dict]


def fit_packed_cells(voxels: Voxels, number: int, fitted: np.ndarray) -> Fitted:
    """PackedCellsModel with `PACKED_CELLS`; the noise is that of b0.

    Predicted shapes get their amplitudes from what was fitted, as those of all other models.
    """
    signals = voxels.signals[number]
    model = _packed_cells_model(voxels, fitted.tobytes())
    fit = model.fit(signals[fitted], sigma=voxels.sigma[number])
    estimates = {name + end: float(getattr(fit, name + end)) for end in ("", "_low", "_high")
                 for name in MAPS}  # fmt: skip
    estimates["status"] = Status(int(fit.status)).name
    shape = fit.predict(gtab=voxels.acquisition, S0=1.0)
    return with_amplitudes(voxels.acquisition, shape, signals, fitted), estimates


@lru_cache(maxsize=1)
def _packed_cells_model(voxels, fitted):
    """One model for all voxels of which the same measurements are fitted."""
    return PackedCellsModel(
        voxels.acquisition.subset(np.frombuffer(fitted, bool)),
        free_diffusivity=1e-3 * voxels.free_diffusivity,
        amplitudes="timing",
        **PACKED_CELLS[voxels.name],
    )


def fit_wall_fields(voxels: Voxels, number: int, fitted: np.ndarray) -> Fitted:
    """Walls alone (SpinverseModel with its curriculum), with free water.

    The diffusivity is the median over the dataset of the first eigenvalue of the tensor, that of
    free water is the same as for the ball of the stick + zeppelin + ball model, the noise that
    between opposite directions.
    """
    settings = WALL_FIELDS[voxels.name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = SpinverseModel(
            voxels.acquisition.subset(fitted),
            grid=bcc_grid(settings["cells"], settings["cell_size_um"]),
            diffusivity=1e-3 * float(np.median(voxels.diffusivity)),
            free_diffusivity=1e-3 * voxels.free_diffusivity,
            inversion=FaceInversion(),
        )
        fit = model.fit(
            voxels.signals[number, fitted],
            sigma=voxels.repeatability[number],
            free_water=settings["free_water"],
        )
    estimates = {name: float(getattr(fit, name)) for name in MAPS}
    estimates["status"] = Status(int(fit.status)).name
    return fit.predict(gtab=voxels.acquisition), estimates


def _compartments(model_class, names) -> Callable[[Voxels, int, np.ndarray], Fitted]:
    def fit(voxels, number, fitted):
        signals = voxels.signals[number]
        model = model_class(
            voxels.acquisition.subset(fitted),
            parallel_diffusivity=1e-3 * float(np.median(voxels.diffusivity)),
            isotropic_diffusivity=1e-3 * voxels.free_diffusivity,
        )
        found = model.fit(signals[fitted], sigma=voxels.repeatability[number], n_draws=0)
        shape = found.predict(gtab=voxels.acquisition, S0=1.0)
        estimates = {name: float(getattr(found, name)) for name in names}
        return with_amplitudes(voxels.acquisition, shape, signals, fitted), estimates

    return fit


def _dti(voxels, number, fitted):
    low = voxels.acquisition.b < TENSOR_B
    return fit_dti(voxels.acquisition, voxels.signals[number], fitted & low)


def _stick_zeppelin_ball(voxels, number, fitted):
    return fit_stick_zeppelin_ball(
        voxels.acquisition, voxels.signals[number], fitted,
        orientation=voxels.orientation[number], free_diffusivity=voxels.free_diffusivity,
    )  # fmt: skip


def _two_sites(voxels, number, fitted):
    return fit_two_sites(
        voxels.acquisition, voxels.signals[number], fitted,
        orientation=voxels.orientation[number],
        diffusivity=float(np.median(voxels.diffusivity)),
        free_diffusivity=voxels.free_diffusivity,
    )  # fmt: skip


def _described(describe, oriented):
    def fit(voxels, number, fitted):
        axis = (voxels.orientation[number],) if oriented else ()
        return describe(voxels.acquisition, voxels.signals[number], fitted, *axis), {}

    return fit


def _with_terms_of_the_scan(voxels, number, fitted):
    """Gaussians for each timing, and the terms of the scan estimated by packed cells."""
    own = voxels.acquisition.subset(fitted)
    signals, axis = voxels.signals[number], voxels.orientation[number]
    odd = polarity_asymmetry(own, signals[None, fitted], voxels.sigma[[number]])
    factors = polarity_factors(own, voxels.acquisition, odd)[0]
    even = gaussians(voxels.acquisition, signals / factors, fitted, axis, fleeting=True)
    return even * factors, {}


def _weighted(describe):
    def fit(voxels, number, fitted):
        return describe(voxels, number, fitted & (voxels.acquisition.b > LEAST_B))

    return fit


MODELS: dict[str, Callable[[Voxels, int, np.ndarray], Fitted]] = {
    "packed cells": fit_packed_cells,
    "wall fields": fit_wall_fields,
    "DTI": _dti,
    "MAP-MRI, each timing": _described(map_mri, False),
    "stick + zeppelin + ball": _stick_zeppelin_ball,
    "NODDI": _compartments(NODDIModel, ("ndi", "odi", "fwf")),
    "ActiveAx": _compartments(
        ActiveAxModel, ("axon_diameter", "restricted_fraction", "free_water_fraction")
    ),
    "two-site exchange": _two_sites,
    "Gaussians, one mixture": _described(static_gaussians, True),
    "Gaussians, each timing": _described(gaussians, True),
    "Gaussians, each timing, with terms of the scan": _with_terms_of_the_scan,
    "smooth curves (floor)": _described(floor, False),
    "Gaussians, each timing, fitted to b > 0.1": _weighted(_described(gaussians, True)),
    "smooth curves (floor), fitted to b > 0.1": _weighted(_described(floor, False)),
}
# The artefact is the cat's.
CAT_ALONE = [name for name in MODELS if "fitted to b" in name]
QUICK_TO_FIT = [name for name in MODELS if name != "wall fields"]
