"""Compartment models of b-tensors, and NODDI in its published form, against direct quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compartment_cases import directions, two_shells
from dipy.core.gradients import gradient_table

from benchmarks.published_noddi import published_signals, sphere
from dipy_spinverse import Acquisition, ActiveAxModel, IVIMModel, NODDIModel, load_fit
from dipy_spinverse.acquisition import TensorAcquisition
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.compartments import Compartment, CustomKernel, Parameter, compose

TRUTH = {
    "ndi": np.array([0.3, 0.6, 0.8]), "odi": np.array([0.5, 0.2, 0.05]),
    "fwf": np.array([0.0, 0.2, 0.4]), "axis": directions(3, seed=4),
}  # fmt: skip


def mixed_table(n=57, kinds=("LTE", "STE", "PTE")):
    """Linear, spherical and planar b-tensors, without timings."""
    b = np.r_[np.zeros(6), np.repeat([1000, 2000], n)]
    btens = np.resize(kinds, len(b))
    return gradient_table(b, bvecs=directions(len(b)), btens=btens)


def test_noddi_is_the_published_one_unless_it_is_told_otherwise():
    acquisition = two_shells()
    b = np.where(acquisition.b0_mask, 0, acquisition.b)
    exact = published_signals(b, acquisition.directions, TRUTH)
    found = NODDIModel(acquisition).signals(TRUTH)
    np.testing.assert_allclose(found, exact, atol=2e-6)  # the series is cut off at 2e-6
    fan = np.cross(TRUTH["axis"], directions(3, seed=9))
    truth = TRUTH | {"fanning": np.array([0.3, 0.6, 0.9])}
    truth["axis_fan"] = fan / np.linalg.norm(fan, axis=1, keepdims=True)
    exact = published_signals(b, acquisition.directions, truth)
    found = NODDIModel(acquisition, dispersion="bingham").signals(truth)
    np.testing.assert_allclose(found, exact, atol=2e-6)
    other = NODDIModel(acquisition, extra_cellular="dispersed").signals(TRUTH)
    # An average of exponentials is above the exponential of the average.
    plain = NODDIModel(acquisition).signals(TRUTH)
    assert (other - plain).min() > -2e-6 and (other - plain).max() > 1e-3


@pytest.mark.filterwarnings("ignore:The acquisition hardly determines")
@pytest.mark.parametrize("dispersion", ["watson", "bingham"])
def test_averages_over_directions_of_published_noddi_are_those_of_single_directions(dispersion):
    vectors, weights = sphere()
    timing = {"small_delta": 10, "big_delta": 30}
    single = Acquisition(b=2.0, directions=vectors, **timing)
    mixed = Acquisition(
        b=[0, 1, 2.0, 2.0, 1, 1, 2, 2], directions=directions(8),
        isotropic=[0, 0, 0, 1, 0, 0, 0, 0], **timing,
    )  # fmt: skip
    truth = {name: value[:1] for name, value in TRUTH.items()}
    if dispersion == "bingham":
        fan = np.cross(truth["axis"], [[0.0, 0.0, 1.0]])
        truth |= {"fanning": 0.6, "axis_fan": fan / np.linalg.norm(fan)}
    model = NODDIModel(mixed, dispersion=dispersion)
    average = model.signals(truth, single) @ weights
    assert model.signals(truth)[0, 3] == pytest.approx(average[0], abs=2e-6)  # quadratures


def test_b_tensors_attenuate_by_their_product_with_the_diffusion_tensor():
    gtab = mixed_table()
    axis = directions(2, seed=5)
    parts = [
        Compartment("zeppelin", "a", {"parallel": 1.7, "perpendicular": 0.4}),
        Compartment("ball", "b", {"diffusivity": 3.0}),
    ]
    model = compose(gtab, parts)
    found = model.signals({"a": np.array([1.0, 0.3]), "axis": axis})
    tensor = 0.4 * np.eye(3) + 1.3 * axis[:, :, None] * axis[:, None, :]
    product = np.einsum("mij,vji->vm", gtab.btens / 1e3, tensor)
    trace = np.trace(gtab.btens, axis1=1, axis2=2) / 1e3
    share = np.array([[1.0], [0.3]])
    exact = share * np.exp(-product) + (1 - share) * np.exp(-3 * trace)
    np.testing.assert_allclose(found, exact, atol=1e-4)  # b and shapes are rounded to 1e-4


@pytest.mark.parametrize("extra_cellular", ["averaged", "dispersed"])
def test_dispersed_sticks_and_zeppelins_know_b_tensors(extra_cellular):
    gtab = mixed_table()
    model = NODDIModel(gtab, extra_cellular=extra_cellular)
    vectors, weights = sphere()
    axis, ndi, kappa = TRUTH["axis"][1], 0.6, 1 / np.tan(0.5 * np.pi * 0.2)
    density = weights * np.exp(kappa * (vectors @ axis) ** 2)
    density /= density.sum()
    outer = vectors[:, :, None] * vectors[:, None]
    sticks = np.exp(-np.einsum("mij,qji->mq", gtab.btens / 1e3, 1.7 * outer)) @ density
    tensors = 1.7 * (1 - ndi) * np.eye(3) + 1.7 * ndi * outer
    if extra_cellular == "averaged":
        average = np.einsum("q,qij->ij", density, tensors)
        outside = np.exp(-np.einsum("mij,ji->m", gtab.btens / 1e3, average))
    else:
        outside = np.exp(-np.einsum("mij,qji->mq", gtab.btens / 1e3, tensors)) @ density
    found = model.signals({"ndi": ndi, "odi": 0.2, "fwf": 0.0, "axis": axis})
    exact = ndi * sticks + (1 - ndi) * outside
    np.testing.assert_allclose(found, exact, atol=1e-4)  # b and shapes are rounded to 1e-4


def test_noddi_of_mixed_b_tensors_is_recovered_and_comes_back_from_its_file(tmp_path):
    """Read as linear, spherical measurements made NDI .60 come out as .38."""
    gtab = mixed_table()
    model = NODDIModel(gtab)
    data = model.signals(TRUTH)
    fit = model.fit(data, sigma=1e-3, n_draws=0)
    for name in ("ndi", "odi", "fwf"):
        assert np.allclose(getattr(fit, name), TRUTH[name], atol=2e-3)  # steps end at 1e-3
    fit.save(tmp_path / "fit.npz")
    back = load_fit(tmp_path / "fit.npz")
    assert isinstance(back.model.acquisition, TensorAcquisition)
    np.testing.assert_allclose(back.predict(), fit.predict(), rtol=1e-9)
    linear = gradient_table(gtab.bvals, bvecs=gtab.bvecs)
    tagged = gradient_table(gtab.bvals, bvecs=gtab.bvecs, btens="LTE")
    same = [NODDIModel(table).signals(TRUTH) for table in (linear, tagged)]
    np.testing.assert_allclose(*same, atol=1e-12)


def test_waveforms_count_by_their_b_tensors():
    steps = np.linspace(0, 2 * np.pi, 300, endpoint=False)
    shape = np.stack([np.cos(steps), np.sin(2 * steps), 0 * steps], axis=1)
    shape -= shape.mean(axis=0)
    waveforms = [0.2 * shape @ np.linalg.qr(np.random.default_rng(k).standard_normal((3, 3)))[0]
                 for k in range(8)]  # fmt: skip
    waveforms = [scale * w for scale in (0, 0.6, 1) for w in waveforms]
    measured = WaveformAcquisition.from_samples(waveforms, 2e-4)
    with pytest.raises(ValueError, match="no symmetry axis"):
        IVIMModel(measured)  # b along x is four times that along y
    one_way = [w[:, :1] * directions(1, seed=k) for k, w in enumerate(waveforms)]
    measured = WaveformAcquisition.from_samples(one_way, 2e-4)
    model = compose(measured, [Compartment("stick", "a", {"diffusivity": 2.0}),
                               Compartment("dot", "b")])  # fmt: skip
    axis = np.array([0.0, 0.6, 0.8])
    along = np.einsum("mij,i,j->m", measured.b_tensors, axis, axis)
    np.testing.assert_allclose(
        model.signals({"a": 1.0, "axis": axis}), np.exp(-2 * along),
        atol=1e-4,  # b is rounded to 1e-4
    )  # fmt: skip


def test_models_that_b_tensors_do_not_tell_refuse_them():
    with pytest.raises(ValueError, match="cylinder of ActiveAx has restricted diffusion"):
        ActiveAxModel(mixed_table())
    kernel = CustomKernel(
        "mine", (), lambda encoding, square: 0 * encoding.b[:, None] * square + 1
    )
    with pytest.raises(ValueError, match="mine of custom model is defined for linear encoding"):
        compose(mixed_table(), [Compartment(kernel, "a")])
    lopsided = mixed_table()
    lopsided.btens[20] = np.diag([900.0, 700.0, 400.0])
    with pytest.raises(ValueError, match="measurement 20 has no symmetry axis"):
        NODDIModel(lopsided)


def test_diffusivities_of_noddi_are_known_bounded_or_free():
    b = np.r_[np.zeros(6), np.repeat([0.7, 1.5, 3.0], 40)]
    acquisition = Acquisition(b, directions(len(b)), small_delta=10, big_delta=30)
    truth = NODDIModel(acquisition, parallel_diffusivity=1.2e-3).signals(TRUTH)
    fit = NODDIModel(acquisition, parallel_diffusivity=(0.5e-3, 2.5e-3)).fit(
        truth, sigma=1e-3, n_draws=0
    )
    assert np.allclose(fit.parallel_diffusivity, 1.2e-3, rtol=0.02)  # steps end at 1e-3 of 2e-3
    assert np.allclose(fit.ndi, TRUTH["ndi"], atol=0.02)
    free = NODDIModel(acquisition, isotropic_diffusivity="free")
    assert free.definition.maps == ("ndi", "odi", "fwf", "isotropic_diffusivity")
    with pytest.raises(ValueError, match=r"bounds \(low, high\)"):
        NODDIModel(acquisition, parallel_diffusivity=(1e-3, 2e-3, 3e-3))
    with pytest.raises(ValueError, match="extra_cellular is 'none'"):
        NODDIModel(acquisition, extra_cellular="none")


def test_a_kernel_of_ones_own_has_its_own_parameters():
    def curved(encoding, square, *, diffusivity, kurtosis):
        decay = encoding.b[:, None] * diffusivity[:, None, None] * square
        return torch.exp(-decay + kurtosis[:, None, None] * decay**2 / 6)

    model = compose(
        two_shells(),
        [
            Compartment(CustomKernel("curved stick", ("diffusivity", "kurtosis"), curved),
                        "neurites", {"diffusivity": "along", "kurtosis": "kurtosis"}),
            Compartment("ball", "water", {"diffusivity": 3.0}),
        ],
        [Parameter("along", 0.5, 2.0, "mm^2/s"), Parameter("kurtosis", 0.0, 1.0)],
    )  # fmt: skip
    truth = {"along": 1.2, "kurtosis": 0.6, "neurites": 0.8, "axis": np.array([0.6, 0, 0.8])}
    b, square = model.acquisition.b, (model.acquisition.directions @ truth["axis"]) ** 2
    decay = 1.2 * b * square * ~model.acquisition.b0_mask
    water = np.exp(-3 * b * ~model.acquisition.b0_mask)
    exact = 0.8 * np.exp(-decay + 0.1 * decay**2) + 0.2 * water
    signals = model.signals(truth)
    np.testing.assert_allclose(signals, exact, atol=1e-6)
    fit = model.fit(signals, sigma=1e-4, n_draws=0)
    assert abs(fit.along - 1.2e-3) < 1e-5 and abs(fit.kurtosis - 0.6) < 0.01


def test_custom_kernels_without_dispersion_are_exact_at_strong_diffusion_weighting():
    def stick(encoding, square, *, diffusivity):
        return torch.exp(-encoding.b[:, None] * diffusivity[:, None, None] * square)

    custom = CustomKernel("custom stick", ("diffusivity",), stick)
    n = directions(80)
    acquisition = Acquisition(np.repeat([1.0, 5, 30, 150], 20), n, small_delta=10, big_delta=30)
    compartments = [
        Compartment("stick", "neurites", {"diffusivity": 2.0}, share=0.4),
        Compartment(custom, "neurites", {"diffusivity": 2.0}, share=0.6),
    ]
    axis = np.array([0.6, 0, 0.8])
    exact = np.exp(-2 * acquisition.b * (n @ axis) ** 2)  # from b D = 2 to 300
    for order in (1, -1):
        model = compose(acquisition, compartments[::order])
        signals = model.signals({"neurites": 1.0, "axis": axis})
        np.testing.assert_allclose(signals, exact, atol=2e-6)
