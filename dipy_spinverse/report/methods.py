"""A methods paragraph about a fit, with the references in the documentation of its model."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version

import numpy as np

from dipy_spinverse.voxels.fit import VoxelFit

_DIPY = (
    "Garyfallidis et al., Dipy, a library for the analysis of diffusion MRI data, Front. "
    "Neuroinform. 8 (2014) 8, https://doi.org/10.3389/fninf.2014.00008"
)
_REFERENCE = re.compile(r"\.\. \[\d+\](.*?)(?=\n\s*\.\. \[|\n\s*\n|\Z)", re.DOTALL)


def methods_paragraph(fit: VoxelFit) -> tuple[str, tuple[str, ...]]:
    """A paragraph that describes model, measurements and estimates of a fit, and references."""
    documentation = inspect.getdoc(type(fit.model)) or ""
    model = re.sub(r" \[\d+\]_", "", documentation.partition("\n")[0]).rstrip(".")
    references = [" ".join(text.split()) for text in _REFERENCE.findall(documentation)]
    n_voxels = int(np.count_nonzero(fit.status))
    has_intervals = any(hasattr(fit, f"{name}_low") for name in fit.MAPS)
    estimates = (
        "Maps are posterior medians with central 95 % intervals."
        if has_intervals
        else "Maps are the most probable values, without intervals."
    )
    return (
        f"Voxels ({n_voxels}) were fitted with {type(fit.model).__name__} ({model}) by "
        f"dipy_spinverse {version('dipy_spinverse')} on DIPY {version('dipy')}. "
        f"{_measurements(fit)} {estimates} "
        "Voxels whose residual exceeds the noise (F-test, p < 0.001) are marked as not explained "
        "by the model.",
        (*references, _DIPY),
    )


def _measurements(fit):
    acquisition = fit.model.acquisition
    if not hasattr(acquisition, "timings"):
        return f"There were {len(acquisition)} measurements."
    b = np.unique(acquisition.b[~acquisition.b0_mask].round(1))
    small, big, te = (_range(column) for column in acquisition.timings.T)
    return (
        f"There were {len(acquisition)} measurements, {int(acquisition.b0_mask.sum())} of them "
        f"b0, with b up to {1e3 * b.max():.0f} s/mm^2, pulses of {small} ms, {big} ms apart, and "
        f"echo times of {te} ms."
    )


def _range(values):
    low, high = values.min(), values.max()
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
