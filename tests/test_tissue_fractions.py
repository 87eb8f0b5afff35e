"""Tissue fractions: signals of sequences, and what images say of voxels that mix tissues."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.special import log_ndtr
from scipy.stats import truncnorm

from dipy_spinverse import Status, TissueFractionModel, load_fit
from dipy_spinverse.tissue_fractions import (
    MPRAGE,
    DoubleInversionPreparation,
    InversionPreparation,
    SignalEquations,
    SpoiledGradientEcho,
    T2Preparation,
    Tissue,
    TurboSpinEcho,
    constants_of,
    description_of,
    sequence_from,
    simplex_posterior,
    stack_images,
    tissues_at,
)
from dipy_spinverse.tissue_fractions.markov_random_field import (
    NeighbourGraph,
    estimate_smoothness,
    markov_field_samples,
)
from dipy_spinverse.tissue_fractions.partial_volume_mixture import PartialVolumeMixture
from dipy_spinverse.tissue_fractions.separability import most_helpful
from dipy_spinverse.tissue_fractions.shared_parameters import (
    UNKNOWNS,
    FieldMaps,
    NuisanceErrors,
    SharedParameterEstimator,
    SharedParameters,
    polynomials,
)
from dipy_spinverse.tissue_fractions.signal_table import SignalSimulation, axes_of
from dipy_spinverse.tissue_fractions.simplex_least_squares import faces_of, simplex_least_squares
from dipy_spinverse.tissue_fractions.simplex_posterior import fraction_samples

ONE = torch.ones((), dtype=torch.float64)
TISSUES = tissues_at(3)


def shot(preparation):
    return SpoiledGradientEcho(0.0056, 0.0025, 5, preparation, n_pulses=64, centre=32)


SEQUENCES = (
    *(shot(InversionPreparation(ti)) for ti in (0.1, 0.5, 1.0, 2.7)),
    *(shot(T2Preparation(time)) for time in (0.05, 0.1, 0.3)),
    shot(DoubleInversionPreparation(3.0, 0.4)),
    *(SpoiledGradientEcho(0.02, 0.004, angle) for angle in (3, 20)),
    TurboSpinEcho(5.0, 0.01, 12, 0.09, refocusing_angle=150),
    MPRAGE(tr=2.3, ti=0.9, te=0.003, flip_angle=9, echo_spacing=0.007, n_pulses=176),
)


def signals(sequence, tissues=TISSUES, b1=1.0, b0=0.0):
    """Signals (T,)."""
    return SignalEquations().signals([sequence], constants_of(tissues), b1 * ONE, b0 * ONE)[:, 0]


def mixtures(n, seed=0):
    """Fractions of CSF, grey, white matter and background, alike over the simplex."""
    return np.random.default_rng(seed).dirichlet(np.ones(4), n)


def named(fractions):
    return {name: fractions[..., k] for k, name in enumerate(("csf", "gm", "wm"))}


def noisy(clean, sigma, seed=1):
    noise = sigma * np.random.default_rng(seed).standard_normal((2, *clean.shape))
    return np.hypot(clean + noise[0], noise[1])


def bloch(times, tissue):
    """Longitudinal magnetisation after a list of waits (s) and ideal tips (degrees), spoiled."""
    m = 1.0
    for kind, value in times:
        if kind == "tip":
            m *= math.cos(math.radians(value))
        else:  # small explicit steps of the Bloch equation
            n = 4000
            for _ in range(n):
                m += value / n * (1 - m) / tissue.t1_s
    return m


def test_steady_gradient_echoes_are_those_of_ernst():
    sequence, tissue = SpoiledGradientEcho(0.02, 0.005, 25), TISSUES[1]
    e1, angle = math.exp(-0.02 / tissue.t1_s), math.radians(25)
    ernst = math.sin(angle) * (1 - e1) / (1 - math.cos(angle) * e1)
    expected = tissue.proton_density * ernst * math.exp(-0.005 / tissue.t2_star_s)
    assert float(signals(sequence)[1]) == pytest.approx(expected, rel=1e-12)


def test_a_long_train_without_preparation_comes_to_the_steady_state():
    train = SpoiledGradientEcho(0.02, 0.005, 25, n_pulses=2001, centre=2000)
    np.testing.assert_allclose(
        signals(train), signals(replace(train, n_pulses=1, centre=0)), rtol=1e-9
    )


@pytest.mark.parametrize(
    "preparation", [InversionPreparation(0.7), DoubleInversionPreparation(1.5, 0.4)]
)
def test_prepared_shots_follow_the_bloch_equation(preparation):
    sequence, tissue = SpoiledGradientEcho(0.01, 0.004, 12, preparation, 3, 2), TISSUES[2]
    if isinstance(preparation, InversionPreparation):
        times = [("tip", 180), ("wait", 0.7)]
    else:
        times = [("tip", 180), ("wait", 1.1), ("tip", 180), ("wait", 0.4)]
    m = bloch(times + [("tip", 12), ("wait", 0.01)] * 2, tissue)
    expected = m * math.sin(math.radians(12)) * math.exp(-0.004 / tissue.t2_star_s)
    # Explicit steps of 1/4000 are right to about as much.
    found = float(signals(sequence)[2]) / tissue.proton_density
    assert found == pytest.approx(expected, abs=2e-4)


def test_t2_preparation_leaves_what_t2_leaves():
    """With ideal pulses, and to a little recovery in it, exp(-t / T2)."""
    before = SpoiledGradientEcho(0.01, 0.004, 12, n_pulses=2)
    after = replace(before, preparation=T2Preparation(0.08, adiabatic=True))
    ratio = (signals(after) / signals(before)).numpy()
    np.testing.assert_allclose(ratio, [math.exp(-0.08 / t.t2_s) for t in TISSUES], rtol=1e-12)
    hard = replace(before, preparation=T2Preparation(0.08))
    np.testing.assert_allclose(signals(hard), signals(after), rtol=1e-12)
    assert (signals(hard, b1=0.7) != signals(hard)).all()


def test_mprage_repeats_itself():
    """Its steady state is that of many shots, one after the other, from rest."""
    sequence = MPRAGE(2.0, 0.9, 0.003, 9, 0.008, 100, adiabatic=False)
    tissue, m = TISSUES[1], 1.0

    def recovered(m, time):
        return 1 + (m - 1) * math.exp(-time / tissue.t1_s)

    for _ in range(20):
        m = recovered(-m, 0.9 - 50 * 0.008)
        for n in range(100):
            if n == 50:
                centre = m
            m = recovered(m * math.cos(math.radians(9)), 0.008)
        m = recovered(m, 2.0 - (0.9 - 50 * 0.008) - 100 * 0.008)
    expected = centre * math.sin(math.radians(9)) * math.exp(-0.003 / tissue.t2_star_s)
    found = float(signals(sequence)[1]) / tissue.proton_density
    assert found == pytest.approx(expected, rel=1e-9)


def test_ideal_spin_echoes_decay_by_t2_and_do_not_see_t2_prime():
    train = TurboSpinEcho(math.inf, 0.01, 10, 0.07)
    expected = [t.proton_density * math.exp(-0.07 / t.t2_s) for t in TISSUES]
    np.testing.assert_allclose(signals(train), expected, rtol=1e-12)


def test_refocusing_pulses_that_are_not_ideal_make_the_first_echo_smaller():
    """sin^2(angle / 2) of it, and stimulated echoes then make the second larger than the first
    over again."""
    still = [Tissue("slow", 1.0, 1e6, 1e6, 1e6, 1e-3)]
    first, second = (
        float(signals(TurboSpinEcho(math.inf, 0.01, 4, te, refocusing_angle=120), still)[0])
        for te in (0.01, 0.02)
    )
    assert first == pytest.approx(math.sin(math.radians(60)) ** 2, rel=1e-6)
    # Hennig: sin^4 of half of the angle, and half of the squared sine of the angle.
    expected = math.sin(math.radians(60)) ** 4 + 0.5 * math.sin(math.radians(120)) ** 2
    assert second == pytest.approx(expected, rel=1e-6)


def test_off_resonance_tips_less_through_long_pulses_only():
    sequence = SpoiledGradientEcho(math.inf, 0.004, 90)
    np.testing.assert_array_equal(signals(sequence, b0=300.0), signals(sequence))
    long = replace(sequence, pulse_duration=0.001)
    np.testing.assert_allclose(signals(long), signals(sequence), rtol=1e-9)
    # 300 Hz turn by 0.6 pi in a ms, while the pulse turns by 0.5 pi.
    off, pulse = 0.6 * math.pi, 0.5 * math.pi
    turn = math.hypot(off, pulse)
    cosine = (off**2 + pulse**2 * math.cos(turn)) / turn**2
    expected = math.sqrt(1 - cosine**2) * signals(long)
    np.testing.assert_allclose(signals(long, b0=300.0), expected, rtol=1e-9)
    # In the steady state of short repetitions the rest of the magnetisation counts, too.
    e1 = np.array([math.exp(-0.5 / tissue.t1_s) if tissue.t1_s else 0.0 for tissue in TISSUES])
    steady = signals(replace(long, tr=0.5), b0=300.0)
    np.testing.assert_allclose(steady, expected * (1 - e1) / (1 - cosine * e1), rtol=1e-9)


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda s: type(s).__name__)
def test_slopes_of_signals_are_those_of_differences(sequence):
    sequence = replace(sequence, pulse_duration=0.0005)
    constants = constants_of(TISSUES).requires_grad_()
    fields = torch.tensor([0.93, 40.0], dtype=torch.float64, requires_grad=True)

    def of(constants, fields):
        return SignalEquations().signals([sequence], constants, *fields)

    assert torch.autograd.gradcheck(of, (constants, fields), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "parameters", "fixed"),
    [
        (SpoiledGradientEcho, {"tr": 0.02, "te": 0.004, "flip_angle": 20.0}, {}),
        (MPRAGE, {"tr": 2.3, "ti": 0.9, "te": 0.003, "flip_angle": 9.0, "echo_spacing": 0.007},
         {"n_pulses": 64}),
        (TurboSpinEcho, {"tr": 4.0, "echo_spacing": 0.01, "refocusing_angle": 150.0},
         {"echo_train_length": 8, "effective_te": 0.05}),
    ],
)  # fmt: skip
def test_slopes_by_parameters_of_sequences_are_those_of_differences(kind, parameters, fixed):
    def of(values):
        return signals(kind(**dict(zip(parameters, values, strict=True)), **fixed)).sum()

    values = torch.tensor([*parameters.values()], dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(of(values), values)
    for k in range(len(values)):
        step = torch.zeros_like(values)
        step[k] = 1e-6 * values[k].detach()
        with torch.no_grad():
            difference = (of(values + step) - of(values - step)) / (2 * step[k])
        assert float(slopes[k]) == pytest.approx(float(difference), rel=1e-4, abs=1e-8)


def test_an_echo_time_that_is_rounded_has_no_slope():
    te = torch.tensor(0.05, requires_grad=True)
    with pytest.raises(ValueError, match="effective_te is a tensor"):
        signals(TurboSpinEcho(4.0, 0.01, 8, te))


def test_a_table_of_b1_is_the_simulator():
    b1 = np.linspace(0.6, 1.4, 31)
    simulation = SignalSimulation(SignalEquations(), SEQUENCES, axes_of(b1, 0 * b1, 0.0))
    table = simulation.table(constants_of(TISSUES))
    fields = torch.tensor(b1), torch.zeros(31, dtype=torch.float64)
    exact = SignalEquations().signals(SEQUENCES, constants_of(TISSUES), *fields)
    # Of signals up to 1: far below the noise; the last of twelve echoes of CSF is the worst.
    assert (table.pure_signals(b1, 0 * b1) - exact).abs().max() < 3e-5
    step = 1e-5
    after, before = (table.pure_signals(b1 + s, 0 * b1) for s in (step, -step))
    slopes = (after - before) / (2 * step)
    np.testing.assert_allclose(table.slopes(b1, 0 * b1), slopes, atol=1e-7)


def test_least_squares_on_the_simplex_are_the_best_of_many():
    rng = np.random.default_rng(0)
    columns, data = rng.random((20, 3, 5)), rng.random((20, 5))
    gram, projection = columns @ columns.mT, (columns @ data[..., None])[..., 0]
    tried = rng.dirichlet(np.full(4, 0.4), 20_000)[:, :3]
    for full, some in ((False, tried), (True, tried / tried.sum(axis=1, keepdims=True))):
        found = simplex_least_squares(
            torch.tensor(gram), torch.tensor(projection), full=full
        ).numpy()
        assert (found >= 0).all() and (found.sum(axis=1) <= 1 + 1e-9).all()
        squares = ((np.einsum("vt,vtc->vc", found, columns) - data) ** 2).sum(axis=1)
        others = ((np.einsum("nt,vtc->nvc", some, columns) - data) ** 2).sum(axis=2)
        assert (squares <= others.min(axis=0) + 1e-12).all()


def test_draws_have_the_moments_of_the_density():
    """Against importance weights of many points; a wide density that is cut off on all sides."""
    rng = np.random.default_rng(3)
    columns = rng.random((3, 4)) / 0.3
    data = rng.dirichlet(np.ones(4))[:3] @ columns + rng.standard_normal(4)
    gram, projection = columns @ columns.T, columns @ data
    share = np.r_[np.full(14, 1e-12), 1.0]  # of mixtures of everything
    draws = fraction_samples(gram[None], projection[None], share, 20_000)[0]
    points = rng.dirichlet(np.ones(4), 400_000)
    inside = points[:, :3]
    weights = np.exp(inside @ projection - 0.5 * np.einsum("ni,ij,nj->n", inside, gram, inside))
    mean = weights @ points / weights.sum()
    covariance = (weights * (points - mean).T) @ (points - mean) / weights.sum()
    # Of cells of 1/20 of the range, and of the weights.
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=3e-3)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=1e-3)


def test_images_without_noise_give_back_the_fractions():
    truth = mixtures(200)
    model = TissueFractionModel(SEQUENCES, unknown=())
    fit = model.fit(model.signals(named(truth)), sigma=1e-7)
    for k, name in enumerate(fit.MAPS):
        # The noise that is said, over the contrast between tissues.
        np.testing.assert_allclose(getattr(fit, f"{name}_likeliest"), truth[:, k], atol=1e-4)
    assert (fit.status == Status.CONVERGED).all()
    np.testing.assert_allclose(fit.predict(), model.signals(named(truth)), atol=1e-6)


@pytest.mark.parametrize(
    "wrong", ["noise", *(pytest.param(w, marks=pytest.mark.slow) for w in ("B1", "constants"))]
)
def test_intervals_hold_95_percent_of_mixtures(wrong):
    truth, rng = mixtures(1500, seed=4), np.random.default_rng(5)
    options, b1, constants = {}, np.ones(1500), constants_of(TISSUES).repeat(1500, 1, 1)
    if wrong == "B1":
        b1, options = 1 + 0.08 * rng.standard_normal(1500), {"b1_error": 0.08}
    if wrong == "constants":
        std = 0.05 * torch.tensor([0.3, 1.0, 1.0, 1.0])  # proton densities vary less
        constants[..., :4] *= torch.exp(std * torch.tensor(rng.standard_normal((1500, 3, 4))))
        options = {"constants_error": 0.05}
    pure = SignalEquations().signals(SEQUENCES, constants, torch.tensor(b1), torch.tensor(0 * b1))
    clean = np.abs(np.einsum("vt,vtc->vc", truth[:, :3], pure.numpy()))
    sigma = clean.mean() / 30
    model = TissueFractionModel(SEQUENCES, unknown=(), **options)
    fit = model.fit(noisy(clean, sigma), sigma=sigma)
    low, high = (
        np.stack([getattr(fit, name + end) for name in fit.MAPS], axis=1)
        for end in ("_low", "_high")
    )
    inside = (low <= truth) & (truth <= high)
    # 6000 intervals, four of a voxel: two in a hundred either way.
    assert 0.93 < np.mean(inside) < 0.975


def head(n=24):
    """Fractions (n, n, 4) of a round head: CSF around grey around white matter, partly mixed."""
    x = np.linspace(-1, 1, n)
    radius = np.hypot(x[:, None], x)
    wm = np.clip((0.55 - radius) / 0.12, 0, 1)
    brain = np.clip((0.8 - radius) / 0.12, 0, 1)
    skull = np.clip((0.95 - radius) / 0.06, 0, 1)
    return np.stack([skull - brain, brain - wm, wm, 1 - skull], axis=-1)


def test_neighbours_are_side_by_side_and_fitted():
    """A grid of 2 x 3 without its voxel 4."""
    found = NeighbourGraph.on_grid(np.array([0, 1, 2, 3, 5]), (2, 3))
    sides = [{0: {1, 3}, 1: {0, 2}, 2: {1, 4}, 3: {0}, 4: {2}}[v] for v in range(5)]
    assert [set(of[of >= 0]) for of in found.of] == sides
    for half in found.halves:
        assert not np.isin(found.of[half], half).any()


def log_density(fractions, gram, projection):
    inside = fractions[:, :3]
    return inside @ projection - 0.5 * np.einsum("ni,ij,nj->n", inside, gram, inside)


def test_draws_of_neighbours_have_the_moments_of_their_density():
    """Two voxels, against importance weights of many pairs from what is thought of each alone."""
    rng, smoothness, n, n_pairs = np.random.default_rng(3), 3.0, 400_000, 200
    columns, data = rng.random((3, 2)) / 0.3, rng.random((2, 2)) / 0.3
    gram, projections = columns @ columns.T, data @ columns.T
    faces, dims = faces_of(4, 4)
    share = rng.dirichlet(np.ones(len(faces)))
    pairs = np.zeros((2, n, 4))
    for one in pairs:
        which = rng.choice(len(faces), n, p=share)
        for k, (face, dim) in enumerate(zip(faces, dims, strict=True)):
            rows = np.flatnonzero(which == k)
            one[np.ix_(rows, face[: dim + 1])] = rng.dirichlet(np.ones(dim + 1), len(rows))
    apart = np.linalg.norm(pairs[0] - pairs[1], axis=1) / math.sqrt(2)
    of_data = [log_density(one, gram, p) for one, p in zip(pairs, projections, strict=True)]
    weights = np.exp(sum(of_data) - smoothness * apart)
    weights /= weights.sum()

    sides = np.array([[k + 1, -1] if k % 2 == 0 else [k - 1, -1] for k in range(2 * n_pairs)])
    neighbours = NeighbourGraph(
        sides, (np.arange(0, 2 * n_pairs, 2), np.arange(1, 2 * n_pairs, 2))
    )
    grams = np.repeat(gram[None, None], 2 * n_pairs, axis=0)
    projections = np.tile(projections, (n_pairs, 1))[:, None]
    draws = markov_field_samples(grams, projections, share, neighbours, smoothness, 150)
    draws = draws.astype(float)
    first, second = (draws[:, k::2].reshape(-1, 4) for k in (0, 1))
    # 30,000 draws that are not independent, and weights of as many: 0.005 of a fraction.
    for found, one in ((first, pairs[0]), (second, pairs[1])):
        np.testing.assert_allclose(found.mean(axis=0), weights @ one, atol=0.01)
        pure = weights @ ((one > 0).sum(axis=1) == 1)
        assert ((found > 0).sum(axis=1) == 1).mean() == pytest.approx(pure, abs=0.015)
    found = np.linalg.norm(first - second, axis=1).mean() / math.sqrt(2)
    assert found == pytest.approx(weights @ apart, abs=0.01)


def test_intervals_of_smooth_images_hold_95_percent():
    """Of an image that is drawn from what is thought beforehand, seen in one noisy contrast."""
    n, smoothness, rng = 40, 1.5, np.random.default_rng(0)
    share = np.full(15, 1 / 15)
    neighbours = NeighbourGraph.on_grid(np.arange(n * n), (n, n))
    nothing = np.zeros((n * n, 1, 3, 3)), np.zeros((n * n, 1, 3))
    truth = markov_field_samples(*nothing, share, neighbours, smoothness, 10)[-1]
    column, sigma = np.array([1.0, 0.7, 0.4]), 0.1
    data = truth[:, :3] @ column + sigma * rng.standard_normal(n * n)
    gram = np.tile(np.outer(column, column) / sigma**2, (n * n, 1, 1, 1))
    projection = data[:, None, None] * column / sigma**2
    draws = markov_field_samples(gram, projection, share, neighbours, smoothness, 200)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    # At least: what is not in a voxel is often an end of the interval itself.
    assert np.mean((low <= truth) & (truth <= high)) > 0.94
    squares = np.mean((draws.mean(axis=0) - truth) ** 2)
    # 1600 voxels, with tails: a tenth.
    assert squares == pytest.approx(draws.var(axis=0).mean(), rel=0.1)


def test_what_neighbours_are_helps_where_one_contrast_does_not_separate():
    truth = head()
    inside = truth[..., 3] < 0.5
    clean = TissueFractionModel(SEQUENCES[:1]).signals(named(truth))
    sigma = clean[inside].mean() / 30
    errors = []
    for smoothness in (0.0, 2.0):
        model = TissueFractionModel(SEQUENCES[:1], unknown=(), smoothness=smoothness)
        with pytest.warns(UserWarning, match="do not separate"):
            fit = model.fit(noisy(clean, sigma), inside, sigma=sigma)
        errors.append(np.abs(fit.gm - truth[..., 1])[inside].mean())
        held = (fit.gm_low <= truth[..., 1]) & (truth[..., 1] <= fit.gm_high)
        assert held[inside].mean() > 0.9 and not fit.gm[~inside].any()
    assert errors[1] < 0.8 * errors[0]


def test_a_fourth_tissue_is_found_by_its_name():
    with pytest.raises(ValueError, match="diffusivity of lesion is 1.2; give it in mm\\^2/s"):
        Tissue("lesion", 0.9, 1.3, 0.15, 0.5, 1.2)
    tissues = (*TISSUES, Tissue("lesion", 0.9, 1.3, 0.15, 0.5, 1.2e-3))
    truth = np.random.default_rng(2).dirichlet(np.ones(4), 200)
    truth[50:, 1] += truth[50:, 3]
    truth[50:, 3] = 0  # a lesion in a quarter of the voxels
    model = TissueFractionModel(SEQUENCES, tissues, unknown=())
    fractions = dict(zip(("csf", "gm", "wm", "lesion"), truth.T, strict=True))
    clean = model.signals(fractions)
    assert model.maps == ("csf", "gm", "wm", "lesion", "background")
    exact = model.fit(clean, sigma=1e-7, n_draws=0)
    fit = model.fit(noisy(clean, clean.mean() / 300), sigma=clean.mean() / 300)
    for k, name in enumerate(fractions):
        np.testing.assert_allclose(getattr(exact, name), truth[:, k], atol=1e-3)
        low, high = getattr(fit, f"{name}_low"), getattr(fit, f"{name}_high")
        # 200 voxels: 95 % by three standard deviations.
        assert np.mean((low - 1e-6 <= truth[:, k]) & (truth[:, k] <= high + 1e-6)) > 0.9


@pytest.mark.slow
def test_scale_bias_and_b1_fields_are_found():
    truth, x = head(), np.linspace(-1, 1, 24)
    b1 = 1.05 + 0.1 * x[:, None] - 0.06 * x**2
    S0 = 700 * np.exp(0.2 * x[:, None] * x + 0.1 * x)
    clean = TissueFractionModel(SEQUENCES).signals(named(truth), S0=S0, b1=b1)
    sigma = clean[truth[..., 3] == 0].mean() / 50
    model = TissueFractionModel(
        SEQUENCES, unknown=("scale", "bias", "b1"), b1_error=0.1, series=[0] * len(SEQUENCES)
    )
    fit = model.fit(noisy(clean, sigma), truth[..., 3] < 0.5)
    inside = truth[..., 3] == 0
    # 400 voxels of 12 images of SNR 50 for 30 coefficients: about 1 % each, more at the rim.
    assert np.abs(fit.b1 / b1 - 1)[inside].max() < 0.06
    assert np.abs(fit.b1 / b1 - 1)[inside].mean() < 0.02
    assert np.abs(fit.S0 / S0 - 1)[inside].mean() < 0.02
    assert fit.sigma[inside].mean() == pytest.approx(sigma, rel=0.1)
    assert np.abs(fit.gm - truth[..., 1])[inside].mean() < 0.02


def test_errors_of_a_voxel_have_the_covariance_of_constants_and_field():
    """One number for all of B1 that constants do not explain says as much as its polynomials."""
    rng = np.random.default_rng(0)
    root = torch.tensor(rng.normal(size=(12 + 6, 18)))
    zero = torch.zeros(6, dtype=torch.float64)
    covariance = torch.zeros((25, 25), dtype=torch.float64)
    rows = torch.tensor([*range(12), *range(18, 24)])  # without scales and noise
    covariance[rows[:, None], rows] = root @ root.T
    constants = constants_of(TISSUES)
    shared = SharedParameters(constants, zero[None], zero, zero[:1], covariance, b1_scatter=0.5)
    errors = NuisanceErrors.from_shared(shared)
    basis = torch.tensor(rng.normal(size=(4, 6)))
    of_b1 = errors.of_b1_in(basis)
    assert errors.number == of_b1.shape[1] == 13
    both = torch.cat([root[:12].expand(4, 12, 18), (basis @ root[12:])[:, None]], dim=1)
    of_constants = torch.nn.functional.pad(errors.of_constants, (0, 1)).expand(4, 12, 13)
    found = torch.cat([of_constants, of_b1[:, None]], dim=1)
    expected = both @ both.mT
    expected[:, -1, -1] += 0.5**2
    np.testing.assert_allclose(found @ found.mT, expected, atol=1e-9)


@pytest.mark.slow
def test_intervals_hold_under_a_field_that_no_polynomial_follows():
    truth, x = head(24), np.linspace(-np.pi, np.pi, 24)
    b1 = 1 + 0.06 * np.sin(3 * x[:, None]) * np.cos(3 * x)
    clean = TissueFractionModel(SEQUENCES).signals(named(truth), b1=b1)
    sigma = clean[truth[..., 3] == 0].mean() / 100
    model = TissueFractionModel(SEQUENCES, unknown=("b1",), b1_error=0.05)
    inside = truth[..., 3] < 0.5
    fit = model.fit(noisy(clean, sigma), inside, sigma=sigma, n_draws=128)
    held = [
        (getattr(fit, name + "_low") <= truth[..., k] + 1e-9)
        & (truth[..., k] - 1e-9 <= getattr(fit, name + "_high"))
        for k, name in enumerate(("csf", "gm", "wm"))
    ]
    # 96 %; 87 %, were the field thought to be a polynomial
    assert np.mean(np.stack(held)[:, inside]) > 0.93


def test_what_an_image_does_not_determine_keeps_its_prior():
    """One image, brighter or darker by any factor, says nothing of T2' or absolute densities."""
    truth = head(14)
    inside = truth[..., 3] < 0.5
    model = TissueFractionModel([MPRAGE(2.3, 0.9, 0.003, 9, 0.007, 160)])
    clean = model.signals(named(truth), S0=300.0)[inside]
    data = torch.tensor(noisy(clean, clean.mean() / 25))
    one = np.ones(len(data))
    fields = FieldMaps(one, 0 * one, one, polynomials(np.zeros((len(data), 0)), 0))
    simulation = SignalSimulation(model.simulator, model.sequences, axes_of(one, 0 * one, 0.3))
    estimate = SharedParameterEstimator(simulation, UNKNOWNS, 0.2, 0.1, np.zeros(1, dtype=int))
    shared, _ = estimate(data, None, fields, constants_of(TISSUES))
    std = torch.sqrt(torch.diagonal(shared.covariance))
    by_tissue = std[:12].reshape(3, 4) / torch.tensor([0.06, 0.2, 0.2, 0.2])
    assert (by_tissue[:, 2:] > 0.95).all()  # T2 and T2' of a T1-weighted image
    assert (by_tissue[:, 0] > 0.8).all()
    # Two contrasts between three tissues constrain T1 of grey and white matter.
    assert by_tissue[1:, 1].min() < 0.8


@pytest.mark.slow
def test_constants_that_are_off_are_found():
    truth = head()
    off = [replace(t, t1_s=f * t.t1_s) for t, f in zip(TISSUES, (1, 0.9, 1.08), strict=True)]
    clean = TissueFractionModel(SEQUENCES, off).signals(named(truth), S0=300.0)
    model = TissueFractionModel(SEQUENCES, unknown=("scale", "constants"), constants_error=0.1)
    fit = model.fit(noisy(clean, clean.mean() / 50), truth[..., 3] < 0.5)
    for found, tissue in zip(fit.model.tissues[1:], off[1:], strict=True):
        assert found.t1_s == pytest.approx(tissue.t1_s, rel=0.02)


def test_voxels_that_one_contrast_does_not_separate_are_flagged_and_have_larger_errors():
    truth = head(20)
    inside = truth[..., 3] < 0.5
    model = TissueFractionModel(SEQUENCES[1:2], unknown=(), smoothness=0.0)
    clean = model.signals(named(truth))
    with pytest.warns(UserWarning, match=r"do not separate .*: \w+ from \w+ in \d+.* help most"):
        fit = model.fit(noisy(clean, clean.max() / 30), inside, sigma=clean.max() / 30)
    flagged = fit.status[inside] == Status.TISSUES_NOT_SEPARATED
    errors = np.abs(fit.gm - truth[..., 1])[inside]
    assert 0.01 < flagged.mean() < 0.7
    assert errors[flagged].mean() > 1.5 * errors[~flagged].mean()


def test_the_missing_image_is_named():
    """Weighted by T1 alone, CSF and grey matter need T2, and the reverse."""
    t2 = [TurboSpinEcho(5.0, 0.01, 15, te) for te in (0.05, 0.09)]
    assert "T2" not in most_helpful(t2, TISSUES, SignalEquations(), snr=30)


def test_bad_voxels_say_why_and_leave_others_alone():
    model = TissueFractionModel(SEQUENCES, unknown=())
    good = model.signals(named(mixtures(4)))
    data = good.copy()
    data[1, 2], data[2] = np.nan, 0
    with pytest.warns(UserWarning, match="2 of 4 voxels cannot be fitted"):
        fit = model.fit(data, sigma=1e-4)
    assert fit.status[1] == Status.BAD_SAMPLES and fit.status[2] == Status.NO_SIGNAL
    assert fit.gm_likeliest[3] == pytest.approx(model.fit(good, sigma=1e-4).gm_likeliest[3])
    nothing = model.fit(good, np.zeros(4), sigma=1e-4)
    assert (nothing.status == Status.NOT_FITTED).all() and not nothing.gm.any()


def test_fits_are_indexed_saved_pickled_and_spread_over_processes(tmp_path):
    truth = head(8)
    model = TissueFractionModel(SEQUENCES[:4], unknown=())
    clean = model.signals(named(truth), S0=50.0)
    data = noisy(clean, 0.02)
    fit = model.fit(data, truth[..., 3] < 0.5, sigma=0.02)
    fit.save(tmp_path / "fit.npz")
    again = load_fit(tmp_path / "fit.npz")
    spread = model.fit(data, truth[..., 3] < 0.5, sigma=0.02, engine="joblib", n_jobs=2)
    for other in (again, pickle.loads(pickle.dumps(fit)), spread):
        np.testing.assert_allclose(other.gm, fit.gm, atol=1e-6)
        np.testing.assert_allclose(other.predict(), fit.predict(), rtol=1e-6)
    assert fit[4].gm.shape == (8,) and fit[4, 4].wm == fit.wm[4, 4]
    assert load_fit(tmp_path / "fit.npz", fit.model).model is fit.model
    with pytest.raises(ValueError, match="^model is not"):
        load_fit(tmp_path / "fit.npz", TissueFractionModel(SEQUENCES[:3]))
    assert fit.predict(SEQUENCES[:3]).shape == (8, 8, 3)
    assert not hasattr(model.fit(data, sigma=0.02, n_draws=0), "gm_low")


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda s: type(s).__name__)
def test_a_description_makes_the_sequence_again(sequence):
    assert sequence_from(json.loads(json.dumps(description_of(sequence)))) == sequence


def test_sidecars_of_bids_are_read():
    mprage = {
        "ScanningSequence": "GR\\IR", "RepetitionTime": 2.3, "InversionTime": 0.9,
        "EchoTime": 0.003, "FlipAngle": 9, "RepetitionTimeExcitation": 0.007, "NumberShots": 176,
    }  # fmt: skip
    assert replace(sequence_from(mprage), name="") == SEQUENCES[-1]
    with pytest.raises(ValueError, match="^EchoTime of the sidecar"):
        sequence_from({**mprage, "EchoTime": "long"})


def test_bad_arguments_are_named():
    flash = SpoiledGradientEcho(0.02, 0.004, 20)
    model, data = TissueFractionModel([flash] * 3), np.ones((2, 3))
    calls = {
        "data has shape": lambda: model.fit(np.ones((2, 4))),
        "n_draws is": lambda: model.fit(data, n_draws=-1),
        "b1 has values": lambda: model.fit(data, b1=0.0),
        "b1 has shape": lambda: model.fit(data, b1=np.ones(5)),
        "sequences has": lambda: TissueFractionModel([]),
        "tissues has the names": lambda: TissueFractionModel([flash], TISSUES[:1] * 2),
        "unknown has": lambda: TissueFractionModel([flash], unknown=("noise",)),
        "b1_error is": lambda: TissueFractionModel([flash], unknown=("b1",), b1_error=0.0),
        "b1_error is nan": lambda: TissueFractionModel([flash], b1_error=np.nan),
        "series is": lambda: TissueFractionModel([flash], series=[0, 1]),
        "smoothness is": lambda: TissueFractionModel([flash], smoothness=-1),
        "n_draws is 0": lambda: TissueFractionModel([flash] * 3, smoothness=1).fit(
            data, n_draws=0
        ),
        "fractions lack": lambda: model.signals({"gm": 1.0}),
        "field is": lambda: tissues_at(2),
        "t1_s of gm": lambda: replace(TISSUES[1], t1_s=0),
        "te is": lambda: SpoiledGradientEcho(0.02, 0.03, 20),
        "ti1 is": lambda: DoubleInversionPreparation(0.4, 3.0),
        "centre is": lambda: SpoiledGradientEcho(0.02, 0.01, 20, centre=1),
        "effective_te is": lambda: TurboSpinEcho(3.0, 0.01, 5, 0.09),
        "ti is": lambda: MPRAGE(2.3, 0.3, 0.003, 9, 0.007, 176),
        "type of": lambda: sequence_from({"type": "EPI"}),
        "MPRAGE has no": lambda: sequence_from({"type": "MPRAGE", "speed": 1}),
    }
    for start, call in calls.items():
        with pytest.raises(ValueError, match=f"^{start}"):
            call()


def test_images_of_other_grids_are_refused():
    first = nib.Nifti1Image(np.ones((3, 3, 2)), np.eye(4))
    data, affine = stack_images([first, nib.Nifti1Image(np.ones((3, 3, 2, 2)), np.eye(4))])
    assert data.shape == (3, 3, 2, 3) and (affine == np.eye(4)).all()
    with pytest.raises(ValueError, match="^image 1 has shape"):
        stack_images([first, nib.Nifti1Image(np.ones((3, 2, 2)), np.eye(4))])
    with pytest.raises(ValueError, match="^image 1 has an affine"):
        stack_images([first, nib.Nifti1Image(np.ones((3, 3, 2)), 2 * np.eye(4))])


def estimator_of(sequences, n, seed, b1_scatter=0.0, noise=0.001):
    """Estimator of B1, magnitudes (n, C) of mixtures of two tissues, their noise, fields."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((n, 4))
    pairs = np.array([[0, 1], [1, 2]])[rng.integers(2, size=n)]
    share = rng.random(n) * (rng.random(n) < 0.5)
    truth[np.arange(n), pairs[:, 0]], truth[np.arange(n), pairs[:, 1]] = share, 1 - share
    b1 = 1 + b1_scatter * rng.standard_normal(n)
    clean = TissueFractionModel(sequences).signals(named(truth), b1=b1)
    sigma, one = noise * np.ones(n), np.ones(n)
    fields = FieldMaps(one, 0 * one, one, polynomials(np.linspace(-1, 1, n)[:, None], 1))
    simulation = SignalSimulation(SignalEquations(), sequences, axes_of(one, 0 * one, 0.3))
    groups = np.arange(len(sequences)) % 2
    estimator = SharedParameterEstimator(simulation, ("b1",), 0.1, 0.1, groups)
    data = torch.tensor(noisy(clean, noise))
    return estimator, data, torch.tensor(sigma), fields


def test_scores_are_slopes_of_the_likelihood():
    """By constants of tissues, scales, B1 and noise, in each voxel, by central differences."""
    estimator, data, _, fields = estimator_of(SEQUENCES[:3], 12, 0)
    mixture = PartialVolumeMixture(data, 3)
    rng = np.random.default_rng(1)
    shared = estimator.prior(constants_of(TISSUES), fields.basis)
    step = torch.tensor(0.02 * rng.standard_normal(len(shared.covariance)))
    step[-2:] -= 3.0  # of log noise
    shared, share = shared.moved(step), mixture.prior
    scores = estimator._scores(mixture, fields, shared, share)[1].sum(dim=0)
    for k in range(len(step)):
        h = torch.zeros_like(step)
        h[k] = 1e-5
        after, before = (
            float(estimator._scores(mixture, fields, shared.moved(s * h), share)[0])
            for s in (1, -1)
        )
        # Signals between the values of B1 of a table are interpolated, their slopes, too.
        assert float(scores[k]) == pytest.approx((after - before) / 2e-5, rel=2e-3, abs=1e-3), k


@pytest.mark.parametrize("scatter", [0.0, 0.05])
def test_scatter_of_b1_is_that_of_the_voxels(scatter):
    """Seen in two flip angles, whose signals hardly depend on anything else that is unknown."""
    estimator, data, sigma, fields = estimator_of(SEQUENCES[8:10], 600, 4, scatter)
    shared, _ = estimator(data, sigma, fields, constants_of(TISSUES))
    # Of 600 voxels; a sixth too small in the mean of six seeds, for it is linearised.
    assert shared.b1_scatter == pytest.approx(scatter, abs=0.015)


def test_truncated_normal_distributions_are_those_of_scipy():
    """Far in the tails, too, on either side."""
    for a, b in ((-1.0, 0.5), (-9.0, -6.0), (5.5, 5.6), (6.0, 20.0), (-30.0, -8.0), (-40.0, 40.0)):
        # -log Phi(-b) keeps its digits above.
        low, high = (-b, -a) if a > 0 else (a, b)
        mass = log_ndtr(high) + np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high)))
        # 1e-3 of asymptotic expansions.
        assert simplex_posterior._log_mass(a, b) == pytest.approx(mass, abs=2e-3)
        for u in (0.01, 0.3, 0.9):
            found = simplex_posterior.truncated_quantile(a, b, u)
            # Nearly exponential tails: 1 / b^2.
            assert truncnorm.cdf(found, a, b) == pytest.approx(u, abs=0.03), (a, b, u)


def test_impurities_are_accepted_as_often_as_the_density_allows():
    """Metropolis steps from a pure tissue towards each class, by quadrature over their size."""
    n, gram = 20_000, np.diag([900.0, 100.0, 25.0])
    projection = np.array([880.0, 40.0, 0.0])
    pure = np.zeros((1, n, 4))
    pure[..., 0] = 1.0
    found = simplex_posterior.with_impurities(pure, gram[None], projection[None])[0]

    def log_density(fractions):
        inside = fractions[:, :3]
        return inside @ projection - 0.5 * ((inside @ gram) * inside).sum(axis=1)

    size = np.exp(np.linspace(*np.log(simplex_posterior._IMPURITY), 2000))[:, None]
    for other in (1, 2, 3):
        mixed = (1 - size) * np.eye(4)[0] + size * np.eye(4)[other]
        ratio = np.exp(log_density(mixed) - log_density(np.eye(4)[:1]))
        expected = np.minimum(ratio, 1).mean() / 4  # one of four classes is offered
        share = (found[:, other] > 0).mean()
        assert share == pytest.approx(expected, abs=0.01)  # three standard errors
        assert (found.sum(axis=1) == pytest.approx(1.0)) and found.min() >= 0


def test_smoothness_is_that_of_the_field():
    n, share = 30, np.full(15, 1 / 15)
    neighbours = NeighbourGraph.on_grid(np.arange(n * n), (n, n))
    nothing = np.zeros((n * n, 1, 3, 3)), np.zeros((n * n, 1, 3))
    for smoothness in (0.5, 1.5):
        field = markov_field_samples(*nothing, share, neighbours, smoothness, 10)[-1]
        found = 1.0
        for _ in range(6):  # Newton steps
            found = estimate_smoothness(field, share, neighbours, found)
        # 900 voxels with cells in place of all fractions.
        assert found == pytest.approx(smoothness, rel=0.2)
