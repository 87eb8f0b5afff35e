"""The unknowns of an inversion, and the signals that they predict.

The unknown of a face is the scaled transmissibility s in [0, 1] (0 impermeable, 1 no membrane), a
monotonic function of its relative transmissibility tau,

    s = (1 + c) tau / (tau + c),        tau = s / (1 + (1 - s) / c),

whose gradient does not vanish at either end and which uses half of its range for walls with tau
below c / (1 + 2 c), where signals change most.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TypeVar

import numpy as np
import torch
from torch.nn.functional import pad

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.bloch_torrey import Simulator, relative_transmissibility
from dipy_spinverse.bloch_torrey.analytic import free_signal
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.inversion.priors import evaluate_priors

# Scaled transmissibility below which a face counts as a wall: half way between the two.
WALL_THRESHOLD = 0.5
# c above: chosen by hand.
_C = 0.4
_Values = TypeVar("_Values", np.ndarray, torch.Tensor)


def scaled_transmissibility(transmissibility: _Values) -> _Values:
    """Scaled transmissibility s in [0, 1] of relative ones in [0, 1], same shape and kind."""
    return (1 + _C) * transmissibility / (transmissibility + _C)


def transmissibility(scaled: _Values) -> _Values:
    """Relative transmissibility in [0, 1] of the scaled one s in [0, 1], same shape and kind."""
    return scaled / (1 + (1 - scaled) / _C)


def transmissibility_slope(scaled: _Values) -> _Values:
    """Derivative of :func:`transmissibility`, same shape and kind."""
    return (1 + 1 / _C) / (1 + (1 - scaled) / _C) ** 2


def wall_faces(grid: TetrahedralGrid, permeability: np.ndarray, diffusivity: float) -> np.ndarray:
    """Which faces (..., F) of a field of permeabilities, um/ms, count as walls."""
    tau = relative_transmissibility(grid, permeability, diffusivity)
    return scaled_transmissibility(tau) < WALL_THRESHOLD


class SignalModel:
    """Signals S_m = a_TE ((1 - f) G_m(s) + f exp(-b_m D_w)) and their derivatives.

    The unknowns of V voxels are rows x = [s (F), a (one per echo time), f] of a tensor (V, N);
    without the amplitudes a (which are 1) if the initial magnetisation is known, and without the
    free-water fraction f if it is not estimated. G are the signals of `simulator`; D_w is in
    um^2/ms.
    """

    def __init__(
        self,
        simulator: Simulator,
        acquisition: Acquisition,
        *,
        amplitudes: bool,
        free_water: bool,
        free_diffusivity: float = 3.0,
    ):
        self.simulator, device = simulator, simulator.device
        self.n_faces = simulator.grid.n_faces
        self.n_amplitudes = len(acquisition.echo_times) if amplitudes else 0
        self.free_water = free_water
        self.n_unknowns = self.n_faces + self.n_amplitudes + free_water
        free = free_signal(acquisition, free_diffusivity)
        self._free_signals = torch.as_tensor(free, device=device)
        self._te_index = torch.as_tensor(acquisition.te_index.copy(), device=device)

    def restricted_to(self, simulator: Simulator, mask: torch.Tensor) -> SignalModel:
        """The model of some of the measurements, those of `simulator`."""
        restricted = copy(self)
        restricted.simulator = simulator
        restricted._free_signals = self._free_signals[mask]
        restricted._te_index = self._te_index[mask]
        return restricted

    def split(self, unknowns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """s (V, F), amplitude of each measurement (V, M), free-water fraction (V, 1)."""
        scaled = unknowns[:, : self.n_faces]
        if self.n_amplitudes:
            amplitudes = unknowns[:, self.n_faces : self.n_faces + self.n_amplitudes]
            amplitude = amplitudes[:, self._te_index]
        else:
            amplitude = unknowns.new_ones(len(unknowns), len(self._te_index))
        zero = unknowns.new_zeros(len(unknowns), 1)
        return scaled, amplitude, unknowns[:, -1:] if self.free_water else zero

    def bounds(self, template: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lower and upper bounds (N,) of the unknowns."""
        lower, upper = template.new_zeros(self.n_unknowns), template.new_ones(self.n_unknowns)
        upper[self.n_faces : self.n_faces + self.n_amplitudes] = torch.inf
        return lower, upper

    def with_best_amplitudes(
        self,
        unknowns: torch.Tensor,
        in_grid: torch.Tensor,
        data: torch.Tensor,
        sigma: torch.Tensor,
    ) -> torch.Tensor:
        """Unknowns with least-squares amplitudes, for data and signals of the grid (V, M).

        Amplitudes of echo times without data are unchanged.
        """
        if not self.n_amplitudes:
            return unknowns
        fraction = self.split(unknowns)[2]
        relative = ((1 - fraction) * in_grid + fraction * self._free_signals) / sigma
        zeros = data.new_zeros(len(data), self.n_amplitudes)
        overlap = zeros.index_add(1, self._te_index, relative * data / sigma)
        power = zeros.index_add(1, self._te_index, relative**2)
        result = unknowns.clone()
        columns = slice(self.n_faces, self.n_faces + self.n_amplitudes)
        estimates = overlap / power.clamp_min(torch.finfo(data.dtype).tiny)
        result[:, columns] = torch.where(power > 0, estimates, result[:, columns])
        return result

    def in_grid(self, unknowns: torch.Tensor) -> torch.Tensor:
        """Signals G (V, M) of the grid alone, relative to its initial magnetisation."""
        tau = transmissibility(unknowns[:, : self.n_faces])
        return self.simulator.signals(tau).to(unknowns)

    def signals(self, unknowns: torch.Tensor) -> torch.Tensor:
        """Signals (V, M) of unknowns (V, N)."""
        _, amplitude, fraction = self.split(unknowns)
        in_grid = self.in_grid(unknowns)
        return amplitude * ((1 - fraction) * in_grid + fraction * self._free_signals)

    def sensitivities(self, unknowns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Signals (V, M) and their derivatives (V, M, N) by the unknowns (V, N)."""
        scaled, amplitude, fraction = self.split(unknowns)
        in_grid, by_tau = self.simulator.sensitivities(transmissibility(scaled))
        in_grid = in_grid.to(unknowns)
        relative = (1 - fraction) * in_grid + fraction * self._free_signals
        n_voxels, n_signals = relative.shape
        jacobian = unknowns.new_zeros(n_voxels, n_signals, self.n_unknowns)
        by_face = by_tau.to(unknowns) * transmissibility_slope(scaled)[:, None]
        jacobian[..., : self.n_faces] = by_face * ((1 - fraction) * amplitude)[..., None]
        if self.n_amplitudes:
            columns = self.n_faces + self._te_index
            jacobian[:, torch.arange(n_signals), columns] = relative
        if self.free_water:
            jacobian[..., -1] = amplitude * (self._free_signals - in_grid)
        return amplitude * relative, jacobian

    def penalty(
        self, unknowns: torch.Tensor, priors: Sequence
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Value (V,), gradient and Gauss-Newton weight (V, N) of priors on the walls."""
        scaled = unknowns[:, : self.n_faces]
        value, gradient, weight = evaluate_priors(priors, self.simulator.grid, scaled)
        padding = (0, self.n_unknowns - self.n_faces)
        return value, pad(gradient, padding), pad(weight, padding)
