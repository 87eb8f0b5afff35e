"""Sequences from dictionaries and BIDS sidecars, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from dipy_spinverse.acquisition.checks import shortened
from dipy_spinverse.tissue_fractions.sequences import (
    MPRAGE,
    DoubleInversionPreparation,
    InversionPreparation,
    PulseqFile,
    Sequence,
    SpoiledGradientEcho,
    T2Preparation,
    TurboSpinEcho,
)

_SEQUENCES = {
    kind.__name__: kind for kind in (SpoiledGradientEcho, MPRAGE, TurboSpinEcho, PulseqFile)
}
_PREPARATIONS = {
    kind.__name__: kind
    for kind in (InversionPreparation, DoubleInversionPreparation, T2Preparation)
}


def sequence_from(description: Mapping[str, Any], **more: Any) -> Sequence:
    """A sequence of a dictionary, as of JSON or YAML, or of the sidecar of a BIDS image.

    Parameters
    ----------
    description : mapping
        Either "type" (`SpoiledGradientEcho`, `MPRAGE`, `TurboSpinEcho` or `PulseqFile`) and the
        arguments of the class, "preparation" being such a dictionary too; or the fields of BIDS,
        of which `RepetitionTime`, `EchoTime`, `FlipAngle`, `InversionTime`, `EchoTrainLength`,
        `ScanningSequence`, `RepetitionTimePreparation`, `RepetitionTimeExcitation` and
        `NumberShots` are read.
    **more
        Arguments of the class, before those of the description: what a sidecar does not say,
        such as ``echo_spacing``.

    Raises
    ------
    ValueError
        Unknown types or arguments, what is missing, values out of range.

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
        return _described(description, more)
    except (TypeError, OverflowError, AttributeError) as error:
        raise ValueError(f"description is {shortened(description)}: {error}.") from error


def _described(description, more):
    if "type" in description:
        given = {**description, **more}
        if isinstance(given.get("preparation"), Mapping):
            given["preparation"] = _made(_PREPARATIONS, given["preparation"])
        return _made(_SEQUENCES, given)
    return _made(_SEQUENCES, {**_of_sidecar(description), **more})


def description_of(sequence: Sequence) -> dict[str, Any]:
    """The dictionary of which :func:`sequence_from` makes a sequence again."""
    values = {each.name: getattr(sequence, each.name) for each in fields(sequence)}
    preparation = values.get("preparation")
    if preparation is not None:
        values["preparation"] = description_of(preparation)
    return {"type": type(sequence).__name__, **values}


def _made(kinds, given):
    given = dict(given)
    kind = kinds.get(given.pop("type", None))
    if kind is None:
        raise ValueError(f"type of a sequence or preparation is unknown; use one of {[*kinds]}.")
    known = {each.name: each.default is MISSING for each in fields(kind)}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{kind.__name__} has no {unknown}; it has {[*known]}.")
    lacks = [name for name, needed in known.items() if needed and name not in given]
    if lacks:
        raise ValueError(f"{kind.__name__} lacks {lacks}; add to the description.")
    return kind(**given)


def _of_sidecar(sidecar):
    kinds = sidecar.get("ScanningSequence", "GR")
    kinds = kinds.replace("_", "\\").split("\\") if isinstance(kinds, str) else list(kinds)
    given = {
        "name": sidecar.get("SeriesDescription"),
        "tr": sidecar.get("RepetitionTime", sidecar.get("RepetitionTimePreparation")),
    }
    inversion, te = sidecar.get("InversionTime"), sidecar.get("EchoTime")
    if "SE" in kinds and "GR" not in kinds:
        length = sidecar.get("EchoTrainLength", 1)
        given |= {
            "type": "TurboSpinEcho", "effective_te": te, "echo_train_length": length,
            "echo_spacing": te if length == 1 else None,
            # Scanners say the refocusing angle.
            "refocusing_angle": sidecar.get("FlipAngle"),
        }  # fmt: skip
        if inversion is not None:
            given["preparation"] = InversionPreparation(inversion, adiabatic=True)
    else:
        given |= {"te": te, "flip_angle": sidecar.get("FlipAngle")}
        if inversion is None:
            given["type"] = "SpoiledGradientEcho"
        else:
            given |= {
                "type": "MPRAGE", "ti": inversion, "n_pulses": sidecar.get("NumberShots"),
                "tr": sidecar.get("RepetitionTimePreparation", given["tr"]),
                "echo_spacing": sidecar.get("RepetitionTimeExcitation"),
            }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if name not in ("type", "name", "preparation") and not (
            isinstance(value, int | float) and math.isfinite(value)
        ):
            raise ValueError(f"{name} of the sidecar is {shortened(value)}; give a number.")
    return given
