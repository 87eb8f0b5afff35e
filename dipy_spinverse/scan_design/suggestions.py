"""Which added shell would tell most about the walls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from dipy.core.gradients import GradientTable

from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.acquisition.waveforms import GYROMAGNETIC_RATIO
from dipy_spinverse.scan_design.bounds import CLASSES, map_bounds
from dipy_spinverse.scan_design.identifiability import validated_acquisition
from dipy_spinverse.units import diffusivity_um2_per_ms

_B0_SHARE = 0.1  # b = 0 per direction where a shell has an echo time of its own
_LEAST_GAP_MS = 3.0  # between the pulses, for the refocusing pulse
_WORTHWHILE = 1.15  # factor of b or Delta below which a shell would be much the same


@dataclass(frozen=True, eq=False)
class Suggestions:
    """Added shells, the most useful first; ``print`` them.

    Attributes
    ----------
    rows : tuple of dict
        "b" (ms/um^2), "small_delta", "big_delta" (ms), "gradient" (T/m), "measurements" added;
        "gain", by how much the bounds on the spreads go down in the geometric mean over maps
        (0.1: a tenth), and "gains", the same of each map.
    """

    rows: tuple[dict, ...]

    def table(self) -> list[dict]:
        """The rows."""
        return list(self.rows)

    def __str__(self) -> str:
        lines = ["b (ms/um^2)  delta  Delta (ms)  mT/m  added  bounds lower by  most"]
        for row in self.rows:
            most = max(row["gains"], key=row["gains"].get)
            lines.append(
                f"{row['b']:11.2f}{row['small_delta']:7.1f}{row['big_delta']:12.1f}"
                f"{1e3 * row['gradient']:6.0f}{row['measurements']:7d}{100 * row['gain']:15.0f} %"
                f"  {most} ({100 * row['gains'][most]:.0f} %)"
            )
        return "\n".join(lines)


def suggest(
    acquisition: Acquisition | GradientTable,
    candidates: Sequence[tuple[float, float, float]] | None = None,
    *,
    sigma: float = 0.02,
    diffusivity: float = 2e-3,
    free_diffusivity: float = 3e-3,
    free_water: bool = False,
    classes: tuple[str, ...] = CLASSES,
    n_draws: int = 150,
    seed: int = 0,
) -> Suggestions:
    """Rank shells by how much they would lower the bounds of `identifiability`.

    An added shell takes the directions of the acquisition's largest, the shortest of its echo
    times that is long enough, or else one of its own with some b = 0. The signal at b = 0 is
    taken to be the same at all echo times: relaxation speaks against long ones.

    Parameters
    ----------
    acquisition : Acquisition or GradientTable
    candidates : sequence of (b, small_delta, big_delta), optional
        In ms/um^2 and ms. By default, with no more gradient than the acquisition has: its
        strongest shell again, as the gain of scanning longer; a longer and a shorter Delta;
        shorter pulses; a higher b and half of the largest.
    sigma, diffusivity, free_diffusivity, free_water, classes, n_draws, seed
        As in :func:`dipy_spinverse.identifiability`.

    Returns
    -------
    Suggestions

    Raises
    ------
    ValueError
        Candidates that are not three positive numbers or cannot be played, and as
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
    acquisition = validated_acquisition(acquisition, sigma, classes, n_draws)
    if candidates is None:
        candidates = _candidates(acquisition)
    shells = [_shell(acquisition, candidate) for candidate in candidates]
    if not shells:
        raise ValueError("candidates is empty; give some (b, small_delta, big_delta), or None.")
    everything = _joined([acquisition, *shells])
    block = np.repeat(np.arange(len(shells) + 1), [len(acquisition), *map(len, shells)])
    selections = (block == 0) | (block == np.arange(len(shells) + 1)[:, None])
    bounds = map_bounds(
        everything,
        selections,
        sigma,
        diffusivity_um2_per_ms("diffusivity", diffusivity),
        free_diffusivity=diffusivity_um2_per_ms("free_diffusivity", free_diffusivity),
        free_water=free_water,
        classes=classes,
        n_draws=n_draws,
        seed=seed,
    )
    return Suggestions(_ranked(shells, bounds))


def _ranked(shells, bounds):
    """Rows of shells, from bounds without and with each of them."""
    log_left = {
        name: np.log(bound.posterior_sd[1:] / bound.posterior_sd[0]).mean(axis=1)
        for name, bound in bounds.items()
    }
    mean = np.mean(list(log_left.values()), axis=0)
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
                "gains": {name: float(1 - np.exp(left[k])) for name, left in log_left.items()},
            }
        )
    return tuple(rows)


def _candidates(acquisition):
    rows = np.flatnonzero(~acquisition.b0_mask)
    b, small, big = (x[rows] for x in (acquisition.b, acquisition.small_delta,
                                       acquisition.big_delta))  # fmt: skip
    gradient = acquisition.gradient_t_per_m[rows].max()
    strongest = np.argmax(b)
    largest, pulse = b[strongest], small[acquisition.gradient_t_per_m[rows].argmax()]

    def reach(small_delta, big_delta):
        q = GYROMAGNETIC_RATIO * 1e-9 * gradient * small_delta
        return min(largest, q**2 * (big_delta - small_delta / 3))

    longest = np.argmax(big)
    short = max(pulse + _LEAST_GAP_MS, big.min() / 2)
    found = [
        (largest, small[strongest], big[strongest]),
        (largest, small[longest], 1.5 * big.max()),
        (reach(pulse / 2, big.min()), pulse / 2, big.min()),
        (largest / 2, small[strongest], big[strongest]),
    ]
    if short * _WORTHWHILE < big.min():
        found.append((reach(pulse, short), pulse, short))
    q = GYROMAGNETIC_RATIO * 1e-9 * gradient * small[longest]
    higher = min(1.6 * largest, q**2 * (big.max() - small[longest] / 3))
    if higher > _WORTHWHILE * largest:
        found.append((higher, small[longest], big.max()))
    return found


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
    n_b0 = 0 if te.size else max(1, round(_B0_SHARE * len(directions)))
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


def _joined(parts):
    per_measurement = ("b", "directions", "small_delta", "big_delta", "te")
    arrays = {name: np.concatenate([getattr(p, name) for p in parts]) for name in per_measurement}
    return Acquisition(**arrays, b0_threshold=parts[0].b0_threshold)
