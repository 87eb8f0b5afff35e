"""Principal directions of a diffusion tensor, initial values of the search for an axis."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.acquisition.base import BaseAcquisition

_MAX_B = 2.0  # ms/um^2; above it signals deviate from those of a tensor
_MIN_SIGNAL = 1e-3  # relative to the largest, for the logarithm
_FREE_DIFFUSIVITY = 3.0  # um^2/ms, water at 37 degrees C
_RIDGE = 1e-8  # relative to the trace of the normal matrix
_UPPER = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def tensor_frames(acquisition: BaseAcquisition, data: np.ndarray) -> np.ndarray:
    """Eigenvectors, as rows (V, 3, 3), of a diffusion tensor, with increasing diffusivity.

    Weighted least squares on the logarithms of signals (V, M) at low b, with an S0 for each echo
    time. The ridge makes diffusion free in directions without gradients.
    """
    low = acquisition.b <= max(_MAX_B, 1.01 * acquisition.b[~acquisition.b0_mask].min())
    b_tensors = acquisition.b_tensors[low]
    pairs = np.stack([b_tensors[:, i, j] * (1 if i == j else 2) for i, j in _UPPER], axis=1)
    echo = acquisition.te_index[low][:, None] == np.arange(acquisition.te_index.max() + 1)
    design = np.concatenate([-pairs, echo], axis=1)
    signal = np.maximum(
        data[:, low], _MIN_SIGNAL * np.abs(data).max(axis=1, keepdims=True) + 1e-300
    )
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
