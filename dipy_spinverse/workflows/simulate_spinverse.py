"""``dipy_simulate_spinverse``: signals of known walls as NIfTI."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dipy_spinverse.report.images import save_image
from dipy_spinverse.workflows.command import Command
from dipy_spinverse.workflows.diffusion import read_pulses

_VOXEL_MM = 2.0
_BODIES = ("cylinders", "spheres")


class SimulateFlow(Command):
    """Simulate the signals of tissue with known walls.

    Solves the Bloch-Torrey equation in a periodic box of cylinders or spheres for given b-values,
    directions and pulse timings. The volume has one voxel for each radius (along x), each
    permeability (along y) and each repetition with independent noise (along z). Results of
    dipy_fit_spinverse and dipy_fit_packed_cells can be compared with the truth file.
    """

    steps = ("read_acquisition", "simulate")
    outputs = {
        "dwi": ("dwi.nii.gz", "Name of the volume of magnitudes."),
        "truth": ("truth.json", "Name of the JSON file with the tissue of each voxel."),
        "sigma": ("sigma.txt", "Name of the text file with the standard deviation of the noise."),
    }

    read_acquisition = staticmethod(read_pulses)

    def simulate(
        self,
        acquired: Any,
        *,
        substrate: str = "cylinders",
        radius: list[float] | None = None,
        permeability: list[float] | None = None,
        diffusivity: float = 2e-3,
        cells: int = 8,
        cell_size: float = 1.5,
        snr: float = 50.0,
        repeats: int = 1,
        S0: float = 1000.0,
        seed: int = 0,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Signals and ground truth.

        Parameters
        ----------
        substrate : string, optional
            Bodies: 'cylinders' along z, or 'spheres'; one in each periodic box.
        radius : variable float, optional
            Radii, um; 3 and 4.5 where not given.
        permeability : variable float, optional
            Permeabilities of the walls, um/ms; 0 and 0.02 where not given.
        diffusivity : float, optional
            Diffusivity of all water, mm^2/s.
        cells : int, optional
            Lattice cubes of the box along each axis.
        cell_size : float, optional
            Edge of a lattice cube, um. The box has cells times this size.
        snr : float, optional
            S0 over the standard deviation of the Rician noise; 0 for none.
        repeats : int, optional
            Number of voxels of each tissue.
        S0 : float, optional
            Signal without diffusion weighting.
        seed : int, optional
            Seed of the noise.
        """
        from dipy_spinverse import bcc_grid, simulate, substrates
        from dipy_spinverse.units import diffusivity_um2_per_ms

        if substrate not in _BODIES:
            raise ValueError(f"substrate is {substrate!r}; use one of {', '.join(_BODIES)}.")
        if snr < 0 or repeats < 1:
            raise ValueError(f"snr is {snr}, repeats {repeats}; give at least 0 and 1.")
        radii, walls = radius or [3.0, 4.5], permeability or [0.0, 0.02]
        grid = bcc_grid(cells=cells, cell_size_um=cell_size)
        bodies = getattr(substrates, substrate)
        fields = [
            bodies(grid, np.zeros(3), r, permeability=kappa) for r in radii for kappa in walls
        ]
        speed = diffusivity_um2_per_ms("diffusivity", diffusivity)
        signals = S0 * simulate(acquired, grid, np.array(fields), diffusivity=speed)
        signals = signals.reshape(len(radii), len(walls), 1, -1).repeat(repeats, axis=2)
        if snr:
            rng = np.random.default_rng(seed)
            real, imaginary = rng.normal(scale=S0 / snr, size=(2, *signals.shape))
            signals = np.hypot(signals + real, imaginary)
        truth = [
            {"voxel": [i, j], **_truth(substrate, r, kappa, cells * cell_size)}
            for i, r in enumerate(radii)
            for j, kappa in enumerate(walls)
        ]
        return signals, {"substrate": substrate, "diffusivity_mm2_per_s": diffusivity,
                         "voxels": truth}  # fmt: skip

    def process(self, arguments: dict[str, Any], paths: dict[str, Path]) -> None:
        """Read, simulate, write."""
        from dipy_spinverse.voxels.progress import waiting

        acquired = self.call("read_acquisition", arguments)
        with waiting("simulating", sys.stderr.isatty()):
            signals, truth = self.call("simulate", arguments, acquired)
        affine = np.diag([_VOXEL_MM, _VOXEL_MM, _VOXEL_MM, 1])
        save_image(paths["dwi"], signals, affine, "simulated signals, dipy_spinverse")
        paths["truth"].write_text(json.dumps(truth, indent=2) + "\n")
        noise = arguments["S0"] / arguments["snr"] if arguments["snr"] else 0.0
        paths["sigma"].write_text(f"{noise:g}\n")


def _truth(substrate, radius, permeability, box):
    """Maps of one body in a box, in their units (um, um/ms)."""
    if substrate == "cylinders":
        area, inside, chord = 2 * np.pi * radius / box**2, np.pi * radius**2 / box**2, 2 * radius
    else:
        area, inside = 4 * np.pi * radius**2 / box**3, 4 / 3 * np.pi * radius**3 / box**3
        chord = 4 / 3 * radius
    return {
        "radius_um": radius, "surface_to_volume": area, "restricted_fraction": inside,
        "wall_permeability": permeability, "pore_diameter": chord,
    }  # fmt: skip
