"""Which additional image would help to separate tissues."""

from __future__ import annotations

import math
from collections.abc import Sequence as Sequences

import numpy as np
import torch

from dipy_spinverse.tissue_fractions.mr_simulator import MRSimulator
from dipy_spinverse.tissue_fractions.sequences import (
    InversionPreparation,
    Sequence,
    SpoiledGradientEcho,
    TurboSpinEcho,
)
from dipy_spinverse.tissue_fractions.tissues import Tissue, constants_of

# Common images; the inversion times are near the zero crossings of tissues at 3 T.
CANDIDATES: dict[str, Sequence] = {
    "a T1-weighted FLASH (TR 20 ms, 25 degrees)": SpoiledGradientEcho(0.02, 0.004, 25),
    "a FLASH weighted by proton density (TR 20 ms, 3 degrees)": SpoiledGradientEcho(
        0.02, 0.004, 3
    ),
    "a T2*-weighted FLASH (TE 30 ms, 10 degrees)": SpoiledGradientEcho(0.04, 0.03, 10),
    "a T2-weighted turbo spin echo (TE 90 ms)": TurboSpinEcho(5.0, 0.01, 15, 0.09),
    "a turbo spin echo weighted by proton density (TE 10 ms)": TurboSpinEcho(5.0, 0.01, 8, 0.01),
    **{
        f"an inversion recovery (TI {ti} s)": TurboSpinEcho(
            math.inf, 0.01, 8, 0.01, preparation=InversionPreparation(ti)
        )
        for ti in (0.3, 0.55, 1.1, 2.2)
    },
}


def most_helpful(
    sequences: Sequences[Sequence],
    tissues: Sequences[Tissue],
    simulator: MRSimulator,
    snr: float,
) -> str:
    """The candidate that improves the least determined mixture most, at nominal fields.

    The SNR is the mean signal over the noise.
    """
    unit = torch.ones((), dtype=torch.float64)
    all_sequences: list[Sequence] = [*sequences, *CANDIDATES.values()]
    signals = (
        simulator.signals(all_sequences, constants_of(tissues), unit, 0 * unit).detach().numpy()
    )
    n = len(sequences)
    sigma = np.abs(signals[:, :n]).mean() / snr
    columns = [signals[:, [*range(n), n + k]] / sigma for k in range(len(CANDIDATES))]
    improved = [np.linalg.eigvalsh(each @ each.T)[0] for each in columns]
    return list(CANDIDATES)[np.argmax(improved)]
