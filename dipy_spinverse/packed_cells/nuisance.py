"""What a scan adds to the signals of tissue: amplitudes, and gradients other than its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition.pulsed import Acquisition

AMPLITUDES = ("te", "timing")
# Of the logarithm of the signal at the largest q; a priori.
_ODD_SPREAD = 0.1
# Signals over noise from which their logarithm is taken.
_CLEAR = 5.0


def labels_of(acquisition: Acquisition, amplitudes: str | ArrayLike) -> np.ndarray:
    """Label (M,) of each measurement, 0 ... K-1; those of one label share their S0.

    Raises
    ------
    ValueError
        Neither one of `AMPLITUDES` nor one whole number for each measurement.
    """
    if isinstance(amplitudes, str):
        if amplitudes not in AMPLITUDES:
            raise ValueError(
                f"amplitudes is {amplitudes!r}; give "
                f"{' or '.join(map(repr, AMPLITUDES))}, or a label for each measurement."
            )
        return acquisition.te_index if amplitudes == "te" else acquisition.timing_index
    labels = np.asarray(amplitudes)
    if labels.shape != (len(acquisition),):
        raise ValueError(
            f"amplitudes has shape {labels.shape}; give one label for each of the "
            f"{len(acquisition)} measurements."
        )
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


def odd_factors(own: Acquisition, acquisition: Acquisition, odd: np.ndarray) -> np.ndarray:
    """Factors (V, M) of the signals of an acquisition, from coefficients (V, T * 3).

    They are those of the timings of `own`; other timings have none.
    """
    return np.exp(odd @ _odd_weights(own, acquisition).T)


def _odd_weights(own, acquisition):
    """Design (M, T * 3) of the logarithm of the signal, odd in the direction: q of each timing.

    Cross-terms with a constant gradient are proportional to it.
    """
    timing = np.abs(acquisition.timings[:, None] - own.timings).max(axis=2)
    same = (timing < 1e-3)[acquisition.timing_index]
    vectors = acquisition.q[:, None] * acquisition.directions / max(own.q.max(), 1e-9)
    return (same[..., None] * vectors[:, None]).reshape(len(acquisition), -1)


def odd_terms(acquisition: Acquisition, data: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Coefficients (V, T * 3) of :func:`odd_factors`, from measurements in opposite directions.

    Tissue signals are even, so no model of tissue is needed; without such pairs they are 0.
    """
    one, other = _opposite_pairs(acquisition)
    weights = _odd_weights(acquisition, acquisition)
    design = weights[one] - weights[other]
    first, second, noise = data[:, one], data[:, other], sigma[:, None]
    clear = np.minimum(first, second) > _CLEAR * noise
    first, second = np.where(clear, first, 1.0), np.where(clear, second, 1.0)
    # Variances of logarithms.
    weight = clear / (noise**2 * (1 / first**2 + 1 / second**2))
    normal = (design.T * weight[:, None]) @ design + np.eye(design.shape[1]) / _ODD_SPREAD**2
    right = (weight * np.log(first / second)) @ design
    return np.linalg.solve(normal, right[..., None])[..., 0]


def _opposite_pairs(acquisition):
    """Rows of measurements of one timing and q in opposite directions."""
    weighted = np.flatnonzero(~acquisition.b0_mask & ~acquisition.isotropic)
    vectors = (acquisition.q[:, None] * acquisition.directions)[weighted].round(3)
    vectors = np.concatenate([acquisition.timing_index[weighted, None], vectors], axis=1)
    order: dict[tuple, list[int]] = {}
    for row, vector in zip(weighted, vectors, strict=True):
        order.setdefault(tuple(vector + 0.0), []).append(row)
    pairs = []
    for vector, rows in order.items():
        opposite = (vector[0], *(-x + 0.0 for x in vector[1:]))
        if vector > opposite and opposite in order:
            pairs += zip(rows, order[opposite], strict=False)
    return np.array(pairs, dtype=int).reshape(-1, 2).T
