"""Data of the benchmarks, from the folder named by DIPY_SPINVERSE_DATA, and its measured voxels.

The data are not part of the package; `data.toml` states what each file is, where it comes from,
and its checksum.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations_with_replacement
from pathlib import Path

import nibabel
import numpy as np
from dipy.reconst.dti import TensorModel

from dipy_spinverse import Acquisition
from dipy_spinverse.datasets import ENVIRONMENT_VARIABLE, check, manifest

# ms/um^2; above it a diffusion tensor does not describe tissue.
TENSOR_B = 1.5
# um^2/ms, body temperature.
_FREE_IN_VIVO = 3.0
# Histology is tapered to zero where white matter ends; there its diameters are too small. The
# g-ratio is the same in all white matter, so that its drop shows the taper.
_LEAST_COVERAGE = 0.95
_LEAST_AXONS = 100
_N_STRATA = 8
_HISTOLOGY = {
    "axon_diameter": "1_axonEquivDiameter.nii",
    "axon_diameter_by_volume": "3_axonEquivDiameter_axonvolumeCorrected.nii",
    "restricted_fraction": "4_fr.nii",
}


@dataclass(frozen=True, eq=False)
class Voxels:
    """Signals of voxels and their reference data.

    Attributes
    ----------
    name : str
    acquisition : Acquisition
    signals : ndarray (V, M)
        Relative to b0 (of the shortest echo time, where echo times are not normalised).
    usable : ndarray (V, M) of bool
        Clear of the noise floor.
    labels : tuple of str (V,)
    orientation : ndarray (V, 3)
        First eigenvector of a diffusion tensor.
    diffusivity : ndarray (V,)
        Its first eigenvalue, um^2/ms.
    free_diffusivity : float
        Of free water, um^2/ms.
    sigma : ndarray (V,)
        Standard deviation of repeated b0.
    repeatability : ndarray (V,)
        Standard deviation of one measurement as opposite directions show it.
    histology : dict of ndarray (V,)
    """

    name: str
    acquisition: Acquisition
    signals: np.ndarray
    usable: np.ndarray
    labels: tuple[str, ...]
    orientation: np.ndarray
    diffusivity: np.ndarray
    free_diffusivity: float
    sigma: np.ndarray
    repeatability: np.ndarray
    histology: dict = field(default_factory=dict)


def data_at_hand() -> bool:
    """Whether the environment variable names a folder."""
    return Path(os.environ.get(ENVIRONMENT_VARIABLE) or "/nowhere").is_dir()


@cache
def data_file(name: str) -> Path:
    """Path of a file of the manifest, such as "noddi200/noddi200.npz", once it is checked.

    Raises
    ------
    SystemExit
        Where the folder or the file is missing, or the file is another one.
    """
    dataset, _, file = name.partition("/")
    known = _manifest()[dataset]
    size, checksum = known["files"][file].values()
    asked = f"{name} ({size} bytes; {known['what']}; source: {known['source']})"
    if not data_at_hand():
        raise SystemExit(
            f"{ENVIRONMENT_VARIABLE} is {os.environ.get(ENVIRONMENT_VARIABLE)!r}; set it to the "
            f"folder of the data that benchmarks/data.toml lists. Needed is {asked}."
        )
    path = Path(os.environ[ENVIRONMENT_VARIABLE]) / name
    if not path.is_file():
        raise SystemExit(f"{path} is missing. Needed is {asked}; see benchmarks/data.toml.")
    try:
        check(path.read_bytes(), checksum, path)
    except ValueError as error:
        raise SystemExit(f"{error} Needed is {asked}; see benchmarks/data.toml.") from None
    return path


def data_files(dataset: str, ending: str) -> list[Path]:
    """Paths of all files of a dataset with this ending, in the order of the manifest."""
    names = _manifest()[dataset]["files"]
    return [data_file(f"{dataset}/{name}") for name in names if name.endswith(ending)]


@cache
def _manifest():
    return manifest() | tomllib.loads(Path(__file__).with_name("data.toml").read_text())


def load_duval_cat(voxels_per_stratum: int = 3, seed: int = 0) -> Voxels:
    """White-matter voxels of the cat spinal cord, all encodings in one plane across it.

    A voxel qualifies by histology alone: g-ratio of at least 95 % of its median and at least
    100 axons. The qualified ones are sorted into octiles of axon diameter, and the same number
    chosen at random from each. Signals are divided by the mean b0 of their timing. The tensor
    comes from the second scan of the same voxels, with directions on the sphere. The
    free diffusivity is that of the medium around the cord, in the same scan.
    """
    histology = {name: _cat_image(file) for name, file in _HISTOLOGY.items()}
    chosen = _white_matter(histology["axon_diameter"], voxels_per_stratum, seed)
    plane = Acquisition.from_scheme(data_file("duval_cat/2D_qspace.scheme"))
    sphere = Acquisition.from_scheme(data_file("duval_cat/3D_qspace.scheme"))
    image = _cat_image("tanguy_spinal_cord_2D.nii.gz")
    image_3d = _cat_image("tanguy_spinal_cord_3D.nii.gz")
    medium = _medium_around(image[..., plane.b0_mask].mean(axis=-1))
    # all four b of this scan but the largest, 6.7 ms/um^2
    low = sphere.b < 2
    diffusivity, orientation = first_axis(sphere.subset(low), image_3d[chosen][:, low])
    free = first_axis(sphere.subset(low), image_3d[medium][:, low], mean=True)[0]
    floor = np.median(image[medium][:, plane.b > 40])
    signals, usable = _clear_of_floor(plane, image[chosen], floor)
    index = plane.timing_index
    for timing, b0 in enumerate(plane.b0_per_timing):
        signals[:, index == timing] /= signals[:, b0 & ~left_out(plane)].mean(axis=1)[:, None]
    return _with_noise(
        "cat",
        plane,
        signals,
        usable,
        labels=tuple(f"{i},{j}" for i, j in zip(*chosen, strict=True)),
        orientation=orientation,
        diffusivity=diffusivity,
        free_diffusivity=float(np.median(free)),
        histology={name: values[chosen] for name, values in histology.items()},
    )


def load_isbi2015(region: str) -> Voxels:
    """The six voxels of a region, "genu" or "fornix".

    The noise floor is the 10th percentile of the signals at b above 20 ms/um^2, where water
    diffusing along the fibres has no signal left.
    """
    acquisition = Acquisition.from_scheme(data_file("isbi2015/isbi_schemefile.txt"))
    measured = np.loadtxt(data_file(f"isbi2015/{region}.txt"), comments="%").T
    shortest = acquisition.b0_per_te[0]
    measured = measured / measured[:, shortest].mean(axis=1)[:, None]
    floor = np.percentile(measured[:, acquisition.b > 20], 10, axis=1)[:, None]
    signals, usable = _clear_of_floor(acquisition, measured, floor)
    low = (acquisition.b < TENSOR_B) & ~left_out(acquisition)
    per_te = np.stack([signals[:, b0 & low].mean(axis=1) for b0 in acquisition.b0_per_te], axis=1)
    relative = signals / per_te[:, acquisition.te_index]
    diffusivity, orientation = first_axis(acquisition.subset(low), relative[:, low])
    return _with_noise(
        region,
        acquisition,
        signals,
        usable,
        labels=tuple(str(number + 1) for number in range(len(measured))),
        orientation=orientation,
        diffusivity=diffusivity,
        free_diffusivity=_FREE_IN_VIVO,
    )


def left_out(acquisition: Acquisition, every: int = 4) -> np.ndarray:
    """Mask (M,) of the measurements that no model sees: every 4th encoding of each timing.

    Encodings are counted in order of b; opposite directions are one encoding (left out both or
    none: a model without flow predicts the same signal for both). Of b0, every 4th.
    """
    mask = np.zeros(len(acquisition), dtype=bool)
    for timing in range(len(acquisition.timings)):
        rows = np.flatnonzero(acquisition.timing_index == timing)
        b0 = rows[acquisition.b0_mask[rows]]
        mask[b0[every - 1 :: every]] = True
        groups = encodings(acquisition, rows[~acquisition.b0_mask[rows]])
        for group in groups[every - 1 :: every]:
            mask[group] = True
    return mask


def encodings(acquisition: Acquisition, rows: np.ndarray) -> list[np.ndarray]:
    """Measurements of equal b along the same axis, of one timing, in order of b.

    Axes within 5 degrees are the same (the directions of an image that was corrected for motion
    are turned a little).
    """
    groups = []
    for shell in shells(acquisition, rows):
        alignment = np.abs(acquisition.directions[shell] @ acquisition.directions[shell].T)
        free = np.ones(len(shell), dtype=bool)
        for first in range(len(shell)):
            if free[first]:
                same = free & (alignment[first] > np.cos(np.radians(5)))
                free &= ~same
                groups.append(shell[same])
    return groups


def shells(acquisition: Acquisition, rows: np.ndarray) -> list[np.ndarray]:
    """Measurements of equal b among those of one timing, in order of b."""
    strength = acquisition.q[rows].round(3)
    return [rows[strength == value] for value in np.unique(strength)]


def first_axis(acquisition: Acquisition, signals: np.ndarray, mean: bool = False):
    """First eigenvalue (or the mean one) in um^2/ms and first eigenvector of diffusion tensors."""
    fit = TensorModel(acquisition.to_gtab(), fit_method="WLS").fit(signals)
    return 1e3 * (fit.md if mean else fit.evals[..., 0]), fit.evecs[..., 0]


def _white_matter(diameter, per_stratum, seed):
    g_ratio, axons = _cat_image("6_gRatio.nii"), _cat_image("7_Number_axons.nii")
    covered = g_ratio >= _LEAST_COVERAGE * np.median(g_ratio[g_ratio > 0])
    qualified = np.argwhere(covered & (axons >= _LEAST_AXONS))
    by_diameter = qualified[np.argsort(diameter[tuple(qualified.T)], kind="stable")]
    random = np.random.default_rng(seed)
    strata = np.array_split(by_diameter, _N_STRATA)
    drawn = [stratum[random.choice(len(stratum), per_stratum, False)] for stratum in strata]
    return tuple(np.concatenate(drawn).T)


def _medium_around(b0):
    """Mask of the brightest 15 % of the image: the cord is darker than what it lies in."""
    return b0 > np.percentile(b0[b0 > 0], 85)


def _clear_of_floor(acquisition, measured, floor):
    """Signals with the noise floor taken out, and where they are clear of it.

    E|S + noise|^2 = S^2 + floor^2 for any number of coils. Usable are the measurements whose
    signal, smoothed over the directions of its shell, is at least twice the floor: the signal
    itself would select by its noise.
    """
    smooth = np.empty_like(measured)
    for timing in range(len(acquisition.timings)):
        for shell in shells(acquisition, np.flatnonzero(acquisition.timing_index == timing)):
            columns = combinations_with_replacement(acquisition.directions[shell].T, 4)
            basis = np.stack([np.prod(column, axis=0) for column in columns], axis=1)
            basis = basis if acquisition.q[shell].any() else np.ones((len(shell), 1))
            smooth[:, shell] = (basis @ (np.linalg.pinv(basis) @ measured[:, shell].T)).T
    return np.sqrt(np.maximum(measured**2 - floor**2, 0)), smooth >= 2 * floor


def _with_noise(name, acquisition, signals, usable, **known) -> Voxels:
    voxels = Voxels(name, acquisition, signals, usable, **known, sigma=None, repeatability=None)
    return replace(
        voxels,
        sigma=b0_noise(acquisition, signals),
        repeatability=opposite_noise(acquisition, signals, usable),
    )


def b0_noise(acquisition: Acquisition, signals: np.ndarray) -> np.ndarray:
    """Robust standard deviation (V,): differences of consecutive b0 of the same timing."""
    steps = [np.diff(signals[:, b0], axis=1) for b0 in acquisition.b0_per_timing]
    return 1.4826 * np.median(np.abs(np.concatenate(steps, axis=1)), axis=1) / np.sqrt(2)


def opposite_noise(acquisition: Acquisition, signals, usable) -> np.ndarray:
    """Standard deviation (V,) of a measurement within its encoding (opposite directions).

    Above `b0_noise` by what no model of diffusion explains: gradients other than those of the
    scheme, drift, motion.
    """
    squares, freedom = np.zeros(len(signals)), np.zeros(len(signals))
    for timing in range(len(acquisition.timings)):
        rows = np.flatnonzero((acquisition.timing_index == timing) & ~acquisition.b0_mask)
        for group in encodings(acquisition, rows):
            use = usable[:, group].all(axis=1)
            squares += use * signals[:, group].var(axis=1) * len(group)
            freedom += use * (len(group) - 1)
    return np.sqrt(squares / freedom)


def _cat_image(name):
    return np.squeeze(nibabel.load(data_file(f"duval_cat/{name}")).get_fdata())
