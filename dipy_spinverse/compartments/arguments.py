"""Arguments of compartment models, checked and converted: acquisitions, images, parameters."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from dipy.core.gradients import GradientTable

from dipy_spinverse.acquisition import (
    Acquisition,
    BaseAcquisition,
    TensorAcquisition,
    as_acquisition,
)
from dipy_spinverse.acquisition.b_tensors import b_anisotropy
from dipy_spinverse.acquisition.checks import seconds_to_ms, symmetric_tensors
from dipy_spinverse.compartments.definition import UNITS, check_diffusivity, expression_value
from dipy_spinverse.compartments.fibres import MAX_FIBRES
from dipy_spinverse.compartments.fitting.parameters import NonlinearParameters, physical_values
from dipy_spinverse.compartments.identifiability import (
    SNR,
    resolution_limits,
    undetermined_parameters,
)
from dipy_spinverse.compartments.signals.encoding import encoding_of
from dipy_spinverse.compartments.signals.kernels import CustomKernel
from dipy_spinverse.compartments.signals.pools import pool_signals
from dipy_spinverse.units import MS_PER_UM2
from dipy_spinverse.user_warnings import warn
from dipy_spinverse.voxels.image import Image, per_voxel
from dipy_spinverse.voxels.status import Status, is_noise_only

# Pulses of untimed gradient tables, for models that do not depend on them; s. They are short, so
# that any echo time leaves room for them.
_BIG_DELTA, _SMALL_DELTA = 0.002, 0.001
_ASYMMETRY = 0.02  # of b: deviation of a b-tensor from an axially symmetric one; by hand
_ROUNDING = 1e-6  # of single precision, over the range of a parameter
_LOGGER = logging.getLogger("dipy_spinverse")


def acquisition_for(
    gtab, definition, te=None, mixing_time=None, isotropic=None, n_averages=None
) -> BaseAcquisition:
    """The acquisition in the form that a model needs: pulses, or b-tensors if it is Gaussian."""
    is_table = isinstance(gtab, GradientTable)
    options = {"mixing_time": mixing_time, "isotropic": isotropic, "n_averages": n_averages}
    if is_table and gtab.btens is not None and not _is_linear(gtab):
        _require_gaussian(definition)
        return _tensor_acquisition(gtab, te, **options)
    untimed = is_table and (gtab.big_delta is None or gtab.small_delta is None)
    if definition.timed or not untimed:
        acquisition = as_acquisition(gtab, te, **options)
        if isinstance(acquisition, Acquisition):
            return acquisition
        _require_gaussian(definition)
        return TensorAcquisition.from_acquisition(acquisition)
    storage = 0.0 if mixing_time is None else np.asarray(mixing_time)
    return Acquisition.from_files(
        gtab.bvals, gtab.bvecs, big_delta=_BIG_DELTA + storage, small_delta=_SMALL_DELTA, te=te,
        b0_threshold=gtab.b0_threshold, **options,
    )  # fmt: skip


def _is_linear(gtab):
    """Whether all b-tensors of a gradient table are along one direction."""
    largest, b = np.linalg.eigvalsh(gtab.btens)[:, -1], np.trace(gtab.btens, axis1=1, axis2=2)
    return bool(((largest > (1 - _ASYMMETRY) * b) | gtab.b0s_mask).all())


def _require_gaussian(definition):
    """Refuses models whose signals do not follow from b-tensors."""
    for c in definition.compartments:
        if c.timed or isinstance(c.kernel, CustomKernel):
            reason = "has restricted diffusion" if c.timed else "is defined for linear encoding"
            raise ValueError(
                f"gtab has b-tensors that are not linear, or free waveforms, but the "
                f"{c.kernel_definition.name} of {definition.name} {reason}: give pulsed gradients "
                "(b, directions, small_delta, big_delta), or a model of stick, zeppelin, ball and "
                "dot."
            )


def _tensor_acquisition(gtab, te, mixing_time, isotropic, n_averages):
    times = {"te": te, "mixing_time": mixing_time}
    times = {name: seconds_to_ms(name, t) for name, t in times.items() if t is not None}
    symmetric_tensors("gtab.btens", gtab.btens)
    return TensorAcquisition(
        gtab.btens / MS_PER_UM2, **times, b0_threshold=gtab.b0_threshold / MS_PER_UM2,
        isotropic=False if isotropic is None else isotropic,
        n_averages=1 if n_averages is None else n_averages,
    )  # fmt: skip


def _check_symmetric(acquisition):
    """Refuses b-tensors without a symmetry axis."""
    if isinstance(acquisition, Acquisition):
        return
    b, (shape, axes) = acquisition.b, b_anisotropy(acquisition.b_tensors)
    projectors = np.einsum("mi,mj->mij", axes, axes)
    axial = b[:, None, None] * (
        (1 - shape)[:, None, None] / 3 * np.eye(3) + shape[:, None, None] * projectors
    )
    deviation = np.abs(acquisition.b_tensors - axial).max(axis=(1, 2)) / np.maximum(b, 1e-12)
    deviation[acquisition.b0_mask] = 0
    if deviation.max() > _ASYMMETRY:
        m = int(deviation.argmax())
        raise ValueError(
            f"The b-tensor of measurement {m} has no symmetry axis (off by {deviation[m]:.2g} of "
            f"b, {_ASYMMETRY} is allowed); compartment models take linear, planar, spherical and "
            "other axially symmetric ones. Leave it out."
        )


def check_acquisition(definition, acquisition, labels) -> None:
    """Refuse acquisitions that cannot determine the model; warn of undetermined parameters."""
    _check_symmetric(acquisition)
    name, n = definition.name, len(acquisition)
    if n < definition.n_unknowns:
        raise ValueError(
            f"{name} has {definition.n_unknowns} unknowns with S0, the acquisition {n} "
            "measurements; give more, or fix some parameters."
        )
    shells = np.unique(acquisition.b[~acquisition.b0_mask].round(1 if definition.axes else 3))
    if len(shells) < definition.min_shells:
        raise ValueError(
            f"{name} needs at least {definition.min_shells} different b > 0, the acquisition "
            f"has {shells.round(2).tolist()} ms/um^2: its parameters are not identifiable."
        )
    _check_labels(definition, acquisition, labels)
    names = undetermined_parameters(definition, acquisition)
    if names:
        warn(
            f"The acquisition hardly determines, at an SNR of {SNR:g}, {', '.join(names)} of "
            f"{name}: the maps are arbitrary, their intervals wide. Fix these parameters, or "
            "change the acquisition (averages with less noise can suffice)."
        )
    for diameter, limit in resolution_limits(definition, acquisition).items():
        _LOGGER.info(
            "Below about %.1f um, values of %s cannot be distinguished by %s at an SNR of 30 with "
            "this acquisition; intervals include them.", limit, diameter, name,
        )  # fmt: skip


def check_kernels(definition, acquisition) -> None:
    """Refuse kernels and shares whose pools are not 1 without diffusion, by signals at a draw."""
    encoding = encoding_of(acquisition, torch.float64, timed=definition.timed).without_diffusion()
    rng, n = np.random.default_rng(0), 2
    unit = torch.tensor(rng.uniform(0.3, 0.7, (n, len(definition.parameters))))
    frames = torch.tensor(np.linalg.qr(rng.standard_normal((n, len(definition.axes), 3, 3)))[0])
    values = physical_values(definition, NonlinearParameters(unit, frames))
    ones = torch.full((n,), 1 / len(definition.pools), dtype=torch.float64)
    values |= {"S0": ones} | dict.fromkeys(definition.pools, ones)
    square = torch.linspace(0, 1, 3, dtype=torch.float64)
    for c in definition.compartments:
        if isinstance(c.kernel, CustomKernel):
            _check_custom_kernel(c, encoding, square, values)
    signals = pool_signals(definition, encoding)(values)
    for k, pool in enumerate(definition.pools):
        value = float(signals[0, k].mean())
        if not torch.allclose(signals[:, k], torch.ones_like(signals[:, k]), atol=1e-3):
            raise ValueError(
                f"The signal of pool {pool!r} of {definition.name} without diffusion is "
                f"{value:.3g}, not 1: its compartments need a share each, which add up to 1."
            )


def _check_custom_kernel(compartment, encoding, square, values):
    kernel, name = compartment.kernel, f"signal of kernel {compartment.kernel.name!r}"
    arguments = {k: expression_value(e, values) for k, e in compartment.arguments.items()}
    n_voxels = max(map(len, arguments.values()), default=1)
    try:
        signal = kernel.signal(encoding, square, **arguments)
    except Exception as error:
        raise ValueError(f"The {name} fails: {type(error).__name__}: {error}") from error
    expected = n_voxels, len(encoding.b), len(square) if kernel.oriented else 1
    if not isinstance(signal, torch.Tensor) or signal.shape != expected:
        shape = getattr(signal, "shape", None)
        raise ValueError(
            f"The {name} is a {type(signal).__name__} of shape {shape and tuple(shape)}; return a "
            f"tensor of shape (V, S, Q), here {expected}, by operations of torch."
        )
    if not torch.allclose(signal, torch.ones_like(signal), atol=1e-3):
        raise ValueError(
            f"The {name} is {float(signal.flatten()[0]):.3g} without diffusion; return the "
            "attenuation, which is 1 there."
        )


def _check_labels(definition, acquisition, labels):
    """Refuses labels whose S0 is not identifiable, or determined by relaxation."""
    if definition.has_relaxation and (labels != acquisition.te_index).any():
        raise ValueError(
            f"amplitudes: relaxation times of {definition.name} determine S0 of all echo times; "
            "leave amplitudes out, or the relaxation times."
        )
    for k in range(labels.max() + 1 if labels.any() else 0):
        members = labels == k
        b = np.unique(acquisition.b[members].round(2))
        if not acquisition.b0_mask[members].any() and len(b) < 2:
            raise ValueError(
                f"There is no b0, and one b = {b[0]:g} ms/um^2 only, among the measurements at "
                f"the echo times {np.unique(acquisition.te[members]).tolist()} ms that share an "
                "S0: it is not identifiable. Leave them out, raise b0_threshold, or give "
                "amplitudes that they share with others."
            )


def without_noise_alone(image: Image, acquisition: BaseAcquisition) -> Image:
    """The image without voxels of pure noise, whose status becomes NO_SIGNAL."""
    voxels = image.voxels
    b0 = np.asarray(acquisition.b0_per_te).any(axis=0)
    empty = is_noise_only(
        voxels.signals, np.atleast_1d(b0), image.noise, image.freedom, acquisition.n_averages
    )
    return _without(image, empty, Status.NO_SIGNAL)


def with_known(image: Image, known, definition, has_populations: bool) -> Image:
    """The image with "known" (V, F) of `known` of a fit, scaled from the bounds to 0 and 1.

    Voxels where a value is not finite get the status BAD_SAMPLES.
    """
    parameters = {p.name: p for p in definition.parameters if not has_populations * p.per_fibre}
    scaled = np.zeros((len(image.voxels), len(known)))
    for k, (name, values) in enumerate(known.items()):
        if name not in parameters:
            free = f'; {name}="free" makes it one' if name in definition.arguments else ""
            raise ValueError(
                f"known has {name!r}, which is no parameter of {definition.name} that all "
                f"compartments share{free}; give some of {', '.join(parameters)}."
            )
        p, values = parameters[name], per_voxel(f"known[{name!r}]", values, image.shape)
        scaled[:, k] = (values[image.rows] / UNITS[p.unit] - p.low) / (p.high - p.low)
        outside = (scaled[:, k] < -_ROUNDING) | (scaled[:, k] > 1 + _ROUNDING)
        outside &= np.isfinite(scaled[:, k])
        if outside.any():
            low, high = (UNITS[p.unit] * bound for bound in (p.low, p.high))
            raise ValueError(
                f"known[{name!r}] has {outside.sum()} values that are not between {low:g} and "
                f"{high:g} {p.unit}, such as {values[image.rows][outside][0]:g}; leave these "
                "voxels out of the mask, or set them to NaN."
            )
    attributes = {**image.voxels.attributes, "known": scaled.clip(0, 1)}
    image = replace(image, voxels=replace(image.voxels, attributes=attributes))
    return _without(image, ~np.isfinite(scaled).all(axis=1), Status.BAD_SAMPLES)


def _without(image, excluded, status):
    """The image without some of its voxels (V,), which get another status."""
    if not excluded.any():
        return image
    fitted = np.asarray(image.status == Status.CONVERGED)
    mask = np.zeros(fitted.shape, dtype=bool)
    mask[fitted] = ~excluded
    return replace(image.within(mask), status=np.where(fitted & ~mask, status, image.status))


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
    directions = directions.reshape(n_voxels, -1, 3)[:, :MAX_FIBRES]
    present = np.linalg.norm(directions, axis=2) > 0.5
    axes = np.tile(np.eye(3), (n_voxels, 1, 1))
    for k in range(directions.shape[1]):
        rank, use = present[:, :k].sum(axis=1), present[:, k]
        axes[use, rank[use]] = directions[use, k]
    return {"n_fibres": present.sum(axis=1), "axes": axes}


def _check_units(definition, tensors):
    """Refuses diffusivities in mm^2/s, the unit of maps."""
    for name in (p.name for p in definition.parameters if p.unit == "mm^2/s"):
        positive = tensors[name].detach()
        positive = positive[positive > 0]
        check_diffusivity(name, float(positive.min()) if positive.numel() else 0.0)


def complete(definition, parameters):
    """Values (V,) and (V, 3) as tensors, with S0 and all fractions, and the voxels' shape."""
    axes = {*definition.axes, *(f"{name}_fan" for name in definition.fanned_axes)}
    scalars = {p.name for p in definition.parameters}
    unknown = set(parameters) - axes - scalars - {*definition.pools, "S0"}
    missing = sorted((scalars | axes) - set(parameters))
    left_out = [name for name in definition.pools if name not in parameters]
    if unknown or missing or len(left_out) > 1:
        raise ValueError(
            f"{definition.name} takes {sorted(scalars | axes)} and the fractions "
            f"{list(definition.pools)}, of which one may be left out; unknown are "
            f"{sorted(unknown)}, missing {[*missing, *left_out[1:]]}."
        )
    tensors = {
        name: torch.as_tensor(
            value if isinstance(value, torch.Tensor) else np.asarray(value), dtype=torch.float64
        )
        for name, value in parameters.items()
    }
    _check_units(definition, tensors)
    shapes = [t.shape[:-1] if name in axes else t.shape for name, t in tensors.items()]
    shape = torch.broadcast_shapes(*shapes)
    values = {
        name: t.expand(*shape, 3).reshape(-1, 3) if name in axes else t.expand(shape).reshape(-1)
        for name, t in tensors.items()
    }
    ones = torch.ones(int(np.prod(shape)), dtype=torch.float64)
    values.setdefault("S0", ones)
    values |= {name: value * ones for name, value in definition.fixed.items()}
    if left_out:
        values[left_out[0]] = ones - sum(values[n] for n in definition.pools if n in values)
    return values, tuple(shape)
