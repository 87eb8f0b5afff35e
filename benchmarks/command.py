"""What the scripts share: their command line, and where results go.

``--quick`` computes a small version of a script's figures, to compare before and after a change.
It writes nothing to ``results/``, which contains complete runs only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def command(doc: str, quick: str | None = None) -> argparse.ArgumentParser:
    """Parser whose help is the docstring of a script.

    Parameters
    ----------
    doc : str
    quick : str, optional
        What ``--quick`` computes, where a script has it.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if quick is not None:
        parser.add_argument("--quick", action="store_true", help=f"only {quick}; writes nothing")
    return parser


def keep(name: str, text: str, *, complete: bool) -> None:
    """Write ``results/NAME`` where a run is complete."""
    if complete:
        (RESULTS / name).write_text(text.rstrip() + "\n")
