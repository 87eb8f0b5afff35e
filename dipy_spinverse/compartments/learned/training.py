"""A training set that a model and its prior make themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipy_spinverse.compartments.learned.features import Encoder
from dipy_spinverse.compartments.learned.targets import scaled_targets
from dipy_spinverse.compartments.model import CompartmentModel
from dipy_spinverse.voxels.image import signal_without_diffusion
from dipy_spinverse.voxels.progress import stepwise

_CHUNK = 2000
_T2 = (30.0, 150.0)  # ms, of the voxels where there are several echo times


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Simulated voxels.

    Attributes
    ----------
    features : ndarray (V, F)
    targets : ndarray (V, P + K)
        See :func:`scaled_targets`.
    S0 : ndarray (V,)
        (True signal without diffusion over the measured one - 1) over the noise.
    derived : ndarray (V, D)
        Derived maps of a fit, in the order of the definition.
    """

    features: np.ndarray
    targets: np.ndarray
    S0: np.ndarray
    derived: np.ndarray


def training_set(
    model: CompartmentModel, encoder: Encoder, n: int, snr: tuple[float, float], seed: int
) -> TrainingSet:
    """Draw voxels from the prior, their noise from a range, and simulate them.

    Parameters
    ----------
    model : CompartmentModel
    encoder : Encoder
    n : int
    snr : tuple of float
        Range of the signal without diffusion (at the shortest echo time) over the noise, whose
        logarithm is uniform.
    seed : int
    """
    rng = np.random.default_rng(seed)
    sizes = [min(_CHUNK, n - first) for first in range(0, n, _CHUNK)]
    parts = [_part(model, encoder, size, snr, rng) for size in stepwise(sizes)]
    return TrainingSet(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def simulated_voxels(
    model: CompartmentModel, n: int, snr: tuple[float, float], rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Values as `CompartmentModel.draw` gives them, noisy signals (n, M), and noise (n,)."""
    values = model.draw(n, seed=int(rng.integers(2**31)))
    signals = model.signals(values)
    acquisition = model.acquisition
    if len(acquisition.echo_times) > 1:
        longer = acquisition.te - acquisition.echo_times.min()
        signals = signals * np.exp(-longer / rng.uniform(*_T2, (n, 1)))
    lowest, highest = np.log(snr)
    sigma = 1 / np.exp(rng.uniform(lowest, highest, n))
    real = signals + sigma[:, None] * rng.standard_normal(signals.shape)
    if model.likelihood == "gaussian":
        return values, real, sigma
    return values, np.hypot(real, sigma[:, None] * rng.standard_normal(signals.shape)), sigma


def _part(model, encoder, n, snr, rng):
    definition, acquisition = model.definition, model.acquisition
    values, data, sigma = simulated_voxels(model, n, snr, rng)
    S0_te = signal_without_diffusion(data, acquisition).clip(1e-3)
    noise = sigma[:, None] / S0_te
    features, _ = encoder(data / S0_te[:, acquisition.te_index], noise)
    maps = model.maps(values)
    derived = [maps[name] for name in definition.derived if name in maps]
    return (
        features.astype(np.float32),
        scaled_targets(definition, values),
        (1 / S0_te[:, 0] - 1) / noise[:, 0],
        np.stack(derived, axis=1) if derived else np.zeros((n, 0)),
    )
