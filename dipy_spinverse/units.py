"""Units: internally um, ms, um^2/ms, ms/um^2; in the public interface those of DIPY."""

from __future__ import annotations

import numpy as np

MM2_PER_S = 1e3  # um^2/ms
MS_PER_UM2 = 1e3  # s/mm^2
S = 1e3  # ms
_LARGEST_MM2_PER_S = 0.1  # above that of any liquid water, below values in um^2/ms


def diffusivity_um2_per_ms(name: str, value: float) -> float:
    """A diffusivity in um^2/ms from mm^2/s; ValueError if the unit must be another."""
    if np.ndim(value) or not 0 < value < _LARGEST_MM2_PER_S:
        raise ValueError(
            f"{name} is {value!r}; give it in mm^2/s (water at body temperature has 3e-3)."
        )
    return float(value) * MM2_PER_S
