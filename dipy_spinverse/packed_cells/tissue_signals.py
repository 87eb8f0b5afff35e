"""Signals of tissue: free, immobile and hindered water, and water in and around packed cells.

The cells are dispersed packed cylinders, two such populations that cross, packed spheres, or
cylinders and spheres side by side; ``compartment_signals`` adds up their signals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from dipy_spinverse.acquisition import BaseAcquisition
from dipy_spinverse.packed_cells.compartment_signals import (
    COMPARTMENT_PARAMETERS,
    CellSignals,
    ShellArrays,
    compartment_signals,
)
from dipy_spinverse.packed_cells.emulator import Encodings, emulator_error
from dipy_spinverse.packed_cells.equivalent_pulses import EquivalentPulses, equivalent_pulses
from dipy_spinverse.packed_cells.interpolation import (
    DIFFUSIVITY_RANGE,
    EmulatedSignals,
    InterpolatedSignals,
    emulated_shell_signals,
    interpolated_signals,
)
from dipy_spinverse.packed_cells.orientations import rotation_of
from dipy_spinverse.packed_cells.shells import Shells, group_into_shells
from dipy_spinverse.packed_cells.tissue_classes import (
    LEAST_DISPERSION,
    TissueClass,
    diffusion_of,
    parameter_values_and_slopes,
)
from dipy_spinverse.packed_cells.waveform_correction import CORRECTION_ERROR, waveform_correction

_COORDINATES = ("radius", "fraction", "permeability", "diffusivity_inside", "diffusivity_outside")


@dataclass(frozen=True, eq=False)
class TissueSignals:
    """Signals of an acquisition, relative to b = 0, its measurements in the order of its shells.

    `cells` are the signals of each shape, "cylinder" and "sphere"; `diffusivity` is that inside
    and outside, um^2/ms, if known; `radius_spread` is the standard deviation of the radii of cells
    over their mean.
    """

    shells: Shells
    scan: ShellArrays
    cells: Mapping[str, InterpolatedSignals | EmulatedSignals]
    diffusivity: tuple[float, float] | None
    radius_spread: float

    @cached_property
    def emulated(self) -> TissueSignals:
        """The same with signals of the emulator itself, and derivatives of its interpolation."""
        cells = {
            shape: replace(emulated, interpolated=self.cells[shape])
            for shape, emulated in self._emulated_cells().items()
        }
        return replace(self, cells=cells)

    @cached_property
    def emulated_with_slopes(self) -> TissueSignals:
        """The same with signals and derivatives of the emulator itself."""
        return replace(self, cells=self._emulated_cells())

    def _emulated_cells(self):
        setting = self.shells, self.diffusivity, self.radius_spread
        return {shape: emulated_shell_signals(shape, *setting) for shape in self.cells}

    def __call__(
        self, tissue: TissueClass, z: np.ndarray, frames: np.ndarray, slopes: bool = False
    ):
        """Signals (N, M) at z (N, P); with `slopes` also derivatives (N, P, M) by z.

        The last rows of `frames` (N, 3, 3) are the axes. Derivatives by the rotation are exact
        where it is 0.
        """
        if tissue.turns and not slopes:
            frames = rotation_of(z[:, -3:]) @ frames
        jacobian = np.empty((len(z), slopes * tissue.n_parameters, len(self.scan.directions)))
        values = parameter_values_and_slopes(tissue, z)
        signals = self._signals(tissue, values, frames, jacobian)
        return (signals, jacobian) if slopes else signals

    def of_values(
        self, tissue: TissueClass, values: dict[str, np.ndarray], frames: np.ndarray
    ) -> np.ndarray:
        """Signals (N, M) of parameter values (N,)."""
        no_slopes = {name: (values[name], 0.0) for name in tissue.parameters[tissue.scalar]}
        jacobian = np.empty((len(frames), 0, len(self.scan.directions)))
        return self._signals(tissue, no_slopes, frames, jacobian)

    def _signals(self, tissue, values, frames, jacobian):
        """Signals of parameter values, each with its derivative by z."""
        slopes = jacobian.shape[1] > 0
        cylinders, spheres = (
            self._cell_signals(shape, tissue, values, len(frames), slopes)
            for shape in ("cylinder", "sphere")
        )
        n_axes = ("cylinder" in tissue.shapes) * (1 + ("crossing_share" in values))
        compartments, by_z, columns = self._compartments(tissue, values, len(frames))
        return compartment_signals(
            self.scan, compartments, np.ascontiguousarray(frames), cylinders, spheres, n_axes,
            by_z, columns, jacobian,
        )  # fmt: skip

    def _compartments(self, tissue, values, n):
        """Values and slopes (n, K) of `COMPARTMENT_PARAMETERS`, and their columns (K + 1,)."""
        entries = {name: (*values[name], tissue.parameters.index(name)) for name in values}
        if tissue.name == "crossing":
            entries["dispersion_2"] = entries["dispersion_1"]
        elif "dispersion_1" not in entries:
            parallel = diffusion_of(LEAST_DISPERSION), 0.0, -1
            entries |= {"dispersion_1": parallel, "dispersion_2": parallel}
        if "cylinder" not in tissue.shapes:
            entries["sphere_share"] = 1.0, 0.0, -1
        if tissue.name == "no cells":
            specified = None if self.diffusivity is None else (self.diffusivity[1], 0.0, -1)
            diffusivity = entries.get("diffusivity_outside", specified)
            entries |= dict.fromkeys(("hindered_1", "hindered_2", "hindered_along"), diffusivity)
            entries["hindered"] = 1.0, 0.0, -1
        compartments, by_z = np.zeros((2, n, len(COMPARTMENT_PARAMETERS)))
        columns = np.full(len(COMPARTMENT_PARAMETERS) + 1, -1)
        for k, name in enumerate(COMPARTMENT_PARAMETERS):
            if name in entries:
                compartments[:, k], by_z[:, k], columns[k] = entries[name]
        if tissue.turns:
            columns[-1] = tissue.n_parameters - 3
        return compartments, by_z, columns

    def _cell_signals(self, shape, tissue, values, n, slopes):
        """Signals of cells of a shape in n tissues; none where the class has no such cells."""
        if shape not in tissue.shapes:
            no_coefficients = np.zeros((0, 1, len(self.shells), 1))
            return CellSignals(no_coefficients, np.ones(len(self.shells), int), np.zeros(0, int))
        names = _coordinate_names("sphere_" if shape == "sphere" else "", values)
        coordinates, by_z = np.empty((n, 5)), np.zeros((5, n, 5))
        for k, (coordinate, name) in enumerate(zip(_COORDINATES, names, strict=True)):
            value, slope = values.get(name) or (self.diffusivity[k - 3], 0.0)
            coordinates[:, k] = value if coordinate == "fraction" else np.log(value)
            by_z[k, :, k] = slope if coordinate == "fraction" else slope / value
        if "diffusivity_inside" in values:
            # The diffusivity inside is relative to that outside, within limits.
            low, high = np.log(DIFFUSIVITY_RANGE)
            unlimited = (low < coordinates[:, 3]) & (coordinates[:, 3] < high)
            by_z[4, :, 3] = by_z[4, :, 4] * unlimited
        fitted = [k for k, name in enumerate(names) if slopes and name in values]
        columns = np.array([tissue.parameters.index(names[k]) for k in fitted], int)
        cells = self.cells[shape]
        return CellSignals(cells(coordinates, by_z[fitted]), cells.degrees, columns)

    def model_error(self, shape: str, values: dict[str, np.ndarray]) -> np.ndarray:
        """Standard deviations (N, S) of signals across the cells: of the emulator, between
        packings, and of the correction of waveforms."""
        names = _coordinate_names("sphere_" if shape == "sphere" else "", values)
        tissue = np.stack([values[name] for name in names], axis=1)
        shells = self.shells
        encodings = Encodings(shells.q, 0 * shells.q, shells.small_delta, shells.big_delta)
        error = emulator_error(shape, tissue, encodings) * (shells.q > 0)
        for s, spectrum in enumerate(shells.spectra):
            if spectrum is not None and shells.q[s] > 0:
                pulses = shells.small_delta[s], shells.big_delta[s]
                # Most of b is across the cells there.
                square = np.array([float(shells.b_anisotropy[s] < 0)])
                correction = waveform_correction(
                    shape, tissue, spectrum, pulses, shells.b[[s]], square
                )
                error[:, s] = np.hypot(error[:, s], CORRECTION_ERROR * correction[:, 0])
        return error


def _coordinate_names(prefix, values):
    """Parameters that are the coordinates of a shape; membranes of a mixture are all alike."""
    permeability = prefix + "permeability"
    if permeability not in values:
        permeability = "permeability"
    return prefix + "radius", prefix + "fraction", permeability, *_COORDINATES[3:]


@lru_cache(maxsize=8)
def tissue_signals(
    acquisition: BaseAcquisition | EquivalentPulses,
    diffusivity: tuple[float, float] | None,
    free_diffusivity: float,
    shapes: tuple[str, ...] = ("cylinder", "sphere"),
    interpolated: bool = True,
    shortest_te: float | None = None,
    radius_spread: float = 0.0,
) -> TissueSignals:
    """Signals of an acquisition, prepared once: the first call takes some seconds for each shape.

    A few tissues need no preparation (`interpolated=False`). Diffusivities are in um^2/ms, those
    of tissue unknown where None. `shortest_te`, ms, is the echo time that the fraction of free
    water refers to; by default the shortest.
    """
    pulses = equivalent_pulses(acquisition)
    if shortest_te is None:
        shortest_te = pulses.te.min()
    shells = group_into_shells(pulses)
    signals_of = interpolated_signals if interpolated else emulated_shell_signals
    cells = {shape: signals_of(shape, shells, diffusivity, radius_spread) for shape in shapes}
    order, echo_delay = shells.order, pulses.te - shortest_te
    scan = ShellArrays(
        pulses.directions[order], pulses.direction_averaged[order], echo_delay[order],
        shells.starts, shells.b, shells.b_anisotropy, free_diffusivity,
    )  # fmt: skip
    return TissueSignals(shells, scan, cells, diffusivity, radius_spread)
