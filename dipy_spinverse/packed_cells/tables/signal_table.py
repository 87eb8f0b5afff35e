"""Signals of packed cylinders and spheres over all radii, fractions and permeabilities.

Random packings are simulated at scattered parameters, regressed on them, and tabulated on a
dense tensor grid between whose nodes a cubic spline interpolates. Cylinders are straight and
without ends, so that diffusion along them is free and separable: only gradients across them are
simulated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import qmc

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey.finite_volumes.operator import relative_transmissibility
from dipy_spinverse.bloch_torrey.finite_volumes.simulator import Simulator
from dipy_spinverse.packed_cells.tables.packing import random_packing
from dipy_spinverse.packed_cells.tables.regression import regress
from dipy_spinverse.packed_cells.tables.two_pools import Pulses, two_pool_signal

# um.
RADIUS_RANGE_UM = (0.5, 10.0)
# Volume fractions of the bodies; the upper ones can still be packed at random.
FRACTION_RANGE = {"cylinder": (0.08, 0.8), "sphere": (0.08, 0.66)}
# um/ms.
PERMEABILITY_RANGE = (0.0005, 0.5)
# um/ms; below it a membrane counts as impermeable, and the table's coordinate turns linear.
LEAKLESS = 3e-4
# Values of q for each timing.
N_Q = 8
# Packings in a table.
_N_SIMULATIONS = {"cylinder": 112, "sphere": 88}
# Of the spline along log radius, fraction and log permeability.
_NODES = (25, 17, 19)
# Parameters (logarithm of radius) are scattered more densely towards the top, where the signal
# changes more and a simulation costs less: density at the bottom relative to the mean.
_LEAST_DENSITY = 0.4
# um; on the lattices of smaller bodies float32 is wrong by up to 1 % of S0.
_DOUBLE_BELOW_UM = 0.8
# Time steps per pulse.
_STEPS = 12
# Of the signal, added before its ratio to the closed form is regressed.
_FLOOR = 0.03
# Principal components of the errors that are kept.
_N_MODES = 4
# Errors of the lattice grow with this power of its cubes' size (measured), and
_ORDER = 1.6
# the coarser lattice's cubes are so much larger.
_COARSENING = 1.5
# Above, gaps close on the coarser lattice, and the change says nothing about the limit.
_LOOSE_FRACTION = {"cylinder": 0.6, "sphere": 0.5}
# Volume fraction that the errors are kept for.
_MIDDLE_FRACTION = 0.4


@dataclass(frozen=True, eq=False)
class TableSetting:
    """What a table is for.

    Attributes
    ----------
    shape : {"cylinder", "sphere"}
    timings : ndarray (T, 2)
        delta and Delta, ms.
    q_max : ndarray (T,)
        Largest q of each timing, rad/um.
    diffusivity : float
        um^2/ms.
    """

    shape: str
    timings: np.ndarray
    q_max: np.ndarray
    diffusivity: float

    @property
    def pulses(self) -> Pulses:
        """The tabulated q of each timing (T * 8,)."""
        q = (self.q_max[:, None] * relative_q()).ravel()
        return Pulses(q, *np.repeat(self.timings, N_Q, axis=0).T)

    def closed_form(self, coordinates: np.ndarray) -> np.ndarray:
        """Signals (N, T * 8) of two exchanging pools at coordinates (N, 3)."""
        log_radius, fraction, log_kappa = coordinates.T
        parameters = np.stack([np.exp(log_radius), fraction, np.exp(log_kappa) - LEAKLESS], axis=1)
        return two_pool_signal(self.shape, parameters, self.pulses, self.diffusivity)


@dataclass(frozen=True, eq=False)
class SignalTable:
    """Logarithms of signals across packed cylinders, or of packed spheres.

    Attributes
    ----------
    shape : {"cylinder", "sphere"}
    timings : ndarray (T, 2)
        delta and Delta, ms.
    q_max : ndarray (T,)
        Largest q of each timing, rad/um.
    coefficients : ndarray (nR + 2, nf + 2, nk + 2, T * 8)
        Of the cubic B-spline of log S over log radius, fraction and log(kappa + 0.0003), at 8
        values of q per timing.
    error_modes : ndarray (K, T * 8)
        Principal components, with their standard deviations, of the errors of the signal at
        simulations left out: the differences between packings and those of the regression. They
        are for a fraction of 0.4.
    error_growth : ndarray ()
        Slope of the logarithm of these errors over the fraction.
    """

    shape: str
    timings: np.ndarray
    q_max: np.ndarray
    coefficients: np.ndarray
    error_modes: np.ndarray
    error_growth: np.ndarray

    @property
    def lower(self) -> np.ndarray:
        """Least (log radius, fraction, log(kappa + 0.0003))."""
        return coordinate_range(self.shape)[0]

    @property
    def upper(self) -> np.ndarray:
        """Largest (log radius, fraction, log(kappa + 0.0003))."""
        return coordinate_range(self.shape)[1]

    def errors(self, fraction: float) -> np.ndarray:
        """Errors (K, T * 8) of the signal, one standard deviation each, at a fraction."""
        return self.error_modes * np.exp(self.error_growth * (fraction - _MIDDLE_FRACTION))

    def q_interpolation(self, timing: np.ndarray, q: np.ndarray) -> np.ndarray:
        """Weights (n, T * 8) that give log S, or an error of S, at any q up to `q_max`.

        log S is a polynomial of degree 8 in q^2 without constant term.

        Parameters
        ----------
        timing : ndarray (n,) of int
        q : ndarray (n,)
            rad/um.
        """
        x = (np.asarray(q) / self.q_max[timing]) ** 2
        nodes = np.append(relative_q() ** 2, 0.0)
        weights = np.empty((len(x), N_Q))
        for k in range(N_Q):
            others = np.delete(nodes, k)
            weights[:, k] = ((x[:, None] - others) / (nodes[k] - others)).prod(axis=1)
        result = np.zeros((len(x), len(self.timings), N_Q))
        result[np.arange(len(x)), timing] = weights
        return result.reshape(len(x), -1)


def coordinate_range(shape: str) -> tuple[np.ndarray, np.ndarray]:
    """Ends of (log radius, fraction, log(kappa + 0.0003)) in the table, from kappa = 0."""
    permeability = np.log(np.array([0.0, PERMEABILITY_RANGE[1]]) + LEAKLESS)
    low, high = np.array([np.log(RADIUS_RANGE_UM), FRACTION_RANGE[shape], permeability]).T
    return low, high


def relative_q() -> np.ndarray:
    """The tabulated q (8,), ascending, relative to the largest."""
    return np.cos(np.pi * np.arange(N_Q) / (2 * N_Q))[::-1]


def build_signal_table(setting: TableSetting, seed: int = 0) -> SignalTable:
    """Simulate and regress: 1 (spheres) to 3 (cylinders) CPU-minutes for four timings.

    Parameters
    ----------
    setting : TableSetting
    seed : int, optional

    Returns
    -------
    SignalTable
    """
    simulations = simulate_packings(setting, _N_SIMULATIONS[setting.shape], seed)
    return table_of_simulations(setting, *simulations)


def simulate_packings(
    setting: TableSetting, n_simulations: int, seed: int, refinement: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (N, 3) and signals (2, N, T * 8) of random packings at scattered parameters.

    Every packing is simulated on two lattices, the second with cubes 1.5 times as large.
    """
    shape, diffusivity = setting.shape, setting.diffusivity
    lower, upper = coordinate_range(shape)
    coordinates = lower + (upper - lower) * _scattered(n_simulations, seed)
    acquisition = _table_acquisition(setting)
    signals = np.empty((2, n_simulations, len(setting.timings) * N_Q))
    for row, (log_radius, fraction, log_kappa) in enumerate(coordinates):
        radius, kappa = np.exp(log_radius), np.exp(log_kappa) - LEAKLESS
        dtype = "float64" if radius < _DOUBLE_BELOW_UM else "float32"
        cubes = refinement * _cubes_per_radius(shape, fraction)
        for level in (1, 0):
            rng = np.random.default_rng([seed, row])
            packing = random_packing(shape, fraction, cubes, rng, coarse=level == 1)
            grid = packing.scaled_grid(radius)
            simulator = Simulator(
                acquisition, grid, diffusivity=diffusivity, steps=_STEPS, dtype=dtype
            )
            permeability = packing.face_permeability(kappa)[None]
            tau = torch.from_numpy(relative_transmissibility(grid, permeability, diffusivity))
            both = simulator.signals(tau)[0].double().numpy().reshape(-1, 2)
            signals[level, row] = both.mean(axis=1)
        coordinates[row, 1] = packing.fraction
    return coordinates, signals


def _scattered(n, seed):
    """Points (n, 3) in the unit cube, the first coordinate more densely towards 1."""
    # A power of two keeps the sequence balanced.
    uniform = qmc.Sobol(3, seed=seed).random(2 ** int(np.ceil(np.log2(n))))[:n]
    w = _LEAST_DENSITY
    uniform[:, 0] = (-w + np.sqrt(w**2 + 4 * (1 - w) * uniform[:, 0])) / (2 * (1 - w))
    return uniform


def table_of_simulations(
    setting: TableSetting, coordinates: np.ndarray, signals: np.ndarray
) -> SignalTable:
    """Regress simulated signals (2, N, T * 8) at coordinates (N, 3) and tabulate them.

    Their change between the two lattices is regressed on a quadratic polynomial of the
    parameters, and extrapolated to cubes of no size.
    """
    shape = setting.shape
    lower, upper = coordinate_range(shape)
    scale = np.array([3.0, 1.0, 4.0]) / (upper - lower)
    expected = setting.closed_form(coordinates) + _FLOOR
    regression = regress(coordinates * scale, (signals[0] + _FLOOR) / expected - 1)
    axes = [np.linspace(lower[k], upper[k], n) for k, n in enumerate(_NODES)]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    expected_at_nodes = setting.closed_form(nodes) + _FLOOR
    change = (signals[0] - signals[1]) / expected / (_COARSENING**_ORDER - 1)
    centre = (lower + upper) / 2
    loose = coordinates[:, 1] < _LOOSE_FRACTION[shape]
    corner = np.array([np.inf, _LOOSE_FRACTION[shape], np.inf])
    design, at_nodes = (
        _quadratic((np.minimum(x, corner) - centre) * scale) for x in (coordinates[loose], nodes)
    )
    relative = regression.predict(nodes * scale) + at_nodes @ _robust_fit(design, change[loose])
    values = (1 + relative) * expected_at_nodes - _FLOOR
    # Near and below zero the regression's own error would make logarithms jump.
    least = (expected_at_nodes - _FLOOR) / 12 + 1e-5
    values = least + np.logaddexp(0, (values - least) / least) * least
    log_signals = np.log(np.minimum(values, 1)).reshape(*_NODES, -1)
    for axis in range(3):
        log_signals = _spline_coefficients(log_signals, axis)
    errors = regression.left_out_errors * expected
    excess = coordinates[:, 1] - _MIDDLE_FRACTION
    growth = np.polyfit(excess, np.log(errors.std(axis=1) + 1e-9), 1)[0].clip(0, 6)
    errors = errors * np.exp(-growth * excess)[:, None]
    _, strength, components = np.linalg.svd(errors, full_matrices=False)
    modes = components[:_N_MODES] * strength[:_N_MODES, None] / np.sqrt(len(errors))
    return SignalTable(shape, setting.timings, setting.q_max, log_signals, modes, np.array(growth))


def _spline_coefficients(values, axis):
    """Coefficients of the uniform cubic B-splines through n nodes, n + 2 along the axis.

    The third derivative does not jump at the second node and the last but one.
    """
    n = values.shape[axis]
    matrix = np.zeros((n + 2, n + 2))
    matrix[np.arange(1, n + 1)[:, None], np.arange(n)[:, None] + [0, 1, 2]] = [1 / 6, 4 / 6, 1 / 6]
    matrix[0, :5] = matrix[-1, -5:] = [1, -4, 6, -4, 1]
    padding = [(1, 1) if k == axis else (0, 0) for k in range(values.ndim)]
    right = np.moveaxis(np.pad(values, padding), axis, 0)
    solved = np.linalg.solve(matrix, right.reshape(n + 2, -1)).reshape(right.shape)
    return np.ascontiguousarray(np.moveaxis(solved, 0, axis))


def _quadratic(x):
    """Monomials (N, 10) up to degree 2 of coordinates (N, 3)."""
    i, j = np.triu_indices(3)
    return np.concatenate([np.ones((len(x), 1)), x, x[:, i] * x[:, j]], axis=1)


def _robust_fit(design, outputs):
    """Coefficients of least absolute deviations, one weight for all outputs of a row.

    Where a gap between bodies closes on one lattice only, the change is an outlier.
    """
    weights = np.ones(len(design))
    for _ in range(20):
        normal = (design.T * weights) @ design
        normal += 1e-3 * np.diag(np.diag(normal))
        coefficients = np.linalg.solve(normal, (design.T * weights) @ outputs)
        size = np.linalg.norm(outputs - design @ coefficients, axis=1)
        weights = 1 / (size + 0.3 * np.median(size) + 1e-12)
    return coefficients


def _cubes_per_radius(shape, fraction):
    """Resolution at which the gaps between neighbours stay open."""
    return 2.9 + 4.0 * fraction**2 if shape == "cylinder" else 2.2 + 2.2 * fraction**2


def _table_acquisition(setting):
    """8 q times 2 directions per timing, a full vector register of the simulator."""
    second = [0, 1, 0] if setting.shape == "cylinder" else [1, 1, 1]
    pair = np.array([[1, 0, 0], second], dtype=float)
    pair /= np.linalg.norm(pair, axis=1, keepdims=True)
    q, small, big = (np.repeat(each, 2) for each in setting.pulses)
    return Acquisition(
        b=q**2 * (big - small / 3),
        directions=np.tile(pair, (len(q) // 2, 1)),
        small_delta=small,
        big_delta=big,
        b0_threshold=0,
    )
