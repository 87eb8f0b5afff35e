"""Measured data for tutorials, downloaded on first use and kept.

They are stored in the folder named by the environment variable DIPY_SPINVERSE_DATA, by default in
that of DIPY's own data (``~/.dipy``). `datasets.toml` has the source and content of each file.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import nibabel as nib
import numpy as np
from dipy.data.fetcher import dipy_home

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.voxels.storage import write_whole

ENVIRONMENT_VARIABLE = "DIPY_SPINVERSE_DATA"
REGIONS = ("genu", "fornix")
_TIMEOUT = 30  # s
_CAT = ("tanguy_spinal_cord_2D.nii.gz", "2D_qspace.scheme")
_HISTOLOGY = {
    "axon_diameter": "1_axonEquivDiameter.nii",
    "restricted_fraction": "4_fr.nii",
    "g_ratio": "6_gRatio.nii",
    "n_axons": "7_Number_axons.nii",
}


@dataclass(frozen=True, eq=False)
class CatCord:
    """A slice of a cat's spinal cord, ex vivo, with histology of the same slice.

    `data` (64, 64, 1791) of all directions in the plane across the cord and eight diffusion times;
    `histology` (64, 64): "axon_diameter" (um), "restricted_fraction", "g_ratio" and "n_axons" in
    white matter, 0 elsewhere.
    """

    data: np.ndarray
    acquisition: Acquisition
    histology: dict[str, np.ndarray]

    @property
    def white_matter(self) -> np.ndarray:
        """Mask (64, 64) of the voxels with histology."""
        return self.histology["restricted_fraction"] > 0


def fetch_cat_cord() -> tuple[dict[str, Path], Path]:
    """Fetch the cat's spinal cord, 13 MB: paths of its files by name, and their folder.

    From Duval et al., ISMRM 2016; White Matter Microscopy Database,
    https://doi.org/10.17605/OSF.IO/YP4QG. Raises an OSError if a file cannot be fetched or
    written, a ValueError if its checksum is not the expected one.
    """
    return _fetched("duval_cat", [*_CAT, *_HISTOLOGY.values()])


def read_cat_cord() -> CatCord:
    """The cat's spinal cord, fetched if it is missing."""
    files, _ = fetch_cat_cord()
    image, scheme = (files[name] for name in _CAT)
    return CatCord(
        _squeezed(image),
        Acquisition.from_scheme(scheme),
        {name: _squeezed(files[file]) for name, file in _HISTOLOGY.items()},
    )


def fetch_isbi2015() -> tuple[dict[str, Path], Path]:
    """Fetch the data of the ISBI 2015 white-matter challenge, 0.6 MB; as :func:`fetch_cat_cord`.

    From Ferizi et al., NMR Biomed. 30 (2017) e3734, https://doi.org/10.1002/nbm.3734.
    """
    return _fetched("isbi2015", ["isbi_schemefile.txt", *(f"{each}.txt" for each in REGIONS)])


def read_isbi2015(region: str) -> tuple[np.ndarray, Acquisition]:
    """Signals (6, 3612) of six voxels of a human brain in vivo, at 300 mT/m, and acquisition.

    Of the `region` "genu" or "fornix".
    """
    if region not in REGIONS:
        raise ValueError(f"region is {region!r}; use one of {', '.join(map(repr, REGIONS))}.")
    files, _ = fetch_isbi2015()
    signals = np.loadtxt(files[f"{region}.txt"], comments="%").T
    return signals, Acquisition.from_scheme(files["isbi_schemefile.txt"])


def _fetched(dataset: str, names: Iterable[str]):
    """Paths of files of a data set by name, and their folder."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    folder = (Path(named) if named else Path(dipy_home) / "dipy_spinverse") / dataset
    return {name: _file(dataset, name, folder / name) for name in names}, folder


@cache
def manifest() -> dict[str, Any]:
    """Contents of `datasets.toml`, by data set."""
    return tomllib.loads(Path(__file__).with_name("datasets.toml").read_text())


def check(content: bytes, sha256: str, source: Any) -> None:
    """Raise a ValueError if the content of a file from `source` has another checksum."""
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{source} is not the expected file (sha256 {found} instead of {sha256}); remove it "
            "and try again."
        )


def _file(dataset, name, path):
    known = manifest()[dataset]
    size, sha256 = known["files"][name].values()
    if path.is_file():
        check(path.read_bytes(), sha256, path)
        return path
    url, here = f"{known['url']}/{name}", f"{path} ({size / 1e6:.1f} MB; {known['what']})"
    try:
        with urlopen(url, timeout=_TIMEOUT) as response:
            content = response.read()
    except OSError as error:
        raise OSError(
            f"{here} is missing and cannot be fetched from {url} ({error}). With a network, "
            f"try again; without one, copy the file there, or set {ENVIRONMENT_VARIABLE} to a "
            f"folder with {dataset}/{name}."
        ) from error
    check(content, sha256, url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: file.write(content))
    except OSError as error:
        raise OSError(
            error.errno,
            f"{here} was fetched, but cannot be written ({error.strerror}); make room there, or "
            f"set {ENVIRONMENT_VARIABLE} to another folder",
        ) from error
    return path


def _squeezed(path):
    return np.squeeze(nib.load(path).get_fdata(dtype=np.float32))
