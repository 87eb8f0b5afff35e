"""Limitations of an acquisition, by rules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipy_spinverse.acquisition.conversion import require_pulsed
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.acquisition.waveforms import GYROMAGNETIC_RATIO

# Factors within which diffusion times and b-values count as equal; chosen by hand.
_SAME_TIME = 1.3
_SAME_B = 1.05
_MIN_WEIGHTING = 3.0  # b D; below, hindered water keeps more than 5 %, exp(-3), of its signal
# um; almost all axons of the human corpus callosum are thinner
# (https://doi.org/10.1016/0006-8993(92)90178-C).
_THIN_PORE_UM = 4.0
_TENSOR_DIRECTIONS = 6  # coefficients of a signal on the sphere up to order 2, a tensor
_MIN_DIRECTIONS = 15  # coefficients up to order 4
_SAME_AXIS = 0.999  # cosine; 2.6 degrees, by hand
_RESTRICTED_FRACTION = 0.5  # of the signal, in the cylinders


@dataclass(frozen=True)
class Limitation:
    """A limitation of an acquisition."""

    name: str  # such as "one diffusion time"
    description: str  # the limitation, its consequence, and its remedy
    affected_map: str  # the map that is affected most


def limitations(acquisition: Acquisition, sigma: float, diffusivity: float) -> list[Limitation]:
    """Limitations of an acquisition; `sigma` over the signal at b = 0, diffusivity in um^2/ms.

    Examples
    --------
    >>> acquisition = Acquisition(b=[0, 1, 1, 1], directions=np.vstack([np.zeros(3), np.eye(3)]),
    ...                           small_delta=10, big_delta=30)
    >>> [limitation.name for limitation in limitations(acquisition, 0.02, 2.0)]
    ['one diffusion time', 'low b', 'long pulses', 'one shell', 'few directions']
    """
    acquisition = require_pulsed(acquisition)
    candidates = [
        _one_diffusion_time(acquisition),
        _low_b(acquisition, diffusivity),
        _long_pulses(acquisition, sigma, diffusivity),
        _one_shell(acquisition),
        _few_directions(acquisition),
        *_missing_b0(acquisition),
    ]
    return [limitation for limitation in candidates if limitation is not None]


def resolution_limit_um(acquisition: Acquisition, sigma: float, diffusivity: float) -> float:
    """Diameter of parallel impermeable cylinders below which signals do not differ, um.

    d = (768/7 D s / (gamma^2 delta G^2))^(1/4), s = 1.64 sigma / (f sqrt(n)): the decay across
    cylinders with the fraction f = 0.5 of the signal equals the noise of the n measurements of a
    shell at the 5 % level; for the most sensitive shell [1]_.

    References
    ----------
    .. [1] Nilsson et al., NMR Biomed. 30 (2017) e3711, https://doi.org/10.1002/nbm.3711
    """
    gradient, pulse, count = _strongest(require_pulsed(acquisition))
    noise = 1.64 * sigma / (_RESTRICTED_FRACTION * np.sqrt(count))
    per_um = GYROMAGNETIC_RATIO * gradient * 1e-9
    return float((768 / 7 * diffusivity * noise / (per_um**2 * pulse)) ** 0.25)


def _strongest(acquisition):
    """Gradient (T/m), duration (ms) and number of measurements of the most sensitive shell."""
    rows = np.flatnonzero(~acquisition.b0_mask)
    gradient, pulse = acquisition.gradient_t_per_m[rows], acquisition.small_delta[rows]
    keys = np.stack([acquisition.timing_index[rows], acquisition.b[rows].round(2)], axis=1)
    _, index, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    count = counts[index.ravel()]
    k = np.argmax(gradient**2 * pulse * np.sqrt(count))
    return gradient[k], pulse[k], count[k]


def _one_diffusion_time(acquisition):
    times = acquisition.diffusion_time[~acquisition.b0_mask]
    if times.max() > _SAME_TIME * times.min():
        return None
    return Limitation(
        "one diffusion time",
        f"One diffusion time ({times.mean():.3g} ms): exchange through permeable walls and wide "
        "pores both lower the signal, and only the dependence on time distinguishes them. Add a "
        "second Delta, at least twice or half as long.",
        "exchange_time",
    )


def _low_b(acquisition, diffusivity):
    largest = acquisition.b.max()
    if largest * diffusivity >= _MIN_WEIGHTING:
        return None
    return Limitation(
        "low b",
        f"The largest b is {largest:.3g} ms/um^2, where free water of this diffusivity keeps "
        f"{100 * np.exp(-largest * diffusivity):.0f} % of its signal: restricted water is hardly "
        f"distinguished from it. Go to b = {_MIN_WEIGHTING / diffusivity:.2g} ms/um^2 or beyond.",
        "restricted_fraction",
    )


def _long_pulses(acquisition, sigma, diffusivity):
    limit = resolution_limit_um(acquisition, sigma, diffusivity)
    if limit <= _THIN_PORE_UM:
        return None
    gradient, pulse, _ = _strongest(acquisition)
    return Limitation(
        "long pulses",
        f"The pulses ({pulse:.3g} ms at {1e3 * gradient:.0f} mT/m) are too long and weak for "
        f"small pores: the signals of cylinders with diameters below {limit:.2g} um do not "
        "differ. Use the strongest gradient available, in short pulses.",
        "pore_diameter",
    )


def _one_shell(acquisition):
    b = acquisition.b[~acquisition.b0_mask]
    if b.max() > _SAME_B * b.min():
        return None
    return Limitation(
        "one shell",
        f"One shell (b = {b.mean():.3g} ms/um^2): the restricted fraction and the diffusivity of "
        "the other water are confounded, unless the latter is known. Add a second b-value.",
        "restricted_fraction",
    )


def _few_directions(acquisition):
    n = _n_axes(acquisition.directions[~acquisition.b0_mask & ~acquisition.isotropic])
    if n >= _MIN_DIRECTIONS:
        return None
    consequence = (
        "the orientation of walls is not identifiable"
        if n < _TENSOR_DIRECTIONS
        else "the dispersion of orientations is hardly identifiable"
    )
    return Limitation(
        "few directions",
        f"{n} direction{'s' * (n != 1)}: {consequence}, and sizes depend on the angle of walls "
        f"to them. Use {_MIN_DIRECTIONS} or more.",
        "wall_orientation" if n < _TENSOR_DIRECTIONS else "orientation_dispersion",
    )


def _n_axes(directions):
    """Number of different directions up to sign."""
    is_same_axis = np.abs(directions @ directions.T) > _SAME_AXIS
    return int((~np.tril(is_same_axis, -1).any(axis=1)).sum())


def _missing_b0(acquisition):
    if not acquisition.b0_mask.any():
        yield Limitation(
            "no b0",
            "No measurement without diffusion weighting: S0 has to be extrapolated from the "
            "weighted ones, and is confounded with the restricted fraction. Add b = 0.",
            "restricted_fraction",
        )
        return
    missing = acquisition.echo_times[~acquisition.b0_per_te.any(axis=1)]
    if missing.size:
        yield Limitation(
            "echo time without b0",
            f"No b = 0 at TE {', '.join(f'{te:.4g}' for te in missing)} ms: relaxation and "
            "diffusion are confounded there. Add b = 0 at each echo time, or use one TE for all.",
            "restricted_fraction",
        )
