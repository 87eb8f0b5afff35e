"""A model of several fibre populations, or of none, or of several echo times; and its maps."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dipy_spinverse.compartments.definition import UNITS, Definition, Parameter, Values

_LEVELS = (0.5, 1.5)


def with_fibres(definition: Definition, n: int) -> Definition:
    """The model with n fibre populations (0 to 3).

    Compartments with an axis get a copy, an axis and a pool for each, NAME_1 to NAME_n; parameters
    marked `per_fibre` too, the others are shared. Without fibres, all directions of the axis are
    equally likely.
    """
    if n == 1:
        return definition
    if n == 0:
        parts = tuple(
            replace(c, dispersion="isotropic", odi=None, fanning=None) if c.oriented else c
            for c in definition.compartments
        )
        dispersions = {
            e for c in definition.compartments for e in (c.odi, c.fanning) if e is not None
        }
        parameters = tuple(p for p in definition.parameters if p.name not in dispersions)
        return replace(
            definition,
            parameters=parameters,
            compartments=parts,
            single_fibre=definition,
            n_fibres=0,
        )
    own = {p.name for p in definition.parameters if p.per_fibre}
    parameters = tuple(
        copy
        for p in definition.parameters
        for copy in (
            [replace(p, name=f"{p.name}_{k}") for k in range(1, n + 1)] if p.per_fibre else [p]
        )
    )
    return replace(
        definition,
        parameters=parameters,
        compartments=tuple(
            part
            for c in definition.compartments
            for part in ([_of_fibre(c, k, own) for k in range(1, n + 1)] if c.has_axis else [c])
        ),
        single_fibre=definition,
        n_fibres=n,
    )


def maps_of(definition: Definition, values: Values) -> dict[str, Tensor]:
    """Maps (V,) in the units of `unit_of`, from all values and fractions.

    In crossings, fractions are summed over populations, and parameters of which each has its own
    are averaged with the fractions; without populations, dispersion is complete.
    """
    single = definition.single_fibre or definition
    merged = _merged(definition, single, values)
    merged |= {name: function(merged) for name, function in single.derived.items()}
    return {name: merged[name] * UNITS[single.unit_of(name)] for name in single.maps}


def _merged(definition, single, values):
    merged, n = dict(values), definition.n_fibres
    if definition is single:
        return merged
    if n == 0:
        any_value = next(iter(values.values()))
        missing = [p for p in single.parameters if p.name not in values]
        return merged | {p.name: 0 * any_value + p.high for p in missing}
    names = [[f"{pool}_{k}" for k in range(1, n + 1)] for pool in single.pools]
    fibres = [sum(values[row[k]] for row in names if row[k] in values) for k in range(n)]
    total = sum(fibres) + 1e-12
    for pool, row in zip(single.pools, names, strict=True):
        if pool not in values:
            merged[pool] = sum(values[name] for name in row)
    for p in single.parameters:
        if p.per_fibre:
            own = [values[f"{p.name}_{k}"] for k in range(1, n + 1)]
            merged[p.name] = sum(w * v for w, v in zip(fibres, own, strict=True)) / total
    return merged


_LINKED = ("share", "odi", "fanning", "T2", "T1")


def _of_fibre(compartment, k, own):
    def renamed(expression):
        if isinstance(expression, str):
            return f"{expression}_{k}" if expression in own else expression
        if callable(expression):
            return lambda values: expression(_view(values, own, k))
        return expression

    return replace(
        compartment,
        pool=f"{compartment.pool}_{k}",
        axis=f"{compartment.axis}_{k}",
        arguments={name: renamed(value) for name, value in compartment.arguments.items()},
        **{name: renamed(getattr(compartment, name)) for name in _LINKED},
    )


def _view(values, own, k):
    """Values as fibre k sees them."""
    return {**values, **{name: values[f"{name}_{k}"] for name in own}}


def with_S0_corrections(definition: Definition, n_echo_times: int) -> Definition:
    """The model with a level of each echo time but the first, where compartments do not relax.

    Each echo time has its own S0, which its b0 tell with their noise; a level is what it is over
    what they say. With few b0 a fit that believed them would be too sure of the rest.
    """
    n = 0 if definition.has_relaxation else n_echo_times - 1
    levels = (Parameter(f"level of echo time {k + 2}", *_LEVELS) for k in range(n))
    return replace(definition, parameters=(*definition.parameters, *levels), n_S0_corrections=n)


def S0_corrections(definition: Definition, values: Values) -> Tensor:
    """Levels (V, K) of all echo times."""
    own = [values[p.name] for p in definition.parameters[-definition.n_S0_corrections :]]
    return torch.stack([torch.ones_like(own[0]), *own], dim=1)
