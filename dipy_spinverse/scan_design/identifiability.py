"""Identifiability of the maps of packed cells with an acquisition, before it is scanned."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from dipy.core.gradients import GradientTable
from dipy.utils.optpkg import optional_package

from dipy_spinverse.acquisition.conversion import as_acquisition, require_pulsed
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.scan_design.bounds import LOG_MAPS, ORIENTATION, MapBounds, map_bounds
from dipy_spinverse.scan_design.limitations import Limitation, limitations, resolution_limit_um
from dipy_spinverse.units import diffusivity_um2_per_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Posterior over prior standard deviation; 0.2 is 0.04 of a fraction, 20 % of a diameter, a
# factor of 1.5 of a permeability. Chosen by hand.
_IDENTIFIABLE = 0.2
_WEAKLY = 0.5
# Of tissue, um^2/ms, for limits in closed form.
_TYPICAL_DIFFUSIVITY = 2.0
_VERDICT_COLORS = {
    "identifiable": "#2a7f62",
    "weakly identifiable": "#d9a441",
    "not identifiable": "#b5483a",
}


@dataclass(frozen=True, eq=False)
class Identifiability:
    """Identifiability of maps with an acquisition; ``print`` it.

    Attributes
    ----------
    acquisition : Acquisition
    sigma : float
        Noise over the signal at b = 0.
    bounds : dict of MapBounds
        For each map, at tissues drawn from the prior.
    limitations : tuple of Limitation
    resolution_limit_um : float
        Diameter of impermeable cylinders below which signals do not differ, in closed form.
    """

    acquisition: Acquisition
    sigma: float
    bounds: dict[str, MapBounds]
    limitations: tuple[Limitation, ...]
    resolution_limit_um: float

    def table(self) -> list[dict]:
        """One row per map.

        Returns
        -------
        list of dict
            "map"; "scale" of the standard deviations, "factor" (exp of that of the logarithm),
            "absolute" or "degrees"; "prior" standard deviation; "posterior" one, median over
            tissues; "removed", the fraction of the prior's variance that the data remove; and
            "verdict".
        """
        rows = []
        for name, bound in self.bounds.items():
            ratio = bound.posterior_sd[0] / bound.prior_sd
            median = np.median(ratio)
            verdict = "identifiable" if median <= _IDENTIFIABLE else "weakly identifiable"
            verdict = verdict if median <= _WEAKLY else "not identifiable"
            rows.append(
                {
                    "map": name,
                    "scale": _scale(name),
                    "prior": _on_scale(name, bound.prior_sd),
                    "posterior": _on_scale(name, median * bound.prior_sd),
                    "removed": float(1 - (ratio**2).mean()),
                    "verdict": verdict,
                }
            )
        return rows

    def findings(self) -> list[str]:
        """Limitations, in words."""
        rows = {row["map"]: row for row in self.table()}
        findings = []
        for limitation in self.limitations:
            row = rows.get(limitation.affected_map)
            effect = ""
            if row is not None and row["verdict"] != "identifiable":
                (prior, posterior), name = _amounts(row), row["map"].replace("_", " ")
                effect = f" Here {name} is {row['verdict']}: prior {prior}, posterior {posterior}."
            findings.append(limitation.description + effect)
        return [
            *findings,
            f"The signals of impermeable cylinders with diameters below "
            f"{self.resolution_limit_um:.2g} um do not differ.",
            "The class of tissue is taken as known: fits are somewhat less precise.",
        ]

    def __str__(self) -> str:
        lines = [f"{self.acquisition!r}, noise {self.sigma:.3g} of S0", ""]
        lines.append(
            f"{'map':24s}{'prior sd':>16s}{'posterior sd':>16s}{'removed':>9s}  verdict"
        )  # fmt: skip
        for row in self.table():
            prior, posterior = _amounts(row)
            removed = f"{100 * row['removed']:.0f} %"
            lines.append(
                f"{row['map']:24s}{prior:>16s}{posterior:>16s}{removed:>9s}  {row['verdict']}"
            )
        return "\n".join([*lines, "", *(f"- {sentence}" for sentence in self.findings())])

    def figure(self, target: str | PathLike | Axes | None = None) -> Axes:
        """Draw the posterior over the prior standard deviation of each map.

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
    diffusivity: float | None = None,
    free_diffusivity: float = 3e-3,
    n_draws: int = 300,
    seed: int = 0,
) -> Identifiability:
    """Identifiability of each map of packed cells with an acquisition.

    Tissues of packed cylinders and spheres are drawn from a prior; at each the derivatives of the
    signals bound the standard deviation of any estimate (see
    `dipy_spinverse.scan_design.bounds`). Unknown are, as in fits, the fractions of free, immobile
    and hindered water and, by default, the diffusivities; the class of each tissue is taken as
    known, so that fits are somewhat less precise.

    Parameters
    ----------
    acquisition : Acquisition or GradientTable
        The planned measurements.
    sigma : float, optional
        Standard deviation of the noise over the signal at b = 0, the same at all echo times.
    diffusivity, free_diffusivity : float, optional
        Of water in tissue (None: unknown) and of free water, mm^2/s.
    n_draws : int, optional
        Tissues drawn.
    seed : int, optional

    Returns
    -------
    Identifiability

    Raises
    ------
    ValueError
        Noise or diffusivities out of range, no weighted measurement, fewer than 30 draws.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> directions = rng.normal(size=(20, 3))
    >>> directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    >>> acquisition = Acquisition(
    ...     b=[0, *[1.0] * 10, *[4.0] * 10], directions=np.vstack([np.zeros(3), directions]),
    ...     small_delta=8, big_delta=30)
    >>> result = identifiability(acquisition, n_draws=60)
    >>> [limitation.name for limitation in result.limitations]
    ['one diffusion time']
    >>> row = result.table()[1]
    >>> row["map"], row["verdict"]
    ('restricted_fraction', 'not identifiable')
    """
    acquisition = validated_acquisition(acquisition, sigma, n_draws)
    known = None if diffusivity is None else diffusivity_um2_per_ms("diffusivity", diffusivity)
    free = diffusivity_um2_per_ms("free_diffusivity", free_diffusivity)
    everything = np.ones((1, len(acquisition)), dtype=bool)
    bounds = map_bounds(
        acquisition, everything, sigma, known, free_diffusivity=free, n_draws=n_draws, seed=seed
    )
    d = _TYPICAL_DIFFUSIVITY if known is None else known
    return Identifiability(
        acquisition, sigma, bounds, tuple(limitations(acquisition, sigma, d)),
        resolution_limit_um(acquisition, sigma, d),
    )  # fmt: skip


def validated_acquisition(acquisition, sigma, n_draws) -> Acquisition:
    """The acquisition, after a check of all arguments."""
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
    if int(n_draws) != n_draws or n_draws < 30:
        raise ValueError(f"n_draws is {n_draws!r}; give a whole number of at least 30.")
    return acquisition


def _scale(name):
    if name == ORIENTATION:
        return "degrees"
    return "factor" if name in LOG_MAPS else "absolute"


def _on_scale(name, sd):
    """A standard deviation in the unit of the table."""
    return float({"factor": np.exp, "degrees": np.rad2deg, "absolute": float}[_scale(name)](sd))


def _amount(scale, value):
    if scale == "factor":
        return f"factor {value:.2g}" if value < 10 else f"factor {value:.0f}"
    return f"± {value:.0f}°" if scale == "degrees" else f"± {value:.2g}"


def _amounts(row):
    return [_amount(row["scale"], row[key]) for key in ("prior", "posterior")]


def _draw(axes, result):
    rows = result.table()
    for y, row in enumerate(rows):
        bound = result.bounds[row["map"]]
        low, median, high = np.quantile(bound.posterior_sd[0] / bound.prior_sd, [0.1, 0.5, 0.9])
        color = _VERDICT_COLORS[row["verdict"]]
        axes.barh(y, 1, color="0.92", height=0.72, zorder=0)
        axes.barh(y, median, color=color, height=0.5)
        axes.plot([low, high], [y, y], color="0.2", linewidth=1.2)
        for column, amount in enumerate(_amounts(row)):
            _annotate(axes, column, y, amount)
    for column, head in enumerate(("prior sd", "posterior sd")):
        _annotate(axes, column, -0.75, head, color="0.35")
    axes.set_yticks(range(len(rows)), [row["map"].replace("_", " ") for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("posterior sd / prior sd (bar: median tissue; line: 80 % of tissues)")
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


def _annotate(axes, column, y, text, **style):
    # In points: layouts leave room for what does not grow with the axes.
    axes.annotate(
        text, (1, y), xytext=(10 + 65 * column, 0), xycoords=axes.get_yaxis_transform(),
        textcoords="offset points", va="center", annotation_clip=False, **style,
    )  # fmt: skip
