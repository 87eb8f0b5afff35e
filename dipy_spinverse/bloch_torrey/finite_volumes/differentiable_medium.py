"""Signals as differentiable functions of diffusivity, spin density and T2, for torch.

The entries of the operator are computed from these by torch, and the signals' derivatives by the
entries from the adjoint state.
"""

from __future__ import annotations

import numpy as np
import torch

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.bloch_torrey.finite_volumes.compiled_sweep import (
    CompiledSweep,
    face_operator,
)
from dipy_spinverse.bloch_torrey.finite_volumes.operator import links_of
from dipy_spinverse.bloch_torrey.finite_volumes.simulator import Simulator
from dipy_spinverse.bloch_torrey.propagators import differentiable_signals

_CHUNK = 64  # measurements whose derivatives are kept together


def medium_signals(
    simulator: Simulator,
    acquisition: BaseAcquisition,
    permeability: torch.Tensor,
    *,
    diffusivity: torch.Tensor,
    initial_density: torch.Tensor,
    t2_ms: torch.Tensor,
) -> torch.Tensor:
    """Signals (M,) of a permeability field (F,) in a medium of tensors, each () or (T,).

    The simulator is that of the same medium, as numbers; outer faces have no membrane.
    """
    grid = simulator.grid
    tensor = diffusivity.new_tensor
    diffusivity, density = (x.expand(grid.n_tetrahedra) for x in (diffusivity, initial_density))
    weights = density * tensor(grid.volumes)
    first, second = torch.as_tensor(grid.face_tetrahedra.astype(np.int64)).T
    distances = tensor(grid.face_distances)
    resistance = distances[:, 0] / (diffusivity * density)[first]
    resistance = resistance + distances[:, 1] / (diffusivity * density)[second]
    shared = 2 * density[first] * density[second] / (density[first] + density[second])
    # Two equal forms, each where its derivatives are finite: at 0, and without a membrane.
    low, one = permeability <= 1, torch.ones_like(permeability)
    small, large = torch.where(low, permeability, one), torch.where(low, one, permeability)
    per_area = torch.where(
        low, small / (1 / shared + small * resistance), 1 / (resistance + 1 / large / shared)
    )
    conductance = tensor(grid.face_areas) * per_area
    coupling = conductance / torch.sqrt(weights[first] * weights[second])
    outflow = torch.zeros_like(weights).index_add(0, first, conductance)
    outflow = outflow.index_add(0, second, conductance)
    loss = torch.zeros_like(weights)
    if grid.boundary == "absorbing":
        outer = torch.as_tensor(grid.outer_tetrahedra.astype(np.int64))
        per_length = tensor(grid.outer_areas / grid.absorption_distances_um)
        loss = loss.index_add(0, outer, per_length * diffusivity[outer]) / tensor(grid.volumes)
    attenuation: torch.Tensor | float = 1.0
    if t2_ms.ndim:
        loss = loss + 1 / t2_ms
    else:
        attenuation = torch.exp(-tensor(acquisition.te) / t2_ms)
    start = torch.sqrt(simulator.medium.retained_fraction * weights / weights.sum())
    entries = coupling, -outflow / weights - loss, start
    return attenuation * differentiable_signals(_EntryPropagator(simulator), *entries)


class _EntryPropagator:
    """Signals (M,) of coupling (F,), diagonal (T,) and start (T,) of the symmetrised operator."""

    def __init__(self, simulator: Simulator):
        self._simulator, self._links = simulator, links_of(simulator.grid)

    def signals(self, *entries: torch.Tensor) -> torch.Tensor:
        """Signals (M,)."""
        simulator, signals = self._simulator, np.empty(self._simulator.n_encodings)
        for timing in simulator.timings:
            signals[timing.columns] = self._sweep(entries, timing.signals).signals()[0]
        return torch.as_tensor(signals[simulator.encoding])

    def pull_back(
        self, cotangent: torch.Tensor, *entries: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Derivatives of sum(cotangent * signals) by each of the entries."""
        simulator = self._simulator
        weight = np.bincount(simulator.encoding, cotangent.numpy(), simulator.n_encodings)
        pairs = np.ascontiguousarray(simulator.grid.face_tetrahedra, dtype=np.int32)
        totals = [np.zeros(len(entry)) for entry in entries]
        for timing in simulator.timings:
            for begin in range(0, len(timing.columns), _CHUNK):
                chunk = slice(begin, begin + _CHUNK)
                sweep = self._sweep(entries, timing.sensitivities, chunk)
                _, *derivatives = sweep.by_entries(pairs, self._links.face_links)
                for total, derivative in zip(totals, derivatives, strict=True):
                    total += weight[timing.columns[chunk]] @ derivative[0]
        return tuple(map(torch.as_tensor, totals))

    def _sweep(self, entries, plan, chunk=slice(None)):
        coupling, diagonal, start = (entry.numpy() for entry in entries)
        per_slot = np.append(coupling, 0.0)[self._links.slot_faces]
        operator = face_operator(self._links, per_slot[None], np.stack([diagonal] * 2)[None])
        return CompiledSweep(operator, start, *plan, chunk)
