"""Simulation: acquisition + grid + permeabilities -> signals, and their sensitivities."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.bloch_torrey.finite_volumes.differentiable_medium import medium_signals
from dipy_spinverse.bloch_torrey.finite_volumes.operator import (
    face_resistance,
    relative_transmissibility,
)
from dipy_spinverse.bloch_torrey.finite_volumes.simulator import Simulator
from dipy_spinverse.bloch_torrey.propagators import differentiable_signals
from dipy_spinverse.grid import TetrahedralGrid

_Field = TypeVar("_Field", np.ndarray, torch.Tensor)


def simulate(
    acquisition: BaseAcquisition,
    grid: TetrahedralGrid,
    permeability: _Field,
    *,
    diffusivity: ArrayLike | torch.Tensor = 2.0,
    initial_density: ArrayLike | torch.Tensor = 1.0,
    t2_ms: ArrayLike | torch.Tensor | None = None,
    t1_ms: ArrayLike | None = None,
    outer_permeability: ArrayLike | None = None,
    steps: int = 8,
    dtype: str = "float64",
    device: str = "cpu",
) -> _Field:
    """Signals of an acquisition in a grid with permeable faces.

    S = Re sum_i w_i u_i(TE) of the Bloch-Torrey equation, relative to the initial magnetisation.

    Parameters
    ----------
    acquisition : BaseAcquisition
        M measurements.
    grid : TetrahedralGrid
    permeability : array-like or torch.Tensor, (F,) or (V, F)
        um/ms, of one field or of V fields; infinite where there is no membrane. With a tensor
        that requires grad the signals are differentiable.
    diffusivity : float, array-like or torch.Tensor (T,), optional
        um^2/ms, of all or of each tetrahedron. With tensors of this, the density or T2 that
        require grad, the signals of one permeability field (F,) are differentiable by them, too.
    initial_density : float, array-like or torch.Tensor (T,), optional
        Spin density, relative; equilibrium across every face, see Notes.
    t2_ms : float, array-like or torch.Tensor (T,), optional
        Transverse relaxation time; none by default.
    t1_ms : float or array-like (T,), optional
        Longitudinal relaxation time, of the magnetisation that a stimulated echo stores.
    outer_permeability : float or array-like (B,), optional
        um/ms, of the outer faces of an absorbing grid, beyond which there are no spins. By
        default, spins are lost at the sides of the box (:attr:`TetrahedralGrid.box_um`), and
        signals are relative to the initial magnetisation of the whole box.
    steps : int, optional
        Time intervals per gradient pulse, or per smooth segment of another waveform (even).
    dtype : {"float64", "float32"}, optional
        Precision of the computation.
    device : str, optional
        "cpu", or an accelerator that torch knows, as "cuda" (UNTESTED on a GPU).

    Returns
    -------
    ndarray or torch.Tensor (M,) or (V, M)
        As `permeability`: an array for an array, a tensor for a tensor; always a tensor if the
        medium is given as tensors.

    Raises
    ------
    ValueError
        An argument of wrong shape or range.

    Notes
    -----
    The flux across a face is kappa rho_f (m_i / rho_i - m_j / rho_j), with the magnetisation m,
    the spin density rho, and rho_f = 2 rho_i rho_j / (rho_i + rho_j) [2]_: no flux in equilibrium.

    Waveforms that are not symmetric in time give a complex signal in a substrate that is not
    symmetric under point reflection. Its real part is returned: the signal of a tissue in which
    each arrangement is as frequent as its reflection.

    References
    ----------
    .. [1] Torrey, "Bloch equations with diffusion terms", Phys. Rev. 104 (1956),
       https://doi.org/10.1103/PhysRev.104.563
    .. [2] Agdestein, Tran and Li, "Practical computation of the diffusion MRI signal based on
       Laplace eigenfunctions: permeable interfaces", NMR Biomed. 35 (2022),
       https://doi.org/10.1002/nbm.4646

    Examples
    --------
    >>> import numpy as np
    >>> from dipy_spinverse.acquisition.pulsed import Acquisition
    >>> from dipy_spinverse.grid import bcc_grid
    >>> acquisition = Acquisition(b=[0, 1], directions=[[0, 0, 0], [1, 0, 0]],
    ...                           small_delta=10, big_delta=30)
    >>> grid = bcc_grid(4, 1.0)
    >>> simulate(acquisition, grid, np.full(grid.n_faces, np.inf)).round(3)
    array([1.   , 0.135])
    """
    if not isinstance(permeability, torch.Tensor):
        kappa = torch.as_tensor(np.asarray(permeability, dtype=float))
    else:
        kappa = permeability if permeability.is_floating_point() else permeability.double()
    _check_permeability(kappa, grid)
    properties = {
        "diffusivity": diffusivity, "initial_density": initial_density, "t2_ms": t2_ms
    }  # fmt: skip
    if any(isinstance(value, torch.Tensor) for value in properties.values()):
        refused = {
            "permeability": kappa.ndim > 1, "t1_ms": t1_ms is not None,
            "dtype": dtype != "float64",
            "outer_permeability": outer_permeability is not None, "device": device != "cpu",
            "t2_ms": t2_ms is not None and acquisition.mixing_time.any(),
        }  # fmt: skip
        return _of_tensors(acquisition, grid, kappa, properties, refused, steps)
    simulator = Simulator(
        acquisition, grid, diffusivity=diffusivity, initial_density=initial_density, t2_ms=t2_ms,
        t1_ms=t1_ms, outer_permeability=outer_permeability, steps=steps, dtype=dtype,
        device=device,
    )  # fmt: skip
    medium = simulator.medium
    resistance = torch.as_tensor(face_resistance(grid, medium.diffusivity, medium.density)).to(
        kappa
    )
    # Of the equal forms, the one whose derivative is finite where kappa is 0 or infinite.
    tau = 1 - 1 / (1 + kappa * resistance)
    signals = differentiable_signals(simulator, torch.atleast_2d(tau))
    signals = signals.reshape(*kappa.shape[:-1], len(acquisition))
    return signals if isinstance(permeability, torch.Tensor) else signals.numpy()


def simulate_with_jacobian(
    acquisition: BaseAcquisition,
    grid: TetrahedralGrid,
    permeability: ArrayLike,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Signals and their derivatives with respect to ln(permeability) of every face.

    They are dS/dt_f = -Re integral_0^TE conj(D_f y(t)) D_f u(t) dt for all faces together, with
    D_f u the jump of u across face f and y the adjoint state. An encoding that is symmetric in
    time is its own adjoint in reverse, y(t) = u(TE - t); others take a separate sweep back.

    Parameters
    ----------
    acquisition, grid, permeability
        As in :func:`simulate`.
    **options
        Those of :func:`simulate`: the properties of the medium, `steps`, `dtype` and `device`.

    Returns
    -------
    signals : ndarray (M,) or (V, M)
    jacobian : ndarray (M, F) or (V, M, F)
        0 where the permeability is 0 or infinite.

    Examples
    --------
    >>> import numpy as np
    >>> from dipy_spinverse.acquisition.pulsed import Acquisition
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
    simulator = Simulator(acquisition, grid, **options)
    medium = simulator.medium
    tau = torch.as_tensor(
        relative_transmissibility(grid, permeability, medium.diffusivity, medium.density)
    )
    signals, jacobian = simulator.sensitivities(torch.atleast_2d(tau))
    # d tau / d ln(kappa) = tau (1 - tau)
    jacobian *= torch.atleast_2d(tau * (1 - tau)).to(jacobian)[:, None]
    shape = (*permeability.shape[:-1], len(acquisition))
    return (
        signals.reshape(shape).cpu().numpy(),
        jacobian.reshape(*shape, grid.n_faces).cpu().numpy(),
    )


def _of_tensors(acquisition, grid, kappa, properties, refused, steps):
    """Signals (M,) of tensors of the diffusivity, the density or T2."""
    if any(refused.values()):
        names = ", ".join(name for name, is_refused in refused.items() if is_refused)
        raise ValueError(
            f"diffusivity, initial_density or t2_ms is a tensor, for which {names} cannot be as "
            "given: signals are differentiable by these for one permeability field, in double "
            "precision on the CPU, without t1_ms and outer_permeability, and by t2_ms without "
            "mixing times. Give numbers or arrays instead of tensors."
        )
    if properties["t2_ms"] is None:
        properties["t2_ms"] = np.inf
    tensors = {
        name: torch.as_tensor(value, dtype=torch.float64) for name, value in properties.items()
    }
    numbers = {name: value.detach().numpy() for name, value in tensors.items()}
    simulator = Simulator(acquisition, grid, steps=steps, **numbers)
    return medium_signals(simulator, acquisition, kappa.double(), **tensors)


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
