"""``dipy_check_acquisition``: what an acquisition can determine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dipy_spinverse.workflows.command import Command
from dipy_spinverse.workflows.diffusion import read_pulses


class CheckAcquisitionFlow(Command):
    """Predict what b-values, directions and pulse timings can determine about tissue.

    For each map of walls and cells: its uncertainty before and after the scan, and its values that
    the scan cannot determine. Prints a report and saves it.
    """

    steps = ("read_acquisition", "check")
    outputs = {
        "report": ("acquisition.txt", "Name of the text file of the report."),
        "table": ("acquisition.json", "Name of the JSON file with the table of all maps."),
        "figure": ("acquisition.png", "Name of the figure; not drawn without matplotlib."),
    }

    read_acquisition = staticmethod(read_pulses)

    def check(
        self,
        acquired: Any,
        *,
        snr: float = 50.0,
        diffusivity: float | None = None,
        n_draws: int = 300,
        seed: int = 0,
    ) -> Any:
        """Predict what the acquisition can determine.

        Parameters
        ----------
        snr : float, optional
            Signal without diffusion weighting over the standard deviation of the noise.
        diffusivity : float, optional
            Diffusivity of the water in tissue, mm^2/s; by default unknown, as in fits.
        n_draws : int, optional
            Number of random tissues.
        seed : int, optional
            Seed of the draws.
        """
        from dipy_spinverse import identifiability

        if not snr > 0:
            raise ValueError(f"snr is {snr}; give a positive ratio of S0 to the noise.")
        return identifiability(
            acquired, sigma=1 / snr, diffusivity=diffusivity, n_draws=n_draws, seed=seed
        )

    def process(self, arguments: dict[str, Any], paths: dict[str, Path]) -> None:
        """Read, check, print, write."""
        from dipy_spinverse.voxels.progress import waiting

        acquired = self.call("read_acquisition", arguments)
        with waiting("predicting intervals", sys.stderr.isatty()):
            report = self.call("check", arguments, acquired)
        print(report)
        paths["report"].write_text(f"{report}\n", encoding="utf-8")
        content = {"acquisition": repr(acquired), "maps": report.table(),
                   "said": report.findings()}  # fmt: skip
        paths["table"].write_text(json.dumps(content, indent=2) + "\n")
        try:
            report.figure(paths["figure"])
        except ImportError:
            pass
