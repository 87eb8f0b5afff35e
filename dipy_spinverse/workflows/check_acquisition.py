"""``dipy_check_acquisition``: what a scan can tell, before anyone scans or fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dipy_spinverse.workflows.command import Command
from dipy_spinverse.workflows.diffusion import check_pulses, read_acquisition


class CheckAcquisitionFlow(Command):
    """Say what b-values, directions and pulse timings can tell about tissue.

    For each map of walls and cells: how much is known before the scan, how much after it, and
    where the scan is blind. Prints a report and saves it.
    """

    steps = ("read_acquisition", "check")
    outputs = {
        "report": ("acquisition.txt", "Name of the report in words."),
        "table": ("acquisition.json", "Name of the JSON file with the table of all maps."),
        "figure": ("acquisition.png", "Name of the figure; not drawn without matplotlib."),
    }

    read_acquisition = staticmethod(read_acquisition)

    def check(
        self,
        acquired: Any,
        *,
        snr: float = 50.0,
        diffusivity: float = 2e-3,
        free_water: bool = False,
        n_draws: int = 300,
        seed: int = 0,
    ) -> Any:
        """What the acquisition can determine.

        Parameters
        ----------
        snr : float, optional
            Signal without diffusion weighting over the standard deviation of the noise.
        diffusivity : float, optional
            Diffusivity of the water in tissue, mm^2/s.
        free_water : bool, optional
            Whether tissue has an unknown share of free water.
        n_draws : int, optional
            Tissues that are drawn to judge by.
        seed : int, optional
            Seed of the draws.
        """
        from dipy_spinverse import identifiability

        if not snr > 0:
            raise ValueError(f"snr is {snr}; give S0 over the noise, above 0.")
        return identifiability(
            acquired, sigma=1 / snr, diffusivity=diffusivity, free_water=free_water,
            n_draws=n_draws, seed=seed,
        )  # fmt: skip

    def process(self, arguments: dict[str, Any], paths: dict[str, Path]) -> None:
        """Read, check, print, write."""
        acquired = self.read_acquisition(**self.takes("read_acquisition", arguments))
        if not hasattr(acquired, "timings"):
            check_pulses({})
        report = self.check(acquired, **self.takes("check", arguments))
        print(report)
        paths["report"].write_text(f"{report}\n")
        said = {"acquisition": repr(acquired), "maps": report.table(), "said": report.findings()}
        paths["table"].write_text(json.dumps(said, indent=2) + "\n")
        try:
            report.figure(paths["figure"])
        except ImportError:
            pass
