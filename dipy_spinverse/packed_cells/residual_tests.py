"""Tests of the residual: by shell, timing and direction, and against a model-free description."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import chi2

from dipy_spinverse.packed_cells.equivalent_pulses import EquivalentPulses, PulsedMeasurements
from dipy_spinverse.packed_cells.gaussian_process import GaussianProcess, Smoothing, smooth
from dipy_spinverse.packed_cells.likelihood import TissueData

# Shells of fewer measurements are tested together with the next; chosen by hand.
_MIN_SIZE = 12
# Squared cosines that separate directions along, oblique to and across the axis: thirds.
_ALONG, _ACROSS = 0.67, 0.33
# B-tensors of a larger anisotropy count as linear; chosen by hand.
_LINEAR = 0.5
_DIRECTIONS = ("along the axis", "oblique to the axis", "across the axis")
# A group rejects the model only if its residual exceeds the noise by this fraction of S0, or of
# its own signal; chosen by hand.
_LEAST_OF_S0, _LEAST_OF_SIGNAL = 0.01, 0.1
# Left-out measurements are compared where the model-free description has this freedom for each,
# and where there are so many; chosen by hand.
_LEAST_FREEDOM, _LEAST_COMPARED = 0.1, 8
_TINY = 1e-200


class ResidualGroups(NamedTuple):
    """Groups of measurements, timings and shells: names (G,) and members (G, M)."""

    names: tuple[str, ...]
    members: np.ndarray


class Residual(NamedTuple):
    """Residual of estimates, all (V, M): whitened, and as measured less `expected` signals.

    `inverse_sd` is that of independent errors, 0 for excluded measurements; the leverage is the
    diagonal of the hat matrix.
    """

    whitened: np.ndarray
    measured: np.ndarray
    inverse_sd: np.ndarray
    leverage: np.ndarray
    expected: np.ndarray


def residual_groups(acquisition: PulsedMeasurements, used: np.ndarray) -> ResidualGroups:
    """Groups of the measurements (M,) that are used."""
    names, members = [], []
    for k, (small, big, _) in enumerate(acquisition.timings):
        timing = f"delta {small:.3g} ms, Delta {big:.3g} ms"
        rows = np.flatnonzero((acquisition.timing_index == k) & used)
        rows = rows[np.argsort(acquisition.b[rows], kind="stable")]
        if len(acquisition.timings) > 1 and len(rows):
            names.append(timing)
            members.append(np.isin(np.arange(len(acquisition)), rows))
        shell = rows[:0]
        for same_b in np.split(rows, np.flatnonzero(np.diff(acquisition.b[rows].round(2))) + 1):
            shell = np.r_[shell, same_b]
            if len(shell) >= _MIN_SIZE:
                low, high = acquisition.b[shell].min(), acquisition.b[shell].max()
                b_range = f"{high:.3g}" if high - low < 0.05 else f"{low:.3g} to {high:.3g}"
                names.append(f"b {b_range} ms/um^2 at {timing}")
                members.append(np.isin(np.arange(len(acquisition)), shell))
                shell = rows[:0]
    if not names:
        names, members = ["all measurements"], [used]
    return ResidualGroups(tuple(names), np.stack(members))


def leverages(
    data: TissueData, signals: np.ndarray, amplitudes: np.ndarray, slopes: np.ndarray,
    voxel: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Diagonal (N, M) of the hat matrix of a fit with a standard-normal prior.

    At signals (N, M) with derivatives `slopes` (N, P, M) and amplitudes (N, L). Its trace is the
    effective number of unknowns.
    """
    terms = data.fast_terms
    by_amplitude = (data.labels == np.arange(data.n_labels)[:, None]) * signals[:, None]
    fast = np.zeros((len(terms.label), len(data.labels)))
    fast[terms.term, terms.rows] = terms.decay
    fast = np.broadcast_to(fast, (len(signals), *fast.shape))
    columns = [slopes * amplitudes[:, None, data.labels], by_amplitude, fast]
    whitened = np.concatenate(columns, axis=1) * data.inverse_sd[voxel][:, None]
    precision = np.full(whitened.shape[:2], _TINY)
    precision[:, : slopes.shape[1]] = 1
    precision[:, slopes.shape[1] + data.n_labels :] = data.fast_precision[voxel]
    information = whitened @ np.swapaxes(whitened, 1, 2)
    information += precision[..., None] * np.eye(whitened.shape[1])
    return (whitened * np.linalg.solve(information, whitened)).sum(axis=1)


def residual_tests(
    residual: Residual, groups: ResidualGroups, directions: np.ndarray, axes: np.ndarray,
    S0: np.ndarray,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Chi-squares and their degrees of freedom, and the size of the misfit.

    Of voxels with tissue axes (V, 3), for gradient directions (M, 3); the names are those of
    ``PackedCellsPosterior``.
    """
    used = residual.inverse_sd > 0
    freedom = used * (1 - residual.leverage)
    square = residual.whitened**2
    by_direction = _members_by_direction(directions, axes)
    group_chi_square, group_freedom = (
        np.hstack([x @ groups.members.T, np.einsum("vgm,vm->vg", by_direction, x)])
        for x in (square, freedom)
    )
    variance = used / np.where(used, residual.inverse_sd, 1.0) ** 2
    excess = used * residual.measured**2 - freedom * variance
    n = len(groups.names)
    sizes = np.maximum(groups.members.sum(axis=1), 1)
    group_excess = excess @ groups.members.T / sizes
    signal = np.sqrt(residual.expected**2 @ groups.members.T / sizes)
    least = np.minimum(_LEAST_OF_S0 * S0[:, None], _LEAST_OF_SIGNAL * signal)
    worst = _worst_group(group_chi_square[:, :n], group_freedom[:, :n], group_excess > least**2)
    mean_excess = excess.sum(axis=1) / used.sum(axis=1)
    return {
        "chi_square": square.sum(axis=1),
        "degrees_of_freedom": np.maximum(freedom.sum(axis=1), 1.0),
        "group_chi_square": group_chi_square,
        "group_degrees_of_freedom": group_freedom,
        "worst_reduced_chi_square": worst[0],
        "worst_degrees_of_freedom": worst[1],
        "misfit_percent": 100 * np.sqrt(np.maximum(mean_excess, 0)) / S0,
    }


def _worst_group(chi_square, freedom, relevant):
    """Reduced chi-square and degrees of freedom (V,) of the least probable group (V, G).

    Of the relevant ones; 0 and 1 without any.
    """
    freedom = np.maximum(freedom, _TINY)
    p_value = np.where(relevant, chi2.logsf(chi_square, freedom), np.inf)
    index = p_value.argmin(axis=1)[:, None]
    chi_square, freedom, relevant = (
        np.take_along_axis(values, index, axis=1)[:, 0]
        for values in (chi_square, freedom, relevant)
    )
    return np.where(relevant, chi_square / freedom, 0.0), np.where(relevant, freedom, 1.0)


def left_out_comparison(
    residual: Residual, process: GaussianProcess, smoothing: Smoothing
) -> dict[str, np.ndarray]:
    """How well measurements that are left out are predicted, compared with the `smoothing` (V, M).

    `left_out_ratio` (V,) is the error of the model over that of a model-free description, of the
    signals or of the errors of the model, whichever predicts better; `left_out_significance` (V,)
    is the mean difference of their squares over its standard error. Both are 0 where the
    description leaves hardly any degrees of freedom.
    """
    used = residual.inverse_sd > 0
    error = used * residual.measured / np.maximum(1 - residual.leverage, _LEAST_FREEDOM)
    compared = used & (smoothing.freedom > _LEAST_FREEDOM)
    errors = error, smoothing.left_out_error, smooth(process, error).left_out_error
    squares = np.stack([np.where(compared, x * residual.inverse_sd, 0.0) ** 2 for x in errors])
    best = 1 + squares[1:].sum(axis=2).argmin(axis=0)
    model, model_free = squares[0], squares[best, np.arange(len(best))]
    count = compared.sum(axis=1)
    enough, count = count >= _LEAST_COMPARED, np.maximum(count, 1)
    difference = model - model_free
    mean = difference.sum(axis=1) / count
    variance = (difference**2).sum(axis=1) / count - mean**2
    ratio = np.sqrt(model.sum(axis=1) / np.maximum(model_free.sum(axis=1), _TINY))
    significance = mean / np.sqrt(np.maximum(variance, _TINY) / count)
    return {
        "left_out_ratio": np.where(enough, ratio, 0.0),
        "left_out_significance": np.where(enough, significance, 0.0),
    }


def gradient_axes(acquisition: PulsedMeasurements) -> np.ndarray:
    """Directions (M, 3) of linear encodings; zeros of planar and spherical ones."""
    if isinstance(acquisition, EquivalentPulses):
        return acquisition.directions * (acquisition.b_anisotropy > _LINEAR)[:, None]
    return acquisition.directions


def _members_by_direction(directions, axes):
    """Members (V, 3, M) along, oblique to and across axes (V, 3)."""
    square = (axes @ directions.T) ** 2
    directed = (np.abs(directions).sum(axis=1) > 0) & (np.abs(axes).sum(axis=1) > 0)[:, None]
    ranges = (square > _ALONG, (square <= _ALONG) & (square > _ACROSS), square <= _ACROSS)
    return np.stack([in_range & directed for in_range in ranges], axis=1)


def describe_residual(names, chi_square: np.ndarray, freedom: np.ndarray) -> str:
    """Groups (G,) of one voxel whose residual exceeds the noise, the least probable first."""
    names = (*names, *_DIRECTIONS)
    tested = freedom > 0.5
    positive = np.maximum(freedom, 1e-9)
    reduced = chi_square / positive
    p_values = np.where(tested, chi2.sf(chi_square, positive), 1.0) * tested.sum()
    order = np.argsort(np.where(tested, chi2.logsf(chi_square, positive), 0))
    rejected = [k for k in order if p_values[k] < 1e-3]
    if not rejected:
        k = order[0]
        return (
            "The residual is consistent with noise; the largest reduced chi-square is "
            f"{reduced[k]:.2f} ({names[k]})."
        )
    descriptions = [f"{names[k]}: {reduced[k]:.2f}" for k in rejected[:4]]
    return "Reduced chi-square of residuals beyond noise: " + "; ".join(descriptions) + "."
