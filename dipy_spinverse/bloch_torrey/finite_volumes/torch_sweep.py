"""The sweeps over time in plain torch, for accelerators (and to check the compiled ones)."""

from __future__ import annotations

import torch

from dipy_spinverse.bloch_torrey.time_steps import ExponentialSeries, Schedule


class TorchSweep:
    """Sweeps of V permeability fields and M measurements that are alike in time.

    The operator is that of `symmetrised_operator`, `start` (T,) the symmetrised equilibrium,
    `columns` are those of the schedule's measurements.
    """

    def __init__(self, coupling, diagonals, start, links, schedule, series, columns=slice(None)):
        self.schedule: Schedule = schedule
        self.series: ExponentialSeries = series
        device = coupling.device
        self.q = torch.as_tensor(schedule.q[..., columns], device=device)
        self.node_q = torch.as_tensor(schedule.node_q[..., columns], device=device)
        self.link_vectors = torch.as_tensor(links.link_vectors, device=device)
        self.neighbours = torch.as_tensor(links.neighbours, device=device).long()
        self.slot_links = torch.as_tensor(links.slot_links, device=device).long()
        self.coupling, self.diagonals = coupling, diagonals[..., None]
        start = torch.as_tensor(start, dtype=coupling.dtype, device=device)
        shape = (len(coupling), len(start), self.q.shape[-1])
        self.start = torch.complex(start, torch.zeros_like(start))[:, None].expand(shape)

    def _phases(self, q, amplitude):
        """Sum of amplitude exp(i q.x) over wave vectors (k, 3, M), for all links x and -x."""
        total = 0
        for q_k, amplitude_k in zip(q, amplitude, strict=True):
            angle = (self.link_vectors @ q_k).to(self.coupling.dtype)
            total = total + float(amplitude_k) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([total, total.conj()])

    def _exponential(self, state, e):
        """Clenshaw's recurrence of exponential e applied to a state (V, T, M)."""
        span = float(self.schedule.amplitude[e].sum())
        centre, radius = float(self.series.centre[e]), float(self.series.radius[e])
        diagonal = self.diagonals[:, self.schedule.stored[e]]
        phases = self._phases(self.q[e], self.schedule.amplitude[e])[self.slot_links]
        coefficients = self.series.coefficients[e].tolist()
        current, previous = coefficients[self.series.degree[e]] * state, torch.zeros_like(state)
        for k in range(self.series.degree[e] - 1, -1, -1):
            scale = (2 if k > 0 else 1) / radius
            following = (scale * (span * diagonal - centre)) * current - previous
            following += coefficients[k] * state
            for slot in range(4):
                flow = phases[:, slot] * current[:, self.neighbours[:, slot]]
                following += (scale * self.coupling[:, :, slot, None]) * flow
            current, previous = following, current
        return current

    def signals(self) -> torch.Tensor:
        """Signals (V, M)."""
        state = self.start
        for e in range(len(self.q)):
            state = self._exponential(state, e)
        return self._project(state)

    def _project(self, state):
        """Signals of states in the middle of symmetric encodings, or at the end of others."""
        if self.schedule.symmetric:
            return state.abs().square().sum(dim=1)
        return (self.start * state).real.sum(dim=1)

    def by_conductances(
        self, face_tetrahedra, face_links, inverse_root
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Signals (V, M) and their derivatives (V, M, F) by the conductances of faces."""
        schedule, device = self.schedule, self.q.device
        pairs = torch.as_tensor(face_tetrahedra, device=device)
        face_links = torch.as_tensor(face_links, device=device).long()
        inverse_root = torch.as_tensor(inverse_root).to(self.coupling)
        stored, state = [self.start], self.start
        for e in range(len(self.q)):
            state = self._exponential(state, e)
            if schedule.node_after[e] >= 0:
                stored.append(state)
        signals, total = self._project(state), torch.zeros(())
        # Backwards, the adjoint state: in a symmetric encoding, the second half's in reverse.
        state = state if schedule.symmetric else self.start
        for e in range(len(self.q) - 1, -2, -1):
            if e < 0 or schedule.node_after[e] >= 0:
                node = len(stored) - 1
                phases = self._phases(self.node_q[node : node + 1], [1.0])[face_links]

                def jump(x, phases=phases):
                    u = x * inverse_root[:, None]
                    return phases * u[:, pairs[:, 1]] - u[:, pairs[:, 0]]

                product = (jump(state).conj() * jump(stored.pop())).real
                total = total - float(schedule.node_weight[node]) * product
            if e >= 0:
                state = self._exponential(state, e)
        return signals, total.transpose(1, 2)
