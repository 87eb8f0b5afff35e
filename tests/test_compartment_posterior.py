"""Draws from the posterior of compartment models, against what it is by other means."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compartment_cases import directions, magnitudes, strong, two_shells
from dipy.core.gradients import gradient_table
from scipy.stats import norm, rice

from dipy_spinverse import Acquisition, ActiveAxModel, IVIMModel, NODDIModel, ZCDModel
from dipy_spinverse.compartments import Compartment, Parameter, VERDICTModel, compose
from dipy_spinverse.compartments.identifiability import resolution_limits
from dipy_spinverse.compartments.posterior import sample
from dipy_spinverse.compartments.posterior_draws import posterior_draws
from dipy_spinverse.voxels.status import Status

N_DRAWS = 2000


def table(b):
    return gradient_table(b, bvecs=directions(len(b)), b0_threshold=0)


def two_balls(second, likelihood="rician", prior_power=0.0):
    """Two isotropic pools, the first with a diffusivity to find."""
    parameters = [Parameter("slow", 0.1, 2.0, "mm^2/s", prior_power=prior_power)]
    if isinstance(second, str):
        parameters.append(Parameter(second, 0.1, 2.0, "mm^2/s"))
    parts = [
        Compartment("ball", "first", {"diffusivity": "slow"}),
        Compartment("ball", "second", {"diffusivity": second}),
    ]
    return compose(table(np.r_[np.zeros(4), 100:3001:300]), parts, parameters,
                   likelihood=likelihood)  # fmt: skip


@pytest.mark.parametrize(
    ("likelihood", "prior_power"), [("rician", 0), ("gaussian", 0), ("gaussian", 2)]
)
def test_draws_are_those_of_a_dense_grid(likelihood, prior_power):
    model, sigma = two_balls(3.0, likelihood, prior_power), 0.05
    clean = model.signals({"slow": 0.6, "first": 0.4})
    noise = np.random.default_rng(4).standard_normal((2, len(clean))) * sigma
    data = np.hypot(clean + noise[0], noise[1]) if likelihood == "rician" else clean + noise[0]
    slow, first, S0 = np.meshgrid(
        np.linspace(0.1, 2.0, 64), np.linspace(0, 1, 61), np.linspace(0.75, 1.3, 60),
        indexing="ij",
    )  # fmt: skip
    b = model.acquisition.b[:, None, None, None]
    signals = S0 * (first * np.exp(-b * slow) + (1 - first) * np.exp(-3 * b))
    y = data[:, None, None, None]
    if likelihood == "rician":
        log_chance = rice.logpdf(y, signals / sigma, scale=sigma).sum(axis=0)
    else:
        log_chance = norm.logpdf(y, signals, sigma).sum(axis=0)
    share = np.exp(log_chance - log_chance.max()) * (2.0 - slow) ** prior_power
    share /= share.sum()
    draws = posterior_draws(model.fit(data, sigma=sigma), data, n_draws=N_DRAWS)
    for name, values, unit in (("slow", slow, 1e3), ("first", first, 1), ("S0", S0, 1)):
        mean = (share * values).sum()
        sd = np.sqrt((share * (values - mean) ** 2).sum())
        drawn = unit * draws[name]
        # Four standard errors of 500 effective draws: copies and correlation cost the rest.
        assert abs(drawn.mean() - mean) < 0.18 * sd and abs(drawn.std() / sd - 1) < 0.15
        for value in np.quantile(drawn, [0.025, 0.25, 0.75, 0.975]):
            expected = (drawn < value).mean()
            error = np.sqrt(expected * (1 - expected) / 500)
            step = 2 * (share * (np.abs(values - value) < np.ptp(values) / 120)).sum()
            assert abs(share[values < value].sum() - expected) < 4 * error + step


def test_draws_of_real_parts_have_the_gaussian_likelihood():
    data = two_balls(3.0).signals({"slow": 0.6, "first": 0.4})
    data = data + 0.05 * np.random.default_rng(4).standard_normal(len(data))
    data[-1] = -0.01
    models = two_balls(3.0), two_balls(3.0, "gaussian")
    draws = [posterior_draws(model.fit(data, sigma=0.05), data) for model in models]
    np.testing.assert_allclose(draws[0]["slow"], draws[1]["slow"])


@pytest.mark.parametrize("n_b0", [2, 30])
def test_intervals_of_rejected_models_have_the_noise_of_the_residual(n_b0):
    """Noise stated four times too small is MISFIT; Birge's ratio then widens intervals by four."""
    b = np.r_[np.zeros(n_b0), np.repeat([0.5, 1.0, 2.0, 3.0], 15)]
    model = NODDIModel(Acquisition(b, directions(len(b)), small_delta=10, big_delta=30))
    truth = {"ndi": 0.6, "odi": 0.2, "fwf": 0.1, "axis": directions(20)}
    data = magnitudes(model.signals(truth), 0.02)
    right, stated = (model.fit(data, sigma=sigma) for sigma in (0.02, 0.005))
    assert (right.status == Status.CONVERGED).all() and (stated.status == Status.MISFIT).all()
    ratio = (stated.ndi_high - stated.ndi_low) / (right.ndi_high - right.ndi_low)
    # chi-square over about 60 degrees of freedom varies by 18 %, widths by half of it.
    assert np.median(ratio) == pytest.approx(1, abs=0.1)


def test_modes_that_the_fit_did_not_find_are_drawn():
    model = two_balls("fast")  # the same signals with the two pools exchanged
    data = model.signals({"slow": 0.3, "fast": 1.6, "first": 0.3})
    fit = model.fit(magnitudes(data, 0.005), sigma=0.005)
    draws = posterior_draws(fit, magnitudes(data, 0.005), n_draws=N_DRAWS)
    exchanged = draws["slow"] > draws["fast"]
    # Half in truth; the share is drawn with a population of 128: three standard errors.
    assert 0.37 < exchanged.mean() < 0.63
    assert np.allclose(draws["first"][exchanged].mean(), 0.7, atol=0.1)
    assert np.allclose(draws["first"][~exchanged].mean(), 0.3, atol=0.1)


def test_diameters_below_the_resolution_are_all_alike():
    truth = {"axon_diameter": 0.4, "axon_share": 0.6, "free_water_fraction": 0.1,
             "dot_fraction": 0.05, "axis": [0, 0, 1]}  # fmt: skip
    model = ActiveAxModel(strong())
    data = magnitudes(model.signals(truth), 0.02)
    draws = posterior_draws(model.fit(data, sigma=0.02), data, n_draws=N_DRAWS)["axon_diameter"]
    small = draws[draws < 2.0]
    # Uniform from the bound of 0.2 um: a mean of 1.1 um, to 4 standard errors of 200 draws.
    assert len(small) > 200 and abs(small.mean() - 1.1) < 0.15


def test_construction_says_which_diameters_look_alike_and_so_do_intervals(caplog):
    with caplog.at_level("INFO", "dipy_spinverse"):
        model = ActiveAxModel(strong())
    assert "values of axon_diameter cannot be distinguished" in caplog.text
    least = resolution_limits(model.definition, model.acquisition)["axon_diameter"]
    truth = {"axon_share": 0.6, "free_water_fraction": 0.05, "dot_fraction": 0.0,
             "axis": np.tile([0, 0, 1.0], (20, 1))}  # fmt: skip
    lows = []
    for diameter in (0.4 * least, 1.5 * least):
        clean = model.signals({**truth, "axon_diameter": np.full(20, diameter)})
        fit = model.fit(magnitudes(clean, 1 / 30), sigma=1 / 30)
        lows.append((fit.axon_diameter_low < 0.25 * least).mean())
    # Below, intervals reach to small diameters nearly always; well above, nearly never.
    assert lows[0] > 0.7 and lows[1] < 0.3


def test_intervals_of_a_distribution_of_diameters_hold_its_mean_and_those_of_one_do_not():
    several = ActiveAxModel(strong(), diameters="gamma")
    n = 16
    truth = {"axon_diameter": np.linspace(4, 9, n), "diameter_spread": np.full(n, 0.5),
             "axon_share": np.full(n, 0.7), "free_water_fraction": 0.1, "dot_fraction": 0.0,
             "axis": [0, 0, 1]}  # fmt: skip
    data = magnitudes(several.signals(truth), 0.02)
    held = {}
    for word in ("one", "gamma"):
        fit = ActiveAxModel(strong(), diameters=word).fit(data, sigma=0.02, n_draws=128)
        inside = fit.axon_diameter_low <= truth["axon_diameter"]
        held[word] = (inside & (truth["axon_diameter"] <= fit.axon_diameter_high)).mean()
    # 15 of 16 on average; one diameter is weighted with volumes, half as large again here.
    assert held["gamma"] > 0.8 and held["one"] < 0.5


@pytest.mark.slow
def test_searches_from_several_places_explain_as_well_as_differential_evolution():
    data = magnitudes(ZCDModel(strong()).signals(ZCDModel(strong()).draw(8, seed=3)), 0.02)
    found = [
        ZCDModel(strong(), solver=solver).fit(data, sigma=0.02, n_draws=0).residual_rms
        for solver in ("variable-projection", "mix")
    ]
    # A hundredth of the noise is less than a tenth of what a unit of the likelihood is.
    assert (found[0] < found[1] + 0.01 * 0.02).all()


def test_the_median_lies_inside_of_the_interval_and_no_draw_outside_of_the_bounds():
    model = IVIMModel(table(np.r_[np.zeros(3), 10:100:20, 200:1000:200]))
    truth = model.draw(50, seed=2)
    fit = model.fit(magnitudes(model.signals(truth), 0.02), sigma=0.02, n_draws=64)
    for name, bounds in (("D", (5e-5, 4e-3)), ("D_star", (4e-3, 0.1))):
        low, high = getattr(fit, name + "_low"), getattr(fit, name + "_high")
        assert (bounds[0] <= low).all() and (high <= bounds[1]).all()
        middle = getattr(fit, name)
        assert (low < middle).all() and (middle < high).all()
    assert (fit.effective_draws > 20).all() and (fit.effective_draws <= 64).all()


def test_the_draws_of_a_voxel_do_not_depend_on_those_beside_it():
    model = NODDIModel(two_shells())
    data = magnitudes(model.signals(model.draw(4, seed=1)), 0.03)
    together = model.fit(data, sigma=0.03, n_draws=32)
    alone = model.fit(data[2], sigma=0.03, n_draws=32)
    assert np.allclose(alone.ndi, together.ndi[2], rtol=1e-9)  # rounding


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "sigma"),
    [
        (NODDIModel(two_shells(), dtype="float32"), 1 / 30),
        (ActiveAxModel(strong()), 1 / 50),
        (ZCDModel(strong()), 1 / 50),
    ],
)
def test_intervals_hold_19_of_20_truths(model, sigma):
    truth = model.draw(800, seed=8)
    fit = model.fit(magnitudes(model.signals(truth), sigma), sigma=sigma)
    for name, values in model.maps(truth).items():
        if name == "S0":
            continue
        low, high = getattr(fit, name + "_low"), getattr(fit, name + "_high")
        # 0.95 to three standard errors of 800 voxels.
        assert abs(((low <= values) & (values <= high)).mean() - 0.95) < 0.023


def test_one_b0_for_each_echo_time_does_not_make_intervals_too_narrow():
    """S0 of an echo time is as noisy as its b0: believed, they hold 89 % here."""
    b = np.ravel([[0.0, b, b, b] for b in (0.1, 0.5, 1.5, 2.0, 3.0)])
    te, small = np.repeat([50.0, 65.0, 90.0, 71.0, 80.0], 4), np.repeat([4.0, 11, 24, 14, 19], 4)
    acquisition = Acquisition(b, directions(len(b)), small, small + 20, te=te)
    model, held = VERDICTModel(acquisition), []
    truth = model.draw(300, seed=6)
    relaxed = np.exp(-te / 80)
    fit = model.fit(magnitudes(relaxed * model.signals(truth), 0.004), sigma=0.004)
    for name, value in model.maps(truth).items():
        if name != "S0":
            held.append((getattr(fit, f"{name}_low") <= value)
                        & (value <= getattr(fit, f"{name}_high")))  # fmt: skip
    assert np.mean(held) > 0.93  # 96 % with a standard error of 1 %


def test_intervals_of_three_narrow_fibres_reach_down_to_their_dispersion():
    """All dispersions are equally likely a priori, and narrow ones are its corner."""
    model = NODDIModel(two_shells(), dtype="float32")
    turned = np.linalg.qr(np.random.default_rng(3).standard_normal((16, 3, 3)))[0]
    least = {}
    for angle in (50, 90):
        cosine = np.full((3, 3), np.cos(np.radians(angle)))
        np.fill_diagonal(cosine, 1)
        axes = np.linalg.cholesky(cosine) @ turned
        clean = np.mean([model.signals({"ndi": 0.6, "odi": 0.05, "fwf": 0.05, "axis": axes[:, k]})
                         for k in range(3)], axis=0)  # fmt: skip
        peaks = SimpleNamespace(peak_dirs=axes)
        fit = model.fit(magnitudes(clean, 1 / 40), sigma=1 / 40, peaks=peaks, n_draws=64)
        least[angle] = fit.odi_low
        assert (fit.odi_low <= fit.odi).all() and (fit.odi_low >= 0.01 - 1e-6).all()
    # Axes that are too near: nothing is said of the least.
    assert (least[50] < 0.0101).mean() > 0.8
    assert (least[90] <= 0.05).mean() > 0.85 and (least[90] > 0.0101).any()


def test_orientation_tensors_of_all_dispersions_are_equally_likely_a_priori():
    """Free water says nothing of them: (1 - odi)^2, the volume element of orientation tensors."""
    model = NODDIModel(two_shells())
    water = {"ndi": 0.5, "odi": 0.5, "fwf": 1.0, "axis": np.array([0.0, 0, 1])}
    data = magnitudes(np.tile(model.signals(water), (8, 1)), 0.03)
    fit = model.fit(data, sigma=0.03, n_draws=250)
    # Beta(1, 3) has a mean of 1/4, and all values equally likely would have 1/2; a few percent of
    # fibres that noise allows for have any.
    assert np.mean(fit.odi) == pytest.approx(1 - 0.5 ** (1 / 3), abs=0.08)
    assert np.mean(fit.odi_std) == pytest.approx(np.sqrt(3 / 80), abs=0.05)


def test_voxels_of_few_effective_samples_are_drawn_again(monkeypatch):
    """The second of two equal voxels, whose importance samples are in the wrong place."""
    model, sigma, n = two_balls(3.0, "gaussian"), 0.05, 400
    data = np.tile(model.signals({"slow": 0.6, "first": 0.4}), (2, 1))
    weighted = sample.weighted_draws

    def spoilt(*arguments):
        draws, effective = weighted(*arguments)
        draws.points[:, 1] = 3.0
        effective[:] = n * torch.tensor([0.21, 0.19])
        return draws, effective

    right = model.fit(data, sigma=sigma, n_draws=n)
    monkeypatch.setattr(sample, "weighted_draws", spoilt)
    again = model.fit(data, sigma=sigma, n_draws=n)
    for name in ("slow", "slow_std", "slow_low", "slow_high"):
        assert getattr(again, name)[0] == getattr(right, name)[0]
        expected = pytest.approx(getattr(right, name)[1], abs=0.3 * right.slow_std[1])
        assert getattr(again, name)[1] == expected
