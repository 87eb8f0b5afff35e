"""Matrix formalism: signals of finite elements from their slowest Laplace modes.

For closed grids (reflecting outside) and pulsed gradients. The modes cost one sparse eigenvalue
problem; each signal then takes matrices as small as the number of modes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse import eye_array
from scipy.sparse.linalg import LinearOperator, eigsh, splu

from dipy_spinverse.acquisition.conversion import require_pulsed
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey.analytic.bodies import check_positive
from dipy_spinverse.bloch_torrey.encoding_groups import unique_encodings
from dipy_spinverse.bloch_torrey.finite_elements.operator import (
    checked_coefficients,
    coefficients,
    finite_elements,
    lumped_network,
)
from dipy_spinverse.bloch_torrey.finite_elements.sweep import real_product, symmetrised_matrix
from dipy_spinverse.grid import TetrahedralGrid

_COARSER = 2.0  # length scale of the modes whose signals the error is estimated from
_STEP_NORM = 8.0  # of the exponent of one step
_TAYLOR_TOLERANCE = 1e-10
_LEAST_MODES = 32  # also where a body is smaller than the length scale


@dataclass(frozen=True, eq=False)
class LaplaceModes:
    """The slowest modes of diffusion in a closed grid, up to a length scale.

    Attributes
    ----------
    rates : ndarray (n,)
        1/ms, ascending.
    moments : ndarray (3, n, n)
        x, y and z between the modes, um.
    start : ndarray (n,)
        Uniform magnetisation in the modes.
    length_scale_um : float
        Modes of rates up to D (pi / length scale)^2 are kept.
    diffusivity : float
        The largest, um^2/ms.
    """

    rates: np.ndarray
    moments: np.ndarray
    start: np.ndarray
    length_scale_um: float
    diffusivity: float

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
        Modes that vary over shorter lengths are left out, see `length_scale_for`; but at least
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
    if grid.boundary != "reflecting":
        raise ValueError(
            f"grid is {grid.boundary}; the matrix formalism needs a closed one. Give boundary="
            "'reflecting', or step in time with simulate_finite_elements."
        )
    check_positive("length_scale_um", length_scale_um)
    kappa = torch.as_tensor(permeability, dtype=torch.float64)
    points = torch.as_tensor(grid.points_um)
    given = checked_coefficients(grid, kappa, points, diffusivity)
    elements = finite_elements(grid, kappa.numpy())
    values = coefficients(elements, points, kappa, given)
    network = lumped_network(elements, *(x.numpy() for x in values))
    fastest = float(given.max())
    highest = fastest * (np.pi / length_scale_um) ** 2
    rates, modes = _slowest(symmetrised_matrix(network), highest, grid.volume_um3, fastest)
    # from the middle, so that phases stay small
    middle = network.masses @ network.positions / network.masses.sum()
    moments = [modes.T @ (x[:, None] * modes) for x in (network.positions - middle).T]
    reached = np.pi * np.sqrt(fastest / max(rates[-1], 1e-9 * highest))
    length_scale_um = min(float(length_scale_um), float(reached))
    return LaplaceModes(
        rates, np.array(moments), modes.T @ network.start, length_scale_um, fastest
    )


def simulate_modes(acquisition: Acquisition, modes: LaplaceModes) -> tuple[np.ndarray, np.ndarray]:
    """Signals by the matrix formalism, and an estimate of what the left-out modes change.

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
    signals, coarse = (_signals(chosen, used) for used in (modes, modes.coarser()))
    return signals[encoding], np.abs(signals - coarse)[encoding]


def length_scale_for(acquisition: Acquisition, diffusivity: float = 2.0) -> float:
    """Length scale of modes (um) for signals of an acquisition, good to about 1e-3 of S0.

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
    rest = acquisition.big_delta - small
    return (np.abs(state) ** 2 * np.exp(-modes.rates[:, None] * rest)).sum(axis=0)


def _slowest(matrix, highest, volume, diffusivity):
    """Rates and modes (N, n) of a symmetric matrix up to the highest rate."""
    n_nodes = matrix.shape[0]
    # Weyl's law, and as many again for the walls
    n = int(volume * (highest / diffusivity) ** 1.5 / (6 * np.pi**2) * 2) + _LEAST_MODES
    shift = -1e-3 * highest
    factors = splu((matrix - shift * eye_array(n_nodes)).tocsc())
    while True:
        if n > n_nodes // 2:
            rates, modes = np.linalg.eigh(matrix.toarray())
            break
        inverse = LinearOperator(matrix.shape, factors.solve)
        start = np.random.default_rng(0).normal(size=n_nodes)
        rates, modes = eigsh(matrix, n, sigma=shift, OPinv=inverse, v0=start)
        if rates.max() > highest:
            break
        n *= 2
    order = np.argsort(rates)
    order = order[: max(np.sum(rates <= highest), _LEAST_MODES)]
    return np.maximum(rates[order], 0), modes[:, order]
