"""Other packages' compartment fits, run by the interpreter of their own environment.

    python compartment_peers.py TASK IN.npz OUT.npz

reads signals and encodings, and writes estimates and the seconds that they took to OUT. Only NumPy
and the peer are imported. `benchmarks.peers` makes the environments and calls this.
Duration: seconds to minutes, by the task. Writes OUT only.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np


def amico_noddi(given):
    """dmri-amico: NODDI with its default dictionary."""
    import amico
    import nibabel

    folder = Path(tempfile.mkdtemp())
    os.chdir(folder)
    signals = given["signals"].astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(signals[:, None, None], np.eye(4)), "dwi.nii.gz")
    mask = np.ones((len(signals), 1, 1), np.uint8)
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), "mask.nii.gz")
    np.savetxt("dwi.bval", given["bvals"][None])
    np.savetxt("dwi.bvec", given["bvecs"].T)
    amico.setup()
    amico.util.fsl2scheme("dwi.bval", "dwi.bvec", "dwi.scheme")
    evaluation = amico.Evaluation(str(folder), ".")
    evaluation.load_data("dwi.nii.gz", "dwi.scheme", mask_filename="mask.nii.gz", b0_thr=10)
    evaluation.set_model("NODDI")
    evaluation.generate_kernels(regenerate=True)
    evaluation.load_kernels()
    evaluation.fit()
    started = time.perf_counter(), time.process_time()
    evaluation.fit()
    seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    evaluation.save_results()
    results = folder / "AMICO" / "NODDI"
    maps = {
        name: nibabel.load(results / f"fit_{name.upper()}.nii.gz").get_fdata().ravel()
        for name in ("ndi", "odi", "fwf")
    }
    return maps | {"wall": seconds[0], "cpu": seconds[1]}


def dmipy_noddi(given):
    """dmipy: Watson NODDI, brute force and then local optimisation (its default)."""
    from dmipy.distributions.distribute_models import SD1WatsonDistributed
    from dmipy.signal_models import cylinder_models, gaussian_models

    watson = SD1WatsonDistributed(models=[cylinder_models.C1Stick(), gaussian_models.G2Zeppelin()])
    watson.set_tortuous_parameter(
        "G2Zeppelin_1_lambda_perp", "C1Stick_1_lambda_par", "partial_volume_0"
    )
    watson.set_equal_parameter("G2Zeppelin_1_lambda_par", "C1Stick_1_lambda_par")
    watson.set_fixed_parameter("G2Zeppelin_1_lambda_par", 1.7e-9)
    ball = gaussian_models.G1Ball()
    fit, seconds = _dmipy_fit([ball, watson], {"G1Ball_1_lambda_iso": 3e-9}, given)
    found = fit.fitted_parameters
    return {
        "ndi": found["SD1WatsonDistributed_1_partial_volume_0"],
        "odi": found["SD1WatsonDistributed_1_SD1Watson_1_odi"],
        "fwf": found["partial_volume_0"],
        **seconds,
    }


def dmipy_stick_zeppelin(given):
    """dmipy: stick and zeppelin with tortuosity, the parallel diffusivity fixed (um^2/ms)."""
    from dmipy.core.modeling_framework import MultiCompartmentModel
    from dmipy.signal_models import cylinder_models, gaussian_models

    model = MultiCompartmentModel([cylinder_models.C1Stick(), gaussian_models.G2Zeppelin()])
    model.set_tortuous_parameter(
        "G2Zeppelin_1_lambda_perp", "C1Stick_1_lambda_par", "partial_volume_0", "partial_volume_1"
    )
    model.set_equal_parameter("G2Zeppelin_1_mu", "C1Stick_1_mu")
    model.set_equal_parameter("G2Zeppelin_1_lambda_par", "C1Stick_1_lambda_par")
    model.set_fixed_parameter("G2Zeppelin_1_lambda_par", float(given["diffusivity"]) * 1e-9)
    fit, seconds = _timed(lambda: model.fit(_dmipy_scheme(given), given["signals"]))
    return {"fraction": fit.fitted_parameters["partial_volume_0"], **seconds}


def dmipy_axcaliber(given):
    """dmipy: one cylinder of finite pulses, tortuous zeppelin and ball (ActiveAx), axis fixed."""
    from dmipy.core.modeling_framework import MultiCompartmentModel
    from dmipy.signal_models import cylinder_models, gaussian_models

    along = float(given["diffusivity"]) * 1e-9
    cylinder = cylinder_models.C4CylinderGaussianPhaseApproximation(diffusion_perpendicular=along)
    model = MultiCompartmentModel(
        [cylinder, gaussian_models.G2Zeppelin(), gaussian_models.G1Ball()]
    )
    name = "C4CylinderGaussianPhaseApproximation_1_"
    model.set_tortuous_parameter(
        "G2Zeppelin_1_lambda_perp", name + "lambda_par", "partial_volume_0", "partial_volume_1"
    )
    model.set_equal_parameter("G2Zeppelin_1_mu", name + "mu")
    model.set_equal_parameter("G2Zeppelin_1_lambda_par", name + "lambda_par")
    model.set_fixed_parameter("G2Zeppelin_1_lambda_par", along)
    model.set_fixed_parameter("G2Zeppelin_1_mu", np.array([0.0, 0.0]))
    model.set_fixed_parameter("G1Ball_1_lambda_iso", float(given["free"]) * 1e-9)
    fit, seconds = _timed(lambda: model.fit(_dmipy_scheme(given), given["signals"], Ns=5))
    found = fit.fitted_parameters
    return {
        "diameter": 1e6 * found[name + "diameter"],
        "fraction": found["partial_volume_0"],
        **seconds,
    }


def swissknife_exchange(given):
    """graymatter_swissknife: NEXI or SMEX, its grid search, then L-BFGS-B, within bounds."""
    import joblib
    from graymatter_swissknife.models.NEXI.nexi import Nexi
    from graymatter_swissknife.models.NEXI.smex import Smex
    from graymatter_swissknife.models.parameters.acq_parameters import AcquisitionParameters
    from graymatter_swissknife.nls.gridsearch import find_nls_initialization
    from graymatter_swissknife.nls.nls import nls_parallel

    np.random.seed(0)  # noqa: NPY002 -- the peer draws from it
    bounds, signals = given["bounds"], given["signals"]
    model = {"NEXI": Nexi, "SMEX": Smex}[str(given["model"])](bounds)
    pulses = given["b"], given["big_delta"], float(given["small_delta"])
    n, acquisition = len(signals), AcquisitionParameters(*pulses)
    with joblib.parallel_config(backend="sequential"):
        start, once = _timed(
            lambda: find_nls_initialization(
                signals, None, n, acquisition, model, bounds, model.grid_search_nb_points
            )
        )
        (found, _), seconds = _timed(
            lambda: nls_parallel(signals, n, model, acquisition, bounds, 1, start, n_cores=1)
        )
    return {"found": found, "once": once["cpu"], **seconds}


def _dmipy_fit(models, fixed, given):
    from dmipy.core.modeling_framework import MultiCompartmentModel

    model = MultiCompartmentModel(models)
    for name, value in fixed.items():
        model.set_fixed_parameter(name, value)
    scheme = _dmipy_scheme(given)
    model.fit(scheme, given["signals"][:1])
    return _timed(lambda: model.fit(scheme, given["signals"]))


def _dmipy_scheme(given):
    from dmipy.core.acquisition_scheme import acquisition_scheme_from_bvalues

    return acquisition_scheme_from_bvalues(
        given["bvals"] * 1e6, given["bvecs"], given["small_delta"], given["big_delta"]
    )


def _timed(function):
    started = time.perf_counter(), time.process_time()
    result = function()
    return result, {
        "wall": time.perf_counter() - started[0],
        "cpu": time.process_time() - started[1],
    }


if __name__ == "__main__":
    functions = (amico_noddi, dmipy_noddi, dmipy_stick_zeppelin, dmipy_axcaliber,
                 swissknife_exchange)  # fmt: skip
    tasks = {f.__name__: f for f in functions}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=tasks)
    parser.add_argument("source", type=lambda name: Path(name).resolve())
    parser.add_argument("target", type=lambda name: Path(name).resolve())
    given = parser.parse_args()
    with np.load(given.source) as file:
        arguments = dict(file)
    np.savez(given.target, **tasks[given.task](arguments))
