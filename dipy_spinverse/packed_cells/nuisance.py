"""Effects of a scan that are not of the tissue.

- Amplitudes: signals at b = 0.
- Polarity asymmetry: signals of opposite gradient directions differ, by cross-terms with other
  gradients, drift or eddy currents.
- Fast terms: a few percent of the signal that have decayed at a b of 0.1 ms/um^2. They are blood
  flow in capillaries (intravoxel incoherent motion [1]_) or, where negative, unspoiled or flowing
  water that cancels signal.

References
----------
.. [1] Le Bihan et al., Radiology 168 (1988), https://doi.org/10.1148/radiology.168.2.3393671
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import f as variance_ratio

from dipy_spinverse.packed_cells.equivalent_pulses import PulsedMeasurements
from dipy_spinverse.voxels.status import FALSE_REJECTION_RATE

# Prior standard deviation of the logarithm of the asymmetry at the largest q; chosen by hand.
_ASYMMETRY_PRIOR_SD = 0.1
# Of the fast terms: diffusivity, um^2/ms, and prior standard deviation, relative to the signal
# (benchmarks/notes/real_data.md).
FAST_DIFFUSIVITY = 15.0
FAST_PRIOR_SD = 0.05
# Weighted measurements up to this b, ms/um^2, identify fast terms; measurements where less of a
# term remains are unaffected.
_FAST_B, _LEAST_DECAY = 0.1, 1e-3
# Logarithms of signals at a lower SNR are not used: their bias, 1 / (2 SNR^2), is 2 %.
_MIN_SNR = 5.0


class FastTerms(NamedTuple):
    """G fast terms, one for each timing and label.

    They affect measurements `rows` (R,), where a fraction `decay` of the term of index `term`
    remains. `identifiable` (G,) are those that weak weightings separate from the amplitude.
    """

    rows: np.ndarray
    decay: np.ndarray
    term: np.ndarray
    label: np.ndarray
    timing: np.ndarray
    identifiable: np.ndarray


_EMPTY = np.zeros(0, dtype=int)
NO_FAST_TERMS = FastTerms(_EMPTY, np.zeros(0), _EMPTY, _EMPTY, _EMPTY, np.zeros(0, dtype=bool))


def find_fast_terms(
    acquisition: PulsedMeasurements, labels: np.ndarray, used: np.ndarray, order: np.ndarray
) -> FastTerms:
    """Fast terms of an acquisition whose measurements are arranged in an order (M,)."""
    decay = np.exp(-FAST_DIFFUSIVITY * acquisition.b)
    rows, kinds = [], []
    for timing, label in np.unique(np.stack([acquisition.timing_index, labels]), axis=1).T:
        members = used & (acquisition.timing_index == timing) & (labels == label)
        weighted = members & ~acquisition.b0_mask
        affected = np.flatnonzero((members & (decay > _LEAST_DECAY))[order])
        if len(affected) and weighted.any():
            rows.append(affected)
            kinds.append((label, timing, (weighted & (acquisition.b < _FAST_B)).any()))
    if not rows:
        return NO_FAST_TERMS
    all_rows, term = np.concatenate(rows), np.repeat(np.arange(len(rows)), [*map(len, rows)])
    return FastTerms(
        all_rows, decay[order][all_rows], term, *map(np.array, zip(*kinds, strict=True))
    )


def fast_signals(
    fitted: PulsedMeasurements, acquisition: PulsedMeasurements, fractions: np.ndarray
) -> np.ndarray:
    """Fast signals (V, M) of an acquisition, from fractions (V, T) of the fitted timings."""
    decay = np.exp(-FAST_DIFFUSIVITY * acquisition.b)
    return fractions @ _same_timing(fitted, acquisition).T * decay


def polarity_factors(
    fitted: PulsedMeasurements, acquisition: PulsedMeasurements, asymmetry: np.ndarray
) -> np.ndarray:
    """Factors (V, M) of the signals of an acquisition, from coefficients (V, T * 6).

    Timings that were not fitted have no asymmetry.
    """
    return np.exp(asymmetry @ _asymmetry_design(fitted, acquisition).T)


def _same_timing(fitted, acquisition):
    """Whether measurements have a fitted timing (M, T)."""
    difference = np.abs(acquisition.timings[:, None] - fitted.timings).max(axis=2)
    return (difference < 1e-3)[acquisition.timing_index]


def _asymmetry_design(fitted, acquisition):
    """Design matrix (M, T * 6) of the odd part of the log signal: two vectors for each timing.

    Cross-terms with a constant gradient are proportional to q; an amplitude for each direction,
    by drift or eddy currents, appears as soon as the gradient is on.
    """
    is_on = 1 - np.exp(-FAST_DIFFUSIVITY * acquisition.b)
    sizes = np.stack([acquisition.q / max(fitted.q.max(), 1e-9), is_on], axis=1)
    vectors = (sizes[:, :, None] * acquisition.directions[:, None]).reshape(-1, 1, 6)
    same_timing = _same_timing(fitted, acquisition)
    return (same_timing[..., None] * vectors).reshape(len(acquisition), -1)


def polarity_asymmetry(
    acquisition: PulsedMeasurements, data: np.ndarray, sigma: np.ndarray
) -> np.ndarray:
    """Coefficients (V, T * 6) of :func:`polarity_factors`, from pairs of opposite directions.

    Signals of tissue are even in the direction, so that no model of it is needed. Coefficients are
    0 without such pairs, and where an F-test does not reject their absence with p < 0.001.
    """
    positive, negative = _opposite_pairs(acquisition)
    design = _asymmetry_design(acquisition, acquisition)
    design = design[positive] - design[negative]
    signals = np.stack([data[:, positive], data[:, negative]])
    noise = sigma[:, None] / np.sqrt(acquisition.n_averages[positive])
    clear = signals.min(axis=0) > _MIN_SNR * sigma[:, None]
    first, second = np.where(clear, signals, 1.0)
    # Inverse variances of the logarithms of ratios.
    weight = clear / (noise**2 * (1 / first**2 + 1 / second**2))
    log_ratio = np.log(first / second)
    precision = (design.T * weight[:, None]) @ design
    precision += np.eye(design.shape[1]) / _ASYMMETRY_PRIOR_SD**2
    coefficients = np.linalg.solve(precision, ((weight * log_ratio) @ design)[..., None])[..., 0]
    n_terms = np.linalg.matrix_rank(design) if len(design) else 0
    freedom = np.maximum(clear.sum(axis=1) - n_terms, 0)
    chi_square = (weight * (log_ratio - coefficients @ design.T) ** 2).sum(axis=1)
    decrease = (weight * log_ratio**2).sum(axis=1) - chi_square
    ratio = decrease * freedom / np.maximum(chi_square * n_terms, 1e-300)
    p_value = variance_ratio.sf(ratio, max(n_terms, 1), np.maximum(freedom, 1))
    return np.where(((freedom > 0) & (p_value < FALSE_REJECTION_RATE))[:, None], coefficients, 0.0)


def _opposite_pairs(acquisition):
    """Indices (2, P) of measurements of one timing and q in opposite directions."""
    vectors = (acquisition.q[:, None] * acquisition.directions).round(3)
    directed = ~acquisition.b0_mask & ~acquisition.isotropic & vectors.any(axis=1)
    rows, vectors = np.flatnonzero(directed), vectors[directed]
    first_nonzero = (vectors != 0).argmax(axis=1)[:, None]
    positive = np.take_along_axis(vectors, first_nonzero, axis=1)[:, 0] > 0
    axes = np.where(positive[:, None], vectors, -vectors)
    encoding = np.column_stack([acquisition.timing_index[rows], axes])
    group = np.unique(encoding, axis=0, return_inverse=True)[1].reshape(-1)
    # The k-th repetition of an encoding is paired with the k-th of the opposite one.
    polarity = 2 * group + positive
    order = np.argsort(polarity, kind="stable")
    repetition = np.empty(len(rows), dtype=int)
    repetition[order] = np.arange(len(rows)) - np.searchsorted(polarity[order], polarity[order])
    key = len(rows) * group + repetition
    _, plus, minus = np.intersect1d(key[positive], key[~positive], return_indices=True)
    pairs = np.sort([rows[positive][plus], rows[~positive][minus]], axis=0)
    return pairs[:, pairs[1].argsort()]
