"""The directions that the search for an axis starts from: those of a diffusion tensor."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.acquisition.pulsed import Acquisition

# Of the measurements that the tensor is fitted to, ms/um^2.
_TENSOR_B = 2.0
_UPPER = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def tensor_frames(acquisition: Acquisition, data: np.ndarray, diffusivity: float) -> np.ndarray:
    """Rows (V, 3, 3): two directions across, and the largest axis of a diffusion tensor."""
    low = acquisition.b <= max(_TENSOR_B, acquisition.b[~acquisition.b0_mask].min() * 1.01)
    g = acquisition.directions[low]
    b = np.where(acquisition.b0_mask, 0, acquisition.b)[low]
    pairs = np.stack([g[:, i] * g[:, j] * (1 if i == j else 2) for i, j in _UPPER], axis=1)
    echo = acquisition.te_index[low][:, None] == np.arange(acquisition.te_index.max() + 1)
    design = np.concatenate([-b[:, None] * pairs, echo], axis=1)
    signal = np.maximum(data[:, low], 1e-3 * np.abs(data).max(axis=1, keepdims=True) + 1e-300)
    weighted = signal[..., None] * design
    normal = np.swapaxes(weighted, 1, 2) @ weighted
    trace = np.trace(normal, axis1=1, axis2=2)[:, None, None]
    right = np.einsum("vmp,vm->vp", weighted, signal * np.log(signal))
    ridge = 1e-8 * trace * np.eye(design.shape[1])
    # Free diffusion where no gradient looked: an axis across all gradients is tried first.
    free = np.zeros(design.shape[1])
    free[[_UPPER.index((i, i)) for i in range(3)]] = diffusivity
    solution = np.linalg.solve(normal + ridge, (right + ridge @ free)[..., None])[..., 0]
    tensor = np.empty((len(data), 3, 3))
    for k, (i, j) in enumerate(_UPPER):
        tensor[:, i, j] = tensor[:, j, i] = solution[:, k]
    return np.swapaxes(np.linalg.eigh(tensor)[1], 1, 2)
