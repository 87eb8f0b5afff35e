"""A methods paragraph about a fit, with its references."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np

from dipy_spinverse.voxels.fit import VoxelFit

_DIPY = (
    "Garyfallidis et al., Dipy, a library for the analysis of diffusion MRI data, Front. "
    "Neuroinform. 8 (2014) 8, https://doi.org/10.3389/fninf.2014.00008"
)
_MODELS = {
    "SpinverseModel": (
        "packed permeable cylinders and spheres, and, in chosen voxels, the permeabilities of the "
        "faces of a tetrahedral grid (the inverse problem of the Bloch-Torrey equation)",
        ("Spinverse, https://doi.org/10.48550/arXiv.2603.04638",),
    ),
    "PackedCellsModel": (
        "packed permeable cylinders and spheres with hindered, free and immobile water",
        (),
    ),
    "NODDIModel": (
        "NODDI",
        ("Zhang et al., NODDI, NeuroImage 61 (2012) 1000, "
         "https://doi.org/10.1016/j.neuroimage.2012.03.072",),
    ),
    "ActiveAxModel": (
        "the minimal model of white-matter diffusion (ActiveAx)",
        ("Alexander et al., NeuroImage 52 (2010) 1374, "
         "https://doi.org/10.1016/j.neuroimage.2010.05.043",),
    ),
    "ZCDModel": (
        "zeppelin, cylinder and dot (immobile water)",
        ("Panagiotaki et al., NeuroImage 59 (2012) 2241, "
         "https://doi.org/10.1016/j.neuroimage.2011.09.081",),
    ),
    "IVIMModel": (
        "intravoxel incoherent motion, with the fractions eliminated by variable projection",
        ("Le Bihan et al., Radiology 168 (1988) 497, "
         "https://doi.org/10.1148/radiology.168.2.3393671",),
    ),
    "CellShapeModel": (
        "closed cells, whose surface meshes move within a space of shapes",
        ("Khole et al. (2025), https://doi.org/10.48550/arXiv.2502.01988",),
    ),
    "TissueFractionModel": (
        "mixtures of tissues whose signals follow from the sequences and relaxation times",
        ("Gupta et al. (2024), https://doi.org/10.48550/arXiv.2404.14739",),
    ),
}  # fmt: skip


def methods_paragraph(fit: VoxelFit) -> tuple[str, tuple[str, ...]]:
    """A paragraph that describes model, measurements and estimates of a fit, and references."""
    name = type(fit.model).__name__
    model, references = _MODELS.get(name, (f"a compartment model ({name})", ()))
    n_voxels = int(np.count_nonzero(fit.status))
    has_intervals = any(hasattr(fit, f"{name}_low") for name in fit.MAPS)
    estimates = (
        "Maps are posterior medians with central 95 % intervals."
        if has_intervals
        else "Maps are the most probable values, without intervals."
    )
    return (
        f"Voxels ({n_voxels}) were fitted with {model}, by dipy_spinverse "
        f"{version('dipy_spinverse')} on DIPY {version('dipy')}. {_measurements(fit)} {estimates} "
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
