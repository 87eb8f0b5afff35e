"""Before scanning: which summaries of walls an acquisition can determine, and how well."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from dipy.core.gradients import GradientTable
from dipy.utils.optpkg import optional_package
from scipy.ndimage import median_filter

from dipy_spinverse.acquisition.conversion import as_acquisition, require_pulsed
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.grid import TetrahedralGrid
from dipy_spinverse.scan_design.bounds import (
    CLASSES,
    LOG_MAPS,
    ORIENTATION,
    MapBounds,
    map_bounds,
    n_identifiable_directions,
)
from dipy_spinverse.scan_design.limitations import Limitation, limitations, resolution_limit_um
from dipy_spinverse.units import diffusivity_um2_per_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Share of the prior's spread that is left; 0.2 is 0.04 of a fraction, 20 % of a diameter, a
# factor of 1.5 of a permeability.
_IDENTIFIABLE = 0.2
_WEAKLY = 0.5
_WINDOWS = 8  # running medians take this part of all tissues
_UNITS = {"pore_diameter": "um", "wall_permeability": "um/ms", "exchange_time": "ms",
          "surface_to_volume": "1/um"}  # fmt: skip
_PHRASES = {
    "surface_to_volume": "surface-to-volume ratios",
    "restricted_fraction": "restricted fractions",
    "wall_permeability": "wall permeabilities",
    "exchange_time": "exchange times",
    "pore_diameter": "pore diameters",
    "wall_orientation": "wall orientations",
    "orientation_dispersion": "dispersions of orientation",
    "free_water_fraction": "fractions of free water",
}
_VERDICT_COLORS = {
    "identifiable": "#2a7f62",
    "weakly identifiable": "#d9a441",
    "not identifiable": "#b5483a",
}


@dataclass(frozen=True, eq=False)
class Identifiability:
    """What an acquisition can determine; ``print`` it.

    Attributes
    ----------
    acquisition : Acquisition
    sigma : float
        Noise over the signal at b = 0.
    bounds : dict of MapBounds
        Of each map, at tissues drawn from the prior.
    limitations : tuple of Limitation
    resolution_limit_um : float
        Diameter of impermeable cylinders below which all look alike, in closed form.
    n_faces, n_determined : int or None
        Faces of the grid, and the independent numbers about their permeabilities that stand
        above the noise; None without a grid.
    """

    acquisition: Acquisition
    sigma: float
    bounds: dict[str, MapBounds]
    limitations: tuple[Limitation, ...]
    resolution_limit_um: float
    n_faces: int | None = None
    n_determined: int | None = None

    def table(self) -> list[dict]:
        """One row per map.

        Returns
        -------
        list of dict
            "map"; "scale" of the spreads, "factor" (exp of the standard deviation of the
            logarithm), "absolute" or "degrees"; "prior" spread; "posterior" spread, median over
            tissues; "removed", the share of the prior's variance that the data remove; "verdict";
            "fails", phrases that say where in the prior's range the spread stays above half of
            the prior's.
        """
        rows = []
        for name, bound in self.bounds.items():
            left = bound.posterior_sd[0] / bound.prior_sd
            median = np.median(left)
            verdict = "identifiable" if median <= _IDENTIFIABLE else "weakly identifiable"
            verdict = verdict if median <= _WEAKLY else "not identifiable"
            rows.append(
                {
                    "map": name,
                    "scale": _scale(name),
                    "prior": _spread(name, bound.prior_sd),
                    "posterior": _spread(name, median * bound.prior_sd),
                    "removed": float(1 - (left**2).mean()),
                    "verdict": verdict,
                    "fails": [] if verdict == "not identifiable" else _failures(name, self.bounds),
                }
            )
        return rows

    def findings(self) -> list[str]:
        """What cannot be seen, in words."""
        rows = {row["map"]: row for row in self.table()}
        said = []
        for spot in self.limitations:
            row = rows.get(spot.affected_map)
            effect = ""
            if row is not None and row["verdict"] != "identifiable":
                effect = f" Here {_PHRASES[row['map']]} are {row['verdict']}: {_text(row)}."
            said.append(spot.description + effect)
        for row in rows.values():
            if row["fails"]:
                where = ", or ".join(row["fails"])
                said.append(f"{_PHRASES[row['map']].capitalize()} are not identifiable {where}.")
        said.append(
            f"Impermeable cylinders with diameters below {self.resolution_limit_um:.2g} um look "
            "alike."
        )
        said.append("The diffusivity and the class of tissue are taken as known.")
        if self.n_faces is not None:
            said.append(
                f"The measurements fix {self.n_determined} independent numbers about "
                f"the {self.n_faces} faces of the grid; the rest of the walls is the prior's."
            )
        return said

    def __str__(self) -> str:
        lines = [f"{self.acquisition!r}, noise {self.sigma:.3g} of S0", ""]
        lines.append(
            f"{'summary':24s}{'before':>16s}{'after':>16s}{'removed':>9s}  verdict"
        )  # fmt: skip
        for row in self.table():
            before, after = (_amount(row["scale"], row[key]) for key in ("prior", "posterior"))
            removed = f"{100 * row['removed']:.0f} %"
            lines.append(
                f"{row['map']:24s}{before:>16s}{after:>16s}{removed:>9s}  {row['verdict']}"
            )
        return "\n".join([*lines, "", *(f"- {sentence}" for sentence in self.findings())])

    def figure(self, target: str | PathLike | Axes | None = None) -> Axes:
        """Draw the spread of each map after the scan over that before.

        Parameters
        ----------
        target : path or matplotlib Axes, optional
            File to write, or where to draw.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ImportError
            Without matplotlib: ``pip install dipy_spinverse[viz]``.
        """
        pyplot, have_matplotlib, _ = optional_package("matplotlib.pyplot")
        if not have_matplotlib:
            raise ImportError("figure needs matplotlib: pip install dipy_spinverse[viz].")
        if target is not None and not isinstance(target, str | PathLike):
            _draw(target, self)
            return target
        figure, axes = pyplot.subplots(figsize=(8, 0.55 * len(self.bounds) + 1.4))
        _draw(axes, self)
        if target is not None:
            figure.savefig(target, dpi=150, bbox_inches="tight")
            pyplot.close(figure)
        return axes


def identifiability(
    acquisition: Acquisition | GradientTable,
    *,
    sigma: float = 0.02,
    diffusivity: float = 2e-3,
    free_diffusivity: float = 3e-3,
    free_water: bool = False,
    grid: TetrahedralGrid | None = None,
    classes: tuple[str, ...] = CLASSES,
    n_draws: int = 300,
    seed: int = 0,
) -> Identifiability:
    """How well an acquisition can determine each summary of the walls in tissue.

    Tissues of packed cylinders and spheres are drawn from a prior; at each the derivatives of the
    signals bound the spread of any estimate (see `dipy_spinverse.information`). The diffusivity
    and the class of each tissue are taken as known, so real fits do a little worse.

    Parameters
    ----------
    acquisition : Acquisition or GradientTable
        What would be measured.
    sigma : float, optional
        Standard deviation of the noise over the signal at b = 0, the same at all echo times.
    diffusivity, free_diffusivity : float, optional
        Of water in tissue and of free water, mm^2/s.
    free_water : bool, optional
        Whether tissues have an unknown share of free water.
    grid : TetrahedralGrid, optional
        Also count the numbers about this grid's faces that the measurements determine.
    classes : tuple of str, optional
        Classes of tissue: some of "cylinders", "spheres", "mixture".
    n_draws : int, optional
        Tissues drawn.
    seed : int, optional

    Returns
    -------
    Identifiability

    Raises
    ------
    ValueError
        Noise or diffusivities out of range, no weighted measurement, an unknown class, fewer
        than 30 draws.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> directions = rng.normal(size=(20, 3))
    >>> directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    >>> acquisition = Acquisition(
    ...     b=[0, *[1.0] * 10, *[4.0] * 10], directions=np.vstack([np.zeros(3), directions]),
    ...     small_delta=8, big_delta=30)
    >>> result = identifiability(acquisition, n_draws=60)
    >>> [spot.name for spot in result.limitations]
    ['one diffusion time']
    >>> row = result.table()[1]
    >>> row["map"], row["verdict"]
    ('restricted_fraction', 'weakly identifiable')
    """
    acquisition = validated_acquisition(acquisition, sigma, classes, n_draws)
    d = diffusivity_um2_per_ms("diffusivity", diffusivity)
    free = diffusivity_um2_per_ms("free_diffusivity", free_diffusivity)
    everything = np.ones((1, len(acquisition)), dtype=bool)
    bounds = map_bounds(
        acquisition, everything, sigma, d, free_diffusivity=free,
        free_water=free_water, classes=classes, n_draws=n_draws, seed=seed,
        )  # fmt: skip
    of_grid: tuple[int, ...] = ()
    if grid is not None:
        of_grid = grid.n_faces, n_identifiable_directions(acquisition, grid, sigma, d, seed)
    return Identifiability(
        acquisition, sigma, bounds, tuple(limitations(acquisition, sigma, d)),
        resolution_limit_um(acquisition, sigma, d), *of_grid,
    )  # fmt: skip


def validated_acquisition(acquisition, sigma, classes, n_draws) -> Acquisition:
    """The acquisition, after a check of all that describes the plan."""
    acquisition = require_pulsed(as_acquisition(acquisition, name="acquisition"))
    if acquisition.b0_mask.all():
        raise ValueError(
            "acquisition has no measurement with diffusion weighting; give some above its "
            "b0_threshold."
        )
    if np.ndim(sigma) or not 0 < sigma < 1:
        raise ValueError(
            f"sigma is {sigma!r}; give the noise over the signal at b = 0, between 0 and 1."
        )
    if isinstance(classes, str) or not classes or not set(classes) <= set(CLASSES):
        raise ValueError(f"classes is {classes!r}; give some of {', '.join(CLASSES)} in a tuple.")
    if int(n_draws) != n_draws or n_draws < 30:
        raise ValueError(f"n_draws is {n_draws!r}; give a whole number of at least 30.")
    return acquisition


def _scale(name):
    if name == ORIENTATION:
        return "degrees"
    return "factor" if name in LOG_MAPS else "absolute"


def _spread(name, sd):
    """A standard deviation in the unit of the table."""
    return float({"factor": np.exp, "degrees": np.rad2deg, "absolute": float}[_scale(name)](sd))


def _amount(scale, value):
    if scale == "factor":
        return f"factor {value:.2g}" if value < 10 else f"factor {value:.0f}"
    return f"± {value:.0f}°" if scale == "degrees" else f"± {value:.2g}"


def _text(row):
    before, after = (_amount(row["scale"], row[key]) for key in ("prior", "posterior"))
    return f"{before} before the scan, {after} after it"


def _failures(name, bounds):
    """Where, by the map itself, size or permeability, most tissues keep half of the spread."""
    left = bounds[name].posterior_sd[0] / bounds[name].prior_sd
    drivers = dict.fromkeys((name, "pore_diameter", "wall_permeability"))
    phrases = []
    for driver in drivers:
        values = bounds[driver].values
        if len(values) != len(left) or driver == ORIENTATION:
            continue
        order = np.argsort(values)
        window = max(len(order) // _WINDOWS, 3)
        fails = median_filter(left[order], size=window, mode="nearest") > _WEAKLY
        if fails.all() or not fails.any():
            continue
        values = np.exp(values[order]) if driver in LOG_MAPS else values[order]
        unit = f" {_UNITS[driver]}" if driver in _UNITS else ""
        where = "" if driver == name else f"where {_PHRASES[driver]} are "
        # Shorter runs are those of a few tissues.
        low, high = np.argmin(fails), np.argmin(fails[::-1])
        if low >= window // 2:
            phrases.append(f"{where}below {values[low]:.2g}{unit}")
        if high >= window // 2:
            phrases.append(f"{where}above {values[-1 - high]:.2g}{unit}")
    return phrases


def _draw(axes, result):
    rows = result.table()
    for place, row in enumerate(rows):
        bound = result.bounds[row["map"]]
        left = bound.posterior_sd[0] / bound.prior_sd
        low, middle, high = np.quantile(left, [0.1, 0.5, 0.9])
        color = _VERDICT_COLORS[row["verdict"]]
        axes.barh(place, 1, color="0.92", height=0.72, zorder=0)
        axes.barh(place, middle, color=color, height=0.5)
        axes.plot([low, high], [place, place], color="0.2", linewidth=1.2)
        for column, key in enumerate(("prior", "posterior")):
            _beside(axes, column, place, _amount(row["scale"], row[key]))
    for column, head in enumerate(("before", "after")):
        _beside(axes, column, -0.75, head, color="0.35")
    axes.set_yticks(range(len(rows)), [row["map"].replace("_", " ") for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("spread after the scan / spread before (median tissue; line: 80 % of tissues)")
    for limit in (_IDENTIFIABLE, _WEAKLY):
        axes.axvline(limit, color="0.5", linewidth=0.8, linestyle=":", zorder=0.5)
    handles = [axes.bar(0, 0, color=color) for color in _VERDICT_COLORS.values()]
    axes.legend(
        handles, _VERDICT_COLORS, ncols=3, frameon=False, fontsize=9, loc="lower left",
        bbox_to_anchor=(0, 1),
    )  # fmt: skip
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _beside(axes, column, place, text, **style):
    # In points: layouts leave room for what does not grow with the axes.
    axes.annotate(
        text, (1, place), xytext=(10 + 65 * column, 0), xycoords=axes.get_yaxis_transform(),
        textcoords="offset points", va="center", annotation_clip=False, **style,
    )  # fmt: skip
