"""The console scripts."""

from __future__ import annotations

import sys

from dipy.workflows.flow_runner import run_flow
from dipy.workflows.workflow import Workflow

from dipy_spinverse import __version__
from dipy_spinverse.workflows.fit_spinverse import SpinverseFlow
from dipy_spinverse.workflows.fit_tissue_fractions import TissueFractionsFlow


def main() -> None:
    """``dipy_fit_spinverse``."""
    _run("dipy_fit_spinverse", SpinverseFlow())


def tissue_fractions() -> None:
    """``dipy_fit_tissue_fractions``."""
    _run("dipy_fit_tissue_fractions", TissueFractionsFlow())


def _run(program: str, flow: Workflow) -> None:
    """Run a workflow on the arguments of the command line.

    A bad argument or file ends the program with one line that says what to change, not with a
    traceback.
    """
    version = {"action": "version", "version": f"dipy_spinverse {__version__}"}
    try:
        run_flow(flow, extra_args={"version": version})
    except (ValueError, OSError) as error:
        sys.exit(f"{program}: {error}")
