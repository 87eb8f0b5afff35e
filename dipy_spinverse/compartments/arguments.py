"""What a user hands to a compartment model, checked and in the form that it works with."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from dipy_spinverse.acquisition import Acquisition, Measurements, measurements_of, pulsed_only
from dipy_spinverse.acquisition.checks import linear_encoding
from dipy_spinverse.compartments.fitting.chunk import MOST_FIBRES
from dipy_spinverse.compartments.posterior.degeneracy import undetermined

# Pulses for models that do not depend on them, where a gradient table has none; s. They are short,
# so that any echo time leaves room for them.
_BIG_DELTA, _SMALL_DELTA = 0.002, 0.001


def acquisition_for(gtab, definition, te=None, mixing_time=None, isotropic=None) -> Acquisition:
    """Acquisition of a gradient table; without timings where the model does not need them."""
    timed = definition.timed or isinstance(gtab, Measurements)
    if timed or (gtab.big_delta is not None and gtab.small_delta is not None):
        return pulsed_only(measurements_of(gtab, te, mixing_time=mixing_time, isotropic=isotropic))
    linear_encoding(gtab)
    stored = 0.0 if mixing_time is None else np.asarray(mixing_time)
    return Acquisition.from_files(
        gtab.bvals, gtab.bvecs, big_delta=_BIG_DELTA + stored, small_delta=_SMALL_DELTA, te=te,
        mixing_time=mixing_time, isotropic=isotropic, b0_threshold=gtab.b0_threshold,
    )  # fmt: skip


def check_acquisition(definition, acquisition) -> None:
    """Refuse acquisitions that cannot determine the model, warn of what they leave open."""
    name, n = definition.name, len(acquisition)
    if n < definition.n_unknowns:
        raise ValueError(
            f"{name} has {definition.n_unknowns} unknowns with S0, the acquisition {n} "
            "measurements; give more, or know some parameters."
        )
    shells = np.unique(acquisition.b[~acquisition.b0_mask].round(1 if definition.axes else 3))
    if len(shells) < definition.least_shells:
        raise ValueError(
            f"{name} needs at least {definition.least_shells} different b > 0, the acquisition "
            f"has {shells.round(2).tolist()} ms/um^2: its parameters cannot be told apart."
        )
    if len(acquisition.echo_times) > 1 and not acquisition.b0_per_te.any(axis=1).all():
        te = acquisition.echo_times[~acquisition.b0_per_te.any(axis=1)]
        raise ValueError(
            f"There is no b0 at the echo times {te.tolist()} ms; each echo time has its own S0 "
            "and needs one. Leave these measurements out, or raise b0_threshold."
        )
    names = undetermined(definition, acquisition)
    if names:
        warnings.warn(
            f"The acquisition tells nearly nothing about {', '.join(names)} of {name}: the maps "
            "are arbitrary, their intervals wide. Know these parameters, or measure otherwise.",
            stacklevel=4,
        )


def populations(peaks, shape) -> dict[str, np.ndarray]:
    """Number of fibres "n_fibres" (V,) and, of peaks, their "axes" (V, 3, 3).

    Rows of the axes beyond the number are arbitrary.
    """
    n_voxels = int(np.prod(shape))
    if peaks is None:
        return {"n_fibres": np.ones(n_voxels, dtype=int)}
    directions = np.asarray(peaks.peak_dirs, dtype=float)
    if directions.shape[:-2] != shape:
        raise ValueError(
            f"peaks has voxels {directions.shape[:-2]}, the data {shape}; fit them to the same "
            "image."
        )
    directions = directions.reshape(n_voxels, -1, 3)[:, :MOST_FIBRES]
    there = np.linalg.norm(directions, axis=2) > 0.5
    axes = np.tile(np.eye(3), (n_voxels, 1, 1))
    for k in range(directions.shape[1]):
        rank, use = there[:, :k].sum(axis=1), there[:, k]
        axes[use, rank[use]] = directions[use, k]
    return {"n_fibres": there.sum(axis=1), "axes": axes}


def complete(definition, parameters):
    """Values (V,) and (V, 3) as tensors, with S0 and all fractions, and the voxels' shape."""
    axes = {*definition.axes, *(f"{name}_fan" for name in definition.fans)}
    scalars = {p.name for p in definition.parameters}
    unknown = set(parameters) - axes - scalars - {*definition.pools, "S0"}
    missing = sorted((scalars | axes) - set(parameters))
    left_out = [name for name in definition.pools if name not in parameters]
    if unknown or missing or len(left_out) > 1:
        raise ValueError(
            f"{definition.name} takes {sorted(scalars | axes)} and the fractions "
            f"{list(definition.pools)}, of which one may be left out; unknown here are "
            f"{sorted(unknown)}, missing {[*missing, *left_out[1:]]}."
        )
    tensors = {k: torch.as_tensor(v, dtype=torch.float64) for k, v in parameters.items()}
    shapes = [t.shape[:-1] if name in axes else t.shape for name, t in tensors.items()]
    shape = torch.broadcast_shapes(*shapes)
    values = {
        name: t.expand(*shape, 3).reshape(-1, 3) if name in axes else t.expand(shape).reshape(-1)
        for name, t in tensors.items()
    }
    ones = torch.ones(int(np.prod(shape)), dtype=torch.float64)
    values.setdefault("S0", ones)
    if left_out:
        values[left_out[0]] = ones - sum(values[n] for n in definition.pools if n in values)
    return values, tuple(shape)
