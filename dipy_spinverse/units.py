"""Units: inside the package um, ms, um^2/ms, ms/um^2; at its surface those of DIPY."""

from __future__ import annotations

import numpy as np

MM2_PER_S = 1e3  # um^2/ms
MS_PER_UM2 = 1e3  # s/mm^2
S = 1e3  # ms
_LARGEST_MM2_PER_S = 0.1  # no water is as fast; values in um^2/ms are larger


def diffusivity_um2_per_ms(name: str, value: float) -> float:
    """A diffusivity in mm^2/s, checked, in um^2/ms.

    Parameters
    ----------
    name : str
        Of the argument, for the error.
    value : float
        mm^2/s.

    Raises
    ------
    ValueError
        A value that can only be of another unit.

    Examples
    --------
    >>> diffusivity_um2_per_ms("diffusivity", 2e-3)
    2.0
    """
    if np.ndim(value) or not 0 < value < _LARGEST_MM2_PER_S:
        raise ValueError(
            f"{name} is {value!r}; give it in mm^2/s (water at body temperature has 3e-3)."
        )
    return float(value) * MM2_PER_S
