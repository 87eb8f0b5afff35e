"""Maps of packed cells against formulas, the lift of magnitudes by noise, the width of draws."""

from __future__ import annotations

import numpy as np
import pytest
from inversion_cases import shells
from packed_cell_cases import posterior_of

from dipy_spinverse import bcc_grid, simulate
from dipy_spinverse.packed_cells import posterior
from dipy_spinverse.packed_cells.emulator import Encodings, emulated_signals
from dipy_spinverse.packed_cells.likelihood import expected_signals, tissue_data
from dipy_spinverse.packed_cells.maps import PARAMETERS, tissue_maps
from dipy_spinverse.substrates import spheres


def maps_of(**given):
    parameters = {name: np.zeros(1) for name in PARAMETERS}
    parameters |= {name: np.array([value]) for name, value in given.items()}
    return {name: value[0] for name, value in tissue_maps(parameters, np.eye(3)[None]).items()}


CYLINDERS = {"radius": 2.0, "fraction": 0.6, "permeability": 0.02}
SPHERES = {"sphere_radius": 4.0, "sphere_fraction": 0.4, "sphere_permeability": 0.05}


def test_surface_of_cylinders_and_spheres_is_that_of_the_formulas():
    cylinders = maps_of(**CYLINDERS)
    # 2 pi R L of n cylinders, over the volume that they fill to 0.6: 2 f / R.
    assert cylinders["surface_to_volume"] == pytest.approx(0.6)
    assert cylinders["restricted_fraction"] == pytest.approx(0.6)
    assert cylinders["pore_diameter"] == pytest.approx(4.0) == cylinders["body_diameter"]
    assert cylinders["exchange_time"] == pytest.approx(2.0 / (2 * 0.02))  # R / (2 kappa)
    # 4 pi R^2 over 4/3 pi R^3: 3 f / R.
    round_ones = maps_of(**SPHERES, sphere_share=1.0)
    assert round_ones["surface_to_volume"] == pytest.approx(0.3)
    assert round_ones["pore_diameter"] == pytest.approx(4 / 3 * 4.0)
    assert round_ones["body_diameter"] == pytest.approx(2 * 4.0)
    assert round_ones["exchange_time"] == pytest.approx(4.0 / (3 * 0.05))
    both = maps_of(**CYLINDERS, **SPHERES, sphere_share=0.25)
    assert both["surface_to_volume"] == pytest.approx(0.75 * 0.6 + 0.25 * 0.3)
    # The mean over the volume, and over the area.
    mean_diameter = (0.75 * 0.6 * 4.0 + 0.25 * 0.4 * 8.0) / (0.75 * 0.6 + 0.25 * 0.4)
    assert both["body_diameter"] == pytest.approx(mean_diameter)
    crossing = 0.75 * 0.6 * 0.02 + 0.25 * 0.3 * 0.05
    assert both["wall_permeability"] == pytest.approx(crossing / both["surface_to_volume"])


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_crossing_fibres_have_the_axis_of_the_larger_share_and_the_order_of_both(share):
    angle = 0.4
    maps = maps_of(**CYLINDERS, half_angle=angle, crossing_share=share)
    axes = np.array([[np.sin(s * angle), 0, np.cos(angle)] for s in (1, -1)])
    larger = axes[0] if share < 0.5 else axes[1]
    np.testing.assert_allclose(maps["wall_orientation"], larger, atol=1e-12)
    tensor = (1 - share) * np.outer(axes[0], axes[0]) + share * np.outer(axes[1], axes[1])
    order = (3 * np.linalg.eigvalsh(tensor)[-1] - 1) / 2
    assert maps["wall_anisotropy"] == pytest.approx(order)
    # Gaussian dispersion on the sphere: rotational diffusion, exp(-l (l + 1) t) of degree l.
    dispersed = maps_of(**CYLINDERS, dispersion_1=0.05, dispersion_2=0.05)
    assert dispersed["wall_anisotropy"] == pytest.approx(np.exp(-0.3))


@pytest.mark.parametrize("beside", ["free_water", "dot", "hindered"])
def test_water_beside_the_cells_takes_its_share_of_surface_and_fraction(beside):
    maps = maps_of(**CYLINDERS, **{beside: 0.25})
    assert maps["surface_to_volume"] == pytest.approx(0.75 * 0.6)
    assert maps["restricted_fraction"] == pytest.approx(0.75 * 0.6)
    assert maps[f"{beside}_fraction"] == pytest.approx(0.25)
    for name in ("wall_permeability", "pore_diameter", "exchange_time"):
        assert maps[name] == pytest.approx(maps_of(**CYLINDERS)[name]), name


def test_noise_lifts_magnitudes_as_their_mean_says_and_leaves_real_parts():
    signals, sigma = np.array([[0.0, 0.5, 1.0, 3.0, 20.0]]), 2.0
    labels, used = np.zeros(5, int), np.ones(5, bool)
    magnitudes = tissue_data(np.ones((1, 5)), np.array([sigma]), labels, used)
    draws = np.random.default_rng(0).standard_normal((2, 200_000, 1)) * sigma
    mean = np.hypot(signals + draws[0], draws[1]).mean(axis=0)
    # 200 000 draws of a scatter of 0.65 sigma: 0.003; interpolation in a table.
    np.testing.assert_allclose(expected_signals(magnitudes, signals)[0], mean, atol=0.015)
    assert expected_signals(magnitudes, signals)[0, 0] == pytest.approx(
        sigma * np.sqrt(np.pi / 2), rel=0.005
    )
    real = tissue_data(np.array([[-1.0, 1, 1, 1, 1]]), np.array([sigma]), labels, used)
    np.testing.assert_array_equal(expected_signals(real, signals), signals)


def test_draws_are_those_of_data_with_twice_the_variance_of_the_noise(monkeypatch):
    acquisition = shells([(8, 30)], (1.0, 2.0), 15, n_b0=4)
    noise = 0.005 * np.random.default_rng(0).standard_normal((2, len(acquisition)))
    data = np.hypot(np.exp(-1.0 * acquisition.b) + noise[0], noise[1])

    def spread():
        found = posterior_of(acquisition, data[None], 0.005, n_samples=400, classes=("no cells",))
        return found.maps["diffusivity_outside"].std()

    widened = spread()
    monkeypatch.setattr(posterior, "_NOISE_INFLATION", 1.0)
    # At most the root of two; the prior of free and still water holds part of the draws.
    assert 1.15 < widened / spread() < 1.8


def test_emulator_of_spheres_is_right_for_a_lattice_of_them():
    # Four spheres on a face-centred lattice, walls on faces of tetrahedra of about R / 4. Here the
    # network is 0.06 to 0.09 of S0 of what the emulator says.
    radius, fraction, permeability = 5.0, 0.5, 0.1
    side = (4 * 4 / 3 * np.pi * radius**3 / fraction) ** (1 / 3)
    grid = bcc_grid(10, side / 10)
    places = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) * side / 2
    acquisition = shells([(10, 40)], (0.5, 2.0), 3)
    walls = spheres(grid, places, radius, permeability=permeability)
    simulated = simulate(acquisition, grid, walls, dtype="float32")
    q = acquisition.q
    scan = Encodings(q, 0 * q, acquisition.small_delta, acquisition.big_delta)
    tissue = np.array([[radius, fraction, permeability, 2.0, 2.0]])
    emulated = emulated_signals("sphere", tissue, scan)[0]
    # Lattice walls are rough, and a regular order is not a random one: 2 % of S0.
    np.testing.assert_allclose(emulated, simulated, atol=0.02)
