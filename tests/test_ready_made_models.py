"""SANDI, NEXI, VERDICT, the standard model and MTE-NODDI against signals made without them."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from compartment_cases import directions, magnitudes
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.optimize import brentq
from scipy.special import erf, spherical_jn
from scipy.stats import gamma

from benchmarks.neurite_exchange import layers
from benchmarks.published_noddi import sphere
from dipy_spinverse import Acquisition, LearnedModel, NODDIModel, load_fit
from dipy_spinverse.compartments import (
    GAMMA_CYLINDERS,
    Compartment,
    MTENODDIModel,
    NEXIModel,
    Parameter,
    SANDIModel,
    StandardModel,
    VERDICTModel,
    compose,
)
from dipy_spinverse.voxels.image import image_of
from dipy_spinverse.voxels.status import Status

B = np.array([0, 0, 0.7, 1.5, 3.0, 5.0, 8.0])


def averages(big_delta=(25.0,), small_delta=9.0):
    """Averages over directions at each diffusion time, of one echo time."""
    b, big = np.tile(B, len(big_delta)), np.repeat(big_delta, len(B))
    return Acquisition(
        b, np.tile([1.0, 0, 0], (len(b), 1)), small_delta=small_delta, big_delta=big, te=90.0,
        isotropic=True,
    )  # fmt: skip


def sticks(b, diffusivity):
    """Average over all directions in closed form."""
    x = np.sqrt(np.maximum(b * diffusivity, 1e-12))
    return np.sqrt(np.pi) / 2 * erf(x) / x


def spheres(acquisition, diffusivity, diameter):
    """Murday and Cotts, term by term."""

    def slope(x):
        return spherical_jn(1, x, derivative=True)

    d, big, radius = acquisition.small_delta[0], acquisition.big_delta, 0.5 * diameter
    total = 0.0
    for k in range(30):
        alpha = brentq(slope, (k + 0.5) * np.pi, (k + 1) * np.pi) / radius
        rate = alpha**2 * diffusivity
        ends = 2 + np.exp(-rate * (big - d)) - 2 * np.exp(-rate * d) - 2 * np.exp(-rate * big)
        ends = ends + np.exp(-rate * (big + d))
        total = total + alpha**-4 / (alpha**2 * radius**2 - 2) * (2 * d - ends / rate)
    return np.exp(-2 * (acquisition.q / d) ** 2 / diffusivity * total)


def test_sandi_and_verdict_are_sticks_spheres_and_water():
    acquisition = averages()
    truth = {"neurite_diffusivity": 2.0, "extra_diffusivity": 0.9, "soma_diameter": 12.0,
             "neurite_fraction": 0.4, "soma_fraction": 0.35}  # fmt: skip
    b = acquisition.b
    exact = 0.4 * sticks(b, 2.0) + 0.35 * spheres(acquisition, 3.0, 12.0)
    model = SANDIModel(acquisition)
    exact = exact + 0.25 * np.exp(-0.9 * b)
    np.testing.assert_allclose(model.signals(truth), exact, atol=2e-6)  # 20 of all roots
    with pytest.raises(ValueError, match="extra_diffusivity is 0.0009; here it is in um"):
        model.signals(truth | {"extra_diffusivity": 0.9e-3})
    fit = model.fit(exact, sigma=1e-5, n_draws=0)
    # A valley: steps end where they gain no more.
    assert abs(fit.soma_diameter - 12) < 1.0 and abs(fit.neurite_fraction - 0.4) < 0.03
    truth = {"vascular_fraction": 0.1, "intracellular_fraction": 0.5, "cell_diameter": 15.0}
    exact = 0.1 * sticks(b, 8.0) + 0.5 * spheres(acquisition, 2.0, 15.0) + 0.4 * np.exp(-2 * b)
    np.testing.assert_allclose(VERDICTModel(acquisition).signals(truth), exact, atol=1e-5)


def karger(b, small, big, inside, outside, fraction, time):
    """Powder average of two sites by a general solver of differential equations."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    q0, total = np.sqrt(b / (big - small / 3)), 0.0
    for x, w in zip(0.5 * (nodes + 1), 0.5 * weights, strict=True):

        def rates(t, m, x=x):
            q = (q0 * np.interp(t, [0, small, big, big + small], [0, 1, 1, 0])) ** 2
            flow = (1 - fraction) / time * m[0] - fraction / time * m[1]
            return [-q * inside * x**2 * m[0] - flow, -q * outside * m[1] + flow]

        solution = solve_ivp(rates, (0, big + small), [fraction, 1 - fraction], rtol=1e-6,
                             atol=1e-8, max_step=small / 3)  # fmt: skip
        total += w * solution.y[:, -1].sum()
    return total


def test_nexi_solves_its_equations_with_finite_pulses_and_is_recovered(tmp_path):
    model = NEXIModel(averages((16.0, 25.0, 45.0)))
    truth = {"neurite_fraction": 0.45, "exchange_time": 12.0, "neurite_diffusivity": 2.2,
             "extra_diffusivity": 0.8}  # fmt: skip
    signals = model.signals(truth)
    acquisition = model.acquisition
    for m in (4, 6, 18):
        exact = karger(acquisition.b[m], 9.0, acquisition.big_delta[m], 2.2, 0.8, 0.45, 12.0)
        assert signals[m] == pytest.approx(exact, abs=3e-4)  # eight steps of each pulse
    assert signals[[0, 1]] == pytest.approx(1.0)
    fit = model.fit(signals, sigma=1e-4, n_draws=0)
    assert fit.exchange_time == pytest.approx(12.0, rel=0.02)
    assert fit.neurite_diffusivity == pytest.approx(2.2e-3, rel=0.02)
    slow = model.signals({**truth, "exchange_time": 1e6})
    apart = 0.45 * sticks(acquisition.b, 2.2) + 0.55 * np.exp(-0.8 * acquisition.b)
    np.testing.assert_allclose(slow, apart, atol=1e-4)
    fit.save(tmp_path / "fit.npz")
    np.testing.assert_allclose(load_fit(tmp_path / "fit.npz").predict(), fit.predict())


def test_nexi_is_the_bloch_torrey_solution_of_thin_layers_with_permeable_walls():
    """Two sites of which each is mixed at once: Karger's limit."""
    acquisition = Acquisition(
        [1.0, 3.0, 7.0] * 2, np.zeros((6, 3)), small_delta=9.0,
        big_delta=np.repeat([16.0, 40.0], 3), te=80.0, isotropic=True,
    )  # fmt: skip
    truth = {"neurite_fraction": 0.35, "exchange_time": 20.0, "neurite_diffusivity": 2.4,
             "extra_diffusivity": 0.8}  # fmt: skip
    signals = NEXIModel(acquisition).signals(truth)
    # What mixing within layers of 0.14 um takes is still seen; it goes with their thickness.
    np.testing.assert_allclose(layers(acquisition, truth, 0.14), signals, atol=6e-4)
    other = NEXIModel(acquisition).signals({**truth, "exchange_time": 40.0})
    assert np.abs(other - signals).max() > 6e-3


def test_exchange_can_be_differentiated_through():
    model = NEXIModel(averages((16.0, 45.0)))
    truth = {"neurite_fraction": 0.45, "exchange_time": 12.0, "neurite_diffusivity": 2.2,
             "extra_diffusivity": 0.8}  # fmt: skip
    tensors = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True)
               for k, v in truth.items()}  # fmt: skip
    signals = model.signals(tensors)
    np.testing.assert_allclose(signals.detach(), model.signals(truth), atol=1e-10)
    (slope,) = torch.autograd.grad(signals[-1], tensors["exchange_time"])
    ends = [model.signals({**truth, "exchange_time": t})[-1] for t in (11.999, 12.001)]
    assert slope.item() == pytest.approx((ends[1] - ends[0]) / 0.002, rel=1e-4)


def test_the_standard_model_has_no_constraints():
    b = np.r_[np.zeros(4), np.repeat([1.0, 2.5, 5.0], 40)]
    acquisition = Acquisition(b, directions(len(b)), small_delta=10, big_delta=30)
    truth = {"odi": 0.15, "neurite_diffusivity": 2.3, "extra_parallel": 1.6,
             "extra_perpendicular": 0.7, "neurite_fraction": 0.5, "free_water_fraction": 0.1,
             "axis": np.array([0.0, 0.6, 0.8])}  # fmt: skip
    vectors, weights = sphere()
    density = weights * np.exp((vectors @ truth["axis"]) ** 2 / np.tan(0.5 * np.pi * 0.15))
    density /= density.sum()
    square = (vectors @ acquisition.directions.T) ** 2
    inside = density @ np.exp(-b * 2.3 * square)
    outside = density @ np.exp(-b * (0.7 + 0.9 * square))
    exact = 0.5 * inside + 0.4 * outside + 0.1 * np.exp(-3 * b)
    model = StandardModel(acquisition)
    np.testing.assert_allclose(model.signals(truth), exact, atol=3e-6)  # the series' end
    fit = model.fit(exact, sigma=1e-5, n_draws=0)
    assert fit.neurite_diffusivity == pytest.approx(2.3e-3, rel=0.05)
    assert fit.neurite_fraction == pytest.approx(0.5, abs=0.02)


def multi_echo(truth, t2):
    """Published NODDI with a T2 of each compartment; acquisition and signals (V, M)."""
    b = np.tile(np.r_[np.zeros(4), np.repeat([0.7, 2.0], 25)], 2)
    te = np.repeat([60.0, 110.0], len(b) // 2)
    acquisition = Acquisition(b, directions(len(b)), small_delta=10, big_delta=30, te=te)
    vectors, weights = sphere()
    signals = []
    for ndi, odi, fwf, axis in zip(
        *(truth[k] for k in ("ndi", "odi", "fwf", "axis")), strict=True
    ):
        density = weights * np.exp((vectors @ axis) ** 2 / np.tan(0.5 * np.pi * odi))
        density /= density.sum()
        inside = density @ np.exp(-1.7 * b * (vectors @ acquisition.directions.T) ** 2)
        spread = np.einsum("q,qi,qj->ij", density, vectors, vectors)
        tensor = 1.7 * (1 - ndi) * np.eye(3) + 1.7 * ndi * spread
        g = acquisition.directions
        outside = np.exp(-b * np.einsum("mi,ij,mj->m", g, tensor, g))
        tissue = ndi * inside * np.exp(-te / t2[0]) + (1 - ndi) * outside * np.exp(-te / t2[1])
        signals.append(fwf * np.exp(-3 * b - te / 1000) + (1 - fwf) * tissue)
    return acquisition, np.array(signals)


def test_noddi_of_several_echo_times_tells_water_from_its_relaxation(tmp_path):
    """Free water relaxes last: with one echo time it counts twice."""
    truth = {"ndi": np.array([0.5, 0.7]), "odi": np.array([0.3, 0.1]),
             "fwf": np.array([0.15, 0.05]), "axis": directions(2, seed=4)}  # fmt: skip
    acquisition, signals = multi_echo(truth, (80.0, 55.0))
    model = MTENODDIModel(acquisition)
    known = truth | {"neurite_t2": 80.0, "extra_t2": 55.0}
    np.testing.assert_allclose(model.signals(known), signals, atol=2e-6)
    fit = model.fit(1000 * signals, sigma=0.01, n_draws=0)
    for name in ("ndi", "fwf"):
        assert np.allclose(getattr(fit, name), truth[name], atol=5e-3), name
    assert np.allclose(fit.neurite_t2, 80, rtol=0.02) and np.allclose(fit.extra_t2, 55, rtol=0.02)
    assert np.allclose(fit.S0, 1000, rtol=0.01)
    assert np.allclose(fit.predict(), 1000 * signals, atol=0.5)
    np.testing.assert_allclose(fit.S0_per_te[0], 1000 * signals[0, [0, 54]], rtol=1e-3)
    plain = NODDIModel(acquisition).fit(signals, sigma=1e-3, n_draws=0)
    assert plain.fwf[0] > 0.25
    fit.save(tmp_path / "fit.npz")
    np.testing.assert_allclose(load_fit(tmp_path / "fit.npz").predict(), fit.predict())


def test_discrepancies_of_a_voxel_do_not_depend_on_those_beside_it():
    """Interval of the soma size with one diffusion time, which includes more than noise."""
    acquisition = averages()
    b = acquisition.b
    clean = 0.4 * sticks(b, 2.0) + 0.35 * spheres(acquisition, 3.0, 12.0) + 0.25 * np.exp(-0.9 * b)
    data = clean + 0.003 * np.random.default_rng(1).standard_normal((3, len(b)))
    model = SANDIModel(acquisition, likelihood="gaussian")
    together, alone = (model.fit(x, sigma=0.003, n_draws=32) for x in (data, data[2]))
    # Rounding; other random numbers change it by some percent.
    np.testing.assert_allclose(alone.soma_diameter_low, together.soma_diameter_low[2], rtol=1e-6)


@pytest.mark.parametrize("all_b0", [True, False])
def test_diffusion_times_have_gains_of_their_own(all_b0, tmp_path):
    """SANDI by closed forms, 15 % more signal at the longer diffusion time, with b0 or without."""
    acquisition = averages((15.0, 40.0))
    late = acquisition.big_delta == 40
    acquisition = acquisition.subset(all_b0 | ~late | ~acquisition.b0_mask)
    b, late = acquisition.b, acquisition.big_delta == 40
    exact = 0.4 * sticks(b, 2.0) + 0.35 * spheres(acquisition, 3.0, 12.0) + 0.25 * np.exp(-0.9 * b)
    data = 100 * np.where(late, 1.15, 1.0) * exact
    one_gain = SANDIModel(acquisition).fit(data, sigma=0.2)
    assert one_gain.status == Status.MISFIT
    fit = SANDIModel(acquisition, amplitudes="timing").fit(data, sigma=0.2)
    assert fit.status == Status.CONVERGED
    np.testing.assert_allclose(fit.S0_per_label, [100, 115], rtol=5e-3)
    assert fit.soma_fraction_low < 0.35 < fit.soma_fraction_high
    assert fit.soma_diameter_likeliest == pytest.approx(12, rel=0.01)
    np.testing.assert_allclose(fit.predict(), data, atol=0.2)
    fit.save(tmp_path / "fit.npz")
    np.testing.assert_allclose(load_fit(tmp_path / "fit.npz").predict(), fit.predict())


def two_sites(b, big, small, inside, outside, fraction, time, n=24):
    """Powder average of two exchanging sites, by exponentials of rates in steps of pulses."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    square = (b / (big - small / 3))[:, None] * np.ones(12)
    flow = np.array([[fraction - 1, fraction], [1 - fraction, -fraction]]) / time
    decay = np.zeros((*square.shape, 2, 2))
    decay[..., 0, 0], decay[..., 1, 1] = (
        square * inside * (0.5 * nodes + 0.5) ** 2,
        square * outside,
    )
    rise = [expm(small / n * (flow - ((k + 0.5) / n) ** 2 * decay)) for k in range(n)]
    m = np.array([[fraction], [1 - fraction]])
    for step in [*rise, expm((big - small) * (flow - decay)), *rise[::-1]]:
        m = step @ m
    return 0.5 * m.sum(axis=(2, 3)) @ weights


def test_exchange_with_a_gain_of_each_diffusion_time():
    """Noise is unknown: it is that of b0 of one gain."""
    b, times, truth = np.r_[0, 0, 0, 0, B[2:], 2.0], (12.0, 20.0, 30.0, 45.0), 12.0
    exact = [gain * two_sites(b, big, 6.0, 2.2, 0.8, 0.45, truth)
             for gain, big in zip((1.0, 0.9, 1.1, 1.0), times, strict=True)]  # fmt: skip
    rng = np.random.default_rng(0)
    data = 100 * (np.concatenate(exact) + 4e-3 * rng.normal(size=(8, 4 * len(b))))
    zeros = np.zeros((4 * len(b), 3))
    acquisition = Acquisition(np.tile(b, 4), zeros, 6.0, np.repeat(times, len(b)), isotropic=True)
    model = NEXIModel(acquisition, likelihood="gaussian")
    with pytest.warns(UserWarning, match='b0 .* differ by about 8.* % .* amplitudes="timing"'):
        one_gain = model.fit(data, sigma=0.4, n_draws=0)
    assert (one_gain.status == Status.MISFIT).all() and np.median(one_gain.exchange_time) > 18
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "b0 of different")
        model = NEXIModel(acquisition, amplitudes="timing", likelihood="gaussian")
        fit = model.fit(data)
    # Of 12 degrees of freedom in each of 8 voxels: 7 %; twice that.
    assert np.median(fit.sigma) == pytest.approx(0.4, rel=0.14)
    assert (fit.status == Status.CONVERGED).all()
    np.testing.assert_allclose(fit.S0_per_label[:, 1] / fit.S0_per_label[:, 0], 0.9, rtol=0.01)
    covered = (fit.exchange_time_low < truth) & (truth < fit.exchange_time_high)
    assert covered.mean() >= 0.75  # 95 % of 8 minus two standard errors, and one voxel
    assert np.median(fit.exchange_time) == pytest.approx(truth, rel=0.2)


def exchanging_somas(acquisition, time, diameter, neurites, somas, along, extra):
    """Sticks, and spheres that exchange water with the space around them at constant rates."""
    water, rates = 1 - neurites - somas, -np.log(spheres(acquisition, 3.0, diameter))
    leaving, entering = np.array([water, somas]) / (water + somas) / time
    total = neurites * sticks(acquisition.b, along)
    for m, big in enumerate(acquisition.big_delta):
        flow = big * np.array([[-leaving, entering], [leaving, -entering]])
        decay = np.diag([rates[m], acquisition.b[m] * extra])
        total[m] += (expm(flow - decay) @ [somas, water]).sum()
    return total


def somas(acquisition, time, n, sd):
    """Signals of n voxels, and their diameters."""
    rng = np.random.default_rng(3)
    tissue = np.array([rng.uniform([10, 0.25, 0.3, 1.6, 0.7], [18, 0.4, 0.4, 2.6, 1.4])
                       for _ in range(n)])  # fmt: skip
    exact = np.array([exchanging_somas(acquisition, time, *row) for row in tissue])
    return exact + sd * rng.normal(size=exact.shape), tissue[:, 0]


@pytest.mark.parametrize("exchange_time", [1e6, 10.0])
def test_one_size_of_somas_is_tested_at_several_diffusion_times(exchange_time, recwarn):
    acquisition = averages((14.0, 22.0, 35.0), small_delta=5.0)
    data, _ = somas(acquisition, exchange_time, 20, 4e-3)
    model = SANDIModel(acquisition, likelihood="gaussian")
    fit = model.fit(data, sigma=4e-3, n_draws=0)
    warned = [w for w in recwarn if "soma_diameter_growth is fixed at 1" in str(w.message)]
    assert len(warned) == (exchange_time < 1e6)
    if warned:
        assert "PackedCellsModel" in str(warned[0].message)
    # Of impermeable spheres the test rejects 0.1 %.
    rejected = (fit.status == Status.MISFIT).mean()
    assert rejected == (0 if exchange_time == 1e6 else 1)


def test_sizes_of_somas_at_one_diffusion_time_include_those_with_exchange():
    acquisition = averages((30.0,), small_delta=5.0)
    with pytest.warns(UserWarning, match="SANDI with one diffusion time .* of 30 ms. cannot"):
        model = SANDIModel(acquisition, likelihood="gaussian")
    data, diameter = somas(acquisition, 10.0, 20, 2e-3)
    fit = model.fit(data, sigma=2e-3)
    covered = (fit.soma_diameter_low < diameter) & (diameter < fit.soma_diameter_high)
    # 95 % of 20 minus two standard errors; 70 % without the discrepancy.
    assert covered.mean() >= 0.85
    assert (fit.soma_diameter_high > 2 * fit.soma_diameter_low).all()
    learned = LearnedModel(model, n_train=500, max_epochs=2)
    wide = learned.fit(data, sigma=2e-2).soma_diameter_std
    model.definition = replace(model.definition, discrepancy={})
    narrow = learned.fit(data, sigma=2e-2).soma_diameter_std
    # 25 % of at least 8 um, in quadrature; the samples are few.
    assert (np.sqrt(wide**2 - narrow**2) > 1).all()


@pytest.mark.filterwarnings("ignore:The acquisition hardly determines")
def test_gamma_cylinders_are_cylinders_of_many_sizes():
    across = np.tile([1.0, 0, 0], (6, 1))
    acquisition = Acquisition([0, 1, 2, 4, 6, 9.0], across, small_delta=15, big_delta=30)
    arguments = {"diffusivity": 1.7, "diameter": "diameter", "spread": "spread"}
    parts = [Compartment(GAMMA_CYLINDERS, "fibres", arguments)]
    parameters = [Parameter("diameter", 0.5, 10, "um"), Parameter("spread", 0.1, 0.8)]
    model = compose(acquisition, parts, parameters)
    one = [Compartment("cylinder", "fibres", {"diffusivity": 1.7, "diameter": "diameter"})]
    single = compose(acquisition, one, [Parameter("diameter", 0.01, 60, "um")])
    probability = (np.arange(200) + 0.5) / 200
    for mean, spread in ((3.0, 0.4), (5.0, 0.6)):
        shape = 1 / spread**2
        # Volumes go with the square of the diameter.
        chance = gamma.ppf(probability, shape + 2, scale=mean / shape)
        exact = single.signals({"diameter": chance, "axis": [0.0, 0.0, 1.0]}).mean(axis=0)
        found = model.signals({"diameter": mean, "spread": spread, "axis": [0.0, 0.0, 1.0]})
        np.testing.assert_allclose(found, exact, atol=2e-3)  # nine sizes for all
    # As Poisson's distribution, in um: the variance is the mean.
    arguments["spread"] = lambda values: values["diameter"] ** -0.5
    parts = [Compartment(GAMMA_CYLINDERS, "fibres", arguments)]
    model, chance = compose(acquisition, parts, parameters[:1]), gamma.ppf(probability, 6 + 2)
    exact = single.signals({"diameter": chance, "axis": [0.0, 0.0, 1.0]}).mean(axis=0)
    found = model.signals({"diameter": 6.0, "axis": [0.0, 0.0, 1.0]})
    np.testing.assert_allclose(found, exact, atol=2e-3)


def test_crossings_are_as_many_as_the_evidence_says():
    b = np.r_[np.zeros(6), np.repeat([1.0, 3.0], 45)]
    acquisition = Acquisition(b, directions(len(b)), small_delta=10, big_delta=30)
    model = NODDIModel(acquisition, dtype="float32")
    axes = np.linalg.qr(np.random.default_rng(3).standard_normal((10, 3, 3)))[0]
    fibre = {"ndi": 0.6, "odi": 0.05, "fwf": 0.0}
    data = 0
    for k, share in enumerate((0.6, 0.4)):
        data = data + share * model.signals({**fibre, "axis": axes[:, k]})
    fit = model.fit(magnitudes(data, 1 / 40), sigma=1 / 40, crossings=True, n_draws=64)
    assert (fit.n_fibres == 2).mean() >= 0.8
    two = fit[fit.n_fibres == 2]
    assert np.allclose(two.fibre_fractions[:, 0], 0.6, atol=0.12)
    assert (two.fibre_fractions_low[:, 0] < two.fibre_fractions[:, 0]).all()
    assert (two.axes_cone[:, :2] > 0).all() and (two.axes_cone[:, :2] < 20).all()
    with pytest.raises(ValueError, match="crossings=True estimates the fibre populations"):
        model.fit(data, crossings=True, peaks=object())


def test_real_parts_of_isotropic_tissue_rarely_have_fibres():
    b = np.r_[np.zeros(6), np.repeat([1.0, 3.0], 135)]
    acquisition = Acquisition(b, directions(len(b)), small_delta=10, big_delta=30)
    model = NODDIModel(acquisition, dtype="float32", likelihood="gaussian")
    tissue = {"ndi": np.full(40, 0.8), "odi": 1.0, "fwf": 0.0, "axis": [0, 0, 1]}
    data = model.signals(tissue)
    data = data + 0.25 * np.random.default_rng(1).standard_normal(data.shape)
    fit = model.fit(data, sigma=0.25, crossings=True, n_draws=0)
    assert (fit.n_fibres == 0).mean() > 0.8  # the Rician evidence finds fibres in a third of them


def test_single_b0_that_differ_like_echo_times_are_named():
    """One b0 for each diffusion time, of echo times that were not given."""
    b, big = np.tile([0.0, 1.0, 3.0], 3), np.repeat([15.0, 40.0, 80.0], 3)
    acquisition = Acquisition(b, np.tile([1.0, 0, 0], (9, 1)), small_delta=10, big_delta=big)
    data = np.exp(-big / 60 - b)[None]
    with pytest.warns(UserWarning, match="b0 of different pulse timings .* give te"):
        image_of(data, None, 0.01, acquisition)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        image_of(data, None, 0.01, replace(acquisition, te=big + 10))
