"""Initial values of searches: the entries of a dictionary of signals that fit best."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc

from dipy_spinverse.packed_cells.likelihood import TissueData
from dipy_spinverse.packed_cells.tissue_classes import TissueClass
from dipy_spinverse.packed_cells.tissue_signals import TissueSignals

_N_ENTRIES = 2048  # a power of two, as Sobol sequences need
_CHUNK = 512
# Intervals of the squared cosine between gradient and axis, in which signals are averaged.
_N_ANGLES = 4
# The best entry of each interval of the radius, with and without much hindered water, is an
# initial value: local minima differ most in these. Only six of the eight raised the costs of
# measured voxels by 40 to 300 (benchmarks/notes/emulator.md).
_RADIUS_BINS = 4


def best_dictionary_entries(
    model: TissueSignals, tissue: TissueClass, data: TissueData, frames: np.ndarray
) -> np.ndarray:
    """Initial values (V, K, P): the best dictionary entries along the tensor's axis.

    Signals are averaged over intervals of the squared cosine to the axis, the last row of frames
    (V, 3, 3).
    """
    entries_tissue = tissue.of_known_water
    entries, entry_signals, bins = _dictionary(model, entries_tissue)
    shell = model.shells.of_measurement
    label_of_shell = np.zeros(len(model.shells), int)
    label_of_shell[shell] = data.labels
    squared_cosine = np.einsum("vk,mk->vm", frames[:, 2], model.scan.directions) ** 2
    angle = np.minimum((squared_cosine * _N_ANGLES).astype(int), _N_ANGLES - 1)
    n_voxels, n_cells = len(frames), len(model.shells) * _N_ANGLES
    cell = (shell * _N_ANGLES + angle + np.arange(n_voxels)[:, None] * n_cells).ravel()
    weights = data.inverse_sd**2
    weight, product = (
        np.bincount(cell, values.ravel(), n_voxels * n_cells).reshape(n_voxels, n_cells)
        for values in (weights, weights * data.measured)
    )
    chi_square_decrease = np.zeros((n_voxels, len(entries)))
    label_of_cell = np.repeat(label_of_shell, _N_ANGLES)
    for label in range(data.n_labels):
        cells = label_of_cell == label
        cross = product[:, cells] @ entry_signals[:, cells].T
        power = weight[:, cells] @ (entry_signals[:, cells] ** 2).T
        chi_square_decrease += cross**2 / np.maximum(power, 1e-12)
    in_bin = bins == np.arange(bins.max() + 1)[:, None, None]
    best = np.where(in_bin, chi_square_decrease, -np.inf).argmax(axis=2)
    return tissue.like(entries_tissue, entries[best.T])


@lru_cache(maxsize=16)
def _dictionary(model, tissue):
    """z (N, P), signals (N, S * 4) in each interval of the angle, and bin (N,) of each entry."""
    p = tissue.n_parameters
    u = 0.03 + 0.94 * qmc.Sobol(p, seed=0).random(_N_ENTRIES)
    for name in ("free_water", "dot", "hindered"):
        if name in tissue.parameters:
            u[:, tissue.columns(name)] *= 0.8  # most entries have little of these
    z = ndtri(u)
    if tissue.turns:
        z[:, -3:] = 0
    squared_cosine = (np.arange(_N_ANGLES) + 0.5) / _N_ANGLES
    axial, radial = np.sqrt(squared_cosine), np.sqrt((1 - squared_cosine) / 2)
    shells, n_shells = model.shells, len(model.shells)
    starts = np.arange(n_shells + 1) * _N_ANGLES
    by_angle = replace(
        model,
        scan=model.scan._replace(
            directions=np.tile(np.stack([radial, radial, axial], axis=1), (n_shells, 1)),
            isotropic=np.zeros(starts[-1], dtype=bool),
            echo_delay=np.repeat(model.scan.echo_delay[shells.starts[:-1]], _N_ANGLES),
            starts=starts,
        ),
    )
    frames = np.repeat(np.eye(3)[None], _CHUNK, axis=0)
    signals = [by_angle(tissue, z[k : k + _CHUNK], frames) for k in range(0, _N_ENTRIES, _CHUNK)]
    bins = np.minimum((u[:, 0] * _RADIUS_BINS).astype(int), _RADIUS_BINS - 1)
    if "hindered" in tissue.parameters:
        bins = 2 * bins + (u[:, tissue.columns("hindered")[0]] > 0.55)
    return z, np.concatenate(signals).astype(np.float32), bins
