"""Models with several fibre populations or none, or with several echo times; and their maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dipy_spinverse.compartments.definition import (
    UNITS,
    Compartment,
    Definition,
    Parameter,
    Values,
)

MAX_FIBRES = 3
# Bounds of corrections of S0, by hand: 1 plus and minus 3.5 standard errors sqrt(2) / SNR of
# single b0 at an SNR of 10; wide where they, or those of the first label, are missing.
_S0_CORRECTIONS, _UNKNOWN_S0 = (0.5, 1.5), (0.2, 5.0)
_EXPRESSIONS = ("share", "odi", "fanning", "T2", "T1")


def with_fibres(definition: Definition, n: int) -> Definition:
    """The model with n fibre populations (0 to 3).

    Compartments with an axis get a copy, an axis and a pool for each, NAME_1 to NAME_n; parameters
    marked `per_fibre` too, the others are shared. Without fibres, all directions of the axis are
    equally likely.
    """
    if n == 1:
        return definition
    if n == 0:
        dispersions = {e for c in definition.compartments for e in (c.odi, c.fanning)}
        return replace(
            definition, single_fibre=definition, n_fibres=0,
            compartments=tuple(
                replace(c, dispersion="isotropic", odi=None, fanning=None) if c.oriented else c
                for c in definition.compartments
            ),
            parameters=tuple(p for p in definition.parameters if p.name not in dispersions),
        )  # fmt: skip
    numbers = range(1, n + 1)
    per_fibre = {p.name for p in definition.parameters if p.per_fibre}
    parameters: list[Parameter] = []
    compartments: list[Compartment] = []
    for p in definition.parameters:
        copies = [replace(p, name=f"{p.name}_{k}") for k in numbers]
        parameters += copies if p.per_fibre else [p]
    for c in definition.compartments:
        compartments += [_of_fibre(c, k, per_fibre) for k in numbers] if c.has_axis else [c]
    return replace(
        definition, parameters=tuple(parameters), compartments=tuple(compartments),
        single_fibre=definition, n_fibres=n,
    )  # fmt: skip


def _of_fibre(compartment, k, per_fibre):
    def renamed(expression):
        if isinstance(expression, str):
            return f"{expression}_{k}" if expression in per_fibre else expression
        if callable(expression):
            return lambda values: expression(
                {**values, **{name: values[f"{name}_{k}"] for name in per_fibre}}
            )
        return expression

    return replace(
        compartment,
        pool=f"{compartment.pool}_{k}",
        axis=f"{compartment.axis}_{k}",
        arguments={name: renamed(value) for name, value in compartment.arguments.items()},
        **{name: renamed(getattr(compartment, name)) for name in _EXPRESSIONS},
    )


def maps_of(definition: Definition, values: Values) -> dict[str, Tensor]:
    """Maps (V,) in the units of `unit_of`, from all values and fractions.

    In crossings, fractions are summed over populations, and parameters of each population averaged
    with the fractions; without populations, dispersion is complete.
    """
    single_fibre = definition.single_fibre or definition
    merged = _merged(definition, single_fibre, values)
    merged |= {name: function(merged) for name, function in single_fibre.derived.items()}
    units = {name: UNITS[single_fibre.unit_of(name)] for name in single_fibre.maps}
    return {name: merged[name] * unit for name, unit in units.items()}


def _merged(definition, single_fibre, values):
    """Values of one population from those of several or none."""
    merged, n = dict(values), definition.n_fibres
    if definition is single_fibre:
        return merged
    if n == 0:
        template = next(iter(values.values()))
        missing = [p for p in single_fibre.parameters if p.name not in values]
        return merged | {p.name: 0 * template + p.high for p in missing}
    names = {pool: [f"{pool}_{k}" for k in range(1, n + 1)] for pool in single_fibre.pools}
    fibres = [sum(values[row[k]] for row in names.values() if row[k] in values) for k in range(n)]
    total = sum(fibres) + 1e-12
    for pool, row in names.items():
        if pool not in values:
            merged[pool] = sum(values[name] for name in row)
    for p in single_fibre.parameters:
        if p.per_fibre:
            weighted = (fibres[k] * values[f"{p.name}_{k + 1}"] for k in range(n))
            merged[p.name] = sum(weighted) / total
    return merged


def with_S0_corrections(definition: Definition, has_b0: Sequence[bool]) -> Definition:
    """The model with a correction of S0 of each label but the first, without relaxation.

    Each label (echo time or timing) has its own S0, whose mean b0 has noise; a correction is S0
    over that mean. With few b0, a fit without it would have too narrow intervals (89 % coverage
    with one b0 each, benchmarks/notes/compartments.md, "Echo times").
    """
    n = 0 if definition.has_relaxation else len(has_b0) - 1
    corrections = [
        Parameter(
            f"S0 correction {k + 1}",
            *(_S0_CORRECTIONS if has_b0[0] and has_b0[k] else _UNKNOWN_S0),
        )
        for k in range(1, n + 1)
    ]
    parameters = (*definition.parameters, *corrections)
    return replace(definition, parameters=parameters, n_S0_corrections=n)


def without_correction(definition: Definition) -> list[float]:
    """Scaled corrections of S0 where S0 is the mean b0."""
    corrections = definition.parameters[len(definition.parameters) - definition.n_S0_corrections :]
    return [(1 - p.low) / (p.high - p.low) for p in corrections]


def S0_corrections(definition: Definition, values: Values) -> Tensor:
    """Corrections (V, L) of all labels, 1 of the first."""
    names = [p.name for p in definition.parameters[-definition.n_S0_corrections :]]
    corrections = [values[name] for name in names]
    return torch.stack([torch.ones_like(corrections[0]), *corrections], dim=1)
