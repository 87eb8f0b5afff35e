"""What a compartment model is: its parameters, its compartments, and how they share the signal.

    S = S0 sum_pools fraction_pool sum_compartments share(parameters) E(parameters)

The fractions of the pools are linear and add up to one; they are eliminated in a fit. A share is
a function of the parameters: it couples compartments whose volumes also set a diffusivity (the
tortuosity of the space outside of fibres).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from dipy_spinverse.compartments.signals.kernels import KERNELS, BuiltInKernel, CustomKernel
from dipy_spinverse.units import diffusivity_um2_per_ms

Diffusivity = float | tuple[float, float] | str
Values = Mapping[str, Tensor]
Expression = str | float | Callable[[Values], Tensor]
DISPERSIONS = (None, "watson", "bingham", "isotropic")
_FREE_DIFFUSIVITY = (0.1e-3, 3.2e-3)  # mm^2/s, up to that of free water at 37 degrees
# Of an orientation dispersion index: axis n and anisotropy s of a distribution of directions are
# polar coordinates of its orientation tensor s (n n^T - 1/3), with the volume element s^2 ds dn,
# and s is 0, and linear in the index, at 1. Errors of the median are smaller than with equally
# likely indices, and at most those of maximum likelihood (benchmarks/results/dispersion_prior.md).
ORIENTATION_PRIOR = 2.0
# um^2/ms: no compartment diffuses as slowly, and no value in mm^2/s is as large.
LEAST_UM2_PER_MS = 0.005
DIFFUSIVITY_ARGUMENTS = {"diffusivity", "parallel", "perpendicular", "inside", "outside"}
UNITS = {"1": 1.0, "um": 1.0, "ms": 1.0, "mm^2/s": 1e-3}


def check_choice(name: str, value: Any, allowed: Collection) -> None:
    """Refuse an option that is none of the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; use one of {', '.join(map(repr, allowed))}.")


def check_diffusivity(name: str, value: Any) -> None:
    """Refuse a number in mm^2/s, the unit of maps."""
    if isinstance(value, (int, float)) and 0 < value < LEAST_UM2_PER_MS:
        raise ValueError(
            f"{name} is {value:g}; here it is in um^2/ms, of which water at body temperature has "
            "3: multiply values in mm^2/s, as maps have them, by 1000."
        )


@dataclass(frozen=True)
class Parameter:
    """A scalar that is fitted.

    Attributes
    ----------
    name : str
    low, high : float
        Bounds. Diffusivities are in um^2/ms here and in `signals`; maps of a fit are in mm^2/s.
    unit : {"1", "um", "ms", "mm^2/s"}
        Of the map.
    per_fibre : bool
        Whether fibre populations of a crossing have different values.
    prior_power : float
        The prior density is proportional to (high - value)^prior_power: 0 where all values are
        equally likely; 2 for dispersions, see `ORIENTATION_PRIOR`.
    """

    name: str
    low: float
    high: float
    unit: str = "1"
    per_fibre: bool = False
    prior_power: float = 0.0

    def __post_init__(self):
        if not self.low < self.high or not abs(self.low) + abs(self.high) < float("inf"):
            raise ValueError(
                f"Parameter {self.name!r} has bounds {self.low} and {self.high}; give finite "
                "bounds with low < high (a known value is a number in the compartment)."
            )
        if self.unit not in UNITS:
            raise ValueError(f"Parameter {self.name!r} has unit {self.unit!r}; use {list(UNITS)}.")
        if self.unit == "mm^2/s":
            check_diffusivity(f"Bound of parameter {self.name!r}", self.high)

    def quantile(self, probability: Any) -> Any:
        """Value, scaled from the bounds to 0 and 1, with a cumulative prior probability."""
        if self.prior_power == 0:
            return probability
        return 1 - (1 - probability) ** (1 / (1 + self.prior_power))

    def cumulative(self, scaled: Any) -> Any:
        """Inverse of `quantile`."""
        return scaled if self.prior_power == 0 else 1 - (1 - scaled) ** (1 + self.prior_power)


@dataclass(frozen=True)
class Compartment:
    """A part of the signal.

    Attributes
    ----------
    kernel : str or CustomKernel
        "stick", "cylinder", "zeppelin", "ball", "dot" or "sphere", or a custom one.
    pool : str
        Its linear fraction. Compartments of the same pool need a `share`.
    arguments : mapping
        Of the kernel: the name of a parameter, a number where the value is known, or a function
        of all values (a link).
    share : str, float or callable
        Part of the pool.
    dispersion : {None, "watson", "bingham", "isotropic"}
        Of the axis of a stick, cylinder or zeppelin. "watson" needs `odi`, "bingham" also
        `fanning`.
    odi : str, float or callable
        Orientation dispersion index 2/pi arctan(1/kappa); for "bingham" out of the fan's plane.
    fanning : str, float or callable
        From 0 (as "watson") to 1 (all directions of the fan's plane alike).
    axis : str
        Name of the axis; compartments with the same one are parallel.
    average : {"signals", "tensor"}
        What is averaged over the dispersed axes: the signals, of water that stays along fibres
        of one direction, or the diffusion tensor of a stick or zeppelin, of water that passes
        fibres of all directions (outside of fibres in published NODDI).
    T2, T1 : str, float or callable
        Relaxation times, ms, during the echo time and the mixing time of a stimulated echo. With
        one of them, fractions are those without relaxation, and S0 is that at zero echo time;
        otherwise each echo time has its own S0.
    """

    kernel: str | CustomKernel
    pool: str
    arguments: Mapping[str, Expression] = field(default_factory=dict)
    share: Expression = 1.0
    dispersion: str | None = None
    odi: Expression | None = None
    fanning: Expression | None = None
    axis: str = "axis"
    average: str = "signals"
    T2: Expression | None = None
    T1: Expression | None = None

    def __post_init__(self):
        if not isinstance(self.kernel, CustomKernel) and self.kernel not in KERNELS:
            raise ValueError(
                f"kernel is {self.kernel!r}; use one of {', '.join(KERNELS)}, or a CustomKernel."
            )
        kernel = self.kernel_definition
        if set(self.arguments) != set(kernel.arguments):
            raise ValueError(
                f"A {kernel.name} needs the arguments {list(kernel.arguments)}, not "
                f"{list(self.arguments)}."
            )
        for name in DIFFUSIVITY_ARGUMENTS & set(self.arguments):
            check_diffusivity(
                f"{name} of the {kernel.name} of {self.pool!r}", self.arguments[name]
            )
        check_choice("dispersion", self.dispersion, DISPERSIONS)
        if self.dispersion is not None and not self.oriented:
            raise ValueError(f"A {kernel.name} has no axis: drop dispersion={self.dispersion!r}.")
        averages = ("signals", "tensor")
        tensor = self.kernel in ("stick", "zeppelin") and self.dispersion is not None
        if self.average not in averages or (self.average == "tensor" and not tensor):
            raise ValueError(
                f"average is {self.average!r}; use one of {averages}, the second for a stick or "
                "zeppelin with dispersion."
            )
        needed = {"watson": ("odi",), "bingham": ("odi", "fanning")}.get(self.dispersion or "", ())
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"dispersion={self.dispersion!r} needs {' and '.join(missing)}.")

    @property
    def kernel_definition(self) -> BuiltInKernel | CustomKernel:
        """The kernel itself."""
        return self.kernel if isinstance(self.kernel, CustomKernel) else KERNELS[self.kernel]

    @property
    def oriented(self) -> bool:
        """Whether the kernel has an axis."""
        return self.kernel_definition.oriented

    @property
    def timed(self) -> bool:
        """Whether the kernel depends on the pulse timing beyond b."""
        return self.kernel_definition.timed

    @property
    def has_axis(self) -> bool:
        """Whether its signal depends on the axis."""
        return self.oriented and self.dispersion != "isotropic"


@dataclass(frozen=True)
class Definition:
    """A model without an acquisition.

    Attributes
    ----------
    name : str
    parameters : tuple of Parameter
    compartments : tuple of Compartment
    fixed : mapping of float
        Values by name that are not fitted; a score test says whether the data reject them.
    derived : mapping
        Further maps as functions of all values, the fractions among them.
    units : mapping
        Of derived maps and fixed values, "1" by default.
    maps : tuple of str
        Names of the maps of a fit; all parameters, pools and derived ones where empty.
    min_shells : int
        Distinct b > 0 below which the parameters are not determined.
    n_starts : int
        Initial values of a fit; 1 where the misfit is known to have one minimum.
    curved : bool
        Whether the posterior lies along curved ridges, which samples around a fit do not cover:
        draws for one population are then tempered from the prior to the posterior, which takes
        several times as long.
    single_fibre : Definition or None
        The model with one fibre population, where this is one of several or none.
    n_fibres : int
        Fibre populations.
    n_S0_corrections : int
        How many of the last parameters are corrections of S0 at the echo times but the first,
        see `with_S0_corrections`.
    remedies : mapping of str
        What to do where the data reject a fixed value, by default to change it.
    discrepancy : mapping of float
        Standard deviations of the logarithm of scalars that posterior samples get in addition to
        those of noise: differences between the model and tissue that the data do not show.
    arguments : mapping
        Those of the published model, in DIPY's units; stored in the file of a fit.
    known : tuple of str
        Parameters whose values each voxel has; no step changes them.
    """

    name: str
    parameters: tuple[Parameter, ...]
    compartments: tuple[Compartment, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)
    derived: Mapping[str, Callable[[Values], Tensor]] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    maps: tuple[str, ...] = ()
    min_shells: int = 1
    n_starts: int = 4
    curved: bool = False
    single_fibre: Definition | None = None
    n_fibres: int = 1
    n_S0_corrections: int = 0
    remedies: Mapping[str, str] = field(default_factory=dict)
    discrepancy: Mapping[str, float] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    known: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.compartments:
            raise ValueError(f"Model {self.name!r} has no compartments; give at least one.")
        names = [p.name for p in self.parameters]
        assigned = [*names, *self.fixed, *self.pools, *self.axes, *self.derived, "S0"]
        twice = sorted({name for name in assigned if assigned.count(name) > 1})
        if twice:
            raise ValueError(f"Model {self.name!r} uses {twice} for two things; rename one.")
        references = {
            value
            for c in self.compartments
            for value in (*c.arguments.values(), c.share, c.odi, c.fanning, c.T2, c.T1)
            if isinstance(value, str)
        }
        unknown = sorted(references - set(names) - set(self.fixed))
        if unknown:
            raise ValueError(
                f"Compartments of {self.name!r} refer to {unknown}, which are no parameters; the "
                f"model has {names}."
            )
        for c in self.compartments:
            for name in DIFFUSIVITY_ARGUMENTS & set(c.arguments):
                value = self.fixed.get(c.arguments[name])
                check_diffusivity(f"fixed[{c.arguments[name]!r}]", value)
        if not self.maps:
            maps = (*names, *self.pools, *self.derived)
            object.__setattr__(self, "maps", maps)

    @property
    def pools(self) -> tuple[str, ...]:
        """Names of the linear fractions, in order of appearance."""
        return tuple(dict.fromkeys(c.pool for c in self.compartments))

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(dict.fromkeys(c.axis for c in self.compartments if c.has_axis))

    @property
    def fanned_axes(self) -> tuple[str, ...]:
        """Names of the axes that also have a plane of fanning."""
        bingham = (c.axis for c in self.compartments if c.dispersion == "bingham")
        return tuple(dict.fromkeys(bingham))

    @property
    def timed(self) -> bool:
        """Whether signals depend on the pulse timing beyond b."""
        return any(c.timed for c in self.compartments)

    @property
    def has_relaxation(self) -> bool:
        """Whether compartments have relaxation times."""
        return any((c.T2, c.T1) != (None, None) for c in self.compartments)

    @property
    def n_unknowns(self) -> int:
        """Degrees of freedom, with S0."""
        n_scalars = len(self.parameters) - len(self.known) + len(self.pools)
        return n_scalars + 2 * len(self.axes) + len(self.fanned_axes)

    def unit_of(self, name: str) -> str:
        """Unit of a map."""
        units = {p.name: p.unit for p in self.parameters}
        return units.get(name, self.units.get(name, "1"))


def tortuosity(parallel: float | str, share: str) -> Callable[[Values], Tensor]:
    """Perpendicular diffusivity (1 - share) times the parallel one.

    Szafer, Zhong and Gore, Magn. Reson. Med. 33 (1995) 697,
    https://doi.org/10.1002/mrm.1910330516, in the form that NODDI uses.
    """
    return partial(_tortuosity, parallel, share)


def complement(*names: str) -> Callable[[Values], Tensor]:
    """One minus the values named."""
    return partial(_complement, names)


# Partial functions, unlike functions inside of functions, can be pickled.
def _tortuosity(parallel, share, values):
    return (1 - values[share]) * expression_value(parallel, values)


def _complement(names, values):
    return 1 - sum(values[name] for name in names)


def split_diffusivities(
    **diffusivities: Diffusivity,
) -> tuple[dict[str, float], tuple[Parameter, ...]]:
    """Fixed diffusivities in um^2/ms, and parameters of those that are fitted, from mm^2/s."""
    fixed, fitted = {}, []
    for name, value in diffusivities.items():
        bounds: Any = _FREE_DIFFUSIVITY if isinstance(value, str) and value == "free" else value
        if np.ndim(bounds) == 0:
            fixed[name] = diffusivity_um2_per_ms(name, bounds)
            continue
        if len(bounds) != 2:
            raise ValueError(
                f'{name} is {value!r}; give a number, bounds (low, high), or "free", in mm^2/s.'
            )
        low, high = (diffusivity_um2_per_ms(name, bound) for bound in bounds)
        fitted.append(Parameter(name, low, high, "mm^2/s"))
    return fixed, tuple(fitted)


def expression_value(expression: Expression, values: Values) -> Tensor:
    """Value (V,) of an expression, (1,) of a number."""
    if isinstance(expression, str):
        return values[expression]
    if callable(expression):
        return expression(values)
    template = next(iter(values.values()))
    return template.new_full((1,), float(expression))
