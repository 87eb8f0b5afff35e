"""Brains and built phantoms of tissue fractions, and scans of them, for `tissue_fractions`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import nibabel
import numpy as np
import torch
from scipy.ndimage import binary_dilation, map_coordinates

from benchmarks.datasets import data_file
from dipy_spinverse.tissue_fractions import (
    MPRAGE,
    PUBLISHED_TISSUES,
    DoubleInversionPreparation,
    InversionPreparation,
    SpoiledGradientEcho,
    T2Preparation,
    TurboSpinEcho,
    constants_of,
)
from dipy_spinverse.tissue_fractions.tissues import CONSTANTS

TISSUES = ("csf", "gm", "wm")
FOV_MM, SIZE = 200.0, 64


@dataclass(frozen=True)
class Phantom:
    """Tissue of a slice at a resolution `FINER` times that of its image.

    Attributes
    ----------
    fine : ndarray (f X, f Y, T)
        Fractions of CSF, grey and white matter; what is left of 1 is background.
    finer : int
        The factor f.
    """

    fine: np.ndarray
    finer: int

    @property
    def fractions(self) -> np.ndarray:
        """Of the voxels of the image (X, Y, T)."""
        return averaged(self.fine, self.finer)

    @property
    def labels(self) -> np.ndarray:
        """Tissue (X, Y) at the middle of each voxel, from 0; T is background.

        Fractions of the voxel in a discrete brain model.
        """
        middle = self.fine[self.finer // 2 :: self.finer, self.finer // 2 :: self.finer]
        return crisp(middle)


def averaged(fine: np.ndarray, finer: int) -> np.ndarray:
    """Means (X, Y, ...) over blocks of `finer` x `finer`."""
    size = fine.shape[0] // finer, fine.shape[1] // finer
    blocks = fine.reshape(size[0], finer, size[1], finer, *fine.shape[2:])
    return blocks.mean(axis=(1, 3))


def crisp(fractions: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Tissue with the largest fraction; background where it is larger, or none exceeds `least`."""
    background = 1 - fractions.sum(axis=-1, keepdims=True)
    if least:
        background = np.where(fractions.max(axis=-1, keepdims=True) < least, 2.0, -1.0)
    return np.concatenate([fractions, background], axis=-1).argmax(axis=-1)


def brain_volume() -> np.ndarray:
    """Fractions (91, 109, 91, 3) of the MNI152 average brain at 2 mm."""
    maps = [nibabel.load(data_file(f"mni152_tissue/pve_{k}.nii.gz")) for k in range(3)]
    return np.stack([image.get_fdata(dtype=np.float32) for image in maps], axis=-1)


def brain_slice(volume: np.ndarray, z: int, finer: int) -> Phantom:
    """An axial slice of the brain over `FOV_MM`, `SIZE` x `SIZE` voxels."""
    there = volume[:, :, z].any(axis=-1).nonzero()
    centre = [(axis.min() + axis.max()) / 2 for axis in there]
    n = SIZE * finer
    steps = (np.arange(n) + 0.5 - n / 2) * FOV_MM / n / 2  # voxels of 2 mm
    at = np.meshgrid(centre[0] + steps, centre[1] + steps, indexing="ij")
    fine = [map_coordinates(volume[:, :, z, k], at, order=1) for k in range(3)]
    return Phantom(np.stack(fine, axis=-1), finer)


def built(seed: int, finer: int) -> Phantom:
    """A folded ribbon of grey matter around white, with CSF around it and in ventricles.

    Each fine voxel is of one tissue, so that all partial volume comes from averaging.
    """
    rng = np.random.default_rng(seed)
    n = SIZE * finer
    x, y = np.meshgrid(*[(np.arange(n) + 0.5) / n * 2 - 1] * 2, indexing="ij")
    angle, radius = np.arctan2(y, x), np.hypot(x / 0.8, y)
    folds = sum(
        rng.uniform(0.01, 0.035) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        for k in rng.choice(np.arange(8, 26), 5, replace=False)
    )
    pial = 0.82 + folds
    white = pial - rng.uniform(0.09, 0.14) + 0.5 * folds
    wm, gm = radius < white, radius < pial
    csf = radius < 0.9
    for side in (-1, 1):
        along, across = y - rng.uniform(-0.1, 0.1), x - side * rng.uniform(0.13, 0.2)
        ventricle = (across / 0.07) ** 2 + (along / rng.uniform(0.2, 0.3)) ** 2
        deep = ((x - side * 0.33) / 0.1) ** 2 + ((y - 0.05) / rng.uniform(0.15, 0.25)) ** 2
        wm = wm & (ventricle > 1) & (deep > 1)
        gm = gm & (ventricle > 1)
    tissue = np.stack([csf & ~gm, gm & ~wm, wm], axis=-1)
    return Phantom(tissue.astype(np.float32), finer)


def smooth_field(shape: tuple[int, ...], amplitude: float, rng, waves: int = 3) -> np.ndarray:
    """A random field of low cosines with the mean 0 and the largest size `amplitude`."""
    axes = [np.pi * (np.arange(n) + 0.5) / n for n in shape]
    field = np.zeros(shape)
    for order in np.ndindex(*[waves] * len(shape)):
        waves = [np.cos(k * axis) for k, axis in zip(order, axes, strict=True)]
        term = waves[0]
        for wave in waves[1:]:
            term = np.multiply.outer(term, wave)
        field += rng.normal() * term if any(order) else 0
    field -= field.mean()
    return amplitude * field / np.abs(field).max()


# Published: FLASH of 5 degrees, read centre first, after four preparations of each type. Its
# FLAIR (inversion, then T2 preparation) is a train of spin echoes here, the sixth type (diffusion)
# MPRAGE.
_FLASH = {"tr": 0.0056, "te": 0.0025, "flip_angle": 5.0, "n_pulses": SIZE}
_INVERSIONS, _ECHOES = (0.1, 0.5, 1.0, 2.7), (0.01, 0.05, 0.1, 0.3)


def _flash(preparation, later=0.0):
    timing = {"tr": _FLASH["tr"] + later, "te": _FLASH["te"] + later}
    return SpoiledGradientEcho(**{**_FLASH, **timing}, preparation=preparation)


SEQUENCES = {
    "T1": [_flash(InversionPreparation(ti)) for ti in _INVERSIONS],
    "T2": [_flash(T2Preparation(te)) for te in _ECHOES],
    "T2*": [_flash(None, later) for later in (0.005, 0.01, 0.03, 0.06)],
    "DIR": [_flash(DoubleInversionPreparation(ti + 0.5, 0.5)) for ti in _INVERSIONS],
    "FLAIR": [
        TurboSpinEcho(math.inf, te / 4, 4, te, preparation=InversionPreparation(2.7))
        for te in _ECHOES
    ],
    "MPRAGE": [MPRAGE(2.3, ti, 0.0025, 9, 0.0056, SIZE) for ti in (0.3, 0.6, 0.9, 1.2)],
}
PROTOCOLS = {"one T1 contrast": [SEQUENCES["T1"][0]], "T1 x 4": SEQUENCES["T1"]}
for _name in [*SEQUENCES][1:]:
    PROTOCOLS[f"+ {_name} x 4"] = [*[*PROTOCOLS.values()][-1], *SEQUENCES[_name]]


@dataclass(frozen=True)
class Truth:
    """Deviations of scanner and tissue that are unknown to the model.

    Attributes
    ----------
    snr : float
        Mean signal of the brain over the noise in each channel; infinite without noise. One noise
        level for all images: that of the first four, weighted by T1.
    b1 : float
        Largest error of the transmit field, smooth.
    b1_waves : int
        Number of cosines along each axis in this error, including the constant.
    b0 : float
        Largest off-resonance, Hz, smooth.
    constants : float
        Largest error of each tissue constant, a separate smooth field plus a constant half.
    shifted : dict
        By how much constants are larger in grey matter and smaller in white matter, relative.
    encoded : bool
        Whether images are made line by line of k-space, the tissue relaxing between the lines,
        from the fine phantom. If not, a voxel is the mean of its part of the fine phantom.
    """

    snr: float = math.inf
    b1: float = 0.0
    b1_waves: int = 3
    b0: float = 0.0
    constants: float = 0.0
    shifted: Mapping[str, float] = field(default_factory=dict)
    encoded: bool = False


@dataclass(frozen=True)
class Scan:
    """Magnitudes (X, Y, C) of a phantom, the head (X, Y), noise in each channel, B0 (X, Y)."""

    images: np.ndarray
    head: np.ndarray
    sigma: float
    b0: np.ndarray


def scanned(phantom: Phantom, sequences, truth: Truth, simulator, seed: int) -> Scan:
    """Scan of a phantom, tissue by tissue at its fine resolution.

    Parameters
    ----------
    phantom : Phantom
    sequences : sequence of Sequence
    truth : Truth
    simulator : MRSimulator
    seed : int
    """
    rng = np.random.default_rng(seed)
    inside = phantom.fine.any(axis=-1)
    shape = inside.shape
    b1 = 1 + smooth_field(shape, truth.b1, rng, truth.b1_waves)[inside]
    constants = constants_of(PUBLISHED_TISSUES).numpy()
    constants = np.broadcast_to(constants, (inside.sum(), *constants.shape)).copy()
    for t, p in np.ndindex(constants.shape[1:]):
        error = 0.5 * smooth_field(shape, truth.constants, rng)[inside]
        constants[:, t, p] *= 1 + error + rng.choice([-0.5, 0.5]) * truth.constants
    for name, size in truth.shifted.items():
        constants[:, 1:, CONSTANTS.index(name)] *= (1 + size, 1 - size)
    b0 = smooth_field(shape, truth.b0, rng) if truth.b0 else np.zeros(shape)

    def pure(some):
        """Signals (N, C) of the mixture at each fine position."""
        fields = torch.tensor(b1), torch.tensor(b0[inside])
        signals = simulator.signals(some, torch.tensor(constants), *fields).numpy()
        return np.einsum("nt,ntc->nc", phantom.fine[inside], signals)

    make = _encoded if truth.encoded else _voxel_means
    images = np.stack([make(sequence, pure, inside, phantom.finer) for sequence in sequences], -1)
    head = binary_dilation(phantom.fractions.sum(axis=-1) > 0.01, iterations=2)
    t1_weighted = np.abs(images[..., : len(SEQUENCES["T1"])])
    sigma = t1_weighted[phantom.fractions.sum(axis=-1) > 0.5].mean() / truth.snr
    noise = sigma * rng.normal(size=(2, *images.shape))
    magnitudes = np.abs(images + noise[0] + 1j * noise[1])
    return Scan(magnitudes, head, sigma, averaged(b0, phantom.finer))


def _voxel_means(sequence, pure, inside, finer):
    fine = np.zeros(inside.shape)
    fine[inside] = pure([sequence])[:, 0]
    return averaged(fine, finer)


def _encoded(sequence, pure, inside, finer):
    """Image of k-space lines along the second axis, each with the signals of its excitation."""
    if not isinstance(sequence, SpoiledGradientEcho):
        return _voxel_means(sequence, pure, inside, finer)
    n = inside.shape[1]
    lines = np.array(sorted(np.arange(-SIZE // 2, SIZE // 2), key=abs))  # centre first
    signals = pure([replace(sequence, centre=k) for k in range(len(lines))])
    space = np.zeros((SIZE, SIZE), dtype=complex)
    places = (np.arange(n) + 0.5) / n - 0.5
    reads = np.exp(-2j * np.pi * np.outer(np.arange(-SIZE // 2, SIZE // 2), places))
    for k, line in enumerate(lines):
        fine = np.zeros(inside.shape)
        fine[inside] = signals[:, k]
        phase = np.exp(-2j * np.pi * line * places)
        space[:, line + SIZE // 2] = reads @ (fine @ phase)
    middle = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    back = np.exp(2j * np.pi * np.outer(middle, np.arange(-SIZE // 2, SIZE // 2)))
    return (back @ space @ back.T) / n**2
