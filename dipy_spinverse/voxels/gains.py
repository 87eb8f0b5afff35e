"""b0 of different pulse timings: other echo times or gains than the acquisition states."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import f as f_distribution

from dipy_spinverse.acquisition import Acquisition
from dipy_spinverse.user_warnings import warn
from dipy_spinverse.voxels.status import FALSE_REJECTION_RATE

# Of gains of pulse timings (sd), which change the maps by less than noise; by hand.
_LEAST_GAIN = 0.005
# Without repeated b0 or known noise, above what noise does at any useful signal-to-noise ratio; by
# hand.
_LEAST_WITHOUT_REPEATS = 0.3
_MANY = 1e9  # degrees of freedom of known noise


def warn_of_gains(signals: np.ndarray, acquisition: Any, sigma: np.ndarray | None = None) -> None:
    """Warn if b0 that share an S0, of signals (V, M), differ between pulse timings.

    An F-test of all voxels together, of their variances between and within timings; without
    repeats within, of the noise (V,), if it is known.
    """
    if not isinstance(acquisition, Acquisition) or not (
        len(signals) and acquisition.b0_mask.any()
    ):
        return
    pairs = np.column_stack([acquisition.te_index, acquisition.timing_index])
    timings = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    per_timing = acquisition.with_labels(timings).repeated_b0
    square = signals[:, acquisition.b0_mask].mean(axis=1) ** 2
    total, within = (
        sum(group.sum() * (signals[:, group].var(axis=1) / square).sum() for group in groups)
        for groups in (acquisition.repeated_b0, per_timing)
    )
    n_groups = len(per_timing) - len(acquisition.repeated_b0)
    freedom = len(signals) * (acquisition.b0_mask.sum() - len(per_timing))
    if n_groups == 0:
        return
    between = (total - within) / (len(signals) * n_groups)
    if freedom == 0 and sigma is not None:
        freedom, within = _MANY, _MANY * (sigma**2 / square).mean()
    within /= max(freedom, 1)
    gain = np.sqrt(max(between - within, 0) * len(per_timing) / acquisition.b0_mask.sum())
    ratio = between / max(within, 1e-12)
    p_value = f_distribution.sf(ratio, len(signals) * n_groups, max(freedom, 1))
    significant = gain > _LEAST_GAIN and p_value < FALSE_REJECTION_RATE
    if significant if freedom else gain > _LEAST_WITHOUT_REPEATS:
        warn(
            f"b0 of different pulse timings differ by about {100 * gain:.2g} % (sd), more than "
            "noise explains: maps that depend on the diffusion time are biased, noise is "
            "overestimated. If their echo times differ, give te; if their gains do, "
            'amplitudes="timing" (--amplitudes timing), an S0 of each.'
        )
