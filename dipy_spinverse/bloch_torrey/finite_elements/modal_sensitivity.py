"""Signals of closed bodies by their slowest Laplace modes, and derivatives by vertex positions.

The matrix formalism made differentiable. With n modes Phi of rates L, signals depend on

    Phi^T A Phi,   Phi^T x_d Phi  (d = x, y, z),   Phi^T s,

with A the symmetrised operator, x the positions and s the start. The modes depend on A. Their
change within their span changes no signal; outside of it, mode k changes by
-(A - L_k)^+ P dA phi_k, with P the projection on all that is not kept. Without this response of
the modes, derivatives by single vertices are wrong by some percent, with it only by the
truncation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse import csr_matrix

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.acquisition.conversion import require_pulsed
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey.encoding_groups import unique_encodings
from dipy_spinverse.bloch_torrey.finite_elements.eigenmodes import (
    Eigenmodes,
    centred_positions,
    position_moments,
)
from dipy_spinverse.bloch_torrey.finite_elements.matrix_formalism import (
    length_scale_for,
    refuse_open,
)
from dipy_spinverse.bloch_torrey.finite_elements.operator import (
    checked_coefficients,
    coefficients,
    finite_elements,
    lumped_network,
    refuse_inverted,
)
from dipy_spinverse.bloch_torrey.finite_elements.pulse_states import PulseStates, pulse_groups
from dipy_spinverse.bloch_torrey.finite_elements.sweep import LumpedNetwork
from dipy_spinverse.grid import TetrahedralGrid

# Length scale of modes for signals over that for derivatives, which need more of them for the
# same accuracy (tests/test_modal_sensitivity.py).
_FINER = 1.4
_FIELDS_TOGETHER = 40  # fields of which derivatives are taken at once, to bound the memory


class ModalSensitivities:
    """Signals of an acquisition in a closed grid whose vertices move, and their derivatives.

    A :class:`~dipy_spinverse.bloch_torrey.propagators.Propagator` of the vertex positions.

    Parameters
    ----------
    acquisition : Acquisition
        M measurements of pulsed gradients, of any number of timings.
    grid : TetrahedralGrid
        Of reflecting boundary.
    permeability : array-like (F,), optional
        um/ms, of membranes inside; none by default.
    diffusivity : float or array-like (T,), optional
        um^2/ms.
    length_scale_um : float, optional
        Modes that vary over shorter lengths are omitted; `length_scale_of_derivatives` by
        default. 0 keeps all of them.
    steps : int, optional
        Time steps of a pulse, a multiple of 4.

    Raises
    ------
    ValueError
        A grid that is not closed, free waveforms, arguments of wrong shape or range.

    Examples
    --------
    >>> from dipy_spinverse.grid import bcc_grid
    >>> grid = bcc_grid(4, 1.5, boundary="reflecting")
    >>> acquisition = Acquisition(b=[0, 1], directions=[[0, 0, 0], [1, 0, 0]],
    ...                           small_delta=10, big_delta=30)
    >>> body = ModalSensitivities(acquisition, grid).at(grid.points_um)
    >>> wider = grid.points_um * [1, 0, 0]  # how points move as the body widens
    >>> change = body.jacobian(wider[None])[:, 0]
    >>> bool(body.signals[0] == 1 and change[1] < 0)
    True
    >>> bool(np.isclose((body.gradient([0, 1]) * wider).sum(), change[1]))
    True
    """

    def __init__(
        self,
        acquisition: BaseAcquisition,
        grid: TetrahedralGrid,
        permeability: ArrayLike | None = None,
        *,
        diffusivity: ArrayLike = 2.0,
        length_scale_um: float | None = None,
        steps: int = 8,
    ):
        refuse_open(grid)
        if steps < 4 or steps % 4:
            raise ValueError(f"steps is {steps!r}; give a multiple of 4.")
        if length_scale_um is not None and not length_scale_um >= 0:
            raise ValueError(f"length_scale_um is {length_scale_um}; give 0 or a length above.")
        kappa = np.full(grid.n_faces, np.inf) if permeability is None else permeability
        self.permeability = torch.as_tensor(np.asarray(kappa, dtype=float))
        points = torch.as_tensor(grid.points_um)
        self.diffusivity = checked_coefficients(grid, self.permeability, points, diffusivity)
        self.acquisition, self.grid, self.steps = require_pulsed(acquisition), grid, int(steps)
        fastest = float(self.diffusivity.max())
        if length_scale_um is None:
            length_scale_um = length_scale_of_derivatives(self.acquisition, fastest)
        self.length_scale_um = float(length_scale_um)
        self._highest_rate = (
            fastest * (np.pi / length_scale_um) ** 2 if length_scale_um else np.inf
        )
        self.elements = finite_elements(grid, self.permeability.numpy())

    def at(self, points_um: ArrayLike) -> ModalSignals:
        """Signals with the vertices at points (N, 3), um, and what derivatives need.

        Raises
        ------
        ValueError
            Points at which tetrahedra are inverted.
        """
        points = torch.as_tensor(points_um, dtype=torch.float64).detach()
        refuse_inverted(self.grid, points.numpy())
        values = (x.numpy() for x in self.coefficients_at(points))
        network = lumped_network(self.elements, *values)
        return ModalSignals(
            self, points.numpy(), network, Eigenmodes.of(network, self._highest_rate)
        )

    def signals(self, points: torch.Tensor) -> torch.Tensor:
        """Signals (M,) with the vertices at points (N, 3); see `Propagator`."""
        return torch.as_tensor(self.at(points).signals)

    def pull_back(self, cotangent: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Derivatives (N, 3) of the sum of cotangent times signals; see `Propagator`."""
        return torch.as_tensor(self.at(points).gradient(cotangent))

    def coefficients_at(self, points: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Conductances, masses and positions of the network, see `coefficients`."""
        return coefficients(self.elements, points, self.permeability, self.diffusivity)

    @cached_property
    def unique(self) -> tuple[Acquisition, np.ndarray]:
        """Measurements that differ in more than sign, and which of them each measurement is."""
        representatives, encoding = unique_encodings(self.acquisition)
        return self.acquisition.subset(representatives), encoding


@dataclass(frozen=True, eq=False)
class ModalSignals:
    """Signals at one set of points, and their derivatives: see :meth:`ModalSensitivities.at`."""

    sensitivities: ModalSensitivities
    points: np.ndarray  # (N, 3), um
    network: LumpedNetwork
    modes: Eigenmodes

    def __repr__(self) -> str:
        return f"ModalSignals({len(self.signals)} signals, {len(self.modes.rates)} modes)"

    @cached_property
    def signals(self) -> np.ndarray:
        """(M,), relative to the initial magnetisation."""
        acquisition, encoding = self.sensitivities.unique
        signals = np.ones(len(acquisition))
        for states in self._pulse_states:
            signals[states.group.rows] = states.signals()
        return signals[encoding]

    def gradient(self, weights: ArrayLike) -> np.ndarray:
        """Derivatives (N, 3) of weights (M,) times signals by points, 1/um."""
        acquisition, encoding = self.sensitivities.unique
        weights = np.bincount(encoding, np.asarray(weights, float), len(acquisition))
        modes, network = self.modes, self.network
        n = len(modes.rates)
        by_rates, by_moments, by_start = np.zeros((n, n)), np.zeros((3, n, n)), np.zeros(n)
        for states in self._pulse_states:
            contributions = states.pull_back(weights[states.group.rows])
            for total, x in zip((by_rates, by_moments, by_start), contributions, strict=True):
                total += x
        by_rates, by_moments = _symmetric(by_rates), _symmetric(by_moments)
        phi, x = modes.shapes, centred_positions(network)
        by_position = np.stack([((phi @ by) * phi).sum(axis=1) for by in by_moments], axis=1)
        forcing = 2 * sum(x[:, [d]] * (phi @ by_moments[d]) for d in range(3))
        adjoint = phi @ by_rates - modes.response(forcing)

        root = np.sqrt(network.masses)[:, None]
        i, j = network.ends.T
        psi, chi = adjoint / root, phi / root
        by_conductance = ((psi[i] - psi[j]) * (chi[i] - chi[j])).sum(axis=1)
        flow = adjoint * (phi * modes.rates) + phi * (modes.matrix @ adjoint)
        by_mass = -flow.sum(axis=1) / (2 * network.masses)
        of_start = (phi @ by_start) * network.start / 2
        by_mass += of_start / network.masses - of_start.sum() / network.masses.sum()

        cotangents = [torch.as_tensor(x) for x in (by_conductance, by_mass, by_position)]
        with torch.enable_grad():
            points = torch.tensor(self.points, requires_grad=True)
            values = self.sensitivities.coefficients_at(points)
            return torch.autograd.grad(values, points, cotangents)[0].numpy()

    def jacobian(self, fields: ArrayLike) -> np.ndarray:
        """Derivatives (M, P) of signals as the points move along fields (P, N, 3).

        For fields in um per unit of a parameter, derivatives by the parameters.
        """
        acquisition, encoding = self.sensitivities.unique
        fields = np.asarray(fields, dtype=float)
        jacobian = np.zeros((len(acquisition), len(fields)))
        for start in range(0, len(fields), _FIELDS_TOGETHER):
            columns = slice(start, start + _FIELDS_TOGETHER)
            changes = self._changes_of_modes(fields[columns])
            for states in self._pulse_states:
                jacobian[states.group.rows, columns] = states.changes(*changes)
        return jacobian[encoding]

    @cached_property
    def _pulse_states(self):
        """States of all measurements that are weighted, in groups of limited size."""
        positions, shapes = centred_positions(self.network), self.modes.shapes
        extent = 2 * np.linalg.norm(positions, axis=1).max()
        moments, start = position_moments(positions, shapes), self.network.start @ shapes
        acquisition, _ = self.sensitivities.unique
        return [
            PulseStates.after(chunk, self.modes.rates, moments, start, self.sensitivities.steps)
            for group in pulse_groups(acquisition, extent)
            for chunk in group.chunks(len(self.modes.rates))
        ]

    def _changes_of_modes(self, fields):
        """Of Phi^T A Phi (P, n, n), Phi^T x Phi (P, 3, n, n) and Phi^T s (P, n) along fields."""
        modes, network, x = self.modes, self.network, centred_positions(self.network)
        phi, rates, start = modes.shapes, modes.rates, network.start
        n, n_modes = phi.shape
        root = np.sqrt(network.masses)[:, None]
        differences = csr_matrix(
            (np.tile([1.0, -1.0], len(network.ends)), network.ends.ravel(),
             np.arange(0, 2 * len(network.ends) + 1, 2)), (len(network.ends), n),
        )  # fmt: skip
        jumps, divergence = differences @ (phi / root), differences.T.tocsr()
        of_conductance, of_mass, of_position = self._changes_of_coefficients(fields)
        relative = of_mass / network.masses
        forcing = np.empty((len(fields), n, n_modes))
        for p, (g, m) in enumerate(zip(of_conductance, relative / 2, strict=True)):
            drift = m[:, None] * phi
            forcing[p] = (divergence @ (g[:, None] * jumps)) / root
            forcing[p] -= drift * rates + modes.matrix @ drift
        of_rates = phi.T @ forcing
        of_moments = np.empty((len(fields), 3, n_modes, n_modes))
        for d in range(3):
            of_moments[:, d] = phi.T @ (of_position[:, :, d, None] * phi)
        of_moments -= 2 * modes.moments_of_response(x, forcing)
        lost = of_mass.sum(axis=1) / network.masses.sum()
        of_start = (start / 2 * (relative - lost[:, None])) @ phi
        return of_rates, _symmetric(of_moments), of_start

    def _changes_of_coefficients(self, fields):
        """Of conductances (P, L), masses (P, N) and positions (P, N, 3) along fields (P, N, 3)."""
        points, coefficients_at = torch.as_tensor(self.points), self.sensitivities.coefficients_at

        def change(field):
            return torch.func.jvp(coefficients_at, (points,), (field,))[1]

        return [x.numpy() for x in torch.func.vmap(change)(torch.as_tensor(fields))]


def length_scale_of_derivatives(acquisition: Acquisition, diffusivity: float = 2.0) -> float:
    """Length scale of modes (um) for derivatives by vertices, accurate to some 1e-3."""
    return length_scale_for(acquisition, diffusivity) / _FINER


def _symmetric(matrices):
    return (matrices + np.swapaxes(matrices, -1, -2)) / 2
