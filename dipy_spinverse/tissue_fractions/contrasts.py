"""The images of an examination, in place of an acquisition of diffusion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Sequences
from dataclasses import dataclass
from typing import Any

import numpy as np
from dipy.core.gradients import GradientTable, gradient_table

from dipy_spinverse.tissue_fractions.sequence_files import description_of, sequence_from
from dipy_spinverse.tissue_fractions.sequences import Sequence

_AFFINE_TOLERANCE = 1e-3  # mm, of images of one grid; NIfTI affines are float32


@dataclass(frozen=True)
class Contrasts:
    """C images of one examination, with the interface of an acquisition of diffusion.

    Without diffusion weighting and without repeats: S0 is the mean over images, and the noise is
    not estimated from repeats.
    """

    sequences: tuple[Sequence, ...]

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def b(self) -> np.ndarray:
        """(C,) zeros."""
        return np.zeros(len(self))

    @property
    def n_averages(self) -> np.ndarray:
        """(C,) ones: images are single magnitudes."""
        return np.ones(len(self), dtype=int)

    @property
    def te_index(self) -> np.ndarray:
        """(C,) zeros: all images share a scale."""
        return np.zeros(len(self), dtype=int)

    @property
    def echo_times(self) -> np.ndarray:
        """(1,) zero."""
        return np.zeros(1)

    @property
    def b0_per_te(self) -> np.ndarray:
        """(1, C): there are no repeats."""
        return np.zeros((1, len(self)), dtype=bool)

    @property
    def repeated_b0(self) -> np.ndarray:
        """(0, C): there are no repeats."""
        return np.zeros((0, len(self)), dtype=bool)

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
