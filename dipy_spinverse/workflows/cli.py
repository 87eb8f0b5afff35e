"""The console scripts. Exit status 0, 1 with a message of one line, or 2 for unknown options."""

from __future__ import annotations

import re
import sys
import warnings
from argparse import ArgumentParser
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import NoReturn

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

_INFORMATION_OPTIONS = {"-h", "--help", "--version"}  # options without a fit


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
    for stream in (sys.stdout, sys.stderr):  # of an encoding that lacks the plus-minus sign
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    if not _INFORMATION_OPTIONS & {*sys.argv} and (sys.stderr.isatty() or "--verbose" in sys.argv):
        print(f"{program}: loading libraries ...", file=sys.stderr, flush=True)
    from dipy.workflows.base import IntrospectiveArgumentParser
    from dipy.workflows.flow_runner import run_flow

    from dipy_spinverse import __version__

    # The usage would list dozens of options.
    IntrospectiveArgumentParser.error = _error_of_options  # type: ignore[assignment]
    version = {"action": "version", "version": f"dipy_spinverse {__version__}"}
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _in_one_line
            run_flow(command(program)(), extra_args={"version": version})
    except (ValueError, OSError, ImportError, MemoryError) as error:
        own = isinstance(error, OSError) and error.filename is None and error.strerror
        sys.exit(f"{program}: {own or error}")  # without the number of the error


def _error_of_options(parser: ArgumentParser, message: str) -> NoReturn:
    """Error of the command line in one line, with the options that a mistyped one resembles."""
    known = [*parser._option_string_actions]
    similar = [
        match
        for word in re.findall(r"--[^\s=]+", message)
        if word not in known
        for match in get_close_matches(word, known, n=3)
    ]
    hint = f" Did you mean {' or '.join(similar)}?" if similar else ""
    parser.exit(2, f"{parser.prog}: {message}.{hint} {parser.prog} -h lists all.\n")


def _in_one_line(message, *_, **__):
    print(f"WARNING: {message}", file=sys.stderr)
