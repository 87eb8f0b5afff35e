"""Signals of packed permeable cylinders and spheres for any pulses, radii and diffusivities."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from dipy_spinverse.packed_cells.emulator.closed_form import Numbers, closed_form

# um, volume fractions, um/ms.
RANGES: dict[str, Any] = {
    "radius": (0.1, 60.0),
    "fraction": {"cylinder": (0.05, 0.8), "sphere": (0.05, 0.66)},
    "permeability": (0.0005, 0.5),
}
_LARGEST_OUTPUT = 4.0  # of the network, beyond any value in training
_ROWS = 1 << 14  # signals that are computed at once


class Encodings(NamedTuple):
    """Pulses: q across and along the cylinders' axis, rad/um, and timings, ms; each (E,)."""

    q_across: np.ndarray
    q_along: np.ndarray
    small_delta: np.ndarray
    big_delta: np.ndarray


@dataclass(frozen=True, eq=False)
class NetworkEnsemble:
    """Weights (N, inputs, outputs) and biases (N, 1, outputs) of the layers of N networks.

    Their outputs are averaged: single networks fit some of the scatter between packings.
    `error_scale` are the coefficients of the logarithm of the error, see `emulator_error`.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    error_scale: np.ndarray

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs (n,) of inputs (n, K)."""
        x = inputs.astype(np.float32)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = x @ weight + bias
            x /= 1 + np.exp(-np.maximum(x, -80))
        x = x @ self.weights[-1] + self.biases[-1]
        return np.clip(x[..., 0], -_LARGEST_OUTPUT, _LARGEST_OUTPUT).mean(axis=0).astype(float)


@cache
def load_network(shape: str) -> NetworkEnsemble:
    """The network of packed cylinders or spheres that comes with the package."""
    path = files("dipy_spinverse.packed_cells.emulator") / "networks.npz"
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name.startswith(shape)}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError(f"{path} has NaN or infinite weights; install the package again.")
        n_layers = int(file[f"{shape}_layers"])
        return NetworkEnsemble(
            tuple(file[f"{shape}_weight_{k}"] for k in range(n_layers)),
            tuple(file[f"{shape}_bias_{k}"] for k in range(n_layers)),
            file[f"{shape}_error"],
        )


def emulated_signals(shape: str, tissue: np.ndarray, encodings: Encodings) -> np.ndarray:
    """Signals (N, E) of packed cells relative to b = 0.

    A network that was fitted to finite elements (cylinders) and finite volumes (spheres) of
    random packings; ``benchmarks/make_emulator.py`` makes it, ``benchmarks/emulator.py`` checks
    it. Beyond its ranges it extrapolates a closed form. Tissue (N, 5): radius in um, volume
    fraction, permeability in um/ms, and the diffusivities inside and outside in um^2/ms.

    Examples
    --------
    >>> import numpy as np
    >>> tissue = np.array([[2.0, 0.5, 0.01, 2.0, 2.0]])
    >>> across = Encodings(*np.array([[0.0], [0.0], [10.0], [40.0]]))
    >>> emulated_signals("cylinder", tissue, across)
    array([[1.]])
    """
    tissue = np.asarray(tissue, dtype=float)
    signals = np.empty((len(tissue), len(encodings.small_delta)))
    step = max(1, _ROWS // max(signals.shape[1], 1))
    network = load_network(shape)
    for start in range(0, len(tissue), step):
        rows = slice(start, start + step)
        form = closed_form(shape, numbers_of(tissue[rows], encodings))
        residual = network(form.inputs.reshape(-1, form.inputs.shape[-1]))
        signals[rows] = form.signals(residual.reshape(form.two_compartments.shape))
    return signals


def numbers_of(tissue: np.ndarray, encodings: Encodings) -> Numbers:
    """Dimensionless numbers (N, E) of tissues (N, 5)."""
    radius, fraction, permeability, inside, outside = np.moveaxis(tissue[:, :, None], 1, 0)
    q_across, q_along, small, big = encodings
    return Numbers(
        fraction, permeability * radius / outside, inside / outside, outside * big / radius**2,
        small / big, q_across * radius, q_along * radius,
    )  # fmt: skip


def emulator_error(shape: str, tissue: np.ndarray, encodings: Encodings) -> np.ndarray:
    """Standard deviation (N, E) of the signals of a packing about the emulator's.

    Error of the emulator and scatter between packings of a few cells, as a function of fraction,
    permeability and attenuation that was fitted to packings outside of the training set.
    """
    numbers = numbers_of(np.asarray(tissue, dtype=float), encodings)
    form = closed_form(shape, numbers)
    return form.gain * np.exp(error_terms(numbers) @ load_network(shape).error_scale)


def error_terms(numbers: Numbers) -> np.ndarray:
    """Terms (..., 5) of the logarithm of the error."""
    f, k, _, time, *_ = np.broadcast_arrays(*numbers)
    tight = 1 / (1 + 10 * k)
    return np.stack(
        [np.ones_like(f), f, f**2, f * tight, np.log(np.clip(time, 0.05, 100))], axis=-1
    )
