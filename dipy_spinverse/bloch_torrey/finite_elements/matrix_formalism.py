"""Matrix formalism: signals of finite elements from their slowest Laplace modes.

For closed grids (reflecting outside) and pulsed gradients. The modes cost one sparse eigenvalue
problem; each signal then takes matrices as small as the number of modes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition.conversion import require_pulsed
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey.analytic import check_positive
from dipy_spinverse.bloch_torrey.encoding_groups import unique_encodings
from dipy_spinverse.bloch_torrey.finite_elements.eigenmodes import (
    centred_positions,
    position_moments,
    slowest_modes,
)
from dipy_spinverse.bloch_torrey.finite_elements.operator import (
    checked_coefficients,
    coefficients,
    finite_elements,
    lumped_network,
)
from dipy_spinverse.bloch_torrey.finite_elements.sweep import real_product, symmetrised_matrix
from dipy_spinverse.grid import TetrahedralGrid

# Length scale of the modes from whose signals the error is estimated, relative to that of all.
_COARSER = 2.0
# Norm of the exponent of one step: terms of the Taylor series grow to exp(8), so that rounding
# stays below 1e-12 of the signal.
_STEP_NORM = 8.0
_TAYLOR_TOLERANCE = 1e-10  # of the last term, far below the truncation of the modes
_MIN_MODES = 32  # also where a body is smaller than the length scale


@dataclass(frozen=True, eq=False)
class LaplaceModes:
    """The slowest modes of diffusion in a closed grid, of rates up to D (pi / length scale)^2."""

    rates: np.ndarray  # (n,), 1/ms, ascending
    moments: np.ndarray  # (3, n, n), x, y and z between the modes, um
    start: np.ndarray  # (n,), uniform magnetisation in the modes
    length_scale_um: float
    diffusivity: float  # the largest, um^2/ms

    def __repr__(self) -> str:
        return f"LaplaceModes({len(self.rates)} modes, down to {self.length_scale_um:.3g} um)"

    def coarser(self) -> LaplaceModes:
        """Those of them with a length scale twice as long."""
        length = self.length_scale_um * _COARSER
        n = np.searchsorted(self.rates, self.diffusivity * (np.pi / length) ** 2, side="right")
        return LaplaceModes(
            self.rates[:n], self.moments[:, :n, :n], self.start[:n], length, self.diffusivity
        )


def laplace_modes(
    grid: TetrahedralGrid,
    permeability: ArrayLike,
    length_scale_um: float,
    *,
    diffusivity: ArrayLike = 2.0,
) -> LaplaceModes:
    """Laplace modes of linear finite elements, by sparse shift-and-invert.

    Parameters
    ----------
    grid : TetrahedralGrid
        Of reflecting boundary.
    permeability : array-like (F,)
        um/ms; infinite where there is no membrane.
    length_scale_um : float
        Modes that vary over shorter lengths are omitted, see `length_scale_for`; but at least
        32 are kept.
    diffusivity : float or array-like (T,), optional
        um^2/ms.

    Returns
    -------
    LaplaceModes

    Raises
    ------
    ValueError
        A grid that is not closed, and as `simulate_finite_elements`.

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> grid = bcc_grid(6, 1.0, boundary="reflecting")
    >>> laplace_modes(grid, np.full(grid.n_faces, np.inf), 2.0)
    LaplaceModes(32 modes, down to 1.89 um)
    """
    refuse_open(grid)
    check_positive("length_scale_um", length_scale_um)
    kappa = torch.as_tensor(permeability, dtype=torch.float64)
    points = torch.as_tensor(grid.points_um)
    diffusivities = checked_coefficients(grid, kappa, points, diffusivity)
    elements = finite_elements(grid, kappa.numpy())
    values = coefficients(elements, points, kappa, diffusivities)
    network = lumped_network(elements, *(x.numpy() for x in values))
    fastest = float(diffusivities.max())
    highest_rate = fastest * (np.pi / length_scale_um) ** 2
    # Weyl's law, and as many again for the walls
    n = int(grid.volume_um3 * (highest_rate / fastest) ** 1.5 / (6 * np.pi**2) * 2) + _MIN_MODES
    rates, shapes, _ = slowest_modes(symmetrised_matrix(network), highest_rate, n)
    n = max(int(np.sum(rates <= highest_rate)), _MIN_MODES)
    rates, shapes = rates[:n], shapes[:, :n]
    moments = position_moments(centred_positions(network), shapes)
    reached = np.pi * np.sqrt(fastest / max(rates[-1], 1e-9 * highest_rate))
    length_scale_um = min(float(length_scale_um), float(reached))
    return LaplaceModes(rates, moments, shapes.T @ network.start, length_scale_um, fastest)


def refuse_open(grid: TetrahedralGrid) -> None:
    """Refuse a grid that is not closed."""
    if grid.boundary != "reflecting":
        raise ValueError(
            f"grid is {grid.boundary}; the matrix formalism needs a closed one. Give boundary="
            "'reflecting', or step in time with simulate_finite_elements."
        )


def simulate_modes(acquisition: Acquisition, modes: LaplaceModes) -> tuple[np.ndarray, np.ndarray]:
    """Signals by the matrix formalism, and an estimate of the effect of the omitted modes.

    Parameters
    ----------
    acquisition : Acquisition
        M measurements.
    modes : LaplaceModes

    Returns
    -------
    signals : ndarray (M,)
        Relative to the initial magnetisation.
    truncation : ndarray (M,)
        Difference to the signals of modes of twice the length scale; the error itself is smaller.

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> grid = bcc_grid(6, 1.0, boundary="reflecting")
    >>> modes = laplace_modes(grid, np.full(grid.n_faces, np.inf), 2.0)
    >>> acquisition = Acquisition(b=[1], directions=[1, 0, 0], small_delta=10, big_delta=30)
    >>> signals, truncation = simulate_modes(acquisition, modes)
    >>> bool(truncation < 1e-3)
    True
    """
    representatives, encoding = unique_encodings(require_pulsed(acquisition))
    chosen = acquisition.subset(representatives)
    signals, coarse = (_signals(chosen, subset) for subset in (modes, modes.coarser()))
    return signals[encoding], np.abs(signals - coarse)[encoding]


def length_scale_for(acquisition: Acquisition, diffusivity: float = 2.0) -> float:
    """Length scale of modes (um) for signals of an acquisition, accurate to about 1e-3 of S0.

    1.4 times the shorter of two lengths: that over which gradients dephase, (D delta / q)^(1/3),
    and that which water diffuses during the shortest pulse.

    Examples
    --------
    >>> acquisition = Acquisition(b=[1], directions=[1, 0, 0], small_delta=10, big_delta=30)
    >>> round(length_scale_for(acquisition), 2)
    6.57
    """
    acquisition = require_pulsed(acquisition)
    check_positive("diffusivity", diffusivity)
    q = np.maximum(acquisition.q, 1e-9)
    dephasing = (diffusivity * acquisition.small_delta / q) ** (1 / 3)
    diffusing = np.sqrt(2 * diffusivity * acquisition.small_delta)
    return float(1.4 * np.minimum(dephasing, diffusing).min())


def _signals(acquisition, modes):
    """sum_k exp(-rates_k (Delta - delta)) |v_k|^2, v = exp(-rates delta - i q.moments) start.

    Taylor series of all measurements together, in steps of a norm that keeps them stable.
    """
    q, small = acquisition.q_vectors, acquisition.small_delta
    decay = modes.rates[:, None] * small
    norm = decay.max() + np.linalg.norm(modes.moments, 2, axis=(1, 2)) @ np.abs(q).max(axis=0)
    n_steps = int(np.ceil(norm / _STEP_NORM))
    turns = -1j * q.T / n_steps
    decay /= -n_steps
    state = np.repeat(modes.start[:, None].astype(complex), len(q), axis=1)
    for _ in range(n_steps):
        term, k = state, 1
        while np.abs(term).max() > _TAYLOR_TOLERANCE:
            flow = decay * term
            for moment, turn in zip(modes.moments, turns, strict=True):
                flow += real_product(moment, term) * turn
            term = flow / k
            state = state + term
            k += 1
    pause = acquisition.big_delta - small
    return (np.abs(state) ** 2 * np.exp(-modes.rates[:, None] * pause)).sum(axis=0)
