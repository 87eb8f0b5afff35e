"""Maps as a BIDS derivative: names, sidecars with units and meaning, dataset description."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np

from dipy_spinverse.report.descriptions import STATUS_DESCRIPTIONS, map_description
from dipy_spinverse.report.images import MAP_SUFFIXES, save_image
from dipy_spinverse.voxels.fit import VoxelFit
from dipy_spinverse.voxels.status import Status

_BIDS_VERSION = "1.10.0"
_ENTITIES = re.compile(r"(?P<all>(?P<subject>sub-[A-Za-z0-9]+)(_[a-z]+-[A-Za-z0-9]+)*)_dwi\.nii")
_STATISTIC = {
    "": "posterior median, or the most probable value where there are no posterior samples",
    "_std": "standard deviation of the posterior",
    "_low": "lower limit of the central 95 % interval",
    "_high": "upper limit of the central 95 % interval",
}


def entities_of(path: str | Path) -> tuple[str, Path]:
    """Entities of a BIDS file of diffusion images, and the folder of its derivatives.

    Examples
    --------
    >>> entities_of("sub-01_ses-2_dir-AP_desc-preproc_dwi.nii.gz")[0]
    'sub-01_ses-2_dir-AP'
    """
    entities = _ENTITIES.match(Path(path).name)
    if entities is None:
        raise ValueError(
            f"input_files: {Path(path).name} is not a BIDS name such as sub-01_dwi.nii.gz; rename "
            "it, or leave --bids out."
        )
    session = re.search(r"_(ses-[A-Za-z0-9]+)", entities["all"])
    folder = Path(entities["subject"], *([session[1]] if session else []), "dwi")
    return re.sub("_desc-[A-Za-z0-9]+", "", entities["all"]), folder  # that of the maps follows


def derivative_files(names: list[str], stem: Path) -> list[Path]:
    """Files of maps and their statistics, in the order of `names`.

    `stem` is the folder, and the common beginning of the names: entities and model.

    Examples
    --------
    >>> str(derivative_files(["pore_diameter"], Path("dwi/sub-01_model-PackedCells"))[0])
    'dwi/sub-01_model-PackedCells_param-poreDiameter_dwimap.nii.gz'
    """
    descriptions = [f"_desc-{suffix[1:]}" if suffix else "" for suffix in MAP_SUFFIXES]
    return [
        stem.with_name(f"{stem.name}_param-{_label(name)}{description}_dwimap.nii.gz")
        for name in names
        for description in descriptions
    ]


def save_derivatives(
    fit: VoxelFit, names: list[str], stem: Path, source: str | Path, affine: np.ndarray, model: str
) -> None:
    """Write maps as BIDS derivatives of the images `source`, each with a sidecar.

    `names` and `stem` are those of :func:`derivative_files`.
    """
    files, prior = iter(derivative_files(names, stem)), fit.prior_dominated_percent()
    for name in names:
        unit, meaning = map_description(name, fit)
        for suffix, file in zip(MAP_SUFFIXES, files, strict=False):
            values = getattr(fit, name + suffix, fit.S0_hat if name + suffix == "S0" else None)
            if values is None:
                continue
            save_image(file, values, affine, f"{name}{suffix} ({unit}), dipy_spinverse")
            sidecar = {
                "Description": meaning if name == "status" else f"{meaning}; {_STATISTIC[suffix]}",
                "Units": unit,
                "PriorDominatedPercent": prior.get(name, 0.0),
                "Model": {"Name": model},
                "Sources": [f"bids:raw:{Path(source).name}"],
            }
            if name == "status":
                sidecar["Levels"] = {
                    str(int(code)): f"{code.name}: {STATUS_DESCRIPTIONS[code.name]}"
                    for code in Status
                }
            sidecar_file = file.with_name(file.name.removesuffix(".nii.gz") + ".json")
            sidecar_file.write_text(json.dumps(sidecar, indent=2) + "\n")


def save_description(path: Path) -> None:
    """Write ``dataset_description.json``."""
    description = {
        "Name": "Maps of dipy_spinverse",
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "dipy_spinverse", "Version": version("dipy_spinverse")}],
    }
    path.write_text(json.dumps(description, indent=2) + "\n")


def _label(name):
    """In camel case, because labels of BIDS have letters and digits only."""
    return re.sub("_(.)", lambda match: match[1].upper(), name)
