"""Validation of the arguments of acquisitions, in ms and ms/um^2."""

from __future__ import annotations

import reprlib

import numpy as np
from dipy.core.gradients import GradientTable

from dipy_spinverse.units import MS_PER_UM2, S

# Limits that no measurement of tissue water reaches: values beyond them have another unit.
TE_SLACK_MS = 5e-3  # rounding of TE, Delta and delta, often written with microsecond digits
LONGEST_MS = 1e4  # more than twice T1 of free water (3 to 4 s)
_LARGEST_B = 500.0  # ms/um^2; attenuates D = 0.1 um^2/ms by e^-50
_SHORTEST_PULSE_MS = 1e-3  # below the rise time of any gradient amplifier
_SMALLEST_BIG_DELTA_MS = 0.5  # below what gradient coils reach; in seconds it would be 500 ms
_DIRECTION_TOLERANCE = 1e-2  # of the length; DIPY's `atol` of gradient_table
_SYMMETRY_TOLERANCE = 1e-6  # relative to the largest element; float32 has 7 digits
_NEGATIVE_TOLERANCE = 1e-3  # of the trace; b-tensors in files have three digits
_LINEAR = 0.99  # largest eigenvalue over trace of linear encoding; b-tensors have rounding errors
# s; ten T2 and T1 of tissue (0.08 and 1 s at 3 T), after which no signal is left, or below: larger
# numbers are ms
_LONGEST_SECONDS = {"small_delta": 0.5, "big_delta": 2.0, "te": 1.0, "mixing_time": 2.0}


def numeric(name: str, value) -> np.ndarray:
    """`value` as float64, or a ValueError that names the argument."""
    try:
        if np.iscomplexobj(value) or np.asarray(value).dtype == bool:
            raise TypeError("complex or bool")
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{name} is {shortened(value)}; it must be a number or an array of numbers."
        ) from error


def shortened(value) -> str:
    """`repr` of a value in one line of at most 60 characters."""
    bounded = reprlib.Repr()  # of nested aliases of YAML, whose repr does not end
    bounded.maxlevel, bounded.maxstring, bounded.maxother = 3, 80, 80
    try:
        text = " ".join(bounded.repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]} ..."


def seconds_to_ms(name: str, value) -> np.ndarray:
    """Convert seconds to ms; refuse None and values that can only be ms."""
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


def gradient_table(name: str, gtab) -> None:
    """Refuse what is no gradient table of DIPY."""
    if not isinstance(gtab, GradientTable):
        raise ValueError(
            f"{name} is a {type(gtab).__name__}; give an Acquisition, or a GradientTable with "
            "big_delta and small_delta."
        )


def threshold(value) -> float:
    """The largest b of b0 measurements."""
    number = numeric("b0_threshold", value)
    if number.ndim or not 0 <= number < np.inf:
        raise ValueError(f"b0_threshold is {shortened(value)}; it must be one finite b >= 0.")
    return float(number)


def linear_encoding(gtab) -> None:
    """Refuse a DIPY gradient table with b-tensors other than linear."""
    gradient_table("gtab", gtab)
    if gtab.btens is None:
        return
    tensors = numeric("gtab.btens", gtab.btens)
    if tensors.shape != (len(gtab.bvals), 3, 3) or not np.isfinite(tensors).all():
        raise ValueError(
            f"gtab.btens has shape {tensors.shape} or non-finite values; give finite "
            f"({len(gtab.bvals)}, 3, 3), or None."
        )
    symmetric_tensors("gtab.btens", tensors)
    largest, trace = np.linalg.eigvalsh(tensors)[:, -1], np.trace(tensors, axis1=1, axis2=2)
    ratio = trace / np.where(largest > 0, largest, 1)
    bad = (largest < _LINEAR * trace) & ~gtab.b0s_mask
    raise_where(bad, "gtab.btens: trace / largest eigenvalue", ratio, "",
                "be 1 (linear encoding, LTE). Omit these measurements, or give their gradients: "
                "WaveformAcquisition.from_samples.")  # fmt: skip


def symmetric_tensors(name: str, tensors: np.ndarray) -> None:
    """Refuse b-tensors (M, 3, 3) that are not symmetric."""
    asymmetry = np.abs(tensors - np.swapaxes(tensors, 1, 2)).max(axis=(1, 2))
    bad = asymmetry > _SYMMETRY_TOLERANCE * np.abs(tensors).max(axis=(1, 2))
    raise_where(bad, f"{name} is not symmetric: its asymmetry", asymmetry, "",
                "be 0. A b-tensor is an integral of q q^T. Correct it.")  # fmt: skip


def b_tensors(name: str, value) -> np.ndarray:
    """Symmetric, positive semidefinite b-tensors (M, 3, 3)."""
    tensors = numeric(name, value)
    shaped = tensors.ndim == 3 and tensors.shape[1:] == (3, 3) and len(tensors) > 0
    if not shaped or not np.isfinite(tensors).all():
        raise ValueError(f"{name} has shape {tensors.shape}; give finite (M, 3, 3), in ms/um^2.")
    symmetric_tensors(name, tensors)
    lowest, trace = np.linalg.eigvalsh(tensors)[:, 0], np.trace(tensors, axis1=1, axis2=2)
    bad = lowest < -_NEGATIVE_TOLERANCE * np.maximum(trace, 1e-6)
    raise_where(bad, f"the lowest eigenvalue of {name}", lowest, "ms/um^2",
                "be >= 0. A b-tensor is an integral of q q^T. Correct it.")  # fmt: skip
    return tensors


def gradients(b, directions) -> tuple[np.ndarray, np.ndarray]:
    """b (M,) in ms/um^2 and directions (M, 3), from one or M values and vectors."""
    b, directions = numeric("b", b), numeric("directions", directions)
    if b.ndim == 0 and directions.ndim == 2:
        b = np.full(len(directions), b)
    b = np.atleast_1d(b)
    if directions.shape == (3,):
        directions = np.tile(directions, (b.size, 1))
    if b.ndim != 1 or b.size == 0 or directions.shape != (b.size, 3):
        raise ValueError(
            f"b and directions have shapes {b.shape} and {directions.shape}; give one value and "
            "one unit vector per measurement, shapes (M,) and (M, 3); transpose rows of x, y, z."
        )
    raise_where(~np.isfinite(b) | (b < 0), "b", b, "ms/um^2", "be finite and >= 0. Correct it.")
    if b.max() > _LARGEST_B:
        unit, factor = ("s/m^2", "1e9") if b.max() > 1e3 * _LARGEST_B else ("s/mm^2", "1000")
        raise ValueError(
            f"b is {b.max():g} ms/um^2, which looks like {unit}. Divide it by {factor}; or give "
            "b-values in s/mm^2 to gradient_table or Acquisition.from_files."
        )
    return b, directions


def bvals(values: np.ndarray) -> None:
    """Refuse b-values that cannot be s/mm^2."""
    if values.max(initial=0) > MS_PER_UM2 * _LARGEST_B:
        raise ValueError(
            f"bvals reach {values.max():g}, which cannot be s/mm^2; they look like s/m^2. Divide "
            "them by 1e6."
        )


def flags(name: str, value, size: int) -> np.ndarray:
    """Booleans (size,) from one or `size` values that are bool, 0 or 1."""
    is_bool = np.asarray(value).dtype == bool
    numbers = _one_or_each(name, np.multiply(value, 1) if is_bool else value, size)
    raise_where(~np.isin(numbers, (0, 1)), name, numbers, "", "be True or False.")
    return numbers.astype(bool)


def counts(name: str, value, size: int) -> np.ndarray:
    """Whole numbers (size,) of at least 1, from one or `size` of them."""
    numbers = _one_or_each(name, value, size)
    bad = ~((numbers >= 1) & (numbers == np.round(numbers)) & np.isfinite(numbers))
    raise_where(bad, name, numbers, "", "be a whole number of at least 1, that of the magnitudes "
                "of which the measurement is the mean.")  # fmt: skip
    return numbers.astype(int)


def is_unit(directions: np.ndarray) -> np.ndarray:
    """Whether (M,) vectors (M, 3) have length 1 within the tolerance."""
    return np.abs(np.linalg.norm(directions, axis=1) - 1) <= _DIRECTION_TOLERANCE


def unit_directions(directions, b: np.ndarray, undirected: np.ndarray) -> np.ndarray:
    """Exact unit vectors (M, 3), zeros where `undirected`."""
    directions = directions.copy()
    directions[undirected] = 0
    norm = np.linalg.norm(directions, axis=1)
    raise_where(~undirected & (norm == 0), "directions has a zero vector; b", b, "ms/um^2",
                "be 0 where there is no direction. Give the direction, or isotropic=True if this "
                "is an average over directions, or raise b0_threshold if it is "
                "a b0.")  # fmt: skip
    raise_where(~undirected & ~is_unit(directions),
                "directions has a vector that is not a unit vector; its length", norm, "",
                f"be 1 to {_DIRECTION_TOLERANCE:g}. Normalise it; b defines the "
                "weighting.")  # fmt: skip
    return directions / np.where(undirected, 1, norm)[:, None]


def per_measurement(name: str, value, size: int) -> np.ndarray:
    """Times (size,) in ms, from one number or one per measurement."""
    if value is None:
        raise ValueError(f"{name} is None; give it in ms, as one number or one per measurement.")
    times = _one_or_each(name, value, size)
    bad = ~np.isfinite(times) | (times < 0) | (times > LONGEST_MS)
    bounds = f"be at least 0 and at most {LONGEST_MS:g}. Correct it, or its unit."
    raise_where(bad, name, times, "ms", bounds)
    return times


def _one_or_each(name, value, size):
    """Numbers (size,) from one for all or one per measurement."""
    numbers = numeric(name, value)
    if numbers.size != 1 and numbers.shape != (size,):
        raise ValueError(
            f"{name} has shape {numbers.shape} for {size} measurements; give one number or one "
            "per measurement. (A sliced gtab keeps the deltas of the full one: convert the full "
            "gtab and use Acquisition.subset.)"
        )
    return np.broadcast_to(numbers.reshape(-1), (size,)).copy()


def fill_b0_timing(small, big, te, mixing, b0) -> tuple[np.ndarray, np.ndarray]:
    """Assign b0 measurements without pulses the timing of a measurement of the same TE and TM.

    The signal without a gradient depends on TE and TM only.
    """
    missing = b0 & ((small == 0) | (big == 0))
    small, big = small.copy(), big.copy()
    for m in np.flatnonzero(missing):
        matching = ~missing & (np.abs(mixing - mixing[m]) <= TE_SLACK_MS)
        if te is not None:
            matching &= np.abs(te - te[m]) <= TE_SLACK_MS
        if not matching.any():
            at = "" if te is None else f" with its te of {te[m]:g} ms"
            at += f" and mixing_time of {mixing[m]:g} ms" if mixing.any() else ""
            raise ValueError(
                f"big_delta and small_delta are {big[m]:g} and {small[m]:g} ms at b0 measurement "
                f"{m}, and no other measurement{at} has the timing to use. Give its deltas."
            )
        source = np.argmax(matching)
        small[m], big[m] = small[source], big[source]
    return small, big


def echo_time(small, big, te, mixing) -> np.ndarray:
    """TE (M,) in ms, after checks that pulses and storage fit into it."""
    for name, times in (("small_delta", small), ("big_delta", big)):
        raise_where(times <= 0, name, times, "ms", "be > 0. Give the timing of the pulses.")
    raise_where(small < _SHORTEST_PULSE_MS, "small_delta", small, "ms",
                f"be at least {_SHORTEST_PULSE_MS:g}. Give the duration of a pulse in ms for "
                "Acquisition(small_delta=...), in seconds in gradient tables and "
                "files.")  # fmt: skip
    if big.max() < _SMALLEST_BIG_DELTA_MS:
        raise ValueError(
            f"big_delta is {big.max():g} ms at most, which looks like seconds. Multiply seconds "
            "by 1000 for Acquisition(big_delta=...); gradient tables and files are in seconds."
        )
    between = big - small
    raise_where(big < small * (1 - 1e-9), "big_delta - small_delta", between, "ms",
                "be >= 0. big_delta runs from the start of one pulse to the start of the next; "
                "are they swapped?")  # fmt: skip
    raise_where(mixing > between + TE_SLACK_MS, "mixing_time - (big_delta - small_delta)",
                mixing - between, "ms",
                "be <= 0. The magnetisation is stored between the two pulses; check the three "
                "times and their units. A spin echo has no mixing_time.")  # fmt: skip
    shortest = big + small - mixing
    if te is None:
        # One for all: different echo times would each have their own signal at b = 0.
        return np.full_like(shortest, shortest.max())
    raise_where(te < shortest - TE_SLACK_MS, "te - (big_delta + small_delta - mixing_time)",
                te - shortest, "ms",
                "be >= 0. Both pulses must end before the echo; check the times and their units. "
                "te is the time during which the magnetisation is transverse: for a stimulated "
                "echo, give the time during which it is stored as mixing_time (TM).")  # fmt: skip
    return np.maximum(te, shortest)


def raise_where(bad, name: str, values, unit: str, requirement: str) -> None:
    """Refuse `values` (M,) where `bad` (M,); `requirement` completes "it must ..."."""
    if np.any(bad):
        m, n_bad = int(np.argmax(bad)), np.count_nonzero(bad)
        at = f"measurement {m}" + (f" (and {n_bad - 1} more)" if n_bad > 1 else "")
        value = f"{values[m]:g} {unit}".rstrip()
        raise ValueError(f"{name} is {value} at {at}; it must {requirement}")
