"""Where a search is: scalars in the unit box, and a frame for each axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dipy_spinverse.compartments.definition import Definition

_LEAST_COSINE = 0.1  # between axes that a plane which touches the sphere at one still holds


@dataclass(frozen=True, eq=False)
class NonlinearParameters:
    """Non-linear parameters of V voxels.

    Attributes
    ----------
    unit : Tensor (V, P)
        Scalars over their range.
    frames : Tensor (V, A, 3, 3)
        Orthonormal rows: fan axis, third axis, axis.
    """

    unit: Tensor
    frames: Tensor

    def of_voxels(self, index) -> NonlinearParameters:
        """Some of the voxels."""
        return NonlinearParameters(self.unit[index], self.frames[index])

    def put(self, index, other: NonlinearParameters) -> None:
        """Overwrite some of the voxels."""
        self.unit[index], self.frames[index] = other.unit, other.frames


def concatenated(places: Sequence[NonlinearParameters]) -> NonlinearParameters:
    """Places one after the other."""
    return NonlinearParameters(
        torch.cat([p.unit for p in places]), torch.cat([p.frames for p in places])
    )


def n_nonlinear(definition: Definition) -> int:
    """Number of non-linear degrees of freedom."""
    return len(definition.parameters) + 2 * len(definition.axes) + len(definition.fanned_axes)


def apply_step(
    definition: Definition, place: NonlinearParameters, step: Tensor
) -> NonlinearParameters:
    """Place after a step (V, N): scalars first, then turns of the axes, then of the fans."""
    n, n_axes = len(definition.parameters), len(definition.axes)
    unit = place.unit + step[:, :n]
    frames = []
    for k, name in enumerate(definition.axes):
        fan, third, axis = place.frames[:, k].unbind(dim=1)
        turn = step[:, n + 2 * k : n + 2 * k + 2]
        new_axis = axis + turn[:, :1] * fan + turn[:, 1:] * third
        new_axis = new_axis / new_axis.norm(dim=1, keepdim=True)
        new_fan = fan
        if name in definition.fanned_axes:
            column = n + 2 * n_axes + definition.fanned_axes.index(name)
            new_fan = fan + step[:, column : column + 1] * third
        new_fan = new_fan - (new_fan * new_axis).sum(dim=1, keepdim=True) * new_axis
        new_fan = new_fan / new_fan.norm(dim=1, keepdim=True)
        new_third = torch.linalg.cross(new_axis, new_fan)
        frames.append(torch.stack([new_fan, new_third, new_axis], dim=1))
    return NonlinearParameters(unit, torch.stack(frames, dim=1) if frames else place.frames)


def rotations_between(
    definition: Definition, place: NonlinearParameters, other: NonlinearParameters
) -> Tensor:
    """Turns (V, T) that lead from the frames of a place to those of another, about."""
    components = other.frames @ place.frames.mT
    axis = components[:, :, 2]
    tangents = (axis[..., :2] / _away_from_zero(axis[..., 2:])).flatten(1)
    with_fan = [definition.axes.index(name) for name in definition.fanned_axes]
    fan = components[:, with_fan, 0]
    return torch.cat([tangents, fan[..., 1] / _away_from_zero(fan[..., 0])], dim=1)


def _away_from_zero(x):
    return torch.where(x < 0, -1.0, 1.0) * x.abs().clamp_min(_LEAST_COSINE)


def physical_values(definition: Definition, place: NonlinearParameters) -> dict[str, Tensor]:
    """Non-linear values, scalars (V,) and axes (V, 3)."""
    values = {
        p.name: p.low + (p.high - p.low) * place.unit[:, k]
        for k, p in enumerate(definition.parameters)
    }
    for name, value in definition.fixed.items():
        values[name] = place.unit.new_full((len(place.unit),), value)
    for k, name in enumerate(definition.axes):
        values[name] = place.frames[:, k, 2]
        if name in definition.fanned_axes:
            values[f"{name}_fan"] = place.frames[:, k, 0]
    if not values:  # expressions take the number of voxels from any value
        values["_"] = place.unit.new_zeros(len(place.unit))
    return values


def scaled_parameters(definition: Definition, values: Mapping[str, Tensor]) -> NonlinearParameters:
    """Inverse of `values_of`."""
    like = next(iter(values.values()))
    columns = [(values[p.name] - p.low) / (p.high - p.low) for p in definition.parameters]
    unit = torch.stack(columns, dim=1) if columns else like.new_zeros(len(like), 0)
    frames = [
        orthonormal_frames(values[name], values.get(f"{name}_fan")) for name in definition.axes
    ]
    none = like.new_zeros(len(like), 0, 3, 3)
    return NonlinearParameters(unit, torch.stack(frames, dim=1) if frames else none)


def orthonormal_frames(axis: Tensor, fan: Tensor | None = None) -> Tensor:
    """Frames (V, 3, 3) with `axis` (V, 3) last and `fan`, or any direction across, first."""
    axis = axis / axis.norm(dim=1, keepdim=True)
    if fan is None:
        smallest = axis.abs().argmin(dim=1)
        fan = torch.nn.functional.one_hot(smallest, 3).to(axis.dtype)
    fan = fan - (fan * axis).sum(dim=1, keepdim=True) * axis
    fan = fan / fan.norm(dim=1, keepdim=True)
    return torch.stack([fan, torch.linalg.cross(axis, fan), axis], dim=1)
