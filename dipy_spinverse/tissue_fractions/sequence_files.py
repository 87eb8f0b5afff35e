"""Sequences from dictionaries and BIDS sidecars, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args

from dipy_spinverse.acquisition.checks import shortened
from dipy_spinverse.tissue_fractions.sequences import InversionPreparation, Preparation, Sequence
from dipy_spinverse.tissue_fractions.tissues import FIELDS
from dipy_spinverse.user_warnings import warn

_SEQUENCES = {kind.__name__: kind for kind in get_args(Sequence)}
_PREPARATIONS = {kind.__name__: kind for kind in get_args(Preparation)}


def sequence_from(description: Mapping[str, Any], **overrides: Any) -> Sequence:
    """Sequence from a dictionary, for instance of JSON or YAML, or from a BIDS sidecar.

    Parameters
    ----------
    description : mapping
        Either "type" (`SpoiledGradientEcho`, `MPRAGE`, `TurboSpinEcho` or `PulseqFile`) and the
        arguments of the class, "preparation" being such a dictionary itself; or the BIDS fields,
        of dcm2niix. Echo spacing and number of excitations are estimated, with a warning, where
        they are missing.
    **overrides
        Arguments of the class that override the description or complete a sidecar, such as
        ``echo_spacing``.

    Raises
    ------
    ValueError
        Unknown types or arguments, missing arguments, values out of range.

    Examples
    --------
    >>> sequence_from({"type": "SpoiledGradientEcho", "tr": 0.02, "te": 0.004, "flip_angle": 20,
    ...                "preparation": {"type": "InversionPreparation", "ti": 0.9}}).preparation.ti
    0.9
    >>> sidecar = {"ScanningSequence": "SE", "RepetitionTime": 4.0, "EchoTime": 0.08}
    >>> sequence_from(sidecar).echo
    1
    """
    if not isinstance(description, Mapping):
        raise ValueError(f"description is {shortened(description)}; give a mapping of names.")
    try:
        return _described(description, overrides)
    except (TypeError, OverflowError, AttributeError) as error:
        raise ValueError(f"description is {shortened(description)}: {error}.") from error


def _described(description, overrides):
    if "type" in description:
        arguments = {**description, **overrides}
        if isinstance(arguments.get("preparation"), Mapping):
            arguments["preparation"] = _made(_PREPARATIONS, arguments["preparation"])
        return _made(_SEQUENCES, arguments)
    return _made(_SEQUENCES, {**_of_sidecar(description, overrides), **overrides})


def description_of(sequence: Sequence) -> dict[str, Any]:
    """The dictionary from which :func:`sequence_from` restores a sequence."""
    values = {field.name: getattr(sequence, field.name) for field in fields(sequence)}
    preparation = values.get("preparation")
    if preparation is not None:
        values["preparation"] = description_of(preparation)
    return {"type": type(sequence).__name__, **values}


def _made(kinds, arguments):
    arguments = dict(arguments)
    kind = kinds.get(arguments.pop("type", None))
    if kind is None:
        raise ValueError(f"type of a sequence or preparation is unknown; give one of {[*kinds]}.")
    required = {field.name: field.default is MISSING for field in fields(kind)}
    unknown = sorted(set(arguments) - set(required))
    if unknown:
        raise ValueError(f"{kind.__name__} has no {unknown}; it has {[*required]}.")
    missing = [name for name, needed in required.items() if needed and name not in arguments]
    if missing:  # where a field of BIDS is among them, it is enough: the others are estimated
        fields_of_bids = [f"{n} ({_FIELDS[n]} of a sidecar)" for n in missing if n in _FIELDS]
        raise ValueError(
            f"a {kind.__name__} needs {' and '.join(fields_of_bids or missing)}; add it to its "
            "description, in s or degrees."
        )
    return kind(**arguments)


_FIELDS = {
    "te": "EchoTime", "effective_te": "EchoTime", "tr": "RepetitionTime", "ti": "InversionTime",
    "flip_angle": "FlipAngle",
}  # fmt: skip
# Plausible times (s) and angles (degrees): outside, a value has another unit. By hand.
_PLAUSIBLE = {
    "RepetitionTime": (1e-3, 15.0), "EchoTime": (1e-4, 1.0), "InversionTime": (5e-3, 6.0),
    "RepetitionTimeExcitation": (1e-3, 0.5), "RepetitionTimePreparation": (0.1, 20.0),
    "FlipAngle": (0.5, 180.0), "MagneticFieldStrength": (0.1, 12.0),
}  # fmt: skip
# Readouts without an equation, by words of sequence names and of scanning sequences.
_NO_EQUATION = {
    **dict.fromkeys(("EP", "EPI", "EPFID", "EPSE", "EP2D"), "echo-planar imaging"),
    **dict.fromkeys(("TRUFISP", "TFI", "BFFE", "FIESTA", "CISS"), "balanced steady state"),
    "ASL": "spin labelling", "MP2RAGE": "a combination of two inversion images",
}  # fmt: skip
_ECHO_SPACING, _PULSES = 0.0075, 176  # s, of MPRAGE at 1 mm; used where TR does not tell
_SPIN_ECHO_SPACING = 0.01  # s, of turbo spin echoes


def field_of_sidecar(sidecar: Mapping[str, Any]) -> float | None:
    """Field strength (T) of a BIDS sidecar, to the nearest of `FIELDS`; None if it has none.

    Raises
    ------
    ValueError
        A field far from all that constants are known at.
    """
    field = sidecar.get("MagneticFieldStrength")
    if field is None:
        return None
    _check_plausible("MagneticFieldStrength", field)
    nearest = min(FIELDS, key=lambda known: abs(known - field))
    if abs(field / nearest - 1) > 0.1:
        raise ValueError(
            f"MagneticFieldStrength is {field} T; constants are known at {FIELDS} T: specify "
            "tissues."
        )
    return nearest


def _check_plausible(name, value):
    low, high = _PLAUSIBLE[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} of the sidecar is {shortened(value)}; give a number.")
    if not low <= value <= high:
        unit = "degrees" if name == "FlipAngle" else "T" if "Field" in name else "s"
        milliseconds = " (milliseconds?)" if unit == "s" and low <= value / 1e3 <= high else ""
        raise ValueError(
            f"{name} of the sidecar is {value:g}{milliseconds}; BIDS has {unit}: give {low:g} to "
            f"{high:g}."
        )


def _words(sidecar, *names):
    """Upper-case words of text or lists."""
    texts = [sidecar.get(name) or "" for name in names]
    parts = [t if isinstance(t, str) else " ".join(map(str, t)) for t in texts]
    return re.sub(r"[^A-Z0-9]+", " ", " ".join(parts).upper()).split()


def _of_sidecar(sidecar, overrides):
    for name in _PLAUSIBLE.keys() & sidecar.keys():
        _check_plausible(name, sidecar[name])
    kinds = _words(sidecar, "ScanningSequence")
    # Names of Siemens, Philips and GE; protocol names are the user's.
    named = _words(sidecar, "PulseSequenceName", "PulseSequenceType", "SequenceName",
                   "PulseSequenceDetails")  # fmt: skip
    for word in (*kinds, *named):
        if word in _NO_EQUATION:
            raise ValueError(
                f"the sidecar's sequence is {word} ({_NO_EQUATION[word]}), of which there is no "
                "equation; leave this image out."
            )
    arguments = {"name": sidecar.get("SeriesDescription"), "te": sidecar.get("EchoTime")}
    is_spin_echo = "SE" in kinds and "GR" not in kinds
    make = _spin_echo_of if is_spin_echo else _gradient_echo_of
    arguments |= make(sidecar, named, overrides)
    return {name: value for name, value in arguments.items() if value is not None}


def _spin_echo_of(sidecar, named, overrides):
    te, length = sidecar.get("EchoTime"), int(sidecar.get("EchoTrainLength", 1))
    tr = sidecar.get("RepetitionTime", sidecar.get("RepetitionTimePreparation"))
    arguments = {
        "type": "TurboSpinEcho", "te": None, "effective_te": te, "tr": tr,
        # Scanners state the refocusing angle; GE that of the excitation.
        "refocusing_angle": None if "GE" in _words(sidecar, "Manufacturer")
        else sidecar.get("FlipAngle"),
    }  # fmt: skip
    inversion = sidecar.get("InversionTime")
    if inversion:
        arguments["preparation"] = InversionPreparation(inversion, adiabatic=True)
    if length == 1 or te is None or "echo_spacing" in overrides:
        return arguments | {
            "echo_train_length": length,
            "echo_spacing": te if length == 1 else None,
        }
    # The echo at the centre of k-space is one of the train: its spacing divides TE.
    spacing = max(te / max(round(te / _SPIN_ECHO_SPACING), 1), te / length)
    if tr is not None and length * spacing + (inversion or 0) > tr:
        length = max(int((tr - (inversion or 0)) / spacing), round(te / spacing))
    _warn_estimated(
        f"echo_spacing = {1e3 * spacing:.3g} ms", "1 % of a signal (stimulated echoes)"
    )
    return arguments | {"echo_train_length": length, "echo_spacing": spacing}


def _gradient_echo_of(sidecar, named, overrides):
    inversion = sidecar.get("InversionTime")
    arguments = {"flip_angle": sidecar.get("FlipAngle")}
    tr = sidecar.get("RepetitionTime", sidecar.get("RepetitionTimePreparation"))
    # MP: magnetisation prepared. Fast gradient echoes of Siemens, Philips and GE.
    prepared = {"MP", "IR"} & {
        *_words(sidecar, "SequenceVariant", "ScanningSequence", "ScanOptions")
    }
    if not inversion and (
        prepared or any(re.match(r"(T1)?TF[EL]|BRAVO|MPRAGE", w) for w in named)
    ):
        raise ValueError(
            "the sidecar's sequence is prepared by an inversion, but has no InversionTime; add "
            "it (s)."
        )
    if not inversion:
        return arguments | {"type": "SpoiledGradientEcho", "tr": tr}
    # Philips and GE state the time between excitations as RepetitionTime.
    period = sidecar.get("RepetitionTimePreparation", tr)
    spacing, n_pulses = sidecar.get("RepetitionTimeExcitation"), sidecar.get("NumberShots")
    spacing, n_pulses = (
        overrides.get("echo_spacing", spacing),
        overrides.get("n_pulses", n_pulses),
    )
    if period is not None and period < inversion:  # it is the time between excitations
        spacing = spacing or period
        period = None
    estimated = []
    if spacing is None:
        spacing = max(_ECHO_SPACING, 2 * sidecar.get("EchoTime", 0.0))
        estimated.append(f"echo_spacing = {1e3 * spacing:.3g} ms")
    if n_pulses is None or n_pulses < 8:  # interleaves of the image, not excitations
        n_pulses = int(sidecar.get("EchoTrainLength") or 0)
    if n_pulses < 8:
        n_pulses = _PULSES
        estimated.append(f"n_pulses = {n_pulses}")
    most = int(2 * inversion / spacing) - 1
    if n_pulses > most and sidecar.get("NumberShots") != n_pulses:
        n_pulses = most
        estimated.append(f"n_pulses = {n_pulses}")
    if period is None:
        period = 2 * inversion + 0.5 * n_pulses * spacing
        estimated.append(f"tr = {period:.3g} s")
    if estimated:
        _warn_estimated(", ".join(estimated), "5 % of a signal, less than constants do")
    return arguments | {
        "type": "MPRAGE", "tr": period, "ti": inversion, "n_pulses": int(n_pulses),
        "echo_spacing": spacing,
    }  # fmt: skip


def _warn_estimated(estimates, effect):
    warn(
        f"The sidecar does not state {estimates}, which are estimated. An error changes "
        f"about {effect}; specify them in sequences_file."
    )
