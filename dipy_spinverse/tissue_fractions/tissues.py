"""Tissues of the brain: relaxation times, proton densities and diffusivities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dipy_spinverse.units import diffusivity_um2_per_ms


@dataclass(frozen=True)
class Tissue:
    """A pure tissue.

    Attributes
    ----------
    name : str
        Of its map.
    proton_density : float
        Relative to water.
    t1_s, t2_s, t2_prime_s : float
        Relaxation times, s; ``1 / T2* = 1 / T2 + 1 / T2'``.
    diffusivity : float
        Mean, mm^2/s.

    Raises
    ------
    ValueError
        A value that is not positive, or a diffusivity that is not in mm^2/s.

    Examples
    --------
    >>> from dataclasses import replace
    >>> csf, gm, wm = tissues_at(3)
    >>> gm.t1_s
    1.607
    >>> replace(gm, t1_s=1.4).name
    'gm'
    """

    name: str
    proton_density: float
    t1_s: float
    t2_s: float
    t2_prime_s: float
    diffusivity: float

    def __post_init__(self):
        for quantity in CONSTANTS:
            value = getattr(self, quantity)
            if not value > 0:
                raise ValueError(f"{quantity} of {self.name} is {value}; give a value above 0.")
        diffusivity_um2_per_ms(f"diffusivity of {self.name}", self.diffusivity)

    @property
    def t2_star_s(self) -> float:
        """T2* of gradient echoes, s."""
        return 1 / (1 / self.t2_s + 1 / self.t2_prime_s)


# Order of the columns of arrays of constants.
CONSTANTS = ("proton_density", "t1_s", "t2_s", "t2_prime_s", "diffusivity")
assert CONSTANTS == tuple(field.name for field in fields(Tissue))[1:]

SOURCES = {
    "t1_s of gm, wm": "10.1007/s10334-008-0104-8",  # MPRAGE, at 1.5, 3 and 7 T
    "t2_s of gm, wm": "PubMed 20593370",  # frontal grey matter, at 1.5, 3 and 7 T
    "t1_s, and t2_s at 3 T, of csf": "PMC10696635",  # around the brain
    "t2_s of csf at 1.5 T": "PubMed 28782676",  # of CSF outside the body
    "t2_s of csf at 7 T": "10.1007/s10334-017-0659-3",
    "t2_prime_s of gm, wm": "10.1016/j.mri.2007.02.014",  # from its T2* and the T2 above
    "t2_prime_s of csf": "10.48550/arXiv.2404.14739",  # at 3 T; inversely to the field elsewhere
    "proton_density": "10.3389/fneur.2019.01333",  # relative to CSF
    "diffusivity of wm": "10.1148/radiology.201.3.8939209",
    "diffusivity of gm": "10.48550/arXiv.2404.14739",
    "diffusivity of csf": "10.1039/b005319h",  # free water at 37 C
}
"""DOI or PubMed identifier of each value of :func:`tissues_at`.

All but two were checked against the papers. T2 of CSF at 7 T is a secondary quotation of its
source; PubMed 28782676 reports 0.9 s. At 1.5 T no in vivo T2 of CSF was available: 2.0 s is that
of CSF in vitro, and in vivo at 3 T, in PubMed 28782676. T2 differs more between methods than
between tissues (grey matter at 3 T: 68 to 76 ms in vivo, 99 ms in vitro, 10.1002/mrm.20605), and
T1 by 20 %. Use other `Tissue` constants, or let them be unknown, where this matters.
"""

# Field (T): T1 of GM and WM, T2 of GM and WM, T2* of GM and WM, T2 of CSF; ms.
_TIMES_MS = {
    1.5: (1197, 646, 87, 80, 84.0, 66.2, 2000),
    3.0: (1607, 838, 76, 71, 66.0, 53.2, 1886),
    7.0: (1939, 1126, 47, 47, 33.2, 26.8, 1050),
}
FIELDS = tuple(_TIMES_MS)


def tissues_at(field: float) -> tuple[Tissue, Tissue, Tissue]:
    """CSF, grey and white matter of the literature (`SOURCES`).

    Parameters
    ----------
    field : {1.5, 3, 7}
        Tesla.

    Raises
    ------
    ValueError
        Another field.
    """
    if field not in _TIMES_MS:
        raise ValueError(
            f"field is {field} T; constants are known at {FIELDS} T: give one of these."
        )
    t1_gm, t1_wm, t2_gm, t2_wm, star_gm, star_wm, t2_csf = (t / 1e3 for t in _TIMES_MS[field])
    return (
        Tissue("csf", 1.0, 4.31, t2_csf, 0.0591 * 3 / field, 3.04e-3),
        Tissue("gm", 0.837, t1_gm, t2_gm, _t2_prime(star_gm, t2_gm), 0.83e-3),
        Tissue("wm", 0.691, t1_wm, t2_wm, _t2_prime(star_wm, t2_wm), 0.7e-3),
    )


def _t2_prime(t2_star, t2):
    return 1 / (1 / t2_star - 1 / t2)


PUBLISHED_TISSUES = (
    Tissue("csf", 1.0, 4.16, 1.65, 0.0591, 3.05e-3),
    Tissue("gm", 0.8, 1.55, 0.09, 0.322, 0.83e-3),
    Tissue("wm", 0.7, 0.83, 0.07, 0.183, 0.7e-3),
)
"""Constants of the published method at 3 T, for comparison [1]_.

.. [1] Gupta et al. (2024), https://doi.org/10.48550/arXiv.2404.14739
"""


def constants_of(tissues: Sequence[Tissue]) -> Tensor:
    """Constants (T, 5) of tissues, in the order of `CONSTANTS`."""
    values = [[getattr(tissue, name) for name in CONSTANTS] for tissue in tissues]
    return torch.tensor(values, dtype=torch.float64)
