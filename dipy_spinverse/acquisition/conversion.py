"""Acquisitions from gradient tables and from saved arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dipy.core.gradients import GradientTable
from numpy.typing import ArrayLike

from dipy_spinverse.acquisition import checks
from dipy_spinverse.acquisition.b_tensors import TensorAcquisition
from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.acquisition.pulsed import Acquisition
from dipy_spinverse.acquisition.waveforms import Waveforms


def as_acquisition(
    gtab: GradientTable | BaseAcquisition,
    te: ArrayLike | None = None,
    *,
    name: str = "gtab",
    **timing: ArrayLike | None,
) -> BaseAcquisition:
    """Return an acquisition unchanged; convert a DIPY gradient table with its deltas.

    `te` and `timing` are arguments of :meth:`Acquisition.from_gtab`, for a gradient table only;
    `name` is that of the argument in error messages.
    """
    timing["te"] = te
    if isinstance(gtab, BaseAcquisition):
        duplicate = [argument for argument, value in timing.items() if value is not None]
        if duplicate:
            raise ValueError(
                f"{duplicate[0]} is given in addition to the {type(gtab).__name__}, which has its "
                f"own; drop {duplicate[0]}."
            )
        return gtab
    checks.gradient_table(name, gtab)
    return Acquisition.from_gtab(gtab, **timing)


def require_pulsed(acquisition: BaseAcquisition) -> Acquisition:
    """Return an acquisition of pulsed gradients unchanged; refuse any other."""
    if isinstance(acquisition, Acquisition):
        return acquisition
    raise ValueError(
        "acquisition has free gradient waveforms, and no small_delta and big_delta, which only a "
        "pair of rectangular pulses has; give an Acquisition(b, directions, small_delta, "
        "big_delta) here. Waveforms can be simulated: simulate, simulate_with_jacobian."
    )


def require_single_magnitudes(acquisition: BaseAcquisition, model: str) -> None:
    """Refuse means of several magnitudes, of which a model has no likelihood."""
    largest = acquisition.n_averages.max()
    if largest > 1:
        # The noise floor is then at most 1/6 of the noise of the mean.
        raise ValueError(
            f"n_averages is up to {largest}, but {model} has no likelihood of means of "
            "magnitudes. Give the single measurements, or use PackedCellsModel or a compartment "
            f"model; or, if all signals are above {3 * largest**0.5:.0f} times the noise of one "
            "magnitude, leave n_averages out and give sigma divided by its root."
        )


def acquisition_from_arrays(arrays: Mapping[str, Any]) -> BaseAcquisition:
    """Restore an acquisition from :meth:`BaseAcquisition.arrays`."""
    if "small_delta" in arrays:
        return Acquisition(**arrays)
    if "b_tensors" in arrays:
        return TensorAcquisition(**arrays)
    n_groups = sum(name.startswith("rows_") for name in arrays)
    waveforms = [
        Waveforms(*(arrays[f"{field.name}_{k}"] for field in fields(Waveforms)))
        for k in range(n_groups)
    ]
    return WaveformAcquisition(waveforms, arrays["b0_threshold"], arrays.get("n_averages", 1))
