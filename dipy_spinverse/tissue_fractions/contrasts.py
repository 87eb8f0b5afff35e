"""The images of an examination, as the voxel layer takes measurements."""

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

# Largest difference of affines, mm, of images of one grid.
_SAME_PLACE = 1e-3


@dataclass(frozen=True)
class Contrasts:
    """C images of one examination: what stands in for an acquisition of diffusion.

    Without diffusion weighting and without repeats, so that the voxel layer takes the mean over
    images for the size of a voxel's signal, and tells no noise from repeats.

    Attributes
    ----------
    sequences : tuple of Sequence
    """

    sequences: tuple[Sequence, ...]

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def b(self) -> np.ndarray:
        """(C,) zeros."""
        return np.zeros(len(self))

    @property
    def te_index(self) -> np.ndarray:
        """(C,) zeros: images are of one scale, echo times are in their sequences."""
        return np.zeros(len(self), dtype=int)

    @property
    def echo_times(self) -> np.ndarray:
        """(1,) zero."""
        return np.zeros(1)

    @property
    def b0_per_te(self) -> np.ndarray:
        """(1, C): none is a repeat of another."""
        return np.zeros((1, len(self)), dtype=bool)

    def to_gtab(self) -> GradientTable:
        """Of no diffusion weighting."""
        return gradient_table(self.b, bvecs=np.zeros((len(self), 3)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Named arrays, of which :meth:`from_arrays` makes them again."""
        text = json.dumps([description_of(each) for each in self.sequences])
        return {"sequences": np.frombuffer(text.encode(), dtype=np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Contrasts:
        """Those of :meth:`arrays`."""
        described = json.loads(bytes(arrays["sequences"]))
        return cls(tuple(sequence_from(each) for each in described))


def contrasts_of(sequences: Contrasts | Sequences[Sequence | Mapping]) -> Contrasts:
    """Contrasts as they are, or of sequences or their descriptions.

    Raises
    ------
    ValueError
        No sequence, or what is none.
    """
    if isinstance(sequences, Contrasts):
        return sequences
    made = [sequence_from(each) if isinstance(each, Mapping) else each for each in sequences]
    wrong = [type(each).__name__ for each in made if not isinstance(each, Sequence)]
    if wrong or not made:
        raise ValueError(
            f"sequences has {wrong or 'nothing'}; give a SpoiledGradientEcho, MPRAGE, "
            "TurboSpinEcho or PulseqFile, or its description, for each image."
        )
    return Contrasts(tuple(made))


def stack_images(images: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """Data (..., C) and affine (4, 4) of NIfTI images of one grid.

    Parameters
    ----------
    images : sequence of nibabel images
        One of each contrast, or with several of them along the fourth axis.

    Raises
    ------
    ValueError
        Images of other shapes or places than the first.
    """
    first, parts = images[0], []
    for k, image in enumerate(images):
        if image.shape[:3] != first.shape[:3]:
            raise ValueError(
                f"image {k} has shape {image.shape}, the first {first.shape}; resample it to the "
                "first."
            )
        apart = np.abs(image.affine - first.affine).max()
        if apart > _SAME_PLACE:
            raise ValueError(
                f"image {k} has an affine that differs from the first by up to {apart:.3g}; "
                "register and resample it to the first."
            )
        data = np.asanyarray(image.dataobj)
        parts.append(data if data.ndim == 4 else data[..., None])
    return np.concatenate(parts, axis=-1), first.affine
