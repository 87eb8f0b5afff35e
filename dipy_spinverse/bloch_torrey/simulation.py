"""Simulation: acquisition + grid + permeabilities -> signals, and their sensitivities."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.bloch_torrey import kernels
from dipy_spinverse.bloch_torrey.encodings import unique_encodings
from dipy_spinverse.bloch_torrey.finite_volume import (
    face_resistance,
    largest_rate,
    links_of,
    open_conductance,
    outer_loss,
    relative_transmissibility,
    symmetrised_operator,
)
from dipy_spinverse.bloch_torrey.propagators import (
    ChebyshevSeries,
    Schedule,
    chebyshev_series,
    pulsed_gradient_schedule,
)
from dipy_spinverse.bloch_torrey.torch_sweep import TorchSweep
from dipy_spinverse.grid import TetrahedralGrid

_DTYPES = {"float64": torch.float64, "float32": torch.float32}
_CHUNK_BYTES = 2**28


def simulate(
    acquisition: Acquisition,
    grid: TetrahedralGrid,
    permeability,
    *,
    diffusivity: float = 2.0,
    t2_ms=None,
    steps: int = 8,
    dtype: str = "float64",
    device: str = "cpu",
):
    """Signals of an acquisition in a grid with permeable faces.

    S = sum_i w_i u_i(TE) of the Bloch-Torrey equation, relative to the initial magnetisation.

    Parameters
    ----------
    acquisition : Acquisition
        M measurements.
    grid : TetrahedralGrid
    permeability : array-like or torch.Tensor, (F,) or (V, F)
        um/ms, of one field or of V fields; infinite where there is no membrane. With a tensor
        that requires grad the signals are differentiable.
    diffusivity : float, optional
        um^2/ms.
    t2_ms : float or array-like (T,), optional
        Transverse relaxation time, of all or of each tetrahedron; none where not given.
    steps : int, optional
        Time intervals per gradient pulse (even).
    dtype : {"float64", "float32"}, optional
        Precision of the computation.
    device : str, optional
        "cpu", or an accelerator that torch knows, as "cuda".

    Returns
    -------
    ndarray or torch.Tensor (M,) or (V, M)
        As `permeability`: an array for an array, a tensor for a tensor.

    Raises
    ------
    ValueError
        An argument of wrong shape or range.

    References
    ----------
    .. [1] Torrey, "Bloch equations with diffusion terms", Phys. Rev. 104 (1956),
       https://doi.org/10.1103/PhysRev.104.563

    Examples
    --------
    >>> import numpy as np
    >>> from dipy_spinverse.acquisition import Acquisition
    >>> from dipy_spinverse.grid import bcc_grid
    >>> acquisition = Acquisition(b=[0, 1], directions=[[0, 0, 0], [1, 0, 0]],
    ...                           small_delta=10, big_delta=30)
    >>> grid = bcc_grid(4, 1.0)
    >>> simulate(acquisition, grid, np.full(grid.n_faces, np.inf)).round(3)
    array([1.   , 0.135])
    """
    given = permeability
    if not isinstance(given, torch.Tensor):
        permeability = torch.as_tensor(np.asarray(given, dtype=float))
    elif not given.is_floating_point():
        permeability = given.double()
    _check_permeability(permeability, grid)
    simulator = Simulator(
        acquisition, grid, diffusivity=diffusivity, t2_ms=t2_ms, steps=steps, dtype=dtype,
        device=device,
    )  # fmt: skip
    resistance = torch.as_tensor(face_resistance(grid, diffusivity)).to(permeability)
    # Of the equal forms, the one whose derivative is finite where kappa is 0 or infinite.
    tau = 1 - 1 / (1 + permeability * resistance)
    signals = _Signals.apply(torch.atleast_2d(tau), simulator)
    signals = signals.reshape(*permeability.shape[:-1], len(acquisition))
    return signals if isinstance(given, torch.Tensor) else signals.numpy()


def simulate_with_jacobian(
    acquisition: Acquisition,
    grid: TetrahedralGrid,
    permeability,
    *,
    diffusivity: float = 2.0,
    t2_ms=None,
    steps: int = 8,
    dtype: str = "float64",
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Signals and their derivatives with respect to ln(permeability) of every face.

    An encoding that is symmetric in time is its own adjoint in reverse, so that

        dS/dt_f = -Re integral_0^TE conj(D_f u(TE - t)) D_f u(t) dt

    costs about two more half sweeps for all faces together (D_f u: jump of u across face f).

    Parameters
    ----------
    acquisition, grid, permeability, diffusivity, t2_ms, steps, dtype, device
        As in :func:`simulate`.

    Returns
    -------
    signals : ndarray (M,) or (V, M)
    jacobian : ndarray (M, F) or (V, M, F)
        0 where the permeability is 0 or infinite.

    Raises
    ------
    ValueError
        As :func:`simulate`.

    Examples
    --------
    >>> import numpy as np
    >>> from dipy_spinverse.acquisition import Acquisition
    >>> from dipy_spinverse.grid import bcc_grid
    >>> acquisition = Acquisition(b=[0, 1], directions=[[0, 0, 0], [1, 0, 0]],
    ...                           small_delta=10, big_delta=30)
    >>> grid = bcc_grid(4, 5.0)
    >>> signals, jacobian = simulate_with_jacobian(acquisition, grid, np.full(grid.n_faces, 0.1))
    >>> jacobian.shape
    (2, 1536)
    """
    permeability = np.asarray(permeability, dtype=float)
    _check_permeability(permeability, grid)
    simulator = Simulator(
        acquisition, grid, diffusivity=diffusivity, t2_ms=t2_ms, steps=steps, dtype=dtype,
        device=device,
    )  # fmt: skip
    tau = torch.as_tensor(relative_transmissibility(grid, permeability, diffusivity))
    signals, jacobian = simulator.sensitivities(torch.atleast_2d(tau))
    # d tau / d ln(kappa) = tau (1 - tau)
    jacobian *= torch.atleast_2d(tau * (1 - tau)).to(jacobian)[:, None]
    shape = (*permeability.shape[:-1], len(acquisition))
    return (
        signals.reshape(shape).cpu().numpy(),
        jacobian.reshape(*shape, grid.n_faces).cpu().numpy(),
    )


@dataclass(frozen=True, eq=False)
class _Timing:
    """The different encodings of one timing, and how time is cut for them.

    `columns` are their places among all different encodings, `link_phase` (L, m) the phases at
    the largest q, `signals` and `sensitivities` the plans of the two kinds of sweep.
    """

    columns: np.ndarray
    link_phase: np.ndarray
    signals: tuple[Schedule, ChebyshevSeries]
    sensitivities: tuple[Schedule, ChebyshevSeries]


class Simulator:
    """Simulation of one acquisition in one grid, prepared for many permeability fields.

    Measurements with the same timing and the same q up to sign have the same signal and are
    computed once.

    Parameters
    ----------
    acquisition, grid, diffusivity, t2_ms, steps, dtype, device
        As in :func:`simulate`.

    Attributes
    ----------
    n_signals : int
        Number M of measurements.
    """

    def __init__(
        self,
        acquisition: Acquisition,
        grid: TetrahedralGrid,
        *,
        diffusivity: float = 2.0,
        t2_ms=None,
        steps: int = 8,
        dtype: str = "float64",
        device: str = "cpu",
    ):
        _check_settings(diffusivity, steps, dtype)
        self.grid, self.diffusivity = grid, float(diffusivity)
        self.device, self.dtype = _checked_device(device), _DTYPES[dtype]
        self.n_signals = len(acquisition)
        t2, relaxation_rate = _checked_t2(t2_ms, grid)
        self._loss = outer_loss(grid, diffusivity) + relaxation_rate
        representatives, self._encoding = unique_encodings(acquisition)
        self.n_encodings = len(representatives)
        self._attenuation = np.exp(-acquisition.te / t2)
        norm = largest_rate(grid, diffusivity, self._loss)
        q = acquisition.q_vectors[representatives]
        timing_index = acquisition.timing_index[representatives]
        self._timings = []
        for k, (small_delta, big_delta, te) in enumerate(acquisition.timings):
            columns = np.flatnonzero(timing_index == k)
            # In a closed grid nothing happens before the first pulse.
            dead_time = (te - big_delta - small_delta) / 2 if self._loss.any() else 0.0
            phase = links_of(grid).link_vectors @ q[columns].T
            largest_phase = float(np.abs(phase).max())
            plans = []
            for nodes in (False, True):
                schedule = pulsed_gradient_schedule(
                    small_delta, big_delta, dead_time, steps, nodes
                )
                plans.append((schedule, chebyshev_series(schedule, norm, largest_phase)))
            self._timings.append(_Timing(columns, phase, *plans))

    def signals(self, transmissibility: torch.Tensor) -> torch.Tensor:
        """Signals (V, M) of relative transmissibilities (V, F)."""
        operator = self._operator(transmissibility)
        signals = self._empty(len(transmissibility), self.n_encodings)
        for timing in self._timings:
            columns = torch.as_tensor(timing.columns)
            if self.device.type == "cpu":
                signals[:, columns] = self._sweep(operator, timing, slice(None), False)[0]
            else:
                signals[:, columns] = self._torch_sweep(operator, timing, slice(None), False)[0]
        return self._to_measurements(signals)

    def sensitivities(self, transmissibility: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Signals (V, M) and their derivatives (V, M, F) by relative transmissibilities."""
        n_fields = len(transmissibility)
        signals = self._empty(n_fields, self.n_encodings)
        jacobian = self._empty(n_fields, self.n_encodings, self.grid.n_faces)
        for columns, part_signals, part in self._sensitivity_parts(transmissibility):
            signals[:, columns] = part_signals
            jacobian[:, columns] = part
        return self._to_measurements(signals), self._to_measurements(jacobian)

    def pull_back(
        self, transmissibility: torch.Tensor, cotangent: torch.Tensor
    ) -> torch.Tensor:
        """cotangent^T (dS/dtau) of shape (V, F), without keeping the whole Jacobian."""
        weighted = cotangent.to(self.device, self.dtype)
        weighted = weighted * torch.as_tensor(self._attenuation).to(weighted)
        per_encoding = self._empty(len(weighted), self.n_encodings).zero_()
        index = torch.as_tensor(self._encoding, device=self.device)
        per_encoding.index_add_(1, index, weighted)
        total = 0
        for columns, _, part in self._sensitivity_parts(transmissibility):
            total = total + torch.einsum("vm,vmf->vf", per_encoding[:, columns], part)
        return total

    def _empty(self, *shape):
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _to_measurements(self, values):
        attenuation = torch.as_tensor(self._attenuation).to(values)
        shape = (1, -1) + (1,) * (values.ndim - 2)
        return values[:, torch.as_tensor(self._encoding)] * attenuation.reshape(shape)

    def _operator(self, transmissibility):
        tau = transmissibility.detach().to(self.device, torch.float64)
        operator = symmetrised_operator(self.grid, tau, self.diffusivity, self._loss)
        return [entry.to(self.dtype) for entry in operator]

    def _sensitivity_parts(self, transmissibility):
        """(columns, signals, derivatives) of the encodings, in parts of bounded size."""
        operator = self._operator(transmissibility)
        bytes_per_encoding = len(transmissibility) * self.grid.n_faces * 8
        size = max(64, _CHUNK_BYTES // bytes_per_encoding)
        per_tau = torch.as_tensor(open_conductance(self.grid, self.diffusivity))
        per_tau = per_tau.to(self.device, self.dtype)
        for timing in self._timings:
            for first in range(0, len(timing.columns), size):
                part = slice(first, first + size)
                sweep = self._sweep if self.device.type == "cpu" else self._torch_sweep
                signals, jacobian = sweep(operator, timing, part, True)
                yield torch.as_tensor(timing.columns[part]), signals, jacobian * per_tau

    def _torch_sweep(self, operator, timing, part, with_sensitivities):
        schedule, series = timing.sensitivities if with_sensitivities else timing.signals
        phase = torch.as_tensor(timing.link_phase[:, part]).to(self.device, self.dtype)
        sweep = TorchSweep(*operator, links_of(self.grid), phase, schedule, series)
        if not with_sensitivities:
            return sweep.signals(), None
        pairs = torch.as_tensor(self.grid.face_tetrahedra, device=self.device)
        root_volume = torch.as_tensor(self.grid.volumes**-0.5).to(self.device, self.dtype)
        return sweep.sensitivities(pairs, root_volume)

    def _sweep(self, operator, timing, part, with_sensitivities):
        """The compiled sweep on all threads, over blocks of a vector register's width."""
        schedule, series = timing.sensitivities if with_sensitivities else timing.signals
        coupling, diagonal = (entry.numpy() for entry in operator)
        real, links = coupling.dtype, links_of(self.grid)
        lanes = kernels.REGISTER_BYTES // real.itemsize
        phase = timing.link_phase[:, part]
        n_fields, n_encodings = len(coupling), phase.shape[1]
        n_blocks = -(-n_encodings // lanes)
        padded = np.zeros((len(phase), n_blocks * lanes))
        padded[:, :n_encodings] = phase
        blocks = padded.reshape(len(phase), n_blocks, lanes).transpose(1, 0, 2).astype(real)
        signals = np.empty((n_fields, n_blocks, lanes), real)
        plan = (
            schedule.level, schedule.amplitude,
            series.centre, series.radius, series.degree, series.coefficients,
        )  # fmt: skip
        args = (
            coupling, diagonal, links.start.astype(real), (links.neighbours, links.slot_links),
            np.ascontiguousarray(blocks), plan,
        )  # fmt: skip
        if not with_sensitivities:
            _in_threads(kernels.sweep_signals, n_fields * n_blocks, *args, signals)
            signals = signals.reshape(n_fields, -1)[:, :n_encodings]
            return torch.from_numpy(signals), None
        jacobian = np.empty((n_fields, n_blocks, lanes, self.grid.n_faces), real)
        faces = (
            self.grid.face_tetrahedra, links.face_links,
            (self.grid.volumes**-0.5).astype(real),
        )  # fmt: skip
        nodes = (schedule.node_level, schedule.node_weight, schedule.node_after)
        sweep_args = (*args, faces, nodes, signals, jacobian)
        _in_threads(kernels.sweep_sensitivities, n_fields * n_blocks, *sweep_args)
        return (
            torch.from_numpy(signals.reshape(n_fields, -1)[:, :n_encodings]),
            torch.from_numpy(jacobian.reshape(n_fields, -1, self.grid.n_faces)[:, :n_encodings]),
        )


def _in_threads(sweep, n_tasks, *args):
    """Run a compiled sweep over its tasks, on as many threads as torch uses."""
    n_threads = min(torch.get_num_threads(), n_tasks)
    if n_threads == 1:
        sweep(0, n_tasks, *args)
        return
    bounds = np.linspace(0, n_tasks, n_threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(lambda k: sweep(bounds[k], bounds[k + 1], *args), range(n_threads)))


class _Signals(torch.autograd.Function):
    """Signals as a differentiable function of relative transmissibilities (V, F)."""

    @staticmethod
    def forward(ctx, transmissibility, simulator):
        ctx.simulator = simulator
        ctx.save_for_backward(transmissibility)
        return simulator.signals(transmissibility).to(transmissibility)

    @staticmethod
    def backward(ctx, cotangent):
        (transmissibility,) = ctx.saved_tensors
        gradient = ctx.simulator.pull_back(transmissibility, cotangent)
        return gradient.to(transmissibility), None


def _check_settings(diffusivity, steps, dtype):
    if np.ndim(diffusivity) or not np.isfinite(diffusivity) or diffusivity <= 0:
        raise ValueError(f"diffusivity is {diffusivity!r}; give a positive number in um^2/ms.")
    if int(steps) != steps or steps < 2 or steps % 2:
        raise ValueError(f"steps is {steps!r}; give an even number of at least 2.")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}; use 'float64' or 'float32'.")


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


def _checked_t2(t2_ms, grid):
    """T2 of all tetrahedra (inf if they differ), and the relaxation rates where they differ."""
    t2 = np.asarray(np.inf if t2_ms is None else t2_ms, dtype=float)
    if t2.shape not in ((), (grid.n_tetrahedra,)) or not (t2 > 0).all():
        raise ValueError(
            f"t2_ms has shape {t2.shape}, least value {t2.min(initial=np.inf)}; give one "
            f"positive time in ms, or one for each of the {grid.n_tetrahedra} tetrahedra."
        )
    if t2.ndim == 0:
        return float(t2), np.zeros(grid.n_tetrahedra)
    return np.inf, 1 / t2


def _check_permeability(permeability, grid):
    shape = tuple(permeability.shape)
    if len(shape) not in (1, 2) or shape[-1] != grid.n_faces or shape[0] == 0:
        raise ValueError(
            f"permeability has shape {shape}; the grid has {grid.n_faces} faces, so give "
            f"({grid.n_faces},), or (V, {grid.n_faces}) for V fields."
        )
    if not (permeability >= 0).all():
        raise ValueError(
            "permeability has negative or NaN values; give um/ms >= 0 (infinite for no membrane)."
        )
