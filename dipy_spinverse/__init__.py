"""Microscopic walls from diffusion MRI: the Bloch-Torrey inverse problem as a DIPY model."""

from __future__ import annotations

from importlib import import_module

from dipy_spinverse._compiled_cache import ensure_cache

ensure_cache()

__version__ = "0.1.0"

# Names are imported on first use, so that `dipy_fit_spinverse -h` does not wait for torch.
_HOME = {
    "Acquisition": "acquisition",
    "TetrahedralGrid": "grid",
    "bcc_grid": "grid",
    "read_grid": "grid",
    "simulate": "bloch_torrey",
    "simulate_with_jacobian": "bloch_torrey",
    "simulate_finite_elements": "bloch_torrey",
    "InterfaceMesh": "walls.interface",
    "compare_walls": "walls.metrics",
    "interface_mesh": "walls.interface",
    "PackedCellsModel": "packed_cells",
    "CellShapeModel": "cell_shapes",
    "ActiveAxModel": "compartments",
    "IVIMModel": "compartments",
    "LearnedModel": "compartments.learned",
    "MTENODDIModel": "compartments",
    "NEXIModel": "compartments",
    "NODDIModel": "compartments",
    "SANDIModel": "compartments",
    "StandardModel": "compartments",
    "VERDICTModel": "compartments",
    "ZCDModel": "compartments",
    "identifiability": "scan_design",
    "suggest": "scan_design",
    "ClosedCellInversion": "spinverse",
    "FaceInversion": "spinverse",
    "SpinverseFit": "spinverse",
    "SpinverseModel": "spinverse",
    "TissueWallInversion": "spinverse",
    "Status": "voxels",
    "TissueFractionModel": "tissue_fractions",
    "load_fit": "voxels.load",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
