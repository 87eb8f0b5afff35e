"""Rows of `benchmarks.real_inputs` that are a message, or that say that there is none."""

from __future__ import annotations

import numpy as np
import torch
from dipy.core.gradients import gradient_table

from benchmarks.published_noddi import published_signals, tissue
from benchmarks.real_inputs_directions import clinical, gradients, strong_scheme, table_of
from benchmarks.real_inputs_rows import call, row
from benchmarks.real_inputs_truths import magnitudes
from dipy_spinverse import (
    Acquisition,
    ActiveAxModel,
    FaceInversion,
    IVIMModel,
    NODDIModel,
    SpinverseModel,
    Status,
    bcc_grid,
)
from dipy_spinverse.compartments import Compartment, CustomKernel, Parameter, compose
from dipy_spinverse.inversion import Stage, WallArea


def message(item, words):
    """A row of one voxel or none."""
    return row(item, words, n=1, n_quick=1)


def _clinical_gtab(**options):
    return gradients(*clinical(), **options)


def _decay(rng, diffusivity=1.0):
    b, _ = clinical()
    return magnitudes(np.exp(-1e-3 * b * diffusivity)[None], 1 / 50, rng)


def _own(compartments, parameters=(), **options):
    return compose(_clinical_gtab(), compartments, parameters, **options)


def _fit_of(rng, compartments, parameters=(), name=None):
    fit = _own(compartments, parameters).fit(_decay(rng))
    return f"accepted, {name} = {getattr(fit, name)[0]:.3g}" if name else "accepted"


_D = ("d", 0.5, 3.0, "mm^2/s")


def _balls(*diffusivities, pools=("tissue", "water")):
    return [Compartment("ball", pool, {"diffusivity": each})
            for pool, each in zip(pools, diffusivities, strict=False)]  # fmt: skip


@message("A9", 'own model: Parameter("d", .5e-3, 3e-3, "mm^2/s")')
def own_bounds_in_mm2_per_s(n, rng):
    return call(lambda: _fit_of(rng, _balls("d"), [Parameter("d", 0.5e-3, 3e-3, "mm^2/s")], "d"))


@message("A9", "own model: a constant diffusivity of 3e-3")
def own_constant_in_mm2_per_s(n, rng):
    return call(lambda: _fit_of(rng, _balls("d", 3e-3), [Parameter(*_D)], "tissue"))


@message("A9", "own model: fixed={...: 3e-3}")
def own_fixed_in_mm2_per_s(n, rng):
    return call(
        lambda: _own(_balls("d", "free"), [Parameter(*_D)], fixed={"free": 3e-3}) and "accepted"
    )


@message("A9", "own model: two compartments of a pool without share, so S(0) = 2")
def own_pool_without_share(n, rng):
    return call(
        lambda: _fit_of(rng, _balls("d", 3.0, pools=("water", "water")), [Parameter(*_D)], "d")
    )


def _kernel(rng, function):
    def run():
        kernel = CustomKernel("own", ("d",), function)
        own = Compartment(kernel, "tissue", {"d": "d"}, dispersion="isotropic")
        return _fit_of(rng, [own], [Parameter(*_D)], "d")

    return call(run)


@message("A9", "own kernel with E(0) = .9")
def own_kernel_not_one_at_0(n, rng):
    return _kernel(
        rng,
        lambda encoding, square, *, d: 0.9 * torch.exp(
            -encoding.b[:, None] * d[:, None, None] * square)
    )  # fmt: skip


@message("A9", "own kernel of NumPy operations")
def own_kernel_of_numpy(n, rng):
    return _kernel(
        rng,
        lambda encoding, square, *, d: np.exp(
            -np.asarray(encoding.b)[:, None] * np.asarray(d)[:, None, None] * np.asarray(square))
    )  # fmt: skip


@message("A9", "own kernel whose values have the wrong shape")
def own_kernel_of_wrong_shape(n, rng):
    return _kernel(rng, lambda encoding, square, *, d: torch.exp(-encoding.b * d[:, None]))


@message("A9", "the diffusivity of NODDI given in um^2/ms")
def diffusivity_in_um2_per_ms(n, rng):
    return call(lambda: NODDIModel(_clinical_gtab(), parallel_diffusivity=1.7))


@message("A7", "NODDI at two echo times, b0 at one of them only")
def echo_time_without_b0(n, rng):
    te = np.r_[np.full(38, 0.07), np.full(60, 0.09)]
    gtab = _clinical_gtab(small_delta=0.01, big_delta=0.03)
    return call(lambda: NODDIModel(gtab, te=te))


@message("A11", "a clinical scan whose b and timings imply 1.5 T/m")
def gradient_too_strong(n, rng):
    b, directions = clinical()
    timings = {"small_delta": 0.0015, "big_delta": 0.006}

    def run():
        ActiveAxModel(Acquisition.from_files(b, directions, **timings))
        return "accepted: gradients for small animals are as strong, the warning begins at 3 T/m"

    return call(run)


@message("A11", "Delta given as the gap: one nominal gradient has two strengths")
def gradient_strengths_differ(n, rng):
    b, directions, small, big = strong_scheme()
    timings = {"small_delta": 1e-3 * small, "big_delta": 1e-3 * (big - small)}
    return call(lambda: ActiveAxModel(Acquisition.from_files(b, directions, **timings)))


@message("A11", "absorbing box, te left out, b0 differ 9-fold between timings")
def absorbing_without_te(n, rng):
    b, directions = table_of([(0, 4), (1000, 20)])
    b, directions, big = np.tile(b, 2), np.tile(directions, (2, 1)), np.repeat([0.02, 0.06], 24)
    gtab = gradients(b, directions, small_delta=0.01, big_delta=big)
    clean = np.where(big == 0.02, 0.9, 0.1) * np.exp(-0.5e-3 * b)
    data = 100 * magnitudes(clean[None], 1 / 50, rng)
    once = FaceInversion(
        curriculum=(Stage(priors=(WallArea(0.1),), max_iterations=1, initial_value=0.8),)
    )

    def run():
        grid = bcc_grid(3, 6.0, boundary="absorbing")
        fit = SpinverseModel(gtab, grid=grid, inversion=once).fit(data, S0=100.0, n_draws=0)
        return f"accepted, {Status(int(fit.status[0])).name}"

    return call(run)


@message("A13", "an empty mask")
def empty_mask(n, rng):
    data, mask = _decay(rng), np.zeros(1, bool)
    return call(lambda: NODDIModel(_clinical_gtab()).fit(data, mask) and "accepted")


@message("A13", "a mistyped argument, paralel_diffusivity=")
def mistyped_argument(n, rng):
    return call(lambda: NODDIModel(_clinical_gtab(), paralel_diffusivity=1.5e-3))


@message("A13", "b in s/m^2, as dmipy has it")
def b_in_s_per_m2(n, rng):
    b, directions = clinical()
    return call(lambda: NODDIModel(gradients(1e6 * b, directions)))


@message("A13", "b in ms/um^2 in a gradient table")
def b_in_ms_per_um2(n, rng):
    b, directions = clinical()
    return call(lambda: NODDIModel(gradients(1e-3 * b, directions)))


@message("A13", "NODDI, btens='PTE' without timings")
def planar_without_timings(n, rng):
    b, directions = clinical()

    def run():
        NODDIModel(gradient_table(b, bvecs=directions, btens="PTE"))
        return "accepted: signals of its Gaussian compartments follow from the b-tensors"

    return call(run)


@message("A13", "b-vectors as three rows")
def directions_as_rows(n, rng):
    b, directions = clinical()
    return call(lambda: repr(Acquisition(1e-3 * b, directions.T, 10, 30)))


@message("A13", "data with the volumes first")
def volumes_first(n, rng):
    b, directions = clinical()
    truth = tissue(3, 1)
    data = published_signals(1e-3 * b, directions, truth).T
    return call(lambda: NODDIModel(_clinical_gtab()).fit(data) and "accepted")


@message("A2", "IVIM without a small b")
def ivim_without_small_b(n, rng):
    return call(lambda: IVIMModel(_clinical_gtab()))
