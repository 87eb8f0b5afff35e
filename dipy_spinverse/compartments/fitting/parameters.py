"""The non-linear parameters of a fit: scalars in the unit interval, and a frame for each axis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dipy_spinverse.compartments.definition import Definition

# Limits the tangent of the angle between axes to 10: the tangent plane at one axis has no
# coordinates for axes perpendicular to it.
_LEAST_COSINE = 0.1


@dataclass(frozen=True, eq=False)
class NonlinearParameters:
    """Scalars (V, P), scaled from their bounds to 0 and 1, and frames (V, A, 3, 3) of the axes.

    Rows of a frame are orthonormal: fan axis, normal of the fan, axis.
    """

    unit: Tensor
    frames: Tensor

    def of_voxels(self, index) -> NonlinearParameters:
        """Those of some of the voxels."""
        return NonlinearParameters(self.unit[index], self.frames[index])

    def repeated(self, n: int) -> NonlinearParameters:
        """n copies (n V), voxels varying fastest."""
        return NonlinearParameters(self.unit.repeat(n, 1), self.frames.repeat(n, 1, 1, 1))

    def put(self, index, values: NonlinearParameters) -> None:
        """Overwrite some of the voxels."""
        self.unit[index], self.frames[index] = values.unit, values.frames


def n_nonlinear(definition: Definition) -> int:
    """Number of non-linear degrees of freedom."""
    return len(definition.parameters) + 2 * len(definition.axes) + len(definition.fanned_axes)


def apply_step(
    definition: Definition, parameters: NonlinearParameters, step: Tensor
) -> NonlinearParameters:
    """Parameters after a step (V, N) of the scalars, then rotations of the axes and the fans."""
    n_scalars, n_axes = len(definition.parameters), len(definition.axes)
    free = step.new_tensor([p.name not in definition.known for p in definition.parameters])
    unit = parameters.unit + free * step[:, :n_scalars]
    frames = []
    for k, name in enumerate(definition.axes):
        fan, normal, axis = parameters.frames[:, k].unbind(dim=1)
        tangent = step[:, n_scalars + 2 * k : n_scalars + 2 * k + 2]
        axis = axis + tangent[:, :1] * fan + tangent[:, 1:] * normal
        axis = axis / axis.norm(dim=1, keepdim=True)
        if name in definition.fanned_axes:
            column = n_scalars + 2 * n_axes + definition.fanned_axes.index(name)
            fan = fan + step[:, column : column + 1] * normal
        fan = fan - (fan * axis).sum(dim=1, keepdim=True) * axis
        fan = fan / fan.norm(dim=1, keepdim=True)
        frames.append(torch.stack([fan, torch.linalg.cross(axis, fan), axis], dim=1))
    return NonlinearParameters(unit, torch.stack(frames, dim=1) if frames else parameters.frames)


def rotations_between(
    definition: Definition, origin: NonlinearParameters, target: NonlinearParameters
) -> Tensor:
    """Rotation steps (V, T) from the frames of `origin` to those of `target`, to first order."""
    components = target.frames @ origin.frames.mT
    axis = components[:, :, 2]
    tangents = (axis[..., :2] / _away_from_zero(axis[..., 2:])).flatten(1)
    with_fan = [definition.axes.index(name) for name in definition.fanned_axes]
    fan = components[:, with_fan, 0]
    return torch.cat([tangents, fan[..., 1] / _away_from_zero(fan[..., 0])], dim=1)


def _away_from_zero(cosine):
    return torch.where(cosine < 0, -1.0, 1.0) * cosine.abs().clamp_min(_LEAST_COSINE)


def physical_values(definition: Definition, parameters: NonlinearParameters) -> dict[str, Tensor]:
    """Scalars (V,) in the units of the definition, fixed ones (1,), and axes (V, 3)."""
    unit, frames = parameters.unit, parameters.frames
    values = {
        p.name: p.low + (p.high - p.low) * unit[:, k] for k, p in enumerate(definition.parameters)
    }
    for name, value in definition.fixed.items():
        values[name] = unit.new_full((1,), value)
    for k, name in enumerate(definition.axes):
        values[name] = frames[:, k, 2]
        if name in definition.fanned_axes:
            values[f"{name}_fan"] = frames[:, k, 0]
    if not definition.parameters and not definition.axes:  # the number of voxels
        values["_"] = unit.new_zeros(len(unit))
    return values


def orthonormal_frames(axis: Tensor, fan: Tensor | None = None) -> Tensor:
    """Frames (V, 3, 3) with `axis` (V, 3) last and `fan`, or any perpendicular, first."""
    axis = axis / axis.norm(dim=1, keepdim=True)
    if fan is None:
        fan = torch.nn.functional.one_hot(axis.abs().argmin(dim=1), 3).to(axis.dtype)
    fan = fan - (fan * axis).sum(dim=1, keepdim=True) * axis
    fan = fan / fan.norm(dim=1, keepdim=True)
    return torch.stack([fan, torch.linalg.cross(axis, fan), axis], dim=1)
