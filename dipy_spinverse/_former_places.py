"""Public modules under the names that they had: imports written before a move go on to work."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_NOW = {
    "bloch_torrey.analytic_exchange": "bloch_torrey.analytic.exchange",
    "bloch_torrey.finite_element": "bloch_torrey.finite_elements.operator",
    "bloch_torrey.matrix_formalism": "bloch_torrey.finite_elements.matrix_formalism",
    "bloch_torrey.partial_volume": "bloch_torrey.finite_volumes.partial_volume",
    "compartments.draws": "compartments.posterior.draws",
    "compartments.glyphs": "report.glyphs",
    "compartments.plots": "report.compartment_figures",
    "encodings": "acquisition.encodings",
    "information": "scan_design.bounds",
    "interface": "walls.interface",
    "spinverse_fit": "spinverse.fit",
    "suggestions": "scan_design.suggestions",
    "wall_maps": "walls.maps",
    "waveform_acquisition": "acquisition.free_waveforms",
    "waveform_files": "acquisition.waveform_files",
    "waveforms": "acquisition.waveforms",
}


class _FormerPlaces(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        known = package == "dipy_spinverse" and name in _NOW
        return ModuleSpec(fullname, self) if known else None

    def exec_module(self, module: ModuleType) -> None:
        package, _, name = module.__name__.partition(".")
        there = import_module(f"{package}.{_NOW[name]}")
        public = [name for name in vars(there) if not name.startswith("_")]
        module.__dict__.update({name: getattr(there, name) for name in public})
        module.__doc__ = there.__doc__


sys.meta_path.append(_FormerPlaces())
