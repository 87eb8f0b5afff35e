"""Brain phantom for `ordinary_images`, made without the package: its signals are simulated here.

Pulse by pulse (MPRAGE, FLASH) and isochromat by isochromat (turbo spin echo) in NumPy, with
constants of other groups than those of the package.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel
import numpy as np
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import distance_transform_edt, map_coordinates

from benchmarks.datasets import data_file

# Proton density, T1 and T2 (s) at 3 T of CSF, grey and white matter, then scalp. Times of grey and
# white matter: Stanisz et al., https://doi.org/10.1002/mrm.20605; Wansapura et al. (1999),
# J. Magn. Reson. Imaging 9:531. CSF, scalp and proton densities: by hand, unlike the package's.
SCALP = (0.9, 0.35, 0.07)
CONSTANTS = {
    "Stanisz": ((1.0, 3.8, 1.5), (0.86, 1.82, 0.099), (0.73, 1.084, 0.069), SCALP),
    "Wansapura": ((1.0, 4.0, 1.6), (0.80, 1.331, 0.110), (0.68, 0.832, 0.0796), SCALP),
    "other": ((1.0, 4.5, 2.0), (0.82, 1.47, 0.084), (0.66, 0.95, 0.074), SCALP),
}
T2_PRIME = 0.25  # s, by hand; matters only for gradient echoes, whose TE is 3 ms
SHARPNESS = 4.0  # power of the fractions at 1 mm; by hand
B1_NODES, VARIATION_NODES = np.linspace(0.8, 1.2, 9), np.linspace(0.88, 1.12, 5)


def mprage(b1, t1, t2, tr=2.3, ti=0.9, te=0.003, angle=9.0, spacing=0.0075, n=160):
    """Signal of unit magnetisation at the central excitation, after 6 inversions."""
    m, tip = np.ones_like(t1), np.radians(angle) * b1

    def relaxed(m, time):
        return 1 + (m - 1) * np.exp(-time / t1)

    for _ in range(6):
        m = relaxed(-m, ti - n // 2 * spacing)
        for k in range(n):
            if k == n // 2:
                centre = m * np.sin(tip)
            m = relaxed(m * np.cos(tip), spacing)
        m = relaxed(m, tr - ti - (n - n // 2) * spacing)
    return centre * np.exp(-te * (1 / t2 + 1 / T2_PRIME))


def flash(b1, t1, t2, tr=0.02, te=0.003, angle=5.0):
    """Spoiled gradient echo after 1500 excitations."""
    m, tip = np.ones_like(t1), np.radians(angle) * b1
    for _ in range(1500):
        m = 1 + (m * np.cos(tip) - 1) * np.exp(-tr / t1)
    return m * np.sin(tip) * np.exp(-te * (1 / t2 + 1 / T2_PRIME))


def spin_echoes(b1, t1, t2, tr=5.0, spacing=0.01, n=15, echo=9, angle=150.0, n_spins=64, ti=None):
    """Turbo spin echo: isochromats turned by crushers; three repetitions; FLAIR if `ti`."""
    turns = np.exp(2j * np.pi * np.arange(n_spins) / n_spins)
    t1, t2, b1 = t1[..., None], t2[..., None], b1[..., None]
    across, along = (
        np.zeros((*t1.shape[:-1], n_spins), complex),
        np.ones((*t1.shape[:-1], n_spins)),
    )

    def wait(time, turned):
        nonlocal across, along
        across = across * np.exp(-time / t2) * turned
        along = 1 + (along - 1) * np.exp(-time / t1)

    def tip(degrees, imaginary):
        """About x, or about y after turning the frame."""
        nonlocal across, along
        angle, phase = np.radians(degrees) * b1, 1j if imaginary else 1.0
        frame = across / phase
        y = np.cos(angle) * frame.imag - np.sin(angle) * along
        along = np.sin(angle) * frame.imag + np.cos(angle) * along
        across = (frame.real + 1j * y) * phase

    for _ in range(3):
        across = 0 * across
        along = np.broadcast_to(along.mean(axis=-1, keepdims=True), along.shape)
        if ti is not None:
            along = 1 + (-along - 1) * np.exp(-ti / t1)  # adiabatic
        tip(90, False)
        for k in range(1, n + 1):
            wait(spacing / 2, turns)
            tip(angle, True)
            wait(spacing / 2, turns)
            if k == echo:
                signal = -across.mean(axis=-1).imag
        along = 1 + (along - 1) * np.exp(-(tr - n * spacing - (ti or 0)) / t1)
    return signal


@dataclass(frozen=True)
class Series:
    """An image: simulator, arbitrary scale, and its description for the package."""

    simulate: object
    scale: float
    described: dict


T1W = Series(mprage, 900.0, {
    "type": "MPRAGE", "tr": 2.3, "ti": 0.9, "te": 0.003, "flip_angle": 9.0,
    "echo_spacing": 0.0075, "n_pulses": 160,
})  # fmt: skip
_TSE = {"type": "TurboSpinEcho", "tr": 5.0, "echo_spacing": 0.01, "refocusing_angle": 150.0}
T2W = Series(spin_echoes, 900.0 * 0.12, {**_TSE, "echo_train_length": 15, "effective_te": 0.09})
PDW = Series(
    flash, 2500.0, {"type": "SpoiledGradientEcho", "tr": 0.02, "te": 0.003, "flip_angle": 5.0}
)
FLAIR = Series(
    lambda b1, t1, t2: spin_echoes(b1, t1, t2, tr=8.0, ti=2.35), 60.0,
    {**_TSE, "tr": 8.0, "echo_train_length": 15, "effective_te": 0.09,
     "preparation": {"type": "InversionPreparation", "ti": 2.35, "adiabatic": True}},
)  # fmt: skip


@dataclass(frozen=True)
class Examination:
    """Images (X, Y, Z, C), true fractions (X, Y, Z, 3), voxels of the brain, voxels to fit."""

    images: np.ndarray
    fractions: np.ndarray
    brain: np.ndarray
    mask: np.ndarray


def fine_fractions(slices: slice) -> np.ndarray:
    """MNI152 fractions at 1 mm, sharpened, of axial slices of 2 mm."""
    volume = np.stack([
        nibabel.load(data_file(f"mni152_tissue/pve_{k}.nii.gz")).get_fdata()[:, :, slices]
        for k in range(3)
    ], axis=-1)  # fmt: skip
    at = np.meshgrid(*((np.arange(2 * n) - 0.5) / 2 for n in volume.shape[:3]), indexing="ij")
    fine = [map_coordinates(volume[..., k], at, order=1, mode="nearest") for k in range(3)]
    fine = np.stack(fine, axis=-1)
    background = 1 - fine.sum(axis=-1, keepdims=True)
    powers = np.concatenate([fine, background], axis=-1).clip(0) ** SHARPNESS
    return (powers / powers.sum(axis=-1, keepdims=True))[..., :3]


def averaged(fine):
    """Means over blocks of 2 x 2 x 2."""
    n = [size // 2 for size in fine.shape[:3]]
    return fine.reshape(n[0], 2, n[1], 2, n[2], 2, *fine.shape[3:]).mean(axis=(1, 3, 5))


def smooth(shape, amplitude, rng):
    """Random field of low cosines, mean 0, largest size `amplitude`."""
    axes = [(np.arange(n) + 0.5) / n for n in shape]
    field = np.zeros(shape)
    for order in np.ndindex(3, 3, 2):
        waves = [np.cos(np.pi * k * axis) for k, axis in zip(order, axes, strict=True)]
        field += rng.normal() * np.einsum("i,j,k->ijk", *waves) if any(order) else 0
    field -= field.mean()
    return amplitude * field / max(np.abs(field).max(), 1e-300)


def examination(
    series, constants="Stanisz", *, snr=25.0, b1=0.15, bias=0.2, variation=0.06, skull=False,
    slices=slice(40, 44), seed=0,
) -> Examination:  # fmt: skip
    """Images of the phantom; SNR of each over the brain, fields and variation at their largest."""
    rng = np.random.default_rng(seed)
    fine = fine_fractions(slices)
    fractions = averaged(fine)
    brain = fractions.sum(axis=-1) > 0.05
    distance = distance_transform_edt(fine.sum(axis=-1) < 0.5)
    scalp = ((distance > 5) & (distance < 10)).astype(float) * skull
    parts = np.concatenate([fine, scalp[..., None]], axis=-1)
    shape = fine.shape[:3]
    field = 1 + smooth(shape, b1, rng)
    varied = [[1 + smooth(shape, variation, rng) for _ in range(3)] for _ in range(3)]
    varied.append([np.ones(shape)] * 3)
    images = []
    for one in series:
        signal = np.zeros(shape)
        for k, (density, t1, t2) in enumerate(CONSTANTS[constants]):
            inside = parts[..., k] > 0
            nodes = np.meshgrid(B1_NODES, VARIATION_NODES, VARIATION_NODES, indexing="ij")
            table = one.simulate(nodes[0], t1 * nodes[1], t2 * nodes[2])
            read = RegularGridInterpolator((B1_NODES, VARIATION_NODES, VARIATION_NODES), table)
            at = np.stack([field, varied[k][0], varied[k][1]], axis=-1)[inside]
            signal[inside] += parts[inside, k] * density * varied[k][2][inside] * read(at)
        clean = one.scale * averaged(signal * (1 + smooth(shape, bias, rng)))
        sigma = np.abs(clean[brain]).mean() / snr
        noise = sigma * rng.normal(size=(2, *clean.shape))
        images.append(np.hypot(clean + noise[0], noise[1]))
    mask = averaged(distance) < 12 if skull else brain
    return Examination(np.stack(images, axis=-1), fractions, brain, mask)
