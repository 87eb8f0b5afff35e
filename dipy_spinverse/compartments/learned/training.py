"""Training sets: voxels simulated by a model at parameters from its prior."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dipy_spinverse.compartments.learned.features import FeatureEncoder
from dipy_spinverse.compartments.learned.targets import scaled_targets
from dipy_spinverse.compartments.model import CompartmentModel
from dipy_spinverse.voxels.image import signal_without_diffusion
from dipy_spinverse.voxels.progress import stepwise

_CHUNK = 2000  # voxels simulated together; limits memory
# ms; chosen by hand around those of brain tissue. Used with several echo times only.
_T2 = (30.0, 150.0)


class TrainingSet(NamedTuple):
    """Simulated voxels."""

    features: np.ndarray  # (V, F)
    targets: np.ndarray  # (V, P + K), see scaled_targets
    S0: np.ndarray  # (V,): (true signal without diffusion over the measured one - 1) over noise
    derived: np.ndarray  # (V, D): derived maps of a fit, in the order of the definition


def training_set(
    model: CompartmentModel, encoder: FeatureEncoder, n: int, snr: tuple[float, float], seed: int
) -> TrainingSet:
    """Simulate n voxels with parameters from the prior.

    The signal without diffusion (at the shortest echo time) over the noise is log-uniform in the
    range `snr`.
    """
    rng = np.random.default_rng(seed)
    sizes = [min(_CHUNK, n - start) for start in range(0, n, _CHUNK)]
    chunks = [_training_chunk(model, encoder, size, snr, rng) for size in stepwise(sizes)]
    return TrainingSet(*(np.concatenate(column) for column in zip(*chunks, strict=True)))


def simulated_voxels(
    model: CompartmentModel, n: int, snr: tuple[float, float], rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Values as of `CompartmentModel.draw`, noisy signals (n, M), and noise (n,)."""
    values = model.draw(n, seed=int(rng.integers(2**31)))
    signals = model.signals(values)
    acquisition = model.acquisition
    if len(acquisition.echo_times) > 1:
        delays = acquisition.te - acquisition.echo_times.min()
        signals = signals * np.exp(-delays / rng.uniform(*_T2, (n, 1)))
    sigma = 1 / np.exp(rng.uniform(np.log(snr[0]), np.log(snr[1]), n))
    signals = signals + sigma[:, None] * rng.standard_normal(signals.shape)
    if model.likelihood != "gaussian":
        signals = np.hypot(signals, sigma[:, None] * rng.standard_normal(signals.shape))
    return values, signals, sigma


def _training_chunk(model, encoder, n, snr, rng):
    definition, acquisition = model.definition, model.acquisition
    values, data, sigma = simulated_voxels(model, n, snr, rng)
    S0_te = signal_without_diffusion(data, acquisition).clip(1e-3)
    noise = sigma[:, None] / S0_te
    features, _ = encoder(data / S0_te[:, acquisition.te_index], noise)
    maps = model.maps(values)
    derived = [maps[name] for name in definition.derived if name in maps]
    return TrainingSet(
        features.astype(np.float32),
        scaled_targets(definition, values),
        (1 / S0_te[:, 0] - 1) / noise[:, 0],
        np.stack(derived, axis=1) if derived else np.zeros((n, 0)),
    )
