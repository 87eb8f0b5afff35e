"""Packed cylinders and spheres: compiled signals, orientations, classes, posterior."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from packed_cell_cases import (
    KNOWN,
    SIGMA,
    assert_derivatives_are_differences,
    emulated_signals_of,
    magnitudes,
    posterior_of,
    protocol,
    tissue_of_prior,
    with_directions,
)
from scipy.spatial.transform import Rotation

from dipy_spinverse import Acquisition, PackedCellsModel, Status
from dipy_spinverse.packed_cells import class_comparison
from dipy_spinverse.packed_cells.dictionary import best_dictionary_entries
from dipy_spinverse.packed_cells.emulator import Encodings, emulated_signals
from dipy_spinverse.packed_cells.emulator_errors import error_patterns
from dipy_spinverse.packed_cells.interpolation import (
    emulated_shell_signals,
    interpolated_signals,
    radius_quadrature,
)
from dipy_spinverse.packed_cells.likelihood import (
    normal_equations,
    residuals,
    tissue_data,
    with_model_errors,
)
from dipy_spinverse.packed_cells.local_minima import (
    ClassPosterior,
    ClassSearchBudget,
    find_local_minima,
)
from dipy_spinverse.packed_cells.maps import tissue_maps, tissue_parameters
from dipy_spinverse.packed_cells.nuisance import fast_signals, polarity_asymmetry, polarity_factors
from dipy_spinverse.packed_cells.orientations import (
    add_dispersed,
    even_legendre,
    rotation_of,
    vector_of,
)
from dipy_spinverse.packed_cells.shells import group_into_shells
from dipy_spinverse.packed_cells.tissue_classes import (
    ALIGNED,
    CLASSES,
    diffusion_of,
    dispersion_of,
    tissue_class,
)
from dipy_spinverse.packed_cells.tissue_signals import tissue_signals
from dipy_spinverse.report.descriptions import map_description
from dipy_spinverse.voxels.tensor_frames import tensor_frames


def drawn_tissue(name, n, seed, acquisition=None, diffusivity=None):
    """Samples of the prior of a class, and their signals in the order of the acquisition."""
    acquisition = protocol() if acquisition is None else acquisition
    tissue = tissue_class(name, diffusivity is not None)
    z, frames = tissue_of_prior(tissue, n, seed)
    return tissue, z, frames, emulated_signals_of(acquisition, tissue, z, frames, diffusivity)


def place_of(tissue, **values):
    """z with little water other than that of the cells, and the values that are given."""
    n = max(np.size(value) for value in (0.0, *values.values()))
    z = np.zeros((n, tissue.n_parameters))
    z[:, tissue.columns("free_water", "dot")] = -3.0
    if "hindered" in tissue.parameters:
        z[:, tissue.columns("hindered")] = -3.0
    for name, value in values.items():
        z[:, tissue.columns(name)] = value
    return z


@pytest.mark.parametrize("shape", ["cylinder", "sphere"])
def test_compiled_signals_are_those_of_the_emulator(shape):
    shells = group_into_shells(protocol())
    compiled, exact = (
        make(shape, shells, None, 0.0) for make in (interpolated_signals, emulated_shell_signals)
    )
    rng = np.random.default_rng(5)
    radius, permeability, inside = (
        np.log(low) + np.log(high / low) * rng.random(200)
        for low, high in ((0.1, 60), (5e-4, 0.5), (0.4, 2.5))
    )
    fraction = rng.uniform(0.05, 0.66, 200)
    outside = inside + rng.uniform(-0.5, 0.5, 200)
    tissue = np.stack([radius, fraction, permeability, inside, outside], axis=1)
    error = (compiled(tissue) - exact(tissue))[:, 0]
    # Mean squares of signals over directions; its own error says about 0.2 %.
    error = np.sqrt((error**2 / (4 * np.arange(error.shape[2]) + 1)).sum(axis=2))
    assert np.sqrt((error**2).mean()) < 0.004
    assert np.sqrt((error**2).mean()) < 1.5 * np.sqrt((compiled.error**2).mean())


def test_signals_of_wide_protocols_are_those_of_the_emulator():
    # 16 values of q, more than are emulated one by one, from next to nothing to b = 60.
    b = np.tile(60 * np.linspace(0.03, 1, 16) ** 2, 2)
    x = np.repeat([0.0, 0.4], 16)
    directions = np.stack([np.sqrt(1 - x**2), 0 * x, x], axis=1)
    acquisition = Acquisition(b=b, directions=directions, small_delta=8, big_delta=20, te=60)
    tissue = tissue_class("cylinders", True)
    z = place_of(tissue, free_water=-5, dot=-5, hindered=-5, dispersion_1=-5, dispersion_2=-5)
    found = emulated_signals_of(acquisition, tissue, z, np.eye(3)[None])[0]
    parameters = tissue_parameters(tissue, z, KNOWN)
    names = ("radius", "fraction", "permeability", "diffusivity_inside", "diffusivity_outside")
    q = acquisition.q
    encodings = Encodings(
        q * np.sqrt(1 - x**2), q * x, acquisition.small_delta, acquisition.big_delta
    )
    exact = emulated_signals(
        "cylinder", np.array([[*(parameters[n][0] for n in names)]]), encodings
    )
    # The least fan of axes, 2 degrees, takes 0.007 at b = 60; interpolation over q 0.001.
    np.testing.assert_allclose(found, exact[0], atol=0.008)


def test_free_water_outlasts_tissue_at_long_echo_times():
    acquisition = protocol(te=(60, 90))
    tissue = tissue_class("cylinders", True, relaxes=True)
    z = place_of(tissue, free_water=[[0.5], [-5.0], [5.0]], relaxation=0.0)  # some, none, all
    frames = np.repeat(np.eye(3)[None], 3, axis=0)
    signals, tissue_alone, free = emulated_signals_of(acquisition, tissue, z, frames)
    parameters = tissue_parameters(tissue, z, KNOWN)
    share, rate = parameters["free_water"][0], parameters["relaxation"][0]
    odds = share / (1 - share) * np.exp(rate * (acquisition.te - 60))
    expected = (tissue_alone + odds * free) / (1 + odds)
    # "All" and "none" are fractions of 1e-6.
    np.testing.assert_allclose(signals, expected, atol=1e-5)


def test_a_voxel_that_is_not_a_number_stops_no_other():
    model, tissue = tissue_signals(protocol(), KNOWN, 3.0), tissue_class("spheres", True)
    z, frames = np.zeros((3, tissue.n_parameters)), np.repeat(np.eye(3)[None], 3, axis=0)
    alone = model(tissue, z[:1], frames[:1], slopes=True)
    z[1] = np.nan
    frames[1] = np.nan
    for found, expected in zip(model(tissue, z, frames, slopes=True), alone, strict=True):
        # Sums of a batch round otherwise.
        np.testing.assert_allclose(found[[0, 2]], np.repeat(expected, 2, axis=0), atol=1e-10)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", [*CLASSES, ALIGNED])
def test_derivatives_are_those_of_the_signals(name, known):
    tissue = tissue_class(name, known, relaxes=not known)
    tissue = tissue if known else tissue.of_unknown_water
    acquisition = protocol(te=(60, 60 if known else 90))
    model = tissue_signals(acquisition, KNOWN if known else None, 3.0)
    assert_derivatives_are_differences(model, tissue, 6)


def test_dispersion_is_diffusion_of_axes_over_the_sphere():
    # Steps of a random walk on the sphere, each turning an axis a little about a random one.
    rng = np.random.default_rng(1)
    t, n_steps = 0.08, 60
    axes = np.tile([0.0, 0, 1], (20_000, 1))
    for _ in range(n_steps):
        turn = rng.standard_normal((len(axes), 3)) * np.sqrt(2 * t / n_steps)
        axes = np.einsum("nij,nj->ni", rotation_of(turn), axes)
    # exp(-3 cos^2) as a kernel.
    x, w = np.polynomial.legendre.leggauss(30)
    kernel = (np.exp(-3 * x**2) * w) @ even_legendre(x, 8) * (4 * np.arange(8) + 1) / 2
    cosines = np.array([0.0, 0.4, 1.0])
    gradients = np.stack([np.sqrt(1 - cosines**2), 0 * cosines, cosines], axis=1)
    found, unused = np.zeros((1, 3)), np.empty((10, 3))
    add_dispersed(
        kernel[None], 1.0, cosines**2, np.full(3, t), found, unused[0], unused[1], unused[2:]
    )
    walked = np.exp(-3 * (axes @ gradients.T) ** 2).mean(axis=0)
    # Standard error of 20,000 walks 0.002, and 60 steps.
    np.testing.assert_allclose(found[0], walked, atol=0.008)


def test_narrow_fans_are_averages_over_their_axes():
    # Axes spread in one plane by 12 degrees and by 4 out of it.
    rng = np.random.default_rng(2)
    spread = np.radians([12.0, 4.0])
    angles = rng.standard_normal((400, 2)) * spread[::-1]
    axes = rotation_of(np.concatenate([angles, np.zeros((400, 1))], axis=1))[:, :, 2]
    tissue = tissue_class("cylinders", True)
    model = tissue_signals(protocol(), KNOWN, 3.0)
    parallel = place_of(tissue, radius=-0.5)
    parallel[:, tissue.columns("dispersion_1", "dispersion_2")] = -5
    values = tissue_parameters(tissue, parallel, KNOWN)
    # Mean squares of angles are 2 t.
    values["dispersion_1"], values["dispersion_2"] = (np.array([s**2 / 2]) for s in spread)
    found = model.of_values(tissue, values, np.eye(3)[None])[0]
    frames = np.repeat(np.eye(3)[None], 400, axis=0)
    frames[:, 2] = axes
    single = tissue_parameters(tissue, np.repeat(parallel, 400, axis=0), KNOWN)
    averaged = model.of_values(tissue, single, frames).mean(axis=0)
    # 400 axes: standard error up to 0.015.
    np.testing.assert_allclose(found, averaged, atol=0.04)


def test_dispersion_index_and_diffusion_of_axes_are_one_another():
    odi = np.array([0.0005, 0.1, 0.5, 0.9])
    np.testing.assert_allclose(dispersion_of(diffusion_of(odi)), odi)


def test_rotations_and_their_vectors_are_one_another():
    vectors = np.random.default_rng(0).normal(size=(20, 3))
    rotations = rotation_of(vectors)
    np.testing.assert_allclose(rotations, Rotation.from_rotvec(vectors).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(vector_of(rotations), vectors, atol=1e-9)


@pytest.mark.parametrize("name", CLASSES)
def test_powder_averages_are_means_over_directions(name):
    golden = np.pi * (1 + 5**0.5) * np.arange(400)
    z = 1 - (np.arange(400) + 0.5) / 400
    directions = np.stack([np.cos(golden), np.sin(golden), z / np.sqrt(1 - z**2)], axis=1)
    directions *= np.sqrt(1 - z**2)[:, None]
    many = Acquisition(b=np.full(400, 2.5), directions=directions, small_delta=8, big_delta=30)
    one = Acquisition(b=[2.5], directions=[[0, 0, 0]], small_delta=8, big_delta=30, isotropic=True)
    *_, signals = drawn_tissue(name, 3, 1, many)
    *_, average = drawn_tissue(name, 3, 1, one)
    # Fans are right to first order; wide ones are off by half a percent.
    np.testing.assert_allclose(average[:, 0], signals.mean(axis=1), atol=6e-3)


def test_posterior_is_the_same_for_the_same_seed():
    *_, signals = drawn_tissue("cylinders", 2, 0)
    data = magnitudes(signals, np.random.default_rng(1))
    first, again, other = (
        posterior_of(protocol(), data, SIGMA, n_samples=20, seed=seed, classes=("cylinders",))
        for seed in (4, 4, 5)
    )
    np.testing.assert_array_equal(first.maps["pore_diameter"], again.maps["pore_diameter"])
    assert (first.maps["pore_diameter"] != other.maps["pore_diameter"]).any()


def test_turned_tissue_has_a_turned_axis_and_the_same_surface():
    rotation = Rotation.random(random_state=8).as_matrix()
    tissue = tissue_class("cylinders", True)
    z = place_of(tissue, radius=0.3, dispersion_1=-1, dispersion_2=-1)
    signals = emulated_signals_of(protocol(), tissue, z, np.eye(3)[None])
    data = magnitudes(signals, np.random.default_rng(1))
    results = [
        posterior_of(
            acquisition, data, SIGMA, diffusivity=2.0, n_samples=0, classes=("cylinders",)
        )
        for acquisition in (
            protocol(),
            with_directions(protocol(), protocol().directions @ rotation.T),
        )
    ]
    axes = [each.estimated_maps["wall_orientation"] for each in results]
    cosine = np.abs(np.einsum("vk,vk->v", axes[0] @ rotation.T, axes[1]))
    # The search stops within a small part of the error of the axis.
    assert (cosine > 0.999).all()
    surface = [each.estimated_maps["surface_to_volume"] for each in results]
    np.testing.assert_allclose(surface[0], surface[1], rtol=0.02)


def test_frames_are_those_of_the_tensor_whatever_the_echo_times():
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    tensor = basis @ np.diag([0.3, 0.6, 1.7]) @ basis.T
    full = protocol()
    acquisition = Acquisition(
        full.b, full.directions, full.small_delta, full.big_delta, te=full.big_delta + 20
    )
    decay = np.exp(-full.b * np.einsum("mi,ij,mj->m", full.directions, tensor, full.directions))
    data = decay * np.where(acquisition.te_index == 0, 1.0, 0.4)
    (frame,) = tensor_frames(acquisition, data[None])
    # The ridge of 1e-8 of the trace.
    np.testing.assert_allclose(np.abs(frame @ basis), np.eye(3), atol=1e-5)


def test_units_of_the_data_do_not_matter():
    *_, signals = drawn_tissue("spheres", 2, 2)
    data = magnitudes(signals, np.random.default_rng(1))
    setting = {"n_samples": 20, "classes": ("spheres",)}
    one = posterior_of(protocol(), data, SIGMA, **setting)
    thousand = posterior_of(protocol(), data * 1000, SIGMA * 1000, **setting)
    # Sums in another order.
    np.testing.assert_allclose(
        one.mean("surface_to_volume"), thousand.mean("surface_to_volume"), rtol=1e-3
    )


def test_noise_is_estimated_where_it_is_not_given():
    *_, signals = drawn_tissue("spheres", 4, 2)
    data = magnitudes(signals, np.random.default_rng(1))
    result = posterior_of(protocol(), data, n_samples=0, classes=("spheres",))
    # 102 measurements: 7 % standard error each.
    np.testing.assert_allclose(result.sigma, SIGMA, rtol=0.25)


@pytest.mark.parametrize("case", ["one shell", "one timing", "noise only"])
def test_poor_data_give_wide_intervals_and_no_nan(case):
    acquisition = protocol()
    *_, signals = drawn_tissue("cylinders", 2, 7)
    data = magnitudes(signals, np.random.default_rng(1))
    kept = np.ones(len(acquisition), dtype=bool)
    if case == "one shell":
        kept = (acquisition.b < 1.1) & (acquisition.big_delta == 40)
    if case == "one timing":
        kept = acquisition.big_delta == 40
    if case == "noise only":
        data = magnitudes(np.zeros_like(data), np.random.default_rng(1))
    acquisition, data = acquisition.subset(kept), data[:, kept]
    result = posterior_of(acquisition, data, SIGMA, classes=("cylinders",), n_samples=60)
    for values in (*result.maps.values(), *result.estimated_maps.values(), result.predicted):
        assert np.isfinite(values).all()
    if case != "one timing":
        # The prior's interval of the radius is a factor of 400 wide.
        low, high = result.interval("body_diameter")
        assert (high > 3 * low).all()


def test_wrong_input_is_named():
    acquisition = protocol()
    good = np.ones((2, len(acquisition)))
    cases = [
        ({"data": good[0]}, "signals has shape"),
        ({"data": good * np.nan}, "signals has voxels"),
        ({"sigma": [1, 2, 3]}, "sigma has shape"),
        ({"sigma": -1.0}, "sigma is between"),
        ({"n_samples": -1}, "n_samples is -1"),
        ({"diffusivity": 0}, "diffusivity is 0"),
        ({"diffusivity": (1, 2, 3)}, "diffusivity is"),
        ({"free_diffusivity": -1}, "free_diffusivity is -1"),
        ({"typical_radius": 0.05}, "typical_radius is 0.05"),
        ({"radius_spread": 3.0}, "radius_spread is 3.0"),
        ({"classes": ("cubes",)}, "classes is"),
        ({"amplitudes": "sweep"}, "amplitudes is 'sweep'"),
        ({"amplitudes": [0, 1]}, "amplitudes has shape"),
        ({"least_b": 1e5}, "least_b is 100000"),
    ]
    for change, message in cases:
        arguments = {"data": good, "sigma": SIGMA, **change}
        with pytest.raises(ValueError, match=message):
            posterior_of(acquisition, **arguments)


def test_water_without_cells_is_told_as_such():
    acquisition = protocol()
    rng = np.random.default_rng(5)
    data = magnitudes(np.tile(np.exp(-2 * acquisition.b), (3, 1)), rng)
    result = posterior_of(acquisition, data, SIGMA, diffusivity=2.0, n_samples=100)
    assert (result.class_probabilities["no cells"] > 0.5).all()
    for name in ("surface_to_volume", "restricted_fraction", "wall_anisotropy"):
        assert (result.estimated_maps[name] == 0).all() and (
            result.interval(name)[0] == 0
        ).all(), name
    # Chi-square over its degrees of freedom: five standard deviations.
    freedom = result.degrees_of_freedom
    np.testing.assert_allclose(result.chi_square / freedom, 1, atol=5 * np.sqrt(2 / freedom.min()))


def test_aligned_cylinders_lie_across_the_only_gradient_and_are_found():
    acquisition = protocol()
    x = np.where(acquisition.b0_mask[:, None], 0.0, [1.0, 0, 0])
    one_direction = with_directions(acquisition, x)
    tissue = tissue_class(ALIGNED, True)
    z = place_of(tissue, permeability=[[-0.5], [0.1], [0.8]], radius=0.1)
    frames = np.repeat(np.eye(3)[None], 3, axis=0)
    clean = emulated_signals_of(one_direction, tissue, z, frames)
    data = magnitudes(clean, np.random.default_rng(7))
    result = posterior_of(one_direction, data, SIGMA, diffusivity=2.0, classes=(ALIGNED,))
    assert np.abs(result.maps["wall_orientation"][..., 0]).max() < 1e-6
    assert (np.diff(np.median(result.maps["wall_permeability"], axis=0)) > 0).all()


def test_draws_of_a_voxel_do_not_depend_on_the_others():
    acquisition = protocol()
    *_, signals = drawn_tissue("spheres", 2, 3)
    both = np.vstack([signals, np.exp(-2 * acquisition.b)])
    data = magnitudes(both, np.random.default_rng(6))
    together = posterior_of(acquisition, data, SIGMA, n_samples=20)
    alone = posterior_of(acquisition, data[1:2], SIGMA, n_samples=20)
    # Sums in another order.
    np.testing.assert_allclose(
        together.maps["pore_diameter"][:, 1], alone.maps["pore_diameter"][:, 0], rtol=1e-4
    )


def crossing_signals(acquisition, angle):
    """Two populations of cylinders at an angle, in degrees, with nothing beside them."""
    tissue = tissue_class("cylinders", True)
    z = np.repeat(place_of(tissue, radius=0.2, permeability=-1), 2, axis=0)
    z[:, tissue.columns("dispersion_1", "dispersion_2")] = -1
    frames = np.stack([np.eye(3), rotation_of(np.array([[0, np.radians(angle), 0]]))[0]])
    return emulated_signals_of(acquisition, tissue, z, frames).mean(axis=0, keepdims=True)


def test_crossing_axes_are_told_from_one():
    data = magnitudes(crossing_signals(protocol(), 70), np.random.default_rng(0), 0.01)
    fit = PackedCellsModel(protocol(), diffusivity=2e-3).fit(data, sigma=0.01, n_draws=0)
    assert fit.tissue_class[0] == "crossing" and fit.status[0] != Status.MISFIT
    assert "consistent with noise" in fit.residual_structure(0)


def test_amplitudes_of_their_own_are_found_and_predicted():
    acquisition = protocol()
    *_, signals = drawn_tissue("spheres", 1, 3)
    long = acquisition.big_delta == 40
    data = magnitudes(signals * np.where(long, 0.7, 1.0), np.random.default_rng(0))
    model = PackedCellsModel(acquisition, amplitudes="timing")
    fit = model.fit(data, sigma=SIGMA, n_draws=0)
    ratio = fit.S0_per_label[0, 1] / fit.S0_per_label[0, 0]
    # Three b0 and a shell of b = 1 each: 1 %.
    assert ratio == pytest.approx(0.7, rel=0.05) and fit.status[0] != Status.MISFIT
    part = acquisition.subset(long)
    np.testing.assert_allclose(fit.predict(part), fit.predict()[:, long], rtol=1e-5)
    tied = PackedCellsModel(acquisition).fit(data, sigma=SIGMA, n_draws=0)
    assert tied.status[0] == Status.MISFIT
    assert "beyond noise" in tied.residual_structure(0)
    labels = PackedCellsModel(acquisition, amplitudes=np.where(long, 3, 8))
    np.testing.assert_allclose(
        labels.fit(data, sigma=SIGMA, n_draws=0).S0_per_label[0, ::-1], fit.S0_per_label[0]
    )


def in_both_directions(acquisition):
    return Acquisition(
        np.tile(acquisition.b, 2),
        np.concatenate([acquisition.directions, -acquisition.directions]),
        np.tile(acquisition.small_delta, 2), np.tile(acquisition.big_delta, 2), te=60,
    )  # fmt: skip


def test_odd_terms_are_what_opposite_directions_differ_by():
    both = in_both_directions(protocol().subset(~protocol().b0_mask))
    odd = np.array([[0.05, -0.02, 0.03, 0.01, 0.0, -0.02, 0.0, 0.04, -0.05, 0.02, 0.0, 0.01]])
    factors = polarity_factors(both, both, odd)
    noise = 0.002 * np.random.default_rng(0).normal(size=(1, len(both)))
    data = np.exp(-0.7 * both.b) * factors + noise
    found = polarity_factors(both, both, polarity_asymmetry(both, data, np.full(1, 0.002)))
    # 96 pairs with relative noise of 0.4 to 5 % have 12 unknowns.
    np.testing.assert_allclose(found, factors, atol=0.01)


def test_directions_that_have_no_opposite_or_differ_by_chance_are_left_as_they_are():
    one = protocol().subset(~protocol().b0_mask)
    both = in_both_directions(one)
    data = np.exp(-0.7 * both.b) + 0.002 * np.random.default_rng(0).normal(size=(20, len(both)))
    sigma = np.full(20, 0.002)
    # One of 1000 by chance.
    assert not polarity_asymmetry(both, data, sigma).any()
    assert not polarity_asymmetry(one, data[:, : len(one)], sigma).any()


def test_what_is_gone_at_weak_weighting_is_told_from_tissue():
    acquisition = protocol(shells=(0.02, 0.06, 1.0, 2.5, 4.5))
    *_, signals = drawn_tissue("spheres", 2, 3, acquisition)
    gone = np.array([[0.04], [-0.05]]) * np.exp(-15 * acquisition.b)
    data = signals + gone + 0.003 * np.random.default_rng(0).standard_normal(signals.shape)
    found = posterior_of(
        acquisition, data, 0.003, classes=("spheres",), amplitudes="timing", n_samples=0
    )
    assert (found.chi_square < 1.3 * found.degrees_of_freedom).all()
    # Three standard errors of single signals.
    np.testing.assert_allclose(found.predicted, signals + gone, atol=0.009)
    np.testing.assert_allclose(found.amplitudes, 1, atol=0.015)
    np.testing.assert_allclose(
        fast_signals(acquisition, acquisition, found.fast_fraction), gone, atol=0.009
    )


def test_weak_weightings_can_be_left_out():
    *_, signals = drawn_tissue("spheres", 1, 3)
    acquisition = protocol()
    weak = (acquisition.b > 0.5) & (acquisition.b < 1.5)
    # More than without diffusion.
    data = np.where(weak, 1.1, magnitudes(signals, np.random.default_rng(0)))
    with_all, without = (
        PackedCellsModel(acquisition, least_b=least).fit(data, sigma=SIGMA, n_draws=0)
        for least in (0, 1500)
    )
    assert with_all.status[0] == Status.MISFIT and without.status[0] != Status.MISFIT


def test_real_parts_have_normal_noise():
    *_, signals = drawn_tissue("cylinders", 1, 4)
    rng = np.random.default_rng(0)
    real = signals + 0.1 * rng.standard_normal(signals.shape)
    real[0, real[0].argmin()] = -0.05
    result = posterior_of(protocol(), real, 0.1, n_samples=0)
    # No floor of the noise, which would be 0.125, in what is expected.
    assert result.predicted.min() < 0.1


def test_a_refuted_model_has_wider_intervals():
    sigma = 0.005
    *_, signals = drawn_tissue("spheres", 3, 3)
    data = magnitudes(signals, np.random.default_rng(0), sigma)
    worse = data * np.where(protocol().big_delta == 40, 0.8, 1.0)

    def posterior(each, sigma):
        return posterior_of(protocol(), each, sigma, diffusivity=2.0, classes=("spheres",))

    refuted = posterior(worse, sigma)
    assert (refuted.chi_square > 5 * refuted.degrees_of_freedom).all()
    # About as wide as if the residual were noise; three times narrower without the factor.
    residual = np.sqrt(refuted.chi_square / refuted.degrees_of_freedom)
    widths = [
        np.diff(each.interval("restricted_fraction"), axis=0).mean()
        for each in (refuted, posterior(worse, sigma * residual))
    ]
    assert 0.7 < widths[0] / widths[1] < 1.5


def test_only_voxels_that_nothing_explains_are_searched_again(monkeypatch):
    *_, signals = drawn_tissue("spheres", 2, 3)
    data = magnitudes(signals, np.random.default_rng(0))
    data[1] *= np.where(protocol().big_delta == 40, 0.7, 1.0)
    twice = posterior_of(protocol(), data, SIGMA, n_samples=0)
    monkeypatch.setattr(class_comparison, "_ADEQUATE", np.inf)
    once = posterior_of(protocol(), data, SIGMA, n_samples=0)
    np.testing.assert_array_equal(twice.predicted[0], once.predicted[0])
    assert (twice.predicted[1] != once.predicted[1]).any()


def test_maps_of_diffusivities_are_in_mm2_per_s():
    D, rng = 1.4e-3, np.random.default_rng(0)
    data = magnitudes(np.exp(-1e3 * D * protocol().b)[None], rng, 0.005)
    model = PackedCellsModel(protocol(), classes=("no cells",))
    fit = model.fit(data, sigma=0.005)
    # The error of D is 0.5 % with these data; a priori it is 1.1e-3 by a factor of 1.8.
    assert fit.diffusivity_outside[0] == pytest.approx(D, rel=0.05)
    assert fit.diffusivity_outside_low[0] < D < fit.diffusivity_outside_high[0]
    assert np.median(model.prior_maps["diffusivity_outside"]) == pytest.approx(1.1e-3, rel=0.05)
    assert map_description("diffusivity_outside").unit == "mm^2/s"


def test_free_water_has_the_diffusivity_given_but_where_nothing_explains_the_voxel():
    *_, signals = drawn_tissue("spheres", 2, 3)
    data = magnitudes(signals, np.random.default_rng(0), 0.002)
    data[1] *= np.where(protocol().big_delta == 40, 0.7, 1.0)
    fit = PackedCellsModel(protocol()).fit(data, sigma=0.002, n_draws=0)
    assert fit.free_diffusivity[0] == 3e-3
    assert 0.5e-3 < fit.free_diffusivity[1] < 12e-3 and fit.free_diffusivity[1] != 3e-3
    found = posterior_of(protocol(), data, 0.002, n_samples=0)
    # The noise floor adds sigma^2 / (2 S), with the smallest S of 0.05.
    np.testing.assert_allclose(fit.predict(), found.predicted, atol=2e-4)


def test_a_second_search_never_leads_uphill():
    acquisition = protocol()
    *_, signals = drawn_tissue("cylinders", 3, 3, acquisition)
    data = magnitudes(signals, np.random.default_rng(0))
    tissue = tissue_class("cylinders", False)
    model = tissue_signals(acquisition, None, 3.0)
    labels, used = acquisition.te_index[model.shells.order], np.ones(len(acquisition), bool)
    voxels = tissue_data(data[:, model.shells.order], np.full(3, SIGMA), labels, used)
    posterior = ClassPosterior(model, tissue, voxels, np.zeros_like(data))
    frames = tensor_frames(acquisition, data)
    initial = best_dictionary_entries(model, tissue, voxels, frames)
    first = find_local_minima(posterior, initial, frames, ClassSearchBudget(40, 0.01, True))
    # A short search from a distant initial value alone ends higher.
    far = np.zeros((3, 1, tissue.n_parameters))
    other = Rotation.random(3, random_state=1).as_matrix() @ frames
    own = first.best_in(tissue, other)[:, None]
    short = ClassSearchBudget(2, 0.01)
    alone = find_local_minima(posterior, far, other, short)
    both = find_local_minima(posterior, np.concatenate([far, own], axis=1), other, short)
    assert (alone.costs[:, 0] > first.costs[:, 0] + 1).any()
    assert (both.costs[:, 0] <= first.costs[:, 0] + 1e-9).all()


def test_intervals_hold_tissues_of_the_prior():
    inside = []
    for name in ("cylinders", "spheres"):
        tissue, z, frames, signals = drawn_tissue(name, 16, 11)
        data = magnitudes(signals, np.random.default_rng(1))
        result = posterior_of(protocol(), data, SIGMA, classes=(name,), n_samples=60)
        truth = tissue_maps(tissue_parameters(tissue, z, None), frames)
        for key in ("surface_to_volume", "restricted_fraction", "wall_permeability"):
            low, high = result.interval(key)
            inside.append((low <= truth[key]) & (truth[key] <= high))
    # 32 voxels, the intervals of each hold or fail together: standard error 4 %. Draws whose
    # searches all start from the mode hold 75 %.
    assert np.mean(inside) >= 0.86


def test_permeability_allows_for_cells_that_differ_in_it():
    *_, signals = drawn_tissue("cylinders", 4, 11)
    found = posterior_of(protocol(), signals, SIGMA, classes=("cylinders",), n_samples=400)
    alike = found.parameters["permeability"]
    more = found.maps["wall_permeability"] / alike
    assert (more >= 1).all()
    # Quantile of 0.2 times the square of a normal number: 1.004; 400 draws know it to 20 %.
    np.testing.assert_allclose(np.log(np.quantile(more, 0.975, axis=0)), 1.0, rtol=0.4)
    radius, exchange = found.parameters["radius"], found.maps["exchange_time"]
    own = radius / (2 * alike) < 9000  # above it is cut off
    expected = radius / (2 * found.maps["wall_permeability"])
    np.testing.assert_allclose(exchange[own], expected[own], rtol=1e-6)


def test_classes_called_unlikely_are_rarely_the_right_ones():
    unlikely = []
    for name in ("cylinders", "crossing", "spheres", "mixture"):
        *_, signals = drawn_tissue(name, 12, 11)
        data = magnitudes(signals, np.random.default_rng(1))
        result = posterior_of(protocol(), data, SIGMA, n_samples=1)
        unlikely.append(result.class_probabilities[name] < 0.05)
    # Of 48; about 1 where probabilities are right. All of Laplace's evidence calls 8 unlikely.
    assert np.sum(unlikely) <= 3


def test_typical_radius_speaks_where_the_data_do_not():
    data = np.exp(-0.8 * protocol().b)[None]
    thin, thick = (
        PackedCellsModel(protocol(), diffusivity=2e-3, typical_radius=radius).fit(data, sigma=1.0)
        for radius in (2.0, 25.0)
    )
    # Of the median by that of the prior; the noise lets the data say almost nothing.
    assert thick.pore_diameter[0] > 3 * thin.pore_diameter[0] > 0


@pytest.mark.parametrize(("shape", "dimension"), [("cylinder", 2), ("sphere", 3)])
def test_radii_that_differ_have_the_surface_of_equal_cells(shape, dimension):
    spread, equal = 0.5, np.array([2.0, 5.0])
    shares, radii = zip(*radius_quadrature(shape, equal, spread), strict=True)
    assert sum(shares) == pytest.approx(1)
    # Of four nodes: surface over volume is d / R, the mean of d / r over the volume.
    np.testing.assert_allclose(np.array(shares) @ (1 / np.array(radii)), 1 / equal, rtol=0.02)
    # The mean radius by volume, of a gamma distribution by number.
    variance = spread**2
    mean = equal * (1 + dimension * variance) / (1 + (dimension - 1) * variance)
    np.testing.assert_allclose(np.array(shares) @ np.array(radii), mean, rtol=0.001)
    assert radius_quadrature(shape, equal, 0.0) == [(1.0, equal)]


def test_spread_of_radii_is_not_taken_for_other_water():
    acquisition = protocol(shells=(1.0, 4.0, 12.0))
    tissue = tissue_class("spheres", diffusivity_known=True)
    of_5_um = np.log(5.0 / 2.0) / np.log(3.0)
    z = place_of(tissue, sphere_radius=of_5_um, sphere_fraction=1.2, sphere_permeability=-1.5)
    signals = emulated_signals_of(acquisition, tissue, z, np.eye(3)[None], radius_spread=0.5)
    truth = tissue_maps(tissue_parameters(tissue, z, KNOWN), np.eye(3)[None])
    equal, different = (
        posterior_of(
            acquisition, signals, 0.005, diffusivity=KNOWN, classes=("spheres",), n_samples=0,
            radius_spread=spread,
        )
        for spread in (0.0, 0.5)
    )  # fmt: skip
    # Sums over 102 measurements without noise; equal cells leave 20.
    assert different.chi_square[0] < 3 < equal.chi_square[0]
    # Not exactly, as the prior prefers some water beside the cells.
    for name in ("restricted_fraction", "pore_diameter"):
        assert different.estimated_maps[name][0] == pytest.approx(truth[name][0], rel=0.05)
    assert equal.estimated_maps["restricted_fraction"][0] < 0.9 * truth["restricted_fraction"][0]


def test_draws_of_tissue_that_no_class_explains_differ():
    rng = np.random.default_rng(5)
    acquisition = protocol()
    rough = np.exp(-0.5 * acquisition.b) + 0.1 * rng.standard_normal(len(acquisition))
    result = posterior_of(acquisition, np.abs(rough)[None], 0.002, n_samples=40)
    # The better half of 40 draws always counts, and no two are alike.
    assert len(np.unique(result.maps["free_water_fraction"])) >= 20


def test_errors_of_shells_are_alike_the_closer_they_are():
    shells = group_into_shells(protocol())
    patterns = error_patterns(shells)
    weighted = shells.b > 0
    assert np.abs(patterns[:, ~weighted]).max() < 1e-12
    covariance = (patterns.T @ patterns)[np.ix_(weighted, weighted)]
    # The least patterns are left out, 3 % of the variance.
    assert 0.96 < np.trace(covariance) / weighted.sum() <= 1
    b, big = shells.b[weighted], shells.big_delta[weighted]
    one = np.flatnonzero(big == 40)
    near, far = covariance[one[1], one[2]], covariance[one[0], one[2]]
    apart = covariance[one[1], np.flatnonzero(big == 15)[1]]
    assert b[one[0]] < b[one[1]] < b[one[2]] and 0.9 > near > far > 0.1 and 0.9 > apart > 0.1


def test_model_with_labels_comes_back_from_its_settings():
    labels = np.arange(len(protocol())) % 2
    model = PackedCellsModel(
        protocol(), amplitudes=labels, diffusivity=(1e-3, 2e-3), radius_spread=0.4
    )
    settings, arrays = model.settings()
    again = PackedCellsModel.from_settings(protocol(), settings, arrays)
    assert again.diffusivity == (1e-3, 2e-3) and (again.labels == labels).all()
    assert again.radius_spread == 0.4
    with pytest.raises(ValueError, match="amplitude was not fitted"):
        model.labels_at(replace(protocol()))


def test_signals_of_several_echo_times_are_predicted_as_they_were_fitted():
    acquisition = protocol(te=(60, 90))
    tissue = tissue_class("spheres", True, relaxes=True)
    z = place_of(tissue, free_water=0.5)
    signals = emulated_signals_of(acquisition, tissue, z, np.eye(3)[None])
    data = magnitudes(signals, np.random.default_rng(0), 0.002)
    fit = PackedCellsModel(acquisition, diffusivity=2e-3).fit(data, sigma=0.002, n_draws=0)
    assert fit.free_water_fraction[0] > 0.05
    # The share of free water grows by half between the echo times; what is fitted leaves noise.
    np.testing.assert_allclose(fit.predict(), data, atol=0.01)


@pytest.mark.parametrize("with_errors", [False, True])
def test_normal_equations_are_those_of_the_whitened_measurements(with_errors):
    rng = np.random.default_rng(0)
    n, labels = 60, np.arange(60) % 3
    signals, slopes = rng.random((1, n)), rng.standard_normal((1, 4, n))
    data = signals + SIGMA * rng.standard_normal((1, n))
    data[0, 0] = -0.01  # real parts, with normal noise
    voxels = tissue_data(data, np.full(1, SIGMA), labels, np.ones(n, dtype=bool))
    if with_errors:
        errors = 0.02 * rng.random((1, 2, n)) * (np.arange(n) // 30 == np.arange(2)[:, None])
        voxels = with_model_errors(voxels, signals, errors)
    one = np.zeros(1, dtype=int)
    white, amplitude, _ = residuals(voxels, signals, one)
    found = normal_equations(voxels, signals, amplitude, slopes, white, one)
    directions = voxels.error_directions[0]
    damped = np.eye(n) - (directions.T * voxels.damping[0]) @ directions
    changes = (slopes[0] * amplitude[0, labels] * voxels.inverse_sd[0]) @ damped
    ends = (signals[0] * voxels.inverse_sd[0] * (labels == np.arange(3)[:, None])) @ damped
    basis = np.linalg.qr(ends.T)[0]
    changes -= changes @ basis @ basis.T
    np.testing.assert_allclose(found[0][0], -changes @ white[0], rtol=1e-9)
    np.testing.assert_allclose(found[1][0], changes @ changes.T, rtol=1e-9)
    if not with_errors:
        # Then the amplitudes are the best, and the gradient is that of the sum of squares.
        step, ends = 1e-6, []
        for sign in (1, -1):
            moved = signals + sign * step * slopes[:, 0]
            ends.append(0.5 * (residuals(voxels, moved, one)[0] ** 2).sum())
        # Central differences: squares of the step, and rounding of sums of some hundred.
        assert found[0][0, 0] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


def test_rounding_does_not_turn_the_directions_that_errors_are_drawn_along():
    rng = np.random.default_rng(0)
    scan, n = protocol(), len(protocol())
    voxels = tissue_data(np.ones((1, n)), np.array([SIGMA]), scan.te_index, np.ones(n, dtype=bool))
    errors = 0.01 * rng.random((1, 2, n)) * (scan.timing_index == np.arange(2)[:, None])
    # As a sum in another order would.
    nearly = errors * (1 + 1e-15 * rng.standard_normal(errors.shape))
    one, other = (
        with_model_errors(voxels, np.ones((1, n)), each).error_directions
        for each in (errors, nearly)
    )
    np.testing.assert_allclose(one, other, atol=1e-12)
    assert (one.max(axis=2) >= -one.min(axis=2)).all()


def test_costs_of_an_expansion_are_those_of_the_posterior():
    """With signals that are corrected for the error of their interpolation."""
    rng, n = np.random.default_rng(0), 3
    tissue, z, frames, signals = drawn_tissue("spheres", n, 5)
    model = tissue_signals(protocol(), KNOWN, 3.0)
    used = np.ones(len(protocol()), bool)
    order = model.shells.order
    data = tissue_data(magnitudes(signals, rng)[:, order], np.full(n, SIGMA), 0 * order, used)
    correction = 0.02 * rng.standard_normal(signals.shape)
    posterior = ClassPosterior(model, tissue, data, correction)
    costs, gradient, hessian = posterior.expansion(z, frames, np.arange(n))
    np.testing.assert_allclose(costs, posterior.cost(z, frames, np.arange(n)), rtol=1e-9)
    without = ClassPosterior(model, tissue, data, 0 * correction)
    assert (np.abs(costs - without.cost(z, frames, np.arange(n))) > 0.1).all()
