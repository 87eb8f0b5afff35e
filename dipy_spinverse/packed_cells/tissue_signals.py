"""Signals of tissue: free, still and hindered water, and water in and around packed cells.

The cells are dispersed packed cylinders, two such populations that cross, packed spheres, or
cylinders and spheres side by side; ``pools`` says how their signals add up.
"""

from __future__ import annotations

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
    """Signals of one acquisition, relative to b = 0, its measurements in the order of its shells.

    Attributes
    ----------
    shells : Shells
    directions : ndarray (M, 3)
    isotropic : ndarray (M,) of bool
        Averages over all directions.
    echo : ndarray (M,)
        Echo times less the shortest, ms.
    cells : dict of InterpolatedSignals or EmulatedSignals
        Keys "cylinder" and "sphere".
    free_diffusivity : float
    diffusivity : (inside, outside) or None
        um^2/ms, where known.
    radius_spread : float
        Standard deviation of the cells' radii over their mean.
    """

    shells: Shells
    directions: np.ndarray
    isotropic: np.ndarray
    echo: np.ndarray
    cells: dict[str, InterpolatedSignals | EmulatedSignals]
    free_diffusivity: float
    diffusivity: tuple[float, float] | None
    radius_spread: float

    @property
    def b(self) -> np.ndarray:
        """(M,) ms/um^2."""
        return self.shells.b[self.shells.of_measurement]

    def share_along(self, axes: np.ndarray) -> np.ndarray:
        """Share (N, M) of b along axes (N, 3)."""
        linear = self.shells.b_anisotropy[self.shells.of_measurement]
        square = (axes @ self.directions.T) ** 2
        return (1 - linear) / 3 + linear * square

    def __call__(
        self, tissue: TissueClass, z: np.ndarray, frames: np.ndarray, slopes: bool = False
    ):
        """Signals (N, M) at places (N, P); with `slopes` also derivatives (N, P, M) by z.

        `frames` (N, 3, 3) have the axis in their last row. Derivatives by the rotation hold where
        it is 0.
        """
        if tissue.turns and not slopes:
            frames = rotation_of(z[:, -3:]) @ frames
        jacobian = np.empty((len(z), slopes * tissue.n_parameters, len(self.directions)))
        signals = self._signals(tissue, parameter_values_and_slopes(tissue, z), frames, jacobian)
        return (signals, jacobian) if slopes else signals

    @cached_property
    def exact(self) -> TissueSignals:
        """Signals of the emulator itself, slower, and derivatives of its interpolation."""
        return self._emulated(self.cells)

    @cached_property
    def exact_with_slopes(self) -> TissueSignals:
        """Signals and derivatives of the emulator itself."""
        return self._emulated(dict.fromkeys(self.cells))

    def _emulated(self, slopes_of):
        cells = {
            shape: emulated_shell_signals(
                shape, self.shells, self.diffusivity, self.radius_spread, compiled
            )
            for shape, compiled in slopes_of.items()
        }
        return replace(self, cells=cells)

    def of_values(
        self, tissue: TissueClass, values: dict[str, np.ndarray], frames: np.ndarray
    ) -> np.ndarray:
        """Signals (N, M) of values (N,) of the parameters."""
        found = {name: (values[name], 0.0) for name in tissue.parameters[tissue.scalar]}
        jacobian = np.empty((len(frames), 0, len(self.directions)))
        return self._signals(tissue, found, frames, jacobian)

    def _signals(self, tissue, found, frames, jacobian):
        """Signals of parameters, each of which `found` has with its derivative by z."""
        shells, slopes = self.shells, jacobian.shape[1] > 0
        scan = ShellArrays(
            self.directions, self.isotropic, self.echo, shells.first, shells.b,
            shells.b_anisotropy, self.free_diffusivity,
        )  # fmt: skip
        cylinders, spheres = (
            self._cells(shape, tissue, found, len(frames), slopes)
            for shape in ("cylinder", "sphere")
        )
        n_axes = tissue.has_cylinders * (1 + ("crossing_share" in found))
        pools, by_z, columns = self._pools(tissue, found, len(frames))
        return compartment_signals(
            scan, pools, np.ascontiguousarray(frames), cylinders, spheres, n_axes, by_z, columns,
            jacobian,
        )  # fmt: skip

    def _pools(self, tissue, found, n):
        """Values and slopes (n, K) of `POOLS`, and columns (K + 1,), as loops take them."""
        parts = {name: (*found[name], tissue.parameters.index(name)) for name in found}
        if tissue.name == "crossing":
            parts["dispersion_2"] = parts["dispersion_1"]
        elif "dispersion_1" not in parts:
            least = diffusion_of(LEAST_DISPERSION)
            parts |= {"dispersion_1": (least, 0.0, -1), "dispersion_2": (least, 0.0, -1)}
        if not tissue.has_cylinders:
            parts["sphere_share"] = 1.0, 0.0, -1
        if tissue.name == "no cells":
            known = None if self.diffusivity is None else (self.diffusivity[1], 0.0, -1)
            every = parts.get("diffusivity_outside", known)
            parts |= {name: every for name in ("hindered_1", "hindered_2", "hindered_along")}
            parts["hindered"] = 1.0, 0.0, -1
        values, by_z = (
            np.zeros((n, len(COMPARTMENT_PARAMETERS))),
            np.zeros((n, len(COMPARTMENT_PARAMETERS))),
        )
        columns = np.full(len(COMPARTMENT_PARAMETERS) + 1, -1)
        for k, name in enumerate(COMPARTMENT_PARAMETERS):
            if name in parts:
                values[:, k], by_z[:, k], columns[k] = parts[name]
        if tissue.turns:
            columns[-1] = tissue.n_parameters - 3
        return values, by_z, columns

    def _cells(self, shape, tissue, found, n, slopes):
        """Cells of a shape in n tissues; none where the class has no such cells."""
        if not (tissue.has_cylinders if shape == "cylinder" else tissue.has_spheres):
            none = np.zeros((0, 1, len(self.shells), 1))
            return CellSignals(none, np.ones(len(self.shells), int), np.zeros(0, int))
        prefix = "sphere_" if shape == "sphere" else ""
        own = dict(zip(_COORDINATES, _names(prefix, found), strict=True))
        coordinates, by_z = np.empty((n, 5)), np.zeros((5, n, 5))
        for k, (coordinate, name) in enumerate(own.items()):
            value, slope = found.get(name) or (self.diffusivity[k - 3], 0.0)
            coordinates[:, k] = value if coordinate == "fraction" else np.log(value)
            by_z[k, :, k] = slope if coordinate == "fraction" else slope / value
        if "diffusivity_inside" in found:
            # That inside is relative to that outside, within limits.
            low, high = np.log(DIFFUSIVITY_RANGE)
            free = (low < coordinates[:, 3]) & (coordinates[:, 3] < high)
            by_z[4, :, 3] = by_z[4, :, 4] * free
        wanted = [k for k, name in enumerate(own.values()) if slopes and name in found]
        columns = [tissue.parameters.index(name) for name in own.values() if name in found]
        emulated = self.cells[shape]
        return CellSignals(
            emulated(coordinates, by_z[wanted]), emulated.degrees,
            np.array(columns[: len(wanted)], int),
        )  # fmt: skip

    def model_error(self, shape, values) -> np.ndarray:
        """Standard deviations (N, S) of signals across the cells: of the emulator, between
        packings, and of what waveforms have beyond pulses."""
        names = _names("sphere_" if shape == "sphere" else "", values)
        tissue = np.stack([values[name] for name in names], axis=1)
        shells = self.shells
        encodings = Encodings(shells.q, 0 * shells.q, shells.small_delta, shells.big_delta)
        error = emulator_error(shape, tissue, encodings) * (shells.q > 0)
        for s, spectrum in enumerate(shells.spectra):
            if spectrum is not None and shells.q[s] > 0:
                pulses = shells.small_delta[s], shells.big_delta[s]
                # Where most of b is across the cells.
                square = np.array([float(shells.b_anisotropy[s] < 0)])
                beyond = waveform_correction(
                    shape, tissue, spectrum, pulses, shells.b[[s]], square
                )[:, 0]
                error[:, s] = np.hypot(error[:, s], CORRECTION_ERROR * beyond)
        return error


def _names(prefix, found):
    """Parameters that are the coordinates of a shape; all membranes of a mixture are alike."""
    kappa = prefix + "permeability" if prefix + "permeability" in found else "permeability"
    return prefix + "radius", prefix + "fraction", kappa, *_COORDINATES[3:]


@lru_cache(maxsize=4)
def tissue_signals(
    acquisition: BaseAcquisition | EquivalentPulses,
    diffusivity: tuple[float, float] | None,
    free_diffusivity: float,
    shapes: tuple[str, ...] = ("cylinder", "sphere"),
    compiled: bool = True,
    shortest_te: float | None = None,
    radius_spread: float = 0.0,
) -> TissueSignals:
    """Prepare an acquisition; the first time this takes some seconds for each shape.

    The same acquisition has the same, and with it what else is kept of it.

    Parameters
    ----------
    acquisition : Acquisition, WaveformAcquisition or LikePulses
    diffusivity : (inside, outside) or None
        Of tissue, um^2/ms; unknown where None.
    free_diffusivity : float
        um^2/ms.
    shapes : tuple of str, optional
    compiled : bool, optional
        Whether to prepare for many tissues; a few take no preparation.
    shortest_te : float, optional
        ms, at which the share of free water is meant; that of the acquisition where not given.
    radius_spread : float, optional
        Standard deviation of the cells' radii over their mean.
    """
    pulses = equivalent_pulses(acquisition)
    if shortest_te is None:
        shortest_te = pulses.te.min()
    shells = group_into_shells(pulses)
    make = interpolated_signals if compiled else emulated_shell_signals
    return TissueSignals(
        shells,
        pulses.directions[shells.order],
        pulses.isotropic[shells.order],
        (pulses.te - shortest_te)[shells.order],
        {shape: make(shape, shells, diffusivity, radius_spread) for shape in shapes},
        free_diffusivity,
        diffusivity,
        radius_spread,
    )
