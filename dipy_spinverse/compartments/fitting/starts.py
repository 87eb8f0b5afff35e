"""Where searches begin: axes from a tensor, scalars from a dictionary."""

from __future__ import annotations

import torch
from scipy.stats import qmc
from torch import Tensor

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.compartments.fitting.coordinates import Place, frame_of
from dipy_spinverse.compartments.fitting.variable_projection import Problem, amplitudes_of

_DICTIONARY_SIZE = 16
_TENSOR_B = 1.6  # ms/um^2; the logarithm is nearly quadratic up to here


def tensor_frames(acquisition: Acquisition, data: Tensor) -> Tensor:
    """Frames (V, 3, 3) of eigenvectors: first eigenvector last, second first.

    Diffusion tensors by least squares on logarithms, at low b where there are enough.
    """
    weighted = torch.tensor(~acquisition.b0_mask)
    low = weighted & torch.tensor(acquisition.b <= max(_TENSOR_B, acquisition.b[weighted].min()))
    use = low | ~weighted if low.sum() >= 6 else torch.ones_like(weighted)
    g = torch.tensor(acquisition.directions, dtype=data.dtype)[use]
    b = torch.tensor(acquisition.b, dtype=data.dtype)[use]
    x, y, z = g.T
    design = torch.stack(
        [torch.ones_like(b)]
        + [-b * e for e in (x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z)],
        dim=1,
    )
    floor = 1e-3 * data.amax(dim=1, keepdim=True)
    logarithm = torch.log(torch.maximum(data[:, use], floor))
    xx, yy, zz, xy, xz, yz = (logarithm @ torch.linalg.pinv(design).T)[:, 1:].unbind(dim=1)
    tensor = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], dim=1).reshape(-1, 3, 3)
    vectors = torch.linalg.eigh(tensor)[1]
    return frame_of(vectors[:, :, 2], vectors[:, :, 1])


def dictionary_start(problem: Problem, frames: Tensor, size: int = _DICTIONARY_SIZE) -> Place:
    """The best of `size` quasi-random scalars in every voxel, with given frames (V, A, 3, 3)."""
    n_voxels, n = len(problem.data), len(problem.definition.parameters)
    best = Place(frames.new_full((n_voxels, n), 0.5), frames)
    if n == 0:
        return best
    points = qmc.Halton(n, scramble=False).random(size + 1)[1:]
    lowest = torch.full_like(problem.data[:, 0], torch.inf)
    for point in torch.tensor(points, dtype=frames.dtype):
        place = Place(point.expand(n_voxels, n), frames)
        _, cost = amplitudes_of(problem.columns(place), problem.data)
        better = cost < lowest
        lowest = torch.where(better, cost, lowest)
        best.unit[better] = point
    return best
