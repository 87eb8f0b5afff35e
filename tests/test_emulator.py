"""The emulator of packed cells is right where exact answers are known."""

import numpy as np
import pytest

from benchmarks.lattice_spheres import sphere_packing
from benchmarks.periodic_cylinders import (
    matrices_of,
    pulse_signals,
    random_mesh,
    reduced,
)
from dipy_spinverse.bloch_torrey.analytic import gaussian_phase_attenuation
from dipy_spinverse.packed_cells.emulator import Encodings, emulated_signals, emulator_error

SHAPES = ("cylinder", "sphere")


def encodings(across, along=0.0, small=5.0, big=30.0):
    parts = np.broadcast_arrays(np.atleast_1d(across), along, small, big)
    return Encodings(*(part.astype(float) for part in parts))


def test_meshes_have_the_area_and_the_outline_of_their_circles():
    mesh = random_mesh(6, 0.6, np.random.default_rng(4))
    inside = mesh.areas[mesh.inside].sum()
    # Polygons of circles' area but for the fourth order of their edges.
    np.testing.assert_allclose([inside, inside / mesh.areas.sum()], [6 * np.pi, 0.6], rtol=1e-3)
    np.testing.assert_allclose(mesh.lengths.sum(), 6 * 2 * np.pi, rtol=1e-10)


def test_sphere_packings_have_the_volume_and_the_area_of_their_bodies():
    packing = sphere_packing(0.5, 3.0, np.random.default_rng(0), coarse=False)
    np.testing.assert_allclose(packing.fraction, 0.5, atol=0.005)
    walls = packing.resistance > 0
    area = (packing.grid.face_areas[walls] / packing.resistance[walls]).sum()
    # 3 %, as of single bodies on cubes of a third of the radius.
    np.testing.assert_allclose(area / packing.grid.volumes.sum(), 3 * 0.5 / 3.0, rtol=0.05)


def test_no_state_that_pulses_pass_is_missing_from_the_small_matrices():
    mesh, across = random_mesh(8, 0.7, np.random.default_rng(1)), np.array([1.0, 0.0, 0.0])
    times = np.array([0.5, 4.0]), np.array([5.0, 5.0])
    both = [
        pulse_signals(reduced(matrices_of(mesh), 0.02, 0.6, across, 1.5, 5.0, finer), 1.5, *times)
        for finer in (1, 2)
    ]
    # A fifth of what packings of these numbers differ by; eigenmodes at q = 0 would miss ten.
    np.testing.assert_allclose(both[0][1], both[1][1], atol=2e-3)


def tissues(shape, n=200, seed=0):
    rng = np.random.default_rng(seed)
    high = 0.8 if shape == "cylinder" else 0.66
    return np.stack([
        np.exp(rng.uniform(np.log(0.3), np.log(12), n)),
        rng.uniform(0.05, high, n),
        np.exp(rng.uniform(np.log(5e-4), np.log(0.5), n)),
        rng.uniform(0.5, 2.5, n),
        rng.uniform(0.8, 2.5, n),
    ], axis=1)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_signals_are_one_without_a_gradient_and_never_leave_their_range(shape):
    signals = emulated_signals(shape, tissues(shape), encodings([0.0, 0.05, 0.3, 1.0]))
    np.testing.assert_allclose(signals[:, 0], 1, rtol=1e-12)
    # The offset of the logarithm lets what has decayed fall a little below zero.
    assert signals.min() > -0.02 and signals.max() <= 1.001


@pytest.mark.parametrize("shape", SHAPES)
def test_signals_fall_as_the_gradient_rises(shape):
    # To a bD of 3, where nothing has come back to a maximum of diffraction.
    q = np.linspace(0, np.sqrt(3 / 2 / 28), 12)
    signals = emulated_signals(shape, tissues(shape), encodings(q))
    assert (np.diff(signals, axis=1) < 1e-4).all()


def test_water_along_cylinders_is_free():
    tissue = tissues("cylinder")
    tissue[:, 4] = tissue[:, 3]
    along = np.array([0.05, 0.1, 0.2])
    signals = emulated_signals("cylinder", tissue, encodings(0.0, along))
    b = along**2 * (30 - 5 / 3)
    np.testing.assert_allclose(signals, np.exp(-b * tissue[:, 3:4]), rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_only_dimensionless_numbers_matter(shape):
    tissue, scan = tissues(shape), encodings([0.1, 0.4])
    # Twice as large, in half the diffusivity, for eight times as long.
    larger = tissue * np.array([2, 1, 0.25, 0.5, 0.5])
    slower = Encodings(scan.q_across / 2, scan.q_along, scan.small_delta * 8, scan.big_delta * 8)
    np.testing.assert_allclose(
        emulated_signals(shape, larger, slower), emulated_signals(shape, tissue, scan), atol=1e-5
    )  # networks are in single precision


def test_what_is_left_at_strong_gradients_is_the_impermeable_fraction():
    radius, fraction = 1.0, np.array([0.2, 0.4, 0.6])
    tissue = np.stack([0 * fraction + radius, fraction, 0 * fraction, 0 * fraction + 1.5,
                       0 * fraction + 1.5], axis=1)  # fmt: skip
    q = np.array([0.8])  # b of 25 ms/um^2: between the cylinders nothing is left
    signals = emulated_signals("cylinder", tissue, encodings(q, big=40.0))[:, 0]
    inside = np.exp(-gaussian_phase_attenuation("cylinder", radius, q, 5.0, 40.0, 1.5))
    # The closed form is right here to 1e-3, and the network almost without a say.
    np.testing.assert_allclose(signals, fraction * inside, atol=0.003)


def test_membranes_without_resistance_leave_free_water():
    scan = encodings([0.1, 0.2])
    tissue = np.array([[6.0, 0.5, 5.0, 2.0, 2.0]])  # kappa R / D of 15
    free = np.exp(-2 * scan.q_across**2 * (30 - 5 / 3))
    # Fifteen, not infinite: the membranes still cost a few percent of D.
    np.testing.assert_allclose(emulated_signals("cylinder", tissue, scan)[0], free, atol=0.03)


@pytest.mark.parametrize(("fraction", "permeability", "inside"),
                         [(0.3, 0.1, 1.0), (0.45, 0.02, 0.6), (0.55, 0.3, 1.4)])  # fmt: skip
def test_a_packing_it_has_not_seen_lies_within_its_stated_error(fraction, permeability, inside):
    rng, time, pulse = np.random.default_rng(99), 4.0, 0.3
    mesh = random_mesh(4, fraction, rng)
    direction = np.array([0.96, 0.0, 0.28])
    small = reduced(matrices_of(mesh), permeability, inside, direction, 1.2, time)
    q, signals = pulse_signals(small, 1.2, np.array([pulse * time]), np.array([time]))
    # R = 3 um, D = 2 um^2/ms outside: D Delta / R^2 = 4 for 18 ms.
    radius, outside, big = 3.0, 2.0, 18.0
    scan = encodings(q * 0.96 / radius, q * 0.28 / radius, pulse * big, big)
    tissue = np.array(
        [[radius, fraction, permeability * outside / radius, inside * outside, outside]]
    )
    error = emulator_error("cylinder", tissue, scan)[0]
    difference = emulated_signals("cylinder", tissue, scan)[0] - signals[:, 0]
    assert (np.abs(difference) < 3 * error + 1e-3).all()  # 1e-3: of the finite elements
    assert error.max() < 0.02


def test_the_stated_error_grows_where_cylinders_are_dense():
    scan = encodings([0.2])
    loose, dense = ([[3.0, fraction, 0.01, 2.0, 2.0]] for fraction in (0.2, 0.7))
    errors = [emulator_error("cylinder", np.array(tissue), scan) for tissue in (loose, dense)]
    assert errors[1] > 1.5 * errors[0]  # packings differ by two to four times as much
