"""Ranking of shells to add to an acquisition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from dipy.core.gradients import GradientTable

from dipy_spinverse.acquisition.base import measurement_columns
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.acquisition.waveforms import GYROMAGNETIC_RATIO
from dipy_spinverse.scan_design.bounds import map_bounds
from dipy_spinverse.scan_design.identifiability import validated_acquisition
from dipy_spinverse.units import diffusivity_um2_per_ms

# Of proposed candidates, chosen by hand: b = 0 per direction where a shell has its own echo time,
# time between the pulses for refocusing, and factors of b and Delta that make a difference.
_B0_PER_DIRECTION = 0.1
_MIN_GAP_MS = 3.0
_MIN_FACTOR = 1.15
_LONGER_DELTA = 1.5
_HIGHER_B = 1.6


@dataclass(frozen=True, eq=False)
class Suggestions:
    """Added shells, the most useful first; ``print`` them.

    Attributes
    ----------
    rows : tuple of dict
        "b" (ms/um^2), "small_delta", "big_delta" (ms), "gradient" (T/m), "measurements" added;
        "gain", the relative reduction of the bounds on standard deviations in the geometric mean
        over maps, and "gains", that of each map.
    """

    rows: tuple[dict, ...]

    def __str__(self) -> str:
        lines = ["b (ms/um^2)  delta  Delta (ms)  mT/m  added  bounds lower by  most"]
        for row in self.rows:
            best_map = max(row["gains"], key=row["gains"].get)
            lines.append(
                f"{row['b']:11.2f}{row['small_delta']:7.1f}{row['big_delta']:12.1f}"
                f"{1e3 * row['gradient']:6.0f}{row['measurements']:7d}{100 * row['gain']:15.0f} %"
                f"  {best_map} ({100 * row['gains'][best_map]:.0f} %)"
            )
        return "\n".join(lines)


def suggest(
    acquisition: Acquisition | GradientTable,
    candidates: Sequence[tuple[float, float, float]] | None = None,
    *,
    sigma: float = 0.02,
    diffusivity: float | None = None,
    free_diffusivity: float = 3e-3,
    n_draws: int = 150,
    seed: int = 0,
) -> Suggestions:
    """Rank shells by the reduction of the bounds of `identifiability`.

    An added shell takes the directions of the acquisition's largest, the shortest of its echo
    times that is long enough, or else a new one with some b = 0. The signal at b = 0 is
    taken to be the same at all echo times, although relaxation makes long ones worse.

    Parameters
    ----------
    acquisition : Acquisition or GradientTable
    candidates : sequence of (b, small_delta, big_delta), optional
        In ms/um^2 and ms. By default, with no more gradient than the acquisition has: its
        strongest shell again, for the gain of more averages; a longer and a shorter Delta;
        shorter pulses; a higher b and half of the largest.
    sigma, diffusivity, free_diffusivity, n_draws, seed
        As in :func:`dipy_spinverse.identifiability`.

    Returns
    -------
    Suggestions

    Raises
    ------
    ValueError
        Candidates that are not three positive numbers or overlapping pulses, and as
        `identifiability`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> directions = rng.normal(size=(20, 3))
    >>> directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    >>> acquisition = Acquisition(
    ...     b=[0, *[1.0] * 10, *[4.0] * 10], directions=np.vstack([np.zeros(3), directions]),
    ...     small_delta=8, big_delta=30)
    >>> best = suggest(acquisition, [(4, 8, 30), (4, 8, 80)], n_draws=60).rows[0]
    >>> best["big_delta"]
    80.0
    """
    acquisition = validated_acquisition(acquisition, sigma, n_draws)
    if candidates is None:
        candidates = _candidates(acquisition)
    shells = [_shell(acquisition, candidate) for candidate in candidates]
    if not shells:
        raise ValueError("candidates is empty; give some (b, small_delta, big_delta), or None.")
    everything = _joined([acquisition, *shells])
    block = np.repeat(np.arange(len(shells) + 1), [len(acquisition), *map(len, shells)])
    selections = (block == 0) | (block == np.arange(len(shells) + 1)[:, None])
    known = None if diffusivity is None else diffusivity_um2_per_ms("diffusivity", diffusivity)
    bounds = map_bounds(
        everything, selections, sigma, known,
        free_diffusivity=diffusivity_um2_per_ms("free_diffusivity", free_diffusivity),
        n_draws=n_draws, seed=seed,
    )  # fmt: skip
    return Suggestions(_ranked(shells, bounds))


def _ranked(shells, bounds):
    """Rows of shells, from bounds without and with each of them."""
    log_ratio = {
        name: np.log(bound.posterior_sd[1:] / bound.posterior_sd[0]).mean(axis=1)
        for name, bound in bounds.items()
    }
    mean = np.mean(list(log_ratio.values()), axis=0)
    rows = []
    for k in np.argsort(mean):
        weighted = np.flatnonzero(~shells[k].b0_mask)[0]
        rows.append(
            {
                "b": float(shells[k].b[weighted]),
                "small_delta": float(shells[k].small_delta[weighted]),
                "big_delta": float(shells[k].big_delta[weighted]),
                "gradient": float(shells[k].gradient_t_per_m[weighted]),
                "measurements": len(shells[k]),
                "gain": float(1 - np.exp(mean[k])),
                "gains": {name: float(1 - np.exp(ratio[k])) for name, ratio in log_ratio.items()},
            }
        )
    return tuple(rows)


def _candidates(acquisition):
    """Shells with no more gradient than the acquisition has."""
    rows = np.flatnonzero(~acquisition.b0_mask)
    b, small, big = acquisition.b[rows], acquisition.small_delta[rows], acquisition.big_delta[rows]
    gradient = acquisition.gradient_t_per_m[rows]

    def max_b(small_delta, big_delta):
        q = GYROMAGNETIC_RATIO * 1e-9 * gradient.max() * small_delta
        return q**2 * (big_delta - small_delta / 3)

    strongest, longest, pulse = b.argmax(), big.argmax(), small[gradient.argmax()]
    largest_b = b[strongest]
    candidates = [
        (largest_b, small[strongest], big[strongest]),
        (largest_b, small[longest], _LONGER_DELTA * big.max()),
        (min(largest_b, max_b(pulse / 2, big.min())), pulse / 2, big.min()),
        (largest_b / 2, small[strongest], big[strongest]),
    ]
    shorter = max(pulse + _MIN_GAP_MS, big.min() / 2)
    if shorter * _MIN_FACTOR < big.min():
        candidates.append((min(largest_b, max_b(pulse, shorter)), pulse, shorter))
    higher = min(_HIGHER_B * largest_b, max_b(small[longest], big.max()))
    if higher > _MIN_FACTOR * largest_b:
        candidates.append((higher, small[longest], big.max()))
    return candidates


def _shell(acquisition, candidate):
    values = np.asarray(candidate, dtype=float)
    if values.shape != (3,) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(
            f"candidates has {candidate!r}; give (b, small_delta, big_delta), positive numbers in "
            "ms/um^2 and ms."
        )
    b, small, big = values
    if b <= acquisition.b0_threshold or big < small:
        raise ValueError(
            f"candidates has b {b:g} ms/um^2, small_delta {small:g} and big_delta {big:g} ms; b "
            f"must be above the b0_threshold {acquisition.b0_threshold:g}, and big_delta at least "
            "small_delta."
        )
    directions = _largest_shell(acquisition)
    te = acquisition.echo_times[acquisition.echo_times >= big + small]
    n_b0 = 0 if te.size else max(1, round(_B0_PER_DIRECTION * len(directions)))
    return Acquisition(
        b=np.r_[np.zeros(n_b0), np.full(len(directions), b)],
        directions=np.vstack([np.zeros((n_b0, 3)), directions]),
        small_delta=small,
        big_delta=big,
        te=te[0] if te.size else big + small,
        b0_threshold=acquisition.b0_threshold,
    )


def _largest_shell(acquisition):
    rows = np.flatnonzero(~acquisition.b0_mask)
    keys = np.stack([acquisition.timing_index[rows], acquisition.b[rows].round(1)], axis=1)
    _, index, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    return acquisition.directions[rows[index.ravel() == counts.argmax()]]


def _joined(acquisitions):
    names = measurement_columns(Acquisition)
    arrays = {name: np.concatenate([getattr(a, name) for a in acquisitions]) for name in names}
    return Acquisition(**arrays, b0_threshold=acquisitions[0].b0_threshold)
