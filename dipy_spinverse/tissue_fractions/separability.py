"""Whether images separate tissues, which they do least, and which further image would help."""

from __future__ import annotations

import math
from collections.abc import Sequence as Sequences
from dataclasses import dataclass

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

# Ordinary images; the inversion times are near the zero crossings of tissues.
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


@dataclass(frozen=True)
class Separability:
    """What images tell of mixtures.

    Attributes
    ----------
    condition : float
        Ratio of the best and the least determined mixture's precision, as standard deviations.
    std : float
        Standard deviation of the least determined mixture, for the noise asked about.
    tissues : tuple of str
        The two classes that take each other's place most in it.
    helps : str
        Which of ordinary images would lower `std` most.
    """

    condition: float
    std: float
    tissues: tuple[str, str]
    helps: str

    def __str__(self) -> str:
        first, second = self.tissues
        return (
            f"{first} and {second} take each other's place with a standard deviation of "
            f"{self.std:.2g} (condition number {self.condition:.3g}); {self.helps} would help most"
        )


def separability(
    sequences: Sequences[Sequence],
    tissues: Sequences[Tissue],
    simulator: MRSimulator,
    snr: float,
) -> Separability:
    """Of tissues at nominal fields.

    Parameters
    ----------
    sequences : sequence of Sequence
    tissues : sequence of Tissue
    simulator : MRSimulator
    snr : float
        Mean signal of the images over the noise.
    """
    names = [*(tissue.name for tissue in tissues), "background"]
    one = torch.ones((), dtype=torch.float64)
    every: list[Sequence] = [*sequences, *CANDIDATES.values()]
    signals = simulator.signals(every, constants_of(tissues), one, 0 * one).detach().numpy()
    n = len(sequences)
    sigma = np.abs(signals[:, :n]).mean() / snr

    def least(columns):
        values, vectors = np.linalg.eigh(columns @ columns.T / sigma**2)
        return np.sqrt(np.maximum(values, 1e-12)), vectors[:, 0]

    sizes, direction = least(signals[:, :n])
    moves = np.append(direction, -direction.sum())
    better = [least(signals[:, [*range(n), n + k]])[0][0] for k in range(len(CANDIDATES))]
    pair = names[int(moves.argmax())], names[int(moves.argmin())]
    helps = list(CANDIDATES)[int(np.argmax(better))]
    return Separability(float(sizes[-1] / sizes[0]), float(1 / sizes[0]), pair, helps)
