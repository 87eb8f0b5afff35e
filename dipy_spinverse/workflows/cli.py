"""The console script ``dipy_fit_spinverse``."""

from __future__ import annotations

import sys

from dipy.workflows.flow_runner import run_flow

from dipy_spinverse import __version__
from dipy_spinverse.workflows.fit_spinverse import SpinverseFlow


def main() -> None:
    """Run the workflow on the arguments of the command line.

    A bad argument or file ends the program with one line that says what to change, not with a
    traceback.
    """
    version = {"action": "version", "version": f"dipy_spinverse {__version__}"}
    try:
        run_flow(SpinverseFlow(), extra_args={"version": version})
    except (ValueError, OSError) as error:
        sys.exit(f"dipy_fit_spinverse: {error}")
