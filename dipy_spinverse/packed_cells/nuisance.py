"""What a scan adds to the signals of tissue.

Amplitudes; what opposite directions differ by; and a fleeting term, a few percent of the signal
that are gone at a b of 0.1 ms/um^2: blood that flows through capillaries, as in intravoxel
incoherent motion [1]_, or, where it is negative, what flows or is not spoiled elsewhere and
cancels signal.

References
----------
.. [1] Le Bihan et al., Radiology 168 (1988), https://doi.org/10.1148/radiology.168.2.3393671
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import f as variance_ratio

from dipy_spinverse.packed_cells.equivalent_pulses import PulsedMeasurements
from dipy_spinverse.voxels.status import REFUTED

AMPLITUDES = ("te", "timing")
# Of the logarithm of the signal at the largest q; a priori.
_ODD_SPREAD = 0.1
# um^2/ms; of the signal, a priori; and ms/um^2 up to which measurements tell it.
FAST_DIFFUSIVITY = 15.0
FAST_PRIOR_SD = 0.05
_FLEETING_B = 0.1
_LEAST_DECAY = 1e-3
# Signals over noise from which their logarithm is taken.
_CLEAR = 5.0


def labels_of(acquisition: PulsedMeasurements, amplitudes: str | ArrayLike) -> np.ndarray:
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


class FastTerms(NamedTuple):
    """G terms, one for the measurements of each timing and label.

    Where there are no weak weightings, a term is what b0 has beyond the signals of tissue.

    Attributes
    ----------
    rows : ndarray (R,) of int
        Measurements that feel them, and
    decay : ndarray (R,)
        what is left of the term there.
    term : ndarray (R,) of int
        Which of the terms.
    label, timing : ndarray (G,) of int
        Of each term.
    told : ndarray (G,) of bool
        Whether there are weak weightings that tell it from an amplitude.
    """

    rows: np.ndarray
    decay: np.ndarray
    term: np.ndarray
    label: np.ndarray
    timing: np.ndarray
    told: np.ndarray


_NONE = np.zeros(0, dtype=int)
NO_FAST_TERMS = FastTerms(_NONE, np.zeros(0), _NONE, _NONE, _NONE, np.zeros(0, dtype=bool))


def fast_terms(
    acquisition: PulsedMeasurements, labels: np.ndarray, used: np.ndarray, order: np.ndarray
) -> FastTerms:
    """Those of an acquisition, its measurements in this order."""
    decay = np.exp(-FAST_DIFFUSIVITY * acquisition.b)
    parts = []
    for timing, label in np.unique(np.stack([acquisition.timing_index, labels]), axis=1).T:
        own = used & (acquisition.timing_index == timing) & (labels == label)
        weighted = own & ~acquisition.b0_mask
        rows = np.flatnonzero((own & (decay > _LEAST_DECAY))[order])
        if len(rows) and weighted.any():
            told = (weighted & (acquisition.b < _FLEETING_B)).any()
            parts.append((rows, timing, label, told))
    if not parts:
        return NO_FAST_TERMS
    rows = np.concatenate([part[0] for part in parts])
    return FastTerms(
        rows,
        decay[order][rows],
        np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts]),
        np.array([part[2] for part in parts]),
        np.array([part[1] for part in parts]),
        np.array([part[3] for part in parts]),
    )


def fast_signals(
    own: PulsedMeasurements, acquisition: PulsedMeasurements, shares: np.ndarray
) -> np.ndarray:
    """Fleeting signals (V, M) of an acquisition, of shares (V, T) of the timings of `own`."""
    decay = np.exp(-FAST_DIFFUSIVITY * acquisition.b)
    return shares @ _same_timing(own, acquisition).T * decay


def polarity_factors(
    own: PulsedMeasurements, acquisition: PulsedMeasurements, odd: np.ndarray
) -> np.ndarray:
    """Factors (V, M) of the signals of an acquisition, from coefficients (V, T * 6).

    They are those of the timings of `own`; other timings have none.
    """
    return np.exp(odd @ _odd_weights(own, acquisition).T)


def _same_timing(own, acquisition):
    """Whether measurements have a timing (M, T) of `own`."""
    apart = np.abs(acquisition.timings[:, None] - own.timings).max(axis=2)
    return (apart < 1e-3)[acquisition.timing_index]


def _odd_weights(own, acquisition):
    """Design (M, T * 6) of the logarithm of the signal, odd in the direction: two vectors each.

    Cross-terms with a constant gradient are proportional to q; an amplitude of its own for each
    direction, such as drift and eddy currents leave, shows once the gradient is on.
    """
    there = 1 - np.exp(-FAST_DIFFUSIVITY * acquisition.b)
    sizes = np.stack([acquisition.q / max(own.q.max(), 1e-9), there], axis=1)
    vectors = sizes[:, :, None] * acquisition.directions[:, None]
    same = _same_timing(own, acquisition)
    return (same[..., None] * vectors.reshape(-1, 1, 6)).reshape(len(acquisition), -1)


def polarity_asymmetry(
    acquisition: PulsedMeasurements, data: np.ndarray, sigma: np.ndarray
) -> np.ndarray:
    """Coefficients (V, T * 6) of :func:`polarity_factors`, from pairs of opposite directions.

    Tissue signals are even, so no model of tissue is needed. Without such pairs, and where chance
    alone makes opposite directions differ so in one of 1000 voxels, they are 0.
    """
    one, other = _opposite_pairs(acquisition)
    weights = _odd_weights(acquisition, acquisition)
    design = weights[one] - weights[other]
    first, second, noise = data[:, one], data[:, other], sigma[:, None]
    clear = np.minimum(first, second) > _CLEAR * noise
    first, second = np.where(clear, first, 1.0), np.where(clear, second, 1.0)
    # Variances of logarithms.
    weight = clear / (noise**2 * (1 / first**2 + 1 / second**2))
    differences = np.log(first / second)
    normal = (design.T * weight[:, None]) @ design + np.eye(design.shape[1]) / _ODD_SPREAD**2
    right = (weight * differences) @ design
    odd = np.linalg.solve(normal, right[..., None])[..., 0]
    n_terms = np.linalg.matrix_rank(design) if len(design) else 0
    freedom = np.maximum(clear.sum(axis=1) - n_terms, 0)
    left = (weight * (differences - odd @ design.T) ** 2).sum(axis=1)
    gain = (weight * differences**2).sum(axis=1) - left
    ratio = gain * freedom / np.maximum(left * n_terms, 1e-300)
    chance = variance_ratio.sf(ratio, max(n_terms, 1), np.maximum(freedom, 1))
    return np.where(((freedom > 0) & (chance < REFUTED))[:, None], odd, 0.0)


def _opposite_pairs(acquisition):
    """Rows (2, P) of measurements of one timing and q in opposite directions."""
    weighted = np.flatnonzero(~acquisition.b0_mask & ~acquisition.isotropic)
    vectors = (acquisition.q[:, None] * acquisition.directions)[weighted].round(3)
    timing = acquisition.timing_index[weighted, None]
    both = np.concatenate([np.hstack([timing, vectors]), np.hstack([timing, -vectors])]) + 0.0
    own, opposite = np.unique(both, axis=0, return_inverse=True)[1].reshape(2, -1)
    # The first of an encoding goes with the first of the opposite one, and so on.
    order, place = np.argsort(own, kind="stable"), np.arange(len(own))
    number = np.empty_like(own)
    number[order] = place - np.searchsorted(own[order], own[order])
    mine, wanted = (each * len(own) + number for each in (own, opposite))
    order = np.argsort(mine)
    partner = order[np.searchsorted(mine[order], wanted).clip(max=len(own) - 1)]
    paired = (mine[partner] == wanted) & (own > opposite)
    return weighted[np.stack([place[paired], partner[paired]])]
