"""Water in impermeable pores under short pulses, at any diffusion time: with diffraction.

In eigenmodes of the Laplacian of a pore with rates k^2 D / R^2, a pulse takes the uniform mode to
the state exp(i q x), which decays for the diffusion time T, and back:

    E = sum_k |<k| exp(i q x) |0>|^2 exp(-k^2 D T / R^2)

which is Callaghan's series [1]_; after a long time the first term is left, the pore's structure
factor [2]_. E is a function of q R and D T / R^2, which is tabulated once and interpolated.

References
----------
.. [1] Callaghan, J. Magn. Reson. A 113 (1995) 53, https://doi.org/10.1006/jmra.1995.1055
.. [2] Tanner and Stejskal, J. Chem. Phys. 49 (1968) 1768, https://doi.org/10.1063/1.1670306
"""

from __future__ import annotations

from functools import lru_cache, partial
from itertools import count

import numpy as np
import torch

from dipy_spinverse.bloch_torrey.analytic import DIMENSIONS, radial_roots, radial_slope
from dipy_spinverse.compartments.signals.kernels import CustomKernel

# Nodes in q R and in log(D T / R^2), where cubic polynomials are exact to 3e-7 of S0, and roots of
# the modes, which q R excites up to about itself.
_LARGEST_PHASE, _N_PHASES = 40.0, 801
_FIRST, _LAST, _N_TIMES = np.log(1e-4), np.log(20.0), 201
_LARGEST_ROOT = 60.0


def short_pulse_pore(shape: str, long_times: bool = False) -> CustomKernel:
    """A kernel of pores under short pulses, for q radius <= 40 and D T / radius^2 >= 1e-4.

    Beyond these the signal stays that at the limit. With finite pulses and little attenuation the
    built-in slab, cylinder and sphere are more accurate.

    Parameters
    ----------
    shape : {"slab", "cylinder", "sphere"}
        Its arguments are `diffusivity` (um^2/ms) and `diameter` (um, of a slab its width). Along
        the planes of a slab, whose normal is the axis, and along a cylinder water is free.
    long_times : bool, optional
        Diffusion times far above radius^2 / D, of which the signal across the pore is independent.

    Returns
    -------
    CustomKernel

    Raises
    ------
    ValueError
        An unknown shape.

    Examples
    --------
    >>> short_pulse_pore("cylinder").arguments
    ('diffusivity', 'diameter')
    """
    if shape not in DIMENSIONS:
        raise ValueError(f"shape is {shape!r}; use one of {', '.join(DIMENSIONS)}.")
    signal = partial(_signal, shape, long_times)
    oriented, name = shape != "sphere", f"{shape}, short pulses"
    return CustomKernel(name, ("diffusivity", "diameter"), signal, oriented, timed=True)


def _signal(shape, long_times, encoding, square, *, diffusivity, diameter):
    radius, diffusivity = 0.5 * diameter[:, None], diffusivity[:, None]
    across = {"slab": square, "cylinder": 1 - square, "sphere": torch.ones_like(square)}[shape]
    phase = (encoding.q * radius)[..., None] * across.clamp_min(1e-12).sqrt()
    time = torch.log(diffusivity * encoding.diffusion_time / radius**2)
    time = torch.full_like(time, _LAST) if long_times else time.clamp(_FIRST, _LAST)
    rows, row_weights = _cubic(phase.clamp(max=_LARGEST_PHASE) / _LARGEST_PHASE, _N_PHASES)
    columns, column_weights = _cubic(((time - _FIRST) / (_LAST - _FIRST))[..., None], _N_TIMES)
    table = _table(shape).to(phase.dtype)
    total = sum(
        row_weights[i] * column_weights[j] * table[(rows + i) * _N_TIMES + columns + j]
        for i in range(4)
        for j in range(4)
    )
    return total * torch.exp(-(encoding.b * diffusivity)[..., None] * (1 - across))


def _cubic(position, n):
    """First of four nodes about a position in 0 to 1, and the weights of all (Lagrange)."""
    position = position * (n - 1)
    first = (position.detach().long() - 1).clamp(0, n - 4)
    a, b, c, d = (position - first - k for k in range(4))
    return first, (-b * c * d / 6, a * c * d / 2, -a * b * d / 2, a * b * c / 6)


@lru_cache(maxsize=len(DIMENSIONS))
def _table(shape):
    """E at the nodes, flattened."""
    d, phase = DIMENSIONS[shape], np.linspace(0, _LARGEST_PHASE, _N_PHASES)
    phase[0] = 1e-6  # terms are differences over phase^2
    time = np.exp(np.linspace(_FIRST, _LAST, _N_TIMES))
    total = (d * radial_slope(shape, 0, phase) / phase)[:, None] ** 2 + 0 * time
    for order in count():
        roots = radial_roots(shape, order, _LARGEST_ROOT)
        if not len(roots):
            return torch.tensor(total.ravel())
        # directions of the angular part, and the norm of its modes
        weight = 2 * d * {1: 1, 2: 1 + (order > 0), 3: 2 * order + 1}[d]
        weight = weight / (1 - order * (order + d - 2) / roots**2)
        overlap = (phase * radial_slope(shape, order, phase))[:, None] / np.subtract.outer(
            phase**2, roots**2
        )
        total += weight * overlap**2 @ np.exp(-np.outer(roots**2, time))
