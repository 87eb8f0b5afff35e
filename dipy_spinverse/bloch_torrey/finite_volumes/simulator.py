"""A simulation prepared for many permeability fields."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.acquisition.waveforms import Waveforms
from dipy_spinverse.bloch_torrey.encoding_groups import timing_groups, unique_encodings
from dipy_spinverse.bloch_torrey.finite_volumes.compiled_sweep import (
    CompiledSweep,
    face_operator,
)
from dipy_spinverse.bloch_torrey.finite_volumes.operator import (
    largest_rate,
    links_of,
    open_conductance,
    symmetrised_operator,
)
from dipy_spinverse.bloch_torrey.finite_volumes.torch_sweep import TorchSweep
from dipy_spinverse.bloch_torrey.medium import medium_of
from dipy_spinverse.bloch_torrey.time_steps import (
    CHEBYSHEV_TOLERANCE,
    ExponentialSeries,
    Schedule,
    check_steps,
    exponential_series,
    schedule_of,
)
from dipy_spinverse.grid import TetrahedralGrid

_DTYPES = {"float64": torch.float64, "float32": torch.float32}
# Of the series in time: rounding makes those of single precision no better.
_TOLERANCES = {"float64": CHEBYSHEV_TOLERANCE, "float32": 1e-6}
_CHUNK_BYTES = 2**28  # memory of the derivatives of one chunk of encodings


@dataclass(frozen=True, eq=False)
class _Timing:
    """Different encodings of the same timing, and their time steps: plans made on first use."""

    waveforms: Waveforms
    symmetric: bool
    steps: int
    lossless: bool
    norm: float  # and the next two: as `exponential_series` takes them
    longest_link: float
    tolerance: float

    @property
    def columns(self) -> np.ndarray:
        return self.waveforms.rows

    @cached_property
    def signals(self) -> tuple[Schedule, ExponentialSeries]:
        return self._plan(nodes=False)

    @cached_property
    def sensitivities(self) -> tuple[Schedule, ExponentialSeries]:
        return self._plan(nodes=True)

    def _plan(self, nodes):
        schedule = schedule_of(
            self.waveforms, self.symmetric, self.steps, nodes, lossless=self.lossless
        )
        return schedule, exponential_series(schedule, self.norm, self.longest_link, self.tolerance)


class Simulator:
    """Simulation of one acquisition in one grid, prepared for many permeability fields.

    Measurements with the same q(t) up to its sign have the same signal and are computed once.
    Arguments are those of :func:`dipy_spinverse.simulate`.
    """

    def __init__(
        self,
        acquisition: BaseAcquisition,
        grid: TetrahedralGrid,
        *,
        steps: int = 8,
        dtype: str = "float64",
        device: str = "cpu",
        **medium: ArrayLike | None,
    ):
        check_steps(steps)
        if dtype not in _DTYPES:
            raise ValueError(f"dtype is {dtype!r}; use 'float64' or 'float32'.")
        self.grid, self.medium = grid, medium_of(grid, **medium)
        self._weights = self.medium.density * grid.volumes
        self.device, self.dtype = _checked_device(device), _DTYPES[dtype]
        representatives, self.encoding = unique_encodings(acquisition)
        self.n_encodings = len(representatives)
        transverse, stored = self.medium.relaxation
        self._attenuation = np.exp(-acquisition.te * transverse - acquisition.mixing_time * stored)
        norm = largest_rate(grid, self.medium)
        longest_link = float(np.linalg.norm(links_of(grid).link_vectors, axis=1).max(initial=0))
        lossless = not self.medium.loss_rate.any()
        self.timings = [
            _Timing(*group, steps, lossless, norm, longest_link, _TOLERANCES[dtype])
            for group in timing_groups(acquisition, representatives)
        ]

    def signals(self, transmissibility: torch.Tensor) -> torch.Tensor:
        """Signals (V, M) of relative transmissibilities (V, F)."""
        operator = self._operator(transmissibility)
        signals = self._empty(len(transmissibility), self.n_encodings)
        for timing in self.timings:
            columns = torch.as_tensor(timing.columns)
            signals[:, columns] = torch.as_tensor(self._sweep(operator, timing.signals).signals())
        return self._to_measurements(signals)

    def sensitivities(self, transmissibility: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Signals (V, M) and their derivatives (V, M, F) by relative transmissibilities."""
        n_fields = len(transmissibility)
        signals = self._empty(n_fields, self.n_encodings)
        jacobian = self._empty(n_fields, self.n_encodings, self.grid.n_faces)
        for columns, *chunk in self._sensitivities_in_chunks(transmissibility):
            signals[:, columns], jacobian[:, columns] = chunk
        return self._to_measurements(signals), self._to_measurements(jacobian)

    def pull_back(self, cotangent: torch.Tensor, transmissibility: torch.Tensor) -> torch.Tensor:
        """cotangent^T (dS/dtau) of shape (V, F), without keeping the whole Jacobian."""
        weighted = cotangent.to(self.device, self.dtype)
        weighted = weighted * torch.as_tensor(self._attenuation).to(weighted)
        per_encoding = self._empty(len(weighted), self.n_encodings).zero_()
        index = torch.as_tensor(self.encoding, device=self.device)
        per_encoding.index_add_(1, index, weighted)
        total = self._empty(len(weighted), self.grid.n_faces).zero_()
        for columns, _, jacobian in self._sensitivities_in_chunks(transmissibility):
            total += torch.einsum("vm,vmf->vf", per_encoding[:, columns], jacobian)
        return total

    def _empty(self, *shape):
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _to_measurements(self, values):
        attenuation = torch.as_tensor(self._attenuation).to(values)
        shape = (1, -1) + (1,) * (values.ndim - 2)
        return values[:, torch.as_tensor(self.encoding)] * attenuation.reshape(shape)

    def _operator(self, transmissibility):
        tau = transmissibility.detach().to(self.device, torch.float64)
        operator = symmetrised_operator(self.grid, tau, self.medium)
        return [entry.to(self.dtype) for entry in operator]

    def _sensitivities_in_chunks(self, transmissibility):
        """(columns, signals, derivatives) of the encodings, in chunks of bounded size."""
        operator = self._operator(transmissibility)
        bytes_per_encoding = len(transmissibility) * self.grid.n_faces * 8
        size = max(64, _CHUNK_BYTES // bytes_per_encoding)
        per_tau = torch.as_tensor(open_conductance(self.grid, self.medium))
        per_tau = per_tau.to(self.device, self.dtype)
        faces = self.grid.face_tetrahedra, links_of(self.grid).face_links, self._weights**-0.5
        for timing in self.timings:
            for start in range(0, len(timing.columns), size):
                chunk = slice(start, start + size)
                sweep = self._sweep(operator, timing.sensitivities, chunk)
                signals, jacobian = sweep.by_conductances(*faces)
                columns = torch.as_tensor(timing.columns[chunk])
                yield columns, torch.as_tensor(signals), torch.as_tensor(jacobian) * per_tau

    def _sweep(self, operator, plan, chunk=slice(None)):
        """The sweep over time of a chunk of the encodings."""
        on_device = self._compiled_sweep if self.device.type == "cpu" else self._torch_sweep
        return on_device(operator, plan, chunk)

    def _torch_sweep(self, operator, plan, chunk):
        start = self.medium.equilibrium(self.grid)
        return TorchSweep(*operator, start, links_of(self.grid), *plan, chunk)

    def _compiled_sweep(self, operator, plan, chunk):
        coupling, diagonals = (entry.numpy() for entry in operator)
        start = self.medium.equilibrium(self.grid).astype(coupling.dtype)
        operator = face_operator(links_of(self.grid), coupling, diagonals)
        return CompiledSweep(operator, start, *plan, chunk)


def _checked_device(device):
    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device is {device!r}, which torch cannot use here ({reason}); use 'cpu'."
        ) from error
    return checked
