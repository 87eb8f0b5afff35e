"""Files of learners: arrays, and a header in JSON; no code is stored or executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dipy_spinverse.compartments.model import CompartmentModel
from dipy_spinverse.voxels import storage

KIND = "a learner"
# The signals of a few voxels identify the model and its acquisition, within rounding errors, which
# differ between machines.
_N_PROBES = 8
_TOLERANCE = 1e-6


def write_learner(
    path: Path | str, header: dict, arrays: dict[str, np.ndarray], model: CompartmentModel
) -> None:
    """Store arrays and header, and some signals that identify the model."""
    probe = model.draw(_N_PROBES, seed=0)
    stored: dict[str, Any] = {f"probe/{name}": value for name, value in probe.items()}
    stored |= {**arrays, "probe_signals": model.signals(probe)}
    storage.write(path, {"kind": KIND, "definition": _summary(model), **header}, stored)


def read_learner(
    path: Path | str, model: CompartmentModel
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays; ValueError for damaged files and for other models or acquisitions."""
    header, arrays = storage.read(path, KIND)
    unusable = [
        name
        for name, value in arrays.items()
        if value.dtype.kind not in "biuf" or not np.isfinite(value).all()
    ]
    if unusable:
        raise ValueError(
            f"{path} has no finite numbers in {', '.join(unusable)}; train the learner again."
        )
    probe = {k.removeprefix("probe/"): arrays.pop(k) for k in list(arrays) if k[:6] == "probe/"}
    signals = arrays.pop("probe_signals", None)
    same_definition = header.get("definition") == storage.as_read(_summary(model))
    if not (same_definition and _reproduces(model, probe, signals)):
        raise ValueError(
            f"{path} was trained for another model than this {model.definition.name}: its "
            "acquisition, parameters or constants differ. Train one for this model."
        )
    return header, arrays


def _reproduces(model, probe, signals):
    try:
        return np.allclose(model.signals(probe), signals, rtol=0, atol=_TOLERANCE)
    except (KeyError, RuntimeError, TypeError, ValueError):
        return False


def _summary(model):
    definition = model.definition
    return {
        "name": definition.name,
        "parameters": [[p.name, p.low, p.high] for p in definition.parameters],
        "fractions": list(definition.pools),
        "maps": list(definition.maps),
        "likelihood": model.likelihood,
    }
