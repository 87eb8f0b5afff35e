"""Sequences from dictionaries and BIDS sidecars, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args

from dipy_spinverse.acquisition.checks import shortened
from dipy_spinverse.tissue_fractions.sequences import InversionPreparation, Preparation, Sequence

_SEQUENCES = {kind.__name__: kind for kind in get_args(Sequence)}
_PREPARATIONS = {kind.__name__: kind for kind in get_args(Preparation)}


def sequence_from(description: Mapping[str, Any], **overrides: Any) -> Sequence:
    """Sequence from a dictionary, for instance of JSON or YAML, or from a BIDS sidecar.

    Parameters
    ----------
    description : mapping
        Either "type" (`SpoiledGradientEcho`, `MPRAGE`, `TurboSpinEcho` or `PulseqFile`) and the
        arguments of the class, "preparation" being such a dictionary itself; or the BIDS fields,
        of which `RepetitionTime`, `EchoTime`, `FlipAngle`, `InversionTime`, `EchoTrainLength`,
        `ScanningSequence`, `RepetitionTimePreparation`, `RepetitionTimeExcitation` and
        `NumberShots` are read.
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
    >>> sidecar = {"ScanningSequence": "SE", "RepetitionTime": 4.0, "EchoTime": 0.08,
    ...            "EchoTrainLength": 15, "FlipAngle": 150}
    >>> sequence_from(sidecar, echo_spacing=0.01).echo
    8
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
    return _made(_SEQUENCES, {**_of_sidecar(description), **overrides})


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
    lacks = [name for name, needed in required.items() if needed and name not in arguments]
    if lacks:
        raise ValueError(f"{kind.__name__} lacks {lacks}; add them to the description.")
    return kind(**arguments)


def _of_sidecar(sidecar):
    kinds = sidecar.get("ScanningSequence", "GR")
    kinds = kinds.replace("_", "\\").split("\\") if isinstance(kinds, str) else list(kinds)
    arguments = {
        "name": sidecar.get("SeriesDescription"),
        "tr": sidecar.get("RepetitionTime", sidecar.get("RepetitionTimePreparation")),
    }
    inversion, te = sidecar.get("InversionTime"), sidecar.get("EchoTime")
    if "SE" in kinds and "GR" not in kinds:
        length = sidecar.get("EchoTrainLength", 1)
        arguments |= {
            "type": "TurboSpinEcho", "effective_te": te, "echo_train_length": length,
            "echo_spacing": te if length == 1 else None,
            # Scanners state the refocusing angle.
            "refocusing_angle": sidecar.get("FlipAngle"),
        }  # fmt: skip
        if inversion is not None:
            arguments["preparation"] = InversionPreparation(inversion, adiabatic=True)
    else:
        arguments |= {"te": te, "flip_angle": sidecar.get("FlipAngle")}
        if inversion is None:
            arguments["type"] = "SpoiledGradientEcho"
        else:
            arguments |= {
                "type": "MPRAGE", "ti": inversion, "n_pulses": sidecar.get("NumberShots"),
                "tr": sidecar.get("RepetitionTimePreparation", arguments["tr"]),
                "echo_spacing": sidecar.get("RepetitionTimeExcitation"),
            }  # fmt: skip
    arguments = {name: value for name, value in arguments.items() if value is not None}
    for name, value in arguments.items():
        if name not in ("type", "name", "preparation") and not (
            isinstance(value, int | float) and math.isfinite(value)
        ):
            raise ValueError(f"{name} of the sidecar is {shortened(value)}; give a number.")
    return arguments
