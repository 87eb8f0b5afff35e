"""An acquisition as torch tensors, with equal encodings up to direction gathered as shells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.acquisition.pulsed import Acquisition

_MOST_BY_PRODUCT = 64  # shells


@dataclass(frozen=True, eq=False)
class Encoding:
    """What compartment signals depend on.

    Attributes
    ----------
    b, q, small_delta, big_delta : Tensor (S,)
        Of each shell, in ms/um^2, rad/um and ms; b and q are 0 for b0.
    shell : Tensor (M,) of int
        Shell of each measurement.
    directions : Tensor (M, 3)
    isotropic : Tensor (M,) of bool, or None
        Averages over all directions; None where there are none.
    """

    b: Tensor
    q: Tensor
    small_delta: Tensor
    big_delta: Tensor
    shell: Tensor
    directions: Tensor
    isotropic: Tensor | None = None

    def spread(self, of_shells: Tensor) -> Tensor:
        """Values (..., S) of shells as values (..., M) of measurements."""
        if len(self.b) > _MOST_BY_PRODUCT:
            return of_shells.index_select(of_shells.ndim - 1, self.shell)
        # A product with zeros and ones is several times faster than indexing.
        chosen = torch.nn.functional.one_hot(self.shell, len(self.b)).T
        return of_shells @ chosen.to(of_shells.dtype)


def encoding_of(acquisition: Acquisition, dtype=torch.float64, timed: bool = True) -> Encoding:
    """Shells and directions of an acquisition.

    Parameters
    ----------
    acquisition : Acquisition
    dtype : torch.dtype, optional
    timed : bool, optional
        Whether signals depend on the pulse timing; without it, fewer shells are distinct.
    """
    weighting = np.where(acquisition.b0_mask, 0, acquisition.b)
    columns = np.stack(
        [weighting, acquisition.q, acquisition.small_delta, acquisition.big_delta], axis=1
    ).round(9)
    _, first, shell = np.unique(
        columns if timed else columns[:, :1], axis=0, return_index=True, return_inverse=True
    )
    b, q, small, big = torch.tensor(columns[first].T, dtype=dtype)
    directions = torch.tensor(acquisition.directions, dtype=dtype)
    isotropic = torch.tensor(acquisition.isotropic) if acquisition.isotropic.any() else None
    return Encoding(b, q, small, big, torch.tensor(shell.reshape(-1)), directions, isotropic)
