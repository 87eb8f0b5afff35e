"""An acquisition as torch tensors, with equal encodings up to direction gathered as shells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dipy_spinverse.acquisition import Acquisition, BaseAcquisition
from dipy_spinverse.acquisition.b_tensors import b_anisotropy

_MOST_BY_PRODUCT = 64  # shells
# Of b (ms/um^2) and shape of b-tensors: turned waveforms are not exactly alike.
_TENSOR_DECIMALS = 4


@dataclass(frozen=True, eq=False)
class Encoding:
    """What compartment signals depend on: S shells, M measurements.

    `b` (ms/um^2), `q` (rad/um), `small_delta` and `big_delta` (ms) are of shells; all but
    b are 0 without pulses. `anisotropy` is that of the b-tensors (1 linear, 0 spherical,
    -0.5 planar), `directions` are their symmetry axes. `isotropic` measurements are averages over
    all directions (None: there are none). `te` and `mixing_time` are in ms.
    """

    b: Tensor
    q: Tensor
    small_delta: Tensor
    big_delta: Tensor
    anisotropy: Tensor
    shell: Tensor
    directions: Tensor
    isotropic: Tensor | None
    te: Tensor
    mixing_time: Tensor

    def without_diffusion(self) -> Encoding:
        """The same with b = 0."""
        return replace(self, b=0 * self.b, q=0 * self.q)

    @cached_property
    def diffusion_time(self) -> Tensor:
        """That of the pulses (S,), ms, such that b is q^2 times it; 1 without pulses."""
        time = self.big_delta - self.small_delta / 3
        return torch.where(time > 0, time, 1.0)

    @cached_property
    def linear(self) -> bool:
        """Whether all b-tensors are."""
        return bool((self.anisotropy == 1).all())

    @cached_property
    def order_of_shells(self) -> tuple[np.ndarray, np.ndarray]:
        """Measurements (M,) sorted by shell, and the end (S,) of each shell among them."""
        order = torch.argsort(self.shell, stable=True)
        counts = torch.bincount(self.shell, minlength=len(self.b))
        return order.numpy(), torch.cumsum(counts, dim=0).numpy()

    def spread(self, of_shells: Tensor) -> Tensor:
        """Values (..., S) of shells as values (..., M) of measurements."""
        if len(self.b) > _MOST_BY_PRODUCT:
            return of_shells.index_select(of_shells.ndim - 1, self.shell)
        # A product with zeros and ones is several times faster than indexing.
        chosen = torch.nn.functional.one_hot(self.shell, len(self.b)).T
        return of_shells @ chosen.to(of_shells.dtype)


def encoding_of(acquisition: BaseAcquisition, dtype=torch.float64, timed: bool = True) -> Encoding:
    """Shells and directions; without `timed`, pulse timings do not make shells distinct."""
    b, averaged = acquisition.b, acquisition.isotropic
    if isinstance(acquisition, Acquisition):
        averaged = acquisition.direction_averaged
        shape, times = np.ones_like(b), (acquisition.small_delta, acquisition.big_delta)
        pulses = np.stack([acquisition.q, *times], axis=1)
    else:
        b = b.round(_TENSOR_DECIMALS)
        shape = b_anisotropy(acquisition.b_tensors)[0]
        shape = np.where(b > 0, shape, 1).round(_TENSOR_DECIMALS)
        pulses = np.zeros((len(b), 3))
    columns = np.column_stack([b, shape, pulses]).round(9)
    _, representative, shell_index = np.unique(
        columns if timed else columns[:, :2], axis=0, return_index=True, return_inverse=True
    )
    b, anisotropy, q, small, big = torch.tensor(columns[representative].T, dtype=dtype)
    directions = torch.tensor(acquisition.directions, dtype=dtype)
    isotropic = torch.tensor(averaged) if averaged.any() else None
    shell = torch.tensor(shell_index.reshape(-1))
    te, stored = (torch.tensor(t, dtype=dtype) for t in (acquisition.te, acquisition.mixing_time))
    return Encoding(b, q, small, big, anisotropy, shell, directions, isotropic, te, stored)
