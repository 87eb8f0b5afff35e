"""Checks of the numbers an `Acquisition` is made of; all in ms and ms/um^2."""

from __future__ import annotations

import numpy as np

from dipy_spinverse.units import S

TE_SLACK_MS = 5e-3  # TE, Delta and delta are often written with microsecond digits
_DIRECTION_TOLERANCE = 1e-2  # of the length; DIPY's `atol` for unit vectors
_TENSOR_TOLERANCE = 1e-6  # of a b-tensor's largest element; float32 has 7 digits
_LARGEST_B = 500.0  # ms/um^2; no tissue signal is left there, so it is a b in s/mm^2
_SHORTEST_PULSE_MS = 1e-3  # no amplifier switches faster
LONGEST_MS = 1e4  # no encoding lasts longer: T1 of water is 3 s
_SMALLEST_BIG_DELTA_MS = 0.5  # less than gradient coils can do, more than a few ms in seconds
# s; no encoding lasts longer (T1 of water is 3 s), so larger numbers are ms
_LONGEST_SECONDS = {"small_delta": 1.0, "big_delta": 3.0, "te": 3.0, "mixing_time": 3.0}


def numeric(name: str, value) -> np.ndarray:
    """`value` as float64, or a ValueError that names the argument."""
    try:
        if np.iscomplexobj(value):
            raise TypeError("complex")
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{name} is {shortened(value)}; it must be a number or an array of numbers."
        ) from error


def shortened(value, width: int = 60) -> str:
    """What a value looks like, on one line of a message."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= width else f"{text[:width]} ..."


def seconds_to_ms(name: str, value) -> np.ndarray:
    """Seconds as ms; refuses what is missing and what can only be milliseconds already."""
    if value is None:
        raise ValueError(
            f"{name} is None, but the timing of the pulses is needed. Give big_delta and "
            "small_delta in seconds, for instance gradient_table(bvals, bvecs=bvecs, "
            "big_delta=0.043, small_delta=0.011) or Acquisition.from_files(bvals, bvecs, "
            "big_delta=0.043, small_delta=0.011)."
        )
    seconds = numeric(name, value)
    if np.any(seconds > _LONGEST_SECONDS[name]):
        raise ValueError(
            f"{name} is {seconds.max():g} s, which looks like milliseconds. Give seconds: "
            f"divide by 1000."
        )
    return seconds * S


def weighting(bvals, b0_threshold: float) -> np.ndarray:
    """b-values, both in s/mm^2; refuses those that are all b0, but not zero."""
    bvals = numeric("bvals", bvals)
    if bvals.size and 0 < bvals.max() <= b0_threshold:
        raise ValueError(
            f"bvals reach only {bvals.max():g}, b0_threshold is {b0_threshold:g}: nothing is "
            "diffusion weighted. Give b-values in s/mm^2, or a lower b0_threshold."
        )
    return bvals


def linear_encoding(gtab) -> None:
    """Refuses a DIPY gradient table whose b-tensors are not along one direction."""
    if gtab.btens is None:
        return
    tensors = numeric("gtab.btens", gtab.btens)
    if tensors.shape != (len(gtab.bvals), 3, 3) or not np.isfinite(tensors).all():
        raise ValueError(
            f"gtab.btens has shape {tensors.shape}, or values that are not finite; give "
            f"({len(gtab.bvals)}, 3, 3), or None."
        )
    symmetric_tensors("gtab.btens", tensors)
    largest = np.linalg.eigvalsh(tensors)[:, -1]
    trace = np.trace(tensors, axis1=1, axis2=2)
    _raise_where(
        (largest < 0.99 * trace) & ~gtab.b0s_mask,
        "gtab.btens has a b-tensor with trace / largest eigenvalue which",
        trace / np.where(largest > 0, largest, 1),
        "",
        "be 1, linear encoding (LTE)",
        "Leave these measurements out, or simulate them from their gradients: "
        "WaveformAcquisition.from_samples.",
    )


def symmetric_tensors(name: str, tensors: np.ndarray) -> None:
    """Refuses b-tensors (M, 3, 3) that are not symmetric."""
    apart = np.abs(tensors - np.swapaxes(tensors, 1, 2)).max(axis=(1, 2))
    bad = apart > _TENSOR_TOLERANCE * np.abs(tensors).max(axis=(1, 2))
    if bad.any():
        m = int(np.argmax(bad))
        raise ValueError(
            f"{name} is not symmetric at measurement {m} (off by {apart[m]:.3g}); a b-tensor is "
            "an integral of q q^T. Correct it."
        )


def gradients(b, directions) -> tuple[np.ndarray, np.ndarray]:
    """b (M,) in ms/um^2 and directions (M, 3), one value or vector repeated for all."""
    b, directions = numeric("b", b), numeric("directions", directions)
    if b.ndim == 0 and directions.ndim == 2:
        b = np.full(len(directions), b)
    b = np.atleast_1d(b)
    if directions.shape == (3,):
        directions = np.tile(directions, (b.size, 1))
    if b.ndim != 1 or b.size == 0 or directions.shape != (b.size, 3):
        raise ValueError(
            f"b and directions have shapes {b.shape} and {directions.shape}; give one value and "
            "one unit vector per measurement, shapes (M,) and (M, 3)."
        )
    _raise_where(~np.isfinite(b) | (b < 0), "b", b, "ms/um^2", "be finite and >= 0", "Correct it.")
    if b.max() > _LARGEST_B:
        raise ValueError(
            f"b is {b.max():g} ms/um^2, which looks like s/mm^2. Divide s/mm^2 by 1000 for "
            "Acquisition(b=...); gradient tables and .bval files are in s/mm^2."
        )
    return b, directions


def flags(name: str, value, size: int) -> np.ndarray:
    """Bool (size,) from one or one per measurement, as bool or as 0 and 1."""
    numbers = numeric(name, value)
    if numbers.shape not in ((), (1,), (size,)) or not np.isin(numbers, (0, 1)).all():
        raise ValueError(
            f"{name} has shape {numbers.shape} for {size} measurements, or other values than "
            "True and False; give one for all, or one per measurement."
        )
    return np.broadcast_to(numbers, (size,)).astype(bool)


def single_directions(isotropic: np.ndarray) -> None:
    """Refuses averages over directions."""
    if isotropic.any():
        raise ValueError(
            f"acquisition has averages over directions (isotropic) at {isotropic.sum()} of "
            f"{len(isotropic)} measurements, which have no wave vector of their own: walls on a "
            "grid need measurements of single directions. PackedCellsModel and compartment models "
            "take averages."
        )


def unit_directions(directions, b: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Exact unit vectors (M, 3), zeros where `without` a direction."""
    directions = directions.copy()
    directions[without] = 0
    norm = np.linalg.norm(directions, axis=1)
    _raise_where(
        ~without & (norm == 0),
        "directions has a zero vector; b",
        b,
        "ms/um^2",
        "be 0 without a direction",
        "Give the direction, or isotropic=True if this is an average over directions, or raise "
        "b0_threshold if it is a b0.",
    )
    _raise_where(
        ~without & ~(np.abs(norm - 1) <= _DIRECTION_TOLERANCE),
        "directions has a vector that is not unit; its length",
        norm,
        "",
        f"be 1 to {_DIRECTION_TOLERANCE:g}",
        "Normalise it: b already holds the strength.",
    )
    return directions / np.where(without, 1, norm)[:, None]


def per_measurement(name: str, value, size: int) -> np.ndarray:
    """A time in ms as (size,), from one number or one per measurement."""
    if value is None:
        raise ValueError(f"{name} is None; give it in ms, as one number or one per measurement.")
    times = numeric(name, value)
    times = times.reshape(()) if times.size == 1 else times
    if times.shape not in ((), (size,)):
        raise ValueError(
            f"{name} has shape {times.shape} for {size} measurements; give one number or one per "
            "measurement. (A sliced gtab keeps its full-length deltas: build the Acquisition "
            "from the whole gtab and use Acquisition.subset.)"
        )
    times = np.broadcast_to(times, (size,)).copy()
    bad = ~np.isfinite(times) | (times < 0) | (times > LONGEST_MS)
    need = f"be at least 0 and at most {LONGEST_MS:g}"
    _raise_where(bad, name, times, "ms", need, "Correct it, or its unit.")
    return times


def lend_timing(small, big, te, mixing, b0) -> tuple[np.ndarray, np.ndarray]:
    """Pulse timings with those of b0 measurements without pulses taken from the same echo.

    Only TE and TM matter for the signal without a gradient, so any measurement with them will do.
    """
    idle = b0 & ((small == 0) | (big == 0))
    if not idle.any():
        return small, big
    small, big = small.copy(), big.copy()
    for m in np.flatnonzero(idle):
        same = ~idle & (np.abs(mixing - mixing[m]) <= TE_SLACK_MS)
        if te is not None:
            same &= np.abs(te - te[m]) <= TE_SLACK_MS
        if not same.any():
            at = "" if te is None else f" with its te of {te[m]:g} ms"
            at += f" and mixing_time of {mixing[m]:g} ms" if mixing.any() else ""
            raise ValueError(
                f"big_delta and small_delta are {big[m]:g} and {small[m]:g} ms at b0 measurement "
                f"{m}, and no other measurement{at} has the timing to use. Give its deltas."
            )
        lender = np.argmax(same)
        small[m], big[m] = small[lender], big[lender]
    return small, big


def echo_time(small, big, te, mixing) -> np.ndarray:
    """TE (M,) in ms, after checks that pulses and storage fit into it and each other."""
    for name, times in (("small_delta", small), ("big_delta", big)):
        _raise_where(times <= 0, name, times, "ms", "be > 0", "Give the timing of the pulses.")
    _raise_where(
        small < _SHORTEST_PULSE_MS,
        "small_delta",
        small,
        "ms",
        f"be at least {_SHORTEST_PULSE_MS:g}",
        "Give the duration of a pulse in ms for Acquisition(small_delta=...), in seconds in "
        "gradient tables and files.",
    )
    if big.max() < _SMALLEST_BIG_DELTA_MS:
        raise ValueError(
            f"big_delta is {big.max():g} ms at most, which looks like seconds. Multiply seconds "
            "by 1000 for Acquisition(big_delta=...); gradient tables and files are in seconds."
        )
    _raise_where(
        big < small * (1 - 1e-9),
        "big_delta - small_delta",
        big - small,
        "ms",
        "be >= 0",
        "big_delta runs from the start of one pulse to the start of the next; are they swapped?",
    )
    _raise_where(
        mixing > big - small + TE_SLACK_MS,
        "mixing_time - (big_delta - small_delta)",
        mixing - (big - small),
        "ms",
        "be <= 0",
        "The magnetisation is stored between the two pulses; check the three times and their "
        "units. A spin echo has no mixing_time.",
    )
    shortest = big + small - mixing
    if te is None:
        # A TE of each timing's own would be a guess, on which its signal without diffusion rests.
        return np.full_like(shortest, shortest.max())
    _raise_where(
        te < shortest - TE_SLACK_MS,
        "te - (big_delta + small_delta - mixing_time)",
        te - shortest,
        "ms",
        "be >= 0",
        "Both pulses must end before the echo; check the times and their units. te is the time "
        "during which the magnetisation is transverse: for a stimulated echo, give the time "
        "during which it is stored as mixing_time (TM).",
    )
    return np.maximum(te, shortest)


def _raise_where(bad, name, values, unit, need, cure):
    if not np.any(bad):
        return
    first = int(np.argmax(bad))
    others = np.count_nonzero(bad) - 1
    more = f" (and {others} more)" if others else ""
    value = f"{values[first]:g} {unit}".rstrip()
    raise ValueError(f"{name} is {value} at measurement {first}{more}; it must {need}. {cure}")
