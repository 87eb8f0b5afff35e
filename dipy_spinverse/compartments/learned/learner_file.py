"""Learners on disk: arrays, and a header in JSON; no code is stored or run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dipy_spinverse.compartments.model import CompartmentModel
from dipy_spinverse.voxels import storage

KIND = "a learner"
_N_PROBES = 8
_SAME = 1e-6


def write(path: Path | str, header: dict, arrays: dict[str, np.ndarray], model: CompartmentModel):
    """Store arrays and header, and some signals by which the model is known again."""
    probe = model.draw(_N_PROBES, seed=0)
    stored: dict[str, Any] = {f"probe/{name}": value for name, value in probe.items()}
    stored |= {**arrays, "probe_signals": model.signals(probe)}
    storage.write(path, {"kind": KIND, "definition": _described(model), **header}, stored)


def read(path: Path | str, model: CompartmentModel) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and arrays.

    Raises
    ------
    ValueError
        A file of another kind or with NaN, or a learner of another model or acquisition.
    """
    header, arrays = storage.read(path, KIND)
    unusable = sorted(name for name, value in arrays.items() if not _finite(value))
    if unusable:
        raise ValueError(
            f"{path} has no finite numbers in {', '.join(unusable)}; train the learner again."
        )
    learned = header.get("definition")
    if learned != storage.as_read(_described(model)):
        raise ValueError(
            f"{path} learned the model {learned}, this one is {_described(model)}; give the same."
        )
    probe = {k.removeprefix("probe/"): arrays.pop(k) for k in list(arrays) if k[:6] == "probe/"}
    if not _gives(model, probe, arrays.pop("probe_signals", None)):
        raise ValueError(
            f"{path} learned other signals of {model.definition.name}: its acquisition or its "
            "constants differ from those of the model given. Train one for this acquisition."
        )
    return header, arrays


def _finite(values):
    return values.dtype.kind in "biuf" and np.isfinite(values).all()


def _gives(model, probe, signals):
    """Whether these are the signals of the model."""
    try:
        return np.allclose(model.signals(probe), signals, rtol=0, atol=_SAME)
    except (KeyError, RuntimeError, TypeError, ValueError):
        return False


def _described(model):
    definition = model.definition
    parameters = [[p.name, p.low, p.high] for p in definition.parameters]
    return {
        "name": definition.name,
        "parameters": parameters,
        "fractions": list(definition.pools),
        "maps": list(definition.maps),
        "likelihood": model.likelihood,
    }
