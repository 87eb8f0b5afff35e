"""The console scripts. Exit status 0, 1 with a message of one line, or 2 for unknown options."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from pathlib import Path

# Module and class of each, imported on use.
COMMANDS = {
    "dipy_fit_spinverse": ("fit_spinverse", "SpinverseFlow"),
    "dipy_fit_packed_cells": ("fit_models", "PackedCellsFlow"),
    "dipy_fit_noddi": ("fit_models", "NODDIFlow"),
    "dipy_fit_activeax": ("fit_models", "ActiveAxFlow"),
    "dipy_fit_zcd": ("fit_models", "ZCDFlow"),
    "dipy_fit_smex": ("fit_models", "SMEXFlow"),
    "dipy_fit_ivim_varpro": ("fit_models", "IVIMFlow"),
    "dipy_fit_cell_shapes": ("fit_models", "CellShapesFlow"),
    "dipy_fit_tissue_fractions": ("fit_tissue_fractions", "TissueFractionsFlow"),
    "dipy_simulate_spinverse": ("simulate_spinverse", "SimulateFlow"),
    "dipy_check_acquisition": ("check_acquisition", "CheckAcquisitionFlow"),
}


def command(name: str) -> type:
    """The workflow of a console script."""
    module, kind = COMMANDS[name]
    return getattr(import_module(f"dipy_spinverse.workflows.{module}"), kind)


def main() -> None:
    """Run the workflow of the called script with the arguments of the command line."""
    program = Path(sys.argv[0]).stem
    if program not in COMMANDS:
        sys.exit(
            f"{program} is not a command of dipy_spinverse; use one of {', '.join(COMMANDS)}."
        )
    from dipy.workflows.flow_runner import run_flow

    from dipy_spinverse import __version__

    for stream in (sys.stdout, sys.stderr):  # of an encoding that lacks the plus-minus sign
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    version = {"action": "version", "version": f"dipy_spinverse {__version__}"}
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _in_one_line
            run_flow(command(program)(), extra_args={"version": version})
    except (ValueError, OSError, ImportError, MemoryError) as error:
        sys.exit(f"{program}: {error}")


def _in_one_line(message, *_, **__):
    print(f"WARNING: {message}", file=sys.stderr)
