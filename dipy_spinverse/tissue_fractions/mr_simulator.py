"""The protocol of simulators of MR images."""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from typing import Protocol

import torch
from torch import Tensor

from dipy_spinverse.tissue_fractions.sequences import Sequence


class MRSimulator(Protocol):
    """Simulates signals of pure tissues, as :class:`TissueFractionModel` needs them."""

    def signals(
        self, sequences: Sequences[Sequence], constants: Tensor, b1: Tensor, b0: Tensor
    ) -> Tensor:
        """Real, signed signals (..., T, C) of each tissue in each image.

        Parameters
        ----------
        sequences : sequence of Sequence
            C of them.
        constants : Tensor (..., T, 5)
            In the order of `tissues.CONSTANTS`.
        b1 : Tensor (...)
            Flip angles over the nominal ones.
        b0 : Tensor (...)
            Off-resonance, Hz.
        """


def is_variable(parameter: object) -> bool:
    """Whether a parameter of a sequence is a tensor by which signals are to be differentiated."""
    return isinstance(parameter, torch.Tensor) and parameter.requires_grad
