"""Signals of tissue: free, still and hindered water, and water in and around packed cells.

    S = w_free exp(-b D_free) + w_dot + w_hindered exp(-b g^T H g) + w_cells S_cells

w_free grows with the echo time where free water relaxes more slowly than the rest, by

    w_free / (1 - w_free) = f / (1 - f) exp(r (TE - shortest TE))

S_cells is that of dispersed packed cylinders, of two such populations that cross, of packed
spheres, or of cylinders and spheres side by side. H, the dispersion and the plane of crossing
share one frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.packed_cells.classes import (
    ALIGNED,
    TissueClass,
    _transformed,
    diffusion_of,
)
from dipy_spinverse.packed_cells.compiled import (
    DIFFUSIVITY_RANGE,
    CompiledSignals,
    EmulatedSignals,
    Shells,
    compiled_signals,
    emulated_shells,
    shells_of,
)
from dipy_spinverse.packed_cells.emulator import Encodings, emulator_error
from dipy_spinverse.packed_cells.orientations import dispersed_signals, rotation_of

# t at which no direction is left.
_ISOTROPIC = 50.0
_COORDINATES = ("radius", "fraction", "permeability", "diffusivity_inside", "diffusivity_outside")
# Directions, golden spiral, that the hindered pool of a powder average is averaged over.
_N_POWDER = 64


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
    cells : dict of CompiledSignals or EmulatedSignals
        Keys "cylinder" and "sphere".
    free_diffusivity : float
    diffusivity : (inside, outside) or None
        um^2/ms, where known.
    """

    shells: Shells
    directions: np.ndarray
    isotropic: np.ndarray
    echo: np.ndarray
    cells: dict[str, CompiledSignals | EmulatedSignals]
    free_diffusivity: float
    diffusivity: tuple[float, float] | None

    @property
    def b(self) -> np.ndarray:
        """(M,) ms/um^2."""
        return self.shells.b[self.shells.of_measurement]

    def __call__(
        self, tissue: TissueClass, z: np.ndarray, frames: np.ndarray, slopes: bool = False
    ):
        """Signals (N, M) at places (N, P); with `slopes` also derivatives (N, P, M) by z.

        `frames` (N, 3, 3) have the axis in their last row. Derivatives by the rotation hold where
        it is 0.
        """
        if tissue.turns and not slopes:
            frames = rotation_of(z[:, -3:]) @ frames
        found = _transformed(tissue, z)
        values = {name: each[0] for name, each in found.items()}
        signals, by_value = self.of_values(tissue, values, frames, slopes)
        if not slopes:
            return signals
        jacobian = np.empty((len(z), tissue.n_parameters, len(self.directions)))
        for k, (name, (value, slope)) in enumerate(found.items()):
            jacobian[:, k] = by_value[name] * slope[:, None]
            if name == "diffusivity_outside" and "diffusivity_inside" in found:
                # The diffusivity inside is relative to it, within limits.
                inside = found["diffusivity_inside"][0]
                low, high = DIFFUSIVITY_RANGE
                share = np.where((low < inside) & (inside < high), inside / value * slope, 0)
                jacobian[:, k] += by_value["diffusivity_inside"] * share[:, None]
        if tissue.turns:
            jacobian[:, -3:] = by_value["rotation"]
        return signals, jacobian

    def of_values(self, tissue, values, frames, slopes=False):
        """Signals (N, M) of values (N,) of the parameters; with `slopes` a dict by name.

        A dict of derivatives (N, M) by the values, and "rotation" (N, 3, M).
        """
        along = np.moveaxis(frames @ self.directions.T, 1, 0)  # (3, N, M)
        squares = along**2
        b, by = self.b, {}
        cells, hindered = self._cells(tissue, values, along, squares, by, slopes)
        free = np.exp(-b * self.free_diffusivity)
        first, by_first, by_relaxation = self._free_water(values)
        second = values["dot"][:, None]
        third = values.get("hindered", np.zeros(len(frames)))[:, None]
        rest = (1 - first) * (1 - second)
        tissue_signals = cells
        if hindered is not None:
            tissue_signals = (1 - third) * cells + third * hindered
        water = (1 - second) * tissue_signals + second
        signals = first * free + (1 - first) * water
        if not slopes:
            return signals, by
        for name, each in by.items():
            each *= rest * (1 - third) if name != "rotation" else (rest * (1 - third))[:, None]
        by["free_water"] = (free - water) * by_first
        if "relaxation" in values:
            by["relaxation"] = (free - water) * by_relaxation
        by["dot"] = (1 - first) * (1 - tissue_signals)
        if hindered is not None:
            by["hindered"] = rest * (hindered - cells)
            self._hindered_slopes(values, along, squares, hindered, rest * third, by)
        return signals, by

    def _free_water(self, values):
        """Share (N, M) of free water at each echo time, and its derivatives."""
        share = values["free_water"][:, None]
        if "relaxation" not in values:
            return share, 1.0, None
        growth = np.exp(values["relaxation"][:, None] * self.echo)
        total = 1 - share + share * growth
        found = share * growth / total
        return found, growth / total**2, self.echo * found * (1 - found)

    def _hindered_slopes(self, values, along, squares, hindered, weight, by):
        names = ("hindered_1", "hindered_2", "hindered_along")
        decay = weight * hindered * -self.b
        if self.isotropic.any():
            mean = self._powder_squares(values)[1]
            squares = squares.copy()
            squares[:, :, self.isotropic] = mean
        for name, square in zip(names, squares, strict=True):
            by[name] = decay * square
        slopes = [2 * values[name][:, None] * x for name, x in zip(names, along, strict=True)]
        decay = np.where(self.isotropic, 0, decay)
        by["rotation"] = by.get("rotation", 0) + decay[:, None] * _turned(along, slopes)

    def _hindered(self, values, squares):
        exponent = sum(
            values[name][:, None] * square
            for name, square in zip(
                ("hindered_1", "hindered_2", "hindered_along"), squares, strict=True
            )
        )
        signals = np.exp(-self.b * exponent)
        if self.isotropic.any():
            signals[:, self.isotropic] = self._powder_squares(values)[0]
        return signals

    def _powder_squares(self, values):
        """Averages over directions of the hindered signal (N, m), and of squares in it."""
        squares = _POWDER**2
        tensor = np.stack([values[n] for n in ("hindered_1", "hindered_2", "hindered_along")], 1)
        decay = np.exp(-(tensor @ squares.T)[:, None] * self.b[self.isotropic, None])
        mean = decay.mean(axis=2)
        return mean, np.moveaxis((decay @ squares) / len(squares) / mean[..., None], 2, 0)

    def _cells(self, tissue, values, along, squares, by, slopes):
        """Signals (N, M) of the cells and of the hindered pool, with slopes put into `by`."""
        if tissue.name == "no cells":
            outside = self._diffusivity(values, 1)[:, None]
            signals = np.exp(-self.b * outside)
            if slopes:
                by["diffusivity_outside"] = -self.b * signals
            return signals, None
        hindered = self._hindered(values, squares)
        if tissue.name == "spheres":
            return self._spheres(tissue, values, by, slopes), hindered
        if tissue.name == "crossing":
            return self._crossing(values, along, by, slopes), hindered
        cells = self._cylinders(tissue, values, along, squares, by, slopes)
        if tissue.name != "mixture":
            return cells, hindered
        share = values["sphere_share"][:, None]
        for name, each in by.items():
            each *= 1 - share if name != "rotation" else (1 - share)[:, None]
        spheres = self._spheres(tissue, values, by, slopes, share)
        if slopes:
            by["sphere_share"] = spheres - cells
        return (1 - share) * cells + share * spheres, hindered

    def _diffusivity(self, values, k):
        name = _COORDINATES[3 + k]
        if self.diffusivity is None:
            return values[name]
        return np.full(len(next(iter(values.values()))), self.diffusivity[k])

    def _coefficients(self, shape, values, slopes):
        prefix = "sphere_" if shape == "sphere" else ""
        kappa = values.get(prefix + "permeability", values.get("permeability"))
        coordinates = np.stack(
            [
                np.log(values[prefix + "radius"]), values[prefix + "fraction"], np.log(kappa),
                np.log(self._diffusivity(values, 0)), np.log(self._diffusivity(values, 1)),
            ],
            axis=1,
        )  # fmt: skip
        return self.cells[shape](coordinates, slopes)

    def _by_coordinates(self, prefix, values, slopes):
        """Derivatives by the values of the five coordinates, from those by the coordinates."""
        for k, name in enumerate(_COORDINATES):
            own = name if name.startswith("diff") else prefix + name
            if own == "sphere_permeability" and own not in values:
                own = "permeability"
            if own not in values:
                continue
            yield own, slopes[k] / (1 if name == "fraction" else values[own][:, None])

    def _spheres(self, tissue, values, by, slopes, share=1.0):
        found = self._coefficients("sphere", values, slopes)[:, self.shells.of_measurement, 0]
        if slopes:
            parts = np.moveaxis(found[..., 1:], -1, 0)
            for name, each in self._by_coordinates("sphere_", values, parts):
                by[name] = by.get(name, 0) + share * each
        return found[..., 0].astype(float)

    def _dispersed(self, coefficients, cosines, spread):
        spread = np.where(self.isotropic, _ISOTROPIC, spread)
        return dispersed_signals(
            coefficients, self.cells["cylinder"].degrees, np.ascontiguousarray(cosines), spread,
            self.shells.first, coefficients.shape[-1],
        )  # fmt: skip

    def _cylinders(self, tissue, values, along, squares, by, slopes):
        zero = np.full(len(along[0]), diffusion_of(0.0005))
        one, two = (values.get(f"dispersion_{k}", zero)[:, None] for k in (1, 2))
        spread = one * squares[0] + two * squares[1] + (one + two) / 2 * squares[2]
        coefficients = self._coefficients("cylinder", values, slopes)
        parts = self._dispersed(coefficients, along[2], spread)
        if slopes:
            parts = parts.astype(float)
            by |= dict(self._by_coordinates("", values, np.moveaxis(parts[:, 1:6], 1, 0)))
            by_square, by_spread = parts[:, 6], np.where(self.isotropic, 0, parts[:, 7])
            if tissue.name != ALIGNED:
                by["dispersion_1"] = by_spread * (squares[0] + squares[2] / 2)
                by["dispersion_2"] = by_spread * (squares[1] + squares[2] / 2)
                change = [
                    2 * one * along[0] * by_spread, 2 * two * along[1] * by_spread,
                    along[2] * (2 * by_square + (one + two) * by_spread),
                ]  # fmt: skip
                by["rotation"] = _turned(along, change)
        return parts[:, 0].astype(float)

    def _crossing(self, values, along, by, slopes):
        coefficients = self._coefficients("cylinder", values, slopes)
        spread = np.repeat(values["dispersion_1"][:, None], along.shape[2], axis=1)
        angle, share = values["half_angle"][:, None], values["crossing_share"][:, None]
        sine, cosine = np.sin(angle), np.cos(angle)
        total, change, by_angle = 0.0, np.zeros_like(along), 0.0
        each = []
        for sign, weight in ((1, 1 - share), (-1, share)):
            cosines = cosine * along[2] + sign * sine * along[0]
            parts = self._dispersed(coefficients, cosines, spread).astype(float)
            total = total + weight[..., None].swapaxes(1, 2) * parts
            each.append(parts[:, 0])
            if slopes:
                by_cosine = 2 * cosines * parts[:, 6] * weight
                change[0] += sign * sine * by_cosine
                change[2] += cosine * by_cosine
                by_angle = by_angle + by_cosine * (sign * cosine * along[0] - sine * along[2])
        if slopes:
            by |= dict(self._by_coordinates("", values, np.moveaxis(total[:, 1:6], 1, 0)))
            by["dispersion_1"] = np.where(self.isotropic, 0, total[:, 7])
            by["half_angle"], by["crossing_share"] = by_angle, each[1] - each[0]
            by["rotation"] = _turned(along, change)
        return total[:, 0]

    def model_error(self, shape, values) -> np.ndarray:
        """Standard deviations (N, S) of signals across the cells: of the emulator, and between
        packings."""
        prefix = "sphere_" if shape == "sphere" else ""
        kappa = values.get(prefix + "permeability", values.get("permeability"))
        tissue = np.stack(
            [values[prefix + "radius"], values[prefix + "fraction"], kappa,
             self._diffusivity(values, 0), self._diffusivity(values, 1)], axis=1,
        )  # fmt: skip
        shells = self.shells
        encodings = Encodings(shells.q, 0 * shells.q, shells.small_delta, shells.big_delta)
        return emulator_error(shape, tissue, encodings) * (shells.q > 0)


def _turned(along, slopes):
    """Derivatives (N, 3, M) by a rotation, from those by the components of directions."""
    (x, y, z), (by_x, by_y, by_z) = along, slopes
    turned = (y * by_z - z * by_y, z * by_x - x * by_z, x * by_y - y * by_x)
    return np.stack(turned, axis=1)


def _spiral(n):
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = np.pi * (1 + np.sqrt(5)) * np.arange(n)
    across = np.sqrt(1 - z**2)
    return np.stack([across * np.cos(angle), across * np.sin(angle), z], axis=1)


_POWDER = _spiral(_N_POWDER)


def tissue_signals(
    acquisition: Acquisition,
    diffusivity: tuple[float, float] | None,
    free_diffusivity: float,
    shapes: tuple[str, ...] = ("cylinder", "sphere"),
    compiled: bool = True,
    shortest_te: float | None = None,
) -> TissueSignals:
    """Prepare an acquisition; the first time this takes some seconds for each shape.

    Parameters
    ----------
    acquisition : Acquisition
    diffusivity : (inside, outside) or None
        Of tissue, um^2/ms; unknown where None.
    free_diffusivity : float
        um^2/ms.
    shapes : tuple of str, optional
    compiled : bool, optional
        Whether to prepare for many tissues; a few take no preparation.
    shortest_te : float, optional
        ms, at which the share of free water is meant; that of the acquisition where not given.
    """
    if shortest_te is None:
        shortest_te = acquisition.te.min()
    shells = shells_of(acquisition)
    make = compiled_signals if compiled else emulated_shells
    return TissueSignals(
        shells,
        acquisition.directions[shells.order],
        acquisition.isotropic[shells.order],
        (acquisition.te - shortest_te)[shells.order],
        {shape: make(shape, shells, diffusivity) for shape in shapes},
        free_diffusivity,
        diffusivity,
    )
