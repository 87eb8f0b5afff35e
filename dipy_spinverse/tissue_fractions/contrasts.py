"""The images of an examination, as an acquisition without diffusion weighting."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from typing import Any

import numpy as np
from dipy.core.gradients import GradientTable, gradient_table
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.acquisition.waveforms import Waveforms
from dipy_spinverse.tissue_fractions.sequence_files import description_of, sequence_from
from dipy_spinverse.tissue_fractions.sequences import Sequence

_AFFINE_TOLERANCE = 1e-3  # mm, of images of one grid; NIfTI affines are float32


@dataclass(frozen=True)
class Contrasts(BaseAcquisition):
    """C images of one examination: an acquisition without diffusion weighting.

    Without repeats, too: S0 is the mean over images, and the noise is not estimated from b0.
    """

    sequences: tuple[Sequence, ...]

    def __post_init__(self):
        n = len(self.sequences)
        self._set(
            b=np.zeros(n), b_tensors=np.zeros((n, 3, 3)), directions=np.zeros((n, 3)),
            te=np.zeros(n), mixing_time=np.zeros(n), isotropic=np.zeros(n, dtype=bool),
            n_averages=np.ones(n, dtype=int), b0_threshold=-1.0,
        )  # fmt: skip

    @property
    def waveforms(self) -> tuple[Waveforms, ...]:
        return ()

    def _summary(self):
        return ()

    def subset(self, index: ArrayLike | slice) -> Contrasts:
        return Contrasts(tuple(self.sequences[k] for k in self._rows(index)))

    def to_gtab(self) -> GradientTable:
        """Gradient table without diffusion weighting."""
        return gradient_table(self.b, bvecs=np.zeros((len(self), 3)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Named arrays for :meth:`from_arrays`."""
        text = json.dumps([description_of(sequence) for sequence in self.sequences])
        return {"sequences": np.frombuffer(text.encode(), dtype=np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Contrasts:
        """Inverse of :meth:`arrays`."""
        described = json.loads(bytes(arrays["sequences"]))
        return cls(tuple(sequence_from(description) for description in described))


def contrasts_of(sequences: Contrasts | Sequences[Sequence | Mapping]) -> Contrasts:
    """Contrasts unchanged, or of sequences or their descriptions."""
    if isinstance(sequences, Contrasts):
        return sequences
    resolved = [
        sequence_from(sequence) if isinstance(sequence, Mapping) else sequence
        for sequence in sequences
    ]
    invalid = [
        type(sequence).__name__ for sequence in resolved if not isinstance(sequence, Sequence)
    ]
    if invalid or not resolved:
        raise ValueError(
            f"sequences has {invalid or 'nothing'}; give a SpoiledGradientEcho, MPRAGE, "
            "TurboSpinEcho or PulseqFile, or its description, for each image."
        )
    return Contrasts(tuple(resolved))


def stack_images(images: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Data (..., C) and affine (4, 4) of NIfTI images of one grid.

    Parameters
    ----------
    images : sequence of nibabel images
        Each of one contrast, or of several along the fourth axis.

    Raises
    ------
    ValueError
        Images of different shapes or affines.
    """
    reference, volumes = images[0], []
    for k, image in enumerate(images):
        if image.shape[:3] != reference.shape[:3]:
            raise ValueError(
                f"image {k} has shape {image.shape}, the first {reference.shape}; resample it to "
                "the first."
            )
        deviation = np.abs(image.affine - reference.affine).max()
        if deviation > _AFFINE_TOLERANCE:
            raise ValueError(
                f"image {k} has an affine that differs from the first by up to {deviation:.3g}; "
                "register and resample it to the first."
            )
        data = np.asanyarray(image.dataobj)
        volumes.append(data if data.ndim == 4 else data[..., None])
    return np.concatenate(volumes, axis=-1), reference.affine
