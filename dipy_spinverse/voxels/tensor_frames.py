"""The directions that the search for an axis starts from: those of a diffusion tensor."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.acquisition.base import BaseAcquisition

# Of the measurements that the tensor is fitted to, ms/um^2.
_TENSOR_B = 2.0
# Of the largest signal: the logarithm of less is not taken.
_FLOOR = 1e-3
# um^2/ms, water at 37 degrees C.
_FREE_DIFFUSIVITY = 3.0
# Of the normal matrix's trace.
_RIDGE = 1e-8
_UPPER = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def tensor_frames(acquisition: BaseAcquisition, data: np.ndarray) -> np.ndarray:
    """Rows (V, 3, 3): two directions across, and the largest axis of a diffusion tensor.

    Weighted least squares on the logarithms of signals (V, M) at low b, with an S0 for each echo
    time. Where no gradient looked diffusion counts as free, so that the axis lies across all
    gradients rather than along one of them.
    """
    low = acquisition.b <= max(_TENSOR_B, 1.01 * acquisition.b[~acquisition.b0_mask].min())
    b_tensors = acquisition.b_tensors[low]
    pairs = np.stack([b_tensors[:, i, j] * (1 if i == j else 2) for i, j in _UPPER], axis=1)
    echo = acquisition.te_index[low][:, None] == np.arange(acquisition.te_index.max() + 1)
    design = np.concatenate([-pairs, echo], axis=1)
    signal = np.maximum(data[:, low], _FLOOR * np.abs(data).max(axis=1, keepdims=True) + 1e-300)
    weighted = signal[..., None] * design
    normal = np.swapaxes(weighted, 1, 2) @ weighted
    trace = np.trace(normal, axis1=1, axis2=2)[:, None, None]
    right = np.einsum("vmp,vm->vp", weighted, signal * np.log(signal))
    ridge = _RIDGE * trace * np.eye(design.shape[1])
    free = np.zeros(design.shape[1])
    free[[_UPPER.index((i, i)) for i in range(3)]] = _FREE_DIFFUSIVITY
    solution = np.linalg.solve(normal + ridge, (right + ridge @ free)[..., None])[..., 0]
    tensor = np.empty((len(data), 3, 3))
    for k, (i, j) in enumerate(_UPPER):
        tensor[:, i, j] = tensor[:, j, i] = solution[:, k]
    return np.swapaxes(np.linalg.eigh(tensor)[1], 1, 2)
